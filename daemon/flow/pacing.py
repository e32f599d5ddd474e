"""Waiting and retrying, in one place.

A loop's turn that meets a TransientError is tried again after an exponential, jittered wait that honours the part's
own Retry-After; everything else goes up to the supervisor. Waits end at once when the process is told to stop.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from daemon.errors import TransientError

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 3.0  # asking costs a database or broker nothing, and it is back to work this long after it returned
LOGGED_AT_FIRST, LOGGED_EVERY = 6, 10  # failures in a row that are told; a minute away is a page otherwise


async def wait(stop: asyncio.Event, seconds: float) -> None:
    """Pause for `seconds`, or until `stop`."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


async def retrying(
    turn: Callable[[asyncio.Event], Awaitable[None]],
    stop: asyncio.Event,
    forget: Callable[[], None] = lambda: None,
) -> None:
    """Run `turn` until it returns without a TransientError, or until `stop`. `forget` runs after each failure."""
    failures = 0
    while not stop.is_set():
        try:
            await turn(stop)
            return
        except TransientError as error:
            forget()
            backoff = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failures, 10))
            pause = max(error.retry_after_s or 0.0, backoff * random.uniform(0.5, 1.0))  # noqa: S311
            failures += 1
            if failures <= LOGGED_AT_FIRST or failures % LOGGED_EVERY == 0:
                log.warning("%s: %s; trying again in %.1f s", error.id, error.message, pause)
            await wait(stop, pause)
