"""Time that moves only when a test says so.

`VirtualClock` is given wherever the product takes a clock or a sleep. Sleeping advances it at once and yields to the
loop, so no test waits for real time and a run is the same on every machine.
"""

from __future__ import annotations

import asyncio


class VirtualClock:
    """Seconds since an arbitrary start; calling it gives the time."""

    def __init__(self, start_s: float = 1_000_000.0) -> None:
        self.now_s = start_s

    def __call__(self) -> float:
        return self.now_s

    @property
    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("time does not go back")
        self.now_s += seconds

    async def sleep(self, seconds: float) -> None:
        """Advance by `seconds` and let other tasks run once."""
        self.advance(seconds)
        await asyncio.sleep(0)
