"""The source as a comparison reads it: digests and keys, never values.

Pages come back as Postgres array literals and go on to the target unread; no row of a page becomes a Python object.
Each method is one statement, whose snapshot is taken after the wait for the table's lock.

Keys are looked up one by one through a lateral subquery that is kept apart by `OFFSET 0`: joined, the planner prefers
to read the whole table for a page of some thousand keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from connectors.digests import column_digests, columns_of, row_digest
from connectors.postgres_session import Session
from connectors.relations import comma, name, raw
from daemon.core.comparison import Columns
from daemon.core.model import Key, Table
from daemon.ports import DigestPage, KeyPage


class SourceDigests:
    """The Source port's methods for comparisons."""

    _session: Session

    async def digest_page(self, table: Table, after: Key | None, upto: Key | None, limit: int) -> DigestPage:
        """Aggregates take their input in the order of a subquery (PostgreSQL documentation, 9.21), here of the key."""
        condition, parameters = _between(table, after, upto)
        numbers = [sql.Identifier(f"#{n}") for n in range(len(table.key))]
        query = sql.SQL(
            """SELECT count(*), coalesce(array_agg("#digest")::text, '{{}}'), {lasts}, {arrays}
                 FROM (SELECT {texts}, {digest} AS "#digest" FROM {table} AS "row" {condition}
                        ORDER BY {keys} LIMIT {limit}) AS page"""
        ).format(
            lasts=comma([sql.SQL("(array_agg({}))[count(*)::int]").format(number) for number in numbers]),
            arrays=comma([sql.SQL("coalesce(array_agg({})::text, '{{}}')").format(number) for number in numbers]),
            texts=comma(
                [sql.SQL("{}::text AS {}").format(column, n) for column, n in zip(_keys(table), numbers, strict=True)]
            ),
            digest=row_digest(columns_of(table, "row")),
            table=_relation(table),
            condition=condition,
            keys=comma(_keys(table)),
            limit=sql.Literal(limit),
        )
        async with self._session.use(f"digests of {table.alias}") as connection:
            row = await (await connection.execute(query, parameters)).fetchone()
        assert row is not None  # an aggregate without GROUP BY
        rows, digests, *rest = row
        last, keys = rest[: len(table.key)], rest[len(table.key) :]
        return DigestPage(rows, tuple(keys), digests, tuple(last) if rows == limit else None)

    async def digests(self, table: Table, keys: Sequence[Key]) -> dict[Key, Columns]:
        if not keys:
            return {}
        query = sql.SQL(
            """SELECT i.*, there.* FROM {wanted}
                 JOIN LATERAL (SELECT {digests} FROM {table} AS "row" WHERE {match} OFFSET 0) AS there ON true"""
        ).format(
            wanted=_unnest(table),
            digests=column_digests(table, "row"),
            table=_relation(table),
            match=_match(table),
        )
        arrays = [list(part) for part in zip(*keys, strict=True)]
        async with self._session.use(f"digests of {table.alias}") as connection:
            found = await (await connection.execute(query, arrays, binary=True)).fetchall()
        width = len(table.key)
        return {tuple(row[:width]): tuple(row[width:]) for row in found}

    async def absent(self, table: Table, page: KeyPage) -> list[Key]:
        query = sql.SQL(
            """SELECT i.* FROM {wanted}
                 LEFT JOIN LATERAL (SELECT true AS found FROM {table} AS "row" WHERE {match} OFFSET 0) AS there ON true
                WHERE there.found IS NULL"""
        ).format(wanted=_unnest(table), table=_relation(table), match=_match(table))
        async with self._session.use(f"keys of {table.alias}") as connection:
            found: list[Any] = await (await connection.execute(query, page.keys)).fetchall()
        return [tuple(row) for row in found]


def _relation(table: Table) -> sql.Composable:
    return sql.SQL("{}.{}").format(name(table.schema), name(table.name))


def _keys(table: Table) -> list[sql.Composable]:
    return [sql.SQL('"row".{}').format(name(key)) for key in table.key]


def _between(table: Table, after: Key | None, upto: Key | None) -> tuple[sql.Composable, list[str]]:
    conditions: list[sql.Composable] = []
    parameters: list[str] = []
    casts = comma([sql.SQL("%s::text::{}").format(raw(column.type)) for column in table.columns[: len(table.key)]])
    for operator, bound in ((">", after), ("<=", upto)):
        if bound is not None:
            conditions.append(sql.SQL("({}) {} ({})").format(comma(_keys(table)), sql.SQL(operator), casts))
            parameters.extend(bound)
    return (sql.SQL("WHERE ") + sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("")), parameters


def _unnest(table: Table) -> sql.Composed:
    """The keys asked for, an array parameter for each key column, as the relation `i`."""
    arrays = comma([sql.SQL("%s::text[]")] * len(table.key))
    names = comma([sql.Identifier(f"k{n}") for n in range(len(table.key))])
    return sql.SQL("unnest({}) AS i ({})").format(arrays, names)


def _match(table: Table) -> sql.Composed:
    parts = [
        sql.SQL("{} = i.{}::{}").format(key, sql.Identifier(f"k{n}"), raw(table.columns[n].type))
        for n, key in enumerate(_keys(table))
    ]
    return sql.SQL(" AND ").join(parts)
