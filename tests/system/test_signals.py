"""A process ends when it is told to, while its provider hangs: in bounded time, or at once; and nothing is lost."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from daemon.service.supervise import DRAIN_S
from sandbox.compare import Differences
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 50) n"
CLOSING_S = 30.0  # connections to four parts, threads, the interpreter


class Hanging:
    """A provider that takes requests and never answers."""

    def __init__(self) -> None:
        self.requests = threading.Semaphore(0)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            if not connection.recv(65536):  # the end: `close` connects and says nothing
                connection.close()
                return
            self._open.append(connection)
            self.requests.release()

    def close(self) -> None:
        socket.create_connection(self._listening.getsockname()).close()
        self._thread.join(10)
        for connection in (*self._open, self._listening):
            connection.close()


@contextmanager
def hanging_provider(m: Migration) -> Iterator[Hanging]:
    """The configuration names a provider that hangs, until the block ends."""
    text = m.config.read_text()
    assert m.stack.embeddings_url in text
    provider = Hanging()
    m.config.write_text(text.replace(m.stack.embeddings_url, provider.url))
    try:
        yield provider
    finally:
        m.config.write_text(text)
        provider.close()


def begun(migrate: Migrate, **limits: int) -> Migration:
    """A migration that has everything embedded, and no process."""
    m = migrate(Setting(rows=ROWS, limits=limits))
    daemon = m.start()
    m.wait("caught-up")
    assert m.stop(daemon) == 0
    return m


def stuck(m: Migration, provider: Hanging, round_: str) -> subprocess.Popen[bytes]:
    """A process with a claim and a request that is not answered, and changes applied behind it."""
    m.source.execute(f"update app.doc set body = '{round_}' || id where id <= 30".encode())
    daemon = m.start()
    assert provider.requests.acquire(timeout=60), f"no request came\n{m.tail()}"
    m.source.execute(f"update app.doc set title = '{round_}' where id = 50".encode())
    m.until(lambda: dict(m.replica()), lambda rows: rows[50] == round_, "a change behind the request")
    return daemon


def nothing_is_lost(m: Migration) -> None:
    m.start()
    m.wait("caught-up")
    assert m.differences() == Differences()


def test_sigterm_drains_within_its_bound_while_the_provider_hangs(migrate: Migrate) -> None:
    m = begun(migrate, claim_lease_s=3600)
    with hanging_provider(m) as provider:
        daemon = stuck(m, provider, "drained ")
        began = time.monotonic()
        assert m.stop(daemon, signal.SIGTERM) == 0, m.tail()
        assert time.monotonic() - began < DRAIN_S + CLOSING_S
    owners = "select count(*) from revector.work where claimed_by is not null"
    assert m.target.execute(owners).fetchone() == (0,), "a claim would hold its rows back for an hour"
    nothing_is_lost(m)


def test_second_signal_leaves_at_once(migrate: Migrate) -> None:
    m = begun(migrate, claim_lease_s=10)
    with hanging_provider(m) as provider:
        for told, (signum, status) in enumerate(((signal.SIGTERM, 143), (signal.SIGINT, 130)), start=2):
            daemon = stuck(m, provider, f"{signum.name} ")
            daemon.send_signal(signum)
            m.until(
                m.log.read_text,
                lambda log, told=told: log.count("draining: ") == told,  # type: ignore[misc]
                "the first signal to be heard",
            )
            began = time.monotonic()
            assert m.stop(daemon, signum) == status, m.tail()
            assert time.monotonic() - began < 10  # half of the drain that it cuts short
    nothing_is_lost(m)
