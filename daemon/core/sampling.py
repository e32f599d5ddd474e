"""Totals of a table from rows picked at random, with the error that this leaves. Pure.

Small tables are read whole. A larger one is sampled row by row (every row has the same chance, whatever the order in
which rows lie), and a table too large to be read at all by blocks: rows of one block were often written together and
resemble each other, so the error is computed from whole blocks, never as if their rows were independent.

A total is a ratio estimate: the sum over the picked rows, per something that the whole table was counted for (rows, or
bytes of text, which tokens follow closely). Its interval covers 95 % of samples (Cochran, Sampling Techniques, 6 and
9A).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

WHOLE_ROWS = 50_000  # up to here reading everything takes seconds
SAMPLE_ROWS = 20_000  # leaves well under 1 % of error in tokens
ROWWISE_ROWS = 5_000_000  # up to here a pass over the table is cheap; texts stored out of line are not read by it
UNCOUNTED_ROWS = 20_000_000  # taken for a table that could not be counted and was never analysed
FEW_CLUSTERS = 2  # fewer say nothing about how clusters differ

_Z = 1.959964  # of the normal distribution, 95 % in the middle


class Picking(enum.Enum):
    """How rows are picked; the value is the word that is shown."""

    EVERY_ROW = "every row"
    ROWS = "random rows"
    BLOCKS = "random blocks"


@dataclass(frozen=True, slots=True)
class Draw:
    """What to read. share: chance of each row, or of each block, to be picked; above 0, at most 1."""

    picking: Picking
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number that was counted (low = high), or the 95 % interval around it."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        return cls(value, value, value)

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.high)

    @property
    def error(self) -> float:
        """Half of the interval in parts of the value; 0 for a value of 0."""
        return (self.high - self.low) / 2 / self.value if self.value else 0.0

    def times(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


UNKNOWN = Estimate(math.nan, 0.0, math.inf)


@dataclass(slots=True)
class Tally:
    """Sums over rows that were read together.

    wanted: rows for which `where` is true; text_bytes: of their texts as the source stores them; blank: those of them
    without a chunk. tokens: of the inputs that the
    provider takes, prefix included; too_long: inputs that it would refuse. *_bytes, *_wal: see `daemon.core.storage`.
    """

    rows: int = 0
    wanted: int = 0
    text_bytes: int = 0
    blank: int = 0
    chunks: int = 0
    tokens: int = 0
    too_long: int = 0
    replica_bytes: int = 0
    chunk_bytes: int = 0
    chunk_wal: int = 0

    def add(self, other: Tally) -> None:
        for field in self.__slots__:
            setattr(self, field, getattr(self, field) + getattr(other, field))


def draw(rows: int | None, *, counted: bool, sample_rows: int | None, exact: bool) -> Draw:
    """How to read a table of about `rows` rows. counted: they could be counted in time, so a pass over it is cheap.
    sample_rows: what was asked for; None: the defaults, which read a small table whole."""
    if exact or (rows is not None and counted and rows <= (WHOLE_ROWS if sample_rows is None else sample_rows)):
        return Draw(Picking.EVERY_ROW)
    share = min(1.0, (sample_rows or SAMPLE_ROWS) / max(1, rows or UNCOUNTED_ROWS))
    is_cheap = counted and rows is not None and rows <= ROWWISE_ROWS
    return Draw(Picking.ROWS if is_cheap else Picking.BLOCKS, share)


def total(
    clusters: Sequence[Tally], of: Callable[[Tally], int], per: Callable[[Tally], int], size: Estimate, share: float
) -> Estimate:
    """The table's total of a number. clusters: rows picked together, one each where rows were picked by themselves.

    per, size: what it is counted per (rows, wanted rows, bytes of text) and how much of it the table has. share: part
    of the clusters that was picked; 1: all, and the total is exact.
    """
    picked = sum(per(c) for c in clusters)
    summed = sum(of(c) for c in clusters)
    if share >= 1:
        return Estimate.exact(summed)
    if not picked:
        return Estimate.exact(0) if size.high == 0 else UNKNOWN
    ratio = summed / picked
    value = ratio * size.value
    count = len(clusters)
    if count < FEW_CLUSTERS:
        return Estimate(value, 0.0, math.inf)
    squares = math.fsum((of(c) - ratio * per(c)) ** 2 for c in clusters)
    deviation = math.sqrt((1 - share) * squares * count / (count - 1)) / picked
    margin = _quantile(count - 1) * math.hypot(deviation * size.value, ratio * (size.high - size.low) / 2 / _Z)
    return Estimate(value, max(float(summed), value - margin), value + margin)


def population(clusters: Sequence[Tally], of: Callable[[Tally], int], share: float) -> Estimate:
    """How many there are in a table that nobody counted: each cluster was picked with the chance `share`."""
    summed = sum(of(c) for c in clusters)
    deviation = math.sqrt((1 - share) * math.fsum(of(c) ** 2 for c in clusters)) / share
    value, margin = summed / share, _Z * deviation
    return Estimate(value, max(float(summed), value - margin), value + margin)


def sum_of(estimates: Iterable[Estimate]) -> Estimate:
    """Of independent samples: the errors add up as squares."""
    parts = list(estimates)
    value = sum(e.value for e in parts)
    below = math.sqrt(math.fsum((e.value - e.low) ** 2 for e in parts))
    above = math.sqrt(math.fsum((e.high - e.value) ** 2 for e in parts))
    return Estimate(value, value - below, value + above)


def _quantile(freedom: int) -> float:
    """Of Student's distribution, 95 % in the middle (Abramowitz and Stegun, 26.7.5)."""
    z = _Z
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
