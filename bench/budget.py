"""How much of a provider's budget embedding processes use, what is refused, and what a killed one costs.

The real stack with a provider that enforces requests and tokens a minute (a bucket that holds a few seconds' worth, so
what is not used is lost), the real daemons, thousands of rows owed and live changes beside them. No limit is
configured: it is learnt from the provider's answers. One embedding process, then three, each over a steady window;
then one of the three is killed, another takes its place, and everything is embedded to the end.

Shares are of the provider's own counts. `again` are tokens billed for texts that were billed before; after the kill
they may be at most those of the rows that the killed process had claimed.
"""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from connectors.tokenizers import BpeTokenizer
from daemon.flow.provider import CANARY
from sandbox.config import Choice, Gen, render
from sandbox.pipeline import capture_tables
from sandbox.provider import ProviderServer, Script
from sandbox.stack import Sandbox

NAME = "budget"
REQUESTS, TOKENS = 600, 600_000  # a minute
DIMENSIONS = 64
LEAST_USED, MOST_REFUSED = 0.95, 0.01
DEADLINE_S = 300.0
CHANGE_EVERY_S = 0.2
DDL = """
create schema app;
create table app.doc (id bigint primary key, body text not null);
create publication revector for table app.doc with (publish = 'insert, update, delete, truncate');
"""
TABLE = '[[table]]\nsource = "app.doc"\ntext = "{body}"\n'
SENTENCE = "a river carries the stones of high mountains down to plains where people build towns"


@dataclass(frozen=True)
class Plan:
    """rows: of some 150 tokens each. warm_up_s, window_s: of each steady part."""

    rows: int = 16_000
    warm_up_s: float = 20.0
    window_s: float = 60.0


QUICK = Plan(rows=3000, warm_up_s=8.0, window_s=10.0)


def text(chance: random.Random, about: str) -> str:
    return f"{about}: " + " ".join(chance.choices(SENTENCE.split(), k=chance.randint(40, 260)))


@dataclass
class Run:
    """The databases, the daemons and the provider of one run."""

    sandbox: Sandbox
    provider: ProviderServer
    folder: Path
    stack: ExitStack
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def prepare(self, rows: int) -> None:
        """A source with rows, its pipeline, the config; replication runs and every row is owed."""
        source_dsn = self.source_dsn = self.sandbox.create_database("source", NAME)
        target_dsn = self.sandbox.create_database("target", NAME)
        self.source = self.stack.enter_context(psycopg.connect(source_dsn, autocommit=True))
        self.target = self.stack.enter_context(psycopg.connect(target_dsn, autocommit=True))
        self.source.execute(DDL)
        chance = random.Random(7)
        with self.source.cursor() as cursor, cursor.copy("copy app.doc from stdin") as copy:
            for n in range(rows):
                copy.write_row((n, text(chance, f"row {n}")))
        capture_tables(self.sandbox, source_dsn, NAME, ("app.doc",))
        generation = Gen(
            model="test-embedding",
            dimensions=DIMENSIONS,
            base_url=self.provider.url,
            limits={"in_flight": 8},
            extra={"tokenizer": "cl100k_base"},
        )
        choice = Choice(NAME, NAME, "revector", source_dsn, target_dsn, TABLE, (generation,), {"claim_lease_s": 10})
        self.config = self.folder / "budget.toml"
        self.config.write_text(render(self.sandbox, choice))
        self.start("stream")
        self.start("backfill")
        self.until(lambda: self.count("work") >= rows, "the backfill")

    def start(self, role: str) -> subprocess.Popen[bytes]:
        with (self.folder / "daemons.log").open("ab") as log:
            command = [sys.executable, "-m", "daemon", role, "--config", str(self.config)]
            self.daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
        return self.daemons[-1]

    def end(self, daemon: subprocess.Popen[bytes], signum: int = signal.SIGTERM) -> None:
        daemon.send_signal(signum)
        daemon.wait(60)

    def kill(self) -> None:
        for daemon in self.daemons:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()

    def count(self, relation: str) -> int:
        try:
            found = self.target.execute(f"select count(*) from revector.{relation}".encode()).fetchone()
        except psycopg.errors.UndefinedTable:
            return 0
        return 0 if found is None else int(found[0])

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            died = [d for d in self.daemons if d.poll() not in (None, 0, -signal.SIGKILL)]
            if died or time.monotonic() > deadline:
                log = (self.folder / "daemons.log").read_text(errors="replace")
                why = "a daemon ended" if died else f"not within {DEADLINE_S:.0f} s"
                raise RuntimeError(f"{what}: {why}\n{log[-3000:]}")
            time.sleep(0.05)

    @contextmanager
    def changes(self) -> Iterator[None]:
        """Give one row after another another text, by live changes."""
        stop, chance = threading.Event(), random.Random(8)

        def write() -> None:
            with psycopg.connect(self.source_dsn, autocommit=True) as connection:
                count = 0
                while not stop.wait(CHANGE_EVERY_S):
                    count += 1
                    body = text(chance, f"change {count}")
                    connection.execute("update app.doc set body = %s where id = %s", [body, chance.randint(0, 999)])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield
        finally:
            stop.set()
            writer.join()

    def steady(self, plan: Plan, embedders: Sequence[subprocess.Popen[bytes]]) -> dict[str, Any]:
        """Figures of a window after the warm-up, which begins when each of these processes has claimed work."""
        self.until(lambda: all(self.held_tokens(e) for e in embedders), "work of every embedding process")
        time.sleep(plan.warm_up_s)
        began, before = time.monotonic(), self.stats()
        time.sleep(plan.window_s)
        seconds, after = time.monotonic() - began, self.stats()
        spent = {
            name: after[name] - before[name]
            for name in ("tokens", "tokens_again", "canary_tokens", "requests", "refused")
        }
        used = spent["tokens"] / (TOKENS * seconds / 60)
        return {**spent, "used": used, "refused_share": spent["refused"] / max(1, spent["requests"])}

    def stats(self) -> dict[str, Any]:
        """The provider's figures; the canary, which is meant to be sent again and again, is `canary_tokens`, not
        `tokens_again`."""
        found = self.provider.stats()
        sent = self.provider.texts().get(hashlib.sha256(CANARY.encode()).hexdigest(), 0)
        again = max(0, sent - 1) * BpeTokenizer("cl100k_base").count(CANARY)
        return {**found, "tokens_again": found["tokens_again"] - again, "canary_tokens": again}

    def held_tokens(self, daemon: subprocess.Popen[bytes]) -> int:
        """Tokens of the rows that a process has claimed."""
        query = (
            f"select body from revector.work w join {NAME}.doc r on r._row_id = w.row_id "
            "where w.claimed_by like %s and not r._deleted"
        )
        rows = self.target.execute(query.encode(), [f"%:{daemon.pid}:%"]).fetchall()
        tokenizer = BpeTokenizer("cl100k_base")
        return sum(tokenizer.count(body) for (body,) in rows)


def measure(is_quick: bool = False) -> dict[str, Any]:
    """The figures of one run: some five minutes, or one with `is_quick`."""
    plan = QUICK if is_quick else Plan()
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox.start())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="revector-bench-")))
        run = Run(sandbox, sandbox.scripted_provider(), folder, stack)
        stack.callback(run.kill)
        limits = {"requests_per_minute": REQUESTS, "tokens_per_minute": TOKENS, "window_s": 3.0}
        latency = {"kind": "lognormal", "seconds": 0.6, "sigma": 0.4}
        script = {"dimensions": DIMENSIONS, "count_texts": True, "limits": limits, "latency": latency}
        run.provider.set(Script.model_validate(script))
        run.prepare(plan.rows)
        found: dict[str, Any] = {"permitted": {"requests_per_minute": REQUESTS, "tokens_per_minute": TOKENS}}
        with run.changes():
            one = run.start("embed")
            found["one"] = run.steady(plan, [one])
            run.end(one)
            three = [run.start("embed") for _ in range(3)]
            found["three"] = run.steady(plan, three)
            left = run.count("work")
        found["killed"] = killed(run, three[0])
        found["killed"]["rows_left_before"] = left
        return found


def killed(run: Run, victim: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Kill a process while it waits for answers, start another one, and let everything be embedded."""
    run.until(lambda: run.held_tokens(victim) > 0, "claims of the process to be killed")
    before = run.stats()
    run.end(victim, signal.SIGKILL)
    held = run.held_tokens(victim)
    run.start("embed")
    run.until(lambda: run.count("work") == 0, "the end of the work")
    after = run.stats()
    again = after["tokens_again"] - before["tokens_again"]
    return {"tokens_again": again, "tokens_held": held, "tokens": after["tokens"], "requests": after["requests"]}


def told(found: dict[str, Any]) -> str:
    """The figures in lines."""
    lines = [f"{TOKENS} tokens and {REQUESTS} requests a minute are permitted, and learnt from the answers"]
    for name in ("one", "three"):
        part = found[name]
        lines.append(
            f"{name:<6} {part['used']:.1%} of the tokens used (at least {LEAST_USED:.0%}), "
            f"{part['refused']} of {part['requests']} requests refused (at most {MOST_REFUSED:.0%}), "
            f"{part['tokens_again']} of {part['tokens']} tokens for texts billed before, "
            f"{part['canary_tokens']} for the canary"
        )
    end = found["killed"]
    lines.append(
        f"killed {end['tokens_again']} tokens spent again, of {end['tokens_held']} that the killed process held; "
        f"{end['tokens']} in all"
    )
    return "\n          ".join(lines)
