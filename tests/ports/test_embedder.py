"""`OpenAIEmbedder` keeps what `daemon.ports.Embedder` promises: real vectors from the sandbox, faults from loopback."""

from __future__ import annotations

import base64
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import orjson
import pytest

from connectors.openai_embedder import OpenAIEmbedder
from connectors.provider_errors import retry_after_s
from daemon.errors import ItemRefused, PermissionRefused, ProviderWrong, RevectorError, TransientError
from sandbox.stack import Sandbox
from tests.ports.loopback import Loopback, loopback

KEY = "sk-not-to-be-seen"
TEXT = "a row's own words"
MODEL = "wordllama-256"


@pytest.fixture
async def server() -> AsyncIterator[Loopback]:
    async with loopback() as server:
        yield server


@pytest.fixture
async def embedder(server: Loopback) -> AsyncIterator[OpenAIEmbedder]:
    embedder = OpenAIEmbedder(server.url + "/v1", KEY, "some-model", 3, 5.0)
    yield embedder
    await embedder.close()


def answer(*embeddings: Any, tokens: int = 7) -> bytes:
    data = [{"object": "embedding", "index": n, "embedding": e} for n, e in enumerate(embeddings)]
    return orjson.dumps({"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


def packed(*numbers: float) -> str:
    return base64.b64encode(np.asarray(numbers, dtype="<f4").tobytes()).decode()


def sent(server: Loopback) -> list[dict[str, Any]]:
    return [orjson.loads(request.body) for request in server.requests]


# --- vectors


@pytest.mark.system
async def test_vectors_of_the_real_server_follow_their_texts(stack: Sandbox) -> None:
    texts = [f"text number {n} about {word}" for n, word in enumerate(["cats", "ships", "law", "cats"] * 50)]
    embedder = OpenAIEmbedder(stack.embeddings_url, stack.embeddings_key, MODEL, 256)
    try:
        there = await embedder.embed(texts)
        matrix, backwards = there.vectors, (await embedder.embed(texts[::-1])).vectors
        one = await embedder.embed(texts[3:4])
    finally:
        await embedder.close()
    assert matrix.shape == (200, 256) and matrix.dtype == np.float32
    assert np.allclose(matrix, backwards[::-1], atol=1e-6) and np.allclose(matrix[3], one.vectors[0], atol=1e-6)
    assert there.tokens > one.tokens > 0


@pytest.mark.system
async def test_a_shorter_vector_is_asked_for_when_the_server_gives_a_longer_one(stack: Sandbox) -> None:
    embedder = OpenAIEmbedder(stack.embeddings_url, stack.embeddings_key, MODEL, 64)
    try:
        assert (await embedder.embed(["a", "b"])).vectors.shape == (2, 64)
        assert (await embedder.embed(["c"])).vectors.shape == (1, 64)
    finally:
        await embedder.close()


@pytest.mark.system
async def test_the_real_server_refuses_a_wrong_key_and_too_long_a_text(stack: Sandbox) -> None:
    stranger = OpenAIEmbedder(stack.embeddings_url, KEY, MODEL, 256)
    ours = OpenAIEmbedder(stack.embeddings_url, stack.embeddings_key, MODEL, 256)
    lost = OpenAIEmbedder(stack.embeddings_url, stack.embeddings_key, "no-such-model", 256)
    try:
        with pytest.raises(PermissionRefused, match="401"):
            await stranger.embed(["a"])
        with pytest.raises(ItemRefused) as refused:
            await ours.embed(["word " * 20_000])
        with pytest.raises(ProviderWrong, match="model_not_found"):
            await lost.embed(["a"])
    finally:
        for embedder in (stranger, ours, lost):
            await embedder.close()
    assert (refused.value.status, refused.value.param) == (400, "input")


@pytest.mark.parametrize("write", [packed, lambda *numbers: list(numbers)], ids=["base64", "floats"])
async def test_both_encodings_give_the_same_vectors(
    server: Loopback, embedder: OpenAIEmbedder, write: Callable[..., Any]
) -> None:
    server.answer(200, answer(write(1, 0.5, -2), write(0.1, 0, 0)))
    found = await embedder.embed(["a", "b"])
    assert np.array_equal(found.vectors, np.array([[1, 0.5, -2], [0.1, 0, 0]], dtype=np.float32))
    assert found.tokens == 7
    assert sent(server) == [{"input": ["a", "b"], "model": "some-model", "encoding_format": "base64"}]
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_the_index_and_not_the_place_says_which_text_a_vector_is_of(
    server: Loopback, embedder: OpenAIEmbedder
) -> None:
    data = [{"index": 1, "embedding": packed(2, 2, 2)}, {"index": 0, "embedding": packed(1, 1, 1)}]
    server.answer(200, orjson.dumps({"data": data}))
    found = await embedder.embed(["a", "b"])
    assert found.vectors[:, 0].tolist() == [1, 2] and found.tokens == 0


async def test_dimensions_are_sent_to_models_that_shorten(server: Loopback) -> None:
    embedder = OpenAIEmbedder(server.url, None, "text-embedding-3-large", 3)
    server.answer(200, answer(packed(1, 2, 3)))
    await embedder.embed(["a"])
    await embedder.close()
    assert sent(server)[0]["dimensions"] == 3
    assert "authorization" not in server.requests[0].headers


# --- answers that cannot be right


@pytest.mark.parametrize(
    ("body", "id"),
    [
        (answer(packed(1, 2, 3)), "provider-count"),
        (answer(*[packed(1, 2, 3)] * 3), "provider-count"),
        (orjson.dumps({"data": [{"index": 1, "embedding": packed(1, 2, 3)}] * 2}), "provider-order"),
        (
            orjson.dumps({"data": [{"index": n, "embedding": packed(1, 2, 3)} for n in (1, 2)]}),
            "provider-order",
        ),
        (answer(packed(1, 2), packed(1, 2)), "provider-dimension"),
        (answer(packed(1, 2, 3), packed(1, 2, 3, 4)), "provider-dimension"),
        (answer([1, 2, 3], [1, 2]), "provider-dimension"),
        (answer(packed(1, 2, 3), packed(1, float("nan"), 3)), "provider-not-finite"),
        (answer(packed(1, 2, 3), packed(1, float("inf"), 3)), "provider-not-finite"),
        (answer([1, 2, 3], [1, 1e300, 3]), "provider-not-finite"),
        (answer(packed(1, 2, 3), packed(0, 0, -0.0)), "provider-zero-vector"),
        (answer([1, 2, 3], [1, None, 3]), "provider-not-finite"),
        (answer([1, 2, 3], [[1], [2], [3]]), "provider-answer"),
        (answer([1, 2, 3], "not base64!"), "provider-answer"),
        (answer(packed(1, 2, 3), "AAA="), "provider-answer"),
        (b"[]", "provider-answer"),
        (b'{"error": "x"}', "provider-answer"),
        (b"<html>", "provider-answer"),
        (b"null", "provider-answer"),
    ],
)
async def test_nothing_of_a_wrong_answer_is_used(
    server: Loopback, embedder: OpenAIEmbedder, body: bytes, id: str
) -> None:
    server.answer(200, body)
    with pytest.raises(ProviderWrong) as caught:
        await embedder.embed(["a", "b"])
    assert caught.value.id == id


# --- refusals and failures


def prose(param: str | None = None, code: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": f"we cannot take {TEXT}", "type": "t", "param": param, "code": code}})


@pytest.mark.parametrize(
    ("status", "body", "kind", "id"),
    [
        (400, prose("input"), ItemRefused, "item-refused"),
        (413, prose(), ItemRefused, "item-refused"),
        (422, prose(code="content_filter"), ItemRefused, "item-refused"),
        (400, prose("dimensions"), ProviderWrong, "provider-request-refused"),
        (404, prose("model", "model_not_found"), ProviderWrong, "provider-request-refused"),
        (405, b"", ProviderWrong, "provider-request-refused"),
        (401, prose(code="invalid_api_key"), PermissionRefused, "provider-key-refused"),
        (403, prose(), PermissionRefused, "provider-key-refused"),
        (408, b"", TransientError, "provider-unavailable"),
        (429, prose(), TransientError, "provider-throttled"),
        (429, prose(code="insufficient_quota"), TransientError, "provider-quota"),
        (402, b"", TransientError, "provider-quota"),
        (500, b"oops", TransientError, "provider-unavailable"),
        (503, prose(), TransientError, "provider-unavailable"),
        (529, b"", TransientError, "provider-unavailable"),
    ],
)
async def test_a_status_says_what_happens_next_and_nothing_of_the_prose(
    server: Loopback, embedder: OpenAIEmbedder, status: int, body: bytes, kind: type[RevectorError], id: str
) -> None:
    server.answer(status, body)
    with pytest.raises(kind) as caught:
        await embedder.embed([TEXT])
    assert caught.value.id == id and str(status) in str(caught.value)
    told = "".join(traceback.format_exception(caught.value)) + caught.value.hint
    assert TEXT not in told and "cannot take" not in told and KEY not in told
    assert len(server.requests) == 1, "the client retried by itself"


async def test_a_code_that_is_prose_is_left_out(server: Loopback, embedder: OpenAIEmbedder) -> None:
    server.answer(400, prose(param=f"input: {TEXT}", code=TEXT))
    with pytest.raises(ItemRefused) as caught:
        await embedder.embed([TEXT])
    assert (caught.value.code, caught.value.param) == ("t", None)  # the type of the error, which is a word


async def test_a_redirect_is_refused_and_the_key_stays_home(server: Loopback, embedder: OpenAIEmbedder) -> None:
    async with loopback() as elsewhere:
        elsewhere.answer(200, answer(packed(1, 2, 3)))
        server.answer(307, location=f"{elsewhere.url}/v1/embeddings")
        with pytest.raises(ProviderWrong) as caught:
            await embedder.embed(["a"])
        assert caught.value.id == "provider-redirects"
        assert elsewhere.requests == [] and len(server.requests) == 1


async def test_no_answer_and_no_server_are_transient(server: Loopback) -> None:
    server.hangs = True
    slow = OpenAIEmbedder(server.url, KEY, "m", 3, 0.2)
    nobody = OpenAIEmbedder("http://127.0.0.1:1/v1", KEY, "m", 3)
    try:
        with pytest.raises(TransientError) as caught:
            await slow.embed(["a"])
        assert caught.value.id == "provider-timeout" and len(server.requests) == 1
        with pytest.raises(TransientError) as caught:
            await nobody.embed(["a"])
        assert caught.value.id == "provider-unreachable"
    finally:
        await slow.close()
        await nobody.close()
        await nobody.close()


async def test_a_provider_says_how_long_to_wait(server: Loopback, embedder: OpenAIEmbedder) -> None:
    server.answer(429, prose(), retry_after="17")
    with pytest.raises(TransientError) as caught:
        await embedder.embed(["a"])
    assert caught.value.retry_after_s == 17


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 30),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:00 GMT", "date": "Sat, 21 Nov 2026 10:00:30 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


async def test_texts_do_not_reach_the_log(
    server: Loopback, embedder: OpenAIEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer(200, answer(packed(1, 2, 3)))
    await embedder.embed([TEXT])
    assert TEXT not in caplog.text and KEY not in caplog.text


async def test_ambient_settings_are_not_used(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ambient")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-ambient")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-ambient")
    server.answer(200, answer(packed(1, 2, 3)))
    embedder = OpenAIEmbedder(server.url, None, "m", 3)
    await embedder.embed(["a"])
    await embedder.close()
    assert "ambient" not in str(server.requests[0].headers)


async def test_a_full_answer_is_read_as_one_matrix(server: Loopback) -> None:
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((2048, 1536)).astype("<f4")
    server.answer(200, answer(*[base64.b64encode(row.tobytes()).decode() for row in rows]))
    embedder = OpenAIEmbedder(server.url, KEY, "m", 1536)
    found = await embedder.embed(["a"] * 2048)
    await embedder.close()
    assert np.array_equal(found.vectors, rows)
