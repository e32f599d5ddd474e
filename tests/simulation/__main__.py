"""`./dev simulate`: play histories for a while, each from a seed of its own, and say what was seen.

    ./dev simulate --minutes 30 --processes 2     histories with fresh seeds
    ./dev simulate --seed 17                      one history again; --defect puts a known defect in
    ./dev simulate --seed 17 --shrink 60          and its shortest form that still fails

Exit code 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

from tests.simulation.defects import DEFECTS, defect
from tests.simulation.play import Simulation
from tests.simulation.shrink import shrunk
from tests.simulation.swarm import named

SHOWN = 60  # lines of a trace


@dataclass
class Outcome:
    """Of one history."""

    seed: int
    steps: int
    counts: Counter[str] = field(default_factory=Counter)
    failure: str | None = None


def play(seed: int, shrink_s: float = 0, with_defect: str | None = None) -> Outcome:
    logging.disable(logging.CRITICAL)
    with defect(with_defect) if with_defect else nullcontext():
        history = Simulation(seed).run()
        if history.violation is None:
            return Outcome(seed, history.steps, history.counts)
        smallest = shrunk(history, shrink_s) if shrink_s else history
    return Outcome(seed, history.steps, history.counts, told(smallest))


def told(history: Simulation) -> str:
    """A failing history for a person."""
    error = history.violation
    assert error is not None
    lines = [f"seed {history.seed}: {error}", *getattr(error, "__notes__", [])]
    if not isinstance(error, AssertionError):
        lines += traceback.format_exception(error)
    lines += [f"made of: {named(history.swarm)}", f"the last of {history.steps} steps:"]
    return "\n".join([*lines, *history.trace[-SHOWN:], f"again: ./dev simulate --seed {history.seed}"])


def histories(seeds: Iterator[int], arguments: argparse.Namespace) -> Iterator[Outcome]:
    """One after the other, or by several processes, until the time is over."""
    ends_at = time.monotonic() + arguments.minutes * 60
    if arguments.processes == 1:
        while time.monotonic() < ends_at:
            yield play(next(seeds), arguments.shrink)
        return
    with ProcessPoolExecutor(arguments.processes) as pool:
        running = {pool.submit(play, next(seeds), arguments.shrink) for _ in range(arguments.processes)}
        while running:
            done = next((each for each in running if each.done()), None)
            if done is None:
                time.sleep(0.05)
                continue
            running.remove(done)
            if time.monotonic() < ends_at:
                running.add(pool.submit(play, next(seeds), arguments.shrink))
            yield done.result()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="./dev simulate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to play; default 1")
    parser.add_argument("--seed", type=int, help="one history, again")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--shrink", type=float, default=20.0, help="seconds for making a failing history smaller")
    parser.add_argument("--defect", choices=sorted(DEFECTS), help="with --seed: a defect that is known")
    arguments = parser.parse_args(argv)
    outcomes: Iterator[Outcome]
    if arguments.seed is not None:
        again = (arguments.seed, arguments.shrink, arguments.defect)
        outcomes = (play(*known) for known in [again])
    else:
        first = random.SystemRandom().randrange(1 << 32)
        say(f"seeds from {first} on")
        outcomes = histories(iter(range(first, first + (1 << 30))), arguments)
    return report(outcomes)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def report(outcomes: Iterator[Outcome]) -> int:
    began, played, steps, counts, failed = time.monotonic(), 0, 0, Counter[str](), 0
    for outcome in outcomes:
        played, steps = played + 1, steps + outcome.steps
        counts.update(outcome.counts)
        if outcome.failure is not None:
            failed += 1
            say(outcome.failure)
    took = max(time.monotonic() - began, 1e-3)
    for name, count in sorted(counts.items()):
        say(f"{count:10} {name}")
    say(f"{played} histories, {steps} steps in {took:.0f} s ({steps / took:.0f} a second), {failed} violations")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
