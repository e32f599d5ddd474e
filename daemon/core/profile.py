"""The connector profile: under which Debezium settings every change arrives, once, unchanged and decodable.

`connector_problems` judges a connector's configuration as Kafka Connect reports it; `doctor` prints the answer and
the running stream turns new errors into a break. A setting that is absent counts with Debezium's own default, so a
connector that nobody tuned is refused for what it would do, not for what it does not say. `connector_profile` is the
configuration that `init --apply` gives a new connector; it is made of the same rules.

Pure. Only the settings named here are ever repeated in a message: a connector's configuration holds passwords.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from daemon.core.setup import LARGE_MESSAGE
from daemon.errors import Problem

JSON_CONVERTER = "org.apache.kafka.connect.json.JsonConverter"
PLACEHOLDER = "__debezium_unavailable_value"
OLDEST_DEBEZIUM = (3, 7, 0)
CONNECTOR_CLASS = "io.debezium.connector.postgresql.PostgresConnector"
LARGEST_MESSAGE = 16 * 1024 * 1024  # a document of several MB is one message


@dataclass(frozen=True, slots=True)
class ExpectedConnector:
    """What the migration's configuration says about the connector. tables: `schema.table` -> used columns."""

    name: str
    slot: str
    publication: str
    message_prefix: str
    topic_prefix: str | None = None
    database: str | None = None
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceAccess:
    """How the connector reaches the source, as Kafka Connect sees it; empty where it is not known. password: in clear,
    or `${provider:path:key}`, which Connect resolves."""

    host: str
    port: str
    user: str
    database: str
    password: str = field(repr=False)
    sslmode: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A setting that must have one of these values. default: what Debezium or Connect takes where it is absent."""

    key: str
    allowed: tuple[str, ...]
    default: str
    why: str
    id: str = "connector-setting"
    severity: str = "error"


RULES = (
    Rule("errors.tolerance", ("none",), "none", "a record that fails is skipped in silence", "connector-skips-errors"),
    Rule(
        "event.processing.failure.handling.mode",
        ("fail",),
        "fail",
        "an event that fails is skipped in silence",
        "connector-skips-errors",
    ),
    Rule("plugin.name", ("pgoutput",), "decoderbufs", "other plugins send other values"),
    Rule("snapshot.mode", ("no_data",), "initial", "the backfill is ours; a snapshot would be sent as changes"),
    Rule("skipped.operations", ("none",), "t", "truncates would be lost"),
    Rule("tombstones.on.delete", ("true",), "true", "the recorded form of a key change has a tombstone"),
    Rule("decimal.handling.mode", ("string",), "precise", "other forms cannot be compared with the source's text"),
    Rule("time.precision.mode", ("isostring",), "adaptive", "other forms cannot be compared with the source's text"),
    Rule("binary.handling.mode", ("bytes",), "bytes", "other forms cannot be compared with the source's text"),
    Rule("unavailable.value.placeholder", (PLACEHOLDER,), PLACEHOLDER, "unchanged TOAST would be taken for text"),
    Rule("publication.autocreate.mode", ("disabled",), "all_tables", "the publication is part of the identity"),
    Rule("slot.drop.on.stop", ("false",), "false", "a stop would lose the log that follows"),
    Rule("lsn.flush.mode", ("connector",), "connector", "the slot must not be confirmed past what is in Kafka"),
    Rule(
        "value.converter.replace.null.with.default",
        ("false",),
        "true",
        "a null would arrive as its column's default",
        "connector-converter",
    ),
    Rule(
        "provide.transaction.metadata",
        ("false",),
        "false",
        "it costs speed and proves nothing",
        severity="warning",
    ),
)

# Settings that change or hold back values on their way; no value of theirs is safe.
FORBIDDEN = {
    "transforms": "a transform may drop, re-key or reshape events",
    "post.processors": "a post processor may put later values into earlier events",
    "converters": "a custom converter changes the form of values",
    "message.key.columns": "the record's key must be the primary key",
}
# By default Debezium looks for a source that was away after 10 s, and as late for a slot that a dead session holds.
RETRIES = {
    "retriable.restart.connector.wait.ms": "1000",
    "slot.retry.delay.ms": "1000",
    "slot.max.retries": "60",
}
FORBIDDEN_PREFIXES = ("column.mask.", "column.truncate.")


def topic_config(retention_ms: int) -> dict[str, str]:
    """Settings of a topic that loses no change and takes large rows. retention_ms: -1 keeps all."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(retention_ms),
        "max.message.bytes": str(LARGEST_MESSAGE),
    }


def failure_hint(failure: str) -> str | None:
    """What mends a connector that failed for this reason, as `Capture.failure` gave it; None: nothing special."""
    if "RecordTooLargeException" not in failure:
        return None
    return (
        f"raise producer.override.max.request.size of the connector, max.message.bytes of the topic and "
        f"message.max.bytes of the brokers ({LARGEST_MESSAGE} in the profile), then restart the task"
    )


def heartbeat_topic(topic_prefix: str) -> str:
    """Where Debezium writes its heartbeats, unless `topic.heartbeat.prefix` says otherwise."""
    return f"__debezium-heartbeat.{topic_prefix}"


def connector_profile(
    expected: ExpectedConnector, access: SourceAccess, partitions: int, retention_ms: int
) -> dict[str, str]:
    """The configuration of a connector whose every event can be trusted. partitions, retention_ms: of topics that
    Connect makes by itself; `init --apply` makes the migration's beforehand."""
    topics = {"partitions": str(partitions), "replication.factor": "-1", **topic_config(retention_ms)}
    converter = {"": JSON_CONVERTER, ".schemas.enable": "false"}
    profile = {
        "connector.class": CONNECTOR_CLASS,
        "tasks.max": "1",
        "database.hostname": access.host,
        "database.port": access.port,
        "database.user": access.user,
        "database.password": access.password,
        "database.dbname": access.database,
        "topic.prefix": expected.topic_prefix or "",
        "slot.name": expected.slot,
        "publication.name": expected.publication,
        "table.include.list": ",".join(_pattern(table) for table in expected.tables),
        "message.prefix.include.list": expected.message_prefix,
        **{rule.key: rule.allowed[0] for rule in RULES},
        "heartbeat.interval.ms": "1000",
        **RETRIES,
        **{f"{side}.converter{key}": value for side in ("key", "value") for key, value in converter.items()},
        "producer.override.max.request.size": str(LARGEST_MESSAGE),
        **{f"topic.creation.default.{key}": value for key, value in topics.items()},
    }
    return profile | ({"database.sslmode": access.sslmode} if access.sslmode else {})


def _pattern(name: str) -> str:
    """A regular expression for a whole name, Java's and ours; odd characters, such as the list's comma, become dots."""
    return re.sub(r"[^\w.]", ".", name)


def incomplete(profile: Mapping[str, str], name: str) -> Iterator[Problem]:
    """What a new connector cannot do without and nobody said."""
    for key in ("database.hostname", "database.port", "database.user", "database.password", "database.dbname"):
        if not profile.get(key, "").strip():
            hint = f"give it with --connector-set {key}=VALUE, as Kafka Connect reaches the source"
            if key == "database.password":
                hint = (
                    "give --connector-password-env VARIABLE or --connector-password-file FILE, or name a configuration "
                    "provider of Connect: --connector-set 'database.password=${PROVIDER:PATH:KEY}'"
                )
            yield _problem(name, key, ("connector-incomplete", "is not known", hint))


def connector_problems(config: Mapping[str, str] | None, expected: ExpectedConnector) -> list[Problem]:
    """Every setting under which events could be lost, changed or not understood. config None: no such connector."""
    if config is None:
        return [
            Problem(
                "connector-absent",
                f"connector {expected.name}",
                "Kafka Connect has no connector of this name",
                "create it from docker/connector.json, or with `revector init --apply`",
            )
        ]
    return [
        *setting_problems(config, expected.name),
        *_name_problems(config, expected),
        *_list_problems(config, expected),
    ]


def setting_problems(config: Mapping[str, str], name: str) -> list[Problem]:
    """The part that holds for every migration: settings, transforms, converters. The setting ends `Problem.where`."""
    return [
        *_rule_problems(config, name),
        *_size_problems(config, name),
        *_forbidden_problems(config, name),
        *_converter_problems(config, name),
    ]


def _problem(name: str, key: str, words: tuple[str, str, str], severity: str = "error") -> Problem:
    id, message, hint = words
    return Problem(id, f"connector {name} {key}", message, hint, severity)


def _rule_problems(config: Mapping[str, str], name: str) -> Iterator[Problem]:
    for rule in RULES:
        value = config.get(rule.key, rule.default).strip()
        if value.lower() not in rule.allowed:
            said = f"is {value}" if rule.key in config else f"is absent, which means {value}"
            words = (rule.id, f"{said}: {rule.why}", f"set {rule.key}={rule.allowed[0]}")
            yield _problem(name, rule.key, words, rule.severity)
    interval = config.get("heartbeat.interval.ms", "0").strip()
    if not interval.isdigit() or int(interval) == 0:
        message = "is off: on an idle database the slot holds back the source's log"
        yield _problem(
            name,
            "heartbeat.interval.ms",
            ("connector-setting", message, "set heartbeat.interval.ms=1000"),
            "warning",
        )


def _size_problems(config: Mapping[str, str], name: str) -> Iterator[Problem]:
    key = "producer.override.max.request.size"
    value = config.get(key, "").strip()
    if not value.isdigit() or int(value) < LARGE_MESSAGE:
        said = f"is {value}" if value else "is absent: the worker's producer decides, whose default is 1 MB"
        words = ("connector-setting", f"{said}: one larger document stops the task", f"set {key}={LARGEST_MESSAGE}")
        yield _problem(name, key, words, "warning")


def _forbidden_problems(config: Mapping[str, str], name: str) -> Iterator[Problem]:
    for key in sorted(config):
        why = FORBIDDEN.get(key)
        if why is None and key.startswith(FORBIDDEN_PREFIXES):
            why = "it changes values on their way"
        if why is not None and config[key].strip():
            yield _problem(name, key, ("connector-transforms", f"is set: {why}", f"remove {key}"))


def _name_problems(config: Mapping[str, str], expected: ExpectedConnector) -> Iterator[Problem]:
    names = (
        ("slot.name", expected.slot, "debezium"),
        ("publication.name", expected.publication, "dbz_publication"),
        ("topic.prefix", expected.topic_prefix, ""),
        ("database.dbname", expected.database, ""),
    )
    for key, want, default in names:
        value = config.get(key, default).strip()
        if want is not None and value != want:
            message = f"is {value or 'absent'}, the migration's configuration says {want}"
            yield _problem(
                expected.name, key, ("connector-mismatch", message, f"set {key}={want}, or correct the config")
            )


def _converter_problems(config: Mapping[str, str], name: str) -> Iterator[Problem]:
    for key in ("key.converter", "value.converter"):
        value = config.get(key)
        hint = f"set {key}={JSON_CONVERTER}"
        if value is None:
            message = "is absent: the worker's default decides, and it cannot be read here"
            # The connector's settings of a converter count only where it names that converter itself.
            severity = "error" if key == "value.converter" else "warning"
            yield _problem(name, key, ("connector-converter", message, hint), severity)
        elif value.strip() != JSON_CONVERTER:
            yield _problem(name, key, ("connector-converter", f"is {value}: only JSON is decoded", hint))


def _list_problems(config: Mapping[str, str], expected: ExpectedConnector) -> Iterator[Problem]:
    """Include and exclude lists: Debezium matches each comma-separated item as a whole-name regular expression."""
    wanted = [("message.prefix", [expected.message_prefix])]
    wanted.append(("schema", sorted({t.split(".", 1)[0] for t in expected.tables})))
    wanted.append(("table", sorted(expected.tables)))
    wanted.append(("column", [f"{t}.{c}" for t in sorted(expected.tables) for c in expected.tables[t]]))
    for kind, names in wanted:
        for suffix, includes in (("include", True), ("exclude", False)):
            key = f"{kind}.{suffix}.list"
            text = config.get(key, "").strip()
            lost = [n for n in names if _matches(text, n) is not includes] if text else []
            if lost:
                some = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
                hint = f"add them to {key}" if includes else f"take them out of {key}"
                yield _problem(expected.name, key, ("connector-filters", f"keeps out {some}", hint))


def _matches(patterns: str, name: str) -> bool | None:
    """Whether a list of patterns covers a name; None where a pattern cannot be read (then neither answer is good)."""
    hit = False
    for pattern in patterns.split(","):
        try:
            hit = hit or re.fullmatch(pattern.strip(), name, re.IGNORECASE) is not None
        except re.error:
            return None
    return hit


def version_problems(version: str | None, expected: ExpectedConnector) -> list[Problem]:
    """Whether Debezium is one that keeps every row of a multi-insert across a restart (3.7.0 and later)."""
    where = f"connector {expected.name} version"
    if version is None:
        hint = "see the plugin's version in Kafka Connect"
        return [Problem("not-observed", where, "Debezium's version could not be read", hint)]
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found and tuple(map(int, found.groups())) >= OLDEST_DEBEZIUM:
        return []
    message = f"is {version}: below 3.7.0 a restart can lose rows of one multi-insert"
    return [Problem("connector-version", where, message, "use Debezium 3.7.0.Final or later")]
