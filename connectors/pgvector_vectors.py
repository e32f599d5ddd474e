"""The chunks of each generation in Postgres: text, digest, copied filter columns, pgvector's vector.

Every method runs under the replica rows' locks of its caller, so what it reads of these rows' chunks cannot change
before it writes. Filter columns are read from the locked replica row in the statement that writes the chunk. Vectors
cross the network in pgvector's binary form, pipelined: as text or Python lists they cost 4 to 40 times more.

Knows no text rule and no contract: digests are opaque.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pgvector import HalfVector, Vector
from psycopg import sql

from connectors.postgres_session import Connection
from connectors.relations import Relations, comma, name
from daemon.core.model import Chunk, Generation, Table

_VECTORS = {"vector": Vector, "halfvec": HalfVector}


class PgVectors:
    """The Vectors port over one open transaction."""

    def __init__(self, connection: Connection, relations: Relations) -> None:
        self._connection = connection
        self._relations = relations

    async def replace(
        self,
        table: Table,
        generation: Generation,
        chunks: Sequence[Chunk],
        vectors: Mapping[bytes, Any],
        row_ids: Sequence[int],
    ) -> set[int]:
        stored = await self._stored(table, generation, row_ids)
        wanted: dict[int, list[Chunk]] = defaultdict(list)
        for chunk in chunks:
            wanted[chunk.row_id].append(chunk)
        lacking = {
            row_id
            for row_id in row_ids
            if any(c.digest not in vectors and c.digest not in stored[row_id].values() for c in wanted[row_id])
        }
        moved: list[tuple[Chunk, int]] = []
        fresh: list[Chunk] = []
        surplus: list[tuple[int, int]] = []
        for row_id in row_ids:
            if row_id in lacking:
                continue
            at = {digest: n for n, digest in stored[row_id].items()}
            for chunk in wanted[row_id]:
                if chunk.digest in vectors:
                    fresh.append(chunk)
                elif stored[row_id].get(chunk.n) != chunk.digest:
                    moved.append((chunk, at[chunk.digest]))
            keep = {chunk.n for chunk in wanted[row_id]}
            surplus += [(row_id, n) for n in stored[row_id] if n not in keep]
        # Moves first: they read vectors at numbers that the fresh chunks overwrite and the surplus ones leave.
        await self._move(table, generation, moved)
        await self._put(table, generation, fresh, vectors)
        await self._remove(table, generation, surplus)
        await self.copy_filters(table, [generation], [row_id for row_id in row_ids if row_id not in lacking])
        return lacking

    async def drop(self, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> None:
        for generation in generations:
            statement = sql.SQL("DELETE FROM {} WHERE _row_id = ANY(%s::bigint[])")
            await self._connection.execute(statement.format(self._relations.chunks(table, generation)), [list(row_ids)])

    async def copy_filters(self, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> None:
        if not table.filters or not row_ids:
            return
        sets = comma([sql.SQL("{0} = r.{0}").format(name(f)) for f in table.filters])
        differs = [sql.SQL("c.{0}::text IS DISTINCT FROM r.{0}::text").format(name(f)) for f in table.filters]
        for generation in generations:
            statement = sql.SQL(
                "UPDATE {} AS c SET {} FROM {} AS r WHERE r._row_id = c._row_id "
                "AND c._row_id = ANY(%s::bigint[]) AND ({})"
            ).format(
                self._relations.chunks(table, generation),
                sets,
                self._relations.replica(table),
                sql.SQL(" OR ").join(differs),
            )
            await self._connection.execute(statement, [list(row_ids)])

    async def counts(self, table: Table, generation: Generation) -> tuple[int, int]:
        query = sql.SQL("SELECT count(DISTINCT _row_id), count(*) FROM {}")
        cursor = await self._connection.execute(query.format(self._relations.chunks(table, generation)), ())
        row = await cursor.fetchone()
        return (row[0], row[1]) if row else (0, 0)

    async def _stored(
        self, table: Table, generation: Generation, row_ids: Sequence[int]
    ) -> defaultdict[int, dict[int, bytes]]:
        """row -> number -> digest of the chunks as they are; served by the primary key."""
        query = sql.SQL("SELECT _row_id, _n, _digest FROM {} WHERE _row_id = ANY(%s::bigint[])")
        cursor = await self._connection.execute(
            query.format(self._relations.chunks(table, generation)), [list(row_ids)]
        )
        stored: defaultdict[int, dict[int, bytes]] = defaultdict(dict)
        for row_id, n, digest in await cursor.fetchall():
            stored[row_id][n] = digest
        return stored

    async def _move(self, table: Table, generation: Generation, moved: Sequence[tuple[Chunk, int]]) -> None:
        """Give stored vectors other numbers. One statement: each vector is read as it was before all moves."""
        if not moved:
            return
        chunks = self._relations.chunks(table, generation)
        statement = sql.SQL(
            "INSERT INTO {chunks} AS t (_row_id, _n, _text, _digest, _embedding{filters}) "
            "SELECT i.row_id, i.n, i.text, c._digest, c._embedding{values} FROM "
            "unnest(%(row_id)s::bigint[], %(n)s::integer[], %(text)s::text[], %(from)s::integer[]) "
            "AS i (row_id, n, text, from_n) JOIN {chunks} AS c ON c._row_id = i.row_id AND c._n = i.from_n "
            "JOIN {replica} AS r ON r._row_id = i.row_id ON CONFLICT (_row_id, _n) DO UPDATE SET {updates}"
        ).format(chunks=chunks, replica=self._relations.replica(table), **self._columns(table))
        await self._connection.execute(
            statement,
            {
                "row_id": [chunk.row_id for chunk, _ in moved],
                "n": [chunk.n for chunk, _ in moved],
                "text": [chunk.text for chunk, _ in moved],
                "from": [n for _, n in moved],
            },
        )

    async def _put(
        self, table: Table, generation: Generation, chunks: Sequence[Chunk], vectors: Mapping[bytes, Any]
    ) -> None:
        """Write chunks with their vectors, pipelined: one statement each, one round trip for all."""
        if not chunks:
            return
        vector = _VECTORS[generation.vector_type]
        statement = sql.SQL(
            "INSERT INTO {chunks} AS t (_row_id, _n, _text, _digest, _embedding{filters}) "
            "SELECT r._row_id, %s::integer, %s::text, %b::bytea, %b{values} FROM {replica} AS r "
            "WHERE r._row_id = %s::bigint ON CONFLICT (_row_id, _n) DO UPDATE SET {updates}"
        ).format(
            chunks=self._relations.chunks(table, generation),
            replica=self._relations.replica(table),
            **self._columns(table),
        )
        rows = [(c.n, c.text, c.digest, vector(vectors[c.digest]), c.row_id) for c in chunks]
        async with self._connection.cursor() as cursor:
            await cursor.executemany(statement, rows)

    async def _remove(self, table: Table, generation: Generation, surplus: Sequence[tuple[int, int]]) -> None:
        if not surplus:
            return
        statement = sql.SQL(
            "DELETE FROM {} AS c USING unnest(%s::bigint[], %s::integer[]) AS i (row_id, n) "
            "WHERE c._row_id = i.row_id AND c._n = i.n"
        )
        await self._connection.execute(
            statement.format(self._relations.chunks(table, generation)),
            [[row_id for row_id, _ in surplus], [n for _, n in surplus]],
        )

    def _columns(self, table: Table) -> dict[str, sql.Composable]:
        """Filter columns as insert targets, as values from the replica row, and everything as updates."""
        names = ["_text", "_digest", "_embedding", *table.filters]
        return {
            "filters": sql.Composed([sql.SQL(", {}").format(name(f)) for f in table.filters]),
            "values": sql.Composed([sql.SQL(", r.{}").format(name(f)) for f in table.filters]),
            "updates": comma([sql.SQL("{0} = excluded.{0}").format(name(n)) for n in names]),
        }
