"""A migration on Postgres whose rows are embedded as an embedder does it, and spoilt behind its back afterwards."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psycopg

from connectors.postgres_target import PostgresTarget
from connectors.relations import Relations
from daemon.core.chunking import cut_of
from daemon.core.comparison import Kind, VectorRule, judge_chunks
from daemon.core.contract import SPLITTER, Chunker, Contract, digest, render
from daemon.core.model import UNAVAILABLE, Chunk, Generation, Key, Known, RowWrite, Table, Values, WriteKind
from daemon.flow.stream import follow_up
from daemon.ports import ChunkPage, Matrix, RowPieces, SourceRow
from tests import builders
from tests.fakes.embedder import WordTokenizer, vector_of
from tests.ports.target_shop import XID

EVERY = -(2**63)
CUT = Chunker("tokens", SPLITTER, {"tokens": 20, "overlap": 0}, WordTokenizer.identity)


@dataclass
class Library:
    """One table and one generation, whose work is embedded by `embed`."""

    target: PostgresTarget
    table: Table
    generation: Generation
    contract: Contract
    behind: psycopg.AsyncConnection[tuple[object, ...]]

    @classmethod
    async def open(
        cls,
        target: PostgresTarget,
        behind: psycopg.AsyncConnection[tuple[object, ...]],
        table: Table | None = None,
        **contract: object,
    ) -> Library:
        await target.prepare()
        (made,) = await target.create_tables([table or builders.articles()])
        generation, agreed = await cls.add(target, made, "v1", **contract)
        return cls(target, made, generation, agreed, behind)

    @classmethod
    async def add(
        cls, target: PostgresTarget, table: Table, name: str, **contract: object
    ) -> tuple[Generation, Contract]:
        agreed = builders.contract([table], **contract)
        async with target.begin() as tx:
            generation = await tx.ledger.add_generation(name, agreed.as_json(), agreed.id)
        await target.create_chunks([table], generation)
        return generation, agreed

    @property
    def chunks(self) -> str:
        return Relations("shop").chunks(self.table, self.generation).as_string(None)

    @property
    def replica(self) -> str:
        return Relations("shop").replica(self.table).as_string(None)

    # --- moves

    async def copy(self, *rows: Values) -> list[int]:
        async with self.target.begin() as tx:
            generations = await tx.ledger.hold_migration()
            found = [SourceRow(self.table.key_of(values), known(values)) for values in rows]
            effects = await tx.replica.copy_in(self.table, found)
            await follow_up(tx, self.table, generations, effects, live=False)
        by_key = {effect.key: effect.row_id for effect in effects}
        return [by_key[values.key] for values in found]

    async def change(self, row_id: int, kind: WriteKind, values: Values | None, lsn: int = 100) -> None:
        async with self.target.begin() as tx:
            generations = await tx.ledger.hold_migration()
            key = (await self.keys())[row_id]
            write = RowWrite(kind, key, row_id, values, builders.position(lsn), XID + lsn)
            await tx.replica.lock(self.table, [key])
            effects, _ = await tx.replica.write(self.table, [write])
            await follow_up(tx, self.table, generations, effects, live=True)

    async def keys(self) -> dict[int, Key]:
        columns = ", ".join(f'"{k}"::text' for k in self.table.key)
        cursor = await self.behind.execute(f"SELECT _row_id, {columns} FROM {self.replica}".encode())
        return {int(str(row_id)): tuple(str(k) for k in key) for row_id, *key in await cursor.fetchall()}

    async def embed(self, *, only: Sequence[int] | None = None) -> None:
        """Everything that is owed, as an embedder would."""
        cut = cut_of(self.contract, WordTokenizer())
        while True:
            async with self.target.begin() as tx:
                claims = await tx.ledger.claim(self.table, self.generation, "w", 100, 60)
                rows = [c.row_id for c in claims if only is None or c.row_id in only]
                if not rows:
                    return
                documents = await tx.replica.documents(self.table, self.generation, rows)
                await tx.replica.lock_rows(self.table, rows)
                chunks = [
                    Chunk(document.row_id, n, text, digest(text, self.contract))
                    for document in documents
                    if document.values is not None
                    for n, text in enumerate(cut(render(self.table.template, document.values)))
                ]
                vectors = {c.digest: self.vector(c.text) for c in chunks}
                await tx.vectors.replace(self.table, self.generation, chunks, vectors, rows)
                await tx.ledger.settle(self.table, self.generation, "w", rows, {}, [])

    def vector(self, text: str) -> Matrix:
        return vector_of(self.contract.document_prefix + text, self.contract.dimensions)

    @asynccontextmanager
    async def any_vector(self) -> AsyncIterator[None]:
        """Let chunks hold what their type refuses: other dimensions, and the bytes of any vector."""
        type, view = self.generation.vector_type, self.chunks.removesuffix('"') + '_search"'
        await self.behind.execute(f"DROP VIEW {view}".encode())
        await self.behind.execute(f"ALTER TABLE {self.chunks} ALTER _embedding TYPE {type}".encode())
        await self.behind.execute(f"CREATE CAST (bytea AS {type}) WITHOUT FUNCTION".encode())
        try:
            yield
        finally:
            await self.behind.execute(f"DROP CAST (bytea AS {type})".encode())

    def image(self, *values: float) -> bytes:
        """How Postgres holds a vector."""
        element = "f" if self.generation.vector_type == "vector" else "e"
        return struct.pack(f"=hh{len(values)}{element}", len(values), 0, *values)

    async def spoil(self, statement: str, *parameters: object) -> None:
        """{chunks} and {replica} are the relations."""
        text = statement.format(chunks=self.chunks, replica=self.replica)
        await self.behind.execute(text.encode(), parameters)

    # --- looks

    async def page(self, after: int = EVERY, upto: int | None = None, limit: int = 1000) -> ChunkPage:
        async with self.target.begin() as tx:
            return await tx.audit.chunk_page(self.table, self.generation, self.contract, after, upto, limit)

    async def suspects(self) -> set[int]:
        return set((await self.page()).suspects)

    async def pieces(self, *row_ids: int) -> dict[int, RowPieces]:
        async with self.target.begin() as tx:
            return await tx.audit.pieces(self.table, self.generation, self.contract, row_ids)

    async def kinds(self, row_id: int) -> set[Kind]:
        """What a second look makes of a row."""
        found = (await self.pieces(row_id))[row_id]
        expected = None
        if found.values is not None:
            cut = cut_of(self.contract, WordTokenizer())
            expected = [digest(t, self.contract) for t in cut(render(self.table.template, found.values))]
        rule = VectorRule(self.contract.dimensions, self.contract.normalised)
        return {fault.kind for fault in judge_chunks(expected, found.pieces, rule, is_owed=found.is_owed)}


def known(values: Values) -> tuple[Known, ...]:
    assert UNAVAILABLE not in values
    return tuple(value for value in values if value is not UNAVAILABLE)
