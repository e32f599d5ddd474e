"""What operators and the clock ask of running loops: pause, limits, quiet hours. One per process.

`run` reads the operators' orders from the target about once a second. Every loop asks before it begins a piece of
work; what has begun is ended. Before the first reading nothing may begin: a process that starts while its migration
is paused must not spend a token. While the target is away the last known orders stand.

Decides nothing about the provider's budget (`daemon.flow.gate`), and never writes an order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo

from daemon.core.model import ClaimOrder
from daemon.core.orders import BACKFILL, EMBEDDING, Limits, Standing, standing
from daemon.core.quiet import Quiet, backfill_may_begin
from daemon.errors import TransientError
from daemon.flow.pacing import wait
from daemon.ports import Target
from daemon.settings import QuietHours

log = logging.getLogger(__name__)

BACKFILL_TURN = 5  # one claim in so many takes backfill work first, so that live work never starves it
REFRESH_S = 1.0


class Orders:
    """The orders in force. target: a connection of its own; the caller closes it."""

    def __init__(
        self,
        target: Target,
        quiet_hours: Sequence[QuietHours] = (),
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.target, self.wall_clock = target, wall_clock
        self.quiet = [quiet_of(hours) for hours in quiet_hours]
        self.standing: Standing | None = None  # None: not read yet

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the operators' orders until `stop`."""
        while not stop.is_set():
            try:
                await self.refresh()
            except TransientError as error:
                log.warning("%s: %s; the last known orders stand", error.id, error.message)
            await wait(stop, REFRESH_S)

    async def refresh(self) -> None:
        """Read them once. Raises TransientError: the target is away."""
        async with self.target.begin() as tx:
            found = standing(await tx.ledger.orders())
        if found != self.standing:
            before = None if self.standing is None else self.standing.words
            if found.words != before:
                log.info("%s", f"paused by order: {found.words}" if found.words else "resumed by order")
            self.standing = found

    @property
    def may_send(self) -> bool:
        """Whether a request may go to the provider."""
        return self.standing is not None and EMBEDDING not in self.standing.paused

    @property
    def may_copy(self) -> bool:
        """Whether backfill work may begin: a page be read, a copied row be claimed."""
        if self.standing is None or BACKFILL in self.standing.paused:
            return False
        return not self.quiet or backfill_may_begin(self.quiet, self.wall_clock())

    def claim_order(self, turn: int) -> ClaimOrder | None:
        """What a worker's turn may claim; None: nothing, embedding is paused."""
        if not self.may_send:
            return None
        if not self.may_copy:
            return ClaimOrder.LIVE_ONLY
        return ClaimOrder.BACKFILL_FIRST if turn % BACKFILL_TURN == BACKFILL_TURN - 1 else ClaimOrder.LIVE_FIRST

    def limits(self, generation: str) -> Limits:
        """What was ordered for a generation."""
        return Limits() if self.standing is None else self.standing.limits_of(generation)


def quiet_of(hours: QuietHours) -> Quiet:
    """Quiet hours as `core.quiet` judges them."""
    start, end = time.fromisoformat(hours.start), time.fromisoformat(hours.end)
    return Quiet(frozenset(hours.days), start, end, ZoneInfo(hours.timezone), hours.backfill_share)
