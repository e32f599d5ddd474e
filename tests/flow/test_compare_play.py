"""Comparisons amid random histories. A failing seed is noted at the error and replayable: `play(SEED)`."""

from __future__ import annotations

import random

import pytest

from tests.fakes import VirtualClock
from tests.flow.compared_play import Play
from tests.flow.timeline import timeline

BLOCKS, BLOCK = range(4), 20


@pytest.mark.parametrize("block", BLOCKS)
def test_a_comparison_finds_what_was_spoilt_and_nothing_else(block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        play(seed)


def test_a_comparison_of_a_fresh_history_finds_what_was_spoilt_and_nothing_else() -> None:
    play(random.SystemRandom().randrange(1 << 32))


def play(seed: int) -> None:
    async def scene(clock: VirtualClock) -> None:
        await Play(seed, clock).run()

    try:
        timeline(scene)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
