"""Kafka and Kafka Connect, as the product needs them: records in order, end offsets, the connector's committed offset.

A feed delivers at least once and in order per partition; what was applied is the target's checkpoint alone. Nothing
here decodes: `Decoder` is the pure half between a raw record and a change event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from daemon.core.model import Decoded, FeedIdentity, TopicPartition
from daemon.core.setup import TopicSetup

Offsets = Mapping[TopicPartition, int]


@dataclass(frozen=True, slots=True)
class RawRecord:
    at: TopicPartition
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Polled:
    """One poll's records, in offset order per partition, and `next_offsets` of every partition that moved (from the
    consumer's position: transaction markers occupy offsets, so it may pass the last record by more than one)."""

    records: tuple[RawRecord, ...]
    next_offsets: Offsets


class Decoder(Protocol):
    """Pure but for `epoch`, which is part of every position: the stream sets it whenever it begins from the
    checkpoint. Raises UndecodableEvent."""

    epoch: int

    def decode(self, record: RawRecord) -> Decoded: ...


class ChangeFeed(Protocol):
    """The Kafka topics of one migration. Delivers each record at least once, in order per partition."""

    async def setup(self) -> tuple[TopicSetup, ...]:
        """Every topic of the migration, existing or not: one per table, and the message topic."""
        ...

    async def identity(self) -> FeedIdentity: ...
    async def seek(self, offsets: Offsets) -> None:
        """Assign exactly these partitions and continue at these offsets; forgets everything fetched before."""
        ...

    async def unassign(self) -> None:
        """Fetch nothing more until the next `seek`. May be repeated."""
        ...

    async def poll(self, max_records: int, timeout_s: float) -> Polled:
        """Whatever is there, at most `max_records`, waiting at most `timeout_s` for the first.
        Raises OffsetsGone."""
        ...

    async def ends(self) -> Offsets:
        """End offsets (high watermarks, read_uncommitted) of every partition, asked of the broker."""
        ...

    @property
    def message_topic(self) -> str:
        """The topic of pulses and barriers: the only one that is no data topic."""
        ...

    async def data_ends(self) -> Offsets:
        """The same without the message topic: a proof's own barrier must not count as an event that is not applied."""
        ...

    async def commit(self, offsets: Offsets) -> None:
        """Courtesy for lag tools. Never raises: nothing depends on it."""
        ...

    async def close(self) -> None: ...


class Capture(Protocol):
    """The Debezium connector as Kafka Connect reports it."""

    async def committed_lsn(self) -> int | None:
        """`lsn` of the connector's committed source offset: everything before it is in Kafka. None: none committed."""
        ...

    async def config(self) -> dict[str, str] | None:
        """The connector's configuration; None where there is no connector of that name."""
        ...

    async def version(self) -> str | None:
        """The Debezium plugin's version, such as `3.7.0.Final`; None where Connect does not say."""
        ...

    async def close(self) -> None: ...
    async def state(self) -> str:
        """running | paused | stopped | failed | unassigned | absent (the worst of connector and task)."""
        ...

    async def failure(self) -> str | None:
        """Why connector or task failed: names of errors and sizes, no text of theirs. None: neither did."""
        ...
