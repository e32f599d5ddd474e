"""The twin of the record of comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from daemon.core.compared import concerns_rows
from daemon.core.comparison import Comparison, Found, State
from daemon.core.model import Generation, Key, Table
from daemon.errors import StepRefused, TransientError
from daemon.ports import Scan, Suspect
from tests.fakes.state import ComparisonRecord, Context, JournalEntry

KEPT = 2  # comparisons whose differences can still be listed


class MemoryComparisons:
    """The `Comparisons` port over one transaction's state."""

    def __init__(self, context: Context) -> None:
        self._context, self._state = context, context.state

    # --- the comparison itself

    async def running(self) -> Comparison | None:
        for id, record in self._state.comparisons.items():
            if record.comparison.state is State.RUNNING:
                open, repaired = await self.tally(id)
                scans = await self.scans(id)
                rows, chunks = sum(s.rows for s in scans if s.side == "source"), sum(s.chunks for s in scans)
                return replace(self._seen(record), rows=rows, chunks=chunks, open=open, repaired=repaired)
        return None

    async def last(self, generation: Generation | None) -> Comparison | None:
        for record in reversed(self._state.comparisons.values()):
            c = record.comparison
            covers = generation is None or generation.id in c.generations
            if c.state in (State.CLEAN, State.DIFFERS) and covers:
                return self._seen(record)
            if generation is not None and c.state is not State.RUNNING and (concerns_rows(c) or c.breaks_closed):
                return self._seen(record)
        return None

    async def begin(self, generations: Sequence[int], began_lsn: int, faults: Sequence[str]) -> Comparison:
        if not set(generations) <= set(self._state.generations):
            raise StepRefused("generation-absent", "a generation is gone")
        if await self.running() is not None:
            raise StepRefused("comparison-running", "a comparison is running")
        id, now = next(self._context.sequences.comparison), self._context.clock()
        mark = len(self._state.journal)
        begun = Comparison(id, State.RUNNING, tuple(generations), mark, str(now), began_lsn, 0.0, faults=tuple(faults))
        ended = [n for n, r in self._state.comparisons.items() if r.comparison.state in (State.CLEAN, State.DIFFERS)]
        for place in [n for n, (of, _) in self._state.findings.items() if of not in ended[-KEPT:]]:
            del self._state.findings[place]
        self._state.comparisons[id] = ComparisonRecord(begun, now)
        comparison = await self.running()
        assert comparison is not None
        return comparison

    async def hold(self, id: int, owner: str, lease_s: float) -> float | None:
        record, now = self._pin(id), self._context.clock()
        if record.owner not in (None, owner) and record.lease_until >= now:
            return record.lease_until - now
        self._state.comparisons[id] = replace(record, owner=owner, lease_until=now + lease_s)
        return None

    async def release(self, id: int, owner: str) -> None:
        record = self._state.comparisons.get(id)
        if record is not None and record.owner == owner:
            self._state.comparisons[id] = replace(record, owner=None)

    async def end(self, comparison: Comparison, *, close_breaks: bool) -> int:
        mark = self._pin(comparison.id).comparison.mark
        journal = list(self._state.journal)
        closed = [n for n, e in enumerate(journal[:mark]) if e.kind == "break" and not e.closed] if close_breaks else []
        for n in closed:
            journal[n] = replace(journal[n], closed=True)
        self._state.journal = tuple(journal)
        self._finish(replace(comparison, breaks_closed=len(closed)))
        return len(closed)

    async def abandon(self, id: int) -> None:
        comparison = await self.running()
        if comparison is not None and comparison.id == id:
            self._finish(replace(comparison, state=State.ABANDONED))
            _forget(self._state.findings, id)

    def _finish(self, c: Comparison) -> None:
        """The row's columns are kept as they were recorded; only what an end may set is taken."""
        record, now = self._state.comparisons[c.id], self._context.clock()
        ended = replace(
            c,
            generations=record.comparison.generations,
            mark=record.comparison.mark,
            began_at=record.comparison.began_at,
            began_lsn=record.comparison.began_lsn,
            ended_at=str(now),
            open=dict(c.open or {}),
            repaired=dict(c.repaired or {}),
        )
        self._state.comparisons[c.id] = ComparisonRecord(ended, record.began_s)
        detail = {"comparison": c.id, "rows": c.rows, "chunks": c.chunks, "open": ended.open}
        entry = JournalEntry("comparison", f"comparison-{c.state.value}", detail, now)
        self._state.journal = (*self._state.journal, entry)
        _forget(self._state.scans, c.id)
        _forget(self._state.suspects, c.id)
        for head in [h for h in self._state.heads if h.comparison == c.id]:
            del self._state.heads[head]

    def _pin(self, id: int) -> ComparisonRecord:
        record = self._state.comparisons.get(id)
        if record is None or record.comparison.state is not State.RUNNING:
            raise StepRefused("comparison-gone", f"comparison {id} does not run any more")
        return record

    def _seen(self, record: ComparisonRecord) -> Comparison:
        return replace(record.comparison, began_age_s=self._context.clock() - record.began_s)

    # --- what is left to compare

    async def plan(self, id: int, scans: Sequence[Scan]) -> None:
        self._pin(id)
        for scan in scans:
            number = next(self._context.sequences.scan)
            self._state.scans[number] = id, replace(scan, id=number)

    async def scans(self, id: int) -> list[Scan]:
        return [scan for of, scan in self._state.scans.values() if of == id]

    async def advance(self, scan: Scan, cursor: Key | None, rows: int, chunks: int, *, done: bool) -> None:
        if scan.id not in self._state.scans:
            raise StepRefused("comparison-gone", f"scan {scan.id} is gone")
        id, held = self._state.scans[scan.id]
        self._pin(id)
        if held.is_done or held.cursor != scan.cursor:
            raise TransientError("comparison-moved", f"scan {scan.id} was taken further by somebody else")
        moved = replace(held, rows=held.rows + rows, chunks=held.chunks + chunks, is_done=done)
        self._state.scans[scan.id] = id, moved if cursor is None else replace(moved, cursor=cursor)

    async def suspect(
        self,
        id: int,
        table: Table,
        generation: Generation | None,
        keys: Sequence[Key] = (),
        row_ids: Sequence[int] = (),
    ) -> None:
        self._pin(id)
        of = None if generation is None else generation.id
        places: list[tuple[Key | None, int | None]] = [*((key, None) for key in keys), *((None, r) for r in row_ids)]
        for key, row_id in places:
            number = next(self._context.sequences.suspect)
            self._state.suspects[number] = id, Suspect(number, table.id, of, key, row_id)

    async def suspects(self, id: int, *, of_chunks: bool, after: int, limit: int) -> list[Suspect]:
        return [
            s
            for of, s in self._state.suspects.values()
            if of == id and s.id > after and (s.generation_id is not None) == of_chunks
        ][:limit]

    async def settle(self, ids: Sequence[int]) -> None:
        for id in ids:
            self._state.suspects.pop(id, None)

    # --- differences

    async def find(self, id: int, found: Sequence[Found]) -> None:
        self._pin(id)
        recorded = {_place(f): n for n, (of, f) in self._state.findings.items() if of == id}
        for f in found:
            n = recorded.get(_place(f))
            if n is None:
                n = recorded[_place(f)] = next(self._context.sequences.finding)
                self._state.findings[n] = id, f
            elif not f.is_repaired:
                self._state.findings[n] = id, replace(self._state.findings[n][1], is_repaired=False)

    async def found(
        self, id: int, *, after: int = 0, limit: int = 1000, only_open: bool = False
    ) -> list[tuple[int, Found]]:
        return [
            (n, f)
            for n, (of, f) in self._state.findings.items()
            if of == id and n > after and not (only_open and f.is_repaired)
        ][:limit]

    async def mended(self, ids: Sequence[int]) -> None:
        for n in ids:
            if n in self._state.findings:
                of, found = self._state.findings[n]
                self._state.findings[n] = of, replace(found, is_repaired=True)

    async def tally(self, id: int) -> tuple[dict[str, int], dict[str, int]]:
        found = [f for of, f in self._state.findings.values() if of == id]
        open, repaired = (Counter(f.kind.value for f in found if f.is_repaired is state) for state in (False, True))
        return dict(sorted(open.items())), dict(sorted(repaired.items()))


def _forget(records: dict[int, Any], comparison: int) -> None:
    for n in [n for n, (of, _) in records.items() if of == comparison]:
        del records[n]


def _place(found: Found) -> tuple[object, ...]:
    """A row is told by its key, a chunk by its row's id; by the other one where that is not known."""
    of_row = found.key is not None and (found.generation_id is None or found.row_id is None)
    where = (found.key, None) if of_row else (None, found.row_id)
    return found.kind, found.table_id, found.generation_id, found.n, *where
