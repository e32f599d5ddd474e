"""The decoder against recorded events, and against every way in which a record can be something else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.debezium import DebeziumDecoder, message_topic, table_topic, topics
from daemon.core.model import (
    UNAVAILABLE,
    ChangeEvent,
    Column,
    Ignored,
    Op,
    Position,
    PulseEvent,
    ReadEvent,
    Table,
    TopicPartition,
    TruncateEvent,
)
from daemon.errors import ConfigError, Halt, UndecodableEvent
from daemon.ports import RawRecord
from tests.cases import golden
from tests.cases.recorded_tables import (
    ARTICLE,
    ARTICLE_COLUMNS,
    COMPOSITE,
    FINITE_TYPES,
    FOLDER,
    FULLIDENT,
    REFUSED_COLUMNS,
    TABLES,
    TYPES,
    records,
    table,
)

RUN_ID = "01a1fe16-985d-76b4-be71-911838d104f2"


def decoder(*tables: Table, prefix: str = "profile", epoch: int = 1) -> DebeziumDecoder:
    return DebeziumDecoder(prefix, "shop", tables or TABLES, epoch)


def recorded(topic: str, partition: int, offset: int, name: str = "profile") -> RawRecord:
    return next(r for r in records(name) if r.at == TopicPartition(f"{name}.{topic}", partition) and r.offset == offset)


def changed(record: RawRecord, change: Callable[[dict[str, Any]], object]) -> RawRecord:
    """The record with a changed envelope."""
    envelope = json.loads(record.value or b"")
    change(envelope)
    return replace(record, value=json.dumps(envelope).encode())


def refused(record: RawRecord, *tables: Table) -> UndecodableEvent:
    with pytest.raises(UndecodableEvent) as raised:
        decoder(*tables).decode(record)
    error = raised.value
    assert isinstance(error, Halt)
    assert f"topic {record.at.topic} partition {record.at.partition} offset {record.offset}" in error.message
    assert error.hint
    return error


def change_of(record: RawRecord, *tables: Table) -> ChangeEvent:
    decoded = decoder(*tables).decode(record)
    assert isinstance(decoded, ChangeEvent)
    return decoded


CREATE = recorded("app.article", 0, 0)
UPDATE = recorded("app.article", 0, 2)
DELETE = recorded("app.article", 0, 4)
TRUNCATE = recorded("app.composite", 1, 4)
MESSAGE = recorded("message", 1, 0)


# --- the recorded files


def test_recorded_profile_decodes_as_expected() -> None:
    assert golden.rendered() == (FOLDER / "profile.expected").read_text(encoding="utf-8")


def test_toasted_body_is_the_text_that_source_sql_inserts() -> None:
    body = "".join(hashlib.md5(str(n).encode()).hexdigest() for n in range(1, 401))
    event = change_of(recorded("app.article", 2, 0))
    assert event.after is not None and event.after[3] == body


def decoded_changes(name: str, *tables: Table) -> dict[tuple[int, str], object]:
    """By lsn and operation: the decoded change without its place in Kafka, or the id of the refusal."""
    found: dict[tuple[int, str], object] = {}
    for record in records(name):
        if record.value is None or record.at.topic.endswith(".transaction"):
            continue
        try:
            event = decoder(*tables, prefix=name).decode(record)
        except UndecodableEvent as error:
            envelope = json.loads(record.value)
            envelope = envelope.get("payload", envelope)
            found[envelope["source"]["lsn"], envelope["op"]] = error.id
        else:
            if isinstance(event, ChangeEvent):
                where = replace(event.origin, at=TopicPartition("", 0), offset=0, run_id=None)
                found[event.origin.position.lsn, event.op.value] = replace(event, origin=where)
    return found


def test_records_with_schemas_decode_like_those_without() -> None:
    plain = decoded_changes("profile")
    assert len(plain) == 36
    assert decoded_changes("schemas") == plain


@pytest.mark.parametrize("tables", [TABLES, (FINITE_TYPES,)], ids=["every column", "without infinite dates"])
def test_untuned_connector_is_refused_or_read_correctly(tables: tuple[Table, ...]) -> None:
    tuned, untuned = decoded_changes("profile", *tables), decoded_changes("defaults", *tables)
    ids = {place: event for place, event in untuned.items() if isinstance(event, str)}
    assert set(ids.values()) <= {"decimal-mode-wrong", "time-mode-wrong"}
    assert ids
    # In this mode NaN arrives as null, which no single event shows: the settings of the connector are checked for it.
    nan_as_null = (183003504, "c")
    same = {place for place in untuned if place not in ids and place != nan_as_null}
    assert {place: untuned[place] for place in same} == {place: tuned[place] for place in same}


def test_untuned_price_and_date_are_refused_by_name() -> None:
    record = recorded("app.article", 0, 0, "defaults")
    priced = table("article", ("id",), {"id": "bigint", "price": "numeric(10,2)"})
    dated = table("article", ("id",), {"id": "bigint", "published": "date"})
    for one, id, column in ((priced, "decimal-mode-wrong", "price"), (dated, "time-mode-wrong", "published")):
        with pytest.raises(UndecodableEvent, match=f"column {column}: ") as raised:
            decoder(one, prefix="defaults").decode(record)
        assert raised.value.id == id


@pytest.mark.parametrize("name", list(REFUSED_COLUMNS))
def test_recorded_column_that_would_be_misread_is_refused_before_the_first_event(name: str) -> None:
    one = table("types", ("id",), {"id": "integer", name: REFUSED_COLUMNS[name]})
    with pytest.raises(ConfigError, match=f"column {name}") as raised:
        decoder(one)
    assert [p.id for p in raised.value.problems] == ["type-refused"]


def test_special_numbers_of_the_recorded_row_are_read() -> None:
    event = change_of(recorded("app.types", 1, 0), FINITE_TYPES)
    values = dict(zip(FINITE_TYPES.names, event.after or (), strict=True))
    assert {n: v for n, v in values.items() if v is not None} == {
        "id": "2", "r": "NaN", "d": "Infinity", "n": "NaN", "tstz": "-infinity",
    }  # fmt: skip


def test_infinite_date_is_refused_not_misread() -> None:
    error = refused(recorded("app.types", 1, 0))
    assert (error.id, "column da" in error.message) == ("infinity-unreadable", True)


@pytest.mark.parametrize(
    ("topic", "partition", "offset"),
    [("app.article", 2, 2), ("app.article", 0, 8)],
    ids=["dropped", "renamed"],
)
def test_column_that_is_gone_is_named(topic: str, partition: int, offset: int) -> None:
    for name in ("lang", "subtitle" if offset == 8 else "tagline"):
        error = refused(
            recorded(topic, partition, offset), table("article", ("id",), {**ARTICLE_COLUMNS, name: "text"})
        )
        assert (error.id, f"column {name}" in error.message) == ("column-absent", True)


def test_added_column_is_not_looked_at() -> None:
    assert change_of(recorded("app.article", 1, 4)).key == ("11",)


def test_delete_above_a_create_keeps_both_positions() -> None:
    delete, create = change_of(recorded("app.composite", 1, 7)), change_of(recorded("app.composite", 1, 9))
    assert (delete.op, create.op) == (Op.DELETE, Op.CREATE)
    assert create.origin.position > delete.origin.position
    assert create.origin.position.lsn < delete.origin.position.lsn


def test_table_without_configuration_is_ignored() -> None:
    assert decoder().decode(recorded("app.nokey", 1, 0)) == Ignored(RUN_ID)


def test_every_record_carries_its_run_id() -> None:
    decoded = [decoder().decode(r) for r in (CREATE, UPDATE, DELETE, TRUNCATE, recorded("app.article", 0, 5))]
    assert {d.run_id if isinstance(d, Ignored) else d.origin.run_id for d in decoded} == {RUN_ID}


def test_origin_is_what_the_source_block_says() -> None:
    origin = change_of(UPDATE).origin
    assert (origin.at, origin.offset) == (TopicPartition("profile.app.article", 0), 2)
    assert (origin.xid, origin.source_ts_ms) == (1014, 1795264257686)
    assert origin.position == Position(1, 182998936, 182998936)
    assert decoder(epoch=7).decode(UPDATE).origin.position.epoch == 7  # type: ignore[union-attr]


# --- operations


def test_delete_reads_only_the_key_of_its_before_image() -> None:
    def spoil(envelope: dict[str, Any]) -> None:
        envelope["before"].update(price="BM4=", published=1, updated_at=None)
        del envelope["before"]["body"]

    event = change_of(changed(DELETE, spoil))
    assert (event.op, event.key, event.after) == (Op.DELETE, ("3",), None)


def test_truncate_and_read_events() -> None:
    truncate = decoder().decode(TRUNCATE)
    assert isinstance(truncate, TruncateEvent)
    assert (truncate.table, truncate.origin.position) == ("composite", Position(1, 183004496, 183007408))
    read = decoder().decode(changed(CREATE, lambda e: e.update(op="r")))
    assert isinstance(read, ReadEvent)
    assert read.table == "article"


def test_read_event_without_a_place_in_the_log_is_still_a_read_event() -> None:
    def strip(envelope: dict[str, Any]) -> None:
        envelope["op"] = "r"
        envelope["source"].update(lsn=None, sequence=None, txId=None)

    assert isinstance(decoder().decode(changed(CREATE, strip)), ReadEvent)


@pytest.mark.parametrize("op", ["u", "c"])
def test_unchanged_toast_is_unavailable_in_updates_and_in_the_create_of_a_key_change(op: str) -> None:
    def put(envelope: dict[str, Any]) -> None:
        envelope["op"] = op
        envelope["after"].update(tags=["__debezium_unavailable_value"])

    event = change_of(changed(CREATE, put))
    assert event.after is not None and event.after[5] is UNAVAILABLE


def test_placeholder_is_a_real_text_under_full_identity() -> None:
    record = changed(recorded("app.fullident", 0, 1), lambda e: e["after"].update(body="__debezium_unavailable_value"))
    event = change_of(record)
    assert event.after is not None and event.after[1] == "__debezium_unavailable_value"


def test_update_without_before_image_under_full_identity_is_refused() -> None:
    record = changed(recorded("app.fullident", 0, 1), lambda e: e.update(before=None))
    assert refused(record).id == "replica-identity-changed"


def test_schema_and_table_choose_the_columns_where_two_tables_share_a_topic() -> None:
    other = replace(ARTICLE, name="art#icle", alias="other")
    same_topic = replace(ARTICLE, name="art$icle", alias="same")
    assert {table_topic("profile", t.schema, t.name) for t in (other, same_topic)} == {"profile.app.art_icle"}
    at = TopicPartition("profile.app.art_icle", 0)
    for one in (other, same_topic):
        record = changed(replace(CREATE, at=at), lambda e, one=one: e["source"].update(table=one.name))  # type: ignore[misc]
        assert change_of(record, other, same_topic).table == one.alias


# --- records that are not changes


def test_tombstones_heartbeats_transaction_metadata_and_foreign_topics_are_ignored() -> None:
    kinds = [
        replace(CREATE, value=None),
        RawRecord(TopicPartition("__debezium-heartbeat.profile", 0), 0, 0, b"{}", b'{"ts_ms":1}'),
        RawRecord(TopicPartition("profile.transaction", 0), 0, 0, b"{}", b'{"status":"BEGIN"}'),
        RawRecord(TopicPartition("profile.app.unknown", 0), 0, 0, b"{}", b"not json"),
        changed(CREATE, lambda e: e["source"].update(table="elsewhere")),
    ]
    assert all(isinstance(decoder().decode(kind), Ignored) for kind in kinds)


def message(content: object, **source: Any) -> RawRecord:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()

    def put(envelope: dict[str, Any]) -> None:
        envelope["message"]["content"] = base64.b64encode(data).decode()
        envelope["source"].update(source)

    return changed(MESSAGE, put)


def test_pulse_and_barrier_of_this_migration() -> None:
    pulse = decoder().decode(message({"migration": "shop", "pulse": 12, "token": "pulse-12"}))
    assert isinstance(pulse, PulseEvent)
    assert (pulse.migration, pulse.number, pulse.token, pulse.origin.position.lsn) == (
        "shop",
        12,
        "pulse-12",
        183004248,
    )
    barrier = decoder().decode(message({"migration": "shop", "pulse": None, "token": "t"}))
    assert isinstance(barrier, PulseEvent)
    assert (barrier.number, barrier.token) == (None, "t")


@pytest.mark.parametrize(
    "record",
    [
        MESSAGE,
        recorded("message", 1, 1),
        message({"migration": "other", "pulse": 1, "token": "t"}),
        message({"migration": "shop", "pulse": 1}),
        message({"migration": "shop", "pulse": "1", "token": "t"}),
        message({"migration": "shop", "pulse": True, "token": "t"}),
        message({"migration": "shop", "pulse": 1, "token": "t"}, txId=None),
        message(["migration"]),
        message(b"\xff"),
        message(b""),
        changed(MESSAGE, lambda e: e["message"].update(prefix="someone-else")),
        changed(MESSAGE, lambda e: e["message"].update(content="not base64!")),
        changed(MESSAGE, lambda e: e["message"].update(content=5)),
        changed(MESSAGE, lambda e: e.update(message=None)),
    ],
)  # fmt: skip
def test_any_other_message_is_ignored(record: RawRecord) -> None:
    assert decoder().decode(record) == Ignored()


# --- records that must stop the stream


def without(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda envelope: [envelope.pop(name) for name in names]


ENVELOPES: list[tuple[str, RawRecord]] = [
    ("record-undecodable", replace(CREATE, value=b"\x00\x00\x00\x00\x01avro")),
    ("record-undecodable", replace(CREATE, value=b"")),
    ("record-undecodable", replace(CREATE, key=b"not json")),
    ("envelope-unknown", replace(CREATE, value=json.dumps(json.loads(CREATE.value or b"")["after"]).encode())),
    ("envelope-unknown", replace(CREATE, value=b"[]")),
    ("envelope-unknown", replace(CREATE, value=b'{"schema":{},"payload":null}')),
    ("envelope-unknown", changed(CREATE, without("source"))),
    ("envelope-unknown", changed(CREATE, without("op"))),
    ("operation-unknown", changed(CREATE, lambda e: e.update(op="x"))),
    ("connector-unknown", changed(CREATE, lambda e: e["source"].update(connector="mysql"))),
    ("connector-unknown", changed(CREATE, lambda e: e["source"].update(name="another"))),
    ("debezium-too-old", changed(CREATE, lambda e: e["source"].update(version="3.6.3.Final"))),
    ("debezium-too-old", changed(CREATE, lambda e: e["source"].update(version="2.10.0.Final"))),
    ("debezium-too-old", changed(CREATE, lambda e: e["source"].pop("version"))),
    ("position-absent", changed(CREATE, lambda e: e["source"].update(lsn=None))),
    ("position-absent", changed(CREATE, lambda e: e["source"].update(sequence=None))),
    ("position-absent", changed(CREATE, lambda e: e["source"].update(sequence='["1"]'))),
    ("position-absent", changed(CREATE, lambda e: e["source"].update(txId=None))),
    ("position-absent", changed(TRUNCATE, lambda e: e["source"].update(lsn=None))),
    ("image-absent", changed(CREATE, lambda e: e.update(after=None))),
    ("image-absent", changed(CREATE, without("after"))),
    ("image-absent", changed(DELETE, lambda e: e.update(before=None))),
    ("key-absent", replace(CREATE, key=None)),
    ("key-absent", replace(changed(CREATE, lambda e: e["after"].update(id=None)), key=b'{"id":null}')),
    ("key-mismatch", replace(CREATE, key=b'{"id":2}')),
    ("key-mismatch", replace(CREATE, key=b'{"id":1,"tenant_id":1}')),
    ("key-mismatch", replace(CREATE, key=b"1")),
    ("key-mismatch", replace(CREATE, key=b"null")),
    ("key-mismatch", changed(DELETE, lambda e: e["before"].update(id=None))),
    ("column-absent", changed(CREATE, lambda e: e["after"].pop("body"))),
    ("value-unreadable", changed(CREATE, lambda e: e["after"].update(title=5))),
    ("value-unreadable", changed(CREATE, lambda e: e["after"].update(tenant_id="1"))),
    ("decimal-mode-wrong", changed(CREATE, lambda e: e["after"].update(price=12.3))),
    ("time-mode-wrong", changed(CREATE, lambda e: e["after"].update(published=20484))),
    ("array-nested", changed(CREATE, lambda e: e["after"].update(tags=["[Ljava.lang.String;@5dd0428e"]))),
]


@pytest.mark.parametrize(("id", "record"), ENVELOPES)
def test_record_outside_the_profile_is_refused(id: str, record: RawRecord) -> None:
    assert refused(record).id == id


def test_key_that_equals_the_placeholder_is_refused() -> None:
    placeholder = "__debezium_unavailable_value"
    record = changed(recorded("app.composite", 0, 0), lambda e: e["after"].update(org=placeholder))
    error = refused(replace(record, key=json.dumps({"org": placeholder, "seq": 1}).encode()))
    assert (error.id, "column org" in error.message) == ("key-absent", True)


@pytest.mark.parametrize("version", ["3.7.0.Final", "3.7.1.Final", "3.10.0.Alpha1", "4.0.0.Final"])
def test_newer_debezium_is_read(version: str) -> None:
    assert change_of(changed(CREATE, lambda e: e["source"].update(version=version))).key == ("1",)


@given(st.sampled_from(ARTICLE.names), st.text(alphabet="xyzäö☃", min_size=8), st.booleans())
def test_no_error_repeats_a_value(name: str, secret: str, is_list: bool) -> None:
    value = [[secret]] if is_list else {secret: secret}
    record = changed(CREATE, lambda e: e["after"].update({name: value, "title": secret}))
    if name == "id":
        record = replace(record, key=json.dumps({"id": value}).encode())
    with pytest.raises(UndecodableEvent) as raised:
        decoder().decode(record if name != "title" else changed(record, lambda e: e["after"].update(title=value)))
    assert raised.value.id in {"value-unreadable", "decimal-mode-wrong"}
    assert secret not in f"{raised.value} {raised.value.message} {raised.value.hint}"
    assert f"column {name}" in raised.value.message


@given(
    st.binary() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_are_refused_and_never_crash(value: bytes) -> None:
    with pytest.raises(UndecodableEvent):
        decoder().decode(replace(CREATE, value=value))


# --- run ids and topics


@pytest.mark.parametrize("value", [RUN_ID.encode(), json.dumps(RUN_ID).encode()])
def test_run_id_is_the_same_under_either_header_converter(value: bytes) -> None:
    assert change_of(replace(CREATE, headers=(("__debezium.context.runId", value),))).origin.run_id == RUN_ID


def test_run_id_is_unknown_where_the_header_is_absent() -> None:
    assert change_of(replace(CREATE, headers=())).origin.run_id is None


def test_topics_are_the_tables_and_the_messages() -> None:
    assert topics("p", [ARTICLE, COMPOSITE]) == ("p.app.article", "p.app.composite", "p.message")
    assert message_topic("p") == "p.message"
    strange = Table(1, "a", "we ird", "Tä$ble", ("id",), (Column("id", "integer", "integer"),), "", ())
    assert table_topic("p", "we ird", "Tä$ble") == "p.we_ird.T__ble"
    assert table_topic("p", "we ird", "x😀") == "p.we_ird.x__"
    assert topics("p", [strange, replace(strange, name="T__ble")]) == ("p.we_ird.T__ble", "p.message")


def test_recorded_topics_are_the_expected_ones() -> None:
    seen = {r.at.topic for r in records("profile")}
    assert set(topics("profile", (ARTICLE, COMPOSITE, FULLIDENT, TYPES))) <= seen
