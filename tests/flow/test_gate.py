"""The gate on a virtual clock: how much of a provider's budget is used, what is refused, and who goes first."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pytest

from daemon.core.model import Generation, Rates
from daemon.core.orders import BACKFILL, EMBEDDING, Limits, Standing
from daemon.errors import ItemRefused, TransientError
from daemon.flow.gate import Gate
from daemon.ports import Embedded, Throttled
from daemon.settings_generation import GenerationLimits
from tests import builders
from tests.fakes import MemoryDatabase, MemoryTarget, VirtualClock
from tests.fakes.budget import free_orders, open_gate
from tests.flow.timeline import timeline

RPM, TPM = 300, 600_000
MINUTE_S = 60.0
WARM_UP_S, STEADY_S = 150.0, 240.0


# --- a provider that limits, in three ways


class Meter(Protocol):
    def admit(self, tokens: int, now: float) -> float | None:
        """None where it is admitted and counted; else the seconds after which it may be tried again."""
        ...


class SlidingWindow:
    """What came within the last minute."""

    def __init__(self, rpm: int, tpm: int) -> None:
        self.rpm, self.tpm = rpm, tpm
        self.seen: deque[tuple[float, int]] = deque()
        self.tokens = 0

    def admit(self, tokens: int, now: float) -> float | None:
        while self.seen and self.seen[0][0] <= now - MINUTE_S:
            self.tokens -= self.seen.popleft()[1]
        if len(self.seen) >= self.rpm or self.tokens + tokens > self.tpm:
            return self.seen[0][0] + MINUTE_S - now
        self.seen.append((now, tokens))
        self.tokens += tokens
        return None


class FixedWindow:
    """What came since the minute began."""

    def __init__(self, rpm: int, tpm: int) -> None:
        self.rpm, self.tpm = rpm, tpm
        self.minute, self.requests, self.tokens = -1, 0, 0

    def admit(self, tokens: int, now: float) -> float | None:
        if int(now // MINUTE_S) != self.minute:
            self.minute, self.requests, self.tokens = int(now // MINUTE_S), 0, 0
        if self.requests >= self.rpm or self.tokens + tokens > self.tpm:
            return (self.minute + 1) * MINUTE_S - now
        self.requests += 1
        self.tokens += tokens
        return None


class Bucket:
    """Two buckets that fill evenly and hold two seconds' worth: nothing may be saved up."""

    def __init__(self, rpm: int, tpm: int) -> None:
        self.rates = (rpm / MINUTE_S, tpm / MINUTE_S)
        self.level, self.at = [2 * r for r in self.rates], 0.0

    def admit(self, tokens: int, now: float) -> float | None:
        self.level = [min(2 * r, n + r * (now - self.at)) for n, r in zip(self.level, self.rates, strict=True)]
        self.at = now
        costs = (1.0, float(tokens))
        lacking = [(c - n) / r for c, n, r in zip(costs, self.level, self.rates, strict=True)]
        if max(lacking) > 0:
            return max(lacking)
        self.level = [n - c for n, c in zip(self.level, costs, strict=True)]
        return None


METERS: list[Callable[[int, int], Meter]] = [SlidingWindow, FixedWindow, Bucket]


@dataclass
class Provider:
    """Bills more or less than was counted, answers after a while, refuses by its meter."""

    clock: VirtualClock
    meter: Meter
    chance: random.Random
    latency_s: float = 1.5
    headers: Rates = field(default_factory=Rates)
    bias: float = 1.0
    admitted: list[tuple[float, int]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def send(self, tokens: int) -> Embedded:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.chance.uniform(0.005, 0.08))  # the way there
            billed = max(1, int(tokens * self.bias * self.chance.uniform(0.97, 1.03)))
            again = self.meter.admit(billed, self.clock())
            if again is not None:
                self.refused.append(self.clock())
                error = Throttled("provider-throttled", "429", retry_after_s=again)
                error.rates = self.headers
                raise error
            self.admitted.append((self.clock(), billed))
            await asyncio.sleep(self.latency_s * self.chance.uniform(0.6, 1.6))
            return answer(billed, self.headers)
        finally:
            self.at_once -= 1

    def used(self, begin: float, end: float) -> float:
        """Part of the permitted tokens, between two instants."""
        return sum(n for at, n in self.admitted if begin <= at < end) / (TPM * (end - begin) / MINUTE_S)

    def refusals(self, begin: float, end: float) -> float:
        """Part of the requests."""
        refused = sum(begin <= at < end for at in self.refused)
        return refused / max(1, refused + sum(begin <= at < end for at, _ in self.admitted))


def answer(tokens: int, rates: Rates | None = None) -> Embedded:
    return Embedded(np.ones((1, 1), dtype=np.float32), tokens, rates=rates or Rates())


# --- processes that embed


async def generation_of(database: MemoryDatabase) -> Generation:
    target = MemoryTarget(database)
    await target.prepare()
    contract = builders.contract([builders.articles()])
    async with target.begin() as tx:
        return await tx.ledger.add_generation("v1", contract.as_json(), contract.id)


def gate_of(database: MemoryDatabase, generation: Generation, limits: GenerationLimits) -> Gate:
    orders = free_orders(MemoryTarget(database))
    return Gate(MemoryTarget(database), generation, limits, orders, database.clock, asyncio.sleep)


async def worker(gate: Gate, provider: Provider, live: bool, end: float) -> None:
    """Sends full requests as long as there is time."""
    while provider.clock() < end:
        tokens = max(1, int(gate.request_tokens * provider.chance.uniform(0.6, 1.0)))
        try:
            async with gate.request(tokens, live=live) as admission:
                admission.answered(await provider.send(tokens))
        except TransientError:
            await asyncio.sleep(0.2)


@dataclass(frozen=True)
class Run:
    used: float
    refused: float
    provider: Provider


def run(
    meter: Callable[[int, int], Meter],
    gates: int = 1,
    limits: GenerationLimits | None = None,
    headers: Rates | None = None,
    seed: int = 7,
    bias: float = 1.0,
    latency_s: float = 1.5,
) -> Run:
    """Some minutes of full load; the shares of the steady part."""
    random.seed(seed)  # of the gate's jitter
    given = limits or GenerationLimits(requests_per_minute=RPM, tokens_per_minute=TPM)

    async def scene(clock: VirtualClock) -> Run:
        database = MemoryDatabase("shop", clock)
        generation = await generation_of(database)
        provider = Provider(clock, meter(RPM, TPM), random.Random(seed), latency_s, headers or Rates(), bias)
        begin = clock() + WARM_UP_S
        end = begin + STEADY_S
        async with asyncio.TaskGroup() as group:
            for _ in range(gates):
                gate = gate_of(database, generation, given)
                for n in range(given.in_flight):
                    group.create_task(worker(gate, provider, n % 3 == 0, end + 5))
        return Run(provider.used(begin, end), provider.refusals(begin, end), provider)

    return timeline(scene)


@pytest.mark.parametrize("gates", [1, 3])
@pytest.mark.parametrize("meter", METERS, ids=lambda meter: str(meter.__name__))
def test_a_known_budget_is_used_to_95_percent_and_no_more(meter: Callable[[int, int], Meter], gates: int) -> None:
    found = run(meter, gates)
    assert (found.used >= 0.95, found.refused <= 0.01) == (True, True), found


def test_rates_of_the_answers_are_kept_without_any_in_the_config() -> None:
    found = run(SlidingWindow, 3, GenerationLimits(), Rates(RPM, TPM))
    assert (found.used >= 0.95, found.refused <= 0.01) == (True, True), found


@pytest.mark.parametrize("bias", [0.75, 1.3])
def test_a_provider_that_counts_otherwise_is_learnt(bias: float) -> None:
    found = run(SlidingWindow, 3, bias=bias)
    assert (found.used >= 0.95, found.refused <= 0.01) == (True, True), found


def test_limits_that_are_too_high_are_taken_back_until_few_requests_are_refused() -> None:
    found = run(SlidingWindow, 3, GenerationLimits(requests_per_minute=RPM, tokens_per_minute=2 * TPM))
    assert (found.used >= 0.9, found.refused <= 0.1) == (True, True), found


def test_requests_at_once_grow_to_what_a_slow_provider_needs_and_not_beyond_the_limit() -> None:
    slow = run(SlidingWindow, latency_s=3.0)
    assert slow.used >= 0.95
    assert 5 < slow.provider.most_at_once <= 8


# --- one gate, step by step


@dataclass
class Scene:
    clock: VirtualClock
    database: MemoryDatabase
    generation: Generation
    gate: Gate
    sent: list[tuple[str, float]] = field(default_factory=list)

    @classmethod
    async def open(cls, clock: VirtualClock, **limits: int) -> Scene:
        database = MemoryDatabase("shop", clock)
        generation = await generation_of(database)
        return cls(clock, database, generation, gate_of(database, generation, GenerationLimits(**limits)))

    async def send(
        self, name: str, tokens: int = 1000, live: bool = True, takes_s: float = 0.0, fails: Exception | None = None
    ) -> None:
        async with self.gate.request(tokens, live=live) as admission:
            self.sent.append((name, self.clock()))
            await asyncio.sleep(takes_s)
            if fails is not None:
                raise fails
            admission.answered(answer(tokens))

    async def fail(self, name: str, error: Exception, takes_s: float = 0.0) -> None:
        with pytest.raises(type(error)):
            await self.send(name, fails=error, takes_s=takes_s)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.sent]

    @property
    def gaps(self) -> list[float]:
        return [round(b - a, 2) for (_, a), (_, b) in zip(self.sent, self.sent[1:], strict=False)]

    @property
    def commits(self) -> int:
        return self.database.commits


def play(scene: Callable[[Scene], object], **limits: int) -> None:
    async def played(clock: VirtualClock) -> None:
        opened = await Scene.open(clock, **limits)
        found = scene(opened)
        assert asyncio.iscoroutine(found)
        await found

    timeline(played)


async def started(*scenes: object) -> list[asyncio.Task[None]]:
    """Tasks that have got as far as they can without time."""
    tasks = []
    for scene in scenes:
        assert asyncio.iscoroutine(scene)
        tasks.append(asyncio.create_task(scene))
        for _ in range(30):
            await asyncio.sleep(0)
    return tasks


def test_without_a_known_rate_the_target_is_not_touched() -> None:
    async def scene(s: Scene) -> None:
        before = s.commits
        for n in range(5):
            await s.send(str(n))
        await s.fail("refused", Throttled("provider-throttled", "429", retry_after_s=2.0))
        assert s.commits == before
        assert sum(s.gaps) == 0.0

    play(scene)


def test_the_gate_for_tests_admits_everything() -> None:
    async def scene(s: Scene) -> None:
        before = s.commits
        gate = open_gate(MemoryTarget(s.database), s.generation, s.clock)
        for _ in range(3):
            async with gate.request(10**6, live=False) as admission:
                admission.answered(answer(1))
        assert (s.commits, gate.request_tokens) == (before, 50_000)

    play(scene)


def test_live_work_goes_first_and_backfill_work_in_its_turn() -> None:
    async def scene(s: Scene) -> None:
        names = [*(f"b{n}" for n in range(5)), *(f"l{n}" for n in range(9))]
        tasks = await started(*(s.send(name, live=name[0] == "l") for name in names))
        await asyncio.gather(*tasks)
        # The second one waited for its place already when live work came; from then on one of five is backfill work.
        assert "".join(name[0] for name in s.names) == "bbllbllllblllb"
        assert [n for n in s.names if n[0] == "l"] == [f"l{n}" for n in range(9)]

    play(scene, tokens_per_minute=60_000)


def test_live_work_overtakes_backfill_work_that_waits_for_its_place() -> None:
    async def scene(s: Scene) -> None:
        await s.send("first")
        tasks = await started(s.send("b0", live=False), s.send("b1", live=False), s.send("live"))
        await asyncio.gather(*tasks)
        assert s.names == ["first", "b0", "live", "b1"]

    play(scene, tokens_per_minute=60_000)


def test_requests_follow_one_another_at_the_rate() -> None:
    async def scene(s: Scene) -> None:
        for n in range(4):
            await s.send(str(n), tokens=1000)
        assert s.gaps[1:] == [pytest.approx(1 / 0.98, abs=0.2)] * 2  # 1 s of budget each

    play(scene, tokens_per_minute=60_000)


def test_the_lower_of_order_config_and_answers_holds() -> None:
    async def scene(s: Scene) -> None:
        orders = s.gate._orders
        assert s.gate.rates == Rates(500, 60_000)
        orders.standing = Standing(
            limits={"v1": Limits(tokens_per_minute=30_000, requests_per_minute=900, in_flight=2)}
        )
        assert (s.gate.rates, s.gate.most_in_flight) == (Rates(500, 30_000), 2)
        async with s.gate.request(10, live=True) as admission:
            admission.answered(answer(10, Rates(100, 90_000)))
        assert s.gate.rates == Rates(100, 30_000)
        async with s.gate.request(10, live=True) as admission:
            admission.answered(answer(10, Rates(None, 20_000)))
        assert s.gate.rates == Rates(100, 20_000)

    play(scene, requests_per_minute=500, tokens_per_minute=60_000)


def test_a_lower_order_of_requests_at_once_holds_at_once() -> None:
    async def scene(s: Scene) -> None:
        for n in range(20):
            await s.send(f"ok {n}")
        s.gate._orders.standing = Standing(limits={"v1": Limits(in_flight=2)})
        tasks = await started(*(s.send(str(n), takes_s=1.0) for n in range(5)))
        assert s.gate.in_flight == 2
        await asyncio.gather(*tasks)

    play(scene)


def test_one_request_at_a_time_holds_a_place_in_the_schedule() -> None:
    async def scene(s: Scene) -> None:
        await s.send("first", tokens=5000)
        waiter = await started(s.send("backfill", live=False))
        before = s.database.state.budgets
        tasks = [*waiter, *await started(s.send("live"))]
        assert s.database.state.budgets == before
        await asyncio.gather(*tasks)

    play(scene, tokens_per_minute=60_000)


def test_a_refusal_slows_the_pace_and_teaches_the_rates_that_it_names() -> None:
    async def scene(s: Scene) -> None:
        await s.fail("refused", Throttled("provider-throttled", "429", retry_after_s=0.0))
        await s.send("slower")
        paced_by = s.database.state.budgets[s.generation.id][1]
        assert paced_by is not None
        assert paced_by.tokens_per_minute == pytest.approx(54_000, abs=100)
        error = Throttled("provider-throttled", "429", retry_after_s=0.0)
        error.rates = Rates(20, 30_000)
        await s.fail("told", error)
        assert s.gate.rates == Rates(20, 30_000)

    play(scene, tokens_per_minute=60_000)


def test_a_request_holds_so_much_that_the_budget_is_used_evenly() -> None:
    async def scene(s: Scene) -> None:
        assert s.gate.request_tokens == 7_000
        async with s.gate.request(1000, live=True) as admission:
            admission.answered(answer(2000))
        assert s.gate.request_tokens == 3_500  # the provider counts twice as many

    play(scene, tokens_per_minute=600_000)


def test_few_requests_a_minute_hold_more() -> None:
    async def scene(s: Scene) -> None:
        assert s.gate.request_tokens == 11_000

    play(scene, tokens_per_minute=600_000, requests_per_minute=60)


def test_what_was_not_billed_goes_back_with_the_next_request() -> None:
    async def scene(s: Scene) -> None:
        for billed in (600, 6000):
            async with s.gate.request(6000, live=True) as admission:
                s.sent.append((str(billed), s.clock()))
                admission.answered(answer(billed))
        await s.send("next")
        assert s.gaps[0] < 1.0
        assert s.gaps[1] > 5.0, "and what was billed beyond the estimate is taken"

    play(scene, tokens_per_minute=60_000)


@pytest.mark.parametrize(
    "error", [ItemRefused(400, "bad", None), Throttled("provider-throttled", "429", retry_after_s=0.0)]
)
def test_the_budget_of_a_refused_request_goes_back(error: Exception) -> None:
    async def scene(s: Scene) -> None:
        await s.send("first", tokens=6000)
        with pytest.raises(type(error)):
            await s.send("refused", tokens=6000, fails=error)
        await s.send("next", tokens=100)
        assert s.gaps[1] == pytest.approx(0.0, abs=0.1)

    play(scene, tokens_per_minute=60_000)


def test_a_failure_of_the_server_may_have_cost_its_tokens() -> None:
    async def scene(s: Scene) -> None:
        with pytest.raises(TransientError):
            await s.send("failed", tokens=6000, fails=TransientError("provider-unavailable", "500"))
        await s.send("next", tokens=100)
        assert s.gaps[0] >= 5.5

    play(scene, tokens_per_minute=60_000)


def test_cancelling_a_waiter_leaks_neither_slot_nor_place() -> None:
    async def scene(s: Scene) -> None:
        await s.send("first", tokens=1000)
        (waiter,) = await started(s.send("cancelled", tokens=30_000))
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        (behind, cancelled) = await started(s.send("held", tokens=500), s.send("in line"))
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await behind
        await s.send("next", tokens=500)
        assert s.names == ["first", "held", "next"]
        assert s.sent[-1][1] - s.sent[0][1] < 2.0
        assert (s.gate._in_flight, s.gate._line) == (0, [])

    play(scene, tokens_per_minute=60_000)


def test_a_pause_that_is_broken_off_gives_the_place_back() -> None:
    async def scene(s: Scene) -> None:
        await s.send("first", tokens=900)
        whole = s.gate._pause

        async def ended(_: float) -> None:
            raise TransientError("stopping", "no request is sent any more")

        s.gate._pause = ended
        for n in range(8):
            with pytest.raises(TransientError, match="no request"):
                await s.send(str(n), tokens=900)
        s.gate._pause = whole
        await s.send("next", tokens=900)
        assert s.names == ["first", "next"]
        assert s.gaps == [pytest.approx(0.67, abs=0.1)]

    play(scene, tokens_per_minute=60_000)


def test_cancelling_what_was_sent_frees_its_slot() -> None:
    async def scene(s: Scene) -> None:
        (sent,) = await started(s.send("sent", takes_s=50.0))
        sent.cancel()
        await asyncio.gather(sent, return_exceptions=True)
        await s.send("next")
        assert s.names == ["sent", "next"]
        assert s.gaps == [0.0]

    play(scene, in_flight=1)


def test_retry_after_holds_back_this_process_and_the_others() -> None:
    async def scene(s: Scene) -> None:
        other = gate_of(s.database, s.generation, GenerationLimits(tokens_per_minute=600_000))
        await s.fail("refused", Throttled("provider-throttled", "429", retry_after_s=20.0))
        begin = s.clock()
        async with other.request(100, live=True):
            assert s.clock() - begin == pytest.approx(20.0, abs=0.1)
        await s.send("next")
        assert s.clock() - begin >= 20.0

    play(scene, tokens_per_minute=600_000)


def test_failures_in_a_row_wait_longer_each_time_and_then_one_probes_alone() -> None:
    async def scene(s: Scene) -> None:
        down = TransientError("provider-unavailable", "503")
        for n in range(70):
            await s.send(f"ok {n}", takes_s=1.0)
        s.sent.clear()
        for n in range(5):
            await s.fail(str(n), down)
        assert all(b > 1.2 * a for a, b in zip(s.gaps[::2], s.gaps[2::2], strict=False)), s.gaps
        assert int(s.gate._concurrency.limit) == 2
        tasks = await started(*(s.send(f"p{n}", takes_s=1.0) for n in range(3)))
        await asyncio.gather(*tasks)
        at = dict(s.sent)
        assert at["p1"] >= at["p0"] + 1.0
        assert at["p2"] == at["p1"], "its answer closed the breaker"

    play(scene, in_flight=64)


def test_failures_count_in_a_row_only() -> None:
    async def scene(s: Scene) -> None:
        down = TransientError("provider-unavailable", "503")
        for n in range(8):
            await s.fail(f"failed {n}", down)
            await s.send(f"ok {n}")
        assert max(s.gaps) <= 0.2

    play(scene)


def test_failures_that_were_under_way_together_count_once() -> None:
    async def scene(s: Scene) -> None:
        for n in range(20):
            await s.send(f"ok {n}")
        s.sent.clear()
        down = TransientError("provider-unavailable", "503")
        await asyncio.gather(*await started(*(s.fail(str(n), down, takes_s=1.0) for n in range(8))))
        await s.send("next")
        assert s.sent[-1][1] - s.sent[0][1] < 1.5

    play(scene)


def test_an_outage_is_waited_out_at_most_twenty_seconds_at_a_time() -> None:
    async def scene(s: Scene) -> None:
        for n in range(15):
            await s.fail(str(n), TransientError("provider-unreachable", "no connection"))
        assert 5.0 < max(s.gaps) <= 20.5

    play(scene)


def test_a_refused_text_says_nothing_about_the_provider() -> None:
    async def scene(s: Scene) -> None:
        for n in range(20):
            await s.send(f"ok {n}")
        slots = s.gate._slots()
        for n in range(12):
            await s.fail(str(n), ItemRefused(400, "bad", None))
        assert s.gate._slots() == slots == 8
        assert sum(s.gaps) == 0.0

    play(scene)


def test_nothing_is_sent_while_embedding_is_paused() -> None:
    async def scene(s: Scene) -> None:
        orders = s.gate._orders
        orders.standing = Standing(frozenset([EMBEDDING]))
        (waiter,) = await started(s.send("waits"))
        await asyncio.sleep(30)
        assert s.names == []
        orders.standing = Standing(frozenset([BACKFILL]))
        await waiter
        assert s.names == ["waits"]

    play(scene)


def test_a_pause_reaches_a_request_that_waits_for_its_place_and_its_place_goes_back() -> None:
    async def scene(s: Scene) -> None:
        await s.send("first", tokens=5000)
        (waiter,) = await started(s.send("waits", tokens=30_000))
        s.gate._orders.standing = Standing(frozenset([EMBEDDING]))
        await asyncio.sleep(30)
        assert s.names == ["first"]
        s.gate._orders.standing = Standing()
        await waiter
        assert s.names == ["first", "waits"]
        assert s.gaps[0] < 32

    play(scene, tokens_per_minute=60_000)


def test_a_limit_that_is_raised_reaches_a_request_that_waits_for_its_place() -> None:
    """Ordered by mistake, one token a minute would keep it waiting for weeks."""

    async def scene(s: Scene) -> None:
        s.gate._orders.standing = Standing(limits={"v1": Limits(tokens_per_minute=1)})
        begun = s.clock()
        tasks = await started(s.send("first"), s.send("second"), s.send("third"))
        await asyncio.sleep(60)
        assert [name for name, _ in s.sent] == ["first"]
        s.gate._orders.standing = Standing(limits={"v1": Limits(tokens_per_minute=600_000)})
        await asyncio.gather(*tasks)
        assert s.clock() - begun < 75

    play(scene)


def test_who_waited_for_a_place_in_vain_lets_live_work_go_first() -> None:
    async def scene(s: Scene) -> None:
        await s.send("first", tokens=5000)
        tasks = await started(s.send("backfill", live=False), s.send("live"))
        s.gate._orders.standing = Standing(frozenset([EMBEDDING]))
        await asyncio.sleep(30)
        s.gate._orders.standing = Standing()
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
        assert s.names == ["first", "live", "backfill"]

    play(scene, tokens_per_minute=60_000)


def test_a_target_that_is_away_is_no_trouble_of_the_provider() -> None:
    async def scene(s: Scene) -> None:
        await s.gate._target.close()
        with pytest.raises(TransientError, match="closed"):
            await s.send("unsent")
        assert s.names == []
        assert (s.gate._in_flight, s.gate._line, s.gate._breaker.failures) == (0, [], 0)

    play(scene, tokens_per_minute=60_000)
