"""Locks of the target as Postgres grants them: in the order of asking, and never in a circle.

Modes of a row: S (FOR SHARE), K (FOR KEY SHARE), N (an UPDATE that leaves the key alone), X (FOR UPDATE, DELETE).
Modes of a table: R (whoever locks or writes its rows), S (SHARE), X (EXCLUSIVE: plain reads go on).
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any

from daemon.errors import TransientError

TOGETHER = {("S", "S"), ("R", "R"), ("K", "K"), ("K", "S"), ("S", "K"), ("K", "N"), ("N", "K")}
STRENGTH = {"K": 0, "R": 0, "S": 1, "N": 2, "X": 3}


class Waiter:
    def __init__(self, session: Any, resource: Hashable, mode: str, woken: asyncio.Future[None]) -> None:
        self.session, self.resource, self.mode, self.woken = session, resource, mode, woken


class Locks:
    """deadlocks: how often somebody was refused because all would have waited for ever."""

    def __init__(self) -> None:
        self.held: dict[Hashable, dict[Any, str]] = {}
        self.of: dict[Any, set[Hashable]] = {}
        self.waiters: list[Waiter] = []
        self.deadlocks: list[str] = []
        self.waits = 0

    def holds(self, session: Any, resource: Hashable, mode: str) -> bool:
        held = self.held.get(resource, {}).get(session)
        return held is not None and STRENGTH[held] >= STRENGTH[mode]

    def others(self, session: Any, resource: Hashable, mode: str, before: Waiter | None = None) -> list[Any]:
        """Whom this waits for: holders, and those who wait longer, unless it holds it in a lower mode already."""
        held = self.held.get(resource)
        found = [s for s, m in held.items() if s is not session and (m, mode) not in TOGETHER] if held else []
        if self.waiters and not (held and session in held):
            for waiter in self.waiters:
                if waiter is before:
                    break
                if waiter.resource == resource and (waiter.mode, mode) not in TOGETHER:
                    found.append(waiter.session)
        return found

    def is_free_for(self, session: Any, resource: Hashable) -> bool:
        """Whether SKIP LOCKED would not skip it."""
        held = self.held.get(resource)
        return not held or list(held) == [session]

    def take(self, session: Any, resource: Hashable, mode: str) -> bool:
        """At once, or not at all."""
        if self.holds(session, resource, mode):
            return True
        if self.others(session, resource, mode):
            return False
        self._grant(session, resource, mode)
        return True

    async def acquire(self, session: Any, resource: Hashable, mode: str) -> None:
        """Raises TransientError where it would wait in a circle, or its session is ended."""
        if self.take(session, resource, mode):
            return
        waiter = Waiter(session, resource, mode, asyncio.get_running_loop().create_future())
        self.waiters.append(waiter)
        self.waits += 1
        try:
            if circle := self._circle(session):
                self.deadlocks.append(circle)
                raise TransientError("target-conflict", "simulated: deadlock detected")
            while self.others(session, resource, mode, waiter):
                await waiter.woken
                waiter.woken = asyncio.get_running_loop().create_future()
            self._grant(session, resource, mode)
        finally:
            self.waiters.remove(waiter)
            self._wake()  # whoever waited behind this one

    def release(self, session: Any) -> None:
        for resource in self.of.pop(session, ()):
            held = self.held[resource]
            del held[session]
            if not held:
                del self.held[resource]
        self._wake()

    def fail(self, session: Any, error: BaseException) -> None:
        """Whoever waits in this session waits no more."""
        for waiter in self.waiters:
            if waiter.session is session and not waiter.woken.done():
                waiter.woken.set_exception(error)

    def _grant(self, session: Any, resource: Hashable, mode: str) -> None:
        held = self.held.setdefault(resource, {})
        if session not in held or STRENGTH[held[session]] < STRENGTH[mode]:
            held[session] = mode
        self.of.setdefault(session, set()).add(resource)

    def _wake(self) -> None:
        for waiter in self.waiters:
            if not waiter.woken.done() and not self.others(waiter.session, waiter.resource, waiter.mode, waiter):
                waiter.woken.set_result(None)

    def _circle(self, start: Any) -> str:
        """Who waits for whom, where it leads back to the beginning; else nothing."""
        waiting = {waiter.session: waiter for waiter in self.waiters}
        path: list[Waiter] = []
        seen: set[int] = set()

        def leads_back(session: Any) -> bool:
            waiter = waiting.get(session)
            if waiter is None or id(session) in seen:
                return False
            seen.add(id(session))
            path.append(waiter)
            for other in self.others(session, waiter.resource, waiter.mode, waiter):
                if other is start or leads_back(other):
                    return True
            path.pop()
            return False

        if not leads_back(start):
            return ""
        return " -> ".join(f"{w.session} waits for {w.resource} {w.mode}" for w in path)
