"""A source table and its replica, each behind its real adapter, and the pages of a comparison between them.

The table is described and resolved as a migration does it, and rows reach the replica as a page's rows do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from connectors.postgres_source import PostgresSource
from connectors.postgres_target import PostgresTarget
from daemon.core.catalog import TableChoice, resolve
from daemon.core.comparison import Columns, ReplicaLook
from daemon.core.model import Key, RowWrite, Table, Values, WriteKind
from daemon.ports import DigestPage, KeyPage, SourceRow
from tests import builders

XID = 5_000_000_000


@dataclass
class Sides:
    """app, there: the test's own connections to source and target."""

    app: psycopg.Connection[Any]
    there: psycopg.Connection[Any]
    source: PostgresSource
    target: PostgresTarget
    table: Table

    @classmethod
    @asynccontextmanager
    async def open(cls, source_dsn: str, target_dsn: str, ddl: str, name: str = "t") -> AsyncIterator[Sides]:
        """Run the DDL at the source and make a replica of all columns of `app.<name>`: `shop.t`."""
        source = PostgresSource(source_dsn, "slot", "publication", "revector:test:source")
        target = PostgresTarget(target_dsn, "shop", "revector:test:target")
        with (
            psycopg.connect(source_dsn, autocommit=True, client_encoding="utf8") as app,
            psycopg.connect(target_dsn, autocommit=True) as there,
        ):
            try:
                app.execute(f"CREATE SCHEMA app; {ddl}".encode())
                catalog = await source.describe("app", name)
                assert catalog is not None
                names = tuple(column.name for column in catalog.columns)
                table = resolve(TableChoice("app", name, "t", "", (), names), catalog)
                assert isinstance(table, Table), table
                await target.prepare()
                (made,) = await target.create_tables([table])
                yield cls(app, there, source, target, made)
            finally:
                await source.close()
                await target.close()

    async def copy(self) -> list[SourceRow]:
        """Every row into the replica, as a page brings it."""
        page = await self.source.page(self.table, None, None, 1_000_000)
        async with self.target.begin() as tx:
            await tx.ledger.hold_migration()
            await tx.replica.copy_in(self.table, page.rows)
        return list(page.rows)

    async def write(self, kind: WriteKind, key: Key, values: Values | None, lsn: int = 100) -> None:
        """One change as the stream writes it."""
        async with self.target.begin() as tx:
            await tx.ledger.hold_migration()
            row = (await tx.replica.lock(self.table, [key])).get(key)
            row_id = None if row is None else row.row_id
            await tx.replica.write(self.table, [RowWrite(kind, key, row_id, values, builders.position(lsn), XID)])

    async def pages(self, limit: int, upto: Key | None = None, after: Key | None = None) -> list[DigestPage]:
        pages = []
        while True:
            page = await self.source.digest_page(self.table, after, upto, limit)
            pages.append(page)
            assert page.rows <= limit
            if page.last is None:
                return pages
            after = page.last

    async def differing(self, limit: int = 1000) -> list[Key]:
        """What the source's side of a comparison suspects, in order."""
        found: list[Key] = []
        for page in await self.pages(limit):
            async with self.target.begin() as tx:
                found += await tx.audit.differing(self.table, page)
        return sorted(found)

    async def extra(self, limit: int = 1000) -> list[Key]:
        """What the replica's side of a comparison suspects, in order."""
        found: list[Key] = []
        for page in await self.key_pages(limit):
            found += await self.source.absent(self.table, page)
        return sorted(found)

    async def key_pages(self, limit: int) -> list[KeyPage]:
        pages, after = [], 0
        while True:
            async with self.target.begin() as tx:
                page, last = await tx.audit.keys_page(self.table, after, limit)
            pages.append(page)
            if last is None:
                return pages
            after = last

    def read(self, pages: Sequence[DigestPage | KeyPage]) -> list[Key]:
        """The pages' keys, taken apart by the target."""
        arrays = ", ".join(["%s::text[]"] * len(self.table.key))
        found: list[Key] = []
        for page in pages:
            rows = self.there.execute(f"SELECT * FROM unnest({arrays}) AS k".encode(), page.keys).fetchall()
            assert len(rows) == page.rows
            found += [tuple(row) for row in rows]
        return found

    async def digests(self, keys: Sequence[Key]) -> dict[Key, Columns]:
        return await self.source.digests(self.table, keys)

    async def looks(self, keys: Sequence[Key]) -> dict[Key, ReplicaLook]:
        async with self.target.begin() as tx:
            return await tx.audit.looks(self.table, keys)
