"""What a provider answered, read and checked: bytes in, one float32 matrix out, or a refusal of the whole answer.

Read from the raw body with orjson, base64 and numpy: typed lists of numbers cost forty times more. Vectors may come as
base64 or as lists of numbers, in any order; the index says whose they are. Every answer is checked as one matrix
against the contract before a vector leaves: count, order, dimension, finite, zero, length.

Knows no client and no connection; `openai_embedder` and `local_embedder` share it. Messages carry numbers, never text.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from daemon.core.comparison import LENGTH_TOLERANCE
from daemon.errors import StrangeAnswer
from daemon.ports import Matrix

MOST_TOKENS = 100_000_000  # of one answer; a larger count is a mistake, and budgets would believe it

_MODEL = re.compile(r"[\w.:/@+ -]{1,200}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer not yet held against the contract. vectors: float32 (N, D) for any D, in the order of the texts."""

    vectors: Matrix
    tokens: int
    model: str | None


def read_answer(body: bytes, count: int) -> Answer:
    """The embeddings of an answer for `count` texts. tokens: 0 where it does not say. Raises StrangeAnswer."""
    try:
        answer = orjson.loads(body)
        data = answer["data"]
        if len(data) != count:
            raise wrong("provider-count", f"{len(data)} vectors for {count} texts")
        by_index = {int(item["index"]): item["embedding"] for item in data}
        if by_index.keys() != set(range(count)):
            raise wrong("provider-order", f"the indexes of {count} vectors are not 0 to {count - 1}")
        vectors = _matrix([by_index[index] for index in range(count)])
        return Answer(vectors, _tokens(answer.get("usage")), _model(answer.get("model")))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise wrong("provider-answer", "the answer is not a list of embeddings") from error


def checked(vectors: Matrix, dimensions: int, *, normalised: bool) -> Matrix:
    """`vectors` if all of them can be vectors of this contract. Raises StrangeAnswer."""
    if vectors.shape[1] != dimensions:
        raise wrong_dimension(str(vectors.shape[1]), dimensions)
    if not np.isfinite(vectors).all():
        raise wrong("provider-not-finite", "a vector with a value that is not finite")
    if not vectors.any(axis=1).all():
        raise wrong("provider-zero-vector", "a vector of zeros only")
    if normalised:
        lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        off = np.abs(lengths - 1)
        if off.max() > LENGTH_TOLERANCE:
            raise wrong(
                "provider-norm",
                f"a vector of length {lengths[off.argmax()]:.4g} where the contract says 1",
                "nothing was stored; check the model, or set normalised = false in a generation of its own",
            )
    return vectors


def wrong(id: str, message: str, hint: str = "") -> StrangeAnswer:
    hint = hint or "nothing was stored; check that model and server are the right ones"
    return StrangeAnswer(id, f"provider: {message}", hint)


def wrong_dimension(found: str, dimensions: int) -> StrangeAnswer:
    return wrong("provider-dimension", f"a vector of length {found} where the contract says {dimensions}")


def _matrix(embeddings: Sequence[str | list[float]]) -> Matrix:
    """base64 of little-endian float32, or numbers: some servers ignore `encoding_format`. Raises ValueError."""
    if {type(embedding) for embedding in embeddings} == {str}:
        return _of_base64([str(embedding) for embedding in embeddings])
    rows = [_of_base64([e])[0] if isinstance(e, str) else _of_numbers(e) for e in embeddings]
    return _one_length([len(row) for row in rows], np.concatenate(rows))


def _of_base64(texts: Sequence[str]) -> Matrix:
    raw = [binascii.a2b_base64(text, strict_mode=True) for text in texts]
    return _one_length([len(row) // 4 for row in raw], np.frombuffer(b"".join(raw), dtype="<f4"))


def _of_numbers(numbers: list[float]) -> Matrix:
    with np.errstate(over="ignore"):  # becomes infinite, which `checked` refuses
        row: Matrix = np.asarray(numbers, dtype=np.float32)
    if row.ndim != 1:
        raise ValueError("not a list of numbers")
    return row


def _one_length(lengths: Sequence[int], flat: Matrix) -> Matrix:
    """One matrix of the rows that `flat` holds one after the other. Raises StrangeAnswer where they differ."""
    if min(lengths) != max(lengths):
        raise wrong("provider-dimension", f"vectors of length {min(lengths)} and {max(lengths)} in one answer")
    return flat.reshape(len(lengths), -1).astype(np.float32, copy=False)


def _tokens(usage: Any) -> int:
    """Tokens billed; 0 where the answer does not say so or says nonsense."""
    if isinstance(usage, Mapping):
        for tokens in (usage.get("total_tokens"), usage.get("prompt_tokens")):
            if type(tokens) is int and 0 < tokens <= MOST_TOKENS:
                return tokens
    return 0


def _model(name: Any) -> str | None:
    """The model as the answer names it; what does not look like a name may be prose."""
    return name if isinstance(name, str) and _MODEL.fullmatch(name) else None
