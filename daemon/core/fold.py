"""What a window of change events does to one key: the rules of DESIGN.md section 5, as decisions.

The order of use is the order of the window's transaction: `survives` drops what the table has already outrun, `fold`
joins the rest of one key's events into one `Change`, `write` chooses the statement shape for the row as it is stored
under its lock, and `consequences` says what the database's answer means for chunks and work.

Promises: nothing here loses or revives a row, whatever is delivered twice, late or by an abandoned task's producer,
as long as positions are honest. Refuses to know: SQL, offsets, generations, time. The histories that break weaker
rules are the directed cases in `tests/unit/test_fold.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from daemon.core.model import (
    UNAVAILABLE,
    ChangeEvent,
    Effect,
    Key,
    Op,
    Position,
    RowState,
    RowWrite,
    Snapshot,
    SourceTableState,
    TruncateEvent,
    Values,
    WriteKind,
)
from daemon.errors import UndecodableEvent

XID_SPAN = 1 << 32


@dataclass(frozen=True, slots=True)
class Change:
    """What a window says about one key.

    dead: it ends as a delete. anew: nothing of the stored row survives. gone: a delete happened on the way, so what
    was derived from the stored row goes even where the text ends up equal. values: None when dead. xid: of the event
    at `position`, as the event had it (32 bits). changed_at_ms: source's commit time of the oldest event whose values
    are still in here.
    """

    dead: bool
    anew: bool
    gone: bool
    values: Values | None
    position: Position
    xid: int | None
    changed_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Consequences:
    """Row ids to act on, in this order: `drop` (chunks and work of every generation), then `work`, `copy_filters`.

    A row can be in `drop` and in `work`: its old vectors go at once and new ones are owed. changed_at_ms: for the
    rows of `work` whose source time is known.
    """

    drop: list[int]
    work: list[int]
    copy_filters: list[int]
    changed_at_ms: dict[int, int]


def survives(event: ChangeEvent | TruncateEvent, state: SourceTableState) -> bool:
    """Whether an event may still change the table: neither below its floor nor older than its last truncate.

    Every page has seen what commits below the floor, so an event there is a duplicate that must not beat a copied
    row; this holds for truncates too. The floor is kept for the current epoch only (accepting a new one stores 0). A
    row event of the truncate's epoch counts by log position, one of a later epoch is newer whatever its LSNs; the
    truncate that is already recorded is dropped by the replica, which holds the lock.
    """
    position = event.origin.position
    if position.commit_lsn < state.floor:
        return False
    return state.truncated is None or position >= state.truncated


def fold(events: Sequence[ChangeEvent], reached: Position | None) -> Change | None:
    """One key's events of a window, in arrival order, as one change; None where every event is a duplicate.

    reached: position of the stored row, read under its lock (None: absent or copied). Each event at or below the
    position reached so far is dropped *before* merging: otherwise an old column would hide behind a newer event's
    position, as when a dead producer's copy of `body` precedes an update that carries no body.

    Raises UndecodableEvent: a create or update without values.
    """
    change: Change | None = None
    for event in events:
        position = event.origin.position
        if reached is not None and position <= reached:
            continue
        reached = position
        change = _step(change, event)
    return change


def _step(change: Change | None, event: ChangeEvent) -> Change:
    origin = event.origin
    gone = change is not None and change.gone
    if event.op is Op.DELETE:
        return Change(True, True, True, None, origin.position, origin.xid, origin.source_ts_ms)
    if event.after is None:
        raise UndecodableEvent(
            "event-without-values",
            f"{event.op.name.lower()} of {event.table} at {origin.at.topic}/{origin.at.partition}:{origin.offset} "
            "carries no values",
            "compare the connector's configuration with `revector doctor`",
        )
    if event.op is Op.CREATE or change is None or change.values is None:
        anew = event.op is Op.CREATE or change is not None
        return Change(False, anew, gone, event.after, origin.position, origin.xid, origin.source_ts_ms)
    return Change(
        dead=False,
        anew=change.anew,
        gone=gone,
        values=merge(change.values, event.after),
        position=origin.position,
        xid=origin.xid,
        changed_at_ms=change.changed_at_ms if change.changed_at_ms is not None else origin.source_ts_ms,
    )


def merge(old: Values, new: Values) -> Values:
    """Column by column: a known value replaces, `UNAVAILABLE` never overwrites."""
    return tuple(o if n is UNAVAILABLE else n for o, n in zip(old, new, strict=True))


def write(change: Change, key: Key, state: RowState | None, near_xid: int | None = None) -> RowWrite:
    """The statement shape for a change to a row, absent (None) or as read under its lock.

    near_xid: a recent full transaction id of the source, to widen the event's 32 bits; None where `change.xid` is a
    full one. A delete of an absent row leaves a row tombstone too: a late page must not bring the row back. A create
    over a row that lives by an event says that it was deleted in between, though the delete is still on its way (a
    truncate takes another partition) or was lost; over a copied row it may be the event of what was copied.
    """
    if change.dead:
        kind = WriteKind.BURY
    elif state is None:
        kind = WriteKind.INSERT
    elif change.anew or not state.live:
        kind = WriteKind.REPLACE
    else:
        kind = WriteKind.UPDATE
    is_successor = kind is WriteKind.REPLACE and state is not None and state.live and state.position is not None
    xid = change.xid
    if xid is not None and near_xid is not None:
        xid = widen_xid(xid, near_xid)
    return RowWrite(
        kind=kind,
        key=key,
        row_id=None if state is None else state.row_id,
        values=change.values,
        position=change.position,
        xid=xid,
        gone=change.gone or is_successor,
        changed_at_ms=change.changed_at_ms,
    )


def consequences(effects: Iterable[Effect]) -> Consequences:
    """What the rows just written mean for their chunks and work. At most one effect per row.

    Dropping is never left to the embedder: a deleted text, a text under new permissions of a re-created row, and a
    row that `where` no longer wants stop being searchable in the transaction that says so.
    """
    result = Consequences([], [], [], {})
    for e in effects:
        drop = not e.is_live or e.gone or (e.replaced and e.text_differs) or (e.was_wanted and not e.is_wanted)
        if drop:
            result.drop.append(e.row_id)
        if e.is_live and e.is_wanted and (e.text_differs or e.gone or not e.was_wanted):
            result.work.append(e.row_id)
            if e.changed_at_ms is not None:
                result.changed_at_ms[e.row_id] = e.changed_at_ms
        if e.is_live and e.filters_differ and not drop:
            result.copy_filters.append(e.row_id)
    return result


def fillable(state: RowState, snapshot: Snapshot) -> bool:
    """Whether a page or completion read in `snapshot` may set this row's missing columns (those and no others).

    Only if the snapshot sees the event that left them missing: an earlier read may hold the values of a row that
    was deleted since. Without a known `missing_xid` that cannot be told, so the columns stay missing.
    """
    return state.live and bool(state.missing) and state.missing_xid is not None and snapshot.sees(state.missing_xid)


def widen_xid(xid32: int, near: int) -> int:
    """The full transaction id with these low 32 bits that is nearest to `near` (within 2^31), and not negative.

    Postgres's own rule for 32-bit ids (`FullTransactionIdFromAllowableAt`): an id is at most half the space away.
    """
    full = (near & ~(XID_SPAN - 1)) | xid32
    if full - near > XID_SPAN // 2 and full >= XID_SPAN:
        return full - XID_SPAN
    if near - full >= XID_SPAN // 2:
        return full + XID_SPAN
    return full
