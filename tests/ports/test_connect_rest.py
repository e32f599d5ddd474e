"""`ConnectRest` keeps what `daemon.ports.Capture` promises; and a barrier's way from the source into Kafka and back."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator

import orjson
import psycopg
import pytest

from connectors.connect_rest import ConnectRest
from connectors.kafka_feed import KafkaFeed
from connectors.postgres_source import PostgresSource
from daemon.core.model import TopicPartition
from daemon.errors import PermissionRefused, TransientError
from sandbox.corpus import PUBLICATION
from sandbox.pipeline import Pipeline, capture_tables
from sandbox.stack import Sandbox
from tests.ports.loopback import Loopback, loopback

DEADLINE_S = 60.0

_numbers = itertools.count(1)


@pytest.fixture
async def server() -> AsyncIterator[Loopback]:
    async with loopback() as server:
        yield server


@pytest.fixture
async def capture(server: Loopback) -> AsyncIterator[ConnectRest]:
    capture = ConnectRest(server.url + "/", "a connector/1", "user", "secret")
    yield capture
    await capture.close()


@pytest.fixture(scope="module")
def pipeline(stack: Sandbox) -> Iterator[Pipeline]:
    name = f"rest{next(_numbers)}"
    dsn = stack.create_database("source", name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE articles (id int PRIMARY KEY, body text)")
        connection.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLE articles".encode())
    pipeline = capture_tables(stack, dsn, name, ["public.articles"])
    yield pipeline
    pipeline.connector.delete()


# --- the real connector


@pytest.mark.system
async def test_a_barrier_comes_back_with_its_lsn_and_connect_passes_it(stack: Sandbox, pipeline: Pipeline) -> None:
    """The LSN that `emit` returns is the event's `source.lsn`; Connect's committed `lsn` reaches it."""
    prefix = pipeline.capture.prefix
    source = PostgresSource(pipeline.capture.dsn, prefix, PUBLICATION, "revector:test:source")
    feed = KafkaFeed({"bootstrap.servers": stack.kafka}, pipeline.topics, f"{prefix}.message", "g", "c")
    capture = ConnectRest(stack.connect_url, prefix)
    message = TopicPartition(f"{prefix}.message", 0)
    try:
        await feed.seek(await feed.ends())
        lsn = await source.emit(b"token")
        deadline = time.monotonic() + DEADLINE_S
        while not (found := [r for r in (await feed.poll(100, 1)).records if r.at == message]):
            assert time.monotonic() < deadline
        event = orjson.loads(found[0].value or b"")
        assert event["source"]["lsn"] == lsn and event["message"]["prefix"] == "revector"
        while (committed := await capture.committed_lsn() or 0) < lsn:
            assert time.monotonic() < deadline
        assert committed >= lsn
        slot = await source.slot()
        assert slot.active and slot.wal_status == "reserved"
    finally:
        await feed.close()
        await source.close()
        await capture.close()


@pytest.mark.system
async def test_the_real_connector_is_seen_without_its_password(stack: Sandbox, pipeline: Pipeline) -> None:
    capture = ConnectRest(stack.connect_url, pipeline.capture.prefix)
    try:
        config = await capture.config()
        assert config is not None
        assert (config["errors.tolerance"], config["database.password"]) == ("none", "***")
        assert config["topic.prefix"] == pipeline.capture.prefix
        assert await capture.version() == "3.7.0.Final"
        assert await capture.state() == "running"
        pipeline.connector.pause()
        await until_state(capture, "paused")
        pipeline.connector.stop()
        await until_state(capture, "stopped")
        pipeline.connector.resume()
        await until_state(capture, "running")
    finally:
        await capture.close()


async def until_state(capture: ConnectRest, wanted: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (state := await capture.state()) != wanted:
        assert time.monotonic() < deadline, state
        await asyncio.sleep(0.02)


@pytest.mark.system
async def test_a_connector_that_is_not_there_is_absent(stack: Sandbox) -> None:
    capture = ConnectRest(stack.connect_url, "nobody")
    try:
        assert await capture.state() == "absent"
        assert await capture.config() is None
        assert await capture.committed_lsn() is None
        assert await capture.version() is None
    finally:
        await capture.close()


@pytest.mark.system
async def test_a_failed_connector_is_failed(stack: Sandbox, pipeline: Pipeline) -> None:
    name = f"{pipeline.capture.prefix}_failing"
    capture, failing = ConnectRest(stack.connect_url, name), stack.connector(name)
    changes = {"name": name, "slot.name": name, "topic.prefix": name, "publication.name": "not_there"}
    failing.register({**pipeline.connector.config(), **changes})
    try:
        await until_state(capture, "failed")
    finally:
        failing.delete()
        await capture.close()


# --- answers from loopback


def status(connector: str, *tasks: str) -> bytes:
    return orjson.dumps(
        {"name": "c", "connector": {"state": connector}, "tasks": [{"id": n, "state": s} for n, s in enumerate(tasks)]}
    )


@pytest.mark.parametrize(
    ("connector", "tasks", "state"),
    [
        ("RUNNING", ["RUNNING"], "running"),
        ("RUNNING", ["FAILED"], "failed"),
        ("RUNNING", ["RUNNING", "PAUSED"], "paused"),
        ("PAUSED", ["FAILED"], "failed"),
        ("RUNNING", ["RESTARTING"], "unassigned"),
        ("RUNNING", [], "unassigned"),
        ("STOPPED", [], "stopped"),
        ("UNASSIGNED", ["RUNNING"], "unassigned"),
    ],
)
async def test_the_state_is_the_worst_of_all_parts(
    server: Loopback, capture: ConnectRest, connector: str, tasks: list[str], state: str
) -> None:
    server.answer(200, status(connector, *tasks))
    assert await capture.state() == state
    assert server.requests[0].line == "GET /connectors/a%20connector%2F1/status HTTP/1.1"
    assert server.requests[0].headers["authorization"].startswith("Basic ")


def offsets(*lsns: tuple[str, dict[str, int] | None]) -> bytes:
    return orjson.dumps({"offsets": [{"partition": {"server": s}, "offset": o} for s, o in lsns]})


async def test_the_committed_lsn_is_the_present_partitions(server: Loopback, capture: ConnectRest) -> None:
    server.answer(200, offsets())
    assert await capture.committed_lsn() is None
    server.answer(200, offsets(("shop", {"lsn": 7, "lsn_proc": 9, "lsn_commit": 8})))
    assert await capture.committed_lsn() == 7
    server.answer(200, offsets(("shop", None)))
    assert await capture.committed_lsn() is None
    both = offsets(("before", {"lsn": 99}), ("shop", {"lsn": 7}))
    server.answers = [(200, {}, both), (200, {}, b'{"topic.prefix": "shop"}')]
    assert await capture.committed_lsn() == 7


async def test_of_two_installed_versions_the_running_one_counts(server: Loopback, capture: ConnectRest) -> None:
    config: tuple[int, dict[str, str], bytes] = (200, {}, b'{"connector.class": "P"}')
    plugins = [{"class": "P", "version": v} for v in ("1", "2")] + [{"class": "Q", "version": "3"}]
    running = orjson.dumps({"connector": {"state": "RUNNING", "version": "2"}, "tasks": []})
    server.answers = [config, (200, {}, orjson.dumps(plugins)), (200, {}, running)]
    assert await capture.version() == "2"
    server.answers = [config, (200, {}, orjson.dumps(plugins)), (200, {}, status("RUNNING"))]
    assert await capture.version() is None
    server.answers = [config, (200, {}, orjson.dumps(plugins[2:]))]
    assert await capture.version() is None


async def test_secrets_of_any_name_are_hidden(server: Loopback, capture: ConnectRest) -> None:
    names = ["database.password", "database.sslkey.password", "x.sasl.jaas.config", "my.secret.key", "auth.token"]
    server.answer(200, orjson.dumps({**dict.fromkeys(names, "hidden"), "slot.name": "shown"}))
    assert await capture.config() == {**dict.fromkeys(names, "***"), "slot.name": "shown"}


@pytest.mark.parametrize(
    ("status_code", "kind", "id"),
    [
        (401, PermissionRefused, "password-refused"),
        (403, PermissionRefused, "password-refused"),
        (409, TransientError, "connect-unreachable"),
        (500, TransientError, "connect-unreachable"),
        (302, TransientError, "connect-unreachable"),
    ],
)
async def test_other_answers_are_errors(
    server: Loopback, capture: ConnectRest, status_code: int, kind: type[Exception], id: str
) -> None:
    server.answer(status_code, b"prose", location="http://127.0.0.1:1/")
    for question in (capture.state, capture.config, capture.committed_lsn, capture.version):
        with pytest.raises(kind, match=str(status_code)) as caught:
            await question()
        assert getattr(caught.value, "id") == id and "prose" not in str(caught.value)  # noqa: B009


async def test_no_json_and_no_server_are_transient(server: Loopback, capture: ConnectRest) -> None:
    server.answer(200, b"<html>")
    with pytest.raises(TransientError, match="JSON"):
        await capture.state()
    nobody = ConnectRest("http://127.0.0.1:1", "c")
    with pytest.raises(TransientError, match="no connection") as caught:
        await nobody.state()
    assert caught.value.id == "connect-unreachable"
    await nobody.close()
    await nobody.close()


async def test_a_worker_that_does_not_answer_is_given_up(
    server: Loopback, capture: ConnectRest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.connect_rest.TIMEOUT_S", 0.2)
    server.hangs = True
    with pytest.raises(TransientError, match="timed out"):
        await capture.state()
