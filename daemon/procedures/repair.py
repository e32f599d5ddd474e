"""Mend what a comparison found, and nothing else.

A row is read in the replica first, then at the source; it is written only if position, live or deleted, what is
missing and the table's truncate count are as they were read, and the source's snapshot sees the transaction of the
row's position (DESIGN.md section 7). It keeps its position: an event that is still on its way finds it as it would
have. Where the text differs, its work follows. A chunk that is spoilt is deleted before it is made again, because its
digest would keep it. Whatever was mended is looked at again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from daemon.core.comparison import Fault, Found, Kind, is_shown
from daemon.core.contract import digest
from daemon.core.model import Key, Known, RowState, RowWrite, Table, Values, WriteKind
from daemon.errors import HeldElsewhere
from daemon.flow.stream import follow_up
from daemon.ports import RowPieces, SourceRow, UnitOfWork
from daemon.procedures.comparing import LEASE_S, Compared, Run, check_source, keys_of_rows, open_findings
from daemon.procedures.second_look import faults_of, look_at_rows, read_pieces

ROWS_AT_ONCE = 500
CHUNKS_OF_ROWS_AT_ONCE = 20  # their documents are cut while the rows are locked
ATTEMPTS = 10  # at a row that changes while it is mended
WORK_S = 120.0  # longest wait for the embedders without any progress
WORK_POLL_S = 0.2


async def mend_rows(run: Run) -> None:
    """Mend every row that was found to differ. Raises OutOfTime."""
    for _ in range(ATTEMPTS):
        async with run.target.begin() as tx:
            damaged = keys_of_rows(await open_findings(tx, run.comparison.id))
        if not damaged:
            return
        for table_id, findings in damaged.items():
            keys = sorted(findings)
            for at in range(0, len(keys), ROWS_AT_ONCE):
                run.check_time()
                part = keys[at : at + ROWS_AT_ONCE]
                await _mend_part(run, run.tables[table_id], part)
                looked = await look_at_rows(run, {table_id: part})
                settled = [key for key in part if (table_id, key) in looked.settled]
                await _note_mended(run, run.tables[table_id], settled, [id for k in settled for id, _ in findings[k]])
                run.say()


async def _note_mended(run: Run, table: Table, keys: Sequence[Key], found: Sequence[int]) -> None:
    """Their chunks are suspects now: while the row differed, they were passed over."""
    async with run.target.begin() as tx:
        looks = await tx.audit.looks(table, keys)
        rows = sorted(look.row_id for look in looks.values())
        for c in run.compared if rows else ():
            await tx.comparisons.suspect(run.comparison.id, table, c.generation, row_ids=rows)
        await tx.comparisons.mended(found)


async def _hold(run: Run, tx: UnitOfWork) -> None:
    """Nobody else mends until this transaction ends: a mended row keeps its position, and does not tell that it was.
    Raises HeldElsewhere: the process stood still, and another one took over."""
    if await tx.comparisons.hold(run.comparison.id, run.owner, LEASE_S) is not None:
        raise HeldElsewhere("comparison-running", "another process took the comparison over", "")


async def _mend_part(run: Run, table: Table, keys: Sequence[Key]) -> None:
    async with run.target.begin() as tx:
        count = await tx.replica.truncate_count(table)
        before = await tx.replica.lock(table, keys)
    await run.pace.take(len(keys))
    rows, snapshot = await run.way.source.rows(table, keys)
    await check_source(run)
    await _note_digests(run, table, before)
    async with run.target.begin() as tx:
        generations = await tx.ledger.hold_migration()
        await _hold(run, tx)
        if await tx.replica.hold_truncate_count(table) != count:
            return
        now = await tx.replica.lock(table, keys)
        writes = []
        for key in keys:
            state = now.get(key)
            if state != before.get(key) or not is_shown(state, snapshot, run.epoch):
                continue
            if (write := repair(key, state, rows.get(key))) is not None:
                writes.append(write)
        effects, _ = await tx.replica.write(table, writes)  # what was inserted meanwhile is looked at again
        await follow_up(tx, table, generations, effects, live=True)
    for effect in effects:
        if effect.is_wanted and (effect.text_differs or not effect.was_wanted):
            for c in run.compared:
                run.awaited.setdefault((c.generation.id, table.id), {}).setdefault(effect.row_id, frozenset())


def repair(key: Key, state: RowState | None, row: SourceRow | None) -> RowWrite | None:
    """What makes the replica's row, as it was locked, the source's; None where neither side has one. Its position
    and transaction stay, and a row that was absent has none: every event that is still to come is newer."""
    if row is None:
        if state is None or not state.live:
            return None
        return RowWrite(WriteKind.BURY, key, state.row_id, None, state.position, state.xid)
    values: Values = row.values
    if state is None:
        return RowWrite(WriteKind.INSERT, key, None, values, None, None)
    kind = WriteKind.UPDATE if state.live else WriteKind.REPLACE
    return RowWrite(kind, key, state.row_id, values, state.position, state.xid)


async def _note_digests(run: Run, table: Table, states: Mapping[Key, RowState]) -> None:
    """What each generation has of these rows now: chunks with another digest afterwards were paid for."""
    rows = [state.row_id for state in states.values()]
    for c in run.compared:
        stored = await read_pieces(run, c, table, rows) if rows else {}
        kept = run.awaited.setdefault((c.generation.id, table.id), {})
        for row_id, row in stored.items():
            kept.setdefault(row_id, frozenset(piece.digest for piece in row.pieces))


# --- chunks


async def mend_chunks(run: Run) -> None:
    """Mend every chunk that was found to be wrong, then wait for what has to be embedded. Raises OutOfTime."""
    async with run.target.begin() as tx:
        found = [f for f in await open_findings(tx, run.comparison.id) if not f[1].kind.is_of_row]
    groups: dict[tuple[int, int], dict[int, list[Found]]] = defaultdict(lambda: defaultdict(list))
    for _, difference in found:
        place = (difference.table_id, difference.generation_id or 0)
        groups[place][difference.row_id or 0].append(difference)
    for (table_id, generation_id), rows in groups.items():
        ids = sorted(rows)
        for at in range(0, len(ids), CHUNKS_OF_ROWS_AT_ONCE):
            run.check_time()
            part = {id: rows[id] for id in ids[at : at + CHUNKS_OF_ROWS_AT_ONCE]}
            await _mend_chunks_of(run, run.compared_of(generation_id), run.tables[table_id], part)
            run.say()
    await _await_work(run)
    await _look_again(run, found)


async def _mend_chunks_of(run: Run, c: Compared, table: Table, rows: Mapping[int, Sequence[Found]]) -> None:
    ids = sorted(rows)
    async with run.target.begin() as tx:
        await tx.ledger.hold_migration()
        await _hold(run, tx)
        await tx.replica.lock_rows(table, ids)
        pieces = await tx.audit.pieces(table, c.generation, c.contract, ids)
        faults = await run.on_cpu(faults_of, c, table, pieces)
        spoilt: dict[int, set[int]] = {}
        for row_id, row in pieces.items():
            there = {piece.n for piece in row.pieces}
            # A vector that was refuted by embedding again shows nothing by itself, and the row's other chunks of that
            # text would lend it theirs.
            refuted = {d.n for d in rows[row_id] if d.n is not None and d.kind in _REFUTED} & there
            texts = {piece.digest for piece in row.pieces if piece.n in refuted}
            refuted |= {piece.n for piece in row.pieces if piece.digest in texts}
            spoilt[row_id] = {f.n for f in faults.get(row_id, []) if f.kind.is_of_chunk_itself} | refuted
        await _write(tx, c, table, pieces, (faults, spoilt))
    kept = run.awaited.setdefault((c.generation.id, table.id), {})
    for row_id, row in pieces.items():
        kept.setdefault(row_id, frozenset(p.digest for p in row.pieces if p.n not in spoilt[row_id]))


_REFUTED = (Kind.VECTOR_SHARED, Kind.VECTOR_DRIFTED)


async def _write(
    tx: UnitOfWork,
    c: Compared,
    table: Table,
    pieces: Mapping[int, RowPieces],
    wrong: tuple[Mapping[int, Sequence[Fault]], Mapping[int, set[int]]],
) -> None:
    faults, spoilt = wrong
    filters = [id for id, found in faults.items() if any(f.kind is Kind.CHUNK_FILTERS for f in found)]
    gone = [(id, n) for id, numbers in sorted(spoilt.items()) for n in sorted(numbers)]
    work = [
        id
        for id, row in pieces.items()
        if row.values is not None and (spoilt[id] or any(f.kind is not Kind.CHUNK_FILTERS for f in faults.get(id, [])))
    ]
    if filters:
        await tx.vectors.copy_filters(table, [c.generation], filters)
    if gone:
        await tx.audit.drop_chunks(table, c.generation, gone)
    if work:
        await tx.ledger.put_work(table, [c.generation], sorted(work), live=True)


async def _await_work(run: Run) -> None:
    """Until nothing of what was mended is owed, or no progress was seen for WORK_S; then count what was paid for.
    Raises OutOfTime."""
    for (generation_id, table_id), kept in run.awaited.items():
        c, table = run.compared_of(generation_id), run.tables[table_id]
        owed, progress_at = set(kept), run.clock()
        while owed and run.clock() < progress_at + WORK_S:
            run.check_time()
            rows = await read_pieces(run, c, table, sorted(owed))
            done = [id for id in owed if id not in rows or not rows[id].is_owed]
            for id in done:
                if id in rows and (values := rows[id].values) is not None:
                    run.tokens += await run.on_cpu(_paid, c, table, (rows[id], values), kept[id])
            owed -= set(done)
            if done:
                progress_at = run.clock()
            if owed:
                await run.pause(WORK_POLL_S)
    run.awaited.clear()


def _paid(c: Compared, table: Table, row: tuple[RowPieces, Mapping[str, Known]], kept: frozenset[bytes]) -> int:
    """Tokens of the chunks that a row has now and did not keep, as the tokenizer counts them."""
    stored = {piece.digest for piece in row[0].pieces} - kept
    prefix, texts = c.contract.document_prefix, c.pieces_of(table, row[1])
    return sum(c.tokenizer.count(prefix + text) for text in texts if digest(text, c.contract) in stored)


async def _look_again(run: Run, found: Sequence[tuple[int, Found]]) -> None:
    """Close the differences of chunks that are right now."""
    rows: dict[tuple[int, int], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for id, d in found:
        rows[d.table_id, d.generation_id or 0][d.row_id or 0].append(id)
    mended: list[int] = []
    for (table_id, generation_id), ids in rows.items():
        c, table = run.compared_of(generation_id), run.tables[table_id]
        row_ids = sorted(ids)
        for at in range(0, len(row_ids), CHUNKS_OF_ROWS_AT_ONCE):
            part = row_ids[at : at + CHUNKS_OF_ROWS_AT_ONCE]
            pieces = await read_pieces(run, c, table, part)
            faults = await run.on_cpu(faults_of, c, table, pieces)
            mended += [
                id
                for row in part
                if row not in faults and (row not in pieces or not pieces[row].is_owed)
                for id in ids[row]
            ]
    async with run.target.begin() as tx:
        await tx.comparisons.mended(mended)
