"""The schedule of a budget in memory: what the statements of `connectors.postgres_budget` do, as functions.

Instants are seconds on the caller's clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from daemon.core.budget import BURST_S, Cost
from daemon.core.model import Rates

NEVER = -math.inf


@dataclass(frozen=True, slots=True)
class Schedule:
    """Instants from which the next request and the next token may be sent, and until when nothing may be."""

    requests_at: float = NEVER
    tokens_at: float = NEVER
    held_until: float = NEVER


def rescaled(schedule: Schedule, before: Rates, after: Rates, now: float) -> Schedule:
    """The schedule when the rates change: what was reserved is worth as many requests and tokens as it was, whatever
    time they take now."""
    return replace(
        schedule,
        requests_at=_rescaled(schedule.requests_at, before.requests_per_minute, after.requests_per_minute, now),
        tokens_at=_rescaled(schedule.tokens_at, before.tokens_per_minute, after.tokens_per_minute, now),
    )


def _rescaled(at: float, before: int | None, after: int | None, now: float) -> float:
    return at if at <= now or before is None or after is None else now + (at - now) * before / after


def reserved(schedule: Schedule, asked: Cost, now: float) -> tuple[Schedule, float]:
    """The schedule after a reservation, and the seconds to wait before what it is for may be sent."""
    places = [schedule.held_until, now - BURST_S]
    places += [schedule.requests_at] if asked.requests_s is not None else []
    places += [schedule.tokens_at] if asked.tokens_s is not None else []
    start = max(places)
    after = replace(
        schedule,
        requests_at=schedule.requests_at if asked.requests_s is None else start + asked.requests_s,
        tokens_at=schedule.tokens_at if asked.tokens_s is None else start + asked.tokens_s,
    )
    return after, max(0.0, start - now)


def refunded(schedule: Schedule, seconds: float, now: float) -> Schedule:
    """The schedule with tokens given back, or (negative) taken. What lies behind the burst is not given back twice."""
    floor = now - BURST_S
    return replace(schedule, tokens_at=max(floor, max(floor, schedule.tokens_at) - seconds))


def held(schedule: Schedule, seconds: float, now: float) -> Schedule:
    """The schedule in which nothing starts within `seconds`."""
    return replace(schedule, held_until=max(schedule.held_until, now + seconds))
