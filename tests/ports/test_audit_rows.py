"""What a comparison reads of rows on either side: who differs, who is there, and how a row looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest

from daemon.core.comparison import Columns, Judgement, Kind, ReplicaLook, confirm
from daemon.core.model import UNAVAILABLE, WriteKind
from daemon.ports import KeyPage
from tests import builders
from tests.ports.sides import Sides

pytestmark = pytest.mark.system

DEADLINE_S = 60.0
DDL = """CREATE TABLE app.t (id int PRIMARY KEY, title text, body text);
         INSERT INTO app.t SELECT n, 'title ' || n, 'body ' || n FROM generate_series(1, 10) n"""


@pytest.fixture
async def sides(dsn: str, database: Callable[[], str]) -> AsyncIterator[Sides]:
    """Ten rows, copied."""
    async with Sides.open(database(), dsn, DDL) as sides:
        await sides.copy()
        yield sides


async def waits_for_a_lock(connection: psycopg.Connection) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    deadline = time.monotonic() + DEADLINE_S
    while not (connection.execute(query).fetchone() or (0,))[0]:
        assert time.monotonic() < deadline, "nobody waits for a lock"
        await asyncio.sleep(0.01)


# --- who differs


async def test_absent_dead_incomplete_and_different_rows_differ_and_no_other(sides: Sides) -> None:
    await sides.write(WriteKind.BURY, ("2",), None)
    await sides.write(WriteKind.UPDATE, ("3",), ("3", "title 3", "body 3"))  # equal, though it was written again
    await sides.write(WriteKind.REPLACE, ("4",), ("4", "title 4", UNAVAILABLE))
    await sides.write(WriteKind.UPDATE, ("6",), ("6", "title 6", "Body 6"))
    await sides.write(WriteKind.INSERT, ("11",), ("11", "only", "there"))
    sides.there.execute("DELETE FROM shop.t WHERE id = 5")
    sides.there.execute("UPDATE shop.t SET body = NULL WHERE id = 7")
    # What a row tombstone or an incomplete row holds beside does not make it equal.
    sides.there.execute("UPDATE shop.t SET title = 'title 2', body = 'body 2' WHERE id = 2")
    sides.there.execute("UPDATE shop.t SET body = 'body 4' WHERE id = 4")
    for limit in (1, 3, 10, 1000):
        assert await sides.differing(limit) == [("2",), ("4",), ("5",), ("6",), ("7",)]
        assert await sides.extra(limit) == [("11",)]


async def test_a_row_that_came_and_one_that_went_at_the_source_are_found(sides: Sides) -> None:
    sides.app.execute("DELETE FROM app.t WHERE id = 10; INSERT INTO app.t VALUES (0, NULL, '')")
    sides.app.execute("UPDATE app.t SET title = NULL WHERE id = 9")
    assert await sides.differing(4) == [("0",), ("9",)]
    assert await sides.extra(4) == [("10",)]


async def test_a_page_begins_after_its_lower_and_ends_at_its_upper_key(sides: Sides) -> None:
    pages = await sides.pages(2, after=("2",), upto=("7",))
    assert sides.read(pages) == [("3",), ("4",), ("5",), ("6",), ("7",)]
    assert [(page.rows, page.last) for page in pages] == [(2, ("4",)), (2, ("6",)), (1, None)]
    assert (await sides.pages(5, after=("2",), upto=("7",)))[0].last == ("7",)


# --- who is there


async def test_pages_of_keys_have_live_rows_only_and_follow_row_ids(sides: Sides) -> None:
    await sides.write(WriteKind.BURY, ("2",), None)
    await sides.write(WriteKind.REPLACE, ("3",), ("3", UNAVAILABLE, "b"))
    await sides.write(WriteKind.BURY, ("12",), None)  # leaves a tombstone with the highest row id
    stored = "SELECT id::text, _row_id FROM shop.t ORDER BY _row_id"
    *row_ids, (last_key, highest) = sides.there.execute(stored).fetchall()
    keys = [(key,) for key, _ in row_ids if key != "2"]
    assert (last_key, len(keys)) == ("12", 9)
    fourth = dict(row_ids)[keys[3][0]]
    async with sides.target.begin() as tx:
        assert await tx.audit.last_row(sides.table) == highest
        first, last = await tx.audit.keys_page(sides.table, 0, 4)
        rest, end = await tx.audit.keys_page(sides.table, fourth, 100)
        assert await tx.audit.keys_page(sides.table, highest, 5) == (KeyPage(0, ("{}",)), None)
    assert (sides.read([first]), last) == (keys[:4], fourth)
    assert (sides.read([rest]), end) == (keys[4:], None)


# --- how a row looks


async def test_looks_tell_live_dead_and_incomplete_rows_with_position(sides: Sides) -> None:
    await sides.write(WriteKind.BURY, ("2",), None, lsn=200)
    await sides.write(WriteKind.REPLACE, ("3",), ("3", UNAVAILABLE, "b"), lsn=300)
    looks = await sides.looks([("1",), ("2",), ("3",), ("99",)])
    row_ids = dict(sides.there.execute("SELECT id::text, _row_id FROM shop.t").fetchall())
    theirs = await sides.digests([("1",), ("3",), ("99",)])
    assert theirs.keys() == {("1",), ("3",)}
    assert looks.keys() == {("1",), ("2",), ("3",)}
    assert looks["1",] == ReplicaLook(row_ids["1"], True, None, frozenset(), theirs["1",])
    assert (looks["2",].live, looks["2",].position, looks["2",].row_id) == (
        False,
        builders.position(200),
        row_ids["2"],
    )
    assert (looks["3",].live, looks["3",].position, looks["3",].missing) == (
        True,
        builders.position(300),
        frozenset({"title"}),
    )
    assert await sides.looks([]) == {}
    assert await sides.digests([]) == {}


async def test_digests_of_both_sides_lead_to_the_right_judgement(sides: Sides) -> None:
    sides.there.execute("UPDATE shop.t SET title = 'other' WHERE id = 1; DELETE FROM shop.t WHERE id = 2")
    sides.app.execute("DELETE FROM app.t WHERE id = 3")
    keys = [("1",), ("2",), ("3",), ("4",)]
    looks, theirs = await sides.looks(keys), await sides.digests(keys)

    def judged(key: str) -> tuple[Judgement, tuple[Kind, ...]]:
        columns: Columns | None = theirs.get((key,))
        return confirm(sides.table, looks.get((key,)), columns, looks.get((key,)))

    assert judged("1") == (Judgement.DIFFERS, (Kind.METADATA_STALE,))
    assert judged("2") == (Judgement.DIFFERS, (Kind.ROW_MISSING,))
    assert judged("3") == (Judgement.DIFFERS, (Kind.ROW_EXTRA,))
    assert judged("4") == (Judgement.AGREES, ())


# --- beside others


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_page_waits_for_a_truncate_and_reads_what_it_leaves(sides: Sides, is_committed: bool) -> None:
    with psycopg.connect(sides.app.info.dsn, password=sides.app.info.password) as writer:
        writer.execute("TRUNCATE app.t; INSERT INTO app.t VALUES (50, 'after', 'it')")
        pages = asyncio.create_task(sides.pages(3))
        await waits_for_a_lock(sides.app)
        if is_committed:
            writer.commit()
        else:
            writer.rollback()
    assert sides.read(await pages) == ([("50",)] if is_committed else [(str(n),) for n in range(1, 11)])


async def test_a_read_takes_no_lock_that_a_writer_waits_for(sides: Sides) -> None:
    (page,) = await sides.pages(100)
    with psycopg.connect(sides.there.info.dsn, password=sides.there.info.password) as writer:
        writer.execute("LOCK TABLE shop.t IN EXCLUSIVE MODE; UPDATE shop.t SET title = 'x' WHERE id = 1")
        async with asyncio.timeout(DEADLINE_S), sides.target.begin() as tx:
            assert await tx.audit.differing(sides.table, page) == []
            assert (await tx.audit.keys_page(sides.table, 0, 100))[0].rows == 10


# --- plans


async def test_no_page_reads_a_whole_table(dsn: str, database: Callable[[], str]) -> None:
    """A page of a fifth of the table is where a join would rather read all of it; statistics are fresh and exact."""
    ddl = """CREATE TABLE app.t (id int PRIMARY KEY, title text);
             INSERT INTO app.t SELECT n, 'title ' || n FROM generate_series(1, 5000) n; ANALYZE app.t"""
    async with Sides.open(database(), dsn, ddl) as sides:
        await sides.copy()
        sides.there.execute("ANALYZE shop.t")
        page = await sides.source.digest_page(sides.table, None, None, 1000)
        assert page.last is not None
        async with sides.target.begin() as tx:
            keys, _ = await tx.audit.keys_page(sides.table, 0, 1000)
            assert await tx.audit.differing(sides.table, page) == []
            assert (await tx.audit.looks(sides.table, sides.read([keys]))).keys() == set(sides.read([keys]))
        assert await sides.source.absent(sides.table, keys) == []
        assert (await sides.digests(sides.read([keys]))).keys() == set(sides.read([keys]))
        await sides.source.close()
        await sides.target.close()
        await reads_by_index(sides.app, 5000 + 3 * 1000)  # the copy and three times a page
        await reads_by_index(sides.there, 3 * 1000)


async def reads_by_index(side: psycopg.Connection, rows: int) -> None:
    """That many are counted once the closed connections have reported, and none is read by a scan of the table."""
    query = "SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 't'"
    deadline = time.monotonic() + DEADLINE_S
    while True:
        by_scan, by_index = side.execute(query).fetchone() or (0, 0)
        assert by_scan == 0
        if by_index >= rows:
            return
        assert time.monotonic() < deadline, by_index
        await asyncio.sleep(0.01)
