"""In-memory Kafka: partitioned topics, end offsets, retention, transaction markers; the feed and a decoder over them.

A record's value is its place in a registry of `Decoded` events, so no test depends on Debezium's text forms: the
genuine records are tested against the genuine decoder elsewhere. `MemoryFeed` is the `ChangeFeed` port; a test holds
partitions back with `hold`, writes markers with `marker`, and lets retention pass with `trim`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from daemon.core.model import Decoded, FeedIdentity, Ignored, Origin, Table, TopicPartition
from daemon.errors import OffsetsGone, TransientError, UndecodableEvent
from daemon.ports import Offsets, Polled, RawRecord, TopicSetup
from tests.fakes.clock import VirtualClock

RUN_ID = "__debezium.context.runId"


class MemoryBroker:
    """Topics `<prefix>.<schema>.<table>` with `partitions` each, and `<prefix>.message` with one."""

    def __init__(self, tables: Sequence[Table], partitions: int = 2, prefix: str = "shop") -> None:
        self.cluster_id = "cluster-1"
        self.topic_of = {t.alias: f"{prefix}.{t.schema}.{t.name}" for t in tables}
        self.message_topic = f"{prefix}.message"
        self.partitions = dict.fromkeys(self.topic_of.values(), partitions) | {self.message_topic: 1}
        self.topic_ids = {topic: f"id-{n}" for n, topic in enumerate(self.partitions)}
        self.logs: dict[TopicPartition, list[RawRecord | None]] = {at: [] for at in self.places()}
        self.starts = dict.fromkeys(self.places(), 0)
        self.events: list[Decoded | None] = []
        self.committed: dict[TopicPartition, int] = {}

    def places(self) -> list[TopicPartition]:
        return [TopicPartition(t, p) for t, n in self.partitions.items() for p in range(n)]

    def table_places(self, alias: str) -> list[TopicPartition]:
        topic = self.topic_of[alias]
        return [TopicPartition(topic, p) for p in range(self.partitions[topic])]

    def append(self, at: TopicPartition, run_id: str, ts_ms: int, make: Callable[[int], Decoded | None]) -> None:
        """Write a record; `make(offset)` gives what it decodes to, None for something undecodable."""
        offset = len(self.logs[at])
        self.events.append(make(offset))
        value = str(len(self.events) - 1).encode()
        self.logs[at].append(RawRecord(at, offset, ts_ms, b"{}", value, ((RUN_ID, run_id.encode()),)))

    def tombstone(self, at: TopicPartition, run_id: str, ts_ms: int) -> None:
        """A Kafka tombstone: key without value."""
        record = RawRecord(at, len(self.logs[at]), ts_ms, b"{}", None, ((RUN_ID, run_id.encode()),))
        self.logs[at].append(record)

    def marker(self, at: TopicPartition) -> None:
        """A transaction marker: an offset that no consumer ever sees as a record."""
        self.logs[at].append(None)

    def trim(self, at: TopicPartition, before: int) -> None:
        """Retention: offsets below `before` are gone."""
        self.starts[at] = max(self.starts[at], before)

    def end(self, at: TopicPartition) -> int:
        return len(self.logs[at])

    def identity(self) -> FeedIdentity:
        return FeedIdentity(self.cluster_id, {t: (self.topic_ids[t], n) for t, n in self.partitions.items()})


class MemoryDecoder:
    """The `Decoder` port: looks an event up and stamps it with the epoch in force."""

    def __init__(self, broker: MemoryBroker, epoch: int = 0) -> None:
        self.broker, self.epoch = broker, epoch

    def decode(self, record: RawRecord) -> Decoded:
        run_id = dict(record.headers).get(RUN_ID)
        if record.value is None:
            return Ignored(run_id.decode() if run_id else None)
        event = self.broker.events[int(record.value)]
        if event is None:
            raise UndecodableEvent(
                "event-undecodable", f"record {record.at.topic}/{record.at.partition}:{record.offset} is unreadable"
            )
        if isinstance(event, Ignored):
            return event
        origin: Origin = replace(event.origin, position=event.origin.position._replace(epoch=self.epoch))
        return replace(event, origin=origin)


@dataclass
class Fetched:
    """How far a poll got in one partition."""

    records: list[RawRecord]
    next_offset: int


class MemoryFeed:
    """The `ChangeFeed` port over a broker. An empty poll advances the clock by its timeout and yields."""

    def __init__(self, broker: MemoryBroker, clock: VirtualClock | None = None) -> None:
        self.broker, self.clock = broker, clock
        self.position: dict[TopicPartition, int] = {}
        self.held: set[TopicPartition] = set()
        self.polls = 0
        self.closed = False

    def hold(self, places: Iterable[TopicPartition]) -> None:
        """Deliver nothing from these partitions until `release`."""
        self.held.update(places)

    def release(self) -> None:
        self.held.clear()

    async def setup(self) -> tuple[TopicSetup, ...]:
        config: Mapping[str, str] = {"cleanup.policy": "delete", "retention.ms": "604800000"}
        return tuple(TopicSetup(t, n, config) for t, n in self.broker.partitions.items())

    async def identity(self) -> FeedIdentity:
        return self.broker.identity()

    async def seek(self, offsets: Offsets) -> None:
        for at, offset in offsets.items():
            self._check(at, offset)
        self.position = dict(offsets)

    async def unassign(self) -> None:
        self.position = {}

    async def poll(self, max_records: int, timeout_s: float) -> Polled:
        self.polls += 1
        records: list[RawRecord] = []
        moved: dict[TopicPartition, int] = {}
        for at in sorted(self.position):
            if at in self.held:
                continue
            self._check(at, self.position[at])
            got = self._fetch(at, max_records - len(records))
            records += got.records
            if got.next_offset > self.position[at]:
                moved[at] = self.position[at] = got.next_offset
        if not moved and self.clock is not None:
            self.clock.advance(timeout_s)
        await asyncio.sleep(0)
        return Polled(tuple(records), moved)

    async def ends(self) -> Offsets:
        return {at: self.broker.end(at) for at in self.broker.places()}

    @property
    def message_topic(self) -> str:
        return self.broker.message_topic

    async def data_ends(self) -> Offsets:
        return {at: end for at, end in (await self.ends()).items() if at.topic != self.broker.message_topic}

    async def commit(self, offsets: Offsets) -> None:
        self.broker.committed.update(offsets)

    async def close(self) -> None:
        self.closed = True

    def _fetch(self, at: TopicPartition, room: int) -> Fetched:
        found: list[RawRecord] = []
        offset = self.position[at]
        for record in self.broker.logs[at][offset:]:
            if record is not None:
                if len(found) >= room:
                    break
                found.append(record)
            offset += 1
        return Fetched(found, offset)

    def _check(self, at: TopicPartition, offset: int) -> None:
        if at not in self.broker.logs:
            raise TransientError("kafka-away", f"no partition {at.topic}/{at.partition}")
        if not self.broker.starts[at] <= offset <= self.broker.end(at):
            raise OffsetsGone(
                "offsets-gone",
                f"{at.topic}/{at.partition}: offset {offset}, kept are {self.broker.starts[at]}..{self.broker.end(at)}",
                "restart the migration",
            )
