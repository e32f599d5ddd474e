"""The Ledger port over a transaction's `State`, second half: ranges of the backfill, and the work table."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from daemon.core.model import Claim, ClaimOrder, Entry, Generation, Key, Quarantined, Table, Tally, WorkState
from daemon.errors import LeaseLost
from daemon.ports import BackfillRange, Backlog
from tests.fakes.generations import GenerationLedger
from tests.fakes.state import GenerationRecord, RangeRecord, WorkEntry


class MemoryLedger(GenerationLedger):
    """The whole ledger."""

    # --- backfill

    async def plan_ranges(self, table: Table, bounds: Sequence[Key]) -> None:
        if any(r.table_id == table.id for r in self.state.ranges.values()):
            return
        edges: list[Key | None] = [None, *bounds, None]
        for after, upto in itertools.pairwise(edges):
            number = next(self.context.sequences.range)
            self.state.ranges[number] = RangeRecord(number, table.id, after, upto)

    async def claim_range(self, owner: str, lease_s: float) -> BackfillRange | None:
        for r in sorted(self.state.ranges.values(), key=lambda r: r.id):
            if r.done or (r.owner not in (None, owner) and r.lease_until > self._now):
                continue
            self.state.ranges[r.id] = replace(
                r,
                owner=owner,
                lease_until=self._now + lease_s,
                started_at=r.started_at if r.started_at is not None else self._now,
            )
            return BackfillRange(r.id, r.table_id, r.after, r.upto, r.cursor, r.rows_read, r.rows_written)
        return None

    async def hold_range(self, range_id: int, owner: str) -> None:
        held = self.state.ranges[range_id]
        if held.owner != owner or held.done:
            raise LeaseLost("range-lost", f"range {range_id} is no longer held by {owner}")

    async def advance_range(
        self, range_id: int, owner: str, cursor: Key | None, done: bool, rows: tuple[int, int], lease_s: float
    ) -> None:
        held = self.state.ranges[range_id]
        self.state.ranges[range_id] = replace(
            held,
            cursor=cursor if cursor is not None else held.cursor,
            done=done,
            owner=None if done else owner,
            lease_until=0.0 if done else self._now + lease_s,
            rows_read=held.rows_read + rows[0],
            rows_written=held.rows_written + rows[1],
            completed_at=self._now if done else None,
        )

    async def backfill_progress(self) -> Mapping[str, Any]:
        progress = {}
        for number, record in sorted(self.state.tables.items()):
            ranges = [r for r in self.state.ranges.values() if r.table_id == number]
            ends = [r.completed_at for r in ranges if r.completed_at is not None]
            complete = self._is_backfilled(number)
            progress[record.table.alias] = {
                "rows_read": sum(r.rows_read for r in ranges),
                "rows_written": sum(r.rows_written for r in ranges),
                "ranges": len(ranges),
                "ranges_done": sum(r.done for r in ranges),
                "complete": complete,
                "started_at": min((r.started_at for r in ranges if r.started_at is not None), default=None),
                "completed_at": max(ends) if complete else None,
            }
        return progress

    # --- work

    async def put_work(
        self,
        table: Table,
        generations: Sequence[Generation],
        row_ids: Sequence[int],
        live: bool,
        changed_at_ms: Mapping[int, int] | None = None,
        *,
        afresh: bool = False,
    ) -> None:
        at_ms = changed_at_ms or {}
        for generation in generations:
            for row_id in row_ids:
                self.context.need_row(table, row_id)
                place, seq = (generation.id, table.id, row_id), self.context.sequences.next_seq()
                entry = self.state.work.get(place)
                changed = at_ms.get(row_id, self.context.clock.now_ms)
                if entry is None:
                    first = seq if afresh else None
                    self.state.work[place] = WorkEntry(seq, seq, changed, changed, live, afresh_seq=first)
                else:
                    self.state.work[place] = replace(
                        entry,
                        newest=seq,
                        newest_at_ms=changed,
                        state=WorkState.WAITING,
                        reason=None,
                        refused_at=None,
                        is_live=entry.is_live or live,
                        afresh_seq=seq if afresh else entry.afresh_seq,
                    )

    async def drop_work(self, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> None:
        for row_id in row_ids:
            self.context.need_row(table, row_id)
            for generation in generations:
                self.state.work.pop((generation.id, table.id, row_id), None)

    async def claim(
        self,
        table: Table,
        generation: Generation,
        worker: str,
        limit: int,
        lease_s: float,
        order: ClaimOrder = ClaimOrder.LIVE_FIRST,
    ) -> list[Claim]:
        is_reversed = order is ClaimOrder.BACKFILL_FIRST
        ready = [
            (entry.is_live if is_reversed else not entry.is_live, entry.oldest, row_id)
            for (g, t, row_id), entry in self.state.work.items()
            if (g, t) == (generation.id, table.id)
            and (entry.is_live or order is not ClaimOrder.LIVE_ONLY)
            and self._is_claimable(table, row_id, entry, worker)
        ]
        claims = []
        for _, _, row_id in sorted(ready)[:limit]:
            place = (generation.id, table.id, row_id)
            entry = self.state.work[place]
            self.state.work[place] = replace(
                entry, claimed_by=worker, claimed_until=self._now + lease_s, attempts=entry.attempts + 1
            )
            seq, is_afresh = entry.newest, entry.afresh_seq is not None
            claims.append(Claim(generation.id, table.id, row_id, seq, entry.attempts + 1, entry.is_live, is_afresh))
        return claims

    async def renew(
        self, table: Table, generation: Generation, worker: str, row_ids: Sequence[int], lease_s: float
    ) -> None:
        for row_id in row_ids:
            place = (generation.id, table.id, row_id)
            entry = self.state.work.get(place)
            if entry is not None and entry.claimed_by == worker:
                self.state.work[place] = replace(entry, claimed_until=self._now + lease_s)

    def _is_claimable(self, table: Table, row_id: int, entry: WorkEntry, worker: str) -> bool:
        is_taken = entry.claimed_by not in (None, worker) and entry.claimed_until > self._now
        if entry.state is not WorkState.WAITING or is_taken:
            return False
        row = self.state.row(table, row_id)
        return row is not None and row.live and not row.missing(table) & {*table.text_columns, *table.filters}

    async def entries(self, table: Table, generation: Generation, row_ids: Sequence[int]) -> dict[int, Entry]:
        found = {}
        for row_id in sorted(row_ids):
            e = self.state.work.get((generation.id, table.id, row_id))
            if e is not None:
                found[row_id] = Entry(row_id, e.oldest, e.newest, e.state, e.claimed_by)
        return found

    async def settle(
        self,
        table: Table,
        generation: Generation,
        worker: str,
        done: Sequence[int],
        moved: Mapping[int, int],
        freed: Sequence[int],
    ) -> None:
        for row_id in done:
            self.state.work.pop((generation.id, table.id, row_id), None)
        for row_id in (*moved, *freed):
            place = (generation.id, table.id, row_id)
            entry = self.state.work.get(place)
            if entry is not None:
                self.state.work[place] = self._freed(entry, worker)
            if entry is not None and row_id in moved:
                left = entry.afresh_seq if (entry.afresh_seq or 0) >= moved[row_id] else None
                self.state.work[place] = replace(
                    self.state.work[place],
                    oldest=moved[row_id],
                    changed_at_ms=entry.newest_at_ms,
                    afresh_seq=left,
                )

    def _freed(self, entry: WorkEntry, worker: str) -> WorkEntry:
        return replace(entry, claimed_by=None, claimed_until=0.0) if entry.claimed_by == worker else entry

    async def refuse(
        self, table: Table, generation: Generation, worker: str, claims: Sequence[Claim], reason: str
    ) -> None:
        for claim in claims:
            place = (generation.id, table.id, claim.row_id)
            entry = self.state.work.get(place)
            if entry is None:
                continue
            freed = self._freed(entry, worker)
            refused = entry.newest == claim.seq
            self.state.work[place] = (
                replace(freed, state=WorkState.REFUSED, reason=reason, refused_at=self._now) if refused else freed
            )

    async def count_embedded(self, generation: Generation, tally: Tally) -> None:
        record = self.state.generations[generation.id]
        self.state.generations[generation.id] = replace(
            record,
            rows_embedded=record.rows_embedded + tally.rows,
            rows_blank=record.rows_blank + tally.blank,
            tokens=record.tokens + tally.tokens,
            tokens_avoided=record.tokens_avoided + tally.avoided,
            requests=record.requests + tally.requests,
        )

    async def count_spared(self, generations: Sequence[Generation], texts: int) -> None:
        for generation in generations:
            record = self.state.generations[generation.id]
            if record.rows_embedded:
                avoided = record.tokens_avoided + texts * (record.tokens // record.rows_embedded)
                self.state.generations[generation.id] = replace(record, tokens_avoided=avoided)

    async def backlog(self, generation: Generation) -> Backlog:
        entries = [e for (g, _, _), e in self.state.work.items() if g == generation.id]
        waiting = [e for e in entries if e.state is WorkState.WAITING]
        taken = [e for e in waiting if e.claimed_until >= self._now]
        record = self.state.generations.get(generation.id) or GenerationRecord(generation, {})
        oldest = min((e.changed_at_ms for e in waiting), default=None)
        return Backlog(
            waiting_live=sum(e.is_live for e in waiting) - sum(e.is_live for e in taken),
            waiting_backfill=sum(not e.is_live for e in waiting) - sum(not e.is_live for e in taken),
            claimed=len(taken),
            refused=sum(e.state is WorkState.REFUSED for e in entries),
            accepted=sum(e.state is WorkState.ACCEPTED for e in entries),
            oldest_age_s=None if oldest is None else max(0.0, self._now - oldest / 1000),
            rows_embedded=record.rows_embedded,
            tokens=record.tokens,
            tokens_avoided=record.tokens_avoided,
            rows_blank=record.rows_blank,
            requests=record.requests,
        )

    async def highest_seq(self) -> int:
        return self.context.sequences.last_seq

    async def owed(self, generation: Generation, seq: int) -> int:
        return sum(
            e.oldest <= seq and e.state is not WorkState.ACCEPTED
            for (g, _, _), e in self.state.work.items()
            if g == generation.id
        )

    async def lowest_owed(self, generation: Generation) -> int | None:
        owed = (
            e.oldest
            for (g, _, _), e in self.state.work.items()
            if g == generation.id and e.state is not WorkState.ACCEPTED
        )
        return min(owed, default=None)

    # --- quarantine

    async def quarantine(
        self,
        table: Table,
        generation: Generation,
        limit: int,
        keys: Sequence[Key] | None = None,
        state: WorkState | None = None,
    ) -> list[Quarantined]:
        found = []
        for (g, t, row_id), entry in self.state.work.items():
            row = self.state.row(table, row_id) if (g, t) == (generation.id, table.id) else None
            wanted = {state} if state is not None else {WorkState.REFUSED, WorkState.ACCEPTED}
            if row is None or entry.state not in wanted - {WorkState.WAITING}:
                continue
            if keys is None or row.key in keys:
                age_s = None if entry.refused_at is None else self._now - entry.refused_at
                found.append(
                    Quarantined(table.alias, row.key, row_id, entry.state, entry.reason or "", entry.attempts, age_s)
                )
        return sorted(found, key=lambda q: (q.state is WorkState.ACCEPTED, -(q.age_s or 0.0), q.row_id))[:limit]

    async def accept(self, table: Table, generation: Generation, row_ids: Sequence[int]) -> int:
        accepted = 0
        for row_id in row_ids:
            self.context.need_row(table, row_id)
            place = (generation.id, table.id, row_id)
            entry = self.state.work.get(place)
            if entry is not None and entry.state is WorkState.REFUSED:
                self.state.work[place] = replace(entry, state=WorkState.ACCEPTED)
                accepted += 1
        return accepted
