"""The simulation finds what it is there to find: each of these defects within a few histories."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.simulation.__main__ import told
from tests.simulation.defects import defect
from tests.simulation.play import Simulation
from tests.simulation.shrink import kind_of, shrunk, size_of

FOUND_WITHIN = {  # the first seeds that are played, and how many of them
    "checkpoint_apart": (0, 8),
    "tombstones_forgotten": (0, 12),
    "entry_always_done": (0, 12),
    "embedder_locks_no_row": (0, 12),
    "claimed_is_not_owed": (4, 8),
    "lease_ignored": (9, 12),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def found(name: str, first: int, most: int) -> Simulation:
    with defect(name):
        for seed in range(first, first + most):
            history = Simulation(seed).run()
            if history.violation is not None:
                return history
    pytest.fail(f"{name} is not found in {most} histories")


@pytest.mark.parametrize("name", FOUND_WITHIN)
def test_a_defect_is_found(name: str) -> None:
    assert isinstance(found(name, *FOUND_WITHIN[name]).violation, AssertionError)


def test_a_failing_history_is_made_smaller_and_still_fails() -> None:
    failing = found("checkpoint_apart", *FOUND_WITHIN["checkpoint_apart"])
    with defect("checkpoint_apart"):
        smaller = shrunk(failing, 6)
        again = Simulation(failing.seed, list(smaller.choices.drawn)).run()
    assert kind_of(again) == kind_of(failing) and again.trace == smaller.trace
    assert size_of(smaller) < size_of(failing)
    assert f"./dev simulate --seed {failing.seed}" in told(smaller)
