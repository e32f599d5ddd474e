"""What every error and problem id means that is no reason of `core.reasons`, and what mends it.

The message and hint of an error name the place and the value's key; here is what the id itself says, for a person who
finds it in a log, a metric or a script. `errors_page` joins both registries into one page; a test collects the ids
from the code and holds this registry complete and free of strangers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from daemon.core import reasons

MARK = "## Errors and problems"


class Entry(NamedTuple):
    """One id: its meaning, a sentence, and its remedy without a full stop."""

    id: str
    meaning: str
    remedy: str


CONFIGURATION = (
    Entry("config-missing", "There is no such configuration file.", "name one with --config, or write one"),
    Entry("config-unreadable", "The file cannot be read, or is not UTF-8.", "see its owner, mode and encoding"),
    Entry("config-syntax", "The file is not TOML; line and column are named.", "correct that line"),
    Entry(
        "unknown-key", "A key does not exist in its table.", "take the nearest name that is given, or remove the key"
    ),
    Entry("missing-key", "A required key or table is absent.", "add it"),
    Entry("wrong-type", "A value has another type than its key.", "write the type that is named"),
    Entry("wrong-form", "A value does not match its key's pattern.", "write it in the form that is named"),
    Entry("out-of-range", "A number is below or above what its key takes.", "stay within the bounds"),
    Entry("not-a-choice", "A value is none of the key's choices.", "take one of the choices"),
    Entry("empty", "A value must not be empty.", "fill it in"),
    Entry("invalid", "A value cannot be used; its place is named.", "see the key in config.md"),
    Entry("name-differs", "The file configures another migration than the one named.", "name another file"),
    Entry("name-reserved", "The migration's name is a schema that exists for others.", "choose another name"),
    Entry("variable-unknown", "A variable looks like a setting and sets nothing. A warning.", "correct its name"),
    Entry("secret-reference", "A secret needs exactly one of env, file, credential.", "write one reference"),
    Entry("secret-in-file", "A secret stands in the configuration in clear.", "replace it by a reference"),
    Entry("secret-missing", "There is nothing to read where a secret's reference points.", "put the secret there"),
    Entry("dsn-invalid", "A connection string cannot be read.", "write a libpq connection string"),
    Entry("tls-by-service", "A libpq service decides about TLS. A warning.", "set sslmode=verify-full in the service"),
    Entry("table-invalid", "A source is not a schema and a table.", "write schema.table, odd names quoted"),
    Entry("table-twice", "Two [[table]] have one source.", "merge the two"),
    Entry("alias-taken", "Relations of two tables would have one name in the target.", "choose another alias"),
    Entry("template-invalid", "A text template is not text with {column} placeholders.", "correct it where named"),
    Entry("url-invalid", "A URL is not http or https, or carries credentials.", "write scheme, host and port only"),
    Entry("provider-in-clear", "Texts and key would leave this machine without TLS.", "use https"),
    Entry("kafka-in-clear", "Brokers off this machine and no security.protocol.", "choose one"),
    Entry("kafka-servers-missing", '"bootstrap.servers" is required.', "add it under [kafka.properties]"),
    Entry("kafka-property-owned", "revector sets this property itself.", "remove it"),
    Entry("kafka-property-invalid", "librdkafka does not accept a property.", "see its CONFIGURATION.md"),
    Entry("connect-credentials", "Of username and password one is missing.", "set both or none"),
    Entry("api-key-missing", "The provider wants a key and none is configured.", "add generation.api_key"),
    Entry("local-package", "The embedded model's package is not installed.", "install revector[local]"),
    Entry("local-model", "There is no embedded model of that name.", 'write "wordllama-256"'),
    Entry("local-dimensions", "The embedded model has no vectors of that length.", "take 256, 128 or 64"),
    Entry("local-normalised", "The embedded model's vectors have length 1.", "take the key away"),
    Entry("too-many-dimensions", "An HNSW index does not take as many dimensions.", "ask for fewer, or use halfvec"),
    Entry("base-url-missing", "Azure OpenAI has no address that everybody shares.", "add generation.base_url"),
    Entry("local-without-server", "The embedded model has neither address nor key.", "take the setting away"),
    Entry("generation-twice", "Two [[generation]] have one name.", "choose another name"),
    Entry("overlap-too-large", "Chunks would repeat more than half of the one before.", "lower chunk_overlap"),
    Entry("overlap-alone", "chunk_overlap means nothing without chunk_tokens.", "add chunk_tokens"),
    Entry("chunk-too-long", "A chunk may be longer than the provider takes.", "lower chunk_tokens"),
    Entry("tokenizer-missing", "There is no tokenizer file where the configuration names one.", "correct the path"),
    Entry("tokenizer-unreadable", "A file is no Hugging Face tokenizer.json.", "name another file"),
    Entry("tokenizer-package", "A tokenizer file needs a package that is not there.", "install revector[local]"),
    Entry("timezone-unknown", "A timezone is no IANA name.", "write such as Europe/Berlin"),
    Entry("quiet-hours-empty", "Quiet hours begin and end at the same minute.", "choose another end"),
    Entry("listen-invalid", "http.listen is not an address and a port.", "write such as 127.0.0.1:9464"),
    Entry("metrics-exporter-unknown", "OTEL_METRICS_EXPORTER names no exporter.", "see metrics.md"),
)

SOURCE = (
    Entry("source-too-old", "The source is older than Postgres 14.", "upgrade it"),
    Entry("source-standby", "The source is a standby; pulses need the primary.", "name the primary in [source] dsn"),
    Entry("wal-level", "The source's log does not carry logical changes.", "set wal_level = logical and restart it"),
    Entry("publication-missing", "There is no publication of the configured name.", "create it"),
    Entry("publication-operations", "The publication leaves operations out.", "publish all four, truncate included"),
    Entry("publication-table-missing", "The publication lacks a configured table.", "add the table"),
    Entry("publication-column-list", "The publication sends part of a table's columns.", "publish whole rows"),
    Entry(
        "publication-row-filter", "The publication sends part of a table's rows.", "publish all; use `where` instead"
    ),
    Entry("publication-keyless", "A published table has no primary key.", "take it out of the publication"),
    Entry("slot-missing", "There is no replication slot of the configured name.", "start the connector once"),
    Entry("slot-unlimited", "A stopped connector can fill the disk. A warning.", "set max_slot_wal_keep_size"),
    Entry("table-missing", "The source has no such table.", "check the name, and USAGE on its schema"),
    Entry("primary-key-missing", "The table has no primary key.", "add one"),
    Entry("key-deferrable", "The primary key is deferrable.", "make it NOT DEFERRABLE"),
    Entry("key-type-refused", "Equal keys could have different bytes.", "use a key type of types.md"),
    Entry("identity-unusable", "Deletes would not carry the primary key.", "set REPLICA IDENTITY DEFAULT or FULL"),
    Entry("column-missing", "The table has no such column.", "correct the configuration"),
    Entry("column-generated", "A generated column is absent from change events.", "use the columns it comes from"),
    Entry("type-refused", "A column's type has no form that can be trusted.", "see types.md, or leave it out"),
    Entry("connector-role-missing", "The connector's user is no role of the source.", "correct its database.user"),
    Entry("connector-replication", "The connector's role may not replicate.", "ALTER ROLE ... REPLICATION"),
    Entry(
        "connector-session",
        "The connector's role prints floats or bytea in another form than the canonical one.",
        "ALTER ROLE ... SET as the message says, restart the connector; see types.md",
    ),
    Entry("replication-slots-full", "No slot is left for the connector. A warning.", "raise max_replication_slots"),
    Entry("wal-senders-full", "No WAL sender is left for the connector. A warning.", "raise max_wal_senders"),
    Entry("source-unreachable", "The source does not answer. It is asked again.", "see that it runs and is reached"),
    Entry("source-read-only", "The source is in recovery. It is asked again.", "point the dsn at the primary"),
    Entry("source-timeout", "A statement at the source took too long. It is repeated.", "look at the source's load"),
    Entry("source-conflict", "A statement at the source collided. It is repeated.", "nothing, unless it goes on"),
    Entry("source-overloaded", "The source lacks connections, memory or disk.", "give it more, or lower [limits]"),
    Entry("source-locked", "Somebody holds a lock at the source for long.", "see pg_stat_activity"),
    Entry("source-fault", "An answer of the source that revector does not expect.", "report it with the message"),
)

TARGET = (
    Entry("target-too-old", "The target is older than Postgres 14.", "upgrade it"),
    Entry("target-create", "The role may not create schemas.", "GRANT CREATE ON DATABASE to it"),
    Entry(
        "vector-missing", "The extension vector is not in the database.", "CREATE EXTENSION vector, as a role that may"
    ),
    Entry("vector-too-old", "pgvector is older than 0.8.4.", "install a newer one, ALTER EXTENSION vector UPDATE"),
    Entry("schema-foreign", "A schema of a name that revector needs is somebody else's.", "choose another name"),
    Entry(
        "schema-newer",
        "A newer revector has changed the control schema. This one refuses its commands; a process that runs halts and "
        "writes nothing any more.",
        "use the newer one in every process, and for every command",
    ),
    Entry(
        "schema-older",
        "The control schema is an older revector's. A start of this one brings it up to date.",
        "stop the older processes and start this one; until then use the older one's commands",
    ),
    Entry("column-reserved", "A used column has a name of the replica's own.", "take it out of the used columns"),
    Entry("type-missing", "The target lacks a column's type.", "install its extension, or leave the column out"),
    Entry(
        "where-invalid",
        "Postgres refuses a table's `where`, or that of `revector requeue`.",
        "use columns and immutable functions only",
    ),
    Entry("relation-taken", "A relation of that name is something else.", "choose another alias or generation name"),
    Entry(
        "contract-changed", "The generation exists under another contract.", "set it back, or name another generation"
    ),
    Entry("chunker-differs", "A contract is cut by another splitter or tokenizer.", "add another [[generation]]"),
    Entry("prefix-too-long", "The document prefix leaves too little of a chunk.", "raise chunk_tokens"),
    Entry("database-missing", "There is no such database.", "check dbname in the dsn"),
    Entry("target-unreachable", "The target does not answer. It is asked again.", "see that it runs and is reached"),
    Entry("target-read-only", "The target is in recovery. It is asked again.", "point the dsn at the primary"),
    Entry("target-timeout", "A statement at the target took too long. It is repeated.", "look at the target's load"),
    Entry("target-conflict", "Transactions collided. It is repeated.", "nothing, unless it goes on"),
    Entry("target-overloaded", "The target lacks connections, memory or disk.", "give it more, or lower [limits]"),
    Entry("target-locked", "Somebody holds a lock at the target for long.", "see pg_stat_activity"),
    Entry("target-fault", "An answer of the target that revector does not expect.", "report it with the message"),
)

KAFKA = (
    Entry("kafka-unreachable", "No broker answers. It is asked again.", "see that they run and are reached"),
    Entry("kafka-seek-needed", "A poll ended badly; the stream begins at its checkpoint again.", "nothing"),
    Entry("topic-missing", "A topic does not exist.", "create it; after the start, then realign"),
    Entry("topic-compacted", "Compaction drops changes.", "set cleanup.policy=delete"),
    Entry("topic-retention", "A stop of a day loses changes. A warning.", "set retention.ms to several days"),
    Entry("topic-message-size", "A large document stops the connector. A warning.", "raise max.message.bytes"),
    Entry("offsets-gone", "Events were deleted before they were applied. A halt.", "raise retention, then realign"),
    Entry("connect-unreachable", "Kafka Connect does not answer. It is asked again.", "see [connect] url"),
    Entry(
        "connector-absent",
        "Connect has no connector of this name.",
        "create it from docker/connector.json, or with `revector init --apply`",
    ),
    Entry("connector-setting", "A setting loses or changes events.", "set it as the message says"),
    Entry("connector-skips-errors", "The connector skips what fails.", "set it as the message says"),
    Entry("connector-transforms", "A transform or converter changes events.", "remove it"),
    Entry(
        "connector-converter",
        "Keys or values are not JSON, or a default takes the place of a null.",
        "use JsonConverter for both, with value.converter.replace.null.with.default=false",
    ),
    Entry("connector-mismatch", "Connector and configuration name different things.", "correct one of them"),
    Entry("connector-filters", "An include or exclude list keeps something out.", "correct the list"),
    Entry(
        "connector-incomplete",
        "`init --apply` does not know what a new connector needs.",
        "give the flag that is named",
    ),
    Entry(
        "connector-ahead",
        "The connector's committed offset lies beyond the end of the source's log: it is of another log.",
        "stop the connector, delete its offsets, start it again",
    ),
    Entry("connector-refused", "Kafka Connect does not accept the new connector.", "see the setting that is named"),
    Entry("connector-version", "Debezium below 3.7.0 can lose rows at a restart.", "use 3.7.0.Final or later"),
)

EVENTS = (
    Entry("record-undecodable", "A record is not JSON.", "see what wrote it, use JsonConverter for both, then realign"),
    Entry(
        "envelope-unknown", "A record is not Debezium's envelope.", "remove what writes or reshapes it, then realign"
    ),
    Entry(
        "operation-unknown",
        "An event's operation is none of Debezium's.",
        "see what writes into the topic, then realign",
    ),
    Entry(
        "connector-unknown", "An event comes from another connector.", "see what writes into the topic, then realign"
    ),
    Entry("debezium-too-old", "An event comes from Debezium below 3.7.0.", "use a later one, then realign"),
    Entry(
        "position-absent",
        "An event does not say where in the log it stands.",
        "mend the connector's profile, then realign",
    ),
    Entry("image-absent", "A change carries no row.", "compare the connector's profile"),
    Entry("event-without-values", "A create or update carries no values.", "compare the connector's profile"),
    Entry("key-absent", "A record or row carries no key.", "give the table a primary key and a replica identity"),
    Entry("key-mismatch", "A record's key is not its row's primary key.", "remove what changes keys, then realign"),
    Entry("column-absent", "An event lacks a used column.", "put it back, then realign"),
    Entry("replica-identity-changed", "REPLICA IDENTITY FULL was taken back.", "set it again, then realign"),
    Entry(
        "value-unreadable", "A value has another JSON type than its column.", "put type and profile back, then realign"
    ),
    Entry("decimal-mode-wrong", "A number arrives in another form.", "set decimal.handling.mode=string"),
    Entry("time-mode-wrong", "A time arrives in another form.", "set time.precision.mode=isostring"),
    Entry("infinity-unreadable", "An infinite date cannot be told from garbage.", "store finite values or null"),
    Entry("array-nested", "A nested array loses its shape.", "keep arrays flat, or leave the column out"),
    Entry("schema-changed", "A relation or column is not there any more.", "put it back, then realign"),
    Entry(
        "table-changed",
        "A table is not what it was at the start: in the source, or in the configuration.",
        "set it back, then realign; or begin a migration of another name",
    ),
)

PROVIDER = (
    Entry("provider-unreachable", "The provider cannot be reached. It is repeated.", "check generation.base_url"),
    Entry("provider-unavailable", "The provider fails. It is repeated.", "see its status page"),
    Entry(
        "provider-throttled",
        "The provider asks for fewer requests. It is repeated.",
        "set requests_per_minute or tokens_per_minute",
    ),
    Entry("provider-timeout", "A request took too long. It is repeated.", "raise generation.limits.request_timeout_s"),
    Entry("provider-quota", "The account has no credit left.", "top it up; embedding goes on by itself"),
    Entry("provider-key-refused", "The provider refuses the key.", "check generation.api_key"),
    Entry("provider-request-refused", "The provider refuses model or parameters.", "check [[generation]]"),
    Entry("provider-redirects", "The address answers with another one.", "put that one into generation.base_url"),
    Entry("provider-refused", "The provider refuses a harmless text.", "check [[generation]]"),
    Entry("provider-answer", "The answer is not a list of embeddings.", "check generation.base_url"),
    Entry("provider-count", "The answer has another number of vectors.", "check the server"),
    Entry("provider-order", "The answer's indexes are not those of the texts.", "check the server"),
    Entry("provider-dimension", "A vector has another length.", "check generation.model and dimensions"),
    Entry("provider-not-finite", "A vector has a value that is not finite.", "check the server"),
    Entry("provider-zero-vector", "A vector is all zeros.", "check the server"),
    Entry(
        "provider-norm",
        "A vector's length is not 1, as the contract says; the length is given.",
        "check the model, or set normalised = false in a generation of its own",
    ),
    Entry(
        "provider-answer-too-large",
        "The answer is longer than its vectors need; it was not read to its end.",
        "check generation.base_url and what stands between",
    ),
    Entry(
        "provider-model-changed",
        "The canary text has another vector than when the generation began. Another name alone is no other model.",
        "bring the model back, or add a generation for the new one",
    ),
    Entry(
        "provider-refuses-all",
        "The provider refuses the harmless canary text: nothing of the corpus is to blame.",
        "check model, limits and address",
    ),
    Entry(
        "provider-refuses-many",
        "Texts of eight rows in a row were refused and none was taken between them; these rows are in quarantine.",
        "see the codes with `revector quarantine list`, mend the cause, start the process again, retry these rows",
    ),
    Entry("process-stopping", "The process ends: nothing more is sent.", "none"),
    Entry(
        "item-refused",
        "The provider refuses one text; its row is refused and has no vectors.",
        "change the row at the source",
    ),
)

PROCESS = (
    Entry("password-refused", "A part refuses the credentials.", "check user and password of the part that is named"),
    Entry("permission-denied", "A part refuses an operation.", "grant it; deploy.md lists what is needed"),
    Entry("lease-lost", "Another process owns the stream; this one stands by.", "nothing"),
    Entry(
        "stream-running",
        "A process follows the stream, and neither is halted nor has ended.",
        "stop it, then realign; where nothing has halted there is nothing to realign",
    ),
    Entry("identity-moving", "A part became another one while the stream was realigned.", "repeat it"),
    Entry("range-lost", "Another worker goes on with a range of the backfill.", "nothing"),
    Entry("migration-unknown", "The target knows no such migration or generation.", "start it"),
    Entry(
        "tables-differ",
        "The migration has begun with other tables; this version neither adds nor removes one.",
        "name the tables it began with, or begin a migration of another name",
    ),
    Entry(
        "generation-unknown",
        "The migration has begun without this generation, or the configuration has none of that name.",
        "add it with `revector generation add`, or correct the name",
    ),
    Entry("generation-absent", "The migration has no generation of that name.", "see `revector generation list NAME`"),
    Entry("generation-routed", "Readers follow the generation.", "switch readers to another one first"),
    Entry("generation-last", "A migration keeps at least one generation.", "add another one first"),
    Entry(
        "comparison-running",
        "A comparison of the migration runs, or waits to be gone on with.",
        "go on with that one, or abandon it first",
    ),
    Entry("comparison-moved", "Another process, or an attempt that was not answered, compared a page.", "nothing"),
    Entry(
        "comparison-gone",
        "The comparison was ended meanwhile: by another process, since a generation that it covered was dropped, or by "
        "a realignment.",
        "begin again",
    ),
    Entry(
        "entry-unknown",
        "The row has no entry in quarantine.",
        "see `revector quarantine list NAME`; an entry ends when its row is changed or deleted",
    ),
    Entry("key-incomplete", "A row was named by too few or too many values.", "give --key once per column of the key"),
    Entry("key-unreadable", "A key is no value of its column's type.", "write it as Postgres prints it"),
    Entry("row-unknown", "A row that was named is not there, or `where` leaves it out.", "correct the key"),
    Entry(
        "certificate-absent",
        "The generation has no certificate, or the migration none with that digest.",
        "issue one with `revector prove NAME`, or see `revector certificate list NAME`",
    ),
    Entry("certificate-ambiguous", "Several certificates begin with these digits.", "give more of the digest"),
    Entry("time-used-up", "The time given to a comparison is used up; what was compared is kept.", "run it again"),
    Entry(
        "passage-late",
        "A barrier did not pass through the whole pipeline in time, so nothing could be compared.",
        "see that connector and stream are running",
    ),
    Entry("wait-timed-out", "What was waited for does not hold yet.", "read the reasons in the message"),
    Entry("package-overwritten", "Another distribution has replaced our package.", "install revector on its own"),
    Entry("port-taken", "Another process listens at http.listen.", "choose another port"),
    Entry("port-forbidden", "The account may not listen at http.listen.", "choose a port above 1023"),
    Entry("listen-unavailable", "http.listen is no address of this machine.", "choose another address"),
    Entry("status-not-made", "The process has not looked at the parts yet.", "ask again in some seconds"),
    Entry("status-stale", "The process's last look is too old to believe.", "see /livez and its log"),
    Entry("usage", "The command line is wrong.", "see --help"),
    Entry("interrupted", "The command was interrupted.", "nothing"),
    Entry("terminated", "The command was ended by a signal.", "nothing"),
    Entry("internal-fault", "A fault of revector.", "report it with the lines above it"),
)

CHAPTERS = (
    ("Configuration", CONFIGURATION),
    ("Source", SOURCE),
    ("Target", TARGET),
    ("Kafka and the connector", KAFKA),
    ("Change events and tables: these halt the stream", EVENTS),
    ("Provider", PROVIDER),
    ("Processes and commands", PROCESS),
)


def entries() -> Iterator[Entry]:
    """Every entry, in the order of the page."""
    for _, chapter in CHAPTERS:
        yield from chapter


def errors_page() -> str:
    """The Markdown of the reference page: the reasons, then every other id."""
    lines = [
        "",
        MARK,
        "",
        "Ids that a command's error, a problem of `revector check` or `revector doctor`, or a log line can carry and",
        "that are no reason above. `realign` and `begin again` are described in",
        "[troubleshoot.md](../howto/troubleshoot.md).",
    ]
    for title, chapter in CHAPTERS:
        lines += ["", f"### {title}", "", "| id | meaning | remedy |", "|---|---|---|"]
        lines += [f'| <a id="{e.id}"></a>`{e.id}` | {e.meaning} | {e.remedy} |' for e in chapter]
    return reasons.reference_page() + "\n".join(lines) + "\n"
