"""What a comparison reads: digests and keys in pages on either side, and the record of how far it has come.

`Audit` reads the target only; it takes no lock except where it says so. Pages hand keys and digests from one database
to the other as Postgres array literals, unread: a page of thousands costs the process next to nothing. `Comparisons`
is control state like the Ledger: nothing is durable before its transaction commits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.core.comparison import Comparison, Found, Piece, ReplicaLook, State
from daemon.core.contract import Contract
from daemon.core.model import Generation, Key, Known, Table
from daemon.ports.source import DigestPage, KeyPage


@dataclass(frozen=True, slots=True)
class RowText:
    """A live, wanted row whose text columns are all known, and the digests of its chunks in order of n; for cutting."""

    row_id: int
    values: Mapping[str, Known]
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ChunkPage:
    """rows, chunks: looked at. suspects: row ids with anything that may be wrong. texts: rows whose document has to be
    cut to know. last_row: the next page's `after_row`, None at the end."""

    rows: int
    chunks: int
    suspects: tuple[int, ...]
    texts: tuple[RowText, ...]
    last_row: int | None


@dataclass(frozen=True, slots=True)
class RowPieces:
    """A row's chunks with what they are judged by, as one statement saw it. key: None where there is no row. values:
    text columns; None where the row is not live and wanted, or lacks a text or filter column. is_wanted: live and
    `where` true. is_owed: there is a work entry, whatever its state."""

    key: Key | None
    is_wanted: bool
    values: Mapping[str, Known] | None
    is_owed: bool
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class ChunkText:
    """A chunk to be embedded again. vector: as stored."""

    table_id: int
    row_id: int
    n: int
    text: str
    vector: Sequence[float]


class Audit(Protocol):
    """The target as a comparison sees it."""

    async def differing(self, table: Table, page: DigestPage) -> list[Key]:
        """Keys of the page whose replica row is absent, a row tombstone, incomplete, or has another digest."""
        ...

    async def keys_page(self, table: Table, after_row: int, limit: int) -> tuple[KeyPage, int | None]:
        """The next `limit` live rows in row order, and the last row's id (None at the end)."""
        ...

    async def last_row(self, table: Table) -> int:
        """The highest row id; 0 for an empty table."""
        ...

    async def looks(self, table: Table, keys: Sequence[Key]) -> dict[Key, ReplicaLook]:
        """These rows as they are, live or tombstone; absent ones are left out."""
        ...

    async def chunk_page(
        self, table: Table, generation: Generation, contract: Contract, after_row: int, upto_row: int | None, limit: int
    ) -> ChunkPage:
        """The next about `limit` rows with row id > after_row (and <= upto_row), and every chunk with a row id in that
        range, whether it has a row or not. Where the contract takes documents whole they are judged here, and `texts`
        is empty."""
        ...

    async def keep_heads(
        self, comparison: int, table: Table, generation: Generation, after_row: int, upto_row: int | None
    ) -> None:
        """Remember the beginnings of the vectors of chunks with these row ids, for `shared`. Durable with the range's
        cursor, so no chunk is remembered twice."""
        ...

    async def shared(self, comparison: int, generation: Generation, limit: int) -> list[list[ChunkText]]:
        """Groups of chunks, at most `limit` groups, that have one vector and different digests. Forgets all heads of
        chunks that are alone."""
        ...

    async def pieces(
        self, table: Table, generation: Generation, contract: Contract, row_ids: Sequence[int]
    ) -> dict[int, RowPieces]:
        """Row, work and chunks of these row ids in one statement; ids with none of them are left out. Under the rows'
        locks, taken by the caller, the answer stays true until the transaction ends."""
        ...

    async def drop_chunks(self, table: Table, generation: Generation, chunks: Sequence[tuple[int, int]]) -> None:
        """Delete (row id, n)."""
        ...

    async def sample(self, table: Table, generation: Generation, count: int) -> list[ChunkText]:
        """About `count` chunks at random, another pick each time."""
        ...


@dataclass(frozen=True, slots=True)
class Scan:
    """A part of a comparison. side: source | replica | chunks. lower, upper: bounds of the keys (lower excluded), of
    row ids as text for the last two; None: open. cursor: last one compared."""

    id: int
    side: str
    table_id: int
    generation_id: int | None
    lower: Key | None
    upper: Key | None
    cursor: Key | None = None
    rows: int = 0
    chunks: int = 0
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class Suspect:
    """To be looked at again: a row by its key, or a row's chunks in a generation by its row id."""

    id: int
    table_id: int
    generation_id: int | None
    key: Key | None
    row_id: int | None


class Comparisons(Protocol):
    """The record of comparisons of one migration. One runs at a time, under a lease."""

    async def running(self) -> Comparison | None: ...
    async def last(self, generation: Generation | None) -> Comparison | None:
        """The newest one that ended clean or with differences and covered this generation (None: any). For a generation
        one that left it out or was abandoned counts too, if it found rows to differ or closed breaks: rows are every
        generation's."""
        ...

    async def begin(self, generations: Sequence[int], began_lsn: int, faults: Sequence[str]) -> Comparison:
        """Its mark is the journal's newest entry as this statement sees it."""
        ...

    async def hold(self, id: int, owner: str, lease_s: float) -> float | None:
        """Take or renew the lease; None: it is ours; else seconds until the other's ends."""
        ...

    async def release(self, id: int, owner: str) -> None: ...
    async def plan(self, id: int, scans: Sequence[Scan]) -> None:
        """Their ids are given here."""
        ...

    async def scans(self, id: int) -> list[Scan]: ...
    async def advance(self, scan: Scan, cursor: Key | None, rows: int, chunks: int, *, done: bool) -> None:
        """Add rows and chunks of a page, once: whoever was as far waits, and is told. None leaves the cursor. Raises
        TransientError `comparison-moved`: the scan is not as given."""
        ...

    async def suspect(
        self,
        id: int,
        table: Table,
        generation: Generation | None,
        keys: Sequence[Key] = (),
        row_ids: Sequence[int] = (),
    ) -> None: ...
    async def suspects(self, id: int, *, of_chunks: bool, after: int, limit: int) -> list[Suspect]:
        """In the order they came, ids above `after`; a key that came twice, twice."""
        ...

    async def settle(self, ids: Sequence[int]) -> None:
        """These suspects are none any more."""
        ...

    async def find(self, id: int, found: Sequence[Found]) -> None:
        """Record differences; one that is recorded already (same kind and place) is left as it is, and open
        again where it was mended."""
        ...

    async def found(
        self, id: int, *, after: int = 0, limit: int = 1000, only_open: bool = False
    ) -> list[tuple[int, Found]]:
        """With their ids, in their order."""
        ...

    async def mended(self, ids: Sequence[int]) -> None: ...
    async def tally(self, id: int) -> tuple[dict[str, int], dict[str, int]]:
        """Differences by kind: open, repaired."""
        ...

    async def end(self, comparison: Comparison, *, close_breaks: bool) -> int:
        """Record state, ended_lsn, faults and figures; forget scans, suspects and heads. close_breaks: journaled ones
        up to the mark; how many were closed."""
        ...

    async def abandon(self, id: int) -> None: ...


__all__ = [
    "Audit",
    "ChunkPage",
    "ChunkText",
    "Comparisons",
    "DigestPage",
    "KeyPage",
    "RowPieces",
    "RowText",
    "Scan",
    "State",
    "Suspect",
]
