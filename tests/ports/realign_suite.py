"""Going on at other offsets, as every implementation of the target does it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.core.model import FeedIdentity, TopicPartition
from daemon.errors import LeaseLost
from daemon.ports import Realignment
from tests.builders import row, without
from tests.ports.target_shop import FEED, P0, P1, SOURCE, XID, Shop, key
from tests.ports.target_suite import Shops

NEW = TopicPartition("shop.public.articles", 2)
TO = Realignment(
    evidence={"barrier_lsn": 700},
    source=replace(SOURCE, timeline=2),
    feed=FeedIdentity("another", {"shop.public.articles": ("made anew", 3)}),
    offsets={P1: 5, NEW: 0},
    floor=700,
    pulse=6,
)


class RealignSuite(Shops):
    async def lease(self, shop: Shop) -> int:
        async with shop.target.begin() as tx:
            number = await tx.ledger.acquire_lease("realign", 60)
        assert number is not None
        return number

    async def test_it_replaces_what_a_start_recorded_and_begins_an_epoch(self, shop: Shop) -> None:
        await shop.start()
        number = await self.lease(shop)
        async with shop.target.begin() as tx:
            assert await tx.ledger.realign(number, TO) == 1
        async with shop.target.begin() as tx:
            state, checkpoint, (table,) = await tx.ledger.load(), await tx.ledger.checkpoint(), await tx.ledger.tables()
        assert (state.epoch, state.started, state.evidence) == (1, True, TO.evidence)
        assert (state.source, state.feed, state.pulse_seen) == (TO.source, TO.feed, 6)
        assert checkpoint == {P1: 5, NEW: 0}
        assert (table.floor, table.truncate_count, table.truncated) == (700, 1, None)

    async def test_the_lease_holds_for_the_new_checkpoints(self, shop: Shop) -> None:
        await shop.start()
        number = await self.lease(shop)
        async with shop.target.begin() as tx:
            await tx.ledger.realign(number, TO)
            await tx.ledger.advance(number, {NEW: (0, 3)})
        with pytest.raises(LeaseLost):
            async with shop.target.begin() as tx:
                await tx.ledger.advance(number, {P0: (10, 11)})
        with pytest.raises(LeaseLost):
            async with shop.target.begin() as tx:
                await tx.ledger.advance(number - 1, {NEW: (3, 4)})

    async def test_pulses_that_were_seen_stay_seen(self, shop: Shop) -> None:
        await shop.start()
        number = await self.lease(shop)
        async with shop.target.begin() as tx:
            await tx.ledger.observe_stream([], 9)
            await tx.ledger.realign(number, TO)
            assert (await tx.ledger.load()).pulse_seen == 9

    @pytest.mark.parametrize("is_released", [False, True])
    async def test_a_lease_that_is_gone_changes_nothing(self, shop: Shop, is_released: bool) -> None:
        await shop.start()
        number = await self.lease(shop)
        async with shop.target.begin() as tx:
            if is_released:
                await tx.ledger.release_lease(number)
            else:
                await tx.ledger.acquire_lease("realign", 60)
        with pytest.raises(LeaseLost):
            async with shop.target.begin() as tx:
                await tx.ledger.realign(number, TO)
        async with shop.target.begin() as tx:
            state, (table,) = await tx.ledger.load(), await tx.ledger.tables()
            assert await tx.ledger.checkpoint() == {P0: 10, P1: 20}
        assert (state.epoch, state.source, state.feed, table.floor, table.truncate_count) == (0, SOURCE, FEED, 50, 0)

    async def test_rows_that_lack_columns_lack_them_since_another_transaction(self, shop: Shop) -> None:
        await shop.change("1", without(row("1"), "body"), 7)
        await shop.change("2", row("2"), 8)
        await shop.change("3", without(row("3"), "body"), 9)
        await shop.change("3", None, 10)
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert await tx.replica.restamp_missing(shop.table, XID - 100) == 1
        lacking, whole, dead = await shop.state("1"), await shop.state("2"), await shop.state("3")
        assert (lacking.missing, lacking.missing_xid, lacking.xid) == ({"body"}, XID - 100, XID + 7)
        assert (whole.missing_xid, dead.missing_xid, dead.live) == (None, None, False)
        async with shop.target.begin() as tx:
            assert await tx.replica.missing(shop.table, 10) == [key("1")]

    async def test_a_certificate_of_an_earlier_epoch_has_no_age(self, shop: Shop) -> None:
        await shop.start()
        number = await self.lease(shop)
        async with shop.target.begin() as tx:
            await tx.ledger.store_certificate(shop.generation, {"schema": "revector.certificate/1"}, "one")
            assert await tx.ledger.certificate_age(shop.generation) is not None
            await tx.ledger.realign(number, TO)
            assert await tx.ledger.certificate_age(shop.generation) is None
            await tx.ledger.store_certificate(shop.generation, {"epoch": 1}, "two")
            assert await tx.ledger.certificate_age(shop.generation) is not None
