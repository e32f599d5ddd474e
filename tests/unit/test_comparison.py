"""What a comparison calls a difference, case by case."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from daemon.core.comparison import (
    Fault,
    Judgement,
    Kind,
    Piece,
    ReplicaLook,
    State,
    VectorRule,
    confirm,
    judge_chunks,
    judge_row,
    outcome,
)
from daemon.core.model import Column, Position, Table

COLUMNS = ("id", "title", "tenant", "views", "lang")
TABLE = Table(
    1,
    "doc",
    "app",
    "doc",
    ("id",),
    tuple(Column(n, "text", "text") for n in COLUMNS),
    "{title}",
    ("title",),
    filters=("tenant",),
    where="lang = 'en'",
    where_columns=("lang",),
)
ROW = (b"1", b"t", b"7", None, b"en")
LOOK = ReplicaLook(10, True, Position(0, 5, 6), frozenset(), ROW)
RULE = VectorRule(4, normalised=True)


def changed(**columns: bytes | None) -> tuple[bytes | None, ...]:
    return tuple(columns.get(name, value) for name, value in zip(COLUMNS, ROW, strict=True))


def piece(n: int, digest: bytes = b"", **other: object) -> Piece:
    base = Piece(n, digest or b"%d" % n, digest or b"%d" % n, False, 4, 1.0)
    return replace(base, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "look", "kinds"),
    [
        (ROW, LOOK, ()),
        (None, None, ()),
        (None, replace(LOOK, live=False), ()),
        (None, LOOK, (Kind.ROW_EXTRA,)),
        (ROW, None, (Kind.ROW_MISSING,)),
        (ROW, replace(LOOK, live=False), (Kind.ROW_MISSING,)),
        (changed(title=b"u"), LOOK, (Kind.TEXT_STALE,)),
        (changed(views=b"1"), LOOK, (Kind.METADATA_STALE,)),
        (changed(tenant=b"8"), LOOK, (Kind.FILTER_STALE,)),
        (changed(lang=b"de"), LOOK, (Kind.FILTER_STALE,)),
        (
            changed(tenant=b"8", title=b"u", views=b"1"),
            LOOK,
            (Kind.FILTER_STALE, Kind.TEXT_STALE, Kind.METADATA_STALE),
        ),
        (changed(title=b"u"), replace(LOOK, missing=frozenset({"title"})), (Kind.ROW_INCOMPLETE,)),
        (
            changed(title=b"u", views=b"1"),
            replace(LOOK, missing=frozenset({"views"})),
            (Kind.TEXT_STALE, Kind.ROW_INCOMPLETE),
        ),
    ],
)
def test_a_row_is_judged_by_its_columns(
    source: tuple[bytes | None, ...] | None, look: ReplicaLook | None, kinds: tuple[Kind, ...]
) -> None:
    assert judge_row(TABLE, source, look) == kinds


def test_null_is_not_the_empty_text() -> None:
    assert judge_row(TABLE, changed(views=b""), LOOK) == (Kind.METADATA_STALE,)


def test_a_row_that_stood_still_and_differs_is_a_difference() -> None:
    assert confirm(TABLE, LOOK, changed(views=b"1"), LOOK) == (Judgement.DIFFERS, (Kind.METADATA_STALE,))
    assert confirm(TABLE, None, ROW, None) == (Judgement.DIFFERS, (Kind.ROW_MISSING,))


@pytest.mark.parametrize(
    "after",
    [
        replace(LOOK, position=Position(0, 5, 7)),
        replace(LOOK, position=None),
        replace(LOOK, row_id=11),
        replace(LOOK, columns=changed(views=b"9")),
        replace(LOOK, missing=frozenset({"views"})),
        None,
    ],
)
def test_a_row_that_moved_meanwhile_is_looked_at_again(after: ReplicaLook | None) -> None:
    assert confirm(TABLE, LOOK, changed(views=b"1"), after)[0] is Judgement.MOVING


def test_a_row_that_came_and_went_at_the_source_is_not_extra() -> None:
    """Absent when the source was read, inserted after that and applied: the replica did not stand still."""
    assert confirm(TABLE, None, None, LOOK)[0] is Judgement.MOVING


def test_a_row_that_agrees_in_the_end_is_settled_even_if_it_moved() -> None:
    assert confirm(TABLE, None, ROW, LOOK) == (Judgement.AGREES, ())


@pytest.mark.parametrize(
    ("expected", "stored", "faults"),
    [
        ([b"0", b"1"], [piece(0), piece(1)], []),
        ([], [], []),
        ([b"0", b"1"], [piece(0)], [Fault(Kind.CHUNK_MISSING, 1)]),
        ([b"0"], [piece(0), piece(1)], [Fault(Kind.CHUNK_SURPLUS, 1)]),
        ([], [piece(0)], [Fault(Kind.CHUNK_SURPLUS, 0)]),
        ([b"0"], [piece(0), piece(-1)], [Fault(Kind.CHUNK_SURPLUS, -1)]),
        ([b"0"], [piece(0, b"x")], [Fault(Kind.CHUNK_STALE, 0)]),
        ([b"0"], [piece(0, derived=b"x")], [Fault(Kind.CHUNK_STALE, 0)]),
        ([b"0"], [piece(0, b"x", derived=b"0")], [Fault(Kind.CONTRACT_WRONG, 0)]),
        ([b"0"], [piece(0, filters_differ=True)], [Fault(Kind.CHUNK_FILTERS, 0)]),
        (
            [b"0"],
            [piece(0, b"x", filters_differ=True)],
            [Fault(Kind.CHUNK_FILTERS, 0), Fault(Kind.CHUNK_STALE, 0)],
        ),
        ([b"0"], [piece(0, dimensions=3)], [Fault(Kind.VECTOR_DIMENSION, 0)]),
        ([b"0"], [piece(0, norm=math.nan)], [Fault(Kind.VECTOR_NOT_FINITE, 0)]),
        ([b"0"], [piece(0, norm=math.inf)], [Fault(Kind.VECTOR_NOT_FINITE, 0)]),
        ([b"0"], [piece(0, norm=0.0)], [Fault(Kind.VECTOR_ZERO, 0)]),
        ([b"0"], [piece(0, norm=1.02)], [Fault(Kind.VECTOR_NORM, 0)]),
        ([b"0"], [piece(0, norm=0.995)], []),
        (None, [piece(0), piece(1)], [Fault(Kind.CHUNK_ORPHAN, 0), Fault(Kind.CHUNK_ORPHAN, 1)]),
        (None, [], []),
    ],
)
def test_chunks_are_judged_by_the_document(
    expected: list[bytes] | None, stored: list[Piece], faults: list[Fault]
) -> None:
    assert judge_chunks(expected, stored, RULE, is_owed=False) == faults


def test_what_is_owed_may_be_missing_or_of_an_older_text() -> None:
    stored = [piece(0, b"old"), piece(3, b"older")]
    assert judge_chunks([b"0", b"1"], stored, RULE, is_owed=True) == []


@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        (piece(0, derived=b"x"), Kind.CHUNK_STALE),
        (piece(0, filters_differ=True), Kind.CHUNK_FILTERS),
        (piece(0, norm=0.0), Kind.VECTOR_ZERO),
    ],
)
def test_a_chunk_that_contradicts_itself_is_wrong_even_while_its_row_is_owed(stored: Piece, kind: Kind) -> None:
    """Its digest would keep it when the work is done."""
    assert judge_chunks([b"0"], [stored], RULE, is_owed=True) == [Fault(kind, 0)]


def test_a_length_is_held_against_a_contract_that_states_one() -> None:
    assert judge_chunks([b"0"], [piece(0, norm=7.0)], VectorRule(4, normalised=False), is_owed=False) == []


def test_only_what_is_settled_is_clean() -> None:
    assert outcome({}, 0) is State.CLEAN
    assert outcome({"row-extra": 0}, 0) is State.CLEAN
    assert outcome({"row-extra": 1}, 0) is State.DIFFERS
    assert outcome({}, 1) is State.DIFFERS


def test_kinds_of_rows_and_of_chunks() -> None:
    assert {k for k in Kind if k.is_of_row} == {
        k for k in Kind if k.value.split("-")[0] in ("row", "text", "metadata")
    } | {Kind.FILTER_STALE}
    assert not any(k.is_of_chunk_itself for k in Kind if k.is_of_row)
    assert not Kind.CHUNK_FILTERS.is_of_chunk_itself
