"""The rules of DESIGN.md section 5 for one key: directed histories, and play against a reference row.

The reference applies one event after the other by the table of section 5, written down a second time without fold;
the replica's statements are played by `stored`, so that what is compared is rows, chunks and work, not decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemon.core.fold import consequences, fillable, fold, survives, widen_xid, write
from daemon.core.model import (
    UNAVAILABLE,
    ChangeEvent,
    Effect,
    Op,
    Position,
    RowState,
    RowWrite,
    Snapshot,
    SourceTableState,
    Values,
    WriteKind,
)
from daemon.errors import UndecodableEvent
from tests.builders import articles, create, delete, position, row, truncate, update, without

TEXT = slice(1, 3)  # title, body
TENANT, VIEWS = 3, 4


def state(*, live: bool = True, at: Position | None = None, missing: Sequence[str] = ()) -> RowState:
    return RowState(7, live, at, 700, frozenset(missing), 700 if missing else None)


def table_state(floor: int = 0, truncated: Position | None = None) -> SourceTableState:
    return SourceTableState(articles(), floor, truncated, 0, True)


# --- skip rule


def test_event_below_the_floor_is_a_duplicate_whatever_the_row() -> None:
    assert not survives(create("1", lsn=100, commit=79), table_state(floor=80))
    assert survives(create("1", lsn=100, commit=80), table_state(floor=80))


def test_truncate_below_the_floor_is_a_duplicate_too() -> None:
    assert not survives(truncate(100, commit=79), table_state(floor=80))


def test_null_sequence_counts_as_zero_and_never_beats_a_floor_or_a_truncate() -> None:
    first = create("1", lsn=500, commit=0)
    assert survives(first, table_state())
    assert not survives(first, table_state(floor=1))
    assert not survives(first, table_state(truncated=position(lsn=20, commit=10)))


def test_event_older_than_the_truncate_is_dropped_and_a_newer_one_stays() -> None:
    cleared = table_state(truncated=position(lsn=200, commit=150))
    assert not survives(create("1", lsn=900, commit=149), cleared)
    assert not survives(create("1", lsn=199, commit=150), cleared)
    assert survives(create("1", lsn=201, commit=150), cleared)


def test_event_of_a_newer_epoch_beats_a_truncate_with_higher_lsns() -> None:
    cleared = table_state(truncated=position(lsn=200, commit=150, epoch=0))
    assert survives(create("1", lsn=5, commit=4, epoch=1), cleared)
    assert not survives(create("1", lsn=900, commit=899, epoch=0), table_state(truncated=position(1, epoch=1)))


# --- fold


def test_duplicate_before_a_newer_event_does_not_hide_its_old_column_behind_it() -> None:
    """History 7: 3 again from a dead producer, then 6 without body; the row already holds body of 4."""
    again = update("1", lsn=3, values=row(body="A1"))
    views_only = update("1", lsn=6, values=without(row(views="9"), "body"))
    change = fold([again, views_only], reached=position(4))
    assert change is not None
    assert change.values == without(row(views="9"), "body")
    assert change.position == position(6)


def test_event_at_the_position_reached_is_a_duplicate() -> None:
    assert fold([update("1", lsn=4)], reached=position(4)) is None
    assert fold([update("1", lsn=4)], reached=None) is not None


def test_duplicate_inside_the_window_is_dropped_before_it_merges() -> None:
    change = fold(
        [update("1", lsn=5, values=row(body="old")), update("1", lsn=6, values=row(body="new"))] * 2, reached=None
    )
    assert change is not None
    assert change.values == row(body="new")


def test_event_of_a_newer_epoch_beats_a_higher_lsn_of_an_older_one() -> None:
    change = fold([update("1", lsn=5, epoch=1)], reached=position(lsn=900, epoch=0))
    assert change is not None
    assert fold([update("1", lsn=900, epoch=0)], reached=position(lsn=5, epoch=1)) is None


def test_blocked_insert_lives_although_its_lsn_is_below_the_delete() -> None:
    """recorded/profile.jsonl, key `blk`: the insert logged its row before it waited for the unique check."""
    removed = delete("1", lsn=300, commit=200)
    made = create("1", lsn=290, commit=310, values=row(body="late"))
    change = fold([removed, made], reached=position(lsn=280, commit=200))
    assert change is not None
    assert (change.dead, change.anew, change.gone) == (False, True, True)
    assert change.values == row(body="late")
    assert fold([made], reached=removed.origin.position) is not None


def test_create_starts_anew_and_keeps_nothing_of_what_came_before() -> None:
    """History 4: the create of a key change carries no body; the body before it is another row's."""
    change = fold([update("1", lsn=5, values=row(body="X")), create("1", lsn=6, values=without(row(), "body"))], None)
    assert change is not None
    assert change.values == without(row(), "body")
    assert change.anew
    assert not change.gone


def test_delete_and_create_in_one_window_leave_the_mark_of_the_delete() -> None:
    change = fold([delete("1", lsn=5), create("1", lsn=6), update("1", lsn=7)], reached=None)
    assert change is not None
    assert (change.dead, change.anew, change.gone) == (False, True, True)


def test_update_after_a_delete_in_the_window_makes_a_row_anew() -> None:
    change = fold([delete("1", lsn=5), update("1", lsn=6, values=without(row(), "body"))], reached=None)
    assert change is not None
    assert (change.anew, change.gone) == (True, True)
    assert change.values == without(row(), "body")


def test_update_alone_is_not_anew_and_unavailable_never_overwrites() -> None:
    change = fold([update("1", lsn=5), update("1", lsn=6, values=without(row(views="1"), "body"))], reached=None)
    assert change is not None
    assert (change.anew, change.gone) == (False, False)
    assert change.values == row(views="1")


def test_changed_at_is_the_oldest_change_still_in_the_values() -> None:
    first = update("1", lsn=5, source_ts_ms=10)
    change = fold([first, update("1", lsn=6, source_ts_ms=20)], reached=None)
    assert change is not None
    assert change.changed_at_ms == 10
    anew = fold([first, create("1", lsn=6, source_ts_ms=20)], reached=None)
    assert anew is not None
    assert anew.changed_at_ms == 20


def test_update_without_values_is_refused_and_not_taken_for_a_delete() -> None:
    with pytest.raises(UndecodableEvent, match=r"update of articles at .* carries no values"):
        fold([replace(update("1", lsn=5), after=None)], reached=None)


# --- the table of section 5


def written(events: Sequence[ChangeEvent], stored_row: RowState | None) -> RowWrite:
    change = fold(events, stored_row.position if stored_row else None)
    assert change is not None
    return write(change, ("1",), stored_row)


@pytest.mark.parametrize(
    ("event", "stored_row", "kind"),
    [
        (create("1", lsn=5), None, WriteKind.INSERT),
        (create("1", lsn=5), state(), WriteKind.REPLACE),
        (create("1", lsn=5), state(live=False), WriteKind.REPLACE),
        (update("1", lsn=5), None, WriteKind.INSERT),
        (update("1", lsn=5), state(live=False), WriteKind.REPLACE),
        (update("1", lsn=5), state(), WriteKind.UPDATE),
        (delete("1", lsn=5), None, WriteKind.BURY),
        (delete("1", lsn=5), state(), WriteKind.BURY),
        (delete("1", lsn=5), state(live=False), WriteKind.BURY),
    ],
)
def test_write_kind_is_the_one_of_the_table(event: ChangeEvent, stored_row: RowState | None, kind: WriteKind) -> None:
    found = written([event], stored_row)
    assert found.kind is kind
    assert found.row_id == (None if stored_row is None else 7)
    assert found.position == position(5)
    assert (found.values is None) is (kind is WriteKind.BURY)


def test_create_over_a_row_that_lives_by_an_event_says_that_it_was_deleted_in_between() -> None:
    """The delete is on its way, such as a truncate of another partition: what is searchable is a predecessor's, even
    where the texts are equal."""
    assert written([create("1", lsn=5)], state(at=position(3))).gone
    assert not written([create("1", lsn=5)], state()).gone
    assert not written([create("1", lsn=5)], state(at=position(3), live=False)).gone
    assert not written([update("1", lsn=5)], state(at=position(3))).gone


def test_write_widens_the_xid_only_near_a_known_one() -> None:
    change = fold([update("1", lsn=5, xid=3)], None)
    assert change is not None
    assert write(change, ("1",), None).xid == 3
    assert write(change, ("1",), None, near_xid=(7 << 32) + 1).xid == (7 << 32) + 3


# --- consequences


def effect(**changes: bool) -> Effect:
    quiet = {"was_live": True, "is_live": True, "was_wanted": True, "is_wanted": True}
    flags = {"text_differs": False, "filters_differ": False, **quiet, **changes}
    return Effect(row_id=7, key=("1",), changed_at_ms=5, **flags)


@pytest.mark.parametrize(
    ("seen", "drop", "work", "copied"),
    [
        (effect(), False, False, False),
        (effect(text_differs=True), False, True, False),
        (effect(filters_differ=True), False, False, True),
        (effect(text_differs=True, filters_differ=True), False, True, True),
        (effect(is_live=False, is_wanted=False, text_differs=True, filters_differ=True), True, False, False),
        (effect(is_live=False, was_wanted=False, is_wanted=False), True, False, False),
        (effect(was_live=False, was_wanted=False, text_differs=True), False, True, False),
        (effect(gone=True, replaced=True), True, True, False),
        (effect(gone=True, replaced=True, is_wanted=False), True, False, False),
        (effect(replaced=True, text_differs=True), True, True, False),
        (effect(replaced=True), False, False, False),
        (effect(replaced=True, filters_differ=True), False, False, True),
        (effect(is_wanted=False), True, False, False),
        (effect(was_wanted=False), False, True, False),
        (effect(was_wanted=False, is_wanted=False, text_differs=True), False, False, False),
    ],
)
def test_consequences_of_an_effect(seen: Effect, drop: bool, work: bool, copied: bool) -> None:
    found = consequences([seen])
    assert (found.drop, found.work, found.copy_filters) == ([7] * drop, [7] * work, [7] * copied)
    assert found.changed_at_ms == ({7: 5} if work else {})


# --- fill


def test_fill_needs_a_snapshot_that_sees_the_event_which_left_the_columns_missing() -> None:
    """History 5: an older snapshot may hold the values of a row that was deleted since."""
    lacking = state(missing=["body"])
    assert fillable(lacking, Snapshot(xmin=701, xmax=701, in_progress=frozenset()))
    assert not fillable(lacking, Snapshot(xmin=700, xmax=700, in_progress=frozenset()))
    assert not fillable(lacking, Snapshot(xmin=700, xmax=705, in_progress=frozenset({700})))


def test_fill_is_refused_where_nothing_is_missing_or_nothing_is_known() -> None:
    sees_all = Snapshot(xmin=900, xmax=900, in_progress=frozenset())
    assert not fillable(state(), sees_all)
    assert not fillable(state(live=False, missing=["body"]), sees_all)
    assert not fillable(replace(state(missing=["body"]), missing_xid=None), sees_all)


@example(near=(7 << 32) - 1, distance=1)
@example(near=7 << 32, distance=-1)
@example(near=7 << 32, distance=(1 << 31) - 1)
@given(near=st.integers(0, 1 << 40), distance=st.integers(-(1 << 31) + 1, (1 << 31) - 1))
def test_widening_restores_every_xid_within_half_the_space(near: int, distance: int) -> None:
    full = near + distance
    if full >= 0:
        assert widen_xid(full & 0xFFFFFFFF, near) == full


def test_widening_never_goes_below_zero() -> None:
    assert widen_xid(0xFFFFFFFF, 3) == 0xFFFFFFFF


# --- play


@dataclass(frozen=True)
class Row:
    """A replica row with what was derived from it: the text and tenant of its chunks, and whether work is owed."""

    live: bool
    values: Values
    at: Position | None
    chunks: tuple[Values, object] | None = None
    work: bool = False

    @property
    def wanted(self) -> bool:
        return self.live and self.values[VIEWS] == "1"


def by_the_table(before: Row | None, event: ChangeEvent) -> Row:
    """One event, by the table of section 5; nothing derived."""
    at = event.origin.position
    if before is not None and before.at is not None and at <= before.at:
        return before
    if event.op is Op.DELETE:
        return Row(False, (), at)
    assert event.after is not None
    if event.op is Op.CREATE or before is None or not before.live:
        return Row(True, event.after, at)
    known = [o if n is UNAVAILABLE else n for o, n in zip(before.values, event.after, strict=True)]
    return Row(True, tuple(known), at)


def stored(before: Row | None, w: RowWrite) -> tuple[Row, Effect]:
    """The statement of a write, as the replica carries it out."""
    was = before if before is not None and before.live else None
    if w.kind is WriteKind.BURY:
        after = Row(False, (), w.position)
    elif w.kind is WriteKind.UPDATE:
        assert was is not None
        assert w.values is not None
        known = tuple(o if n is UNAVAILABLE else n for o, n in zip(was.values, w.values, strict=True))
        after = Row(True, known, w.position)
    else:
        assert w.values is not None
        assert (before is None) is (w.kind is WriteKind.INSERT)
        after = Row(True, w.values, w.position)
    seen = Effect(
        row_id=7,
        key=w.key,
        was_live=was is not None,
        is_live=after.live,
        was_wanted=was is not None and was.wanted,
        is_wanted=after.wanted,
        text_differs=was is None or was.values[TEXT] != after.values[TEXT],
        filters_differ=was is None or not after.live or was.values[TENANT] != after.values[TENANT],
        gone=w.gone,
        replaced=w.kind is WriteKind.REPLACE,
    )
    if before is not None:
        after = replace(after, chunks=before.chunks, work=before.work)
    return after, seen


def followed(after: Row, seen: Effect) -> Row:
    """Chunks and work in the order of the window's transaction."""
    todo = consequences([seen])
    if todo.drop:
        after = replace(after, chunks=None, work=False)
    if todo.work:
        after = replace(after, work=True)
    if todo.copy_filters and after.chunks is not None:
        after = replace(after, chunks=(after.chunks[0], after.values[TENANT]))
    return after


def embedded(before: Row) -> Row:
    """An embedder comes by; it takes no row that lacks a text or filter column."""
    needed = (*before.values[TEXT], *before.values[TENANT:VIEWS])
    if not before.work or UNAVAILABLE in needed:
        return before
    return replace(before, work=False, chunks=(before.values[TEXT], before.values[TENANT]))


def window(before: Row | None, events: Sequence[ChangeEvent]) -> Row | None:
    change = fold(events, before.at if before else None)
    if change is None:
        return before
    seen_row = None if before is None else RowState(7, before.live, before.at, 700)
    return followed(*stored(before, write(change, ("1",), seen_row)))


VALUE = st.sampled_from(["a", "b", None, UNAVAILABLE])
VALUES = st.tuples(
    st.just("1"), VALUE, VALUE, st.sampled_from(["t1", "t2", UNAVAILABLE]), st.sampled_from(["0", "1", UNAVAILABLE])
)
POSITION = st.builds(Position, st.integers(0, 1), st.integers(0, 3), st.integers(1, 4))


@st.composite
def pools(draw: st.DrawFn) -> list[ChangeEvent]:
    """Events of one key with distinct positions, in no order."""
    pool = []
    for at in draw(st.lists(POSITION, min_size=1, max_size=8, unique=True)):
        make = draw(st.sampled_from([create, update, delete]))
        event = make("1", lsn=at.lsn, commit=at.commit_lsn, epoch=at.epoch)
        pool.append(event if event.op is Op.DELETE else replace(event, after=draw(VALUES)))
    return pool


@st.composite
def deliveries(draw: st.DrawFn) -> list[tuple[list[ChangeEvent], bool]]:
    """Windows of events, repeated and out of order, each followed by an embedder or not."""
    pool = draw(pools())
    arrived = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=12))
    windows = []
    while arrived:
        size = draw(st.integers(1, len(arrived)))
        windows.append((arrived[:size], draw(st.booleans())))
        arrived = arrived[size:]
    return windows


COPIED = st.one_of(
    st.none(), st.builds(lambda v, work: Row(True, v, None, work=work and v[VIEWS] == "1"), VALUES, st.just(True))
)


@given(copied=COPIED, windows=deliveries())
def test_fold_then_apply_equals_apply_one_by_one(
    copied: Row | None, windows: list[tuple[list[ChangeEvent], bool]]
) -> None:
    reference, row_ = copied, copied
    for events, then_embed in windows:
        deleted = False
        for event in events:
            after = by_the_table(reference, event)
            deleted = deleted or (event.op is Op.DELETE and after != reference)
            reference = after
        row_ = window(row_, events)
        assert row_ is not None
        assert reference is not None
        assert (row_.live, row_.values, row_.at) == (reference.live, reference.values, reference.at)
        if deleted:
            assert row_.chunks is None, "chunks of a deleted predecessor are searchable"
        if not row_.wanted:
            assert row_.chunks is None, "a row that is gone or not wanted is searchable"
            assert not row_.work
        elif row_.chunks is None or row_.chunks[0] != row_.values[TEXT]:
            assert row_.work, "a text is neither embedded nor owed"
        if row_.chunks is not None:
            assert row_.chunks[1] == row_.values[TENANT], "chunks carry another filter column than the row"
        row_ = embedded(row_) if then_embed else row_


@given(pool=pools(), cuts=st.lists(st.booleans(), min_size=8, max_size=8), data=st.data())
def test_replayed_windows_change_nothing(pool: list[ChangeEvent], cuts: list[bool], data: st.DataObject) -> None:
    ordered = sorted(pool, key=lambda e: e.origin.position)
    once = window(None, ordered)
    row_: Row | None = None
    for i, event in enumerate(ordered):
        row_ = window(row_, [event])
        if cuts[i]:
            again = data.draw(st.lists(st.sampled_from(ordered[: i + 1]), min_size=1, max_size=4))
            assert window(row_, again) == row_
    assert once is not None
    assert row_ is not None
    assert (once.live, once.values, once.at) == (row_.live, row_.values, row_.at)


def test_create_on_a_live_row_with_other_text_drops_its_chunks_at_once() -> None:
    """History 4: until it is embedded again, the old text must not be found under the new row's permissions."""
    before = Row(True, row(views="1", body="X"), None, chunks=(("A", "X"), "t1"))
    after = window(before, [create("1", lsn=6, values=without(row(views="1", tenant="t2"), "body"))])
    assert after == Row(True, without(row(views="1", tenant="t2"), "body"), position(6), chunks=None, work=True)


def test_delete_and_create_with_equal_text_in_one_window_drop_the_chunks() -> None:
    before = Row(True, row(views="1"), position(4), chunks=(("A", "text"), "t1"))
    after = window(before, [delete("1", lsn=5), create("1", lsn=6, values=row(views="1"))])
    assert after == Row(True, row(views="1"), position(6), chunks=None, work=True)


def test_where_turning_false_or_unknown_drops_and_turning_true_writes_work() -> None:
    before = Row(True, row(views="1"), position(4), chunks=(("A", "text"), "t1"))
    hidden = window(before, [update("1", lsn=5, values=row(views="0"))])
    assert hidden == Row(True, row(views="0"), position(5))
    shown = window(hidden, [update("1", lsn=6, values=row(views="1"))])
    assert shown == Row(True, row(views="1"), position(6), work=True)
    unknown = window(before, [create("1", lsn=7, values=without(row(), "views"))])
    assert unknown is not None
    assert (unknown.chunks, unknown.work) == (None, False)
