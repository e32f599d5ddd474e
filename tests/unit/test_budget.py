"""The schedule of a budget, and what a process learns from answers: pure, so that every case is one line."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core import budget
from daemon.core.budget import BURST_S, MINUTE_S, PACE, Cost
from daemon.core.concurrency import Breaker, Concurrency, Latency, Pace
from daemon.core.model import Rates
from tests.fakes.schedule import Schedule, held, refunded, reserved

NOW = 1_000.0


def starts(costs: list[Cost], schedule: Schedule | None = None, now: float = NOW) -> list[float]:
    """When reservations that are made at once may be sent."""
    found, at = [], schedule or Schedule()
    for asked in costs:
        at, wait_s = reserved(at, asked, now)
        found.append(now + wait_s)
    return found


# --- the schedule


def test_reservations_follow_one_another_by_their_own_cost() -> None:
    found = starts([Cost(None, 2.0), Cost(None, 1.0), Cost(None, 1.0)])
    assert found == [NOW, NOW + 2.0 - BURST_S, NOW + 3.0 - BURST_S]


def test_the_tighter_of_two_budgets_decides() -> None:
    assert starts([Cost(3.0, 1.0)] * 3) == [NOW, NOW + 3.0 - BURST_S, NOW + 6.0 - BURST_S]
    assert starts([Cost(1.0, 3.0)] * 3) == [NOW, NOW + 3.0 - BURST_S, NOW + 6.0 - BURST_S]


def test_an_unknown_rate_neither_waits_nor_moves() -> None:
    schedule = Schedule(requests_at=NOW + 50, tokens_at=NOW + 5)
    after, wait_s = reserved(schedule, Cost(None, 1.0), NOW)
    assert (wait_s, after.requests_at, after.tokens_at) == (5.0, NOW + 50, NOW + 6)


def test_what_was_not_used_is_not_saved_up() -> None:
    idle = Schedule(NOW - 1000, NOW - 1000)
    assert starts([Cost(1.0, 1.0)] * 2, idle) == [NOW, NOW + 1 - BURST_S]


def test_nothing_starts_while_the_provider_asked_to_be_left_alone() -> None:
    holding = held(Schedule(), 30.0, NOW)
    assert starts([Cost(1.0, 1.0)] * 2, holding) == [NOW + 30, NOW + 31]
    assert held(holding, 10.0, NOW) == holding


@pytest.mark.parametrize(
    ("seconds", "tokens_at"), [(3.0, NOW + 7), (50.0, NOW - BURST_S), (-4.0, NOW + 14)], ids=["part", "all", "taken"]
)
def test_tokens_go_back_no_further_than_the_burst(seconds: float, tokens_at: float) -> None:
    assert refunded(Schedule(tokens_at=NOW + 10), seconds, NOW).tokens_at == tokens_at


def test_what_was_used_too_much_of_an_idle_budget_is_taken_from_now_on() -> None:
    assert refunded(Schedule(), -4.0, NOW).tokens_at == NOW - BURST_S + 4.0


@given(
    st.lists(st.floats(0.05, budget.REQUEST_S), min_size=1, max_size=400),
    st.integers(60, 10_000_000),
)
def test_no_minute_holds_more_than_is_permitted(worths: list[float], per_minute: int) -> None:
    rates = Rates(None, per_minute)
    sizes = [max(1, int(worth * per_minute / MINUTE_S)) for worth in worths]
    sent = starts([budget.cost(budget.charge(n, rates), rates) for n in sizes])
    for first, at in enumerate(sent):
        window = [n for n, other in zip(sizes[first:], sent[first:], strict=True) if other < at + MINUTE_S]
        assert sum(window) <= max(per_minute, window[0])


@pytest.mark.parametrize("worth_s", [0.7, 2.0, 7.0, 12.5, 29.0])
def test_no_minute_holds_too_many_large_requests(worth_s: float) -> None:
    rates = Rates(None, 60_000)
    tokens = int(worth_s * 1000)
    sent = starts([budget.cost(budget.charge(tokens, rates), rates)] * 200)
    assert all(tokens * sum(1 for o in sent if at <= o < at + MINUTE_S) <= 60_000 for at in sent)
    span = sent[-1] - sent[0]
    assert 199 * tokens / (span * 1000) >= min(0.95, 0.98 - worth_s / 60), "and not far fewer"


def test_requests_of_a_minute_are_fewer_than_permitted() -> None:
    sent = starts([budget.cost(1, Rates(10, None))] * 40)
    assert max(sum(1 for o in sent if at <= o < at + MINUTE_S) for at in sent) == 10


# --- rates


def test_rates_in_force_are_the_least_known() -> None:
    assert budget.in_force([Rates(5, None), Rates(3, 100), Rates(None, 200)]) == Rates(3, 100)
    assert budget.in_force([Rates(), Rates()]) == Rates()
    assert [budget.is_limited(r) for r in (Rates(), Rates(1, None), Rates(None, 1))] == [False, True, True]


def test_slowed_rates_stay_above_zero() -> None:
    assert budget.slowed(Rates(100, None), 0.5) == Rates(50, None)
    assert budget.slowed(Rates(1, 1), 0.05) == Rates(1, 1)


@pytest.mark.parametrize(
    ("rates", "tokens"),
    [
        (Rates(), 50_000),
        (Rates(100, None), 50_000),
        (Rates(None, 600_000), 7_000),
        (Rates(60, 600_000), 11_000),
        (Rates(5_000, 10_000_000), 50_000),
        (Rates(None, 6), 1),
    ],
)
def test_a_request_holds_little_enough_to_be_even_and_enough_to_use_the_tokens(rates: Rates, tokens: int) -> None:
    assert budget.request_tokens(50_000, rates) == tokens


# --- how many at once


def grown(answers: int, at: Concurrency | None = None, most: int = 8, now: float = NOW) -> Concurrency:
    found = at or Concurrency()
    for _ in range(answers):
        found = found.answered(1000, now - 1.0, now, most)
    return found


def test_requests_at_once_start_with_one_and_double_a_round_trip_up_to_the_limit() -> None:
    assert [grown(n).limit for n in (0, 1, 3, 7, 50)] == [1, 2, 4, 8, 8]


def test_trouble_halves_once_a_round_trip_and_growth_is_slow_afterwards() -> None:
    full = grown(50)
    hurt = full
    for _ in range(5):
        hurt = hurt.troubled(NOW, NOW + 1)
    assert hurt.limit == 4
    assert hurt.troubled(NOW + 1, NOW + 2).limit == 2
    assert 4.9 <= grown(4, hurt, now=NOW + 2).limit <= 5.0
    assert Concurrency().troubled(NOW, NOW + 1).limit == 1


def test_a_lower_limit_holds_with_the_next_answer() -> None:
    assert grown(1, grown(50), most=3).limit == 3


def test_answers_that_take_much_longer_than_usual_give_a_little_back() -> None:
    at = grown(50)
    for n in range(3):
        at = at.answered(1000, NOW + 10 * n, NOW + 10 * n + 9.0, 8)
    assert 5 < at.limit < 8


def test_a_larger_request_may_take_longer_and_noise_is_none() -> None:
    at = grown(50)
    for n in range(20):
        at = at.answered(100_000, NOW + 10 * n, NOW + 10 * n + 9.0, 8)
        at = at.answered(1000, NOW, NOW + 1.0 + 0.2 * (n % 2), 8)
    assert at.limit == 8


def test_the_usual_time_follows_slowly() -> None:
    latency = Latency(1.0, 1.0)
    for _ in range(1000):
        latency = latency.seen(3.0)
    assert not latency.is_slow
    assert latency.seen(0.5).seen(0.5).usual_s < 3.0


# --- how fast


def test_refusals_slow_the_pace_once_a_round_trip_and_it_comes_back() -> None:
    pace = Pace().refused(NOW, NOW + 1).refused(NOW, NOW + 1.5)
    assert pace.at(NOW + 1) == pytest.approx(0.9)
    assert pace.at(NOW + 51) == pytest.approx(0.95)
    assert pace.at(NOW + 600) == 1.0
    for n in range(100):
        pace = pace.refused(NOW + 2 + n, NOW + 2.5 + n)
    assert pace.at(NOW + 103) == pytest.approx(0.05, abs=0.01)


# --- whether at all


def test_waits_double_up_to_a_minute_and_are_jittered() -> None:
    breaker, waits = Breaker(), []
    for n in range(12):
        at = NOW + 1000 * n
        breaker = breaker.failed(at, at, 1.0)
        waits.append(breaker.held_until - at)
    assert waits == [pytest.approx(min(20.0, 0.2 * 2**n)) for n in range(12)]
    assert Breaker().failed(NOW, NOW, 0.0).held_until == NOW + 0.1


def test_the_breaker_opens_after_five_in_a_row_and_closes_with_an_answer() -> None:
    states = list(
        itertools.accumulate(range(6), lambda b, n: b.failed(NOW + 100 * n, NOW + 100 * n, 0.5), initial=Breaker())
    )
    assert [b.is_open for b in states] == [False] * 5 + [True] * 2
    assert not states[-1].answered().is_open


def test_a_named_time_is_kept_and_is_no_failure() -> None:
    told = Breaker().told(20.0, NOW, 0.0)
    assert (told.held_until, told.failures) == (NOW + 20, 0)
    assert told.told(5.0, NOW, 0.0).held_until == NOW + 20
    assert NOW + 20 < Breaker().told(20.0, NOW, 0.9).held_until < NOW + 21
    assert math.isinf(Breaker().held_until)


def test_the_margin_covers_a_request_and_the_burst() -> None:
    assert budget.REQUEST_S + BURST_S < (1 - PACE) * MINUTE_S
