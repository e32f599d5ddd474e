"""The target database: one connection per instance, one unit of work per transaction.

`begin` gives Replica, Vectors and Ledger over the same connection and transaction; they commit together or not at
all. Statements run under READ COMMITTED, pinned per session: each one sees what was committed before it began, which
the order of locks and statements in the adapters relies on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from connectors import schema
from connectors.pgvector_replica import PgReplica
from connectors.pgvector_types import PGVECTOR
from connectors.pgvector_vectors import PgVectors
from connectors.postgres_audit import PgAudit
from connectors.postgres_comparisons import PgComparisons
from connectors.postgres_ledger import PgLedger
from connectors.postgres_session import CANONICAL, Session
from connectors.relations import Relations
from daemon.core.model import Generation, Table
from daemon.errors import ConfigError
from daemon.ports import TargetSetup

SETTINGS = {
    **CANONICAL,
    "default_transaction_isolation": "read committed",
    # A plan made for an empty table would scan it for ever: the arrays' real lengths decide, each time.
    "plan_cache_mode": "force_custom_plan",
}


@dataclass(frozen=True, slots=True)
class PgUnitOfWork:
    """One transaction's adapters."""

    replica: PgReplica
    vectors: PgVectors
    ledger: PgLedger
    audit: PgAudit
    comparisons: PgComparisons


LONGEST_IDLE_S = 60


class PostgresTarget:
    """The Target port. Not shared between tasks. idle_s: how long a transaction may wait for us."""

    def __init__(self, dsn: str, name: str, application_name: str, idle_s: int = 60) -> None:
        self._relations = Relations(name)
        # A process frozen inside a transaction must not keep the stream's next owner waiting for its locks.
        settings = {**SETTINGS, "idle_in_transaction_session_timeout": f"{min(idle_s, LONGEST_IDLE_S)}s"}
        self._session = Session(dsn, application_name, "target", settings, PGVECTOR)

    async def setup(self) -> TargetSetup:
        async with self._session.use("set-up check") as connection:
            cursor = await connection.execute(
                "SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector'), "
                "(SELECT default_version FROM pg_available_extensions WHERE name = 'vector'), "
                "has_database_privilege(current_database(), 'CREATE')"
            )
            installed, available, can_create = await cursor.fetchone() or (None, None, False)
            try:
                version, foreign = await schema.control_version(connection), False
            except ConfigError:
                version, foreign = None, True
            return TargetSetup(
                version=connection.info.server_version,
                vector_version=installed,
                vector_available=available,
                can_create=can_create,
                schema_version=version,
                known_schema=max(schema.control_files()),
                foreign_schema=foreign or await schema.is_foreign(connection, self._relations),
            )

    async def prepare(self) -> None:
        async with self._session.use("control schema") as connection:
            async with connection.transaction():
                await schema.lock(connection)
                await schema.install_control(connection)
                await schema.install_vector(connection)
                await schema.claim_schema(connection, self._relations)
            await PGVECTOR.teach(connection)

    async def create_tables(self, tables: Sequence[Table]) -> list[Table]:
        async with self._session.use("replica tables") as connection, connection.transaction():
            await schema.lock(connection)
            return [await schema.make_table(connection, self._relations, table) for table in tables]

    async def create_chunks(self, tables: Sequence[Table], generation: Generation) -> None:
        async with self._session.use("chunk tables") as connection, connection.transaction():
            await schema.lock(connection)
            for table in tables:
                await schema.make_chunks(connection, self._relations, table, generation)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[PgUnitOfWork]:
        async with self._session.use("transaction") as connection, connection.transaction():
            yield PgUnitOfWork(
                PgReplica(connection, self._relations),
                PgVectors(connection, self._relations),
                PgLedger(connection, self._relations),
                PgAudit(connection, self._relations),
                PgComparisons(connection, self._relations),
            )

    async def close(self) -> None:
        await self._session.close()
