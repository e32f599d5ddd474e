"""Whether any stored vector belongs to another text: fifty thousand chunks, random faults, killed embedding processes.

The real stack and the real daemons; the provider's vectors are a function of the text alone. While three embedding
processes work, the provider serves every fault it knows, after some dozens of requests one of the processes that hold
claims is killed with SIGKILL and started again, and rows change. When all is embedded, in plain SQL and without
revector's code: each chunk's vector is held against its own text, each row's chunks against the row's text, the replica
against the source.

The seed is printed; REVECTOR_BENCH_SEED gives it back: it fixes the script of faults, kills and changes, not how the
processes interleave. A difference is an error, and it goes on until every fault was served and all kills hit claims.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from sandbox.config import Choice, Gen, render
from sandbox.pipeline import capture_tables
from sandbox.processes import SandboxError
from sandbox.provider import ProviderServer, Script, vectors_of
from sandbox.provider_script import BILLED, UNBILLED
from sandbox.stack import Sandbox

NAME = "identity"
DIMENSIONS = 64
PROCESSES = 3
CHUNK_TOKENS = 16
DEADLINE_S = 1800.0
QUEUE = "select count(*) from revector.work"
DDL = """
create schema app;
create table app.doc (id bigint primary key, body text not null);
create publication revector for table app.doc with (publish = 'insert, update, delete, truncate');
"""
TABLE = '[[table]]\nsource = "app.doc"\ntext = "{body}"\n'
# A model that changes for one answer and back again cannot be seen in that answer; the canary is for one that stays.
FAULTS = tuple(name for name in (*UNBILLED, *BILLED) if name != "other-model")
# After these a process looks again 15 s later: few of them, or the run is spent on waiting.
SELDOM = (
    "status-401",
    "status-403",
    "status-404",
    "redirect",
    "other-name",
    "gzip-bomb",
    "oversized",
    "hang",
    "silent",
)


@dataclass(frozen=True)
class Plan:
    """rows: of one to three chunks, two on average. faults: each is served at least once."""

    rows: int = 25_500
    least_chunks: int = 50_000
    kills: int = 20
    changes: int = 1500
    faults: tuple[str, ...] = FAULTS


PLAN = Plan()
QUICK = Plan(1500, 2500, kills=2, changes=50, faults=("shuffled", "floats", "reset", "status-503", "too-few"))


def body_of(n: int, version: int = 0) -> str:
    """Sentences of one length that fill a chunk each. One row in fifty shares its first with others."""
    sentences = [f"Row {n:06} in version {version:03} says part {part}." for part in range(1 + (n + version) % 3)]
    if n % 50 == 0:
        sentences[0] = f"Many rows say {n % 500:03} as their first part."
    return "\n\n".join(sentences)


@dataclass
class Run:
    """The databases, the daemons and the provider of one run."""

    sandbox: Sandbox
    provider: ProviderServer
    folder: Path
    chance: random.Random
    stack: ExitStack
    embedders: list[subprocess.Popen[bytes]] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)
    kills: int = 0
    claims_lost: int = 0
    changes: int = 0

    def prepare(self, rows: int) -> None:
        """A source with rows, its pipeline, the config; replication runs and every row is owed."""
        source_dsn = self.sandbox.create_database("source", NAME)
        target_dsn = self.sandbox.create_database("target", NAME)
        self.source = self.stack.enter_context(psycopg.connect(source_dsn, autocommit=True))
        self.target = self.stack.enter_context(psycopg.connect(target_dsn, autocommit=True))
        self.source.execute(DDL)
        with self.source.cursor() as cursor, cursor.copy("copy app.doc from stdin") as copy:
            for n in range(rows):
                copy.write_row((n, body_of(n)))
        capture_tables(self.sandbox, source_dsn, NAME, ("app.doc",))
        generation = Gen(
            model="test-embedding",
            dimensions=DIMENSIONS,
            base_url=self.provider.url,
            limits={"in_flight": 4, "request_inputs": 32, "request_timeout_s": 5},
            extra={"tokenizer": "cl100k_base", "chunk_tokens": CHUNK_TOKENS},
        )
        choice = Choice(NAME, NAME, "revector", source_dsn, target_dsn, TABLE, (generation,), {"claim_lease_s": 10})
        self.config = self.folder / "identity.toml"
        self.config.write_text(render(self.sandbox, choice))
        self.others = [self.start("stream"), self.start("backfill")]
        self.until(lambda: self.number(QUEUE) >= rows, "the backfill")

    def script(self, seed: int, names: Sequence[str]) -> Script:
        """Every fault in a random order, then by chance."""
        planned = [name for name in names for _ in range(1 if name in SELDOM else 2)]
        planned += ["ok"] * (10 * len(planned))
        self.chance.shuffle(planned)
        often = {name: 0.002 for name in names if name not in SELDOM}
        faults = {"next": planned, "probability": often, "retry_after_s": 0.5, "oversized_mb": 64}
        latency = {"kind": "lognormal", "seconds": 0.1, "sigma": 0.6}
        return Script.read({"seed": seed, "dimensions": DIMENSIONS, "faults": faults, "latency": latency})

    def start(self, role: str) -> subprocess.Popen[bytes]:
        with (self.folder / "daemons.log").open("ab") as log:
            command = [sys.executable, "-m", "daemon", role, "--config", str(self.config)]
            return subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> bool:
        """End an embedding process that holds claims as a power cut would, and start another; False: none holds any."""
        query = "select distinct claimed_by from revector.work where claimed_until > now()"
        holders = {int(owner.split(":")[1]) for (owner,) in self.target.execute(query)}
        working = [n for n, daemon in enumerate(self.embedders) if daemon.pid in holders]
        if not working:
            return False
        n = self.chance.choice(working)
        victim = self.embedders[n]
        victim.send_signal(signal.SIGKILL)
        if victim.wait() != -signal.SIGKILL:
            raise SandboxError(f"an embedding process had ended by itself with {victim.returncode}")
        held = self.number(f"{QUEUE} where claimed_by like '%:{victim.pid}:%' and claimed_until > now()")
        self.kills += held > 0
        self.claims_lost += held
        self.embedders[n] = self.start("embed")
        return True

    def change(self, rows: int) -> None:
        """Give one row another text, at the source."""
        self.changes += 1
        n = self.chance.randrange(rows)
        self.source.execute("update app.doc set body = %s where id = %s", [body_of(n, self.changes % 1000), n])

    def number(self, query: str) -> int:
        try:
            found = self.target.execute(query.encode()).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return 0
        return 0 if found is None else int(found[0])

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            died = [d for d in (*self.embedders, *self.others) if d.poll() not in (None, 0)]
            if died or time.monotonic() > deadline:
                log = (self.folder / "daemons.log").read_text(errors="replace")
                why = "a daemon ended" if died else f"not within {DEADLINE_S:.0f} s"
                raise SandboxError(f"{what}: {why}\n{log[-3000:]}")
            time.sleep(0.05)

    def embed(self, plan: Plan) -> None:
        """Faults, kills and changes until each has had its share and nothing is owed."""
        self.embedders = [self.start("embed") for _ in range(PROCESSES)]
        self.until(lambda: self.number(f"{QUEUE} where claimed_by is not null") > 0, "the first claim")
        next_kill = 20

        def went_on() -> bool:
            nonlocal next_kill
            stats = self.provider.stats()
            requests, landed = stats["requests"], stats["faults"]
            if self.kills < plan.kills and requests >= next_kill and self.kill():
                next_kill = requests + self.chance.randint(20, 80)
            is_short = self.kills < plan.kills or any(name not in landed for name in plan.faults)
            if self.changes < plan.changes or (is_short and self.number(QUEUE) < 500):
                for _ in range(20):
                    self.change(plan.rows)
            return not is_short and self.changes >= plan.changes

        self.until(went_on, "kills, changes and faults")
        waiting = "where state = 'waiting'"
        self.until(lambda: not self.behind() and self.number(f"{QUEUE} {waiting}") == 0, "the rest of the work")

    def behind(self) -> int:
        """Rows of the replica that differ from the source."""
        ours: dict[int, str] = dict(self.source.execute("select id, body from app.doc").fetchall())
        copied: dict[int, str] = dict(
            self.target.execute(f"select id, body from {NAME}.doc where not _deleted".encode()).fetchall()
        )
        return sum(ours.get(n) != copied.get(n) for n in ours.keys() | copied.keys())

    def end(self) -> None:
        for daemon in (*self.embedders, *self.others):
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()


def compared(target: psycopg.Connection[Any]) -> Counter[str]:
    """What is stored against what its text says: rows, chunks, and each kind of difference."""
    found: Counter[str] = Counter(rows=0, chunks=0, foreign_vectors=0, wrong_texts=0, bare_rows=0)
    query = (
        f"select id, body, array_agg(_text order by _n), array_agg(_n order by _n), "
        f"array_agg(_embedding::real[]::text order by _n) from {NAME}.doc left join {NAME}.doc_v2 using (_row_id) "
        f"where not _deleted group by id, body"
    )
    for _, body, texts, numbers, vectors in target.execute(query.encode()):
        found["rows"] += 1
        if texts == [None]:
            found["bare_rows"] += 1
            continue
        found["chunks"] += len(texts)
        is_whole = "".join("".join(texts).split()) == "".join(body.split()) and all(text in body for text in texts)
        found["wrong_texts"] += not is_whole or numbers != list(range(len(texts)))
        stored = np.array([np.fromstring(v.strip("{}"), np.float32, sep=",") for v in vectors])
        found["foreign_vectors"] += int((stored != vectors_of(texts, DIMENSIONS)).any(axis=1).sum())
    return found


def measure(*, is_quick: bool) -> dict[str, Any]:
    """Run it. Raises SandboxError where a vector, a text or a row is wrong, or a fault was not served."""
    seed = int(os.environ.get("REVECTOR_BENCH_SEED") or random.SystemRandom().randrange(10**6))
    plan, began = (QUICK if is_quick else PLAN), time.monotonic()
    print(f"identity  seed {seed}, {plan.rows} rows", flush=True)
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox.start())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = Run(sandbox, sandbox.scripted_provider(), folder, random.Random(seed), stack)
        stack.callback(run.end)
        run.provider.set(Script(dimensions=DIMENSIONS))
        run.prepare(plan.rows)
        run.provider.set(run.script(seed, plan.faults))
        run.embed(plan)
        found = compared(run.target)
        stats, refused = run.provider.stats(), run.number(f"{QUEUE} where state <> 'waiting'")
        wrong = {"foreign_vectors": found["foreign_vectors"], "wrong_texts": found["wrong_texts"]}
        wrong |= {"bare_rows": found["bare_rows"], "rows_unlike_source": run.behind(), "quarantined": refused}
        result = {
            "seed": seed,
            "rows": found["rows"],
            "chunks": found["chunks"],
            "wrong": wrong,
            "faults": dict(sorted(stats["faults"].items())),
            "kills": run.kills,
            "claims_lost": run.claims_lost,
            "changes": run.changes,
            "requests": stats["requests"],
            "vectors_served": stats["inputs"],
            "seconds": round(time.monotonic() - began),
        }
    if any(wrong.values()) or found["chunks"] < plan.least_chunks:
        raise SandboxError(f"not what was embedded: {result}")
    return result


def told(found: dict[str, Any]) -> str:
    """One line, and one with the faults."""
    faults = ", ".join(f"{count} {name}" for name, count in found["faults"].items())
    wrong = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in found["wrong"].items())
    return (
        f"{found['chunks']} chunks of {found['rows']} rows: {wrong} (seed {found['seed']}, {found['seconds']} s)\n"
        f"{'':10}{found['kills']} kills with {found['claims_lost']} claims held, {found['changes']} changes, "
        f"{found['requests']} requests, {found['vectors_served']} vectors served\n{'':10}faults served: {faults}"
    )
