"""What the product needs from outside, one protocol per outside system.

Each docstring states ordering, durability and repeatability before the signature: an adapter in `connectors/` and its
in-memory twin in `tests/fakes.py` pass the same conformance suite (`tests/ports/`). Adapters take no decision about
sync and never commit on their own: `Target.begin` is the one unit of work that Replica, Vectors and Ledger share.

Raises, for all ports: TransientError (away, throttled, serialisation, deadlock: forget memory and try again),
PermissionRefused, and what a method names itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from daemon.core.catalog import CatalogColumn as CatalogColumn
from daemon.core.catalog import TableCatalog as TableCatalog
from daemon.core.model import (
    Backlog,
    Break,
    Chunk,
    Claim,
    Decoded,
    Effect,
    Entry,
    FeedIdentity,
    Generation,
    IndexState,
    Key,
    Known,
    Position,
    RowState,
    RowWrite,
    Snapshot,
    SourceIdentity,
    SourceTableState,
    Table,
    TopicPartition,
)

__all__ = ["Backlog", "Break", "IndexState", "SourceTableState"]  # nouns of the core that port users name from here

from daemon.core.setup import PublishedTable as PublishedTable
from daemon.core.setup import SlotState as SlotState
from daemon.core.setup import SourceSetup as SourceSetup
from daemon.core.setup import TargetSetup as TargetSetup
from daemon.core.setup import TopicSetup as TopicSetup

Matrix = npt.NDArray[np.float32]  # (N, D)
Offsets = Mapping[TopicPartition, int]


# --- the source


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
        """`pg_current_wal_lsn()`: the source's end of log."""
        ...

    async def estimate(self, table: Table) -> int | None:
        """Rows by the planner's statistics; None where never analysed."""
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


# --- the change feed


@dataclass(frozen=True, slots=True)
class RawRecord:
    at: TopicPartition
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Polled:
    """One poll's records, in offset order per partition, and `next_offsets` of every partition that moved (from the
    consumer's position: transaction markers occupy offsets, so it may pass the last record by more than one)."""

    records: tuple[RawRecord, ...]
    next_offsets: Offsets


class Decoder(Protocol):
    """Pure. Raises UndecodableEvent."""

    def decode(self, record: RawRecord) -> Decoded: ...


class ChangeFeed(Protocol):
    """The Kafka topics of one migration. Delivers each record at least once, in order per partition."""

    async def setup(self) -> tuple[TopicSetup, ...]:
        """Every topic of the migration, existing or not: one per table, and the message topic."""
        ...

    async def identity(self) -> FeedIdentity: ...
    async def seek(self, offsets: Offsets) -> None:
        """Assign exactly these partitions and continue at these offsets; forgets everything fetched before."""
        ...

    async def poll(self, max_records: int, timeout_s: float) -> Polled:
        """Whatever is there, at most `max_records`, waiting at most `timeout_s` for the first.
        Raises OffsetsGone."""
        ...

    async def ends(self) -> Offsets:
        """End offsets (high watermarks, read_uncommitted) of every data partition, asked of the broker."""
        ...

    async def commit(self, offsets: Offsets) -> None:
        """Courtesy for lag tools. Never raises: nothing depends on it."""
        ...

    async def close(self) -> None: ...


class Capture(Protocol):
    """The Debezium connector as Kafka Connect reports it."""

    async def committed_lsn(self) -> int | None:
        """`lsn` of the connector's committed source offset: everything before it is in Kafka. None: none committed."""
        ...

    async def config(self) -> dict[str, str] | None:
        """The connector's configuration; None where there is no connector of that name."""
        ...

    async def version(self) -> str | None:
        """The Debezium plugin's version, such as `3.7.0.Final`; None where Connect does not say."""
        ...

    async def close(self) -> None: ...
    async def state(self) -> str:
        """running | paused | stopped | failed | unassigned | absent (the worst of connector and task)."""
        ...


# --- the provider


class Embedder(Protocol):
    """Turns texts into vectors. No state of the sync; may be repeated at the price of its tokens."""

    async def embed(self, texts: Sequence[str]) -> tuple[Matrix, int]:
        """float32 (N, D) in the order of texts, and tokens billed. N >= 1, no text empty. The answer has been checked:
        count, order, dimension, finite, not zero.

        Raises ItemRefused, ProviderWrong, TransientError, PermissionRefused."""
        ...

    async def close(self) -> None: ...


# --- the target: one unit of work


@dataclass(frozen=True, slots=True)
class Document:
    """What the embedder needs of a replica row. values: text columns by name; None where the row is gone, dead or
    lacks a text column. stored: digest -> chunk number of the generation's chunks of this row."""

    row_id: int
    values: Mapping[str, Known] | None
    stored: Mapping[bytes, int]


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

    async def lock(self, table: Table, keys: Sequence[Key]) -> dict[Key, RowState]:
        """Lock and read the rows (live or tombstone) of these keys. Keys not in the answer are absent."""
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


@dataclass(frozen=True, slots=True)
class BackfillRange:
    """A key range (after, upto] of one table under a lease. cursor: last key copied."""

    id: int
    table_id: int
    after: Key | None
    upto: Key | None
    cursor: Key | None
    rows_read: int = 0
    rows_written: int = 0


@dataclass(frozen=True, slots=True)
class MigrationState:
    """The `migration` row. started: start evidence recorded and floors set, so pages and stream may run.
    evidence: JSON of identity, start offsets, L0, X."""

    name: str
    epoch: int
    started: bool
    evidence: Mapping[str, Any]
    source: SourceIdentity | None
    feed: FeedIdentity | None
    run_ids: tuple[str, ...]
    pulse_seen: int
    pulse_sent: int
    lease_number: int
    lease_owner: str | None
    lease_left_s: float | None  # None: free
    halted: Mapping[str, Any] | None
    observed: Mapping[str, Any] | None  # the stream's last observation (lag, freshness), with observed_age_s
    observed_age_s: float | None


class Ledger(Protocol):
    """Control state in the target: leases, checkpoints, ranges, work, generations, journal, certificates."""

    # migration
    async def load(self) -> MigrationState: ...
    async def start(
        self, evidence: Mapping[str, Any], source: SourceIdentity, feed: FeedIdentity, offsets: Offsets, floor: int
    ) -> None:
        """Record start evidence, checkpoints at `offsets` and every table's floor, once; all or nothing. A second
        call changes nothing."""
        ...

    async def tables(self) -> list[SourceTableState]: ...
    async def hold_migration(self) -> list[Generation]:
        """FOR SHARE on the migration row, then the fed generations: the first statement of every transaction that
        writes replica rows."""
        ...

    async def halt(self, id: str, message: str, hint: str) -> None: ...
    async def clear_halt(self) -> None: ...

    # the stream's lease and checkpoint
    async def acquire_lease(self, owner: str, lease_s: float) -> int | None:
        """Take the stream if it is free, expired or already ours: bump the lease number, write it into every
        checkpoint row (waits for an open window). None: a peer holds it."""
        ...

    async def renew_lease(self, number: int, lease_s: float) -> None:
        """Raises LeaseLost."""
        ...

    async def release_lease(self, number: int) -> None: ...
    async def checkpoint(self) -> dict[TopicPartition, int]: ...
    async def advance(self, lease_number: int, moves: Mapping[TopicPartition, tuple[int, int]]) -> None:
        """(expected, next) per partition, guarded by lease number and expected offset. Raises LeaseLost: nothing of
        this transaction may be kept."""
        ...

    # continuity
    async def observe_stream(self, run_ids: Sequence[str], pulse: int | None) -> None:
        """Durable with the window that carried them: run ids seen so far, last pulse number seen."""
        ...

    async def pulse_sent(self, number: int) -> None: ...
    async def observe(self, observation: Mapping[str, Any]) -> None: ...
    async def journal(self, kind: str, id: str, detail: Mapping[str, Any]) -> None:
        """kind: break | halt | start | index | certificate | operator."""
        ...

    async def breaks(self) -> list[Break]:
        """Breaks not closed by a comparison, oldest first."""
        ...

    # backfill
    async def plan_ranges(self, table: Table, bounds: Sequence[Key]) -> None:
        """len(bounds) + 1 ranges; a second call changes nothing."""
        ...

    async def claim_range(self, owner: str, lease_s: float) -> BackfillRange | None:
        """FOR UPDATE SKIP LOCKED; an expired lease may be taken over."""
        ...

    async def hold_range(self, range_id: int, owner: str) -> None:
        """Lock the range for this transaction. Raises LeaseLost when it is no longer this owner's."""
        ...

    async def advance_range(
        self, range_id: int, owner: str, cursor: Key | None, done: bool, rows: tuple[int, int], lease_s: float
    ) -> None:
        """rows: (read, written) of this page. done marks the range complete and frees it."""
        ...

    async def backfill_progress(self) -> Mapping[str, Any]:
        """Per table alias: rows_read, rows_written, ranges, ranges_done, complete, started_at, completed_at."""
        ...

    # work
    async def put_work(
        self,
        table: Table,
        generations: Sequence[Generation],
        row_ids: Sequence[int],
        live: bool,
        changed_at_ms: Mapping[int, int] | None = None,
    ) -> None:
        """One entry per generation and row, a fresh seq each, taken in a statement that starts after this transaction
        holds the replica row's lock. Existing entry: newest_seq only, waiting again, claim kept, live wins."""
        ...

    async def drop_work(self, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> None: ...
    async def claim(self, table: Table, generation: Generation, worker: str, limit: int, lease_s: float) -> list[Claim]:
        """Waiting entries, live first, then oldest; unclaimed or expired; never of a row that lacks a text column."""
        ...

    async def entries(self, table: Table, generation: Generation, row_ids: Sequence[int]) -> dict[int, Entry]:
        """Locked, in row order."""
        ...

    async def settle(
        self,
        table: Table,
        generation: Generation,
        worker: str,
        done: Sequence[int],
        moved: Mapping[int, int],
        freed: Sequence[int],
    ) -> None:
        """done: delete the entry. moved: row -> new oldest_seq, claim cleared if ours. freed: claim cleared if ours."""
        ...

    async def refuse(
        self, table: Table, generation: Generation, worker: str, claims: Sequence[Claim], reason: str
    ) -> None:
        """State refused where newest_seq is the claimed one, else only free the claim."""
        ...

    async def count_embedded(self, generation: Generation, rows: int, tokens: int, tokens_avoided: int) -> None: ...
    async def backlog(self, generation: Generation) -> Backlog: ...
    async def highest_seq(self) -> int:
        """W: highest `newest_seq` handed out so far (the sequence's last value)."""
        ...

    async def owed(self, generation: Generation, seq: int) -> int:
        """Entries with oldest_seq <= seq, not accepted; claimed ones count."""
        ...

    async def lowest_owed(self, generation: Generation) -> int | None:
        """The smallest oldest_seq of an entry that is not accepted; None where nothing is owed."""
        ...

    # generations, certificates
    async def generations(self) -> list[Generation]: ...
    async def add_generation(self, name: str, contract: Mapping[str, Any], contract_id: str) -> Generation:
        """FOR UPDATE on the migration row, insert, commit belongs to the caller. Same name with another contract:
        ConfigError `contract-changed`. A generation added before the start is swept from the beginning."""
        ...

    async def set_phase(self, generation: Generation, phase: str, index_state: Mapping[str, Any] | None) -> None: ...
    async def index_state(self, generation: Generation) -> Mapping[str, Any]: ...
    async def store_certificate(self, generation: Generation, document: Mapping[str, Any], digest: str) -> None: ...


class UnitOfWork(Protocol):
    """One target transaction."""

    @property
    def replica(self) -> Replica: ...
    @property
    def vectors(self) -> Vectors: ...
    @property
    def ledger(self) -> Ledger: ...


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
    async def analyze_and_prewarm(self, table: Table, generation: Generation) -> None: ...
