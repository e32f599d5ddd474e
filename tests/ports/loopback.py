"""A small HTTP server on loopback that answers as a test says: for faults that the real part cannot be made to show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """One request as it came in."""

    line: str
    headers: Mapping[str, str]
    body: bytes


Answer = tuple[int, Mapping[str, str], bytes]  # status, headers, body


@dataclass
class Loopback:
    """Answers requests with `answers` in turn, the last one for ever. hangs: read the request, never answer. raw: sent
    instead of an answer; then the connection is cut, or left open where it hangs. respond: answers by the request."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    hangs: bool = False
    raw: bytes = b""
    respond: Callable[[Request], Answer] | None = None

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """The only answer from here on."""
        self.answers = [(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)]

    def _next(self, request: Request) -> Answer:
        if self.respond is not None:
            return self.respond(request)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := (await reader.readline()).decode().strip():
                headers: dict[str, str] = {}
                while field_line := (await reader.readline()).decode().strip():
                    name, _, value = field_line.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append(Request(line, headers, body))
                if self.raw:
                    writer.write(self.raw)
                    await writer.drain()
                if self.hangs:
                    await reader.read()
                if self.hangs or self.raw:
                    return
                status, extra, content = self._next(self.requests[-1])
                head = [f"HTTP/1.1 {status} Said", f"content-length: {len(content)}"]
                head += [f"{name}: {value}" for name, value in extra.items()]
                writer.write("\r\n".join([*head, "", ""]).encode() + content)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def loopback() -> AsyncIterator[Loopback]:
    """A server for the block."""
    server = Loopback()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
