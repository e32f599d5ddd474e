"""The last status, handed from the main loop to whoever answers other threads.

The main loop publishes; telemetry and the web pages read, from threads of their own, without a lock and without ever
waiting for the loop: one reference is replaced, and what it points to is frozen. A status that was not renewed for
`FRESH_S` counts as not observed, because a number that is no longer measured is not shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from daemon.core.status import Status

FRESH_S = 60.0  # a dozen rounds of the observing loop: a few may fail without every number vanishing


@dataclass(frozen=True, slots=True)
class Published:
    status: Status
    at: float


class LastStatus:
    """Empty until the first `publish`. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._published: Published | None = None

    def publish(self, status: Status) -> None:
        """Take the place of the last one. Called by the main loop only."""
        self._published = Published(status, self._clock())

    def forget(self) -> None:
        """Nothing could be observed. Called by the main loop only."""
        self._published = None

    def newest(self) -> tuple[Status, float] | None:
        """The last status whatever its age, and that age in seconds."""
        published = self._published
        return None if published is None else (published.status, self._clock() - published.at)

    def fresh(self) -> Status | None:
        """The last status unless it is older than `FRESH_S`."""
        newest = self.newest()
        return newest[0] if newest is not None and newest[1] <= FRESH_S else None
