"""Many kills at every fail point: two rounds side by side that die at each point again and again, then as many short
ones as it takes for the points that a migration meets once (`sandbox.failpoints` plays both).

What is reported is demanded: every point was killed at as often as was asked for, and after each round everything held.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sandbox.failpoints import RESERVED, ROWS, Round
from sandbox.failpoints_life import Zygote
from sandbox.failpoints_outcome import Outcome, check, report
from sandbox.processes import SandboxError
from sandbox.stack import Sandbox

SIDE_BY_SIDE = 2
PATIENCE = 3  # short rounds without a kill that counts: some points are met by chance
SHORT_ROWS = RESERVED + 100
CHANCE = 0.5  # of dying at a point: each round takes them in an order of its own


def thorough(
    stack: Sandbox, folder: Path, cycles: int = 20, seed: int = 0, say: Callable[[str], None] = lambda words: None
) -> dict[str, Any]:
    """So many kills at each point; a report in JSON's terms. Raises SandboxError where a point had fewer, or where
    something did not hold after a round."""
    began = time.monotonic()
    hunt = Hunt(stack, folder, cycles, seed)
    with Zygote(folder) as hunt.zygote:
        hunt.rounds(is_short=False)
        say(f"full rounds: {hunt.told()}")
        in_vain = 0
        while (before := hunt.rare()) and in_vain < PATIENCE:
            hunt.rounds(is_short=True)
            in_vain = in_vain + 1 if hunt.rare() == before else 0
            say(f"short rounds: {hunt.told()}")
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

    def rare(self) -> dict[str, int]:
        """Points with fewer kills than asked for."""
        return {point: kills for point, kills in sorted(self.kills.items()) if kills < self._cycles}

    def told(self) -> str:
        kills, rare = sum(self.kills.values()), self.rare()
        return f"{kills} kills at {len(self.kills)} points, {len(rare)} of them too few times"

    def rounds(self, *, is_short: bool) -> None:
        """Some side by side. Raises what the first that failed raised, when all have ended."""
        with ThreadPoolExecutor() as pool:
            running = [pool.submit(self._round, is_short) for _ in range(SIDE_BY_SIDE)]
        for future in running:
            future.result()

    def _round(self, is_short: bool) -> None:
        with self._lock:
            self._count += 1
            number = self._count
            enough = frozenset(point for point, kills in self.kills.items() if kills >= self._cycles)
        round = Round(
            self._stack, self.zygote, self._folder, f"fp{self._seed}x{number}", SHORT_ROWS if is_short else ROWS
        )
        round.seed, round.chance = self._seed * 1000 + number, CHANCE
        round.times = math.ceil(self._cycles / SIDE_BY_SIDE)
        try:
            if is_short:
                round.came.spared = enough
                came = round.play_once_only()
            else:
                came = round.play()
        finally:
            round.close()
        check(came)
        with self._lock:
            self.kills += came.kills
            self.came.append(came)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox.failpoints_thorough")
    parser.add_argument("--cycles", type=int, default=20, metavar="N", help="kills at each point, at least")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the order and of what is written")
    options = parser.parse_args()
    with Sandbox.start() as sandbox:
        folder = sandbox.folder / "thorough"
        folder.mkdir()
        found = thorough(sandbox, folder, options.cycles, options.seed, lambda words: print(words, flush=True))
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
