"""The Ledger port over a transaction's `State`: what concerns generations beyond their making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from daemon.core.model import Canary, Generation, Table
from daemon.errors import StepRefused
from tests.fakes.budget import BudgetLedger
from tests.fakes.comparisons import MemoryComparisons
from tests.fakes.state import WorkEntry


class GenerationLedger(BudgetLedger):
    """Contract, sweep, canary, forecast, end."""

    async def generation_contract(self, generation: Generation) -> Mapping[str, Any]:
        return self.state.generations[generation.id].contract

    async def sweep(self, table: Table, generation: Generation, limit: int) -> int:
        record = self.state.generations.get(generation.id)
        if record is None or record.generation.swept:
            return 0
        after = record.swept_to.get(table.id, 0)
        rows = sorted(row_id for t, row_id in self.state.keys if t == table.id and row_id > after)[:limit]
        for row_id in rows:
            place = (generation.id, table.id, row_id)
            row = self.state.row(table, row_id)
            if row is not None and self.context.rules.wanted(table, row.values) and place not in self.state.work:
                seq, now_ms = self.context.sequences.next_seq(), int(self.context.clock() * 1000)
                self.state.work[place] = WorkEntry(seq, seq, now_ms, now_ms, is_live=False)
        if rows:
            self.state.generations[generation.id] = replace(record, swept_to={**record.swept_to, table.id: rows[-1]})
        return len(rows)

    async def set_swept(self, generation: Generation) -> None:
        record = self.state.generations[generation.id]
        self.state.generations[generation.id] = replace(record, generation=replace(record.generation, swept=True))

    async def routed(self) -> int | None:
        return self.state.migration.routed

    async def drop_generation(self, generation: Generation) -> None:
        if self.state.migration.routed == generation.id:
            raise StepRefused("generation-routed", f"readers follow generation {generation.name}")
        if list(self.state.generations) == [generation.id]:
            raise StepRefused("generation-last", f"{generation.name} is the only generation")
        comparisons = MemoryComparisons(self.context)
        running = await comparisons.running()
        if running is not None and generation.id in running.generations:
            await comparisons.abandon(running.id)
        self.state.generations.pop(generation.id, None)
        for place in [p for p in self.state.chunks if p[0] == generation.id]:
            del self.state.chunks[place]
        for place in [p for p in self.state.work if p[0] == generation.id]:
            del self.state.work[place]

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
