"""The HNSW index of a chunk table: built beside the writes, checked by the reader's own query.

CREATE INDEX CONCURRENTLY, although nobody reads the table yet: a plain build locks out writes for its whole time, and
a deleted text or a revoked permission would wait for it, and with it the stream. What an interrupted build leaves is
invalid and is dropped before the next one. One process builds at a time: to another one a build under way looks like
what an interrupted one has left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
from psycopg import sql

from connectors.pgvector_types import PGVECTOR
from connectors.postgres_session import Connection, Session
from connectors.postgres_target import SETTINGS
from connectors.relations import OPERATORS, Relations, name, raw, search_columns
from daemon.core.model import Generation, IndexState, Table
from daemon.core.storage import BUILD_MEMORY_MB, BUILD_PROCESSES
from daemon.errors import TransientError

# pgvector builds in memory until this is full and then becomes many times slower; it is taken once, by one build.
BUILD_MEMORY = f"{BUILD_MEMORY_MB}MB"
# The planner counts workers by main-heap pages, and vectors lie in TOAST: without this a build is serial.
BUILD_WORKERS = BUILD_PROCESSES - 1

_OPCLASS = {"cosine": "cosine_ops", "l2": "l2_ops", "ip": "ip_ops"}


class PostgresIndexes:
    """The Indexes port: DDL outside of transactions, on a connection of its own, and one more to watch it."""

    def __init__(self, dsn: str, name: str, application_name: str, build_memory: str = BUILD_MEMORY) -> None:
        self._relations = Relations(name)
        self._build_memory = build_memory
        self._work = Session(dsn, application_name, "target", SETTINGS, PGVECTOR)
        self._watch = Session(dsn, application_name, "target", SETTINGS)

    async def build(self, table: Table, generation: Generation) -> None:
        """Nothing where there is a valid one. Raises TransientError while another process builds it."""
        async with self._work.use("index build") as connection, self._alone(connection, table, generation):
            if await self._is_valid(connection, table, generation):
                return
            await self._drop_invalid(connection, table, generation)
            chunks = self._relations.chunks(table, generation)
            workers = sql.SQL("ALTER TABLE {} SET (parallel_workers = {})")
            await connection.execute(workers.format(chunks, sql.Literal(BUILD_WORKERS)))
            await self._prepare(connection, BUILD_WORKERS)
            try:
                await self._create(connection, table, generation)
            except psycopg.errors.DiskFull:
                # Containers often have 64 MB of shared memory, too little for a parallel build's graph.
                await self._drop_invalid(connection, table, generation)
                await self._prepare(connection, 0)
                await self._create(connection, table, generation)

    async def progress(self) -> Mapping[str, Any] | None:
        async with self._watch.use("index progress") as connection:
            cursor = await connection.execute(
                "SELECT c.relname, p.phase, p.blocks_done, p.blocks_total, p.tuples_done, p.tuples_total "
                "FROM pg_stat_progress_create_index p JOIN pg_class c ON c.oid = p.relid "
                "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s ORDER BY p.pid LIMIT 1",
                [self._relations.schema],
            )
            row = await cursor.fetchone()
        names = ("table", "phase", "blocks_done", "blocks_total", "tuples_done", "tuples_total")
        return None if row is None else dict(zip(names, row, strict=True))

    async def state(self, table: Table, generation: Generation) -> IndexState:
        async with self._watch.use("index state") as connection:
            valid = await self._is_valid(connection, table, generation)
            used = await self._is_used(connection, table, generation) if valid else None
            count = sql.SQL("SELECT count(*) FROM {}").format(self._relations.chunks(table, generation))
            row = await (await connection.execute(count)).fetchone()
        return IndexState(
            table=self._relations.chunks_name(table, generation),
            exists=valid is not None,
            valid=bool(valid),
            used_by_plan=used,
            rows=row[0] if row else 0,
        )

    async def analyze_and_prewarm(self, table: Table, generation: Generation) -> None:
        chunks = self._relations.chunks(table, generation)
        async with self._work.use("analyze") as connection:
            await connection.execute(sql.SQL("ANALYZE {}").format(chunks))
            cursor = await connection.execute(
                "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
                "WHERE e.extname = 'pg_prewarm'"
            )
            row = await cursor.fetchone()
            if row is not None:
                warm = sql.SQL("SELECT {}(%s::regclass)").format(sql.Identifier(row[0], "pg_prewarm"))
                index = self._relations.qualified(self._relations.index_name(table, generation))
                await connection.execute(warm, [index.as_string(connection)])

    async def probe(self, vector_type: str, dimensions: int, metric: str, rows: int) -> float | None:
        """A temporary table of random vectors, gone when this returns; one process builds, as for any such table."""
        async with self._work.use("index probe") as connection:
            cursor = await connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
            if await cursor.fetchone() is None:
                return None
            type = raw(f"{vector_type}({dimensions})")
            async with connection.transaction(force_rollback=True):
                await connection.execute("SELECT set_config('maintenance_work_mem', %s, true)", [self._build_memory])
                create = sql.SQL("CREATE TEMPORARY TABLE revector_probe (embedding {})")
                await connection.execute(create.format(type))
                fill = sql.SQL(
                    "INSERT INTO revector_probe SELECT (SELECT array_agg((random() - 0.5)::real) "
                    "FROM generate_series(1, {}) WHERE n > 0)::{} FROM generate_series(1, {}) AS n"
                )
                await connection.execute(fill.format(sql.Literal(dimensions), type, sql.Literal(rows)))
                began = await _clock(connection)
                build = sql.SQL("CREATE INDEX ON revector_probe USING hnsw (embedding {})")
                await connection.execute(build.format(raw(f"{vector_type}_{_OPCLASS[metric]}")))
                return await _clock(connection) - began

    async def close(self) -> None:
        await self._work.close()
        await self._watch.close()

    @asynccontextmanager
    async def _alone(self, connection: Connection, table: Table, generation: Generation) -> AsyncIterator[None]:
        """Hold a lock of the session. Never waited for: a waiting statement's snapshot is what a concurrent build waits
        for in turn."""
        index = f"{self._relations.schema}.{self._relations.index_name(table, generation)}"
        cursor = await connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [index])
        row = await cursor.fetchone()
        if row is None or not row[0]:
            raise TransientError("target-locked", f"target: another process builds {index}", "it is waited for")
        try:
            yield
        finally:
            with suppress(psycopg.Error):  # a connection that broke has given it back
                await connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [index])

    async def _prepare(self, connection: Connection, workers: int) -> None:
        await connection.execute(
            "SELECT set_config('maintenance_work_mem', %s, false), "
            "set_config('max_parallel_maintenance_workers', %s, false)",
            [self._build_memory, str(workers)],
        )

    async def _create(self, connection: Connection, table: Table, generation: Generation) -> None:
        opclass = raw(f"{generation.vector_type}_{_OPCLASS[generation.metric]}")
        index = sql.Identifier(self._relations.index_name(table, generation))
        statement = sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} USING hnsw (_embedding {})")
        await connection.execute(statement.format(index, self._relations.chunks(table, generation), opclass))

    async def _drop_invalid(self, connection: Connection, table: Table, generation: Generation) -> None:
        if await self._is_valid(connection, table, generation) is False:
            index = self._relations.qualified(self._relations.index_name(table, generation))
            await connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(index))

    async def _is_valid(self, connection: Connection, table: Table, generation: Generation) -> bool | None:
        """`indisvalid`; None where there is no index."""
        cursor = await connection.execute(
            "SELECT i.indisvalid AND i.indisready FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
            [self._relations.schema, self._relations.index_name(table, generation)],
        )
        row = await cursor.fetchone()
        return None if row is None else bool(row[0])

    async def _is_used(self, connection: Connection, table: Table, generation: Generation) -> bool:
        """Whether the reader's query can use the index: planned through the view, without the alternatives that a
        small table would be planned with."""
        probe = "[" + ",".join(["1"] * generation.dimensions) + "]"
        query = sql.SQL("EXPLAIN (FORMAT TEXT) SELECT * FROM {} ORDER BY {} {} {}::{} LIMIT 10").format(
            self._relations.search(table, generation),
            name(search_columns(table).embedding),
            raw(OPERATORS[generation.metric]),
            sql.Literal(probe),
            raw(generation.vector_type),
        )
        async with connection.transaction():
            await connection.execute("SET LOCAL enable_seqscan = off")
            await connection.execute("SET LOCAL enable_sort = off")
            rows = await (await connection.execute(query, ())).fetchall()
        return any(self._relations.index_name(table, generation) in line for (line,) in rows)


async def _clock(connection: Connection) -> float:
    """Seconds by the server's clock."""
    cursor = await connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
    row = await cursor.fetchone()
    return float(row[0]) if row else 0.0
