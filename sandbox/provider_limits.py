"""What a provider permits in a minute, enforced as providers do: a token bucket, or a window that starts anew.

A request is admitted or refused as a whole, by both of its budgets at once; a refused one takes nothing unless
`counts_refused` says so. Headers and error texts follow OpenAI's: resets are written as Go writes durations (`12ms`,
`8.64s`, `6m0s`), `Retry-After` in whole seconds beside `retry-after-ms`. The clock comes in as an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sandbox.provider_script import Limits


class Bucket:
    """Holds `window_s` worth of a limit and refills all the time."""

    def __init__(self, per_minute: int, window_s: float, start: float, now: float) -> None:
        self.limit = per_minute
        self._rate = per_minute / 60
        self.capacity = max(self._rate * window_s, 1.0)
        self._level = self.capacity * start
        self._at = now

    def free(self, now: float) -> float:
        self._level = min(self.capacity, self._level + (now - self._at) * self._rate)
        self._at = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` is free; 0 when it is."""
        return max(0.0, (amount - self.free(now)) / self._rate)

    def reset_s(self, now: float) -> float:
        """Seconds until it is full."""
        return self.wait_s(self.capacity, now)

    def take(self, amount: float, now: float) -> None:
        self._level = max(0.0, self.free(now) - amount)


class Window:
    """Gives a fixed amount in each window, counted from when the limit was set."""

    def __init__(self, per_minute: int, window_s: float, start: float, now: float) -> None:
        self.limit = per_minute
        self.capacity = max(per_minute * window_s / 60, 1.0)
        self._length_s = window_s
        self._began = now
        self._number = 0
        self._used = self.capacity * (1 - start)

    def free(self, now: float) -> float:
        number = int((now - self._began) // self._length_s)
        if number != self._number:
            self._number, self._used = number, 0.0
        return self.capacity - self._used

    def wait_s(self, amount: float, now: float) -> float:
        return 0.0 if self.free(now) >= amount else self.reset_s(now)

    def reset_s(self, now: float) -> float:
        return self._length_s - (now - self._began) % self._length_s

    def take(self, amount: float, now: float) -> None:
        self._used += min(amount, self.free(now))


@dataclass(frozen=True)
class Refusal:
    """Why a request waits. wait_s None: it never fits."""

    what: str  # requests | tokens
    message: str
    wait_s: float | None


class Limiter:
    """Both budgets of a provider."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        make = Bucket if limits.kind == "bucket" else Window
        asked = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        self._budgets = {
            what: make(per_minute, limits.window_s, limits.start, now)
            for what, per_minute in asked.items()
            if per_minute is not None
        }

    def admit(self, tokens: int, now: float) -> Refusal | None:
        """Take one request and its tokens, or say why not; then nothing was taken."""
        amounts = {"requests": 1, "tokens": tokens}
        refusal = None
        for what, budget in self._budgets.items():
            wait_s = budget.wait_s(amounts[what], now)
            if amounts[what] > budget.capacity:
                said = f"Limit {budget.limit}, Requested {amounts[what]}. The input must be reduced"
                refusal = Refusal(what, f"Request too large on {what} per min: {said}", None)
                break
            if wait_s > 0 and (refusal is None or wait_s > (refusal.wait_s or 0)):
                used = budget.limit - int(budget.free(now))
                said = f"Limit {budget.limit}, Used {used}, Requested {amounts[what]}"
                message = f"Rate limit reached on {what} per min: {said}. Please try again in {duration(wait_s)}."
                refusal = Refusal(what, message, wait_s)
        if refusal is None:
            for what, budget in self._budgets.items():
                budget.take(amounts[what], now)
        elif self.limits.counts_refused and "requests" in self._budgets:
            self._budgets["requests"].take(1, now)
        return refusal

    def headers(self, now: float) -> dict[str, str]:
        """x-ratelimit-{limit,remaining,reset}-{requests,tokens}, for what is limited."""
        if not self.limits.headers:
            return {}
        found = {}
        for what, budget in self._budgets.items():
            found[f"x-ratelimit-limit-{what}"] = str(budget.limit)
            found[f"x-ratelimit-remaining-{what}"] = str(int(budget.free(now)))
            found[f"x-ratelimit-reset-{what}"] = duration(budget.reset_s(now))
        return found


def retry_after(wait_s: float) -> dict[str, str]:
    """How long to wait, in both headers that OpenAI's client knows."""
    return {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def duration(seconds: float) -> str:
    """As Go writes one, to the millisecond: `0s`, `12ms`, `8.64s`, `6m0s`, `1h0m2.5s`."""
    ms = math.ceil(seconds * 1000)
    if ms == 0:
        return "0s"
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail
