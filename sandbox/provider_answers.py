"""What the scriptable provider puts on the wire: vectors that say whose text they are of, and every wrong answer.

`vector_of` is a function of the text alone (and of dimensions and seed), so whoever holds a stored vector and its text
can tell whether they belong together; two texts share a vector by chance only as often as two hashes collide.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

Matrix = npt.NDArray[np.float32]

OTHER_SEED = 1_000_003  # added to the seed of a model that was silently changed
BLOCK = 1 << 20
PAGE = b"<!doctype html><html><head><title>Welcome</title></head><body><h1>It works</h1></body></html>"


def vectors_of(texts: Sequence[str], dimensions: int, seed: int = 0) -> Matrix:
    """float32 (N, dimensions), each row of length 1: shake256 over sha256 of seed and text, as 16-bit integers."""
    packed = bytearray()
    for text in texts:
        digest = hashlib.sha256(b"%d\0" % seed + text.encode()).digest()
        packed += hashlib.shake_256(digest).digest(2 * dimensions)
    rows = np.frombuffer(bytes(packed), dtype="<i2").reshape(len(texts), dimensions).astype(np.float32) + np.float32(
        0.5
    )
    lengths: Matrix = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True)).astype(np.float32)
    return rows / lengths


def vector_of(text: str, dimensions: int = 256, seed: int = 0) -> Matrix:
    """float32 (dimensions,): what the provider answers for this text, bit for bit."""
    row: Matrix = vectors_of([text], dimensions, seed)[0]
    return row


@dataclass(frozen=True)
class Reply:
    """A response. ending: how it goes on after the headers; `reset` and `hang` promise the whole body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    ending: Literal["whole", "hang", "reset", "endless", "silent"] = "whole"


def error(
    status: int, message: str, kind: str, code: str | None = None, param: str | None = None, **headers: str
) -> Reply:
    """An error object as OpenAI's."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, orjson.dumps(body), {"content-type": "application/json", **named})


@dataclass(frozen=True)
class Asked:
    """What an answer is made from."""

    texts: Sequence[str]
    dimensions: int
    is_base64: bool
    model: str
    seed: int
    usage: int | None


def answer(asked: Asked, fault: str | None = None) -> Reply:
    """The vectors of a request, spoilt as the fault says."""
    seed = asked.seed + (OTHER_SEED if fault == "other-model" else 0)
    dimensions = asked.dimensions + (1 if fault == "dimensions" else 0)
    vectors = vectors_of(asked.texts, dimensions, seed)
    last = len(asked.texts) - 1
    if fault == "nan":
        vectors[last, 0] = np.nan
    elif fault == "infinite":
        vectors[last, -1] = np.inf
    elif fault == "zero":
        vectors[last] = 0
    elif fault == "too-long":
        vectors *= np.float32(3)
    is_base64 = asked.is_base64 and fault != "floats"
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, is_base64)}
        for index, vector in enumerate(vectors)
    ]
    data = _listed(data, fault)
    body: dict[str, Any] = {"object": "list", "data": data}
    body["model"] = f"{asked.model}-next" if fault == "other-name" else asked.model
    if asked.usage is not None:
        body["usage"] = {"prompt_tokens": asked.usage, "total_tokens": asked.usage}
    written = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return _framed(written, fault)


def _listed(data: list[dict[str, Any]], fault: str | None) -> list[dict[str, Any]]:
    """The list with its faults of count, order and index."""
    if fault == "too-few":
        return data[:-1]
    if fault == "too-many":
        return [*data, {**data[-1], "index": len(data)}]
    if fault == "shuffled":
        return data[::-1] if len(data) < 3 else [*data[1::2], *data[::2][::-1]]
    if fault == "index-twice":  # for a single text the index alone cannot be doubled: it is beyond instead
        return [*data[:-1], {**data[-1], "index": 0 if len(data) > 1 else 1}]
    if fault == "index-beyond":
        return [{**item, "index": item["index"] + 1} for item in data]
    return data


def _framed(body: bytes, fault: str | None) -> Reply:
    """The response with its faults of transport."""
    if fault == "truncated":
        return Reply(body=body[: len(body) // 2])
    if fault == "html":
        return Reply(body=PAGE, headers={"content-type": "text/html; charset=utf-8"})
    if fault == "gzip-bomb":
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        return Reply(body=gzip_bomb(), headers=headers)
    if fault == "oversized":
        return Reply(body=b'{"object":"list","data":[', ending="endless")
    return Reply(body=body, ending=fault if fault in ("hang", "reset") else "whole")  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def gzip_bomb(megabytes: int = 1024) -> bytes:
    """About 1 MB that inflates to `megabytes` of blanks inside an answer. Every block repeats the same bytes, which a
    full flush makes independent of what came before, so making it costs one block."""
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(b'{"object":"list","data":[') + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b" " * BLOCK) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * megabytes


def _written(vector: Matrix, is_base64: bool) -> str | Matrix:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if is_base64 else vector
