"""The embedded model of the package wordllama: `daemon.ports.Embedder` without a server, a key or a network.

A static model: a text's vector is the mean of its tokens' vectors, cut to 256, 128 or 64 dimensions as its training
allows, then brought to length 1. All work runs in one worker thread; the model is loaded there with the first request.
Its tokenizer counts the tokens and has a piece for every byte, so a text without a vector is rare: it is refused, never
stored as zeros.

Texts are pooled one by one in slices of bounded size: the package's own batches pad every text to the longest one, and
a long document beside short ones would take gigabytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from connectors.embedding_answers import checked
from daemon.errors import ConfigError, ItemRefused, Problem
from daemon.ports import Embedded, Matrix

MODEL = "wordllama-256"
DIMENSIONS = (256, 128, 64)
PIECE_CHARACTERS = 20_000  # of one text, read at once
SLICE_TOKENS = 8192  # of one text at once: 8 MB


class LocalEmbedder:
    """Implements `daemon.ports.Embedder`. Raises ConfigError for another model or length, or without the package.

    place: of the generation in the configuration, for the error.
    """

    def __init__(self, model: str, dimensions: int, normalised: bool = True, place: str = "generation") -> None:
        if problems := list(_problems(model, dimensions, normalised, place)):
            raise ConfigError(problems)
        self._dimensions = dimensions
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedder")

    async def embed(self, texts: Sequence[str]) -> Embedded:
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._embedded, list(texts))

    async def close(self) -> None:
        """May be called twice. A request that runs ends in its thread, unheard."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _model(self) -> Any:
        import wordllama  # noqa: PLC0415

        # The weights lie in the package; without its folder it would look for them in the user's cache.
        package = Path(wordllama.__file__).parent
        model = wordllama.WordLlama.load(cache_dir=package, disable_download=True)
        model.tokenizer.no_padding()
        return model

    def _embedded(self, texts: list[str]) -> Embedded:
        tokens = [self._tokens(text) for text in texts]
        vectors = np.stack([self._pooled(ids) for ids in tokens])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not lengths.all():
            raise ItemRefused(422, "no_known_token", "input")
        matrix = checked((vectors / lengths).astype(np.float32), self._dimensions, normalised=True)
        return Embedded(matrix, sum(map(len, tokens)), MODEL)

    def _tokens(self, text: str) -> list[int]:
        """Tokens of a text. Piece by piece, in batches: one call for a text of megabytes takes minutes and holds the
        interpreter all the while, and the tokens of many pieces take long to be thrown away."""
        tokens: list[int] = []
        for piece in _pieces(text):
            [encoding] = self._model.tokenizer.encode_batch([piece], add_special_tokens=False)
            tokens += encoding.ids
        return tokens

    def _pooled(self, ids: Sequence[int]) -> Matrix:
        """float32 (dimensions,): the mean of the tokens' vectors; zeros without tokens."""
        known: Matrix = self._model.embedding
        total = np.zeros(self._dimensions, dtype=np.float64)
        for start in range(0, len(ids), SLICE_TOKENS):
            piece = np.clip(np.asarray(ids[start : start + SLICE_TOKENS]), 0, len(known) - 1)
            total += known[piece, : self._dimensions].sum(axis=0, dtype=np.float64)
        return (total / max(1, len(ids))).astype(np.float32)


def _pieces(text: str) -> Iterator[str]:
    """A text cut where a space is, which the tokenizer puts before every piece by itself."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        space = text.rfind(" ", start + 1, start + PIECE_CHARACTERS)
        end = space if space > 0 else start + PIECE_CHARACTERS
        yield text[start:end]
        start = end + (space > 0)
    yield text[start:]


def _problems(model: str, dimensions: int, normalised: bool, place: str) -> list[Problem]:
    found = []
    if find_spec("wordllama") is None:
        hint = "install revector[local]"
        found.append(Problem("local-package", place, "the embedded model needs the package wordllama", hint))
    if model != MODEL:
        found.append(
            Problem("local-model", f"{place}.model", f"there is no embedded model {model}", f'write "{MODEL}"')
        )
    if dimensions not in DIMENSIONS:
        sizes = ", ".join(map(str, DIMENSIONS))
        message = f"the embedded model has no vectors of length {dimensions}"
        found.append(Problem("local-dimensions", f"{place}.dimensions", message, f"take one of {sizes}"))
    if not normalised:
        message = "the embedded model's vectors have length 1"
        found.append(Problem("local-normalised", f"{place}.normalised", message, "take the key away"))
    return found
