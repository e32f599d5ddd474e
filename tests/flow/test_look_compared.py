"""What a look says of comparisons: the last that ended and covers the generation, and how far one is that has not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from daemon.core.comparison import State
from daemon.core.status import Status
from daemon.ports import Scan
from daemon.procedures.look import Looker
from tests.flow.world import World


async def looked(world: World, generation: str = "v1") -> Status:
    parts: Any = SimpleNamespace(
        settings=SimpleNamespace(name="shop", generation=(), verify=SimpleNamespace(max_age_s=60.0)),
        target=lambda role: world.target(),
        source=lambda role: world.source,
        feed=lambda role: world.feed(),
        capture=lambda role: world.capture,
    )
    async with Looker(parts, world.clock, generation) as looker:
        return await looker.look("2026-01-01T00:00:00Z")


async def begun() -> World:
    world = await World().open()
    world.source.seed("articles", {"id": "0", "title": "t", "body": "b", "tenant": "t1", "views": "1"})
    await world.begin()
    await world.copy()
    await world.settle()
    return world


def comparison_ids(status: Status) -> list[str]:
    return [b.id for b in status.blockers if b.part == "comparison"]


async def test_never_then_clean_then_stale_then_differing() -> None:
    world = await begun()
    assert comparison_ids(await looked(world)) == ["not-compared"]
    await world.compared()
    assert comparison_ids(await looked(world)) == []
    world.clock.advance(61)
    assert comparison_ids(await looked(world)) == ["comparison-stale"]
    async with world.target().begin() as tx:
        began = await tx.comparisons.begin([world.generation.id], 1, [])
        ended = replace(began, state=State.DIFFERS, ended_lsn=1, open={"row-extra": 2})
        await tx.comparisons.end(ended, close_breaks=False)
    status = await looked(world)
    assert comparison_ids(status) == ["comparison-differs"]
    assert [b.number for b in status.blockers if b.id == "comparison-differs"] == [2]


async def test_a_comparison_that_left_the_generation_out_is_none_of_its() -> None:
    world = await begun()
    await world.compared()
    await world.add_generation("v2")
    assert comparison_ids(await looked(world, "v2")) == ["not-compared"]
    assert comparison_ids(await looked(world, "v1")) == []


async def test_one_that_has_not_ended_is_shown_with_what_is_durable_and_counts_for_nothing() -> None:
    world = await begun()
    async with world.target().begin() as tx:
        began = await tx.comparisons.begin([world.generation.id], 1, [])
        sides = ("source", "replica", "chunks")
        generation = world.generation.id
        scans = [Scan(0, side, world.table.id, generation if side == "chunks" else None, None, None) for side in sides]
        await tx.comparisons.plan(began.id, scans)
        source, replica, chunks = await tx.comparisons.scans(began.id)
        await tx.comparisons.advance(source, ("0",), 10, 0, done=True)
        await tx.comparisons.advance(replica, ("7",), 11, 0, done=False)
        await tx.comparisons.advance(chunks, ("7",), 5, 6, done=False)
    world.clock.advance(30)
    status = await looked(world)
    running = status.facts.comparing
    assert running is not None
    assert (running.rows, running.chunks, running.ranges, running.ranges_done) == (10, 6, 3, 1)
    assert running.age_s == 30
    assert comparison_ids(status) == ["not-compared"]
