"""Totals from random samples: unbiased, with an interval that holds as often as it says, for clustered tables too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import pytest

from daemon.core.sampling import (
    ROWWISE_ROWS,
    SAMPLE_ROWS,
    WHOLE_ROWS,
    Draw,
    Estimate,
    Picking,
    Tally,
    draw,
    population,
    sum_of,
    total,
)

BLOCKS, PER_BLOCK = 1000, 20
REPEATS = 300


def rows_of(tally: Tally) -> int:
    return tally.rows


def tokens_of(tally: Tally) -> int:
    return tally.tokens


def text_of(tally: Tally) -> int:
    return tally.text_bytes


def clustered(random: Random) -> list[list[Tally]]:
    """Blocks whose rows resemble each other: some hold long texts, most hold short ones."""
    table = []
    for _ in range(BLOCKS):
        level = random.choice((50, 60, 400))
        tokens = [max(1, round(random.gauss(level, 10))) for _ in range(PER_BLOCK)]
        table.append([Tally(rows=1, tokens=n, text_bytes=4 * n + random.randrange(20)) for n in tokens])
    return table


def merged(block: Sequence[Tally]) -> Tally:
    whole = Tally()
    for row in block:
        whole.add(row)
    return whole


Estimator = Callable[[list[list[Tally]], Random], Estimate]


def coverage(estimator: Estimator) -> tuple[float, float]:
    """How often the interval holds the true total, and the mean of the estimates over it."""
    random = Random(7)
    table = clustered(random)
    truth = sum(row.tokens for block in table for row in block)
    found = [estimator(table, random) for _ in range(REPEATS)]
    return sum(e.low <= truth <= e.high for e in found) / REPEATS, sum(e.value for e in found) / REPEATS / truth


SIZE = Estimate.exact(BLOCKS * PER_BLOCK)


def by_rows(table: list[list[Tally]], random: Random) -> Estimate:
    picked = [row for block in table for row in block if random.random() < 0.05]
    return total(picked, tokens_of, rows_of, SIZE, 0.05)


def by_blocks(table: list[list[Tally]], random: Random) -> Estimate:
    picked = [merged(block) for block in table if random.random() < 0.05]
    return total(picked, tokens_of, rows_of, SIZE, 0.05)


def by_blocks_taken_for_rows(table: list[list[Tally]], random: Random) -> Estimate:
    picked = [row for block in table if random.random() < 0.05 for row in block]
    return total(picked, tokens_of, rows_of, SIZE, 0.05)


def by_text(table: list[list[Tally]], random: Random) -> Estimate:
    picked = [row for block in table for row in block if random.random() < 0.05]
    size = Estimate.exact(sum(row.text_bytes for block in table for row in block))
    return total(picked, tokens_of, text_of, size, 0.05)


@pytest.mark.parametrize("estimator", [by_rows, by_blocks, by_text])
def test_the_interval_holds_the_truth_about_19_times_of_20(estimator: Estimator) -> None:
    held, mean = coverage(estimator)
    assert 0.91 <= held <= 0.985
    assert mean == pytest.approx(1, abs=0.01)


def test_rows_of_a_block_are_not_taken_for_independent_ones() -> None:
    held, _ = coverage(by_blocks_taken_for_rows)
    assert held < 0.7  # what the interval would be worth


def test_tokens_per_byte_of_text_vary_less_than_tokens_per_row() -> None:
    table, random = clustered(Random(1)), Random(2)
    assert by_text(table, random).error < by_rows(table, random).error / 5


def test_a_population_nobody_counted_is_estimated_with_its_error() -> None:
    random, held = Random(3), 0
    for _ in range(REPEATS):
        picked = [Tally(rows=random.choice((5, 50))) for _ in range(2000) if random.random() < 0.1]
        found = population(picked, rows_of, 0.1)
        held += found.low <= 2000 * 27.5 <= found.high
    assert 0.9 <= held / REPEATS <= 0.99


def test_everything_read_is_exact() -> None:
    found = total([Tally(rows=3, tokens=7), Tally(rows=1, tokens=1)], tokens_of, rows_of, Estimate.exact(4), 1.0)
    assert found == Estimate.exact(8) and found.is_exact


def test_an_uncertain_size_widens_the_interval() -> None:
    picked = [Tally(rows=1, tokens=10 + n % 3) for n in range(1000)]
    sure = total(picked, tokens_of, rows_of, Estimate.exact(10_000), 0.1)
    unsure = total(picked, tokens_of, rows_of, Estimate(10_000, 9_000, 11_000), 0.1)
    assert unsure.value == sure.value and unsure.error > 0.09 > sure.error


def test_one_cluster_says_nothing_about_the_error() -> None:
    found = total([Tally(rows=10, tokens=50)], tokens_of, rows_of, Estimate.exact(100), 0.1)
    assert (found.value, found.high, found.is_finite) == (500, math.inf, False)


def test_an_empty_sample_of_rows_that_exist_is_unknown() -> None:
    assert not total([], tokens_of, rows_of, Estimate.exact(100), 0.1).is_finite
    assert total([], tokens_of, rows_of, Estimate.exact(0), 0.1) == Estimate.exact(0)


def test_a_total_is_never_below_what_was_seen() -> None:
    picked = [Tally(rows=1, tokens=1000), *(Tally(rows=1) for _ in range(9))]
    assert total(picked, tokens_of, rows_of, Estimate.exact(20), 0.5).low >= 1000


def test_errors_of_independent_tables_add_up_as_squares() -> None:
    found = sum_of([Estimate(100, 70, 130), Estimate(100, 60, 140), Estimate.exact(5)])
    assert (found.value, found.low, found.high) == (205, 155, 255)


@pytest.mark.parametrize(
    ("rows", "counted", "sample", "exact", "expected"),
    [
        (WHOLE_ROWS, True, None, False, Draw(Picking.EVERY_ROW)),
        (WHOLE_ROWS + 1, True, None, False, Draw(Picking.ROWS, SAMPLE_ROWS / (WHOLE_ROWS + 1))),
        (ROWWISE_ROWS + 1, True, None, False, Draw(Picking.BLOCKS, SAMPLE_ROWS / (ROWWISE_ROWS + 1))),
        (1_000_000, False, None, False, Draw(Picking.BLOCKS, 0.02)),
        (1_000_000_000, False, None, True, Draw(Picking.EVERY_ROW)),
        (None, False, None, False, Draw(Picking.BLOCKS, 0.001)),
        (3000, True, 3000, False, Draw(Picking.EVERY_ROW)),
        (3000, True, 300, False, Draw(Picking.ROWS, 0.1)),
        (0, True, None, False, Draw(Picking.EVERY_ROW)),
        (10, False, None, False, Draw(Picking.BLOCKS, 1.0)),  # the planner may be wrong: never above 1
    ],
)
def test_how_a_table_is_read(rows: int | None, counted: bool, sample: int | None, exact: bool, expected: Draw) -> None:
    assert draw(rows, counted=counted, sample_rows=sample, exact=exact) == expected
