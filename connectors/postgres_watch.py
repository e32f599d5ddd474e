"""A Postgres connection that does not wait for ever for an answer that was lost.

A network that has forgotten a connection says nothing: keepalives notice it where packets vanish, not where something
in between answers them, and no timeout fits both a window and an index build of hours. So whoever waits looks: after
`QUIET_S` without a byte, a second connection asks the server what ours is doing. Where it is gone, or waits for *us*
without a change for `AGAIN_S`, the answer was lost: the backend is ended, so that its locks are free, and the wait ends
as a lost connection does. A backend that works is waited for; so is a server that cannot be asked.

A backend is told by its start beside its number, a server by its address: a number is given again, and a dsn of several
hosts, or of a name for several, may lead the second connection elsewhere. Behind a pooler nobody looks: which backend
is ours changes there, and the one that was may serve somebody else. Statements of the same role on the same server are
all it needs; nothing of a statement is looked at.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import os
import socket
import termios
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, LiteralString, NamedTuple, TypeVar

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
FIRST_S = 10.0  # the first answer of a connection, which nobody can look at yet

# A backend that waits for its client while its client waits for it: an answer, or part of a question, was lost.
_STATE = """
SELECT extract(epoch FROM state_change)::text FROM pg_stat_activity
WHERE pid = %s AND extract(epoch FROM backend_start)::text = %s
   AND (state LIKE 'idle%%' OR state = 'active' AND wait_event = 'ClientRead')
"""
_IS_THERE = """
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s AND extract(epoch FROM backend_start)::text = %s)
"""
_END = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = %s AND extract(epoch FROM backend_start)::text = %s AND extract(epoch FROM state_change)::text = %s
"""
_SERVER = "inet_server_addr()::text, inet_server_port()"
_WHO = (
    f"SELECT pid, extract(epoch FROM backend_start)::text, {_SERVER} FROM pg_stat_activity WHERE pid = pg_backend_pid()"
)
_WHERE = f"SELECT {_SERVER}"


class Backend(NamedTuple):
    """One backend of all that ever were on a server. started_at: seconds as text, which no DateStyle changes."""

    pid: int
    started_at: str


class WatchedConnection(psycopg.AsyncConnection[TupleRow]):
    """asks_at: the conninfo to ask with. backend: ours. None, as at first or behind a pooler: nobody looks."""

    asks_at: str | None = None
    backend: Backend | None = None
    server: tuple[object, ...] = ()  # address and port, as it knows them itself
    heard = 0  # how often the socket had something for us, or took something

    async def watch(self, asks_at: str) -> None:
        """Have waits looked at from here on. Raises psycopg.OperationalError: no answer in FIRST_S."""
        with self._at_most(FIRST_S):
            row = await (await self.execute(_WHO)).fetchone()
        if row is not None and row[0] == self.pgconn.backend_pid:
            self.asks_at, self.backend, self.server = asks_at, Backend(row[0], row[1]), row[2:]

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
        backend = self.backend
        async with asyncio.timeout(ASK_S):
            asking = await WatchedConnection.connect(self.asks_at or "", autocommit=True)
        try:
            where = await asking.first_row(_WHERE)
            first = None if backend is None or where != self.server else await _state(asking, backend)
            if backend is None or first is None:
                return False
            await asyncio.sleep(AGAIN_S)
            second = await _state(asking, backend)
            if first != second or self.progress() != before:
                return False
            await asking.first_row(_END, [*backend, second[0] if second else None])
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
        self._cut()

    def _cut(self) -> None:
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.pgconn.socket)) as ours:
            ours.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _at_most(self, seconds: float) -> Iterator[None]:
        """For the block to end in. Not by a cancellation: psycopg answers one by waiting for the server."""
        ending = asyncio.get_running_loop().call_later(seconds, self._cut)
        try:
            yield
        finally:
            ending.cancel()

    async def first_row(self, query: LiteralString, values: Sequence[object] = ()) -> TupleRow | None:
        """Raises psycopg.OperationalError: not within ASK_S."""
        with self._at_most(ASK_S):
            return await (await self.execute(query, values)).fetchone()


async def _state(asking: WatchedConnection, backend: Backend) -> TupleRow | None:
    """Since when the backend waits for us, () where it is gone, None where it works."""
    row = await asking.first_row(_STATE, backend)
    if row is not None:
        return row
    there = await asking.first_row(_IS_THERE, backend)
    return None if there is not None and there[0] else ()


def _done(answer: RV) -> Generator[Any, Any, RV]:
    """A generator that has this answer at once."""
    yield from ()
    return answer
