"""What the brokers say of a migration's topics: ids, partitions, settings and end offsets; and making them.

An admin handle of its own, apart from the consumer: end offsets are asked with isolation read_uncommitted, because a
read_committed handle answers with the last stable offset, which hides records of open transactions (a false green).
Every question goes to the broker; only the cluster's id is kept while no topic's id changes. Blocking calls run on the
one thread of this object.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar, cast

import confluent_kafka as kafka
from confluent_kafka import IsolationLevel, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    ListOffsetsResultInfo,
    NewTopic,
    OffsetSpec,
    ResourceType,
    TopicDescription,
)

from connectors.kafka_errors import ABSENT, translate, translated
from connectors.kafka_log import KafkaLog, connection
from daemon.core.model import FeedIdentity, TopicPartition
from daemon.errors import OffsetsGone
from daemon.ports import TopicSetup

T = TypeVar("T")

REQUEST_TIMEOUT_S = 5.0
HELD = 3  # references to a topic's id while `_id` looks: the description's, its own, the count's
NO_ID = str(kafka.Uuid(0, 0))  # of a topic, where brokers know no such ids
_SILENT = {kafka.KafkaError._TIMED_OUT, kafka.KafkaError._TIMED_OUT_QUEUE, kafka.KafkaError._TRANSPORT}


class KafkaTopics:
    """The topics of one migration as the brokers have them."""

    def __init__(self, properties: Mapping[str, str], topics: Sequence[str]) -> None:
        self._log = KafkaLog()
        self._properties: dict[str, object] = {
            **connection(properties),
            "logger": self._log,
            "error_cb": self._log.note,
        }
        self._topics = list(dict.fromkeys(topics))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-admin")
        self._client: AdminClient | None = None
        self._known: FeedIdentity | None = None

    async def identity(self) -> FeedIdentity:
        """Cluster id, and id and partition count of every topic that exists."""
        return await self._run("describe topics", self._identity)

    async def setup(self) -> tuple[TopicSetup, ...]:
        """Partitions and settings, in the order the topics were given."""
        return await self._run("describe topics", self._setup)

    async def ends(self) -> dict[TopicPartition, int]:
        """High watermarks of every partition of every topic. Raises OffsetsGone `topic-missing`."""
        return await self._run("read end offsets", lambda: self._ends_of(self._topics))

    async def create(self, partitions: Mapping[str, int], config: Mapping[str, str]) -> None:
        """Make the topics that do not exist, with the brokers' default replication. Existing ones stay as they are.
        Returns when every partition answers: a new one has no leader for a moment."""
        await self._run("create topics", lambda: self._create(partitions, config))

    async def insist(self, topics: Collection[str]) -> None:
        """Raises OffsetsGone `topic-missing` where one of these does not exist."""
        await self._run("look for topics", lambda: self._described(list(topics), strict=True))

    async def close(self) -> None:
        """Ends the thread; may be called twice."""
        with suppress(RuntimeError):  # the thread is gone: closed before
            self._thread.submit(self._drop)
        self._thread.shutdown(wait=False)

    def _identity(self) -> FeedIdentity:
        """The topics are asked for each time. Their ids are unique over all clusters: the cluster's is asked for where
        they changed, and each time where the brokers give none."""
        topics = self._described(self._topics)
        is_told = bool(topics) and all(id != NO_ID for id, _ in topics.values())
        if self._known is None or not is_told or topics != self._known.topics:
            self._known = FeedIdentity(self._cluster_id(), topics)
        return self._known

    def _cluster_id(self) -> str:
        """By a handle of its own: a handle knows the first cluster it met for ever. `describe_cluster` would ask each
        time, but a broker that just came back lists no broker, not even itself, and on that answer librdkafka 2.16
        aborts the process."""
        client = AdminClient(cast(dict[str, str | int | float | bool], self._properties))
        found = client.cluster_id(timeout=REQUEST_TIMEOUT_S)
        client.poll(0)  # why there is no answer
        if found is None:
            raise KafkaException(kafka.KafkaError(kafka.KafkaError._TIMED_OUT))
        return str(found)

    def _setup(self) -> tuple[TopicSetup, ...]:
        described = self._described(self._topics)
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in described]
        configs: dict[str, dict[str, str]] = {}
        if resources:
            for resource, future in (
                self._admin().describe_configs(resources, request_timeout=REQUEST_TIMEOUT_S).items()
            ):
                configs[resource.name] = {name: entry.value for name, entry in _answer(future).items()}
        return tuple(
            TopicSetup(name, described[name][1], configs[name]) if name in described else TopicSetup(name, 0, {})
            for name in self._topics
        )

    def _ends_of(self, topics: list[str]) -> dict[TopicPartition, int]:
        asked = {
            kafka.TopicPartition(name, partition): OffsetSpec.latest()  # type: ignore[no-untyped-call]
            for name, (_, partitions) in self._described(topics, strict=True).items()
            for partition in range(partitions)
        }
        answers = self._admin().list_offsets(
            asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=REQUEST_TIMEOUT_S
        )
        return {TopicPartition(at.topic, at.partition): _end(_answer(future)) for at, future in answers.items()}

    def _create(self, partitions: Mapping[str, int], config: Mapping[str, str]) -> None:
        wanted = [
            NewTopic(name, num_partitions=count, replication_factor=-1, config=dict(config))
            for name, count in partitions.items()
        ]
        if not wanted:
            return
        for future in self._admin().create_topics(wanted, request_timeout=REQUEST_TIMEOUT_S).values():
            try:
                _answer(future)
            except KafkaException as error:
                if error.args[0].code() != kafka.KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while True:
            try:
                self._ends_of(list(partitions))
                return
            except (KafkaException, OffsetsGone):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _described(self, topics: list[str], strict: bool = False) -> dict[str, tuple[str, int]]:
        """Topic -> (id, partitions) of the existing ones; strict: a missing one raises."""
        found: dict[str, tuple[str, int]] = {}
        if not topics:
            return found
        futures = self._admin().describe_topics(TopicCollection(topics), request_timeout=REQUEST_TIMEOUT_S)
        for name, future in futures.items():
            try:
                topic = _answer(future)
            except KafkaException as error:
                if error.args[0].code() not in ABSENT:
                    raise
                if strict:
                    raise translate(error.args[0], f"look for topic {name}") from error
            else:
                found[name] = (_id(topic), len(topic.partitions))
        return found

    def _admin(self) -> AdminClient:
        if self._client is None:
            self._client = AdminClient(cast(dict[str, str | int | float | bool], self._properties))
        self._client.poll(0)  # serves log lines and connection errors
        return self._client

    def _drop(self) -> None:
        self._client = None

    def _explained(self, call: Callable[[], T]) -> T:
        """A request that fails because the connection does only says "timed out"; the callback knows why."""
        self._admin()
        self._log.take_error()
        try:
            return call()
        except KafkaException as error:
            self._admin()
            cause = self._log.take_error()
            if error.args[0].code() not in _SILENT:
                raise
            self._client = None  # the next question gets a fresh connection
            raise error if cause is None else KafkaException(cause) from error

    async def _run(self, operation: str, call: Callable[[], T]) -> T:
        with translated(operation):
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._explained, call)


def _id(topic: TopicDescription) -> str:
    """confluent-kafka 2.16 makes each topic's id with one reference too many: 230 bytes for each topic and question,
    without end. Where that reference is there, it is given back."""
    id = topic.topic_id
    if sys.getrefcount(id) == HELD + 1:
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(id))
    return str(id)


def _end(answer: ListOffsetsResultInfo) -> int:
    """librdkafka answers a request that timed out with success and offset -1001: below every checkpoint, it would
    read as "caught up"."""
    if answer.offset < 0:
        raise KafkaException(kafka.KafkaError(kafka.KafkaError._TIMED_OUT))
    return int(answer.offset)


def _answer(future: Future[T]) -> T:
    """The answer of a request that librdkafka ends within `REQUEST_TIMEOUT_S`; the margin is for a stuck handle."""
    return future.result(REQUEST_TIMEOUT_S + 5)
