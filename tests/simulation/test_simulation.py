"""Random histories of the whole product keep every promise, and reach what they are made for.

A failing seed is printed with its trace; `./dev simulate --seed SEED` plays it again and makes it smaller.
"""

from __future__ import annotations

import logging
import random
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.simulation.__main__ import told
from tests.simulation.play import Simulation

HALVES, HISTORIES = 2, 60  # by two test processes
STEPS = 900_000
REACHED = (
    "certificates",
    "certificates amid changes",
    "certificates of a second generation",
    "comparisons",
    "comparisons with repair",
    "breaks closed",
    "kills",
    "kills in a transaction",
    "commits of the dead",
    "freezes",
    "zombies",
    "takeovers",
    "ambiguous commits",
    "lost answers",
    "refused calls",
    "provider faults",
    "connector restarts",
    "late producers",
    "losses",
    "markers",
    "truncates applied",
    "key changes",
    "unavailable",
    "blocked inserts",
    "rollbacks",
    "late visibility",
    "commits within a barrier",
    "generations added",
    "generations dropped",
    "lags",
    "freshness",
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def played(seed: int) -> Simulation:
    history = Simulation(seed).run()
    if history.violation is not None:
        pytest.fail(told(history), pytrace=False)
    return history


@pytest.mark.timeout(900)
@pytest.mark.parametrize("half", range(HALVES))
def test_random_histories_keep_every_promise_and_reach_what_they_are_for(half: int) -> None:
    steps, counts = 0, Counter[str]()
    for seed in range(half * HISTORIES, (half + 1) * HISTORIES):
        history = played(seed)
        steps, counts = steps + history.steps, counts + history.counts
    missing = [name for name in REACHED if not counts[name]]
    assert not missing, f"histories without {missing} prove nothing of them"
    assert steps >= STEPS / HALVES, f"{steps} steps are too few"


def test_a_fresh_random_history_keeps_every_promise() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    sys.stdout.write(f"seed {seed}\n")
    played(seed)


def test_a_seed_is_one_history() -> None:
    first, second = played(1000), played(1000)
    assert (first.trace, first.choices.drawn) == (second.trace, second.choices.drawn)
