"""The settings of one migration: every key with its default, its unit and the reason, once.

Frozen values, checked when they are made: a `Settings` that exists can be used. The configuration reference, the JSON
schema and the test on `config.example.toml` are derived from these classes; `daemon.config` fills them from file,
environment and flags.

A field's description says what it is and why the default is what it is. Contract fields of `[[generation]]` have no
"better" value: changing one asks for another generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from daemon.core import contract
from daemon.settings_checks import (
    Dsn,
    Fault,
    Frozen,
    HttpUrl,
    Listen,
    MigrationName,
    Name,
    Names,
    Properties,
    Relation,
    Secret,
    Template,
    Text,
    Timezone,
    faults,
    relation,
)
from daemon.settings_generation import GenerationSettings


class SourceSettings(Frozen):
    """The source database, its primary."""

    dsn: Dsn = Field(
        description="libpq connection string; PG* variables, service and password files work. "
        "Off this machine `sslmode=verify-full` is added where none is chosen."
    )
    slot: str = Field(
        pattern=r"^[a-z0-9_]{1,63}$", description="Replication slot of the Debezium connector (its `slot.name`)."
    )
    publication: Text = Field(description="Publication of the connector (its `publication.name`).")


class KafkaSettings(Frozen):
    """The change feed: what Debezium wrote to Kafka."""

    topic_prefix: str = Field(pattern=r"^[A-Za-z0-9._-]{1,200}$", description="`topic.prefix` of the connector.")
    properties: Properties = Field(
        description='Settings of librdkafka, unchanged; "bootstrap.servers" is required, secrets are references. '
        'Off this machine "security.protocol" must be chosen.'
    )


class ConnectSettings(Frozen):
    """Kafka Connect's REST interface: the connector's committed offset is part of every proof."""

    url: HttpUrl = Field(description="Base URL of the REST interface.")
    connector: Text = Field(description="Name of the Debezium connector.")
    username: Text | None = Field(default=None, description="User for basic authentication; none is sent without it.")
    password: Secret | None = Field(default=None, description="Password for basic authentication, a reference.")

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if (self.username is None) != (self.password is None):
            missing = "password" if self.password is None else "username"
            raise faults([Fault((), "connect-credentials", f"{missing} is missing", "set username and password")])
        return self


class TargetSettings(Frozen):
    """The database with pgvector. Replica, vectors and control tables live in it."""

    dsn: Dsn = Field(description="libpq connection string, as in [source].")


class TableSettings(Frozen):
    """One source table."""

    source: Relation = Field(description="Schema and table in the source.")
    alias: Name = Field(
        default_factory=lambda data: relation(data["source"])[1] if "source" in data else "unnamed",
        description="Unique name within the migration and of the replica's relation. Default: the table's name.",
    )
    text: Template = Field(description="Text template; {column} stands for a column's value, {{ and }} for braces.")
    columns: Names = Field(
        default=(), description="More columns to copy, for readers. Keys and text columns always are."
    )
    filters: Names = Field(
        default=(),
        description="Columns copied to every chunk and indexed: selective filters lose recall through a join.",
    )
    where: Text | None = Field(
        default=None, description="SQL condition over used columns; rows for which it is not true get no vectors."
    )

    @property
    def relation(self) -> tuple[str, str]:
        """(schema, table) as the source's catalogue spells them."""
        return relation(self.source)

    @property
    def text_columns(self) -> tuple[str, ...]:
        return contract.placeholders(self.text)


class QuietHours(Frozen):
    """Hours in which backfill work leaves the provider and the databases to others. Live changes go on."""

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(
        default=("mon", "tue", "wed", "thu", "fri"),
        strict=False,
        min_length=1,
        description="Days on which they begin.",
    )
    start: str = Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$", description="First minute, such as 08:00.")
    end: str = Field(
        pattern=r"^([01]\d|2[0-3]):[0-5]\d$", description="Minute after the last; before `start`: of the next day."
    )
    timezone: Timezone = Field(default="UTC", description="IANA name such as Europe/Berlin.")
    backfill_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        strict=False,
        description="Part of each minute in which backfill work may begin; 0 pauses it.",
    )

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.start == self.end:
            hint = "choose another end; 00:00 to 23:59 is a day but for its last minute"
            raise faults([Fault(("end",), "quiet-hours-empty", "is the minute at which they begin", hint)])
        return self


class LimitSettings(Frozen):
    """How much at once. The defaults suit two cores and rows of a few KB."""

    window_records: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        json_schema_extra={"unit": "records"},
        description="Most records, or 16 MB of them, in one window of the stream, which share a transaction's cost.",
    )
    window_wait_ms: int = Field(
        default=50,
        ge=1,
        le=10_000,
        json_schema_extra={"unit": "ms"},
        description="Longest wait for a window to fill: what an idle stream adds to freshness.",
    )
    page_rows: int = Field(
        default=2000,
        ge=1,
        le=100_000,
        json_schema_extra={"unit": "rows"},
        description="Rows of one backfill page: short enough not to hold the source's vacuum back.",
    )
    backfill_workers: int = Field(
        default=2,
        ge=1,
        le=64,
        json_schema_extra={"unit": "tasks"},
        description="Key ranges copied at once by one process: each takes a connection on either side.",
    )
    lease_s: int = Field(
        default=30,
        ge=5,
        le=3600,
        json_schema_extra={"unit": "s"},
        description="Lease of the stream and of a backfill range: how long a dead owner is waited for.",
    )
    claim_lease_s: int = Field(
        default=60,
        ge=10,
        le=86_400,
        json_schema_extra={"unit": "s"},
        description="Lease of claimed work, renewed while its worker lives: how long rows of a dead worker wait.",
    )


class PulseSettings(Frozen):
    """The numbered barriers that measure freshness and continuity."""

    interval_s: int = Field(
        default=5,
        ge=1,
        le=3600,
        json_schema_extra={"unit": "s"},
        description="Time between pulses: the resolution of freshness. One small WAL record each.",
    )


class VerifySettings(Frozen):
    """How `revector verify` compares."""

    workers: int = Field(
        default=2,
        ge=1,
        le=16,
        json_schema_extra={"unit": "tasks"},
        description="Ranges that are compared side by side, each with its own connections.",
    )
    page_rows: int = Field(
        default=5000,
        ge=100,
        le=50_000,
        json_schema_extra={"unit": "rows"},
        description="Rows of one digest page: some milliseconds of either database.",
    )
    rows_per_second: int = Field(
        default=20_000,
        ge=100,
        json_schema_extra={"unit": "rows/s"},
        description="Most rows read in a second, at the source or in the target, by all workers together.",
    )
    max_age_s: int = Field(
        default=86_400,
        ge=60,
        json_schema_extra={"unit": "s"},
        description="Age beyond which a comparison no longer counts in a proof, from its begin.",
    )


class HttpSettings(Frozen):
    """/livez, /readyz, /v1/status, /metrics and / of a running process."""

    listen: Listen = Field(
        default="127.0.0.1:9464",
        description="Address and port; without authentication, hence loopback. Port 0: any free one.",
    )

    @property
    def address(self) -> tuple[str, int]:
        """(host, port)."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class LogSettings(Frozen):
    """What a running process says on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity that is written."
    )
    format: Literal["console", "json"] = Field(
        default="console", description="For a person, or one JSON object per line."
    )


class Settings(Frozen):
    """One migration."""

    name: MigrationName = Field(
        description="Name of the migration and of its schema in the target: a-z, 0-9 and _, at most 31 characters."
    )
    source: SourceSettings
    kafka: KafkaSettings
    connect: ConnectSettings
    target: TargetSettings
    table: tuple[TableSettings, ...] = Field(strict=False, min_length=1, description="The source tables, one or more.")
    generation: tuple[GenerationSettings, ...] = Field(
        strict=False, min_length=1, description="The generations, one or more; the last is the one to cut over to."
    )
    limits: LimitSettings = LimitSettings()
    pulse: PulseSettings = PulseSettings()
    verify: VerifySettings = VerifySettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    quiet_hours: tuple[QuietHours, ...] = Field(
        default=(), strict=False, description="Hours in which backfill work is slowed or paused; none, one or more."
    )

    @model_validator(mode="after")
    def _relations_differ(self) -> Self:
        names = [g.name for g in self.generation]
        twice = [at for at, name in enumerate(names) if names.index(name) != at]
        hint = "each generation has a name of its own"
        found = [Fault(("generation", at, "name"), "generation-twice", "is another one's name", hint) for at in twice]
        found += _collisions(self.table, names)
        if found:
            raise faults(found)
        return self

    @property
    def candidate(self) -> GenerationSettings:
        """The generation to cut over to: the last one."""
        return self.generation[-1]

    @property
    def group_id(self) -> str:
        """Kafka's `group.id`."""
        return f"revector.{self.name}"

    def client_id(self, role: str) -> str:
        """Kafka's `client.id` of one role, such as `stream`."""
        return f"revector-{self.name}-{role}"

    def application_name(self, role: str) -> str:
        """Postgres' `application_name` of one role."""
        return f"revector:{self.name}:{role}"

    def contract_of(self, generation: GenerationSettings, tokenizer: str) -> contract.Contract:
        """The contract of a configured generation. tokenizer: identity of what cuts; read only where documents are
        cut."""
        shared = ("provider", "model", "revision", "dimensions", "vector_type", "metric", "normalised")
        prefixes = ("document_prefix", "query_prefix")
        fields: dict[str, Any] = {name: getattr(generation, name) for name in (*shared, *prefixes)}
        chunker = contract.Chunker()
        if generation.chunk_tokens is not None:
            limits = {"tokens": generation.chunk_tokens, "overlap": generation.chunk_overlap}
            chunker = contract.Chunker("tokens", contract.SPLITTER, limits, tokenizer)
        templates = {table.alias: table.text for table in self.table}
        return contract.Contract(templates=templates, chunker=chunker, **fields)


def _collisions(tables: tuple[TableSettings, ...], generations: Sequence[str]) -> Iterator[Fault]:
    """Tables of which a relation in the target would have the name of another's, or that are given twice."""
    owners: dict[str, int] = {}
    sources: dict[tuple[str, str], int] = {}
    for at, table in enumerate(tables):
        if sources.setdefault(table.relation, at) != at:
            yield Fault(("table", at, "source"), "table-twice", "another [[table]] has this source", "merge the two")
        chunks = [f"{table.alias}_{name}" for name in generations]
        names = (table.alias, *chunks, *(f"{name}_search" for name in chunks))
        if any(owners.setdefault(name, at) != at for name in names):
            message = "its relations in the target would have the names of another table's"
            yield Fault(("table", at, "alias"), "alias-taken", message, "choose another alias")
