"""A TCP proxy on loopback that breaks connections in the ways networks do, with evidence that each fault landed.

    with Proxy(listen_port, upstream_port) as proxy:
        proxy.half_open(); …; proxy.heal(); proxy.landed.swallowed_bytes

It works in a thread of its own; every method may be called from any thread and has taken effect when it returns. A
fault lasts until `heal`, except `cut` and `cut_at_commit`, which happen once. Connections that were half-open stay
silent for ever: whatever stood in between has forgotten them. Their peers' kernels are answered, so that keepalives
notice nothing: who notices has asked a question of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

HOST = "127.0.0.1"
READ_BYTES = 65536
QUEUED = 256  # pieces on their way per direction; what comes in faster has to wait
KERNEL_BYTES = 65536  # of our sockets' receive buffers: a throttled sender notices soon
SLICES_PER_S = 20  # how evenly a throttled connection flows
FORGOTTEN_S = 120.0  # how long a server's side of a half-open connection is kept after its client has gone
CALL_S = 10.0
TURNS_TO_A_LINK = 4  # of the loop: accept, transport, protocol, `_accept`

COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"  # Postgres: CommandComplete of a COMMIT

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Landed:
    """What has happened to connections since the proxy exists.

    accepted: connections taken. cut: of them, ended with a reset by us. swallowed_bytes: what peers sent and nobody
    got. silent: connections that were half-open. delayed_bytes, throttled_bytes: what arrived late, or slowly.
    commits_cut: commits that the server made and whose client was cut off before it heard. refusals: how often the
    port was closed; unreachable: connections whose upstream did not answer.
    """

    accepted: int = 0
    cut: int = 0
    swallowed_bytes: int = 0
    silent: int = 0
    delayed_bytes: int = 0
    throttled_bytes: int = 0
    commits_cut: int = 0
    refusals: int = 0
    unreachable: int = 0
    passed_bytes: int = 0


@dataclass(slots=True)
class Faults:
    """What lasts until `heal`."""

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    is_half_open: bool = False


@dataclass(eq=False)
class Link:
    """One client's connection and ours to the upstream. first_bytes: the client's, by which it is known."""

    client: asyncio.StreamWriter
    upstream: asyncio.StreamWriter | None = None
    is_silent: bool = False
    first_bytes: bytes = b""
    tail: bytes = b""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """End both sides with RST."""
        for task in self.tasks:
            task.cancel()
        for side in (self.client, self.upstream):
            if side is not None:
                reset(side)


class Proxy:
    """Forwards 127.0.0.1:listen_port to 127.0.0.1:upstream_port."""

    def __init__(self, listen_port: int, upstream_port: int) -> None:
        self.port, self.upstream_port = listen_port, upstream_port
        self.landed = Landed()
        self._faults = Faults()
        self._links: set[Link] = set()
        self._server: asyncio.Server | None = None
        self._commit_of: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy {listen_port}", daemon=True)

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"{HOST}:{self.port}"

    @property
    def open_connections(self) -> int:
        """Of clients, the silent ones included."""
        return len(self._links)

    # life

    def start(self) -> Self:
        """Listen. A stopped proxy does not start again."""
        self._thread.start()
        self._call(self._listen())
        return self

    def stop(self) -> None:
        """Cut everything and end the thread; repeatable."""
        if self._thread.is_alive():
            self._call(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CALL_S)
        if not self._loop.is_running() and not self._loop.is_closed():
            self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # faults

    def cut(self) -> int:
        """Reset all connections; how many. New ones are served."""
        return self._call(self._cut())

    def refuse(self) -> int:
        """Reset all connections and close the port, until `heal`; how many were reset."""
        return self._call(self._refuse())

    def delay(self, seconds: float) -> None:
        """Everything arrives this much later, in either direction."""
        self._call(self._fault(delay_s=seconds))

    def throttle(self, bytes_per_s: float) -> None:
        """No connection gets more than this, in either direction."""
        self._call(self._fault(bytes_per_s=bytes_per_s))

    def half_open(self) -> int:
        """Open connections and those to come stay open; what is sent on them is lost. How many were open."""
        return self._call(self._half_open())

    def cut_at_commit(self, whose: str = "") -> None:
        """Postgres: the server makes the next COMMIT, and its client is cut off before it hears.

        whose: part of the connection's start-up message, such as its application_name. Each call cuts one.
        """
        self._call(self._arm(whose))

    def heal(self) -> None:
        """Serve again, at once and at full speed. What is silent stays so."""
        self._call(self._heal())

    # on the proxy's thread

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)

    async def _listen(self) -> None:
        if self._server is None:
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)  # connections inherit it
            listening.bind((HOST, self.port))
            self._server = await asyncio.start_server(self._accept, sock=listening, limit=READ_BYTES)

    async def _close_port(self) -> None:
        """Take no more connections, and make a link of each that is taken: asyncio's server, closed in the turn after
        it took one, leaves it open with nobody there."""
        server, self._server = self._server, None
        if server is not None:
            for listening in server.sockets:
                self._loop.remove_reader(listening.fileno())
            for _ in range(TURNS_TO_A_LINK):
                await asyncio.sleep(0)
            server.close()  # not waited for: that would be for its connections

    async def _end(self) -> None:
        await self._close_port()
        await self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _cut(self) -> int:
        links, self._links = self._links, set()
        for link in links:
            link.reset()
        self._count(cut=len(links))
        await asyncio.sleep(0)  # a socket is closed in the loop's next turn
        return len(links)

    async def _refuse(self) -> int:
        if self._server is not None:
            self._count(refusals=1)
        await self._close_port()
        return await self._cut()

    async def _fault(self, **fault: float) -> None:
        self._faults = replace(self._faults, **fault)  # type: ignore[arg-type]

    async def _half_open(self) -> int:
        self._faults = replace(self._faults, is_half_open=True)
        for link in self._links:
            self._silence(link)
        return len(self._links)

    async def _arm(self, whose: str) -> None:
        self._commit_of.append(whose.encode())

    async def _heal(self) -> None:
        self._faults = Faults()
        await self._listen()

    def _silence(self, link: Link) -> None:
        if not link.is_silent:
            link.is_silent = True
            self._count(silent=1)

    def _count(self, **more: int) -> None:
        self.landed = replace(self.landed, **{name: getattr(self.landed, name) + n for name, n in more.items()})

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(writer)
        self._links.add(link)
        self._count(accepted=1)
        no_delay(writer)
        try:
            if self._faults.is_half_open:
                self._silence(link)
                await self._swallow(reader)
                return
            try:
                answers, link.upstream = await asyncio.open_connection(HOST, self.upstream_port, limit=READ_BYTES)
            except OSError:
                self._count(unreachable=1)
                return
            no_delay(link.upstream)
            link.tasks = [
                asyncio.create_task(self._flow(link, reader, link.upstream, is_request=True)),
                asyncio.create_task(self._flow(link, answers, writer, is_request=False)),
            ]
            await asyncio.wait(link.tasks, return_when=asyncio.FIRST_COMPLETED)
            if link.is_silent and link in self._links:  # the other side is told nothing
                await asyncio.wait(link.tasks, timeout=FORGOTTEN_S)
        except asyncio.CancelledError:
            pass  # the streams' own callback would report it as an error
        finally:
            self._links.discard(link)
            link.reset()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(READ_BYTES):
                self._count(swallowed_bytes=len(piece))

    async def _flow(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool
    ) -> None:
        """One direction, until its sender closes. What is under way arrives first; then the other side is closed."""
        way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED)
        carrier = asyncio.create_task(self._carry(link, way, writer))
        try:
            with contextlib.suppress(OSError):
                while piece := await self._read(reader, way):
                    if is_request and len(link.first_bytes) < 1024:
                        link.first_bytes += piece
                    if not is_request and self._is_cut_at_commit(link, piece):
                        return
                    await way.put((self._loop.time() + self._faults.delay_s, piece))
            await way.put((0.0, b""))
            await carrier
        finally:
            carrier.cancel()

    async def _read(self, reader: asyncio.StreamReader, way: asyncio.Queue[tuple[float, bytes]]) -> bytes:
        """The next piece. Of a throttled connection it is small, and taken when the one before is through."""
        if (speed := self._faults.bytes_per_s) is not None:
            await way.join()
            return await reader.read(max(1, min(READ_BYTES, int(speed / SLICES_PER_S))))
        return await reader.read(READ_BYTES)

    async def _carry(self, link: Link, way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, piece = await way.get()
                if (late := due - self._loop.time()) > 0:
                    self._count(delayed_bytes=len(piece))
                    await asyncio.sleep(late)
                if link.is_silent:
                    self._count(swallowed_bytes=len(piece))
                elif not piece:
                    await self._finish(writer)
                    return
                else:
                    await self._send(piece, writer)
                way.task_done()
                if not piece:
                    return

    async def _finish(self, writer: asyncio.StreamWriter) -> None:
        """The sender is done; so the other side is told, in order."""
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _send(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        while piece and (speed := self._faults.bytes_per_s) is not None:
            part, piece = piece[: (size := max(1, int(speed / SLICES_PER_S)))], piece[size:]
            await asyncio.sleep(len(part) / speed)
            self._count(throttled_bytes=len(part), passed_bytes=len(part))
            writer.write(part)
            await writer.drain()
        if piece:
            self._count(passed_bytes=len(piece))
            writer.write(piece)
            await writer.drain()

    def _is_cut_at_commit(self, link: Link, answer: bytes) -> bool:
        """Whether this answer says that a COMMIT was made which its client is not to hear of."""
        if not self._commit_of:
            return False
        seen, link.tail = link.tail + answer, answer[-len(COMMITTED) :]
        whose = next((whose for whose in self._commit_of if whose in link.first_bytes), None)
        if whose is None or COMMITTED not in seen:
            return False
        self._commit_of.remove(whose)
        self._count(commits_cut=1, cut=1)
        self._links.discard(link)
        reset(link.client)
        return True


def no_delay(writer: asyncio.StreamWriter) -> None:
    """Send at once what there is."""
    connection: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN; nothing that waits is sent. Repeatable."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and not writer.is_closing():
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
