"""Look at a migration: gather what `core.status` judges, from whichever parts answer.

Any process may look, also while no daemon runs: the control tables hold what the last daemon measured and how long ago
that was, everything else is read from the parts now. A part that does not answer within LIMIT_S is a None, never an
error: status must say what it does not know.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from daemon.core.catchup import Shortfall
from daemon.core.compared import ComparisonReading
from daemon.core.model import REPLICATION, Backlog, Break, Generation, HaltNote, TopicPartition
from daemon.core.orders import standing
from daemon.core.setup import SlotState
from daemon.core.status import (
    CopyFacts,
    CostFacts,
    FeedFacts,
    OtherGeneration,
    RunningComparison,
    SourceFacts,
    Status,
    StatusFacts,
    TargetFacts,
    judge,
)
from daemon.errors import ProgramOutdated, RevectorError
from daemon.parts import Parts
from daemon.ports import MigrationState, SourceTableState, UnitOfWork
from daemon.procedures.begun import refuse_other_version

LIMIT_S = 3.0
HISTORY = 20
CERTIFICATE_S = 900.0  # a certificate speaks of its instant; after this it says too little about today
STALE_S = 3600.0  # an observation older than this says nothing about a lag

Reading = TypeVar("Reading")


@dataclass(frozen=True, slots=True)
class Control:
    """What the control tables say, read in one transaction."""

    state: MigrationState
    breaks: tuple[Break, ...]
    tables: tuple[SourceTableState, ...]
    progress: dict[str, Any]
    generation: Generation | None
    backlog: Backlog | None
    others: tuple[OtherGeneration, ...]
    certificate_age_s: float | None
    checkpoint: dict[TopicPartition, int]
    paused: str | None
    forecast: Mapping[str, Any] | None
    comparison: ComparisonReading
    comparing: RunningComparison | None


@dataclass(slots=True)
class Sample:
    at_s: float
    copied: int
    embedded: int


@dataclass(slots=True)
class Looker:
    """Looks again and again over the same connections; rates come from its own last samples. generation: the name of
    the one that is looked at; None: the one to cut over to."""

    parts: Parts
    clock: Callable[[], float]
    generation: str | None = None
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=HISTORY))
    estimates: dict[str, int | None] = field(default_factory=dict)
    is_version_known: bool = False

    async def __aenter__(self) -> Looker:
        self._stack = AsyncExitStack()
        self._target = self.parts.target("status")
        self._source = self.parts.source("status")
        self._feed = self.parts.feed("status")
        self._capture = self.parts.capture("status")
        for part in (self._target, self._source, self._feed, self._capture):
            self._stack.push_async_callback(part.close)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    _stack: AsyncExitStack = field(init=False)
    _target: Any = field(init=False)
    _source: Any = field(init=False)
    _feed: Any = field(init=False)
    _capture: Any = field(init=False)

    async def look(self, observed_at: str, proof: tuple[Shortfall, ...] | None = None) -> Status:
        """The status as of now."""
        control, slot, ends, connector = await asyncio.gather(
            read(self._control),
            read(self._source.slot),
            read(self._feed.data_ends),
            read(self._connector),
        )
        if control is None:
            return judge(await self._unread(observed_at))
        await self._check_version()
        await self._estimate(control)
        return judge(self._facts(control, (slot, ends, connector), (observed_at, proof)))

    async def _check_version(self) -> None:
        """Once: what an older control schema holds may mean something else. A newer one is met at every reading.
        Raises ConfigError `schema-older`."""
        if not self.is_version_known and (setup := await read(self._target.setup)) is not None:
            refuse_other_version(setup, self.parts.settings.name)
            self.is_version_known = True

    async def _unread(self, observed_at: str) -> StatusFacts:
        """The control tables could not be read: because there are none yet, or for a reason that stays unknown."""
        settings = self.parts.settings
        setup = await read(self._target.setup)
        if setup is not None and setup.schema_version is None:
            return StatusFacts(settings.name, None, begun=False, observed_at=observed_at)
        if setup is not None:
            try:
                refuse_other_version(setup, settings.name)
            except ProgramOutdated as halt:  # a process that was overtaken says so as long as it is up
                halts = {halt.id: HaltNote(halt.message, halt.hint)}
                return StatusFacts(settings.name, self._wanted, begun=True, observed_at=observed_at, halts=halts)
        return StatusFacts(settings.name, self._wanted, observed_at=observed_at)

    @property
    def _wanted(self) -> str:
        return self.generation or self.parts.settings.candidate.name

    @property
    def _price(self) -> float | None:
        return next((g.price for g in self.parts.settings.generation if g.name == self._wanted), None)

    async def _control(self) -> Control:
        async with self._target.begin() as tx:
            state = await tx.ledger.load()
            listed = await tx.ledger.generations()
            generation = next((g for g in listed if g.name == self._wanted), None)
            others = [(g, await tx.ledger.backlog(g)) for g in listed if g is not generation]
            return Control(
                state=state,
                breaks=tuple(await tx.ledger.breaks()),
                tables=tuple(await tx.ledger.tables()),
                progress=dict(await tx.ledger.backfill_progress()),
                generation=generation,
                backlog=None if generation is None else await tx.ledger.backlog(generation),
                others=tuple(OtherGeneration(g.name, g.phase, g.swept, b.waiting, b.refused) for g, b in others),
                certificate_age_s=None if generation is None else await tx.ledger.certificate_age(generation),
                checkpoint=await tx.ledger.checkpoint(),
                paused=standing(await tx.ledger.orders()).words,
                forecast=None if generation is None else await tx.ledger.forecast(generation),
                comparison=await self._compared(tx, generation),
                comparing=await running_comparison(tx),
            )

    async def _compared(self, tx: UnitOfWork, generation: Generation | None) -> ComparisonReading:
        running = await tx.comparisons.running()
        last = None if generation is None else await tx.comparisons.last(generation)
        return ComparisonReading(last, self.parts.settings.verify.max_age_s, running)

    async def _connector(self) -> tuple[str, str | None]:
        """Its state, and why it failed."""
        state = await self._capture.state()
        return state, await self._capture.failure() if state == "failed" else None

    async def _estimate(self, control: Control) -> None:
        for t in control.tables:
            if self.estimates.get(t.table.alias) is None and not t.backfilled:
                self.estimates[t.table.alias] = await read(partial(self._source.estimate, t.table))

    def _facts(
        self,
        control: Control,
        live: tuple[SlotState | None, dict[TopicPartition, int] | None, tuple[str, str | None] | None],
        given: tuple[str, tuple[Shortfall, ...] | None],
    ) -> StatusFacts:
        slot, ends, connector = live
        observed_at, proof = given
        age = control.certificate_age_s
        if proof is None and age is not None and age <= CERTIFICATE_S:
            proof = ()
        state = control.state
        lag, generation = observed_lag(state, "replica_lag_s"), control.generation
        fresh = None if generation is None else generation_lag(state, generation)
        copied = self._copied(control)
        rate = self._rate(copied, control.backlog)
        embedders = () if generation is None else (generation.role,)
        return StatusFacts(
            migration=state.name,
            generation=self._wanted if generation is not None or state.started else None,
            listed=generation is not None,
            others=control.others,
            paused=control.paused,
            begun=state.started,
            observed_at=observed_at,
            halts=state.halts_of(REPLICATION),
            embed_halts=state.halts_of(embedders),
            breaks=control.breaks,
            source=source_facts(lag, slot),
            feed=feed_facts(control.checkpoint, ends, connector),
            embed=control.backlog,
            cost=cost_facts(control.forecast, self._price),
            swept=None if generation is None else generation.swept,
            target=TargetFacts(rate, None if generation is None else generation.phase),
            backfill=copied,
            freshness_s=fresh,
            comparison=control.comparison,
            comparing=control.comparing,
            proof=proof,
        )

    def _copied(self, control: Control) -> CopyFacts | None:
        if not control.tables or not control.state.started:
            return None
        rows = sum(p["rows_read"] for p in control.progress.values())
        complete = all(t.backfilled for t in control.tables)
        totals = [self.estimates.get(t.table.alias) for t in control.tables]
        total = None if complete or any(n is None for n in totals) else max(rows, sum(n or 0 for n in totals))
        rates, basis = copy_rates(self.samples)
        return CopyFacts(rows, complete, total, rates, basis)

    def _rate(self, copied: CopyFacts | None, backlog: Backlog | None) -> float | None:
        """Rows copied and embedded per second over this looker's samples; None until there are two."""
        if copied is None or backlog is None:
            return None
        self.samples.append(Sample(self.clock(), copied.rows, backlog.rows_embedded))
        first, last = self.samples[0], self.samples[-1]
        if last.at_s <= first.at_s:
            return None
        return (last.copied - first.copied + last.embedded - first.embedded) / (last.at_s - first.at_s)


async def running_comparison(tx: UnitOfWork) -> RunningComparison | None:
    """How far the comparison is that has begun and not ended, by what is durable."""
    running = await tx.comparisons.running()
    if running is None:
        return None
    scans = await tx.comparisons.scans(running.id)
    rows, chunks = sum(s.rows for s in scans if s.side == "source"), sum(s.chunks for s in scans)
    done = sum(1 for s in scans if s.is_done)
    return RunningComparison(running.id, running.began_age_s, rows, chunks, len(scans), done)


async def read(reading: Callable[[], Awaitable[Reading]]) -> Reading | None:
    """The reading, or None where the part does not answer in time. Called here, so that a look that is interrupted
    before its first step leaves nothing that was never awaited."""
    try:
        async with asyncio.timeout(LIMIT_S):
            return await reading()
    except (RevectorError, TimeoutError):
        return None


def observed_lag(state: MigrationState, key: str) -> float | None:
    """A lag as the stream measured it last, grown by the time since; None where it never was, or too long ago."""
    return _aged(state, (state.observed or {}).get(key))


def generation_lag(state: MigrationState, generation: Generation) -> float | None:
    """The age of the instant up to which this generation is complete, as `observed_lag`."""
    return _aged(state, (state.observed or {}).get("generation_lag_s", {}).get(str(generation.id)))


def _aged(state: MigrationState, lag: Any) -> float | None:
    if lag is None or state.observed_age_s is None or state.observed_age_s > STALE_S:
        return None
    return float(lag) + state.observed_age_s


def cost_facts(forecast: Mapping[str, Any] | None, price: float | None) -> CostFacts:
    """forecast: as `daemon.core.forecast.record` made it."""
    if forecast is None:
        return CostFacts(price)
    tokens = forecast["tokens"]
    return CostFacts(price, (int(tokens["low"]), int(tokens["high"])))


def source_facts(lag_s: float | None, slot: SlotState | None) -> SourceFacts:
    if slot is None:
        return SourceFacts(lag_s)
    facts = SourceFacts(lag_s, slot.retained_bytes, slot.limit_bytes, slot.exists, slot.active, slot.wal_status)
    return replace(facts, left_bytes=slot.left_bytes, slot_cause=slot.cause)


def feed_facts(
    checkpoint: dict[TopicPartition, int],
    ends: dict[TopicPartition, int] | None,
    connector: tuple[str, str | None] | None,
) -> FeedFacts | None:
    """Events behind per partition that both sides know. connector: its state, and why it failed."""
    state, failure = connector or (None, None)
    if ends is None:
        return FeedFacts({}, None, state, failure) if state is not None else None
    behind = {at: max(0, n - checkpoint[at]) for at, n in ends.items() if at in checkpoint}
    return FeedFacts(behind, len(ends), state, failure)


def copy_rates(samples: deque[Sample]) -> tuple[tuple[float, ...], float]:
    """Rows copied per second in the older and the newer half of the samples, and the seconds they span."""
    if len(samples) < 3:
        return (), 0.0
    first, middle, last = samples[0], samples[len(samples) // 2], samples[-1]
    halves = [(a, b) for a, b in ((first, middle), (middle, last)) if b.at_s > a.at_s]
    return tuple((b.copied - a.copied) / (b.at_s - a.at_s) for a, b in halves), last.at_s - first.at_s
