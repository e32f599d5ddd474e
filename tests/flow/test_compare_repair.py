"""A repair never takes a row back: story 6 of the model, and every point of a repair at which the world may move.

What a repair read may be old when it writes. It writes only where the replica's row and the table's count of truncates
are as they were read before the source, and the source's snapshot saw the row's own transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from unittest import mock

import pytest

from daemon.core.comparison import State
from daemon.procedures import repair
from daemon.procedures.compare import Progress
from tests.fakes import then
from tests.fakes.faults import Landed
from tests.flow.compared_world import ComparedWorld, played, texts
from tests.flow.corruption import lose

Act = Callable[[ComparedWorld], None]


async def damaged(world: ComparedWorld) -> ComparedWorld:
    """Row 1 is stale, row 8 is missing, row 2 is there and should not be: their events were lost."""
    world.change("1", title="newer", tenant="t2")
    world.insert("8")
    world.delete("2")
    world.loses()
    await world.turn()
    return world


async def repaired_once(world: ComparedWorld, point: str, act: Callable[[], Awaitable[None]]) -> None:
    """A comparison with a repair that tries once; `act` happens right after its call of `point`. Whatever it wrote
    over what it had not read stays wrong for good."""

    def tell(progress: Progress) -> None:
        if progress.stage == "repair" and not planned:
            planned.append(world.faults.at(point, then(act)))

    planned: list[object] = []
    with mock.patch.object(repair, "ATTEMPTS", 1):
        await world.compare(tell=tell, repair=True, sample=0)
    world.faults.verify()
    assert planned
    await asyncio.sleep(1)
    await world.turn()


# --- story 6, and each condition by itself


@played
async def test_6a_nothing_is_written_where_the_snapshot_does_not_see_the_rows_transaction(world: ComparedWorld) -> None:
    """The row's change is applied before its transaction is visible: the repair reads the new row, then the old one at
    the source, and the position is still the new one when it writes."""
    await damaged(world)

    async def commits_unseen() -> None:
        tx = world.source.begin()
        tx.update("articles", "1", title="not seen yet")
        tx.write_commit()
        await world.turn()
        world.later(0.5, tx.show)

    await repaired_once(world, "target.commit", commits_unseen)  # what is to be mended was read
    assert world.rows()["1",] == world.source.current("articles")["1",]


@played
async def test_6b_a_key_that_came_and_was_purged_is_not_brought_back(world: ComparedWorld) -> None:
    """It is absent when the repair reads, and absent when it writes; in between it was made, deleted and purged. A
    purge bumps the table's count."""
    await damaged(world)

    async def deleted_and_purged() -> None:
        world.delete("8")
        await world.turn()
        async with world.spoil() as state:
            lose(state, world, "8")
            record = state.tables[world.table.id]
            state.tables[world.table.id] = replace(record, truncate_count=record.truncate_count + 1)

    await repaired_once(world, "source.rows", deleted_and_purged)
    assert ("8",) not in world.rows()


@played
async def test_a_row_whose_position_changed_is_not_written(world: ComparedWorld) -> None:
    await damaged(world)

    async def changes() -> None:
        world.change("1", title="newer than what was read")
        await world.turn()

    await repaired_once(world, "source.rows", changes)
    assert world.rows()["1",] == world.source.current("articles")["1",]


@pytest.mark.parametrize("key", ["1", "8"])
@played
async def test_a_row_that_was_deleted_is_not_brought_back(world: ComparedWorld, key: str) -> None:
    """One that was live when the repair read it, and one that was absent."""
    await damaged(world)

    async def deletes() -> None:
        world.delete(key)
        await world.turn()

    await repaired_once(world, "source.rows", deletes)
    assert (key,) not in world.rows()


@played
async def test_a_row_that_was_made_again_is_not_buried(world: ComparedWorld) -> None:
    await damaged(world)

    async def makes_again() -> None:
        world.insert("2", title="made again")
        await world.turn()

    await repaired_once(world, "source.rows", makes_again)
    assert world.rows()["2",] == world.source.current("articles")["2",]


@played
async def test_after_a_truncate_nothing_is_written(world: ComparedWorld) -> None:
    """A missing row is absent before and after; only the count tells."""
    await damaged(world)

    async def truncates() -> None:
        world.truncate()
        await world.turn()

    await repaired_once(world, "source.rows", truncates)
    assert world.rows() == {}


@played
async def test_an_event_that_is_still_to_come_beats_a_repair(world: ComparedWorld) -> None:
    """A repair keeps the position, and has none for a row that was absent: whatever comes later is newer."""
    await damaged(world)

    async def changes_unapplied() -> None:
        world.is_applying = False
        world.change("1", title="to come")
        world.change("8", title="to come")
        world.insert("2", title="to come")
        world.later(0.5, applies)

    def applies() -> None:
        world.is_applying = True

    await repaired_once(world, "source.rows", changes_unapplied)
    world.check()


# --- every point


def updates(world: ComparedWorld) -> None:
    world.change("1", title="once more", unavailable=("body", "tenant"))
    world.change("8", views="800", unavailable=("title", "body"))


def deletes(world: ComparedWorld) -> None:
    world.delete("1")
    world.delete("8")


def makes_again(world: ComparedWorld) -> None:
    deletes(world)
    world.insert("1")
    world.insert("8", title="again")
    world.insert("2")


def truncates(world: ComparedWorld) -> None:
    world.truncate()
    world.insert("1", title="after the truncate")


def commits_unseen(world: ComparedWorld) -> None:
    tx = world.source.begin()
    tx.update("articles", "1", title="not seen yet", unavailable=("body",))
    tx.delete("articles", "8")
    tx.insert("articles", id="2", **texts("2"))
    tx.write_commit()
    world.later(0.7, tx.show)


@pytest.mark.parametrize("act", [updates, deletes, makes_again, truncates, commits_unseen], ids=lambda a: a.__name__)
def test_whatever_happens_at_any_point_of_a_repair_the_replica_equals_the_source(act: Act) -> None:
    points: list[tuple[str, int]] = []
    landed: list[Landed] = []

    @played
    async def count(world: ComparedWorld) -> None:
        before: dict[str, int] = {}
        after: dict[str, int] = {}

        def tell(progress: Progress) -> None:
            if progress.stage == "repair" and not before:
                before.update(world.faults.calls)
            if progress.stage == "chunks" and not after:
                after.update(world.faults.calls)

        await damaged(world)
        await world.compare(tell=tell, repair=True, sample=0)
        for point, calls in after.items():
            if point.startswith(("source.", "capture.", "target.commit")):
                points.extend((point, n) for n in range(before.get(point, 0) + 1, calls + 1))

    @played
    async def happens(world: ComparedWorld, point: str, call: int) -> None:
        async def happen() -> None:
            act(world)
            await world.turn()

        world.faults.at(point, then(happen), call - world.faults.calls[point])
        await damaged(world)
        report = await world.compare(repair=True, sample=0)
        assert (report.comparison.state, report.comparison.open) == (State.CLEAN, {})
        await asyncio.sleep(1)
        await world.turn()
        world.check()
        landed.extend(world.faults.landed)

    count()
    for point, call in points:
        try:
            happens(point=point, call=call)
        except BaseException as error:
            error.add_note(f"at {point} #{call}")
            raise
    assert len(landed) > 10
