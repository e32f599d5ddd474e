"""Freshness moves to a pulse's instant only when every step behind it holds, in the order it was read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.freshness import KEPT_PULSES, Freshness, Pulse, Tracker
from daemon.core.model import TopicPartition

P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)
ENDS = ((P0, 10), (P1, 20))
APPLIED = {P0: 10, P1: 20}
SENT = Tracker().sent(Pulse(1, 100, 5.0))


def fresh_at(passed: tuple[Pulse, ...], lowest_owed: int | None) -> float | None:
    return Freshness().replicated(passed).embedded(lowest_owed).fresh_at


def test_pulse_that_passed_every_step_moves_both_instants() -> None:
    seen, passed = SENT.captured(100, ENDS).applied(APPLIED, 0, 77)
    assert (seen.replicated_at, seen.pulses) == (5.0, ())
    fresh = Freshness().replicated(passed)
    assert fresh.fresh_at is None
    assert (fresh.embedded(78).fresh_at, fresh.embedded(78).pulses) == (5.0, ())
    assert fresh.embedded(None).fresh_at == 5.0


def test_each_step_alone_holds_the_instant_back() -> None:
    held = [
        SENT.captured(99, ENDS).applied(APPLIED, 0, 77),
        SENT.captured(None, ENDS).applied(APPLIED, 0, 77),
        SENT.captured(100, ()).applied(APPLIED, 0, 77),
        SENT.captured(100, ENDS).applied({P0: 10, P1: 19}, 0, 77),
        SENT.captured(100, ENDS).applied({P0: 10}, 0, 77),
        SENT.captured(100, ENDS).applied(APPLIED, 1, 77),
    ]
    assert [(seen.replicated_at, passed) for seen, passed in held] == [(None, ())] * len(held)
    _, passed = SENT.captured(100, ENDS).applied(APPLIED, 0, 77)
    assert fresh_at(passed, 77) is None
    assert fresh_at((), None) is None


def test_while_rows_are_copied_a_pulse_moves_the_replica_and_waits_for_a_later_seq() -> None:
    seen, passed = SENT.captured(100, ENDS).applied(APPLIED, 0, None)
    assert (seen.replicated_at, passed) == (5.0, ())
    _, passed = seen.applied(APPLIED, 0, 90)
    assert fresh_at(passed, 78) is None
    assert fresh_at(passed, 91) == 5.0


def test_ends_and_seq_are_those_of_the_moment_the_step_was_reached() -> None:
    """Later ends or a later seq would let steady traffic hold freshness back for ever."""
    seen, passed = SENT.captured(100, ENDS).captured(100, ((P0, 99), (P1, 99))).applied(APPLIED, 0, 77)
    assert seen.applied({P0: 11, P1: 21}, 0, 500)[1] == ()
    assert fresh_at(passed, 78) == 5.0


def test_instants_never_go_back() -> None:
    seen, passed = SENT.sent(Pulse(2, 200, 9.0)).captured(200, ENDS).applied(APPLIED, 0, 77)
    assert (seen.replicated_at, fresh_at(passed, None)) == (9.0, 9.0)
    late = seen.sent(Pulse(3, 150, 7.0)).captured(200, ENDS)
    assert late.applied(APPLIED, 0, 80)[0].replicated_at == 9.0
    ahead = Freshness().replicated(passed).embedded(None)
    assert ahead.replicated((Pulse(1, 100, 5.0, ENDS, 70),)).embedded(None).fresh_at == 9.0


def test_one_generation_s_debt_holds_no_other_back() -> None:
    _, passed = SENT.captured(100, ENDS).applied(APPLIED, 0, 77)
    assert [fresh_at(passed, lowest) for lowest in (3, 78, None)] == [None, 5.0, 5.0]


@given(st.integers(1, 400))
def test_pulses_kept_are_bounded_and_hold_the_oldest_and_the_newest(count: int) -> None:
    tracker, fresh = Tracker(), Freshness()
    for n in range(count):
        tracker = tracker.sent(Pulse(n, n, float(n)))
        fresh = fresh.replicated([Pulse(n, n, float(n), ENDS, n)])
    for pulses in (tracker.pulses, fresh.pulses):
        assert len(pulses) <= KEPT_PULSES
        assert (pulses[0].number, pulses[-1].number) == (0, count - 1)
