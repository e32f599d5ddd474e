"""Measure what a plan cannot compute: how fast the provider answers and what it bills, how fast the target indexes.

Both are asked for by name (`--probe`): the first costs the tokens that it sends. A probe that fails is a note for the
plan, never an error; no text of a row and no prose of the provider is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from daemon.core.contract import Contract
from daemon.core.forecast import IndexProbe, ProviderProbe
from daemon.core.model import Rates
from daemon.errors import RevectorError
from daemon.parts import Parts
from daemon.settings_generation import GenerationSettings

PROBE_CHUNKS, PROBE_REQUESTS = 36, 3
PROBE_ROWS = 2000  # of the index probe: a few seconds at 1536 dimensions


async def probe_provider(
    parts: Parts, generation: GenerationSettings, texts: Sequence[tuple[str, int]], clock: Callable[[], float]
) -> tuple[ProviderProbe | None, Rates, list[str]]:
    """Send the picked chunks in a few requests, one after the other; and what the answers said of the budgets. The
    first one also opens the connection, so a single chunk goes ahead, uncounted in time."""
    if len(texts) < PROBE_REQUESTS + 1:
        return None, Rates(), ["too little text for a probe of the provider"]
    embedder = parts.embedder(generation)
    first, rest = texts[:1], texts[1:]
    size = -(-len(rest) // PROBE_REQUESTS)
    billed, seconds, learnt = 0, [], Rates()
    try:
        billed += (await embedder.embed([text for text, _ in first])).tokens
        for at in range(0, len(rest), size):
            group = rest[at : at + size]
            began = clock()
            answer = await embedder.embed([text for text, _ in group])
            seconds.append(clock() - began)
            billed, learnt = billed + answer.tokens, answer.rates
    except RevectorError as error:
        return None, learnt, [f"the provider could not be probed: {error.message} [{error.id}]"]
    finally:
        await embedder.close()
    timed = sum(tokens for _, tokens in rest)
    return ProviderProbe(len(texts), timed + first[0][1], billed, timed, tuple(seconds)), learnt, []


async def probe_index(parts: Parts, contract: Contract) -> tuple[IndexProbe | None, list[str]]:
    """Build a small index at the target in a temporary table."""
    indexes = parts.indexes("plan")
    try:
        seconds = await indexes.probe(contract.vector_type, contract.dimensions, contract.metric, PROBE_ROWS)
    except RevectorError as error:
        return None, [f"no index could be probed at the target: {error.message} [{error.id}]"]
    finally:
        await indexes.close()
    if seconds is None:
        return None, ["no index could be probed: the target has no extension vector yet"]
    return IndexProbe(PROBE_ROWS, seconds), []
