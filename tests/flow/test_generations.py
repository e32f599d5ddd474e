"""Generations that are added to and dropped from a running migration: sweep, index, the end of who embeds them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from daemon.core.model import Generation
from daemon.errors import SchemaChanged, TransientError
from daemon.flow import lifetime, sweep
from daemon.flow.lifetime import Lifetime
from daemon.flow.stream import Stream
from daemon.flow.sweep import Sweep
from daemon.procedures.index import IndexBuild
from tests.fakes import refuse, slow
from tests.flow.world import World

A = {"title": "t", "body": "A", "tenant": "t1", "views": "1"}
ROWS: list[dict[str, str | None]] = [{"id": str(n), **A} for n in range(7)]


async def opened(copied: bool = True) -> World:
    world = await World().open()
    world.source.seed("articles", *ROWS)
    await world.begin()
    if copied:
        await world.copy()
    return world


async def add(world: World, name: str = "v2") -> Generation:
    async with world.target().begin() as tx:
        return await tx.ledger.add_generation(name, world.contract.as_json(), world.contract.id)


async def listed(world: World, generation: Generation) -> Generation | None:
    async with world.target().begin() as tx:
        return next((g for g in await tx.ledger.generations() if g.id == generation.id), None)


async def drop(world: World, generation: Generation) -> None:
    async with world.target().begin() as tx:
        await tx.ledger.drop_generation(generation)


def owed(world: World, generation: Generation) -> set[str]:
    state = world.database.state
    return {state.keys[t, r][0] for g, t, r in state.work if g == generation.id}


def sweeper(world: World, page_rows: int = 3) -> Sweep:
    return Sweep(world.target(), [world.table], page_rows=page_rows)


async def test_a_sweep_hands_over_page_by_page_and_says_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = await opened()
    assert not await sweeper(world).step(), "the first generation needs none"
    second = await add(world)
    loop = sweeper(world)
    taken = []
    while await loop.step():
        taken.append(len(owed(world, second)))
    assert taken == [3, 6, 7, 7]
    assert (found := await listed(world, second)) is not None and found.swept
    assert [e.id for e in world.database.state.journal if e.kind == "sweep"] == ["generation-swept"]
    assert "generation v2 is swept: 7 rows" in caplog.text


async def test_a_sweep_waits_for_the_copy_and_pages_feed_meanwhile() -> None:
    world = await opened(copied=False)
    second = await add(world)
    assert not await sweeper(world).step()
    await world.copy()
    assert len(owed(world, second)) == 7
    loop = sweeper(world)
    while await loop.step():
        pass
    assert (found := await listed(world, second)) is not None and found.swept


@pytest.mark.parametrize("call", range(1, 11))
async def test_a_sweep_that_dies_anywhere_is_gone_on_with(call: int) -> None:
    """Every transaction of it is lost once; another sweeper begins with no memory."""
    world = await opened()
    second = await add(world)
    world.faults.at("target.begin", refuse(), call)
    loop = sweeper(world)
    with pytest.raises(TransientError, match="scripted"):
        while await loop.step():
            pass
    loop = sweeper(world)
    while await loop.step():
        pass
    assert len(owed(world, second)) == 7
    assert (found := await listed(world, second)) is not None and found.swept


async def test_changes_while_it_is_swept_reach_the_generation_once() -> None:
    world = await opened()
    stream = world.stream()
    assert await stream.take_over()
    second = await add(world)
    loop = sweeper(world)
    assert await loop.step()
    tx = world.source.begin()
    tx.update("articles", "0", title="swept already")
    tx.update("articles", "6", title="not swept yet")
    tx.delete("articles", "1")
    tx.delete("articles", "5")
    tx.insert("articles", id="9", **A)
    tx.commit()
    await world.follow(stream)
    while await loop.step():
        pass
    assert owed(world, second) == {"0", "2", "3", "4", "6", "9"}
    state = world.database.state
    live = {state.keys[t, r][0] for (g, t, r), e in state.work.items() if g == second.id and e.is_live}
    assert live == {"0", "6", "9"}


async def test_two_generations_are_swept_one_after_the_other() -> None:
    world = await opened()
    second, third = await add(world), await add(world, "v3")
    loop = sweeper(world)
    while await loop.step():
        pass
    assert len(owed(world, second)) == len(owed(world, third)) == 7


async def test_a_sweep_runs_only_where_the_stream_is_and_while_backfill_work_may_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep, "POLL_S", 0.001)
    world = await opened()
    second, stop, permitted = await add(world), asyncio.Event(), asyncio.Event()
    stream: Stream = world.stream()
    asked = asyncio.Event()

    def may_begin() -> bool:
        asked.set()
        return permitted.is_set()

    loop = Sweep(world.target(), [world.table], may_begin)
    task = asyncio.create_task(loop.run(stop, stream))
    await asyncio.sleep(0)
    assert not asked.is_set(), "nobody else's work"
    assert await stream.take_over()
    await asyncio.wait_for(asked.wait(), 60)
    assert owed(world, second) == set()
    permitted.set()
    async with asyncio.timeout(60):
        while not ((found := await listed(world, second)) and found.swept):
            await asyncio.sleep(0.001)
    stop.set()
    await task


async def test_every_generation_gets_its_index_once_its_own_load_is_over() -> None:
    world = await opened()
    await world.embed()
    build = IndexBuild(world.target(), world.indexes, [world.table])
    assert await build.step()
    second = await add(world)
    assert not await build.step(), "it is not swept"
    loop = sweeper(world)
    while await loop.step():
        pass
    assert await build.step()
    assert (found := await listed(world, second)) is not None and found.phase == "live"
    assert set(world.indexes.valid) == {("articles", world.generation.id), ("articles", second.id)}


async def test_a_generation_with_a_large_backlog_keeps_no_other_one_from_its_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await opened()
    second = await add(world)
    loop = sweeper(world)
    while await loop.step():
        pass
    monkeypatch.setattr("daemon.procedures.index.SMALL_BACKLOG", 0)
    async with world.target().begin() as tx:
        await tx.replica.lock_rows(world.table, [r for _, _, r in world.database.state.work])
        rows = [r for g, _, r in world.database.state.work if g == second.id]
        await tx.ledger.drop_work(world.table, [second], rows)
    build = IndexBuild(world.target(), world.indexes, [world.table])
    assert not await build.step()
    phases = {g.generation.name: g.generation.phase for g in world.database.state.generations.values()}
    assert phases == {"v1": "loading", "v2": "live"}


class Gone:
    """The chunk tables of a dropped generation, as Postgres says it."""

    def __init__(self, world: World, generation: Generation) -> None:
        self.world, self.generation = world, generation

    async def __call__(self) -> None:
        raise SchemaChanged("schema-changed", "target: no such table", "compare")


async def test_an_embedder_of_a_dropped_generation_ends_without_a_halt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = await opened()
    second = await add(world)
    life = Lifetime(world.target(), second)
    await drop(world, second)
    await life.within(Gone(world, second)())
    assert life.is_dropped and life.ended.is_set()
    assert caplog.text.count("generation v2 was dropped") == 1


async def test_embedders_that_meet_a_drop_together_end_without_a_halt_although_the_target_is_away_for_a_moment() -> (
    None
):
    world = await opened()
    second = await add(world)
    await drop(world, second)
    answer = asyncio.Event()
    world.faults.at("target.begin", slow(answer))  # so that the others ask meanwhile
    world.faults.at("target.begin", refuse(), 2)
    life = Lifetime(world.target(), second)
    asking = [asyncio.create_task(life.within(Gone(world, second)())) for _ in range(3)]
    await asyncio.sleep(0)
    answer.set()
    async with asyncio.timeout(60):
        await asyncio.gather(*asking)
    assert life.is_dropped
    world.faults.verify()


async def test_a_table_that_changed_under_a_listed_generation_is_a_halt() -> None:
    world = await opened()
    life = Lifetime(world.target(), world.generation)
    with pytest.raises(SchemaChanged):
        await life.within(Gone(world, world.generation)())
    assert not life.ended.is_set()


async def test_an_idle_embedder_learns_of_the_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "POLL_S", 0.001)
    world = await opened()
    second = await add(world)
    life = Lifetime(world.target(), second)
    world.faults.at("target.begin", refuse(), 2)  # the target is away once: no reason to end
    watching = asyncio.create_task(life.run(asyncio.Event()))
    async with asyncio.timeout(60):
        while world.database.commits < 8:
            await asyncio.sleep(0.001)
            async with world.target().begin() as tx:
                await tx.ledger.load()
    assert not life.ended.is_set()
    await drop(world, second)
    await asyncio.wait_for(life.ended.wait(), 60)
    await watching
    assert life.is_dropped


async def test_a_target_that_does_not_answer_keeps_no_embedder_from_stopping() -> None:
    world = await opened()
    life = Lifetime(world.target(), world.generation)
    stop = asyncio.Event()
    async with world.database.lock:  # every transaction waits
        watching = asyncio.create_task(life.run(stop))
        await asyncio.sleep(0)
        stop.set()
        await asyncio.wait_for(watching, 60)
    assert life.ended.is_set() and not life.is_dropped
