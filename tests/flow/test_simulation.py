"""Random histories keep every promise. A failing seed is printed and replayable: put it into `SEEDS`."""

from __future__ import annotations

import random

import pytest

from tests.flow.simulation import Simulation

SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_random_history_keeps_every_promise(seed: int) -> None:
    await Simulation(seed).run()


async def test_a_fresh_random_history_keeps_every_promise() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"simulation seed {seed}")  # noqa: T201
    await Simulation(seed).run()


async def test_the_random_histories_reach_certificates() -> None:
    """Without one, the check of certificates would check nothing."""
    reached = 0
    for seed in range(1000, 1010):
        simulation = Simulation(seed)
        await simulation.run()
        reached += simulation.certificates
    assert reached > 0
