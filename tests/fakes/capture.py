"""In-memory Debezium in Connect: reads the source's log in commit order and writes topics, one partition at a time.

The committed source offset stays behind the oldest unacknowledged record; a restart (a new run id) sends everything
after it again; the producer of an abandoned task may still deliver what it holds. A key change is a delete, a Kafka
tombstone and a create. `MemoryCapture` is the `Capture` port over it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable

from daemon.core.model import (
    ChangeEvent,
    Decoded,
    Ignored,
    Key,
    Op,
    Origin,
    Position,
    PulseEvent,
    ReadEvent,
    TopicPartition,
    TruncateEvent,
)
from tests.fakes.broker import MemoryBroker
from tests.fakes.source import LogRecord, MemorySource

OPS = {"c": Op.CREATE, "u": Op.UPDATE, "d": Op.DELETE}
PROFILE = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "plugin.name": "pgoutput",
    "snapshot.mode": "no_data",
    "errors.tolerance": "none",
}


class MemoryConnector:
    """The connector's task. `submit` reads the log, `ack` delivers, `flush` commits the offset; `deliver` does all."""

    def __init__(self, source: MemorySource, broker: MemoryBroker) -> None:
        self.source, self.broker = source, broker
        self.next = self.committed = 0
        self.run = 1
        self.acked: set[int] = set()
        self.queues: dict[TopicPartition, deque[tuple[int, LogRecord]]] = {at: deque() for at in broker.places()}
        self.abandoned: list[tuple[TopicPartition, LogRecord, str]] = []
        self.truncate_partition = 0
        self.is_paused = False
        self.state = "running"
        self.failure: str | None = None
        self.config: dict[str, str] | None = dict(PROFILE)
        self.version: str | None = "3.7.0.Final"
        self.offset_readable = True

    @property
    def run_id(self) -> str:
        return f"run-{self.run}"

    def place(self, record: LogRecord) -> TopicPartition:
        """Where a record goes: numeric keys modulo the partition count, so that a test can choose."""
        if record.kind == "m":
            return TopicPartition(self.broker.message_topic, 0)
        topic = self.broker.topic_of[record.alias]
        if record.kind == "t":
            return TopicPartition(topic, self.truncate_partition)
        return TopicPartition(topic, spread(record.key) % self.broker.partitions[topic])

    def submit(self, count: int | None = None) -> None:
        """Hand the next `count` records of the log to the producer."""
        if self.is_paused:
            return
        end = len(self.source.log) if count is None else min(len(self.source.log), self.next + count)
        for n in range(self.next, end):
            record = self.source.log[n]
            self.queues[self.place(record)].append((n, record))
        self.next = max(self.next, end)

    def ack(self, at: TopicPartition, count: int | None = None) -> None:
        """Deliver the first `count` queued records of one partition."""
        queue = self.queues[at]
        for _ in range(len(queue) if count is None else min(count, len(queue))):
            n, record = queue.popleft()
            self.write(at, record, self.run_id)
            self.acked.add(n)

    def flush(self) -> None:
        """Commit the source offset up to the oldest record that is not acknowledged."""
        while self.committed in self.acked:
            self.acked.discard(self.committed)
            self.committed += 1

    def deliver(self) -> None:
        """Everything in the log into Kafka, and the offset committed."""
        self.submit()
        for at in self.queues:
            self.ack(at)
        self.flush()

    def restart(self, *, abandon: bool = False) -> None:
        """A new task: what was not committed is sent again; `abandon`: the old producer keeps what it held."""
        if abandon:
            self.abandoned += [(at, r, self.run_id) for at, q in self.queues.items() for _, r in q]
        self.queues = {at: deque() for at in self.queues}
        self.acked.clear()
        self.next = self.committed
        self.run += 1

    def deliver_abandoned(self, count: int | None = None) -> None:
        """The abandoned task's producer delivers what it holds, in order."""
        size = len(self.abandoned) if count is None else count
        late, self.abandoned = self.abandoned[:size], self.abandoned[size:]
        for at, record, run_id in late:
            self.write(at, record, run_id)

    def redeliver(self, record: LogRecord, run_id: str | None = None) -> None:
        """A dead producer's copy of one record of the log, behind everything that is there."""
        self.write(self.place(record), record, run_id or self.run_id)

    def offset_lsn(self) -> int | None:
        return self.source.log[self.committed - 1].lsn if self.committed else None

    def write(self, at: TopicPartition, record: LogRecord, run_id: str) -> None:
        self.broker.append(at, run_id, record.ts_ms, decoded(record, at, run_id))
        if record.kind == "d":
            self.broker.tombstone(at, run_id, record.ts_ms)

    def snapshot_event(self, alias: str, key: Key) -> None:
        """`op=r` in mid-run: somebody made the connector again."""
        at = self.place(LogRecord(0, 0, 0, 0, "c", alias, key))
        self.broker.append(at, self.run_id, 0, lambda offset: ReadEvent(alias, self._origin(at, offset)))

    def garbage(self, alias: str) -> None:
        """A record that no decoder can read."""
        at = self.broker.table_places(alias)[0]
        self.broker.append(at, self.run_id, 0, lambda offset: None)

    def _origin(self, at: TopicPartition, offset: int) -> Origin:
        return Origin(at, offset, self.run_id, None, Position(0, 0, 0), None)


class MemoryCapture:
    """The `Capture` port."""

    def __init__(self, connector: MemoryConnector) -> None:
        self.connector = connector
        self.closed = False

    async def committed_lsn(self) -> int | None:
        return self.connector.offset_lsn() if self.connector.offset_readable else None

    async def config(self) -> dict[str, str] | None:
        return self.connector.config

    async def version(self) -> str | None:
        return self.connector.version

    async def state(self) -> str:
        return "paused" if self.connector.is_paused else self.connector.state

    async def failure(self) -> str | None:
        return self.connector.failure

    async def close(self) -> None:
        self.closed = True


def spread(key: Key) -> int:
    """A stable number for a key: its value where it is one."""
    return int(key[0]) if len(key) == 1 and key[0].isdigit() else sum(sum(part.encode()) for part in key)


def decoded(record: LogRecord, at: TopicPartition, run_id: str) -> Callable[[int], Decoded]:
    """What a record of the log decodes to once its Kafka offset is known."""

    def make(offset: int) -> Decoded:
        position = Position(0, record.previous_commit, record.lsn)
        origin = Origin(at, offset, run_id, record.ts_ms, position, record.xid & 0xFFFFFFFF)
        if record.kind == "m":
            return message(record.payload, origin)
        if record.kind == "t":
            return TruncateEvent(record.alias, origin)
        return ChangeEvent(record.alias, OPS[record.kind], record.key, record.after, origin)

    return make


def message(payload: bytes, origin: Origin) -> Decoded:
    """A pulse or barrier, or somebody else's message."""
    try:
        said = json.loads(payload)
        return PulseEvent(said["migration"], said["pulse"], said["token"], origin)
    except (ValueError, KeyError, TypeError):
        return Ignored(origin.run_id)
