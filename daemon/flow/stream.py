"""The stream: change events from Kafka into the replica, exactly once.

Read this first. One step is one window:

    poll -> decode -> apply (the window's transaction, fold inside) -> courtesy commit -> observe

The target's own transaction is the only authority on what is done: rows, work and next offsets commit together, so a
crash anywhere leaves either the whole window or nothing of it. Kafka's committed offset is a courtesy for lag tools.

One stream writer per migration, under a lease whose number guards every checkpoint row. After any error the stream
forgets what it holds in memory, loads the checkpoint and seeks. Embedding never happens here: what has to be embedded
lands in the work table, in the same transaction.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from daemon.core.continuity import SESSION, new_runs, null_sequences, pulse_gap, snapshot_reads
from daemon.core.fold import consequences, fold, survives, write
from daemon.core.model import (
    Break,
    ChangeEvent,
    Decoded,
    Effect,
    Generation,
    Ignored,
    Key,
    Position,
    PulseEvent,
    ReadEvent,
    SourceTableState,
    Table,
    TopicPartition,
    TruncateEvent,
)
from daemon.errors import LeaseLost, TransientError
from daemon.flow.pacing import retrying, wait
from daemon.ports import ChangeFeed, Decoder, Offsets, Source, Target, UnitOfWork
from daemon.settings import LimitSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Window:
    """One poll, decoded and sorted by what it touches. Events of a key stay in the order they arrived."""

    moves: Mapping[TopicPartition, tuple[int, int]]  # expected -> next offset
    truncates: tuple[TruncateEvent, ...]
    changes: Mapping[str, Mapping[Key, list[ChangeEvent]]]  # alias -> key -> events
    run_ids: tuple[str, ...]
    pulses: tuple[int, ...]
    reads: tuple[ReadEvent, ...]
    positions: tuple[Position, ...]
    records: int


@dataclass(slots=True)
class StreamCounts:
    """What this process has done since it started; read by telemetry, never by decisions."""

    windows: int = 0
    records: int = 0
    changes: int = 0
    rows_written: int = 0
    work_written: int = 0


@dataclass(slots=True)
class StreamParts:
    """What the stream works with. `owner` names this process in the lease."""

    source: Source
    feed: ChangeFeed
    target: Target
    decoder: Decoder
    tables: Sequence[Table]
    owner: str
    limits: LimitSettings
    clock: Callable[[], float]
    counts: StreamCounts = field(default_factory=StreamCounts)


class Stream:
    """Follows one migration's topics. `run` is the loop, `step` one window; tests call the step."""

    def __init__(self, parts: StreamParts) -> None:
        self.parts = parts
        self.tables = {t.alias: t for t in parts.tables}
        self.lease: int | None = None
        self.is_standing_by = False
        self.renew_at = 0.0
        self.offsets: dict[TopicPartition, int] = {}
        self.known_runs: set[str] = set()
        self.pulse_seen = 0
        self.first_commit: int | None = None
        self.xid = 0

    @property
    def is_owner(self) -> bool:
        return self.lease is not None

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`: hold the lease (or stand by for it) and apply windows. The open window ends first."""
        try:
            while not stop.is_set():
                await retrying(self._turn, stop, forget=self._forget)
        finally:
            await self.release()

    async def _turn(self, stop: asyncio.Event) -> None:
        if self.lease is None and not await self.take_over():
            if not self.is_standing_by:
                log.info(
                    "standing by: another process holds the stream lease; a dead one's ends within %d s",
                    self.parts.limits.lease_s,
                )
            self.is_standing_by = True
            await self.parts.feed.unassign()  # or it goes on to fetch what the peer applies
            await wait(stop, self.parts.limits.lease_s / 3)
            return
        self.is_standing_by = False
        try:
            await self.step()
        except LeaseLost as lost:
            log.warning("stream lease lost, standing by: %s", lost.message)
            self.is_standing_by = True
            self._forget()

    async def take_over(self) -> bool:
        """Take the lease and load the checkpoint; False while a peer holds it."""
        if self.lease is None:
            async with self.parts.target.begin() as tx:
                lease = await tx.ledger.acquire_lease(self.parts.owner, self.parts.limits.lease_s)
            if lease is None:
                return False
            self.lease = lease  # not before its commit: rolled back, the number becomes a peer's
            self.renew_at = self.parts.clock() + self.parts.limits.lease_s / 3
            log.info("stream lease %d taken", self.lease)
        await self.load()
        return True

    async def load(self) -> None:
        """Begin again from what is durable: checkpoint, run ids, last pulse; then seek the feed there."""
        async with self.parts.target.begin() as tx:
            self.offsets = await tx.ledger.checkpoint()
            state = await tx.ledger.load()
        # A process that stood by, or was halted, over a realignment was made with the epoch before it.
        self.parts.decoder.epoch = state.epoch
        self.known_runs = {run for run in state.run_ids if not run.startswith(SESSION)}
        self.pulse_seen = state.pulse_seen
        # The connector saw the start's barrier commit: an event beyond it without a preceding commit is a break. Such
        # an event is below the floor and skipped, so without this a restart of ours would hide that it was lost.
        self.first_commit = state.evidence.get("barrier_lsn")
        self.xid = (await self.parts.source.snapshot()).xmax
        await self.parts.feed.seek(self.offsets)

    def _forget(self) -> None:
        """Nothing in memory is trusted after an error; the next turn asks for the lease and loads again."""
        self.lease = None

    async def release(self) -> None:
        """Give the lease back so that a peer need not wait for its end; where the target is away, it has to."""
        if self.lease is not None:
            with suppress(TransientError):
                async with self.parts.target.begin() as tx:
                    await tx.ledger.release_lease(self.lease)
            self.lease = None

    async def step(self) -> int:
        """One window; the number of records it held. Durable when it returns, whole or not at all."""
        limits = self.parts.limits
        await self._renew()
        polled = await self.parts.feed.poll(limits.window_records, limits.window_wait_ms / 1000)
        if not polled.next_offsets:
            return 0
        decoded = [self.parts.decoder.decode(record) for record in polled.records]
        window = self.window(decoded, polled.next_offsets)
        await self.apply(window)
        self.offsets.update(polled.next_offsets)
        self.known_runs.update(window.run_ids)
        self.pulse_seen = max((self.pulse_seen, *window.pulses))
        commits = [p.commit_lsn for p in window.positions if p.commit_lsn]
        self.first_commit = min([*commits, *([self.first_commit] if self.first_commit else [])], default=None)
        await self.parts.feed.commit(self.offsets)
        self.parts.counts.windows += 1
        self.parts.counts.records += window.records
        return window.records

    def window(self, decoded: Sequence[Decoded], next_offsets: Offsets) -> Window:
        """Sort one poll's events by what they touch."""
        changes: dict[str, dict[Key, list[ChangeEvent]]] = defaultdict(lambda: defaultdict(list))
        truncates, reads, pulses, positions = [], [], [], []
        runs: dict[str, None] = {}
        for event in decoded:
            if isinstance(event, Ignored):
                run_id = event.run_id
            else:
                run_id = event.origin.run_id
                positions.append(event.origin.position)
                if isinstance(event, ChangeEvent):
                    changes[event.table][event.key].append(event)
                elif isinstance(event, TruncateEvent):
                    truncates.append(event)
                elif isinstance(event, PulseEvent):
                    pulses += [event.number] if event.number is not None else []
                else:
                    reads.append(event)
            if run_id is not None and run_id not in self.known_runs:
                runs[run_id] = None
        moves = {at: (self.offsets[at], n) for at, n in next_offsets.items()}
        return Window(
            moves, tuple(truncates), changes, tuple(runs), tuple(pulses), tuple(reads), tuple(positions), len(decoded)
        )

    async def apply(self, window: Window) -> None:
        """Make the window durable, in the one order that is safe (DESIGN.md section 5):

        1. migration row FOR SHARE, then the fed generations: a generation made meanwhile misses no row;
        2. lease and checkpoint: a zombie stops here, before it wrote a row;
        3. truncates, whose first statement is the lock that pages wait for;
        4. per table: lock positions, fold, rows, then chunks and work;
        5. run ids, pulses and breaks, so that a break cannot be missed by a crash.
        """
        if self.lease is None:
            raise LeaseLost("lease-lost", "the stream lease is not held", "another process owns the stream")
        async with self.parts.target.begin() as tx:
            generations = await tx.ledger.hold_migration()
            await tx.ledger.advance(self.lease, window.moves)
            states = {s.table.alias: s for s in await tx.ledger.tables()}
            for truncate in window.truncates:
                if survives(truncate, states[truncate.table]):
                    await tx.replica.truncate(self.tables[truncate.table], truncate.origin.position)
            if window.truncates:
                states = {s.table.alias: s for s in await tx.ledger.tables()}
            spared = 0
            for alias in sorted(window.changes):
                context = (states[alias], generations)
                spared += await self._apply_table(tx, self.tables[alias], window.changes[alias], context)
            if spared:
                await tx.ledger.count_spared(generations, spared)
            await self._apply_continuity(tx, window)

    async def _apply_table(
        self,
        tx: UnitOfWork,
        table: Table,
        changes: Mapping[Key, Sequence[ChangeEvent]],
        context: tuple[SourceTableState, Sequence[Generation]],
    ) -> int:
        """Apply one table's changes; the number of rows whose text needs no new vector."""
        spared = 0
        state, generations = context
        pending = {key: kept for key, events in changes.items() if (kept := [e for e in events if survives(e, state)])}
        while pending:
            rows = await tx.replica.lock(table, sorted(pending))
            writes = []
            for key, events in pending.items():
                row = rows.get(key)
                change = fold(events, row.position if row else None)
                if change is not None:
                    writes.append(write(change, key, row, self.xid))
                    self.xid = max(self.xid, writes[-1].xid or 0)
            effects, leftovers = await tx.replica.write(table, writes)
            self.parts.counts.rows_written += len(effects)
            spared += sum(e.was_wanted and e.is_wanted and not e.text_differs and not e.gone for e in effects)
            self.parts.counts.work_written += await follow_up(tx, table, generations, effects, live=True)
            # A page inserted these keys between our lock and our insert: they exist for us to lock this time.
            pending = {w.key: pending[w.key] for w in leftovers}
        self.parts.counts.changes += sum(len(events) for events in changes.values())
        return spared

    async def _apply_continuity(self, tx: UnitOfWork, window: Window) -> None:
        breaks: list[Break] = [
            *new_runs(self.known_runs, window.run_ids),
            *pulse_gap(self.pulse_seen, window.pulses),
            *snapshot_reads(window.reads),
            *null_sequences(self.first_commit, window.positions),
        ]
        for b in breaks:
            log.warning("continuity broken: %s %s", b.id, dict(b.detail))
            await tx.ledger.journal("break", b.id, b.detail)
        if window.run_ids or window.pulses:
            await tx.ledger.observe_stream(window.run_ids, max(window.pulses, default=None))

    async def _renew(self) -> None:
        now = self.parts.clock()
        if self.lease is not None and now >= self.renew_at:
            async with self.parts.target.begin() as tx:
                await tx.ledger.renew_lease(self.lease, self.parts.limits.lease_s)
            self.renew_at = now + self.parts.limits.lease_s / 3


async def follow_up(
    tx: UnitOfWork, table: Table, generations: Sequence[Generation], effects: Sequence[Effect], *, live: bool
) -> int:
    """Chunks and work that follow from written rows, in statements after the rows' own: those took the locks, so no
    embedder's chunk can slip in between. Returns the number of work entries written."""
    todo = consequences(effects)
    if todo.drop:
        await tx.vectors.drop(table, generations, todo.drop)
        await tx.ledger.drop_work(table, generations, todo.drop)
    if todo.copy_filters and table.filters:
        await tx.vectors.copy_filters(table, generations, todo.copy_filters)
    if todo.work:
        await tx.ledger.put_work(table, generations, todo.work, live, todo.changed_at_ms)
    return len(todo.work) * len(generations)
