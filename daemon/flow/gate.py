"""Whether the next request may go to the provider: pause, breaker, concurrency, budget. One per process and generation.

Shared by all workers of a generation in a process; other processes share the budget through the target
(`Ledger.reserve`). Waiting requests of live work go before those of backfill work.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from daemon.ports import Embedded


@dataclass(slots=True)
class Admission:
    """One admitted request. The block that holds it says what came of it by `answered`, or by the error it raises."""

    answer: Embedded | None = None

    def answered(self, answer: Embedded) -> None:
        self.answer = answer


class Gate:
    """Admits requests."""

    @property
    def request_tokens(self) -> int:
        """Most tokens that a request should hold under the budget in force."""
        return 50_000

    @asynccontextmanager
    async def request(self, tokens: int, *, live: bool) -> AsyncIterator[Admission]:
        """Wait until a request of `tokens` may be sent; the block sends it. A TransientError of the block counts as
        throttling or outage and holds the next ones back; an ItemRefused gives the budget back; both are raised on."""
        yield Admission()
