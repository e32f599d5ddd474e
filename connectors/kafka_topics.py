"""What the brokers say of a migration's topics: ids, partitions, settings and end offsets; and making them.

An admin handle of its own, apart from the consumer: end offsets are asked with isolation read_uncommitted, because a
read_committed handle answers with the last stable offset, which hides records of open transactions (a false green).
Every question goes to the broker; nothing is cached. Blocking calls run on the one thread of this object.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import confluent_kafka as kafka
from confluent_kafka import IsolationLevel, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType

from connectors.kafka_errors import ABSENT, translated
from daemon.core.model import FeedIdentity, TopicPartition
from daemon.ports import TopicSetup

T = TypeVar("T")

REQUEST_TIMEOUT_S = 10.0


class KafkaTopics:
    """The topics of one migration as the brokers have them."""

    def __init__(self, properties: Mapping[str, str], topics: Sequence[str], logger: logging.Logger) -> None:
        self._properties: dict[str, str | int | float | bool] = {**properties}
        self._logger = logger
        self._topics = list(dict.fromkeys(topics))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kafka-admin")
        self._client: AdminClient | None = None

    async def identity(self) -> FeedIdentity:
        """Cluster id, and id and partition count of every topic that exists."""
        return await self._run("describe topics", self._identity)

    async def setup(self) -> tuple[TopicSetup, ...]:
        """Partitions and settings, in the order the topics were given."""
        return await self._run("describe topics", self._setup)

    async def ends(self) -> dict[TopicPartition, int]:
        """High watermarks of every partition of every topic. Raises OffsetsGone `topic-missing`."""
        return await self._run("read end offsets", self._ends)

    async def create(self, partitions: Mapping[str, int], config: Mapping[str, str]) -> None:
        """Make the topics that do not exist, with the brokers' default replication. Existing ones stay as they are."""
        await self._run("create topics", lambda: self._create(partitions, config))

    async def close(self) -> None:
        """Ends the thread; may be called twice."""
        self._client = None
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _identity(self) -> FeedIdentity:
        cluster = _answer(self._admin().describe_cluster(request_timeout=REQUEST_TIMEOUT_S))
        return FeedIdentity(str(cluster.cluster_id), {name: (id, n) for name, (id, n) in self._described().items()})

    def _setup(self) -> tuple[TopicSetup, ...]:
        described = self._described()
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

    def _ends(self) -> dict[TopicPartition, int]:
        asked = {
            kafka.TopicPartition(name, partition): OffsetSpec.latest()  # type: ignore[no-untyped-call]
            for name, (_, partitions) in self._described(strict=True).items()
            for partition in range(partitions)
        }
        answers = self._admin().list_offsets(
            asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=REQUEST_TIMEOUT_S
        )
        return {TopicPartition(at.topic, at.partition): _answer(future).offset for at, future in answers.items()}

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

    def _described(self, strict: bool = False) -> dict[str, tuple[str, int]]:
        """Topic -> (id, partitions) of the existing ones; strict: a missing one raises."""
        found: dict[str, tuple[str, int]] = {}
        futures = self._admin().describe_topics(TopicCollection(self._topics), request_timeout=REQUEST_TIMEOUT_S)
        for name, future in futures.items():
            try:
                topic = _answer(future)
            except KafkaException as error:
                if strict or error.args[0].code() not in ABSENT:
                    raise
            else:
                found[name] = (str(topic.topic_id), len(topic.partitions))
        return found

    def _admin(self) -> AdminClient:
        if self._client is None:
            self._client = AdminClient(self._properties, logger=self._logger)
        self._client.poll(0)  # hands librdkafka's log lines to the logger
        return self._client

    async def _run(self, operation: str, call: Callable[[], T]) -> T:
        with translated(operation):
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _answer(future: Future[T]) -> T:
    """The answer of a request that librdkafka ends within `REQUEST_TIMEOUT_S`; the margin is for a stuck handle."""
    return future.result(REQUEST_TIMEOUT_S + 5)
