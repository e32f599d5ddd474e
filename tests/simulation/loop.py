"""An event loop without time and without the outside world: whenever nothing is ready, `turn` decides what happens.

`turn(timeout)` gets the seconds to the next timer (None: there is none). It lets a parked call go on, makes something
happen outside of the product, or moves the clock. Worker threads do not exist: what is handed to one is done at once.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable

from tests.fakes import VirtualClock
from tests.flow.timeline import VirtualLoop

Turn = Callable[[float | None], None]


class _Selector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.turn: Turn | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.turn is not None and (timeout is None or timeout > 0):
            self.turn(timeout)
        return []


class SimulationLoop(VirtualLoop):
    def __init__(self, clock: VirtualClock) -> None:
        self._own = _Selector()
        super().__init__(clock, self._own)

    def decided_by(self, turn: Turn | None) -> None:
        self._own.turn = turn
