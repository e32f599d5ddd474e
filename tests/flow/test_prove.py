"""A certificate is never false: whatever happens between two of the proof's readings.

While the proof waits, a pump lets the world move one step at a time: deliver, apply, complete, embed. At every
boundary between two readings something else is done once; if a certificate is issued, each of its claims is compared
with the source's own history. What a proof must refuse is refused with the shortfall's id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib.metadata import version

import pytest

from daemon.core.comparison import State
from daemon.core.model import HaltNote
from daemon.errors import StepRefused
from daemon.flow.stream import Stream
from daemon.procedures.prove import Certificate, prove
from tests import builders
from tests.fakes import Faults, then
from tests.flow.world import World

A = {"title": "t", "body": "A", "tenant": "t1", "views": "1"}
B = {"title": "b", "body": "B", "tenant": "t2", "views": "2"}
BOUNDARIES = [
    ("target.begin", 1),
    ("source.emit", 1),
    ("capture.committed_lsn", 1),
    ("capture.committed_lsn", 2),
    ("feed.data_ends", 1),
    *[("target.begin", n) for n in range(2, 11)],
    ("source.identity", 1),
]
Act = Callable[[], Awaitable[None]]


class Pump:
    """The proof's pause: each call moves one part of the world."""

    def __init__(self, world: World, stream: Stream) -> None:
        self.world, self.stream = world, stream
        self.turn = 0
        self.stopped: set[str] = set()

    async def __call__(self, seconds: float) -> None:
        moves = [self.deliver, self.apply, self.complete, self.embed]
        move = moves[self.turn % len(moves)]
        self.turn += 1
        self.world.clock.advance(seconds)
        if move.__name__ not in self.stopped:
            await move()

    async def deliver(self) -> None:
        self.world.connector.deliver()

    async def apply(self) -> None:
        await self.world.read(self.stream)

    async def complete(self) -> None:
        await self.world.completion().step(self.world.table)

    async def embed(self) -> None:
        await self.world.embed()


async def ready(opened: World) -> World:
    """Rows 0 and 1 copied, embedded, indexed and compared."""
    await opened.open()
    opened.source.seed("articles", {"id": "0", **A}, {"id": "1", **B})
    await opened.begin()
    await opened.copy()
    await opened.embed()
    await opened.indexes.build(opened.table, opened.generation)
    await opened.compared()
    return opened


@pytest.fixture
async def world() -> World:
    return await ready(World())


@pytest.fixture
async def pump(world: World) -> Pump:
    stream = world.stream()
    assert await stream.take_over()
    return Pump(world, stream)


async def outcome(world: World, pump: Pump, script: Faults | None = None, timeout_s: float = 10) -> list[str]:
    """Prove; the shortfalls' ids, empty for a certificate, which is compared with the source's history."""
    parts_script, world.faults = world.faults, script or Faults()
    parts = world.proof(pump)
    world.faults = parts_script
    certificate, shortfalls = await prove(parts, "proof-1", "2026-01-01T00:00:00Z", timeout_s)
    if certificate is None:
        return [s.id for s in shortfalls]
    assert isinstance(certificate, Certificate)
    world.check_certificate(barrier_of(world))
    return []


def barrier_of(world: World) -> int:
    return max(r.lsn for r in world.source.log if b'"proof-1"' in r.payload)


async def change_text(world: World) -> None:
    tx = world.source.begin()
    tx.update("articles", "0", title="changed")
    tx.commit()


async def move_key(world: World) -> None:
    """Row 0 goes, row 1 becomes 0 without its body."""
    tx = world.source.begin()
    tx.delete("articles", "0")
    tx.rekey("articles", "1", "0", unavailable=("body", "tenant"))
    tx.commit()


async def move_key_without_metadata(world: World) -> None:
    """The text of the moved row is known, a column that no text is made from is not."""
    tx = world.source.begin()
    tx.delete("articles", "0")
    tx.rekey("articles", "1", "0", unavailable=("views",))
    tx.commit()


async def insert(world: World) -> None:
    tx = world.source.begin()
    tx.insert("articles", id="3", title="new", body="new body", tenant="t1")
    tx.commit()


async def truncate(world: World) -> None:
    tx = world.source.begin()
    tx.truncate("articles")
    tx.commit()


CHANGES = [change_text, move_key, move_key_without_metadata, insert, truncate]


async def test_a_certificate_is_issued_at_rest_and_stored(world: World, pump: Pump) -> None:
    assert await outcome(world, pump) == []
    assert len(world.database.state.certificates) == 1
    document = world.database.state.certificates[0][1]
    assert document["versions"] == {"revector": version("revector"), "debezium": "3.7.0.Final"}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_was_committed_before_the_barrier_is_waited_for(
    world: World, pump: Pump, change: Callable[[World], Awaitable[None]]
) -> None:
    """Nothing of it is in Kafka when the proof begins; deliveries, applying and embedding follow one by one."""
    await change(world)
    assert await outcome(world, pump) == []
    assert pump.turn > 0
    assert world.rows() == world.source.current("articles")


@pytest.mark.parametrize("is_applied", [False, True], ids=["undelivered", "applied"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("point", "call"), BOUNDARIES)
async def test_no_false_certificate_whatever_commits_between_two_readings(
    world: World,
    pump: Pump,
    point: str,
    call: int,
    change: Callable[[World], Awaitable[None]],
    is_applied: bool,
) -> None:
    script = Faults()
    await change_text(world)

    async def act() -> None:
        await change(world)
        if is_applied:
            await pump.deliver()
            await pump.apply()

    script.at(point, then(act), call)
    assert await outcome(world, pump, script) in ([], ["columns-missing"], ["work-owed"])
    script.verify()
    await world.settle()
    world.check()


async def test_a_commit_between_the_barriers_lsn_and_its_commit_is_covered_or_later(world: World, pump: Pump) -> None:
    tx = world.source.begin()
    tx.update("articles", "0", title="between")
    tx.update("articles", "1", title="between")
    world.source.emitting.append(tx)
    assert await outcome(world, pump) == []


async def break_continuity(world: World) -> None:
    async with world.target().begin() as tx:
        await tx.ledger.journal("break", "pulse-missing", {"first": 3, "last": 4})


def meanwhile(world: World, act: Act) -> Faults:
    """A script that acts once, when step 6 has noted the highest seq."""
    script = Faults()
    script.at("source.identity", then(act), 1)
    return script


async def test_without_a_comparison_there_is_no_certificate(world: World, pump: Pump) -> None:
    world.database.state.comparisons.clear()
    assert await outcome(world, pump) == ["not-compared"]


async def test_a_comparison_that_left_the_generation_out_gives_it_no_certificate(world: World, pump: Pump) -> None:
    made = await world.add_generation("v2")
    await world.settle()
    world.indexes.valid["articles", made.id] = True
    certificate, shortfalls = await prove(world.proof(pump, made), "proof-1", "2026-01-01T00:00:00Z", 10)
    assert (certificate, [s.id for s in shortfalls]) == (None, ["not-compared"])


async def test_a_comparison_grows_too_old_for_a_certificate(world: World, pump: Pump) -> None:
    world.clock.advance(86_401)
    assert await outcome(world, pump) == ["comparison-stale"]


async def end_a_comparison(world: World, *, differs: bool) -> None:
    """What it mended is owed above the highest seq that the proof has noted."""
    state = State.DIFFERS if differs else State.CLEAN
    async with world.target().begin() as tx:
        begun = await tx.comparisons.begin([world.generation.id], 1, [])
        ended = replace(begun, state=state, ended_lsn=1, open={"text-stale": 1} if differs else {})
        await tx.comparisons.end(ended, close_breaks=not differs)


async def test_differences_that_are_found_while_the_proof_runs_refuse_it(world: World, pump: Pump) -> None:
    script = meanwhile(world, lambda: end_a_comparison(world, differs=True))
    assert await outcome(world, pump, script) == ["comparison-differs"]
    script.verify()


async def test_differences_that_are_mended_while_the_proof_runs_refuse_it(world: World, pump: Pump) -> None:
    await end_a_comparison(world, differs=True)
    script = meanwhile(world, lambda: end_a_comparison(world, differs=False))
    assert await outcome(world, pump, script) == ["comparison-differs"]
    script.verify()
    assert await outcome(world, pump) == []


async def test_a_break_that_is_closed_while_the_proof_runs_refuses_it(world: World, pump: Pump) -> None:
    """Closing one may mend a row above the highest seq that was noted: the next proof covers it."""
    await break_continuity(world)
    script = meanwhile(world, lambda: end_a_comparison(world, differs=False))
    assert await outcome(world, pump, script) == ["break-open"]
    script.verify()
    assert await outcome(world, pump) == []


async def test_a_restart_that_lost_the_rest_of_a_transaction_before_silence_refuses_it(
    world: World, pump: Pump
) -> None:
    """No event carries the new run id: only the slot's session tells of the restart."""
    await change_text(world)
    assert await outcome(world, pump) == []
    world.source.slot_session = "2@1"
    assert await outcome(world, pump) == ["break-open"]


async def test_a_break_that_is_noted_while_the_proof_runs_refuses_it(world: World, pump: Pump) -> None:
    """A window from before the barrier tells of a restart of the connector's task after step 1 was read."""
    await change_text(world)
    await pump.deliver()
    await pump.apply()
    world.connector.restart()
    await change_text(world)
    assert "break-open" in await outcome(world, pump)


@pytest.mark.parametrize(
    ("stopped", "expected"),
    [
        ("deliver", "connector-behind"),
        ("apply", "partition-behind"),
        ("complete", "columns-missing"),
        ("embed", "work-owed"),
    ],
)
async def test_a_part_that_stands_still_is_named(world: World, pump: Pump, stopped: str, expected: str) -> None:
    await change_text(world)
    await pump.deliver()
    await move_key(world)
    pump.stopped.add(stopped)
    assert expected in await outcome(world, pump)
    assert not world.database.state.certificates


async def test_a_column_that_no_text_is_made_from_blocks_the_proof_while_it_is_missing(
    world: World, pump: Pump
) -> None:
    """Missing columns are counted after the checkpoint has passed: an event below the barrier may bring the hole."""
    pump.stopped.add("complete")
    await move_key_without_metadata(world)
    assert await outcome(world, pump) == ["columns-missing"]


async def test_work_that_comes_with_a_fill_is_owed() -> None:
    """While what `where` reads is missing a row has no work at all: the highest seq is noted after it was filled."""
    world = World(builders.articles(where="views = 1", filters=()))
    world.database.where("articles", ["views"], lambda row: None if row["views"] is None else row["views"] == "1")
    await ready(world)
    stream = world.stream()
    assert await stream.take_over()
    pump = Pump(world, stream)
    pump.stopped.add("embed")
    tx = world.source.begin()
    tx.delete("articles", "1")
    tx.rekey("articles", "0", "1", unavailable=("views",))
    tx.commit()
    assert await outcome(world, pump) == ["work-owed"]
    assert world.owed() == {("1",)}


async def test_a_connector_offset_that_cannot_be_read_gives_no_certificate(world: World, pump: Pump) -> None:
    world.connector.offset_readable = False
    assert await outcome(world, pump) == ["not-observed"]


async def test_a_refused_text_blocks_the_proof(world: World, pump: Pump) -> None:
    world.embedder.refuses = lambda text: text == "changed"
    await change_text(world)
    assert set(await outcome(world, pump)) == {"work-owed", "work-refused"}


async def refuse_text(world: World, pump: Pump) -> int:
    """Row 0 changes to a text that is refused; its row id."""
    world.embedder.refuses = lambda text: text == "changed"
    await change_text(world)
    for move in (pump.deliver, pump.apply, pump.embed):
        await move()
    async with world.target().begin() as tx:
        (entry,) = await tx.ledger.quarantine(world.table, world.generation, 9)
    return entry.row_id


async def test_a_refused_text_is_not_waited_for(world: World, pump: Pump) -> None:
    await refuse_text(world, pump)
    before = world.clock()
    assert set(await outcome(world, pump, timeout_s=60)) == {"work-owed", "work-refused"}
    assert world.clock() - before < 5


async def test_a_refused_text_that_was_accepted_blocks_nothing_and_is_counted_in_the_certificate(
    world: World, pump: Pump
) -> None:
    row_id = await refuse_text(world, pump)
    async with world.target().begin() as tx:
        await tx.replica.lock_rows(world.table, [row_id])
        assert await tx.ledger.accept(world.table, world.generation, [row_id]) == 1
    certificate, shortfalls = await prove(world.proof(pump), "proof-1", "2026-01-01T00:00:00Z", 60)
    assert shortfalls == []
    assert certificate is not None
    assert certificate.document["steps"][6]["accepted"] == 1
    assert "except 1 refused rows" in certificate.document["statement"]


async def test_embedding_that_is_halted_gives_no_certificate(world: World, pump: Pump) -> None:
    async with world.target().begin() as tx:
        await tx.ledger.halt("provider-key-refused", HaltNote("message", "hint"), world.generation.role)
    assert await outcome(world, pump) == ["embedding-halted"]


async def test_a_claimed_entry_counts_as_owed(world: World, pump: Pump) -> None:
    await change_text(world)
    await pump.deliver()
    await pump.apply()
    assert len(await world.worker("slow").claim(world.table)) == 1
    pump.stopped.add("embed")
    assert await outcome(world, pump) == ["work-owed"]


@pytest.mark.parametrize(("point", "call"), BOUNDARIES)
async def test_a_later_change_of_a_row_does_not_hide_what_is_owed(
    world: World, pump: Pump, point: str, call: int
) -> None:
    """oldest_seq counts: the entry is owed since before W, however new its newest change is."""
    await change_text(world)
    await pump.deliver()
    await pump.apply()
    pump.stopped.add("embed")
    script = Faults()

    async def act() -> None:
        tx = world.source.begin()
        tx.update("articles", "0", title="changed again")
        tx.commit()
        await pump.deliver()
        await pump.apply()

    script.at(point, then(act), call)
    assert "work-owed" in await outcome(world, pump, script)
    script.verify()


async def test_a_hot_row_does_not_starve_the_proof(world: World, pump: Pump) -> None:
    """The row changes again at every turn of the world; what is owed up to W is settled all the same."""
    n = 0

    async def hot(seconds: float) -> None:
        nonlocal n
        n += 1
        tx = world.source.begin()
        tx.update("articles", "0", title=f"hot {n}")
        tx.commit()
        await pump(seconds)

    await change_text(world)
    certificate, shortfalls = await prove(world.proof(hot), "proof-1", "2026-01-01T00:00:00Z", 20)
    assert not shortfalls and certificate is not None and n > 3
    world.check_certificate(barrier_of(world))


async def test_a_generation_that_is_dropped_while_it_is_proven_is_said_to_be_gone(world: World) -> None:
    await world.add_generation("v2")
    await world.compared()
    await insert(world)

    async def pause(seconds: float) -> None:
        world.clock.advance(seconds)
        if len(world.generations) > 1:
            await world.drop_generation()

    with pytest.raises(StepRefused) as caught:
        await prove(world.proof(pause, world.generations[1]), "proof-1", "2026-01-01T00:00:00Z", 1)
    assert caught.value.id == "generation-absent"


async def test_a_backfill_that_is_not_complete_gives_no_certificate() -> None:
    world = await World().open()
    world.source.seed("articles", {"id": "0", **A})
    await world.begin()
    await world.indexes.build(world.table, world.generation)
    await world.compared()
    stream = world.stream()
    assert await stream.take_over()
    assert "backfill-unfinished" in await outcome(world, Pump(world, stream))


async def test_another_topic_in_the_place_of_the_recorded_one_gives_no_certificate(world: World, pump: Pump) -> None:
    world.broker.topic_ids[world.broker.topic_of["articles"]] = "made again"
    assert await outcome(world, pump) == ["identity-changed"]
