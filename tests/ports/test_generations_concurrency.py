"""Generations that come and go while windows, pages, embedders and sweeps are open: two connections to one Postgres.

Each test stops one transaction in the middle, starts another, waits until the database itself says that the second
one waits for a lock, and lets the first one go on. History 13 of the protocol, and what dropping adds to it.
"""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from connectors import postgres_generations
from daemon.core.model import Generation
from daemon.errors import SchemaChanged, StepRefused, TransientError
from daemon.flow.stream import follow_up
from daemon.ports import UnitOfWork
from tests import builders
from tests.builders import row
from tests.ports.target_shop import Shop, at, chunks_of, key, source_row
from tests.ports.two_connections import DEADLINE_S, Postgresql


async def add(shop: Shop, name: str = "v2") -> Generation:
    contract = builders.contract(document_prefix=name)
    async with shop.target.begin() as tx:
        return await tx.ledger.add_generation(name, contract.as_json(), contract.id)


async def sweep(shop: Shop, generation: Generation, limit: int = 100) -> int:
    async with shop.target.begin() as tx:
        return await tx.ledger.sweep(shop.table, generation, limit)


async def drop(shop: Shop, generation: Generation) -> None:
    async with shop.target.begin() as tx:
        await tx.ledger.drop_generation(generation)


async def change(shop: Shop, tx: UnitOfWork, name: str, lsn: int, **columns: str) -> int:
    """A window's change in an open transaction; without columns a delete. The row's id."""
    generations = await tx.ledger.hold_migration()
    effect = await shop.apply(tx, name, row(name, **columns) if columns else None, lsn)
    await follow_up(tx, shop.table, generations, [effect], live=True)
    return effect.row_id


async def owed(shop: Shop, generation: Generation, *row_ids: int) -> dict[int, tuple[int, int]]:
    async with shop.target.begin() as tx:
        entries = await tx.ledger.entries(shop.table, generation, row_ids)
    return {row_id: (e.oldest_seq, e.newest_seq) for row_id, e in entries.items()}


async def test_13_a_row_of_a_window_that_was_open_when_the_generation_came_is_swept(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    """The window read the generations before; the new one's record waits for its commit, and the sweep sees its row."""
    await first.start()

    async def added_and_swept() -> Generation:
        made = await add(second)
        assert await sweep(second, made) == 1
        return made

    async with first.target.begin() as tx:
        generations = await tx.ledger.hold_migration()
        adding = asyncio.create_task(added_and_swept())
        await postgresql.waits()
        (effect,) = await tx.replica.copy_in(first.table, [source_row(row("1"))])
        await follow_up(tx, first.table, generations, [effect], live=False)
    made = await adding
    assert set(await owed(first, made, effect.row_id)) == {effect.row_id}


async def test_13_a_sweep_waits_for_a_delete_and_leaves_no_work_for_it(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    ids = await first.copy(row("1"), row("2"))
    await first.start()
    made = await add(first)
    async with first.target.begin() as tx:
        await change(first, tx, "1", 7)
        sweeping = asyncio.create_task(sweep(second, made))
        await postgresql.waits()
    assert await sweeping == 2
    assert set(await owed(first, made, *ids.values())) == {ids["2"]}


async def test_13_a_sweep_that_waits_for_a_change_keeps_the_entry_of_the_window(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    ids = await first.copy(row("1"))
    await first.start()
    made = await add(first)
    async with first.target.begin() as tx:
        await change(first, tx, "1", 7, title="new")
        seq = (await tx.ledger.entries(first.table, made, [ids["1"]]))[ids["1"]].newest_seq
        sweeping = asyncio.create_task(sweep(second, made))
        await postgresql.waits()
    await sweeping
    assert await owed(first, made, ids["1"]) == {ids["1"]: (seq, seq)}


async def test_13_a_change_that_waits_for_the_sweep_raises_the_entry(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    ids = await first.copy(row("1"))
    await first.start()
    made = await add(first)
    async with first.target.begin() as tx:
        assert await tx.ledger.sweep(first.table, made, 10) == 1
        window = asyncio.create_task(second.change("1", row("1", title="new"), 7))
        await postgresql.waits()
    await window
    oldest, newest = (await owed(first, made, ids["1"]))[ids["1"]]
    assert newest > oldest


async def test_two_sweeps_of_one_generation_lose_and_repeat_nothing(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    """A stream that took the lease over sweeps while its predecessor's page is still open."""
    ids = await first.copy(*(row(str(n)) for n in range(5)))
    await first.start()
    made = await add(first)
    async with first.target.begin() as tx:
        assert await tx.ledger.sweep(first.table, made, 2) == 2
        before = await tx.ledger.entries(first.table, made, list(ids.values()))
        other = asyncio.create_task(sweep(second, made, 4))
        await postgresql.waits()
    assert await other == 4
    assert [await sweep(first, made, 4) for _ in range(2)] == [1, 0]
    after = await owed(first, made, *ids.values())
    assert set(after) == set(ids.values())
    assert all(after[row_id] == (e.oldest_seq, e.newest_seq) for row_id, e in before.items())


async def test_a_slow_page_of_a_sweep_never_sets_the_cursor_back(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    await first.copy(*(row(str(n)) for n in range(5)))
    await first.start()
    made = await add(first)
    async with first.target.begin() as tx:
        await tx.replica.lock(first.table, [key("0")])
        slow = asyncio.create_task(sweep(second, made, 1))
        await postgresql.waits()
        assert await tx.ledger.sweep(first.table, made, 5) == 5
    await slow
    assert await sweep(first, made) == 0


async def test_a_drop_waits_for_the_window_and_what_it_wrote_goes_too(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    made = await add(first)
    async with first.target.begin() as tx:
        row_id = await change(first, tx, "1", 7, title="new")
        dropping = asyncio.create_task(drop(second, made))
        await postgresql.waits()
    await dropping
    assert await owed(first, made, row_id) == {}
    assert set(await owed(first, first.generation, row_id)) == {row_id}
    assert await postgresql.scalar("SELECT count(*) FROM revector.work") == 1


async def test_a_window_that_waits_for_a_drop_does_not_touch_what_is_gone(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    ids = await first.copy(row("1"))
    made = await add(first)
    async with first.target.begin() as tx:
        await tx.ledger.drop_generation(made)
        window = asyncio.create_task(second.change("1", None, 7))
        await postgresql.waits()
    assert not (await window).is_live
    assert await owed(first, made, ids["1"]) == {}


async def test_a_drop_waits_for_the_embedder_and_removes_what_it_stored(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    """The embedder holds row, entry and chunks one after the other: the drop must not hold one that comes later."""
    made = await add(first)
    ids = await first.copy(row("1"))
    chunks, vectors = chunks_of(ids["1"], "text")
    async with first.target.begin() as tx:
        await tx.replica.lock_rows(first.table, [ids["1"]])
        dropping = asyncio.create_task(drop(second, made))
        await postgresql.waits()
        await tx.ledger.entries(first.table, made, [ids["1"]])
        await tx.vectors.replace(first.table, made, chunks, vectors, [ids["1"]])
        await tx.ledger.settle(first.table, made, "w", [ids["1"]], {}, [])
    await dropping
    assert await postgresql.scalar("SELECT count(*) FROM pg_class WHERE relname LIKE 'articles_v2%'") == 0


async def test_an_embedder_that_waits_for_a_drop_finds_the_generation_gone(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    made = await add(first)
    ids = await first.copy(row("1"))
    chunks, vectors = chunks_of(ids["1"], "text")

    async def store() -> None:
        async with second.target.begin() as tx:
            await tx.replica.lock_rows(second.table, [ids["1"]])
            assert await tx.ledger.entries(second.table, made, [ids["1"]]) == {}
            await tx.vectors.replace(second.table, made, chunks, vectors, [ids["1"]])

    async with first.target.begin() as tx:
        await tx.ledger.drop_generation(made)
        storing = asyncio.create_task(store())
        await postgresql.waits()
    with pytest.raises(SchemaChanged):
        await storing


async def test_a_sweep_that_waits_for_a_drop_leaves_no_work(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    await first.copy(row("1"))
    await first.start()
    made = await add(first)
    async with first.target.begin() as tx:
        await tx.ledger.drop_generation(made)
        sweeping = asyncio.create_task(sweep(second, made))
        await postgresql.waits()
    assert await sweeping == 0
    work = f"SELECT count(*) FROM revector.work WHERE generation_id = {made.id}"
    assert await postgresql.scalar(work) == 0


async def test_a_drop_gives_up_on_a_reader_and_the_stream_goes_on(
    first: Shop, second: Shop, emptied_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_generations, "DROP_WAIT_S", 0.2)
    made = await add(first)
    async with await psycopg.AsyncConnection.connect(emptied_dsn) as reader:
        await reader.execute("SELECT count(*) FROM shop.articles_v2_search")
        with pytest.raises(TransientError) as refused:
            await drop(second, made)
        assert refused.value.id == "target-locked"
        await asyncio.wait_for(first.change("1", row("1"), 7), DEADLINE_S)
    async with first.target.begin() as tx:
        assert made in await tx.ledger.hold_migration()
    await drop(second, made)


async def test_the_generation_that_readers_follow_is_not_dropped(first: Shop, postgresql: Postgresql) -> None:
    made = await add(first)
    route = f"INSERT INTO revector.route (migration, generation_id) VALUES ('shop', {made.id})"
    await postgresql.connection.execute(route.encode())
    async with first.target.begin() as tx:
        assert await tx.ledger.routed() == made.id
    with pytest.raises(StepRefused) as refused:
        await drop(first, made)
    assert refused.value.id == "generation-routed"


async def test_a_truncate_and_a_sweep_never_wait_in_a_circle(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    await first.copy(row("1"), row("2"))
    await first.start()
    made = await add(first)

    async def truncate() -> None:
        async with second.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert await tx.replica.truncate(second.table, at(60))

    async with first.target.begin() as tx:
        assert await tx.ledger.sweep(first.table, made, 1) == 1
        truncation = asyncio.create_task(truncate())
        await postgresql.waits()
        assert await tx.ledger.sweep(first.table, made, 1) == 1
    await truncation
    assert await postgresql.scalar("SELECT count(*) FROM revector.work") == 0
