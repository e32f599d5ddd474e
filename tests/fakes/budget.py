"""The Ledger port over a transaction's `State`: budgets and orders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.core.model import Generation, Rates
from tests.fakes.ledger import ControlLedger


class BudgetLedger(ControlLedger):
    """What processes share besides work."""

    async def reserve(self, generation: Generation, tokens: int, rates: Rates) -> float:
        raise NotImplementedError

    async def refund(self, generation: Generation, tokens: int, rates: Rates) -> None:
        raise NotImplementedError

    async def hold_off(self, generation: Generation, seconds: float) -> None:
        raise NotImplementedError

    async def orders(self) -> Mapping[str, Any]:
        raise NotImplementedError

    async def order(self, settings: Mapping[str, Any]) -> None:
        raise NotImplementedError
