"""What the target twin keeps: one value per row, copied when a transaction begins and swapped in when it commits.

Records are frozen and replaced whole, so a shallow copy of the dictionaries is a snapshot. Sequences live beside the
state, not in it: like Postgres's, they do not roll back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from daemon.core.comparison import Comparison, Found
from daemon.core.model import (
    UNAVAILABLE,
    Canary,
    FeedIdentity,
    Generation,
    Key,
    Known,
    Position,
    Rates,
    SourceIdentity,
    Table,
    TopicPartition,
    Values,
    WorkState,
)
from daemon.ports import Matrix, Scan, Suspect
from tests.fakes.clock import VirtualClock
from tests.fakes.schedule import Schedule

Where = Callable[[Mapping[str, Known]], bool | None]


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """values: UNAVAILABLE where missing; None for a row tombstone."""

    row_id: int
    key: Key
    values: Values | None
    position: Position | None
    xid: int | None
    missing_xid: int | None = None

    @property
    def live(self) -> bool:
        return self.values is not None

    def missing(self, table: Table) -> frozenset[str]:
        if self.values is None:
            return frozenset()
        return frozenset(n for n, v in zip(table.names, self.values, strict=True) if v is UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk with its vector (float32 (D,)) and the filter columns copied to it."""

    n: int
    text: str
    digest: bytes
    vector: Matrix
    filters: tuple[Known, ...]


@dataclass(frozen=True, slots=True)
class WorkEntry:
    oldest: int
    newest: int
    changed_at_ms: int
    newest_at_ms: int
    is_live: bool
    claimed_by: str | None = None
    claimed_until: float = 0.0
    attempts: int = 0
    state: WorkState = WorkState.WAITING
    reason: str | None = None
    refused_at: float | None = None
    afresh_seq: int | None = None


@dataclass(frozen=True, slots=True)
class TableRecord:
    table: Table
    fingerprint: str = ""
    floor: int = 0
    truncated: Position | None = None
    truncate_count: int = 0


@dataclass(frozen=True, slots=True)
class RangeRecord:
    id: int
    table_id: int
    after: Key | None
    upto: Key | None
    cursor: Key | None = None
    owner: str | None = None
    lease_until: float = 0.0
    done: bool = False
    rows_read: int = 0
    rows_written: int = 0
    started_at: float | None = None
    completed_at: float | None = None


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    generation: Generation
    contract: Mapping[str, Any]
    index_state: Mapping[str, Any] = field(default_factory=dict)
    rows_embedded: int = 0
    tokens: int = 0
    tokens_avoided: int = 0
    rows_blank: int = 0
    requests: int = 0
    swept_to: Mapping[int, int] = field(default_factory=dict)
    canary: Canary | None = None
    forecast: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class MigrationRecord:
    epoch: int = 0
    evidence: Mapping[str, Any] = field(default_factory=dict)
    started: bool = False
    source: SourceIdentity | None = None
    feed: FeedIdentity | None = None
    run_ids: tuple[str, ...] = ()
    pulse_seen: int = 0
    pulse_sent: int = 0
    lease_number: int = 0
    lease_owner: str | None = None
    lease_until: float = 0.0
    halted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    routed: int | None = None
    observed: Mapping[str, Any] | None = None
    observed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    next_offset: int
    lease_number: int


@dataclass(frozen=True, slots=True)
class JournalEntry:
    kind: str
    id: str
    detail: Mapping[str, Any]
    at_s: float
    closed: bool = False


@dataclass(frozen=True, slots=True)
class ComparisonRecord:
    """A comparison as it was recorded; the figures of one that runs are counted when it is asked for."""

    comparison: Comparison
    began_s: float
    owner: str | None = None
    lease_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a chunk's vector, remembered by a comparison."""

    comparison: int
    generation_id: int
    table_id: int
    row_id: int
    n: int
    head: bytes
    digest: bytes


Place = tuple[int, int]  # (table id, row id)


@dataclass
class State:
    """Committed state, or one transaction's copy of it."""

    migration: MigrationRecord = field(default_factory=MigrationRecord)
    tables: dict[int, TableRecord] = field(default_factory=dict)
    rows: dict[tuple[int, Key], ReplicaRow] = field(default_factory=dict)
    keys: dict[Place, Key] = field(default_factory=dict)
    chunks: dict[tuple[int, int, int], tuple[StoredChunk, ...]] = field(default_factory=dict)  # generation, table, row
    work: dict[tuple[int, int, int], WorkEntry] = field(default_factory=dict)  # generation, table, row
    ranges: dict[int, RangeRecord] = field(default_factory=dict)
    checkpoints: dict[TopicPartition, Checkpoint] = field(default_factory=dict)
    generations: dict[int, GenerationRecord] = field(default_factory=dict)
    journal: tuple[JournalEntry, ...] = ()
    certificates: tuple[tuple[int, Mapping[str, Any], str, float], ...] = ()
    budgets: dict[int, tuple[Schedule, Rates | None]] = field(default_factory=dict)  # by generation
    orders: Mapping[str, Any] = field(default_factory=dict)
    comparisons: dict[int, ComparisonRecord] = field(default_factory=dict)
    scans: dict[int, tuple[int, Scan]] = field(default_factory=dict)  # with its comparison
    suspects: dict[int, tuple[int, Suspect]] = field(default_factory=dict)
    findings: dict[int, tuple[int, Found]] = field(default_factory=dict)
    heads: dict[Head, None] = field(default_factory=dict)
    is_prepared: bool = False

    def copy(self) -> State:
        """A transaction's own state: the dictionaries are copied, what they hold is frozen."""
        twin = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict):
                setattr(twin, name, dict(value))
        return twin

    def row(self, table: Table, row_id: int) -> ReplicaRow | None:
        key = self.keys.get((table.id, row_id))
        return None if key is None else self.rows[table.id, key]

    def live_rows(self, table: Table) -> dict[Key, ReplicaRow]:
        return {k: r for (t, k), r in sorted(self.rows.items()) if t == table.id and r.live}


class Sequences:
    """Counters that outlive a rollback."""

    def __init__(self) -> None:
        self.row, self.range, self.table, self.generation, self.pick = (itertools.count(1) for _ in range(5))
        self.comparison, self.scan, self.suspect, self.finding = (itertools.count(1) for _ in range(4))
        self.last_seq = 0

    def next_seq(self) -> int:
        self.last_seq += 1
        return self.last_seq


@dataclass
class Rules:
    """What the twin is told because it cannot evaluate SQL: `where` per alias, with the columns that it reads."""

    where: dict[str, tuple[tuple[str, ...], Where]] = field(default_factory=dict)
    conditions: dict[str, tuple[tuple[str, ...], Where]] = field(default_factory=dict)  # an operator's, by their text

    def wanted(self, table: Table, values: Values | None) -> bool:
        """live and `where` true; unknown, or a missing column, counts as false."""
        if values is None:
            return False
        return table.where is None or self.holds(table, values, *self.where[table.alias])

    def holds(self, table: Table, values: Values, columns: tuple[str, ...], predicate: Where) -> bool:
        """Whether it is true; a missing column that it reads makes it unknown."""
        known: dict[str, Known] = {}
        for name, value in zip(table.names, values, strict=True):
            if value is UNAVAILABLE and name in columns:
                return False
            if not isinstance(value, str) and value is not None:
                continue
            known[name] = value
        return predicate(known) is True


@dataclass
class Context:
    """One transaction: its state, and what it has locked so far."""

    state: State
    sequences: Sequences
    rules: Rules
    clock: VirtualClock
    holds_migration: bool = False
    locked_keys: set[tuple[int, Key]] = field(default_factory=set)
    intrusions: list[Callable[[State], None]] = field(default_factory=list)
    began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.began_s = self.clock()

    def need_migration(self) -> None:
        """Ports contract: a replica write without it can miss a generation that is made meanwhile."""
        if not self.holds_migration:
            raise AssertionError("replica write in a transaction that did not call hold_migration")

    def need_row(self, table: Table, row_id: int) -> None:
        """Ports contract: chunks and work are written under the replica row's lock."""
        key = self.state.keys.get((table.id, row_id))
        if key is not None and (table.id, key) not in self.locked_keys:
            raise AssertionError(f"{table.alias} row {row_id} is written without its lock")
