"""The embedded model, the connector to a server, and the twin keep the one promise of `daemon.ports.Embedder`; and what
is the embedded model's own."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import numpy as np
import pytest

from connectors import local_embedder
from connectors.local_embedder import LocalEmbedder
from connectors.openai_embedder import OpenAIEmbedder
from daemon.errors import ConfigError, ItemRefused
from daemon.ports import Embedder
from sandbox.stack import Sandbox
from tests.fakes.embedder import MemoryEmbedder
from tests.ports.embedder_suite import DIMENSIONS, EmbedderSuite
from tests.ports.loopback import loopback
from tests.ports.shapes import KEY, OpenAI

MODEL = "wordllama-256"


class AnyModel(OpenAI):
    """Without limits that the suite would meet."""

    native = DIMENSIONS

    def look_at_model(self, model: str) -> None:
        pass

    def cut(self, text: str) -> str:
        return text


class TestLocal(EmbedderSuite):
    @pytest.fixture
    async def embedder(self) -> AsyncIterator[Embedder]:
        embedder = LocalEmbedder(MODEL, DIMENSIONS)
        yield embedder
        await embedder.close()


class TestOpenAI(EmbedderSuite):
    @pytest.fixture
    async def embedder(self) -> AsyncIterator[Embedder]:
        async with loopback() as server:
            server.respond = AnyModel()
            embedder = OpenAIEmbedder(f"{server.url}/v1", KEY, MODEL, DIMENSIONS, normalised=True)
            yield embedder
            await embedder.close()


@pytest.mark.system
class TestSandbox(EmbedderSuite):
    @pytest.fixture
    async def embedder(self, stack: Sandbox) -> AsyncIterator[Embedder]:
        embedder = OpenAIEmbedder(stack.embeddings_url, stack.embeddings_key, MODEL, DIMENSIONS, normalised=True)
        yield embedder
        await embedder.close()


class TestTwin(EmbedderSuite):
    @pytest.fixture
    async def embedder(self) -> Embedder:
        return MemoryEmbedder(DIMENSIONS, MODEL)


# --- the embedded model


@pytest.mark.parametrize("dimensions", [256, 128, 64])
async def test_vectors_are_those_of_the_package(dimensions: int) -> None:
    from wordllama import WordLlama  # noqa: PLC0415

    package = importlib.util.find_spec("wordllama")
    assert package is not None and package.submodule_search_locations is not None
    model = WordLlama.load(cache_dir=package.submodule_search_locations[0], disable_download=True)
    texts = ["a short text", "something else entirely, and longer than that", "日本語"]
    whole = np.concatenate([model.embed([text])[:, :dimensions] for text in texts])
    embedder = LocalEmbedder(MODEL, dimensions)
    found = await embedder.embed(texts)
    await embedder.close()
    assert np.allclose(found.vectors, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)
    assert found.tokens == sum(len(model.tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)


async def test_a_text_longer_than_a_slice_is_the_mean_of_all_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{n}" for n in range(2000))
    whole, sliced = LocalEmbedder(MODEL, 256), LocalEmbedder(MODEL, 256)
    expected = (await whole.embed([text])).vectors
    monkeypatch.setattr(local_embedder, "SLICE_TOKENS", 7)
    assert np.allclose((await sliced.embed([text])).vectors, expected, atol=1e-6)
    await whole.close()
    await sliced.close()


async def test_a_text_read_in_pieces_has_the_vector_it_has_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (local_embedder.__doc__ or "") * 20
    whole, pieces = LocalEmbedder(MODEL, 256), LocalEmbedder(MODEL, 256)
    expected = await whole.embed([text])
    monkeypatch.setattr(local_embedder, "PIECE_CHARACTERS", 500)
    found = await pieces.embed([text])
    assert abs(found.tokens - expected.tokens) < expected.tokens / 100
    assert float(found.vectors[0] @ expected.vectors[0]) > 0.9999
    await whole.close()
    await pieces.close()


@pytest.mark.parametrize("text", ["", "short", "a b " * 100, "a" * 95, " " * 95, "word " * 3 + "b" * 50 + " c"])
def test_pieces_are_the_text(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(local_embedder, "PIECE_CHARACTERS", 10)
    pieces = list(local_embedder._pieces(text))
    assert max(map(len, pieces)) <= 10
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("ids", [[], [0, 0]], ids=["no token", "tokens without a vector"])
async def test_a_text_without_a_vector_is_refused_and_not_stored_as_zeros(ids: list[int]) -> None:
    embedder = LocalEmbedder(MODEL, 64)
    tokenizer = SimpleNamespace(
        encode_batch=lambda texts, **_: [SimpleNamespace(ids=ids if "?" in text else [1]) for text in texts]
    )
    weights = np.eye(4, 256, dtype=np.float32) * np.array([[0], [1], [1], [1]], dtype=np.float32)
    embedder.__dict__["_model"] = SimpleNamespace(tokenizer=tokenizer, embedding=weights)
    try:
        assert (await embedder.embed(["known"])).vectors.any()
        with pytest.raises(ItemRefused) as caught:
            await embedder.embed(["known", "?"])
    finally:
        await embedder.close()
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "no_known_token", "input")


def test_what_the_embedded_model_cannot_do_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        LocalEmbedder("text-embedding-3-small", 1536, normalised=False, place="generation[1]")
    assert [(p.id, p.where) for p in caught.value.problems] == [
        ("local-model", "generation[1].model"),
        ("local-dimensions", "generation[1].dimensions"),
        ("local-normalised", "generation[1].normalised"),
    ]
    assert all(problem.hint for problem in caught.value.problems)


def test_without_the_package_the_way_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def absent(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "wordllama" else real(name, package)

    monkeypatch.setattr(local_embedder, "find_spec", absent)
    with pytest.raises(ConfigError, match="wordllama") as caught:
        LocalEmbedder(MODEL, 256)
    assert caught.value.problems[0].id == "local-package"
    assert caught.value.problems[0].hint == "install revector[local]"
