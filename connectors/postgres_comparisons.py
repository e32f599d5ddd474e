"""The record of comparisons in the target."""

from __future__ import annotations

from collections.abc import Sequence

from connectors.postgres_session import Connection
from connectors.relations import Relations
from daemon.core.comparison import Comparison, Found
from daemon.core.model import Generation, Key, Table
from daemon.ports import Scan, Suspect


class PgComparisons:
    """The Comparisons port over one open transaction."""

    def __init__(self, connection: Connection, relations: Relations) -> None:
        self._connection = connection
        self._relations = relations
        self._name = relations.migration

    async def running(self) -> Comparison | None:
        raise NotImplementedError

    async def last(self, generation: Generation | None) -> Comparison | None:
        raise NotImplementedError

    async def begin(self, generations: Sequence[int], began_lsn: int, faults: Sequence[str]) -> Comparison:
        raise NotImplementedError

    async def hold(self, id: int, owner: str, lease_s: float) -> float | None:
        raise NotImplementedError

    async def release(self, id: int, owner: str) -> None:
        raise NotImplementedError

    async def plan(self, id: int, scans: Sequence[Scan]) -> None:
        raise NotImplementedError

    async def scans(self, id: int) -> list[Scan]:
        raise NotImplementedError

    async def advance(self, scan: Scan, cursor: Key | None, rows: int, chunks: int, *, done: bool) -> None:
        raise NotImplementedError

    async def suspect(
        self,
        id: int,
        table: Table,
        generation: Generation | None,
        keys: Sequence[Key] = (),
        row_ids: Sequence[int] = (),
    ) -> None:
        raise NotImplementedError

    async def suspects(self, id: int, *, of_chunks: bool, after: int, limit: int) -> list[Suspect]:
        raise NotImplementedError

    async def settle(self, ids: Sequence[int]) -> None:
        raise NotImplementedError

    async def find(self, id: int, found: Sequence[Found]) -> None:
        raise NotImplementedError

    async def found(
        self, id: int, *, after: int = 0, limit: int = 1000, only_open: bool = False
    ) -> list[tuple[int, Found]]:
        raise NotImplementedError

    async def mended(self, ids: Sequence[int]) -> None:
        raise NotImplementedError

    async def tally(self, id: int) -> tuple[dict[str, int], dict[str, int]]:
        raise NotImplementedError

    async def end(self, comparison: Comparison, *, close_breaks: bool) -> int:
        raise NotImplementedError

    async def abandon(self, id: int) -> None:
        raise NotImplementedError
