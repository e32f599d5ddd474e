"""The Replica and Vectors ports over a transaction's `State`: the statement shapes of DESIGN.md section 5.

They refuse (AssertionError) what the ports forbid and a database would let pass: a replica write without
`hold_migration`, a write to a row that is not locked, a chunk written outside its row's lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from daemon.core.model import (
    UNAVAILABLE,
    Chunk,
    Effect,
    Generation,
    Key,
    Known,
    Position,
    RowState,
    RowWrite,
    Table,
    Values,
    WriteKind,
)
from daemon.ports import Document, SourceRow
from tests.fakes.selection import MemorySelection
from tests.fakes.state import Context, ReplicaRow, StoredChunk


class MemoryReplica(MemorySelection):
    async def truncate(self, table: Table, position: Position) -> bool:
        self.context.need_migration()
        record = self.state.tables[table.id]
        if record.truncated is not None and position <= record.truncated:
            return False
        self.state.tables[table.id] = replace(record, truncated=position, truncate_count=record.truncate_count + 1)
        for place, row in list(self.state.rows.items()):
            if place[0] == table.id and (row.position is None or row.position < position):
                self._remove(table, row)
        return True

    async def lock(self, table: Table, keys: Sequence[Key], *, only_missing: bool = False) -> dict[Key, RowState]:
        found = {}
        for key in sorted(keys):
            row = self.state.rows.get((table.id, key))
            if row is not None and (row.missing(table) or not only_missing):
                self.context.locked_keys.add((table.id, key))
                found[key] = RowState(row.row_id, row.live, row.position, row.xid, row.missing(table), row.missing_xid)
        return found

    async def write(self, table: Table, writes: Sequence[RowWrite]) -> tuple[list[Effect], list[RowWrite]]:
        self.context.need_migration()
        while self.context.intrusions:
            self.context.intrusions.pop()(self.state)
        effects, leftovers = [], []
        for write in sorted(writes, key=lambda w: w.key):
            old = self.state.rows.get((table.id, write.key))
            if write.row_id is None and old is not None:
                leftovers.append(write)
                continue
            if old is not None and (
                (table.id, write.key) not in self.context.locked_keys or old.row_id != write.row_id
            ):
                raise AssertionError(f"{table.alias} {write.key} is written without its lock")
            if old is None and write.row_id is not None:
                raise AssertionError(f"{table.alias} {write.key} has no row {write.row_id}")
            effects.append(self._store(table, old, self._written(table, old, write), write))
        return effects, leftovers

    async def copy_in(self, table: Table, rows: Sequence[SourceRow]) -> list[Effect]:
        self.context.need_migration()
        effects = []
        for row in sorted(rows, key=lambda r: r.key):
            if (table.id, row.key) not in self.state.rows:
                new = ReplicaRow(next(self.context.sequences.row), row.key, row.values, None, None)
                effects.append(self._store(table, None, new, None))
        return effects

    async def fill(self, table: Table, rows: Sequence[tuple[RowState, SourceRow]]) -> list[Effect]:
        self.context.need_migration()
        effects = []
        for state, source in rows:
            old = self.state.rows[table.id, source.key]
            if (table.id, source.key) not in self.context.locked_keys or old.row_id != state.row_id:
                raise AssertionError(f"{table.alias} {source.key} is filled without its lock")
            if old.values is None:
                raise AssertionError(f"{table.alias} {source.key} is filled while dead")
            values: Values = tuple(n if o is UNAVAILABLE else o for o, n in zip(old.values, source.values, strict=True))
            effects.append(self._store(table, old, replace(old, values=values, missing_xid=None), None))
        return effects

    async def restamp_missing(self, table: Table, xid: int) -> int:
        self.context.need_migration()
        lacking = [row for row in self.state.live_rows(table).values() if row.missing(table)]
        for row in lacking:
            self.state.rows[table.id, row.key] = replace(row, missing_xid=xid)
        return len(lacking)

    async def missing(self, table: Table, limit: int) -> list[Key]:
        return [k for k, r in self.state.live_rows(table).items() if r.missing(table)][:limit]

    async def truncate_count(self, table: Table) -> int:
        return self.state.tables[table.id].truncate_count

    async def hold_truncate_count(self, table: Table) -> int:
        return self.state.tables[table.id].truncate_count

    async def lock_rows(self, table: Table, row_ids: Sequence[int]) -> set[int]:
        usable = set()
        for row_id in row_ids:
            row = self.state.row(table, row_id)
            if row is None:
                continue
            self.context.locked_keys.add((table.id, row.key))
            if row.live and not row.missing(table) & set(table.filters):
                usable.add(row_id)
        return usable

    async def documents(self, table: Table, generation: Generation, row_ids: Sequence[int]) -> list[Document]:
        found = []
        for row_id in row_ids:
            row = self.state.row(table, row_id)
            values: dict[str, Known] | None = None
            if row is not None and row.values is not None and not row.missing(table) & set(table.text_columns):
                by_name = dict(zip(table.names, row.values, strict=True))
                values = {n: known(by_name[n]) for n in table.text_columns}
            stored = {c.digest: c.n for c in self.state.chunks.get((generation.id, table.id, row_id), ())}
            found.append(Document(row_id, values, stored))
        return found

    def _written(self, table: Table, old: ReplicaRow | None, write: RowWrite) -> ReplicaRow:
        """The row as the statement of this shape leaves it."""
        row_id = old.row_id if old is not None else next(self.context.sequences.row)
        if write.kind is WriteKind.BURY:
            return ReplicaRow(row_id, write.key, None, write.position, write.xid)
        if write.values is None:
            raise AssertionError(f"{write.kind} of {table.alias} {write.key} without values")
        values = write.values
        missing_xid = write.xid
        if write.kind is WriteKind.INSERT and old is not None:
            raise AssertionError(f"insert of {table.alias} {write.key}, which exists")
        if write.kind is WriteKind.UPDATE:
            if old is None or old.values is None:
                raise AssertionError(f"update of {table.alias} {write.key}, which is not live")
            values = tuple(o if n is UNAVAILABLE else n for o, n in zip(old.values, write.values, strict=True))
            missing_xid = old.missing_xid
        row = ReplicaRow(row_id, write.key, values, write.position, write.xid, missing_xid)
        return row if row.missing(table) else replace(row, missing_xid=None)

    def _store(self, table: Table, old: ReplicaRow | None, new: ReplicaRow, write: RowWrite | None) -> Effect:
        self.state.rows[table.id, new.key] = new
        self.state.keys[table.id, new.row_id] = new.key
        self.context.locked_keys.add((table.id, new.key))
        was = old.values if old is not None else None
        wanted = self.context.rules.wanted
        return Effect(
            row_id=new.row_id,
            key=new.key,
            was_live=was is not None,
            is_live=new.live,
            was_wanted=wanted(table, was),
            is_wanted=wanted(table, new.values),
            text_differs=was is None or differs(table, table.text_columns, was, new.values),
            filters_differ=was is not None and differs(table, table.filters, was, new.values),
            gone=write is not None and write.gone,
            replaced=write is not None and write.kind is WriteKind.REPLACE,
            changed_at_ms=write.changed_at_ms if write is not None else None,
        )

    def _remove(self, table: Table, row: ReplicaRow) -> None:
        del self.state.rows[table.id, row.key]
        del self.state.keys[table.id, row.row_id]
        for derived in (self.state.chunks, self.state.work):
            for place in [p for p in derived if p[1:] == (table.id, row.row_id)]:
                del derived[place]


class MemoryVectors:
    def __init__(self, context: Context) -> None:
        self.context, self.state = context, context.state

    async def replace(
        self,
        table: Table,
        generation: Generation,
        chunks: Sequence[Chunk],
        vectors: Mapping[bytes, Any],
        row_ids: Sequence[int],
    ) -> set[int]:
        lacking = set()
        for row_id in row_ids:
            self.context.need_row(table, row_id)
            place = (generation.id, table.id, row_id)
            stored = {c.digest: c.vector for c in self.state.chunks.get(place, ())}
            mine = sorted((c for c in chunks if c.row_id == row_id), key=lambda c: c.n)
            if any(c.digest not in vectors and c.digest not in stored for c in mine):
                lacking.add(row_id)
                continue
            filters = self._filters(table, row_id)
            new = tuple(
                StoredChunk(c.n, c.text, c.digest, self._vector(generation, c, vectors, stored), filters) for c in mine
            )
            self.state.chunks.pop(place, None)
            if new:
                self.state.chunks[place] = new
        return lacking

    async def drop(self, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> None:
        for row_id in row_ids:
            self.context.need_row(table, row_id)
            for generation in generations:
                self.state.chunks.pop((generation.id, table.id, row_id), None)

    async def copy_filters(self, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> None:
        for row_id in row_ids:
            self.context.need_row(table, row_id)
            for generation in generations:
                place = (generation.id, table.id, row_id)
                if place in self.state.chunks:
                    filters = self._filters(table, row_id)
                    self.state.chunks[place] = tuple(replace(c, filters=filters) for c in self.state.chunks[place])

    async def counts(self, table: Table, generation: Generation) -> tuple[int, int]:
        found = [c for (g, t, _), c in self.state.chunks.items() if (g, t) == (generation.id, table.id)]
        return len(found), sum(len(c) for c in found)

    def _filters(self, table: Table, row_id: int) -> tuple[Known, ...]:
        row = self.state.row(table, row_id)
        if row is None or row.values is None:
            raise AssertionError(f"{table.alias} row {row_id} is not live")
        by_name = dict(zip(table.names, row.values, strict=True))
        return tuple(None if by_name[n] is UNAVAILABLE else known(by_name[n]) for n in table.filters)

    def _vector(
        self, generation: Generation, chunk: Chunk, vectors: Mapping[bytes, Any], stored: Mapping[bytes, Any]
    ) -> Any:
        if chunk.digest not in vectors:
            return stored[chunk.digest]
        vector = np.asarray(vectors[chunk.digest], dtype=np.float32)
        if vector.shape != (generation.dimensions,):
            raise AssertionError(
                f"vector of shape {vector.shape} in a generation of {generation.dimensions} dimensions"
            )
        return vector


def known(value: Any) -> Known:
    if value is UNAVAILABLE:
        raise AssertionError("a missing column is read as known")
    return value  # type: ignore[no-any-return]


def differs(table: Table, names: Sequence[str], was: Values | None, now: Values | None) -> bool:
    """Whether one of these columns, or its being missing, differs. A dead row differs from every other."""
    if was is None or now is None:
        return was is not now
    at = [table.names.index(n) for n in names]
    return any(was[i] != now[i] for i in at)
