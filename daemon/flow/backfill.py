"""The backfill: what is in the source goes into the replica, page by page, in ranges that several workers share.

One step is one page:

    claim a range -> read the truncate count -> read a page at the source -> write it under the range's lease

The source sees one short read-only transaction per page. Any stream decision beats any page row: a page inserts where
the key is absent, fills columns that events left missing where its snapshot is young enough, and does nothing else.
A page that meets a truncate, or whose range was taken over, is dropped whole and read again. While orders or quiet
hours forbid to copy, no page is begun and the range is let go: its lease runs out, and it is claimed again afterwards.

`Completion` uses the same rule for rows that are still incomplete after their page has passed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daemon.core.fold import fillable
from daemon.core.model import Generation, Key, Snapshot, Table
from daemon.errors import LeaseLost
from daemon.flow.pacing import retrying, wait
from daemon.flow.stream import Stream, follow_up
from daemon.ports import BackfillRange, Page, Source, SourceRow, Target, UnitOfWork
from daemon.settings import LimitSettings

log = logging.getLogger(__name__)

COMPLETION_ROWS = 500
COMPLETION_WAIT_S = 0.5
PAUSED_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class PageRead:
    """A page and what must still hold when it is written: the range's owner and the table's truncate count."""

    range: BackfillRange
    table: Table
    truncate_count: int
    page: Page


@dataclass(slots=True)
class BackfillCounts:
    pages: int = 0
    rows_read: int = 0
    rows_written: int = 0


class Backfill:
    """One backfill worker. `run` ends when every range of every table is complete."""

    def __init__(
        self,
        source: Source,
        target: Target,
        tables: Sequence[Table],
        owner: str,
        limits: LimitSettings,
        may_copy: Callable[[], bool] = lambda: True,
    ) -> None:
        self.source, self.target, self.owner, self.limits = source, target, owner, limits
        self.may_copy = may_copy
        self.tables = {t.id: t for t in tables}
        self.range: BackfillRange | None = None
        self.is_complete = False
        self.counts = BackfillCounts()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set() and not self.is_complete:
            await retrying(self._turn, stop, forget=self._forget)

    async def _turn(self, stop: asyncio.Event) -> None:
        if not self.may_copy():
            self._forget()  # a peer may take the range meanwhile, and nothing says how far it got but the target
            await wait(stop, PAUSED_WAIT_S)
        elif not await self.step():
            async with self.target.begin() as tx:
                self.is_complete = all(s.backfilled for s in await tx.ledger.tables())
            if not self.is_complete:  # a peer holds the last ranges: stay, in case it dies
                await wait(stop, self.limits.lease_s / 3)

    def _forget(self) -> None:
        self.range = None

    async def step(self) -> bool:
        """One page; False where no range is free."""
        read = await self.read()
        if read is None:
            return False
        await self.write(read)
        return True

    async def read(self) -> PageRead | None:
        """The next page of this worker's range, claiming one if it has none."""
        if self.range is None:
            async with self.target.begin() as tx:
                self.range = await tx.ledger.claim_range(self.owner, self.limits.lease_s)
            if self.range is None:
                return None
        table = self.tables[self.range.table_id]
        async with self.target.begin() as tx:
            count = await tx.replica.truncate_count(table)
        after = self.range.cursor if self.range.cursor is not None else self.range.after
        try:
            page = await self._page(self.range, table, after)
        except LeaseLost:
            self.range = None
            return None
        return PageRead(self.range, table, count, page)

    async def _page(self, of: BackfillRange, table: Table, after: Key | None) -> Page:
        """The next page. The range's lease is renewed meanwhile: where a page takes longer than a lease, two workers
        would take the range from each other for ever. Raises LeaseLost."""
        reading = asyncio.ensure_future(self.source.page(table, after, of.upto, self.limits.page_rows))
        try:
            while not (await asyncio.wait([reading], timeout=self.limits.lease_s / 3))[0]:
                async with self.target.begin() as tx:
                    await tx.ledger.hold_range(of.id, self.owner)
                    await tx.ledger.advance_range(of.id, self.owner, None, False, (0, 0), self.limits.lease_s)
            return reading.result()
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])

    async def write(self, read: PageRead) -> bool:
        """Write one page; False where it was dropped because a truncate or another owner came between."""
        rows, cursor, done = read.page.rows, read.page.last, read.page.last is None
        try:
            async with self.target.begin() as tx:
                generations = await tx.ledger.hold_migration()
                await tx.ledger.hold_range(read.range.id, self.owner)
                if await tx.replica.hold_truncate_count(read.table) != read.truncate_count:
                    return False
                written = await self._copy(tx, read.table, generations, read.page)
                await tx.ledger.advance_range(
                    read.range.id, self.owner, cursor, done, (len(rows), written), self.limits.lease_s
                )
        except LeaseLost:
            self.range = None
            return False
        self.counts.pages += 1
        self.counts.rows_read += len(rows)
        self.counts.rows_written += written
        self.range = None if done else _moved(read.range, read.page)
        return True

    async def _copy(self, tx: UnitOfWork, table: Table, generations: Sequence[Generation], page: Page) -> int:
        rows = sorted(page.rows, key=lambda row: row.key)
        effects = await tx.replica.copy_in(table, rows)
        await follow_up(tx, table, generations, effects, live=False)
        inserted = {e.key for e in effects}
        there = [row for row in rows if row.key not in inserted]
        filled = await fill(tx, table, generations, there, page.snapshot)
        return len(effects) + filled


class Completion:
    """Reads missing columns at the source again, for the stream's owner. A row that is not found, or whose event the
    snapshot does not see yet, stays missing and blocks the proof."""

    def __init__(self, source: Source, target: Target, tables: Sequence[Table]) -> None:
        self.source, self.target, self.tables = source, target, tables

    async def run(self, stop: asyncio.Event, stream: Stream) -> None:
        """Until `stop`, while this process holds the stream's lease."""
        while not stop.is_set():
            if stream.is_owner:
                await retrying(self._turn, stop)
            await wait(stop, COMPLETION_WAIT_S)

    async def _turn(self, stop: asyncio.Event) -> None:
        for table in self.tables:
            if not stop.is_set():
                await self.step(table)

    async def step(self, table: Table) -> int:
        """Complete up to COMPLETION_ROWS rows of one table; the number completed."""
        async with self.target.begin() as tx:
            count = await tx.replica.truncate_count(table)
            keys = await tx.replica.missing(table, COMPLETION_ROWS)
        if not keys:
            return 0
        rows, snapshot = await self.source.rows(table, keys)
        async with self.target.begin() as tx:
            generations = await tx.ledger.hold_migration()
            if await tx.replica.hold_truncate_count(table) != count:
                return 0
            return await fill(tx, table, generations, [rows[k] for k in sorted(rows)], snapshot)


async def fill(
    tx: UnitOfWork, table: Table, generations: Sequence[Generation], rows: Sequence[SourceRow], snapshot: Snapshot
) -> int:
    """Fill what events left missing in these rows, under their locks; the number of rows filled."""
    if not rows:
        return 0
    states = await tx.replica.lock(table, [row.key for row in rows], only_missing=True)
    fills = [(state, row) for row in rows if (state := states.get(row.key)) is not None and fillable(state, snapshot)]
    if not fills:
        return 0
    effects = await tx.replica.fill(table, fills)
    await follow_up(tx, table, generations, effects, live=True)
    return len(effects)


def _moved(of: BackfillRange, page: Page) -> BackfillRange:
    return BackfillRange(of.id, of.table_id, of.after, of.upto, page.last)
