"""Each behaviour of the scriptable provider against the real connector: right outcome, right error, nothing leaked.

Every case says which fault landed (the server counts it), what the connector made of it, and that the next request of
the same connector is answered as if nothing had been.
"""

from __future__ import annotations

import logging
import traceback
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from connectors.openai_embedder import OpenAIEmbedder
from daemon.errors import ItemRefused, PermissionRefused, ProviderWrong, RevectorError, TransientError
from daemon.ports import Embedded
from sandbox.provider import Provider, Script, serving, vector_of, vectors_of
from sandbox.provider_script import BILLED, UNBILLED, Faults, Latency, Limits, Poison

KEY = "sk-zebra-quartz"
WORDS = "cwm-fjord"  # in every text, and nowhere else
TEXTS = [f"{WORDS} number {n}" for n in range(5)]
DIMENSIONS = 64
TIMEOUT_S = 5.0


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with serving(Script(dimensions=DIMENSIONS), KEY) as provider:
        yield provider


@pytest.fixture
async def embedder(provider: Provider) -> AsyncIterator[OpenAIEmbedder]:
    embedder = made(provider)
    yield embedder
    await embedder.close()


def made(provider: Provider, timeout_s: float = TIMEOUT_S, **changes: Any) -> OpenAIEmbedder:
    parts = {"base_url": provider.url, "api_key": KEY, "model": "test-embedding", "dimensions": DIMENSIONS}
    return OpenAIEmbedder(**{**parts, **changes}, timeout_s=timeout_s, normalised=True)


def plan(provider: Provider, *faults: str, **changes: Any) -> None:
    """The next requests meet these faults."""
    document = {"dimensions": DIMENSIONS, "faults": {"next": list(faults)}, **changes}
    provider.set(Script.read(document))


async def harmless(embedder: OpenAIEmbedder) -> None:
    answer = await embedder.embed(TEXTS)
    assert np.array_equal(answer.vectors, vectors_of(TEXTS, DIMENSIONS)), "the connector is harmed"


def discreet(error: RevectorError) -> None:
    """Neither the texts nor the key are in anything that a log or a person may see of this error."""
    told = "".join(traceback.format_exception(error)) + error.hint + repr(error)
    assert WORDS not in told and KEY not in told


UNSTORED = {
    "truncated": "provider-answer",
    "html": "provider-answer",
    "too-few": "provider-count",
    "too-many": "provider-count",
    "index-twice": "provider-order",
    "index-beyond": "provider-order",
    "nan": "provider-not-finite",
    "infinite": "provider-not-finite",
    "zero": "provider-zero-vector",
    "too-long": "provider-norm",
    "gzip-bomb": "provider-answer-too-large",
    "oversized": "provider-answer-too-large",
    "redirect": "provider-redirects",
    "status-404": "provider-request-refused",
}
AGAIN = {
    "status-500": "provider-unavailable",
    "status-502": "provider-unavailable",
    "status-503": "provider-unavailable",
    "quota": "provider-quota",
    "throttled": "provider-throttled",
    "reset": "provider-unreachable",
}
SLOW = ("hang", "silent")
REFUSED = {
    "status-400": ItemRefused,
    "status-401": PermissionRefused,
    "status-403": PermissionRefused,
    "status-413": ItemRefused,
}
RIGHT = ("shuffled", "floats", "other-name", "other-model", "dimensions")
KINDS: dict[str, type[RevectorError]] = {
    **dict.fromkeys(UNSTORED, ProviderWrong),
    **dict.fromkeys(AGAIN, TransientError),
    **REFUSED,
}


def test_every_fault_has_a_case() -> None:
    assert set(UNBILLED + BILLED) == {*KINDS, *SLOW, *RIGHT}


@pytest.mark.parametrize("fault", KINDS)
async def test_a_fault_is_said_as_what_it_is_and_harms_nothing(
    provider: Provider, embedder: OpenAIEmbedder, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await harmless(embedder)
    plan(provider, fault)
    with pytest.raises(KINDS[fault]) as caught:
        await embedder.embed(TEXTS)
    id = {**UNSTORED, **AGAIN}.get(fault)
    assert id is None or caught.value.id == id
    discreet(caught.value)
    assert WORDS not in caplog.text and KEY not in caplog.text
    assert provider.stats.faults == {fault: 1}, "the fault did not land, or the connector repeated by itself"
    await harmless(embedder)


@pytest.mark.parametrize("fault", SLOW)
async def test_an_answer_that_does_not_come_ends_at_the_limit(provider: Provider, fault: str) -> None:
    embedder = made(provider, timeout_s=2.0)
    try:
        await harmless(embedder)
        plan(provider, fault)
        with pytest.raises(TransientError) as caught:
            await embedder.embed(TEXTS)
        assert caught.value.id == "provider-timeout" and provider.stats.faults == {fault: 1}
        discreet(caught.value)
        await harmless(embedder)
    finally:
        await embedder.close()


async def test_a_late_answer_is_an_answer(provider: Provider, embedder: OpenAIEmbedder) -> None:
    provider.set(Script(dimensions=DIMENSIONS, latency=Latency(kind="uniform", least_s=0.05, seconds=0.1)))
    await harmless(embedder)


@pytest.mark.parametrize("fault", ["shuffled", "floats"])
async def test_order_and_encoding_are_restored(provider: Provider, embedder: OpenAIEmbedder, fault: str) -> None:
    plan(provider, fault)
    await harmless(embedder)
    assert provider.stats.faults == {fault: 1}


async def test_the_answers_model_is_told(provider: Provider, embedder: OpenAIEmbedder) -> None:
    plan(provider, "other-name")
    assert (await embedder.embed(TEXTS)).model == "test-embedding-next"
    assert (await embedder.embed(TEXTS)).model == "test-embedding"


async def test_vectors_of_another_model_look_right_to_the_connector(
    provider: Provider, embedder: OpenAIEmbedder
) -> None:
    """What finds them is the canary."""
    plan(provider, "other-model")
    answer = await embedder.embed(TEXTS)
    assert answer.model == "test-embedding" and not np.allclose(answer.vectors[0], vector_of(TEXTS[0], DIMENSIONS))


async def test_vectors_of_another_length_are_asked_for_once_more_and_then_refused(
    provider: Provider, embedder: OpenAIEmbedder
) -> None:
    plan(provider, "dimensions", "ok")
    await harmless(embedder)
    assert provider.stats.requests == 2
    plan(provider, "dimensions")
    with pytest.raises(ProviderWrong) as caught:
        await embedder.embed(TEXTS)
    assert caught.value.id == "provider-dimension" and provider.stats.faults == {"dimensions": 2}
    discreet(caught.value)
    await harmless(embedder)


@pytest.mark.parametrize("fault", ["gzip-bomb", "oversized"])
async def test_an_answer_is_read_no_further_than_its_vectors_need(
    provider: Provider, embedder: OpenAIEmbedder, fault: str
) -> None:
    await harmless(embedder)
    plan(provider, fault)
    tracemalloc.start()
    try:
        with pytest.raises(ProviderWrong):
            await embedder.embed(TEXTS)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert provider.stats.faults == {fault: 1}
    assert most < 100 * 2**20, "of a gigabyte, most was held"


async def test_a_redirect_does_not_take_the_key_along(provider: Provider, embedder: OpenAIEmbedder) -> None:
    plan(provider, "redirect")
    with pytest.raises(ProviderWrong):
        await embedder.embed(TEXTS)
    assert (provider.stats.elsewhere, provider.stats.elsewhere_keys) == (0, 0)


async def test_the_other_origin_would_notice_the_key(provider: Provider) -> None:
    """Otherwise the case above could not fail."""
    stray = made(provider, base_url=f"{provider.elsewhere_url}/v1")
    with pytest.raises(RevectorError):
        await stray.embed(TEXTS)
    await stray.close()
    assert (provider.stats.elsewhere, provider.stats.elsewhere_keys) == (1, 1)


@pytest.mark.parametrize("wrong", [{"api_key": "sk-other"}, {"api_key": None}])
async def test_a_wrong_key_or_none_is_refused(provider: Provider, wrong: dict[str, Any]) -> None:
    embedder = made(provider, **wrong)
    with pytest.raises(PermissionRefused) as caught:
        await embedder.embed(TEXTS)
    await embedder.close()
    discreet(caught.value)


async def test_a_wrong_model_name_is_the_providers_and_not_the_texts(provider: Provider) -> None:
    embedder = made(provider, model="test-embeding")
    with pytest.raises(ProviderWrong) as caught:
        await embedder.embed(TEXTS)
    await embedder.close()
    assert "model_not_found" in caught.value.message
    discreet(caught.value)


@pytest.mark.parametrize("kind", ["bucket", "window"])
async def test_a_throttled_request_says_its_wait_and_the_budgets(provider: Provider, kind: Any) -> None:
    limits = Limits(requests_per_minute=2, tokens_per_minute=1000, kind=kind)
    provider.set(Script(dimensions=DIMENSIONS, limits=limits))
    embedder = made(provider)
    answers: list[Embedded] = [await embedder.embed(TEXTS) for _ in range(2)]
    rates = answers[0].rates
    assert (rates.requests_per_minute, rates.tokens_per_minute) == (2, 1000)
    with pytest.raises(TransientError) as caught:
        await embedder.embed(TEXTS)
    await embedder.close()
    assert caught.value.id == "provider-throttled" and 20 < (caught.value.retry_after_s or 0) <= 60
    assert provider.stats.refused == 1
    discreet(caught.value)


@pytest.mark.parametrize("fault", ["throttled", "quota", "status-503"])
async def test_a_named_wait_is_honoured(provider: Provider, embedder: OpenAIEmbedder, fault: str) -> None:
    provider.set(Script(dimensions=DIMENSIONS, faults=Faults(next=(fault,), retry_after_s=7.25)))  # type: ignore[arg-type]
    with pytest.raises(TransientError) as caught:
        await embedder.embed(TEXTS)
    assert caught.value.retry_after_s == 7.25


@pytest.mark.parametrize(
    ("poison", "kept"),
    [
        (Poison(markers=("number 3",), code="content_policy_violation"), "content_policy_violation"),
        (Poison(markers=("number 3",), status=422), "invalid_request_error"),
        (Poison(markers=("number 3",), code=f"bad text: {WORDS} number 3"), "invalid_request_error"),
    ],
)
async def test_a_refused_text_is_told_by_status_and_code_only(
    provider: Provider, embedder: OpenAIEmbedder, poison: Poison, kept: str
) -> None:
    provider.set(Script(dimensions=DIMENSIONS, poison=poison))
    with pytest.raises(ItemRefused) as caught:
        await embedder.embed(TEXTS)
    refused = caught.value
    assert (refused.status, refused.code, refused.param) == (poison.status, kept, "input")
    discreet(refused)
    without = [text for text in TEXTS if "number 3" not in text]
    assert np.array_equal((await embedder.embed(without)).vectors, vectors_of(without, DIMENSIONS))
