"""OpenAI's embeddings endpoint, Azure's, or one that speaks like them: `daemon.ports.Embedder`.

The official client carries requests and TLS; its retries are off, because backoff and Retry-After belong to the caller
and a hidden retry would cost tokens twice. Bodies go out and come in raw, in `orjson` (`embedding_answers`).

The key goes to the configured origin only: redirects are refused, and ambient OPENAI_* settings are not used. An
answer may be no larger than its vectors need, decompressed, whatever its status; a request takes no longer than its
limit, from the first byte sent to the last one read. The provider's prose can quote the input; errors carry status,
code and parameter, nothing else.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import parse_qsl, urlsplit

import httpx2
import openai
import orjson
from openai import AsyncOpenAI, Omit, omit

from connectors.embedding_answers import Answer, checked, read_answer, wrong, wrong_dimension
from connectors.provider_errors import of_status, rates_of
from daemon.errors import ItemRefused, ProviderWrong, TransientError
from daemon.ports import Embedded

CONNECT_TIMEOUT_S = 10.0
MOST_CONNECTIONS = 256  # as many requests as one process may have in flight

# Room for an answer: a number as text takes up to 24 bytes and may stand on a line of its own.
BYTES_PER_NUMBER = 32
BYTES_BESIDE = 64 * 1024
READ_AT_ONCE = 4 * 2**20  # a larger answer is decoded beside the loop, which would stand still for a tenth of a second
LONGEST_VECTOR = 8192  # what a model may give that has not been asked for fewer dimensions yet

# Model families that give their full length unless told a shorter one.
SHORTENED = "text-embedding-3"

_most_bytes: ContextVar[int] = ContextVar("most_bytes")


class OpenAIEmbedder:
    """Implements `daemon.ports.Embedder`.

    base_url may carry a query, which goes with every request. api_key None: no key is sent. `dimensions` is asked for
    where the model is known to need it, and after an answer of another length; many servers refuse the parameter
    otherwise. normalised: whether vectors must have length 1.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        model: str,
        dimensions: int,
        timeout_s: float = 60.0,
        normalised: bool = False,
    ) -> None:
        timeout = httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        address = urlsplit(base_url)
        self._client = AsyncOpenAI(
            api_key="none",  # the client never has the key: what it sends is in `_headers`
            base_url=address._replace(query="").geturl(),
            default_query=dict(parse_qsl(address.query)) or None,
            max_retries=0,
            timeout=timeout,
            http_client=httpx2.AsyncClient(
                timeout=timeout,
                follow_redirects=False,
                limits=httpx2.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=MOST_CONNECTIONS),
                event_hooks={"response": [_bound]},
            ),
        )
        self._client.organization = self._client.project = self._client.admin_api_key = None
        self._headers: dict[str, str | Omit] = {
            "Authorization": omit,  # an omitted header has to be said with each request
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            **(self.key_headers(api_key) if api_key else {}),
        }
        self._model, self._dimensions, self._normalised = model, dimensions, normalised
        self._timeout_s = timeout_s
        self._asks_dimensions = SHORTENED in model
        self._is_settled = self._asks_dimensions  # the length that the server gives is known

    def key_headers(self, api_key: str) -> dict[str, str]:
        """How the key travels."""
        return {"Authorization": f"Bearer {api_key}"}

    async def embed(self, texts: Sequence[str]) -> Embedded:
        response, answer = await self._request(texts, asks_dimensions=self._asks_dimensions)
        tokens, found = answer.tokens, answer.vectors.shape[1]
        if found != self._dimensions and not self._asks_dimensions:
            try:
                response, answer = await self._request(texts, asks_dimensions=True)
            except (ItemRefused, ProviderWrong) as error:
                what = f"{found}, and no other where `dimensions` is asked for,"
                raise wrong_dimension(what, self._dimensions) from error
            tokens += answer.tokens
        vectors = checked(answer.vectors, self._dimensions, normalised=self._normalised)
        self._asks_dimensions = self._asks_dimensions or found != self._dimensions
        self._is_settled = True
        return Embedded(vectors, tokens, answer.model, rates_of(response.headers))

    async def close(self) -> None:
        """May be called twice."""
        await self._client.close()

    async def _request(self, texts: Sequence[str], *, asks_dimensions: bool) -> tuple[httpx2.Response, Answer]:
        body: dict[str, object] = {"input": list(texts), "model": self._model, "encoding_format": "base64"}
        if asks_dimensions:
            body["dimensions"] = self._dimensions
        longest = self._dimensions if self._is_settled else max(self._dimensions, LONGEST_VECTOR)
        _most_bytes.set(BYTES_BESIDE + len(texts) * (longest * BYTES_PER_NUMBER + 1024))
        with translated():
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.post(
                    "/embeddings",
                    cast_to=httpx2.Response,
                    content=orjson.dumps(body),
                    options={"headers": self._headers},
                )
        if len(response.content) <= READ_AT_ONCE:
            return response, read_answer(response.content, len(texts))
        return response, await asyncio.to_thread(read_answer, response.content, len(texts))


class AzureEmbedder(OpenAIEmbedder):
    """Azure OpenAI. base_url: `https://NAME.openai.azure.com/openai/v1`, or a deployment's with its `api-version`."""

    def key_headers(self, api_key: str) -> dict[str, str]:
        return {"api-key": api_key}


async def _bound(response: httpx2.Response) -> None:
    """Let the body be read up to its bound only, whatever the status, and count what it is after decompression."""
    encoding = response.headers.pop("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise wrong("provider-answer", "the answer is compressed in a way that was not asked for")
    if not isinstance(response.stream, httpx2.AsyncByteStream):
        raise AssertionError("an asynchronous client has asynchronous streams")
    response.stream = _BoundedStream(response.stream, _most_bytes.get(), is_gzip=encoding == "gzip")


class _BoundedStream(httpx2.AsyncByteStream):
    """A body as it comes, decompressed. Raises ProviderWrong once it is longer than `most` bytes."""

    def __init__(self, stream: httpx2.AsyncByteStream, most: int, *, is_gzip: bool) -> None:
        self._stream, self._most = stream, most
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS) if is_gzip else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._most
        async for part in self._stream:
            piece = self._inflated(part, left + 1)
            left -= len(piece)
            if left < 0:
                message = f"the answer is longer than {self._most} bytes, more than its vectors need"
                raise wrong("provider-answer-too-large", message)
            yield piece

    def _inflated(self, part: bytes, most: int) -> bytes:
        try:
            return self._inflate.decompress(part, most) if self._inflate else part
        except zlib.error as error:
            raise wrong("provider-answer", "the answer cannot be decompressed") from error

    async def aclose(self) -> None:
        await self._stream.aclose()


@contextmanager
def translated() -> Iterator[None]:
    """Raise the client's errors from the block as ours, the provider's prose struck out."""
    try:
        yield
    except (openai.APITimeoutError, TimeoutError) as error:
        hint = "raise limits.request_timeout_s or lower limits.request_inputs of the generation if it goes on"
        raise TransientError("provider-timeout", "provider: the request timed out", hint) from error
    except openai.APIStatusError as error:
        found = of_status(error.status_code, error.body, error.response.headers)
        error.args, error.message, error.body = (f"status {error.status_code}",), "", None
        raise found from error
    except openai.APIConnectionError as error:
        if isinstance(error.__cause__, ProviderWrong):  # of `_bound`
            raise error.__cause__ from None
        hint = "check base_url of the generation and the network"
        raise TransientError("provider-unreachable", "provider: the connection failed", hint) from error
