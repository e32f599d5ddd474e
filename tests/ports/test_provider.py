"""The scriptable provider keeps what it says of itself: its vectors, its bills, its limits, its script."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rs_bpe.bpe import openai

from sandbox.provider import Provider, Script, application, serving, vector_of, vectors_of
from sandbox.provider_limits import Limiter, duration, retry_after
from sandbox.provider_script import BILLED, UNBILLED, Chance, Faults, Latency, Limits, Poison
from tests.fakes import VirtualClock

KEY = "test-key"
TEXTS = ["first text", "second, somewhat longer text", "first text"]
DEADLINE_S = 20.0


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with serving() as provider:
        yield provider


async def ask(provider: Provider, texts: list[str] = TEXTS, **body: Any) -> httpx2.Response:
    """One request without the product's connector."""
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient() as client:
        document = {"model": "test-embedding", "input": texts, **body}
        return await client.post(f"{provider.url}/embeddings", json=document, headers=headers)


def vectors(response: httpx2.Response) -> list[list[float]]:
    return [item["embedding"] for item in response.json()["data"]]


# --- vectors and bills


@given(st.text(min_size=1), st.text(min_size=1), st.sampled_from([3, 256, 1536]))
def test_two_texts_have_two_vectors_and_one_text_has_one(one: str, other: str, dimensions: int) -> None:
    first, second = vector_of(one, dimensions), vector_of(other, dimensions)
    assert np.array_equal(first, second) == (one == other)
    assert abs(float(np.linalg.norm(first)) - 1) < 1e-5 and first.dtype == np.float32
    assert np.array_equal(vectors_of([other, one], dimensions)[1], first), "the neighbours change a vector"
    assert not np.array_equal(first, vector_of(one, dimensions, seed=1)), "another model has the same vector"


async def test_vectors_and_tokens_can_be_foretold(provider: Provider) -> None:
    answer = (await ask(provider, dimensions=8)).json()
    assert np.array_equal(np.asarray(vectors(await ask(provider, dimensions=8)), np.float32), vectors_of(TEXTS, 8))
    expected = sum(openai.cl100k_base().count(text) for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": expected, "total_tokens": expected}
    assert answer["model"] == "test-embedding"
    assert provider.stats.tokens == provider.stats.tokens_admitted == 2 * expected


async def test_a_text_that_is_billed_again_is_counted(provider: Provider) -> None:
    provider.set(Script(count_texts=True))
    await ask(provider, ["a", "b"])
    await ask(provider, ["b", "c c c"])
    assert sorted(provider.texts.values()) == [1, 1, 2]
    assert provider.stats.tokens_again == 1


async def test_it_runs_without_a_server() -> None:
    provider = Provider(KEY)
    transport = httpx2.ASGITransport(application(provider))
    async with httpx2.AsyncClient(transport=transport, base_url="http://inside") as client:
        headers = {"api-key": KEY}
        body = {"input": "a"}
        answer = await client.post(
            "/openai/deployments/test-embedding/embeddings?api-version=1", json=body, headers=headers
        )
    assert answer.status_code == 200 and np.allclose(vectors(answer)[0], vector_of("a"))


# --- limits


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0121, "13ms"), (1, "1s"), (8.64, "8.64s"), (60, "1m0s"), (362.5, "6m2.5s"), (3600, "1h0m0s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_wait_is_said_in_seconds_and_in_milliseconds() -> None:
    assert retry_after(0.976) == {"retry-after": "1", "retry-after-ms": "976"}


@settings(max_examples=60)
@given(
    st.sampled_from(["bucket", "window"]),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 400)), min_size=1, max_size=80),
)
def test_no_stretch_of_time_gets_more_than_is_permitted(kind: Any, moves: list[tuple[float, int]]) -> None:
    limits = Limits(requests_per_minute=300, tokens_per_minute=6000, kind=kind, window_s=10)
    now, admitted = 0.0, []
    limiter = Limiter(limits, now)
    for pause, tokens in moves:
        now += pause
        refusal = limiter.admit(tokens, now)
        if refusal is None:
            admitted.append((now, tokens))
        elif refusal.wait_s is not None:
            later = Limiter(limits, 0)
            later._budgets = limiter._budgets
            assert refusal.wait_s > 0 and later.admit(tokens, now + refusal.wait_s + 1e-6) is None, "the wait is wrong"
            now += refusal.wait_s + 1e-6
            admitted.append((now, tokens))
    for n, (begin, _) in enumerate(admitted):
        for m in range(n, len(admitted)):
            end = admitted[m][0]
            spent = sum(tokens for _, tokens in admitted[n : m + 1])
            windows = 1 + (end - begin) / 10 if kind == "bucket" else 1 + int(end // 10) - int(begin // 10)
            assert spent <= 1000 * windows + 1e-3
            assert m - n + 1 <= 50 * windows + 1e-3


def test_a_window_starts_anew_and_a_bucket_refills_all_the_time() -> None:
    for kind, later in (("window", 600), ("bucket", 300)):
        limiter = Limiter(Limits(tokens_per_minute=600, kind=kind), 0.0)  # type: ignore[arg-type]
        assert limiter.admit(600, 1) is None and limiter.admit(1, 1) is not None
        assert limiter.headers(31)["x-ratelimit-remaining-tokens"] == ("0" if kind == "window" else "300")
        assert limiter.admit(later, 31 if kind == "bucket" else 61) is None


async def test_a_refusal_names_its_wait_and_an_answer_its_budgets() -> None:
    clock = VirtualClock()
    provider = Provider(KEY, Script(limits=Limits(requests_per_minute=2, tokens_per_minute=100)), clock)
    transport = httpx2.ASGITransport(application(provider))
    async with httpx2.AsyncClient(transport=transport, base_url="http://inside") as client:
        headers, body = {"authorization": f"Bearer {KEY}"}, {"model": "test-embedding", "input": ["a b c d"]}
        answers = [await client.post("/v1/embeddings", json=body, headers=headers) for _ in range(3)]
        large = await client.post("/v1/embeddings", json={**body, "input": "a " * 200}, headers=headers)
        clock.advance(30)
        again = await client.post("/v1/embeddings", json=body, headers=headers)
    assert [a.status_code for a in answers] == [200, 200, 429] and again.status_code == 200
    said = answers[0].headers
    assert (said["x-ratelimit-limit-requests"], said["x-ratelimit-limit-tokens"]) == ("2", "100")
    assert (said["x-ratelimit-remaining-requests"], said["x-ratelimit-remaining-tokens"]) == ("1", "96")
    assert (said["x-ratelimit-reset-requests"], said["x-ratelimit-reset-tokens"]) == ("30s", "2.4s")
    refused = answers[2]
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("30", "30000")
    problem = refused.json()["error"]
    assert (problem["code"], problem["type"]) == ("rate_limit_exceeded", "requests")
    assert re.search(r"Limit 2, Used 2, Requested 1\. Please try again in 30s", problem["message"])
    assert large.status_code == 429 and "retry-after" not in large.headers
    assert (provider.stats.refused, provider.stats.tokens_admitted) == (2, 12)


# --- script


async def test_a_script_wants_the_key_and_knows_its_words(provider: Provider) -> None:
    address = provider.url.removesuffix("/v1") + "/script"
    async with httpx2.AsyncClient() as client:
        stranger = await client.put(address, json={"dimensions": 8})
        unknown = await client.put(address, json={"dimension": 8}, headers={"authorization": f"Bearer {KEY}"})
        assert (stranger.status_code, unknown.status_code) == (401, 422) and provider.script == Script()
        script = {"dimensions": 8, "faults": {"next": ["nan"], "probability": {"reset": 0.5}}}
        done = await client.put(address, json=script, headers={"authorization": f"Bearer {KEY}"})
        stats = (await client.get(provider.url.removesuffix("/v1") + "/stats")).json()
    assert done.status_code == 200 and provider.script.dimensions == 8 and stats["next_left"] == 1


def test_the_same_seed_gives_the_same_faults_and_every_fault_comes() -> None:
    every = UNBILLED + BILLED
    script = Script(seed=7, faults=Faults.model_validate({"probability": dict.fromkeys(every, 0.02)}))
    one, two = Chance(script), Chance(script)
    drawn = [one.fault() for _ in range(20_000)]
    assert drawn == [two.fault() for _ in range(20_000)]
    counts = Counter(drawn)
    assert all(300 < counts[name] < 500 for name in every) and counts[None] > 5_000
    other = Chance(script.model_copy(update={"seed": 8}))
    assert drawn != [other.fault() for _ in range(20_000)]


@pytest.mark.parametrize(
    ("latency", "least", "most", "median"),
    [
        (Latency(seconds=2, per_1k_tokens_s=1), 2.5, 2.5, 2.5),
        (Latency(kind="uniform", least_s=1, seconds=3, per_1k_tokens_s=0), 1, 3, 2),
        (Latency(kind="lognormal", seconds=2, sigma=0.5), 0.1, 60, 2),
    ],
)
def test_delays_follow_their_distribution(latency: Latency, least: float, most: float, median: float) -> None:
    chance = Chance(Script(seed=3, latency=latency))
    drawn = sorted(chance.latency(500) for _ in range(4_000))
    assert least <= drawn[0] and drawn[-1] <= most and abs(drawn[2_000] - median) < 0.1


async def test_what_is_in_flight_and_what_was_left_is_counted(provider: Provider) -> None:
    provider.set(Script(latency=Latency(seconds=60)))
    asking = [asyncio.ensure_future(ask(provider)) for _ in range(3)]
    async with asyncio.timeout(DEADLINE_S):
        while provider.stats.in_flight < 3:
            await asyncio.sleep(0.005)
        assert provider.stats.tokens_in_flight == provider.stats.tokens_admitted > 0
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        while provider.stats.in_flight:
            await asyncio.sleep(0.005)
    stats = provider.stats
    assert (stats.tokens_in_flight, stats.most_in_flight, stats.abandoned) == (0, 3, 3)
    assert stats.tokens_wasted == stats.tokens == stats.tokens_admitted


async def test_only_a_request_with_a_marked_text_is_refused_and_its_prose_quotes_it(provider: Provider) -> None:
    provider.set(Script(poison=Poison(markers=("quartz",), code="content_policy")))
    assert (await ask(provider)).status_code == 200
    refused = await ask(provider, ["fine", "a quartz text"])
    assert refused.status_code == 400
    problem = refused.json()["error"]
    assert (problem["param"], problem["code"]) == ("input", "content_policy") and "a quartz text" in problem["message"]
    assert provider.stats.tokens == provider.count(TEXTS[0]) * 2 + provider.count(TEXTS[1])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": ""}, 400),
        ({"input": ["a", ""]}, 400),
        ({"input": [1]}, 400),
        ({"input": ["a"] * 2049}, 400),
        ({"input": "word " * 9000}, 400),
        ({"input": ["word " * 8000] * 38}, 400),
        ({"dimensions": 0}, 400),
        ({"model": "nobody"}, 404),
    ],
)
async def test_what_openai_refuses_is_refused(provider: Provider, body: dict[str, Any], status: int) -> None:
    assert (await ask(provider, texts=["a"], **body)).status_code == status
    assert provider.stats.tokens_admitted == 0
