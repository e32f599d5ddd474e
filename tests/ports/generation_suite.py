"""What every implementation of the Target port does with several generations: fed, swept, dropped, apart."""

from __future__ import annotations

import pytest

from daemon.core.model import Generation, WorkState
from daemon.errors import StepRefused
from tests import builders
from tests.builders import row, without
from tests.ports.target_shop import WHERE, Shop, at, chunks_of, key
from tests.ports.target_suite import Shops


class GenerationSuite(Shops):
    async def add(self, shop: Shop, name: str = "v2") -> Generation:
        """Another generation of the same dimensions, as an operator adds it."""
        contract = builders.contract(document_prefix=name)
        async with shop.target.begin() as tx:
            return await tx.ledger.add_generation(name, contract.as_json(), contract.id)

    async def owed(self, shop: Shop, generation: Generation) -> dict[int, tuple[int, bool]]:
        """row -> (oldest seq, is live) of what waits in a generation."""
        async with shop.target.begin() as tx:
            claims = await tx.ledger.claim(shop.table, generation, "looks", 100, -1)
            entries = await tx.ledger.entries(shop.table, generation, [c.row_id for c in claims])
        return {c.row_id: (entries[c.row_id].oldest_seq, c.live) for c in claims}

    async def sweep(self, shop: Shop, generation: Generation, limit: int = 100) -> int:
        async with shop.target.begin() as tx:
            return await tx.ledger.sweep(shop.table, generation, limit)

    async def test_a_sweep_hands_over_every_wanted_row_once_in_row_order(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"), row("3"))
        await shop.change("2", None, 7)
        await shop.start()
        second = await self.add(shop)
        assert await self.owed(shop, second) == {}
        assert [await self.sweep(shop, second, 2) for _ in range(3)] == [2, 1, 0]
        owed = await self.owed(shop, second)
        assert set(owed) == {ids["1"], ids["3"]}
        assert owed[ids["1"]][0] < owed[ids["3"]][0]
        assert not any(live for _, live in owed.values())
        async with shop.target.begin() as tx:
            highest = await tx.ledger.highest_seq()
        assert highest >= owed[ids["3"]][0]

    async def test_a_sweep_gives_rows_fresh_seqs(self, shop: Shop) -> None:
        """What it owes must lie above what was noted before: an older seq could pass for embedded."""
        ids = await shop.copy(row("1"))
        await shop.start()
        second = await self.add(shop)
        async with shop.target.begin() as tx:
            noted = await tx.ledger.highest_seq()
        await self.sweep(shop, second)
        assert (await self.owed(shop, second))[ids["1"]][0] > noted

    async def test_a_sweep_leaves_entries_of_the_stream_as_they_are(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"))
        await shop.start()
        second = await self.add(shop)
        await shop.change("1", row("1", title="new"), 7)
        before = await self.owed(shop, second)
        async with shop.target.begin() as tx:
            claims = await tx.ledger.claim(shop.table, second, "w", 9, 60)
            await tx.replica.lock_rows(shop.table, [ids["1"]])
            await tx.ledger.refuse(shop.table, second, "w", claims, "status-400")
        await self.sweep(shop, second)
        async with shop.target.begin() as tx:
            entry = (await tx.ledger.entries(shop.table, second, [ids["1"]]))[ids["1"]]
        assert (entry.state, entry.oldest_seq) == (WorkState.REFUSED, before[ids["1"]][0])
        assert set(await self.owed(shop, second)) == {ids["2"]}

    async def test_a_sweep_passes_over_what_where_does_not_hold_for(self, filtered: Shop) -> None:
        assert filtered.table.where == WHERE
        await filtered.copy(row("1", tenant="draft"), row("2", tenant=None))
        ids = await filtered.copy(row("3"))
        await filtered.change("4", without(row("4"), "tenant"), 7)
        await filtered.start()
        second = await self.add(filtered)
        assert await self.sweep(filtered, second) == 4
        assert set(await self.owed(filtered, second)) == {ids["3"]}

    async def test_a_sweep_that_is_rolled_back_takes_the_same_rows_again(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"))
        await shop.start()
        second = await self.add(shop)
        with pytest.raises(ZeroDivisionError):
            async with shop.target.begin() as tx:
                assert await tx.ledger.sweep(shop.table, second, 1) == 1
                raise ZeroDivisionError
        assert await self.owed(shop, second) == {}
        assert [await self.sweep(shop, second, 1) for _ in range(3)] == [1, 1, 0]
        assert set(await self.owed(shop, second)) == set(ids.values())

    async def test_a_swept_or_dropped_generation_has_nothing_to_sweep(self, shop: Shop) -> None:
        await shop.copy(row("1"))
        assert await self.sweep(shop, shop.generation) == 0
        await shop.start()
        second, third = await self.add(shop), await self.add(shop, "v3")
        async with shop.target.begin() as tx:
            await tx.ledger.set_swept(second)
        assert [g.swept for g in await self.generations(shop)] == [True, True, False]
        assert await self.sweep(shop, second) == 0
        async with shop.target.begin() as tx:
            await tx.ledger.drop_generation(third)
        assert await self.sweep(shop, third) == 0
        async with shop.target.begin() as tx:
            assert await tx.ledger.lowest_owed(third) is None

    async def test_every_fed_generation_gets_work_and_loses_chunks_with_the_row(self, shop: Shop) -> None:
        await shop.start()
        second = await self.add(shop)
        ids = await shop.copy(row("1"), row("2"))
        assert set(await self.owed(shop, second)) == set(await shop.claim("looks", -1)) == set(ids.values())
        for generation in (shop.generation, second):
            await self.store(shop, generation, ids["1"], f"of {generation.name}")
        await shop.change("1", None, 7)
        assert await self.stored(shop, shop.generation, ids["1"]) == await self.stored(shop, second, ids["1"]) == []
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert await tx.replica.truncate(shop.table, at(20))
        assert await self.owed(shop, second) == {}

    async def test_a_drop_leaves_nothing_of_it_and_everything_of_the_others(self, shop: Shop) -> None:
        await shop.start()
        second = await self.add(shop)
        ids = await shop.copy(row("1"), row("2"))
        for generation in (shop.generation, second):
            await self.store(shop, generation, ids["1"], "text")
        async with shop.target.begin() as tx:
            await tx.ledger.store_certificate(second, {"number": 1}, "digest")
            await tx.ledger.drop_generation(second)
        assert await self.generations(shop) == [shop.generation]
        async with shop.target.begin() as tx:
            assert await tx.ledger.hold_migration() == [shop.generation]
            assert await tx.ledger.lowest_owed(second) is None
            assert await tx.ledger.certificate_age(second) is not None
        assert len(await self.stored(shop, shop.generation, ids["1"])) == 1
        assert set(await shop.claim()) == set(ids.values())
        await shop.change("1", None, 7)  # the stream goes on
        again = await self.add(shop)
        assert again.id != second.id
        assert await self.stored(shop, again, ids["2"]) == []

    async def test_dropping_what_is_gone_changes_nothing(self, shop: Shop) -> None:
        second, third = await self.add(shop), await self.add(shop, "v3")
        for _ in range(2):
            async with shop.target.begin() as tx:
                await tx.ledger.drop_generation(second)
        assert await self.generations(shop) == [shop.generation, third]

    async def test_the_last_generation_is_not_dropped(self, shop: Shop) -> None:
        with pytest.raises(StepRefused, match="only generation") as refused:
            async with shop.target.begin() as tx:
                await tx.ledger.drop_generation(shop.generation)
        assert refused.value.id == "generation-last"
        assert await self.generations(shop) == [shop.generation]

    async def generations(self, shop: Shop) -> list[Generation]:
        async with shop.target.begin() as tx:
            return await tx.ledger.generations()

    async def store(self, shop: Shop, generation: Generation, row_id: int, text: str) -> None:
        chunks, vectors = chunks_of(row_id, text)
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, [row_id])
            assert await tx.vectors.replace(shop.table, generation, chunks, vectors, [row_id]) == set()

    async def stored(self, shop: Shop, generation: Generation, row_id: int) -> list[bytes]:
        async with shop.target.begin() as tx:
            (document,) = await tx.replica.documents(shop.table, generation, [row_id])
        return list(document.stored)

    async def test_no_generation_is_routed_before_a_cutover(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            assert await tx.ledger.routed() is None
            assert await tx.replica.lock(shop.table, [key("1")]) == {}
