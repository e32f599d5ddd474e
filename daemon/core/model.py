"""The nouns: tables, keys, values, positions, change events, rows and work, as frozen values.

Values are canonical text: what Postgres prints for the value under the pinned session settings of
`connectors.postgres_source.SESSION` (ISO dates, UTC, shortest floats, hex bytea). Debezium's form of a value and the
driver's are brought to this one form by `core.canonical`, so two equal values are equal strings. The target parses
the text into the column's own type.

A row's values are a tuple in the order of `Table.columns`. Nothing here knows a driver, a topic or SQL.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Unavailable(enum.Enum):
    """The value of a column that an event does not carry (unchanged TOAST)."""

    UNAVAILABLE = "unavailable"

    def __repr__(self) -> str:
        return "UNAVAILABLE"


UNAVAILABLE = Unavailable.UNAVAILABLE
Value = str | None | Unavailable
Known = str | None
Values = tuple[Value, ...]
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One used column. `type` is the source's `format_type()` text, e.g. `numeric(10,2)`; `target_type` what the
    replica stores it as (enums as text, domains as their base type, everything else unchanged)."""

    name: str
    type: str
    target_type: str
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """One source table of a migration, as configured and as found in the source's catalogue.

    columns: all used columns, key columns first, in the order that every `Values` tuple follows.
    key: names of the primary key's columns in key order. text_columns: columns of the text template, in columns' order.
    where: SQL condition over used columns, evaluated by the target; where_columns: the columns it reads.
    full_identity: the source table has REPLICA IDENTITY FULL.
    """

    id: int
    alias: str
    schema: str
    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    template: str
    text_columns: tuple[str, ...]
    filters: tuple[str, ...] = ()
    where: str | None = None
    where_columns: tuple[str, ...] = ()
    full_identity: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)

    def key_of(self, values: tuple[Value, ...]) -> Key:
        """The key of a row whose key columns are known. Key columns come first in `columns`."""
        return tuple(str(v) for v in values[: len(self.key)])


class Position(NamedTuple):
    """Place of a change in the source's log. `commit_lsn` is `source.sequence[0]`: the last commit decoded before it
    (0 for null: legal only before the first commit the connector saw); `lsn` is `source.lsn`. Compared as a tuple."""

    epoch: int
    commit_lsn: int
    lsn: int


class TopicPartition(NamedTuple):
    topic: str
    partition: int


class Op(enum.Enum):
    CREATE = "c"
    UPDATE = "u"
    DELETE = "d"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an event was read and what the connector says of itself. run_id changes at each restart of its task."""

    at: TopicPartition
    offset: int
    run_id: str | None
    source_ts_ms: int | None  # the source's commit time, source's clock
    position: Position
    xid: int | None  # 32 bits as in the event: widen before comparing with a snapshot


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """One decoded row change. after is None for a delete. `from_key_change` marks the create half of a key change."""

    table: str  # alias
    op: Op
    key: Key
    after: Values | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class TruncateEvent:
    table: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class PulseEvent:
    """A numbered pulse or a barrier of a migration, as it came back through Kafka. number is None for a barrier."""

    migration: str
    number: int | None
    token: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class ReadEvent:
    """`op=r` in mid-run: somebody re-created the connector with a snapshot. A break, never applied."""

    table: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Ignored:
    """A record that says nothing about the replica: Kafka tombstone, heartbeat, another table, another prefix."""

    run_id: str | None = None


Decoded = ChangeEvent | TruncateEvent | PulseEvent | ReadEvent | Ignored


class Snapshot(NamedTuple):
    """A source snapshot in full (64-bit) transaction ids, as `pg_current_snapshot()` gives it."""

    xmin: int
    xmax: int
    in_progress: frozenset[int]

    def sees(self, xid: int) -> bool:
        """Whether what transaction `xid` committed is visible in this snapshot."""
        return xid < self.xmax and xid not in self.in_progress


@dataclass(frozen=True, slots=True)
class RowState:
    """What the replica holds for a key, read under the row's lock. position is None for a copied row.

    missing: names of columns still unavailable; missing_xid: full xid of the event that left them so.
    """

    row_id: int
    live: bool
    position: Position | None
    xid: int | None
    missing: frozenset[str] = frozenset()
    missing_xid: int | None = None


class WriteKind(enum.Enum):
    """The statement shapes of the table in DESIGN.md section 5."""

    INSERT = "insert"  # absent row becomes live
    REPLACE = "replace"  # every column from the event; unavailable columns become missing
    UPDATE = "update"  # live row: known columns only
    BURY = "bury"  # becomes a row tombstone (inserted where absent)


@dataclass(frozen=True, slots=True)
class RowWrite:
    """One row to write. row_id is None where the key is absent. values: None for BURY. gone: a delete happened on the
    way, so whatever was derived from the stored row must go even if the text ends up equal."""

    kind: WriteKind
    key: Key
    row_id: int | None
    values: Values | None
    position: Position | None
    xid: int | None
    gone: bool = False
    changed_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """What one row's write did, as the database saw it: old row against new row under the same lock.

    wanted: live and `where` true (unknown counts as false). text_differs: a text column's value or its
    being-missing differs (true for a row that was not live before). filters_differ: a filter column differs.
    """

    row_id: int
    key: Key
    was_live: bool
    is_live: bool
    was_wanted: bool
    is_wanted: bool
    text_differs: bool
    filters_differ: bool
    gone: bool = False
    replaced: bool = False
    changed_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A set of vectors under one contract. `fed`: the stream writes work for it. phase: loading | indexing | live."""

    id: int
    name: str
    contract_id: str
    dimensions: int
    vector_type: str  # vector | halfvec
    metric: str  # cosine | l2 | ip
    phase: str = "loading"
    swept: bool = False
    fed: bool = True

    @property
    def role(self) -> str:
        """What its embedders are called where a halt is recorded."""
        return f"embed:{self.id}"


REPLICATION = ("stream", "backfill")  # roles whose halt stops replication


class HaltNote(NamedTuple):
    """What an open halt says. message: the evidence, what was and what is. command: what goes on from there, with
    `{migration}` in it; None where the hint is all there is to do."""

    message: str
    hint: str
    command: str | None = None


class WorkState(enum.Enum):
    WAITING = "waiting"
    REFUSED = "refused"
    ACCEPTED = "accepted"


class ClaimOrder(enum.Enum):
    """Which work a claim takes first."""

    LIVE_FIRST = "live first"
    BACKFILL_FIRST = "backfill first"  # now and then, so that live work never starves it
    LIVE_ONLY = "live only"  # while backfill work is paused


@dataclass(frozen=True, slots=True)
class Claim:
    """Work taken by one worker until `lease` passes. seq is the `newest_seq` that the claim statement returned.
    afresh: the row's stored vectors do not count; every chunk is embedded again."""

    generation_id: int
    table_id: int
    row_id: int
    seq: int
    attempts: int
    live: bool = True
    afresh: bool = False


@dataclass(frozen=True, slots=True)
class Tally:
    """What one batch came to, counted in its own transaction. rows: with chunks written or kept; blank: of them,
    rows without any. tokens: billed. avoided: tokens of chunks that kept their vectors, as the tokenizer counts."""

    rows: int = 0
    blank: int = 0
    tokens: int = 0
    avoided: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A refused or accepted entry. reason: status, code and parameter only. age_s: since it was refused."""

    table: str
    key: Key
    row_id: int
    state: WorkState
    reason: str
    attempts: int
    age_s: float | None


@dataclass(frozen=True, slots=True)
class Rates:
    """What a provider permits in a minute. None: not known, hence not limited by us."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Canary:
    """The vector of the canary text when the generation was first embedded, and the model that the answer named."""

    vector: tuple[float, ...]
    model: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A work entry as read under its row's lock."""

    row_id: int
    oldest_seq: int
    newest_seq: int
    state: WorkState
    claimed_by: str | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a row's document. digest: sha256 of the text that is embedded, under the contract."""

    row_id: int
    n: int
    text: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Which log we follow. All values as text or int, compared for equality."""

    system_identifier: str
    timeline: int
    database: str
    slot: str
    publication: str


@dataclass(frozen=True, slots=True)
class FeedIdentity:
    """Which Kafka we read. topics: topic -> (topic id, partition count)."""

    cluster_id: str
    topics: dict[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceTableState:
    """floor, truncate position and count, and whether the backfill of the table is complete."""

    table: Table
    floor: int
    truncated: Position | None
    truncate_count: int
    backfilled: bool


@dataclass(frozen=True, slots=True)
class Break:
    """A journaled end of continuity. id: error id such as `connector-restarted`; detail: numbers and names only."""

    id: str
    detail: Mapping[str, Any]
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """Work of one generation. *_seq None: none. oldest_age_s by the target's clock."""

    waiting_live: int
    waiting_backfill: int
    claimed: int
    refused: int
    accepted: int
    oldest_age_s: float | None
    rows_embedded: int
    tokens: int
    tokens_avoided: int
    rows_blank: int = 0
    requests: int = 0

    @property
    def waiting(self) -> int:
        """Entries that are to be embedded, claimed ones among them."""
        return self.waiting_live + self.waiting_backfill + self.claimed


@dataclass(frozen=True, slots=True)
class IndexState:
    """The HNSW index of one chunk table. progress: (phase, blocks_done, blocks_total, tuples_done, tuples_total)."""

    table: str
    exists: bool
    valid: bool
    used_by_plan: bool | None
    rows: int
