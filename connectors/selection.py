"""What an operator chooses of a replica: rows by a condition, by their keys, or all of them.

Only live rows that are wanted can be chosen. A condition is checked like a table's `where`, by an index on an empty
table of the same columns that is rolled back, and is computed in the same form: over the columns it reads, under no
name of the statement around it. Rows are looked at in the order of their ids, so many at a time: each statement is
short, whatever the condition selects and however large the table is.

A row is chosen twice: once without a lock, and again under it by the caller, who then knows that it still is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres_session import Connection
from connectors.relations import Relations, comma, name, raw, wanted
from connectors.schema import where_columns, where_invalid
from daemon.core.model import Generation, Key, Table
from daemon.errors import StepRefused
from daemon.ports import ChosenRow, Condition

PLACE = "--where"

# Served by the replica's primary key, and by the queue's for each row.
_CHOSEN = """
SELECT {columns} FROM {rows} AS t WHERE {wanted} AND {condition} AND NOT EXISTS (
    SELECT FROM revector.work AS w WHERE w.generation_id = %(sparing)s AND w.table_id = %(table)s
    AND w.row_id = t._row_id AND w.state = 'accepted' OFFSET 0
) ORDER BY t._row_id
"""
_NEXT = "SELECT max(_row_id), count(*) FROM (SELECT _row_id FROM {} WHERE _row_id > %s ORDER BY _row_id LIMIT %s) AS n"


class PgSelection:
    """The Replica port's methods on what an operator chooses, over one open transaction."""

    def __init__(self, connection: Connection, relations: Relations) -> None:
        self._connection = connection
        self._relations = relations

    async def condition(self, table: Table, text: str) -> Condition:
        empty = self._relations.qualified("revector_where_table")
        like = sql.SQL("CREATE TABLE {} (LIKE {})").format(empty, self._relations.replica(table))
        async with self._connection.transaction(force_rollback=True):
            await self._connection.execute(like, ())
            chosen = replace(table, where=text, where_columns=())
            columns = await where_columns(self._connection, self._relations, chosen, empty, PLACE)
        return Condition(text, columns)

    async def chosen(
        self, table: Table, condition: Condition | None, sparing: Generation, after: int, rows: int
    ) -> tuple[list[ChosenRow], int | None]:
        replica = self._relations.replica(table)
        cursor = await self._connection.execute(sql.SQL(_NEXT).format(replica), [after, rows])
        upto, looked_at = await cursor.fetchone() or (None, 0)
        if upto is None:
            return [], None
        between = sql.SQL("(SELECT * FROM {} WHERE _row_id > %(after)s AND _row_id <= %(upto)s OFFSET 0)")
        found = await self._select(
            table, condition, between.format(replica), {"after": after, "upto": upto, "sparing": sparing.id}
        )
        return found, upto if looked_at == rows else None

    async def chosen_of(
        self, table: Table, condition: Condition | None, sparing: Generation | None, row_ids: Sequence[int]
    ) -> list[ChosenRow]:
        these = sql.SQL("(SELECT * FROM {} WHERE _row_id = ANY(%(rows)s::bigint[]) OFFSET 0)")
        sparing_id = None if sparing is None else sparing.id
        return await self._select(
            table,
            condition,
            these.format(self._relations.replica(table)),
            {"rows": list(row_ids), "sparing": sparing_id},
        )

    async def row_ids(self, table: Table, keys: Sequence[Key]) -> dict[Key, int]:
        types = {column.name: column.target_type for column in table.columns}
        arrays = [sql.SQL("{}::text[]").format(sql.Placeholder(f"k{n}")) for n in range(len(table.key))]
        names = [sql.Identifier(f"k{n}") for n in range(len(table.key))]
        match = [
            sql.SQL("t.{} = i.{}::{}").format(name(k), sql.Identifier(f"k{n}"), raw(types[k]))
            for n, k in enumerate(table.key)
        ]
        query = sql.SQL("SELECT i.ord, t._row_id FROM unnest({}) WITH ORDINALITY AS i ({}, ord) JOIN {} AS t ON {}")
        statement = query.format(
            comma(list(arrays)), comma(list(names)), self._relations.replica(table), sql.SQL(" AND ").join(match)
        )
        values = {f"k{n}": [key[n] for key in keys] for n in range(len(table.key))}
        try:
            rows = await (await self._connection.execute(statement, values)).fetchall()
        except psycopg.DataError as error:
            raise StepRefused(
                "key-unreadable",
                f"a key of {table.alias} is no value of its type: Postgres says SQLSTATE {error.sqlstate}",
                f"the key is ({', '.join(f'{k} {types[k]}' for k in table.key)})",
            ) from None
        return {keys[ord - 1]: row_id for ord, row_id in rows}

    async def _select(
        self, table: Table, condition: Condition | None, rows: sql.Composed, parameters: dict[str, Any]
    ) -> list[ChosenRow]:
        holds: sql.Composable = sql.SQL("true")
        if condition is not None:
            holds = wanted(replace(table, where=condition.text, where_columns=condition.columns), "t")
        statement = sql.SQL(_CHOSEN).format(
            columns=comma([sql.SQL("t._row_id"), *(sql.SQL("t.{}::text").format(name(k)) for k in table.key)]),
            rows=rows,
            wanted=wanted(table, "t"),
            condition=holds,
        )
        try:
            cursor = await self._connection.execute(statement, parameters | {"table": table.id})
            return [ChosenRow(row_id, tuple(key)) for row_id, *key in await cursor.fetchall()]
        except psycopg.DataError as error:
            reason = f"it cannot be computed for a row: SQLSTATE {error.sqlstate}"
            raise where_invalid(table, reason, PLACE) from None
