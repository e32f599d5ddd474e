"""The connector gets along with servers as they really answer (`shapes`): vectors, lengths, refusals, limits.

Tested against a server that answers in a shape, not against the server itself: so say the docs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from connectors.openai_embedder import AzureEmbedder, OpenAIEmbedder
from daemon.core.model import Rates
from daemon.errors import ItemRefused, PermissionRefused, ProviderWrong, RevectorError, TransientError
from daemon.ports import Throttled
from tests.ports.loopback import Loopback, loopback
from tests.ports.shapes import (
    KEY,
    MODEL,
    SHAPES,
    TEI,
    VLLM,
    Azure,
    AzureClassic,
    EarlierVLLM,
    LlamaCpp,
    LMStudio,
    Ollama,
    OpenAI,
    Refused,
    Shape,
    StrictTEI,
    openai_error,
    vector,
)

LONG = "one two three four five six seven eight nine ten"  # two words more than a shape takes
SECRET = "words of a row"


def named(shape: object) -> str:
    return str(getattr(shape, "name", shape))


every_shape = pytest.mark.parametrize("make", SHAPES, ids=named)


def address(server: Loopback, shape: Shape) -> str:
    return server.url + shape.path.removesuffix("/embeddings")


@asynccontextmanager
async def serving(
    shape: Shape, dimensions: int = 24, key: str | None = KEY, model: str = MODEL, path: str | None = None
) -> AsyncIterator[OpenAIEmbedder]:
    """A connector to a server of that shape, configured as the docs say."""
    async with loopback() as server:
        server.respond = shape
        base_url = address(server, shape) if path is None else server.url + path
        made = AzureEmbedder if isinstance(shape, Azure) else OpenAIEmbedder
        query = "?api-version=2024-10-21" if isinstance(shape, AzureClassic) else ""
        embedder = made(base_url + query, key, model, dimensions, 10.0, normalised=True)
        try:
            yield embedder
        finally:
            await embedder.close()


# --- vectors


@every_shape
async def test_vectors_follow_their_texts(make: Callable[[], Shape]) -> None:
    texts = [f"text number {n}" for n in range(30)]
    async with serving(make()) as embedder:
        found = await embedder.embed(texts)
    assert found.vectors.dtype == np.float32
    assert np.allclose(found.vectors, np.stack([vector(text, 24) for text in texts]), atol=1e-6)
    assert found.model == MODEL


@every_shape
async def test_tokens_are_those_that_the_server_counts(make: Callable[[], Shape]) -> None:
    async with serving(make()) as embedder:
        found = await embedder.embed(["one two", "three"])
    assert found.tokens == (0 if make is LMStudio else 3)


@pytest.mark.parametrize("make", [OpenAI, Azure, AzureClassic, Ollama, TEI], ids=named)
async def test_a_shorter_vector_is_had_by_asking(make: Callable[[], Shape]) -> None:
    async with serving(make(), dimensions=16) as embedder:
        found = await embedder.embed(["a"])
        again = await embedder.embed(["a"])
    assert np.allclose(found.vectors[0], vector("a", 16), atol=1e-6)
    assert (found.vectors == again.vectors).all()


@pytest.mark.parametrize("make", [VLLM, EarlierVLLM, LMStudio, LlamaCpp], ids=named)
async def test_a_shorter_vector_that_is_not_to_be_had_is_told(make: Callable[[], Shape]) -> None:
    async with serving(make(), dimensions=16) as embedder:
        with pytest.raises(ProviderWrong, match=r"length 24.* contract says 16") as caught:
            await embedder.embed(["a"])
    assert caught.value.id == "provider-dimension"


@pytest.mark.parametrize("make", [Ollama, TEI], ids=named)
async def test_a_longer_vector_than_the_model_has_is_told(make: Callable[[], Shape]) -> None:
    async with serving(make(), dimensions=48) as embedder:
        with pytest.raises(ProviderWrong, match=r"length 24.* contract says 48"):
            await embedder.embed(["a"])


async def test_openai_and_azure_tell_their_budgets() -> None:
    for shape in (OpenAI(), Azure()):
        async with serving(shape) as embedder:
            assert (await embedder.embed(["a"])).rates == Rates(3000, 1_000_000)
    async with serving(Ollama()) as embedder:
        assert (await embedder.embed(["a"])).rates == Rates()


# --- texts that are too long


@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (OpenAI, 400, "invalid_request_error"),
        (Azure, 400, "invalid_request_error"),
        (VLLM, 400, "BadRequestError"),
        (EarlierVLLM, 400, "BadRequestError"),
        (StrictTEI, 422, "Validation"),
        (LlamaCpp, 500, "server_error"),
    ],
    ids=named,
)
async def test_too_long_a_text_is_the_texts_fault(make: Callable[[], Shape], status: int, code: str) -> None:
    async with serving(make()) as embedder:
        with pytest.raises(ItemRefused) as caught:
            await embedder.embed(["short", LONG])
        await embedder.embed(["short"])
    assert (caught.value.status, caught.value.code, caught.value.param) == (status, code, None)
    assert LONG not in str(caught.value)


@pytest.mark.parametrize("make", [Ollama, TEI, LMStudio], ids=named)
async def test_servers_that_cut_a_text_off_say_nothing_of_it(make: Callable[[], Shape]) -> None:
    """Why the docs set `limits.input_tokens` for them: nothing in the answer tells."""
    async with serving(make()) as embedder:
        cut_off, whole = (await embedder.embed([LONG, LONG.rsplit(maxsplit=2)[0]])).vectors
    assert (cut_off == whole).all()


# --- requests that are too large


async def test_one_input_too_many_is_no_failure_of_the_server() -> None:
    async with serving(TEI()) as embedder:
        assert (await embedder.embed(["a"] * 32)).vectors.shape == (32, 24)
        with pytest.raises(ItemRefused) as caught:
            await embedder.embed(["a"] * 33)
    assert (caught.value.status, caught.value.code) == (422, "Validation")


async def test_a_body_that_is_too_large_is_told_as_such() -> None:
    async with serving(TEI()) as embedder:
        with pytest.raises(ItemRefused) as caught:
            await embedder.embed(["a" * 1_000_000] * 3)
    assert caught.value.status == 413


# --- key, model, address


@pytest.mark.parametrize("make", [OpenAI, Azure, AzureClassic, VLLM, EarlierVLLM, TEI, LMStudio, LlamaCpp], ids=named)
@pytest.mark.parametrize("key", ["sk-another", None])
async def test_a_wrong_key_is_told(make: Callable[[], Shape], key: str | None) -> None:
    async with serving(make(), key=key) as embedder:
        with pytest.raises(PermissionRefused, match="status 401"):
            await embedder.embed(["a"])


@pytest.mark.parametrize("make", [Ollama, VLLM, TEI, LMStudio, LlamaCpp], ids=named)
async def test_without_a_key_none_is_sent(make: Callable[..., Shape]) -> None:
    async with serving(make(wants_key=False), key=None) as embedder:
        assert (await embedder.embed(["a"])).vectors.shape == (1, 24)


@pytest.mark.parametrize("make", [OpenAI, Azure, Ollama, VLLM, EarlierVLLM, LMStudio], ids=named)
async def test_a_wrong_model_is_the_configurations_fault(make: Callable[[], Shape]) -> None:
    async with serving(make(), model="another") as embedder:
        with pytest.raises(ProviderWrong) as caught:
            await embedder.embed(["a"])
    assert caught.value.id == "provider-request-refused"


@every_shape
async def test_a_wrong_address_is_the_configurations_fault(make: Callable[[], Shape]) -> None:
    async with serving(make(), path="/v2") as embedder:
        with pytest.raises(ProviderWrong) as caught:
            await embedder.embed(["a"])
    assert caught.value.id == ("provider-answer" if make is LMStudio else "provider-request-refused")


# --- states of a server


@pytest.mark.parametrize(
    ("shape", "refusal", "kind", "id"),
    [
        (
            OpenAI(),
            Refused(429, openai_error(SECRET, code="rate_limit_exceeded"), retry_after="2"),
            Throttled,
            "provider-throttled",
        ),
        (
            OpenAI(),
            Refused(429, {"error": {"message": SECRET, "type": "insufficient_quota", "code": "insufficient_quota"}}),
            TransientError,
            "provider-quota",
        ),
        (
            Azure(),
            Refused(429, {"error": {"code": "429", "message": SECRET}}, retry_after_ms="2000", retry_after="3"),
            Throttled,
            "provider-throttled",
        ),
        (
            Azure(),
            Refused(400, {"error": {"code": "content_filter", "param": "prompt", "message": SECRET, "innererror": {}}}),
            ItemRefused,
            "item-refused",
        ),
        (
            Ollama(),
            Refused(503, Ollama.error("server busy, please try again. maximum pending requests exceeded")),
            TransientError,
            "provider-unavailable",
        ),
        (Ollama(), Refused(400, Ollama.error("embedding contains NaN or Inf values")), ItemRefused, "item-refused"),
        (VLLM(), Refused(500, VLLM.error(500, SECRET, "InternalServerError")), TransientError, "provider-unavailable"),
        (TEI(), Refused(429, TEI.error(429, "Model is overloaded", "Overloaded")), Throttled, "provider-throttled"),
        (TEI(), Refused(424, TEI.error(424, SECRET, "Backend")), TransientError, "provider-unavailable"),
        (TEI(), Refused(503, TEI.error(503, "unhealthy", "Unhealthy")), TransientError, "provider-unavailable"),
        (LMStudio(), Refused(400, {"error": "No models loaded. Please load a model"}), ItemRefused, "item-refused"),
        (
            LlamaCpp(),
            Refused(503, LlamaCpp.error(503, "Loading model", "unavailable_error")),
            TransientError,
            "provider-unavailable",
        ),
        (
            LlamaCpp(),
            Refused(501, LlamaCpp.error(501, "does not support embeddings", "not_supported_error")),
            ProviderWrong,
            "provider-request-refused",
        ),
        (
            LlamaCpp(),
            Refused(400, LlamaCpp.error(400, f"request ({SECRET})", "exceed_context_size_error")),
            ItemRefused,
            "item-refused",
        ),
    ],
    ids=lambda value: named(value) if isinstance(value, Shape) else None,
)
async def test_a_refusal_is_told_apart_from_an_outage(
    shape: Shape, refusal: Refused, kind: type[RevectorError], id: str
) -> None:
    shape.state = refusal
    async with serving(shape) as embedder:
        with pytest.raises(kind) as caught:
            await embedder.embed([SECRET])
    assert type(caught.value) is kind and caught.value.id == id
    assert SECRET not in str(caught.value)
    if isinstance(caught.value, Throttled) and not isinstance(shape, TEI):
        assert caught.value.retry_after_s == 2
