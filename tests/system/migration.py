"""A migration under test: the product as processes, beside a client of its own on either database.

Nothing here uses revector's code: commands are run as a user runs them, rows are read in plain SQL. Waiting is always
for a position or a condition, with a deadline; a daemon that dies is an error with its log's end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from sandbox.compare import Checked, Differences, compare
from sandbox.config import Choice, Gen, Ways, render
from sandbox.pipeline import Pipeline, capture_tables
from sandbox.postgres import Postgres
from sandbox.proxied import Proxied
from sandbox.stack import Sandbox

DEADLINE_S = 90.0
SLOW = "did not answer within"
LIMITS = {"lease_s": 5, "claim_lease_s": 60}
GENERATION_LIMITS = {"request_timeout_s": 30, "in_flight": 2, "request_inputs": 64}

DOCS = """
create schema app;
create table app.doc (id bigint primary key, tenant int not null default 1, title text not null, body text,
                      views int not null default 0);
alter table app.doc alter column body set storage external;
create publication revector for table app.doc with (publish = 'insert, update, delete, truncate');
"""
DOC_TABLE = """
[[table]]
source = "app.doc"
text = "{title}\\n\\n{body}"
columns = ["views"]
filters = ["tenant"]
"""
DOC_CHECK = Checked(
    "app.doc",
    "doc",
    "doc_v2",
    "id::text",
    "title || E'\\n\\n' || coalesce(body, '')",
    "concat_ws('|', tenant, views)",
    filters="tenant::text",
    filter_columns=", tenant",
)

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Setting:
    """What a test sets up. rows: SQL that fills the tables before anything starts. proxied: the product and the
    connector come through these; the test itself does not. cluster: the test's own, for the source; the sandbox's
    otherwise."""

    ddl: str = DOCS
    tables: str = DOC_TABLE
    names: tuple[str, ...] = ("app.doc",)
    rows: str = ""
    checks: tuple[Checked, ...] = (DOC_CHECK,)
    connector: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    generations: tuple[Gen, ...] = (Gen(limits=GENERATION_LIMITS),)
    captured: bool = True
    proxied: Proxied | None = None
    kafka_properties: Mapping[str, str] = field(default_factory=dict)
    cluster: Postgres | None = None


class Migration:
    """Databases, pipeline, config file and the processes of one test."""

    def __init__(self, stack: Sandbox, folder: Path, name: str, setting: Setting) -> None:
        self.stack, self.folder, self.name, self.setting = stack, folder, name, setting
        self.source_dsn = (setting.cluster or stack.source).create_database(name)
        self.target_dsn = stack.create_database("target", name)
        self.source = psycopg.connect(self.source_dsn, autocommit=True)
        self.target = psycopg.connect(self.target_dsn, autocommit=True)
        self.source.execute(setting.ddl.encode())
        if setting.rows:
            self.source.execute(setting.rows.encode())
        self.pipeline: Pipeline | None = None
        if setting.captured:
            profile = {**(setting.proxied.capture if setting.proxied else {}), **setting.connector}
            self.pipeline = capture_tables(stack, self.source_dsn, name, setting.names, profile, setting.cluster)
        self.config = folder / f"{name}.toml"
        self.configure(*setting.generations)
        self.log = folder / f"{name}.log"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def configure(self, *generations: Gen) -> None:
        """Write the config file; processes that run keep what they read."""
        source_dsn, target_dsn, ways = self.source_dsn, self.target_dsn, Ways()
        if (proxied := self.setting.proxied) is not None:
            source_dsn, target_dsn, ways = proxied.source_dsn(source_dsn), proxied.target_dsn(target_dsn), proxied.ways
        ways = replace(ways, kafka_properties=self.setting.kafka_properties)
        where = (self.name, self.name, "revector", source_dsn, target_dsn)
        choice = Choice(*where, self.setting.tables, generations, {**LIMITS, **self.setting.limits}, ways)
        self.config.write_text(render(self.stack, choice))

    # the product

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "daemon", *words, "--config", str(self.config)]

    def revector(self, *words: str, code: int | None = 0, timeout_s: float = DEADLINE_S) -> str:
        """Run a command; its stdout. code: the exit code it must have, None for any. On a loaded machine a part may not
        answer within the few seconds that a command gives it: then it is asked again."""
        deadline = time.monotonic() + timeout_s
        while True:
            done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout_s, check=False)
            is_late = SLOW in done.stdout + done.stderr and code != 69  # which a part that is away may say
            if not is_late or time.monotonic() > deadline:
                break
        said = f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.tail()}"
        assert code is None or done.returncode == code, said
        assert "Traceback" not in done.stderr, said
        return done.stdout

    def asked(self, *words: str, code: int = 0) -> dict[str, Any]:
        """Run a command with --json; its document."""
        document: dict[str, Any] = json.loads(self.revector(*words, "--json", code=code))
        return document

    def start(self, role: str = "run") -> subprocess.Popen[bytes]:
        """A daemon as a process of its own."""
        with self.log.open("ab") as log:
            daemon = subprocess.Popen(self.command(role), stdout=log, stderr=log)
        self._daemons.append(daemon)
        return daemon

    def stop(self, daemon: subprocess.Popen[bytes], signum: int = signal.SIGTERM) -> int:
        """End a daemon with a signal; its exit status."""
        daemon.send_signal(signum)
        status = daemon.wait(60)
        self._daemons.remove(daemon)
        return status

    def ended(self, daemon: subprocess.Popen[bytes]) -> None:
        """It ended by itself, as it should."""
        self._daemons.remove(daemon)

    def wait(self, what: str, generation: str | None = None) -> None:
        """`revector wait`, as a user would."""
        words = ("wait", "--for", what, "--timeout", str(DEADLINE_S), *_named(generation))
        self.revector(*words, timeout_s=DEADLINE_S + 30)

    def verify(self, *words: str, code: int = 0) -> dict[str, Any]:
        """`revector verify`: a clean comparison is what a certificate rests on."""
        return self.asked("verify", *words, code=code)

    def prove(self, code: int = 0, timeout_s: float = 30, generation: str | None = None) -> dict[str, Any]:
        return self.asked("prove", "--timeout", str(timeout_s), *_named(generation), code=code)

    # what is there

    def until(
        self, read: Callable[[], Seen], holds: Callable[[Seen], bool], what: str, limit_s: float = DEADLINE_S
    ) -> Seen:
        """Read until it holds. Fails with what was seen last, or at once when a daemon has died."""
        deadline = time.monotonic() + limit_s
        while True:
            seen = read()
            if holds(seen):
                return seen
            dead = [d for d in self._daemons if d.poll() is not None]
            assert not dead, f"waiting for {what}: a daemon ended with {dead[0].returncode}\n{self.tail()}"
            assert time.monotonic() < deadline, f"{what}: not within {limit_s:.0f} s, seen {seen!r}\n{self.tail()}"
            time.sleep(0.02)

    def replica(self, columns: str = "id, title", table: str = "doc") -> list[tuple[Any, ...]]:
        """Live rows of the replica, ordered; [] where there is no replica yet."""
        query = f"select {columns} from {self.name}.{table} where not _deleted order by 1"
        return self._rows(query)

    def chunks(self, columns: str = "id, _text", table: str = "doc", generation: str = "v2") -> list[tuple[Any, ...]]:
        chunks = f"{self.name}.{table}_{generation}"
        return self._rows(f"select {columns} from {self.name}.{table} join {chunks} c using (_row_id) order by 1")

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self.target.execute(query.encode()).fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return []

    def differences(self, generation: str | None = None) -> Differences:
        """The independent comparison in plain SQL."""
        return compare(self.source_dsn, self.target_dsn, self.name, self.setting.checks, generation)[0]

    def tail(self) -> str:
        """The end of the daemons' log."""
        if not self.log.exists():
            return "(no daemon was started)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def close(self) -> None:
        """End what this test started: daemons, connector, slot, connections."""
        for daemon in self._daemons:
            if daemon.poll() is None:
                os.kill(daemon.pid, signal.SIGCONT)
                daemon.kill()
                daemon.wait()
        if self.pipeline is not None:
            self.pipeline.connector.delete()
            if self.setting.cluster is None:
                self._drop_slot(self.pipeline.capture.slot)
        self.source.close()
        self.target.close()

    def _drop_slot(self, slot: str) -> None:
        query = "select active_pid from pg_replication_slots where slot_name = %s"
        deadline = time.monotonic() + 30
        while (row := self.source.execute(query, [slot]).fetchone()) is not None:
            if row[0] is None:
                self.source.execute("select pg_drop_replication_slot(%s)", [slot])
                return
            assert time.monotonic() < deadline, f"slot {slot} is still in use"
            time.sleep(0.05)


def _named(generation: str | None) -> tuple[str, ...]:
    return () if generation is None else ("--generation", generation)
