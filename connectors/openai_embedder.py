"""OpenAI's embeddings endpoint, or one that speaks like it: `daemon.ports.Embedder`.

The official client carries requests and TLS; its retries are off, because backoff and Retry-After belong to the caller
and a hidden retry would cost tokens twice. Answers are read from the raw body (orjson, base64, numpy): 40 times faster
than the client's typed lists. Every answer is checked before a vector leaves this module.

The key goes to the configured origin only: redirects are refused, and ambient OPENAI_* settings are not used. The
provider's prose can quote the input; errors carry status, code and parameter, nothing else.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

import httpx2
import numpy as np
import openai
import orjson
from openai import AsyncOpenAI, Omit, omit

from daemon.errors import ItemRefused, PermissionRefused, ProviderWrong, RevectorError, TransientError
from daemon.ports import Embedded, Matrix

CONNECT_TIMEOUT_S = 10.0

# Model families that give their full length unless told a shorter one.
_SHORTENED = re.compile(r"text-embedding-3")
_WORD = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)
_OURS = ("model", "dimensions", "encoding_format")
_ITEM = (400, 413, 422)
_AGAIN = (408, 409, 425, 429)


class OpenAIEmbedder:
    """Implements `daemon.ports.Embedder`.

    api_key None: no Authorization header is sent. `dimensions` is asked for where the model is known to need it, and
    after an answer of another length; many servers refuse the parameter otherwise.
    """

    def __init__(
        self, base_url: str, api_key: str | None, model: str, dimensions: int, timeout_s: float = 60.0
    ) -> None:
        timeout = httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        # An omitted header has to be said with each request.
        self._headers: dict[str, str | Omit] = {} if api_key else {"Authorization": omit}
        self._client = AsyncOpenAI(
            api_key=api_key or "none",
            base_url=base_url,
            max_retries=0,
            timeout=timeout,
            http_client=httpx2.AsyncClient(timeout=timeout, follow_redirects=False),
        )
        self._client.organization = self._client.project = self._client.admin_api_key = None
        self._model = model
        self._dimensions = dimensions
        self._asks_dimensions = _SHORTENED.search(model) is not None

    async def embed(self, texts: Sequence[str]) -> Embedded:
        return Embedded(*await self._embed(texts))

    async def close(self) -> None:
        """May be called twice."""
        await self._client.close()

    async def _embed(self, texts: Sequence[str]) -> tuple[Matrix, int]:
        rows, tokens = await self._request(texts)
        if not self._asks_dimensions and len(rows[0]) != self._dimensions:
            self._asks_dimensions = True
            rows, again = await self._request(texts)
            tokens += again
        return checked(rows, self._dimensions), tokens

    async def _request(self, texts: Sequence[str]) -> tuple[list[Matrix], int]:
        with translated():
            response = await self._client.embeddings.with_raw_response.create(
                input=list(texts),
                model=self._model,
                encoding_format="base64",
                dimensions=self._dimensions if self._asks_dimensions else omit,
                extra_headers=self._headers,
            )
            body = response.content
        return read_answer(body, len(texts))


def read_answer(body: bytes, count: int) -> tuple[list[Matrix], int]:
    """The vectors of an answer in the order of their index, each float32 (D,), and the tokens billed (0 where the
    answer does not say). Raises ProviderWrong."""
    try:
        answer = orjson.loads(body)
        data = answer["data"]
        by_index = {int(item["index"]): item["embedding"] for item in data}
        usage = answer.get("usage") or {}
        tokens = int(usage.get("total_tokens") or usage.get("prompt_tokens") or 0)
        if len(data) != count:
            raise _wrong("provider-count", f"{len(data)} vectors for {count} texts")
        if set(by_index) != set(range(count)):
            raise _wrong("provider-order", f"the indexes of {count} vectors are not 0 to {count - 1}")
        return [_vector(by_index[index]) for index in range(count)], tokens
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise _wrong("provider-answer", "the answer is not a list of embeddings") from error


def checked(rows: list[Matrix], dimensions: int) -> Matrix:
    """float32 (N, D) of rows that can be vectors of this contract. Raises ProviderWrong."""
    lengths = {len(row) for row in rows}
    if lengths != {dimensions}:
        found = ", ".join(map(str, sorted(lengths - {dimensions})))
        raise _wrong("provider-dimension", f"a vector of length {found} where the contract says {dimensions}")
    matrix = np.stack(rows)
    if not np.isfinite(matrix).all():
        raise _wrong("provider-not-finite", "a vector with a value that is not finite")
    if not matrix.any(axis=1).all():
        raise _wrong("provider-zero-vector", "a vector of zeros only")
    return matrix


def _vector(embedding: str | list[float]) -> Matrix:
    """base64 of little-endian float32, or numbers: some servers ignore `encoding_format`."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    with np.errstate(over="ignore"):  # becomes infinite, which `checked` refuses
        vector = np.asarray(embedding, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError("not a list of numbers")
    return vector


@contextmanager
def translated() -> Iterator[None]:
    """Raise the client's errors from the block as ours, the provider's prose struck out."""
    try:
        yield
    except openai.APITimeoutError as error:
        hint = "raise limits.request_timeout_s or lower limits.embed_batch if it goes on"
        raise TransientError("provider-timeout", "provider: the request timed out", hint) from error
    except openai.APIStatusError as error:
        code, param = _word(error.code), _word(error.param)
        error.args, error.message, error.body = (f"status {error.status_code}",), "", None
        raise _of_status(error.status_code, code, param, error.response.headers) from error
    except openai.APIConnectionError as error:
        hint = "check generation.base_url and the network"
        raise TransientError("provider-unreachable", "provider: no connection", hint) from error


def _of_status(status: int, code: str | None, param: str | None, headers: Mapping[str, str]) -> RevectorError:
    what = f"provider: status {status}, code {code or 'none'}, param {param or 'none'}"
    if status in (401, 403):
        hint = "check generation.api_key (without it no key is sent) and what the key may use"
        return PermissionRefused("provider-key-refused", what, hint)
    if status == 402 or code == "insufficient_quota":
        hint = "the account has no credit left: top it up, embedding goes on by itself"
        return TransientError("provider-quota", what, hint, retry_after_s(headers) or 60.0)
    if status in _AGAIN or status >= 500:
        id = "provider-throttled" if status == 429 else "provider-unavailable"
        return TransientError(id, what, "it is repeated; lower limits if it goes on", retry_after_s(headers))
    if status < 400:
        hint = "put the address that it redirects to into generation.base_url"
        return ProviderWrong("provider-redirects", what, hint)
    if status in _ITEM and param not in _OURS:
        return ItemRefused(status, code, param)
    hint = "check generation.model, generation.dimensions and generation.base_url"
    return ProviderWrong("provider-request-refused", what, hint)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `Retry-After-Ms` or `Retry-After` (RFC 9110, 10.2.3: seconds or a date); never negative."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        if (after := headers.get("retry-after")) is None:
            return None
        if re.fullmatch(r"\d+(\.\d+)?", after, re.ASCII):
            return float(after)
        now = parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()
        return max(0.0, parsedate_to_datetime(after).timestamp() - now)
    except ValueError:
        return None


def _wrong(id: str, message: str) -> ProviderWrong:
    return ProviderWrong(
        id, f"provider: {message}", "nothing was stored; check that model and server are the right ones"
    )


def _word(value: object) -> str | None:
    """A code or parameter name; anything longer or stranger may be prose."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None
