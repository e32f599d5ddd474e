"""Histories that lose, revive or mix up a row under a weaker wording of "replicate": start, stream, pages, fills.

Each test is one directed sequence through the product's own start, stream and backfill over in-memory twins. It ends
with everything drained and the replica compared with the source. The number is the history's; the clause that closes
it is named in the test.
"""

from __future__ import annotations

import pytest

from daemon.core.model import UNAVAILABLE
from daemon.errors import LeaseLost
from tests import builders
from tests.fakes import then
from tests.flow.world import World

A = {"title": "A", "body": "a body", "tenant": "t1", "views": "1"}
B = {"title": "B", "body": "b body", "tenant": "t2", "views": "2"}
X = {"title": "X", "body": "x body", "tenant": "t1", "views": "3"}


@pytest.fixture
async def world() -> World:
    """Rows 0 = A and 1 = B in the source from before its log begins; nothing has started."""
    opened = await World().open()
    opened.source.seed("articles", {"id": "0", **A}, {"id": "1", **B})
    return opened


async def started(world: World) -> World:
    await world.begin()
    await world.copy()
    return world


async def test_1_start_waits_for_a_commit_that_is_in_kafka_but_not_yet_visible(world: World) -> None:
    """Own xid after the barrier, then xmin beyond it: a snapshot's own xmax is not enough."""
    late = world.source.begin()
    late.update("articles", "0", **X)
    late.write_commit()
    world.connector.deliver()  # below the recorded end offsets
    waited = False

    async def appears(seconds: float) -> None:
        nonlocal waited
        if not waited:
            waited = True
            late.show()

    world.clock.sleep = appears  # type: ignore[method-assign]
    await started(world)
    assert waited, "the start did not wait for the transaction"
    await world.follow(world.stream())
    assert world.rows()["0",] == ("0", *X.values())
    await world.settle()
    world.check()


@pytest.mark.parametrize("xid", ["older", "fresh"])
@pytest.mark.parametrize("point", ["feed.ends", "source.emit", "source.own_xid", "source.snapshot"])
async def test_1_a_commit_at_any_point_of_the_start_is_seen_by_pages_or_stream(
    world: World, point: str, xid: str
) -> None:
    """End offsets, barrier, own xid, wait: in this order. The commit is in Kafka at once and visible late."""
    late = world.source.begin()
    if xid == "older":
        late.update("articles", "0", **X)

    async def commits() -> None:
        if not late.xid:
            late.update("articles", "0", **X)
        late.write_commit()
        world.connector.deliver()

    async def appears(seconds: float) -> None:
        late.show()

    world.clock.sleep = appears  # type: ignore[method-assign]
    world.faults.at(point, then(commits))
    await started(world)
    world.faults.verify()
    if late.xid in world.source.active:
        late.show()
    await world.settle()
    world.check()


@pytest.mark.parametrize("kind", ["row", "truncate"])
async def test_2_a_duplicate_from_before_the_start_does_not_beat_copied_rows(world: World, kind: str) -> None:
    """Events below the table's floor are skipped, whatever the row: every page has seen them."""
    tx = world.source.begin()
    if kind == "row":
        tx.insert("articles", id="2", **X)
    else:
        tx.truncate("articles")
    tx.commit()
    again = world.source.log[-1]
    after = world.source.begin()
    if kind == "row":
        after.delete("articles", "2")
    else:
        after.insert("articles", id="0", **A)
    after.commit()
    world.connector.deliver()
    await started(world)
    world.connector.redeliver(again, run_id="abandoned")
    stream = world.stream()
    await world.follow(stream)
    assert world.rows() == world.source.current("articles")
    await world.settle()
    world.check()


@pytest.mark.parametrize("point", ["feed.ends", "source.emit", "source.own_xid"])
async def test_2_a_duplicate_of_what_came_and_went_during_the_start_does_not_bring_it_back(
    world: World, point: str
) -> None:
    """The end offsets come first: what commits above the floor is read by the stream, which then knows its copies."""

    async def comes_and_goes() -> None:
        made, gone = world.source.begin(), world.source.begin()
        made.insert("articles", id="2", **X)
        made.commit()
        gone.delete("articles", "2")
        gone.commit()
        world.connector.deliver()

    world.faults.at(point, then(comes_and_goes))
    await started(world)
    world.faults.verify()
    stream = world.stream()
    await world.follow(stream)
    create = next(record for record in world.source.log if (record.key, record.kind) == (("2",), "c"))
    world.connector.redeliver(create, run_id="abandoned")
    await world.follow(stream)
    assert ("2",) not in world.rows(), "a row that is deleted came back"
    await world.settle()
    world.check()


async def test_3_an_event_without_previous_commit_is_older_than_every_truncate(world: World) -> None:
    """A null sequence[0] counts as 0, smaller than every position: never "when in doubt apply"."""
    first = world.source.begin()
    first.insert("articles", id="3", **X)  # partition 1; the truncate goes to partition 0
    first.commit()
    assert world.source.log[0].previous_commit == 0
    world.connector.is_paused = True
    await started(world)
    gone = world.source.begin()
    gone.truncate("articles")
    gone.commit()
    world.connector.is_paused = False
    world.connector.deliver()
    feed = world.feed()
    feed.hold([world.place("3")])
    stream = world.stream(feed=feed)
    await world.read(stream)
    assert world.rows() == {}
    feed.release()
    await world.read(stream)
    assert world.rows() == {}
    await world.settle()
    world.check()


async def test_3_an_event_that_is_read_after_a_later_truncate_is_older_than_it(world: World) -> None:
    await started(world)
    tx = world.source.begin()
    tx.insert("articles", id="3", **X)
    tx.commit()
    gone = world.source.begin()
    gone.truncate("articles")
    gone.commit()
    world.connector.deliver()
    feed = world.feed()
    feed.hold([world.place("3")])
    stream = world.stream(feed=feed)
    await world.read(stream)
    feed.release()
    await world.read(stream)
    assert world.rows() == {}
    await world.settle()
    world.check()


async def test_4_a_create_of_a_live_row_keeps_no_old_column(world: World) -> None:
    """A create replaces the row: its unavailable columns become missing, and old text is not searchable."""
    await started(world)
    await world.embed()
    stream = world.stream()
    one = world.source.begin()
    one.update("articles", "1", **X)
    one.commit()
    await world.follow(stream)
    await world.embed()
    gone = world.source.begin()
    gone.truncate("articles")
    gone.commit()
    made = world.source.begin()
    made.insert("articles", id="2", **B)
    made.commit()
    moved = world.source.begin()
    moved.rekey("articles", "2", "1", unavailable=("body",))
    moved.commit()
    world.connector.deliver()
    feed = world.feed()
    feed.hold([world.place("0")])  # the truncate is in partition 0, key 1 is ahead of it
    ahead = world.stream("s1", feed)
    await world.read(ahead)
    assert world.rows()["1",][2] is UNAVAILABLE, "the body of the row before the truncate survives"
    assert world.chunks().get(("1",)) is None
    feed.release()
    await world.read(ahead)
    await world.settle()
    world.check()


async def test_5_a_page_from_before_the_row_was_made_fills_nothing(world: World) -> None:
    """A page fills only what its own snapshot could know: it must see the event that left columns missing."""
    await world.begin()
    backfill = world.backfill()
    page = await backfill.read()  # 0 = A, 1 = B
    assert page is not None and len(page.page.rows) == 2
    dead = world.source.begin()
    dead.delete("articles", "0")
    dead.commit()
    moved = world.source.begin()
    moved.rekey("articles", "1", "0", unavailable=("body", "tenant"))
    moved.commit()
    await world.follow(world.stream())
    assert await backfill.write(page)
    assert world.rows()["0",][2] is UNAVAILABLE, "the page filled the body of a row that is deleted"
    await world.settle()
    world.check()


async def test_5_a_young_page_fills_missing_columns_and_nothing_else(world: World) -> None:
    await world.begin()
    first = world.source.begin()
    first.update("articles", "0", title="t1", unavailable=("body",))
    first.commit()
    stream = world.stream()
    await world.follow(stream)
    backfill = world.backfill()
    page = await backfill.read()  # sees t1
    assert page is not None
    second = world.source.begin()
    second.update("articles", "0", title="t2", unavailable=("body",))
    second.commit()
    await world.follow(stream)
    assert await backfill.write(page)
    assert world.rows()["0",][1:3] == ("t2", "a body")
    await world.settle()
    world.check()


async def test_5_a_completion_across_a_delete_and_a_create_fills_nothing(world: World) -> None:
    """The value that was read belonged to a row that is gone by the time it is written."""
    await started(world)
    stream = world.stream()

    async def apply(*moves: tuple[str, str] | str) -> None:
        for move in moves:
            tx = world.source.begin()
            if isinstance(move, tuple):
                tx.rekey("articles", *move, unavailable=("body",))
            else:
                tx.delete("articles", move)
            tx.commit()
        await world.follow(stream)

    await apply("0", ("1", "0"))
    assert world.rows()["0",][2] is UNAVAILABLE

    async def changes() -> None:
        await apply("0")
        tx = world.source.begin()
        tx.insert("articles", id="1", **A)
        tx.commit()
        await apply(("1", "0"))

    world.faults.at("source.rows", then(changes))
    await world.completion().step(world.table)
    world.faults.verify()
    assert world.rows()["0",][2] is UNAVAILABLE, "filled from the row that was deleted"
    await world.settle()
    world.check()


async def test_5_a_completion_that_does_not_see_the_event_yet_fills_nothing(world: World) -> None:
    await started(world)
    stream = world.stream()
    tx = world.source.begin()
    tx.delete("articles", "0")
    tx.rekey("articles", "1", "0", unavailable=("body",))
    tx.write_commit()
    await world.follow(stream)
    await world.completion().step(world.table)
    assert world.rows()["0",][2] is UNAVAILABLE, "filled from a snapshot that does not see the row"
    tx.show()
    assert await world.completion().step(world.table) == 1
    await world.settle()
    world.check()


async def test_7_a_duplicate_in_a_window_hides_no_old_column_behind_a_new_position(world: World) -> None:
    """The window drops every event at or below the stored position before it merges the rest."""
    await started(world)
    stream = world.stream()
    one = world.source.begin()
    one.update("articles", "0", body="body 1")
    one.commit()
    duplicate = world.source.log[-1]
    two = world.source.begin()
    two.update("articles", "0", body="body 2")
    two.commit()
    await world.follow(stream)
    world.connector.redeliver(duplicate, run_id="abandoned")
    three = world.source.begin()
    three.update("articles", "0", views="9", unavailable=("body",))
    three.commit()
    await world.follow(stream)
    assert world.rows()["0",] == ("0", "A", "body 2", "t1", "9")
    await world.settle()
    world.check()


async def test_changes_of_a_key_in_one_window_are_merged_column_by_column(world: World) -> None:
    """An unavailable column never overwrites what an earlier change of the window brought."""
    await started(world)
    first = world.source.begin()
    first.update("articles", "0", body="body 1", tenant="t9")
    first.commit()
    second = world.source.begin()
    second.update("articles", "0", views="9", unavailable=("body",))
    second.commit()
    await world.follow(world.stream())
    assert world.rows()["0",] == ("0", "A", "body 1", "t9", "9")
    await world.settle()
    world.check()


async def test_a_delete_above_a_create_of_lower_lsn_is_followed_in_offset_order(world: World) -> None:
    """An INSERT takes its LSN before it waits for the unique index: LSNs alone do not order a key's changes."""
    await started(world)
    holder, waiter = world.source.begin(), world.source.begin()
    holder.update("articles", "0", title="held")
    assert not waiter.insert("articles", id="0", **X)
    holder.delete("articles", "0")
    holder.commit()
    assert waiter.resume()
    waiter.commit()
    log = [r for r in world.source.log if r.key == ("0",)]
    assert log[-1].kind == "c" and log[-1].lsn < log[-2].lsn
    await world.follow(world.stream())
    assert world.rows()["0",] == ("0", *X.values())
    await world.settle()
    world.check()


async def test_a_late_page_does_not_bring_a_deleted_row_back(world: World) -> None:
    """A delete leaves a row tombstone, also of a row that no page has copied yet."""
    await world.begin()
    backfill = world.backfill()
    page = await backfill.read()
    assert page is not None
    tx = world.source.begin()
    tx.delete("articles", "0")
    tx.commit()
    await world.follow(world.stream())
    assert await backfill.write(page)
    assert ("0",) not in world.rows()
    await world.settle()
    world.check()


async def test_a_page_from_before_a_truncate_is_dropped_and_read_again(world: World) -> None:
    await world.begin()
    backfill = world.backfill()
    page = await backfill.read()
    assert page is not None
    tx = world.source.begin()
    tx.truncate("articles")
    tx.commit()
    await world.follow(world.stream())
    assert not await backfill.write(page), "a page from before the truncate was written"
    assert world.rows() == {}
    await world.settle()
    world.check()


async def test_a_range_that_was_taken_over_is_not_written_by_its_old_owner(world: World) -> None:
    await world.begin()
    slow, fast = world.backfill("slow", page_rows=1), world.backfill("fast")
    page = await slow.read()
    assert page is not None
    world.clock.advance(world.limits.lease_s + 1)
    await world.copy(fast)
    tx = world.source.begin()
    tx.delete("articles", "0")
    tx.commit()
    assert not await slow.write(page)
    await world.settle()
    world.check()


async def test_a_zombie_stream_writes_nothing_after_a_takeover(world: World) -> None:
    """The lease number guards the checkpoint: the old owner's open window is dropped whole."""
    await started(world)
    old, new = world.stream("old"), world.stream("new")
    assert await old.take_over()
    tx = world.source.begin()
    tx.update("articles", "0", **X)
    tx.commit()
    world.connector.deliver()
    world.clock.advance(world.limits.lease_s + 1)
    old.renew_at = world.clock() + 1000  # it believes in its lease
    assert await new.take_over()
    before = world.database.state.rows
    with pytest.raises(LeaseLost):
        await old.step()
    assert world.database.state.rows == before
    await world.read(new)
    assert world.rows()["0",] == ("0", *X.values())
    await world.settle()
    world.check()


async def test_a_key_that_a_page_inserts_during_the_window_is_decided_again(world: World) -> None:
    """The page's insert comes between the window's lock and its own insert: the event wins all the same."""
    await world.begin()
    backfill = world.backfill()
    page = await backfill.read()
    assert page is not None
    tx = world.source.begin()
    tx.update("articles", "0", **X)
    tx.commit()
    world.connector.deliver()
    stream = world.stream()
    assert await stream.take_over()
    world.intrude(page.page.rows[0])
    await world.read(stream)
    assert not world.database.intrusions
    assert world.rows()["0",] == ("0", *X.values())
    assert await backfill.write(page)
    await world.settle()
    world.check()


async def test_transaction_markers_move_the_checkpoint_past_the_last_record(world: World) -> None:
    await started(world)
    tx = world.source.begin()
    tx.update("articles", "0", **X)
    tx.commit()
    world.connector.deliver()
    world.broker.marker(world.place("0"))
    await world.read(world.stream())
    checkpoint = world.database.state.checkpoints[world.place("0")]
    assert checkpoint.next_offset == world.broker.end(world.place("0"))


async def test_3_an_event_without_a_preceding_commit_is_a_break_also_after_a_restart_of_ours(world: World) -> None:
    """It lies below the floor and is skipped as a duplicate: unless it is said, it is lost in silence."""
    await started(world)
    stream = world.stream("after the restart")
    await stream.take_over()
    event = builders.create("7", world.source.lsn + 100, commit=0)
    at = next(iter(stream.offsets))
    await stream.apply(stream.window([event], {at: stream.offsets[at] + 1}))
    async with world.target().begin() as tx:
        assert [b.id for b in await tx.ledger.breaks()] == ["null-sequence"]
    assert ("7",) not in world.rows()
