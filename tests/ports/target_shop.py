"""A small opened migration for the target's port tests, over any implementation of the port.

`Shop` holds the table `articles` with one generation and says the usual moves in one line each: copy rows as a page
does, write a change under its lock as a window does, embed a row as an embedder does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from daemon.core.model import (
    Chunk,
    Claim,
    Effect,
    FeedIdentity,
    Generation,
    Key,
    Known,
    Position,
    RowWrite,
    SourceIdentity,
    Table,
    TopicPartition,
    Values,
    WriteKind,
)
from daemon.flow.stream import follow_up
from daemon.ports import Matrix, SourceRow, Target, UnitOfWork
from tests import builders

P0, P1 = TopicPartition("shop.public.articles", 0), TopicPartition("shop.public.articles", 1)
SOURCE = SourceIdentity("7000", 1, "app", "revector_shop", "revector_shop")
FEED = FeedIdentity("cluster", {"shop.public.articles": ("topic", 2)})
XID = 5_000_000_000  # above 32 bits

WHERE = "tenant <> 'draft'"
WHERE_COLUMNS = ("tenant",)


def is_wanted(values: Mapping[str, Known]) -> bool | None:
    """What WHERE means, for implementations that cannot read SQL."""
    return None if values["tenant"] is None else values["tenant"] != "draft"


class Targets(Protocol):
    """Makes connections to one empty database."""

    def connect(self) -> Target: ...
    def where(
        self, alias: str, columns: Sequence[str], predicate: Callable[[Mapping[str, Known]], bool | None]
    ) -> None:
        """What the `where` of a table means; ignored by an implementation that evaluates SQL."""
        ...

    def condition(
        self, text: str, columns: Sequence[str], predicate: Callable[[Mapping[str, Known]], bool | None]
    ) -> None:
        """What an operator's condition means; ignored likewise."""
        ...


@dataclass
class Shop:
    targets: Targets
    target: Target
    table: Table
    generation: Generation

    @classmethod
    async def open(cls, targets: Targets, where: str | None = None) -> Shop:
        target = targets.connect()
        targets.where("articles", WHERE_COLUMNS, is_wanted)
        await target.prepare()
        (table,) = await target.create_tables([builders.articles(where=where)])
        contract = builders.contract([table])
        async with target.begin() as tx:
            generation = await tx.ledger.add_generation("v1", contract.as_json(), contract.id)
        await target.create_chunks([table], generation)
        return cls(targets, target, table, generation)

    # --- moves

    async def start(self, floor: int = 50) -> None:
        async with self.target.begin() as tx:
            await tx.ledger.start({"barrier_lsn": floor}, SOURCE, FEED, {P0: 10, P1: 20}, floor)

    async def copy(self, *rows: Values) -> dict[str, int]:
        """Row ids by key of the rows that a page inserted."""
        async with self.target.begin() as tx:
            generations = await tx.ledger.hold_migration()
            effects = await tx.replica.copy_in(self.table, [source_row(values) for values in rows])
            await follow_up(tx, self.table, generations, effects, live=False)
        return {effect.key[0]: effect.row_id for effect in effects}

    async def change(
        self, key: str, values: Values | None, lsn: int, *, create: bool = False, gone: bool = False
    ) -> Effect:
        """A window with one change; None deletes."""
        async with self.target.begin() as tx:
            generations = await tx.ledger.hold_migration()
            effect = await self.apply(tx, key, values, lsn, create=create, gone=gone)
            await follow_up(tx, self.table, generations, [effect], live=True)
        return effect

    async def apply(
        self, tx: UnitOfWork, key: str, values: Values | None, lsn: int, *, create: bool = False, gone: bool = False
    ) -> Effect:
        """The replica's part of `change` in an open transaction."""
        row = (await tx.replica.lock(self.table, [(key,)])).get((key,))
        if values is None:
            kind = WriteKind.BURY
        elif row is None:
            kind = WriteKind.INSERT
        else:
            kind = WriteKind.REPLACE if create or not row.live else WriteKind.UPDATE
        row_id = None if row is None else row.row_id
        write = RowWrite(kind, (key,), row_id, values, builders.position(lsn), XID + lsn, gone)
        effects, leftovers = await tx.replica.write(self.table, [write])
        assert leftovers == []
        return effects[0]

    async def claim(self, worker: str = "w", lease_s: float = 60) -> dict[int, Claim]:
        async with self.target.begin() as tx:
            claims = await tx.ledger.claim(self.table, self.generation, worker, 100, lease_s)
        return {claim.row_id: claim for claim in claims}

    async def store(self, row_id: int, *texts: str) -> None:
        """Give a row chunks, whatever its work says."""
        async with self.target.begin() as tx:
            await tx.replica.lock_rows(self.table, [row_id])
            chunks, vectors = chunks_of(row_id, *texts)
            assert await tx.vectors.replace(self.table, self.generation, chunks, vectors, [row_id]) == set()

    # --- looks

    async def state(self, key: str):  # type: ignore[no-untyped-def]
        async with self.target.begin() as tx:
            return (await tx.replica.lock(self.table, [(key,)])).get((key,))

    async def stored(self, row_id: int) -> dict[bytes, int]:
        """Digest -> number of a row's chunks."""
        return dict((await self.document(row_id)).stored)

    async def document(self, row_id: int):  # type: ignore[no-untyped-def]
        async with self.target.begin() as tx:
            (document,) = await tx.replica.documents(self.table, self.generation, [row_id])
        return document

    async def entry(self, row_id: int):  # type: ignore[no-untyped-def]
        async with self.target.begin() as tx:
            return (await tx.ledger.entries(self.table, self.generation, [row_id])).get(row_id)


def source_row(values: Values) -> SourceRow:
    known = tuple(value for value in values if value is None or isinstance(value, str))
    assert len(known) == len(values)
    return SourceRow((str(values[0]),), known)


def digest_of(text: str) -> bytes:
    return text.encode().ljust(32, b"\0")


def vector_of(text: str, dimensions: int = 8) -> Matrix:
    return np.random.default_rng(list(text.encode())).standard_normal(dimensions, dtype=np.float32)


def chunks_of(row_id: int, *texts: str) -> tuple[list[Chunk], dict[bytes, Matrix]]:
    chunks = [Chunk(row_id, n, text, digest_of(text)) for n, text in enumerate(texts)]
    return chunks, {digest_of(text): vector_of(text) for text in texts}


def key(text: str) -> Key:
    return (text,)


def at(lsn: int, epoch: int = 0) -> Position:
    return builders.position(lsn, epoch=epoch)
