"""Chaos on the real stack: faults of every kind for minutes while clients write, then one comparison of everything.

    python -m sandbox.chaos --minutes 20 --seed 7 --report chaos.json

Rounds: the seed deals one to three faults; each is made with evidence that it landed; when all are over, rows written
to the source show how soon changes arrive again. All the time `prove` is asked, beside writers and with them paused,
and every certificate is held against the databases at once; `verify --repair` closes breaks. The journal is JSON
lines. Exit status 1: a difference, a false certificate, a fault that did not land, a process that ended by itself or
grew, a goal that was missed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import psycopg

from sandbox.chaos_end import ended, told, verdict
from sandbox.chaos_faults import NotLanded, Skipped, make
from sandbox.chaos_plan import KINDS, Fault, deal
from sandbox.chaos_proofs import FalseCertificate, Proofs
from sandbox.chaos_world import World
from sandbox.connect import ConnectRefused
from sandbox.failpoints_thorough import thorough as kill_at_each
from sandbox.processes import SandboxError
from sandbox.stack import Sandbox

ARRIVAL_LIMIT_S = 120.0
STILL_AMONG_FAULTS = 0.25  # of the rounds in which both databases stay
STILL_EVERY_S = 20.0
SHARE_OF_PAUSES = 1.0  # between two proofs beside writers, of what the last one took: the machine is the faults', too
ATTEND_S = 1.0
MOST_UNDONE = 5  # commands for a generation that met a part still away
# When a second generation comes, goes and comes again, as shares of the run.
SECOND = ((0.15, "add"), (0.5, "drop"), (0.6, "add"))


class Chaos:
    """One run; `report` is what it found out, `errors` what must not have been."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.minutes, self.seed, self.scale = options.minutes, seed, options.scale
        self.kinds = [kind for kind in KINDS if fnmatch(kind.name, options.only)]
        self.dice = random.Random(seed + 1)
        self.journal: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.report: dict[str, Any] = {"seed": seed, "minutes": self.minutes}
        self._file = None if options.journal is None else options.journal.open("w")
        self._stop = threading.Event()
        self._attended = self._undone = self._retried = 0

    def run(self) -> dict[str, Any]:
        """Faults for `minutes`, then the end. Raises FalseCertificate."""
        began = time.monotonic()
        with ExitStack() as stack:
            say("starting the stack, copying and embedding the corpus …")
            self.world = World(stack, self.scale)
            self.report["begin"] = self.world.begin()
            self.proofs = Proofs(self.world, stack)
            self.proofs.verify()
            self.report["begin"]["seconds"] = round(time.monotonic() - began, 1)
            say(f"begun in {self.report['begin']['seconds']} s; faults for {self.minutes:g} min, seed {self.seed}")
            with ThreadPoolExecutor(thread_name_prefix="beside") as pool:
                threads = [pool.submit(self._proving), pool.submit(self._attending)]
                try:
                    self._rounds()
                finally:
                    self._stop.set()
                for thread in threads:
                    thread.result()
            self.report["end"] = ended(self.world, self.proofs)
        self.report["seconds"] = round(time.monotonic() - began, 1)
        self.report["tasks_restarted_by_operator"] = self._attended
        self.report["rows_retried_by_operator"] = self._retried + self.report["end"]["retried"]
        return verdict(self.report, self.journal, self.errors, self.world, self.proofs)

    def _rounds(self) -> None:
        began = time.monotonic()
        until = began + 60 * self.minutes
        second = list(SECOND)
        still_at = began + STILL_EVERY_S
        for faults in deal(self.seed, self.kinds):
            now = time.monotonic()
            if now > until or self._stop.is_set():
                return
            if second and now > began + 60 * self.minutes * second[0][0] and self._generation(second[0][1]):
                second.pop(0)
            try:
                self._round(faults)
                if time.monotonic() > still_at:
                    self._still("")
                    still_at = time.monotonic() + STILL_EVERY_S
                self._notice()
            except (psycopg.Error, SandboxError) as error:
                if isinstance(error, FalseCertificate):
                    raise
                self.errors.append(f"{' + '.join(f.kind.name for f in faults)}: {error!r}\n{traceback.format_exc()}")

    def _round(self, faults: Sequence[Fault]) -> None:
        """Faults at a time, until all are over and changes arrive again."""
        names = " + ".join(fault.kind.name for fault in faults)
        is_still = all(f.kind.leaves_databases for f in faults) and self.dice.random() < STILL_AMONG_FAULTS
        with ThreadPoolExecutor(len(faults), "fault") as pool:
            made = [pool.submit(self._make, fault) for fault in faults]
            if is_still:
                self._still(names)
        entries = [future.result() for future in made]
        back = time.monotonic()
        embedded = any(fault.kind.embeds for fault in faults)
        keys = self.world.prober.write()
        took = self.world.prober.arrived(keys, back, embedded=False, limit_s=ARRIVAL_LIMIT_S)
        vectors = None
        if embedded:
            vectors = self.world.prober.arrived(keys, back, embedded=True, limit_s=ARRIVAL_LIMIT_S)
        if took is None or (embedded and vectors is None):
            self.errors.append(f"{names}: a probe did not arrive within {ARRIVAL_LIMIT_S:.0f} s")
        for entry in entries:
            entry["together"] = len(faults)
            entry["recovered_after_s"] = None if is_still else took
            entry["embedded_after_s"] = None if is_still else vectors
            self._write(entry)
        arrived = "never" if took is None else f"{took:.2f} s"
        say(f"{len(self.journal):>4}  {names:<62} arrives again after {arrived}{' (proved meanwhile)' * is_still}")

    def _make(self, fault: Fault) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": fault.kind.name,
            "target": ", ".join(sorted(fault.kind.touches)),
            "landed": False,
        }
        began = time.monotonic()
        try:
            entry["evidence"] = make(self.world, fault)
            entry["landed"] = True
        except Skipped as why:
            entry["skipped"] = str(why)
        except NotLanded as error:
            entry["evidence"] = str(error)
            self.errors.append(f"did not land: {error}")
        except Exception as error:
            entry["evidence"] = repr(error)
            self.errors.append(f"{fault.kind.name} could not be made: {error!r}\n{traceback.format_exc()}")
        entry["lasted_s"] = round(time.monotonic() - began, 2)
        return entry

    def _still(self, during: str) -> None:
        """With pgbench paused. What is open is closed before, where nothing is broken just now."""
        if not during:
            self._retried += self.world.retry_refused()
            if self.world.open_breaks():
                self.proofs.verify()
        for generation in self.world.generations:
            self.proofs.still(generation, during)

    def _proving(self) -> None:
        """Ask for certificates beside writers and faults until the run ends."""
        turns: Iterator[str] = iter(())
        began = time.monotonic()
        while not self._stop.wait(max(0.5, SHARE_OF_PAUSES * (time.monotonic() - began))):
            began = time.monotonic()
            try:
                breaks = self.world.open_breaks()
            except Exception:  # the target is away: a proof is asked for all the same
                breaks = 0
            try:
                if breaks:
                    self.proofs.verify()
                generation = next(turns, None)
                if generation is None:
                    turns = iter(self.world.generations)
                    continue
                self.proofs.beside(generation, "whatever went on")
            except FalseCertificate:
                self._stop.set()
                raise
            except Exception as error:
                self.errors.append(f"beside: {error!r}\n{traceback.format_exc()}")

    def _attending(self) -> None:
        """What an operator's watch does: restart a connector task that has failed, which Connect never does."""
        assert self.world.pipeline is not None
        connector = self.world.pipeline.connector
        while not self._stop.wait(ATTEND_S):
            try:
                status = connector.status()
                if any(task["state"] == "FAILED" for task in status["tasks"]):
                    cause = str(status["tasks"][0].get("trace", ""))[:300]
                    connector.restart_task()
                    self._attended += 1
                    self._write({"at": datetime.now(UTC).isoformat(), "kind": "operator-restart", "evidence": cause})
            except (ConnectRefused, SandboxError, OSError):
                continue

    def _generation(self, what: str) -> bool:
        """Whether it was done: a part may still be away for a command. It is tried again then."""
        try:
            done = self.world.add("v3") if what == "add" else self.world.drop("v3")
        except SandboxError as error:
            self._undone += 1
            if self._undone > MOST_UNDONE:
                self.errors.append(f"generation {what}: {error}")
            return False
        self._write({"at": datetime.now(UTC).isoformat(), "kind": f"generation-{what}", "evidence": done})
        say(f"      generation v3: {what}")
        return True

    def _notice(self) -> None:
        """A stream that stopped for a person: nothing here needs one."""
        for role, halt in self.world.halts().items():
            if role in ("stream", "backfill"):
                self.errors.append(f"{role} halted: {halt}")
                self._stop.set()

    def _write(self, entry: dict[str, Any]) -> None:
        self.journal.append(entry)
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()


def say(words: str) -> None:
    print(f"chaos  {words}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev chaos", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=3.0, metavar="N", help="how long faults are made; default 3")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="of the choice of faults; default: any")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="share of the corpus and of the writes")
    parser.add_argument("--only", default="*", metavar="KINDS", help="such as 'broker-*': no other kinds of faults")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what was found to this JSON file")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="write each fault to this file as it is over")
    parser.add_argument("--thorough", action="store_true", help="also kill the processes at every fail point, 20 times")
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    chaos = Chaos(options, seed)
    try:
        report = chaos.run()
    except FalseCertificate as error:
        say(f"FALSE CERTIFICATE: {error}")
        return 1
    if options.thorough:
        report["thorough"] = thorough(seed)
        report["passed"] = report["passed"] and "failed" not in report["thorough"]
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=1) + "\n")
    for line in told(report):
        say(line)
    return 0 if report["passed"] else 1


def thorough(seed: int) -> dict[str, Any]:
    """Kills at every fail point, on a stack of its own: its figures, or why it did not pass."""
    try:
        with Sandbox.start() as sandbox:
            return kill_at_each(sandbox, cycles=20, seed=seed, say=say)
    except (SandboxError, AssertionError) as error:
        return {"failed": str(error)}


if __name__ == "__main__":
    sys.exit(main())
