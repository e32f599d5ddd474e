"""SIGKILL at every fail point of the real process, on the real stack, and what is left afterwards.

One round is one migration from its first step to its certificate, its commands processes of their own that die at
every point they come to and have not died at yet, and are started again: either `stream` alone through preparation and
start, then `stream`, `backfill` and `embed` side by side under a writer; or, of a migration that runs in peace,
`verify`, `verify --repair` over corruptions, and `prove`. So no list of points is kept: what a process reaches is
killed, and a command is done when one of its processes lived through everything without a new point, its orderly end
included.

Afterwards honest processes take over; source, replica and chunks are compared in plain SQL, each vector with its text.
What was done again is measured: records by offsets, rows by pages, texts by the provider's own count.
"""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

from sandbox.compare import compare, wrong_vectors
from sandbox.config import Choice, Gen, render
from sandbox.corruptions import WAYS, Place, corrupt
from sandbox.daemons import asked
from sandbox.failpoints_killer import Arm
from sandbox.failpoints_life import Child, Zygote
from sandbox.failpoints_outcome import IN_FLIGHT, PAGE_ROWS, REQUEST_INPUTS, WINDOW_RECORDS, WORKERS, Outcome
from sandbox.failpoints_traffic import CHECKS, DDL, NAMES, POISON, RESERVED, TABLES, Traffic, fill
from sandbox.parts import wait_until
from sandbox.pipeline import capture_tables
from sandbox.processes import SandboxError, tail
from sandbox.provider import Script
from sandbox.stack import Sandbox

ROWS = 1000
DIMENSIONS = 16
LIMITS = {
    "window_records": WINDOW_RECORDS,
    "window_wait_ms": 20,
    "page_rows": PAGE_ROWS,
    "backfill_workers": WORKERS,
    "lease_s": 5,
    "claim_lease_s": 10,
}
GENERATION = {
    "in_flight": IN_FLIGHT,
    "request_inputs": REQUEST_INPUTS,
    "request_timeout_s": 30,
    "requests_per_minute": 1_000_000,
}
SCRIPT = {
    "count_texts": True,
    "dimensions": DIMENSIONS,
    "latency": {"seconds": 0.02},
    "poison": {"markers": [POISON]},
}
SLOW_S = 4.0
CANARY = "revector asks whether this model answers."  # asked by every process, on top of what it was given to do
QUIET_S = 3.0  # at work, without a new point: this life met them all
SHORT_QUIET_S = 0.2
LIFE_S = 120.0
LIMIT_S, LIMIT_OF_A_KILL_S = 600.0, 200.0  # of a round, and longer for each time that a point is to be died at
# Where a role is at work, after everything that it does once.
AT_WORK = {"stream": "stream.feed.poll after", "embed": "embed.target.commit(claim) after"}
# Of a range whose page takes longer than a third of its lease.
RENEWALS = tuple(f"backfill.target.commit(hold_range) {when}" for when in ("before", "during", "after"))
VERIFY = ("verify", "--reembed-sample", "0", "--set", "verify.page_rows=500")
PROVE = ("prove", "--timeout", "20")
# Whoever is dead holds nothing: its leases end at once. That they are waited for otherwise is tested elsewhere.
EXPIRE = (
    "update revector.lease set until = now() where owner like %(owner)s",
    "update revector.backfill_range set lease_until = now() where owner like %(owner)s",
    "update revector.work set claimed_until = now() where claimed_by like %(owner)s",
    "update revector.comparison set lease_until = now() where state = 'running' and %(is_verify)s",
)
# What keeps a build from going on, and where it then stands.
HELD_BUILDS = (
    ("lock table {chunks} in row exclusive mode", "waiting for writers before build"),
    ("select count(*) from {chunks}", "waiting for old snapshots"),
)


class Round:
    """One migration under fire. name: of databases, connector and migration. chance: of dying at a point that is
    reached, below 1 for another order each time. times: to die at each point, as often as it is met; `came.spared`:
    where nobody dies. all_readings: see `failpoints_killer.Arm`."""

    def __init__(self, stack: Sandbox, zygote: Zygote, folder: Path, name: str, rows: int = ROWS) -> None:
        self.stack, self.zygote, self.folder, self.name, self.rows = stack, zygote, folder, name, rows
        self.seed, self.chance, self.times, self.all_readings = 1, 1.0, 1, False
        self.log = folder / f"{name}.log"
        self.log.touch()
        self.came = Outcome()
        self._lock = threading.Lock()
        self._quiet: set[str] = set()
        self._began, self._copied, self._failed = threading.Event(), threading.Event(), threading.Event()
        self._until = 0.0
        self.provider = stack.scripted_provider()
        self.provider.set(Script.read(SCRIPT))
        self.source_dsn = stack.create_database("source", name)
        self.target_dsn = stack.create_database("target", name)
        self.source = psycopg.connect(self.source_dsn, autocommit=True)
        self.target = psycopg.connect(self.target_dsn, autocommit=True)
        self.source.execute(DDL.encode())
        fill(self.source, rows)
        self.pipeline = capture_tables(stack, self.source_dsn, name, NAMES)
        self.config = folder / f"{name}.toml"
        self.config.write_text(render(stack, self._choice()))

    def _choice(self) -> Choice:
        generation = Gen(
            model="test-embedding",
            dimensions=DIMENSIONS,
            base_url=self.provider.url,
            limits=GENERATION,
            extra={"tokenizer": "cl100k_base"},
        )
        choice = Choice(name=self.name, prefix=self.name, tables=TABLES, generations=(generation,), limits=LIMITS)
        return replace(choice, source_dsn=self.source_dsn, target_dsn=self.target_dsn)

    def close(self) -> None:
        """End what the round set up; its processes end with the zygote."""
        self.pipeline.connector.delete()
        wait_until(self._drop_slot, "the connector to let go of its slot", LIFE_S)  # a server has ten
        self.source.close()
        self.target.close()
        self.provider.stop()

    def _drop_slot(self) -> str | None:
        try:
            self.source.execute("select pg_drop_replication_slot(%s)", [self.pipeline.capture.slot])
        except psycopg.errors.ObjectInUse as error:
            return str(error)
        return None

    def migrate(self, *, once_only: bool = False) -> Outcome:
        """A migration under fire, up to its proof. once_only: not the builds of its index, which can be had again.
        Raises SandboxError."""
        with self._timed():
            traffic = self._traffic()
            with traffic:
                self._together(self._stream, self._backfill, self._embed)
            self._embed_slowly()
            self._count_texts()
            if not once_only:
                with self._beside("embed"):  # what waits to be embedded keeps an index from being built
                    self._builds()
            with self._beside("run") as daemon:
                self._asked("wait", "--for", "caught-up", "--timeout", "120")
                self._asked(*VERIFY)
                self._settled(daemon)
            self.came.transactions = traffic.transactions
        return self.came

    def audit(self) -> Outcome:
        """Comparisons, repairs and proofs under fire, of a migration that nobody kills. Raises SandboxError."""
        self._began.set()
        with self._timed(), self._beside("run") as daemon:
            self._asked("wait", "--for", "caught-up", "--timeout", "120")
            self._hunted(VERIFY)
            traffic = self._traffic()
            for n in range(self.times):  # what a repair has mended is met once
                self._spoil(n)
                with traffic:
                    self._hunted((*VERIFY, "--repair"))
                self._asked("wait", "--for", "caught-up", "--timeout", "120")
                if not self._rare("verify"):
                    break
            self._asked(*VERIFY)
            self._together(self._prove, self._prove)
            self._settled(daemon)
            self.came.transactions = traffic.transactions
        return self.came

    def _traffic(self) -> Traffic:
        return Traffic(self.source_dsn, self.rows, self.seed)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        self._until = began + LIMIT_S + self.times * LIMIT_OF_A_KILL_S
        yield
        self.came.seconds = time.monotonic() - began

    # --- lives

    def _fork(self, words: Sequence[str], arm: Arm) -> Child:
        return self.zygote.fork([*words, "--config", str(self.config)], arm, self.log)

    def _hunted(
        self,
        words: Sequence[str],
        is_over: Callable[[], bool] = lambda: True,
        fine: tuple[int, ...] = (0,),
        heed: Callable[[Child], None] = lambda child: None,
    ) -> None:
        """Lives of one command, until one met no new point and `is_over`. fine: exit statuses of one that was not
        killed. heed: is shown each life when it has ended."""
        is_patient = False  # the last lives die wherever they can
        while True:
            if self._is_late():
                raise SandboxError(f"{' '.join(words)}: given up after {self.came.lives} lives\n{tail(self.log)}")
            with self._lock:
                self.came.lives += 1
                chance = self.chance if self._began.is_set() and not is_patient else 1.0
                spared = self.came.spared.union(p for p, kills in self.came.kills.items() if kills >= self.times)
                arm = Arm(spared, chance, self.seed * 100_000 + self.came.lives, self.all_readings)
            child = self._fork(words, arm)
            status = self._lived(child, words[0], is_over if chance == 1.0 else None)
            was_killed = self._take_down(child, status, words)
            heed(child)
            if was_killed:
                continue
            if status not in fine:
                raise SandboxError(f"{' '.join(words)} ended by itself with {status}\n{tail(self.log, 40)}")
            if chance == 1.0 and is_over():
                return
            is_patient = True

    def _lived(self, child: Child, role: str, is_over: Callable[[], bool] | None) -> int:
        """Its exit status. One that works for ever is told to end when it has met no new point for a while, and not
        before `is_over`; the next ones sooner: what is left to meet is the end. None: it may have passed new points."""
        at_work = AT_WORK.get(role, "")
        ends_at = time.monotonic() + LIFE_S
        while time.monotonic() < ends_at:
            if (status := child.wait(0.1)) is not None:
                return status
            if at_work and at_work.encode() in child.evidence.read_bytes():
                if role == "stream":
                    self._began.set()  # the others come now: without them a stream that nobody kills is never over
                break
        quiet_at = time.monotonic() + (SHORT_QUIET_S if role in self._quiet else QUIET_S)
        while at_work and not self._is_late() and (time.monotonic() < quiet_at or not (is_over is None or is_over())):
            if (status := child.wait(0.1)) is not None:
                return status
        if is_over is not None:
            self._quiet.add(role)
        child.signal(signal.SIGTERM)
        if (status := child.wait(40)) is None:
            child.signal(signal.SIGKILL)
            raise SandboxError(f"{role} did not end within 40 s of SIGTERM\n{tail(self.log)}")
        return status

    def _rare(self, role: str) -> bool:
        """Whether a point of this role was met, and not died at as often as is asked for."""
        return self._are_due([point for point in self.came.reached if point.startswith(role)])

    def _are_due(self, points: Sequence[str]) -> bool:
        """Whether one of them is to be died at, and was not as often as is asked for."""
        return any(p not in self.came.spared and self.came.kills[p] < self.times for p in points)

    def _is_late(self) -> bool:
        return self._failed.is_set() or time.monotonic() > self._until

    def _take_down(self, child: Child, status: int, words: Sequence[str]) -> bool:
        """What a life noted; whether it was killed. Evidence and exit status must say the same."""
        noted = child.noted()
        killed = [note for note in noted if "killed" in note]
        if bool(killed) != (status == -signal.SIGKILL):
            raise SandboxError(f"{words[0]} noted {killed} and ended with {status}\n{tail(self.log)}")
        with self._lock:
            came = self.came
            came.reached.update(str(note[what]) for note in noted for what in ("reached", "killed") if what in note)
            if any(point.startswith("stream.") for point in came.reached):
                self._began.set()
            for note in killed:
                came.kills[note["killed"]] += 1
                came.redone.rows_in_flight.append(sum(note["pages"].values()))
                if words[0] == "embed":
                    came.redone.texts_in_flight.append(sum(note["texts"].values()))
        if killed:
            self._expire(child.pid, is_verify=words[0] == "verify")
        return bool(killed)

    def _expire(self, pid: int, *, is_verify: bool) -> None:
        with psycopg.connect(self.target_dsn, autocommit=True) as target:
            try:
                for statement in EXPIRE:
                    _repeated(target, statement, {"owner": f"%:{pid}:%", "is_verify": is_verify})
            except psycopg.errors.UndefinedTable:
                return

    def _together(self, *loops: Callable[[], None]) -> None:
        """Side by side; one that fails ends them all."""

        def stop() -> None:
            for event in (self._failed, self._began, self._copied):
                event.set()

        def run(loop: Callable[[], None]) -> None:
            try:
                loop()
            except BaseException:
                stop()
                raise

        with ThreadPoolExecutor() as pool:
            running = [pool.submit(run, loop) for loop in loops]
            try:
                wait(running)
            except BaseException:  # such as Ctrl-C: a pool waits for its threads
                stop()
                raise
        errors = [error for error in (future.exception() for future in running) if error is not None]
        if errors:
            raise next((e for e in errors if "given up" not in str(e)), errors[0])

    # --- the loops

    def _stream(self) -> None:
        """Lives of the stream, with what each read again of what those before it had read."""
        read: dict[str, int] = {}

        def heed(child: Child) -> None:
            for note in child.noted():
                for at, offset in note.get("seek", {}).items():
                    if offset > read.get(at, offset):
                        raise SandboxError(f"{at}: the stream went on at {offset}, read was up to {read[at]}")
                if "seek" in note:
                    self.came.redone.records.append(sum(max(0, read.get(at, n) - n) for at, n in note["seek"].items()))
                    read.update(note["seek"])
                read.update(note.get("polled", {}))

        self._hunted(["stream"], self._is_live, heed=heed)

    def _backfill(self) -> None:
        """One table cannot be read until a range was died for while it is renewed."""
        pages: list[int] = []

        def heed(child: Child) -> None:
            noted = child.noted()
            pages.extend(note["page"] for note in noted if "page" in note)
            self.came.redone.rows_dropped += sum(note.get("dropped", 0) for note in noted)
            if not self._are_due(RENEWALS):
                locking.rollback()

        self._began.wait()
        with psycopg.connect(self.source_dsn) as locking:
            if self._are_due(RENEWALS):
                wait_until(self._no_ranges, "the ranges of the backfill", LIFE_S)
                locking.execute("lock table app.still")
            self._hunted(["backfill"], heed=heed)
        (rows,) = self.target.execute("select sum(rows_read)::bigint from revector.backfill_range").fetchall()[0]
        self.came.redone.rows = sum(pages) - rows
        self._copied.set()

    def _no_ranges(self) -> str | None:
        with psycopg.connect(self.target_dsn) as target:
            (has_some,) = target.execute("select exists (select from revector.backfill_range)").fetchall()[0]
        return None if has_some else "none yet"

    def _embed(self) -> None:
        self._began.wait()
        self._hunted(["embed"], self._is_live)

    def _embed_slowly(self) -> None:
        """The same of a row whose answer takes longer than a third of a claim's lease: claims are renewed."""
        with self._beside("run") as daemon:
            self._asked("wait", "--for", "caught-up", "--timeout", "120")
        daemon.wait(40)
        with self._beside("stream"):
            self.provider.set(Script.read({**SCRIPT, "latency": {"seconds": SLOW_S}}))
            self.source.execute("update app.doc set title = 'slowly' where id = 1")
            wait_until(lambda: None if self._owed() else "no work", "work", LIFE_S)
            self._hunted(["embed"], lambda: self._owed() is None)
        self.provider.set(Script.read(SCRIPT))

    def _owed(self) -> str | None:
        """What waits to be embedded, in words; None: nothing does."""
        query = "select count(*) from revector.work where state = 'waiting'"
        with psycopg.connect(self.target_dsn) as target:
            (count,) = target.execute(query).fetchall()[0]
        return f"{count} rows wait" if count else None

    def _prove(self) -> None:
        self._hunted(PROVE)

    def _is_live(self) -> bool:
        """The backfill is over and the index built: nothing is left that a process does once."""
        if not self._copied.is_set():
            return False
        with psycopg.connect(self.target_dsn) as target:
            return target.execute("select phase from revector.generation").fetchall() == [("live",)]

    def _count_texts(self) -> None:
        canary = hashlib.sha256(CANARY.encode()).hexdigest()
        billed = self.provider.texts()
        self.came.redone.texts = sum(count - 1 for text, count in billed.items() if text != canary)

    # --- an index build under way

    def _builds(self) -> None:
        """Kill the stream while its CREATE INDEX CONCURRENTLY stands still, at either end of the build, and let the
        next ones take over from what is left. The server ends a build whose client died, so the last time nobody dies
        before it has ended."""
        chunks = f"{self.name}.doc_v2"
        for held, phase in HELD_BUILDS:
            self._drop_indexes(chunks)
            with psycopg.connect(self.target_dsn) as other:
                other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                other.execute(held.format(chunks=chunks).encode())
                child = self._fork(["stream"], Arm(chance=0))
                wait_until(lambda: self._is_building(phase), f"a build that is {phase}", LIFE_S)  # noqa: B023
                child.signal(signal.SIGKILL)
                if (status := child.wait(10)) != -signal.SIGKILL:
                    raise SandboxError(f"the kill did not land: {status}")
                self._expire(child.pid, is_verify=False)
            self.came.builds[phase] += 1
            self._hunted(["stream"], self._is_live)
            valid = self.target.execute(self._indexes(chunks, "and i.indisvalid")).fetchall()
            if len(valid) != 1:
                raise SandboxError(f"{chunks} has {len(valid)} valid indexes")

        self._drop_indexes(chunks)
        self._hunted(["stream"], self._is_live)

    def _drop_indexes(self, chunks: str) -> None:
        self.target.execute("update revector.generation set phase = 'loading'")
        for (index,) in self.target.execute(self._indexes(chunks)).fetchall():
            self.target.execute(f"drop index {self.name}.{index}".encode())

    @staticmethod
    def _indexes(chunks: str, also: str = "") -> bytes:
        query = (
            "select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam"
        )
        return f"{query} where i.indrelid = '{chunks}'::regclass and a.amname = 'hnsw' {also}".encode()

    def _is_building(self, phase: str) -> str | None:
        seen = self.target.execute("select phase from pg_stat_progress_create_index").fetchall()
        return None if (phase,) in seen else f"seen: {seen}"

    # --- afterwards

    @contextmanager
    def _beside(self, role: str) -> Iterator[Child]:
        """A daemon that nobody kills."""
        daemon = self._fork([role], Arm(chance=0))
        try:
            yield daemon
        finally:
            daemon.signal(signal.SIGTERM)

    def _spoil(self, n: int) -> None:
        """Corrupt the target in rows that nobody writes, so that a repair has something to do."""
        self.source.execute(f"delete from app.doc where id between {RESERVED - 10} and {RESERVED - 1}".encode())
        owed = (
            f"select (select count(*) from revector.work w join {self.name}.doc r on r._row_id = w.row_id"
            f" where r.id < {RESERVED}), (select count(*) from {self.name}.doc where _deleted and id < {RESERVED})"
        )

        def question() -> str | None:
            seen = self.target.execute(owed.encode()).fetchall()[0]
            return None if seen == (0, 10) else f"owed and deleted: {seen}"

        wait_until(question, "the rows to be corrupted", LIFE_S)
        place = Place(self.name, 1, RESERVED - 1, 10**9 + n * len(WAYS), DIMENSIONS)
        corrupt(self.target_dsn, place, len(WAYS), self.seed + n)

    def _settled(self, daemon: Child) -> None:
        """The last look at everything, while nobody writes, and the end of who is still at work."""
        came = self.came
        self._asked(*PROVE)
        came.differences = compare(self.source_dsn, self.target_dsn, self.name, CHECKS)[0]
        came.vectors = wrong_vectors(self.target_dsn, self.name, "v2", DIMENSIONS, CHECKS)
        query = "select event from revector.journal where kind = 'break'"
        came.breaks = [event for (event,) in self.target.execute(query).fetchall()]
        (came.certificates,) = self.target.execute("select count(*) from revector.certificate").fetchall()[0]
        daemon.signal(signal.SIGTERM)
        if (status := daemon.wait(40)) != 0:
            raise SandboxError(f"the last process ended with {status}\n{tail(self.log)}")

    def _asked(self, *words: str) -> dict[str, Any]:
        return asked(self.config, *words)


def _repeated(target: psycopg.Connection[Any], statement: str, values: dict[str, Any]) -> None:
    """Execute it until it is no deadlock's victim: it locks rows in no order, beside processes that have one."""
    while True:
        try:
            target.execute(statement.encode(), values)
        except psycopg.errors.DeadlockDetected:
            continue
        return
