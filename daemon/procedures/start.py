"""Start a migration, once: fix where the stream begins and from when on the source may be paged.

The order is the proof that no change falls between stream and pages (DESIGN.md section 5, history 1 and 2 of the
protocol's model):

1. record the end offsets of every partition: the stream begins there;
2. write barrier B0 (LSN L0) and let it commit;
3. take an own transaction id X;
4. wait until every transaction up to X is visible to new snapshots: whatever is in Kafka below the recorded offsets is
   then seen by every page (a snapshot's own xmax is not enough: a transaction whose commit record is written but which
   is not visible yet passes it);
5. record evidence, checkpoints and every table's floor L0, in one transaction;
6. plan the ranges. The first page comes after all of this.

May be run at every start of the process: a migration that has begun only has its identity compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from daemon.core.continuity import SESSION
from daemon.core.model import Table
from daemon.flow.pulse import barrier_payload, check_identity
from daemon.ports import ChangeFeed, Source, Target

log = logging.getLogger(__name__)

FENCE_POLL_S = 0.1
FENCE_REPORT_S = 10.0


async def begin(
    source: Source,
    feed: ChangeFeed,
    target: Target,
    tables: Sequence[Table],
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ranges: int = 8,
) -> bool:
    """Record the start, or compare with the one recorded; True if this call recorded it.

    Raises IdentityChanged: source, slot, Kafka cluster, a topic or its partition count is not the recorded one.
    """
    async with target.begin() as tx:
        state = await tx.ledger.load()
    if state.started:
        await check_identity(source, feed, target)
        await _plan(source, target, tables, ranges)
        return False
    source_identity, feed_identity = await source.identity(), await feed.identity()
    session = (
        await source.slot()
    ).session  # before the offsets: a restart after this is one that the stream would miss
    offsets = await feed.ends()  # 1
    barrier_lsn = await source.emit(barrier_payload(state.name, "start"))  # 2
    xid = await source.own_xid()  # 3
    await fence(source, xid, pause)  # 4
    evidence = {
        "offsets": [[at.topic, at.partition, n] for at, n in sorted(offsets.items())],
        "barrier_lsn": barrier_lsn,
        "xid": xid,
    }
    async with target.begin() as tx:  # 5
        await tx.ledger.start(evidence, source_identity, feed_identity, offsets, barrier_lsn)
        if session is not None:
            await tx.ledger.observe_stream([SESSION + session], None)
        await tx.ledger.journal("start", "migration-started", evidence)
    await _plan(source, target, tables, ranges)  # 6
    return True


async def fence(source: Source, xid: int, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Wait until new snapshots see every transaction up to and including `xid`, naming whoever holds it up."""
    waited, reported = 0.0, 0.0
    while (await source.snapshot()).xmin <= xid:
        if waited - reported >= FENCE_REPORT_S and (blocker := await source.blocker()) is not None:
            reported = waited
            log.warning(
                "start waits for a transaction of the source: %s pid %d, open for %.0f s",
                blocker.what,
                blocker.pid,
                blocker.age_s,
            )
        await pause(FENCE_POLL_S)
        waited += FENCE_POLL_S


async def _plan(source: Source, target: Target, tables: Sequence[Table], ranges: int) -> None:
    """Ranges for tables that have none. Bounds are read before the transaction: no lock is held meanwhile."""
    async with target.begin() as tx:
        planned = await tx.ledger.backfill_progress()
    for table in tables:
        if not (planned.get(table.alias) or {}).get("ranges"):
            bounds = await source.bounds(table, ranges)
            async with target.begin() as tx:
                await tx.ledger.plan_ranges(table, bounds)
