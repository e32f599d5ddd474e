"""`revector quarantine` beside a stream that changes the same rows: whoever comes second sees what the first did."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from daemon.core.model import WorkState
from daemon.flow.stream import follow_up
from daemon.ports import Target
from daemon.procedures.quarantine import Found, Which, accept, retry
from tests.builders import row
from tests.ports.target_shop import Shop
from tests.ports.two_connections import Postgresql

Step = Callable[[Target], Awaitable[Found]]
WHICH = Which("shop", "v1", state=WorkState.REFUSED)
STEPS: dict[str, Step] = {
    "accept": lambda target: accept(target, WHICH, "me", "why"),
    "retry": lambda target: retry(target, WHICH, "me"),
}


async def refused(shop: Shop, *names: str) -> dict[str, int]:
    ids = await shop.copy(*(row(name) for name in names))
    claims = list((await shop.claim("w")).values())
    async with shop.target.begin() as tx:
        await tx.replica.lock_rows(shop.table, list(ids.values()))
        await tx.ledger.refuse(shop.table, shop.generation, "w", claims, "status-400")
    return ids


@pytest.mark.parametrize("step", STEPS)
async def test_a_row_that_is_deleted_or_changed_meanwhile_keeps_what_the_stream_made_of_it(
    first: Shop, second: Shop, postgresql: Postgresql, step: str
) -> None:
    ids = await refused(first, "1", "2", "3")
    async with first.target.begin() as tx:
        generations = await tx.ledger.hold_migration()
        gone = await first.apply(tx, "1", None, 7)
        new = await first.apply(tx, "2", row("2", title="mended"), 8)
        task = asyncio.ensure_future(STEPS[step](second.target))
        await postgresql.waits()
        await follow_up(tx, first.table, generations, [gone, new], live=True)
    found = await task
    assert [q.key for q in found.entries] == [("3",)]
    assert await first.entry(ids["1"]) is None
    assert (await first.entry(ids["2"])).state is WorkState.WAITING
    wanted = WorkState.ACCEPTED if step == "accept" else WorkState.WAITING
    assert (await first.entry(ids["3"])).state is wanted


async def test_a_change_waits_for_the_operator_and_supersedes_what_was_accepted(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    ids = await refused(first, "1")
    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        await tx.replica.lock_rows(first.table, list(ids.values()))
        change = asyncio.ensure_future(second.change("1", row("1", title="mended"), 7))
        await postgresql.waits()
        assert await tx.ledger.accept(first.table, first.generation, list(ids.values())) == 1
    await change
    assert (await first.entry(ids["1"])).state is WorkState.WAITING


async def test_an_entry_that_somebody_retries_meanwhile_is_not_accepted(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    ids = await refused(first, "1")
    async with first.target.begin() as tx:
        await tx.replica.lock_rows(first.table, list(ids.values()))
        task = asyncio.ensure_future(STEPS["accept"](second.target))
        await postgresql.waits()
        await tx.ledger.put_work(first.table, [first.generation], list(ids.values()), live=False)
    assert (await task).entries == ()
    assert (await first.entry(ids["1"])).state is WorkState.WAITING
