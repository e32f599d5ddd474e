"""Observe the eight steps of the proof, upstream first, and issue a certificate or say what is missing.

The order is the proof (DESIGN.md section 7): the barrier is written before the connector's offset is read, the end
offsets are taken after that offset passed the barrier, the checkpoint is read after them, then the missing columns,
then the highest seq, then what is owed. Comparison, breaks and halts are read first and again at the end: what a
comparison mends in between may be owed above the highest seq, so it must have been clean before. Each reading waits
for its condition until the deadline; what could not be read stays None and is a shortfall of its own. No decision is
taken here: `core.catchup.prove` judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, TypeVar

from daemon.core.catchup import CopyReading, ProofObservations, Shortfall
from daemon.core.catchup import prove as judge
from daemon.core.certified import digest_of
from daemon.core.compared import ComparisonReading
from daemon.core.continuity import Identity, new_sessions, reached_lsn, slot_lost
from daemon.core.model import REPLICATION, Break, Generation, Table
from daemon.errors import SchemaChanged, StepRefused, TransientError
from daemon.flow.pulse import barrier_payload, recorded_shapes, source_drift
from daemon.ports import Capture, ChangeFeed, Indexes, Source, Target

POLL_S = 0.1
MISSING_COUNTED = 1000

Reading = TypeVar("Reading")


@dataclass(frozen=True, slots=True)
class ProofParts:
    """What a proof reads. max_age_s: of the comparison it rests on. clock: monotonic seconds; pause: how to wait
    between two readings."""

    migration: str
    source: Source
    feed: ChangeFeed
    capture: Capture
    target: Target
    indexes: Indexes
    tables: Sequence[Table]
    generation: Generation
    max_age_s: float
    clock: Callable[[], float]
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True, slots=True)
class Certificate:
    """An issued certificate. digest: sha256 over the document's RFC 8785 bytes, hexadecimal."""

    document: dict[str, Any]
    digest: str


async def prove(
    parts: ProofParts, token: str, issued_at: str, timeout_s: float
) -> tuple[Certificate | None, list[Shortfall]]:
    """A certificate, stored and journaled, or the shortfalls in the order of the steps.

    token: names this proof's barrier in the source's log. Waits at most about `timeout_s` in all. Raises StepRefused:
    the generation was dropped meanwhile.
    """
    seen = await observe(parts, token, timeout_s)
    outcome = judge(seen, issued_at)
    if isinstance(outcome, list):
        return None, outcome
    digest = digest_of(outcome)
    async with parts.target.begin() as tx:
        await tx.ledger.store_certificate(parts.generation, outcome, digest)
        await tx.ledger.journal("certificate", "certificate-issued", {"digest": digest})
    return Certificate(outcome, digest), []


async def observe(parts: ProofParts, token: str, timeout_s: float) -> ProofObservations:
    """Steps 1 to 8, in order."""
    deadline = parts.clock() + timeout_s
    seen = await _control(parts)  # 1, 2
    barrier = await _read(parts.source.emit(barrier_payload(parts.migration, token)))  # 3
    connect = None  # 4
    if barrier is not None:
        connect = await _until(parts, deadline, parts.capture.committed_lsn, lambda lsn: (lsn or 0) >= barrier)
    ends = await _read(parts.feed.data_ends())  # 5
    seen = replace(seen, barrier_lsn=barrier, connect_lsn=connect, ends=ends, partitions=tuple(sorted(ends or ())))
    seen = replace(seen, versions=await _versions(parts))
    return await _unchanged(parts, await _embedded(parts, await _applied(parts, seen, deadline), deadline))


async def _versions(parts: ProofParts) -> dict[str, str]:
    """Of what the claim rests on; one that is not known is absent."""
    debezium = await _read(parts.capture.version())
    return {"revector": version("revector")} | ({} if debezium is None else {"debezium": debezium})


async def _control(parts: ProofParts) -> ProofObservations:
    async with parts.target.begin() as tx:
        state = await tx.ledger.load()
        breaks = await tx.ledger.breaks()
        tables = await tx.ledger.tables()
        progress = await tx.ledger.backfill_progress()
        generation = next((g for g in await tx.ledger.generations() if g.id == parts.generation.id), None)
        running = await tx.comparisons.running()  # first: what ends in between is the last one
        compared = await tx.comparisons.last(parts.generation)
    if generation is None:
        hint = f"it was dropped meanwhile; see `revector generation list {parts.migration}`"
        raise StepRefused("generation-absent", f"{parts.migration} has no generation {parts.generation.name}", hint)
    copied = {}
    for t in tables:
        done = progress.get(t.table.alias)
        if done is not None:
            copied[t.table.alias] = CopyReading(t.backfilled, done["ranges"], done["ranges_done"])
    began = None if state.source is None or state.feed is None else Identity(state.source, state.feed)
    return ProofObservations(
        migration=parts.migration,
        generation=generation.name,
        generation_id=generation.id,
        contract_id=generation.contract_id,
        tables=tuple(t.alias for t in parts.tables),
        partitions=(),
        comparison=ComparisonReading(compared, parts.max_age_s, running),
        breaks=tuple(breaks),
        halts=tuple(state.halts_of(REPLICATION)),
        embed_halts=tuple(state.halts_of([generation.role])),
        backfill=copied,
        swept=generation.swept,
        began=began,
        epoch=state.epoch,
        epoch_again=state.epoch,
        reached_lsn=reached_lsn(state.observed, state.epoch) or 0,
    )


async def _applied(parts: ProofParts, seen: ProofObservations, deadline: float) -> ProofObservations:
    """Step 6: checkpoint, then missing columns, then the highest seq; each in a transaction that begins later."""
    ends = seen.ends or {}

    async def checkpoint() -> dict[Any, int]:
        async with parts.target.begin() as tx:
            offsets = await tx.ledger.checkpoint()
        return {at: n for at, n in offsets.items() if at.topic != parts.feed.message_topic}

    async def missing() -> dict[str, int]:
        async with parts.target.begin() as tx:
            return {t.alias: len(await tx.replica.missing(t, MISSING_COUNTED)) for t in parts.tables}

    async def highest() -> int:
        async with parts.target.begin() as tx:
            return await tx.ledger.highest_seq()

    reached = await _until(
        parts, deadline, checkpoint, lambda c: all((c or {}).get(at, 0) >= n for at, n in ends.items())
    )
    lacking = await _until(parts, deadline, missing, lambda m: m is not None and not any(m.values()))
    return replace(seen, checkpoint=reached, missing=lacking, highest_seq=await _read(highest()))


async def _embedded(parts: ProofParts, seen: ProofObservations, deadline: float) -> ProofObservations:
    """Step 7. A refused entry does not pass by itself: where there is one, nothing is waited for."""
    highest = seen.highest_seq
    async with parts.target.begin() as tx:
        if (await tx.ledger.backlog(parts.generation)).refused:
            deadline = parts.clock()

    async def owed() -> int:
        async with parts.target.begin() as tx:
            return await tx.ledger.owed(parts.generation, highest or 0)

    count = None if highest is None else await _until(parts, deadline, owed, lambda n: n == 0)
    async with parts.target.begin() as tx:
        backlog = await tx.ledger.backlog(parts.generation)
    return replace(seen, owed=count, refused=backlog.refused, accepted=backlog.accepted)


async def _unchanged(parts: ProofParts, seen: ProofObservations) -> ProofObservations:
    """Step 8, and step 1 again: windows applied since may have told of a break from before the barrier."""
    source, feed = await _read(parts.source.identity()), await _read(parts.feed.identity())
    found = None if source is None or feed is None else Identity(source, feed)
    try:
        indexes = {t.alias: await parts.indexes.state(t, parts.generation) for t in parts.tables}
    except SchemaChanged:
        await _control(parts)  # says so where the generation was dropped with its relations
        raise
    slot = await _read(parts.source.slot())
    async with parts.target.begin() as tx:
        state = await tx.ledger.load()
    known, recorded = set(state.run_ids), recorded_shapes(state)
    drift, changed = await _drift(parts, found, recorded)
    control = await _control(parts)
    breaks = None
    lost = [] if slot is None or found is None else slot_lost(slot, found.source.slot)
    if slot is not None and (slot.session is not None or lost) and drift is not None:
        # One that was closed meanwhile was open when the barrier was written: what was mended for it may be owed.
        before, after = seen.breaks or (), control.breaks or ()
        breaks = (*after, *(b for b in before if b not in after), *new_sessions(known, slot.session), *drift, *lost)
    halts = (*(control.halts or ()), *changed)
    seen = replace(seen, found=found, indexes=indexes, compared_again=control.comparison, epoch_again=control.epoch)
    return replace(seen, breaks=breaks, halts=halts, embed_halts=control.embed_halts)


async def _drift(
    parts: ProofParts, found: Identity | None, recorded: Mapping[str, Any]
) -> tuple[list[Break] | None, tuple[str, ...]]:
    """What the publication leaves out and which table was rewritten (None: not observed), and the halt that a changed
    table is."""
    if found is None:
        return None, ()
    # Which replica identity the running stream reads by is its own business, and it looks itself.
    tables = [replace(table, full_identity=False) for table in parts.tables]
    try:
        drift = await _read(source_drift(parts.source, found.source.publication, tables, recorded))
        return None if drift is None else drift.breaks, ()
    except SchemaChanged as halt:
        return [], (halt.id,)


async def _until(
    parts: ProofParts, deadline: float, read: Callable[[], Awaitable[Reading]], holds: Callable[[Reading | None], bool]
) -> Reading | None:
    """Read until the reading satisfies `holds` or the deadline has passed; the last reading."""
    while True:
        reading = await _read(read())
        if holds(reading) or parts.clock() >= deadline:
            return reading
        await parts.pause(POLL_S)


async def _read(reading: Awaitable[Reading]) -> Reading | None:
    """The reading, or None while the part is away."""
    try:
        return await reading
    except TransientError:
        return None
