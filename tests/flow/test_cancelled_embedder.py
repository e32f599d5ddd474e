"""An embedder that is ended while its provider hangs frees its claims: a restart need not wait for their lease."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import slow
from tests.flow.world import World


async def test_claims_are_free_after_a_cancelled_request() -> None:
    world = World()
    await world.open()
    world.source.seed("articles", {"id": "0", "title": "t", "body": "A", "tenant": "t1", "views": "1"})
    await world.begin()
    await world.copy()
    hangs = world.faults.at("embedder.embed", slow(asyncio.Event()))
    step = asyncio.create_task(world.worker("ended").step(world.table))
    await asyncio.wait_for(hangs.reached.wait(), 60)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    world.faults.verify()
    assert await world.worker("next").step(world.table) == 1, "the claim is still held"
    world.check()


@pytest.mark.parametrize("turns", range(30))
async def test_a_cancellation_is_heard_whenever_it_comes(turns: int) -> None:
    """One that is swallowed would keep the process from ending."""
    world = World()
    await world.open()
    world.source.seed("articles", {"id": "0", "title": "t", "body": "A", "tenant": "t1", "views": "1"})
    await world.begin()
    await world.copy()
    asked = world.faults.at("embedder.embed", slow(go := asyncio.Event()))
    step = asyncio.create_task(world.worker("ended").step(world.table))
    await asyncio.wait_for(asked.reached.wait(), 60)
    go.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    was_heard = step.cancel()
    await asyncio.wait([step])
    assert step.cancelled() == was_heard
