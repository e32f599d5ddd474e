"""The Ledger port over a transaction's `State`: budgets and orders; and a gate that admits everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.core import budget
from daemon.core.model import Generation, Rates
from daemon.core.orders import Standing
from daemon.flow.gate import Gate
from daemon.flow.orders import Orders
from daemon.ports import Target
from daemon.settings_generation import GenerationLimits
from tests.fakes import schedule
from tests.fakes.clock import VirtualClock
from tests.fakes.ledger import ControlLedger
from tests.fakes.schedule import Schedule


class BudgetLedger(ControlLedger):
    """What processes share besides work."""

    async def reserve(self, generation: Generation, tokens: int, rates: Rates) -> float:
        before = self._schedule(generation)
        if not budget.is_limited(rates):
            return max(0.0, before.held_until - self._now)
        before = schedule.rescaled(before, await self.paced_by(generation) or Rates(), rates, self._now)
        after, wait_s = schedule.reserved(before, budget.cost(tokens, rates), self._now)
        self.state.budgets[generation.id] = after, rates
        return wait_s

    async def refund(self, generation: Generation, tokens: int, rates: Rates) -> None:
        seconds = budget.tokens_s(tokens, rates)
        if seconds is not None and generation.id in self.state.budgets:
            before, last = self.state.budgets[generation.id]
            self.state.budgets[generation.id] = schedule.refunded(before, seconds, self._now), last

    async def paced_by(self, generation: Generation) -> Rates | None:
        return self.state.budgets.get(generation.id, (None, None))[1]

    async def hold_off(self, generation: Generation, seconds: float) -> None:
        held = schedule.held(self._schedule(generation), seconds, self._now)
        self.state.budgets[generation.id] = held, await self.paced_by(generation)

    async def orders(self) -> Mapping[str, Any]:
        return self.state.orders

    async def order(self, settings: Mapping[str, Any]) -> None:
        self.state.orders = dict(settings)

    def _schedule(self, generation: Generation) -> Schedule:
        return self.state.budgets.get(generation.id, (Schedule(), None))[0]


def free_orders(target: Target) -> Orders:
    """Orders that forbid nothing and are not read."""
    orders = Orders(target)
    orders.standing = Standing()
    return orders


def open_gate(
    target: Target, generation: Generation, clock: VirtualClock, limits: GenerationLimits | None = None
) -> Gate:
    """A gate of which no rate is known: it does not touch the target. Its waits advance the clock."""
    return Gate(target, generation, limits or GenerationLimits(), free_orders(target), clock, clock.sleep)
