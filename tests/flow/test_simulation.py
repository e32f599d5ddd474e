"""Random histories keep every promise. A failing seed is noted at the error and replayable: `await play(SEED)`."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.flow.simulation import Simulation

BLOCKS, BLOCK = range(8), 50


@pytest.mark.parametrize("block", BLOCKS)
async def test_random_histories_keep_every_promise(block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        await play(seed)


async def test_a_fresh_random_history_keeps_every_promise() -> None:
    await play(random.SystemRandom().randrange(1 << 32))


async def test_the_random_histories_reach_certificates() -> None:
    """Without one, the check of certificates would check nothing."""
    reached: Counter[str] = Counter()
    for seed in range(1000, 1030):
        reached += (await play(seed)).certificates
    assert set(reached) == {"v1", "v2"}


async def play(seed: int) -> Simulation:
    simulation = Simulation(seed)
    try:
        await simulation.run()
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    return simulation
