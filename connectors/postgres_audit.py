"""The replica's rows as a comparison reads them.

Takes no lock. Pages from the source are taken apart by the database: this process never sees their keys or digests.
Keys are looked up one by one through a lateral subquery that is kept apart by `OFFSET 0`: joined, the planner prefers
to read the whole replica for a page of some thousand keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from connectors.digests import asked, column_digests, columns_of, key_match, key_name, row_digest
from connectors.postgres_audit_chunks import PgChunkAudit
from connectors.relations import comma, name
from daemon.core.comparison import ReplicaLook
from daemon.core.model import Key, Position, Table
from daemon.ports import DigestPage, KeyPage


class PgAudit(PgChunkAudit):
    """The Audit port over one open transaction."""

    async def differing(self, table: Table, page: DigestPage) -> list[Key]:
        """A row with something to look at has no digest, and null is distinct from every digest."""
        query = sql.SQL(
            "SELECT {keys} FROM {page} LEFT JOIN LATERAL (SELECT CASE WHEN NOT r._deleted AND r._missing = '{{}}' "
            "THEN {digest} END AS digest FROM {replica} AS r WHERE {match} OFFSET 0) AS there ON true "
            "WHERE there.digest IS DISTINCT FROM i.digest"
        ).format(
            keys=comma([sql.SQL("i.{}").format(key_name(n)) for n in range(len(table.key))]),
            page=asked(table, with_digests=True),
            digest=row_digest(columns_of(table, "r")),
            replica=self._relations.replica(table),
            match=key_match(table, "r", at_source=False),
        )
        return [tuple(row) for row in await self._rows(query, [*page.keys, page.digests])]

    async def keys_page(self, table: Table, after_row: int, limit: int) -> tuple[KeyPage, int | None]:
        names = [key_name(n) for n in range(len(table.key))]
        query = sql.SQL(
            "SELECT count(*), max(page._row_id), {arrays} FROM (SELECT r._row_id, {texts} FROM {replica} AS r "
            "WHERE r._row_id > %s AND NOT r._deleted ORDER BY r._row_id LIMIT %s) "
            "AS page (_row_id, {names})"
        ).format(
            arrays=comma([sql.SQL("coalesce(array_agg(page.{})::text, '{{}}')").format(k) for k in names]),
            texts=comma([sql.SQL("r.{}::text").format(name(column)) for column in table.key]),
            names=comma(names),
            replica=self._relations.replica(table),
        )
        ((rows, last, *keys),) = await self._rows(query, [after_row, limit])
        return KeyPage(rows, tuple(keys)), last if rows == limit else None

    async def last_row(self, table: Table) -> int:
        query = sql.SQL("SELECT coalesce(max(_row_id), 0) FROM {}").format(self._relations.replica(table))
        ((last,),) = await self._rows(query, [])
        return int(last)

    async def looks(self, table: Table, keys: Sequence[Key]) -> dict[Key, ReplicaLook]:
        if not keys:
            return {}
        query = sql.SQL(
            "SELECT i.*, there.* FROM {keys} JOIN LATERAL (SELECT r._row_id, NOT r._deleted, r._epoch, r._commit, "
            "r._lsn, r._missing, r._xid, {digests} FROM {replica} AS r WHERE {match} OFFSET 0) AS there ON true"
        ).format(
            keys=asked(table),
            digests=column_digests(table, "r"),
            replica=self._relations.replica(table),
            match=key_match(table, "r", at_source=False),
        )
        arrays = [list(part) for part in zip(*keys, strict=True)]
        width = len(table.key)
        return {tuple(row[:width]): _look(row[width:]) for row in await self._rows(query, arrays)}

    async def _rows(self, query: sql.Composed, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        return await (await self._connection.execute(query, parameters, binary=True)).fetchall()


def _look(row: Sequence[Any]) -> ReplicaLook:
    row_id, live, epoch, commit, lsn, missing, xid, *columns = row
    position = None if epoch is None else Position(epoch, commit, lsn)
    return ReplicaLook(row_id, live, position, frozenset(missing), tuple(columns), xid)
