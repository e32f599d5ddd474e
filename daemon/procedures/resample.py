"""Embed stored chunks again, and say which vectors are not those of their texts.

A model that was changed silently, or a vector that was stored under another text, shows in nothing else. Requests go
one after the other through the generation's gate, so they share its budget with whatever embeds beside them, and
nothing is sent while embedding is paused by order. Equal texts are sent once. Nothing is stored, no canary is sent.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from daemon.core.contract import Contract, digest
from daemon.core.packing import Isolation, RequestLimits, pack
from daemon.errors import ItemRefused, TransientError
from daemon.flow.gate import Gate
from daemon.flow.orders import Orders
from daemon.flow.pacing import FIRST_WAIT_S, LONGEST_WAIT_S
from daemon.flow.provider import SAME_COSINE
from daemon.ports import ChunkText, Embedded, Embedder, Matrix, Tokenizer
from daemon.settings_generation import GenerationLimits

MOST_TEXTS = 1000  # of vectors that several texts have: most such groups show in their first members what they are
TRIES = 5  # of one request
TOO_LARGE = 413  # of a request, whatever its texts


@dataclass(frozen=True, slots=True)
class Again:
    """What embeds a generation's texts again. gate, orders: with connections of their own; the caller closes them and
    the embedder."""

    embedder: Embedder
    gate: Gate
    orders: Orders
    contract: Contract
    tokenizer: Tokenizer
    limits: GenerationLimits
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True, slots=True)
class Refuted:
    """chunks: whose stored vector is not their text's. compared: chunks whose text came back. unjudged: the others:
    their text was refused, or left out. tokens: billed. is_cut: embedding was paused before every text was sent."""

    chunks: tuple[ChunkText, ...]
    compared: int
    unjudged: int
    tokens: int
    is_cut: bool = False


async def refuted(again: Again, chunks: Sequence[ChunkText]) -> Refuted:
    """The chunks whose text gets another vector than the stored one.

    Raises what the embedder raises, except for a text that it refuses; TransientError after some tries."""
    texts = {digest(chunk.text, again.contract): again.contract.document_prefix + chunk.text for chunk in chunks}
    answer = await _embedded(again, texts)
    wrong, compared = [], 0
    for chunk in chunks:
        vector = answer.vectors.get(digest(chunk.text, again.contract))
        if vector is not None:
            compared += 1
            if _cosine(vector, chunk.vector) < SAME_COSINE:
                wrong.append(chunk)
    return Refuted(tuple(wrong), compared, len(chunks) - compared, answer.tokens, answer.is_cut)


async def shared_faults(again: Again, groups: Sequence[Sequence[ChunkText]], most_texts: int = MOST_TEXTS) -> Refuted:
    """Of groups of chunks with one vector, those whose text gets another one. Where the model gives one vector to
    different texts nothing is wrong. At most so many texts are sent, of every group some before more of any."""
    taken: set[bytes] = set()
    chosen: list[ChunkText] = []
    for chunk in _by_turns(groups):
        text = digest(chunk.text, again.contract)
        if text in taken or len(taken) < most_texts:
            taken.add(text)
            chosen.append(chunk)
    found = await refuted(again, chosen)
    left = sum(len(group) for group in groups) - found.compared
    return Refuted(found.chunks, found.compared, left, found.tokens, found.is_cut)


def _by_turns(groups: Sequence[Sequence[ChunkText]]) -> list[ChunkText]:
    """The first of each group, then the second of each, and so on."""
    return [chunk for turn in itertools.zip_longest(*groups) for chunk in turn if chunk is not None]


@dataclass(slots=True)
class _Answer:
    vectors: dict[bytes, Matrix] = field(default_factory=dict)
    tokens: int = 0
    is_cut: bool = False


async def _embedded(again: Again, texts: Mapping[bytes, str]) -> _Answer:
    """Vectors by digest; none of a text that is refused, nor of what is left when embedding is paused."""
    tokens = await asyncio.to_thread(lambda: {d: again.tokenizer.count(text) for d, text in texts.items()})
    answer = _Answer()
    await again.orders.refresh()  # before it nothing is sent, and the limits in force are not known
    limits = RequestLimits(again.limits.request_inputs, again.gate.request_tokens)
    for request in pack(tokens.items(), limits):
        isolation = Isolation(request, tokens)
        while group := isolation.group:
            try:
                sent = await _sent(again, [texts[d] for d in group], sum(tokens[d] for d in group))
            except ItemRefused as refusal:
                isolation.told(is_taken=False, too_large=refusal.status == TOO_LARGE)
                continue
            if sent is None:
                answer.is_cut = True
                return answer
            isolation.told(is_taken=True)
            answer.vectors.update(zip(group, sent.vectors, strict=True))
            answer.tokens += sent.tokens
    return answer


async def _sent(again: Again, texts: Sequence[str], tokens: int) -> Embedded | None:
    """One request's answer; None while embedding is paused by order."""
    for attempt in itertools.count(1):
        await again.orders.refresh()
        if not again.orders.may_send:
            return None
        try:
            async with again.gate.request(tokens, live=False) as admission:
                answer = await again.embedder.embed(texts)
                admission.answered(answer)
            return answer
        except TransientError:
            if attempt == TRIES:
                raise
            # Where the provider named a wait, the gate keeps it.
            await again.pause(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1.0))  # noqa: S311
    raise AssertionError("unreachable")


def _cosine(found: Matrix, stored: Sequence[float]) -> float:
    """0 where the stored vector has no direction, or another number of dimensions."""
    known = np.asarray(stored, dtype=np.float64)
    length = float(np.linalg.norm(known) * np.linalg.norm(found))
    if len(known) != len(found) or not np.isfinite(length) or length == 0:
        return 0.0
    return float(known @ found.astype(np.float64)) / length
