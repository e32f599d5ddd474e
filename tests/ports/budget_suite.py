"""What every implementation of the Target port does with budgets and orders.

Real databases have real clocks: what is asserted are differences that are large against the time a statement takes.
"""

from __future__ import annotations

import pytest

from daemon.core.model import Rates
from tests import builders
from tests.ports.target_shop import Shop
from tests.ports.target_suite import Shops

SOON = 20.0  # more than a test takes
MINUTE = Rates(None, 1000)  # 1000 tokens cost a minute


class BudgetSuite(Shops):
    async def reserve(self, shop: Shop, tokens: int, rates: Rates = MINUTE) -> float:
        async with shop.target.begin() as tx:
            return await tx.ledger.reserve(shop.generation, tokens, rates)

    async def test_the_first_reservation_waits_for_nothing_and_the_next_for_its_cost(self, shop: Shop) -> None:
        assert await self.reserve(shop, 1000) == 0.0
        assert await self.reserve(shop, 3000) == pytest.approx(61, abs=SOON)
        assert await self.reserve(shop, 1000) == pytest.approx(245, abs=SOON)

    async def test_the_tighter_of_two_budgets_decides(self, shop: Shop) -> None:
        assert await self.reserve(shop, 1, Rates(1, 1000)) == 0.0
        assert await self.reserve(shop, 3000, Rates(1, 1000)) == pytest.approx(61, abs=SOON)
        assert await self.reserve(shop, 1, Rates(1, 1000)) == pytest.approx(245, abs=SOON)

    async def test_a_rate_that_is_not_known_is_neither_asked_nor_moved(self, shop: Shop) -> None:
        await self.reserve(shop, 5000)
        assert await self.reserve(shop, 1, Rates(60, None)) == 0.0
        assert await self.reserve(shop, 1, Rates(60, None)) == pytest.approx(1, abs=1)
        assert await self.reserve(shop, 5000) == pytest.approx(306, abs=SOON)

    async def test_without_a_rate_nothing_is_taken(self, shop: Shop) -> None:
        for _ in range(3):
            assert await self.reserve(shop, 10**9, Rates()) == 0.0
        assert await self.reserve(shop, 1000) == 0.0

    async def test_tokens_are_given_back_and_taken(self, shop: Shop) -> None:
        await self.reserve(shop, 5000)
        async with shop.target.begin() as tx:
            await tx.ledger.refund(shop.generation, 3000, MINUTE)
        assert await self.reserve(shop, 1) == pytest.approx(122, abs=SOON)
        async with shop.target.begin() as tx:
            await tx.ledger.refund(shop.generation, -3000, MINUTE)
        assert await self.reserve(shop, 1) == pytest.approx(306, abs=SOON)

    async def test_what_is_given_back_too_much_is_not_saved_up(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            await tx.ledger.refund(shop.generation, 1000, MINUTE)  # of nothing
        await self.reserve(shop, 1000)
        async with shop.target.begin() as tx:
            await tx.ledger.refund(shop.generation, 50_000, MINUTE)
            await tx.ledger.refund(shop.generation, 50_000, Rates())
        assert await self.reserve(shop, 1000) == 0.0
        assert await self.reserve(shop, 1000) == pytest.approx(61, abs=SOON)

    async def test_what_was_reserved_at_another_rate_is_worth_its_tokens_at_this_one(self, shop: Shop) -> None:
        """Or a limit that was ordered by mistake, of one token a minute, would hold everybody back for weeks."""
        await self.reserve(shop, 10_000, Rates(None, 1))
        assert await self.reserve(shop, 1000, Rates(None, 60_000)) == pytest.approx(10.2, abs=SOON / 2)
        assert 100 < await self.reserve(shop, 1, Rates(1, 600)) < 1130
        for _ in range(3):
            await self.reserve(shop, 1, Rates(1, None))
        assert await self.reserve(shop, 1, Rates(600, None)) < SOON

    async def test_a_rolled_back_reservation_took_nothing(self, shop: Shop) -> None:
        with pytest.raises(ZeroDivisionError):
            async with shop.target.begin() as tx:
                await tx.ledger.reserve(shop.generation, 1000, MINUTE)
                raise ZeroDivisionError
        assert await self.reserve(shop, 1000) == 0.0

    async def test_holding_off_delays_every_reservation_and_only_grows(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            await tx.ledger.hold_off(shop.generation, 300)
            await tx.ledger.hold_off(shop.generation, 100)
        assert await self.reserve(shop, 1000, Rates()) == pytest.approx(300, abs=SOON)
        assert await self.reserve(shop, 1000) == pytest.approx(300, abs=SOON)
        assert await self.reserve(shop, 1000) == pytest.approx(361, abs=SOON)
        assert await self.reserve(shop, 1, Rates(1, None)) == pytest.approx(300, abs=SOON)

    async def test_generations_have_budgets_of_their_own(self, shop: Shop) -> None:
        await self.reserve(shop, 9000)
        async with shop.target.begin() as tx:
            contract = builders.contract([shop.table], model="other")
            other = await tx.ledger.add_generation("v2", contract.as_json(), contract.id)
            assert await tx.ledger.reserve(other, 1000, MINUTE) == 0.0

    async def test_the_rates_of_the_last_reservation_are_known(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            assert await tx.ledger.paced_by(shop.generation) is None
            await tx.ledger.hold_off(shop.generation, 1)
            assert await tx.ledger.paced_by(shop.generation) is None
        await self.reserve(shop, 1, Rates(60, 1000))
        await self.reserve(shop, 1, Rates(None, 1000))
        async with shop.target.begin() as tx:
            assert await tx.ledger.paced_by(shop.generation) == Rates(None, 1000)

    async def test_orders_are_replaced_whole_and_empty_before_the_first(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            assert await tx.ledger.orders() == {}
            await tx.ledger.order({"paused": ["backfill"], "limits": {"v1": {"in_flight": 2}}})
        async with shop.target.begin() as tx:
            assert await tx.ledger.orders() == {"paused": ["backfill"], "limits": {"v1": {"in_flight": 2}}}
            await tx.ledger.order({})
        async with shop.target.begin() as tx:
            assert await tx.ledger.orders() == {}
