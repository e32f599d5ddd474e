"""Freshness moves to a pulse's instant only when every step behind it holds, in the order it was read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.freshness import KEPT_PULSES, Pulse, Tracker
from daemon.core.model import TopicPartition

P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)
ENDS = ((P0, 10), (P1, 20))
SENT = Tracker().sent(Pulse(1, 100, 5.0))


def test_pulse_that_passed_every_step_moves_both_instants() -> None:
    seen = SENT.captured(100, ENDS).applied({P0: 10, P1: 20}, 0, 77)
    assert (seen.replicated_at, seen.fresh_at) == (5.0, None)
    fresh = seen.embedded(78)
    assert (fresh.fresh_at, fresh.pulses) == (5.0, ())
    assert seen.embedded(None).fresh_at == 5.0


def test_each_step_alone_holds_the_instant_back() -> None:
    applied = {P0: 10, P1: 20}
    assert SENT.captured(99, ENDS).applied(applied, 0, 77).replicated_at is None
    assert SENT.captured(None, ENDS).applied(applied, 0, 77).replicated_at is None
    assert SENT.captured(100, ()).applied(applied, 0, 77).replicated_at is None
    assert SENT.captured(100, ENDS).applied({P0: 10, P1: 19}, 0, 77).replicated_at is None
    assert SENT.captured(100, ENDS).applied({P0: 10}, 0, 77).replicated_at is None
    assert SENT.captured(100, ENDS).applied(applied, 1, 77).replicated_at is None
    assert SENT.captured(100, ENDS).applied(applied, 0, 77).embedded(77).fresh_at is None
    assert SENT.embedded(None).fresh_at is None


def test_ends_and_seq_are_those_of_the_moment_the_step_was_reached() -> None:
    """Later ends or a later seq would let steady traffic hold freshness back for ever."""
    seen = SENT.captured(100, ENDS).captured(100, ((P0, 99), (P1, 99)))
    seen = seen.applied({P0: 10, P1: 20}, 0, 77).applied({P0: 11, P1: 21}, 0, 500)
    assert seen.embedded(78).fresh_at == 5.0


def test_instants_never_go_back() -> None:
    seen = SENT.sent(Pulse(2, 200, 9.0)).captured(200, ENDS).applied({P0: 10, P1: 20}, 0, 77).embedded(None)
    assert (seen.replicated_at, seen.fresh_at, seen.pulses) == (9.0, 9.0, ())


@given(st.integers(1, 400))
def test_pulses_kept_are_bounded_and_hold_the_oldest_and_the_newest(count: int) -> None:
    tracker = Tracker()
    for n in range(count):
        tracker = tracker.sent(Pulse(n, n, float(n)))
    assert len(tracker.pulses) <= KEPT_PULSES
    assert (tracker.pulses[0].number, tracker.pulses[-1].number) == (0, count - 1)
