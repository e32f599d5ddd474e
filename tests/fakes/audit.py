"""The twin of the target as a comparison reads it: rows and chunks of one transaction's state.

What the adapter computes in the database is computed here from the state alone, so a chunk that a test spoils is seen
as Postgres would see it: its text is digested again, its vector measured, its copy of the filter columns held against
its row.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from daemon.core.comparison import Piece, ReplicaLook, VectorRule, judge_chunks, vector_fault
from daemon.core.contract import WHOLE, Contract, digest, render, whole_document
from daemon.core.model import UNAVAILABLE, Generation, Key, Known, Table
from daemon.ports import ChunkPage, ChunkText, DigestPage, KeyPage, RowPieces, RowText
from tests.fakes import digests
from tests.fakes.replica import known
from tests.fakes.state import Context, Head, StoredChunk

HEAD_VALUES = 4  # of a vector; those of different vectors may begin alike


class MemoryAudit:
    """The `Audit` port over one transaction's state."""

    def __init__(self, context: Context) -> None:
        self._context, self._state = context, context.state

    # --- rows

    async def differing(self, table: Table, page: DigestPage) -> list[Key]:
        found = []
        for key, theirs in zip(digests.keys_of(page), digests.digests_of(page), strict=True):
            row = self._state.rows.get((table.id, key))
            if row is None or row.values is None or row.missing(table) or digests.row_digest(row.values) != theirs:
                found.append(key)
        return found

    async def keys_page(self, table: Table, after_row: int, limit: int) -> tuple[KeyPage, int | None]:
        rows = self._state.live_rows(table).values()
        page = sorted((row.row_id, row.key) for row in rows if row.row_id > after_row)[:limit]
        return digests.key_page(table, [key for _, key in page]), page[-1][0] if len(page) == limit else None

    async def last_row(self, table: Table) -> int:
        return max((row_id for t, row_id in self._state.keys if t == table.id), default=0)

    async def looks(self, table: Table, keys: Sequence[Key]) -> dict[Key, ReplicaLook]:
        found = {}
        for key in keys:
            row = self._state.rows.get((table.id, key))
            if row is not None:
                columns = digests.column_digests(row.values or (None,) * len(table.columns))
                found[key] = ReplicaLook(row.row_id, row.live, row.position, row.missing(table), columns, row.xid)
        return found

    # --- chunks

    async def chunk_page(
        self, table: Table, generation: Generation, contract: Contract, after_row: int, upto_row: int | None, limit: int
    ) -> ChunkPage:
        rows = sorted(r for t, r in self._state.keys if t == table.id and _is_within(r, after_row, upto_row))[:limit]
        last = rows[-1] if len(rows) == limit else None
        stored = self._stored(table, generation, after_row, upto_row if last is None else last)
        suspects, texts = set(), []
        for row_id in sorted({*rows, *stored}):
            found = self._pieces(table, generation, contract, row_id)
            if found is None:
                continue
            numbers = [piece.n for piece in found.pieces]
            if _is_suspect(table, contract, found):
                suspects.add(row_id)
            elif found.values is not None and not found.is_owed and contract.chunker.name != WHOLE.name:
                if numbers == list(range(len(numbers))):
                    texts.append(RowText(row_id, found.values, tuple(piece.digest for piece in found.pieces)))
                else:
                    suspects.add(row_id)
        chunks = sum(len(pieces) for pieces in stored.values())
        return ChunkPage(len(rows), chunks, tuple(sorted(suspects)), tuple(texts), last)

    async def keep_heads(
        self, comparison: int, table: Table, generation: Generation, after_row: int, upto_row: int | None
    ) -> None:
        for row_id, chunks in self._stored(table, generation, after_row, upto_row).items():
            for chunk in chunks:
                head = Head(comparison, generation.id, table.id, row_id, chunk.n, _head(chunk), chunk.digest)
                if head in self._state.heads:
                    raise AssertionError(f"a chunk of row {row_id} is remembered twice")
                self._state.heads[head] = None

    async def shared(self, comparison: int, generation: Generation, limit: int) -> list[list[ChunkText]]:
        mine = [h for h in self._state.heads if (h.comparison, h.generation_id) == (comparison, generation.id)]
        alike: dict[bytes, list[Head]] = defaultdict(list)
        for head in mine:
            alike[head.head].append(head)
        kept = [heads for heads in alike.values() if len({h.digest for h in heads}) > 1]
        for head in set(mine).difference(*kept):
            del self._state.heads[head]
        groups: dict[bytes, list[ChunkText]] = defaultdict(list)
        of: dict[bytes, set[bytes]] = defaultdict(set)
        for head in (h for heads in kept for h in heads):
            chunk = self._chunk(head)
            if chunk is not None and chunk.digest == head.digest:
                groups[chunk.vector.tobytes()].append(_chunk_text(head.table_id, head.row_id, chunk))
                of[chunk.vector.tobytes()].add(chunk.digest)
        return [group for vector, group in groups.items() if len(of[vector]) > 1][:limit]

    async def pieces(
        self, table: Table, generation: Generation, contract: Contract, row_ids: Sequence[int]
    ) -> dict[int, RowPieces]:
        found = {row_id: self._pieces(table, generation, contract, row_id) for row_id in row_ids}
        return {row_id: pieces for row_id, pieces in found.items() if pieces is not None}

    async def drop_chunks(self, table: Table, generation: Generation, chunks: Sequence[tuple[int, int]]) -> None:
        for row_id, n in chunks:
            self._context.need_row(table, row_id)
            place = (generation.id, table.id, row_id)
            left = tuple(chunk for chunk in self._state.chunks.pop(place, ()) if chunk.n != n)
            if left:
                self._state.chunks[place] = left

    async def sample(self, table: Table, generation: Generation, count: int) -> list[ChunkText]:
        stored = self._stored(table, generation, -1, None)
        every = [_chunk_text(table.id, row_id, chunk) for row_id, chunks in stored.items() for chunk in chunks]
        pick = random.Random(next(self._context.sequences.pick))
        return pick.sample(every, min(count, len(every)))

    # --- inside

    def _stored(
        self, table: Table, generation: Generation, after_row: int, upto_row: int | None
    ) -> dict[int, tuple[StoredChunk, ...]]:
        """Chunks by row id, of rows that are there and of others."""
        return {
            row_id: chunks
            for (g, t, row_id), chunks in sorted(self._state.chunks.items())
            if (g, t) == (generation.id, table.id) and _is_within(row_id, after_row, upto_row)
        }

    def _chunk(self, head: Head) -> StoredChunk | None:
        chunks = self._state.chunks.get((head.generation_id, head.table_id, head.row_id), ())
        return next((chunk for chunk in chunks if chunk.n == head.n), None)

    def _pieces(self, table: Table, generation: Generation, contract: Contract, row_id: int) -> RowPieces | None:
        place = (generation.id, table.id, row_id)
        row, chunks = self._state.row(table, row_id), self._state.chunks.get(place, ())
        is_owed = place in self._state.work
        if row is None and not chunks and not is_owed:
            return None
        values = None if row is None else row.values
        is_wanted = self._context.rules.wanted(table, values)
        texts: dict[str, Known] | None = None
        filters: tuple[Known, ...] | None = None
        if row is not None and values is not None:
            by_name = dict(zip(table.names, values, strict=True))
            filters = tuple(None if by_name[n] is UNAVAILABLE else known(by_name[n]) for n in table.filters)
            if is_wanted and not row.missing(table) & {*table.text_columns, *table.filters}:
                texts = {n: known(by_name[n]) for n in table.text_columns}
        pieces = tuple(_piece(chunk, contract, filters) for chunk in sorted(chunks, key=lambda chunk: chunk.n))
        return RowPieces(None if row is None else row.key, is_wanted, texts, is_owed, pieces)


def _is_within(row_id: int, after_row: int, upto_row: int | None) -> bool:
    return row_id > after_row and (upto_row is None or row_id <= upto_row)


def _piece(chunk: StoredChunk, contract: Contract, filters: tuple[Known, ...] | None) -> Piece:
    norm = float(np.linalg.norm(chunk.vector.astype(np.float64)))
    differs = filters is not None and chunk.filters != filters
    return Piece(chunk.n, chunk.digest, digest(chunk.text, contract), differs, len(chunk.vector), norm)


def _is_suspect(table: Table, contract: Contract, found: RowPieces) -> bool:
    """Whether something is wrong that shows without cutting a document; whole documents are judged to the end."""
    rule = VectorRule(contract.dimensions, contract.normalised)
    if not found.is_wanted:
        return bool(found.pieces)
    if found.values is not None and contract.chunker.name == WHOLE.name:
        whole = whole_document(render(table.template, found.values))
        expected = [digest(text, contract) for text in whole]
        return bool(judge_chunks(expected, found.pieces, rule, is_owed=found.is_owed))
    return any(p.filters_differ or p.derived != p.digest or vector_fault(p, rule) is not None for p in found.pieces)


def _head(chunk: StoredChunk) -> bytes:
    return bytes(chunk.vector[:HEAD_VALUES].tobytes())


def _chunk_text(table_id: int, row_id: int, chunk: StoredChunk) -> ChunkText:
    return ChunkText(table_id, row_id, chunk.n, chunk.text, [float(value) for value in chunk.vector])
