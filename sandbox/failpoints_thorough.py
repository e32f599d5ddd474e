"""Many kills at every fail point: a migration and, beside it, comparisons, repairs and proofs of another one, both
dying at each point again and again; then as many short rounds as it takes for the points that each meets once, where
nobody dies anywhere else (`sandbox.failpoints` plays them all).

What is reported is demanded: every point was killed at as often as was asked for, and after each round everything held.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from sandbox.failpoints import RESERVED, ROWS, Round
from sandbox.failpoints_life import Zygote
from sandbox.failpoints_outcome import Outcome, check, report
from sandbox.processes import SandboxError
from sandbox.stack import Sandbox

PATIENCE = 3  # times that short rounds bring no kill that counts: some points are met by chance
AUDITED = ("verify", "prove")  # roles that a migration does not play
ABREAST = 4  # short rounds: each waits most of the time
SHORT_ROWS = RESERVED + 100
MANY_ROWS = 3000  # pages enough to die at
CHANCE = 0.5  # of dying at a point: each round takes them in an order of its own


def thorough(
    stack: Sandbox, cycles: int = 20, seed: int = 0, say: Callable[[str], None] = lambda words: None
) -> dict[str, Any]:
    """So many kills at each point; a report in JSON's terms. The evidence lies among the stack's logs. Raises
    SandboxError where a point had fewer, or where something did not hold after a round."""
    began = time.monotonic()
    folder = stack.logs / "thorough"
    folder.mkdir()
    hunt = Hunt(stack, folder, cycles, seed)
    with Zygote(folder) as hunt.zygote:
        hunt.side_by_side(hunt.migration, hunt.audit)
        say(f"long rounds: {hunt.told()}")
        hunt.side_by_side(*(partial(hunt.short_rounds, lane, say) for lane in range(ABREAST)))
    if rare := hunt.rare():
        raise SandboxError(f"killed at less than {cycles} times: {rare}")
    return report(hunt.kills, hunt.came) | {"seconds": round(time.monotonic() - began, 1)}


class Hunt:
    """The rounds of a run and what they came to."""

    zygote: Zygote

    def __init__(self, stack: Sandbox, folder: Path, cycles: int, seed: int) -> None:
        self._stack, self._folder, self._cycles, self._seed = stack, folder, cycles, seed
        self._lock, self._count = threading.Lock(), 0
        self.came: list[Outcome] = []
        self.kills: Counter[str] = Counter()
        self._reached: set[str] = set()

    def rare(self) -> dict[str, int]:
        """Points with fewer kills than asked for."""
        with self._lock:
            reached = sorted(self._reached)
        return {point: self.kills[point] for point in reached if self.kills[point] < self._cycles}

    def told(self) -> str:
        kills, rare = sum(self.kills.values()), self.rare()
        return f"{kills} kills at {len(self.kills)} points, {len(rare)} of them too few times"

    def side_by_side(self, *rounds: Callable[[], None]) -> None:
        """Raises what the first that failed raised, when all have ended."""
        with ThreadPoolExecutor() as pool:
            running = [pool.submit(round) for round in rounds]
        for future in running:
            future.result()

    def migration(self) -> None:
        self._round(MANY_ROWS, Round.migrate)

    def audit(self) -> None:
        self._round(ROWS, Round.audit)

    def short_rounds(self, lane: int, say: Callable[[str], None]) -> None:
        """One after the other, of what is met by points with too few kills, as long as they bring more."""
        in_vain = 0
        while (due := self._due(lane)) and in_vain < PATIENCE:
            before = [self.kills[point] for point in sorted(due)]
            if all(point.startswith(AUDITED) for point in due):
                self._round(ROWS, Round.audit, 1.0, frozenset(self._reached - due))
            else:
                self._round(SHORT_ROWS, partial(Round.migrate, once_only=True), 1.0, frozenset(self._reached - due))
            in_vain = in_vain + 1 if before == [self.kills[point] for point in sorted(due)] else 0
            say(f"short rounds: {self.told()}")

    def _due(self, lane: int) -> set[str]:
        """Points with too few kills: the first lane has those of comparisons while there are any. In every second lane
        nobody dies during a commit: who does may have made it, and then cannot die after it."""
        rare = set(self.rare())
        audited = {point for point in rare if point.startswith(AUDITED)}
        if lane == 0 and audited:
            return audited
        return {point for point in rare - audited if lane % 2 or not point.endswith(" during")}

    def _round(
        self,
        rows: int,
        play: Callable[[Round], Outcome],
        chance: float = CHANCE,
        spared: frozenset[str] = frozenset(),
    ) -> None:
        with self._lock:
            self._count += 1
            number = self._count
        round = Round(self._stack, self.zygote, self._folder, f"fp{self._seed}x{number}", rows)
        round.seed, round.chance, round.times = self._seed * 1000 + number, chance, self._cycles
        round.came.spared = spared
        try:
            came = play(round)
        finally:
            round.close()
        check(came)
        with self._lock:
            self.kills += came.kills
            self._reached |= came.reached
            self.came.append(came)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.failpoints_thorough")
    parser.add_argument("--cycles", type=int, default=20, metavar="N", help="kills at each point, at least")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the order and of what is written")
    options = parser.parse_args()
    with Sandbox.start() as sandbox:
        found = thorough(sandbox, options.cycles, options.seed, lambda words: print(words, flush=True))
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
