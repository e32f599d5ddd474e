"""Debezium's records to change events: `daemon.ports.Decoder`. Pure.

    raw record -> envelope (with or without schema) -> source block: who, where, which version -> operation -> values

Promises: a record is read exactly, ignored because it says nothing about the replica, or refused with UndecodableEvent;
never read as something else. What a value looks like is decided by `daemon.core.canonical`; converters are looked up
once per column, so an event costs one JSON parse and a loop over its used columns.

Refuses to know: whether an event was seen before (`daemon.core.fold`), whether a read event or another run id is a
break (`daemon.core.continuity`), and any connector setting beyond its traces in a record (`daemon.core.profile`).
Error messages name topic, partition, offset and column; never a value.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from daemon.core.canonical import Reader, Unreadable, reader
from daemon.core.model import (
    UNAVAILABLE,
    ChangeEvent,
    Decoded,
    Ignored,
    Key,
    Op,
    Origin,
    Position,
    PulseEvent,
    ReadEvent,
    Table,
    TruncateEvent,
    Value,
    Values,
)
from daemon.core.profile import OLDEST_DEBEZIUM
from daemon.errors import ConfigError, Problem, UndecodableEvent
from daemon.ports import RawRecord

MESSAGE_PREFIX = "revector"
RUN_ID_HEADER = "__debezium.context.runId"

_OPERATIONS = {op.value: op for op in Op}
_SEQUENCE = re.compile(r'\[(?:null|"(\d+)"), ?(?:null|"\d+")\]', re.ASCII)
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)", re.ASCII)
_NOT_IN_TOPICS = re.compile(r"[^A-Za-z0-9._-]")

_PROFILE_HINT = "compare the connector with the profile that `revector doctor` checks"
_SCHEMA_HINT = (
    "the table or the connector's column list has changed: put the column back, then let the stream go on behind the "
    "events that lack it"
)


def table_topic(prefix: str, schema: str, name: str) -> str:
    """The topic of a table. Characters that Kafka does not allow become one underscore per UTF-16 unit, so two tables
    can share a topic: events are told apart by their source block."""
    topic = f"{prefix}.{schema}.{name}"
    return _NOT_IN_TOPICS.sub(lambda match: "_" * (len(match[0].encode("utf-16-le")) // 2), topic)


def message_topic(prefix: str) -> str:
    """The topic of pulses and barriers."""
    return f"{prefix}.message"


def topics(prefix: str, tables: Sequence[Table]) -> tuple[str, ...]:
    """Every topic of a migration, each once: the tables' in their order, then the message topic."""
    named = [table_topic(prefix, table.schema, table.name) for table in tables]
    return tuple(dict.fromkeys([*named, message_topic(prefix)]))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one table's events are read with. columns: name and converter, in the order of `Table.columns`."""

    alias: str
    key: tuple[str, ...]
    columns: tuple[tuple[str, Reader], ...]
    full_identity: bool


class DebeziumDecoder:
    """Implements `daemon.ports.Decoder` for one migration.

    prefix: the connector's `topic.prefix`. migration: whose pulses count. epoch: becomes part of every position.
    Raises ConfigError for a column whose type is not admitted.
    """

    def __init__(self, prefix: str, migration: str, tables: Sequence[Table], epoch: int) -> None:
        self._prefix = prefix
        self._migration = migration
        self.epoch = epoch
        self._topics = frozenset(topics(prefix, tables))
        self._plans: dict[tuple[object, object], _Plan] = {(table.schema, table.name): _plan(table) for table in tables}
        self._versions: set[str] = set()  # of Debezium, already compared

    def decode(self, record: RawRecord) -> Decoded:
        """The event in a record. Repeatable: equal records give equal answers. Raises UndecodableEvent."""
        run_id = _run_id(record)
        if record.value is None or record.at.topic not in self._topics:
            return Ignored(run_id)
        envelope = _envelope(record)
        source = self._source(record, envelope)
        op = envelope["op"]
        if op == "m":
            return self._message(record, envelope, source)
        plan = self._plans.get((source.get("schema"), source.get("table")))
        if plan is None:
            return Ignored(run_id)
        if op in _OPERATIONS:
            return self._change(record, envelope, source, plan)
        if op == "t":
            return TruncateEvent(plan.alias, self._origin(record, source))
        if op != "r":
            _refuse(record, "operation-unknown", "an operation that Debezium's envelope does not have", _PROFILE_HINT)
        return ReadEvent(plan.alias, self._origin(record, source, is_read=True))

    def _change(self, record: RawRecord, envelope: dict[str, Any], source: dict[str, Any], plan: _Plan) -> ChangeEvent:
        op = _OPERATIONS[envelope["op"]]
        name = "before" if op is Op.DELETE else "after"
        image = envelope.get(name)
        if type(image) is not dict:
            _refuse(record, "image-absent", f"the {name} image is absent", _PROFILE_HINT)
        if plan.full_identity and op is Op.UPDATE and envelope.get("before") is None:
            _refuse(
                record,
                "replica-identity-changed",
                "an update without a before image, though the table had REPLICA IDENTITY FULL",
                "set REPLICA IDENTITY FULL again, then let the stream go on: values may be missing since the change",
            )
        _check_key(record, image, plan)
        wanted = plan.columns[: len(plan.key)] if op is Op.DELETE else plan.columns
        values = _values(record, image, wanted)
        key = _key(record, values, plan)
        return ChangeEvent(plan.alias, op, key, None if op is Op.DELETE else values, self._origin(record, source))

    def _message(self, record: RawRecord, envelope: dict[str, Any], source: dict[str, Any]) -> PulseEvent | Ignored:
        """A pulse or barrier of this migration; anything else with our prefix is somebody else's and ignored.

        A message written outside of a transaction has no transaction id; its place in the log proves nothing.
        """
        ignored = Ignored(_run_id(record))
        message = envelope.get("message")
        if type(message) is not dict or message.get("prefix") != MESSAGE_PREFIX or source.get("txId") is None:
            return ignored
        try:
            content = orjson.loads(base64.b64decode(message.get("content") or "", validate=True))
        except (ValueError, TypeError):
            return ignored
        if type(content) is not dict or content.get("migration") != self._migration:
            return ignored
        number, token = content.get("pulse"), content.get("token")
        if type(token) is not str or not (number is None or type(number) is int):
            return ignored
        return PulseEvent(self._migration, number, token, self._origin(record, source))

    def _source(self, record: RawRecord, envelope: dict[str, Any]) -> dict[str, Any]:
        """The source block of our connector, of a version that can be trusted."""
        source: dict[str, Any] = envelope["source"]
        if source.get("connector") != "postgresql" or source.get("name") != self._prefix:
            _refuse(record, "connector-unknown", "an event of another connector", _PROFILE_HINT)
        version = source.get("version")
        if version not in self._versions:
            found = _VERSION.match(version) if type(version) is str else None
            if found is None or tuple(map(int, found.groups())) < OLDEST_DEBEZIUM:
                _refuse(
                    record,
                    "debezium-too-old",
                    "an event of Debezium below 3.7.0, which can lose rows at a restart",
                    "use Debezium 3.7.0.Final or later, then let the stream go on behind what the older one sent",
                )
            self._versions.add(found.string)
        return source

    def _origin(self, record: RawRecord, source: dict[str, Any], is_read: bool = False) -> Origin:
        """Where the event was read and where it stands in the log. A null previous commit counts as 0. The rows of a
        snapshot may have no place in the log; they are never applied."""
        lsn, sequence, xid, ts_ms = (source.get(name) for name in ("lsn", "sequence", "txId", "ts_ms"))
        match = _SEQUENCE.fullmatch(sequence) if type(sequence) is str else None
        if is_read and (match is None or type(lsn) is not int):
            commit_lsn, lsn = 0, 0
        elif match is None or type(lsn) is not int or (type(xid) is not int and not is_read):
            message = "the source block has no sequence, no lsn or no transaction id"
            _refuse(record, "position-absent", message, _PROFILE_HINT)
        else:
            commit_lsn = int(match[1] or 0)
        return Origin(
            at=record.at,
            offset=record.offset,
            run_id=_run_id(record),
            source_ts_ms=ts_ms if type(ts_ms) is int else None,
            position=Position(self.epoch, commit_lsn, lsn),
            xid=xid if type(xid) is int else None,
        )


def _plan(table: Table) -> _Plan:
    columns: list[tuple[str, Reader]] = []
    problems: list[Problem] = []
    for column in table.columns:
        try:
            columns.append((column.name, reader(column.target_type, table.full_identity)))
        except Unreadable as error:
            place = f"table {table.schema}.{table.name}, column {column.name}"
            problems.append(Problem(error.id, place, error.message, error.hint))
    if problems:
        raise ConfigError(problems)
    return _Plan(table.alias, table.key, tuple(columns), table.full_identity)


def _envelope(record: RawRecord) -> dict[str, Any]:
    """Debezium's envelope, out of the converter's schema and payload where it is sent with schemas."""
    document = _unwrapped(_json(record, record.value))
    if type(document) is not dict or type(document.get("op")) is not str or type(document.get("source")) is not dict:
        hint = f"see what writes into the topic, and remove transforms that flatten or reshape events; {_PROFILE_HINT}"
        _refuse(record, "envelope-unknown", "the value is not Debezium's envelope", hint)
    return document


def _json(record: RawRecord, data: bytes | None) -> Any:
    try:
        return orjson.loads(data or b"")
    except orjson.JSONDecodeError:
        hint = (
            "see what writes into the topic beside the connector, whose key.converter and value.converter must be "
            "JsonConverter; then let the stream go on behind it"
        )
        _refuse(record, "record-undecodable", "key or value is not JSON", hint)


def _unwrapped(document: Any) -> Any:
    if type(document) is dict and document.keys() == {"schema", "payload"}:
        return document["payload"]
    return document


def _check_key(record: RawRecord, image: dict[str, Any], plan: _Plan) -> None:
    """The record's key decides its partition, so it must be the primary key and nothing else."""
    if record.key is None:
        hint = "the table needs a primary key, and the connector no `message.key.columns`"
        _refuse(record, "key-absent", "the record has no key", hint)
    if _unwrapped(_json(record, record.key)) != {name: image.get(name) for name in plan.key}:
        hint = "remove `message.key.columns` and transforms of the key; check that the primary key has not changed"
        _refuse(record, "key-mismatch", f"the record's key is not {', '.join(plan.key)} of its row", hint)


def _values(record: RawRecord, image: dict[str, Any], columns: tuple[tuple[str, Reader], ...]) -> Values:
    values: list[Value] = []
    for name, read in columns:
        try:
            value = image[name]
            values.append(None if value is None else read(value))
        except KeyError:
            _refuse(record, "column-absent", "the event does not have it", _SCHEMA_HINT, name)
        except Unreadable as error:
            _refuse(record, error.id, error.message, error.hint, name)
    return tuple(values)


def _key(record: RawRecord, values: Values, plan: _Plan) -> Key:
    key: list[str] = []
    for name, value in zip(plan.key, values, strict=False):
        if value is None or value is UNAVAILABLE:
            hint = "the table needs REPLICA IDENTITY DEFAULT or FULL, and no key that equals Debezium's placeholder"
            _refuse(record, "key-absent", "the image does not carry it", hint, name)
        key.append(value)
    return tuple(key)


def _run_id(record: RawRecord) -> str | None:
    """Changes at each restart of the connector's task. A JSON header converter puts it in quotes."""
    for name, value in record.headers:
        if name == RUN_ID_HEADER and value is not None:
            return value.decode(errors="replace").strip('"')
    return None


def _refuse(record: RawRecord, id: str, message: str, hint: str, column: str | None = None) -> NoReturn:
    place = f"topic {record.at.topic} partition {record.at.partition} offset {record.offset}"
    at = place if column is None else f"{place} column {column}"
    raise UndecodableEvent(id, f"{at}: {message}", hint) from None
