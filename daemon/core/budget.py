"""The budget of a provider as a schedule: when the next request, and the next token, may be sent.

A reservation takes its place in the schedule and moves it on by its own cost, so that reservations follow one another
at the permitted rate whoever makes them; where that rate changes, so does the time that earlier ones are worth. Nothing
is counted in windows, and a provider that does, however it does it, finds the same number in each. The schedule is one
row of the target (`connectors.postgres_budget`), from which all processes of a generation take; here is what a request
costs, and at which rates.

The margin: a window of a minute that starts just before a request holds PACE of a minute's budget, one request more
than its rate, and the burst. REQUEST_S + BURST_S + what the network jitters stay below what PACE leaves free (1.2 s),
so a provider that counts a sliding window does not refuse. Requests that are larger than that are charged for it.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from daemon.core.model import Rates

MINUTE_S = 60.0
PACE = 0.98  # of the permitted rate
BURST_S = 0.25  # of budget that was not used may be caught up: what a sender wakes up late
REQUEST_S = 0.7  # worth of budget in one request: larger ones would fill a window unevenly
SLOWEST = 0.5  # of PACE, for texts that are a large part of a minute's budget


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds by which a request moves the schedule. None: that rate is not known."""

    requests_s: float | None
    tokens_s: float | None


def in_force(known: Iterable[Rates]) -> Rates:
    """Never faster than any of those that are known."""
    rates = list(known)
    requests = [r.requests_per_minute for r in rates if r.requests_per_minute is not None]
    tokens = [r.tokens_per_minute for r in rates if r.tokens_per_minute is not None]
    return Rates(min(requests, default=None), min(tokens, default=None))


def is_limited(rates: Rates) -> bool:
    return rates.requests_per_minute is not None or rates.tokens_per_minute is not None


def raised(before: Rates, after: Rates) -> bool:
    """Whether so much more is permitted that a place taken before is not worth waiting for."""
    pairs = (
        (before.requests_per_minute, after.requests_per_minute),
        (before.tokens_per_minute, after.tokens_per_minute),
    )
    return any(old is not None and (new is None or new >= 2 * old) for old, new in pairs)


def slowed(rates: Rates, factor: float) -> Rates:
    """Rates times a factor, at least one of each a minute."""
    requests, tokens = rates.requests_per_minute, rates.tokens_per_minute
    return Rates(
        None if requests is None else max(1, int(requests * factor)),
        None if tokens is None else max(1, int(tokens * factor)),
    )


def charge(tokens: int, rates: Rates) -> int:
    """The tokens to take for a request. A large one is charged more than it holds: so many must fit a minute, not so
    many and a part."""
    if rates.tokens_per_minute is None:
        return tokens
    worth_s = tokens * MINUTE_S / rates.tokens_per_minute
    if worth_s <= REQUEST_S + BURST_S:
        return tokens
    return math.ceil(tokens * PACE / min(PACE, max(SLOWEST, 1 - worth_s / MINUTE_S)))


def cost(tokens: int, rates: Rates) -> Cost:
    """What one request of `tokens` costs."""
    requests = None if rates.requests_per_minute is None else MINUTE_S / PACE / rates.requests_per_minute
    return Cost(requests, tokens_s(tokens, rates))


def tokens_s(tokens: int, rates: Rates) -> float | None:
    """Seconds of the schedule that tokens are worth. None: the rate is not known."""
    return None if rates.tokens_per_minute is None else tokens * MINUTE_S / PACE / rates.tokens_per_minute


def request_tokens(most: int, rates: Rates) -> int:
    """Most tokens that one request should hold: few enough to use the budget evenly, enough that the budget of tokens
    can be used within that of requests."""
    if rates.tokens_per_minute is None:
        return most
    wanted = REQUEST_S * rates.tokens_per_minute / MINUTE_S
    if rates.requests_per_minute is not None:
        wanted = max(wanted, 1.1 * rates.tokens_per_minute / rates.requests_per_minute)
    return max(1, min(most, int(wanted)))
