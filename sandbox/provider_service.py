"""The scriptable provider's conduct: what happens to one request, and what is counted.

A request passes: key, shape, limits, fault, poison, delay, answer. It is an ASGI application because some faults need
the connection itself. Tokens are counted as cl100k_base and billed when vectors were computed for them, whether or not
the client ever reads them. Error prose quotes texts and key on purpose: a client that repeats it is found out.
Knows nothing of ports and processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson
from pydantic import ValidationError
from rs_bpe.bpe import openai
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from sandbox.provider_answers import BLOCK, Asked, Reply, answer, error
from sandbox.provider_limits import Limiter, retry_after
from sandbox.provider_script import HARMLESS, UNBILLED, Chance, Script

LARGE = 100_000  # numbers in an answer above which a thread writes it, so that the loop keeps answering

connections: dict[Any, asyncio.Transport] = {}  # by the client's address, for the faults that break one


@dataclass
class Stats:
    """What happened since the start. tokens: billed; admitted: charged against the limits; wasted: billed, but the
    client was gone or got a spoilt answer. again: billed for texts that had been billed before (`count_texts`)."""

    requests: int = 0
    refused: int = 0
    answered: int = 0
    inputs: int = 0
    tokens: int = 0
    tokens_admitted: int = 0
    tokens_wasted: int = 0
    tokens_again: int = 0
    tokens_in_flight: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    abandoned: int = 0
    poisoned: int = 0
    bytes_sent: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    elsewhere: int = 0
    elsewhere_keys: int = 0


@dataclass
class Provider:
    """The server's state. `script` may be set at any time; `url` is the base URL for OpenAI clients. clock: seconds
    that only go forward, for limits."""

    key: str
    script: Script = field(default_factory=Script)
    clock: Callable[[], float] = time.monotonic
    url: str = ""
    elsewhere_url: str = ""
    stats: Stats = field(default_factory=Stats)
    texts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.count = openai.cl100k_base().count
        self.began = self.clock()
        self.set(self.script)

    def set(self, script: Script) -> None:
        """Behave like this from the next request on. Budgets in use stay as they are where `limits` is unchanged."""
        if script.limits != self.script.limits or not hasattr(self, "limiter"):
            self.limiter = Limiter(script.limits, self.clock())
        self.script = script
        self.chance = Chance(script)

    def shown(self) -> dict[str, Any]:
        """The stats as JSON, with `at_s` since the start and `next_left` of the script's planned faults."""
        stats = asdict(replace(self.stats, faults=Counter(), statuses=Counter()))
        stats["faults"] = dict(self.stats.faults)
        stats["statuses"] = {str(status): count for status, count in self.stats.statuses.items()}
        return {**stats, "at_s": self.clock() - self.began, "next_left": self.chance.left}

    def is_known(self, request: Request) -> bool:
        """Whether the request carries the key, as OpenAI or as Azure wants it."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("api-key", "")
        return hmac.compare_digest(given.encode(), self.key.encode())

    # --- one request

    async def embeddings(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST embeddings, as an ASGI application: some faults need the connection itself."""
        request = Request(scope, receive)
        stats = self.stats
        stats.requests += 1
        body = await request.body()
        asked = self._read(request, body)
        if isinstance(asked, Reply):
            await self._send(asked, scope, receive, send)
            return
        tokens = asked.usage or 0
        refusal = self._limited(asked, tokens)
        if refusal is not None:
            await self._send(refusal, scope, receive, send)
            return
        stats.tokens_admitted += tokens
        stats.tokens_in_flight += tokens
        stats.in_flight += 1
        stats.most_in_flight = max(stats.most_in_flight, stats.in_flight)
        try:
            await self._admitted(asked, tokens, (scope, receive, send))
        finally:
            stats.tokens_in_flight -= tokens
            stats.in_flight -= 1

    def _read(self, request: Request, body: bytes) -> Asked | Reply:
        """The request, or why it is refused."""
        if not self.is_known(request):
            return error(401, "Incorrect API key provided", "invalid_request_error", "invalid_api_key")
        script = self.script
        try:
            document = orjson.loads(body)
            model = request.path_params.get("deployment") or document["model"]
            texts = document["input"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return _invalid("we could not parse the JSON body of your request")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            return _invalid("'$.input' is invalid", "input")
        if model not in script.models:
            return error(
                404, f"The model `{model}` does not exist", "invalid_request_error", "model_not_found", "model"
            )
        counts = [self.count(text) for text in texts]
        if len(texts) > script.most_inputs or sum(counts) > script.most_tokens:
            return _invalid(f"{len(texts)} inputs of {sum(counts)} tokens are more than a request takes", "input")
        if max(counts) > script.most_input_tokens:
            return _invalid(f"This model's maximum context length is {script.most_input_tokens} tokens", "input")
        dimensions = document.get("dimensions", script.dimensions)
        if not isinstance(dimensions, int) or dimensions < 1:
            return _invalid("'dimensions' is invalid", "dimensions")
        is_base64 = document.get("encoding_format") == "base64" and script.encoding == "asked"
        name = script.answers_as or model
        return Asked(texts, dimensions, is_base64, name, script.model_seed, sum(counts))

    def _limited(self, asked: Asked, tokens: int) -> Reply | None:
        refusal = self.limiter.admit(tokens, self.clock())
        if refusal is None:
            return None
        self.stats.refused += 1
        wait = {} if refusal.wait_s is None else retry_after(refusal.wait_s)
        return error(429, f"{refusal.message} Model {asked.model}", refusal.what, "rate_limit_exceeded", None, **wait)

    async def _admitted(self, asked: Asked, tokens: int, connection: tuple[Scope, Receive, Send]) -> None:
        """Fault, poison, delay, answer; the client may leave at any point."""
        scope, receive, send = connection
        stats = self.stats
        poisoned = self._poisoned(asked)
        fault = None if poisoned else self.chance.fault()
        delay_s = self.chance.latency(tokens)
        if fault is not None:
            stats.faults[fault] += 1
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            if delay_s > 0:
                await asyncio.wait([gone], timeout=delay_s)
            if poisoned or fault in UNBILLED:
                await self._send(poisoned or self._unbilled(fault or "", asked), scope, receive, send, gone)
                return
            self._bill(asked, tokens)
            reply = await self._answered(asked, fault)
            stats.abandoned += gone.done()
            if gone.done() or (fault is not None and fault not in HARMLESS):
                stats.tokens_wasted += tokens
            await self._send(reply, scope, receive, send, gone)
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    def _poisoned(self, asked: Asked) -> Reply | None:
        """The refusal of a request with a marked text; it quotes the text, as some providers do."""
        poison = self.script.poison
        found = next((text for text in asked.texts if any(marker in text for marker in poison.markers)), None)
        if found is None:
            return None
        self.stats.poisoned += 1
        message = f"Input rejected by policy: {found!r}"
        return error(poison.status, message, "invalid_request_error", poison.code, poison.param)

    async def _answered(self, asked: Asked, fault: str | None) -> Reply:
        told = asked if self.script.usage else replace(asked, usage=None)
        if len(asked.texts) * asked.dimensions > LARGE:
            return await asyncio.to_thread(answer, told, fault)
        return answer(told, fault)

    def _bill(self, asked: Asked, tokens: int) -> None:
        self.stats.answered += 1
        self.stats.inputs += len(asked.texts)
        self.stats.tokens += tokens
        if self.script.count_texts:
            for text in asked.texts:
                name = hashlib.sha256(text.encode()).hexdigest()
                self.texts[name] += 1
                if self.texts[name] > 1:
                    self.stats.tokens_again += self.count(text)

    def _unbilled(self, fault: str, asked: Asked) -> Reply:
        """The answer of a fault that costs nothing. Each quotes what it can of the request."""
        quoted = f"while processing {asked.texts[0]!r}"
        wait_s = self.script.faults.retry_after_s
        wait = {} if wait_s is None else retry_after(wait_s)
        if fault == "silent":
            return Reply(ending="silent")
        if fault == "redirect":
            return Reply(307, headers={"location": f"{self.elsewhere_url}/v1/embeddings"})
        if fault == "quota":
            kind = "insufficient_quota"
            return error(429, f"You exceeded your current quota, {quoted}", kind, kind, None, **wait)
        if fault == "throttled":
            return error(429, f"Rate limit reached {quoted}", "requests", "rate_limit_exceeded", None, **wait)
        status = int(fault.removeprefix("status-"))
        if status == 502:
            return Reply(
                502, f"<html><body>502 Bad Gateway {quoted}</body></html>".encode(), {"content-type": "text/html"}
            )
        codes = {401: "invalid_api_key", 404: "model_not_found"}
        kind = "server_error" if status >= 500 else "invalid_request_error"
        param = "model" if status == 404 else None
        extra = wait if status == 503 else {}
        return error(status, f"Status {status} {quoted}, key {self.key}", kind, codes.get(status), param, **extra)

    # --- the wire

    async def _send(
        self, reply: Reply, scope: Scope, receive: Receive, send: Send, gone: asyncio.Future[None] | None = None
    ) -> None:
        """Put a reply on the wire, in the way it ends."""
        waiting = gone or asyncio.ensure_future(_disconnected(receive))
        try:
            if reply.ending == "silent":
                await waiting
                return
            self.stats.statuses[reply.status] += 1
            headers = {**reply.headers, **self.limiter.headers(self.clock())}
            length = 1024 * BLOCK if reply.ending == "endless" else len(reply.body)
            if reply.ending != "endless":
                headers["content-length"] = str(length)
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": reply.status, "headers": raw})
            if reply.ending == "whole":
                await self._write(send, reply.body, more=False)
            elif reply.ending == "hang":
                await waiting
            elif reply.ending == "reset":
                await self._write(send, reply.body[: len(reply.body) // 2], more=True)
                await _reset(scope, waiting)
            else:
                await self._pour(send, reply.body, waiting)
        finally:
            if gone is None:
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    async def _write(self, send: Send, body: bytes, *, more: bool) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self.stats.bytes_sent += len(body)

    async def _pour(self, send: Send, head: bytes, gone: asyncio.Future[None]) -> None:
        """Blanks without an end in sight, as long as the client reads them."""
        await self._write(send, head, more=True)
        for _ in range(self.script.faults.oversized_mb):
            if gone.done():
                return
            await self._write(send, b" " * BLOCK, more=True)
            await asyncio.sleep(0)
        await self._write(send, b"]}", more=False)

    # --- the other paths

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        if not self.is_known(request):
            return JSONResponse({"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}, 401)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "sandbox"} for name in self.script.models]
        return JSONResponse({"object": "list", "data": data})

    async def show_stats(self, request: Request) -> Response:
        """GET /stats, without a key."""
        return JSONResponse(self.shown())

    async def show_texts(self, request: Request) -> Response:
        """GET /stats/texts: hashes only, never a text."""
        return JSONResponse(dict(self.texts))

    async def put_script(self, request: Request) -> Response:
        """PUT /script: the whole behaviour, from the next request on."""
        if not self.is_known(request):
            return JSONResponse({"error": "the key is needed"}, 401)
        try:
            self.set(Script.model_validate_json(await request.body()))
        except ValidationError as invalid:
            return JSONResponse({"error": str(invalid)}, 422)
        return JSONResponse(self.script.model_dump(mode="json"))

    async def receive_elsewhere(self, request: Request) -> Response:
        """What a client sends to the origin that redirects name."""
        self.stats.elsewhere += 1
        sent = str(request.headers.raw) + str(request.url)
        self.stats.elsewhere_keys += self.key in sent
        return JSONResponse({"object": "list", "data": []})


def _invalid(message: str, param: str | None = None) -> Reply:
    return error(400, message, "invalid_request_error", None, param)


async def _disconnected(receive: Receive) -> None:
    """Return when the client has gone; the request's body has been read."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def _reset(scope: Scope, gone: asyncio.Future[None]) -> None:
    """Break the connection so that the client sees a reset; without one (no server below), as a failed send."""
    transport = connections.get(tuple(scope.get("client") or ()))
    if transport is None:
        raise ConnectionResetError("reset by script")
    raw: socket.socket = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await gone
