"""A scriptable OpenAI-compatible embeddings server, for tests and benches: limits, delays and every fault on demand.

    POST /v1/embeddings (also /embeddings, /openai/v1/embeddings and Azure's deployment path)   GET /v1/models
    GET /stats    GET /stats/texts (sha256 -> how often billed, with `count_texts`)    PUT /script (needs the key)

Vectors come from the texts' hashes (`vector_of`), tokens are counted as cl100k_base, so both can be foretold exactly.
The same script and the same order of requests give the same faults.

`serving` runs it in the caller's event loop, `ProviderServer` (`python -m sandbox.provider --port N`, its key in
SANDBOX_EMBEDDINGS_KEY) in a process of its own, `application` is it as ASGI. Loopback only. A second origin, where
redirects lead, records whether it was given the key.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sandbox.parts import Part
from sandbox.processes import Guardian, Program
from sandbox.provider_answers import vector_of, vectors_of
from sandbox.provider_script import Script
from sandbox.provider_service import Provider, connections

__all__ = ["Provider", "ProviderServer", "Script", "application", "serving", "vector_of", "vectors_of"]

PATHS = (
    "/v1/embeddings",
    "/embeddings",
    "/openai/v1/embeddings",
    "/openai/deployments/{deployment}/embeddings",
)


class _Protocol(H11Protocol):
    """Remembers each client's connection, for the faults that break one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connections[transport.get_extra_info("peername")] = transport

    def connection_lost(self, exc: Exception | None) -> None:
        connections.pop(self.transport.get_extra_info("peername"), None)
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """Leaves the signals of its process alone and ends at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.stop.wait()


class _Endpoint:
    """Starlette hands a request and wants a response from functions; an object gets the connection itself."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._provider.embeddings(scope, receive, send)


def application(provider: Provider) -> Starlette:
    """The server as an ASGI application."""
    embeddings = _Endpoint(provider)
    return Starlette(
        routes=[
            *(Route(path, embeddings, methods=["POST"]) for path in PATHS),
            Route("/v1/models", provider.models),
            Route("/stats", provider.show_stats),
            Route("/stats/texts", provider.show_texts),
            Route("/script", provider.put_script, methods=["PUT"]),
        ]
    )


def _origins(provider: Provider, elsewhere_port: int) -> ASGIApp:
    """The server, and on another port the origin that redirects lead to."""
    own = application(provider)
    other = Starlette(routes=[Route("/{path:path}", provider.receive_elsewhere, methods=["GET", "POST"])])

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await (other if scope["server"][1] == elsewhere_port else own)(scope, receive, send)

    return dispatch


@contextlib.asynccontextmanager
async def serving(script: Script | None = None, key: str = "test-key", port: int = 0) -> AsyncIterator[Provider]:
    """The server in this event loop for the block. port 0: any free one."""
    provider = Provider(key, script or Script())
    # With the protocol named, asyncio switches Nagle's delay off: 40 ms per answer otherwise.
    listeners = [socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) for _ in range(2)]
    for listener, wanted in zip(listeners, (port, 0), strict=True):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", wanted))
    own, other = (listener.getsockname()[1] for listener in listeners)
    provider.url, provider.elsewhere_url = f"http://127.0.0.1:{own}/v1", f"http://127.0.0.1:{other}"
    config = uvicorn.Config(
        _origins(provider, other),
        http=_Protocol,
        ws="none",
        lifespan="off",
        loop="none",
        date_header=False,
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    task = asyncio.ensure_future(server.serve(sockets=listeners))
    while not server.started and not task.done():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    try:
        yield provider
    finally:
        server.stop.set()
        await task


class ProviderServer(Part):
    """The server's process; `url` is the base URL for OpenAI clients."""

    def __init__(self, guardian: Guardian, port: int, key: str, log: Path) -> None:
        root = str(Path(__file__).resolve().parents[1])
        environment = {"SANDBOX_EMBEDDINGS_KEY": key, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "sandbox.provider", "--port", str(port)]
        super().__init__(guardian, Program("provider", command, log, environment), port)
        self._origin = f"http://127.0.0.1:{port}"
        self._key = key
        self.url = f"{self._origin}/v1"

    def stats(self) -> dict[str, Any]:
        """What it has served, see `provider_service.Stats`."""
        found: dict[str, Any] = httpx2.get(f"{self._origin}/stats").raise_for_status().json()
        return found

    def texts(self) -> dict[str, int]:
        """sha256 of a text -> how often it was billed; needs `count_texts`."""
        found: dict[str, int] = httpx2.get(f"{self._origin}/stats/texts").raise_for_status().json()
        return found

    def set(self, script: Script) -> None:
        """Behave like this from the next request on."""
        headers = {"authorization": f"Bearer {self._key}"}
        httpx2.put(f"{self._origin}/script", content=script.model_dump_json(), headers=headers).raise_for_status()


async def _serve(port: int, key: str) -> None:
    """Serve until this process is told to end."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    async with serving(key=key, port=port):
        await stop.wait()


def main() -> None:
    """Serve on 127.0.0.1; the key comes from SANDBOX_EMBEDDINGS_KEY, not from the visible command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_serve(parser.parse_args().port, os.environ["SANDBOX_EMBEDDINGS_KEY"]))


if __name__ == "__main__":
    main()
