"""One verdict: the worst part wins, unknown is never ok, and no number is shown that was not measured."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.catchup import Shortfall
from daemon.core.compared import ComparisonReading
from daemon.core.comparison import Kind as Difference
from daemon.core.comparison import State
from daemon.core.face import as_json, duration, render_text, size
from daemon.core.model import Backlog, Break, HaltNote, TopicPartition
from daemon.core.reasons import REASONS
from daemon.core.status import (
    CopyFacts,
    CostFacts,
    FeedFacts,
    RunningComparison,
    SourceFacts,
    StatusFacts,
    TargetFacts,
    Verdict,
    eta,
    grouped,
    judge,
    percent,
)
from tests import builders

P0, P1 = TopicPartition("shop.public.articles", 0), TopicPartition("shop.public.articles", 1)
SOURCE = SourceFacts(0.4, 2_100_000, 10_000_000_000, True, True, "reserved")
FEED = FeedFacts({P0: 0, P1: 3}, 2, "running")
IDLE = Backlog(0, 0, 0, 0, 0, None, 7400, 1000, 600)
READY = StatusFacts(
    migration="articles-v2",
    generation="v2",
    begun=True,
    observed_at="2026-11-02T14:02:00Z",
    running_for_s=4320.0,
    halts={},
    breaks=(),
    source=SOURCE,
    feed=FEED,
    embed=IDLE,
    swept=True,
    target=TargetFacts(1240.0, "live"),
    backfill=CopyFacts(7400, True, 7000),
    freshness_s=1.0,
    comparison=ComparisonReading(builders.comparison(), 86_400),
    proof=(),
)
COPYING = CopyFacts(6_112_030, False, 7_400_000, (1200.0, 1500.0), 600.0)
SHORT = Shortfall("index-missing", 8, "shop.articles_v2 has no index", 5, "build it", None)


def compared(**changes: Any) -> ComparisonReading:
    return ComparisonReading(builders.comparison(**changes), 86_400)


def ids(facts: StatusFacts) -> list[str]:
    return [b.id for b in judge(facts).blockers]


def test_a_lag_that_only_grows_is_not_ready_because_of_an_older_certificate() -> None:
    """The connector says running and Kafka holds nothing more: it is stuck, or no stream measures any longer."""
    quiet = FeedFacts({P0: 0, P1: 0}, 2, "running")
    assert ids(replace(READY, feed=quiet, source=replace(SOURCE, lag_s=140.0))) == []
    assert ids(replace(READY, feed=quiet, source=replace(SOURCE, lag_s=151.0))) == ["connector-behind"]
    assert judge(replace(READY, feed=quiet, source=replace(SOURCE, lag_s=151.0))).verdict is Verdict.CATCHING_UP


def test_everything_observed_and_a_proof_that_held_is_ready() -> None:
    status = judge(READY)
    assert (status.verdict, status.blockers, status.next) == (Verdict.READY, (), None)


@pytest.mark.parametrize(
    ("changes", "verdict", "blockers"),
    [
        ({"halts": {"offsets-gone": HaltNote("", "start again")}}, Verdict.HALTED, ["halted"]),
        ({"halts": {"identity-changed": HaltNote("", "")}}, Verdict.HALTED, ["identity-changed"]),
        ({"embed_halts": {"provider-key-refused": HaltNote("", "renew it")}}, Verdict.NOT_READY, ["embedding-halted"]),
        ({"embed_halts": {"identity-changed": HaltNote("", "")}}, Verdict.NOT_READY, ["embedding-halted"]),
        ({"breaks": (Break("pulse-missing", {}),)}, Verdict.DEGRADED, ["break-open"]),
        ({"source": replace(SOURCE, slot_exists=False)}, Verdict.DEGRADED, ["slot-lost"]),
        ({"source": replace(SOURCE, wal_status="lost")}, Verdict.DEGRADED, ["slot-lost"]),
        ({"source": replace(SOURCE, wal_status="unreserved", left_bytes=-1)}, Verdict.NOT_READY, ["slot-endangered"]),
        ({"source": replace(SOURCE, limit_bytes=100, left_bytes=19)}, Verdict.NOT_READY, ["slot-endangered"]),
        ({"source": replace(SOURCE, limit_bytes=100, left_bytes=20)}, Verdict.READY, []),
        ({"source": replace(SOURCE, slot_active=False)}, Verdict.NOT_READY, ["slot-inactive"]),
        ({"feed": replace(FEED, connector="failed")}, Verdict.NOT_READY, ["connector-down"]),
        ({"embed": replace(IDLE, refused=2)}, Verdict.NOT_READY, ["work-refused"]),
        ({"backfill": COPYING}, Verdict.CATCHING_UP, ["backfill-unfinished"]),
        ({"swept": False}, Verdict.CATCHING_UP, ["sweep-unfinished"]),
        ({"embed": replace(IDLE, waiting_live=2, oldest_age_s=61.0)}, Verdict.CATCHING_UP, ["work-owed"]),
        ({"embed": replace(IDLE, claimed=2, oldest_age_s=None)}, Verdict.CATCHING_UP, ["work-owed"]),
        ({"embed": replace(IDLE, waiting_backfill=1001, oldest_age_s=1.0)}, Verdict.CATCHING_UP, ["work-owed"]),
        ({"source": replace(SOURCE, lag_s=11.0)}, Verdict.CATCHING_UP, ["partition-behind"]),
        ({"proof": (SHORT,)}, Verdict.NOT_READY, ["index-missing"]),
        ({"proof": None}, Verdict.NOT_READY, ["not-proven"]),
        ({"comparison": ComparisonReading(None, 60)}, Verdict.NOT_READY, ["not-compared"]),
        ({"comparison": compared(faults=("slot-ahead",))}, Verdict.NOT_READY, ["not-compared"]),
        ({"comparison": compared(began_age_s=1e5)}, Verdict.NOT_READY, ["comparison-stale"]),
        ({"comparison": compared(open={"row-extra": 1})}, Verdict.NOT_READY, ["comparison-differs"]),
        ({"comparison": compared(state=State.DIFFERS, unsettled=1)}, Verdict.NOT_READY, ["comparison-differs"]),
    ],
)
def test_each_fault_alone_is_its_blocker_and_verdict(
    changes: dict[str, Any], verdict: Verdict, blockers: list[str]
) -> None:
    facts = replace(READY, **changes)
    assert ids(facts) == blockers
    assert judge(facts).verdict is verdict


def test_a_few_events_and_rows_on_their_way_do_not_unmake_a_proof() -> None:
    assert judge(replace(READY, embed=replace(IDLE, waiting_live=40, oldest_age_s=2.0))).verdict is Verdict.READY


OPTIONAL = ["halts", "breaks", "source", "feed", "embed", "swept", "backfill", "comparison"]


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_part_that_was_not_observed_is_never_ok(name: str) -> None:
    missing: dict[str, Any] = {name: None}
    facts = replace(READY, **missing)
    assert "not-observed" in ids(facts)
    assert judge(facts).verdict is Verdict.NOT_READY


@pytest.mark.parametrize(
    "changes",
    [
        {"source": replace(SOURCE, lag_s=None), "feed": FeedFacts({P0: 0, P1: 0}, 2, "running")},
        {"source": replace(SOURCE, slot_exists=None)},
        {"source": replace(SOURCE, slot_active=None)},
        {"feed": FeedFacts({P0: 0}, 2, "running")},
        {"feed": FeedFacts({P0: 0}, None, "running")},
        {"feed": FeedFacts({}, 0, "running")},
        {"feed": FeedFacts({P0: 0, P1: 0}, 2, None)},
    ],
)
def test_a_number_that_was_not_observed_is_never_ok(changes: dict[str, Any]) -> None:
    facts = replace(READY, **changes)
    assert ids(facts) == ["not-observed"]
    assert judge(facts).verdict is Verdict.NOT_READY


def test_nothing_observed_is_not_ready_and_renders() -> None:
    status = judge(StatusFacts("shop"))
    assert status.verdict is Verdict.NOT_READY
    text = "\n".join(render_text(status, 100))
    assert "unknown" in text
    assert " 0 " not in text


def test_the_worst_part_wins_and_comes_first() -> None:
    facts = replace(READY, backfill=COPYING, breaks=(Break("slot-ahead", {}),), embed=replace(IDLE, refused=1))
    assert judge(facts).verdict is Verdict.DEGRADED
    assert ids(facts) == ["break-open", "work-refused", "backfill-unfinished"]
    assert judge(replace(facts, halts={"x": HaltNote("", "")})).verdict is Verdict.HALTED


def test_lag_is_not_asked_for_while_rows_are_being_copied() -> None:
    assert ids(replace(READY, backfill=COPYING, source=replace(SOURCE, lag_s=None))) == [
        "backfill-unfinished",
        "partition-behind",
    ]


def test_hint_of_a_halt_is_the_remedy() -> None:
    [b] = judge(replace(READY, halts={"offsets-gone": HaltNote("", "start again")})).blockers
    assert (b.message, b.remedy, b.evidence, b.command) == ("offsets-gone", "start again", None, None)
    assert "    start again" in render_text(
        judge(replace(READY, halts={"offsets-gone": HaltNote("", "start again")})), 100
    )


def test_a_halt_shows_what_was_and_what_is_and_the_command_that_continues() -> None:
    note = HaltNote("m.doc-0: next is 5, the topic begins at 9", "raise the retention", "revector realign {migration}")
    status = judge(replace(READY, halts={"offsets-gone": note}))
    assert status.blockers[0].evidence == note.message
    assert status.next == f"revector realign {READY.migration}"
    lines = "\n".join(render_text(status, 120))
    assert all(f"    {words}\n" in lines for words in (note.message, note.hint, status.next))


def test_a_halt_of_embedding_is_named_with_its_hint_and_says_that_replication_goes_on() -> None:
    facts = replace(
        READY, backfill=COPYING, embed_halts={"provider-key-refused": HaltNote("", "check generation.api_key")}
    )
    status = judge(facts)
    assert [b.id for b in status.blockers] == ["embedding-halted", "backfill-unfinished"]
    first = status.blockers[0]
    assert first.message == "provider-key-refused; replication goes on"
    assert first.remedy == "check generation.api_key"
    assert "check generation.api_key" in "\n".join(render_text(status, 120))


def test_whether_embedding_is_halted_is_not_known_where_halts_could_not_be_read() -> None:
    assert "embedding-halted" not in judge(replace(READY, halts=None)).gauges()
    assert judge(READY).gauges()["embedding-halted"] == 0


def test_a_halt_of_embedding_before_the_start_is_said() -> None:
    status = judge(replace(READY, begun=False, embed_halts={"schema-changed": HaltNote("", "put it back")}))
    assert {b.id for b in status.blockers} == {"embedding-halted", "not-begun"}


def test_proof_adds_what_the_parts_do_not_say_already() -> None:
    behind = Shortfall("partition-behind", 6, "x", 9, "wait", None)
    facts = replace(READY, source=replace(SOURCE, lag_s=20.0), proof=(behind, SHORT))
    assert ids(facts) == ["partition-behind", "index-missing"]
    assert judge(facts).blockers[0].number == 3


def test_next_is_the_command_of_the_worst_blocker_that_has_one() -> None:
    assert judge(replace(READY, backfill=COPYING)).next == "revector wait articles-v2 --for backfill"
    assert judge(replace(READY, proof=None)).next == "revector prove articles-v2"


def test_a_comparison_is_asked_for_before_a_proof_and_after_what_passes_by_itself() -> None:
    never = replace(READY, comparison=ComparisonReading(None, 60), proof=None)
    assert (ids(never), judge(never).next) == (["not-compared"], "revector verify articles-v2")
    copying = judge(replace(never, backfill=COPYING))
    assert [b.id for b in copying.blockers] == ["backfill-unfinished", "not-compared"]
    assert (copying.verdict, copying.next) == (Verdict.CATCHING_UP, "revector wait articles-v2 --for backfill")


def test_a_generation_that_the_migration_does_not_have_is_not_asked_to_be_compared() -> None:
    assert "not-compared" not in ids(replace(READY, listed=False, comparison=ComparisonReading(None, 60)))


def test_what_the_last_comparison_says_is_shown_with_its_age_and_what_one_that_runs_has_done() -> None:
    def shown(**changes: Any) -> str:
        return next(t for t in render_text(judge(replace(READY, **changes)), 200) if "compared" in t).strip()

    assert shown() == "compared 2 min ago: clean, 100 rows, 120 chunks"
    assert shown(comparison=None) == "compared unknown"
    assert shown(comparison=ComparisonReading(None, 60)) == "compared never"
    differs = compared(state=State.DIFFERS, open={"row-extra": 1200}, unsettled=1)
    assert shown(comparison=differs) == "compared 2 min ago: 1 201 differing, 100 rows, 120 chunks"
    running = RunningComparison(8, 65.0, 4000, 1000, 12, 3)
    assert shown(comparing=running) == (
        "compared 2 min ago: clean, 100 rows, 120 chunks; begun 1 min ago and not ended: 4 000 rows, 3 of 12 ranges"
    )
    part = as_json(judge(replace(READY, comparing=running, comparison=differs)))["comparison"]
    assert part["last"]["differences"] == {"row-extra": 1200}
    assert (part["last"]["age_s"], part["running"]["ranges_done"], part["max_age_s"]) == (120.0, 3, 86_400)
    assert as_json(judge(replace(READY, comparison=None)))["comparison"] is None


def test_kinds_of_difference_are_no_reasons() -> None:
    assert {k.value for k in Difference} & set(REASONS) == set()


# --- estimates


@given(st.integers(0, 10**9), st.one_of(st.none(), st.integers(0, 10**9)), st.booleans())
def test_percent_is_100_only_when_done(rows: int, total: int | None, complete: bool) -> None:
    shown = percent(CopyFacts(rows, complete, total))
    assert (shown == 100) is complete
    assert shown is None or 0 <= shown <= 100


def test_eta_is_a_range_with_its_basis() -> None:
    left = eta(COPYING)
    assert left is not None
    assert left.low_s == pytest.approx(1_287_970 / 1500)
    assert left.high_s == pytest.approx(1_287_970 / 1200)
    assert left.basis == "the last 10 min"


@pytest.mark.parametrize(
    "copied",
    [
        None,
        replace(COPYING, complete=True),
        replace(COPYING, rows_total=None),
        replace(COPYING, rows_total=COPYING.rows),
        replace(COPYING, rates=()),
        replace(COPYING, rates=(0.0, 5.0)),
    ],
)
def test_eta_is_unknown_where_it_would_be_a_guess(copied: CopyFacts | None) -> None:
    assert eta(copied) is None


# --- before the start


def test_before_a_start_the_only_reason_is_that_and_the_next_step_is_to_start() -> None:
    """A slot that the connector has not made yet is no break of continuity."""
    status = judge(replace(READY, begun=False, generation=None, source=replace(SOURCE, slot_exists=False), proof=None))
    assert [b.id for b in status.blockers] == ["not-begun"]
    assert (status.verdict, status.next) == (Verdict.NOT_READY, "revector run articles-v2")
    assert render_text(replace(status, facts=replace(status.facts, running_for_s=None)), 100) == [
        "articles-v2   not ready",
        "not ready to cut over: 1 reason",
        "  not-begun             nothing has been started",
        "    revector run articles-v2",
        "next: revector run articles-v2",
    ]
    assert status.gauges() == {"not-begun": 1, "not-observed": 1}


def test_a_start_on_its_way_asks_for_patience_and_not_for_a_second_process() -> None:
    status = judge(replace(READY, begun=False, embed=None, backfill=None, proof=None))
    assert [b.id for b in status.blockers] == ["not-begun"]
    assert status.next is None
    assert "log" in status.blockers[0].remedy


def test_a_halt_before_the_start_is_said_first() -> None:
    status = judge(replace(READY, begun=False, halts={"schema-changed": HaltNote("", "put it back")}))
    assert [b.id for b in status.blockers] == ["halted", "not-begun"]
    assert status.verdict is Verdict.HALTED


# --- gauges


def test_gauges_have_every_reason_when_everything_was_evaluated() -> None:
    gauges = judge(READY).gauges()
    assert gauges == dict.fromkeys(REASONS, 0)
    degraded = judge(replace(READY, breaks=(Break("pulse-missing", {}),))).gauges()
    assert {id for id, on in degraded.items() if on} == {"break-open", "pulse-missing"}


def test_gauge_that_could_not_be_evaluated_is_absent_and_not_observed_is_1() -> None:
    blind = judge(replace(READY, embed=None)).gauges()
    assert not {"work-owed", "work-refused"} & set(blind)
    assert "not-begun" not in judge(replace(READY, begun=None)).gauges()
    assert blind["not-observed"] == 1
    unproven = judge(replace(READY, proof=None)).gauges()
    assert "index-missing" not in unproven
    assert (unproven["not-observed"], unproven["not-proven"]) == (1, 1)


# --- faces


def test_json_is_plain_and_keeps_unknown_apart_from_0() -> None:
    document = json.loads(json.dumps(as_json(judge(replace(READY, source=None, backfill=COPYING)))))
    assert document["schema"] == "revector.status/1"
    assert document["verdict"] == "not ready"
    assert document["parts"]["source"] is None
    assert document["parts"]["kafka"]["events_behind"] == 3
    assert document["parts"]["backfill"]["percent"] == 82
    assert document["parts"]["cost"] == {
        "tokens": 1000,
        "tokens_avoided": 600,
        "requests": 0,
        "price": None,
        "amount": None,
        "forecast": None,
    }
    assert {b["id"] for b in document["blockers"]} >= {"not-observed", "backfill-unfinished"}


def test_events_behind_are_unknown_unless_every_partition_was_read() -> None:
    document = as_json(judge(replace(READY, feed=FeedFacts({P0: 5}, 2, "running"))))
    assert document["parts"]["kafka"]["events_behind"] is None
    text = "\n".join(render_text(judge(replace(READY, feed=FeedFacts({P0: 5}, 2, "running"))), 120))
    assert "events behind unknown, 1 of 2 partitions" in text
    away = "\n".join(render_text(judge(replace(READY, feed=FeedFacts({}, None, "running"))), 120))
    assert "kafka   events behind unknown" in away
    assert "partitions" not in away


def test_text_of_a_migration_that_copies() -> None:
    waiting = replace(IDLE, waiting_live=41_200, oldest_age_s=200.0, requests=12)
    lines = render_text(judge(replace(READY, backfill=COPYING, embed=waiting, proof=None)), 120)
    assert lines == [
        "articles-v2   catching up   for 1 h 12 min   continuity: intact",
        "  source   0.4 s, 2.1 MB of WAL kept of 10.0 GB           kafka   3 events behind, 2 of 2 partitions",
        "  embed    41 200 waiting, oldest 3 min                   target  1 240 rows/s, 0 refused",
        "  backfill 6 112 030 of about 7 400 000 rows (82 %)       14 min to 17 min left, from the last 10 min",
        "  cost     1 000 tokens in 12 requests                    avoided 37 % of tokens",
        "  compared 2 min ago: clean, 100 rows, 120 chunks",
        "not ready to cut over: 2 reasons",
        "  backfill-unfinished   82 %",
        "    revector wait articles-v2 --for backfill",
        "  work-owed             41 200 rows waiting",
        "    wait; if the number does not fall, see whether an embedder is running",
        "next: revector wait articles-v2 --for backfill",
    ]


def spent(cost: CostFacts) -> str:
    embed = replace(IDLE, tokens=41_200_000, requests=900)
    return render_text(judge(replace(READY, embed=embed, cost=cost)), 120)[4].split("avoided")[0].strip()


def test_what_was_spent_is_shown_beside_what_was_forecast() -> None:
    assert spent(CostFacts()) == "cost     41 200 000 tokens in 900 requests"
    assert spent(CostFacts(1.0)) == "cost     41.20, 41 200 000 tokens in 900 requests"
    forecast = (49_100_000, 53_000_000)
    assert spent(CostFacts(None, forecast)) == "cost     41 200 000 of 49 100 000 to 53 000 000 tokens forecast"
    assert spent(CostFacts(1.0, forecast)) == "cost     41.20 of 49.10–53.00 forecast"
    assert spent(CostFacts(1.0, (49_100_000, 49_100_000))) == "cost     41.20 of 49.10 forecast"
    assert spent(CostFacts(0.02, forecast)) == "cost     0.8240 of 0.98–1.06 forecast"
    embed = replace(IDLE, tokens=41_200_000)
    part = as_json(judge(replace(READY, embed=embed, cost=CostFacts(1.0, forecast))))["parts"]["cost"]
    assert (part["price"], part["amount"]) == (1.0, 41.2)
    assert part["forecast"] == {
        "tokens": {"low": 49_100_000, "high": 53_000_000},
        "amount": {"low": 49.1, "high": 53.0},
    }
    unread = as_json(judge(replace(READY, embed=None, cost=CostFacts(1.0, forecast))))["parts"]
    assert unread["cost"] is None, "what was not measured is not shown as 0"


def test_rows_without_text_and_accepted_ones_are_counted_as_such() -> None:
    lines = render_text(judge(replace(READY, embed=replace(IDLE, rows_blank=1200, accepted=3, requests=1))), 120)
    assert "embed    nothing waiting, 1 200 rows without text" in lines[2]
    assert lines[2].endswith("0 refused, 3 accepted")
    assert "1 000 tokens in 1 request " in lines[4]
    narrow = render_text(judge(replace(READY, embed=replace(IDLE, accepted=3), target=TargetFacts(None, "live"))), 100)
    assert "  target  rate unknown, 0 refused, 3 accepted" in narrow, "what does not fit beside goes below, whole"
    embed = as_json(judge(replace(READY, embed=replace(IDLE, rows_blank=1, requests=7))))["parts"]["embed"]
    assert (embed["rows_blank"], embed["requests"]) == (1, 7)
    assert "1 row without text" in render_text(judge(replace(READY, embed=replace(IDLE, rows_blank=1))), 120)[2]


@st.composite
def any_facts(draw: st.DrawFn) -> StatusFacts:
    worse: dict[str, Any] = {
        "halts": {"offsets-gone": HaltNote("", "look at the retention of the topic and start the migration again")},
        "breaks": (Break("pulse-missing", {"first": 3, "last": 9}),),
        "source": SourceFacts(None, None, None, True, False, "extended"),
        "feed": FeedFacts({P0: 123_456_789}, 2, "failed"),
        "embed": replace(IDLE, waiting_backfill=9_876_543, refused=12, oldest_age_s=90_000.0),
        "swept": False,
        "target": TargetFacts(),
        "backfill": COPYING,
        "comparison": compared(state=State.DIFFERS, open={"row-extra": 12_345}, began_age_s=9e5),
        "comparing": RunningComparison(8, 65.0, 4_000_000, 1000, 12, 3),
        "proof": (SHORT,),
        "running_for_s": None,
    }
    changes = {name: draw(st.sampled_from([value, None, getattr(READY, name)])) for name, value in worse.items()}
    return replace(READY, **changes)


@given(any_facts(), st.integers(40, 160))
def test_no_line_is_wider_than_the_terminal(facts: StatusFacts, width: int) -> None:
    for line in render_text(judge(facts), width):
        assert len(line) <= width or line.startswith("next: ")


@given(any_facts())
def test_ready_means_that_nothing_stands_against_it_and_all_was_seen(facts: StatusFacts) -> None:
    status = judge(facts)
    if status.verdict is Verdict.READY:
        assert status.blockers == ()
        assert facts.proof == ()
        assert all(getattr(facts, f.name) is not None for f in fields(facts) if f.name in OPTIONAL)
    assert (status.gauges().get("not-observed") == 1) >= any(b.id == "not-observed" for b in status.blockers)


def test_words_for_numbers() -> None:
    assert [grouped(n) for n in (0, 999, 41_200, 7_400_000)] == ["0", "999", "41 200", "7 400 000"]
    assert [size(n) for n in (0, 2_100_000, 10**10, 3 * 10**15)] == ["0 B", "2.1 MB", "10.0 GB", "3000.0 TB"]
    assert [duration(s) for s in (4.9, 60, 4320, 187_200)] == ["4 s", "1 min", "1 h 12 min", "2 d 4 h"]
