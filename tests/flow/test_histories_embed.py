"""Histories that lose or mix up a vector under a weaker wording of "embed": claims, zombies, reuse, `where`.

Each test is one directed sequence through the product's own stream and embedding worker over in-memory twins; the
number is the history's. What only row locks and statement snapshots decide (histories 10 to 13 inside one statement)
is tested at the port, against Postgres.
"""

from __future__ import annotations

import pytest

from daemon.core.model import UNAVAILABLE, WorkState
from daemon.flow.stream import Stream
from tests import builders
from tests.fakes import Transaction
from tests.flow.world import World

A = {"title": "t", "body": "A", "tenant": "t1", "views": "1"}
B = {"title": "t", "body": "B", "tenant": "t2", "views": "2"}


async def running(world: World) -> World:
    """Rows 0 = A and 1 = B, copied and embedded."""
    await world.open()
    world.source.seed("articles", {"id": "0", **A}, {"id": "1", **B})
    await world.begin()
    await world.copy()
    await world.embed()
    world.check()
    return world


@pytest.fixture
async def world() -> World:
    return await running(World())


@pytest.fixture
def stream(world: World) -> Stream:
    return world.stream()


async def commit(world: World, stream: Stream, *txs: Transaction) -> None:
    for tx in txs:
        tx.commit()
    await world.follow(stream)


async def update(world: World, stream: Stream, key: str, unavailable: tuple[str, ...] = (), **changes: str) -> None:
    tx = world.source.begin()
    tx.update("articles", key, unavailable=unavailable, **changes)
    await commit(world, stream, tx)


async def test_8_a_row_that_lacks_text_is_not_embedded(world: World, stream: Stream) -> None:
    """An entry whose row lacks a text column is not claimed: a hole in the text would look embedded."""
    tx = world.source.begin()
    tx.delete("articles", "0")
    tx.rekey("articles", "1", "0", unavailable=("body",))
    await commit(world, stream, tx)
    worker = world.worker()
    calls = len(world.embedder.calls)
    assert await worker.step(world.table) == 0
    assert len(world.embedder.calls) == calls
    assert world.owed() == {("0",)}
    await world.completion().step(world.table)
    await world.settle()
    world.check()


async def test_8_a_row_that_comes_to_lack_text_between_claim_and_read_is_left_owed(
    world: World, stream: Stream
) -> None:
    await update(world, stream, "0", title="z")
    worker = world.worker()
    claims = await worker.claim(world.table)
    assert len(claims) == 1
    tx = world.source.begin()
    tx.delete("articles", "0")
    tx.rekey("articles", "1", "0", unavailable=("body",))
    await commit(world, stream, tx)
    plan = await worker.prepare(world.table, claims)
    await worker.store(plan, await worker.ask(plan))
    assert world.owed() == {("0",)}
    assert world.chunks() == {}
    await world.settle()
    world.check()


async def test_9_a_zombie_does_not_store_the_text_of_the_deleted_predecessor(world: World, stream: Stream) -> None:
    """Only an entry with oldest_seq <= the claimed seq takes this text."""
    await update(world, stream, "0", title="secret", body="old")
    zombie = world.worker("zombie")
    claims = await zombie.claim(world.table)
    plan = await zombie.prepare(world.table, claims)
    answer = await zombie.ask(plan)
    gone, made = world.source.begin(), world.source.begin()
    gone.delete("articles", "0")
    gone.commit()
    made.insert("articles", id="0", title="n", body="N", tenant="t9")
    await commit(world, stream, made)
    await zombie.store(plan, answer)
    assert ("0",) not in world.chunks(), "the old text is searchable under the new row's permissions"
    assert world.owed() == {("0",)}
    await world.embed()
    await world.settle()
    world.check()
    assert world.chunks()["0",] == ["n", "N"]


async def test_9_a_claim_of_a_deleted_row_stores_nothing(world: World, stream: Stream) -> None:
    await update(world, stream, "0", title="secret")
    worker = world.worker()
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    answer = await worker.ask(plan)
    tx = world.source.begin()
    tx.delete("articles", "0")
    await commit(world, stream, tx)
    await worker.store(plan, answer)
    assert set(world.chunks()) == {("1",)}
    await world.settle()
    world.check()


async def test_10_a_change_between_read_and_store_stays_owed(world: World, stream: Stream) -> None:
    """Progress is made with the older text, and the newer one is still owed."""
    await update(world, stream, "0", title="x5")
    worker = world.worker()
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    await update(world, stream, "0", title="x8")
    await worker.store(plan, await worker.ask(plan))
    assert world.chunks()["0",] == ["x5", "A"]
    assert world.owed() == {("0",)}
    world.check_rows()
    await world.embed()
    assert world.chunks()["0",] == ["x8", "A"]
    await world.settle()
    world.check()


async def test_10_the_row_is_read_after_the_claim_is_durable(world: World, stream: Stream) -> None:
    """A newer text under an older seq is only embedded twice; the reverse would be lost."""
    await update(world, stream, "0", title="x5")
    worker = world.worker()
    claims = await worker.claim(world.table)
    await update(world, stream, "0", title="x8")
    plan = await worker.prepare(world.table, claims)
    await worker.store(plan, await worker.ask(plan))
    assert world.chunks()["0",] == ["x8", "A"]
    assert world.owed() == {("0",)}
    await world.settle()
    world.check()


async def test_11_a_delete_in_a_window_takes_chunks_and_work_with_it(world: World, stream: Stream) -> None:
    """Also when the row is made again in the same window with the same text."""
    gone, made = world.source.begin(), world.source.begin()
    gone.delete("articles", "0")
    gone.commit()
    made.insert("articles", id="0", **{**A, "tenant": "t9"})
    await commit(world, stream, made)
    assert set(world.chunks()) == {("1",)}, "chunks of the deleted row survive it"
    assert world.owed() == {("0",)}
    await world.settle()
    world.check()


async def test_11_a_truncate_takes_chunks_and_work_of_copied_rows_with_it(world: World, stream: Stream) -> None:
    await update(world, stream, "0", title="waiting")
    tx = world.source.begin()
    tx.truncate("articles")
    await commit(world, stream, tx)
    assert world.chunks() == {} and world.database.state.work == {}
    await world.settle()
    world.check()


async def test_12_a_page_that_commits_before_the_window_does_not_hide_its_work() -> None:
    """Work is written under the row's lock: a window that began earlier still leaves the newer seq."""
    world = await World().open()
    world.source.seed("articles", {"id": "0", **A})
    await world.begin()
    stream, backfill, worker = world.stream(), world.backfill(), world.worker()
    assert await stream.take_over()
    page = await backfill.read()  # A
    tx = world.source.begin()
    tx.update("articles", "0", title="x")
    tx.commit()
    world.connector.deliver()
    assert page is not None and await backfill.write(page)
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    await world.read(stream)
    await worker.store(plan, await worker.ask(plan))
    assert world.owed() == {("0",)}, "the change of the window is never embedded"
    await world.settle()
    world.check()


async def test_14_a_kept_chunk_that_is_gone_is_not_lost(world: World, stream: Stream) -> None:
    """If a kept digest is no longer stored, nothing is written and the claim is freed."""
    await update(world, stream, "0", title="z", body="z")
    zombie, worker = world.worker("zombie"), world.worker("worker")
    plan = await zombie.prepare(world.table, await zombie.claim(world.table))
    answer = await zombie.ask(plan)
    await update(world, stream, "0", title="t", body="z2")
    world.clock.advance(world.limits.claim_lease_s + 1)
    kept = await worker.prepare(world.table, await worker.claim(world.table))
    assert (len(kept.chunks), len(kept.texts)) == (2, 1)  # keeps "t", asks for "z2"
    kept_answer = await worker.ask(kept)
    await zombie.store(plan, answer)
    assert world.chunks()["0",] == ["z"]
    await worker.store(kept, kept_answer)
    assert world.chunks()["0",] == ["z"], "a part of the row's chunks was written"
    assert world.owed() == {("0",)}
    await world.embed()
    assert world.chunks()["0",] == ["t", "z2"]
    await world.settle()
    world.check()


async def test_14_an_unchanged_chunk_is_not_paid_for_again(world: World, stream: Stream) -> None:
    await update(world, stream, "0", title="new")
    calls = len(world.embedder.calls)
    await world.embed()
    assert world.embedder.calls[calls:] == [("new",)]
    world.check()


async def with_where() -> World:
    """`where` reads `views`, no text column: '1' true, null unknown."""
    world = World(builders.articles(where="views = 1", filters=()))

    def published(row: object) -> bool | None:
        views = row["views"]  # type: ignore[index]
        return None if views is None else views == "1"

    world.database.where("articles", ["views"], published)
    await world.open()
    world.source.seed("articles", {"id": "0", **A}, {"id": "1", **B})
    await world.begin()
    await world.copy()
    await world.embed()
    world.check()
    assert set(world.chunks()) == {("0",)}
    return world


async def test_15_a_change_of_metadata_that_turns_where_true_writes_work() -> None:
    world = await with_where()
    await update(world, world.stream(), "1", views="1", unavailable=("body",))
    assert world.owed() == {("1",)}
    await world.settle()
    world.check()
    assert set(world.chunks()) == {("0",), ("1",)}


@pytest.mark.parametrize("views", ["0", None])
async def test_15_a_change_of_metadata_that_turns_where_false_or_unknown_drops_chunks_and_work(
    views: str | None,
) -> None:
    world = await with_where()
    stream = world.stream()
    await update(world, stream, "0", title="waiting")
    tx = world.source.begin()
    tx.update("articles", "0", views=views)
    await commit(world, stream, tx)
    assert world.chunks() == {} and world.owed() == set()
    await world.settle()
    world.check()


async def test_15_a_claim_of_a_row_that_where_no_longer_wants_stores_nothing() -> None:
    """No entry, no write: the embedder need not evaluate `where` again."""
    world = await with_where()
    stream = world.stream()
    await update(world, stream, "0", title="draft", body="old")
    worker = world.worker()
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    answer = await worker.ask(plan)
    await update(world, stream, "0", views="0")
    await worker.store(plan, answer)
    assert world.chunks() == {}
    await world.settle()
    world.check()


async def test_15_a_missing_where_column_counts_as_false_until_it_is_filled() -> None:
    world = await with_where()
    stream = world.stream()
    tx = world.source.begin()
    tx.delete("articles", "1")
    tx.rekey("articles", "0", "1", unavailable=("views",))
    await commit(world, stream, tx)
    assert world.rows()["1",][4] is UNAVAILABLE
    assert world.chunks() == {} and world.owed() == set()
    await world.completion().step(world.table)
    assert world.owed() == {("1",)}
    await world.settle()
    world.check()


async def test_a_hot_row_makes_progress(world: World, stream: Stream) -> None:
    """Every batch meets a newer change; each still stores its text and moves what is owed past its claim."""
    worker = world.worker()
    await update(world, stream, "0", title="h0")
    for n in range(1, 6):
        claims = await worker.claim(world.table)
        plan = await worker.prepare(world.table, claims)
        await update(world, stream, "0", title=f"h{n}")
        await worker.store(plan, await worker.ask(plan))
        assert world.chunks()["0",][0] == f"h{n - 1}"
        (entry,) = world.database.state.work.values()
        assert entry.oldest > claims[0].seq
    await world.settle()
    world.check()


async def test_a_refusal_counts_only_for_the_text_that_was_refused(world: World, stream: Stream) -> None:
    world.embedder.refuses = lambda text: text == "bad"
    worker = world.worker()
    await update(world, stream, "0", title="bad")
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    answer = await worker.ask(plan)
    await update(world, stream, "0", title="fine")
    await worker.store(plan, answer)
    (entry,) = world.database.state.work.values()
    assert entry.state is WorkState.WAITING, "a healthy text is refused"
    assert ("0",) in world.chunks()
    await world.settle()
    world.check()


async def test_a_refused_text_takes_the_older_texts_chunks_with_it(world: World, stream: Stream) -> None:
    """What the row no longer says is not found by a search for ever."""
    world.embedder.refuses = lambda text: text == "bad"
    await update(world, stream, "0", title="bad")
    await world.embed()
    assert set(world.chunks()) == {("1",)}
    assert world.owed() == {("0",)}
    world.check_rows()
    await update(world, stream, "0", title="fine")
    await world.settle()
    world.check()


async def test_a_refused_text_stands_alone_and_is_quarantined(world: World, stream: Stream) -> None:
    """The refusal is found by halving; its neighbours are embedded, its reason is a code."""
    world.embedder.refuses = lambda text: text == "bad"
    txs = []
    for n in range(2, 9):
        tx = world.source.begin()
        tx.insert("articles", id=str(n), title="bad" if n == 5 else f"n{n}", body=None, tenant="t1")
        txs.append(tx)
    await commit(world, stream, *txs)
    await world.embed()
    assert world.owed() == {("5",)}
    (entry,) = world.database.state.work.values()
    assert entry.state is WorkState.REFUSED and entry.reason == "status-400 content-filter"
    assert entry.claimed_by is None
    world.check_rows()
    await update(world, stream, "5", title="fine")
    await world.settle()
    world.check()


async def test_a_changed_filter_column_reaches_the_chunks_with_the_row(world: World, stream: Stream) -> None:
    calls = len(world.embedder.calls)
    await update(world, stream, "0", tenant="t9")
    assert world.owed() == set()
    world.check_rows()
    await world.settle()
    world.check()
    assert len(world.embedder.calls) == calls


async def test_chunks_get_the_filter_columns_of_the_row_that_is_locked(world: World, stream: Stream) -> None:
    """Not those of the earlier read: a permission that is revoked meanwhile counts."""
    await update(world, stream, "0", title="x")
    worker = world.worker()
    plan = await worker.prepare(world.table, await worker.claim(world.table))
    answer = await worker.ask(plan)
    await update(world, stream, "0", tenant="t9")
    await worker.store(plan, answer)
    world.check_rows()
    await world.settle()
    world.check()


async def test_nothing_is_stored_while_a_filter_column_is_missing(world: World, stream: Stream) -> None:
    tx = world.source.begin()
    tx.delete("articles", "0")
    tx.rekey("articles", "1", "0", unavailable=("tenant",), title="moved")
    await commit(world, stream, tx)
    await world.worker().step(world.table)
    assert world.chunks() == {}
    assert world.owed() == {("0",)}
    await world.settle()
    world.check()
