"""Two connections: what is open while the stream is realigned comes before it, and what waits for it meets it."""

from __future__ import annotations

import asyncio

import pytest

from daemon.errors import LeaseLost
from tests.builders import row
from tests.ports.realign_suite import NEW, TO
from tests.ports.target_shop import P0, Shop, key, source_row
from tests.ports.two_connections import Postgresql


async def realign(shop: Shop, number: int) -> tuple[int, list[object]]:
    """The epoch, and the rows that are there under the locks."""
    async with shop.target.begin() as tx:
        epoch = await tx.ledger.realign(number, TO)
        return epoch, list(await tx.replica.lock(shop.table, [key("1")]))


async def lease(shop: Shop) -> int:
    await shop.start()
    async with shop.target.begin() as tx:
        number = await tx.ledger.acquire_lease("a", 60)
    assert number is not None
    return number


async def test_it_waits_for_an_open_window(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    number = await lease(first)
    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        await tx.ledger.advance(number, {P0: (10, 13)})
        realigning = asyncio.create_task(realign(second, number))
        await postgresql.waits()
        await tx.replica.copy_in(first.table, [source_row(row("1"))])
    assert await realigning == (1, [key("1")])


async def test_a_window_that_waits_for_it_is_dropped(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    number = await lease(first)
    async with first.target.begin() as tx:
        taken = await tx.ledger.acquire_lease("a", 60)
    assert taken == number + 1

    async def window() -> None:
        async with second.target.begin() as tx:
            await tx.ledger.hold_migration()
            await tx.ledger.advance(number, {P0: (10, 13)})

    async with first.target.begin() as tx:
        await tx.ledger.realign(taken, TO)
        zombie = asyncio.create_task(window())
        await postgresql.waits()
    with pytest.raises(LeaseLost):
        await zombie


async def test_a_page_that_waits_for_it_sees_another_count(first: Shop, second: Shop, postgresql: Postgresql) -> None:
    number = await lease(first)

    async def page() -> int:
        async with second.target.begin() as tx:
            await tx.ledger.hold_migration()
            return await tx.replica.hold_truncate_count(second.table)

    async with first.target.begin() as tx:
        await tx.ledger.realign(number, TO)
        waiting = asyncio.create_task(page())
        await postgresql.waits()
    assert await waiting == 1


async def test_a_takeover_that_waits_for_it_fences_the_new_checkpoints(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    number = await lease(first)
    async with first.target.begin() as tx:
        await tx.ledger.renew_lease(number, -1)  # it is over, and nobody has taken it yet

    async def take_over() -> int | None:
        async with second.target.begin() as tx:
            return await tx.ledger.acquire_lease("b", 60)

    async with first.target.begin() as tx:
        await tx.ledger.realign(number, TO)
        taking = asyncio.create_task(take_over())
        await postgresql.waits()
    assert await taking == number + 1
    with pytest.raises(LeaseLost):
        async with first.target.begin() as tx:
            await tx.ledger.advance(number, {NEW: (0, 1)})
