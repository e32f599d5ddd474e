"""What every implementation of the Embedder port does. A concrete test class provides the fixture `embedder`, whose
vectors have 64 dimensions and length 1."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from daemon.ports import Embedder

DIMENSIONS = 64
ODD = [" ", "\n\t", "\x00", "é", "e\u0301", "日本語", "🤷🏽‍♀️", "\u200b", "\ufffd", "a" * 5000, "word " * 4000]


class EmbedderSuite:
    async def test_one_vector_a_text_in_the_order_of_the_texts(self, embedder: Embedder) -> None:
        texts = [f"text number {n} about {word}" for n, word in enumerate(["cats", "ships", "law", "rain"] * 10)]
        there = (await embedder.embed(texts)).vectors
        back = (await embedder.embed(texts[::-1])).vectors
        assert there.shape == (40, DIMENSIONS) and there.dtype == np.float32
        assert np.allclose(there, back[::-1], atol=1e-6)
        assert len(np.unique(there.round(5), axis=0)) == 40

    async def test_a_vector_does_not_depend_on_its_company(self, embedder: Embedder) -> None:
        alone = (await embedder.embed(["a text"])).vectors[0]
        beside = (await embedder.embed(["word " * 3000, "a text", "b", "a text"])).vectors
        assert np.allclose(alone, beside[1], atol=1e-6)
        assert (beside[1] == beside[3]).all()

    async def test_vectors_have_length_1(self, embedder: Embedder) -> None:
        vectors = (await embedder.embed(["a", "some more words", "word " * 2000])).vectors
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)

    async def test_tokens_of_a_request_are_those_of_its_texts(self, embedder: Embedder) -> None:
        await embedder.embed(["a"])  # the first request may have to be asked twice, for its length
        one, two = (await embedder.embed(["one text"])).tokens, (await embedder.embed(["and two more texts"])).tokens
        assert 0 < one < two
        assert (await embedder.embed(["one text", "and two more texts"])).tokens == one + two

    async def test_answers_name_the_same_model_each_time(self, embedder: Embedder) -> None:
        assert {(await embedder.embed([text])).model for text in ("a", "b")} == {"wordllama-256"}

    @pytest.mark.parametrize("text", ODD, ids=lambda text: repr(text[:8]))
    async def test_every_text_that_is_not_empty_has_a_vector(self, embedder: Embedder, text: str) -> None:
        vectors = (await embedder.embed([text])).vectors
        assert np.isfinite(vectors).all() and vectors.any()

    async def test_requests_may_be_side_by_side(self, embedder: Embedder) -> None:
        texts = [f"text {n}" for n in range(12)]
        answers = await asyncio.gather(*(embedder.embed([text]) for text in texts))
        whole = (await embedder.embed(texts)).vectors
        assert np.allclose(np.concatenate([a.vectors for a in answers]), whole, atol=1e-6)

    async def test_a_cancelled_request_harms_no_other(self, embedder: Embedder) -> None:
        cancelled = asyncio.create_task(embedder.embed(["word " * 4000]))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert (await embedder.embed(["a"])).vectors.shape == (1, DIMENSIONS)
        await asyncio.wait([cancelled])

    async def test_closing_twice_is_once(self, embedder: Embedder) -> None:
        await embedder.embed(["a"])
        await embedder.close()
        await embedder.close()
