"""Each detector of breaks: what it reports, what it must not, and that unknown readings end nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.continuity import (
    Identity,
    SlotReading,
    SlotWatch,
    connector_drift,
    halt_of,
    identity_changes,
    identity_halt,
    log_set_back,
    lsn_text,
    new_runs,
    null_sequences,
    pulse_gap,
    reached_lsn,
    slot_ahead,
    slot_lost,
    snapshot_reads,
)
from daemon.core.model import Break, FeedIdentity, Position, ReadEvent, SourceIdentity
from daemon.core.setup import SlotState
from daemon.errors import Problem
from tests.builders import origin, position


def test_pulses_in_order_and_repeated_are_no_gap() -> None:
    assert pulse_gap(0, [1, 2, 3, 2, 3, 4]) == []
    assert pulse_gap(7, []) == []
    assert pulse_gap(7, [5, 6, 7, 8]) == []


def test_pulse_gap_names_the_numbers_that_are_missing() -> None:
    assert pulse_gap(7, [10]) == [Break("pulse-missing", {"first": 8, "last": 9})]
    assert pulse_gap(0, [2, 5]) == [
        Break("pulse-missing", {"first": 1, "last": 1}),
        Break("pulse-missing", {"first": 3, "last": 4}),
    ]


@given(st.sets(st.integers(1, 12)), st.data())
def test_every_missing_pulse_number_is_reported_once_whatever_is_repeated(
    arrived: set[int], data: st.DataObject
) -> None:
    numbers: list[int] = []
    for n in sorted(arrived):
        numbers += [n, *data.draw(st.lists(st.sampled_from(sorted(x for x in arrived if x <= n)), max_size=3))]
    missing = [n for b in pulse_gap(0, numbers) for n in range(b.detail["first"], b.detail["last"] + 1)]
    assert missing == [n for n in range(1, max(arrived, default=0)) if n not in arrived]


def test_first_run_id_ever_is_no_restart_and_each_later_one_is() -> None:
    assert new_runs(set(), ["a", "a"]) == []
    assert [b.detail["run"] for b in new_runs(set(), ["a", "b", "a", "c"])] == ["b", "c"]
    assert [b.id for b in new_runs({"a"}, ["b"])] == ["connector-restarted"]
    assert new_runs({"a", "b"}, ["b", "a"]) == []


def test_snapshot_reads_are_one_break_with_their_number() -> None:
    read = ReadEvent("articles", origin(position(5), offset=42))
    assert snapshot_reads([]) == []
    assert snapshot_reads([read, read]) == [
        Break("snapshot-event", {"table": "articles", "offset": 42, "events": 2}),
    ]


def test_null_sequence_below_the_first_commit_is_the_first_transaction() -> None:
    """Its events may be read after later ones: partitions are independent."""
    assert null_sequences(None, [Position(0, 0, 90), Position(0, 0, 95)]) == []
    assert null_sequences(None, [Position(0, 100, 110), Position(0, 0, 90)]) == []
    assert null_sequences(100, [Position(0, 0, 90)]) == []


def test_null_sequence_above_a_seen_commit_is_a_break() -> None:
    broken = [Break("null-sequence", {"lsn": "0/78", "events": 2})]
    assert null_sequences(100, [Position(0, 0, 130), Position(0, 0, 120)]) == broken
    assert null_sequences(None, [Position(0, 100, 110), Position(0, 0, 120), Position(0, 0, 121)]) == broken
    assert null_sequences(100, [Position(0, 300, 310), Position(0, 0, 200)]) != []


# --- slot


def watched(*readings: SlotReading, flush_interval_s: float = 1.0) -> list[Break]:
    watch, breaks = SlotWatch(), []
    for reading in readings:
        watch, found = slot_ahead(watch, reading, flush_interval_s)
        breaks += found
    return breaks


def test_slot_ahead_for_more_than_two_flush_intervals_is_a_break_at_each_reading() -> None:
    ahead = [SlotReading(200, 100, at / 2) for at in range(7)]
    assert watched(*ahead[:5]) == []
    assert watched(*ahead) == 2 * [Break("slot-ahead", {"confirmed": "0/C8", "committed": "0/64"})]


def test_slot_that_was_caught_up_in_between_begins_anew_and_can_break_again() -> None:
    up = SlotReading(200, 200, 1.5)
    assert watched(SlotReading(200, 100, 0), up, SlotReading(300, 200, 2), SlotReading(300, 200, 4)) == []
    again = [SlotReading(200, 100, 0), SlotReading(200, 100, 9), SlotReading(2, 2, 10), SlotReading(9, 3, 11)]
    assert len(watched(*again, SlotReading(9, 3, 20))) == 2


@pytest.mark.parametrize("unread", [SlotReading(None, 100, 1), SlotReading(200, None, 1)])
def test_reading_that_failed_neither_breaks_nor_clears(unread: SlotReading) -> None:
    assert watched(unread, unread) == []
    assert len(watched(SlotReading(200, 100, 0), unread, SlotReading(200, 100, 9))) == 1


def test_lsn_is_printed_as_postgres_does() -> None:
    assert lsn_text(0x16B374D848) == "16/B374D848"
    assert lsn_text(0x1000000A) == "0/1000000A"


# --- identity


RECORDED = Identity(
    SourceIdentity("7300", 1, "shop", "revector", "pub"),
    FeedIdentity("cluster-a", {"t": ("id-1", 3), "u": ("id-2", 1)}),
)


@pytest.mark.parametrize(
    ("field", "value"),
    [("system_identifier", "7301"), ("timeline", 2), ("database", "x"), ("slot", "x"), ("publication", "x")],
)
def test_each_field_of_the_source_counts(field: str, value: Any) -> None:
    found = RECORDED._replace(source=replace(RECORDED.source, **{field: value}))
    changes = identity_changes(RECORDED, found)
    assert [(c.part, c.field, c.after) for c in changes] == [("source", field, str(value))]
    halt = identity_halt(RECORDED, found)
    assert halt is not None
    assert halt.id == "identity-changed"
    assert f"source {field} was" in halt.message


@pytest.mark.parametrize(
    ("feed", "field"),
    [
        (FeedIdentity("cluster-b", RECORDED.feed.topics), "cluster_id"),
        (FeedIdentity("cluster-a", {**RECORDED.feed.topics, "t": ("id-9", 3)}), "topic t id"),
        (FeedIdentity("cluster-a", {**RECORDED.feed.topics, "t": ("id-1", 4)}), "topic t partitions"),
    ],
)
def test_each_field_of_kafka_counts(feed: FeedIdentity, field: str) -> None:
    assert [c.field for c in identity_changes(RECORDED, RECORDED._replace(feed=feed))] == [field]


def test_topic_on_one_side_only_counts() -> None:
    fewer = RECORDED._replace(feed=FeedIdentity("cluster-a", {"t": ("id-1", 3)}))
    assert ("topic u id", "id-2", "absent") in [c[1:] for c in identity_changes(RECORDED, fewer)]
    assert ("topic u id", "absent", "id-2") in [c[1:] for c in identity_changes(fewer, RECORDED)]


def test_a_log_that_ends_before_what_was_known_of_it_is_another_one() -> None:
    assert log_set_back(0x200, 0x200) == log_set_back(None, 0x100) == log_set_back(0x200, None) == []
    halt = halt_of(log_set_back(0x1_0000_0200, 0x1_0000_0100))
    assert halt is not None
    assert "source log position was 1/200, is 1/100" in halt.message
    assert "realign" in halt.hint


def test_what_is_known_of_a_log_counts_in_its_own_epoch() -> None:
    assert reached_lsn({"reached": [1, 77]}, 1) == 77
    assert reached_lsn({"reached": [0, 77]}, 1) is None
    assert reached_lsn({}, 0) is reached_lsn(None, 0) is None


@pytest.mark.parametrize(
    ("slot", "evidence"),
    [
        (SlotState(False, False, None, None, None, None), {"found": "no slot of this name"}),
        (
            SlotState(True, False, 1, None, "lost", 1 << 20, cause="wal_removed"),
            {"found": "invalidated", "cause": "wal_removed", "max_slot_wal_keep_size": 1 << 20},
        ),
    ],
)
def test_a_slot_that_is_gone_or_invalidated_is_a_break_with_its_evidence(
    slot: SlotState, evidence: dict[str, object]
) -> None:
    assert slot_lost(slot, "shop") == [Break("slot-lost", {"slot": "shop", **evidence})]
    assert slot_lost(SlotState(True, False, 1, 0, "unreserved", None), "shop") == []


def test_same_identity_is_no_halt() -> None:
    assert identity_halt(RECORDED, RECORDED) is None


# --- connector


def test_drift_is_one_break_for_all_errors() -> None:
    wrong = Problem("connector-setting", "connector shop a", "is x", "set a=y")
    worse = replace(wrong, where="connector shop b")
    mild = replace(wrong, where="connector shop c", severity="warning")
    assert connector_drift([mild]) == []
    assert connector_drift([worse, mild, wrong]) == [
        Break("connector-drift", {"settings": ["connector shop a is x", "connector shop b is x"]})
    ]
