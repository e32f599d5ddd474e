"""A provider is not trusted blindly: a canary before the first row, refusals in a row, another model by its name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from daemon.core.model import WorkState
from daemon.errors import Halt, PermissionRefused, ProviderWrong, StrangeAnswer, TransientError
from daemon.flow.embed import EmbedWorker
from daemon.flow.provider import ASK_AGAIN_S, CANARY, CANARY_EVERY_S, MOST_REFUSED_IN_A_ROW, MOST_STRANGE_IN_A_ROW
from daemon.ports import Embedded
from tests.fakes import MemoryEmbedder, refuse, throttled
from tests.flow.world import World


async def begun(rows: int = 2) -> World:
    world = await World().open()
    for n in range(rows):
        world.source.seed("articles", {"id": str(n), "title": "", "body": f"n{n}", "tenant": "t", "views": "0"})
    await world.begin()
    await world.copy()
    return world


def wary(world: World, **limits: int) -> EmbedWorker:
    """A worker of a process that has just begun."""
    return world.worker(crew=world.crew(is_trusted=False, **limits))


async def drain(world: World, worker: EmbedWorker) -> None:
    while await worker.step(world.table):
        pass


def states(world: World) -> list[WorkState]:
    return [e.state for e in world.database.state.work.values()]


def unclaimed(world: World) -> bool:
    return all(e.claimed_by is None for e in world.database.state.work.values())


async def test_the_canary_goes_first_and_its_vector_is_kept_with_the_generation() -> None:
    world = await begun()
    await drain(world, wary(world))
    assert world.embedder.calls[0] == (CANARY,)
    async with world.target().begin() as tx:
        known = await tx.ledger.canary(world.generation)
    assert known is not None and known.model == "small" and len(known.vector) == world.embedder.dimensions
    world.check()


async def test_an_idle_worker_asks_nothing() -> None:
    world = await begun()
    await world.embed()
    calls = len(world.embedder.calls)
    assert await wary(world).step(world.table) == 0
    assert len(world.embedder.calls) == calls


async def test_the_canary_is_sent_again_only_after_a_while() -> None:
    world = await begun(3)
    worker = wary(world, request_inputs=1)
    await drain(world, worker)
    assert world.embedder.calls.count((CANARY,)) == 1
    world.clock.advance(CANARY_EVERY_S)
    tx = world.source.begin()
    tx.update("articles", "0", body="other")
    tx.commit()
    await world.follow(world.stream())
    await drain(world, worker)
    assert world.embedder.calls.count((CANARY,)) == 2


@pytest.mark.parametrize("named", [True, False], ids=["its name says so", "silently"])
async def test_a_model_that_changed_embeds_nothing_more(named: bool) -> None:
    world = await begun()
    await drain(world, wary(world))
    tx = world.source.begin()
    tx.update("articles", "0", body="other")
    tx.commit()
    await world.follow(world.stream())
    world.embedder = MemoryEmbedder(model="another") if named else Silent()
    worker = wary(world)
    with pytest.raises(ProviderWrong, match="not the one that this generation began with") as caught:
        await worker.step(world.table)
    assert caught.value.id == "provider-model-changed"
    assert states(world) == [WorkState.WAITING] and unclaimed(world)
    assert len(world.embedder.calls) == 1, "rows were sent to another model"


class Silent(MemoryEmbedder):
    """Other vectors under the old name."""

    async def embed(self, texts: Sequence[str]) -> Embedded:
        answer = await super().embed(texts)
        return Embedded(np.ascontiguousarray(answer.vectors[:, ::-1]), answer.tokens, "small")


async def test_a_model_that_changes_between_two_canaries_is_seen_by_the_name_in_its_answers() -> None:
    world = await begun()
    worker = wary(world, request_inputs=1)
    await worker.step(world.table)
    world.embedder.model = "another"
    with pytest.raises(ProviderWrong, match="name another model"):
        await drain(world, worker)
    assert len(world.chunks()) == 1 and unclaimed(world)


async def test_a_provider_that_refuses_everything_quarantines_nothing() -> None:
    world = await begun(100)
    world.embedder.refuses = lambda text: True
    with pytest.raises(ProviderWrong, match="refuses a harmless text"):
        await wary(world).step(world.table)
    assert set(states(world)) == {WorkState.WAITING} and unclaimed(world)
    assert world.embedder.calls == [(CANARY,)]


async def test_a_provider_that_comes_to_refuse_everything_is_found_by_the_canary() -> None:
    world = await begun(100)
    worker = wary(world, request_inputs=50)
    await worker.step(world.table)
    world.embedder.refuses = lambda text: True
    before = len(world.embedder.calls)
    with pytest.raises(ProviderWrong) as caught:
        await drain(world, worker)
    assert caught.value.id == "provider-refuses-all"
    assert set(states(world)) == {WorkState.WAITING} and unclaimed(world)
    assert len(world.embedder.calls) - before <= 10, "every text of the batch was tried alone"


async def test_refusals_in_a_row_halt_though_the_canary_passes() -> None:
    """Such as a document prefix that the provider does not take: every row would be quarantined one by one."""
    world = await begun(200)
    world.embedder.refuses = lambda text: text != CANARY
    worker = wary(world)
    with pytest.raises(Halt) as caught:
        await drain(world, worker)
    assert caught.value.id == "provider-refuses-many"
    assert states(world).count(WorkState.REFUSED) <= MOST_REFUSED_IN_A_ROW and unclaimed(world)
    calls = len(world.embedder.calls)
    with pytest.raises(Halt):
        await worker.step(world.table)
    assert len(world.embedder.calls) == calls, "it goes on asking"


async def test_refusals_among_texts_that_are_taken_do_not_halt() -> None:
    world = await begun(60)
    world.embedder.refuses = lambda text: text != CANARY and int(text[1:]) % 3 == 0
    await drain(world, wary(world, request_inputs=16))
    assert states(world) == [WorkState.REFUSED] * 20
    assert len(world.chunks()) == 40


async def test_a_wrong_answer_is_asked_about_again_once_for_all_workers_and_recovers() -> None:
    world = await begun()
    crew = world.crew(is_trusted=False)
    first, second = world.worker("e1", crew), world.worker("e2", crew)

    def refused() -> PermissionRefused:
        return PermissionRefused("provider-key-refused", "scripted")

    world.faults.at("embedder.embed", refuse(refused))
    for worker in (first, second):
        with pytest.raises(PermissionRefused):
            await worker.step(world.table)
    assert world.embedder.calls == [] and unclaimed(world)
    world.clock.advance(ASK_AGAIN_S + 1)
    await drain(world, second)
    world.check()


async def test_a_provider_that_is_away_when_the_canary_goes_out_is_no_wrong_provider() -> None:
    world = await begun()
    worker = wary(world)
    world.faults.at("embedder.embed", refuse(throttled))
    with pytest.raises(TransientError):
        await worker.step(world.table)
    await drain(world, worker)
    world.check()


def strange() -> StrangeAnswer:
    return StrangeAnswer("provider-answer", "scripted")


async def test_one_strange_answer_harms_nobody() -> None:
    """A proxy that cuts an answer off, once, is no reason to stop."""
    world = await begun()
    worker = wary(world)
    await drain(world, worker)
    tx = world.source.begin()
    tx.update("articles", "0", body="other")
    tx.commit()
    await world.follow(world.stream())
    world.faults.at("embedder.embed", refuse(strange))
    world.faults.at("embedder.embed", refuse(strange), call=2)
    await drain(world, worker)
    world.faults.verify()
    assert states(world) == [], "a text is blamed for answers that were cut off"
    world.check()


async def test_strange_answers_in_a_row_are_the_providers_fault() -> None:
    world = await begun()
    worker = wary(world)
    for call in range(1, MOST_STRANGE_IN_A_ROW + 2):
        world.faults.at("embedder.embed", refuse(strange), call=call)
    for _ in range(MOST_STRANGE_IN_A_ROW):
        with pytest.raises(TransientError):
            await worker.step(world.table)
    with pytest.raises(StrangeAnswer):
        await worker.step(world.table)
    assert set(states(world)) == {WorkState.WAITING} and unclaimed(world)
    world.clock.advance(ASK_AGAIN_S + 1)
    await drain(world, worker)
    world.check()


async def test_a_large_request_carries_the_canary_and_a_model_that_changes_silently_stores_nothing() -> None:
    """The next canary of its own would come minutes later."""
    world = await begun(3)
    worker = wary(world)
    await drain(world, worker)
    calls = len(world.embedder.calls)
    long = "word " * 700
    for key in ("0", "1"):
        tx = world.source.begin()
        tx.update("articles", key, body=long + key)
        tx.commit()
        await world.follow(world.stream())
        if key == "1":
            silent = Silent()
            silent.calls = world.embedder.calls
            worker.crew.provider.embedder = silent
            with pytest.raises(ProviderWrong) as caught:
                await worker.step(world.table)
            assert caught.value.id == "provider-model-changed"
        else:
            await drain(world, worker)
    assert [call[-1] for call in world.embedder.calls[calls:]] == [CANARY, CANARY]
    assert world.chunks()["1",] == ["n1"], "a vector of the other model was stored"
    assert world.owed() == {("1",)} and unclaimed(world)
