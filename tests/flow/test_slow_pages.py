"""A page that takes longer than the range's lease: the worker keeps its range, and loses it once it stands still."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes import slow
from tests.flow.world import World

LEASE_S = 0.03  # a third of it is waited for in real time


@pytest.fixture
async def world() -> World:
    opened = await World().open()
    opened.limits = opened.limits.model_copy(update={"lease_s": LEASE_S})
    rows: list[dict[str, str | None]] = [{"id": str(n), "title": "t", "body": "b"} for n in range(3)]
    opened.source.seed("articles", *rows)
    await opened.begin()
    return opened


async def renewed(world: World, calls: int) -> None:
    while world.faults.calls["ledger.advance_range"] < calls:
        await asyncio.sleep(0.001)


async def test_a_range_is_kept_while_its_page_is_read(world: World) -> None:
    gate = asyncio.Event()
    fault = world.faults.at("source.page", slow(gate))
    worker, peer = world.backfill("slow"), world.backfill("peer")
    step = asyncio.create_task(worker.step())
    await asyncio.wait_for(fault.reached.wait(), 60)
    for _ in range(4):
        await asyncio.wait_for(renewed(world, world.faults.calls["ledger.advance_range"] + 1), 60)
        world.clock.advance(LEASE_S * 0.9)
        assert not await peer.step(), "the range was taken from a worker that is at it"
    gate.set()
    assert await asyncio.wait_for(step, 60)
    assert worker.counts.rows_written == 3


async def test_a_worker_that_lost_its_range_meanwhile_drops_the_page(world: World) -> None:
    gate = asyncio.Event()
    fault = world.faults.at("source.page", slow(gate))
    worker, peer = world.backfill("slow"), world.backfill("peer")
    step = asyncio.create_task(worker.step())
    await asyncio.wait_for(fault.reached.wait(), 60)
    world.clock.advance(2 * LEASE_S)
    assert await peer.step()
    assert not await asyncio.wait_for(step, 60)
    assert (worker.counts.rows_written, peer.counts.rows_written, worker.range) == (0, 3, None)
