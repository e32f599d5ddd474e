"""What every implementation of the Target port does. A concrete test class provides the fixture `targets`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from daemon.core.contract import Chunker
from daemon.core.model import (
    REPLICATION,
    Claim,
    HaltNote,
    Position,
    Quarantined,
    RowWrite,
    Tally,
    TopicPartition,
    WorkState,
    WriteKind,
)
from daemon.errors import ConfigError, LeaseLost, SchemaChanged
from daemon.flow.stream import follow_up
from daemon.ports import SourceRow
from tests import builders
from tests.builders import row, without
from tests.ports.target_shop import (
    FEED,
    P0,
    P1,
    SOURCE,
    WHERE,
    WHERE_COLUMNS,
    XID,
    Shop,
    Targets,
    at,
    chunks_of,
    digest_of,
    key,
    source_row,
)


class Shops:
    @pytest.fixture
    async def shop(self, targets: Targets) -> Shop:
        return await Shop.open(targets)

    @pytest.fixture
    async def filtered(self, targets: Targets) -> Shop:
        """The same with a `where`."""
        return await Shop.open(targets, WHERE)


class ReplicaSuite(Shops):
    async def test_tables_and_chunks_may_be_made_again(self, filtered: Shop) -> None:
        await filtered.target.prepare()
        again = await filtered.target.create_tables([builders.articles(where=WHERE)])
        assert again == [filtered.table]
        assert filtered.table.where_columns == WHERE_COLUMNS
        await filtered.target.create_chunks([filtered.table], filtered.generation)

    async def test_a_table_that_differs_from_its_record_is_refused(self, shop: Shop) -> None:
        with pytest.raises(SchemaChanged, match="articles"):
            await shop.target.create_tables([builders.articles(columns=shop.table.columns[:4])])

    async def test_an_insert_keeps_position_and_full_xid(self, shop: Shop) -> None:
        effect = await shop.change("1", row("1"), 7)
        assert (effect.was_live, effect.is_live, effect.is_wanted, effect.text_differs) == (False, True, True, True)
        state = await shop.state("1")
        assert (state.row_id, state.live, state.position, state.xid) == (effect.row_id, True, at(7), XID + 7)
        assert (state.missing, state.missing_xid) == (frozenset(), None)

    async def test_an_insert_without_a_column_leaves_it_missing_since_its_own_xid(self, shop: Shop) -> None:
        await shop.change("1", without(row("1"), "body"), 7)
        state = await shop.state("1")
        assert (state.missing, state.missing_xid) == ({"body"}, XID + 7)

    async def test_an_insert_of_a_key_that_exists_is_left_over_and_changes_nothing(self, shop: Shop) -> None:
        await shop.copy(row("1", title="page"))
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            writes = [
                RowWrite(WriteKind.INSERT, key("1"), None, row("1", title="event"), at(7), XID),
                RowWrite(WriteKind.INSERT, key("2"), None, row("2"), at(8), XID),
                RowWrite(WriteKind.BURY, key("3"), None, None, at(9), XID),
            ]
            effects, leftovers = await tx.replica.write(shop.table, writes)
        assert leftovers == writes[:1]
        assert {e.key for e in effects} == {key("2"), key("3")}
        assert (await shop.state("1")).position is None

    async def test_an_update_sets_known_columns_and_keeps_the_others(self, shop: Shop) -> None:
        ids = await shop.copy(row("1", title="old", body="body"))
        effect = await shop.change("1", without(row("1", title="new", views="9"), "body"), 7)
        assert effect.text_differs
        assert not effect.replaced
        assert (await shop.document(ids["1"])).values == {"title": "new", "body": "body"}
        state = await shop.state("1")
        assert (state.position, state.missing) == (at(7), frozenset())

    async def test_an_update_of_metadata_does_not_differ_in_text(self, shop: Shop) -> None:
        await shop.copy(row("1"))
        effect = await shop.change("1", row("1", views="9"), 7)
        assert (effect.text_differs, effect.filters_differ) == (False, False)
        effect = await shop.change("1", row("1", views="9", tenant="t2"), 8)
        assert (effect.text_differs, effect.filters_differ) == (False, True)

    async def test_null_and_empty_text_differ(self, shop: Shop) -> None:
        ids = await shop.copy(row("1", title=None))
        assert (await shop.document(ids["1"])).values["title"] is None
        assert not (await shop.change("1", row("1", title=None), 7)).text_differs
        assert (await shop.change("1", row("1", title=""), 8)).text_differs

    async def test_an_update_that_carries_a_missing_column_completes_it(self, shop: Shop) -> None:
        await shop.change("1", without(row("1"), "body", "title"), 7)
        effect = await shop.change("1", without(row("1"), "title"), 8)
        assert effect.text_differs
        state = await shop.state("1")
        assert (state.missing, state.missing_xid, state.xid) == ({"title"}, XID + 7, XID + 8)
        await shop.change("1", without(row("1"), "body"), 9)
        state = await shop.state("1")
        assert (state.missing, state.missing_xid) == (frozenset(), None)

    async def test_a_missing_column_that_turns_out_null_differs(self, shop: Shop) -> None:
        await shop.change("1", without(row("1"), "body"), 7)
        assert (await shop.change("1", row("1", body=None), 8)).text_differs

    async def test_a_create_on_a_live_row_keeps_none_of_its_columns(self, shop: Shop) -> None:
        ids = await shop.copy(row("1", body="old"))
        await shop.store(ids["1"], "old")
        effect = await shop.change("1", without(row("1"), "body"), 7, create=True)
        assert effect.replaced
        assert effect.text_differs
        state = await shop.state("1")
        assert (state.missing, state.missing_xid, state.row_id) == ({"body"}, XID + 7, ids["1"])
        document = await shop.document(ids["1"])
        assert (document.values, document.stored) == (None, {})

    async def test_a_create_with_the_same_text_does_not_differ(self, shop: Shop) -> None:
        await shop.copy(row("1"))
        effect = await shop.change("1", row("1", views="3"), 7, create=True)
        assert (effect.replaced, effect.text_differs, effect.was_wanted) == (True, False, True)

    async def test_a_delete_leaves_a_tombstone_that_a_page_cannot_overrule(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"))
        await shop.store(ids["1"], "text")
        effect = await shop.change("1", None, 7)
        assert (effect.was_live, effect.is_live, effect.was_wanted, effect.is_wanted) == (True, False, True, False)
        await shop.change("2", None, 8)  # never seen
        assert await shop.copy(row("1"), row("2")) == {}
        for name, lsn in (("1", 7), ("2", 8)):
            state = await shop.state(name)
            assert (state.live, state.position, state.missing) == (False, at(lsn), frozenset())
        assert await shop.stored(ids["1"]) == {}
        assert await shop.entry(ids["1"]) is None

    async def test_a_delete_forgets_what_was_missing(self, shop: Shop) -> None:
        await shop.change("1", without(row("1"), "body"), 7)
        await shop.change("1", None, 8)
        async with shop.target.begin() as tx:
            assert await tx.replica.missing(shop.table, 10) == []

    async def test_a_tombstone_becomes_live_again_in_its_row(self, shop: Shop) -> None:
        dead = await shop.change("1", None, 7)
        effect = await shop.change("1", without(row("1"), "views"), 8)
        assert effect.row_id == dead.row_id
        assert (effect.was_live, effect.is_live, effect.text_differs) == (False, True, True)
        assert (await shop.state("1")).missing == {"views"}

    async def test_a_page_inserts_absent_rows_only(self, shop: Shop) -> None:
        await shop.change("1", row("1", title="event"), 7)
        ids = await shop.copy(row("2"), row("1", title="page"))
        assert set(ids) == {"2"}
        assert (await shop.state("2")).position is None
        assert (await shop.document((await shop.state("1")).row_id)).values["title"] == "event"

    async def test_a_fill_sets_only_missing_columns_and_keeps_the_position(self, shop: Shop) -> None:
        effect = await shop.change("1", without(row("1", title="event"), "body", "tenant"), 7)
        await shop.change("2", without(row("2"), "views"), 8)
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert await tx.replica.missing(shop.table, 10) == [key("1"), key("2")]
            states = await tx.replica.lock(shop.table, [key("1"), key("2")])
            page = [source_row(row("1", title="page", body="page")), source_row(row("2", views="5"))]
            effects = await tx.replica.fill(shop.table, [(states[r.key], r) for r in page])
        by_key = {e.key[0]: e for e in effects}
        assert (by_key["1"].text_differs, by_key["1"].filters_differ, by_key["1"].replaced) == (True, True, False)
        assert (by_key["2"].text_differs, by_key["2"].filters_differ) == (False, False)
        assert (await shop.document(effect.row_id)).values == {"title": "event", "body": "page"}
        state = await shop.state("1")
        assert (state.position, state.xid, state.missing, state.missing_xid) == (at(7), XID + 7, frozenset(), None)

    async def test_a_truncate_removes_what_is_older_with_chunks_and_work(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"))
        await shop.store(ids["1"], "one")
        await shop.change("3", None, 10)
        newer = await shop.change("2", row("2", title="new"), 30)
        await shop.store(newer.row_id, "two")
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert await tx.replica.truncate(shop.table, at(20))
            assert await tx.replica.truncate_count(shop.table) == 1
        assert [await shop.state(k) for k in ("1", "3")] == [None, None]
        assert (await shop.state("2")).position == at(30)
        assert await shop.stored(ids["1"]) == {}
        assert set(await shop.stored(newer.row_id)) == {digest_of("two")}
        assert await shop.entry(ids["1"]) is None
        assert await shop.entry(newer.row_id) is not None
        async with shop.target.begin() as tx:
            (recorded,) = await tx.ledger.tables()
        assert (recorded.truncated, recorded.truncate_count) == (at(20), 1)

    @pytest.mark.parametrize("late", [at(20), at(19)])
    async def test_a_truncate_at_or_below_the_recorded_one_does_nothing(self, shop: Shop, late: Position) -> None:
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert await tx.replica.truncate(shop.table, at(20))
        await shop.copy(row("1"))
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert not await tx.replica.truncate(shop.table, late)
            assert await tx.replica.hold_truncate_count(shop.table) == 1
        assert (await shop.state("1")).live

    async def test_a_truncate_of_a_later_epoch_counts_whatever_its_lsn(self, shop: Shop) -> None:
        await shop.change("1", row("1"), 90)
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            assert await tx.replica.truncate(shop.table, at(95))
            assert await tx.replica.truncate(shop.table, at(5, epoch=1))

    async def test_where_decides_what_is_wanted_as_stored(self, filtered: Shop) -> None:
        shop = filtered
        assert not (await shop.change("1", row("1", tenant="draft"), 7)).is_wanted
        turned = await shop.change("1", row("1", tenant="t1"), 8)
        assert (turned.was_wanted, turned.is_wanted, turned.text_differs) == (False, True, False)
        assert await shop.entry(turned.row_id) is not None
        await shop.store(turned.row_id, "text")
        unknown = await shop.change("1", row("1", tenant=None), 9)
        assert (unknown.was_wanted, unknown.is_wanted) == (True, False)
        assert await shop.stored(turned.row_id) == {}
        assert await shop.entry(turned.row_id) is None

    async def test_where_on_a_missing_column_is_unknown_until_it_is_filled(self, filtered: Shop) -> None:
        shop = filtered
        made = await shop.change("1", without(row("1"), "tenant"), 7)
        assert not made.is_wanted
        same = await shop.change("1", without(row("1", views="5"), "tenant"), 8)
        assert (same.was_wanted, same.is_wanted) == (False, False)
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            states = await tx.replica.lock(shop.table, [key("1")])
            (effect,) = await tx.replica.fill(shop.table, [(states[key("1")], source_row(row("1")))])
        assert (effect.was_wanted, effect.is_wanted, effect.text_differs) == (False, True, False)
        gone = await shop.change("1", without(row("1"), "tenant"), 9, create=True)
        assert (gone.was_wanted, gone.is_wanted) == (True, False)

    async def test_a_page_row_counts_as_wanted_by_where(self, filtered: Shop) -> None:
        ids = await filtered.copy(row("1", tenant="draft"), row("2"))
        assert await filtered.entry(ids["1"]) is None
        assert await filtered.entry(ids["2"]) is not None

    async def test_locked_rows_are_usable_when_live_with_known_filters(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"))
        no_filter = await shop.change("2", without(row("2"), "tenant"), 7)
        no_text = await shop.change("3", without(row("3"), "body"), 8)
        dead = await shop.change("4", None, 9)
        rows = [ids["1"], no_filter.row_id, no_text.row_id, dead.row_id, 999]
        async with shop.target.begin() as tx:
            assert await tx.replica.lock_rows(shop.table, rows) == {ids["1"], no_text.row_id}
            documents = await tx.replica.documents(shop.table, shop.generation, rows)
        assert [d.row_id for d in documents] == rows
        assert [d.values is None for d in documents] == [False, False, True, True, True]

    async def test_what_raises_in_the_block_leaves_nothing(self, shop: Shop) -> None:
        with pytest.raises(ZeroDivisionError):
            async with shop.target.begin() as tx:
                await tx.ledger.hold_migration()
                await tx.replica.copy_in(shop.table, [source_row(row("1"))])
                raise ZeroDivisionError
        assert await shop.state("1") is None


class VectorsSuite(Shops):
    @pytest.fixture
    async def row_id(self, shop: Shop) -> int:
        return (await shop.copy(row("1", tenant="t1")))["1"]

    async def replace(self, shop: Shop, row_id: int, wanted: list[str], fresh: list[str]) -> set[int]:
        """Chunks `wanted`, of which `fresh` come with a vector and the others are kept."""
        chunks, _ = chunks_of(row_id, *wanted)
        _, vectors = chunks_of(row_id, *fresh)
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, [row_id])
            return await tx.vectors.replace(shop.table, shop.generation, chunks, vectors, [row_id])

    async def test_kept_chunks_move_and_surplus_ones_go(self, shop: Shop, row_id: int) -> None:
        await shop.store(row_id, "a", "b", "c")
        assert await self.replace(shop, row_id, ["c", "a"], []) == set()
        assert await shop.stored(row_id) == {digest_of("c"): 0, digest_of("a"): 1}

    async def test_fresh_and_kept_chunks_mix(self, shop: Shop, row_id: int) -> None:
        await shop.store(row_id, "a", "b")
        assert await self.replace(shop, row_id, ["x", "a", "b"], ["x"]) == set()
        assert await shop.stored(row_id) == {digest_of(t): n for n, t in enumerate(["x", "a", "b"])}

    async def test_a_kept_digest_that_is_gone_leaves_the_row_untouched(self, shop: Shop, row_id: int) -> None:
        """History 14: worker W kept chunk a, a zombie replaced the chunks meanwhile."""
        await shop.store(row_id, "b")
        assert await self.replace(shop, row_id, ["a", "c"], ["c"]) == {row_id}
        assert await shop.stored(row_id) == {digest_of("b"): 0}

    async def test_a_row_without_chunks_loses_all_of_its(self, shop: Shop, row_id: int) -> None:
        await shop.store(row_id, "a", "b")
        assert await self.replace(shop, row_id, [], []) == set()
        async with shop.target.begin() as tx:
            assert await tx.vectors.counts(shop.table, shop.generation) == (0, 0)

    async def test_only_the_named_rows_change(self, shop: Shop, row_id: int) -> None:
        other = (await shop.copy(row("2")))["2"]
        await shop.store(other, "a", "b")
        await shop.store(row_id, "a")
        async with shop.target.begin() as tx:
            assert await tx.vectors.counts(shop.table, shop.generation) == (2, 3)
            await tx.replica.lock_rows(shop.table, [row_id])
            await tx.vectors.drop(shop.table, [shop.generation], [row_id])
        assert await shop.stored(row_id) == {}
        assert len(await shop.stored(other)) == 2


class LedgerSuite(Shops):
    async def test_start_is_recorded_once(self, shop: Shop) -> None:
        await shop.start(floor=50)
        async with shop.target.begin() as tx:
            await tx.ledger.start({"x": 1}, SOURCE, FEED, {P0: 99}, 99)
            state, checkpoint, (table,) = await tx.ledger.load(), await tx.ledger.checkpoint(), await tx.ledger.tables()
        assert (state.name, state.started, state.source, state.feed) == ("shop", True, SOURCE, FEED)
        assert state.evidence == {"barrier_lsn": 50}
        assert checkpoint == {P0: 10, P1: 20}
        assert (table.floor, table.table, table.backfilled) == (50, shop.table, False)

    async def test_a_peer_gets_the_lease_only_when_it_is_free_or_expired(self, shop: Shop) -> None:
        await shop.start()
        async with shop.target.begin() as tx:
            first = await tx.ledger.acquire_lease("a", 60)
            assert await tx.ledger.acquire_lease("b", 60) is None
            assert first is not None
            await tx.ledger.renew_lease(first, -1)
        async with shop.target.begin() as tx:
            second = await tx.ledger.acquire_lease("b", 60)
            assert second == first + 1
            with pytest.raises(LeaseLost):
                await tx.ledger.renew_lease(first, 60)
        async with shop.target.begin() as tx:
            await tx.ledger.release_lease(first)  # no longer its own
            assert await tx.ledger.acquire_lease("c", 60) is None
            await tx.ledger.release_lease(second)
            assert await tx.ledger.acquire_lease("c", 60) == second + 1

    async def test_the_owner_may_take_its_lease_again(self, shop: Shop) -> None:
        await shop.start()
        async with shop.target.begin() as tx:
            assert await tx.ledger.acquire_lease("a", 60) == 1
            assert await tx.ledger.acquire_lease("a", 60) == 2
            state = await tx.ledger.load()
        assert (state.lease_number, state.lease_owner) == (2, "a")
        assert state.lease_left_s is not None

    async def test_the_checkpoint_moves_under_the_lease_from_the_expected_offset(self, shop: Shop) -> None:
        await shop.start()
        async with shop.target.begin() as tx:
            number = await tx.ledger.acquire_lease("a", 60)
            assert number is not None
            await tx.ledger.advance(number, {P0: (10, 13)})
        async with shop.target.begin() as tx:
            assert await tx.ledger.checkpoint() == {P0: 13, P1: 20}

    @pytest.mark.parametrize(
        ("number", "moves"),
        [
            (1, {P0: (10, 13)}),
            (2, {P0: (10, 13), P1: (19, 22)}),
            (2, {TopicPartition("other", 0): (0, 1)}),
        ],
    )
    async def test_a_zombie_keeps_nothing_of_its_window(
        self, shop: Shop, number: int, moves: dict[TopicPartition, tuple[int, int]]
    ) -> None:
        await shop.start()
        async with shop.target.begin() as tx:
            await tx.ledger.acquire_lease("a", 60)
            await tx.ledger.acquire_lease("a", 60)
        with pytest.raises(LeaseLost):
            async with shop.target.begin() as tx:
                await tx.ledger.hold_migration()
                await tx.replica.copy_in(shop.table, [source_row(row("1"))])
                await tx.ledger.advance(number, moves)
        async with shop.target.begin() as tx:
            assert await tx.ledger.checkpoint() == {P0: 10, P1: 20}
        assert await shop.state("1") is None

    async def test_the_log_s_witnesses_are_kept(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            await tx.ledger.observe_stream(["r1", "r2"], 4)
            await tx.ledger.observe_stream(["r2", "r3"], None)
            await tx.ledger.observe_stream([], 3)
            await tx.ledger.pulse_sent(9)
            await tx.ledger.observe({"lag_s": 0.5})
            await tx.ledger.journal("break", "pulse-missing", {"from": 2})
            await tx.ledger.journal("operator", "pause", {})
        async with shop.target.begin() as tx:
            state, breaks = await tx.ledger.load(), await tx.ledger.breaks()
        assert (state.run_ids, state.pulse_seen, state.pulse_sent) == (("r1", "r2", "r3"), 4, 9)
        assert state.observed == {"lag_s": 0.5}
        assert state.observed_age_s is not None
        assert [(b.id, b.detail) for b in breaks] == [("pulse-missing", {"from": 2})]

    async def test_a_halt_stays_until_it_is_cleared(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            assert (await tx.ledger.load()).halted == {}
            await tx.ledger.halt("chunks-gone", HaltNote("first", "hint"), shop.generation.role)
            await tx.ledger.halt("offsets-gone", HaltNote("message", "hint", "revector realign {migration}"), "stream")
            await tx.ledger.halt("later", HaltNote("later", "hint"), "stream")
        async with shop.target.begin() as tx:
            state = await tx.ledger.load()
            halted = state.halted
            assert {role: halt["id"] for role, halt in halted.items()} == {
                shop.generation.role: "chunks-gone",
                "stream": "offsets-gone",
            }
            note = HaltNote("message", "hint", "revector realign {migration}")
            assert state.halts_of(REPLICATION) == {"offsets-gone": note}
            await tx.ledger.clear_halt(["backfill", shop.generation.role])
            assert list((await tx.ledger.load()).halted) == ["stream"], "another role's start clears it"
            await tx.ledger.clear_halt(["stream", "backfill"])
            assert (await tx.ledger.load()).halted == {}

    async def test_a_worker_takes_what_its_failed_batch_held_at_once(self, shop: Shop) -> None:
        """A store that failed frees nothing; to wait for the own lease would hold the rows back."""
        await shop.copy(row("1"), row("2"))
        first = await shop.claim("w")
        assert await shop.claim("other") == {}
        again = await shop.claim("w")
        assert {k: c.seq for k, c in again.items()} == {k: c.seq for k, c in first.items()} != {}

    async def test_ranges_are_planned_once_and_shared(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            await tx.ledger.plan_ranges(shop.table, [key("10"), key("20")])
            await tx.ledger.plan_ranges(shop.table, [])
            claimed = [await tx.ledger.claim_range(f"b{n}", 60) for n in range(4)]
        edges = [(r.after, r.upto) for r in claimed if r is not None]
        assert edges == [(None, key("10")), (key("10"), key("20")), (key("20"), None)]

    async def test_a_range_goes_on_at_its_cursor_under_another_owner(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            await tx.ledger.plan_ranges(shop.table, [])
            mine = await tx.ledger.claim_range("a", 60)
            assert mine is not None
            await tx.ledger.hold_range(mine.id, "a")
            await tx.ledger.advance_range(mine.id, "a", key("5"), False, (5, 4), -1)
        async with shop.target.begin() as tx:
            theirs = await tx.ledger.claim_range("b", 60)
            assert theirs is not None
            assert (theirs.id, theirs.cursor, theirs.rows_read, theirs.rows_written) == (mine.id, key("5"), 5, 4)
            with pytest.raises(LeaseLost):
                await tx.ledger.hold_range(mine.id, "a")
        async with shop.target.begin() as tx:
            await tx.ledger.hold_range(theirs.id, "b")
            await tx.ledger.advance_range(theirs.id, "b", None, True, (2, 2), 60)
            assert await tx.ledger.claim_range("c", 60) is None
            progress = (await tx.ledger.backfill_progress())["articles"]
            (table,) = await tx.ledger.tables()
        assert table.backfilled
        counted = ("rows_read", "rows_written", "ranges", "ranges_done", "complete")
        assert [progress[name] for name in counted] == [7, 6, 1, 1, True]
        assert progress["completed_at"] is not None

    async def test_an_own_range_is_claimed_again_after_an_error_without_waiting_for_its_lease(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            await tx.ledger.plan_ranges(shop.table, [])
            first = await tx.ledger.claim_range("a", 60)
        async with shop.target.begin() as tx:
            assert await tx.ledger.claim_range("b", 60) is None
            assert await tx.ledger.claim_range("a", 60) == first

    async def test_a_generation_is_made_once_per_contract(self, shop: Shop) -> None:
        contract = builders.contract()
        async with shop.target.begin() as tx:
            assert await tx.ledger.add_generation("v1", contract.as_json(), contract.id) == shop.generation
        other = builders.contract(model="large", chunker=Chunker("tokens", "1", {"tokens": 64, "overlap": 0}, "words"))
        with pytest.raises(ConfigError, match="generation v1") as caught:
            async with shop.target.begin() as tx:
                await tx.ledger.add_generation("v1", other.as_json(), other.id)
        assert caught.value.id == "contract-changed"
        assert caught.value.hint.splitlines()[1:-2] == [
            "model: 'small' -> 'large'",
            "chunker.name: 'whole' -> 'tokens'",
            "chunker.limits.tokens: none -> 64",
            "chunker.limits.overlap: none -> 0",
            "chunker.tokenizer: none -> 'words'",
        ]
        assert (shop.generation.dimensions, shop.generation.swept, shop.generation.fed) == (8, True, True)

    async def test_a_generation_after_the_start_is_not_swept(self, shop: Shop) -> None:
        await shop.start()
        contract = builders.contract()
        async with shop.target.begin() as tx:
            second = await tx.ledger.add_generation("v2", contract.as_json(), contract.id)
            assert not second.swept
            assert await tx.ledger.hold_migration() == [shop.generation, second]
            await tx.ledger.set_phase(second, "indexing", {"rows": 3})
            await tx.ledger.set_phase(second, "live", None)
            assert [g.phase for g in await tx.ledger.generations()] == ["loading", "live"]
            assert await tx.ledger.index_state(second) == {"rows": 3}
            await tx.ledger.store_certificate(second, {"number": 1}, "digest")


class WorkSuite(Shops):
    async def test_live_work_comes_first_then_the_oldest(self, shop: Shop) -> None:
        copied = await shop.copy(row("1"), row("2"))
        live = await shop.change("3", row("3"), 7)
        hurried = await shop.change("2", row("2", title="new"), 8)
        async with shop.target.begin() as tx:
            claims = await tx.ledger.claim(shop.table, shop.generation, "w", 2, 60)
        assert [claim.row_id for claim in claims] == [copied["2"], live.row_id]
        assert hurried.row_id == copied["2"]
        assert set(await shop.claim("other")) == {copied["1"]}

    @pytest.mark.parametrize("column", ["body", "tenant"], ids=["text", "a filter"])
    async def test_a_row_without_what_its_chunks_need_is_not_claimed(self, shop: Shop, column: str) -> None:
        lacking = await shop.change("1", without(row("1"), column), 7)
        other = await shop.change("2", without(row("2"), "views"), 8)
        assert set(await shop.claim()) == {other.row_id}
        assert await shop.entry(lacking.row_id) is not None

    async def test_an_expired_claim_may_be_taken_over(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"))
        first = await shop.claim("a", lease_s=-1)
        second = await shop.claim("b")
        assert [c[ids["1"]].attempts for c in (first, second)] == [1, 2]
        assert (await shop.entry(ids["1"])).claimed_by == "b"
        assert await shop.claim("c") == {}

    async def test_new_work_raises_newest_and_keeps_oldest_and_claim(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"))
        claim = (await shop.claim("w"))[ids["1"]]
        before = await shop.entry(ids["1"])
        await shop.change("1", row("1", title="new"), 7)
        after = await shop.entry(ids["1"])
        assert claim.seq == before.newest_seq == before.oldest_seq == after.oldest_seq
        assert after.newest_seq > before.newest_seq
        assert (after.claimed_by, after.state) == ("w", WorkState.WAITING)

    async def test_a_refusal_counts_only_for_the_text_that_was_claimed(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"))
        claims = await shop.claim("w")
        await shop.change("2", row("2", title="new"), 7)
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, list(claims))
            await tx.ledger.refuse(shop.table, shop.generation, "w", list(claims.values()), "too_long")
        refused, changed = await shop.entry(ids["1"]), await shop.entry(ids["2"])
        assert (refused.state, refused.claimed_by) == (WorkState.REFUSED, None)
        assert (changed.state, changed.claimed_by) == (WorkState.WAITING, None)
        assert set(await shop.claim()) == {ids["2"]}
        await shop.change("1", row("1", title="new"), 8)
        assert (await shop.entry(ids["1"])).state is WorkState.WAITING

    async def test_settling_deletes_moves_and_frees(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"), row("3"))
        claims = await shop.claim("w")
        done, moved, freed = (ids[k] for k in ("1", "2", "3"))
        await shop.change("2", row("2", title="new"), 7)
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, list(claims))
            await tx.ledger.settle(shop.table, shop.generation, "w", [done], {moved: claims[moved].seq + 1}, [freed])
        assert await shop.entry(done) is None
        entry = await shop.entry(moved)
        assert (entry.oldest_seq, entry.claimed_by) == (claims[moved].seq + 1, None)
        assert (await shop.entry(freed)).claimed_by is None

    async def test_settling_leaves_the_claim_of_another(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"))
        await shop.claim("old", lease_s=-1)
        await shop.claim("new")
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, list(ids.values()))
            await tx.ledger.settle(shop.table, shop.generation, "old", [], {ids["1"]: 2}, [ids["2"]])
        assert [(await shop.entry(i)).claimed_by for i in ids.values()] == ["new", "new"]

    async def test_what_is_owed_includes_claimed_and_refused_entries(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"))
        await shop.change("3", row("3"), 7)
        claims = await shop.claim("w")
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, [ids["1"]])
            await tx.ledger.refuse(shop.table, shop.generation, "w", [claims[ids["1"]]], "bad")
            highest = await tx.ledger.highest_seq()
            assert highest >= max(c.seq for c in claims.values())
            assert await tx.ledger.owed(shop.generation, highest) == 3
            lowest = min(c.seq for c in claims.values())
            assert await tx.ledger.owed(shop.generation, lowest - 1) == 0
            assert await tx.ledger.lowest_owed(shop.generation) == lowest

    async def test_a_row_is_owed_since_its_oldest_seq_however_new_its_newest_change_is(self, shop: Shop) -> None:
        """Counted by the newest one, a row that changes all the time would be proven with an older text."""
        ids = await shop.copy(row("1"))
        first = await shop.entry(ids["1"])
        await shop.change("1", row("1", title="new"), 7)
        async with shop.target.begin() as tx:
            assert await tx.ledger.owed(shop.generation, first.newest_seq) == 1
            assert await tx.ledger.lowest_owed(shop.generation) == first.oldest_seq

    async def test_nothing_owed_is_none(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            assert await tx.ledger.lowest_owed(shop.generation) is None
            assert await tx.ledger.highest_seq() == 0

    async def test_the_newest_certificate_has_an_age(self, shop: Shop) -> None:
        async with shop.target.begin() as tx:
            assert await tx.ledger.certificate_age(shop.generation) is None
            await tx.ledger.store_certificate(shop.generation, {"schema": "revector.certificate/1"}, "digest")
        async with shop.target.begin() as tx:
            age = await tx.ledger.certificate_age(shop.generation)
        assert age is not None and age >= 0

    async def test_certificates_are_found_by_generation_and_digest_the_newest_first(self, shop: Shop) -> None:
        contract = builders.contract([shop.table])
        async with shop.target.begin() as tx:
            second = await tx.ledger.add_generation("v2", contract.as_json(), contract.id)
            for generation, digest in ((shop.generation, "aa1"), (shop.generation, "ab2"), (second, "ab3")):
                await tx.ledger.store_certificate(generation, {"number": 9007199254740991, "of": digest}, digest)
        async with shop.target.begin() as tx:
            every = await tx.ledger.certificates(None, 10)
            own = await tx.ledger.certificates(shop.generation, 10)
            assert [c.digest for c in every] == ["ab3", "ab2", "aa1"]
            assert [c.digest for c in own] == ["ab2", "aa1"]
            assert [c.digest for c in await tx.ledger.certificates(None, 1)] == ["ab3"]
            assert [c.digest for c in await tx.ledger.certificates(None, 10, "ab")] == ["ab3", "ab2"]
            assert [c.digest for c in await tx.ledger.certificates(shop.generation, 10, "aa1")] == ["aa1"]
            assert await tx.ledger.certificates(second, 10, "%") == []
        assert own[0].document == {"number": 9007199254740991, "of": "ab2"}
        assert (own[0].generation_id, every[0].generation_id) == (shop.generation.id, second.id)
        assert own[0].id > own[1].id and own[0].age_s >= 0

    async def test_the_backlog_counts_each_entry_once(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"))
        await shop.change("3", row("3"), 7)
        await shop.change("4", row("4"), 8)
        async with shop.target.begin() as tx:
            (claim,) = await tx.ledger.claim(shop.table, shop.generation, "w", 1, 60)
            await tx.replica.lock_rows(shop.table, [claim.row_id])
            await tx.ledger.count_spared([shop.generation], 7)  # of an unknown mean: nothing
            await tx.ledger.count_embedded(shop.generation, Tally(rows=5, tokens=100))
            await tx.ledger.count_embedded(shop.generation, Tally(rows=1, tokens=20))
            await tx.ledger.count_spared([shop.generation], 3)
        async with shop.target.begin() as tx:
            backlog = await tx.ledger.backlog(shop.generation)
        assert (backlog.waiting_live, backlog.waiting_backfill, backlog.claimed) == (1, len(ids), 1)
        assert (backlog.refused, backlog.accepted) == (0, 0)
        assert (backlog.rows_embedded, backlog.tokens, backlog.tokens_avoided) == (6, 120, 60)
        assert backlog.oldest_age_s is not None

    async def test_work_goes_with_its_row(self, shop: Shop) -> None:
        ids = await shop.copy(row("1"), row("2"))
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, [ids["1"]])
            await tx.ledger.drop_work(shop.table, [shop.generation], [ids["1"]])
        assert await shop.entry(ids["1"]) is None
        assert await shop.entry(ids["2"]) is not None


class QuarantineSuite(Shops):
    @pytest.fixture
    async def ids(self, shop: Shop) -> dict[str, int]:
        """Three rows; 1 and 2 were refused one after the other, 3 waits."""
        ids = await shop.copy(row("1"), row("2"), row("3"))
        await self.refuse(shop, ids["1"], "status-400 too_long input")
        await self.refuse(shop, ids["2"], "status-400")
        return ids

    async def refuse(self, shop: Shop, row_id: int, reason: str) -> None:
        claim = (await shop.claim("w"))[row_id]
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, [row_id])
            await tx.ledger.refuse(shop.table, shop.generation, "w", [claim], reason)

    async def quarantine(
        self, shop: Shop, limit: int = 10, keys: list[str] | None = None, state: WorkState | None = None
    ) -> list[Quarantined]:
        wanted = None if keys is None else [key(k) for k in keys]
        async with shop.target.begin() as tx:
            return await tx.ledger.quarantine(shop.table, shop.generation, limit, wanted, state)

    async def accept(self, shop: Shop, *row_ids: int) -> int:
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, row_ids)
            return await tx.ledger.accept(shop.table, shop.generation, row_ids)

    async def owed(self, shop: Shop) -> int:
        async with shop.target.begin() as tx:
            return await tx.ledger.owed(shop.generation, await tx.ledger.highest_seq())

    async def test_an_entry_says_which_row_why_how_often_and_since_when(self, shop: Shop, ids: dict[str, int]) -> None:
        first, second = await self.quarantine(shop)
        assert (first.table, first.key, first.row_id) == ("articles", ("1",), ids["1"])
        assert (first.state, first.reason, first.attempts) == (WorkState.REFUSED, "status-400 too_long input", 1)
        assert (second.key, second.reason, second.attempts) == (("2",), "status-400", 2)
        assert first.age_s is not None
        assert 0 <= first.age_s < 60

    async def test_refused_entries_come_before_accepted_ones(self, shop: Shop) -> None:
        ids = await shop.copy(*(row(k) for k in "1234"))
        for k in "1234":
            await self.refuse(shop, ids[k], "status-400")
        await self.accept(shop, ids["1"], ids["2"])
        assert [q.key[0] for q in await self.quarantine(shop)] == ["3", "4", "1", "2"]
        assert [q.key[0] for q in await self.quarantine(shop, limit=1)] == ["3"]
        assert [q.key[0] for q in await self.quarantine(shop, state=WorkState.ACCEPTED)] == ["1", "2"]
        assert [q.key[0] for q in await self.quarantine(shop, state=WorkState.REFUSED)] == ["3", "4"]
        assert await self.quarantine(shop, state=WorkState.WAITING) == []

    async def test_only_the_keys_that_are_asked_for(self, shop: Shop, ids: dict[str, int]) -> None:
        assert [q.key[0] for q in await self.quarantine(shop, keys=["2", "3", "no integer", "99"])] == ["2"]
        assert await self.quarantine(shop, keys=[]) == []

    async def test_a_key_of_several_columns_is_one_key(self, shop: Shop) -> None:
        columns = (builders.column("part"), builders.column("n", "integer"), builders.column("title"))
        made = builders.articles(
            alias="parts", name="parts", key=("part", "n"), columns=columns, template="{title}", text_columns=("title",)
        )
        made = replace(made, filters=())
        (table,) = await shop.target.create_tables([made])
        await shop.target.create_chunks([table], shop.generation)
        parts = [SourceRow(("a", "1"), ("a", "1", "x")), SourceRow(("a", "2"), ("a", "2", "x"))]
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            effects = await tx.replica.copy_in(table, parts)
            await follow_up(tx, table, [shop.generation], effects, live=False)
            claims = await tx.ledger.claim(table, shop.generation, "w", 9, 60)
            await tx.ledger.refuse(table, shop.generation, "w", claims, "status-400")
            found = await tx.ledger.quarantine(table, shop.generation, 9, [("a", "2"), ("1", "a")])
        assert [(q.table, q.key) for q in found] == [("parts", ("a", "2"))]
        assert await self.quarantine(shop) == [], "another table's entries"

    async def test_accepting_takes_refused_entries_and_nothing_else(self, shop: Shop, ids: dict[str, int]) -> None:
        assert await self.accept(shop, *ids.values(), 999) == 2
        states = [(await shop.entry(ids[k])).state for k in "123"]
        assert states == [WorkState.ACCEPTED, WorkState.ACCEPTED, WorkState.WAITING]
        assert await self.accept(shop, ids["1"]) == 0
        (first, _) = await self.quarantine(shop)
        assert (first.state, first.reason, first.attempts) == (WorkState.ACCEPTED, "status-400 too_long input", 1)
        assert first.age_s is not None

    async def test_accepted_entries_are_not_owed_and_not_claimed(self, shop: Shop, ids: dict[str, int]) -> None:
        assert await self.owed(shop) == 3
        await self.accept(shop, ids["1"], ids["2"])
        assert await self.owed(shop) == 1
        assert set(await shop.claim("other", lease_s=-1)) <= {ids["3"]}
        async with shop.target.begin() as tx:
            backlog = await tx.ledger.backlog(shop.generation)
        assert (backlog.refused, backlog.accepted) == (0, 2)

    @pytest.mark.parametrize("is_accepted", [False, True], ids=["refused", "accepted"])
    async def test_a_later_change_of_the_row_supersedes_the_entry(
        self, shop: Shop, ids: dict[str, int], is_accepted: bool
    ) -> None:
        if is_accepted:
            await self.accept(shop, ids["1"])
        await shop.change("1", row("1", title="mended"), 7)
        assert [q.key[0] for q in await self.quarantine(shop)] == ["2"]
        assert (await shop.entry(ids["1"])).state is WorkState.WAITING
        assert await self.owed(shop) == 3

    @pytest.mark.parametrize("is_accepted", [False, True], ids=["refused", "accepted"])
    async def test_a_retried_entry_waits_and_forgets_its_refusal(
        self, shop: Shop, ids: dict[str, int], is_accepted: bool
    ) -> None:
        if is_accepted:
            await self.accept(shop, ids["1"])
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, [ids["1"]])
            await tx.ledger.put_work(shop.table, [shop.generation], [ids["1"]], live=False)
        assert [q.key[0] for q in await self.quarantine(shop)] == ["2"]
        assert ids["1"] in await shop.claim("w")
        await self.refuse(shop, ids["1"], "status-422")
        again = (await self.quarantine(shop, keys=["1"]))[0]
        assert (again.state, again.reason) == (WorkState.REFUSED, "status-422")

    async def test_a_deleted_row_has_no_entry_to_accept(self, shop: Shop, ids: dict[str, int]) -> None:
        await shop.change("1", None, 7)
        assert [q.key[0] for q in await self.quarantine(shop)] == ["2"]
        assert await self.accept(shop, ids["1"]) == 0

    async def test_a_row_whose_filter_is_not_known_can_be_accepted(self, shop: Shop) -> None:
        """It was refused before the row was made again, without the column."""
        effect = await shop.change("1", without(row("1"), "tenant"), 7)
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, [effect.row_id])
            entry = (await tx.ledger.entries(shop.table, shop.generation, [effect.row_id]))[effect.row_id]
            claim = Claim(shop.generation.id, shop.table.id, effect.row_id, entry.newest_seq, 1)
            await tx.ledger.refuse(shop.table, shop.generation, "w", [claim], "status-400")
        assert await self.accept(shop, effect.row_id) == 1

    async def test_entries_of_another_generation_are_its_own(self, shop: Shop, ids: dict[str, int]) -> None:
        contract = builders.contract()
        async with shop.target.begin() as tx:
            second = await tx.ledger.add_generation("v2", contract.as_json(), contract.id)
            assert await tx.ledger.quarantine(shop.table, second, 9) == []
            await tx.replica.lock_rows(shop.table, list(ids.values()))
            assert await tx.ledger.accept(shop.table, second, list(ids.values())) == 0
