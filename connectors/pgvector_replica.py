"""The replica in Postgres: the table of DESIGN.md section 5 as statements, one per shape.

A shape is a kind of write with the set of columns that it knows. Values travel as arrays of canonical text, one array
per column, and Postgres casts them. Each statement compares the old row with the new one itself, by the text that
would be rendered, so no document crosses the network to be compared.

Callers hold the rows' locks (`lock`, `lock_rows`), so a statement's snapshot, taken after that, holds exactly the row
that it changes. Chunks and work follow in later statements of the caller: in the same statement one snapshot would
miss what an embedder committed while the row's lock was waited for. Takes no decision and never commits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from psycopg import sql

from connectors.relations import comma, name, raw, wanted
from connectors.selection import PgSelection
from daemon.core.model import (
    UNAVAILABLE,
    Effect,
    Generation,
    Key,
    Known,
    Position,
    RowState,
    RowWrite,
    Table,
    Value,
    WriteKind,
)
from daemon.ports import Document, SourceRow

Parameters = dict[str, Any]
Row = tuple[Any, ...]

# Parallel arrays that come with every write; `row_id` only where the row exists.
_POSITION = (("epoch", "integer"), ("commit", "bigint"), ("lsn", "bigint"), ("xid", "bigint"))


class PgReplica(PgSelection):
    """The Replica port over one open transaction."""

    # --- truncate

    async def truncate(self, table: Table, position: Position) -> bool:
        cursor = await self._connection.execute(
            "UPDATE revector.source_table SET trunc_epoch = %(epoch)s, trunc_commit = %(commit)s, trunc_lsn = %(lsn)s, "
            "truncate_count = truncate_count + 1 WHERE id = %(id)s AND (trunc_epoch IS NULL OR "
            "(trunc_epoch, trunc_commit, trunc_lsn) < (%(epoch)s, %(commit)s::bigint, %(lsn)s::bigint))",
            {"id": table.id, "epoch": position.epoch, "commit": position.commit_lsn, "lsn": position.lsn},
        )
        if cursor.rowcount == 0:
            return False
        replica = self._relations.replica(table)
        # Waits for embedders that hold rows and keeps others from locking any: row by row, in the order of the heap,
        # the removal would meet them in a circle. Plain reads go on.
        await self._connection.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(replica))
        remove = sql.SQL(
            "DELETE FROM {} WHERE _epoch IS NULL OR (_epoch, _commit, _lsn) < (%s::integer, %s::bigint, %s::bigint)"
        )
        await self._connection.execute(remove.format(replica), list(position))
        for chunks in await self._chunk_relations(table):
            # A visible chunk's or entry's row is visible too: it was written under that row's lock.
            orphans = sql.SQL("DELETE FROM {} c WHERE NOT EXISTS (SELECT FROM {} r WHERE r._row_id = c._row_id)")
            await self._connection.execute(orphans.format(chunks, replica), ())
        work = sql.SQL(
            "DELETE FROM revector.work w WHERE w.table_id = %s "
            "AND NOT EXISTS (SELECT FROM {} r WHERE r._row_id = w.row_id)"
        )
        await self._connection.execute(work.format(replica), [table.id])
        return True

    async def truncate_count(self, table: Table) -> int:
        return await self._scalar("SELECT truncate_count FROM revector.source_table WHERE id = %s", table.id)

    async def hold_truncate_count(self, table: Table) -> int:
        return await self._scalar("SELECT truncate_count FROM revector.source_table WHERE id = %s FOR SHARE", table.id)

    # --- locks

    async def lock(self, table: Table, keys: Sequence[Key], *, only_missing: bool = False) -> dict[Key, RowState]:
        if not keys:
            return {}
        lacking = sql.SQL("WHERE t._missing <> '{}'" if only_missing else "")
        query = sql.SQL(
            "SELECT i.ord, t._row_id, NOT t._deleted, t._epoch, t._commit, t._lsn, t._xid, t._missing, t._missing_xid "
            "FROM {} JOIN {} AS t ON {} {} ORDER BY {} FOR UPDATE OF t"
        ).format(
            _keys_input(table),
            self._relations.replica(table),
            _key_match(table, "t"),
            lacking,
            _key_columns(table, "t"),
        )
        rows = await self._fetch(query, _key_arrays(table, keys))
        return {keys[ord - 1]: _state(row) for ord, *row in rows}

    async def lock_rows(self, table: Table, row_ids: Sequence[int]) -> set[int]:
        query = sql.SQL(
            "SELECT t._row_id, NOT t._deleted AND NOT (t._missing && %(filters)s::text[]) FROM {} AS t "
            "WHERE t._row_id = ANY(%(rows)s::bigint[]) ORDER BY {} FOR UPDATE"
        ).format(self._relations.replica(table), _key_columns(table, "t"))
        rows = await self._fetch(query, {"rows": list(row_ids), "filters": list(table.filters)})
        return {row_id for row_id, usable in rows if usable}

    # --- writes

    async def write(self, table: Table, writes: Sequence[RowWrite]) -> tuple[list[Effect], list[RowWrite]]:
        shapes: dict[tuple[WriteKind, bool, tuple[str, ...]], list[RowWrite]] = defaultdict(list)
        for write in sorted(writes, key=lambda w: w.key):
            shapes[write.kind, write.row_id is None, _known(table, write)].append(write)
        effects: list[Effect] = []
        leftovers: list[RowWrite] = []
        for (kind, is_absent, known), group in shapes.items():
            if is_absent:
                rows = await self._insert(table, known, group, deleted=kind is WriteKind.BURY)
                taken = {row[0] for row in rows}
                leftovers += [write for ord, write in enumerate(group, 1) if ord not in taken]
            else:
                sets, missing = _assignments(table, kind, known)
                rows = await self._update(table, sets, missing, group)
            effects += [_effect(group[row[0] - 1], row) for row in rows]
        return effects, leftovers

    async def copy_in(self, table: Table, rows: Sequence[SourceRow]) -> list[Effect]:
        if not rows:
            return []
        writes = [
            RowWrite(WriteKind.INSERT, row.key, None, row.values, None, None)
            for row in sorted(rows, key=lambda row: row.key)
        ]
        inserted = await self._insert(table, table.names, writes, deleted=False)
        return [_effect(writes[row[0] - 1], row) for row in inserted]

    async def fill(self, table: Table, rows: Sequence[tuple[RowState, SourceRow]]) -> list[Effect]:
        shapes: dict[tuple[str, ...], list[RowWrite]] = defaultdict(list)
        for state, row in rows:
            known = tuple(column for column in table.names if column in state.missing)
            shapes[known].append(
                RowWrite(WriteKind.UPDATE, row.key, state.row_id, row.values, state.position, state.xid)
            )
        effects: list[Effect] = []
        for known, group in shapes.items():
            sets: list[sql.Composable] = [_value(table, column) for column in known]
            sets += [sql.SQL("_missing = '{}', _missing_xid = NULL")]
            filled = await self._update(table, (known, sets), known, group)
            effects += [_effect(group[row[0] - 1], row) for row in filled]
        return effects

    async def _insert(
        self, table: Table, known: tuple[str, ...], writes: Sequence[RowWrite], *, deleted: bool
    ) -> list[Row]:
        """Insert rows whose key is absent, in key order, and leave the others alone."""
        missing = [] if deleted else [column for column in table.names if column not in known]
        columns = known or table.key
        statement = sql.SQL(
            "WITH made AS (INSERT INTO {replica} AS t ({names}, _missing, _missing_xid, _deleted, _epoch, _commit, "
            "_lsn, _xid) SELECT {values}, %(missing)s::text[], "
            "CASE WHEN %(missing)s::text[] <> '{{}}' THEN i.xid END, %(deleted)s, i.epoch, i.commit, i.lsn, i.xid "
            "FROM {input} ORDER BY i.ord ON CONFLICT DO NOTHING RETURNING {returned}) "
            "SELECT i.ord, t._row_id, false, %(live)s, false, t.wanted, true, false "
            "FROM made AS t JOIN {keys} ON {match}"
        ).format(
            replica=self._relations.replica(table),
            names=comma([name(column) for column in columns]),
            values=comma([_cast(table, column) for column in columns]),
            input=_input(table, columns, with_row=False),
            returned=comma([sql.SQL("t._row_id, {} AS wanted").format(wanted(table, "t")), _key_columns(table, "t")]),
            keys=_keys_input(table),
            match=_key_match(table, "t"),
        )
        parameters = _arrays(table, columns, writes)
        return await self._fetch(statement, parameters | {"missing": missing, "deleted": deleted, "live": not deleted})

    async def _update(
        self,
        table: Table,
        sets: tuple[tuple[str, ...], list[sql.Composable]],
        touched: tuple[str, ...],
        writes: Sequence[RowWrite],
    ) -> list[Row]:
        """Change locked rows. sets: columns with values, assignments. touched: columns whose value may differ."""
        columns, assignments = sets
        statement = sql.SQL(
            "UPDATE {replica} AS t SET {sets}, _epoch = i.epoch, _commit = i.commit, _lsn = i.lsn, _xid = i.xid "
            "FROM {input} JOIN {replica} AS old ON old._row_id = i.row_id WHERE t._row_id = i.row_id "
            "RETURNING i.ord, t._row_id, NOT old._deleted, NOT t._deleted, {was_wanted}, {is_wanted}, "
            "old._deleted OR t._deleted OR {text_differs}, NOT old._deleted AND NOT t._deleted AND {filters_differ}"
        ).format(
            replica=self._relations.replica(table),
            sets=comma(assignments),
            input=_input(table, columns, with_row=True),
            was_wanted=wanted(table, "old"),
            is_wanted=wanted(table, "t"),
            text_differs=_differs([c for c in table.text_columns if c in touched]),
            filters_differ=_differs([c for c in table.filters if c in touched]),
        )
        parameters = _arrays(table, columns, writes) | {"known": list(columns)}
        parameters["row_id"] = [write.row_id for write in writes]
        parameters["unavailable"] = [column for column in table.names if column not in (*columns, *table.key)]
        return await self._fetch(statement, parameters)

    async def restamp_missing(self, table: Table, xid: int) -> int:
        # Locked in the order of the keys first, as everybody who locks several rows does.
        rows = sql.SQL("SELECT 1 FROM {} AS t WHERE t._missing <> '{{}}' ORDER BY {} FOR UPDATE")
        relation = self._relations.replica(table)
        await self._connection.execute(rows.format(relation, _key_columns(table, "t")))
        stamp = sql.SQL("UPDATE {} SET _missing_xid = %s WHERE _missing <> '{{}}'").format(relation)
        return (await self._connection.execute(stamp, [xid])).rowcount

    # --- reads

    async def missing(self, table: Table, limit: int) -> list[Key]:
        query = sql.SQL(
            "SELECT {} FROM {} AS t WHERE t._missing <> '{{}}' AND NOT t._deleted ORDER BY t._row_id LIMIT %s"
        ).format(comma([sql.SQL("t.{}::text").format(name(k)) for k in table.key]), self._relations.replica(table))
        return [tuple(row) for row in await self._fetch(query, [limit])]

    async def documents(self, table: Table, generation: Generation, row_ids: Sequence[int]) -> list[Document]:
        texts = [sql.SQL("t.{}::text").format(name(c)) for c in table.text_columns]
        columns = comma([sql.SQL("t._row_id"), *texts])
        query = sql.SQL(
            "SELECT {} FROM {} AS t WHERE t._row_id = ANY(%(rows)s::bigint[]) AND NOT t._deleted "
            "AND NOT (t._missing && %(text)s::text[])"
        ).format(columns, self._relations.replica(table))
        rows = await self._fetch(query, {"rows": list(row_ids), "text": list(table.text_columns)})
        values: dict[int, dict[str, Known]] = {
            row_id: dict(zip(table.text_columns, rest, strict=True)) for row_id, *rest in rows
        }
        chunks = sql.SQL("SELECT c._row_id, c._digest, c._n FROM {} AS c WHERE c._row_id = ANY(%s::bigint[])")
        stored: dict[int, dict[bytes, int]] = defaultdict(dict)
        for row_id, digest, n in await self._fetch(
            chunks.format(self._relations.chunks(table, generation)), [list(row_ids)]
        ):
            stored[row_id][digest] = n
        return [Document(row_id, values.get(row_id), stored.get(row_id, {})) for row_id in row_ids]

    # --- plumbing

    async def _fetch(self, query: sql.Composed, parameters: Parameters | Sequence[Any]) -> list[Row]:
        cursor = await self._connection.execute(query, parameters)
        return await cursor.fetchall()

    async def _scalar(self, query: Any, id: int) -> int:
        row = await (await self._connection.execute(query, [id])).fetchone()
        return int(row[0]) if row else 0

    async def _chunk_relations(self, table: Table) -> list[sql.Identifier]:
        """Chunk tables of this table in every generation that has one, found by the mark they were made with."""
        cursor = await self._connection.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "JOIN revector.generation g ON g.migration = %s AND obj_description(c.oid, 'pg_class') = "
            "'revector: chunks of ' || %s || ' in generation ' || g.name WHERE n.nspname = %s AND c.relkind = 'r'",
            [self._relations.migration, table.alias, self._relations.schema],
        )
        return [self._relations.qualified(row[0]) for row in await cursor.fetchall()]


def _known(table: Table, write: RowWrite) -> tuple[str, ...]:
    """The columns that a write has values for; none for a row tombstone."""
    if write.values is None:
        return ()
    return tuple(c for c, value in zip(table.names, write.values, strict=True) if value is not UNAVAILABLE)


def _assignments(
    table: Table, kind: WriteKind, known: tuple[str, ...]
) -> tuple[tuple[tuple[str, ...], list[sql.Composable]], tuple[str, ...]]:
    """(columns with values, assignments) of a shape that changes an existing row, and the columns it may change."""
    values = tuple(column for column in known if column not in table.key)
    others = [column for column in table.names if column not in (*known, *table.key)]
    sets: list[sql.Composable] = [_value(table, column) for column in values]
    if kind is WriteKind.UPDATE:
        sets.append(
            sql.SQL(
                "_missing = CASE WHEN t._missing = '{}' THEN t._missing ELSE "
                "ARRAY(SELECT m FROM unnest(t._missing) AS m WHERE m <> ALL(%(known)s::text[])) END, "
                "_missing_xid = CASE WHEN t._missing <@ %(known)s::text[] THEN NULL ELSE t._missing_xid END"
            )
        )
        return (values, sets), values
    sets += [sql.SQL("{} = NULL").format(name(column)) for column in others]
    if kind is WriteKind.BURY:
        sets.append(sql.SQL("_missing = '{}', _missing_xid = NULL, _deleted = true"))
        return (values, sets), ()
    sets.append(
        sql.SQL(
            "_missing = %(unavailable)s::text[], _deleted = false, "
            "_missing_xid = CASE WHEN %(unavailable)s::text[] <> '{}' THEN i.xid END"
        )
    )
    return (values, sets), table.names


def _value(table: Table, column: str) -> sql.Composed:
    return sql.SQL("{} = {}").format(name(column), _cast(table, column))


def _differs(columns: Sequence[str]) -> sql.Composable:
    """Whether one of these columns differs between `old` and `t`, as text, or whether it is missing does.

    As text, because types call things equal that render differently (1.0 and 1.00, citext), or have no equality.
    """
    if not columns:
        return sql.SQL("false")
    one = sql.SQL(
        '(old.{0}::text COLLATE "C" IS DISTINCT FROM t.{0}::text '
        "OR ({1} = ANY(old._missing)) <> ({1} = ANY(t._missing)))"
    )
    parts = [one.format(name(column), sql.Literal(column.replace("%", "%%"))) for column in columns]
    return sql.SQL("({})").format(sql.SQL(" OR ").join(parts))


def _place(table: Table, column: str) -> int:
    return table.names.index(column)


def _cast(table: Table, column: str) -> sql.Composed:
    place = _place(table, column)
    return sql.SQL("i.{}::{}").format(sql.Identifier(f"v{place}"), raw(table.columns[place].target_type))


def _input(table: Table, columns: Sequence[str], *, with_row: bool) -> sql.Composed:
    """The parallel arrays of a write as a relation `i`; `ord` counts from 1."""
    arrays = [(f"v{_place(table, column)}", "text") for column in columns]
    arrays += [*_POSITION, *([("row_id", "bigint")] if with_row else [])]
    return _unnest(arrays)


def _keys_input(table: Table) -> sql.Composed:
    """The key columns' arrays alone as a relation `i`."""
    return _unnest([(f"v{_place(table, column)}", "text") for column in table.key])


def _unnest(arrays: Sequence[tuple[str, str]]) -> sql.Composed:
    values = [sql.SQL("{}::{}[]").format(sql.Placeholder(array), raw(type)) for array, type in arrays]
    names: list[sql.Composable] = [sql.Identifier(array) for array, _ in arrays]
    return sql.SQL("unnest({}) WITH ORDINALITY AS i ({}, ord)").format(comma(list(values)), comma(names))


def _key_match(table: Table, row: str) -> sql.Composed:
    parts = [sql.SQL("{}.{} = {}").format(sql.Identifier(row), name(k), _cast(table, k)) for k in table.key]
    return sql.SQL(" AND ").join(parts)


def _key_columns(table: Table, row: str) -> sql.Composed:
    return comma([sql.SQL("{}.{}").format(sql.Identifier(row), name(k)) for k in table.key])


def _key_arrays(table: Table, keys: Sequence[Key]) -> Parameters:
    return {f"v{_place(table, column)}": [key[n] for key in keys] for n, column in enumerate(table.key)}


def _arrays(table: Table, columns: Sequence[str], writes: Sequence[RowWrite]) -> Parameters:
    parameters: Parameters = _key_arrays(table, [write.key for write in writes])
    for column in columns:
        if column not in table.key:
            place = _place(table, column)
            parameters[f"v{place}"] = [_text(write, place) for write in writes]
    positions = [write.position for write in writes]
    parameters["epoch"] = [p.epoch if p else None for p in positions]
    parameters["commit"] = [p.commit_lsn if p else None for p in positions]
    parameters["lsn"] = [p.lsn if p else None for p in positions]
    parameters["xid"] = [write.xid for write in writes]
    return parameters


def _text(write: RowWrite, place: int) -> Known:
    value: Value = None if write.values is None else write.values[place]
    if value is UNAVAILABLE:
        raise AssertionError("a shape's known columns are known in each of its rows")
    return value


def _state(row: Sequence[Any]) -> RowState:
    row_id, live, epoch, commit, lsn, xid, missing, missing_xid = row
    position = None if epoch is None else Position(epoch, commit, lsn)
    return RowState(row_id, live, position, xid, frozenset(missing), missing_xid)


def _effect(write: RowWrite, row: Row) -> Effect:
    _, row_id, was_live, is_live, was_wanted, is_wanted, text_differs, filters_differ = row
    return Effect(
        row_id=row_id,
        key=write.key,
        was_live=was_live,
        is_live=is_live,
        was_wanted=was_wanted,
        is_wanted=is_wanted,
        text_differs=text_differs,
        filters_differ=filters_differ,
        gone=write.gone,
        replaced=write.kind is WriteKind.REPLACE,
        changed_at_ms=write.changed_at_ms,
    )
