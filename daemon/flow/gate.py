"""Whether the next request may go to the provider: order, breaker, concurrency, budget. One per process and generation.

    in line (live work first) -> not paused -> not held back -> a free slot -> a place in the budget's schedule -> send

One waiter at a time holds a place in the schedule, so live work that arrives overtakes backfill work. The schedule is
one row of the target (`Ledger.reserve`): any number of processes share one budget exactly. It is used only where a
rate is known, by order, by config or from the provider's own answers, and never faster than any of them; where none
is known each process adapts by itself (`core.concurrency`), and the target is not touched.

What a request did not cost goes back with the next reservation, in its transaction. Cancelling a waiter gives back its
place; cancelling what was sent frees its slot only: the provider may have counted it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from daemon.core.budget import charge, in_force, is_limited, raised, request_tokens, slowed
from daemon.core.concurrency import Breaker, Concurrency, Pace
from daemon.core.model import Generation, Rates
from daemon.errors import ItemRefused, RevectorError, TransientError
from daemon.flow.orders import BACKFILL_TURN, Orders
from daemon.ports import Embedded, Target, Throttled
from daemon.settings_generation import GenerationLimits

ORDERS_S = 0.5  # between two looks at the orders while they forbid to send
RECONSIDER_S = 5.0  # between two looks at the limits while a place is waited for
REMEMBERED = 0.9  # of what was counted and billed before, at each answer
RATIO_LEAST, RATIO_MOST = 0.25, 4.0


@dataclass(slots=True)
class Admission:
    """One admitted request. The block that holds it says what came of it by `answered`, or by the error it raises.
    reserved: tokens charged to the budget, 0 where it is not limited."""

    reserved: int = 0
    answer: Embedded | None = None

    def answered(self, answer: Embedded) -> None:
        self.answer = answer


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    live: bool
    number: int


class Gate:
    """Admits requests. target: a connection of its own; the caller closes it."""

    def __init__(
        self,
        target: Target,
        generation: Generation,
        limits: GenerationLimits,
        orders: Orders,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._target, self._generation, self._limits, self._orders = target, generation, limits, orders
        self._clock, self._pause = clock, pause
        self._learnt = Rates()
        self._counted, self._billed = 0.0, 0.0  # tokens of late
        self._spare = 0  # tokens that were reserved and not spent; negative: spent and not reserved
        self._concurrency, self._pace, self._breaker = Concurrency(), Pace(), Breaker()
        self._in_flight = 0
        self._admitted = 0
        self._line: list[Waiter] = []
        self._numbers = itertools.count()
        self._reserving: Waiter | None = None
        self._moved = asyncio.Event()
        self._ledger = asyncio.Lock()

    @property
    def rates(self) -> Rates:
        """What is permitted: the least of what is ordered, configured and learnt."""
        configured = Rates(self._limits.requests_per_minute, self._limits.tokens_per_minute)
        return in_force([self._orders.limits(self._generation.name).rates, configured, self._learnt])

    @property
    def in_flight(self) -> int:
        """Requests that were sent and not answered."""
        return self._in_flight

    @property
    def most_in_flight(self) -> int:
        """Requests at once, as ordered or configured."""
        ordered = self._orders.limits(self._generation.name).in_flight
        return self._limits.in_flight if ordered is None else min(ordered, self._limits.in_flight)

    @property
    def request_tokens(self) -> int:
        """Most tokens that a request should hold under the budget in force, as they are counted here."""
        return max(1, int(request_tokens(self._limits.request_tokens, self.rates) / max(1.0, self._ratio)))

    @property
    def _ratio(self) -> float:
        """Tokens that the provider bills for each one that is counted here."""
        return min(RATIO_MOST, max(RATIO_LEAST, self._billed / self._counted)) if self._counted else 1.0

    @asynccontextmanager
    async def request(self, tokens: int, *, live: bool) -> AsyncIterator[Admission]:
        """Wait until a request of `tokens` may be sent; the block sends it. A TransientError of the block counts as
        throttling or outage and holds the next ones back; an ItemRefused gives the budget back; both are raised on.

        Raises TransientError of its own where the target, which holds the budget, is away."""
        admission = Admission(await self._admit(tokens, live))
        sent_at = self._clock()
        try:
            yield admission
        except TransientError as error:
            await self._troubled(error, admission, sent_at)
            raise
        except ItemRefused:
            self._spare += admission.reserved
            raise
        else:
            if admission.answer is not None:
                self._answered(admission.answer, admission, tokens, sent_at)
        finally:
            self._in_flight -= 1
            self._notify()

    # --- before

    async def _admit(self, tokens: int, live: bool) -> int:
        """Wait in line, then for a place in the schedule. The tokens that were reserved; a slot is taken."""
        waiter = Waiter(live, next(self._numbers))
        self._line.append(waiter)
        try:
            while True:
                await self._be_next(waiter)
                try:
                    reserved = await self._reserve(tokens)
                    if not self._closed_for_s():
                        self._in_flight += 1
                        self._admitted += 1
                        return reserved
                    self._spare += reserved  # paused or told to wait, while waiting
                finally:
                    self._reserving = None
                    self._notify()  # live work that came meanwhile goes first now
        finally:
            self._line.remove(waiter)
            self._notify()

    async def _be_next(self, waiter: Waiter) -> None:
        """Wait until this waiter may reserve: it is first, nothing holds it back, a slot is free."""
        while True:
            if self._reserving is None and self._first() is waiter:
                if closed_s := self._closed_for_s():
                    await self._pause(closed_s)
                    continue
                if self._in_flight < self._slots():
                    self._reserving = waiter
                    return
            await self._moved.wait()

    def _slots(self) -> int:
        return 1 if self._breaker.is_open else min(int(self._concurrency.limit), self.most_in_flight)

    def _first(self) -> Waiter:
        """Live before backfill, then in order; now and then the other way round."""
        prefers_live = self._admitted % BACKFILL_TURN != BACKFILL_TURN - 1
        return min(self._line, key=lambda waiter: (waiter.live != prefers_live, waiter.number))

    def _closed_for_s(self) -> float:
        """Seconds after which it is worth to look again; 0 where nothing holds a request back."""
        return max(0.0 if self._orders.may_send else ORDERS_S, self._breaker.held_until - self._clock(), 0.0)

    async def _reserve(self, tokens: int) -> int:
        """Take a place in the schedule and wait for it; the tokens that were taken."""
        permitted = self.rates
        if not is_limited(permitted):
            return 0
        rates = slowed(permitted, self._pace.at(self._clock()))
        taken, spare = charge(math.ceil(tokens * self._ratio), rates), self._spare
        async with self._ledger, self._target.begin() as tx:
            if spare:
                await tx.ledger.refund(self._generation, spare, rates)
            wait_s = await tx.ledger.reserve(self._generation, taken, rates)
        self._spare -= spare
        is_raised = False
        try:
            while wait_s > 0 and not is_raised:
                await self._pause(min(wait_s, RECONSIDER_S))
                wait_s -= RECONSIDER_S
                is_raised = raised(permitted, self.rates)
        except BaseException:  # cancelled, or the pause says that nobody waits any more
            self._spare += taken
            raise
        if wait_s > 0:  # the place was far off for a limit that holds no more
            self._spare += taken
            return await self._reserve(tokens)
        return taken

    def _notify(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    # --- after

    def _answered(self, answer: Embedded, admission: Admission, tokens: int, sent_at: float) -> None:
        now = self._clock()
        self._breaker = self._breaker.answered()
        self._concurrency = self._concurrency.answered(tokens, sent_at, now, self.most_in_flight)
        self._learn(answer.rates)
        if answer.tokens > 0 and tokens > 0:
            if admission.reserved:
                self._spare += admission.reserved - charge(answer.tokens, self.rates)
            self._counted = REMEMBERED * self._counted + tokens
            self._billed = REMEMBERED * self._billed + answer.tokens

    def _learn(self, said: Rates) -> None:
        """The provider's last word on each rate holds: it may raise one too."""
        known = self._learnt
        self._learnt = Rates(
            said.requests_per_minute or known.requests_per_minute, said.tokens_per_minute or known.tokens_per_minute
        )

    async def _troubled(self, error: TransientError, admission: Admission, sent_at: float) -> None:
        now, jitter = self._clock(), random.random()  # noqa: S311
        self._concurrency = self._concurrency.troubled(sent_at, now)
        if isinstance(error, Throttled):
            self._spare += admission.reserved
            self._pace = self._pace.refused(sent_at, now, is_told=self._learnt != Rates())
            self._learn(error.rates)
        if error.retry_after_s is None:
            self._breaker = self._breaker.failed(sent_at, now, jitter)
            return
        self._breaker = self._breaker.told(error.retry_after_s, now, jitter)
        if is_limited(self.rates):
            with suppress(RevectorError):  # the target is away: the others find out by themselves
                async with self._ledger, self._target.begin() as tx:
                    await tx.ledger.hold_off(self._generation, error.retry_after_s)
