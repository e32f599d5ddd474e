"""Two connections to one Postgres: the histories that one statement's snapshot, or one lock too late, would break.

Each test stops one transaction in the middle, starts another, waits until the database itself says that the second
one waits for a lock, and lets the first one go on. The numbers are those of the protocol's histories.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager

import pytest

from connectors.postgres_target import PostgresTarget
from daemon.core.model import RowWrite, WriteKind
from daemon.errors import LeaseLost, TransientError
from daemon.flow.stream import follow_up
from daemon.ports import UnitOfWork
from tests import builders
from tests.builders import row
from tests.ports.target_shop import P0, XID, Shop, at, chunks_of, digest_of, key, source_row
from tests.ports.two_connections import DEADLINE_S, Connections, Postgresql


async def delete(shop: Shop, tx: UnitOfWork, name: str, lsn: int) -> None:
    """A window's delete in an open transaction."""
    generations = await tx.ledger.hold_migration()
    effect = await shop.apply(tx, name, None, lsn)
    await follow_up(tx, shop.table, generations, [effect], live=True)


async def embed(shop: Shop, tx: UnitOfWork, row_id: int, text: str) -> None:
    """The rest of an embedder's transaction after it has locked the row."""
    chunks, vectors = chunks_of(row_id, text)
    await tx.vectors.replace(shop.table, shop.generation, chunks, vectors, [row_id])
    await tx.ledger.settle(shop.table, shop.generation, "w", [row_id], {}, [])


async def test_9_a_row_made_again_owes_more_than_a_zombie_has_claimed(first: Shop) -> None:
    ids = await first.copy(row("1"))
    claim = (await first.claim())[ids["1"]]
    await first.change("1", None, 7)
    await first.change("1", row("1", title="heir"), 8)
    assert (await first.entry(ids["1"])).oldest_seq > claim.seq


async def test_10_a_claim_never_pairs_a_newer_seq_with_an_older_text(first: Shop, second: Shop) -> None:
    """A writer numbers the row's text; whatever was claimed, the text read afterwards is not older than its seq."""
    ids = await first.copy(row("1", title="0"))
    row_id, rounds = ids["1"], 60
    text_at: dict[int, int] = {}
    done = asyncio.Event()

    async def writer() -> None:
        for n in range(1, rounds + 1):
            await first.change("1", row("1", title=str(n)), 10 + n)
            text_at[(await first.entry(row_id)).newest_seq] = n
        done.set()

    claimed: list[tuple[int, int]] = []

    async def reader() -> None:
        while not done.is_set() or len(claimed) < 5:
            claims = await second.claim("w", lease_s=-1)
            document = await second.document(row_id)
            if row_id in claims:  # else the writer held the entry
                claimed.append((claims[row_id].seq, int(document.values["title"])))

    await asyncio.wait_for(asyncio.gather(writer(), reader()), DEADLINE_S)
    assert len({seq for seq, _ in claimed}) > 1, "the reader never met the writer"
    assert all(text >= text_at.get(seq, 0) for seq, text in claimed)


async def test_11_a_delete_waits_for_the_embedder_and_drops_what_it_wrote(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    ids = await first.copy(row("1"))
    async with first.target.begin() as tx:
        await tx.replica.lock_rows(first.table, [ids["1"]])
        deletion = asyncio.create_task(second.change("1", None, 7))
        await postgresql.waits()
        await embed(first, tx, ids["1"], "text")
    await deletion
    assert await first.stored(ids["1"]) == {}
    assert await first.entry(ids["1"]) is None


async def test_11_a_truncate_waits_for_the_embedder_and_drops_what_it_wrote(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    ids = await first.copy(row("1"))

    async def truncate() -> None:
        async with second.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert await tx.replica.truncate(second.table, at(20))

    async with first.target.begin() as tx:
        await tx.replica.lock_rows(first.table, [ids["1"]])
        truncation = asyncio.create_task(truncate())
        await postgresql.waits()
        await embed(first, tx, ids["1"], "text")
    await truncation
    assert await postgresql.scalar("SELECT count(*) FROM shop.articles_v1") == 0
    assert await postgresql.scalar("SELECT count(*) FROM revector.work") == 0


async def test_a_truncate_and_an_embedder_never_wait_in_a_circle(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    """Row 1 lies behind row 2 in the heap: removed row by row, row 2 would go first and row 1 be waited for."""
    ids = await first.copy(row("1"), row("2"))
    await first.change("1", row("1", title="moved"), 7)

    async def truncate() -> None:
        async with second.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert await tx.replica.truncate(second.table, at(20))

    async with first.target.begin() as tx:
        await tx.replica.lock_rows(first.table, [ids["1"]])
        truncation = asyncio.create_task(truncate())
        await postgresql.waits()
        assert await tx.replica.lock_rows(first.table, [ids["2"]]) == {ids["2"]}
    await truncation
    assert await first.state("1") is None


async def test_11_an_embedder_that_waits_for_a_delete_finds_the_row_dead(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    ids = await first.copy(row("1"))
    await first.claim()

    async def lock() -> tuple[set[int], dict[int, object]]:
        async with second.target.begin() as tx:
            usable = await tx.replica.lock_rows(second.table, [ids["1"]])
            return usable, dict(await tx.ledger.entries(second.table, second.generation, [ids["1"]]))

    async with first.target.begin() as tx:
        await delete(first, tx, "1", 7)
        embedder = asyncio.create_task(lock())
        await postgresql.waits()
    assert await embedder == (set(), {})


async def test_12_a_seq_is_drawn_after_every_wait(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    """The wait behind a claim's lock: a value taken before it would be older than one that was drawn meanwhile."""
    ids = await first.copy(row("1"))
    async with first.target.begin() as tx:
        await tx.ledger.claim(first.table, first.generation, "w", 1, 60)
        window = asyncio.create_task(second.change("1", row("1", title="new"), 7))
        await postgresql.waits()
        meanwhile = await postgresql.scalar("SELECT nextval('revector.work_seq')")
    await window
    entry = await first.entry(ids["1"])
    assert entry.newest_seq > meanwhile
    assert entry.claimed_by == "w"


async def test_12_the_later_holder_of_a_row_has_the_higher_seq(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    """A page's fill commits, is claimed, and the window that waited for it still owes its own text."""
    ids = await first.copy(row("1"))
    async with first.target.begin() as tx:
        generations = await tx.ledger.hold_migration()
        await tx.replica.lock(first.table, [key("1")])
        window = asyncio.create_task(second.change("1", row("1", title="new"), 7))
        await postgresql.waits()
        await tx.ledger.put_work(first.table, generations, [ids["1"]], live=False)
        seq = (await tx.ledger.entries(first.table, first.generation, [ids["1"]]))[ids["1"]].newest_seq
    await window
    assert (await first.entry(ids["1"])).newest_seq > seq


async def test_13_a_generation_waits_for_open_windows(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    await first.start()
    contract = builders.contract()

    async def add() -> list[object]:
        async with second.target.begin() as tx:
            await tx.ledger.add_generation("v2", contract.as_json(), contract.id)
        async with second.target.begin() as tx:
            return list(await tx.replica.lock(second.table, [key("1")]))

    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        adding = asyncio.create_task(add())
        await postgresql.waits()
        await tx.replica.copy_in(first.table, [source_row(row("1"))])
    assert await adding == [key("1")], "what the window wrote is there for the sweep"


async def test_13_a_window_that_waits_for_a_generation_feeds_it(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    await first.start()
    contract = builders.contract()

    async def hold() -> list[str]:
        async with second.target.begin() as tx:
            return [generation.name for generation in await tx.ledger.hold_migration()]

    async with first.target.begin() as tx:
        await tx.ledger.add_generation("v2", contract.as_json(), contract.id)
        window = asyncio.create_task(hold())
        await postgresql.waits()
    assert await window == ["v1", "v2"]
    await first.copy(row("1"))
    deleted = await first.change("1", None, 9)  # drops chunks of both: the new relations exist
    assert not deleted.is_live


async def test_windows_do_not_wait_for_each_other_over_the_migration(first: Shop, second: Shop) -> None:
    async with first.target.begin() as tx, second.target.begin() as other:
        await tx.ledger.hold_migration()
        await asyncio.wait_for(other.ledger.hold_migration(), DEADLINE_S)
        await tx.ledger.observe_stream(["r1"], 1)
        await asyncio.wait_for(other.ledger.pulse_sent(2), DEADLINE_S)
        await asyncio.wait_for(other.ledger.observe({}), DEADLINE_S)


async def test_a_takeover_waits_for_the_open_window_and_continues_behind_it(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    await first.start()
    async with first.target.begin() as tx:
        mine = await tx.ledger.acquire_lease("a", -1)

    async def take_over() -> tuple[int | None, int]:
        async with second.target.begin() as tx:
            number = await tx.ledger.acquire_lease("b", 60)
            return number, (await tx.ledger.checkpoint())[P0]

    assert mine is not None
    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        await tx.ledger.advance(mine, {P0: (10, 13)})
        takeover = asyncio.create_task(take_over())
        await postgresql.waits()
        await tx.replica.copy_in(first.table, [source_row(row("1"))])
    assert await takeover == (mine + 1, 13)
    with pytest.raises(LeaseLost):
        async with first.target.begin() as tx:
            await tx.ledger.advance(mine, {P0: (13, 14)})


async def test_a_zombie_that_waits_for_a_takeover_is_refused(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    await first.start()
    async with first.target.begin() as tx:
        mine = await tx.ledger.acquire_lease("a", -1)
    assert mine is not None

    async def apply() -> None:
        async with second.target.begin() as tx:
            await tx.ledger.advance(mine, {P0: (10, 13)})

    async with first.target.begin() as tx:
        assert await tx.ledger.acquire_lease("b", 60) == mine + 1
        zombie = asyncio.create_task(apply())
        await postgresql.waits()
    with pytest.raises(LeaseLost):
        await zombie
    async with first.target.begin() as tx:
        assert (await tx.ledger.checkpoint())[P0] == 10


async def test_a_truncate_waits_for_the_page_and_removes_it(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    async def truncate() -> bool:
        async with second.target.begin() as tx:
            await tx.ledger.hold_migration()
            return await tx.replica.truncate(second.table, at(20))

    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        assert await tx.replica.hold_truncate_count(first.table) == 0
        truncation = asyncio.create_task(truncate())
        await postgresql.waits()
        await tx.replica.copy_in(first.table, [source_row(row("1"))])
    assert await truncation
    assert await first.state("1") is None


async def test_a_page_that_waits_for_a_truncate_sees_its_count(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    async def hold() -> int:
        async with second.target.begin() as tx:
            await tx.ledger.hold_migration()
            return await tx.replica.hold_truncate_count(second.table)

    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        await tx.replica.truncate(first.table, at(20))
        page = asyncio.create_task(hold())
        await postgresql.waits()
    assert await page == 1


async def test_an_insert_that_waits_for_a_page_is_left_over(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    insert = RowWrite(WriteKind.INSERT, key("1"), None, row("1"), at(7), XID)

    async def window() -> list[RowWrite]:
        async with second.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert await tx.replica.lock(second.table, [key("1")]) == {}
            _, leftovers = await tx.replica.write(second.table, [insert])
            again = await tx.replica.lock(second.table, [key("1")])
            assert again[key("1")].position is None
            return leftovers

    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        await tx.replica.copy_in(first.table, [source_row(row("1"))])
        writing = asyncio.create_task(window())
        await postgresql.waits()
    assert await writing == [insert]


async def test_a_page_that_waits_for_an_insert_leaves_the_row_alone(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        await first.apply(tx, "1", row("1", title="event"), 7)
        page = asyncio.create_task(second.copy(row("1", title="page"), row("2")))
        await postgresql.waits()
    assert set(await page) == {"2"}
    assert (await first.state("1")).position == at(7)


async def test_a_lock_that_waited_reads_the_row_as_it_is_then(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    await first.copy(row("1"))
    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        await first.apply(tx, "1", row("1", title="new"), 7)
        looking = asyncio.create_task(second.state("1"))
        await postgresql.waits()
    assert (await looking).position == at(7)


async def test_claims_of_two_workers_never_meet_nor_wait(first: Shop, second: Shop) -> None:
    ids = await first.copy(*(row(str(n)) for n in range(6)))
    async with first.target.begin() as tx:
        mine = await tx.ledger.claim(first.table, first.generation, "a", 3, 60)
        theirs = await asyncio.wait_for(second.claim("b"), DEADLINE_S)
    assert len(mine) == len(theirs) == 3
    assert {c.row_id for c in mine} | set(theirs) == set(ids.values())


async def test_renewing_claims_never_waits_for_a_window(first: Shop, second: Shop) -> None:
    """It holds entries and no replica row: waiting for one entry with another in hand, it could wait in a circle."""
    ids = await first.copy(row("1"), row("2"))
    await second.claim("w", lease_s=60)
    async with first.target.begin() as tx:
        await tx.replica.lock_rows(first.table, [ids["1"]])
        await tx.ledger.put_work(first.table, [first.generation], [ids["1"]], live=True)
        async with asyncio.timeout(DEADLINE_S / 3), second.target.begin() as other:
            await other.ledger.renew(second.table, second.generation, "w", list(ids.values()), -1)
    assert set(await first.claim("peer")) == {ids["2"]}, "not all others, or what the window holds"


async def test_two_pages_do_not_claim_one_range(first: Shop, second: Shop) -> None:
    async with first.target.begin() as tx:
        await tx.ledger.plan_ranges(first.table, [key("5")])
    async with first.target.begin() as tx, second.target.begin() as other:
        mine = await tx.ledger.claim_range("a", 60)
        theirs = await asyncio.wait_for(other.ledger.claim_range("b", 60), DEADLINE_S)
    assert mine is not None
    assert theirs is not None
    assert mine.id != theirs.id


async def test_processes_that_start_at_once_make_one_schema(connections: Connections) -> None:
    targets = [connections.connect() for _ in range(3)]
    table = builders.articles()

    async def start(target: PostgresTarget) -> int:
        await target.prepare()
        return (await target.create_tables([table]))[0].id

    assert await gathered(*(start(target) for target in targets)) == {1}


async def gathered(*work: Awaitable[int]) -> set[int]:
    return set(await asyncio.wait_for(asyncio.gather(*work), DEADLINE_S))


async def test_a_lost_connection_is_transient_and_replaced(first: Shop, postgresql: Postgresql) -> None:
    kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'first'"

    async def window(block: AbstractAsyncContextManager[UnitOfWork]) -> None:
        async with block as tx:
            await tx.replica.copy_in(first.table, [source_row(row("1"))])
            assert await postgresql.scalar(kill) == 1
            await tx.ledger.checkpoint()

    with pytest.raises(TransientError):
        await window(first.target.begin())
    assert await first.state("1") is None


async def test_what_was_kept_is_read_from_the_locked_row(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    """Filter columns come from the row as it is under the lock, not from what the embedder read before."""
    ids = await first.copy(row("1", tenant="old"))

    async def store() -> None:
        await second.store(ids["1"], "text")

    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        await first.apply(tx, "1", row("1", tenant="new"), 7)
        embedder = asyncio.create_task(store())
        await postgresql.waits()
    await embedder
    assert set(await first.stored(ids["1"])) == {digest_of("text")}
    assert await postgresql.scalar("SELECT count(*) FROM shop.articles_v1 WHERE tenant = 'new'") == 1


async def test_a_kept_chunk_gets_the_filters_of_the_locked_row(first: Shop, postgresql: Postgresql) -> None:
    """One that is neither made anew nor moved has them written too, however they came to differ."""
    ids = await first.copy(row("1", tenant="old"))
    await first.store(ids["1"], "text")
    await postgresql.connection.execute("UPDATE shop.articles SET tenant = 'new'")
    chunks, _ = chunks_of(ids["1"], "text")
    async with first.target.begin() as tx:
        await tx.replica.lock_rows(first.table, [ids["1"]])
        assert await tx.vectors.replace(first.table, first.generation, chunks, {}, [ids["1"]]) == set()
    assert await postgresql.scalar("SELECT count(*) FROM shop.articles_v1 WHERE tenant = 'new'") == 1


async def test_a_cancelled_window_leaves_nothing_and_the_connection_goes_on(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    await first.copy(row("1"))
    async with first.target.begin() as tx:
        await tx.replica.lock(first.table, [key("1")])
        window = asyncio.create_task(second.change("1", row("1", title="new"), 7))
        await postgresql.waits()
        window.cancel()
        with pytest.raises(asyncio.CancelledError):
            await window
    assert (await second.state("1")).position is None
    await second.change("1", row("1", title="new"), 8)
    assert (await first.state("1")).position == at(8)
