"""An event loop whose time is virtual: what sleeps is woken in order, at once, and a minute costs no second.

`timeline()` runs a coroutine function on such a loop. `asyncio.sleep`, timeouts and the clock that is given agree on
the time, whatever number of tasks sleep; `VirtualClock.sleep` alone could not say which of two sleepers comes first.
What would be done in another thread is done at once; nothing on such a loop may wait for a socket.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tests.fakes import VirtualClock

Result = TypeVar("Result")


class _Selector(selectors.SelectSelector):
    """Where a loop would wait for `timeout`, the clock moves on instead."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self.clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everything waits, and nothing will come")
        self.clock.advance(max(0.0, timeout))
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop by a virtual clock, without threads. selector: what happens where a loop would wait."""

    def __init__(self, clock: VirtualClock, selector: selectors.BaseSelector) -> None:
        self.clock = clock
        super().__init__(selector)

    def time(self) -> float:
        return self.clock()

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


def timeline(scene: Callable[[VirtualClock], Awaitable[Result]]) -> Result:
    """What `scene` returns, played on a clock of its own."""
    clock = VirtualClock(1_000.0)

    async def played() -> Any:
        return await scene(clock)

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock, _Selector(clock))) as runner:
        found: Result = runner.run(played())
    return found
