"""Defects put into the product on purpose: the simulation is worth something because it finds them.

Each replaces one decision or one step by what an earlier wording, or a tired engineer, would have it do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from daemon.core import fold as folding
from daemon.core import work
from daemon.core.model import ChangeEvent, Position
from daemon.flow import backfill, stream
from daemon.procedures import prove, repair, start
from tests.fakes.ledger import ControlLedger
from tests.fakes.replica import MemoryReplica
from tests.fakes.work import MemoryLedger
from tests.simulation.statements import STATEMENTS, nothing

Patches = Callable[[], Sequence[Any]]


def last_wins() -> Sequence[Any]:
    """An event counts wherever it arrives late: no position is asked for."""
    return [patch.object(stream, "fold", lambda events, reached: folding.fold(_ranked(events), None))]


def _ranked(events: Sequence[ChangeEvent]) -> list[ChangeEvent]:
    """The same events, each above the one before."""
    origins = [replace(e.origin, position=e.origin.position) for e in events]
    return [replace(e, origin=o) for e, o in zip(events, origins, strict=True)]


def position_by_lsn() -> Sequence[Any]:
    """The LSN alone orders a row's changes."""

    def fold(events: Sequence[ChangeEvent], reached: Position | None) -> Any:
        kept = [e for e in events if reached is None or e.origin.position.lsn > reached.lsn]
        return folding.fold(kept, None)

    return [patch.object(stream, "fold", fold)]


def lease_ignored() -> Sequence[Any]:
    """A window is applied whoever holds the lease, wherever the checkpoint is."""

    async def advance(self: ControlLedger, lease_number: int, moves: Any) -> None:
        for at, (_, following) in moves.items():
            held = self.state.checkpoints[at]
            self.state.checkpoints[at] = replace(held, next_offset=max(following, held.next_offset))

    return [patch.object(ControlLedger, "advance", advance)]


def checkpoint_apart() -> Sequence[Any]:
    """The checkpoint is committed in a transaction of its own, before the rows."""
    applied = stream.Stream.apply

    async def apply(self: stream.Stream, window: stream.Window) -> None:
        assert self.lease is not None
        async with self.parts.target.begin() as tx:
            await tx.ledger.advance(self.lease, window.moves)
        moves = {at: (after, after) for at, (_, after) in window.moves.items()}
        await applied(self, replace(window, moves=moves))

    return [patch.object(stream.Stream, "apply", apply)]


def entry_always_done() -> Sequence[Any]:
    """An entry goes when its text was stored, whatever its newest_seq."""

    def settle(claims: Any, entries: Any, written: Any) -> work.Settlement:
        done = tuple(c.row_id for c in claims if c.row_id in written)
        return work.Settlement(done, {}, tuple(c.row_id for c in claims if c.row_id not in written))

    return [patch("daemon.flow.embed.settle", settle)]


def old_text_stored() -> Sequence[Any]:
    """A text is stored wherever there is an entry, one that is younger than the claim too."""

    def writable(claims: Any, entries: Any, locked: Any) -> Any:
        return [c for c in claims if c.row_id in locked and c.row_id in entries]

    return [patch("daemon.flow.embed.writable", writable)]


def fill_unfenced() -> Sequence[Any]:
    """A page fills missing columns whatever its snapshot sees."""
    return [patch.object(backfill, "fillable", lambda state, snapshot: state.live and bool(state.missing))]


def no_floor() -> Sequence[Any]:
    """A duplicate from before the start counts."""
    survives = folding.survives
    return [patch.object(stream, "survives", lambda event, state: survives(event, replace(state, floor=0)))]


def page_ignores_truncates() -> Sequence[Any]:
    """A page is written whatever was truncated since it was read."""

    async def hold(self: MemoryReplica, table: Any) -> Any:
        class Equal(int):
            def __ne__(self, other: object) -> bool:
                return False

            __hash__ = int.__hash__

        return Equal(0)

    return [patch.object(MemoryReplica, "hold_truncate_count", hold)]


def no_fence() -> Sequence[Any]:
    """Pages begin while what is in Kafka below the recorded offsets is not visible yet."""

    async def fence(source: Any, xid: int, pause: Any = None) -> None:
        return None

    return [patch.object(start, "fence", fence)]


def ends_before_capture() -> Sequence[Any]:
    """A proof takes the end offsets before the connector's offset passed the barrier."""
    observed = prove.observe

    async def observe(parts: prove.ProofParts, token: str, timeout_s: float) -> Any:
        ends = await parts.feed.data_ends()

        class Early:
            def __getattr__(self, name: str) -> Any:
                return getattr(parts.feed, name)

            async def data_ends(self) -> Any:
                return ends

        early: Any = Early()
        return await observed(replace(parts, feed=early), token, timeout_s)

    return [patch.object(prove, "observe", observe)]


def capture_not_awaited() -> Sequence[Any]:
    """A proof does not wait for the connector."""
    observed = prove.observe

    async def observe(parts: prove.ProofParts, token: str, timeout_s: float) -> Any:
        class Passed:
            def __getattr__(self, name: str) -> Any:
                return getattr(parts.capture, name)

            async def committed_lsn(self) -> int:
                await parts.capture.committed_lsn()
                return 1 << 60

        passed: Any = Passed()
        return await observed(replace(parts, capture=passed), token, timeout_s)

    return [patch.object(prove, "observe", observe)]


def breaks_forgotten() -> Sequence[Any]:
    """Breaks stand against no certificate."""

    async def breaks(self: ControlLedger, after: int = 0) -> list[Any]:
        return []

    return [patch.object(ControlLedger, "breaks", breaks), patch.object(prove, "new_sessions", lambda *_: [])]


def claimed_is_not_owed() -> Sequence[Any]:
    """What somebody is embedding does not count as owed."""

    async def owed(self: MemoryLedger, generation: Any, seq: int) -> int:
        mine = [e for (g, _, _), e in self.state.work.items() if g == generation.id]
        return sum(e.oldest <= seq and e.claimed_by is None for e in mine)

    return [patch.object(MemoryLedger, "owed", owed)]


def tombstones_forgotten() -> Sequence[Any]:
    """A deleted row leaves nothing behind."""
    store = MemoryReplica._store

    def forget(self: MemoryReplica, table: Any, old: Any, new: Any, write: Any) -> Any:
        effect = store(self, table, old, new, write)
        if not new.live and old is None:
            del self.state.rows[table.id, new.key]
            del self.state.keys[table.id, new.row_id]
        return effect

    return [patch.object(MemoryReplica, "_store", forget)]


def repair_blind() -> Sequence[Any]:
    """A repair writes what it read, whatever happened to the row meanwhile."""
    mended = repair._mend_part

    async def mend(run: Any, table: Any, keys: Any) -> None:
        locked: dict[Any, Any] = {}

        class Snap:
            def sees(self, xid: int) -> bool:
                return True

        source = run.way.source
        rows, _ = await source.rows(table, keys)

        class Source:
            def __getattr__(self, name: str) -> Any:
                return getattr(source, name)

            async def rows(self, *args: Any) -> Any:
                return rows, Snap()

        blind: Any = Source()
        way = run.way
        run.way = replace(way, source=blind)
        try:
            await mended(run, table, keys)
        finally:
            run.way = way
        locked.clear()

    return [patch.object(repair, "_mend_part", mend)]


def generations_unlocked() -> Sequence[Any]:
    """A window reads the list of generations without the migration's row: one that is added meanwhile misses rows."""
    return [patch.dict(STATEMENTS, {"ledger.hold_migration": nothing})]


def embedder_locks_no_row() -> Sequence[Any]:
    """An embedder stores chunks without the replica row's lock."""
    return [patch.dict(STATEMENTS, {"replica.lock_rows": nothing})]


def truncate_locks_nothing() -> Sequence[Any]:
    """A page asks for the truncate count without holding it."""
    return [patch.dict(STATEMENTS, {"replica.hold_truncate_count": nothing})]


DEFECTS: dict[str, Patches] = {
    made.__name__: made
    for made in (
        last_wins,
        position_by_lsn,
        lease_ignored,
        checkpoint_apart,
        entry_always_done,
        old_text_stored,
        fill_unfenced,
        no_floor,
        page_ignores_truncates,
        no_fence,
        ends_before_capture,
        capture_not_awaited,
        breaks_forgotten,
        claimed_is_not_owed,
        tombstones_forgotten,
        repair_blind,
        generations_unlocked,
        embedder_locks_no_row,
        truncate_locks_nothing,
    )
}


@contextmanager
def defect(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        for each in DEFECTS[name]():
            stack.enter_context(each)
        yield
