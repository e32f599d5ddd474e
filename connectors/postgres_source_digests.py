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

from connectors.digests import asked, column_digests, columns_of, key_match, key_name, row_digest
from connectors.postgres_session import Session
from connectors.relations import comma
from connectors.source_statements import between, columns, relation, texts
from daemon.core.comparison import Columns
from daemon.core.model import Key, Table
from daemon.ports import DigestPage, KeyPage


class SourceDigests:
    """The Source port's methods for comparisons."""

    _session: Session

    async def digest_page(self, table: Table, after: Key | None, upto: Key | None, limit: int) -> DigestPage:
        """Aggregates take their input in the order of a subquery (PostgreSQL documentation, 9.21), here of the key."""
        where, parameters = between(table, after, upto)
        names = [key_name(n) for n in range(len(table.key))]
        query = sql.SQL(
            """SELECT count(*), coalesce(array_agg(page.digest)::text, '{{}}'), {lasts}, {arrays}
                 FROM (SELECT {texts}, {digest} FROM {table} {where} ORDER BY {keys} LIMIT {limit})
                   AS page ({names}, digest)"""
        ).format(
            lasts=comma([sql.SQL("(array_agg(page.{}))[count(*)::int]").format(name) for name in names]),
            arrays=comma([sql.SQL("coalesce(array_agg(page.{})::text, '{{}}')").format(name) for name in names]),
            texts=texts(table.key),
            digest=row_digest(columns_of(table, "row")),
            table=relation(table),
            where=where,
            keys=columns(table.key),
            limit=sql.Literal(limit),
            names=comma(names),
        )
        async with self._session.use(f"digests of {table.alias}") as connection:
            row = await (await connection.execute(query, parameters)).fetchone()
        assert row is not None  # an aggregate without GROUP BY
        rows, digests, *rest = row
        last, keys = rest[: len(names)], rest[len(names) :]
        return DigestPage(rows, tuple(keys), digests, tuple(last) if rows == limit else None)

    async def digests(self, table: Table, keys: Sequence[Key]) -> dict[Key, Columns]:
        if not keys:
            return {}
        query = sql.SQL(
            """SELECT i.*, there.* FROM {asked}
                 JOIN LATERAL (SELECT {digests} FROM {table} WHERE {match} OFFSET 0) AS there ON true"""
        ).format(asked=asked(table), digests=column_digests(table, "row"), table=relation(table), match=_match(table))
        arrays = [list(part) for part in zip(*keys, strict=True)]
        async with self._session.use(f"digests of {table.alias}") as connection:
            found = await (await connection.execute(query, arrays, binary=True)).fetchall()
        width = len(table.key)
        return {tuple(row[:width]): tuple(row[width:]) for row in found}

    async def absent(self, table: Table, page: KeyPage) -> list[Key]:
        query = sql.SQL(
            """SELECT i.* FROM {asked}
                 LEFT JOIN LATERAL (SELECT true AS found FROM {table} WHERE {match} OFFSET 0) AS there ON true
                WHERE there.found IS NULL"""
        ).format(asked=asked(table), table=relation(table), match=_match(table))
        async with self._session.use(f"keys of {table.alias}") as connection:
            found: list[Any] = await (await connection.execute(query, page.keys)).fetchall()
        return [tuple(row) for row in found]


def _match(table: Table) -> sql.Composed:
    return key_match(table, "row", at_source=True)
