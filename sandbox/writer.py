"""An outside writer: pgbench with scripts of ours, changing the corpus while a migration runs.

Six kinds of transactions (`traffic/*.sql`): insert, new text, metadata only, key change, delete, and the return of a
freed key; one in ten is rolled back. Every text it writes is distinct. What was changed is counted by the
transactions themselves, in a schema outside the publication: the counts hold exactly what was committed.
"""

import contextlib
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from sandbox.parts import wait_until
from sandbox.processes import Guardian, Process, Program, SandboxError, tail
from sandbox.programs import postgres_folder

SCRIPTS = Path(__file__).with_name("traffic")
WEIGHTS = {"insert": 15, "text": 30, "metadata": 34, "key": 6, "delete": 8, "reinsert": 7}

DDL = """
create schema if not exists traffic;
create sequence if not exists traffic.serial;
create table if not exists traffic.run (
    run int generated always as identity primary key, rolled_back regclass, started timestamptz not null default now()
);
create table if not exists traffic.done (
    run int, client int, kind text, n bigint not null default 0, primary key (run, client, kind)
) with (fillfactor = 50);
create table if not exists traffic.free_article (id bigint primary key);
create table if not exists traffic.free_page (site text, path text, primary key (site, path));
"""


@dataclass(frozen=True)
class Written:
    """What a writer did: rows changed by kind, committed and rolled back transactions, over how long."""

    rows: dict[str, int]
    transactions: int
    rolled_back: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Committed transactions per second."""
        return self.transactions / self.seconds


class Writer:
    """A running writer; as a context manager it starts at once and is stopped at the end.

    rate: transactions per second over all clients, None for as fast as it goes.
    """

    def __init__(self, dsn: str, rate: float | None = 200, clients: int = 4) -> None:
        self._dsn = dsn
        self._rate = rate
        self._clients = clients
        self._guardian: Guardian | None = None
        self._process: Process | None = None
        self._written: Written | None = None
        self._run = 0
        self._began = 0.0

    def start(self) -> None:
        """Begin to write."""
        with psycopg.connect(self._dsn) as connection:
            connection.execute("select pg_advisory_xact_lock(hashtext('revector sandbox writer'))")
            connection.execute(DDL)
            self._run = _scalar(connection, "insert into traffic.run default values returning run")
            counter = sql.Identifier("traffic", f"rolled_back_{self._run}")
            connection.execute(sql.SQL("create sequence {}").format(counter))
            name = f"traffic.rolled_back_{self._run}"
            connection.execute("update traffic.run set rolled_back = %s::regclass where run = %s", [name, self._run])
            connection.execute(
                "insert into traffic.done (run, client, kind)"
                " select %s, client, kind from generate_series(0, %s - 1) as client, unnest(%s::text[]) as kind",
                [self._run, self._clients, [*WEIGHTS, "transaction"]],
            )
            articles = _scalar(connection, "select coalesce(max(id), 1) from app.article")
            pages = _scalar(connection, "select greatest(count(*), 1) from app.page")
        folder = Path(tempfile.mkdtemp(prefix="revector-writer-"))
        self._guardian = Guardian(folder)
        self._process = self._guardian.spawn(self._program(folder, articles, pages))
        self._began = time.monotonic()

    @property
    def is_running(self) -> bool:
        """Whether pgbench is there; it ends by itself when its database goes away."""
        return self._process is not None and self._process.poll() is None

    def counts(self) -> Written:
        """What was committed so far."""
        seconds = time.monotonic() - self._began
        with psycopg.connect(self._dsn) as connection:
            query = "select kind, sum(n)::bigint from traffic.done where run = %s group by kind"
            rows: dict[str, int] = dict(connection.execute(query, [self._run]).fetchall())
            last = "select coalesce(pg_sequence_last_value(rolled_back), 0) from traffic.run where run = %s"
            rolled_back = _scalar(connection, last, self._run)
        transactions = rows.pop("transaction")
        return Written({kind: rows[kind] for kind in WEIGHTS}, transactions, rolled_back, seconds)

    def stop(self) -> Written:
        """Stop writing; what was committed, final: no transaction of this writer is open. Repeatable.

        Raises SandboxError: the writer had died before.
        """
        if self._written is not None:
            return self._written
        if self._guardian is None or self._process is None:
            raise SandboxError("the writer was never started")
        status = self._process.poll()
        with self._guardian:
            if status is not None:
                raise SandboxError(
                    f"the writer ended by itself, exit status {status}\n{tail(self._process.program.log)}"
                )
            self._process.signal(signal.SIGTERM)
            self._process.wait(10)
        with contextlib.suppress(psycopg.OperationalError):  # a source that is away has no sessions either
            wait_until(self._open_sessions, "the writer's sessions to end", 30)
        self._written = self.counts()
        return self._written

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.stop()
        elif self._guardian is not None:
            self._guardian.finish()

    def _program(self, folder: Path, articles: int, pages: int) -> Program:
        source = conninfo_to_dict(self._dsn)
        variables = {"run": self._run, "articles": articles, "pages": pages}
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        return Program(
            "writer",
            [
                postgres_folder() / "bin" / "pgbench",
                "--no-vacuum",
                f"--client={self._clients}",
                "--time=604800",
                "--max-tries=100",  # deadlocks and serialisation failures are part of life
                *([f"--rate={self._rate}"] if self._rate is not None else []),
                *(f"--define={name}={value}" for name, value in variables.items()),
                *(f"--file={SCRIPTS / kind}.sql@{weight}" for kind, weight in WEIGHTS.items()),
            ],
            folder / "writer.log",
            {**{names[key]: str(source[key]) for key in names if key in source}, "PGAPPNAME": self._application},
        )

    @property
    def _application(self) -> str:
        return f"writer-{self._run}"

    def _open_sessions(self) -> str | None:
        with psycopg.connect(self._dsn) as connection:
            query = "select count(*) from pg_stat_activity where application_name = %s"
            open_sessions = _scalar(connection, query, self._application)
        return f"{open_sessions} are open" if open_sessions else None


def _scalar(connection: psycopg.Connection[Any], query: str, *values: object) -> int:
    row = connection.execute(query.encode(), values).fetchone()
    assert row is not None
    return int(row[0])
