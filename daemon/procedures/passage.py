"""Everything committed until now is applied: a barrier through the whole way, upstream first.

    barrier -> the connector's committed offset is past it -> end offsets -> the checkpoint is past them

Each reading begins after the one before it held, so it can only strengthen the claim (DESIGN.md section 7, steps 3 to
6). A part that is away is asked again; a reading that moves, however slowly, is waited for until the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from daemon.errors import TransientError
from daemon.flow.pulse import barrier_payload
from daemon.ports import Capture, ChangeFeed, Source, Target

POLL_S = 0.05
LIMIT_S = 5.0  # of one question: a part that hangs must not outlast the deadline by more

Reading = TypeVar("Reading")


@dataclass(frozen=True, slots=True)
class Way:
    """What a barrier passes. clock: monotonic seconds; pause: how to wait between two readings."""

    migration: str
    source: Source
    capture: Capture
    feed: ChangeFeed
    target: Target
    clock: Callable[[], float]
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep


async def _nothing() -> None:
    return None


async def passage(
    way: Way, token: str, deadline: float, patience_s: float, meanwhile: Callable[[], Awaitable[None]] = _nothing
) -> int | None:
    """Write a barrier and wait for its passage; its LSN, or None where it has not passed by `deadline`, or nothing has
    moved for `patience_s`.

    When this returns an LSN, every change committed before it was called is in the replica. meanwhile: called between
    two readings. Raises what `meanwhile` raises, and errors that do not pass by waiting.
    """

    async def until(read: Callable[[], Awaitable[Reading]], holds: Callable[[Reading], bool]) -> Reading | None:
        last, moved_at = None, way.clock()
        while True:
            reading = await _asked(read)
            if reading is not None and holds(reading):
                return reading
            await meanwhile()
            if reading is not None and reading != last:
                last, moved_at = reading, way.clock()
            if way.clock() >= min(deadline, moved_at + patience_s):
                return None
            await way.pause(POLL_S)

    async def checkpoint() -> dict[object, int]:
        async with way.target.begin() as tx:
            return dict(await tx.ledger.checkpoint())

    lsn = await until(lambda: way.source.emit(barrier_payload(way.migration, token)), lambda _: True)
    if lsn is None or await until(way.capture.committed_lsn, lambda reached: (reached or 0) >= lsn) is None:
        return None
    ends = await until(way.feed.ends, bool)
    if ends is None:
        return None
    passed = await until(checkpoint, lambda reached: all(reached.get(at, 0) >= n for at, n in ends.items()))
    return None if passed is None else lsn


async def _asked(read: Callable[[], Awaitable[Reading]]) -> Reading | None:
    """The reading, or None while the part is away."""
    try:
        async with asyncio.timeout(LIMIT_S):
            return await read()
    except (TransientError, TimeoutError):
        return None
