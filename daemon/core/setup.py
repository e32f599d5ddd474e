"""What each part must offer before a migration may begin, judged from what the part says of itself.

`doctor` prints the answers and `run` refuses to start on an error. Every problem has a stable id, the place, what is
wrong and the command or setting that mends it; all problems are found at once. Pure: the adapters observe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from daemon.errors import Problem

OLDEST_POSTGRES = 140000
OLDEST_PGVECTOR = (0, 8, 4)
DAY_MS = 24 * 3600 * 1000
OPERATIONS = frozenset({"insert", "update", "delete", "truncate"})
LARGE_MESSAGE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SlotState:
    """The replication slot as the source reports it; None where it cannot be told. session: which connection reads
    from it, different after each reconnect; None while nobody does. left_bytes: that may still be written before the
    slot's log is in danger, None where there is no limit. cause: why it was invalidated, in Postgres's word."""

    exists: bool
    active: bool
    confirmed_lsn: int | None
    retained_bytes: int | None
    wal_status: str | None
    limit_bytes: int | None  # max_slot_wal_keep_size, None for unlimited
    session: str | None = None
    left_bytes: int | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class PublishedTable:
    schema: str
    name: str
    has_key: bool
    has_column_list: bool
    has_row_filter: bool


@dataclass(frozen=True, slots=True)
class SourceSetup:
    """What `doctor` needs to know of the source. publication_operations None: there is no such publication."""

    version: int  # server_version_num
    wal_level: str
    in_recovery: bool
    publication_operations: frozenset[str] | None  # insert, update, delete, truncate
    published: tuple[PublishedTable, ...]
    slot: SlotState


@dataclass(frozen=True, slots=True)
class TargetSetup:
    """What `doctor` needs to know of the target. Versions None where absent."""

    version: int
    vector_version: str | None
    vector_available: str | None  # what CREATE EXTENSION would install
    can_create: bool  # may create schemas
    schema_version: int | None  # of the control schema; None where there is none
    known_schema: int  # the newest control schema this program knows
    foreign_schema: bool  # a schema of the migration's name exists and is not ours


@dataclass(frozen=True, slots=True)
class TopicSetup:
    """A topic as the broker has it; partitions 0 where it does not exist."""

    name: str
    partitions: int
    config: Mapping[str, str]


def source_problems(
    setup: SourceSetup, slot: str, publication: str, tables: Sequence[tuple[str, str]]
) -> Iterator[Problem]:
    """tables: configured (schema, name) pairs."""
    if setup.version < OLDEST_POSTGRES:
        yield Problem("source-too-old", "source", f"is Postgres {setup.version // 10000}", "14 or later is needed")
    if setup.in_recovery:
        hint = "name the primary in [source] dsn: pulses are written there"
        yield Problem("source-standby", "source", "is a standby", hint)
    if setup.wal_level != "logical":
        message = f"wal_level is {setup.wal_level}"
        yield Problem("wal-level", "source", message, "ALTER SYSTEM SET wal_level = logical, then restart the source")
    yield from publication_problems(setup, publication, tables)
    yield from _slot_problems(setup.slot, slot)


def publication_problems(setup: SourceSetup, publication: str, tables: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    """Why the publication does not send every change of every table; tables: (schema, name) pairs."""
    place = f"publication {publication}"
    listed = ", ".join(f"{schema}.{name}" for schema, name in tables)
    if setup.publication_operations is None:
        hint = f"CREATE PUBLICATION {publication} FOR TABLE {listed}"
        yield Problem("publication-missing", place, "there is no such publication", hint)
        return
    if absent := OPERATIONS - setup.publication_operations:
        message = f"does not publish {', '.join(sorted(absent))}"
        hint = f"ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')"
        yield Problem("publication-operations", place, message, hint)
    published = {(t.schema, t.name): t for t in setup.published}
    for schema, name in tables:
        found = published.get((schema, name))
        if found is None:
            hint = f"ALTER PUBLICATION {publication} ADD TABLE {schema}.{name}"
            yield Problem("publication-table-missing", place, f"lacks {schema}.{name}", hint)
        elif found.has_column_list:
            message = f"publishes {schema}.{name} with a column list"
            hint = "publish whole rows: with a list a column can go missing unseen"
            yield Problem("publication-column-list", place, message, hint)
        elif found.has_row_filter:
            message = f"publishes {schema}.{name} with a row filter"
            yield Problem("publication-row-filter", place, message, "publish every row; use `where` in the config")
    for t in setup.published:
        if not t.has_key:
            message = f"has the table {t.schema}.{t.name}, which has no primary key"
            hint = "take it out of the publication: its updates and deletes fail at the source"
            yield Problem("publication-keyless", place, message, hint)


def _slot_problems(state: SlotState, slot: str) -> Iterator[Problem]:
    place = f"slot {slot}"
    if not state.exists:
        hint = "start the connector once: Debezium creates its slot"
        yield Problem("slot-missing", place, "there is no such replication slot", hint)
    elif state.wal_status == "lost":
        hint = "the log it needs is gone: make slot and connector again (docs/howto/troubleshoot.md#the-slot-is-lost)"
        yield Problem("slot-lost", place, f"was invalidated: {state.cause or 'its log was removed'}", hint)
    elif not state.active:
        hint = "start the connector; until then the source keeps its log for it"
        yield Problem("slot-inactive", place, "nobody reads from it", hint, "warning")
    if state.exists and state.limit_bytes is None:
        hint = "set max_slot_wal_keep_size so that a stopped connector cannot fill the source's disk"
        yield Problem("slot-unlimited", place, "the source keeps log for it without limit", hint, "warning")


def target_problems(setup: TargetSetup, name: str) -> Iterator[Problem]:
    """name: of the migration, and of its schema."""
    if setup.version < OLDEST_POSTGRES:
        yield Problem("target-too-old", "target", f"is Postgres {setup.version // 10000}", "14 or later is needed")
    vector = setup.vector_version
    if vector is None:
        hint = (
            "CREATE EXTENSION vector, as a role that may"
            if setup.vector_available
            else "install pgvector 0.8.4 or later on the server, then CREATE EXTENSION vector"
        )
        yield Problem("vector-missing", "target", "the vector extension is not installed in this database", hint)
    elif _numbers(vector) < OLDEST_PGVECTOR:
        hint = "install pgvector 0.8.4 or later, then ALTER EXTENSION vector UPDATE"
        yield Problem("vector-too-old", "target", f"pgvector is {vector}", hint)
    if setup.foreign_schema:
        hint = "choose another `name`; revector writes only into schemas of its own"
        yield Problem("schema-foreign", "target", f"schema {name} exists and is not revector's", hint)
    if not setup.can_create and setup.schema_version is None:
        yield Problem(
            "target-create", "target", "this role may not create schemas", "GRANT CREATE ON DATABASE ... TO the role"
        )
    if setup.schema_version is not None and setup.schema_version > setup.known_schema:
        message = f"its control schema is version {setup.schema_version}, this program knows {setup.known_schema}"
        hint = "use the newer revector in every process, and for every command"
        yield Problem("schema-newer", "target", message, hint)


def topic_problems(topics: Sequence[TopicSetup]) -> Iterator[Problem]:
    """Absent topics, and topics that would lose or refuse records."""
    for topic in topics:
        place = f"topic {topic.name}"
        if topic.partitions == 0:
            hint = "check kafka.topic_prefix, or create the topic: a quiet table has none otherwise"
            yield Problem("topic-missing", place, "does not exist", hint)
            continue
        policy = topic.config.get("cleanup.policy", "delete")
        if policy != "delete":
            message = f"cleanup.policy is {policy}: compaction drops changes that positions need"
            yield Problem("topic-compacted", place, message, "set cleanup.policy=delete")
        retention = int(topic.config.get("retention.ms", "-1"))
        if 0 <= retention < DAY_MS:
            message = f"retention.ms is {retention}: a stop of a day loses changes"
            yield Problem("topic-retention", place, message, "set retention.ms to several days", "warning")
        largest = int(topic.config.get("max.message.bytes", str(LARGE_MESSAGE)))
        if largest < LARGE_MESSAGE:
            message = f"max.message.bytes is {largest}: one larger document stops the connector"
            yield Problem("topic-message-size", place, message, f"set max.message.bytes={LARGE_MESSAGE}", "warning")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
