"""What the in-memory source, connector and feed keep of the real ones: the flow's tests rest on it.

Each claim is one that DESIGN.md states of Postgres, Debezium or Kafka; without it a history would not be hard.
"""

from __future__ import annotations

import asyncio

import pytest

from daemon.core.model import UNAVAILABLE, Op, Position
from daemon.errors import OffsetsGone, UndecodableEvent
from daemon.ports import Polled
from tests import builders
from tests.fakes import (
    FaultMissed,
    Faults,
    MemoryBroker,
    MemoryCapture,
    MemoryConnector,
    MemoryDecoder,
    MemoryFeed,
    MemorySource,
    UniqueViolation,
    refuse,
)

TABLE = builders.articles()
A = {"title": "A", "body": "a", "tenant": "t1", "views": "1"}


@pytest.fixture
def source() -> MemorySource:
    made = MemorySource([TABLE])
    made.seed("articles", {"id": "9", **A}, {"id": "10", **A})
    return made


@pytest.fixture
def connector(source: MemorySource) -> MemoryConnector:
    return MemoryConnector(source, MemoryBroker([TABLE], partitions=2))


async def everything(connector: MemoryConnector) -> Polled:
    feed = MemoryFeed(connector.broker)
    await feed.seek(dict.fromkeys(connector.broker.places(), 0))
    return await feed.poll(1000, 0)


async def test_pages_follow_the_keys_own_order_and_end_where_they_should(source: MemorySource) -> None:
    first = await source.page(TABLE, None, None, 1)
    assert [r.key for r in first.rows] == [("9",)] and first.last == ("9",)
    rest = await source.page(TABLE, first.last, None, 5)
    assert [r.key for r in rest.rows] == [("10",)] and rest.last is None
    assert [r.key for r in (await source.page(TABLE, None, ("9",), 5)).rows] == [("9",)]


async def test_a_written_commit_is_in_the_log_before_snapshots_see_it(source: MemorySource) -> None:
    tx = source.begin()
    tx.update("articles", "9", title="B")
    tx.write_commit()
    assert [r.kind for r in source.log] == ["u"]
    rows, snapshot = await source.rows(TABLE, [("9",)])
    assert rows["9",].values[1] == "A" and not snapshot.sees(tx.xid)
    tx.show()
    rows, snapshot = await source.rows(TABLE, [("9",)])
    assert rows["9",].values[1] == "B" and snapshot.sees(tx.xid)


async def test_xmax_is_the_last_completed_transaction_plus_one(source: MemorySource) -> None:
    open_tx = source.begin()
    open_tx.update("articles", "9", title="B")
    snapshot = await source.snapshot()
    assert snapshot.xmin == snapshot.xmax == open_tx.xid
    xid = await source.own_xid()
    snapshot = await source.snapshot()
    assert (snapshot.xmin, snapshot.xmax) == (open_tx.xid, xid + 1)


async def test_an_insert_takes_its_lsn_before_it_waits(source: MemorySource) -> None:
    holder, waiter = source.begin(), source.begin()
    holder.delete("articles", "9")
    assert not waiter.insert("articles", id="9", **A)
    holder.insert("articles", id="9", **A)
    holder.delete("articles", "9")
    holder.commit()
    assert waiter.resume()
    waiter.commit()
    assert [r.kind for r in source.log] == ["d", "c", "d", "c"]
    assert source.log[3].lsn < source.log[2].lsn
    assert source.log[3].previous_commit > source.log[2].previous_commit


async def test_an_insert_of_a_key_that_stays_is_rolled_back(source: MemorySource) -> None:
    tx = source.begin()
    tx.delete("articles", "10")
    with pytest.raises(UniqueViolation):
        tx.insert("articles", id="9", **A)
    assert set(source.current("articles")) == {("9",), ("10",)} and not source.log


async def test_a_page_waits_for_a_truncates_lock(source: MemorySource) -> None:
    tx = source.begin()
    tx.truncate("articles")
    page = asyncio.create_task(source.page(TABLE, None, None, 5))
    await asyncio.sleep(0)
    assert not page.done()
    tx.commit()
    assert (await page).rows == ()


async def test_a_key_change_is_a_delete_a_tombstone_and_a_create_of_one_lsn(
    source: MemorySource, connector: MemoryConnector
) -> None:
    tx = source.begin()
    tx.rekey("articles", "9", "11", unavailable=("body",))
    tx.commit()
    connector.deliver()
    decoder = MemoryDecoder(connector.broker, epoch=3)
    records = (await everything(connector)).records
    assert [r.value is None for r in records] == [False, True, False]
    gone, _, made = (decoder.decode(r) for r in records)
    assert gone.op is Op.DELETE and made.op is Op.CREATE  # type: ignore[union-attr]
    assert gone.origin.position == made.origin.position == Position(3, 0, source.log[0].lsn)  # type: ignore[union-attr]
    assert made.after == ("11", "A", UNAVAILABLE, "t1", "1")  # type: ignore[union-attr]
    assert made.origin.xid == tx.xid - (1 << 32)  # type: ignore[union-attr]


async def test_the_committed_offset_stays_behind_the_oldest_record_on_its_way(
    source: MemorySource, connector: MemoryConnector
) -> None:
    for key in ("9", "10"):
        tx = source.begin()
        tx.update("articles", key, title="B")
        tx.commit()
    capture = MemoryCapture(connector)
    connector.submit()
    connector.ack(connector.place(source.log[1]))
    connector.flush()
    assert await capture.committed_lsn() is None
    connector.ack(connector.place(source.log[0]))
    connector.flush()
    assert await capture.committed_lsn() == source.log[1].lsn


async def test_a_restart_sends_again_and_the_abandoned_producer_may_still_deliver(
    source: MemorySource, connector: MemoryConnector
) -> None:
    for title in ("B", "C"):
        tx = source.begin()
        tx.update("articles", "9", title=title)
        tx.commit()
    connector.submit()
    at = connector.place(source.log[0])
    connector.ack(at, 1)
    connector.restart(abandon=True)
    connector.deliver()
    connector.deliver_abandoned()
    decoder = MemoryDecoder(connector.broker)
    events = [decoder.decode(r) for r in (await everything(connector)).records]
    assert [(e.after[1], e.origin.run_id) for e in events] == [  # type: ignore[union-attr, index]
        ("B", "run-1"),
        ("B", "run-2"),
        ("C", "run-2"),
        ("C", "run-1"),
    ]


async def test_a_poll_delivers_no_more_than_asked_and_passes_markers(
    source: MemorySource, connector: MemoryConnector
) -> None:
    for title in ("B", "C"):
        tx = source.begin()
        tx.update("articles", "9", title=title)
        tx.commit()
    connector.deliver()
    at = connector.place(source.log[0])
    connector.broker.marker(at)
    feed = MemoryFeed(connector.broker)
    await feed.seek({at: 0})
    one = await feed.poll(1, 0)
    assert len(one.records) == 1 and one.next_offsets == {at: 1}
    two = await feed.poll(5, 0)
    assert len(two.records) == 1 and two.next_offsets == {at: 3}
    assert (await feed.poll(5, 0)).next_offsets == {}


async def test_offsets_that_retention_took_are_gone(source: MemorySource, connector: MemoryConnector) -> None:
    tx = source.begin()
    tx.update("articles", "9", title="B")
    tx.commit()
    connector.deliver()
    at = connector.place(source.log[0])
    feed = MemoryFeed(connector.broker)
    await feed.seek({at: 0})
    connector.broker.trim(at, 1)
    with pytest.raises(OffsetsGone, match=r"kept are 1\.\.1"):
        await feed.poll(1, 0)
    with pytest.raises(OffsetsGone, match="offset 2"):
        await feed.seek({at: 2})


async def test_a_record_that_cannot_be_read_is_refused(connector: MemoryConnector) -> None:
    connector.garbage("articles")
    (record,) = (await everything(connector)).records
    with pytest.raises(UndecodableEvent, match="unreadable"):
        MemoryDecoder(connector.broker).decode(record)


async def test_a_scripted_fault_that_does_not_land_is_an_error(source: MemorySource) -> None:
    with pytest.raises(FaultMissed, match=r"refuse at source\.snapshot #2"), Faults() as script:
        script.at("source.snapshot", refuse(), call=2)
        await script.wrap("source", source).snapshot()
