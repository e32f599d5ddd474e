"""A simulated process: every call of a port is a place where it may be held, killed, or told that the part is away.

`Process.meet` parks the caller until the scheduler lets it go on, with an outcome: done; refused before it was done;
done, but the answer is lost. A process that was killed makes no call any more, whatever its handlers try; one that is
frozen stands still where it is, and goes on later without knowing.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from daemon.errors import TransientError
from tests.fakes import Died

if TYPE_CHECKING:
    from tests.simulation.target import Session

T = TypeVar("T")


class Outcome(enum.Enum):
    DONE = "done"
    REFUSED = "refused"  # the part is away: nothing happened
    LOST = "lost"  # it happened, and the connection broke before the answer came


class Parked:
    """One call that waits for its turn. until: not before this time. held: not before this step."""

    __slots__ = ("go", "held", "is_waiting", "point", "process", "until")

    def __init__(self, process: Process, point: str, go: asyncio.Future[Outcome]) -> None:
        self.process, self.point, self.go, self.until, self.is_waiting = process, point, go, 0.0, True
        self.held = 0


class Process:
    """name: of its slot and how often that was started, such as `a#2`. parked: calls of all processes."""

    def __init__(self, name: str, parked: list[Parked]) -> None:
        self.name, self.parked = name, parked
        self.is_hasty = name.startswith("op")
        self.is_dead = self.is_frozen = self.was_owner = False
        self.sessions: dict[Session, None] = {}
        self.stop = asyncio.Event()
        self.owner = name
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return self.name

    async def park(self, point: str) -> Outcome:
        """Wait for the turn. Raises Died."""
        if self.is_dead:
            raise Died
        call = Parked(self, point, asyncio.get_running_loop().create_future())
        self.parked.append(call)
        try:
            return await call.go
        finally:
            if call.is_waiting:  # cancelled
                self.parked.remove(call)

    async def meet(self, point: str, call: Callable[[], Any]) -> Any:
        outcome = await self.park(point)
        if outcome is Outcome.REFUSED:
            raise away(point)
        result = await call()
        if self.is_dead:
            raise Died
        if outcome is Outcome.LOST:
            raise away(point)
        return result

    def wrap(self, name: str, port: T) -> T:
        """The port of another system, with every call of it parked; typed as the port."""
        return Wrapped(self, name, port)  # type: ignore[return-value]


class Wrapped:
    """Any port but the target: its async methods are points."""

    def __init__(self, process: Process, name: str, port: Any) -> None:
        self._process, self._name, self._port = process, name, port

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._port, name)
        if not inspect.iscoroutinefunction(member) or name == "close":
            return member
        process, point = self._process, f"{self._name}.{name}"

        async def call(*args: Any, **named: Any) -> Any:
            return await process.meet(point, lambda: member(*args, **named))

        setattr(self, name, call)
        return call


NEVER_FAIL = ("feed.commit",)  # as its port says


def away(point: str) -> TransientError:
    return TransientError(f"{point.partition('.')[0]}-away", f"simulated: {point} failed")
