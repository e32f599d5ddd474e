"""The settings of one migration: every key with its default, its unit and the reason, once.

Frozen values, checked when they are made: a `Settings` that exists can be used. The configuration reference, the JSON
schema and the test on `config.example.toml` are derived from these classes; `daemon.config` fills them from file,
environment and flags.

A field's description says what it is and why the default is what it is. Contract fields of `[[generation]]` have no
"better" value: changing one asks for another generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    ProviderUrl,
    Relation,
    Secret,
    Template,
    Text,
    Timezone,
    faults,
    relation,
)

OPENAI_URL = "https://api.openai.com/v1"

# pgvector: HNSW indexes up to 2 000 dimensions of vector, 4 000 of halfvec
MAX_DIMENSIONS: Mapping[str, int] = {"vector": 2000, "halfvec": 4000}


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


class GenerationLimits(Frozen):
    """What the provider permits one generation. Several processes share the two budgets through the target."""

    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra={"unit": "requests"},
        description="Budget of requests; where the provider's answers name a lower one, that one holds.",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra={"unit": "tokens"},
        description="Budget of tokens; where the provider's answers name a lower one, that one holds.",
    )
    request_inputs: int = Field(
        default=256,
        ge=1,
        le=2048,
        json_schema_extra={"unit": "inputs"},
        description="Most inputs of one request: OpenAI takes 2048, many servers take fewer.",
    )
    request_tokens: int = Field(
        default=50_000,
        ge=1,
        le=1_000_000,
        json_schema_extra={"unit": "tokens"},
        description="Most tokens of one request: OpenAI takes 300 000. What is in flight is lost in a crash.",
    )
    input_tokens: int | None = Field(
        default=None,
        ge=1,
        json_schema_extra={"unit": "tokens"},
        description="Most tokens of one input: a longer one is refused here, because some servers cut it off silently. "
        "Default: 8192 for OpenAI's models, no limit for others.",
    )
    in_flight: int = Field(
        default=8,
        ge=1,
        le=256,
        json_schema_extra={"unit": "requests"},
        description="Most requests at once of one process; fewer while the provider throttles or grows slow.",
    )
    request_timeout_s: int = Field(
        default=60,
        ge=1,
        le=3600,
        json_schema_extra={"unit": "s"},
        description="Longest wait for one answer of the provider: a full request takes a few seconds.",
    )


class GenerationSettings(Frozen):
    """A set of vectors to make; repeat for another one. The last is the one to cut over to."""

    name: Name = Field(description="Name of the generation, such as v2.")
    provider: Literal["openai", "azure", "local"] = Field(
        default="openai",
        description="OpenAI's protocol (its own or a compatible server), Azure OpenAI, or the embedded model, which "
        "needs no server.",
    )
    model: Text = Field(description="The provider's name of the model; at Azure, of the deployment.")
    dimensions: int = Field(ge=1, le=4000, description="Length of a vector: up to 2000 (vector) or 4000 (halfvec).")
    base_url: ProviderUrl = Field(
        default=OPENAI_URL,
        description="Base URL of the provider; https off this machine. Needed for azure, refused for local.",
    )
    api_key: Secret | None = Field(
        default=None,
        description="API key, a reference; none is sent without it. Needed for OpenAI and azure, refused for local.",
    )
    document_prefix: str = Field(default="", description="Put before every chunk; asked for by models such as E5.")
    query_prefix: str = Field(default="", description="What readers put before a query; recorded for them.")
    chunk_tokens: int | None = Field(
        default=None,
        ge=16,
        le=32_768,
        json_schema_extra={"unit": "tokens"},
        description="Most tokens of a chunk, prefix included. Not set: a row's document is one chunk.",
    )
    chunk_overlap: int = Field(
        default=0,
        ge=0,
        le=8192,
        json_schema_extra={"unit": "tokens"},
        description="Most tokens that a chunk repeats of the one before it.",
    )
    tokenizer: Text = Field(
        default="cl100k_base",
        description="What counts tokens: `cl100k_base`, `o200k_base`, or the path of a Hugging Face tokenizer.json, "
        "relative to this file.",
    )
    vector_type: Literal["vector", "halfvec"] = Field(
        default="vector", description="Type of the vector column: float32, or float16 at half the size."
    )
    metric: Literal["cosine", "l2", "ip"] = Field(
        default="cosine", description="Distance that readers and the index use."
    )
    normalised: bool = Field(default=True, description="Whether the provider's vectors have length 1, as OpenAI's do.")
    revision: str = Field(default="", description="Revision of the model, where the provider names one.")
    price: float | None = Field(
        default=None,
        ge=0,
        strict=False,
        json_schema_extra={"unit": "per million tokens"},
        description="What the provider charges, in your currency; `revector plan` and `status` compute with it.",
    )
    limits: GenerationLimits = GenerationLimits()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        found: list[Fault] = []
        most = MAX_DIMENSIONS[self.vector_type]
        if self.dimensions > most:
            message = f"an index on {self.vector_type} takes at most {most}"
            hint = "ask the model for fewer, or use halfvec"
            found.append(Fault(("dimensions",), "too-many-dimensions", message, hint))
        if self.provider == "local":
            message, hint = "the embedded model has neither address nor key", "take it away"
            unused = [key for key in ("base_url", "api_key") if key in self.model_fields_set]
            found += [Fault((key,), "local-without-server", message, hint) for key in unused]
        needs_key = self.provider == "azure" or (self.provider == "openai" and self.base_url == OPENAI_URL)
        if needs_key and self.api_key is None:
            hint = f'add api_key = {{ env = "{self.provider.upper()}_API_KEY" }}'
            found.append(Fault((), "api-key-missing", "this provider wants an api_key", hint))
        if self.provider == "azure" and self.base_url == OPENAI_URL:
            hint = 'such as base_url = "https://NAME.openai.azure.com/openai/v1"'
            found.append(Fault(("base_url",), "base-url-missing", "Azure OpenAI has an address of its own", hint))
        if self.chunk_tokens is not None and 2 * self.chunk_overlap > self.chunk_tokens:
            message, hint = "must be at most half of chunk_tokens", "lower it; a tenth is usual"
            found.append(Fault(("chunk_overlap",), "overlap-too-large", message, hint))
        if self.chunk_tokens is None and self.chunk_overlap:
            hint = "add chunk_tokens, or take chunk_overlap away"
            found.append(Fault(("chunk_overlap",), "overlap-alone", "means nothing without chunk_tokens", hint))
        most_input = self.limits.input_tokens
        if most_input is not None and (self.chunk_tokens or 0) > most_input:
            message, hint = f"the provider takes {most_input}", "lower it, or raise limits.input_tokens"
            found.append(Fault(("chunk_tokens",), "chunk-too-long", message, hint))
        if found:
            raise faults(found)
        return self


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
        description="Most records in one window of the stream: a transaction's cost is spread over this many.",
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
