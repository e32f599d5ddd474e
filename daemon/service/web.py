"""A running process, asked over HTTP: `/livez`, `/readyz`, `/v1/status`, `/metrics` and a page for people at `/`.

The server has a thread and an event loop of its own and reads what the main loop left behind (its last turn, the last
status, counts); it never waits for the main loop, so a blocked one is seen here instead of blocking this too. There is
no authentication and nothing to change: answers carry numbers, names and ids only.
"""

from __future__ import annotations

import asyncio
import errno
import html
import logging
import socket
import threading
from importlib import resources
from string import Template

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from daemon.core.face import as_json, render_text
from daemon.errors import ConfigError, HeldElsewhere, PermissionRefused, Problem, RevectorError
from daemon.service.instruments import Sources
from daemon.service.telemetry import CONTENT_TYPE, Telemetry

log = logging.getLogger(__name__)

ALIVE_S = 10.0  # the main loop turns twice a second; a longest CPU-bound step takes well under a second
START_S = 10.0
DRAIN_S = 2  # what an answer under way gets at the end
PAGE_WIDTH = 110
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Web:
    """Listens between `start` and `stop`; a context manager does both.

    address: (host, port), port 0 for any free one.
    """

    def __init__(self, address: tuple[str, int], sources: Sources, telemetry: Telemetry) -> None:
        self._address = address
        self._app = _Answers(sources, telemetry).app()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Listen, and answer from here on; the base URL with the real port.

        Raises HeldElsewhere `port-taken`, PermissionRefused `port-forbidden`, ConfigError `listen-unavailable`.
        """
        sock = _listening(self._address)
        config = uvicorn.Config(
            self._app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_S,
        )
        self._server = _Server(config, sock)
        self._thread = threading.Thread(target=self._server.serve_here, name="web", daemon=True)
        self._thread.start()
        self._server.up.wait(START_S)
        host, port = sock.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("status and metrics at %s", url)
        return url

    def stop(self) -> None:
        """End answers under way, close the port and the thread. May be called twice."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is not None and thread is not None:
            server.should_exit = True
            thread.join(DRAIN_S + START_S)
            if thread.is_alive():
                log.warning("the web server did not end")

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(uvicorn.Server):
    """uvicorn on a socket that listens already. `up` is set once it answers, or has failed."""

    def __init__(self, config: uvicorn.Config, sock: socket.socket) -> None:
        super().__init__(config)
        self._sock = sock
        self.up = threading.Event()

    def serve_here(self) -> None:
        """Until `should_exit`, in this thread. The main loop does not depend on it: a failure is said and left."""
        try:
            asyncio.run(self.serve([self._sock]))
        except Exception:
            log.exception("the web server failed: status and metrics are not served")
        finally:
            self._sock.close()
            self.up.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


def _listening(address: tuple[str, int]) -> socket.socket:
    host, port = address
    where, hint = f"http.listen {host}:{port}", 'set listen = "127.0.0.1:0" under [http] for any free port'
    try:
        family, _, _, _, resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(resolved[:2], family=family)
    except PermissionError as error:
        raise PermissionRefused("port-forbidden", f"{where}: not allowed", hint) from error
    except OSError as error:
        raise _unavailable(error, where, hint) from error


def _unavailable(error: OSError, where: str, hint: str) -> RevectorError:
    if error.errno == errno.EADDRINUSE:
        return HeldElsewhere("port-taken", f"{where}: another process listens there", hint)
    message = "not an address of this machine"
    return ConfigError([Problem("listen-unavailable", where, message, hint)])


class _Answers:
    """One method per path. Each takes what is there and answers at once."""

    def __init__(self, sources: Sources, telemetry: Telemetry) -> None:
        self._sources, self._telemetry = sources, telemetry
        self._page = Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))

    def app(self) -> Starlette:
        paths = {
            "/": self.page,
            "/livez": self.live,
            "/readyz": self.ready,
            "/v1/status": self.status,
            "/metrics": self.metrics,
        }
        return Starlette(routes=[Route(path, answer, methods=["GET"]) for path, answer in paths.items()])

    async def live(self, request: Request) -> Response:
        """Whether the main loop turns, nothing else: a restart cures nothing but that."""
        turned_at = self._sources.running.turned_at
        age = self._sources.clock() - turned_at
        if not turned_at:
            return _text("the main loop has not turned yet", 503)
        return _text("ok") if age <= ALIVE_S else _text(f"the main loop has not turned for {age:.0f} s", 503)

    async def ready(self, request: Request) -> Response:
        running = self._sources.running
        if running.halted_by is not None:
            return _text(f"halted: {running.halted_by}", 503)
        return _text("ok") if running.is_ready else _text("starting", 503)

    async def status(self, request: Request) -> Response:
        """The last status, or why there is none to believe."""
        newest, fresh = self._sources.last.newest(), self._sources.last.fresh()
        if fresh is not None:
            return _json(as_json(fresh))
        if newest is None:
            return _json(_error("status-not-made", "no status has been made yet", "ask again in some seconds"), 503)
        message = f"the last status is {newest[1]:.0f} s old"
        return _json(_error("status-stale", message, "see /livez and the log of this process"), 503)

    async def metrics(self, request: Request) -> Response:
        scraped = self._telemetry.scrape()
        if scraped is None:
            return _text("not chosen by OTEL_METRICS_EXPORTER: set it to prometheus", 404)
        return Response(scraped, headers=HEADERS, media_type=CONTENT_TYPE)

    async def page(self, request: Request) -> Response:
        """The status as text; for a browser, in a page that renews it."""
        text = "\n".join(self._lines())
        if "text/html" not in request.headers.get("accept", ""):
            return _text(text)
        return Response(self._page.substitute(text=html.escape(text)), headers=HEADERS, media_type="text/html")

    def _lines(self) -> list[str]:
        newest = self._sources.last.newest()
        if newest is None:
            return ["No status has been made yet."]
        status, age = newest
        lines = render_text(status, PAGE_WIDTH)
        return lines if self._sources.last.fresh() else [f"OUT OF DATE: observed {age:.0f} s ago.", "", *lines]


def _text(text: str, code: int = 200) -> Response:
    return PlainTextResponse(f"{text}\n", code, HEADERS)


def _json(document: dict[str, object], code: int = 200) -> Response:
    return Response(orjson.dumps(document), code, HEADERS, "application/json")


def _error(id: str, message: str, hint: str) -> dict[str, object]:
    return {"schema": "revector.error/1", "error": {"id": id, "message": message, "hint": hint}}
