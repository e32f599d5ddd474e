"""The replica as a comparison reads it."""

from __future__ import annotations

from collections.abc import Sequence

from connectors.postgres_audit_chunks import PgChunkAudit
from daemon.core.comparison import ReplicaLook
from daemon.core.model import Key, Table
from daemon.ports import DigestPage, KeyPage


class PgAudit(PgChunkAudit):
    """The Audit port over one open transaction."""

    async def differing(self, table: Table, page: DigestPage) -> list[Key]:
        raise NotImplementedError

    async def keys_page(self, table: Table, after_row: int, limit: int) -> tuple[KeyPage, int | None]:
        raise NotImplementedError

    async def last_row(self, table: Table) -> int:
        raise NotImplementedError

    async def looks(self, table: Table, keys: Sequence[Key]) -> dict[Key, ReplicaLook]:
        raise NotImplementedError
