"""The sandbox's TCP proxy: each fault lands, is counted, and ends with `heal`."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from sandbox.parts import Ports
from sandbox.proxy import COMMITTED, HOST, Proxy

LIMIT_S = 10.0
STARTUP = b"\x00\x00\x00\x30\x00\x03\x00\x00application_name\x00%s\x00\x00"


class Upstream:
    """Answers each piece with the same bytes, or, where the piece is a question it knows, with its answer."""

    def __init__(self, port: int) -> None:
        self.got = b""
        self._listening = socket.create_server((HOST, port))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            connection, peer = self._listening.accept()
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=[connection]))
            self._threads[-1].start()
            if peer == self._last:
                return

    _last: object = None

    def _serve(self, connection: socket.socket) -> None:
        try:
            while piece := connection.recv(65536):
                self.got += piece
                connection.sendall(COMMITTED if piece == b"COMMIT" else piece)
        except OSError:
            return

    def close(self) -> None:
        with socket.socket() as last:
            last.bind((HOST, 0))
            self._last = last.getsockname()
            last.connect(self._listening.getsockname())
            self._threads[0].join(LIMIT_S)
        for connection in (*self._open, self._listening):
            connection.close()
        for thread in self._threads:
            thread.join(LIMIT_S)


@pytest.fixture
def ports() -> Iterator[Ports]:
    taken = Ports()
    yield taken
    taken.release()


@pytest.fixture
def upstream(ports: Ports) -> Iterator[Upstream]:
    server = Upstream(ports.take())
    yield server
    server.close()


@pytest.fixture
def proxy(ports: Ports, upstream: Upstream) -> Iterator[Proxy]:
    with Proxy(ports.take(), upstream._listening.getsockname()[1]) as started:
        yield started


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Callable[[], socket.socket]]:
    opened: list[socket.socket] = []

    def call() -> socket.socket:
        opened.append(socket.create_connection((HOST, proxy.port), LIMIT_S))
        return opened[-1]

    yield call
    for connection in opened:
        connection.close()


def asked(connection: socket.socket, question: bytes = b"ping", size: int | None = None) -> bytes:
    """The answer, as long as the question unless told otherwise."""
    connection.sendall(question)
    answer = b""
    while len(answer) < (len(question) if size is None else size):
        if not (piece := connection.recv(65536)):
            raise EOFError
        answer += piece
    return answer


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


Connect = Callable[[], socket.socket]


def test_bytes_pass_both_ways_and_an_end_is_told(proxy: Proxy, connect: Connect) -> None:
    client, much = connect(), bytes(range(256)) * 4096
    sender = threading.Thread(target=client.sendall, args=[much])
    sender.start()
    assert asked(client, b"", len(much)) == much
    sender.join()
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    until(lambda: proxy.open_connections == 0)
    assert (proxy.landed.accepted, proxy.landed.cut, proxy.landed.passed_bytes) == (1, 0, 2 * len(much))


def test_cut_resets_what_is_open_and_serves_what_comes(proxy: Proxy, connect: Connect) -> None:
    clients = [connect(), connect()]
    assert [asked(client) for client in clients] == [b"ping", b"ping"]
    assert proxy.cut() == 2
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert asked(connect()) == b"ping"
    assert proxy.landed.cut == 2


def test_refused_until_healed(proxy: Proxy, connect: Connect) -> None:
    client = connect()
    asked(client)
    assert proxy.refuse() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect()
    proxy.heal()
    assert asked(connect()) == b"ping"
    assert (proxy.landed.refusals, proxy.landed.cut) == (1, 1)


def test_half_open_swallows_in_silence_and_never_wakes(proxy: Proxy, upstream: Upstream, connect: Connect) -> None:
    old = connect()
    asked(old, b"before")
    assert proxy.half_open() == 1
    new = connect()
    for client in (old, new):
        client.sendall(b"lost")
    until(lambda: proxy.landed.swallowed_bytes == 8)
    proxy.heal()
    assert asked(connect(), b"after") == b"after"
    for client in (old, new):
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
    assert b"lost" not in upstream.got
    assert proxy.landed.silent == 2
    old.close()
    assert upstream._open[0].fileno() >= 0
    upstream._open[0].setblocking(False)
    with pytest.raises(BlockingIOError):  # nobody told the server
        upstream._open[0].recv(1)


def test_delay_is_one_way_time(proxy: Proxy, connect: Connect) -> None:
    client = connect()
    asked(client)
    proxy.delay(0.15)
    began = time.monotonic()
    asked(client)
    assert time.monotonic() - began >= 0.3
    assert proxy.landed.delayed_bytes == 8
    proxy.heal()
    asked(client)
    assert proxy.landed.delayed_bytes == 8


def test_throttle_bounds_the_speed(proxy: Proxy, connect: Connect) -> None:
    client = connect()
    asked(client)
    proxy.throttle(100_000)
    began = time.monotonic()
    asked(client, bytes(20_000))
    assert time.monotonic() - began >= 0.2
    assert proxy.landed.throttled_bytes == 40_000


def test_commit_is_made_and_its_client_never_hears(proxy: Proxy, upstream: Upstream, connect: Connect) -> None:
    mine, other = connect(), connect()
    asked(mine, STARTUP % b"revector:m:stream")
    asked(other, STARTUP % b"revector:m:pulse")
    proxy.cut_at_commit("m:stream")
    assert asked(other, b"COMMIT", len(COMMITTED)) == COMMITTED
    assert asked(mine, b"insert") == b"insert"
    mine.sendall(b"COMMIT")
    with pytest.raises(ConnectionResetError):
        mine.recv(1)
    assert upstream.got.count(b"COMMIT") == 2
    assert (proxy.landed.commits_cut, proxy.landed.cut) == (1, 1)
    again = connect()
    asked(again, STARTUP % b"revector:m:stream")
    assert asked(again, b"COMMIT", len(COMMITTED)) == COMMITTED  # each call cuts one


def test_upstream_that_is_away_ends_the_connection(ports: Ports) -> None:
    with Proxy(ports.take(), ports.take()) as proxy:
        with (  # which may come before connect has returned
            pytest.raises(ConnectionResetError),
            socket.create_connection((HOST, proxy.port), LIMIT_S) as client,
        ):
            client.recv(1)
        assert proxy.landed.unreachable == 1


def test_stop_is_repeatable_and_frees_the_port(ports: Ports, upstream: Upstream) -> None:
    port, to = ports.take(), upstream._listening.getsockname()[1]
    for _ in range(2):
        proxy = Proxy(port, to).start()
        proxy.stop()
        proxy.stop()
        assert not proxy._thread.is_alive()


@pytest.mark.parametrize("turns", range(6))
def test_a_connection_that_is_just_taken_is_refused_too(proxy: Proxy, turns: int) -> None:
    """A server of asyncio's that is closed in the turn after it took a connection neither serves nor closes it."""

    async def refused_after() -> socket.socket:
        client = socket.create_connection((HOST, proxy.port), LIMIT_S)
        for _ in range(turns):
            await asyncio.sleep(0)
        await proxy._refuse()
        return client

    with proxy._call(refused_after()) as client, suppress(ConnectionResetError):
        assert client.recv(1) == b""
    gc.collect()
