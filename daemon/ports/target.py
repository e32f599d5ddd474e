"""The target: replica and vectors, the one transaction they share with the ledger, and the DDL around it.

`Target.begin` is the only way to make anything durable. Lock order is the replica row first, then chunks and work, so
that stream, pages and embedders never wait for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from daemon.core.model import Chunk, Effect, Generation, IndexState, Key, Known, Position, RowState, RowWrite, Table
from daemon.core.setup import TargetSetup
from daemon.ports.audit import Audit, Comparisons
from daemon.ports.ledger import Ledger
from daemon.ports.source import SourceRow


@dataclass(frozen=True, slots=True)
class Document:
    """What the embedder needs of a replica row. values: text columns by name; None where the row is gone, dead or
    lacks a text column. stored: digest -> chunk number of the generation's chunks of this row."""

    row_id: int
    values: Mapping[str, Known] | None
    stored: Mapping[bytes, int]


@dataclass(frozen=True, slots=True)
class Condition:
    """An SQL condition that `Replica.condition` has checked. columns: those that it reads."""

    text: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChosenRow:
    """key: as canonical text."""

    row_id: int
    key: Key


class Replica(Protocol):
    """The exact copy of one migration's used columns, and the table of DESIGN.md section 5 as statements.

    Every writing method must run in a transaction that called `Ledger.hold_migration` first. Row locks are taken in
    key order. Repeating a transaction that was rolled back is safe; nothing is durable before the unit of work commits.
    """

    async def truncate(self, table: Table, position: Position) -> bool:
        """If `position` is above the recorded one: record it, bump the count (first statement: it is the lock that
        pages wait for), remove rows, row tombstones, their chunks and work with null or smaller position. True if
        recorded."""
        ...

    async def lock(self, table: Table, keys: Sequence[Key], *, only_missing: bool = False) -> dict[Key, RowState]:
        """Lock and read the rows (live or tombstone) of these keys. Keys not in the answer are absent. only_missing:
        leave alone every row that lacks no column, so that a page does not wait for rows it has nothing to do with."""
        ...

    async def write(self, table: Table, writes: Sequence[RowWrite]) -> tuple[list[Effect], list[RowWrite]]:
        """Carry out writes, one statement per shape, on rows locked by `lock` in this transaction. Second: INSERTs
        (and BURYs of absent keys) whose key was inserted meanwhile by another transaction; lock and decide again."""
        ...

    async def copy_in(self, table: Table, rows: Sequence[SourceRow]) -> list[Effect]:
        """A page: insert rows whose key is absent, with null position; leave every other row alone. Effects of the
        inserted ones only."""
        ...

    async def fill(self, table: Table, rows: Sequence[tuple[RowState, SourceRow]]) -> list[Effect]:
        """Set only the `missing` columns of these live, locked rows; keep their position; nothing is missing after."""
        ...

    async def missing(self, table: Table, limit: int) -> list[Key]:
        """Keys of live rows with a missing column, without locking."""
        ...

    async def restamp_missing(self, table: Table, xid: int) -> int:
        """Let every row with a missing column be filled by what was read in a snapshot that sees `xid`; how many."""
        ...

    async def truncate_count(self, table: Table) -> int:
        """Read without lock, before the source snapshot of a page, completion or repair."""
        ...

    async def hold_truncate_count(self, table: Table) -> int:
        """The same FOR SHARE: no truncate commits before this transaction ends."""
        ...

    async def lock_rows(self, table: Table, row_ids: Sequence[int]) -> set[int]:
        """Lock these rows (the first step of the embedder's transaction); those that are live and whose filter
        columns are all known."""
        ...

    async def documents(self, table: Table, generation: Generation, row_ids: Sequence[int]) -> list[Document]: ...

    # what an operator chooses: always live rows that are wanted, without those of an accepted entry in `sparing`
    async def condition(self, table: Table, text: str) -> Condition:
        """Check a condition by the rules of a table's `where`; nothing is left behind. Raises ConfigError
        `where-invalid`."""
        ...

    async def chosen(
        self, table: Table, condition: Condition | None, sparing: Generation, after: int, rows: int
    ) -> tuple[list[ChosenRow], int | None]:
        """Look at the next `rows` rows above row id `after`, without locking: those that are chosen, and the last one
        looked at, None where there were fewer. condition None: every one. Raises ConfigError `where-invalid` for a
        condition that cannot be computed for a row."""
        ...

    async def chosen_of(
        self, table: Table, condition: Condition | None, sparing: Generation | None, row_ids: Sequence[int]
    ) -> list[ChosenRow]:
        """Those of these rows, locked by the caller, that are chosen."""
        ...

    async def row_ids(self, table: Table, keys: Sequence[Key]) -> dict[Key, int]:
        """Row ids by key as given, without locking; rows and row tombstones. Raises StepRefused `key-unreadable`
        for a text that is no value of the key's type."""
        ...


class Vectors(Protocol):
    """The chunks of each generation. Called under the replica row's lock."""

    async def replace(
        self,
        table: Table,
        generation: Generation,
        chunks: Sequence[Chunk],
        vectors: Mapping[bytes, Any],
        row_ids: Sequence[int],
    ) -> set[int]:
        """Make `chunks` the chunks of `row_ids` (a row without chunks loses all of its). A digest in `vectors` has its
        new vector (float32 (D,)) there; every other digest keeps the vector stored for that row and digest. Filter
        columns come from the locked replica row. Rows of which a kept digest is no longer stored are left untouched
        and returned."""
        ...

    async def drop(self, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> None: ...
    async def copy_filters(self, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> None: ...
    async def counts(self, table: Table, generation: Generation) -> tuple[int, int]:
        """(rows with chunks, chunks), exact."""
        ...


class UnitOfWork(Protocol):
    """One target transaction."""

    @property
    def replica(self) -> Replica: ...
    @property
    def vectors(self) -> Vectors: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def audit(self) -> Audit: ...
    @property
    def comparisons(self) -> Comparisons: ...


class Target(Protocol):
    """One connection to the target. Not shared between tasks: each loop has its own."""

    async def setup(self) -> TargetSetup: ...
    async def prepare(self) -> None:
        """Bring the control schema to this program's version (numbered migrations under an advisory lock) and make
        the migration's row. Raises ConfigError for a newer schema or a foreign one. May be repeated."""
        ...

    async def create_tables(self, tables: Sequence[Table]) -> list[Table]:
        """Make the replica relations that do not exist and record the source tables; the tables with their ids and
        `where_columns` filled in. Raises SchemaChanged where a recorded table differs. May be repeated."""
        ...

    async def create_chunks(self, tables: Sequence[Table], generation: Generation) -> None:
        """Make the generation's chunk tables and search views that do not exist. May be repeated."""
        ...

    def begin(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """A transaction: committed when the block ends, rolled back when it raises. Reconnects where needed. An error
        at COMMIT is TransientError: the outcome is unknown, load the checkpoint."""
        ...

    async def close(self) -> None: ...


class Indexes(Protocol):
    """DDL outside of transactions: the HNSW index procedure's hands."""

    async def close(self) -> None: ...

    async def build(self, table: Table, generation: Generation) -> None: ...
    async def progress(self) -> Mapping[str, Any] | None:
        """The running build's row of pg_stat_progress_create_index, None when none runs."""
        ...

    async def state(self, table: Table, generation: Generation) -> IndexState: ...
    async def probe(self, vector_type: str, dimensions: int, metric: str, rows: int) -> float | None:
        """Seconds that one process needs to index this many random vectors; None where there is no extension. Leaves
        nothing behind."""
        ...

    async def analyze_and_prewarm(self, table: Table, generation: Generation) -> None: ...
