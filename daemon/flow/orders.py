"""What operators and the clock ask of running loops: pause, limits, quiet hours. One per process."""

from __future__ import annotations

from daemon.core.model import ClaimOrder

BACKFILL_TURN = 5  # one claim in so many takes backfill work first, so that live work never starves it


class Orders:
    """The orders in force. Every loop asks before it begins a piece of work; what has begun is ended."""

    @property
    def may_copy(self) -> bool:
        """Whether a backfill page may be read."""
        return True

    def claim_order(self, turn: int) -> ClaimOrder | None:
        """What a worker's turn may claim; None: nothing, embedding is paused."""
        return ClaimOrder.BACKFILL_FIRST if turn % BACKFILL_TURN == BACKFILL_TURN - 1 else ClaimOrder.LIVE_FIRST
