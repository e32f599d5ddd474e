"""The pulse: a numbered token through the source's log every few seconds, and what its passage proves.

One turn of the stream's owner:

    send a pulse if one is due -> read upstream to downstream -> move the freshness -> note breaks -> record all of it

The readings are stored in the target, so `status` in any process shows what was measured last and how long ago. A
reading that could not be taken is absent, never 0. Each fed generation has a freshness of its own. End offsets count
for a pulse once source and Kafka were seen, after they were read, to be the recorded ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from daemon.core.catalog import rewritten, schema_change, shape
from daemon.core.continuity import (
    SESSION,
    Identity,
    IdentityChange,
    SlotReading,
    SlotWatch,
    connector_drift,
    halt_of,
    identity_changes,
    log_set_back,
    new_sessions,
    publication_drift,
    reached_lsn,
    slot_ahead,
    slot_lost,
    told_by,
)
from daemon.core.freshness import Freshness, Pulse, Tracker
from daemon.core.model import Break, SourceIdentity, Table, TopicPartition
from daemon.core.profile import ExpectedConnector, connector_problems
from daemon.errors import REALIGN, Halt, IdentityChanged, OffsetsGone, RevectorError, SchemaChanged, TransientError
from daemon.flow.pacing import retrying, wait
from daemon.flow.stream import Stream
from daemon.ports import Capture, ChangeFeed, MigrationState, SlotState, Source, Target

log = logging.getLogger(__name__)

TURN_S = 0.25
TABLE_HINT = (
    "set the table back; then `revector realign` passes over what was sent meanwhile, and `revector verify --repair` "
    "mends the rows; or start a migration of another name"
)
CONFIG_CHECK_S = 5.0
SUSPECT_S = 2.0  # a broker that is coming back may not know every topic at once
ABSENT_S = 30.0  # a Connect worker that is coming back knows no connector until it has read its configuration topic
FLUSH_INTERVAL_S = 60.0  # Connect's default offset.flush.interval.ms: its REST interface does not tell the real one


def pulse_payload(migration: str, number: int) -> bytes:
    """The WAL message of a numbered pulse."""
    return orjson.dumps({"migration": migration, "pulse": number, "token": f"pulse-{number}"})


def barrier_payload(migration: str, token: str) -> bytes:
    """The WAL message of a barrier: it has a token and no number."""
    return orjson.dumps({"migration": migration, "pulse": None, "token": token})


async def check_identity(source: Source, feed: ChangeFeed, target: Target) -> None:
    """Compare what we are connected to with what the migration began on. Raises IdentityChanged."""
    async with target.begin() as tx:
        state = await tx.ledger.load()
    await check_source(source, state)
    if state.source is not None and state.feed is not None:
        _refuse(identity_changes(Identity(state.source, state.feed), Identity(state.source, await feed.identity())))


async def root_of(halt: Halt, source: Source, feed: ChangeFeed, target: Target) -> Halt:
    """What lies behind a halt: offsets or topics are gone in another Kafka too, or after a topic was made anew."""
    if isinstance(halt, OffsetsGone):
        try:
            await check_identity(source, feed, target)
        except IdentityChanged as changed:
            return changed
        except RevectorError:  # a part that is away or refuses us does not keep the halt from being said
            return halt
    return halt


async def check_source(source: Source, state: MigrationState) -> None:
    """Whether this is the source that the migration began on, and no older state of it; state: read before. Of a clone
    or an older state every barrier passes. Raises IdentityChanged."""
    if state.source is None or state.feed is None:
        return
    reached = reached_lsn(state.observed, state.epoch)
    changes = identity_changes(Identity(state.source, state.feed), Identity(await source.identity(), state.feed))
    if not changes:  # of another log a position means nothing
        changes = log_set_back(reached, await source.wal_lsn())
    _refuse(changes)


def _refuse(changes: Sequence[IdentityChange]) -> None:
    halt = halt_of(changes)
    if halt is not None:
        raise halt


class Drift(NamedTuple):
    """What `source_drift` found. shapes: of the tables, by alias; to be recorded with the breaks."""

    breaks: list[Break]
    shapes: Mapping[str, Any]


async def source_drift(source: Source, publication: str, tables: Sequence[Table], recorded: Mapping[str, Any]) -> Drift:
    """Whether the source still sends every change of every table, in the form that is read. Asked *after* a pulse or
    barrier was written, so that what is found sound was so for what was committed before it. recorded: the shapes that
    were found last (`recorded_shapes`).

    Raises SchemaChanged: a used column, a key or a type is not what it was."""
    breaks = publication_drift(await source.setup(), publication, tables)
    shapes: dict[str, Any] = {}
    for table in tables:
        catalog = await source.describe(table.schema, table.name)
        change = schema_change(table, catalog)
        if change is not None or catalog is None:
            changed = SchemaChanged("table-changed", change or f"there is no table {table.alias}", TABLE_HINT)
            changed.command = REALIGN
            raise changed
        shapes[table.alias] = shape(table, catalog)
        if (before := recorded.get(table.alias)) and (columns := rewritten(before, shapes[table.alias])):
            breaks.append(Break("table-rewritten", {"table": f"{table.schema}.{table.name}", "columns": columns}))
    return Drift(breaks, shapes)


def recorded_shapes(state: MigrationState) -> Mapping[str, Any]:
    """Of the tables, as this epoch's last pulse found them; {} where none did."""
    epoch, shapes = (state.observed or {}).get("shapes", (None, {}))
    return shapes if epoch == state.epoch else {}


@dataclass(frozen=True, slots=True)
class PulseParts:
    """What the pulse works with. feed: a handle of its own, so that asking for end offsets never waits for a poll."""

    migration: str
    source: Source
    feed: ChangeFeed
    capture: Capture
    target: Target
    tables: Sequence[Table]
    expected: ExpectedConnector
    clock: Callable[[], float]
    interval_s: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """One turn's readings of the source and the connector; None: could not be read. source: whose wal_lsn it is."""

    slot: SlotState | None
    committed_lsn: int | None
    wal_lsn: int | None
    source: SourceIdentity | None
    connector: str | None


class PulseLoop:
    """Runs where the stream's lease is held; tests call `step`."""

    def __init__(self, parts: PulseParts) -> None:
        self.parts = parts
        self.tracker = Tracker()
        self.fresh: dict[int, Freshness] = {}  # by the generation's id: a name may be given again
        self.next_at = 0.0
        self.config_at = 0.0
        self.slot_watch = SlotWatch()
        self.suspect_at: float | None = None  # when another identity was seen first, None while it is the recorded one
        self.absent_at: float | None = None  # since when Connect has said that there is no such connector
        self.found: list[Break] = []  # of the source, not journaled yet
        self.shapes: Mapping[str, Any] = {}  # found with them

    async def run(self, stop: asyncio.Event, stream: Stream) -> None:
        while not stop.is_set():
            if stream.is_owner:
                await retrying(self._turn, stop)
            await wait(stop, TURN_S)

    async def _turn(self, stop: asyncio.Event) -> None:
        await self.step()

    async def step(self) -> Mapping[str, Any]:
        """Send if due, observe, record; the observation."""
        if self.parts.clock() >= self.next_at:
            await self.send()
        upstream = await self._upstream()
        ends = await self.parts.feed.data_ends()
        # Offsets mean nothing in a topic that was made anew: below its few records every checkpoint would pass.
        if self.tracker.is_passed(upstream.committed_lsn) and await self._is_same():
            self.tracker = self.tracker.captured(upstream.committed_lsn, tuple(ends.items()))
        checkpoint = await self._downstream()
        breaks = [*self.found, *await self._breaks(upstream)]
        session = None if upstream.slot is None else upstream.slot.session
        async with self.parts.target.begin() as tx:
            state = await tx.ledger.load()
            known = set(state.run_ids)
            # Inside the transaction, from whose beginning its age counts: a wait for it must not make a lag shorter.
            observation = self._observation(upstream, ends, checkpoint) | _reached(state, upstream)
            shapes = self.shapes or recorded_shapes(state)
            observation |= {"shapes": [state.epoch, shapes]} if shapes else {}
            breaks += new_sessions(known, session)
            # What a running comparison will close is no longer open for what comes after it began.
            running = await tx.comparisons.running() if breaks else None
            mark = 0 if running is None else running.mark
            told = {told_by(b) for b in await tx.ledger.breaks(mark)} if breaks else set()
            if session is not None and SESSION + session not in known:
                await tx.ledger.observe_stream([SESSION + session], None)
            for b in breaks:
                if told_by(b) not in told:
                    log.warning("continuity broken: %s %s", b.id, dict(b.detail))
                    await tx.ledger.journal("break", b.id, b.detail)
            await tx.ledger.observe(observation)
        self.found = []
        return observation

    async def send(self) -> None:
        """Write the next pulse. A number is recorded after it was written: a crash in between sends the same number
        again, which is harmless, whereas a number that was never written would read as a gap. It counts for freshness
        once the source was found sound after it. Raises SchemaChanged, IdentityChanged."""
        async with self.parts.target.begin() as tx:
            state = await tx.ledger.load()
        await check_source(self.parts.source, state)
        number = max(state.pulse_seen, state.pulse_sent) + 1
        written_at = self.parts.clock()
        lsn = await self.parts.source.emit(pulse_payload(self.parts.migration, number))
        async with self.parts.target.begin() as tx:
            await tx.ledger.pulse_sent(number)
        await self._look_at_source(state)
        self.tracker = self.tracker.sent(Pulse(number, lsn, written_at))
        self.next_at = written_at + self.parts.interval_s

    async def _look_at_source(self, state: MigrationState) -> None:
        """state: read before. Raises SchemaChanged, and leaves a break: when the table is set back its values may be
        others than they were, whatever the events say."""
        publication, tables = self.parts.expected.publication, self.parts.tables
        recorded = recorded_shapes(state) or self.shapes  # another owner's are later than ours
        try:
            breaks, self.shapes = await source_drift(self.parts.source, publication, tables, recorded)
        except SchemaChanged as changed:
            async with self.parts.target.begin() as tx:
                await tx.ledger.journal("break", changed.id, {"found": changed.message})
            raise
        self.found += [b for b in breaks if b not in self.found]

    async def _upstream(self) -> Upstream:
        """Slot first, then the connector's offset: only in this order does a slot ahead of it mean anything."""
        slot: SlotState | None = None
        committed: int | None = None
        wal_lsn: int | None = None
        source: SourceIdentity | None = None
        connector: str | None = None
        try:
            slot = await self.parts.source.slot()
            wal_lsn = await self.parts.source.wal_lsn()
            source = await self.parts.source.identity()
        except TransientError as error:
            log.warning("%s: %s", error.id, error.message)
        try:
            committed = await self.parts.capture.committed_lsn()
            connector = await self.parts.capture.state()
        except TransientError as error:
            log.warning("%s: %s", error.id, error.message)
        return Upstream(slot, committed, wal_lsn, source, connector)

    async def _downstream(self) -> dict[TopicPartition, int]:
        """What is copied and swept, then the checkpoint, then missing rows, then the highest seq, then what each
        generation owes: each reading begins after the one before it ended."""
        p = self.parts
        async with p.target.begin() as tx:
            copied = all(state.backfilled for state in await tx.ledger.tables())
            generations = [g for g in await tx.ledger.generations() if g.fed]
            checkpoint = await tx.ledger.checkpoint()
        async with p.target.begin() as tx:
            missing = sum([len(await tx.replica.missing(table, 1)) for table in p.tables])
        async with p.target.begin() as tx:
            highest = await tx.ledger.highest_seq()
        self.tracker, passed = self.tracker.applied(checkpoint, missing, highest if copied else None)
        fresh = {}
        async with p.target.begin() as tx:
            for generation in generations:
                before = self.fresh.get(generation.id, Freshness())
                ready = before.replicated(passed) if generation.swept else before
                fresh[generation.id] = ready.embedded(await tx.ledger.lowest_owed(generation))
        self.fresh = fresh
        return checkpoint

    async def _breaks(self, upstream: Upstream) -> list[Break]:
        breaks: list[Break] = []
        now = self.parts.clock()
        confirmed = None if upstream.slot is None else upstream.slot.confirmed_lsn
        reading = SlotReading(confirmed, upstream.committed_lsn, now)
        self.slot_watch, found = slot_ahead(self.slot_watch, reading, FLUSH_INTERVAL_S)
        breaks += found
        if upstream.slot is not None:
            breaks += slot_lost(upstream.slot, self.parts.expected.slot)
        if now >= self.config_at:
            self.config_at = now + CONFIG_CHECK_S
            await self._is_same()
            breaks += await self._connector_drift(now)
        return breaks

    async def _connector_drift(self, now: float) -> list[Break]:
        try:
            config = await self.parts.capture.config()
        except TransientError as error:
            log.warning("%s: %s", error.id, error.message)
            self.absent_at = None
            return []
        if config is None:
            self.absent_at = now if self.absent_at is None else self.absent_at
            if now - self.absent_at < ABSENT_S:
                return []
        else:
            self.absent_at = None
        return connector_drift(connector_problems(config, self.parts.expected))

    async def _is_same(self) -> bool:
        """Whether source and Kafka are the recorded ones. Raises IdentityChanged: not for SUSPECT_S."""
        try:
            await check_identity(self.parts.source, self.parts.feed, self.parts.target)
        except IdentityChanged:
            now = self.parts.clock()
            self.suspect_at = now if self.suspect_at is None else self.suspect_at
            if now - self.suspect_at >= SUSPECT_S:
                raise
            return False
        self.suspect_at = None
        return True

    def _observation(
        self, upstream: Upstream, ends: Mapping[TopicPartition, int], checkpoint: Mapping[TopicPartition, int]
    ) -> dict[str, Any]:
        now, tracker, slot = self.parts.clock(), self.tracker, upstream.slot
        behind = [[at.topic, at.partition, max(0, n - checkpoint.get(at, 0))] for at, n in sorted(ends.items())]
        readings = {
            "replica_lag_s": None if tracker.replicated_at is None else now - tracker.replicated_at,
            "generation_lag_s": {
                str(id): now - fresh.fresh_at for id, fresh in self.fresh.items() if fresh.fresh_at is not None
            },
            "behind": behind,
            "connector": upstream.connector,
            "committed_lsn": upstream.committed_lsn,
            "wal_lsn": upstream.wal_lsn,
            "retained_bytes": None if slot is None else slot.retained_bytes,
            "retained_limit_bytes": None if slot is None else slot.limit_bytes,
            "wal_status": None if slot is None else slot.wal_status,
        }
        return {key: value for key, value in readings.items() if value is not None}


def _reached(state: MigrationState, upstream: Upstream) -> dict[str, Any]:
    """How far the source's log is known to have been, beside the epoch in which that means something. Where another
    cluster stands that was not refused yet, its position does not count."""
    found = upstream.wal_lsn if upstream.source == state.source else None
    lsns = [lsn for lsn in (reached_lsn(state.observed, state.epoch), found) if lsn is not None]
    return {"reached": [state.epoch, max(lsns)]} if lsns else {}
