"""A comparison that begins or ends while others write: two connections to one Postgres.

Each test stops one transaction in the middle, starts another, and lets the first one go on once the database itself
says that the second one waits for a lock, or once the second one was turned away.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from daemon.core.comparison import Comparison, Found, Kind, State
from daemon.core.model import Generation
from daemon.errors import StepRefused, TransientError
from daemon.ports import Scan
from tests import builders
from tests.ports.target_shop import Shop, key
from tests.ports.two_connections import Postgresql


async def begin(shop: Shop, *others: Generation) -> Comparison:
    async with shop.target.begin() as tx:
        return await tx.comparisons.begin([g.id for g in (shop.generation, *others)], 100, [])


async def planned(shop: Shop) -> tuple[Comparison, Scan]:
    begun = await begin(shop)
    async with shop.target.begin() as tx:
        await tx.comparisons.plan(begun.id, [Scan(0, "source", shop.table.id, None, None, None)])
        (scan,) = await tx.comparisons.scans(begun.id)
    return begun, scan


async def end(shop: Shop, begun: Comparison, *, close_breaks: bool = False) -> int:
    async with shop.target.begin() as tx:
        return await tx.comparisons.end(replace(begun, state=State.CLEAN), close_breaks=close_breaks)


async def add(shop: Shop) -> Generation:
    contract = builders.contract(document_prefix="v2")
    async with shop.target.begin() as tx:
        return await tx.ledger.add_generation("v2", contract.as_json(), contract.id)


async def drop(shop: Shop, generation: Generation) -> None:
    async with shop.target.begin() as tx:
        await tx.ledger.drop_generation(generation)


async def remnants(postgresql: Postgresql) -> list[int]:
    tables = ("scan", "suspect", "head")
    return [await postgresql.scalar(f"SELECT count(*) FROM revector.comparison_{table}") for table in tables]


async def test_of_two_that_begin_at_once_the_second_is_refused(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    async with first.target.begin() as tx:
        begun = await tx.comparisons.begin([first.generation.id], 1, [])
        late = asyncio.create_task(begin(second))
        await postgresql.waits()
    with pytest.raises(StepRefused, match="is running") as refused:
        await late
    assert refused.value.id == "comparison-running"
    async with first.target.begin() as tx:
        running = await tx.comparisons.running()
    assert running is not None and running.id == begun.id


async def test_the_second_begins_where_the_first_one_fails(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    late = None
    with pytest.raises(ZeroDivisionError):
        async with first.target.begin() as tx:
            await tx.comparisons.begin([first.generation.id], 1, [])
            late = asyncio.create_task(begin(second))
            await postgresql.waits()
            raise ZeroDivisionError
    assert late is not None
    assert (await late).state is State.RUNNING


@pytest.mark.parametrize("move", ["advance", "suspect", "find"])
async def test_an_end_waits_for_what_workers_are_writing_and_takes_it_away(
    first: Shop, second: Shop, postgresql: Postgresql, move: str
) -> None:
    begun, scan = await planned(first)
    async with first.target.begin() as tx:
        if move == "advance":
            await tx.comparisons.advance(scan, key("1"), 1, 0, done=False)
        elif move == "suspect":
            await tx.comparisons.suspect(begun.id, first.table, None, keys=[key("1")])
        else:
            await tx.comparisons.find(begun.id, [Found(Kind.ROW_MISSING, first.table.id, key("1"))])
        late = asyncio.create_task(end(second, begun))
        await postgresql.waits()
        await tx.comparisons.suspect(begun.id, first.table, None, keys=[key("2")])
    await late
    assert await remnants(postgresql) == [0, 0, 0]


async def test_workers_do_not_wait_for_one_another_nor_for_the_lease(first: Shop, second: Shop) -> None:
    begun, scan = await planned(first)
    async with first.target.begin() as tx:
        await tx.comparisons.suspect(begun.id, first.table, None, keys=[key("1")])
        async with asyncio.timeout(10), second.target.begin() as other:
            assert await other.comparisons.hold(begun.id, "me", 60) is None
            await other.comparisons.advance(scan, key("1"), 1, 0, done=True)


async def test_a_worker_that_comes_while_a_comparison_is_ended_is_turned_away(first: Shop, second: Shop) -> None:
    """It does not wait: it may hold what whoever ends the comparison needs next."""
    begun, scan = await planned(first)

    async def advance() -> None:
        async with asyncio.timeout(10), second.target.begin() as tx:
            await tx.comparisons.advance(scan, key("1"), 1, 0, done=False)

    async with first.target.begin() as tx:
        await tx.comparisons.abandon(begun.id)
        with pytest.raises(TransientError):
            await advance()
    with pytest.raises(StepRefused) as refused:
        await advance()
    assert refused.value.id == "comparison-gone"


async def test_a_comparison_that_begins_while_its_generation_is_dropped_is_refused(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    dropped = await add(first)
    async with first.target.begin() as tx:
        await tx.ledger.drop_generation(dropped)
        late = asyncio.create_task(begin(second, dropped))
        await postgresql.waits()
    with pytest.raises(StepRefused) as refused:
        await late
    assert refused.value.id == "generation-absent"


async def test_a_drop_waits_for_a_comparison_that_begins_and_ends_it(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    dropped = await add(first)
    async with first.target.begin() as tx:
        begun = await tx.comparisons.begin([first.generation.id, dropped.id], 1, [])
        await tx.comparisons.plan(begun.id, [Scan(0, "chunks", first.table.id, dropped.id, None, None)])
        late = asyncio.create_task(drop(second, dropped))
        await postgresql.waits()
    await late
    assert await remnants(postgresql) == [0, 0, 0]
    async with first.target.begin() as tx:
        assert await tx.comparisons.running() is None


async def test_a_comparison_begins_when_every_entry_below_its_mark_is_committed(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    """Else it would close a break that nobody saw when it began."""
    async with first.target.begin() as tx:
        await tx.ledger.journal("break", "slot-lost", {})
        async with second.target.begin() as other:
            await other.ledger.journal("operator", "paused", {})
        late = asyncio.create_task(begin(second))
        await postgresql.waits()
    assert (await late).mark == 2


async def test_a_break_that_is_not_committed_when_a_comparison_ends_stays_open(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    begun = await begin(second)
    async with first.target.begin() as tx:
        await tx.ledger.journal("break", "slot-lost", {})
        assert await end(second, begun, close_breaks=True) == 0
    async with first.target.begin() as tx:
        assert [b.id for b in await tx.ledger.breaks()] == ["slot-lost"]


async def test_breaks_of_other_migrations_are_left_alone(first: Shop, postgresql: Postgresql) -> None:
    await postgresql.connection.execute(
        "INSERT INTO revector.journal (migration, kind, event) VALUES ('other', 'break', 'slot-lost')"
    )
    begun = await begin(first)
    assert (begun.mark, await end(first, begun, close_breaks=True)) == (1, 0)
    assert await postgresql.scalar("SELECT count(*) FROM revector.journal WHERE closed_at IS NULL AND kind = 'break'")
