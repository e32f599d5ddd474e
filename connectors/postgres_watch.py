"""A Postgres connection that does not wait for ever for an answer that was lost.

A network that has forgotten a connection says nothing: keepalives notice it where packets vanish, not where something
in between answers them, and no timeout fits both a window and an index build of hours. So whoever waits looks: after
`QUIET_S` without a byte, a second connection asks the server what ours is doing. Where it is gone, or waits for *us*
without a change for `AGAIN_S`, the answer was lost: the backend is ended, so that its locks are free, and the wait ends
as a lost connection does. A backend that works is waited for; so is a server that cannot be asked.

Statements of the same role on the same server are all it needs; nothing of a statement is looked at.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import os
import socket
import termios
from collections.abc import Generator
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow

RV = TypeVar("RV")

log = logging.getLogger(__name__)

_NAME = "application_name"

QUIET_S = 3.0  # a wait is looked at when nothing was heard for so long
AGAIN_S = 1.0  # between the two looks that have to agree; what was on its way arrives meanwhile
NEXT_LOOK_S = 2.0  # where the server could not be asked
LONGEST_LOOK_S = 30.0  # where the backend works: each time twice as long, an index build takes hours
ASK_S = 3.0  # one look, connecting included

# A backend that waits for its client while its client waits for it: an answer, or part of a question, was lost.
_STATE = """
SELECT state_change FROM pg_stat_activity
WHERE pid = %s AND (state LIKE 'idle%%' OR state = 'active' AND wait_event = 'ClientRead')
"""
_IS_THERE = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND state_change = %s"


class WatchedConnection(psycopg.AsyncConnection[TupleRow]):
    """asks_at: the conninfo to ask with; None, as at first, means that nobody looks."""

    asks_at: str | None = None
    heard = 0  # how often the socket had something for us, or took something

    async def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Of psycopg: the one place where a connection waits for its server."""
        try:
            wanted = next(gen)
        except StopIteration as done:  # nothing to wait for, such as a row of COPY
            return await super().wait(_done(done.value), *args, **kwargs)
        look = asyncio.create_task(self._look())
        try:
            return await super().wait(self._counted(wanted, gen), *args, **kwargs)
        finally:
            look.cancel()

    def _counted(self, wanted: Any, gen: PQGen[RV]) -> Generator[Any, Any, RV]:
        """The rest of `gen`, which wants to wait for `wanted`."""
        try:
            while True:
                ready = yield wanted
                self.heard += bool(ready)
                wanted = gen.send(ready)
        except StopIteration as done:
            answer: RV = done.value
            return answer

    async def _look(self) -> None:
        """Until the wait is over, or this connection is given up."""
        await asyncio.sleep(QUIET_S)
        works_s = NEXT_LOOK_S
        while self.asks_at is not None and not self.closed:
            before, pause_s = self.progress(), NEXT_LOOK_S
            with suppress(psycopg.Error, OSError, TimeoutError):
                if await self._is_forgotten(before):
                    self.abandon()
                    return
                pause_s, works_s = works_s, min(2 * works_s, LONGEST_LOOK_S)
            await asyncio.sleep(pause_s)

    async def _is_forgotten(self, before: tuple[int, int]) -> bool:
        """Ends the backend where it is."""
        pid = self.pgconn.backend_pid
        async with asyncio.timeout(ASK_S):
            asking = await psycopg.AsyncConnection.connect(self.asks_at or "", autocommit=True)
        try:
            first = await _state(asking, pid)
            if first is None:
                return False
            await asyncio.sleep(AGAIN_S)
            second = await _state(asking, pid)
            if first != second or self.progress() != before:
                return False
            async with asyncio.timeout(ASK_S):
                await asking.execute(_END, [pid, second[0] if second else None])
            return True
        finally:
            await asking.close()

    def progress(self) -> tuple[int, int]:
        """What changes while bytes come or go."""
        unsent = array.array("i", [0])
        with suppress(OSError):
            fcntl.ioctl(self.pgconn.socket, termios.TIOCOUTQ, unsent)
        return self.heard, unsent[0]

    def abandon(self) -> None:
        """Whoever waits gets a lost connection."""
        log.warning("%s: an answer was lost on its way; the connection is given up", self.info.parameter_status(_NAME))
        with suppress(OSError), socket.socket(fileno=os.dup(self.pgconn.socket)) as ours:
            ours.shutdown(socket.SHUT_RDWR)


async def _state(asking: psycopg.AsyncConnection[TupleRow], pid: int) -> TupleRow | None:
    """Since when the backend waits for us, () where it is gone, None where it works."""
    async with asyncio.timeout(ASK_S):
        row = await (await asking.execute(_STATE, [pid])).fetchone()
        if row is not None:
            return row
        there = await (await asking.execute(_IS_THERE, [pid])).fetchone()
    return None if there is not None and there[0] else ()


def _done(answer: RV) -> Generator[Any, Any, RV]:
    """A generator that has this answer at once."""
    yield from ()
    return answer
