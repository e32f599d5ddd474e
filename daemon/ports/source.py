"""The source database, as the product needs it: catalogue, identity, WAL messages, snapshots and pages.

Reads only, except for messages put into the WAL. Pages and rows carry the snapshot they were read in, because whether a
value may fill a gap depends on which transactions that snapshot sees.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.core.catalog import TableCatalog
from daemon.core.comparison import Columns
from daemon.core.model import Key, Known, Snapshot, SourceIdentity, Table
from daemon.core.sampling import Draw
from daemon.core.setup import SlotState, SourceSetup


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row as one snapshot sees it: canonical text in the order of `Table.columns`."""

    key: Key
    values: tuple[Known, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of one keyset page in the source's own key order, with the snapshot they were read in.

    last: the last row's key (the next page's `after`), None where the range is exhausted.
    """

    rows: tuple[SourceRow, ...]
    snapshot: Snapshot
    last: Key | None


@dataclass(frozen=True, slots=True)
class KeyPage:
    """Keys of `rows` rows, unread: for each key column, in key order, a Postgres text[] literal of canonical values."""

    rows: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DigestPage:
    """A keyset page in the source's own key order, as digests. digests: a bytea[] literal, one row digest for each of
    `keys`. last: the last row's key (the next page's `after`), None where the range is exhausted."""

    rows: int
    keys: tuple[str, ...]
    digests: str
    last: Key | None


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row that was picked. texts: canonical text of `Table.text_columns` in their order; None where `where` is not
    true. block: names the block it lies in where blocks were picked, else "". Bytes are those that the values take in
    the source, compressed where they are: text_bytes of the text columns, stored_bytes of all used ones."""

    block: str
    texts: tuple[Known, ...] | None
    text_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Counted:
    """A table's rows, those for which `where` is true, and the stored bytes of the text columns of the latter."""

    rows: int
    wanted: int
    text_bytes: int


@dataclass(frozen=True, slots=True)
class Blocker:
    """Whoever holds the oldest transaction of the source."""

    pid: int
    age_s: float
    what: str  # "backend", "prepared transaction", "replication slot": never a query text


class Source(Protocol):
    """The source database (its primary). Reads only, except for messages put into the WAL."""

    async def setup(self) -> SourceSetup: ...
    async def describe(self, schema: str, name: str) -> TableCatalog | None: ...
    async def close(self) -> None: ...
    async def identity(self) -> SourceIdentity: ...
    async def schema_fingerprint(self, table: Table) -> str:
        """Digest over key, used columns, their types and the replica identity."""
        ...

    async def emit(self, payload: bytes) -> int:
        """Write a message into the WAL in a transaction of its own and commit it; its LSN, the one that arrives as
        `source.lsn`. On TransientError the message may or may not have been written."""
        ...

    async def own_xid(self) -> int:
        """A fresh full transaction id of our own, committed when this returns."""
        ...

    async def snapshot(self) -> Snapshot: ...
    async def blocker(self) -> Blocker | None: ...
    async def slot(self) -> SlotState: ...
    async def wal_lsn(self) -> int:
        """The source's end of log as far as it is durable: it never goes back but by a restore."""
        ...

    async def estimate(self, table: Table) -> int | None:
        """Rows by the planner's statistics; None where never analysed."""
        ...

    async def count(self, table: Table, limit_s: float) -> Counted | None:
        """Everything in one pass; None where it takes longer. `where` is evaluated by the source; unknown is not true.
        Raises ConfigError `where-invalid`."""
        ...

    def sample(self, table: Table, draw: Draw) -> AsyncGenerator[Sequence[SampledRow]]:
        """Rows picked at random in one snapshot, in portions, another pick each time. Close it (`aclosing`): it holds
        the connection. Raises ConfigError `where-invalid`."""
        ...

    async def bounds(self, table: Table, ranges: int) -> list[Key]:
        """Up to `ranges - 1` inner keys, ascending in the source's order, that cut the table into ranges of about
        equal size; empty for a small or empty table."""
        ...

    async def page(self, table: Table, after: Key | None, upto: Key | None, limit: int) -> Page:
        """The next `limit` rows with key > after and <= upto, in a short read-only transaction of its own.
        Waits for a lock that a TRUNCATE or DDL holds."""
        ...

    async def rows(self, table: Table, keys: Sequence[Key]) -> tuple[dict[Key, SourceRow], Snapshot]:
        """These keys' rows where visible, and the one snapshot they were read in."""
        ...

    async def digest_page(self, table: Table, after: Key | None, upto: Key | None, limit: int) -> DigestPage:
        """As `page`, with a digest over all used columns in place of their values."""
        ...

    async def digests(self, table: Table, keys: Sequence[Key]) -> dict[Key, Columns]:
        """The digest of each used column of these keys' rows where visible."""
        ...

    async def absent(self, table: Table, page: KeyPage) -> list[Key]:
        """Keys of the page that have no row."""
        ...
