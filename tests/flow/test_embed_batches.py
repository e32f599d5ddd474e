"""A batch of the embedder: what is asked, what is paid for once, what is stored when a part of it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from daemon.core.model import ClaimOrder, WorkState
from daemon.errors import ItemRefused, ProviderWrong, TransientError
from daemon.flow.embed import MOST_STORED, STORE_S, EmbedWorker
from daemon.ports import Embedded
from tests.fakes import Died, MemoryDatabase, MemoryTarget, die, lose, refuse, then, throttled
from tests.fakes.budget import free_orders
from tests.flow.world import World


async def rows(*bodies: str, **limits: int) -> tuple[World, EmbedWorker]:
    """Rows 0, 1, … copied and not embedded; their lines are their chunks. A worker with these limits."""
    world = await World().open()
    for n, body in enumerate(bodies):
        world.source.seed("articles", {"id": str(n), "title": "", "body": body, "tenant": "t", "views": "0"})
    await world.begin()
    await world.copy()
    return world, world.worker(crew=world.crew(True, **limits))


def entry(world: World, row: int) -> WorkState | None:
    key = (str(row),)
    found = [e for (_, t, r), e in world.database.state.work.items() if world.database.state.keys[t, r] == key]
    return found[0].state if found else None


async def test_texts_are_packed_by_tokens_and_inputs() -> None:
    world, worker = await rows("a b\nc d\ne f", "g h\ni j", request_inputs=3)
    await worker.step(world.table)
    assert sorted(map(len, world.embedder.calls)) == [2, 3]
    world.check()


async def test_a_text_that_several_rows_share_is_embedded_once() -> None:
    world, worker = await rows("same", "same", "same\nother")
    await worker.step(world.table)
    assert world.embedder.calls == [("same", "other")]
    world.check()


async def test_a_blank_row_has_no_chunks_is_counted_and_asks_for_nothing() -> None:
    world, worker = await rows("", "\n", "text")
    await worker.step(world.table)
    assert world.embedder.calls == [("text",)]
    async with world.target().begin() as tx:
        backlog = await tx.ledger.backlog(world.generation)
    assert (backlog.rows_embedded, backlog.rows_blank, backlog.tokens) == (3, 2, 1)
    world.check()


async def test_a_text_longer_than_an_input_is_refused_here_and_never_sent() -> None:
    """Some servers cut it off silently."""
    world, worker = await rows("one two three four", "short")
    worker.crew.most_input_tokens = 3
    await worker.step(world.table)
    assert world.embedder.calls == [("short",)]
    (left,) = world.database.state.work.values()
    assert (left.state, left.reason) == (WorkState.REFUSED, "input-too-long")


async def test_tokens_spent_and_avoided_are_counted_with_the_batch() -> None:
    world, worker = await rows("a b c\nd e")
    await worker.step(world.table)
    tx = world.source.begin()
    tx.update("articles", "0", body="a b c\nd f")
    tx.commit()
    await world.follow(world.stream())
    await worker.step(world.table)
    assert world.embedder.calls[1:] == [("d f",)]
    async with world.target().begin() as unit:
        backlog = await unit.ledger.backlog(world.generation)
    assert (backlog.tokens, backlog.tokens_avoided, backlog.requests) == (7, 3, 2)
    world.check()


async def test_a_batch_is_stored_in_short_transactions_of_whole_rows_and_counted_once() -> None:
    world, worker = await rows("a\nb", "c", "d\ne\nf", "g")
    worker.crew.store_chunks = 3
    stored: list[int] = []

    async def look() -> None:
        stored.append(len(world.database.state.chunks))

    for call in range(1, 4):
        world.faults.at("vectors.replace", then(look), call)
    before = world.faults.calls["target.commit"]
    await worker.step(world.table)
    world.faults.verify()
    assert stored == [0, 2, 3]
    assert world.faults.calls["target.commit"] - before == 2 + 3, "claim, read, three parts"
    async with world.target().begin() as unit:
        backlog = await unit.ledger.backlog(world.generation)
    assert (backlog.rows_embedded, backlog.tokens, backlog.requests) == (4, 7, 1)
    world.check()


async def test_what_was_stored_before_a_death_is_not_paid_for_again() -> None:
    world, worker = await rows("a", "b")
    worker.crew.store_chunks = 1
    world.faults.at("target.commit", die(done=True), call=3)
    with pytest.raises(Died):
        await worker.step(world.table)
    world.faults.verify()
    world.embedder.calls.clear()
    await world.settle()
    assert world.embedder.calls == [("b",)]
    world.check()


async def test_the_size_of_a_store_follows_its_speed() -> None:
    _, worker = await rows()
    crew = worker.crew
    crew.store_chunks = 256
    crew.paced(256, STORE_S * 4)
    assert crew.store_chunks == 64, "a live index slows it down"
    crew.paced(1, STORE_S * 4)
    assert crew.store_chunks == 1, "a row is never split"
    for _ in range(30):
        crew.paced(crew.store_chunks, STORE_S / 10)
    assert crew.store_chunks == MOST_STORED
    crew.paced(3, STORE_S / 10)
    assert crew.store_chunks == MOST_STORED, "a small part says nothing of a large one"


async def test_a_throttled_request_is_repeated_alone_when_the_rest_is_paid_for() -> None:
    world, worker = await rows("a\nb\nc", request_inputs=1)
    world.faults.at("embedder.embed", refuse(throttled), call=2)
    await worker.step(world.table)
    assert sorted(world.embedder.calls) == [("a",), ("b",), ("c",)], "a text was paid for twice, or never"
    world.faults.verify()
    world.check()


async def test_a_batch_of_which_nothing_is_paid_for_is_freed() -> None:
    """Whoever claims it next reads fresher text, live work first."""
    world, worker = await rows("a", "b")
    world.faults.at("embedder.embed", refuse(throttled))
    with pytest.raises(TransientError):
        await worker.step(world.table)
    assert all(e.claimed_by is None and e.state is WorkState.WAITING for e in world.database.state.work.values())


def wrong() -> ProviderWrong:
    return ProviderWrong("provider-count", "scripted")


async def test_rows_that_are_complete_are_stored_when_another_request_fails() -> None:
    world, worker = await rows("a", "b", request_inputs=1)
    worker.crew.rows_per_claim["articles"] = 2
    world.faults.at("embedder.embed", refuse(wrong), call=2)
    with pytest.raises(ProviderWrong):
        await worker.step(world.table)
    assert list(world.chunks().values()) == [["a"]], "what was paid for is thrown away"
    assert len(world.owed()) == 1 and not any(e.claimed_by for e in world.database.state.work.values())
    world.check_rows()


async def test_a_row_of_which_one_request_failed_is_not_stored_in_part() -> None:
    world, worker = await rows("a\nb", request_inputs=1)
    world.faults.at("embedder.embed", refuse(wrong), call=2)
    with pytest.raises(ProviderWrong):
        await worker.step(world.table)
    assert world.chunks() == {} and len(world.owed()) == 1
    world.check_rows()


async def test_one_refused_text_costs_few_requests_and_harms_nobody() -> None:
    world, worker = await rows(*(f"n{n}" for n in range(64)), request_inputs=64)
    worker.crew.rows_per_claim["articles"] = 64
    world.embedder.refuses = lambda text: text == "n41"
    await worker.step(world.table)
    assert len(world.embedder.calls) <= 1 + 6 + 1
    assert entry(world, 41) is WorkState.REFUSED and len(world.owed()) == 1
    assert len(world.chunks()) == 63


class Small:
    """A server that takes `most` inputs at a time and answers 413 to more."""

    def __init__(self, inner: World, most: int) -> None:
        self.inner, self.most, self.refusals = inner.embedder, most, 0

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if len(texts) > self.most:
            self.refusals += 1
            raise ItemRefused(413, None, None)
        return await self.inner.embed(texts)

    async def close(self) -> None:
        pass


async def test_a_server_that_takes_smaller_requests_is_learnt_and_nothing_is_quarantined() -> None:
    world, worker = await rows(*(f"n{n}" for n in range(40)), request_inputs=16)
    small = Small(world, 5)
    worker.crew.provider.embedder = small
    while await worker.step(world.table):
        pass
    assert world.owed() == set()
    assert small.refusals <= 8, "every request is refused first"
    world.check()


async def test_backfill_work_comes_first_now_and_then() -> None:
    standing = free_orders(MemoryTarget(MemoryDatabase()))
    orders = [standing.claim_order(turn) for turn in range(10)]
    assert orders.count(ClaimOrder.BACKFILL_FIRST) == 2


async def test_live_work_comes_before_backfill_work_and_the_other_way_round_in_its_turn() -> None:
    world, worker = await rows("old0", "old1")
    tx = world.source.begin()
    tx.insert("articles", id="9", title="", body="new", tenant="t", views="0")
    tx.commit()
    await world.follow(world.stream())
    for turn, expected in ((1, "new"), (4, "old0")):
        worker.turns, worker.crew.rows_per_claim["articles"] = turn, 1
        claims = await worker.claim(world.table)
        plan = await worker.prepare(world.table, claims)
        assert list(plan.texts.values()) == [expected]
        await worker.release(world.table, claims)


async def test_claims_are_renewed_while_the_provider_works() -> None:
    """A claim that ran out is paid for twice."""
    world, worker = await rows("a")
    worker.crew.claim_lease_s = 0.003
    claims = await worker.claim(world.table)
    before = world.database.state.work
    async with asyncio.timeout(60), worker._kept(world.table, claims):
        world.clock.advance(100)
        while not any(e.claimed_until > world.clock.now_s for e in world.database.state.work.values()):
            await asyncio.sleep(0)
    assert world.database.state.work != before


async def test_what_was_embedded_is_stored_when_the_target_comes_back() -> None:
    """Its tokens are paid: a target that is away for a moment must not throw them away."""
    world, worker = await rows("a")
    worker.stopping = asyncio.Event()
    claims = await worker.claim(world.table)
    plan = await worker.prepare(world.table, claims)
    answer = await worker.ask(plan)
    world.faults.at("target.commit", refuse())
    await worker.store(plan, answer)
    world.faults.verify()
    world.check()


async def test_an_answer_whose_storing_had_an_unknown_outcome_is_counted_once() -> None:
    world, worker = await rows("a b c")
    worker.stopping = asyncio.Event()
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    answer = await worker.ask(plan)
    world.faults.at("target.commit", lose())
    await worker.store(plan, answer)
    world.faults.verify()
    async with world.target().begin() as tx:
        assert (await tx.ledger.backlog(world.generation)).tokens == 3
    world.check()
