"""An event loop without time and without the outside world: whenever nothing is ready, `turn` decides what happens.

`turn(timeout)` gets the seconds to the next timer (None: there is none). It lets a parked call go on, makes something
happen outside of the product, or moves the clock. Worker threads do not exist: what is handed to one is done at once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

from tests.fakes import VirtualClock

Turn = Callable[[float | None], None]


class _Selector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.turn: Turn | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.turn is not None and (timeout is None or timeout > 0):
            self.turn(timeout)
        return []


class SimulationLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        self.clock, self._own = clock, _Selector()
        super().__init__(self._own)

    def decided_by(self, turn: Turn | None) -> None:
        self._own.turn = turn

    def time(self) -> float:
        return self.clock.now_s

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done
