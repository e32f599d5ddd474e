"""What a chaos run happens to: the stack behind proxies, the corpus, a client that writes, and revector's processes.

    source ─┬─ proxy ── connector ── proxy ── broker ─ proxy ─┐
            └─ proxy ───────────────────────────── revector ──┴─ proxy ── target, provider, Connect's REST

`stream-a` and `stream-b` take turns; `embed-a` lives through the whole run and is disturbed from outside only,
`embed-b` is also killed. A client of its own, and every check, comes directly.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, suppress
from typing import Any

import psycopg

from sandbox import corpus
from sandbox.chaos_disk import SmallDisk
from sandbox.chaos_fleet import Fleet, Member
from sandbox.chaos_plan import CLAIM_LEASE_S, LEASE_S
from sandbox.chaos_traffic import Prober, Traffic
from sandbox.config import Choice, Gen, render
from sandbox.daemons import asked, command
from sandbox.pipeline import Pipeline, capture_tables
from sandbox.processes import SandboxError
from sandbox.provider import ProviderServer
from sandbox.provider_script import Latency, Script
from sandbox.proxied import Proxied
from sandbox.stack import Sandbox

NAME = "articles"
RATE = 60.0
PAGE_ROWS = 100  # a backfill of many pages, so that one can be killed on the way
DIMENSIONS = {"v2": 64, "v3": 32}
LIMITS = {"request_timeout_s": 5, "in_flight": 2, "request_inputs": 64}
HONEST = Script(latency=Latency(kind="lognormal", seconds=0.02))
DEADLINE_S = 180.0
HALTS = (
    "select coalesce(jsonb_object_agg(role, halt->>'id'), '{}') "
    "from revector.control, jsonb_each(coalesce(halted, '{}')) as h(role, halt)"
)


class World:
    """Started by `begin`, ended by closing `stack`."""

    name = NAME

    def __init__(self, stack: ExitStack, scale: float) -> None:
        """scale: share of the corpus's rows and of the writers' rate."""
        self.scale = scale
        self.disk = SmallDisk()
        stack.callback(self.disk.close)
        self.sandbox = stack.enter_context(Sandbox.start())
        self.disk.carry(self.sandbox)
        self.source_dsn, self.target_dsn = self.sandbox.source_dsn, self.sandbox.target_dsn
        self.config = self.sandbox.config
        self.provider: ProviderServer = self.sandbox.scripted_provider()
        self.provider.set(HONEST)
        self.proxied = stack.enter_context(Proxied(self.sandbox, self.provider.port))
        self.fleet = Fleet(self.sandbox.logs)
        stack.callback(self.fleet.close)
        self.traffic = Traffic(self.source_dsn, RATE * scale)
        stack.callback(self.traffic.stop)
        self.prober = Prober(self.source_dsn, self.target_dsn, NAME, "v2")
        self.pipeline: Pipeline | None = None
        self.generations = ["v2"]

    def begin(self) -> dict[str, Any]:
        """Corpus, connector, writers, processes; a backfill killed on its way; returns when everything is embedded and
        indexed. What was seen meanwhile."""
        corpus.load(self.source_dsn)
        rows = self._scaled()
        self.pipeline = capture_tables(self.sandbox, overrides=self.proxied.capture)
        self.configure("v2")
        self.traffic.start()
        for name in ("stream-a", "stream-b"):
            self.fleet.start(name, "stream", self.config)
        for name in ("embed-a", "embed-b"):
            self.fleet.start(name, "embed", self.config)
        killed = self._copied()
        if (late := self.wait("ready", "v2")) is not None:
            raise SandboxError(late)
        return {"rows": rows, "backfill": killed}

    def configure(self, *generations: str) -> None:
        """Write the config file; processes that run keep what they read."""
        choice = Choice(
            name=NAME,
            source_dsn=self.proxied.source_dsn(self.source_dsn),
            target_dsn=self.proxied.target_dsn(self.target_dsn),
            ways=self.proxied.ways,
            generations=tuple(self._generation(name) for name in generations),
            limits={"lease_s": LEASE_S, "claim_lease_s": CLAIM_LEASE_S, "page_rows": PAGE_ROWS},
        )
        self.config.write_text(render(self.sandbox, choice))

    def add(self, generation: str) -> dict[str, Any]:
        """One more generation, fed from now on; `embed-b` is started again to embed it."""
        self.configure("v2", generation)
        try:
            done = asked(self.config, "generation", "add", generation)
        except SandboxError:
            self.configure("v2")  # a process that starts with one that is not there ends
            raise
        member = self.fleet.members["embed-b"]
        ended = member.terminate()
        member.start()
        self.generations = ["v2", generation]
        return {"added": done["added"], "embed-b": ended}

    def drop(self, generation: str) -> dict[str, Any]:
        """Remove it, with its chunks."""
        self.configure("v2")
        done = asked(self.config, "generation", "drop", generation, "--confirm", generation)
        self.generations = ["v2"]
        return {"dropped": done["dropped"]}

    def holder(self) -> Member | None:
        """The process that holds the stream's lease."""
        owner = self.scalar("select owner from revector.lease where until > now()")
        return self.fleet.with_pid(int(owner.split(":")[1])) if owner else None

    def scalar(self, query: str, *values: object) -> Any:
        """One value of the target."""
        with psycopg.connect(self.target_dsn, autocommit=True, connect_timeout=5) as connection:
            row = connection.execute(query.encode(), values).fetchone()
        return None if row is None else row[0]

    def halts(self) -> dict[str, str]:
        """By role: the id of what stopped it."""
        found: dict[str, str] = self.scalar(HALTS)
        return found

    def walsender(self) -> int | None:
        """The process at the source that sends to the connector; None: nobody reads the slot, or no answer."""
        query = "select active_pid from pg_replication_slots where slot_name = %s"
        assert self.pipeline is not None
        try:
            with psycopg.connect(self.source_dsn, autocommit=True, connect_timeout=5) as connection:
                row = connection.execute(query, [self.pipeline.capture.slot]).fetchone()
        except psycopg.OperationalError:
            return None
        return None if row is None else row[0]

    def wait_walsender(self, unlike: int | None, limit_s: float) -> int | None:
        """One that is not `unlike`, as soon as there is one; None: not within the limit."""
        deadline = time.monotonic() + limit_s
        while (found := self.walsender()) in (None, unlike) and time.monotonic() < deadline:
            time.sleep(0.05)
        return None if found == unlike else found

    def open_breaks(self) -> int:
        """Breaks that no comparison has closed."""
        query = "select count(*) from revector.journal where kind = 'break' and closed_at is null"
        return int(self.scalar(query))

    def retry_refused(self) -> int:
        """What an operator does once the provider answers as it should: `quarantine retry` of texts that its faults
        spoilt every time. How many rows; those of a command that met a part still away are left for the next time."""
        query = (
            "select count(*) from revector.work w join revector.generation g on g.id = w.generation_id "
            "where w.state = 'refused' and g.name = %s"
        )
        retried = 0
        for generation in self.generations:
            if refused := self.scalar(query, generation):
                with suppress(SandboxError):
                    asked(self.config, "quarantine", "retry", "--all", "--generation", generation)
                    retried += refused
        return retried

    def wait(self, what: str, generation: str) -> str | None:
        """`revector wait --for`; why it does not hold within the limit, or None."""
        words = command(self.config, "wait", "--for", what, "--timeout", str(DEADLINE_S), "--generation", generation)
        done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            return None
        return f"waiting for {what} of {generation}: exit status {done.returncode}\n{done.stderr}"

    def _generation(self, name: str) -> Gen:
        return Gen(name, "test-embedding", DIMENSIONS[name], limits=LIMITS, extra={"tokenizer": "cl100k_base"})

    def _scaled(self) -> int:
        """Leave the chosen share of the corpus; the rows of it."""
        left = 0
        with psycopg.connect(self.source_dsn) as connection:
            for table in corpus.TABLES:
                gone = f"delete from {table} where hashtextextended(body, 0) & 1023 >= %s"
                connection.execute(gone.encode(), [round(self.scale * 1024)])
                row = connection.execute(f"select count(*) from {table}".encode()).fetchone()
                left += 0 if row is None else int(row[0])
        return left

    def _copied(self) -> dict[str, Any]:
        """The backfill, killed after its first pages and started again; ends when it has."""
        member = self.fleet.start("backfill", "backfill", self.config)
        killed: dict[str, Any] | None = None
        deadline = time.monotonic() + DEADLINE_S
        while (status := member.poll()) != 0:
            if status is not None and killed is None:
                raise SandboxError(f"the backfill ended with {status}; its log: {member.log}")
            if killed is None and (read := self._rows_read()) > 0:
                killed = member.kill() | {"rows_read": read}
                member.start()
            if time.monotonic() > deadline:
                raise SandboxError(f"the backfill did not end within {DEADLINE_S:.0f} s; its log: {member.log}")
            time.sleep(0.02)
        return killed or {"killed": False}

    def _rows_read(self) -> int:
        try:
            return int(self.scalar("select coalesce(sum(rows_read), 0) from revector.backfill_range") or 0)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return 0
