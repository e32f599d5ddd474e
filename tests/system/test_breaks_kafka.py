"""What breaks or halts on the way through Kafka and Connect: how it is said, what is asked for, and that nothing wrong
stands after it.

Each test does the damage by Kafka's and Connect's own means, demands the evidence and the command in `status`, follows
it as told, and ends with a certificate and the independent comparison.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from sandbox.compare import Differences
from sandbox.config import Gen
from sandbox.connect import Connector, debezium_profile, request
from sandbox.kafka import LARGEST_MESSAGE_BYTES
from sandbox.pipeline import PARTITIONS, create_topics
from tests.system.migration import GENERATION_LIMITS, Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 50) n"
SECRET = "sesame of a row"
TOPIC = {"cleanup.policy": "delete", "retention.ms": "-1", "max.message.bytes": str(LARGEST_MESSAGE_BYTES)}
DEFAULT_BYTES = 1048588  # of a topic's max.message.bytes, in Kafka


def topic_of(m: Migration) -> str:
    return f"{m.name}.app.doc"


def ends(m: Migration) -> list[int]:
    """End offsets of the data topic, by partition."""
    admin = m.stack.broker.admin()
    places = [TopicPartition(topic_of(m), n) for n in range(PARTITIONS)]
    latest: Any = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    answers = admin.list_offsets(dict.fromkeys(places, latest))
    return [answers[at].result(30).offset for at in places]


def in_kafka(m: Migration, statement: str) -> None:
    """Change rows at the source; returns when an event of each is in Kafka."""
    before = sum(ends(m))
    rows = m.source.execute(statement.encode()).rowcount
    m.until(lambda: sum(ends(m)), lambda n: n >= before + rows, "the changes in Kafka")


def made_anew(m: Migration) -> None:
    """The data topic of the same name, and nothing in it."""
    admin, topic = m.stack.broker.admin(), topic_of(m)
    admin.delete_topics([topic])[topic].result(30)

    def create() -> bool:
        with suppress(KafkaException):  # it is still being deleted
            admin.create_topics([NewTopic(topic, PARTITIONS, 1, config=TOPIC)])[topic].result(30)
            return True
        return False

    m.until(create, bool, "the topic to be made again")

    def led() -> bool:
        with suppress(KafkaException):
            return sum(ends(m)) >= 0
        return False

    m.until(led, bool, "its partitions to have leaders")


def topic_id(m: Migration) -> str:
    query = "select feed->'topics'->%s->>0 from revector.migration where name = %s"
    (found,) = m.target.execute(query, [topic_of(m), m.name]).fetchall()[0]
    return str(found)


def halted(m: Migration, id: str, nth: int = 1) -> dict[str, Any]:
    """Wait until it halts for the nth time; status's first reason. It halted for `id`, and the journal has why."""
    m.until(m.log.read_text, lambda text: text.count("supervise: halted: ") == nth, "the halt")
    query = "select halted->'stream'->>'id' from revector.control where migration = %s"
    m.until(lambda: m.target.execute(query, [m.name]).fetchone(), lambda row: row == (id,), "the halt to be recorded")
    seen = m.until(lambda: m.asked("status"), lambda s: s["verdict"] == "halted", "status to say so")
    first: dict[str, Any] = seen["blockers"][0]
    assert (first["id"], first["message"]) == (id if id == "identity-changed" else "halted", id)
    query = "select detail->>'message' from revector.journal where migration = %s and kind = 'halt' order by id desc"
    assert m.target.execute(query, [m.name]).fetchone() == (first["evidence"],)
    return first


def go_on(m: Migration, halt: dict[str, Any], nth: int = 1) -> dict[str, Any]:
    """The command that status names shows a plan; confirmed, the process goes on by itself."""
    assert halt["command"] == f"revector realign {m.name}"
    done = m.asked("realign", "--confirm", m.name)
    assert done["realigned"] is True
    m.until(m.log.read_text, lambda text: text.count("the stream was realigned: going on") == nth, "it to go on")
    return done


def mended(m: Migration) -> None:
    """No certificate; after a repair one can be had, and everything is equal."""
    m.source.execute("update app.doc set title = title || ' at last' where id = 30")
    m.until(lambda: m.replica("title"), lambda rows: ("title 30 at last",) in rows, "what comes after it")
    assert m.prove(code=3, timeout_s=1)["proven"] is False
    assert m.verify("--repair")["clean"] is True
    m.prove(timeout_s=60)
    assert m.differences() == Differences()


def get(m: Migration, path: str) -> tuple[int, str]:
    """What the newest daemon answers."""
    url = re.findall(r"status and metrics at (http://[0-9.:]+)", m.log.read_text())[-1]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url + path, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def over_http(m: Migration) -> dict[str, Any]:
    """The daemon's last look at its status, which may be some seconds old; empty before its first."""
    code, text = get(m, "/v1/status")
    status: dict[str, Any] = json.loads(text) if code == 200 else {}
    return status


def test_what_retention_took_while_we_were_down_halts_and_the_process_answers(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("ready")
    applied = ends(m)
    assert m.stop(daemon) == 0
    in_kafka(m, "update app.doc set body = 'taken' where id <= 45")
    admin, upto = m.stack.broker.admin(), ends(m)
    taken = admin.delete_records([TopicPartition(topic_of(m), n, end) for n, end in enumerate(upto)])
    for future in taken.values():
        future.result(30)
    in_kafka(m, "update app.doc set views = 7 where id = 50")
    m.start()
    halt = halted(m, "offsets-gone")
    for n, (before, first, end) in enumerate(zip(applied, upto, ends(m), strict=True)):
        assert f"{topic_of(m)}-{n} goes on at {before}, the broker has {first} to {end}" in halt["evidence"]
    assert "retention" in halt["remedy"]
    assert m.replica("views", "doc")[-1] == (0,), "it jumped"

    assert get(m, "/readyz") == (503, "halted: offsets-gone\n")
    seen = m.until(lambda: over_http(m), lambda status: status.get("verdict") == "halted", "the status over HTTP")
    assert seen["blockers"][0]["evidence"] == halt["evidence"]
    assert "revector_process_halted 1" in get(m, "/metrics")[1].replace(".0", "")

    done = go_on(m, halt)
    skipped = [p["skipped"] for p in done["partitions"] if p["topic"] == topic_of(m)]
    assert skipped == [end - before for before, end in zip(applied, ends(m), strict=True)]
    assert get(m, "/readyz") == (200, "ok\n")
    mended(m)


def test_a_topic_that_was_made_anew_or_grew_halts_whether_we_were_up_or_down(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("ready")
    in_kafka(m, "update app.doc set views = 1")
    m.wait("caught-up")
    first = topic_id(m)
    made_anew(m)
    in_kafka(m, "update app.doc set body = 'in a topic that nobody knows' where id <= 20")
    halt = halted(m, "identity-changed")
    assert f"kafka topic {topic_of(m)} id was {first}, is " in halt["evidence"]
    assert first not in halt["evidence"].split("is ")[-1]
    go_on(m, halt)
    second = topic_id(m)
    assert second != first

    assert m.stop(daemon) == 0
    made_anew(m)
    m.start()
    halt = halted(m, "identity-changed", 2)
    assert f"id was {second}, is " in halt["evidence"]
    m.source.execute("delete from app.doc where id <= 5")
    go_on(m, halt, 2)

    admin = m.stack.broker.admin()
    admin.create_partitions([NewPartitions(topic_of(m), PARTITIONS + 1)])[topic_of(m)].result(30)
    halt = halted(m, "identity-changed", 3)
    grown = f"kafka topic {topic_of(m)} partitions was {PARTITIONS}, is {PARTITIONS + 1}"
    assert halt["evidence"].endswith(grown), "nobody would read the new one"
    go_on(m, halt, 3)
    mended(m)


def test_another_cluster_behind_the_address_is_not_followed(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("ready")
    (cluster,) = m.target.execute("select feed->>'cluster_id' from revector.migration").fetchall()[0]
    assert m.stop(daemon) == 0
    other = m.stack.other_broker()
    try:
        create_topics(other.admin(), {topic_of(m): PARTITIONS, f"{m.name}.message": 1})
        config = m.config.read_text()
        m.config.write_text(config.replace(m.stack.broker.address, other.address))
        daemon = m.start()
        halt = halted(m, "identity-changed")
        assert f"kafka cluster_id was {cluster}, is " in halt["evidence"]
        assert "same source, slot and Kafka again" in halt["remedy"]
        assert m.prove(code=3, timeout_s=1)["proven"] is False
        assert m.stop(daemon) == 0
    finally:
        other.stop()
    m.config.write_text(config)
    m.start()
    query = "select halted is null from revector.control where migration = %s"
    m.until(lambda: m.target.execute(query, [m.name]).fetchone(), lambda row: row == (True,), "its start")
    m.source.execute("update app.doc set body = 'after all' where id = 1")
    m.wait("caught-up")
    assert m.verify()["clean"] is True
    m.prove(timeout_s=60)
    assert m.differences() == Differences()


def test_records_that_nobody_of_ours_wrote_halt_one_by_one_and_their_text_stays_where_it_is(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    m.start()
    m.wait("ready")
    in_kafka(m, "update app.doc set title = 'genuine' where id = 7")
    foreign = (
        ("record-undecodable", b'{"id": 7}', SECRET.encode()),
        ("envelope-unknown", b'{"id": 7}', json.dumps({"id": 7, "title": SECRET}).encode()),
        ("key-mismatch", json.dumps({"id": SECRET}).encode(), genuine(m)),
    )
    producer = Producer({"bootstrap.servers": m.stack.kafka})
    for nth, (id, key, value) in enumerate(foreign, 1):
        offset = ends(m)[1]
        producer.produce(topic_of(m), value, key, partition=1)
        assert producer.flush(30) == 0
        halt = halted(m, id, nth)
        assert f"topic {topic_of(m)} partition 1 offset {offset}: " in halt["evidence"]
        assert SECRET not in json.dumps(m.asked("status"))
        go_on(m, halt, nth)
    m.source.execute("update app.doc set body = 'genuine again' where id = 7")
    mended(m)
    assert SECRET not in m.log.read_text()
    for table in ("journal", "control", "migration"):
        rows = m.target.execute(f"select * from revector.{table}".encode()).fetchall()
        assert SECRET not in str(rows)


def genuine(m: Migration) -> bytes:
    """The last change event of the data topic."""
    consumer = Consumer({"bootstrap.servers": m.stack.kafka, "group.id": f"{m.name}-look"})
    try:
        places = [TopicPartition(topic_of(m), n, end - 1) for n, end in enumerate(ends(m)) if end]
        consumer.assign(places)
        messages = [consumer.poll(30) for _ in places]
        found = [message.value() for message in messages if message is not None]
        return next(value for value in found if value is not None and b'"u"' in value)
    finally:
        consumer.close()


def connector_of(m: Migration) -> Connector:
    assert m.pipeline is not None
    return m.pipeline.connector


def registered(m: Migration, **overrides: str) -> None:
    """The connector deleted and made again, with settings of its own; streaming when this returns."""
    assert m.pipeline is not None
    connector = connector_of(m)
    connector.delete()
    settings = {name.replace("_", "."): value for name, value in overrides.items()}
    connector.register(debezium_profile(m.pipeline.capture, settings))
    connector.wait_running()
    m.stack.source.wait_slot_active(m.pipeline.capture.slot)


def offsets_lost(m: Migration) -> None:
    """Connect forgets how far the connector was."""
    connector_of(m).stop()
    query = "select active from pg_replication_slots where slot_name = %s"
    m.until(lambda: m.source.execute(query, [m.name]).fetchone(), lambda row: row == (False,), "the slot to be free")
    request(f"{connector_of(m).url}/offsets", "DELETE")


def broken(m: Migration, evidence: str, *ids: str) -> None:
    """Wait until these breaks are open and the journal has this evidence of one; status says all of it."""
    query = "select event, detail::text from revector.journal where migration = %s and kind = 'break'"

    def found() -> list[tuple[str, str]]:
        return m.target.execute(query, [m.name]).fetchall()

    def holds(seen: list[tuple[str, str]]) -> bool:
        return set(ids) <= {id for id, _ in seen} and any(evidence in detail for _, detail in seen)

    m.until(found, holds, f"{', '.join(ids)} to be said with {evidence}")
    seen = m.until(lambda: m.asked("status"), lambda s: s["verdict"] == "degraded: proof broken", "it to be degraded")
    first = next(b for b in seen["blockers"] if b["id"] == "break-open")
    assert evidence in first["evidence"]
    assert set(ids) <= set(first["message"].split(", "))
    assert first["command"].startswith(f"revector verify {m.name}")
    assert all(id in first["evidence"] for id in ids)
    assert "break-open" in {s["id"] for s in m.prove(code=3, timeout_s=1)["shortfalls"]}


def settled(m: Migration) -> None:
    """Two pulses have passed since: whoever reads the slot now is known."""
    query = "select pulse_seen from revector.continuity where migration = %s"
    (before,) = m.target.execute(query, [m.name]).fetchall()[0]
    m.until(lambda: m.target.execute(query, [m.name]).fetchall()[0][0], lambda n: n >= before + 2, "two pulses")


def test_a_connector_with_another_publication_breaks_the_proof_until_it_is_put_back_and_rows_are_mended(
    migrate: Migrate,
) -> None:
    m = migrate(Setting(rows=ROWS))
    m.source.execute("create table app.other (id int primary key)")
    m.source.execute("create publication other for table app.other")
    m.start()
    m.wait("ready")
    registered(m, publication_name="other")
    m.source.execute("update app.doc set body = 'nobody hears of it' where id <= 5")
    broken(m, "publication.name is other", "connector-drift", "connector-restarted")
    registered(m)
    settled(m)
    mended(m)


def test_a_connector_that_lost_its_offsets_or_reads_a_snapshot_brings_nothing_wrong(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    m.start()
    m.wait("ready")
    offsets_lost(m)
    m.source.execute("update app.doc set body = 'the first after the loss' where id <= 5")
    m.source.execute("update app.doc set views = 5 where id = 6")
    connector_of(m).resume()
    broken(m, "lsn", "null-sequence", "connector-restarted")

    # What a snapshot would bring: the row that differs would be overwritten, the one that is gone would be back.
    m.target.execute(f"update {m.name}.doc set views = 777 where id = 20".encode())
    m.target.execute(f"delete from {m.name}.doc where id = 21".encode())
    offsets_lost(m)
    assert m.pipeline is not None
    connector_of(m).register(debezium_profile(m.pipeline.capture, {"snapshot.mode": "initial"}))
    connector_of(m).resume()
    broken(m, "snapshot.mode is initial", "snapshot-event", "connector-drift")
    m.source.execute("update app.doc set body = 'after the snapshot' where id = 50")
    m.until(lambda: m.replica("body"), lambda rows: ("after the snapshot",) in rows, "what comes after the snapshot")
    assert [row for row in m.replica("id, views") if row[0] in (20, 21)] == [(20, 777)]
    registered(m)
    settled(m)
    mended(m)


def limited(m: Migration, most: int) -> None:
    """Set max.message.bytes of the data topic."""
    entry = ConfigEntry("max.message.bytes", str(most), incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic_of(m), incremental_configs=[entry])
    admin = m.stack.broker.admin()
    admin.incremental_alter_configs([resource])[resource].result(30)


def failed(m: Migration, reason: str) -> dict[str, Any]:
    """Wait until the connector's task has failed for this; what status says of it."""

    def why() -> str:
        tasks = connector_of(m).status()["tasks"]
        return next((str(task["trace"]) for task in tasks if task["state"] == "FAILED"), "")

    m.until(why, lambda trace: reason in trace, "the task to fail")
    seen = m.until(
        lambda: m.asked("status"), lambda s: s["parts"]["kafka"] and s["parts"]["kafka"]["connector"], "its state"
    )
    assert seen["verdict"] != "ready to cut over"
    (down,) = (b for b in seen["blockers"] if b["id"] == "connector-down")
    assert down["message"] == "the connector is failed"
    for setting in ("producer.override.max.request.size", "max.message.bytes", "message.max.bytes"):
        assert setting in down["remedy"]
    assert m.prove(code=3, timeout_s=1)["proven"] is False
    return dict(down)


def test_a_document_of_2_mb_fails_a_connector_of_default_sizes_and_passes_one_of_the_profile(migrate: Migrate) -> None:
    generation = Gen(limits=GENERATION_LIMITS, extra={"chunk_tokens": 5000})
    m = migrate(
        Setting(rows=ROWS, generations=(generation,), connector={"producer.override.max.request.size": "1048576"})
    )
    limited(m, DEFAULT_BYTES)
    m.start()
    m.wait("ready")
    m.source.execute("update app.doc set body = repeat('a large document ', 125000) where id = 1")
    down = failed(m, "max.request.size")
    assert re.search(r"RecordTooLargeException: 21\d{5} bytes, the producer's limit is 1048576", down["evidence"])
    assert "large document" not in json.dumps(down)
    m.until(
        lambda: m.revector("doctor", code=None), lambda said: "RecordTooLargeException: 21" in said, "doctor's word"
    )

    assert m.pipeline is not None
    connector_of(m).register(debezium_profile(m.pipeline.capture))
    connector_of(m).restart_task()
    down = failed(m, "the server will accept")
    assert "RecordTooLargeException" in down["evidence"]

    limited(m, LARGEST_MESSAGE_BYTES)
    connector_of(m).restart_task()
    m.until(lambda: [t["state"] for t in connector_of(m).status()["tasks"]], lambda s: s == ["RUNNING"], "the task")
    same = m.source.execute("select md5(body) from app.doc where id = 1").fetchone()
    m.until(lambda: m.replica("id, md5(body)")[0][1:], lambda row: row == same, "the document")
    settled(m)
    m.until(lambda: len(m.chunks("id")), lambda n: n > 100, "its chunks")
    assert m.verify("--repair")["clean"] is True
    m.prove(timeout_s=60)
