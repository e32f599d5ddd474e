"""How many requests at once, how fast, and whether at all: what the provider's answers teach one process.

`Concurrency` finds the number by itself: it doubles a round trip until the first trouble, then adds one a round trip,
halves on trouble (once a round trip, or eight requests that fail together would count as eight), and gives a little
back when answers to requests of the same size take much longer than they did. `Pace` takes the known rates back when
the provider refuses although they are kept: others spend the same budget, or the numbers are wrong. `Breaker` holds
everything back after trouble, longer each time, and lets a single request probe after OPENS_AFTER failures in a row.

Pure: instants are seconds on the caller's clock, randomness is an argument. Values; each event gives another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

HALF = 0.5
GENTLE = 0.9
SLOW_TIMES, SLOW_BY_S = 2.0, 0.1  # an answer is slow at twice the usual time and this much more: not by noise alone
KNOWN_AFTER = 5  # answers of one size, before its usual time is believed

SLOWER = 0.9  # what a refusal leaves of the pace
FASTER_PER_S = 0.001  # what is given back where nobody told the rates: they may be wrong, and stay so
TOLD_FASTER_PER_S = 0.005  # and where the provider told them itself: a refusal more is an accident, or a peer's doing
SLOWEST_PACE = 0.05

OPENS_AFTER = 5
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 20.0  # one request at a time, three a minute: no burden for a provider in trouble


@dataclass(frozen=True, slots=True)
class Latency:
    """Of requests of one size: the usual time, and how long the last ones took. Both follow; the first one slowly."""

    usual_s: float
    recent_s: float
    answers: int = 1

    def seen(self, seconds: float) -> Latency:
        recent = self.recent_s + 0.3 * (seconds - self.recent_s)
        usual = recent if recent < self.usual_s else self.usual_s + 0.01 * (recent - self.usual_s)
        return Latency(usual, recent, self.answers + 1)

    @property
    def is_slow(self) -> bool:
        return self.answers > KNOWN_AFTER and self.recent_s > SLOW_TIMES * self.usual_s + SLOW_BY_S


@dataclass(frozen=True, slots=True)
class Concurrency:
    """limit: requests at once, at least 1. by_size: latencies by the binary order of a request's tokens."""

    limit: float = 1.0
    is_starting: bool = True
    shrunk_at: float = -math.inf
    by_size: Mapping[int, Latency] = field(default_factory=dict)

    def answered(self, tokens: int, sent_at: float, now: float, most: int) -> Concurrency:
        """A request came back well. most: the limit that is set; the own one does not grow beyond it."""
        size, seconds = tokens.bit_length(), now - sent_at
        before = self.by_size.get(size)
        latency = Latency(seconds, seconds) if before is None else before.seen(seconds)
        seen = replace(self, by_size={**self.by_size, size: latency})
        if latency.is_slow:
            return seen._shrunk(GENTLE, sent_at, now)
        step = 1.0 if self.is_starting else 1.0 / self.limit
        return replace(seen, limit=max(1.0, min(float(most), self.limit + step)))

    def troubled(self, sent_at: float, now: float) -> Concurrency:
        """A request failed: refused for its rate, timed out, or by an error of the server."""
        return self._shrunk(HALF, sent_at, now)

    def _shrunk(self, factor: float, sent_at: float, now: float) -> Concurrency:
        if sent_at < self.shrunk_at:  # sent before the last decrease could have an effect
            return self
        return replace(self, limit=max(1.0, self.limit * factor), is_starting=False, shrunk_at=now)


@dataclass(frozen=True, slots=True)
class Pace:
    """Part of the known rates that is used: 1 until the provider refuses, and again minutes after."""

    factor: float = 1.0
    slowed_at: float = -math.inf
    faster_per_s: float = FASTER_PER_S

    def at(self, now: float) -> float:
        return min(1.0, self.factor + self.faster_per_s * max(0.0, now - self.slowed_at))

    def refused(self, sent_at: float, now: float, *, is_told: bool = False) -> Pace:
        """is_told: the rates are those that the provider's answers name."""
        if sent_at < self.slowed_at:
            return self
        faster = TOLD_FASTER_PER_S if is_told else FASTER_PER_S
        return Pace(max(SLOWEST_PACE, SLOWER * self.at(now)), now, faster)


@dataclass(frozen=True, slots=True)
class Breaker:
    """failures: in a row, those that were under way together counted once. Nothing is sent before held_until."""

    failures: int = 0
    failed_at: float = -math.inf
    held_until: float = -math.inf

    @property
    def is_open(self) -> bool:
        """Whether one request at a time may probe, and no more."""
        return self.failures >= OPENS_AFTER

    def failed(self, sent_at: float, now: float, jitter: float) -> Breaker:
        """The provider is in trouble and named no time. jitter: in [0, 1)."""
        failures = self.failures if sent_at < self.failed_at else self.failures + 1
        backoff = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 20)) * (0.5 + jitter / 2)
        return Breaker(failures, now, max(self.held_until, now + backoff))

    def told(self, retry_after_s: float, now: float, jitter: float) -> Breaker:
        """The provider answered and named the time: no sign of an outage. A little later than that, each by its own."""
        until = now + retry_after_s + jitter * min(1.0, 0.1 * retry_after_s)
        return replace(self, held_until=max(self.held_until, until))

    def answered(self) -> Breaker:
        return replace(self, failures=0)
