"""What a comparison finds: row against row, chunks against their document, and when a difference counts.

Nothing here reads: digests come from both databases, one for each used column. A difference counts once the replica
stood still while the source's row was read and a barrier written after that passed: then the replica holds the row as
it was read, or a later state, which would have changed its position. A row that agrees in any look is settled.

Pure. Kinds are ids: text, JSON value, metric label and anchor in the docs at once; the worst first.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.core.model import Key, Position, RowState, Snapshot, Table

LENGTH_TOLERANCE = 0.01  # of a vector of length 1: half precision is off by less, another model or none by more


class Kind(enum.Enum):
    """What is wrong with a row or a chunk, the worst first."""

    ROW_EXTRA = "row-extra"  # deleted at the source, still found
    FILTER_STALE = "filter-stale"  # a filter column, or one that `where` reads: who may see it
    CHUNK_ORPHAN = "chunk-orphan"  # of no live, wanted row
    CHUNK_FILTERS = "chunk-filters"  # a chunk's copy of a filter column is not its row's
    ROW_MISSING = "row-missing"
    TEXT_STALE = "text-stale"
    ROW_INCOMPLETE = "row-incomplete"  # a column is still unavailable
    METADATA_STALE = "metadata-stale"
    CHUNK_STALE = "chunk-stale"  # its text is not the document's
    CHUNK_MISSING = "chunk-missing"
    CHUNK_SURPLUS = "chunk-surplus"
    CONTRACT_WRONG = "contract-wrong"  # the right text, embedded under another contract
    VECTOR_DIMENSION = "vector-dimension"
    VECTOR_NOT_FINITE = "vector-not-finite"
    VECTOR_ZERO = "vector-zero"
    VECTOR_NORM = "vector-norm"
    VECTOR_SHARED = "vector-shared"  # one vector for different texts, and not this one's
    VECTOR_DRIFTED = "vector-drifted"  # embedded again, the text gets another vector

    @property
    def is_of_row(self) -> bool:
        """Of the replica's row; else of a generation's chunk."""
        return self in _OF_ROWS

    @property
    def is_of_chunk_itself(self) -> bool:
        """The chunk is to be deleted before it is made again: its digest would keep it."""
        return self in _SPOILT


_OF_ROWS = frozenset(
    (Kind.ROW_EXTRA, Kind.FILTER_STALE, Kind.ROW_MISSING, Kind.TEXT_STALE, Kind.ROW_INCOMPLETE, Kind.METADATA_STALE)
)
_SPOILT = frozenset(
    (
        Kind.CHUNK_ORPHAN,
        Kind.CHUNK_STALE,
        Kind.CONTRACT_WRONG,
        Kind.VECTOR_DIMENSION,
        Kind.VECTOR_NOT_FINITE,
        Kind.VECTOR_ZERO,
        Kind.VECTOR_NORM,
        Kind.VECTOR_SHARED,
        Kind.VECTOR_DRIFTED,
    )
)

Columns = tuple[bytes | None, ...]  # a digest for each of `Table.columns`; None for null


@dataclass(frozen=True, slots=True)
class ReplicaLook:
    """A replica row, read without its lock. columns: meaningless for those in `missing`, and of a row tombstone.
    xid: the source's transaction of its position."""

    row_id: int
    live: bool
    position: Position | None
    missing: frozenset[str]
    columns: Columns
    xid: int | None = None


def judge_row(table: Table, source: Columns | None, replica: ReplicaLook | None) -> tuple[Kind, ...]:
    """What differs between the source's row (None: no such row) and the replica's, the worst first; () where equal."""
    is_live = replica is not None and replica.live
    if source is None or replica is None or not is_live:
        if source is None:
            return (Kind.ROW_EXTRA,) if is_live else ()
        return (Kind.ROW_MISSING,)
    differing = {
        name
        for name, ours, theirs in zip(table.names, replica.columns, source, strict=True)
        if ours != theirs and name not in replica.missing
    }
    guarding, text = {*table.filters, *table.where_columns}, set(table.text_columns)
    kinds = []
    if differing & guarding:
        kinds.append(Kind.FILTER_STALE)
    if differing & text:
        kinds.append(Kind.TEXT_STALE)
    if replica.missing:
        kinds.append(Kind.ROW_INCOMPLETE)
    if differing - guarding - text:
        kinds.append(Kind.METADATA_STALE)
    return tuple(kinds)


def is_shown(row: ReplicaLook | RowState | None, snapshot: Snapshot, epoch: int) -> bool:
    """Whether what the source shows in `snapshot` is no older than the last change of a replica row. That of an
    earlier epoch was visible, or belongs to a log that is gone, before the epoch began; its transaction's number says
    nothing: the source may have given it to another one, or not have reached it again. epoch: of before the read."""
    if row is None or row.xid is None or row.position is None or row.position.epoch < epoch:
        return True
    return snapshot.sees(row.xid)


class Judgement(enum.Enum):
    """What a second look makes of a key that differed."""

    AGREES = "agrees"
    DIFFERS = "differs"
    MOVING = "moving"  # look again


def confirm(
    table: Table, before: ReplicaLook | None, source: Columns | None, after: ReplicaLook | None
) -> tuple[Judgement, tuple[Kind, ...]]:
    """before: read before `source` was; after: read when a barrier that was written after `source` was read has
    passed. A row that was deleted at the source without leaving anything may have come and gone between two looks:
    equal looks rule that out, since every event that is applied moves the position."""
    kinds = judge_row(table, source, after)
    if not kinds:
        return Judgement.AGREES, ()
    return (Judgement.DIFFERS, kinds) if before == after else (Judgement.MOVING, kinds)


# --- chunks


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored chunk. digest: as stored; derived: of the stored text under the contract; norm: Euclidean, NaN or
    infinite where a value is not finite."""

    n: int
    digest: bytes
    derived: bytes
    filters_differ: bool
    dimensions: int
    norm: float


@dataclass(frozen=True, slots=True)
class VectorRule:
    """What the contract says of a vector alone."""

    dimensions: int
    normalised: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """n: the chunk's number."""

    kind: Kind
    n: int


def judge_chunks(
    expected: Sequence[bytes] | None, stored: Sequence[Piece], rule: VectorRule, *, is_owed: bool
) -> list[Fault]:
    """What is wrong with a row's chunks, read in one snapshot with its row and its work, in the order of n.

    expected: the digests of the row's document in order; None: no live, wanted row, so every chunk is an orphan.
    is_owed: the row has a work entry. Whatever follows from its document is then still on its way; a chunk that
    contradicts itself is not: its digest would keep it.
    """
    if expected is None:
        return [Fault(Kind.CHUNK_ORPHAN, piece.n) for piece in stored]
    faults: list[Fault] = []
    for piece in sorted(stored, key=lambda p: p.n):
        if piece.filters_differ:
            faults.append(Fault(Kind.CHUNK_FILTERS, piece.n))
        kind = _text_fault(expected, piece, is_owed=is_owed) or vector_fault(piece, rule)
        if kind is not None:
            faults.append(Fault(kind, piece.n))
    if not is_owed:
        there = {piece.n for piece in stored}
        faults += [Fault(Kind.CHUNK_MISSING, n) for n in range(len(expected)) if n not in there]
    return sorted(faults, key=lambda fault: fault.n)


def _text_fault(expected: Sequence[bytes], piece: Piece, *, is_owed: bool) -> Kind | None:
    if is_owed:
        return None if piece.derived == piece.digest else Kind.CHUNK_STALE
    if not 0 <= piece.n < len(expected):
        return Kind.CHUNK_SURPLUS
    wanted = expected[piece.n]
    if piece.derived != wanted:
        return Kind.CHUNK_STALE
    return None if piece.digest == wanted else Kind.CONTRACT_WRONG


def vector_fault(piece: Piece, rule: VectorRule) -> Kind | None:
    """What a stored vector shows by itself."""
    if piece.dimensions != rule.dimensions:
        return Kind.VECTOR_DIMENSION
    if not math.isfinite(piece.norm):
        return Kind.VECTOR_NOT_FINITE
    if piece.norm == 0:
        return Kind.VECTOR_ZERO
    if rule.normalised and abs(piece.norm - 1) > LENGTH_TOLERANCE:
        return Kind.VECTOR_NORM
    return None


# --- the record of a comparison


class State(enum.Enum):
    """running: it may be resumed."""

    RUNNING = "running"
    CLEAN = "clean"
    DIFFERS = "differs"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Found:
    """One difference. generation_id: of a chunk, None of a row. key: None of an orphan whose row is gone. n: chunk.
    is_repaired: mended and looked at again."""

    kind: Kind
    table_id: int
    key: Key | None
    generation_id: int | None = None
    row_id: int | None = None
    n: int | None = None
    is_repaired: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison as it is recorded. generations: ids of those whose chunks are compared. mark: number of the newest
    journal entry when it began: it closes breaks up to that. began_lsn, ended_lsn: of the barrier that passed before
    the first row was read, and of the last one. faults: what still broke continuity when it began or ended; such a
    comparison closes nothing. rows, chunks: compared. open: differences that are not mended, by kind. unsettled: keys
    that moved at every look. sampled: chunks embedded again; None: not asked for or not made. *_age_s: by the
    target's clock."""

    id: int
    state: State
    generations: tuple[int, ...]
    mark: int
    began_at: str
    began_lsn: int
    began_age_s: float
    ended_at: str | None = None
    ended_lsn: int | None = None
    faults: tuple[str, ...] = ()
    rows: int = 0
    chunks: int = 0
    open: Mapping[str, int] | None = None
    repaired: Mapping[str, int] | None = None
    unsettled: int = 0
    sampled: int | None = None
    tokens: int = 0
    breaks_closed: int = 0


def outcome(open: Mapping[str, int], unsettled: int) -> State:
    """Of a comparison that has looked at everything."""
    return State.CLEAN if not any(open.values()) and not unsettled else State.DIFFERS
