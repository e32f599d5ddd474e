"""Go on at the ends of the topics: the way on where the next events mean nothing any more, or cannot be read.

After an accepted change of identity (another timeline or cluster, a source that was restored, topics made anew,
partitions added), offsets that retention took, or a record that cannot be decoded. What is unread is skipped for good,
so a break is journaled with it, and a comparison that begins afterwards mends the rows. The order is the proof:

1. take the stream's lease: no window commits from here on; a stream that runs refuses this;
2. read the numbers of the pulses that were sent, which identities there are, and who reads the slot;
3. record the end offsets E of every partition: the stream goes on there;
4. write barrier B0 (LSN L0) and let it commit;
5. take an own transaction id X, and wait until new snapshots see every transaction up to X;
6. see that the identities are still those of step 2;
7. in one transaction that holds the migration's row, under the lease number of step 1: identity, evidence, checkpoints
   at E, every table's floor at L0, the next epoch, the truncate counts; rows that lack columns may be filled by what is
   read after X; a comparison that runs is abandoned; the halt is cleared; the break `realigned` is journaled;
8. give the lease back. A halted process sees the epoch and goes on.

Why nothing that is skipped can come back or be missed, once a comparison that began after 7 has mended what differs:

- What commits after B0 was not in Kafka at step 3, so it lies at or after E and is read, each key's events in order.
- What committed before B0 and comes after E all the same (an abandoned task's producer, a restart, a slot that was set
  back) has a previous commit below L0: the floor drops it. By step 5 every snapshot that is taken after 7 sees it, so
  the comparison, its repairs and every page do. This holds whatever the unread events were, deletes included.
- Positions of the log before may be larger than those to come, where the source went back: without the epoch a mended
  row, which keeps its position, would refuse every change until the log had grown past it. The epoch rises each time,
  not only where the identity differs: a source restored to an earlier state need not differ in any field, and where
  nothing changed all that is read afterwards is newer than every row anyway.
- Transaction ids of a log that went back are given out again. A row's `xid` counts in its own epoch alone
  (`core.comparison.is_shown`); `missing_xid` outlives an update of the row, so step 7 replaces it by X.
- What was read at the source before 7 and is not written yet (pages, completions, repairs) meets another truncate
  count and is read again: its snapshot's transaction ids must not be compared with those of the epoch.
- Pulses up to the number of step 2 count as seen: that they were skipped is what the break says. A later one that does
  not arrive is a break of its own.
- A process that stood by with the epoch before takes it from the checkpoint's transaction whenever it begins from there
  (`flow.stream`), and its windows carry a lease number that is not valid any more.

It assumes that no task of the connector still delivers events of a log that is gone: restart the connector first. Its
committed offset must lie within the source's log, or every barrier would pass at once; that is refused here.

May be repeated at any time, after a crash too: before 7 nothing has changed, and each one is a break of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from daemon.core.catalog import schema_change
from daemon.core.continuity import (
    SESSION,
    Identity,
    IdentityChange,
    identity_changes,
    log_set_back,
    lsn_text,
    reached_lsn,
    slot_lost,
)
from daemon.core.model import REPLICATION, HaltNote, TopicPartition
from daemon.errors import HeldElsewhere, SchemaChanged, StepRefused, TransientError
from daemon.flow.pulse import barrier_payload
from daemon.ports import Capture, ChangeFeed, MigrationState, Offsets, Realignment, Source, SourceTableState, Target
from daemon.procedures.begun import not_begun, require_schema
from daemon.procedures.start import fence

log = logging.getLogger(__name__)

LEASE_S = 30.0
LEASE_POLL_S = 0.25
BREAK = "realigned"


@dataclass(frozen=True, slots=True)
class RealignParts:
    """What it works with; each for itself alone. clock: monotonic seconds; pause: how to wait."""

    migration: str
    source: Source
    feed: ChangeFeed
    capture: Capture
    target: Target
    clock: Callable[[], float]
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True, slots=True)
class Move:
    """One partition's next offset, before and after. None: it had none; it is gone. skipped: offsets that are passed
    over; None where they are of two topics, and so not known."""

    at: TopicPartition
    before: int | None
    after: int | None
    skipped: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is changed. halts: open ones of replication. owner: of the stream's lease, None while it is free. epoch: the
    one that ends."""

    migration: str
    changes: tuple[IdentityChange, ...]
    moves: tuple[Move, ...]
    halts: Mapping[str, HaltNote]
    owner: str | None
    epoch: int

    @property
    def skipped(self) -> int:
        """Offsets that are known to be passed over."""
        return sum(m.skipped or 0 for m in self.moves)

    @property
    def is_exact(self) -> bool:
        """Whether that is all of them."""
        return all(m.skipped is not None for m in self.moves)


@dataclass(frozen=True, slots=True)
class Realigned:
    """What was done. epoch: the one that began."""

    plan: Plan
    epoch: int
    barrier_lsn: int


@dataclass(slots=True)
class _Found:
    """What the parts say at steps 2 and 3."""

    identity: Identity
    session: str | None
    offsets: Offsets = field(default_factory=dict)
    set_back: tuple[IdentityChange, ...] = ()


async def plan(parts: RealignParts) -> Plan:
    """What a realignment would change as of now; nothing is written. Raises as `realign`, but for the lease."""
    state, tables = await _control(parts)
    found = await _look(parts, state, tables)
    found.offsets = await parts.feed.ends()
    return await _planned(parts, state, found)


async def realign(parts: RealignParts, owner: str, by: str) -> Realigned:
    """Steps 1 to 8; durable whole or not at all. owner: names this process in the lease; by: the operator.

    Raises NotBegun; HeldElsewhere `stream-running`; StepRefused `slot-missing`, `slot-lost`, `connector-ahead`,
    `identity-moving`; SchemaChanged: a table is not what it was; OffsetsGone: a topic does not exist; LeaseLost: this
    process stood still for longer than its lease; TransientError: a part is away.
    """
    await _control(parts)
    lease = _Lease(parts, await _take(parts, owner))  # 1
    try:
        state, tables = await _control(parts)
        found = await _look(parts, state, tables)  # 2
        found.offsets = await parts.feed.ends()  # 3
        barrier_lsn = await parts.source.emit(barrier_payload(parts.migration, "realign"))  # 4
        xid = await parts.source.own_xid()  # 5
        await fence(parts.source, xid, lease.pause)
        await _unmoved(parts, found)  # 6
        outline = await _planned(parts, state, found)
        epoch = await _record(parts, lease.number, (state, found, outline), (barrier_lsn, xid), by)  # 7
        return Realigned(outline, epoch, barrier_lsn)
    finally:
        await lease.release()  # 8


async def _control(parts: RealignParts) -> tuple[MigrationState, list[SourceTableState]]:
    await require_schema(parts.target, parts.migration)
    async with parts.target.begin() as tx:
        state, tables = await tx.ledger.load(), await tx.ledger.tables()
    if not state.started:
        raise not_begun(parts.migration)
    return state, tables


async def _take(parts: RealignParts, owner: str) -> int:
    """The stream's lease. One that a dead process left ends by itself; who renews it is alive, and not halted."""
    before: float | None = None
    while True:
        async with parts.target.begin() as tx:
            number = await tx.ledger.acquire_lease(owner, LEASE_S)
            state = await tx.ledger.load()
        if number is not None:
            return number
        left = state.lease_left_s or 0.0
        if before is not None and left > before:
            message = f"the stream of {parts.migration} is followed by {state.lease_owner}"
            raise HeldElsewhere("stream-running", message, "it is neither halted nor stopped: stop it first")
        if before is None:
            log.warning(
                "waiting for the stream's lease of %s: it ends in %.0f s, or is renewed", state.lease_owner, left
            )
        before = left
        await parts.pause(LEASE_POLL_S)


@dataclass(slots=True)
class _Lease:
    """The stream's lease while it is ours."""

    parts: RealignParts
    number: int
    renewed_at: float = 0.0

    def __post_init__(self) -> None:
        self.renewed_at = self.parts.clock()

    async def pause(self, seconds: float) -> None:
        """Wait, and keep it. Raises LeaseLost."""
        await self.parts.pause(seconds)
        if self.parts.clock() - self.renewed_at >= LEASE_S / 3:
            async with self.parts.target.begin() as tx:
                await tx.ledger.renew_lease(self.number, LEASE_S)
            self.renewed_at = self.parts.clock()

    async def release(self) -> None:
        with suppress(TransientError):  # it ends by itself
            async with self.parts.target.begin() as tx:
                await tx.ledger.release_lease(self.number)


async def _look(parts: RealignParts, state: MigrationState, tables: list[SourceTableState]) -> _Found:
    """Step 2, and whether what is there can be followed."""
    for s in tables:
        # Which replica identity the stream reads by is its own business, and it looks itself.
        table = replace(s.table, full_identity=False)
        change = schema_change(table, await parts.source.describe(table.schema, table.name))
        if change is not None:
            hint = "what is read next could not be read either: set the table back first"
            raise SchemaChanged("table-changed", change, hint)
    committed_lsn = await parts.capture.committed_lsn()
    wal_lsn = await parts.source.wal_lsn()
    if committed_lsn is not None and committed_lsn > wal_lsn:
        ahead = f"the connector has committed {lsn_text(committed_lsn)}, the source's log ends at {lsn_text(wal_lsn)}"
        hint = "its offset is of another log: stop the connector, delete its offsets, and start it again"
        raise StepRefused("connector-ahead", ahead, hint)
    identity = Identity(await parts.source.identity(), await parts.feed.identity())
    slot = await parts.source.slot()
    if not slot.exists:
        hint = "start the connector once: Debezium creates its slot"
        raise StepRefused("slot-missing", f"there is no replication slot {identity.source.slot}", hint)
    if slot_lost(slot, identity.source.slot):
        hint = "make slot and connector again first"
        raise StepRefused("slot-lost", f"the replication slot {identity.source.slot} has lost its log", hint)
    return _Found(
        identity, slot.session, set_back=tuple(log_set_back(reached_lsn(state.observed, state.epoch), wal_lsn))
    )


async def _unmoved(parts: RealignParts, found: _Found) -> None:
    """Raises StepRefused: the end offsets may be of topics, and the barrier in a log, that are not there any more."""
    now = Identity(await parts.source.identity(), await parts.feed.identity())
    changes = identity_changes(found.identity, now)
    if changes:
        what = ", ".join(f"{c.part} {c.field} was {c.before}, is {c.after}" for c in changes)
        raise StepRefused("identity-moving", f"it changed meanwhile: {what}", "nothing was done: repeat it")


async def _planned(parts: RealignParts, state: MigrationState, found: _Found) -> Plan:
    async with parts.target.begin() as tx:
        checkpoint = await tx.ledger.checkpoint()
    began = None if state.source is None or state.feed is None else Identity(state.source, state.feed)
    changes = [] if began is None else identity_changes(began, found.identity)
    is_same = {
        topic: state.feed is not None and state.feed.topics.get(topic, ("",))[0] == id
        for topic, (id, _) in found.identity.feed.topics.items()
    }
    moves = []
    for at in sorted({*checkpoint, *found.offsets}):
        before, after = checkpoint.get(at), found.offsets.get(at)
        is_known = before is not None and after is not None and before <= after and is_same.get(at.topic, False)
        moves.append(Move(at, before, after, (after or 0) - (before or 0) if is_known else None))
    # Of another log a position means nothing.
    is_source_same = not any(c.part == "source" for c in changes)
    changes += found.set_back if is_source_same else ()
    return Plan(
        parts.migration, tuple(changes), tuple(moves), state.halts_of(REPLICATION), state.lease_owner, state.epoch
    )


async def _record(
    parts: RealignParts,
    lease: int,
    known: tuple[MigrationState, _Found, Plan],
    fenced: tuple[int, int],
    by: str,
) -> int:
    """Step 7; the epoch. Raises LeaseLost."""
    state, found, outline = known
    barrier_lsn, xid = fenced
    offsets = [[at.topic, at.partition, n] for at, n in sorted(found.offsets.items())]
    evidence = {"offsets": offsets, "barrier_lsn": barrier_lsn, "xid": xid}
    to = Realignment(evidence, *found.identity, found.offsets, barrier_lsn, state.pulse_sent)
    async with parts.target.begin() as tx:
        epoch = await tx.ledger.realign(lease, to)
        for s in await tx.ledger.tables():
            await tx.replica.restamp_missing(s.table, xid)
        running = await tx.comparisons.running()
        if running is not None:
            await tx.comparisons.abandon(running.id)
        if found.session is not None:
            await tx.ledger.observe_stream([SESSION + found.session], None)
        await tx.ledger.clear_halt(REPLICATION)
        changed = [f"{c.part} {c.field} was {c.before}, is {c.after}" for c in outline.changes]
        detail = {"changed": changed, "skipped": outline.skipped, "halted": sorted(outline.halts), "by": by}
        await tx.ledger.journal("break", BREAK, {name: value for name, value in detail.items() if value})
        moves = [[m.at.topic, m.at.partition, m.before, m.after] for m in outline.moves]
        await tx.ledger.journal("operator", BREAK, {"by": by, "epoch": epoch, **evidence, "offsets": moves})
    return epoch
