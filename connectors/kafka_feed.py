"""The change feed: `daemon.ports.ChangeFeed` over confluent-kafka.

One thread drives the consumer. It assigns all partitions itself and joins no group: the checkpoint in the target says
where to go on, Kafka's committed offset is a courtesy for lag tools. `auto.offset.reset=error` turns a missing offset
into a halt instead of a silent jump; `read_committed` keeps records of aborted transactions out; next offsets come
from `position()`, which also passes transaction markers.

After an error, or a poll that was cancelled half-way, the records in between are lost to memory: the feed then refuses
to poll until the next `seek`, so that such a gap cannot be applied over.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar, cast

import confluent_kafka as kafka
from confluent_kafka import Consumer, KafkaError, KafkaException, Message

from connectors.kafka_errors import offsets_gone, translate, translated
from connectors.kafka_log import KafkaLog, connection
from connectors.kafka_topics import KafkaTopics
from daemon.core.model import FeedIdentity, TopicPartition
from daemon.errors import OffsetsGone, TransientError
from daemon.ports import Offsets, Polled, RawRecord, TopicSetup

T = TypeVar("T")

# `consume(n, timeout)` waits for n messages or for the whole timeout: slices keep latency at one slice.
SLICE_S = 0.03
MOST_BYTES = 16 * 2**20  # of values in one poll, where a window of large documents ends; also of what is fetched ahead
AT_ONCE = 50  # records that may pass that mark
WATERMARK_S = 3.0  # of one question for what a broker has, once it was found to lack what comes next

# Reported beside the records; librdkafka goes on by itself and they say nothing about them.
_COURTESY = {KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.GROUP_ID_NOT_FOUND, KafkaError.NOT_COORDINATOR}


class KafkaFeed:
    """Implements `daemon.ports.ChangeFeed`.

    properties: librdkafka's, as configured; the keys that decide about delivery are ours and win. topics: the data
    topics; message_topic: the one of `pg_logical_emit_message`.
    """

    def __init__(
        self,
        properties: Mapping[str, str],
        topics: Sequence[str],
        message_topic: str,
        group_id: str,
        client_id: str,
    ) -> None:
        self._log = KafkaLog()
        self._settings: dict[str, object] = {
            "queued.max.messages.kbytes": str(MOST_BYTES // 1024),
            **connection(properties),
            "client.id": client_id,
            "group.id": group_id,
            "enable.auto.commit": "false",
            "enable.auto.offset.store": "false",
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": "true",
            "logger": self._log,
            "error_cb": self._log.note,
        }
        self._topics = KafkaTopics({**properties, "client.id": client_id}, [*topics, message_topic])
        self.message_topic = message_topic
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-consumer")
        self._consumer: Consumer | None = None
        self._next: dict[TopicPartition, int] = {}
        self._heard: set[tuple[str | None, int | None]] = set()
        self._stop = threading.Event()
        self._must_seek = True

    async def setup(self) -> tuple[TopicSetup, ...]:
        """Every topic in the order given, the message topic last."""
        return await self._topics.setup()

    async def identity(self) -> FeedIdentity:
        """Cluster, topic ids and partition counts; a topic that does not exist is left out."""
        return await self._topics.identity()

    async def ends(self) -> Offsets:
        """High watermarks of all partitions of all topics, the message topic included."""
        return await self._topics.ends()

    async def data_ends(self) -> Offsets:
        """The same of the data topics."""
        return {at: end for at, end in (await self._topics.ends()).items() if at.topic != self.message_topic}

    async def create_topics(self, partitions: Mapping[str, int], config: Mapping[str, str]) -> None:
        """Make the topics that do not exist yet. May be repeated."""
        await self._topics.create(partitions, config)

    async def seek(self, offsets: Offsets) -> None:
        """Assign exactly these partitions at these offsets. Whether the broker still has the offsets shows at `poll`;
        a topic that is gone shows here, because librdkafka waits for it in silence. Raises OffsetsGone."""
        self._stop.clear()
        await self._topics.insist({at.topic for at in offsets})
        await self._run("assign", lambda: self._seek(offsets))
        self._must_seek = False

    async def unassign(self) -> None:
        """librdkafka would fetch on into its queue."""
        self._must_seek = True
        await self._run("unassign", self._unassign)

    async def poll(self, max_records: int, timeout_s: float) -> Polled:
        """Up to `max_records`, or as many as hold MOST_BYTES. Comes back empty-handed after `timeout_s`, or at once
        with moved offsets where only transaction markers came."""
        if self._must_seek:
            raise TransientError("kafka-seek-needed", "kafka: the last poll did not end well", "it is repeated")
        self._must_seek = True
        polled = await self._run("poll", lambda: self._poll(max_records, timeout_s))
        self._must_seek = False
        return polled

    async def commit(self, offsets: Offsets) -> None:
        """In the background; the outcome is not looked at."""
        with suppress(KafkaException, TransientError):
            await self._run("commit", lambda: self._commit(offsets))

    async def close(self) -> None:
        """Ends both threads; may be called twice."""
        self._must_seek = True
        self._stop.set()
        with suppress(RuntimeError):  # the thread is gone: closed before
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)
        await self._topics.close()

    # --- on the consumer's thread

    def _seek(self, offsets: Offsets) -> None:
        if self._consumer is None:
            self._consumer = Consumer(self._settings)
        self._log.take_error()
        self._consumer.unassign()  # without it, what was fetched before could still be delivered
        self._consumer.assign([kafka.TopicPartition(at.topic, at.partition, n) for at, n in offsets.items()])
        self._next, self._heard = dict(offsets), set()

    def _unassign(self) -> None:
        if self._consumer is not None:
            self._consumer.unassign()

    def _poll(self, max_records: int, timeout_s: float) -> Polled:
        consumer = self._consumer
        assert consumer is not None  # `poll` insists on a seek
        deadline = time.monotonic() + timeout_s
        while True:
            messages = _consumed(consumer, max_records, min(time.monotonic() + SLICE_S, deadline))
            try:
                records = [record for message in messages if (record := _record(message))]
            except OffsetsGone as gone:
                raise self._measured(consumer, gone) from None
            self._heard.update((message.topic(), message.partition()) for message in messages)
            moved = self._moved(consumer)
            if records or moved:
                self._log.take_error()
                self._next.update(moved)
                return Polled(tuple(records), moved)
            if (error := self._log.take_error()) is not None:
                raise translate(error, "poll")
            if self._stop.is_set() or time.monotonic() >= deadline:
                return Polled((), {})

    def _measured(self, consumer: Consumer, gone: OffsetsGone) -> OffsetsGone:
        """The same with what was and what is: the next offset of every partition that the broker cannot go on from."""
        lost = []
        for at, expected in sorted(self._next.items()):
            with suppress(KafkaException):
                first, end = consumer.get_watermark_offsets(kafka.TopicPartition(at.topic, at.partition), WATERMARK_S)
                if expected < first:
                    lost.append(f"{at.topic}-{at.partition} goes on at {expected}, the broker has {first} to {end}")
                elif expected > end:
                    lost.append(f"{at.topic}-{at.partition} goes on at {expected}, the broker ends at {end}")
        return offsets_gone(f"kafka: {'; '.join(lost)}") if lost else gone

    def _moved(self, consumer: Consumer) -> dict[TopicPartition, int]:
        """Next offsets that differ from the last poll's, of partitions that gave a record or their end since `seek`.
        Before that, a position is none (-1001), or could still be the one before the seek."""
        asked = [kafka.TopicPartition(at.topic, at.partition) for at in self._next if at in self._heard]
        found = {TopicPartition(p.topic, p.partition): p.offset for p in consumer.position(asked)}
        return {at: offset for at, offset in found.items() if offset >= 0 and offset != self._next[at]}

    def _commit(self, offsets: Offsets) -> None:
        if self._consumer is not None and offsets:
            positions = [kafka.TopicPartition(at.topic, at.partition, n) for at, n in offsets.items()]
            self._consumer.commit(offsets=positions, asynchronous=True)

    def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    async def _run(self, operation: str, call: Callable[[], T]) -> T:
        try:
            with translated(operation):
                return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except asyncio.CancelledError:
            self._stop.set()  # a poll under way ends within a slice
            raise


def _consumed(consumer: Consumer, max_records: int, until: float) -> list[Message]:
    """What comes until then, at most so many records and few more than MOST_BYTES."""
    messages: list[Message] = []
    held = 0
    while len(messages) < max_records and held < MOST_BYTES:
        wanted = min(AT_ONCE, max_records - len(messages))
        came = consumer.consume(wanted, max(0.0, until - time.monotonic()))
        messages += came
        held += sum(len(message) for message in came)
        if len(came) < wanted:
            break
    return messages


def _record(message: Message) -> RawRecord | None:
    """A record, or None for the end of a partition. Raises what an error in its place means."""
    error = message.error()
    if error is not None:
        if error.code() == KafkaError._PARTITION_EOF or error.code() in _COURTESY:
            return None
        raise translate(error, f"read {message.topic()}[{message.partition()}]")
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and partition is not None and offset is not None  # only an error lacks them
    headers = cast(list[tuple[str, bytes | None]], message.headers() or [])
    return RawRecord(
        at=TopicPartition(topic, partition),
        offset=offset,
        timestamp_ms=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=tuple(headers),
    )
