"""Two connections to one Postgres, and an observer who sees which of them waits for a lock."""

from __future__ import annotations

import asyncio
import time

import psycopg

from connectors.postgres_target import PostgresTarget

DEADLINE_S = 30.0


class Postgresql:
    """An observer's connection."""

    def __init__(self, connection: psycopg.AsyncConnection) -> None:
        self.connection = connection

    async def scalar(self, query: str) -> int:
        row = await (await self.connection.execute(query.encode())).fetchone()
        assert row is not None
        return int(row[0])

    async def waits(self, name: str = "second") -> None:
        """Return when that connection waits for a lock."""
        deadline = time.monotonic() + DEADLINE_S
        query = (
            f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}' AND wait_event_type = 'Lock' "
            "AND datname = current_database()"
        )
        while not await self.scalar(query):
            assert time.monotonic() < deadline, f"connection {name} never waited for a lock"
            await asyncio.sleep(0.01)


class Connections:
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.made: list[PostgresTarget] = []

    def connect(self, application_name: str = "first") -> PostgresTarget:
        self.made.append(PostgresTarget(self.dsn, "shop", application_name))
        return self.made[-1]

    def where(self, alias: str, columns: object, predicate: object) -> None:
        """The database evaluates the condition itself."""

    condition = where
