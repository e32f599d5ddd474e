"""The twin of the target as a comparison reads it."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.core.comparison import ReplicaLook
from daemon.core.contract import Contract
from daemon.core.model import Generation, Key, Table
from daemon.ports import ChunkPage, ChunkText, DigestPage, KeyPage, RowPieces
from tests.fakes.state import Context


class MemoryAudit:
    """The `Audit` port over one transaction's state."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def differing(self, table: Table, page: DigestPage) -> list[Key]:
        raise NotImplementedError

    async def keys_page(self, table: Table, after_row: int, limit: int) -> tuple[KeyPage, int | None]:
        raise NotImplementedError

    async def last_row(self, table: Table) -> int:
        raise NotImplementedError

    async def looks(self, table: Table, keys: Sequence[Key]) -> dict[Key, ReplicaLook]:
        raise NotImplementedError

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
