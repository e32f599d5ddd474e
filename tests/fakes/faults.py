"""A fault script: scripted failures at named calls of any port, each with evidence that it landed.

    script = Faults()
    target = script.wrap("target", target)          # also wraps the unit of work: target.commit, replica.write, …
    script.at("target.commit", lose())              # the 1st commit happens, its answer is lost
    script.at("embedder.embed", refuse(), call=2)
    …
    script.verify()                                 # raises FaultMissed where a scripted fault did not land

`with Faults() as script:` verifies when the block ends without an error of its own. Kinds: `refuse` (not done, error),
`lose` (done, then an error: the caller cannot know), `slow` (waits for an event first), `die` (the process is gone:
`Died` is no Exception, so no handler of the product swallows it), `then` (others act right after the call, before its
caller goes on: how a directed test interleaves).
"""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from daemon.errors import TransientError

T = TypeVar("T")
PARTS = ("replica", "vectors", "ledger", "audit", "comparisons")


class Died(BaseException):
    """The process was killed at this point."""


class FaultMissed(AssertionError):
    """A scripted fault did not land: the run proves nothing."""


@dataclass(frozen=True)
class Fault:
    """What happens at a call. before, after: raised around it; gate: awaited before it; act: awaited after it."""

    kind: str
    before: Callable[[], BaseException] | None = None
    after: Callable[[], BaseException] | None = None
    gate: asyncio.Event | None = None
    act: Callable[[], Awaitable[None]] | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)


def refuse(error: Callable[[], BaseException] | None = None) -> Fault:
    return Fault("refuse", before=error or away)


def lose(error: Callable[[], BaseException] | None = None) -> Fault:
    return Fault("lose", after=error or away)


def slow(gate: asyncio.Event) -> Fault:
    """The call waits for `gate`; `fault.reached` is set once it does."""
    return Fault("slow", gate=gate)


def die(*, done: bool = False) -> Fault:
    """done: the call takes effect before the process dies."""
    return Fault("die", after=Died) if done else Fault("die", before=Died)


def then(act: Callable[[], Awaitable[None]]) -> Fault:
    return Fault("then", act=act)


def away() -> TransientError:
    return TransientError("part-away", "scripted: the part is away")


@dataclass(frozen=True)
class Landed:
    point: str
    call: int
    kind: str


class Faults:
    """Scripted faults by point ("feed.poll", "target.commit", "ledger.advance", …) and number of the call there.

    stays_dead: whoever died makes no call any more, not even to clean up.
    """

    def __init__(self, *, stays_dead: bool = False) -> None:
        self.stays_dead, self.is_dead = stays_dead, False
        self.planned: dict[tuple[str, int], Fault] = {}
        self.calls: dict[str, int] = defaultdict(int)
        self.landed: list[Landed] = []

    def at(self, point: str, fault: Fault, call: int = 1) -> Fault:
        """Plan a fault for the `call`-th call from now on of `point`."""
        self.planned[point, self.calls[point] + call] = fault
        return fault

    def wrap(self, name: str, port: T) -> T:
        """The port with the script between; typed as the port."""
        return _Wrapped(self, name, port)  # type: ignore[return-value]

    def verify(self) -> None:
        done = {(x.point, x.call) for x in self.landed}
        missed = [
            f"{kind.kind} at {point} #{call}"
            for (point, call), kind in self.planned.items()
            if (point, call) not in done
        ]
        if missed:
            raise FaultMissed("; ".join(missed))

    def __enter__(self) -> Faults:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.verify()

    async def meet(self, point: str, call: Callable[[], Any]) -> Any:
        """Carry out one call of a point under the script."""
        fault = await self.arrive(point)
        result = call()
        if inspect.isawaitable(result):
            result = await result
        await self.leave(point, fault)
        return result

    async def arrive(self, point: str) -> Fault | None:
        if self.is_dead:
            raise Died
        self.calls[point] += 1
        fault = self.planned.get((point, self.calls[point]))
        if fault is None:
            return None
        if fault.gate is not None:
            fault.reached.set()
            self._land(point, fault)
            await fault.gate.wait()
        if fault.before is not None:
            self._land(point, fault)
            raise fault.before()
        return fault

    async def leave(self, point: str, fault: Fault | None) -> None:
        if fault is not None and fault.act is not None:
            self._land(point, fault)
            await fault.act()
        if fault is not None and fault.after is not None:
            self._land(point, fault)
            raise fault.after()

    def _land(self, point: str, fault: Fault) -> None:
        fault.reached.set()
        self.is_dead = self.stays_dead and fault.kind == "die"
        self.landed.append(Landed(point, self.calls[point], fault.kind))


class _Wrapped:
    """Any port behind the script. Async methods are points; `begin` becomes a transaction with a `commit` point."""

    def __init__(self, script: Faults, name: str, port: Any) -> None:
        self._script, self._name, self._port = script, name, port

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._port, name)
        if name == "begin" and self._name == "target":
            return self._begin
        if name in PARTS and not inspect.iscoroutinefunction(member):
            return _Wrapped(self._script, name, member)
        if not inspect.iscoroutinefunction(member):
            return member
        point = f"{self._name}.{name}"

        async def call(*args: Any, **named: Any) -> Any:
            return await self._script.meet(point, lambda: member(*args, **named))

        return call

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[Any]:
        await self._script.meet("target.begin", lambda: None)
        fault: Fault | None = None
        async with self._port.begin() as unit:
            yield _Wrapped(self._script, "unit", unit)
            fault = await self._script.arrive("target.commit")
        await self._script.leave("target.commit", fault)
