"""`verify`: compare everything that is there with what should be there, live, and mend what is wrong if asked to.

    barrier -> begin (or go on) -> rows, both sides -> second look [-> mend] -> chunks -> second look -> vectors
    -> [mend ->] causes -> end

Every step is recorded in the target with what it found, so that any step may be repeated and a process that is killed
loses a page of each worker. The comparison begins after a barrier has passed the whole way: whatever a restart of the
connector has to say of itself has arrived by then. Breaks of continuity that were journaled before it begins are closed
at its end where every row agrees, and nothing that breaks continuity persists.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from daemon.core.chunking import cut_of
from daemon.core.comparison import Comparison, Found, Kind, State, outcome
from daemon.core.continuity import Identity, connector_drift, identity_changes, new_sessions
from daemon.core.contract import changed
from daemon.core.model import Break, Table
from daemon.core.profile import connector_problems
from daemon.errors import HeldElsewhere, NotBegun, SchemaChanged, StepRefused, TransientError
from daemon.flow.pulse import source_drift
from daemon.parts import Parts
from daemon.ports import Target
from daemon.procedures import repair, scan, second_look, vectors
from daemon.procedures.begun import not_begun, require_schema
from daemon.procedures.comparing import (
    FOUND_AT_ONCE,
    LEASE_S,
    Compared,
    Order,
    OutOfTime,
    Progress,
    Report,
    Run,
    check_source,
)
from daemon.procedures.doctor import expected_connector

__all__ = ["Order", "Progress", "Report", "findings", "verify"]

FAILURES = 8  # in a row, of parts that are away: about a minute
LONGEST_PAUSE_S = 15.0
LEASE_POLL_S = 0.05  # at least, however little is left
SESSION_S = 20.0  # longest wait for the stream's owner to note who reads the slot


async def verify(
    parts: Parts,
    order: Order,
    by: str,
    tell: Callable[[Progress], None],
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Report:
    """Compare; by: names this process and its operator, and is its own.

    Raises NotBegun, StepRefused (backfill or sweep unfinished), HeldElsewhere (another one runs), WaitTimedOut (the
    first barrier does not pass), ConfigError (contract), TransientError (a part stays away). After the first barrier,
    running out of time is a Report that is not finished.
    """
    async with AsyncExitStack() as stack:
        target = parts.target("verify-check")
        stack.push_async_callback(target.close)
        await require_schema(target, parts.settings.name)
        tables, compared = await _scope(parts, order, target)
        run = Run(parts, order, {t.id: t for t in tables}, compared, stack, tell, by, clock, pause)
        run.say()
        noted = await _noted(run)
        await second_look.cross(run)
        is_behind = await _begin(run, noted)
        unfinished: str | None = None
        async with _leased(run):
            try:
                if is_behind:
                    await second_look.cross(run)
                await _patiently(run, _compare)
            except OutOfTime as out:
                unfinished = out.message
        return await _report(run, unfinished)


async def findings(parts: Parts, comparison: int) -> AsyncGenerator[Found]:
    """All differences of a comparison. Close it (`aclosing`): it holds a connection."""
    target = parts.target("verify-findings")
    try:
        after = 0
        while True:
            async with target.begin() as tx:
                page = await tx.comparisons.found(comparison, after=after, limit=FOUND_AT_ONCE)
            for _, found in page:
                yield found
            if not page:
                return
            after = page[-1][0]
    finally:
        await target.close()


async def _scope(parts: Parts, order: Order, target: Target) -> tuple[list[Table], list[Compared]]:
    """The tables and generations to compare."""
    settings = parts.settings
    async with target.begin() as tx:
        states = await tx.ledger.tables()
        known = {g.name: g for g in await tx.ledger.generations()}
        contracts = {g.name: await tx.ledger.generation_contract(g) for g in known.values()}
    if not states:
        raise NotBegun("migration-unknown", f"the target knows no migration {settings.name}", "start it first")
    copying = [s.table.alias for s in states if not s.backfilled]
    if copying:
        hint = f"wait for it: `revector wait {settings.name} --for backfill`"
        raise StepRefused("backfill-unfinished", f"rows of {', '.join(copying)} are still being copied", hint)
    chosen = [g for g in settings.generation if order.generation in (None, g.name)]
    missing = [g.name for g in chosen if g.name not in known]
    if not chosen or missing:
        raise not_begun(settings.name, order.generation or missing[0])
    unswept = [g.name for g in chosen if not known[g.name].swept]
    if unswept and (order.generation is not None or len(unswept) == len(chosen)):
        hint = "wait until `revector status` no longer names it"
        raise StepRefused("sweep-unfinished", f"rows are still being handed to generation {unswept[0]}", hint)
    compared = []
    for g in (g for g in chosen if g.name not in unswept):
        contract, generation = parts.contract(g), known[g.name]
        if generation.contract_id != contract.id:
            raise changed(g.name, contracts[g.name], contract.as_json())
        tokenizer = parts.tokenizer(g)
        compared.append(Compared(generation, contract, cut_of(contract, tokenizer), tokenizer, g))
    return [s.table for s in states], compared


async def _noted(run: Run) -> list[Break]:
    """The breaks that are open."""
    async with run.target.begin() as tx:
        return await tx.ledger.breaks()


async def _begin(run: Run, noted: list[Break]) -> bool:
    """Go on with the comparison that is unfinished, or begin one. noted: breaks that were open before the barrier.

    Where one came since, another barrier passes before the mark, so that what belongs to it is noted too. True: one
    came even then, below the mark, and a barrier has to pass before a row is read. Until it has, the replica may hold
    an older state that equals the source's, be moved on by a change that is on its way, and lack what is lost.
    """
    await check_source(run)
    deadline = run.clock() + SESSION_S
    while "connector-restarted" in (faults := await _causes(run)) and run.clock() < deadline:
        await run.pause(0.2)  # the stream's owner notes it within a pulse, and its break is below the mark then
    if (now := await _noted(run)) != noted:
        noted = now
        await second_look.cross(run)
    wanted = tuple(sorted(c.generation.id for c in run.compared))
    async with run.target.begin() as tx:
        before = await tx.comparisons.running()
    if before is not None:
        await _take(run, before)
        async with run.target.begin() as tx:
            is_outdated = bool(await tx.ledger.breaks(before.mark)) or bool(before.faults)
            if run.order.is_fresh or is_outdated or before.generations != wanted:
                await tx.comparisons.abandon(before.id)
                before = None
    is_behind = False
    if before is None:
        async with run.target.begin() as tx:
            before = await tx.comparisons.begin(wanted, run.last_lsn, faults)
            is_behind = await tx.ledger.breaks() != noted
        await _take(run, before)
    run.comparison = before
    async with run.target.begin() as tx:
        run.epoch = (await tx.ledger.load()).epoch
    estimates = [await run.way.source.estimate(t) for t in run.tables.values()]
    run.rows_total = None if any(n is None for n in estimates) else sum(n or 0 for n in estimates)
    return is_behind


async def _take(run: Run, comparison: Comparison) -> None:
    """The lease; one that a dead process left ends by itself. Raises HeldElsewhere."""
    ends_at = run.clock() + LEASE_S + 1
    while True:
        async with run.target.begin() as tx:
            left = await tx.comparisons.hold(comparison.id, run.owner, LEASE_S)
        if left is None:
            return
        if run.clock() + left > ends_at:
            hint = "wait for its end, or end that process; `revector status` shows how far it is"
            raise HeldElsewhere("comparison-running", "another process runs a comparison of this migration", hint)
        await run.pause(max(LEASE_POLL_S, min(left, 0.5)))


@asynccontextmanager
async def _leased(run: Run) -> AsyncIterator[None]:
    """Keep the lease while the block runs, and give it back. Raises HeldElsewhere where it was taken away."""
    target = run.held(run.parts.target("verify-lease"))
    body = asyncio.current_task()
    lost: list[HeldElsewhere] = []

    async def renew() -> None:
        while True:
            await run.pause(LEASE_S / 3)
            try:
                async with target.begin() as tx:
                    left = await tx.comparisons.hold(run.comparison.id, run.owner, LEASE_S)
            except TransientError:
                continue
            if left is not None and body is not None:
                lost.append(HeldElsewhere("comparison-running", "another process took the comparison over", ""))
                body.cancel()
                return

    renewal = asyncio.create_task(renew())
    try:
        yield
    except asyncio.CancelledError:
        if lost:
            raise lost[0] from None
        raise
    finally:
        renewal.cancel()
        await asyncio.gather(renewal, return_exceptions=True)
        try:
            async with target.begin() as tx:
                await tx.comparisons.release(run.comparison.id, run.owner)
        except TransientError:
            pass  # it ends by itself


async def _patiently(run: Run, work: Callable[[Run], Awaitable[None]]) -> None:
    """Repeat the work, which goes on from what is recorded, while parts are away for a short time."""
    failures = 0
    while True:
        done = (run.rows, run.chunks, run.looks)
        try:
            if failures and await _has_ended(run):
                return
            await work(run)
            return
        except TransientError as error:
            failures = failures + 1 if done == (run.rows, run.chunks, run.looks) else 1
            if failures >= FAILURES:
                raise
            run.check_time()
            await run.pause(error.retry_after_s or min(LONGEST_PAUSE_S, 0.2 * 2**failures))


async def _has_ended(run: Run) -> bool:
    """Whether an end whose answer was lost is recorded."""
    async with run.target.begin() as tx:
        last = await tx.comparisons.last(None)
    if last is None or last.id != run.comparison.id:
        return False
    run.comparison = last
    return True


async def _compare(run: Run) -> None:
    """All stages from what is recorded. Raises OutOfTime."""
    async with run.target.begin() as tx:
        is_planned = bool(await tx.comparisons.scans(run.comparison.id))
    if not is_planned:
        await scan.plan(run)
    _enter(run, "rows")
    await scan.scan(run, ("source", "replica"))
    _enter(run, "suspects")
    await second_look.judge_rows(run)
    if run.order.repair:
        _enter(run, "repair")
        await repair.mend_rows(run)
    _enter(run, "chunks")
    await scan.scan(run, ("chunks",))
    _enter(run, "suspects")
    await second_look.judge_suspect_chunks(run)
    _enter(run, "vectors")
    if run.is_refuted is None:  # else it was paid for before a part was away
        run.is_refuted = await vectors.judge(run)
    if run.order.repair:
        _enter(run, "repair")
        await repair.mend_chunks(run)
        while run.is_refuted:  # so many were looked at, and there may be more
            run.is_refuted = await vectors.judge(run, is_sampled=False)
            if run.is_refuted:
                await repair.mend_chunks(run)
    _enter(run, "end")
    await _end(run)


def _enter(run: Run, stage: str) -> None:
    run.stage = stage
    run.say()


async def _end(run: Run) -> None:
    """A last barrier, what breaks continuity now, and the record."""
    lsn = await second_look.cross(run)
    faults = tuple(sorted({*run.comparison.faults, *await _causes(run)}))
    async with run.target.begin() as tx:
        found, repaired = await tx.comparisons.tally(run.comparison.id)
        left = await tx.comparisons.suspects(run.comparison.id, of_chunks=False, after=0, limit=FOUND_AT_ONCE)
        unsettled = len({(s.table_id, s.key) for s in left})
        rows_agree = not unsettled and not any(n for kind, n in found.items() if Kind(kind).is_of_row)
        ended = replace(
            run.comparison,
            state=outcome(found, unsettled + run.unjudged),
            ended_lsn=lsn,
            faults=faults,
            rows=run.rows,
            chunks=run.chunks,
            open=found,
            repaired=repaired,
            unsettled=unsettled + run.unjudged,
            sampled=run.sampled,
            tokens=run.tokens,
        )
        closed = await tx.comparisons.end(ended, close_breaks=rows_agree and not faults)
        last = await tx.comparisons.last(None)
    run.comparison = replace(ended, breaks_closed=closed, ended_at=None if last is None else last.ended_at)


async def _causes(run: Run) -> tuple[str, ...]:
    """Ids of what breaks continuity now: while one persists, changes may be lost after their rows were compared."""
    settings = run.parts.settings
    async with run.target.begin() as tx:
        state = await tx.ledger.load()
    tables = [replace(table, full_identity=False) for table in run.tables.values()]
    try:
        breaks, _ = await source_drift(run.way.source, settings.source.publication, tables, {})
    except SchemaChanged as halt:
        return (halt.id,)
    breaks = [
        *breaks,
        *connector_drift(connector_problems(await run.way.capture.config(), expected_connector(settings))),
    ]
    slot = await run.way.source.slot()
    faults = {b.id for b in [*breaks, *new_sessions(set(state.run_ids), slot.session)]}
    if slot.session is None:
        faults.add("slot-inactive")
    if state.source is not None and state.feed is not None:
        found = Identity(await run.way.source.identity(), await run.way.feed.identity())
        if identity_changes(Identity(state.source, state.feed), found):
            faults.add("identity-changed")
    return tuple(sorted(faults))


async def _report(run: Run, unfinished: str | None) -> Report:
    async with run.target.begin() as tx:
        found = await tx.comparisons.found(run.comparison.id, limit=FOUND_AT_ONCE)
        running = await tx.comparisons.running()
    if unfinished is not None and running is not None and running.id == run.comparison.id:
        run.comparison = running
    return Report(
        comparison=run.comparison,
        is_finished=run.comparison.state in (State.CLEAN, State.DIFFERS),
        unfinished=unfinished,
        keys={t.id: (t.alias, t.key) for t in run.tables.values()},
        generations={c.generation.id: c.generation.name for c in run.compared},
        found=tuple(f for _, f in found),
    )
