"""Rows that are embedded again: what is paid for, what is stored, and what a change, a delete, a refusal or a crash
on the way makes of it. A vector of the second model shows that it was asked for again."""

from __future__ import annotations

import numpy as np
import pytest

from daemon.core.model import WorkState
from daemon.flow.embed import EmbedWorker
from daemon.procedures.requeue import How, Wanted, requeue
from tests.fakes import Died, MemoryEmbedder, MemoryTarget, die, lose, vector_of
from tests.flow.world import World

ROWS = {"0": "same\na", "1": "same\nb", "2": "c\nd\ne"}


class Renewed(MemoryEmbedder):
    """A provider whose vectors are others than before: what is stored says when it was asked for."""

    def __init__(self) -> None:
        super().__init__(model="renewed")


async def embedded() -> World:
    """Three rows, embedded; from here on the provider gives other vectors."""
    world = await World().open()
    for key, body in ROWS.items():
        world.source.seed("articles", {"id": key, "title": "", "body": body, "tenant": "t", "views": "0"})
    await world.begin()
    await world.copy()
    await world.embed()
    world.embedder = Renewed()
    return world


@pytest.fixture
async def world() -> World:
    return await embedded()


async def ask(world: World, *keys: str) -> None:
    await requeue(MemoryTarget(world.database), Wanted("shop", "v1", How.KEY, "articles", values=keys), "me")


async def change(world: World, key: str, body: str | None) -> None:
    """A change of a row's text at the source, applied; None deletes."""
    tx = world.source.begin()
    if body is None:
        tx.delete("articles", key)
    else:
        tx.update("articles", key, body=body)
    tx.commit()
    await world.follow(world.stream())


def renewed(world: World) -> dict[str, list[str]]:
    """Texts whose vector is of the second model, by key."""
    state, found = world.database.state, {}
    for (_, t, row_id), chunks in sorted(state.chunks.items()):
        texts = [c.text for c in chunks if np.array_equal(c.vector, vector_of(c.text, model="renewed"))]
        if texts:
            found[state.keys[t, row_id][0]] = texts
    return found


def asked(world: World) -> list[str]:
    return sorted(text for call in world.embedder.calls for text in call)


async def spent(world: World) -> tuple[int, int]:
    async with MemoryTarget(world.database).begin() as tx:
        backlog = await tx.ledger.backlog(world.generation)
    return backlog.tokens, backlog.tokens_avoided


async def test_every_chunk_of_the_chosen_rows_is_paid_for_and_nothing_else(world: World) -> None:
    tokens, avoided = await spent(world)
    untouched = {p: c for p, c in world.database.state.chunks.items() if world.database.state.keys[p[1:]] == ("1",)}
    await ask(world, "0", "2")
    assert renewed(world) == {}, "a chunk was touched before its vector was there"
    assert world.chunks()["0",] == ["same", "a"]
    await world.embed()
    assert asked(world) == ["a", "c", "d", "e", "same"]
    assert renewed(world) == {"0": ["same", "a"], "2": ["c", "d", "e"]}
    assert world.owed() == set()
    assert {p: world.database.state.chunks[p] for p in untouched} == untouched
    assert await spent(world) == (tokens + 5, avoided)


async def test_a_row_that_waits_beside_it_keeps_its_vectors(world: World) -> None:
    """Both hold the same text: it is embedded for the one, and counted as avoided for the other."""
    _, avoided = await spent(world)
    await ask(world, "0")
    await change(world, "1", "same\nB")
    await world.embed()
    assert asked(world) == ["B", "a", "same"]
    assert world.chunks()["1",] == ["same", "B"]
    assert (await spent(world))[1] == avoided + 1
    assert world.owed() == set()


@pytest.mark.parametrize("is_away", [False, True], ids=["stored", "salvaged"])
async def test_a_text_that_is_refused_now_refuses_the_chosen_row_alone(world: World, is_away: bool) -> None:
    """The other row keeps its vector of the same text: nobody asked for another one."""
    await ask(world, "0")
    await change(world, "1", "same\nB")
    world.embedder.refuses = lambda text: text == "same"
    worker = world.worker()
    claims = await worker.claim(world.table)
    plan = await worker.prepare(world.table, claims)
    answer = await worker.ask(plan)
    await (worker.salvage(world.table, claims, plan, answer) if is_away else worker.store(plan, answer))
    assert world.chunks() == {("1",): ["same", "B"], ("2",): ["c", "d", "e"]}
    assert renewed(world) == {"1": ["B"]}
    ((_, _, row_id),) = world.database.state.work
    (entry,) = world.database.state.work.values()
    assert world.database.state.keys[world.table.id, row_id] == ("0",)
    assert (entry.state, entry.afresh_seq is None) == (WorkState.REFUSED, False)


async def test_a_refused_row_is_still_embedded_whole_once_it_is_retried(world: World) -> None:
    await ask(world, "0")
    world.embedder.refuses = lambda text: text == "a"
    await world.embed()
    world.embedder.refuses = lambda text: False
    await requeue(MemoryTarget(world.database), Wanted("shop", "v1", How.REFUSED), "me")
    await world.embed()
    assert renewed(world) == {"0": ["same", "a"]}


async def test_a_deleted_row_gets_nothing(world: World) -> None:
    await ask(world, "0", "1")
    worker = world.worker()
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    answer = await worker.ask(plan)
    await change(world, "0", None)
    await worker.store(plan, answer)
    assert set(world.chunks()) == {("1",), ("2",)}
    assert world.owed() == set()
    assert set(renewed(world)) == {"1"}


async def in_flight(world: World) -> EmbedWorker:
    """A worker that has claimed row 0, which was to be embedded again, and has its answer."""
    await ask(world, "0")
    return world.worker()


async def test_a_change_while_the_answer_is_on_its_way_pays_for_what_changed_only(world: World) -> None:
    worker = await in_flight(world)
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    answer = await worker.ask(plan)
    await change(world, "0", "same\nA")
    await worker.store(plan, answer)
    assert renewed(world) == {"0": ["same", "a"]}
    assert world.owed() == {("0",)}
    world.embedder.calls.clear()
    await world.embed()
    assert asked(world) == ["A"]
    assert renewed(world) == {"0": ["same", "A"]}
    assert world.owed() == set()


async def test_an_answer_that_was_asked_for_before_does_not_count(world: World) -> None:
    """The row changes, is claimed and asked for; then it is requeued: what it kept is still of the first model."""
    await change(world, "0", "same\nA")
    worker = world.worker()
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    answer = await worker.ask(plan)
    await ask(world, "0")
    await worker.store(plan, answer)
    assert renewed(world) == {"0": ["A"]}
    assert world.owed() == {("0",)}
    await world.embed()
    assert renewed(world) == {"0": ["same", "A"]}


async def test_repeating_it_while_it_waits_pays_once(world: World) -> None:
    for _ in range(3):
        await ask(world, "2")
    await world.embed()
    assert asked(world) == ["c", "d", "e"]
    assert world.owed() == set()


@pytest.mark.parametrize("call", ["embedder.embed", "vectors.replace", "ledger.settle", "target.commit"])
async def test_a_crash_on_the_way_leaves_the_old_chunks_and_the_work(world: World, call: str) -> None:
    before = world.database.state.chunks.copy()
    worker = await in_flight(world)
    number = {"target.commit": 3}.get(call, 1)  # of the claim, of the look, of what is stored
    world.faults.at(call, die(), call=number)
    with pytest.raises(Died):
        await world.embed(worker)
    world.faults.verify()
    assert world.database.state.chunks == before
    assert world.owed() == {("0",)}
    await world.settle()
    assert renewed(world) == {"0": ["same", "a"]}
    assert world.owed() == set()


@pytest.mark.parametrize("number", [1, 2])
async def test_the_command_may_be_repeated_after_a_crash(world: World, number: int) -> None:
    wanted = Wanted("shop", "v1", How.ALL, "articles")
    world.faults.at("target.commit", lose(), call=number)
    with pytest.raises(Exception, match="away"):
        await requeue(world.target(), wanted, "me")
    world.faults.verify()
    assert (await requeue(world.target(), wanted, "me")).rows == 3
    await world.embed()
    assert asked(world) == ["a", "b", "c", "d", "e", "same"]
    assert set(renewed(world)) == {"0", "1", "2"}
    assert world.owed() == set()


async def test_other_generations_keep_theirs(world: World) -> None:
    second = await world.add_generation("v2")
    await world.settle()
    world.embedder.calls.clear()
    before = {p: c for p, c in world.database.state.chunks.items() if p[0] == second.id}
    await ask(world, "0")
    await world.settle()
    assert asked(world) == ["a", "same"]
    assert {p: c for p, c in world.database.state.chunks.items() if p[0] == second.id} == before
