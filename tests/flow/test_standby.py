"""A second stream process: it waits for the lease, and its log says so once."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.fakes import refuse
from tests.flow.test_freshness import A
from tests.flow.world import World

WORDS = "standing by"


@pytest.fixture
async def world() -> World:
    opened = await World().open()
    opened.source.seed("articles", {"id": "0", **A})
    await opened.begin()
    return opened


async def test_standing_by_is_said_once_and_again_after_the_lease_was_held(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    told = asyncio.Event()
    told.set()  # a turn that waits returns at once
    first, second = world.stream("first"), world.stream("second")
    assert await first.take_over()
    for _ in range(3):
        await second._turn(told)
    assert caplog.text.count(WORDS) == 1
    await first.release()
    await second._turn(told)
    assert second.is_owner
    await second.release()
    assert await first.take_over()
    await second._turn(told)
    assert caplog.text.count(WORDS) == 2


async def test_a_process_that_lost_the_lease_reads_no_topic(world: World) -> None:
    """Its consumer would fetch into memory what the peer applies."""
    feed = world.feed()
    first, second = world.stream("first", feed), world.stream("second")
    told = asyncio.Event()
    told.set()
    await first._turn(told)
    assert feed.position
    world.clock.advance(world.limits.lease_s + 1)
    assert await second.take_over()
    while first.lease is not None:
        await first._turn(told)
    await first._turn(told)
    assert not feed.position


async def test_a_process_cancelled_while_it_takes_the_lease_does_not_give_back_a_peers(world: World) -> None:
    """Rolled back, its number is given out again."""
    first, second = world.stream("first"), world.stream("second")
    world.faults.at("target.commit", refuse(asyncio.CancelledError))
    with pytest.raises(asyncio.CancelledError):
        await first.take_over()
    world.faults.verify()
    assert await second.take_over()
    await first.release()
    assert world.database.state.migration.lease_owner == "second"
