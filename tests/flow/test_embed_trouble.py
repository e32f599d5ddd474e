"""An embedder in trouble: what waits is not paid for twice, what is learnt harms nobody later, a halt can be left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from daemon.core.model import WorkState
from daemon.core.orders import EMBEDDING, Standing
from daemon.errors import Halt, ItemRefused, PermissionRefused, ProviderWrong, StrangeAnswer, TransientError
from daemon.flow import embed
from daemon.flow.embed import EmbedWorker
from daemon.flow.provider import ASK_AGAIN_S, CANARY, MOST_REFUSED_IN_A_ROW
from daemon.ports import Embedded
from tests.fakes import refuse
from tests.flow.world import World

DEADLINE_S = 60


async def copied(*bodies: str, is_trusted: bool = True, **limits: int) -> tuple[World, EmbedWorker]:
    """Rows 0, 1, … copied and not embedded; their lines are their chunks. A worker with these limits."""
    world = await World().open()
    for n, body in enumerate(bodies):
        world.source.seed("articles", {"id": str(n), "title": "", "body": body, "tenant": "t", "views": "0"})
    await world.begin()
    await world.copy()
    return world, world.worker(crew=world.crew(is_trusted, **limits))


async def drain(world: World, worker: EmbedWorker) -> None:
    while await worker.step(world.table):
        pass


def states(world: World) -> list[WorkState]:
    return [e.state for e in world.database.state.work.values()]


async def test_claims_are_renewed_while_the_canary_waits_for_a_pause_to_end() -> None:
    """A claim that ran out meanwhile is another process's: both would send its texts."""
    world, worker = await copied("a", is_trusted=False)
    worker.crew.claim_lease_s = 0.003
    gate = worker.crew.provider.gate
    waits, resumed = asyncio.Event(), asyncio.Event()

    async def pause(seconds: float) -> None:
        waits.set()
        await resumed.wait()

    gate._pause = pause
    gate._orders.standing = Standing(paused=frozenset({EMBEDDING}))
    step = asyncio.create_task(worker.step(world.table))
    async with asyncio.timeout(DEADLINE_S):
        await waits.wait()
        world.clock.advance(100)
        while not any(e.claimed_until > world.clock.now_s for e in world.database.state.work.values()):
            await asyncio.sleep(0)
        gate._orders.standing = Standing()
        resumed.set()
        await step
    world.check()


async def test_a_row_that_lacks_a_filter_column_is_not_paid_for_before_it_is_complete() -> None:
    """Its chunks cannot be written yet: claimed all the same, it would be embedded over and over."""
    world, worker = await copied("a", "b")
    await drain(world, worker)
    tx = world.source.begin()
    tx.delete("articles", "0")
    tx.rekey("articles", "1", "0", unavailable=("tenant",))
    tx.commit()
    await world.follow(world.stream())
    calls = len(world.embedder.calls)
    for _ in range(3):
        await worker.step(world.table)
    assert len(world.embedder.calls) == calls, "a text was paid for that cannot be stored"
    await world.completion().step(world.table)
    await world.settle()
    world.check()


async def test_a_late_answer_of_an_older_text_is_not_found_beside_a_refusal() -> None:
    """The row's newest text is refused, its chunks are gone; an older one would stay for ever."""
    world, zombie = await copied("older")
    plan = await zombie.prepare(world.table, await zombie.claim(world.table))
    answer = await zombie.ask(plan)
    tx = world.source.begin()
    tx.update("articles", "0", body="bad")
    tx.commit()
    await world.follow(world.stream())
    world.clock.advance(world.limits.claim_lease_s + 1)
    world.embedder.refuses = lambda text: text == "bad"
    await drain(world, world.worker("peer"))
    assert states(world) == [WorkState.REFUSED]
    await zombie.store(plan, answer)
    assert world.chunks() == {}, "a text that the row no longer has is searchable"
    assert states(world) == [WorkState.REFUSED]


async def test_a_late_answer_of_the_same_text_still_ends_its_refusal() -> None:
    world, zombie = await copied("odd")
    plan = await zombie.prepare(world.table, await zombie.claim(world.table))
    answer = await zombie.ask(plan)
    world.clock.advance(world.limits.claim_lease_s + 1)
    world.embedder.refuses = lambda text: text == "odd"
    await drain(world, world.worker("peer"))
    assert states(world) == [WorkState.REFUSED]
    await zombie.store(plan, answer)
    world.check()


async def test_refusals_that_halted_are_in_quarantine_and_the_next_process_goes_on() -> None:
    """Rows side by side that the provider refuses, such as those of one author: the first ones of the work, for every
    process that starts. Halted with nothing recorded, no restart would come past them."""
    world, worker = await copied(*(f"bad{n}" for n in range(MOST_REFUSED_IN_A_ROW)), "good", is_trusted=False)
    world.embedder.refuses = lambda text: text.startswith("bad")
    worker.crew.rows_per_claim["articles"] = MOST_REFUSED_IN_A_ROW
    with pytest.raises(Halt):
        await drain(world, worker)
    assert states(world).count(WorkState.REFUSED) == MOST_REFUSED_IN_A_ROW, "nobody sees what was refused"
    await drain(world, world.worker(crew=world.crew(is_trusted=False)))
    assert len(world.chunks()) == 1
    assert states(world) == [WorkState.REFUSED] * MOST_REFUSED_IN_A_ROW


async def test_a_long_document_of_which_every_chunk_is_refused_halts_nobody() -> None:
    world, worker = await copied("\n".join(f"bad{n}" for n in range(3 * MOST_REFUSED_IN_A_ROW)), is_trusted=False)
    world.embedder.refuses = lambda text: text.startswith("bad")
    await drain(world, worker)
    assert states(world) == [WorkState.REFUSED]


async def test_a_row_whose_every_version_is_refused_halts_nobody() -> None:
    world, worker = await copied("bad", is_trusted=False)
    world.embedder.refuses = lambda text: text.startswith("bad")
    stream = world.stream()
    for n in range(2 * MOST_REFUSED_IN_A_ROW):
        await drain(world, worker)
        tx = world.source.begin()
        tx.update("articles", "0", body=f"bad{n}")
        tx.commit()
        await world.follow(stream)
    await drain(world, worker)
    assert states(world) == [WorkState.REFUSED]


class Bounded:
    """A server that answers 413 to a request with a text of more than `most` characters, however many there are."""

    def __init__(self, world: World, most: int) -> None:
        self.inner, self.most = world.embedder, most

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if any(len(text) > self.most for text in texts):
            raise ItemRefused(413, "Validation", None)
        return await self.inner.embed(texts)

    async def close(self) -> None:
        pass


async def test_one_text_that_is_too_large_does_not_make_every_later_request_small() -> None:
    world, worker = await copied(*(f"n{n}" for n in range(30)), "far too long", request_inputs=32)
    worker.crew.provider.embedder = Bounded(world, 5)
    await drain(world, worker)
    assert states(world) == [WorkState.REFUSED] and len(world.chunks()) == 30
    assert worker.crew.request_limits().inputs == 32, "later requests are small for ever"


class Odd:
    """A server whose vector of `text` is not finite, and with it the whole answer."""

    def __init__(self, world: World, text: str) -> None:
        self.inner, self.text, self.sent = world.embedder, text, 0

    async def embed(self, texts: Sequence[str]) -> Embedded:
        if self.text in texts:
            self.sent += 1
            raise StrangeAnswer("provider-not-finite", "scripted")
        return await self.inner.embed(texts)

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("inputs", [1, 4, 64])
async def test_a_text_that_spoils_every_answer_is_found_and_not_paid_for_for_ever(inputs: int) -> None:
    """Models make a vector of no number of some texts. Repeated until it is right, such a request never ends."""
    world, worker = await copied(*(f"n{n}" for n in range(20)), "spoils", is_trusted=False, request_inputs=inputs)
    odd = worker.crew.provider.embedder = Odd(world, "spoils")
    async with asyncio.timeout(DEADLINE_S):
        await drain(world, worker)
    assert len(world.chunks()) == 20 and odd.sent <= 8
    (left,) = world.database.state.work.values()
    assert (left.state, left.reason) == (WorkState.REFUSED, "status-200 provider-not-finite")


async def test_a_provider_that_comes_to_spoil_every_answer_quarantines_nothing() -> None:
    world, worker = await copied(*(f"n{n}" for n in range(20)), is_trusted=False, request_inputs=4)
    await worker.step(world.table)
    sound = worker.crew.provider.embedder

    class Broken(Odd):
        async def embed(self, texts: Sequence[str]) -> Embedded:
            self.sent += 1
            raise StrangeAnswer("provider-not-finite", "scripted")

    broken = worker.crew.provider.embedder = Broken(world, "")
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await worker.step(world.table)
            except TransientError:
                continue
            except ProviderWrong as error:
                assert error.id == "provider-not-finite"
                break
    assert WorkState.REFUSED not in states(world) and broken.sent <= 40
    worker.crew.provider.embedder = sound
    world.clock.advance(ASK_AGAIN_S + 1)
    await drain(world, worker)
    world.check()


async def test_while_the_provider_is_not_asked_again_nothing_is_claimed_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each claim that comes to nothing is written twice: in all workers, every few seconds, for as long as it is."""
    world, worker = await copied("a", is_trusted=False)
    world.faults.at("embedder.embed", refuse(lambda: PermissionRefused("provider-key-refused", "scripted")))
    waited: list[float] = []

    async def wait(stop: asyncio.Event, seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(embed, "wait", wait)
    await worker._turn(asyncio.Event())
    assert waited == [ASK_AGAIN_S]


async def test_a_canary_that_rides_ends_the_suspicion() -> None:
    """Else embedding goes on, and is said to be halted until the process ends."""
    world, worker = await copied("a", is_trusted=False)
    await drain(world, worker)
    provider = worker.crew.provider
    world.faults.at("embedder.embed", refuse(lambda: PermissionRefused("provider-key-refused", "scripted")))
    with pytest.raises(PermissionRefused):
        await provider.embed(["b"], 1, live=True)
    assert provider.is_wrong
    await provider.embed(["word " * 700], 700, live=True, has_room=True)  # was under way meanwhile
    assert not provider.is_wrong


async def test_a_model_that_is_called_otherwise_is_known_by_its_vectors() -> None:
    """Such as `small` and `small:latest` of a server that was upgraded, or of two behind one address."""
    world, worker = await copied("a", "b", "c", is_trusted=False, request_inputs=1)
    await worker.step(world.table)

    class Renamed:
        async def embed(self, texts: Sequence[str]) -> Embedded:
            answer = await world.embedder.embed(texts)
            return Embedded(answer.vectors, answer.tokens, "small:latest")

        async def close(self) -> None:
            pass

    worker.crew.provider.embedder = Renamed()
    await drain(world, worker)
    world.check()
    assert world.embedder.calls.count((CANARY,)) <= 2, "it is asked about with every request"
