"""A generation's chunks as a comparison reads them."""

from __future__ import annotations

from collections.abc import Sequence

from connectors.postgres_session import Connection
from connectors.relations import Relations
from daemon.core.contract import Contract
from daemon.core.model import Generation, Table
from daemon.ports import ChunkPage, ChunkText, RowPieces


class PgChunkAudit:
    """The Audit port's methods on chunks, over one open transaction."""

    def __init__(self, connection: Connection, relations: Relations) -> None:
        self._connection = connection
        self._relations = relations

    async def chunk_page(
        self, table: Table, generation: Generation, contract: Contract, after_row: int, upto_row: int | None, limit: int
    ) -> ChunkPage:
        raise NotImplementedError

    async def keep_heads(
        self, comparison: int, table: Table, generation: Generation, after_row: int, upto_row: int | None
    ) -> None:
        raise NotImplementedError

    async def shared(self, comparison: int, generation: Generation, limit: int) -> list[list[ChunkText]]:
        raise NotImplementedError

    async def pieces(
        self, table: Table, generation: Generation, contract: Contract, row_ids: Sequence[int]
    ) -> dict[int, RowPieces]:
        raise NotImplementedError

    async def drop_chunks(self, table: Table, generation: Generation, chunks: Sequence[tuple[int, int]]) -> None:
        raise NotImplementedError

    async def sample(self, table: Table, generation: Generation, count: int) -> list[ChunkText]:
        raise NotImplementedError
