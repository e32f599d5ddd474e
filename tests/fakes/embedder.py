"""In-memory provider: vectors from a hash of the text, refusals by rule, every call recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from daemon.core.contract import Cut
from daemon.errors import ItemRefused
from daemon.ports import Embedded, Matrix, Throttled


class WordTokenizer:
    """The `Tokenizer` port: a word is a token, a line is never joined with the next."""

    identity = "words"

    def count(self, text: str) -> int:
        return len(text.split())

    def cutter(self, tokens: int, overlap: int) -> Cut:
        def cut(text: str) -> list[str]:
            step = max(1, tokens - overlap)
            lines = [words for line in text.splitlines() if (words := line.split())]
            return [" ".join(w[at : at + tokens]) for w in lines for at in range(0, max(1, len(w) - overlap), step)]

        return cut


class MemoryEmbedder:
    """The `Embedder` port. refuses: whether a text is refused; a request with one such text is refused whole.

    model: part of the hash, so two generations have different vectors for one text.
    """

    def __init__(self, dimensions: int = 8, model: str = "small") -> None:
        self.dimensions, self.model = dimensions, model
        self.refuses: Callable[[str], bool] = lambda text: False
        self.calls: list[tuple[str, ...]] = []
        self.closed = False

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if not texts or not all(texts):
            raise AssertionError("an empty request or an empty text")
        self.calls.append(tuple(texts))
        if any(self.refuses(t) for t in texts):
            raise ItemRefused(400, "content-filter", None)
        matrix = np.stack([vector_of(t, self.dimensions, self.model) for t in texts])
        return Embedded(matrix, sum(len(t.split()) for t in texts), self.model)

    async def close(self) -> None:
        self.closed = True


def vector_of(text: str, dimensions: int = 8, model: str = "small") -> Matrix:
    """The one vector of a text: float32 (D,), of length 1."""
    seed = hashlib.sha256(f"{model}\0{text}".encode()).digest()
    raw = np.frombuffer((seed * (dimensions // len(seed) + 1))[:dimensions], dtype=np.uint8).astype(np.float32) + 1.0
    vector: Matrix = (raw / np.linalg.norm(raw)).astype(np.float32)
    return vector


def throttled(retry_after_s: float | None = 3.0) -> Throttled:
    """What a provider's 429 becomes."""
    return Throttled("embedder-throttled", "the provider throttles", retry_after_s=retry_after_s)
