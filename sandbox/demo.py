"""The main job, end to end, on the real stack, while an outside client writes.

    corpus -> connector -> writer -> `revector run` -> backfill done -> probes -> writer stops -> comparison -> proof

revector is a process of its own, started from a config file, seen through its own commands: `watch` paints the status
meanwhile, `wait` says when a stage is over, `verify` compares, `prove` issues the certificate. A check at the end uses
none of it. With `--kill N` the daemon is ended by SIGKILL N times at random moments and started again; with `--outage
S` the provider is away for S seconds while deletes and metadata changes are timed on their way into the replica.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from sandbox import corpus, picture
from sandbox.compare import compare
from sandbox.config import Choice, Gen, render
from sandbox.daemons import Daemon, Watch, asked, command, verified, wait
from sandbox.pipeline import capture_tables
from sandbox.probe import Prober, ReplicaTimer, quantile
from sandbox.processes import SandboxError
from sandbox.second import V3, Second
from sandbox.stack import Sandbox
from sandbox.writer import Writer

NAME = "articles"
RATE = 230  # above 200, so that one rollback in ten leaves 200 committed
WRITE_BEFORE_S = 3.0
WRITE_AFTER_S = 20.0
MINUTES = 1 / 3  # that both generations are fed under writes
LIMITS = {"lease_s": 5, "claim_lease_s": 30}
GENERATIONS = (Gen(limits={"request_timeout_s": 15, "in_flight": 2, "request_inputs": 64}),)


class Demo:
    """One run; `report` is what it found out."""

    def __init__(self, kills: int, seed: int, outage_s: float, minutes: float) -> None:
        self.kills, self.random, self.outage_s, self.minutes = kills, random.Random(seed), outage_s, minutes
        self.report: dict[str, Any] = {
            "seed": seed,
            "seconds": {"setup": float(os.environ.get("REVECTOR_SETUP_SECONDS", "0"))},
        }
        self.began = time.monotonic()

    @contextmanager
    def stage(self, name: str, words: str) -> Iterator[None]:
        """Announce, time and note a stage."""
        say(f"{words} …")
        began = time.monotonic()
        yield
        self.report["seconds"][name] = round(time.monotonic() - began, 1)

    def run(self) -> int:
        """Differences found in all."""
        with self.stage("stack", "starting Postgres (source, target), Kafka, Connect with Debezium, a provider"):
            sandbox = Sandbox.start()
        with sandbox:
            return self._run(sandbox)

    def _run(self, sandbox: Sandbox) -> int:
        with self.stage("corpus", "loading the standard library's docstrings into three tables"):
            self.report["rows"] = {"at_start": corpus.load(sandbox.source_dsn)}
            capture_tables(sandbox)
        choice = Choice(name=NAME, generations=GENERATIONS, limits=LIMITS)
        sandbox.config.write_text(render(sandbox, choice))
        second = Second(sandbox, choice, RATE, self.minutes)
        daemon = Daemon(sandbox.config, sandbox.logs / "revector.log")
        with Writer(sandbox.source_dsn, rate=RATE) as writer:
            say(f"an outside writer changes rows, {RATE} transactions a second, one in ten rolled back")
            time.sleep(WRITE_BEFORE_S)
            daemon.start()
            try:
                self._migrate(sandbox, daemon, writer)
                self._second(sandbox, daemon, second)
            finally:
                status = daemon.stop()
        if status != 0:
            raise SandboxError(f"the daemon answered SIGTERM with exit status {status}; its log: {daemon.log}")
        self.report["kills"] = daemon.kills
        return self._check(sandbox, second)

    def _migrate(self, sandbox: Sandbox, daemon: Daemon, writer: Writer) -> None:
        killer = Killer(daemon, self.kills, self.random)
        watch = Watch(sandbox.config)  # one a stage: what it drew last stays above the next heading
        killer.start()
        with self.stage("backfill", "backfill beside the stream"), watch:
            wait(sandbox.config, [daemon], "backfill")
        prober = Prober(sandbox.source_dsn, sandbox.target_dsn, NAME)
        with self.stage("writing", "writing goes on after the backfill, probes measure freshness"), watch:
            prober.start()
            time.sleep(WRITE_AFTER_S / 4)
            self._look(sandbox.config)
            time.sleep(WRITE_AFTER_S * 3 / 4)
        probes = prober.stop()
        if self.outage_s:
            with self.stage("outage", f"the provider is away for {self.outage_s:.0f} s"), watch:
                self._outage(sandbox)
        killer.finish()
        written = writer.stop()
        with self.stage("drain", "the writer has stopped, what is left drains"), watch:
            wait(sandbox.config, [daemon], "ready")
        with self.stage("compare", "comparing every row and chunk while the daemon goes on"):
            self.report["comparison"] = verified(sandbox.config)
        with self.stage("proof", "proof"):
            self.report["certificate"] = asked(sandbox.config, "prove", "--timeout", "60")
        self.report["freshness_ms"] = {
            "p50": rounded(probes.quantile(0.5)),
            "p99": rounded(probes.quantile(0.99)),
            "probes": len(probes.took_ms),
            "outstanding_at_stop": len(probes.waiting),
        }
        self.report["changes"] = {
            **written.rows,
            "transactions": written.transactions,
            "rolled_back": written.rolled_back,
            "per_second": round((written.transactions + written.rolled_back) / written.seconds, 1),
        }

    def _look(self, config: Path) -> None:
        """Keep one status in mid-run for the picture."""
        done = subprocess.run(command(config, "status"), capture_output=True, text=True, check=True)
        SAID.extend(["", "$ revector status", *done.stdout.splitlines(), ""])

    def _outage(self, sandbox: Sandbox) -> None:
        """Deletes and metadata changes must arrive all the same, and the lag stays low while the backlog grows."""
        timer = ReplicaTimer(sandbox.source_dsn, sandbox.target_dsn, NAME)
        looks: list[dict[str, Any]] = []
        sandbox.embeddings.stop()
        try:
            timer.start()
            deadline = time.monotonic() + self.outage_s
            while time.monotonic() < deadline:
                looks.append(asked(sandbox.config, "status"))
                time.sleep(2)
        finally:
            took_ms = timer.stop()
            sandbox.embeddings.start()
        embed = [look["parts"]["embed"] for look in looks]
        lags = [look["parts"]["source"]["lag_s"] for look in looks]
        self.report["outage"] = {
            "seconds": self.outage_s,
            "arrived": len(took_ms),
            "outstanding": timer.outstanding,
            "replica_ms": {"p50": rounded(quantile(took_ms, 0.5)), "max": rounded(max(took_ms, default=None))},
            "lag_s_max": None if None in lags or not lags else round(max(lags), 1),
            "backlog_rows": [e["waiting_live"] + e["waiting_backfill"] + e["claimed"] for e in embed],
        }

    def _second(self, sandbox: Sandbox, daemon: Daemon, second: Second) -> None:
        words = f"a second generation beside it, {60 * self.minutes:.0f} s of writes, its provider throttles and fails"
        with self.stage("second generation", words):
            self.report["second_generation"] = second.feed(daemon, Watch(sandbox.config))

    def _check(self, sandbox: Sandbox, second: Second) -> int:
        with self.stage("check", "checking source, replica and chunks in plain SQL, without revector's code"):
            found, rows = compare(sandbox.source_dsn, sandbox.target_dsn, NAME)
            found_second, vectors = second.compare()
        self.report["rows"]["at_end"] = rows
        self.report["differences"] = asdict(found)
        self.report["second_generation"] |= {"differences": asdict(found_second), **vectors}
        self.report["tokens"] = tokens(sandbox.target_dsn, GENERATIONS[-1].name)
        self.report["second_generation"]["tokens"] = tokens(sandbox.target_dsn, V3)
        self.report["versions"] = versions(sandbox)
        self.report["seconds"]["total"] = round(time.monotonic() - self.began, 1)
        return found.total + found_second.total + vectors["wrong_vectors"]


class Killer:
    """Kills the daemon at random moments, in a thread of its own."""

    def __init__(self, daemon: Daemon, kills: int, dice: random.Random) -> None:
        self._daemon, self._kills, self._random = daemon, kills, dice
        self._thread = threading.Thread(target=self._run, name="killer")
        self._error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Returns once every kill has landed. Raises what kept one from landing."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for _ in range(self._kills):
                time.sleep(self._random.uniform(1.0, 7.0))
                self._daemon.kill()
        except BaseException as error:
            self._error = error


def tokens(target_dsn: str, generation: str) -> dict[str, int]:
    """Tokens billed by the provider, and the estimate of those that an embedder without memory would have spent."""
    with psycopg.connect(target_dsn) as connection:
        row = connection.execute(
            "select tokens, tokens_avoided from revector.generation where name = %s", [generation]
        ).fetchone()
    assert row is not None
    return {"spent": row[0], "avoided": row[1]}


def versions(sandbox: Sandbox) -> dict[str, str]:
    """What ran."""
    with psycopg.connect(sandbox.target_dsn) as connection:
        row = connection.execute(
            "select current_setting('server_version'), extversion from pg_extension where extname = 'vector'"
        ).fetchone()
    assert row is not None
    names = ("revector", "psycopg", "confluent-kafka", "openai")
    return {
        "postgres": row[0].split()[0],
        "pgvector": row[1],
        "kafka": "4.3.0",
        "debezium": "3.7.0.Final",
        "python": sys.version.split()[0],
        **{name: version(name) for name in names},
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


SAID: list[str] = ["$ ./dev demo"]  # what was shown, for the picture


def say(words: str) -> None:
    SAID.append(f"demo  {words}")
    print(SAID[-1], flush=True)


def show(report: dict[str, Any]) -> None:
    """The result in a few lines."""
    changes, found = report["changes"], report["differences"]
    fresh, spent = report["freshness_ms"], report["tokens"]
    kinds = {k: changes[k] for k in ("insert", "text", "metadata", "key", "delete", "reinsert")}
    say(f"rows at the end  {listed(report['rows']['at_end'])}")
    say(f"rows changed     {listed(kinds)}")
    say(f"transactions     {shown(changes['transactions'])} committed, {shown(changes['rolled_back'])} rolled back")
    say(f"freshness        p50 {fresh['p50']} ms, p99 {fresh['p99']} ms over {fresh['probes']} probes")
    say(f"tokens           {shown(spent['spent'])} spent, about {shown(spent['avoided'])} avoided")
    if report["kills"]:
        say(f"killed           {len(report['kills'])} times by SIGKILL")
    if "outage" in report:
        away = report["outage"]
        took, lag = away["replica_ms"], away["lag_s_max"]
        said = "unknown" if lag is None else f"at most {lag} s"
        say(f"outage           provider away for {away['seconds']:.0f} s, lag {said}")
        say(f"                 {away['arrived']} changes timed, p50 {took['p50']} ms, max {took['max']} ms")
    stages = ", ".join(f"{name}\xa0{value}" for name, value in report["seconds"].items())  # wrapped between stages only
    for at, line in enumerate(textwrap.wrap(stages, 72)):
        say(f"{'' if at else 'seconds':<16} {line}".replace("\xa0", " "))
    say(f"comparison       {told(report['comparison'])}")
    say(f"certificate      {report['certificate'].get('digest', 'none')}")
    say(f"differences      {listed(found)}")
    show_second(report["second_generation"])


def show_second(second: dict[str, Any]) -> None:
    """The second generation in a few lines."""
    served = second["provider"]
    refused = sum(n for status, n in served["statuses"].items() if int(status) != 200)
    faults = listed(served["faults"]) if served["faults"] else "none"
    say(f"second           fed for {second['fed_under_writes_s']} s beside {shown(second['changes'])} transactions")
    say(f"                 {shown(served['requests'])} requests, {shown(refused)} refused; faults: {faults}")
    spent = second["tokens"]
    say(f"                 {shown(spent['spent'])} tokens spent, about {shown(spent['avoided'])} avoided")
    say(f"                 comparison {told(second['comparison'])}")
    say(f"                 certificate {second['certificates'][V3]['digest']}")
    say(f"                 {shown(second['vectors'])} vectors, {shown(second['wrong_vectors'])} of another text")
    say(f"                 differences {listed(second['differences'])}")


def told(comparison: dict[str, Any]) -> str:
    """What was compared, in a few words."""
    return f"{shown(comparison['rows'])} rows, {shown(comparison['chunks'])} chunks: {comparison['state']}"


def listed(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in numbers.items())


def shown(value: Any) -> str:
    """41200 -> 41 200, as `revector status` groups its numbers."""
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--report", type=Path, help="write what was found to this JSON file")
    parser.add_argument("--picture", type=Path, help="draw what was shown into this SVG file")
    parser.add_argument("--kill", type=int, default=0, metavar="N", help="end the daemon by SIGKILL N times")
    parser.add_argument("--outage", type=float, default=0, metavar="S", help="stop the provider for S seconds")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the kills' moments; printed with --kill, so a run can be repeated"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        metavar="M",
        help="feed both generations under live writes so long",
    )
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    demo = Demo(options.kill, seed, options.outage, options.minutes)
    if options.kill:
        say(f"seed {demo.report['seed']}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ends `watch`, also where the demo runs in the background
    try:
        found = demo.run()
    except SandboxError as error:
        print(f"demo failed: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.report:
        options.report.write_text(json.dumps(demo.report, indent=2) + "\n")
    show(demo.report)
    if options.picture:
        picture.save(SAID, options.picture, "revector")
    return 0 if found == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
