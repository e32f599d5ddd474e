"""A comparison finds what is wrong and nothing else, whatever happens beside it.

Each test is one directed sequence through the product's own comparison over in-memory twins, while connector, stream
and embedder go on. What is wrong was made so on purpose; what only moves, is on its way or waits must not be reported.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

import pytest

from daemon.core.comparison import Columns, State
from daemon.core.model import Key, Table
from daemon.procedures.compare import Report
from tests.fakes import then
from tests.fakes.faults import Landed
from tests.flow.compared_world import ComparedWorld, played, texts
from tests.flow.corruption import CHUNKS, ROWS, Fault, faults_of, orphan, spoil_chunks, spoil_row

PLANTED = "77"  # a key that the source does not have


def key_for(name: str) -> str:
    return PLANTED if name == "planted" else "1"


def assert_clean(report: Report) -> None:
    assert report.found == ()
    assert (report.comparison.state, report.comparison.unsettled) == (State.CLEAN, 0)


# --- what is wrong is found, and mended if asked to


@played
async def test_where_everything_agrees_nothing_is_found_and_nothing_is_written(world: ComparedWorld) -> None:
    before, calls = world.durable(), len(world.embedder.calls)
    report = await world.compare(repair=True, sample=0)
    assert_clean(report)
    assert report.is_finished and report.unfinished is None
    assert (report.comparison.rows, report.comparison.chunks, report.comparison.tokens) == (5, 10, 0)
    assert world.durable() == before
    assert len(world.embedder.calls) == calls


@pytest.mark.parametrize("name", ROWS)
@played
async def test_a_spoilt_row_is_found_by_its_kind_and_key(world: ComparedWorld, name: str) -> None:
    world.is_completing = False
    async with world.spoil() as state:
        expected = spoil_row(state, world, key_for(name), name)
    before = world.durable()
    report = await world.compare()
    assert faults_of(report.found) == {expected}
    assert report.comparison.state is State.DIFFERS
    assert report.comparison.open == {expected.kind: 1}
    assert world.durable() == before, "a comparison without repair wrote something"


@pytest.mark.parametrize("name", ROWS)
@played
async def test_a_spoilt_row_is_mended_and_no_other_is_touched(world: ComparedWorld, name: str) -> None:
    world.is_completing = False
    key = key_for(name)
    before = world.durable()
    async with world.spoil() as state:
        expected = spoil_row(state, world, key, name)
    report = await world.compare(repair=True)
    assert report.comparison.state is State.CLEAN
    assert report.comparison.repaired == {expected.kind: 1}
    world.check()
    after = world.durable()
    assert {k: v for k, v in after.items() if k != (key,)} == {k: v for k, v in before.items() if k != (key,)}
    assert_clean(await world.compare(by="second"))


@pytest.mark.parametrize("name", CHUNKS)
@played
async def test_a_spoilt_chunk_is_found_mended_and_no_other_is_touched(world: ComparedWorld, name: str) -> None:
    before = world.durable()
    async with world.spoil() as state:
        expected = spoil_chunks(state, world, "1", name)
    spoilt = world.durable()
    report = await world.compare()
    assert faults_of(report.found) == {expected}
    assert report.comparison.state is State.DIFFERS
    assert world.durable() == spoilt, "a comparison without repair wrote something"
    mended = await world.compare(by="second", repair=True)
    assert (mended.comparison.state, mended.comparison.repaired) == (State.CLEAN, {expected.kind: 1})
    world.check()
    after = world.durable()
    del before[("1",)], after[("1",)]
    assert after == before


@played
async def test_a_chunk_of_no_row_is_found_and_deleted(world: ComparedWorld) -> None:
    async with world.spoil() as state:
        expected = orphan(state, world)
    assert faults_of((await world.compare()).found) == {expected}
    before = world.durable()
    mended = await world.compare(by="second", repair=True)
    assert mended.comparison.repaired == {"chunk-orphan": 1}
    assert world.durable() == before
    world.check()


@pytest.mark.parametrize("name", ["other number", "other tenant", "lost"])
@played
async def test_a_row_and_a_chunk_of_it_are_mended_in_one_comparison(world: ComparedWorld, name: str) -> None:
    """Chunks of a row that differs are not judged until it is mended; then they must be."""
    async with world.spoil() as state:
        spoil_chunks(state, world, "1", "zero")
        spoil_row(state, world, "1", name)
    report = await world.compare(repair=True)
    world.check()
    assert report.comparison.state is State.CLEAN


@played
async def test_what_the_connector_lost_is_found_and_mended(world: ComparedWorld) -> None:
    world.insert("8")
    world.delete("0")
    world.change("1", title="newer")
    world.change("2", views="200")
    world.change("3", tenant="t3")
    world.loses()
    world.change("4", title="not lost")
    report = await world.compare()
    expected = {
        Fault("row-missing", ("8",)),
        Fault("row-extra", ("0",)),
        Fault("text-stale", ("1",)),
        Fault("metadata-stale", ("2",)),
        Fault("filter-stale", ("3",)),
    }
    assert faults_of(report.found) == expected
    positions = {key: world.replica_row(key).position for key in "0123"}
    mended = await world.compare(by="second", repair=True)
    assert mended.comparison.state is State.CLEAN
    world.check()
    assert world.replica_row("8").position is None
    assert {key: world.replica_row(key).position for key in "0123"} == positions, "a repair moved a position"
    assert not world.replica_row("0").live


# --- what only moves is not reported

Act = Callable[[ComparedWorld], None]


def updates(world: ComparedWorld) -> None:
    world.change("1", title="once more", tenant="t5")


def deletes(world: ComparedWorld) -> None:
    world.delete("1")
    world.delete("8")


def makes_again(world: ComparedWorld) -> None:
    """With the values that the replica had before."""
    deletes(world)
    world.insert("1")
    world.insert("8")
    world.insert("2")


def truncates(world: ComparedWorld) -> None:
    world.truncate()


def truncates_and_makes_again(world: ComparedWorld) -> None:
    world.truncate()
    world.insert("1")
    world.insert("8")


def changes_keys(world: ComparedWorld) -> None:
    tx = world.source.begin()
    tx.rekey("articles", "1", "2", unavailable=("body",))
    tx.rekey("articles", "8", "1", unavailable=("body", "tenant"))
    tx.commit()


def commits_but_is_not_seen(world: ComparedWorld) -> None:
    """The commit record is decoded, applied and embedded while the source's snapshots do not see it."""
    tx = world.source.begin()
    tx.update("articles", "1", title="not seen", tenant="t5")
    tx.delete("articles", "8")
    tx.insert("articles", id="2", **texts("2"))
    tx.write_commit()
    world.later(0.7, tx.show)


ACTS: list[Act] = [
    updates,
    deletes,
    makes_again,
    truncates,
    truncates_and_makes_again,
    changes_keys,
    commits_but_is_not_seen,
]
# Where the world may move: between two calls of the comparison, and between two of its transactions.
CALLS = ("source.", "capture.", "feed.")
POINTS = (*CALLS, "target.commit")


async def in_flight(world: ComparedWorld) -> None:
    """When the scans are planned an update, an insert and a delete have been committed; half a second they are held."""
    await world.turn()
    world.hold()
    world.change("1", title="in flight", views="11")
    world.insert("8")
    world.delete("2")
    world.later(0.5, world.release)


@played
async def test_rows_in_flight_are_suspects_and_no_difference(world: ComparedWorld) -> None:
    world.faults.at("source.bounds", then(lambda: in_flight(world)))
    report = await world.compare()
    world.faults.verify()
    assert world.faults.calls["source.digests"] > 0, "nothing was looked at again"
    assert_clean(report)


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
@pytest.mark.parametrize("is_applied", [True, False], ids=["applied at once", "applied later"])
def test_whatever_happens_at_any_point_to_rows_in_flight_they_are_no_difference(act: Act, is_applied: bool) -> None:
    points: list[tuple[str, int]] = []

    @played
    async def count(world: ComparedWorld) -> None:
        async def begin() -> None:
            await in_flight(world)
            before.update(world.faults.calls)

        before: dict[str, int] = {}
        world.faults.at("source.bounds", then(begin))
        await world.compare(sample=0)
        for point, calls in world.faults.calls.items():
            if point.startswith(POINTS if is_applied else CALLS):
                points.extend((point, n) for n in range(before.get(point, 0) + 1, calls + 1))

    @played
    async def happens(world: ComparedWorld, point: str, call: int) -> None:
        async def happen() -> None:
            if is_applied:
                world.release()
                await world.turn()
            act(world)
            if is_applied:
                await world.turn()

        world.faults.at("source.bounds", then(lambda: in_flight(world)))
        world.faults.at(point, then(happen), call - world.faults.calls[point])
        assert_clean(await world.compare(sample=0))
        await asyncio.sleep(1)
        await world.turn()
        world.check()
        landed.extend(fault for fault in world.faults.landed if fault.point == point)

    count()
    landed: list[Landed] = []
    for point, call in points:
        try:
            happens(point=point, call=call)
        except BaseException as error:
            error.add_note(f"at {point} #{call}")
            raise
    assert len(landed) > 10


@pytest.mark.parametrize("is_folded", [False, True])
@played
async def test_a_row_that_changes_all_the_time_is_settled_or_unsettled_but_no_difference(
    world: ComparedWorld, is_folded: bool
) -> None:
    """It changes before each look at the source, and the replica passes through what was read there; where it changes
    after it too and one window folds the two, it never does."""
    looked, number = world.source.digests, itertools.count()

    async def digests(table: Table, keys: Sequence[Key]) -> dict[Key, Columns]:
        world.change("1", title=f"hot {next(number)}")
        found = await looked(table, keys)
        if is_folded:
            world.change("1", title=f"hot {next(number)}")
        return found

    async def heats() -> None:
        await world.turn()
        world.hold()
        world.later(0.5, world.release)
        world.change("1", title="hot")

    world.source.digests = digests  # type: ignore[method-assign]
    world.faults.at("source.bounds", then(heats))
    report = await world.compare(sample=0)
    assert report.found == ()
    if not is_folded:
        assert_clean(report)
    else:
        assert next(number) > 20, "it was not looked at again and again"
        assert (report.comparison.state, report.comparison.unsettled) == (State.DIFFERS, 1)


@played
async def test_a_row_that_is_deleted_and_made_again_as_it_was_is_not_taken_for_standing_still(
    world: ComparedWorld,
) -> None:
    """Its values are the same in both looks, and differ from what the source had in between: its position does not."""
    world.change("1", title="lost")
    world.loses()

    async def makes_again() -> None:
        world.delete("1")
        world.insert("1")

    world.faults.at("source.digests", then(makes_again))
    assert_clean(await world.compare(sample=0))
    world.faults.verify()


@played
async def test_a_row_that_came_and_went_with_a_truncate_is_not_taken_for_standing_still(world: ComparedWorld) -> None:
    """It is absent in both looks; only the table's count of truncates tells."""
    world.faults.at("source.bounds", then(lambda: in_flight(world)))

    async def truncate() -> None:
        world.release()
        world.truncate()

    world.faults.at("source.digests", then(truncate))
    assert_clean(await world.compare(sample=0))
    world.faults.verify()


@played
async def test_what_the_sources_snapshots_do_not_show_yet_is_no_difference(world: ComparedWorld) -> None:
    tx = world.source.begin()
    tx.update("articles", "1", title="applied, not seen")
    tx.write_commit()
    world.later(3, tx.show)
    assert_clean(await world.compare(sample=0))
    assert world.faults.calls["source.digests"] > 1, "it was not looked at again"


@played
async def test_a_row_that_waits_for_its_completion_is_no_difference(world: ComparedWorld) -> None:
    async def rekeys() -> None:
        await world.turn()
        tx = world.source.begin()
        tx.rekey("articles", "1", "7", unavailable=("body",))
        tx.commit()
        world.is_completing = False
        await world.turn()
        world.later(2, complete)

    def complete() -> None:
        world.is_completing = True

    world.faults.at("source.bounds", then(rekeys))
    assert_clean(await world.compare(sample=0))
    assert world.faults.calls["source.digests"] > 1, "it was not looked at again"


@played
async def test_work_that_waits_is_no_difference(world: ComparedWorld) -> None:
    world.is_embedding = False
    world.change("1", title="not embedded", body="yet")
    world.insert("8")
    assert_clean(await world.compare(sample=0))
    async with world.spoil() as state:
        expected = spoil_chunks(state, world, "1", "zero")
    assert faults_of((await world.compare(sample=0)).found) == {expected}, "what contradicts itself is no waiting work"


@played
async def test_vectors_that_are_wrong_alike_are_said_to_be_wrong_once(world: ComparedWorld) -> None:
    async with world.spoil() as state:
        expected = {spoil_chunks(state, world, key, "zero") for key in "123"}
    assert faults_of((await world.compare()).found) == expected
