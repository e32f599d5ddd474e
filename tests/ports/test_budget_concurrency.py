"""Several connections take from one budget at once: each reservation finds what the ones before it left."""

from __future__ import annotations

import asyncio

import pytest

from daemon.core.model import Rates
from tests.ports.target_shop import Shop
from tests.ports.two_connections import Connections, Postgresql

RATES = Rates(600, 60_000)  # 100 ms and 1 ms: a request of 500 tokens costs half a second


async def test_no_reservation_is_lost_between_processes(connections: Connections) -> None:
    shop = await Shop.open(connections)
    waits: list[float] = []

    async def process(n: int) -> None:
        target = connections.connect(f"process {n}")
        for _ in range(40):
            async with target.begin() as tx:
                waits.append(await tx.ledger.reserve(shop.generation, 500, RATES))

    await asyncio.gather(*(process(n) for n in range(3)))
    async with shop.target.begin() as tx:
        last = await tx.ledger.reserve(shop.generation, 500, RATES)
    assert len(waits) == 120
    assert last == pytest.approx(120 * 0.5 / 0.98, abs=5.0)  # less the time that the test took
    gaps = [b - a for a, b in zip(sorted(waits), sorted(waits)[1:], strict=False)]
    assert min(gaps[1:]) > 0.2, "two were given the same place"


async def test_a_reservation_waits_for_an_open_one_and_comes_after_it(
    connections: Connections, postgresql: Postgresql
) -> None:
    shop = await Shop.open(connections)
    second = connections.connect("second")

    async def reserve() -> float:
        async with second.begin() as tx:
            return await tx.ledger.reserve(shop.generation, 500, RATES)

    async with shop.target.begin() as tx:
        await tx.ledger.reserve(shop.generation, 60_000, RATES)  # the first one of all: a row that is not there yet
        task = asyncio.create_task(reserve())
        await postgresql.waits()
    assert await task == pytest.approx(61, abs=20)
    async with shop.target.begin() as tx:
        await tx.ledger.hold_off(shop.generation, 300)
        task = asyncio.create_task(reserve())
        await postgresql.waits()
    assert await task == pytest.approx(300, abs=20)
