"""Stored chunks embedded again: a vector that is not its text's is found, within the budget that all share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from daemon.core.orders import EMBEDDING, Limits, with_limits, with_paused
from daemon.errors import PermissionRefused, TransientError
from daemon.flow.gate import Gate
from daemon.flow.orders import Orders
from daemon.ports import ChunkText, Embedded, Matrix
from daemon.procedures.resample import TRIES, Again, Refuted, refuted, shared_faults
from daemon.settings_generation import GenerationLimits
from tests import builders
from tests.fakes import MemoryDatabase, MemoryTarget
from tests.fakes.embedder import MemoryEmbedder, WordTokenizer, throttled, vector_of

PREFIX = "passage: "


class Provider(MemoryEmbedder):
    """fails: errors of the next requests, in order. answers: vectors of texts that the model gives another one."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: list[Exception] = []
        self.answers: dict[str, Matrix] = {}

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if self.fails:
            raise self.fails.pop(0)
        answer = await super().embed(texts)
        vectors = [self.answers.get(text, vector) for text, vector in zip(texts, answer.vectors, strict=True)]
        return Embedded(np.stack(vectors), answer.tokens, answer.model)


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
async def target() -> MemoryTarget:
    target = MemoryTarget(MemoryDatabase())
    await target.prepare()
    return target


async def again_of(target: MemoryTarget, provider: Provider, **limits: int) -> Again:
    contract = builders.contract(document_prefix=PREFIX)
    async with target.begin() as tx:
        generation = await tx.ledger.add_generation("v1", contract.as_json(), contract.id)
    chosen, orders, clock = GenerationLimits(**limits), Orders(target), target.database.clock
    gate = Gate(target, generation, chosen, orders, clock, clock.sleep)
    return Again(provider, gate, orders, contract, WordTokenizer(), chosen, clock.sleep)


@pytest.fixture
async def again(target: MemoryTarget, provider: Provider) -> Again:
    return await again_of(target, provider)


def chunk(n: int, text: str, vector: Matrix | None = None) -> ChunkText:
    stored = vector_of(PREFIX + text) if vector is None else vector
    return ChunkText(1, n, 0, text, [float(v) for v in stored])


async def order(again: Again, *paused: str, **limits: int) -> None:
    async with again.orders.target.begin() as tx:
        ordered = Limits(**limits)
        await tx.ledger.order(with_limits(with_paused({}, paused), "v1", ordered))


async def test_a_vector_of_another_text_is_refuted_and_no_other(again: Again, provider: Provider) -> None:
    chunks = [chunk(n, f"text {n}") for n in range(5)]
    chunks[2] = chunk(2, "text 2", vector_of(PREFIX + "text 3"))
    found = await refuted(again, chunks)
    assert (found.chunks, found.compared, found.unjudged) == ((chunks[2],), 5, 0)
    assert found.tokens == 5 * len(["passage:", "text", "0"])
    assert provider.calls == [tuple(f"passage: text {n}" for n in range(5))]


async def test_the_last_bits_of_a_vector_do_not_refute_it(again: Again) -> None:
    vector = vector_of(PREFIX + "text")
    rounded = chunk(1, "text", vector.astype(np.float16).astype(np.float32))
    longer = chunk(2, "text", 3 * vector)
    turned = chunk(3, "text", vector + np.float32(0.05) * np.eye(8, dtype=np.float32)[0])
    assert (await refuted(again, [rounded, longer, turned])).chunks == (turned,)


@pytest.mark.parametrize(
    "vector", [np.zeros(8), np.ones(7), np.full(8, np.nan), np.array([np.inf, *(1.0,) * 7])], ids=str
)
async def test_what_is_no_vector_of_the_model_is_refuted(again: Again, vector: Matrix) -> None:
    stored = chunk(1, "text", vector)
    assert (await refuted(again, [stored])).chunks == (stored,)


async def test_equal_texts_are_sent_once_and_nothing_is_sent_for_nothing(again: Again, provider: Provider) -> None:
    assert await refuted(again, []) == Refuted((), 0, 0, 0)
    assert provider.calls == []
    found = await refuted(again, [chunk(1, "same"), chunk(2, "same"), chunk(3, "same", vector_of("x"))])
    assert ([c.row_id for c in found.chunks], found.compared) == ([3], 3)
    assert provider.calls == [("passage: same",)]


async def test_requests_keep_to_the_limits_of_the_generation(target: MemoryTarget, provider: Provider) -> None:
    again = await again_of(target, provider, request_inputs=2)
    assert (await refuted(again, [chunk(n, f"text {n}") for n in range(5)])).compared == 5
    assert [len(call) for call in provider.calls] == [2, 2, 1]


async def test_requests_take_their_place_in_the_budget_that_all_share(
    target: MemoryTarget, again: Again, provider: Provider
) -> None:
    await order(again, requests_per_minute=60, tokens_per_minute=600)
    began = target.database.clock()
    chunks = [chunk(n, " ".join(f"word{n}" for _ in range(49))) for n in range(10)]
    found = await refuted(again, chunks)
    assert (found.compared, found.tokens) == (10, 500)
    assert len(provider.calls) == 10  # a request holds what the budget allows in less than a second, or one text
    assert target.database.clock() - began > 30


async def test_a_failed_request_is_sent_again_after_the_wait_that_was_asked_for(
    target: MemoryTarget, again: Again, provider: Provider
) -> None:
    began = target.database.clock()
    provider.fails = [throttled(7.0), TransientError("embedder-away", "away")]
    assert (await refuted(again, [chunk(1, "text")])).compared == 1
    assert target.database.clock() - began >= 7


async def test_what_keeps_failing_is_said(again: Again, provider: Provider) -> None:
    provider.fails = [TransientError("embedder-away", f"away {n}") for n in range(TRIES + 1)]
    with pytest.raises(TransientError, match=f"away {TRIES - 1}"):
        await refuted(again, [chunk(1, "text")])
    assert len(provider.fails) == 1
    provider.fails = [PermissionRefused("embedder-refused", "no such key")]
    with pytest.raises(PermissionRefused, match="no such key"):
        await refuted(again, [chunk(1, "text")])


async def test_a_text_that_is_refused_is_left_unjudged_and_the_others_are_judged(
    again: Again, provider: Provider
) -> None:
    provider.refuses = lambda text: text.endswith("5")
    chunks = [chunk(n, f"text {n}", vector_of("x") if n == 7 else None) for n in range(9)]
    found = await refuted(again, chunks)
    assert (found.chunks, found.compared, found.unjudged) == ((chunks[7],), 8, 1)


async def test_nothing_is_sent_while_embedding_is_paused(again: Again, provider: Provider) -> None:
    await order(again, EMBEDDING)
    assert await refuted(again, [chunk(1, "text"), chunk(2, "text 2")]) == Refuted((), 0, 2, 0, True)
    assert provider.calls == []


async def test_a_pause_ends_it_between_two_requests(target: MemoryTarget, provider: Provider) -> None:
    again = await again_of(target, provider, request_inputs=1)

    async def pausing(texts: Sequence[str]) -> Embedded:
        await order(again, EMBEDDING)
        return await Provider.embed(provider, texts)

    provider.embed = pausing  # type: ignore[method-assign]
    found = await refuted(again, [chunk(1, "text"), chunk(2, "text 2")])
    assert (found.compared, found.unjudged, found.is_cut, len(provider.calls)) == (1, 1, True, 1)


# --- one vector for several texts


async def test_of_one_vector_the_text_that_has_it_keeps_it(again: Again) -> None:
    vector = vector_of(PREFIX + "a")
    group = [chunk(1, "b", vector), chunk(2, "a"), chunk(3, "c", vector)]
    found = await shared_faults(again, [group])
    assert [c.row_id for c in found.chunks] == [1, 3]
    assert (found.compared, found.unjudged) == (3, 0)


async def test_texts_to_which_the_model_gives_one_vector_are_fine(again: Again, provider: Provider) -> None:
    vector = vector_of("x")
    provider.answers = {PREFIX + "a": vector, PREFIX + "A": vector}
    found = await shared_faults(again, [[chunk(1, "a", vector), chunk(2, "A", vector)]])
    assert (found.chunks, found.compared) == ((), 2)


async def test_some_of_every_group_come_before_more_of_any_and_the_rest_is_counted(
    again: Again, provider: Provider
) -> None:
    vector = vector_of("x")
    large = [chunk(n, f"text {n}", vector) for n in range(10)]
    small = [chunk(20, "a", vector), chunk(21, "b", vector), chunk(22, "a", vector)]
    found = await shared_faults(again, [large, small], most_texts=4)
    assert [c.row_id for c in found.chunks] == [0, 20, 1, 21, 22]
    assert (found.compared, found.unjudged) == (5, 8)
    assert sum(len(call) for call in provider.calls) == 4
