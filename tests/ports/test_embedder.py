"""`OpenAIEmbedder` keeps what `daemon.ports.Embedder` promises: real vectors from the sandbox, faults from loopback."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import logging
import traceback
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import numpy as np
import orjson
import pytest

from connectors.openai_embedder import AzureEmbedder, OpenAIEmbedder
from connectors.provider_errors import retry_after_s
from daemon.core.model import Rates
from daemon.errors import ItemRefused, PermissionRefused, ProviderWrong, RevectorError, TransientError
from daemon.ports import Throttled
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
        (answer(packed(1, 2, 3), "not base64!"), "provider-answer"),
        (answer(packed(1, 2, 3), packed(1, 2, 3)[:-1]), "provider-answer"),
        (answer("AAAAAAA=", "AAAAAAA="), "provider-answer"),
        (answer("", ""), "provider-dimension"),
        (answer({}, {}), "provider-answer"),
        (answer([1, 2, 3], [1, 2, 3])[:-20], "provider-answer"),
        (orjson.dumps({"data": [{"embedding": packed(1, 2, 3)}] * 2}), "provider-answer"),
        (orjson.dumps({"data": {"a": 1, "b": 2}}), "provider-answer"),
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


# --- answers that must not be waited for, or not be read


RIGHT = answer(packed(1, 0, 0))
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("raw", "hangs", "id"),
    [
        (HEAD + b"content-length: 500\r\n\r\n", True, "provider-timeout"),
        (HEAD + b'transfer-encoding: chunked\r\n\r\n3\r\n{"d\r\n', True, "provider-timeout"),
        (HEAD + b"content-length: 500\r\n\r\n" + RIGHT[:20], False, "provider-unreachable"),
        (HEAD + b'transfer-encoding: chunked\r\n\r\n3\r\n{"d\r\n', False, "provider-unreachable"),
        (b"no HTTP at all\r\n\r\n", False, "provider-unreachable"),
    ],
    ids=["hang after headers", "hang in the body", "cut in the body", "cut between chunks", "not HTTP"],
)
async def test_an_answer_that_breaks_off_is_repeated(server: Loopback, raw: bytes, hangs: bool, id: str) -> None:
    server.raw, server.hangs = raw, hangs
    embedder = OpenAIEmbedder(server.url, KEY, "m", 3, 0.3)
    with pytest.raises(TransientError) as caught:
        await embedder.embed([TEXT])
    await embedder.close()
    assert caught.value.id == id and len(server.requests) == 1


async def test_the_limit_covers_the_whole_answer_and_not_the_gap_between_two_bytes(server: Loopback) -> None:
    stop = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"content-length: 100000\r\n\r\n")
        with suppress(ConnectionError):
            while not stop.is_set():
                writer.write(b" ")
                await writer.drain()
                await asyncio.wait([asyncio.ensure_future(stop.wait())], timeout=0.02)
        writer.close()

    listening = await asyncio.start_server(trickle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    embedder = OpenAIEmbedder(url, KEY, "m", 3, 0.4)
    with pytest.raises(TransientError) as caught:
        await asyncio.wait_for(embedder.embed(["a"]), 30)  # of the 100 000 bytes would come 1500
    assert caught.value.id == "provider-timeout"
    stop.set()
    await embedder.close()
    listening.close()


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_an_answer_larger_than_its_vectors_need_is_refused(
    server: Loopback, embedder: OpenAIEmbedder, status: int
) -> None:
    server.answer(status, b'{"data": "' + b"a" * 5_000_000)
    with pytest.raises(ProviderWrong) as caught:
        await embedder.embed(["a"])
    assert caught.value.id == "provider-answer-too-large"


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_small_answer_that_unpacks_into_a_large_one_is_not_unpacked(
    server: Loopback, embedder: OpenAIEmbedder, status: int
) -> None:
    server.answer(status, gzip.compress(b'{"data": "' + b"a" * 50_000_000, 1), content_encoding="gzip")
    tracemalloc.start()
    try:
        with pytest.raises(ProviderWrong) as caught:
            await embedder.embed(["a"])
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.id == "provider-answer-too-large"


async def test_a_compressed_answer_is_read_though_none_was_asked_for(
    server: Loopback, embedder: OpenAIEmbedder
) -> None:
    server.answer(200, gzip.compress(RIGHT), content_encoding="gzip")
    assert (await embedder.embed(["a"])).vectors.tolist() == [[1, 0, 0]]
    assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(RIGHT, "gzip"), (gzip.compress(RIGHT)[:-30], "gzip"), (RIGHT, "br"), (RIGHT, "gzip, gzip")],
    ids=["not gzip", "cut off", "brotli", "twice"],
)
async def test_a_compression_that_cannot_be_undone_is_a_wrong_answer(
    server: Loopback, embedder: OpenAIEmbedder, body: bytes, encoding: str
) -> None:
    server.answer(200, body, content_encoding=encoding)
    with pytest.raises(ProviderWrong) as caught:
        await embedder.embed(["a"])
    assert caught.value.id == "provider-answer"


async def test_the_longest_answer_that_is_right_has_room(server: Loopback) -> None:
    numbers = np.full(8, -1 / 3 * 1e-30)
    data = [{"object": "embedding", "index": n, "embedding": numbers.tolist()} for n in range(300)]
    server.answer(200, json.dumps({"data": data}, indent=4).encode())
    embedder = OpenAIEmbedder(server.url, KEY, "text-embedding-3-small", 8)
    assert (await embedder.embed(["a"] * 300)).vectors.shape == (300, 8)
    await embedder.close()


async def test_a_first_answer_may_be_much_longer_than_what_is_then_asked_for(server: Loopback) -> None:
    long = [0.0123456789] * 4096
    server.answers = [(200, {}, answer(long, long)), (200, {}, answer(packed(1, 2, 3), packed(4, 5, 6)))]
    embedder = OpenAIEmbedder(server.url, KEY, "m", 3)
    assert (await embedder.embed(["a", "b"])).vectors.shape == (2, 3)
    server.answer(200, answer(long, long))
    with pytest.raises(ProviderWrong, match="longer than"):
        await embedder.embed(["a", "b"])
    await embedder.close()


# --- the contract


@pytest.mark.parametrize("length", [1, 0.995, 1.005])
async def test_vectors_of_length_1_may_be_a_little_off(server: Loopback, length: float) -> None:
    server.answer(200, answer(packed(0.6 * length, 0, -0.8 * length)))
    embedder = OpenAIEmbedder(server.url, KEY, "m", 3, normalised=True)
    assert (await embedder.embed(["a"])).vectors.shape == (1, 3)
    await embedder.close()


@pytest.mark.parametrize("length", [0.98, 1.02, 0.001, 37.5])
async def test_a_vector_of_another_length_than_1_is_refused_with_the_number(server: Loopback, length: float) -> None:
    server.answer(200, answer(packed(1, 0, 0), packed(0.6 * length, 0, -0.8 * length)))
    embedder = OpenAIEmbedder(server.url, KEY, "m", 3, normalised=True)
    with pytest.raises(ProviderWrong, match=f"length {length:.4g} ") as caught:
        await embedder.embed(["a", "b"])
    await embedder.close()
    assert caught.value.id == "provider-norm"


async def test_the_answer_says_which_model_it_is_of(server: Loopback, embedder: OpenAIEmbedder) -> None:
    body = orjson.loads(RIGHT)
    for told, model in [("text-embedding-3-small", "text-embedding-3-small"), (TEXT, None), (None, None), (3, None)]:
        server.answer(200, orjson.dumps({**body, "model": told}))
        assert (await embedder.embed(["a"])).model == model


@pytest.mark.parametrize("usage", [None, {}, [], {"total_tokens": -1}, {"total_tokens": "n"}, {"total_tokens": 1e30}])
async def test_a_count_of_tokens_that_cannot_be_is_no_count(
    server: Loopback, embedder: OpenAIEmbedder, usage: object
) -> None:
    server.answer(200, orjson.dumps({**orjson.loads(RIGHT), "usage": usage}))
    assert (await embedder.embed(["a"])).tokens == 0


async def test_a_length_that_the_server_does_not_give_is_asked_for_and_then_told(server: Loopback) -> None:
    long, refusal = answer(packed(1, 2, 3, 4)), prose()
    embedder = OpenAIEmbedder(server.url, KEY, "m", 3)
    server.answers = [(200, {}, long), (400, {}, refusal), (200, {}, RIGHT)]
    with pytest.raises(ProviderWrong, match=r"length 4.*`dimensions`.*contract says 3") as caught:
        await embedder.embed([TEXT])
    assert caught.value.id == "provider-dimension"
    await embedder.embed([TEXT])
    await embedder.close()
    assert [body.get("dimensions") for body in sent(server)] == [None, 3, None], (
        "one refusal is no reason to go on asking"
    )


async def test_tokens_of_both_requests_count_where_a_length_had_to_be_asked_for(server: Loopback) -> None:
    embedder = OpenAIEmbedder(server.url, KEY, "m", 3)
    server.answers = [(200, {}, answer(packed(1, 2, 3, 4), tokens=5)), (200, {}, answer(packed(1, 2, 3), tokens=5))]
    assert (await embedder.embed(["a"])).tokens == 10
    assert (await embedder.embed(["a"])).tokens == 5
    await embedder.close()
    assert [body.get("dimensions") for body in sent(server)] == [None, 3, 3]


# --- budgets


@pytest.mark.parametrize(
    ("headers", "rates"),
    [
        ({"x-ratelimit-limit-requests": "3000", "x-ratelimit-limit-tokens": "1000000"}, Rates(3000, 1_000_000)),
        ({"x-ratelimit-limit-tokens": "350000"}, Rates(None, 350_000)),
        ({"x-ratelimit-limit-requests": "0", "x-ratelimit-limit-tokens": "-5"}, Rates()),
        ({"x-ratelimit-limit-requests": "1e9", "x-ratelimit-limit-tokens": "9" * 30}, Rates()),
        ({"x-ratelimit-limit-requests": "", "x-ratelimit-limit-tokens": "1.5"}, Rates()),
        ({"x-ratelimit-limit-requests": "50", "x-ratelimit-renewalperiod-requests": "10"}, Rates(300)),
        ({"x-ratelimit-limit-requests": "50", "x-ratelimit-renewalperiod-requests": "60"}, Rates(50)),
        ({"x-ratelimit-limit-requests": "50", "x-ratelimit-renewalperiod-requests": "0"}, Rates(50)),
        ({"x-ratelimit-limit-requests": "50", "x-ratelimit-renewalperiod-requests": "86400"}, Rates(1)),
        ({"x-ratelimit-limit-requests": "50", "x-ratelimit-renewalperiod-requests": "9" * 12}, Rates()),
        ({"x-ratelimit-remaining-tokens": "7", "x-ratelimit-reset-tokens": "6m0s"}, Rates()),
        ({}, Rates()),
    ],
)
async def test_budgets_are_read_from_answers_and_from_refusals(
    server: Loopback, embedder: OpenAIEmbedder, headers: dict[str, str], rates: Rates
) -> None:
    server.answers = [(200, headers, RIGHT), (429, headers, prose())]
    assert (await embedder.embed(["a"])).rates == rates
    with pytest.raises(Throttled) as caught:
        await embedder.embed(["a"])
    assert caught.value.rates == rates


# --- the key


async def test_azure_gets_the_key_in_its_own_header(server: Loopback) -> None:
    server.answer(200, RIGHT)
    embedder = AzureEmbedder(server.url + "/openai/v1", KEY, "our-deployment", 3)
    await embedder.embed(["a"])
    await embedder.close()
    [request] = server.requests
    assert request.line.startswith("POST /openai/v1/embeddings ")
    assert request.headers["api-key"] == KEY and "authorization" not in request.headers
    assert sent(server)[0]["model"] == "our-deployment"


async def test_a_query_in_the_address_goes_with_every_request(server: Loopback) -> None:
    server.answer(200, RIGHT)
    address = server.url + "/openai/deployments/our-deployment?api-version=2024-10-21"
    embedder = AzureEmbedder(address, KEY, "our-deployment", 3)
    await embedder.embed(["a"])
    await embedder.close()
    assert server.requests[0].line.startswith(
        "POST /openai/deployments/our-deployment/embeddings?api-version=2024-10-21 "
    )


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
        (424, prose(), TransientError, "provider-unavailable"),
        (501, prose(), ProviderWrong, "provider-request-refused"),
        (429, orjson.dumps({"error": {"message": "", "type": "insufficient_quota"}}), TransientError, "provider-quota"),
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


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("make", [OpenAIEmbedder, AzureEmbedder])
async def test_a_redirect_is_refused_and_the_key_stays_home(
    server: Loopback, status: int, make: type[OpenAIEmbedder]
) -> None:
    async with loopback() as elsewhere:
        elsewhere.answer(200, RIGHT)
        embedder = make(server.url, KEY, "m", 3)
        for place in (
            f"{elsewhere.url}/v1/embeddings",
            f"//{elsewhere.url.partition('//')[2]}/",
            f"{server.url}/other",
        ):
            server.answer(status, location=place)
            with pytest.raises(ProviderWrong) as caught:
                await embedder.embed(["a"])
            assert caught.value.id == "provider-redirects"
        await embedder.close()
        assert elsewhere.requests == [] and len(server.requests) == 3
        assert {request.line.split()[1] for request in server.requests} == {"/embeddings"}


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
