"""The proof: each step alone turned false gives exactly its shortfall, and nothing unread is taken for good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.catchup import CopyReading, ProofObservations, Shortfall, prove
from daemon.core.compared import ComparisonReading
from daemon.core.comparison import State
from daemon.core.continuity import Identity
from daemon.core.model import Break, FeedIdentity, IndexState, SourceIdentity, TopicPartition
from daemon.core.reasons import REASONS
from tests import builders

P0, P1 = TopicPartition("shop.public.articles", 0), TopicPartition("shop.public.articles", 1)
IDENTITY = Identity(
    SourceIdentity("7300", 1, "shop", "revector", "pub"), FeedIdentity("cluster-a", {P0.topic: ("id-1", 2)})
)
COMPARED = ComparisonReading(builders.comparison(), 86_400)
WHOLE = ProofObservations(
    migration="shop",
    generation="v2",
    generation_id=1,
    contract_id="c0ffee",
    tables=("articles",),
    partitions=(P0, P1),
    comparison=COMPARED,
    compared_again=COMPARED,
    breaks=(),
    halts=(),
    embed_halts=(),
    backfill={"articles": CopyReading(True, 4, 4)},
    swept=True,
    barrier_lsn=0x1_0000_1000,
    connect_lsn=0x1_0000_1000,
    ends={P0: 10, P1: 20},
    checkpoint={P0: 10, P1: 21},
    missing={"articles": 0},
    highest_seq=77,
    owed=0,
    refused=0,
    accepted=0,
    began=IDENTITY,
    found=IDENTITY,
    indexes={"articles": IndexState("shop.articles_v2", True, True, True, 100)},
    versions={"revector": "0.1.0"},
)
AT = "2026-11-02T10:00:00Z"


def shortfalls(**changes: Any) -> list[Shortfall]:
    outcome = prove(replace(WHOLE, **changes), AT)
    assert isinstance(outcome, list)
    return outcome


def index(**changes: Any) -> Mapping[str, IndexState]:
    return {"articles": replace(IndexState("shop.articles_v2", True, True, True, 100), **changes)}


def compared(**changes: Any) -> dict[str, Any]:
    """Both readings of the comparison with these changes."""
    reading = ComparisonReading(builders.comparison(**changes), 86_400)
    return {"comparison": reading, "compared_again": reading}


def canonical(seen: ProofObservations) -> bytes:
    document = prove(seen, AT)
    assert isinstance(document, dict)
    return rfc8785.dumps(document)


@pytest.mark.parametrize(
    ("changes", "step", "id", "number"),
    [
        ({"breaks": (Break("connector-restarted", {}), Break("pulse-missing", {}))}, 1, "break-open", 2),
        ({"halts": ("offsets-gone",)}, 1, "halted", 1),
        (dict.fromkeys(("comparison", "compared_again"), ComparisonReading(None, 60)), 1, "not-compared", None),
        (compared(state=State.RUNNING), 1, "not-compared", None),
        (compared(state=State.ABANDONED), 1, "not-compared", None),
        (compared(generations=(2, 3)), 1, "not-compared", None),
        (compared(faults=("connector-drift",)), 1, "not-compared", None),
        (compared(state=State.DIFFERS, open={"row-extra": 2, "text-stale": 3}), 1, "comparison-differs", 5),
        (compared(open={"row-extra": 2}), 1, "comparison-differs", 2),
        (compared(state=State.DIFFERS, unsettled=4), 1, "comparison-differs", 4),
        (compared(state=State.DIFFERS), 1, "comparison-differs", None),
        (compared(began_age_s=86_401.0), 1, "comparison-stale", 86_401),
        ({"embed_halts": ("provider-key-refused",)}, 1, "embedding-halted", None),
        ({"backfill": {"articles": CopyReading(False, 4, 3)}}, 2, "backfill-unfinished", 1),
        ({"swept": False}, 2, "sweep-unfinished", None),
        ({"connect_lsn": 0x1_0000_0FFF}, 4, "connector-behind", 1),
        ({"checkpoint": {P0: 7, P1: 21}}, 6, "partition-behind", 3),
        ({"missing": {"articles": 5}}, 6, "columns-missing", 5),
        ({"owed": 3}, 7, "work-owed", 3),
        ({"refused": 2}, 7, "work-refused", 2),
        ({"reached_lsn": 0x1_0000_1001}, 8, "identity-changed", None),
        ({"found": IDENTITY._replace(feed=FeedIdentity("b", IDENTITY.feed.topics))}, 8, "identity-changed", None),
        ({"indexes": index(exists=False)}, 8, "index-missing", 100),
        ({"indexes": index(valid=False)}, 8, "index-invalid", 100),
        ({"indexes": index(used_by_plan=False)}, 8, "index-unused", 100),
    ],
)
def test_each_step_alone_turned_false_is_exactly_its_shortfall(
    changes: dict[str, Any], step: int, id: str, number: int | None
) -> None:
    assert [(s.step, s.id, s.number) for s in shortfalls(**changes)] == [(step, id, number)]


MEASURED = [f.name for f in fields(ProofObservations) if f.default is None]


@pytest.mark.parametrize("name", MEASURED)
def test_each_reading_that_is_missing_is_not_observed_and_nothing_else(name: str) -> None:
    found = shortfalls(**{name: None})
    assert {s.id for s in found} == {"not-observed"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tables": ()}, "list of tables"),
        ({"partitions": (), "ends": {}, "checkpoint": {}}, "list of data partitions"),
        ({"ends": {P0: 10}}, "end offset of shop.public.articles-1"),
        ({"ends": {P0: 10}, "partitions": (P0,)}, "end offset of shop.public.articles-1"),
        ({"checkpoint": {P0: 10}}, "checkpoint of shop.public.articles-1"),
        ({"checkpoint": {P0: 10}, "partitions": (P0,)}, "checkpoint of shop.public.articles-1"),
        ({"backfill": {}}, "backfill of articles"),
        ({"missing": {}}, "rows of articles"),
        ({"indexes": {}}, "index of articles"),
        ({"indexes": index(used_by_plan=None)}, "plan of a search"),
    ],
)
def test_what_does_not_cover_every_table_and_partition_is_not_observed(changes: dict[str, Any], what: str) -> None:
    [s] = shortfalls(**changes)
    assert s.id == "not-observed"
    assert what in s.message


def test_each_partition_behind_is_named_with_its_number_of_events() -> None:
    found = shortfalls(checkpoint={P0: 4, P1: 18})
    assert [s.message for s in found] == [
        "shop.public.articles-0 is 6 events behind",
        "shop.public.articles-1 is 2 events behind",
    ]


def test_connector_behind_is_counted_in_bytes() -> None:
    [s] = shortfalls(connect_lsn=0x1_0000_0000)
    assert s.number == 0x1000
    assert "1/1000" in s.message


def test_plan_of_an_empty_table_need_not_use_the_index() -> None:
    assert isinstance(prove(replace(WHOLE, indexes=index(used_by_plan=False, rows=0)), AT), dict)


def test_shortfalls_come_in_the_order_of_the_steps_with_remedy_and_words_of_the_registry() -> None:
    found = shortfalls(refused=1, swept=False, missing={"articles": 1}, halts=("x",), connect_lsn=None)
    assert [s.step for s in found] == sorted(s.step for s in found) == [1, 2, 4, 6, 7]
    assert all(s.remedy == REASONS[s.id].remedy for s in found)


def test_a_comparison_that_is_clean_only_at_the_end_does_not_do() -> None:
    """What it mended after the highest seq was noted is owed, and step 7 does not see it."""
    dirty = ComparisonReading(builders.comparison(id=6, state=State.DIFFERS, open={"text-stale": 1}), 86_400)
    assert [s.id for s in shortfalls(comparison=dirty)] == ["comparison-differs"]
    assert [s.id for s in shortfalls(comparison=ComparisonReading(None, 86_400))] == ["not-compared"]


def test_a_comparison_that_mended_while_the_proof_ran_does_not_do() -> None:
    """The earlier one was clean and what it had missed is mended now: the work is owed above the highest seq."""
    again = ComparisonReading(builders.comparison(id=8, repaired={"row-missing": 1}), 86_400)
    assert [s.id for s in shortfalls(compared_again=again)] == ["comparison-differs"]
    assert isinstance(prove(replace(WHOLE, comparison=again, compared_again=again), AT), dict)
    clean = ComparisonReading(builders.comparison(id=8), 86_400)
    assert isinstance(prove(replace(WHOLE, compared_again=clean), AT), dict)


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, False),
        ({"open": {"row-extra": 1}}, True),
        ({"repaired": {"text-stale": 1}}, True),
        ({"open": {"chunk-stale": 1}}, True),
        ({"open": {"chunk-stale": 1}, "generations": (2,)}, False),
        ({"repaired": {"row-missing": 1}, "generations": (2,)}, True),
    ],
)
def test_what_a_comparison_has_found_counts_before_it_ends(changes: dict[str, Any], counts: bool) -> None:
    running = builders.comparison(id=8, state=State.RUNNING, ended_at=None, **changes)
    reading = ComparisonReading(builders.comparison(), 86_400, running)
    for one in ({"comparison": reading}, {"compared_again": reading}):
        outcome = prove(replace(WHOLE, **one), AT)  # type: ignore[arg-type]
        assert isinstance(outcome, list) is counts
        assert {s.id for s in outcome if isinstance(s, Shortfall)} <= {"comparison-differs"}


def test_a_comparison_that_was_given_up_with_differing_rows_counts() -> None:
    [s] = shortfalls(**compared(id=8, state=State.ABANDONED, open={"row-missing": 1}, generations=(2,)))
    assert (s.id, s.message) == ("not-compared", "comparison 8 found rows to differ and was given up")


def test_a_comparison_that_found_something_meanwhile_counts() -> None:
    newer = ComparisonReading(builders.comparison(id=8, state=State.DIFFERS, open={"text-stale": 1}), 86_400)
    [s] = shortfalls(compared_again=newer)
    assert (s.id, s.command) == ("comparison-differs", "revector verify shop")
    assert s.message == "comparison 8: 1 text-stale"


def test_certificate_says_what_was_observed_and_compared() -> None:
    document = prove(WHOLE, AT)
    assert isinstance(document, dict)
    assert document["schema"] == "revector.certificate/1"
    assert document["compared"] is True
    assert (document["position"], document["issued_at"]) == ("1/1000", AT)
    assert [s["step"] for s in document["steps"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert document["steps"][0]["comparison"] == 7
    assert document["steps"][5]["checkpoint"] == {"shop.public.articles-0": 10, "shop.public.articles-1": 21}
    assert document["identity"]["kafka"]["topics"] == {P0.topic: {"id": "id-1", "partitions": 2}}


def test_certificate_carries_the_figures_of_its_comparison() -> None:
    mended = {"row-missing": 2, "vector-zero": 1}
    changes = compared(repaired=mended, breaks_closed=1, tokens=42)
    document = prove(replace(WHOLE, **changes), AT)
    assert isinstance(document, dict)
    assert document["comparison"] == {
        "id": 7,
        "state": "clean",
        "began_at": "2026-11-02T09:58:00+00:00",
        "began_position": "1/400",
        "ended_at": "2026-11-02T09:59:00+00:00",
        "ended_position": "1/800",
        "rows": 100,
        "chunks": 120,
        "sampled": 20,
        "tokens": 42,
        "differences": {},
        "repaired": mended,
        "unsettled": 0,
        "breaks_closed": 1,
        "faults": [],
    }
    assert (
        "Comparison 7, between 1/400 and 1/800, found 100 rows equal to the source's and 120 chunks true to their "
        "documents, after it had mended 3 differences; 20 chunks embedded again got the same vector; it closed 1 break "
        "of continuity."
    ) in document["statement"]


def test_figures_that_are_nothing_are_not_in_the_statement() -> None:
    document = prove(replace(WHOLE, **compared(sampled=None, rows=1)), AT)
    assert isinstance(document, dict)
    assert "found 1 row equal to the source's and 120 chunks true to their documents. No event" in document["statement"]


def test_certificate_has_canonical_bytes_for_any_log_position() -> None:
    far = replace(WHOLE, barrier_lsn=(1 << 63), connect_lsn=(1 << 63) + 5)
    assert b"80000000/0" in canonical(far)
    reordered = replace(WHOLE, ends={P1: 20, P0: 10}, checkpoint={P1: 21, P0: 10})
    assert canonical(WHOLE) == canonical(reordered)


def test_accepted_refusals_are_part_of_the_statement() -> None:
    document = prove(replace(WHOLE, accepted=3), AT)
    assert isinstance(document, dict)
    assert "except 3 refused rows that an operator accepted" in document["statement"]


BAD: dict[str, list[Any]] = {
    "comparison": [None, ComparisonReading(None, 86_400), compared(state=State.DIFFERS)["comparison"]],
    "compared_again": [None, compared(began_age_s=1e6)["comparison"], compared(unsettled=1)["comparison"]],
    "breaks": [None, (Break("slot-ahead", {}),)],
    "halts": [None, ("x",)],
    "embed_halts": [None, ("x",)],
    "swept": [None, False],
    "barrier_lsn": [None, 0],
    "connect_lsn": [None, 1],
    "ends": [None, {P0: 11, P1: 20}, {P0: 10}],
    "checkpoint": [None, {P0: 10, P1: 19}, {}],
    "missing": [None, {"articles": 1}],
    "highest_seq": [None],
    "owed": [None, 1],
    "refused": [None, 1],
    "found": [None],
    "indexes": [None, {}],
}


@given(st.dictionaries(st.sampled_from(sorted(BAD)), st.integers(0, 2), min_size=1))
def test_no_mixture_of_failures_yields_a_certificate(faults: dict[str, int]) -> None:
    changes = {name: BAD[name][which % len(BAD[name])] for name, which in faults.items()}
    found = shortfalls(**changes)
    assert len(found) >= 1
    assert all(s.number is None or math.isfinite(s.number) for s in found)
