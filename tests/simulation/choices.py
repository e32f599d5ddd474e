"""Every choice of a history comes from one tape of numbers, so that a history can be replayed, and made smaller.

A tape is drawn from a seed, or given. What is drawn past the end of a given tape is 0, and 0 is always the dullest
choice: no fault, no writer, the call that waits longest goes on. So a history whose tape has pieces cut out, or set to
0, is a smaller history.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
SPAN = 1 << 32


class Choices:
    """Numbers from a seed, or from a tape. `drawn` is the tape of what was chosen."""

    def __init__(self, seed: int, tape: Sequence[int] | None = None) -> None:
        self.seed, self.given = seed, tape
        self._random = random.Random(seed)
        self.drawn = array("L")
        self.is_calm = False  # from here on everything goes as it should

    def _draw(self) -> int:
        at, given = len(self.drawn), self.given
        number = self._random.getrandbits(32) if given is None else 0
        if given is not None and at < len(given):
            number = given[at]
        self.drawn.append(number)
        return number

    def below(self, n: int) -> int:
        """0 <= number < n."""
        return self._draw() * n >> 32

    def chance(self, share: float) -> bool:
        """True in this share of cases; nothing is drawn where it is 0 or nothing goes wrong any more."""
        if share <= 0 or self.is_calm:
            return False
        return self._draw() >= SPAN - int(share * SPAN)

    def pick(self, of: Sequence[T]) -> T:
        return of[self._draw() * len(of) >> 32]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, by weights; the first one is the dullest."""
        at = self._draw() / SPAN * sum(weights)
        for n, weight in enumerate(weights):
            at -= weight
            if at < 0:
                return n
        return 0
