"""What only shows when somebody acts at the right moment: at a window's commit, or between a claim and its store.

A window is one transaction: whoever looks after its first commit finds all of it, where one that is made of several
would be torn. A store decides by the row and the entry as they are then, not as they were when the row was claimed.
"""

from __future__ import annotations

import pytest

from tests import builders
from tests.fakes import Died, die, then
from tests.flow.world import World


@pytest.fixture
async def copied() -> World:
    """Row 0, copied."""
    opened = await World().open()
    opened.source.seed("articles", {"id": "0", "title": "t", "body": "A", "tenant": "t1", "views": "1"})
    await opened.begin()
    await opened.copy()
    return opened


@pytest.fixture
async def world(copied: World) -> World:
    """Row 0, copied and embedded."""
    await copied.embed()
    return copied


def change(world: World) -> None:
    tx = world.source.begin()
    tx.update("articles", "0", title="changed")
    tx.commit()
    world.connector.deliver()


async def test_an_embedder_that_works_at_the_first_commit_of_a_window_embeds_its_text(world: World) -> None:
    """Work that comes before its row is taken with the old text, and is gone when the row changes."""
    stream = world.stream()
    await stream.take_over()
    change(world)

    async def embeds() -> None:
        await world.embed()
        world.check_rows()

    world.faults.at("target.commit", then(embeds))
    await world.read(stream)
    world.faults.verify()
    assert world.chunks()["0",] == ["changed", "A"]
    world.check()


async def test_work_is_there_at_the_first_commit_of_a_window(world: World) -> None:
    """Work that comes after its row is lost with the process."""
    stream = world.stream()
    await stream.take_over()
    change(world)
    world.faults.at("target.commit", die(done=True))
    with pytest.raises(Died):
        await world.read(stream)
    world.faults.verify()
    assert world.rows()["0",][1] == "changed"
    world.check_rows()
    await world.settle()
    world.check()


async def test_a_break_is_journaled_at_the_first_commit_of_a_window(world: World) -> None:
    """One that comes after the rows is lost with the process: the events that tell of it are not read again."""
    stream = world.stream()
    change(world)
    await world.follow(stream)
    change(world)
    world.connector.restart()
    tx = world.source.begin()
    tx.update("articles", "0", title="after the restart")
    tx.commit()
    world.connector.deliver()
    world.faults.at("target.commit", die(done=True))
    with pytest.raises(Died):
        await world.read(stream)
    world.faults.verify()
    await world.settle()
    async with world.target().begin() as tx_:
        assert [b.id for b in await tx_.ledger.breaks()] == ["connector-restarted"]
    world.check()


async def test_what_came_after_a_claim_is_owed_from_there_on(world: World) -> None:
    """A stored text settles what was owed up to its claim, and none of the changes since."""
    stream, seqs = world.stream(), list[int]()

    async def changes(title: str) -> None:
        tx = world.source.begin()
        tx.update("articles", "0", title=title)
        tx.commit()
        await world.follow(stream)
        async with world.target().begin() as tx_:
            seqs.append(await tx_.ledger.highest_seq())

    await changes("claimed")
    worker = world.worker()
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    answer = await worker.ask(plan)
    await changes("second")
    await changes("third")
    await worker.store(plan, answer)
    async with world.target().begin() as tx:
        assert [await tx.ledger.owed(world.generation, seq) for seq in seqs] == [0, 1, 1]
    await world.settle()
    world.check()


async def test_nothing_is_stored_where_a_filter_column_comes_to_lack_after_the_claim(copied: World) -> None:
    """The event of the row that was copied leaves it without its tenant: nobody's filter would hold for the chunk."""
    world = copied
    stream = world.stream()
    await world.follow(stream)
    worker = world.worker()
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    answer = await worker.ask(plan)
    values = builders.without(builders.row("0", "t", "A", views="1"), "tenant")
    event = builders.create("0", world.source.lsn + 100, values=values)
    at = world.place("0")
    await stream.apply(stream.window([event], {at: stream.offsets[at] + 1}))
    assert world.owed() == {("0",)}
    await worker.store(plan, answer)
    assert ("0",) not in world.chunks(), "stored though a filter column is not known"
    assert world.owed() == {("0",)}
