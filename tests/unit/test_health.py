"""`revector health`: yes while the main loop turns, no for everything else, within two seconds."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn

import pytest

from daemon import config
from daemon.cli.app import build
from daemon.cli.frame import ExitCode, Frame, run
from daemon.cli.health import LIMIT_S, unfit

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
Asked = Callable[[str], int]


def no_parts(_: config.Loaded) -> NoReturn:
    raise AssertionError("health asked for parts")


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """Runs the command with this http.listen; the exit code."""
    path = shutil.copy(EXAMPLE, tmp_path / "revector.toml")

    def ask(listen: str) -> int:
        words = ["health", "--config", str(path), "--set", f'http.listen="{listen}"']
        return run(build(), words, Frame(parts=no_parts, environ={}))

    return ask


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A process whose /livez answers with `status`; everything else is 404. Its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/livez" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_turning_loop_is_yes_also_where_every_interface_is_listened_at(host: str, asked: Asked) -> None:
    with answering(200) as port:
        assert asked(f"{host}:{port}") == ExitCode.YES


def test_a_loop_that_does_not_turn_is_no(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(503) as port:
        assert asked(f"127.0.0.1:{port}") == ExitCode.NO
    assert "does not turn" in capsys.readouterr().out


def test_nobody_there_is_no(asked: Asked) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert asked(f"127.0.0.1:{port}") == ExitCode.NO


def test_silence_is_no_after_the_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert unfit("127.0.0.1", silent.getsockname()[1]) == f"no answer within {LIMIT_S:.0f} s"


def test_what_is_no_http_is_no() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example.com\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        assert unfit("127.0.0.1", server.getsockname()[1]) == "nothing answers at http.listen"
        thread.join()


def test_any_free_port_cannot_be_asked(asked: Asked) -> None:
    assert asked("127.0.0.1:0") == ExitCode.USAGE
