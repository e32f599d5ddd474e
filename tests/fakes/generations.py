"""The Ledger port over a transaction's `State`: what concerns generations beyond their making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from daemon.core.model import Canary, Generation, Table
from tests.fakes.budget import BudgetLedger


class GenerationLedger(BudgetLedger):
    """Contract, sweep, canary, forecast, end."""

    async def generation_contract(self, generation: Generation) -> Mapping[str, Any]:
        return self.state.generations[generation.id].contract

    async def sweep(self, table: Table, generation: Generation, limit: int) -> int:
        raise NotImplementedError

    async def set_swept(self, generation: Generation) -> None:
        raise NotImplementedError

    async def drop_generation(self, generation: Generation) -> None:
        raise NotImplementedError

    async def canary(self, generation: Generation) -> Canary | None:
        return self.state.generations[generation.id].canary

    async def set_canary(self, generation: Generation, canary: Canary) -> None:
        record = self.state.generations[generation.id]
        self.state.generations[generation.id] = replace(record, canary=record.canary or canary)

    async def forecast(self, generation: Generation) -> Mapping[str, Any] | None:
        return self.state.generations[generation.id].forecast

    async def set_forecast(self, generation: Generation, forecast: Mapping[str, Any]) -> None:
        record = self.state.generations[generation.id]
        self.state.generations[generation.id] = replace(record, forecast=forecast)
