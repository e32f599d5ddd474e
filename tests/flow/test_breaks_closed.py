"""What a comparison closes stays closed, and what happens after it began is said however often it was said before.

The comparison itself is only its record here: it begins after a barrier has passed the whole pipeline, and ends clean.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.core.comparison import Comparison, State
from daemon.core.profile import SourceAccess, connector_profile
from daemon.flow.pulse import ABSENT_S, CONFIG_CHECK_S, FLUSH_INTERVAL_S, PulseLoop
from daemon.flow.stream import Stream
from daemon.ports import SlotState
from tests.flow.test_freshness import A, change, pulses
from tests.flow.world import World


@pytest.fixture
async def world() -> World:
    opened = await World().open()
    opened.source.seed("articles", {"id": "0", **A}, {"id": "1", **A})
    await opened.begin()
    await opened.copy()
    return opened


@pytest.fixture
async def stream(world: World) -> Stream:
    stream = world.stream()
    assert await stream.take_over()
    await world.follow(stream)
    return stream


async def open_breaks(world: World) -> list[str]:
    async with world.target().begin() as tx:
        return [b.id for b in await tx.ledger.breaks()]


async def begin(world: World) -> Comparison:
    async with world.target().begin() as tx:
        return await tx.comparisons.begin([world.generation.id], 1, [])


async def end(world: World, begun: Comparison) -> int:
    async with world.target().begin() as tx:
        return await tx.comparisons.end(replace(begun, state=State.CLEAN), close_breaks=True)


async def beat(world: World, loop: PulseLoop, stream: Stream | None = None) -> None:
    """A pulse and a look at the slot; with a stream it passes the whole pipeline."""
    world.clock.advance(5)
    await loop.step()
    if stream is not None:
        await world.follow(stream)


def restart(world: World, session: str) -> None:
    world.connector.restart()
    world.source.slot_session = session


@pytest.mark.parametrize(("seen_first", "entries"), [("session", 2), ("run", 1)])
async def test_a_restart_is_not_said_again_after_a_comparison_that_began_behind_a_passage(
    world: World, stream: Stream, seen_first: str, entries: int
) -> None:
    """A barrier's own record carries the run of the task that sent it: what a comparison begins behind is known by
    session and by run, and both breaks lie below its mark."""
    loop = pulses(world)
    await beat(world, loop, stream)
    restart(world, "2@1")
    if seen_first == "run":
        await change(world, title="first of the new task")
        await world.follow(stream)
    await beat(world, loop, stream)
    assert await open_breaks(world) == entries * ["connector-restarted"]
    assert await end(world, await begin(world)) == entries
    for title in ("a", "b"):
        await change(world, title=title)
        await beat(world, loop, stream)
    assert await open_breaks(world) == []


async def test_a_restart_while_a_comparison_runs_stays_open_whatever_was_open_before(
    world: World, stream: Stream
) -> None:
    loop = pulses(world)
    await beat(world, loop, stream)
    restart(world, "2@1")
    await beat(world, loop, stream)
    begun = await begin(world)
    world.source.slot_session = "3@2"  # and no record comes of the new task
    await beat(world, loop)
    await end(world, begun)
    assert await open_breaks(world) == ["connector-restarted"]


async def test_a_slot_that_is_still_ahead_is_said_again_once_its_break_is_closed(world: World, stream: Stream) -> None:
    loop = pulses(world)
    await beat(world, loop, stream)
    world.source.slot_state = SlotState(True, True, 1 << 40, 0, "reserved", None, world.source.slot_session)
    for _ in range(2):
        await beat(world, loop)
        world.clock.advance(2 * FLUSH_INTERVAL_S)
    await beat(world, loop)
    assert await open_breaks(world) == ["slot-ahead"]
    await end(world, await begin(world))
    assert await open_breaks(world) == []
    await beat(world, loop)
    assert await open_breaks(world) == ["slot-ahead"]


async def test_another_setting_that_is_wrong_is_said_while_the_first_is_open(world: World, stream: Stream) -> None:
    loop = pulses(world)
    loop.config_at = 0.0
    sound = connector_profile(loop.parts.expected, SourceAccess("h", "5432", "u", "d", "p"), 2, -1)
    found = []
    world.connector.config = None
    await loop.step()
    assert await open_breaks(world) == []
    world.clock.advance(ABSENT_S)
    for config in (None, None, {**sound, "errors.tolerance": "all"}, {**sound, "snapshot.mode": "initial"}):
        world.connector.config = config
        world.clock.advance(CONFIG_CHECK_S)
        await loop.step()
        async with world.target().begin() as tx:
            found.append([str(b.detail["settings"]) for b in await tx.ledger.breaks()])
    assert [len(details) for details in found] == [1, 1, 2, 3]
    assert "initial" in found[-1][-1]


async def test_a_worker_that_does_not_know_its_connectors_yet_is_no_break(world: World, stream: Stream) -> None:
    loop = pulses(world)
    loop.config_at = 0.0
    sound = connector_profile(loop.parts.expected, SourceAccess("h", "5432", "u", "d", "p"), 2, -1)
    for config in (None, sound, None):
        world.connector.config = config
        world.clock.advance(ABSENT_S - 1)
        await loop.step()
    assert await open_breaks(world) == []


async def test_a_setting_that_is_wrong_again_is_said_again(world: World, stream: Stream) -> None:
    loop = pulses(world)
    loop.config_at = 0.0
    sound = connector_profile(loop.parts.expected, SourceAccess("h", "5432", "u", "d", "p"), 2, -1)

    async def look(tolerance: str) -> list[str]:
        world.connector.config = {**sound, "errors.tolerance": tolerance}
        world.clock.advance(CONFIG_CHECK_S)
        await loop.step()
        return await open_breaks(world)

    assert await look("none") == []
    assert await look("all") == await look("all") == ["connector-drift"]
    assert await look("none") == ["connector-drift"]
    await end(world, await begin(world))
    assert await look("none") == []
    assert await look("all") == ["connector-drift"]


async def test_a_table_that_is_unpublished_while_a_comparison_runs_stays_a_break(world: World, stream: Stream) -> None:
    loop = pulses(world)
    world.source.unpublished.add("articles")
    await beat(world, loop)
    world.source.unpublished.clear()
    await beat(world, loop, stream)
    begun = await begin(world)
    world.source.unpublished.add("articles")
    await beat(world, loop)
    await beat(world, loop)
    world.source.unpublished.clear()
    assert await end(world, begun) == 1
    assert await open_breaks(world) == ["publication-drift"]
