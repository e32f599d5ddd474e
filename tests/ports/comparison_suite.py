"""What every implementation of the Target port does with the record of comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from daemon.core.comparison import Comparison, Found, Kind, State
from daemon.core.model import Generation, Key
from daemon.errors import StepRefused, TransientError
from daemon.ports import Scan
from tests import builders
from tests.ports.target_shop import Shop, key
from tests.ports.target_suite import Shops


def scan(side: str, table_id: int, lower: Key | None = None, upper: Key | None = None, of: int | None = None) -> Scan:
    return Scan(0, side, table_id, of, lower, upper)


def row_fault(table_id: int, k: str, kind: Kind = Kind.ROW_MISSING) -> Found:
    return Found(kind, table_id, key(k))


class ComparisonSuite(Shops):
    # --- moves and looks

    async def begin(self, shop: Shop, *others: Generation, faults: Sequence[str] = ()) -> Comparison:
        async with shop.target.begin() as tx:
            return await tx.comparisons.begin([g.id for g in (shop.generation, *others)], 100, faults)

    async def end(self, shop: Shop, comparison: Comparison, *, close_breaks: bool = False, state: State = State.CLEAN):  # type: ignore[no-untyped-def]
        async with shop.target.begin() as tx:
            ended = replace(comparison, state=state, ended_lsn=200)
            return await tx.comparisons.end(ended, close_breaks=close_breaks)

    async def journal(self, shop: Shop, *ids: str, kind: str = "break") -> None:
        async with shop.target.begin() as tx:
            for id in ids:
                await tx.ledger.journal(kind, id, {})

    async def breaks(self, shop: Shop) -> list[str]:
        async with shop.target.begin() as tx:
            return [b.id for b in await tx.ledger.breaks()]

    async def running(self, shop: Shop) -> Comparison | None:
        async with shop.target.begin() as tx:
            return await tx.comparisons.running()

    async def last(self, shop: Shop, generation: Generation | None = None) -> Comparison | None:
        async with shop.target.begin() as tx:
            return await tx.comparisons.last(generation)

    async def find(self, shop: Shop, id: int, *found: Found) -> list[tuple[int, Found]]:
        async with shop.target.begin() as tx:
            await tx.comparisons.find(id, found)
            return await tx.comparisons.found(id)

    async def add(self, shop: Shop, name: str = "v2") -> Generation:
        contract = builders.contract(document_prefix=name)
        async with shop.target.begin() as tx:
            return await tx.ledger.add_generation(name, contract.as_json(), contract.id)

    async def left(self, shop: Shop, id: int) -> tuple[int, int, int]:
        """Numbers of scans, suspects and findings."""
        async with shop.target.begin() as tx:
            c = tx.comparisons
            suspects = [await c.suspects(id, of_chunks=of_chunks, after=0, limit=99) for of_chunks in (False, True)]
            return len(await c.scans(id)), sum(map(len, suspects)), len(await c.found(id))

    async def fill(self, shop: Shop, id: int) -> None:
        """A scan, two suspects, a finding."""
        async with shop.target.begin() as tx:
            await tx.comparisons.plan(id, [scan("source", shop.table.id)])
            await tx.comparisons.suspect(id, shop.table, None, keys=[key("1")])
            await tx.comparisons.suspect(id, shop.table, shop.generation, row_ids=[1])
            await tx.comparisons.find(id, [row_fault(shop.table.id, "1")])
        assert await self.left(shop, id) == (1, 2, 1)

    # --- begin and end

    async def test_a_comparison_that_began_runs_until_it_ends_and_is_then_the_last(self, shop: Shop) -> None:
        assert await self.running(shop) is None and await self.last(shop) is None
        begun = await self.begin(shop, faults=["slot-lost"])
        assert (begun.state, begun.generations, begun.mark) == (State.RUNNING, (shop.generation.id,), 0)
        assert (begun.began_lsn, begun.faults, begun.ended_at) == (100, ("slot-lost",), None)
        assert begun.began_at and begun.began_age_s < 60
        running = await self.running(shop)
        assert running is not None and replace(running, began_age_s=begun.began_age_s) == begun
        assert await self.last(shop) is None
        figures = {"rows": 7, "chunks": 8, "open": {"row-extra": 1}, "repaired": {"row-missing": 2}, "unsettled": 3}
        ended = replace(begun, **figures, sampled=4, tokens=5, faults=("a", "b"))  # type: ignore[arg-type]
        assert await self.end(shop, ended, state=State.DIFFERS) == 0
        assert await self.running(shop) is None
        last = await self.last(shop)
        assert last is not None and last.ended_at is not None
        seen = replace(last, ended_at=None, began_age_s=begun.began_age_s)
        assert seen == replace(ended, state=State.DIFFERS, ended_lsn=200)

    async def test_a_comparison_that_found_nothing_keeps_empty_figures(self, shop: Shop) -> None:
        await self.end(shop, await self.begin(shop))
        last = await self.last(shop)
        assert last is not None
        assert (last.open, last.repaired, last.sampled, last.breaks_closed) == ({}, {}, None, 0)

    async def test_one_comparison_runs_at_a_time(self, shop: Shop) -> None:
        begun = await self.begin(shop)
        with pytest.raises(StepRefused) as refused:
            await self.begin(shop)
        assert refused.value.id == "comparison-running"
        await self.end(shop, begun)
        assert (await self.begin(shop)).id > begun.id

    async def test_the_figures_of_a_running_comparison_are_counted(self, shop: Shop) -> None:
        begun, table = await self.begin(shop), shop.table
        sides = [scan("source", table.id), scan("replica", table.id), scan("chunks", table.id, of=shop.generation.id)]
        async with shop.target.begin() as tx:
            await tx.comparisons.plan(begun.id, [*sides, scan("source", table.id)])
            for n, planned in enumerate(await tx.comparisons.scans(begun.id)):
                await tx.comparisons.advance(planned, key("1"), 10 + n, n, done=False)
            await tx.comparisons.find(begun.id, [row_fault(table.id, "1"), row_fault(table.id, "2", Kind.TEXT_STALE)])
            ((first, _), _) = await tx.comparisons.found(begun.id)
            await tx.comparisons.mended([first])
        running = await self.running(shop)
        assert running is not None
        assert (running.rows, running.chunks) == (10 + 13, 0 + 1 + 2 + 3)  # rows of the source
        assert (running.open, running.repaired) == ({"text-stale": 1}, {"row-missing": 1})

    async def test_the_last_one_is_the_newest_that_covered_the_generation(self, shop: Shop) -> None:
        second = await self.add(shop)
        first = await self.begin(shop, second)
        await self.end(shop, first)
        newest = await self.begin(shop)
        await self.end(shop, newest, state=State.DIFFERS)
        last = [await self.last(shop, of) for of in (None, shop.generation, second)]
        assert [c.id for c in last if c is not None] == [newest.id, newest.id, first.id]

    @pytest.mark.parametrize("how", ["open", "mended", "given up", "of chunks", "closes a break"])
    async def test_what_is_found_of_rows_concerns_a_generation_that_was_left_out(self, shop: Shop, how: str) -> None:
        """Its own comparison says no more that the rows it is made of are the source's."""
        second = await self.add(shop)
        first = await self.begin(shop, second)
        await self.end(shop, first)
        if how == "closes a break":
            await self.journal(shop, "pulse-missing")
        newest = await self.begin(shop)
        kind = Kind.CHUNK_STALE if how == "of chunks" else Kind.TEXT_STALE
        if how == "given up":
            await self.find(shop, newest.id, row_fault(shop.table.id, "1"))
            async with shop.target.begin() as tx:
                await tx.comparisons.abandon(newest.id)
        elif how == "closes a break":
            await self.end(shop, newest, close_breaks=True)
        else:
            figures = {"repaired" if how == "mended" else "open": {kind.value: 1}}
            ended = replace(newest, **figures)  # type: ignore[arg-type]
            await self.end(shop, ended, state=State.CLEAN if how == "mended" else State.DIFFERS)
        last = await self.last(shop, second)
        assert last is not None and last.id == (first.id if how == "of chunks" else newest.id)

    async def test_an_abandoned_comparison_is_not_the_last_and_leaves_nothing(self, shop: Shop) -> None:
        first = await self.begin(shop)
        await self.end(shop, first)
        begun = await self.begin(shop)
        await self.fill(shop, begun.id)
        for _ in range(2):
            async with shop.target.begin() as tx:
                await tx.comparisons.abandon(begun.id)
        assert await self.running(shop) is None
        last = await self.last(shop)
        assert last is not None and last.id == first.id
        assert await self.left(shop, begun.id) == (0, 0, 0)
        await self.begin(shop)

    async def test_an_end_keeps_findings_and_forgets_what_was_left_to_compare(self, shop: Shop) -> None:
        begun = await self.begin(shop)
        await self.fill(shop, begun.id)
        await self.end(shop, begun)
        assert await self.left(shop, begun.id) == (0, 0, 1)

    async def test_findings_of_the_two_newest_that_ended_are_kept(self, shop: Shop) -> None:
        ended = []
        for state in (State.CLEAN, State.ABANDONED, State.DIFFERS, State.CLEAN):
            begun = await self.begin(shop)
            await self.find(shop, begun.id, row_fault(shop.table.id, "1"))
            await self.end(shop, begun, state=state)
            ended.append(begun.id)
        running = await self.begin(shop)
        await self.find(shop, running.id, row_fault(shop.table.id, "1"))
        assert [(await self.left(shop, id))[2] for id in (*ended, running.id)] == [0, 0, 1, 1, 1]

    @pytest.mark.parametrize("move", ["plan", "advance", "suspect", "find", "hold", "end"])
    async def test_nothing_is_written_into_a_comparison_that_has_ended(self, shop: Shop, move: str) -> None:
        begun, table = await self.begin(shop), shop.table
        await self.fill(shop, begun.id)
        async with shop.target.begin() as tx:
            (planned,) = await tx.comparisons.scans(begun.id)
        await self.end(shop, begun)
        with pytest.raises(StepRefused) as refused:
            async with shop.target.begin() as tx:
                c = tx.comparisons
                moves = {
                    "plan": lambda: c.plan(begun.id, [scan("source", table.id)]),
                    "advance": lambda: c.advance(planned, key("2"), 1, 1, done=True),
                    "suspect": lambda: c.suspect(begun.id, table, None, keys=[key("2")]),
                    "find": lambda: c.find(begun.id, [row_fault(table.id, "2")]),
                    "hold": lambda: c.hold(begun.id, "me", 60),
                    "end": lambda: c.end(begun, close_breaks=True),
                }
                await moves[move]()  # type: ignore[no-untyped-call]
        assert refused.value.id == "comparison-gone"
        assert await self.left(shop, begun.id) == (0, 0, 1)

    async def test_a_comparison_of_a_generation_that_is_gone_does_not_begin(self, shop: Shop) -> None:
        second = await self.add(shop)
        async with shop.target.begin() as tx:
            await tx.ledger.drop_generation(second)
        with pytest.raises(StepRefused) as refused:
            await self.begin(shop, second)
        assert refused.value.id == "generation-absent"
        assert await self.running(shop) is None

    # --- breaks

    async def test_an_end_closes_the_breaks_up_to_its_mark(self, shop: Shop) -> None:
        await self.journal(shop, "pulse-missing", "connector-restarted")
        await self.journal(shop, "generation-added", kind="operator")
        begun = await self.begin(shop)
        await self.journal(shop, "slot-ahead")
        assert (begun.mark, await self.end(shop, begun, close_breaks=True)) == (3, 2)
        assert await self.breaks(shop) == ["slot-ahead"]
        last = await self.last(shop)
        assert last is not None and last.breaks_closed == 2
        again = await self.begin(shop)
        assert await self.end(shop, again, close_breaks=True) == 1
        assert await self.breaks(shop) == []

    async def test_a_mark_in_another_hand_closes_no_more(self, shop: Shop) -> None:
        begun = await self.begin(shop)
        await self.journal(shop, "slot-lost")
        assert await self.end(shop, replace(begun, mark=99), close_breaks=True) == 0
        assert await self.breaks(shop) == ["slot-lost"]

    async def test_an_end_that_closes_nothing_leaves_every_break_open(self, shop: Shop) -> None:
        await self.journal(shop, "slot-lost")
        begun = await self.begin(shop)
        assert await self.end(shop, begun) == 0
        assert await self.breaks(shop) == ["slot-lost"]

    async def test_a_closed_break_may_be_journaled_again(self, shop: Shop) -> None:
        await self.journal(shop, "slot-lost")
        await self.end(shop, await self.begin(shop), close_breaks=True)
        await self.journal(shop, "slot-lost")
        assert await self.breaks(shop) == ["slot-lost"]

    # --- lease

    async def test_the_lease_is_one_owners_until_it_is_released(self, shop: Shop) -> None:
        id = (await self.begin(shop)).id

        async def hold(owner: str, lease_s: float = 60) -> float | None:
            async with shop.target.begin() as tx:
                return await tx.comparisons.hold(id, owner, lease_s)

        async def release(owner: str) -> None:
            async with shop.target.begin() as tx:
                await tx.comparisons.release(id, owner)

        assert await hold("a") is None and await hold("a") is None
        left = await hold("b")
        assert left is not None and 50 < left <= 60
        await release("b")
        assert await hold("b") is not None
        await release("a")
        assert await hold("b") is None
        assert await hold("b", -1) is None
        assert await hold("a") is None  # b's has run out

    # --- what is left to compare

    async def test_scans_come_back_as_they_were_planned(self, shop: Shop) -> None:
        id = (await self.begin(shop)).id
        planned = [
            scan("source", shop.table.id, None, ("a", "7")),
            scan("source", shop.table.id, ("a", "7"), None),
            scan("chunks", shop.table.id, ("1",), ("9",), shop.generation.id),
        ]
        async with shop.target.begin() as tx:
            await tx.comparisons.plan(id, planned)
            scans = await tx.comparisons.scans(id)
        assert [replace(s, id=0) for s in scans] == planned
        assert len({s.id for s in scans}) == 3

    async def test_an_advance_adds_and_moves_the_cursor(self, shop: Shop) -> None:
        id = (await self.begin(shop)).id
        async with shop.target.begin() as tx:
            await tx.comparisons.plan(id, [scan("source", shop.table.id), scan("replica", shop.table.id)])
            first, second = await tx.comparisons.scans(id)
            await tx.comparisons.advance(first, ("", 'a"{,}\\'), 3, 4, done=False)
            further = replace(first, cursor=("", 'a"{,}\\'))
            await tx.comparisons.advance(further, None, 5, 6, done=True)
            scans = await tx.comparisons.scans(id)
        for late in (first, further):
            with pytest.raises(TransientError) as refused:
                async with shop.target.begin() as tx:
                    await tx.comparisons.advance(late, key("9"), 1, 1, done=False)
            assert refused.value.id == "comparison-moved"
        assert scans == [replace(first, cursor=("", 'a"{,}\\'), rows=8, chunks=10, is_done=True), second]

    async def test_suspects_and_cursor_are_rolled_back_together(self, shop: Shop) -> None:
        id = (await self.begin(shop)).id
        async with shop.target.begin() as tx:
            await tx.comparisons.plan(id, [scan("source", shop.table.id)])
            (planned,) = await tx.comparisons.scans(id)
        with pytest.raises(ZeroDivisionError):
            async with shop.target.begin() as tx:
                await tx.comparisons.suspect(id, shop.table, None, keys=[key("1")])
                await tx.comparisons.advance(planned, key("1"), 1, 0, done=False)
                raise ZeroDivisionError
        async with shop.target.begin() as tx:
            assert await tx.comparisons.scans(id) == [planned]
            assert await tx.comparisons.suspects(id, of_chunks=False, after=0, limit=9) == []

    async def test_suspects_come_in_their_order_and_in_pages(self, shop: Shop) -> None:
        id, keys = (await self.begin(shop)).id, [("b", ""), ("a", 'é"{,}\\\n'), ("a", "NULL"), ("b", "")]
        async with shop.target.begin() as tx:
            c = tx.comparisons
            await c.suspect(id, shop.table, None, keys=keys[:3])
            await c.suspect(id, shop.table, shop.generation, row_ids=[9, 3])
            await c.suspect(id, shop.table, None, keys=keys[3:])
            await c.suspect(id, shop.table, None)
            rows = await c.suspects(id, of_chunks=False, after=0, limit=99)
            chunks = await c.suspects(id, of_chunks=True, after=0, limit=99)
            assert await c.suspects(id, of_chunks=False, after=rows[0].id, limit=2) == rows[1:3]
            await c.settle([rows[0].id, chunks[1].id])
            assert await c.suspects(id, of_chunks=False, after=0, limit=99) == rows[1:]
            assert await c.suspects(id, of_chunks=True, after=0, limit=99) == chunks[:1]
        assert [s.key for s in rows] == keys
        assert {(s.table_id, s.generation_id, s.row_id) for s in rows} == {(shop.table.id, None, None)}
        assert [(s.generation_id, s.key, s.row_id) for s in chunks] == [
            (shop.generation.id, None, 9),
            (shop.generation.id, None, 3),
        ]

    # --- differences

    async def test_a_difference_is_recorded_once(self, shop: Shop) -> None:
        begun, t, g = await self.begin(shop), shop.table.id, shop.generation.id
        different = [
            row_fault(t, "1"),
            row_fault(t, "2"),
            row_fault(t, "1", Kind.TEXT_STALE),
            Found(Kind.ROW_MISSING, t + 1, key("1")),
            Found(Kind.ROW_MISSING, t, ("1", "")),
            Found(Kind.CHUNK_STALE, t, key("1"), g, 1, 0),
            Found(Kind.CHUNK_STALE, t, key("1"), g, 1, 1),
            Found(Kind.CHUNK_STALE, t, key("1"), g + 1, 1, 0),
            Found(Kind.CHUNK_ORPHAN, t, None, g, 2, 0),
            Found(Kind.CHUNK_ORPHAN, t, None, g, 3, 0),
        ]
        found = await self.find(shop, begun.id, *different, *different)
        assert [f for _, f in found] == different
        async with shop.target.begin() as tx:
            await tx.comparisons.mended([found[0][0]])
        again = await self.find(shop, begun.id, *different, replace(different[8], key=key("2")))
        assert [id for id, _ in again] == [id for id, _ in found]
        assert not again[0][1].is_repaired, "what is found again is not mended"
        again = await self.find(shop, begun.id, replace(different[0], is_repaired=True))
        assert not again[0][1].is_repaired

    async def test_two_comparisons_may_find_the_same(self, shop: Shop) -> None:
        for _ in range(2):
            begun = await self.begin(shop)
            assert len(await self.find(shop, begun.id, row_fault(shop.table.id, "1"))) == 1
            await self.end(shop, begun)

    async def test_differences_come_in_pages_and_the_open_ones_alone(self, shop: Shop) -> None:
        begun = await self.begin(shop)
        found = await self.find(shop, begun.id, *(row_fault(shop.table.id, k) for k in "1234"))
        async with shop.target.begin() as tx:
            c = tx.comparisons
            assert await c.found(begun.id, after=found[0][0], limit=2) == found[1:3]
            await c.mended([found[1][0], found[1][0]])
            assert await c.found(begun.id, only_open=True) == [found[0], *found[2:]]
            assert await c.found(begun.id, after=found[0][0], limit=1, only_open=True) == [found[2]]
            assert await c.tally(begun.id) == ({"row-missing": 3}, {"row-missing": 1})

    async def test_a_long_key_is_found_too(self, shop: Shop) -> None:
        begun, long = await self.begin(shop), "x" * 100_000
        ((_, found),) = await self.find(shop, begun.id, row_fault(shop.table.id, long), row_fault(shop.table.id, long))
        assert found.key == (long,)

    # --- generations

    async def test_dropping_a_generation_ends_the_comparison_that_covers_it(self, shop: Shop) -> None:
        second = await self.add(shop)
        begun = await self.begin(shop, second)
        await self.fill(shop, begun.id)
        async with shop.target.begin() as tx:
            await tx.ledger.drop_generation(second)
        assert await self.running(shop) is None
        assert await self.left(shop, begun.id) == (0, 0, 0)

    async def test_dropping_another_generation_leaves_the_comparison_alone(self, shop: Shop) -> None:
        second = await self.add(shop)
        begun = await self.begin(shop)
        await self.fill(shop, begun.id)
        async with shop.target.begin() as tx:
            await tx.ledger.drop_generation(second)
        running = await self.running(shop)
        assert running is not None and running.id == begun.id
        assert await self.left(shop, begun.id) == (1, 2, 1)
