"""What every implementation of the Target port does for rows that are to be embedded again."""

from __future__ import annotations

import pytest

from daemon.core.model import Claim, WorkState
from daemon.errors import ConfigError
from daemon.ports import ChosenRow, Condition
from tests.builders import row, without
from tests.ports.target_shop import Shop, Targets
from tests.ports.target_suite import Shops

CONDITION = "views > 1 AND title <> 'B'"


class SelectionSuite(Shops):
    @pytest.fixture(autouse=True)
    def _condition(self, targets: Targets) -> None:
        targets.condition(CONDITION, ("title", "views"), lambda v: int(v["views"] or 0) > 1 and v["title"] != "B")

    async def check(self, shop: Shop, text: str = CONDITION) -> Condition:
        async with shop.target.begin() as tx:
            return await tx.replica.condition(shop.table, text)

    async def chosen(
        self, shop: Shop, condition: Condition | None = None, after: int = 0, rows: int = 100
    ) -> tuple[list[ChosenRow], int | None]:
        async with shop.target.begin() as tx:
            return await tx.replica.chosen(shop.table, condition, shop.generation, after, rows)

    async def keys(self, shop: Shop, condition: Condition | None = None) -> list[str]:
        found, upto = await self.chosen(shop, condition)
        assert upto is None
        return [chosen.key[0] for chosen in found]

    async def test_a_condition_is_checked_and_its_columns_are_found(self, shop: Shop) -> None:
        assert await self.check(shop) == Condition(CONDITION, ("title", "views"))
        with pytest.raises(ConfigError) as error:
            await self.check(shop, "views >")
        assert (error.value.id, error.value.problems[0].where) == ("where-invalid", "--where")

    async def test_a_condition_chooses_live_rows_for_which_it_is_true(self, shop: Shop) -> None:
        await shop.copy(row("1", views="2"), row("2", views="1"), row("3", title="B", views="2"), row("4", views=None))
        await shop.copy(row("5", views="3"), row("6", views="3"))
        await shop.change("5", None, 7)
        assert await self.keys(shop, await self.check(shop)) == ["1", "6"]
        assert await self.keys(shop) == ["1", "2", "3", "4", "6"]

    async def test_a_row_that_lacks_a_column_of_the_condition_is_not_chosen(self, shop: Shop) -> None:
        await shop.change("1", without(row("1", views="2"), "title"), 7)
        await shop.change("2", without(row("2", views="2"), "body"), 8)
        assert await self.keys(shop, await self.check(shop)) == ["2"]

    async def test_rows_that_are_not_wanted_are_not_chosen(self, filtered: Shop) -> None:
        await filtered.copy(row("1", views="2"), row("2", tenant="draft", views="2"), row("3", tenant=None, views="2"))
        assert await self.keys(filtered) == await self.keys(filtered, await self.check(filtered)) == ["1"]

    async def test_pages_go_through_all_rows_in_their_order(self, shop: Shop) -> None:
        ids = await shop.copy(*(row(k, views=k) for k in "12345"))
        condition = await self.check(shop)
        first, upto = await self.chosen(shop, condition, rows=3)
        assert ([c.row_id for c in first], upto) == ([ids["2"], ids["3"]], ids["3"])
        second, upto = await self.chosen(shop, condition, ids["3"], 2)
        assert ([c.key for c in second], upto) == ([("4",), ("5",)], ids["5"])
        assert await self.chosen(shop, condition, ids["5"], 2) == ([], None)

    async def test_an_accepted_entry_is_spared_where_that_is_asked_for(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"))
        claims = await shop.claim()
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, list(claims))
            await tx.ledger.refuse(shop.table, shop.generation, "w", list(claims.values()), "status-400")
            await tx.ledger.accept(shop.table, shop.generation, [ids["1"]])
        assert await self.keys(shop) == ["2"]
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, list(ids.values()))
            spared = await tx.replica.chosen_of(shop.table, None, shop.generation, list(ids.values()))
            named = await tx.replica.chosen_of(shop.table, None, None, list(ids.values()))
        assert [c.key for c in spared] == [("2",)]
        assert [c.key for c in named] == [("1",), ("2",)]

    async def test_of_locked_rows_those_that_are_still_chosen(self, shop: Shop) -> None:
        ids = await shop.copy(row("1", views="2"), row("2", views="2"), row("3", views="2"))
        condition = await self.check(shop)
        await shop.change("2", row("2", views="1"), 7)
        await shop.change("3", None, 8)
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, list(ids.values()))
            found = await tx.replica.chosen_of(shop.table, condition, shop.generation, list(ids.values()))
        assert found == [ChosenRow(ids["1"], ("1",))]

    async def test_row_ids_by_key(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"))
        await shop.change("2", None, 7)
        async with shop.target.begin() as tx:
            found = await tx.replica.row_ids(shop.table, [("2",), ("9",), ("1",)])
        assert found == {("1",): ids["1"], ("2",): ids["2"]}


class AfreshSuite(Shops):
    async def put(self, shop: Shop, *row_ids: int, live: bool = False, afresh: bool = True) -> None:
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            await tx.replica.lock_rows(shop.table, row_ids)
            await tx.ledger.put_work(shop.table, [shop.generation], row_ids, live, afresh=afresh)

    async def settle(self, shop: Shop, claim: Claim, *, moved: bool) -> None:
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, [claim.row_id])
            done, moves = ([], {claim.row_id: claim.seq + 1}) if moved else ([claim.row_id], {})
            await tx.ledger.settle(shop.table, shop.generation, "w", done, moves, [])

    async def claimed(self, shop: Shop, row_id: int) -> Claim:
        return (await shop.claim("w"))[row_id]

    async def test_work_of_a_page_or_a_change_is_not_afresh(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"))
        await shop.change("1", row("1", title="new"), 7)
        assert not (await self.claimed(shop, ids["1"])).afresh

    async def test_a_new_entry_is_afresh_and_not_live(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"))
        await self.settle(shop, await self.claimed(shop, ids["1"]), moved=False)
        await self.put(shop, ids["1"])
        claim = await self.claimed(shop, ids["1"])
        assert (claim.afresh, claim.live) == (True, False)

    async def test_an_entry_that_waits_becomes_afresh_and_keeps_its_place(self, shop: Shop) -> None:
        changed = await shop.change("1", row("1"), 7)
        before = await shop.entry(changed.row_id)
        await self.put(shop, changed.row_id)
        after = await shop.entry(changed.row_id)
        assert (after.oldest_seq, after.newest_seq > before.newest_seq) == (before.oldest_seq, True)
        claim = await self.claimed(shop, changed.row_id)
        assert (claim.afresh, claim.live) == (True, True)

    async def test_a_later_change_leaves_it_afresh(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"))
        await self.put(shop, ids["1"])
        await shop.change("1", row("1", title="new"), 7)
        assert (await self.claimed(shop, ids["1"])).afresh

    async def test_what_moved_is_afresh_no_more_once_it_was_written_afresh(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"))
        await self.put(shop, ids["1"])
        claim = await self.claimed(shop, ids["1"])
        await shop.change("1", row("1", title="new"), 7)
        await self.settle(shop, claim, moved=True)
        assert not (await self.claimed(shop, ids["1"])).afresh

    async def test_what_was_put_afresh_after_the_claim_stays_so(self, shop: Shop) -> None:
        """Its vectors were asked for before."""
        ids = await shop.copy(row("1"))
        for _ in range(2):
            claim = await self.claimed(shop, ids["1"])
            await self.put(shop, ids["1"])
            await self.settle(shop, claim, moved=True)
        assert (await self.claimed(shop, ids["1"])).afresh

    async def test_a_refusal_and_a_freed_claim_leave_it_afresh(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"))
        await self.put(shop, ids["1"])
        claim = await self.claimed(shop, ids["1"])
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, [claim.row_id])
            await tx.ledger.settle(shop.table, shop.generation, "w", [], {}, [claim.row_id])
            await tx.ledger.refuse(shop.table, shop.generation, "w", [claim], "status-400")
        assert (await shop.entry(ids["1"])).state is WorkState.REFUSED
        await self.put(shop, ids["1"], afresh=False)
        assert (await self.claimed(shop, ids["1"])).afresh

    async def test_only_the_named_rows_are_afresh(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"), row("3"))
        await self.put(shop, ids["1"], ids["3"])
        claims = await shop.claim("w")
        assert {k for k in ids if claims[ids[k]].afresh} == {"1", "3"}
