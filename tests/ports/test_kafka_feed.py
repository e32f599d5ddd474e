"""`KafkaFeed` keeps what `daemon.ports.ChangeFeed` promises, on a real broker."""

from __future__ import annotations

import ast
import asyncio
import gc
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, Uuid
from confluent_kafka import TopicPartition as At

import connectors
from connectors import kafka_topics
from connectors.kafka_errors import translate
from connectors.kafka_feed import AT_ONCE, MOST_BYTES, KafkaFeed, _consumed
from connectors.kafka_log import KafkaLog
from daemon.core.model import TopicPartition
from daemon.errors import ConfigError, Halt, OffsetsGone, PermissionRefused, TransientError
from daemon.ports import RawRecord
from sandbox.stack import Sandbox

DEADLINE_S = 60.0

_numbers = itertools.count(1)


class Topics:
    """A data topic of two partitions and a message topic, and a transactional writer to them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.number = next(_numbers)
        self.data, self.messages = f"feed{self.number}.public.articles", f"feed{self.number}.message"
        self.first, self.second = TopicPartition(self.data, 0), TopicPartition(self.data, 1)
        self.message = TopicPartition(self.messages, 0)
        settings = {"bootstrap.servers": address, "transactional.id": f"writer{self.number}", "log_level": 0}
        self.producer = Producer(settings)
        self.producer.init_transactions(DEADLINE_S)

    def feed(self, **properties: str) -> KafkaFeed:
        given = {"bootstrap.servers": self.address, **properties}
        return KafkaFeed(given, [self.data], self.messages, f"revector.feed{self.number}", "revector-feed-test")

    def begin(self, *values: bytes, at: TopicPartition | None = None) -> None:
        """A transaction with these records, written and open."""
        to = at or self.first
        self.producer.begin_transaction()
        for value in values:
            self.producer.produce(to.topic, value, key=b"key", partition=to.partition, headers={"run": b"7"})
        assert self.producer.flush(DEADLINE_S) == 0

    def write(self, *values: bytes, at: TopicPartition | None = None) -> None:
        self.begin(*values, at=at)
        self.producer.commit_transaction(DEADLINE_S)

    def write_alone(self, value: bytes) -> None:
        """Outside of a transaction: a broker that was just fenced may lose the marker of one (Kafka 4.3, about once in
        a hundred times), and then no reader passes its records."""
        producer = Producer({"bootstrap.servers": self.address, "enable.idempotence": True, "log_level": 0})
        producer.produce(self.data, value, partition=0)
        assert producer.flush(DEADLINE_S) == 0


@pytest.fixture
async def topics(stack: Sandbox) -> Topics:
    topics = Topics(stack.kafka)
    feed = topics.feed()
    await feed.create_topics({topics.data: 2, topics.messages: 1}, {"cleanup.policy": "delete", "retention.ms": "-1"})
    await feed.close()
    return topics


@pytest.fixture
async def feed(topics: Topics) -> AsyncIterator[KafkaFeed]:
    feed = topics.feed()
    yield feed
    await feed.close()


async def read_to(
    feed: KafkaFeed, goal: dict[TopicPartition, int]
) -> tuple[list[RawRecord], dict[TopicPartition, int]]:
    """Poll until the next offsets of these partitions are the goal's."""
    records: list[RawRecord] = []
    reached: dict[TopicPartition, int] = {}
    deadline = time.monotonic() + DEADLINE_S
    while any(reached.get(at) != offset for at, offset in goal.items()):
        assert time.monotonic() < deadline, f"{reached} instead of {goal}"
        polled = await feed.poll(500, 0.5)
        records += polled.records
        reached.update(polled.next_offsets)
    return records, reached


# --- delivery


@pytest.mark.system
async def test_records_come_in_order_with_all_that_they_carry(feed: KafkaFeed, topics: Topics) -> None:
    ends = await feed.ends()
    assert ends == {topics.first: 0, topics.second: 0, topics.message: 0}
    await feed.seek(ends)
    topics.write(b"a", b"b")
    topics.write(b"m", at=topics.message)
    records, _ = await read_to(feed, {topics.first: 3, topics.message: 2})
    assert [(r.offset, r.value) for r in records if r.at == topics.first] == [(0, b"a"), (1, b"b")]
    (message,) = [r for r in records if r.at == topics.message]
    assert (message.key, message.value, message.headers) == (b"key", b"m", (("run", b"7"),))
    assert abs(message.timestamp_ms / 1000 - time.time()) < DEADLINE_S


@pytest.mark.system
async def test_next_offsets_pass_transaction_markers_and_aborted_records(feed: KafkaFeed, topics: Topics) -> None:
    await feed.seek(await feed.ends())
    topics.write(b"a")
    topics.begin(b"never")
    topics.producer.abort_transaction(DEADLINE_S)
    records, reached = await read_to(feed, {topics.first: 4})  # a, marker, never, marker
    assert [r.value for r in records] == [b"a"]
    assert reached[topics.first] == (await feed.ends())[topics.first]


@pytest.mark.system
async def test_ends_count_records_of_open_transactions(feed: KafkaFeed, topics: Topics) -> None:
    """A read_committed end would equal the checkpoint here and say "caught up" while events wait."""
    await feed.seek(await feed.ends())
    topics.begin(b"a", b"b")
    assert (await feed.ends())[topics.first] == 2
    assert (await feed.poll(10, 0.5)).records == ()
    topics.producer.commit_transaction(DEADLINE_S)
    records, _ = await read_to(feed, {topics.first: 3})
    assert [r.value for r in records] == [b"a", b"b"]


@pytest.mark.system
async def test_seek_goes_back_and_forgets_what_was_fetched(feed: KafkaFeed, topics: Topics) -> None:
    topics.write(*(b"%d" % n for n in range(200)))
    start = {topics.first: 0, topics.second: 0, topics.message: 0}
    await feed.seek(start)
    assert 0 < len((await feed.poll(10, DEADLINE_S)).records) <= 10  # ends of partitions count too
    for first in (0, 150, 20):
        await feed.seek({**start, topics.first: first})
        records, _ = await read_to(feed, {topics.first: 201})
        assert [r.offset for r in records] == list(range(first, 200))


@pytest.mark.system
async def test_an_assigned_partition_only_is_read(feed: KafkaFeed, topics: Topics) -> None:
    topics.write(b"first")
    topics.write(b"second", at=topics.second)
    await feed.seek({topics.second: 0})
    records, reached = await read_to(feed, {topics.second: 2})
    assert [r.value for r in records] == [b"second"]
    assert set(reached) == {topics.second}


@pytest.mark.system
async def test_poll_keeps_to_its_limits(feed: KafkaFeed, topics: Topics) -> None:
    await feed.seek(await feed.ends())
    began = time.monotonic()
    assert await feed.poll(10, 0.2) == await feed.poll(10, 0)
    assert 0.2 <= time.monotonic() - began < 5
    topics.write(b"a", b"b", b"c")
    seen: list[RawRecord] = []
    while len(seen) < 3:
        polled = await feed.poll(1, DEADLINE_S)
        assert len(polled.records) <= 1
        seen += polled.records


class Shelf:
    """Gives what lies on it, as `Consumer.consume` would; all that is asked of a message here is its length."""

    def __init__(self, messages: list[bytes]) -> None:
        self.messages = messages

    def consume(self, num_messages: int, timeout: float) -> list[bytes]:
        taken, self.messages = self.messages[:num_messages], self.messages[num_messages:]
        return taken


@pytest.mark.parametrize(("size", "taken"), [(10, 1000), (MOST_BYTES // AT_ONCE + 1, AT_ONCE), (2**20, AT_ONCE)])
def test_a_poll_ends_at_its_most_bytes(size: int, taken: int) -> None:
    shelf = Shelf([bytes(size)] * 1200)
    assert len(_consumed(cast(Consumer, shelf), 1000, time.monotonic() + DEADLINE_S)) == taken
    assert len(shelf.messages) == 1200 - taken


@pytest.mark.system
async def test_large_records_arrive_in_several_polls(feed: KafkaFeed, topics: Topics) -> None:
    for _ in range(10):
        topics.write(*[b"x" * 512 * 1024] * 10)
    await feed.seek({topics.first: 0, topics.second: 0, topics.message: 0})
    records, _ = await read_to(feed, {topics.first: 110})  # ten transactions, a marker each
    assert [r.offset for r in records] == [n for n in range(110) if n % 11 != 10]


@pytest.mark.system
async def test_the_first_record_does_not_wait_for_the_whole_timeout(feed: KafkaFeed, topics: Topics) -> None:
    await feed.seek(await feed.ends())
    poll = asyncio.create_task(feed.poll(2000, DEADLINE_S))
    await asyncio.to_thread(topics.write, b"a")
    began = time.monotonic()
    assert [r.value for r in (await poll).records] == [b"a"]
    assert time.monotonic() - began < DEADLINE_S / 4


# --- gaps are refused


@pytest.mark.system
@pytest.mark.parametrize("offset", [0, 1000], ids=["deleted", "beyond the end"])
async def test_an_offset_that_is_gone_is_said_and_not_jumped_over(feed: KafkaFeed, topics: Topics, offset: int) -> None:
    topics.write(b"a", b"b", b"c")
    admin = feed._topics._admin()
    for future in admin.delete_records([At(topics.data, 0, 2)]).values():
        future.result(DEADLINE_S)
    await feed.seek({topics.first: offset, topics.second: 0, topics.message: 0})
    with pytest.raises(OffsetsGone, match=f"-0 goes on at {offset}, the broker") as caught:
        await read_to(feed, {topics.first: 4})
    assert caught.value.id == "offsets-gone" and isinstance(caught.value, Halt)
    with pytest.raises(TransientError, match="did not end well"):
        await feed.poll(10, 0.1)
    await feed.seek({topics.first: 2})
    assert [r.value for r in (await read_to(feed, {topics.first: 4}))[0]] == [b"c"]


@pytest.mark.system
async def test_after_unassign_comes_nothing_until_a_seek(feed: KafkaFeed, topics: Topics) -> None:
    await feed.unassign()
    start = {topics.first: 0, topics.second: 0, topics.message: 0}
    await feed.seek(start)
    topics.write(b"a", b"b")
    assert await read_to(feed, {topics.first: 3})
    await feed.unassign()
    await feed.unassign()
    with pytest.raises(TransientError, match="did not end well"):
        await feed.poll(10, 0.1)
    await feed.seek(start)
    records, _ = await read_to(feed, {topics.first: 3})
    assert [r.value for r in records] == [b"a", b"b"]


@pytest.mark.system
async def test_a_cancelled_poll_must_be_followed_by_a_seek(feed: KafkaFeed, topics: Topics) -> None:
    """The records that the cancelled poll took would be skipped: the consumer's position has passed them."""
    await feed.seek(await feed.ends())
    poll = asyncio.create_task(feed.poll(10, DEADLINE_S))
    await asyncio.sleep(0)
    poll.cancel()
    with pytest.raises(asyncio.CancelledError):
        await poll
    topics.write(b"a")
    with pytest.raises(TransientError, match="did not end well") as caught:
        await feed.poll(10, 1)
    assert caught.value.id == "kafka-seek-needed"
    await feed.seek({topics.first: 0, topics.second: 0, topics.message: 0})
    assert [r.value for r in (await read_to(feed, {topics.first: 2}))[0]] == [b"a"]


@pytest.mark.system
async def test_a_topic_that_is_gone_is_said(feed: KafkaFeed) -> None:
    with pytest.raises(OffsetsGone, match=r"nowhere\.at\.all") as caught:
        await feed.seek({TopicPartition("nowhere.at.all", 0): 0})
    assert caught.value.id == "topic-missing"


# --- what the brokers say


def uuids() -> int:
    """Topic ids in this process's memory."""
    return sum(isinstance(held, Uuid) for held in gc.get_objects())


@pytest.mark.system
async def test_identity_changes_when_a_topic_is_made_again(feed: KafkaFeed, topics: Topics, stack: Sandbox) -> None:
    held = uuids()
    identity = await feed.identity()
    assert identity.cluster_id == await asyncio.to_thread(stack.broker.admin().cluster_id)
    assert {name: partitions for name, (_, partitions) in identity.topics.items()} == {
        topics.data: 2,
        topics.messages: 1,
    }
    assert await feed.identity() == identity
    assert uuids() <= held, "the library keeps each one for ever"
    admin = stack.broker.admin()
    for future in admin.delete_topics([topics.data]).values():
        future.result(DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while topics.data in (await feed.identity()).topics:
        assert time.monotonic() < deadline
    with pytest.raises(OffsetsGone, match=topics.data):
        await feed.ends()
    await feed.create_topics({topics.data: 2}, {})
    again = await feed.identity()
    assert again.topics[topics.data] != identity.topics[topics.data]
    assert again.topics[topics.messages] == identity.topics[topics.messages]


@pytest.mark.system
async def test_setup_shows_settings_and_what_is_missing(topics: Topics) -> None:
    feed = KafkaFeed({"bootstrap.servers": topics.address}, [topics.data, "not.there"], topics.messages, "g", "c")
    try:
        data, missing, messages = await feed.setup()
    finally:
        await feed.close()
    assert (data.name, data.partitions, messages.partitions) == (topics.data, 2, 1)
    assert data.config["cleanup.policy"] == "delete" and data.config["retention.ms"] == "-1"
    assert int(data.config["max.message.bytes"]) > 0
    assert (missing.name, missing.partitions, dict(missing.config)) == ("not.there", 0, {})


@pytest.mark.system
async def test_creating_topics_again_changes_nothing(feed: KafkaFeed, topics: Topics) -> None:
    before = await feed.identity()
    await feed.create_topics({topics.data: 5, topics.messages: 1}, {"retention.ms": "1000"})
    assert await feed.identity() == before
    assert (await feed.setup())[0].config["retention.ms"] == "-1"
    await feed.create_topics({}, {})


@pytest.mark.system
async def test_a_commit_is_there_for_lag_tools(feed: KafkaFeed, topics: Topics) -> None:
    await feed.commit({topics.first: 1})  # nothing to commit with yet: no matter
    topics.write(b"a")
    await feed.seek(await feed.ends())
    settings = {"bootstrap.servers": topics.address, "group.id": f"revector.feed{topics.number}", "log_level": 0}
    tool = Consumer(settings)
    try:
        deadline = time.monotonic() + DEADLINE_S
        committed = -1
        while committed != 1:
            assert time.monotonic() < deadline
            await feed.commit({topics.first: 1})
            await feed.poll(10, 0.1)
            (answer,) = await asyncio.to_thread(tool.committed, [At(topics.data, 0)], DEADLINE_S)
            committed = answer.offset
    finally:
        tool.close()


# --- faults


@pytest.mark.system
async def test_a_broker_that_goes_away_is_transient_and_comes_back(topics: Topics, stack: Sandbox) -> None:
    feed = topics.feed()
    try:
        start = {topics.first: 0, topics.second: 0, topics.message: 0}
        await feed.seek(start)
        topics.write(b"a")
        await read_to(feed, {topics.first: 2})
        stack.broker.freeze()
        try:
            with pytest.raises(TransientError) as caught:
                await feed.ends()
            assert caught.value.id == "kafka-unreachable"
        finally:
            stack.broker.thaw()
        topics.write_alone(b"b")
        records: list[RawRecord] = []
        while not records:  # what the stream's loop does: after any error, seek to the checkpoint
            with suppress(TransientError):
                await feed.seek({**start, topics.first: 2})
                records, _ = await asyncio.wait_for(read_to(feed, {topics.first: 3}), DEADLINE_S)
        assert [r.value for r in records] == [b"b"]
    finally:
        await feed.close()


@pytest.mark.system
async def test_end_offsets_that_were_not_answered_are_not_offsets(
    feed: KafkaFeed, topics: Topics, stack: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka calls a list_offsets that timed out a success."""
    await feed.ends()
    described = {topics.data: ("id", 2)}
    monkeypatch.setattr(feed._topics, "_described", lambda *_, **__: described)
    monkeypatch.setattr(kafka_topics, "REQUEST_TIMEOUT_S", 1.0)  # ends before the broker's own session does
    stack.broker.freeze()
    try:
        with pytest.raises(TransientError, match="end offsets"):
            await feed.ends()
    finally:
        stack.broker.thaw()


async def test_nobody_there_is_transient_and_quiet(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    feed = KafkaFeed({"bootstrap.servers": "127.0.0.1:1"}, ["t"], "m", "g", "c")
    try:
        for question in (feed.identity, feed.ends):
            with pytest.raises(TransientError, match=r"kafka: .* failed") as caught:
                await question()
            assert caught.value.id == "kafka-unreachable"
    finally:
        await feed.close()
    await feed.close()
    assert capfd.readouterr().err == ""
    lines = [r for r in caplog.records if r.name == "librdkafka"]
    assert 1 <= len(lines) <= 5, "librdkafka's lines are dropped, or repeat themselves"


def test_nothing_is_asked_on_whose_answer_librdkafka_may_abort() -> None:
    """`describe_cluster` ends the process where the answer lists no broker, as that of one that just came back does."""
    for module in Path(connectors.__file__).parent.glob("*.py"):
        calls = (n.func for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.Call))
        assert "describe_cluster" not in {f.attr for f in calls if isinstance(f, ast.Attribute)}, module.name


async def test_a_wrong_property_is_a_fault_of_the_configuration() -> None:
    feed = KafkaFeed({"bootstrap.servers": "127.0.0.1:1", "no.such.property": "1"}, ["t"], "m", "g", "c")
    with pytest.raises(ConfigError) as caught:
        await feed.identity()
    assert caught.value.id == "kafka-property-invalid"
    await feed.close()


@pytest.mark.system
async def test_a_refused_handshake_is_not_retried_for_ever(stack: Sandbox) -> None:
    secret = "not-to-be-seen"
    feed = KafkaFeed(
        {
            "bootstrap.servers": stack.kafka,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "u",
            "sasl.password": secret,
        },
        ["t"],
        "m",
        "g",
        "c",
    )
    try:
        with pytest.raises(PermissionRefused) as caught:
            await feed.identity()
    finally:
        await feed.close()
    assert caught.value.id == "password-refused" and secret not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "kind", "id"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, PermissionRefused, "permission-denied"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, PermissionRefused, "permission-denied"),
        (KafkaError._AUTHENTICATION, PermissionRefused, "password-refused"),
        (KafkaError.OFFSET_OUT_OF_RANGE, OffsetsGone, "offsets-gone"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, OffsetsGone, "topic-missing"),
        (KafkaError._ALL_BROKERS_DOWN, TransientError, "kafka-unreachable"),
        (KafkaError.NOT_LEADER_FOR_PARTITION, TransientError, "kafka-unreachable"),
    ],
)
def test_errors_are_sorted_by_what_happens_next(code: int, kind: type[Exception], id: str) -> None:
    error = translate(KafkaError(code, "prose with a secret"), "poll")
    assert isinstance(error, kind) and error.id == id and "secret" not in str(error)


def test_a_refusal_is_not_hidden_by_what_follows_it() -> None:
    log = KafkaLog()
    for code in (KafkaError._AUTHENTICATION, KafkaError._ALL_BROKERS_DOWN):
        log.note(KafkaError(code))
    error = log.take_error()
    assert error is not None and error.code() == KafkaError._AUTHENTICATION
    assert log.take_error() is None
    log.note(KafkaError(KafkaError._TRANSPORT))  # one of several brokers: the others serve
    assert log.take_error() is None


@pytest.fixture
def passed(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    caplog.set_level(logging.DEBUG, "librdkafka")
    yield lambda: [record.getMessage() for record in caplog.records if record.name == "librdkafka"]


def test_a_line_that_differs_in_its_timing_only_passes_once(passed: Callable[[], list[str]]) -> None:
    log = KafkaLog()
    for milliseconds in range(5):
        log.log(logging.ERROR, "%s [%s] broker: refused (after %dms in state CONNECT)", "FAIL", "c", milliseconds)
    log.log(logging.ERROR, "another 100%")
    assert passed() == ["FAIL [c] broker: refused (after 0ms in state CONNECT)", "another 100%"]
