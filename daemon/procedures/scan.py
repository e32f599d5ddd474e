"""The first look of a comparison: both sides in pages, whatever differs becomes a suspect.

    source   a digest page in the source's own key order, probed by key in the replica
    replica  live rows in row order, probed by key at the source
    chunks   of each generation in row order, against the documents of their rows

Collations differ, so neither side's order is asked of the other. A page's suspects and the cursor behind it are
committed together: what is killed goes on at its last page. Nothing here decides that something is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from daemon.core.model import Key, Table
from daemon.errors import RevectorError, first_of
from daemon.ports import RowText, Scan, Source, Target
from daemon.procedures.comparing import Compared, Run

PARTS_OF_A_WORKER = 4  # scans of a table's side for each worker: the last one to end is short
LEAST_ROW = -(2**63)


async def plan(run: Run) -> None:
    """Record what is to be compared, once."""
    parts = PARTS_OF_A_WORKER * run.parts.settings.verify.workers
    scans: list[Scan] = []
    for table in run.tables.values():
        bounds = await run.way.source.bounds(table, parts)
        edges: list[Key | None] = [None, *bounds, None]
        scans += [
            Scan(0, "source", table.id, None, edges[n], edges[n + 1])  # one range for a small table
            for n in range(len(edges) - 1)
        ]
        async with run.target.begin() as tx:
            last = await tx.audit.last_row(table)
        edges = _row_edges(last, parts if bounds else 1)
        pairs = [(edges[n], edges[n + 1]) for n in range(len(edges) - 1)]
        scans += [Scan(0, "replica", table.id, None, *pair) for pair in pairs]
        for c in run.compared:
            scans += [Scan(0, "chunks", table.id, c.generation.id, *pair) for pair in pairs]
    async with run.target.begin() as tx:
        await tx.comparisons.plan(run.comparison.id, scans)


def _row_edges(last: int, parts: int) -> list[Key | None]:
    inner = sorted({last * n // parts for n in range(1, parts)} - {0, last})
    return [None, *((str(row),) for row in inner), None]


async def scan(run: Run, sides: Sequence[str]) -> None:
    """Compare what is left of these sides. Raises OutOfTime; what was compared until then is recorded."""
    async with run.target.begin() as tx:
        scans = await tx.comparisons.scans(run.comparison.id)
    run.rows = sum(s.rows for s in scans if s.side == "source")
    run.chunks = sum(s.chunks for s in scans)
    waiting = [s for side in sides for s in scans if s.side == side and not s.is_done]
    if not waiting:
        return
    eta = _Eta(run)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(run.parts.settings.verify.workers, len(waiting))):
                group.create_task(_worker(run, waiting, eta))
    except* RevectorError as errors:
        raise first_of(errors) from None
    run.check_time()


class _Eta:
    """Seconds left of a scan, from its slowest and its fastest recent rate."""

    def __init__(self, run: Run) -> None:
        self.samples = [(run.clock(), run.rows)]

    def range(self, run: Run) -> tuple[float, float] | None:
        now, at = run.clock(), self.samples[-1][0]
        if now - at >= 1:
            self.samples = [*self.samples[-30:], (now, run.rows)]
        rates = [
            (b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(self.samples, self.samples[1:], strict=False) if b[0] > a[0]
        ]
        left = None if run.rows_total is None else run.rows_total - run.rows
        if not rates or left is None or left <= 0 or min(rates) <= 0:
            return None
        return left / max(rates), left / min(rates)


async def _worker(run: Run, waiting: list[Scan], eta: _Eta) -> None:
    """Scans to their end, until the time is used up."""
    source, target = run.parts.source("verify-scan"), run.parts.target("verify-scan")
    try:
        while waiting:
            at = waiting.pop(0)
            while not at.is_done:
                if run.is_over:
                    return
                at = await _page(run, at, (source, target))
                run.say(eta.range(run))
    finally:
        await source.close()
        await target.close()


async def _page(run: Run, scan: Scan, sides: tuple[Source, Target]) -> Scan:
    table = run.tables[scan.table_id]
    if scan.side == "source":
        return await _source_page(run, scan, table, sides)
    if scan.side == "replica":
        return await _replica_page(run, scan, table, sides)
    return await _chunk_page(run, scan, table, sides[1])


async def _source_page(run: Run, scan: Scan, table: Table, sides: tuple[Source, Target]) -> Scan:
    source, target = sides
    limit = run.parts.settings.verify.page_rows
    await run.pace.take(limit)
    page = await source.digest_page(table, scan.cursor or scan.lower, scan.upper, limit)
    is_done = page.last is None
    async with target.begin() as tx:
        keys = await tx.audit.differing(table, page) if page.rows else []
        if keys:
            await tx.comparisons.suspect(run.comparison.id, table, None, keys=keys)
        await tx.comparisons.advance(scan, page.last, page.rows, 0, done=is_done)
    run.rows += page.rows
    return replace(scan, cursor=page.last, rows=scan.rows + page.rows, is_done=is_done)


async def _replica_page(run: Run, scan: Scan, table: Table, sides: tuple[Source, Target]) -> Scan:
    source, target = sides
    limit = run.parts.settings.verify.page_rows
    after, upto = _after(scan), _upto(scan)
    async with target.begin() as tx:
        page, last = await tx.audit.keys_page(table, after, limit)
    await run.pace.take(page.rows)
    keys = await source.absent(table, page) if page.rows else []
    is_done = last is None or (upto is not None and last >= upto)
    cursor = None if last is None else (str(last),)
    async with target.begin() as tx:
        if keys:
            await tx.comparisons.suspect(run.comparison.id, table, None, keys=keys)
        await tx.comparisons.advance(scan, cursor, page.rows, 0, done=is_done)
    return replace(scan, cursor=cursor, rows=scan.rows + page.rows, is_done=is_done)


async def _chunk_page(run: Run, scan: Scan, table: Table, target: Target) -> Scan:
    c = run.compared_of(scan.generation_id)
    after, upto, limit = _after(scan), _upto(scan), run.parts.settings.verify.page_rows
    await run.pace.take(limit)  # embedders and the stream work on this database
    async with target.begin() as tx:
        page = await tx.audit.chunk_page(table, c.generation, c.contract, after, upto, limit)
    suspects = list(page.suspects)
    if page.texts:
        suspects += await run.on_cpu(_differing, c, table, page.texts)
    cursor = None if page.last_row is None else (str(page.last_row),)
    is_done = page.last_row is None
    async with target.begin() as tx:
        await tx.comparisons.advance(scan, cursor, page.rows, page.chunks, done=is_done)  # first: heads are kept once
        await tx.audit.keep_heads(run.comparison.id, table, c.generation, after, upto if is_done else page.last_row)
        if suspects:
            rows = sorted(set(suspects))
            await tx.comparisons.suspect(run.comparison.id, table, c.generation, row_ids=rows)
    run.chunks += page.chunks
    return replace(scan, cursor=cursor, rows=scan.rows + page.rows, chunks=scan.chunks + page.chunks, is_done=is_done)


def _differing(c: Compared, table: Table, texts: Sequence[RowText]) -> list[int]:
    return [row.row_id for row in texts if c.expected(table, row.values) != list(row.digests)]


def _after(scan: Scan) -> int:
    at = scan.cursor or scan.lower
    return LEAST_ROW if at is None else int(at[0])


def _upto(scan: Scan) -> int | None:
    return None if scan.upper is None else int(scan.upper[0])
