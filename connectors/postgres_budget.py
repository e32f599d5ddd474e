"""What processes of one migration share besides work: the budget of a provider, and the orders of operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from connectors.postgres_session import Connection
from connectors.relations import Relations
from daemon.core.model import Generation, Rates


class PgBudget:
    """The Ledger port's methods on budgets and orders, over one open transaction."""

    def __init__(self, connection: Connection, relations: Relations) -> None:
        self._connection = connection
        self._relations = relations
        self._name = relations.migration

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
