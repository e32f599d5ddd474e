"""One PostgreSQL 18 cluster with pgvector, ready for logical decoding.

Listens on 127.0.0.1 with password logins only. fsync is off: a sandbox must survive the crash of a process, which
loses nothing that was written, not a power cut of the machine, which nobody would test here.
"""

import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from sandbox.parts import Part, wait_until
from sandbox.processes import Guardian, Program, SandboxError
from sandbox.programs import postgres_folder, service_user

SUPERUSER = "revector"
TEMPLATE = "vector_template"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path may not exceed 107 characters, temporary folders do
    "wal_level": "logical",
    "fsync": "off",
    "max_connections": "200",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_wal_size": "2GB",
    "max_slot_wal_keep_size": "4GB",  # a forgotten slot loses its WAL before it fills the disk
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a %d ",
}


class Postgres(Part):
    """A cluster; `dsn()` reaches one of its databases as superuser."""

    stop_signal = signal.SIGINT  # fast: roll back, disconnect, write a checkpoint
    crash_signal = signal.SIGQUIT  # immediate: like a crash, but the kernel's shared memory is given back

    programs = staticmethod(postgres_folder)

    def __init__(self, guardian: Guardian, name: str, port: int, folder: Path, log: Path) -> None:
        self._data = folder / "data"
        self._folder = folder
        self._user = service_user()
        self.password = secrets.token_hex(16)
        server = Program(
            name,
            [self.programs() / "bin" / "postgres", "-D", self._data, "-p", str(port)],
            log,
            user=self._user,
            quit_signal=signal.SIGQUIT,
        )
        super().__init__(guardian, server, port)

    def initialise(self, *more: str) -> None:
        """Create the cluster's files: 1 to 2 s. more: options of initdb."""
        self._folder.mkdir(mode=0o700)
        password = self._folder / "password"
        password.write_text(self.password)
        if self._user.uid is not None:
            for path in (self._folder, password):
                shutil.chown(path, self._user.uid, self._user.gid)
        options = [
            "-U",
            SUPERUSER,
            "-A",
            "scram-sha-256",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
            *more,
        ]
        initdb: list[str | Path] = [
            self.programs() / "bin" / "initdb",
            "-D",
            self._data,
            "--pwfile",
            password,
            *options,
        ]
        self._guardian.run(Program(f"{self.name} initdb", initdb, self.log, user=self._user))
        lines = [f"{name} = '{value}'" for name, value in (SETTINGS | _shared_memory()).items()]
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("\n".join(["", *lines, ""]))

    def dsn(self, database: str) -> str:
        """A libpq URI."""
        return f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def copy_to(self, folder: str) -> None:
        """A cold copy of the stopped cluster's files, beside them."""
        self._copy(self._data, self._folder / folder)

    def put_back(self, folder: str) -> None:
        """The files as `copy_to` kept them, in place of the present ones. The cluster is stopped."""
        self._copy(self._folder / folder, self._data)

    def become_copy_of(self, other: "Postgres") -> None:
        """Another stopped cluster's files in place of the present ones, behind this one's port."""
        self._copy(other._data, self._data)
        self.password = other.password

    def _copy(self, source: Path, to: Path) -> None:
        if self.is_running:
            raise SandboxError(f"{self.name} runs: its files cannot be copied")
        if to.exists():
            shutil.rmtree(to)
        subprocess.run(["cp", "-a", source, to], check=True)

    def set_password(self, password: str) -> None:
        """Of the superuser."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            statement = sql.SQL("alter role {} password {}")
            connection.execute(statement.format(sql.Identifier(SUPERUSER), sql.Literal(password)))
        self.password = password

    def promote(self) -> None:
        """End recovery: the cluster goes on with a timeline of its own. Returns when it takes writes."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute("select pg_promote(true, 60)")

    def recover_as_standby(self) -> None:
        """From its next start on it is a standby without a primary, until `promote`."""
        (self._data / "standby.signal").touch()

    def not_ready(self) -> str | None:
        """It has to answer a query: while it recovers, the port is open already."""
        try:
            with psycopg.connect(self.dsn("postgres"), connect_timeout=5) as connection:
                connection.execute("select 1")
        except psycopg.OperationalError as error:
            return str(error).strip()
        return None

    def create_database(self, name: str, *, vector: bool = False) -> str:
        """A new database, its DSN; with `vector`, pgvector is installed in it (copied from a template, 50 ms)."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            if vector and not self._has_database(connection, TEMPLATE):
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(TEMPLATE)))
                with psycopg.connect(self.dsn(TEMPLATE)) as template:
                    template.execute("create extension vector")
            source = TEMPLATE if vector else "template1"
            command = sql.SQL("create database {} template {}")
            connection.execute(command.format(sql.Identifier(name), sql.Identifier(source)))
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Remove a database with whoever is connected to it, and its inactive slots; absent is fine."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            connection.execute(f"{drop} where database = %s and not active", [name])
            connection.execute(sql.SQL("drop database if exists {} (force)").format(sql.Identifier(name)))

    def wait_slot_active(self, slot: str, timeout_s: float = 60) -> None:
        """Return when a consumer streams from the slot. Raises SandboxError."""

        def question() -> str | None:
            with psycopg.connect(self.dsn("postgres")) as connection:
                query = "select active from pg_replication_slots where slot_name = %s"
                row = connection.execute(query, [slot]).fetchone()
            if row is None:
                return "the slot does not exist"
            return None if row[0] else "the slot is not active"

        wait_until(question, f"slot {slot} on {self.name}", timeout_s)

    @staticmethod
    def _has_database(connection: psycopg.Connection[Any], name: str) -> bool:
        return connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone() is not None


def _shared_memory() -> dict[str, str]:
    """Where parallel index builds share memory: containers often have 64 MB there, too little for one build."""
    try:
        usage = os.statvfs("/dev/shm")
        is_roomy = usage.f_bavail * usage.f_frsize >= 1 << 30
    except OSError:
        is_roomy = False
    return {"dynamic_shared_memory_type": "posix" if is_roomy else "mmap"}
