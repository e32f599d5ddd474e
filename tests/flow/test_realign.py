"""Going on at the ends of the topics: what is skipped is mended by a comparison, and nothing of it comes back.

Each scene ends with the replica equal to the source, whatever was skipped, lost or given out again. The directed ones
are the steps of the proof in `procedures.realign`: each fails where its step is left out.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest

from daemon.core.comparison import State as ComparisonState
from daemon.core.model import HaltNote, TopicPartition
from daemon.errors import HeldElsewhere, LeaseLost, NotBegun, OffsetsGone, SchemaChanged, StepRefused, UndecodableEvent
from daemon.flow.pulse import check_identity
from daemon.ports import SlotState
from daemon.procedures import realign as procedure
from daemon.procedures.certificates import check
from daemon.procedures.prove import prove
from daemon.procedures.realign import Realigned, RealignParts, plan, realign
from tests.fakes import Died, MemoryTarget, die, lose, refuse, then
from tests.fakes.faults import Fault
from tests.fakes.source import MemorySource
from tests.fakes.state import State
from tests.flow.compared_world import ComparedWorld, played
from tests.flow.test_freshness import pulses


def parts_of(world: ComparedWorld) -> RealignParts:
    return RealignParts(
        migration=world.database.name,
        source=world.faults.wrap("source", world.source),
        feed=world.faults.wrap("feed", world.feed()),
        capture=world.faults.wrap("capture", world.capture),
        target=world.target(),
        clock=world.clock,
    )


async def realigned(world: ComparedWorld) -> Realigned:
    """By an operator, once the stream beside has halted."""
    if world.beside is not None:
        await world.beside.release()
    return await realign(parts_of(world), "realign:op:1", "op")


async def open_breaks(world: ComparedWorld) -> list[str]:
    async with MemoryTarget(world.database).begin() as tx:
        return [b.id for b in await tx.ledger.breaks()]


async def mended(world: ComparedWorld) -> None:
    """A comparison that begins now leaves nothing that differs, and no break."""
    report = await world.compare(repair=True)
    assert (report.is_finished, report.comparison.state) == (True, ComparisonState.CLEAN)
    assert await open_breaks(world) == []
    await world.turn()
    world.check()


@dataclass
class Saved:
    """A source as it was, to be put in the place of what it has become."""

    state: dict[str, Any]

    @classmethod
    def of(cls, source: MemorySource) -> Saved:
        names = ("chains", "log", "commits", "lsn", "last_commit", "next_xid", "completed")
        return cls({name: copy.deepcopy(getattr(source, name)) for name in names})

    def restore(self, world: ComparedWorld, *, timeline: int = 1) -> None:
        """timeline: by which the restored source's is another one. The connector is started afresh behind it."""
        source, connector = world.source, world.connector
        for name, value in copy.deepcopy(self.state).items():
            setattr(source, name, value)
        source.who = replace(source.who, timeline=source.who.timeline + timeline)
        connector.restart()
        connector.next = connector.committed = len(source.log)
        source.slot_session = f"{connector.run}@1"


# --- the halts it is for


async def lost_changes(world: ComparedWorld) -> None:
    """An update, a delete and an insert that are in Kafka and were not read."""
    await world.turn()
    world.change("0", title="lost", tenant="t2")
    world.delete("1")
    world.insert("9")
    world.connector.deliver()


def retention(world: ComparedWorld) -> None:
    for at in world.broker.table_places("articles"):
        world.broker.trim(at, world.broker.end(at))


def unreadable(world: ComparedWorld) -> None:
    world.connector.garbage("articles")


@pytest.mark.parametrize(("happens", "halt"), [(retention, OffsetsGone), (unreadable, UndecodableEvent)])
@played
async def test_what_is_gone_or_cannot_be_read_is_passed_over_and_mended(
    world: ComparedWorld, happens: Callable[[ComparedWorld], None], halt: type[Exception]
) -> None:
    await lost_changes(world)
    happens(world)
    with pytest.raises(halt):
        await world.turn()
    done = await realigned(world)
    assert (done.epoch, done.plan.is_exact) == (1, True)
    assert done.plan.skipped > 0
    assert await open_breaks(world) == ["realigned"]
    await world.turn()
    with pytest.raises(AssertionError, match="differs"):
        world.check()
    await mended(world)


def grown(world: ComparedWorld) -> None:
    topic = world.broker.topic_of["articles"]
    at = TopicPartition(topic, world.broker.partitions[topic])
    world.broker.partitions[topic] += 1
    world.broker.logs[at], world.broker.starts[at], world.connector.queues[at] = [], 0, deque()


def made_anew(world: ComparedWorld) -> None:
    topic = world.broker.topic_of["articles"]
    world.broker.topic_ids[topic] = "another"
    for at in world.broker.table_places("articles"):
        world.broker.logs[at].clear()


def another_cluster(world: ComparedWorld) -> None:
    world.broker.cluster_id = "another"
    for at, log in world.broker.logs.items():
        world.broker.topic_ids[at.topic] = f"{at.topic} of another"
        log.clear()


@pytest.mark.parametrize("happens", [grown, made_anew, another_cluster])
@played
async def test_another_kafka_is_accepted(world: ComparedWorld, happens: Callable[[ComparedWorld], None]) -> None:
    await lost_changes(world)
    happens(world)
    before = await plan(parts_of(world))
    assert before.changes
    assert not before.is_exact
    done = await realigned(world)
    assert done.plan.changes == before.changes
    await check_identity(world.source, world.feed(), world.target())
    async with MemoryTarget(world.database).begin() as tx:
        assert set(await tx.ledger.checkpoint()) == set(world.broker.places())
    world.change("3", title="afterwards")  # of a partition that may be new
    world.insert("5")
    await mended(world)


# --- a source that went back


async def set_back(world: ComparedWorld, timeline: int) -> None:
    """Changes that are applied and then never were, under transaction ids that are given out again."""
    await world.turn()
    saved = Saved.of(world.source)
    for n in range(20):
        world.change("0", title=f"lost {n}")
        world.change("2", tenant="t9")
    world.delete("1")
    world.insert("8")
    await world.turn()
    world.check()
    saved.restore(world, timeline=timeline)


@pytest.mark.parametrize("timeline", [0, 1])
@played
async def test_a_source_that_went_back_is_accepted_and_followed(world: ComparedWorld, timeline: int) -> None:
    """Rows whose position and transaction belong to the log that is gone are mended and follow changes below them."""
    await set_back(world, timeline)
    await realigned(world)
    await mended(world)
    lost = world.replica_row("0").position
    assert lost is not None
    assert lost.lsn > world.source.lsn
    for key in ("0", "1", "2"):
        world.change(key, title="of the log that is there")
    world.delete("3")
    await world.turn()
    assert world.source.lsn < lost.lsn
    world.check()


@played
async def test_a_row_that_lacks_a_column_since_a_lost_transaction_is_completed(world: ComparedWorld) -> None:
    await world.turn()
    saved = Saved.of(world.source)
    for _ in range(5):
        world.change("0", views="5")
    world.delete("1")
    moved = world.source.begin()
    moved.rekey("articles", "0", "1", unavailable=("body",))
    moved.commit()
    world.is_completing = False
    await world.turn()
    assert world.replica_row("1").missing(world.table) == {"body"}
    saved.restore(world)
    await realigned(world)
    world.is_completing = True
    await world.turn()
    assert world.replica_row("1").missing(world.table) == frozenset()
    await mended(world)


@played
async def test_what_was_read_of_the_lost_log_is_not_written_afterwards(world: ComparedWorld) -> None:
    """A completion that stood still: its snapshot seems to see the event that left the column out, because that has
    an id that was given out again."""
    await world.turn()
    saved = Saved.of(world.source)
    world.is_completing = False

    def moves() -> None:
        world.delete("1")
        moved = world.source.begin()
        moved.rekey("articles", "0", "1", unavailable=("body",))
        moved.commit()

    for _ in range(20):
        world.change("2", views="5")
    moves()
    await world.turn()

    async def meanwhile() -> None:
        saved.restore(world)
        await realigned(world)
        world.is_completing = True
        await mended(world)
        world.is_completing = False
        world.change("0", body="of the log that is there")
        moves()
        await world.turn()

    world.faults.at("source.rows", then(meanwhile))
    assert await world.completion().step(world.table) == 0
    assert world.replica_row("1").missing(world.table) == {"body"}
    world.is_completing = True
    await world.turn()
    await world.turn()
    world.check()


@played
async def test_an_offset_beyond_the_source_s_log_is_refused(world: ComparedWorld) -> None:
    """The connector goes on where the lost log ended: every barrier below that would pass at once."""
    await set_back(world, 1)
    world.connector.offset_lsn = lambda: world.source.lsn + 500  # type: ignore[method-assign]
    with pytest.raises(StepRefused, match="has committed"):
        await realigned(world)
    assert await open_breaks(world) == []


# --- what is skipped stays skipped


@played
async def test_a_skipped_event_that_comes_again_does_not_beat_the_mended_row(world: ComparedWorld) -> None:
    await world.turn()
    world.change("0", title="skipped")
    world.delete("1")
    skipped = list(world.source.log[-2:])
    world.change("0", title="skipped too")
    world.insert("1", title="made again")
    world.connector.deliver()
    await realigned(world)
    await mended(world)
    for record in skipped:
        world.connector.redeliver(record)
    await world.turn()
    world.check()


@pytest.mark.parametrize(
    ("point", "is_after"),
    [
        ("feed.identity", False),
        ("feed.ends", False),
        ("source.emit", True),
        ("source.own_xid", True),
        ("source.snapshot", True),
        ("target.commit", True),
    ],
)
@played
async def test_a_change_at_any_step_is_skipped_and_mended_or_applied(
    world: ComparedWorld, point: str, is_after: bool
) -> None:
    """What commits after the barrier is applied without a comparison."""
    await lost_changes(world)
    assert world.beside is not None
    await world.beside.release()

    async def changes() -> None:
        world.change("2", title="meanwhile")
        world.connector.deliver()

    call = 4 if point == "target.commit" else 1  # control, lease, control: before the transaction that records it
    world.faults.at(point, then(changes), call)
    await realigned(world)
    world.faults.verify()
    await world.turn()
    title = world.rows()["2",][1]
    assert (title == "meanwhile") is is_after
    await mended(world)


@played
async def test_a_commit_that_is_decoded_and_not_visible_yet_is_waited_for(world: ComparedWorld) -> None:
    """Below the end offsets, so it is skipped; a comparison that could not see it would find the old row right."""
    await world.turn()
    late = world.source.begin()
    late.update("articles", "0", title="late")
    late.write_commit()
    world.connector.deliver()
    realigning = asyncio.create_task(realigned(world))
    await asyncio.sleep(100)
    assert not realigning.done()
    late.show()
    await realigning
    await mended(world)


@played
async def test_pages_of_a_backfill_go_on(world: ComparedWorld) -> None:
    """A page that was read before is dropped and read again."""
    world = ComparedWorld(clock=world.clock)
    await world.open()
    for n in range(6):
        world.source.seed("articles", {"id": str(n), "title": f"t{n}", "body": f"b{n}", "tenant": "t1", "views": "0"})
    await world.begin()
    worker = world.backfill(page_rows=2)
    await worker.step()
    read = await worker.read()
    assert read is not None
    world.change("2", title="skipped")
    world.connector.deliver()
    await realigned(world)
    assert not await worker.write(read)
    await world.copy(worker)
    await world.turn()
    await mended(world)


# --- the lease, other processes


@played
async def test_a_stream_that_runs_refuses_it(world: ComparedWorld) -> None:
    await world.turn()
    said: list[str] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(procedure.log, "warning", lambda words, *values: said.append(words % values))
        async with world.everything_goes_on():
            with pytest.raises(HeldElsewhere, match="followed by beside"):
                await realign(parts_of(world), "realign:op:1", "op")
    assert world.database.state.migration.epoch == 0
    assert len([words for words in said if words.startswith("waiting for the stream's lease of beside")]) == 1


@pytest.mark.parametrize("is_cancelled", [False, True])
@played
async def test_a_halted_stream_keeps_no_lease(world: ComparedWorld, is_cancelled: bool) -> None:
    """Whether it met the halt itself, or a loop beside it did."""
    await lost_changes(world)
    assert world.beside is not None
    await world.beside.release()
    if not is_cancelled:
        retention(world)
    running = asyncio.create_task(world.stream("halts").run(asyncio.Event()))
    if is_cancelled:
        await asyncio.sleep(1)
        assert world.database.state.migration.lease_owner == "halts"
        running.cancel()
    with pytest.raises(asyncio.CancelledError if is_cancelled else OffsetsGone):
        await running
    assert world.database.state.migration.lease_owner is None


@played
async def test_the_lease_of_a_dead_process_ends_and_its_window_is_dropped(world: ComparedWorld) -> None:
    """And where it was only frozen, what it has read is of another lease; it goes on in the new epoch."""
    await lost_changes(world)
    frozen = world.beside
    assert frozen is not None
    polled = await frozen.parts.feed.poll(100, 0)
    window = frozen.window([frozen.parts.decoder.decode(r) for r in polled.records], polled.next_offsets)
    done = await realign(parts_of(world), "realign:op:1", "op")
    with pytest.raises(LeaseLost):
        await frozen.apply(window)
    assert "9" not in {key for (key,) in world.rows()}
    frozen._forget()
    world.change("2", title="afterwards")
    await world.turn()
    position = world.replica_row("2").position
    assert position is not None
    assert position.epoch == done.epoch == 1
    await mended(world)


@played
async def test_who_stood_still_for_longer_than_the_lease_changes_nothing(world: ComparedWorld) -> None:
    await lost_changes(world)
    assert world.beside is not None
    await world.beside.release()

    async def another() -> None:
        world.clock.advance(1000)
        await world.turn()

    world.faults.at("source.emit", then(another))
    with pytest.raises(LeaseLost):
        await realign(parts_of(world), "realign:op:1", "op")
    assert world.database.state.migration.epoch == 0
    assert await open_breaks(world) == []
    world.check_rows()


# --- comparisons, pulses, proofs


@played
async def test_a_comparison_that_runs_meanwhile_is_ended_and_closes_nothing(world: ComparedWorld) -> None:
    await lost_changes(world)
    made_anew(world)
    world.is_applying = False
    assert world.beside is not None
    await world.beside.release()
    world.beside = None
    async with MemoryTarget(world.database).begin() as tx:
        begun = await tx.comparisons.begin([world.generation.id], 1, [])
    await realigned(world)
    async with MemoryTarget(world.database).begin() as tx:
        assert await tx.comparisons.running() is None
        with pytest.raises(StepRefused, match="does not run"):
            await tx.comparisons.end(replace(begun, state=ComparisonState.CLEAN), close_breaks=True)
    assert await open_breaks(world) == ["realigned"]
    world.is_applying = True
    await mended(world)


@played
async def test_a_comparison_over_it_neither_mends_nor_reports(world: ComparedWorld) -> None:
    await world.turn()
    world.change("0", title="before")
    await world.turn()

    async def meanwhile() -> None:
        world.is_applying = False
        await asyncio.sleep(1)
        await realigned(world)
        world.is_applying = True

    world.faults.at("source.digest_page", then(meanwhile))
    with pytest.raises(StepRefused) as refused:
        await world.compare(repair=True)
    assert refused.value.id == "comparison-gone"
    assert await open_breaks(world) == ["realigned"]
    await mended(world)


@played
async def test_skipped_pulses_are_part_of_the_break_and_a_later_one_is_its_own(world: ComparedWorld) -> None:
    await world.turn()
    loop = pulses(world)
    for _ in range(3):
        world.clock.advance(10)
        await loop.send()
    world.connector.deliver()
    await realigned(world)
    await mended(world)
    await loop.send()
    await world.turn()
    assert await open_breaks(world) == []
    await loop.send()
    world.loses()
    await loop.send()
    await world.turn()
    assert await open_breaks(world) == ["pulse-missing"]


@played
async def test_the_halt_is_cleared_and_no_certificate_of_before_counts(world: ComparedWorld) -> None:
    await lost_changes(world)
    async with MemoryTarget(world.database).begin() as tx:
        for role in ("stream", "backfill", world.generation.role):
            await tx.ledger.halt("offsets-gone", HaltNote("gone", "", None), role)
        await tx.ledger.store_certificate(world.generation, {"epoch": 0}, "d1")
        assert await tx.ledger.certificate_age(world.generation) is not None
    await realigned(world)
    await mended(world)
    async with MemoryTarget(world.database).begin() as tx:
        assert await tx.ledger.certificate_age(world.generation) is None
        assert set((await tx.ledger.load()).halted) == {world.generation.role}


@played
async def test_no_proof_spans_two_epochs(world: ComparedWorld) -> None:
    """Nothing was lost, and a comparison has closed the break before the end: the barrier is of another log all the
    same."""
    await world.indexes.build(world.table, world.generation)
    await world.turn()
    await mended(world)

    async def pump(seconds: float) -> None:
        await asyncio.sleep(seconds)
        await world.turn()

    async def proven() -> list[str]:
        certificate, shortfalls = await prove(world.proof(pump), "proof-1", "2026-01-01T00:00:00Z", 10)
        if certificate is None:
            return [s.id for s in shortfalls]
        issued.append(certificate.document)
        return [f"epoch {certificate.document['epoch']}"]

    issued: list[dict[str, Any]] = []
    assert await proven() == ["epoch 0"]

    async def meanwhile() -> None:
        await realigned(world)
        await mended(world)

    world.faults.at("capture.committed_lsn", then(meanwhile))
    assert await proven() == ["identity-changed"]
    assert await proven() == ["epoch 1"]
    checked = [await check(world.parts, document) for document in issued]
    assert [[o.what for o in c.observations if o.holds is not True] for c in checked] == [["epoch"], []]


# --- refusals


@played
async def test_what_cannot_be_followed_is_refused_and_nothing_is_changed(world: ComparedWorld) -> None:
    await lost_changes(world)
    world.source.slot_state = SlotState(False, False, None, None, None, None)
    with pytest.raises(StepRefused, match="no replication slot"):
        await realigned(world)
    world.source.slot_state = SlotState(True, False, None, None, "lost", None)
    with pytest.raises(StepRefused, match="lost its log"):
        await realigned(world)
    world.source.slot_state = None
    found = await world.source.describe(world.table.schema, world.table.name)
    assert found is not None
    world.source.catalogs["articles"] = replace(found, columns=found.columns[:-1])
    with pytest.raises(SchemaChanged):
        await realigned(world)
    del world.source.catalogs["articles"]

    async def another() -> None:
        another_cluster(world)

    world.faults.at("source.own_xid", then(another))
    with pytest.raises(StepRefused, match="changed meanwhile"):
        await realigned(world)
    assert await open_breaks(world) == []
    assert world.database.state.migration.epoch == 0
    assert world.database.state.migration.lease_owner is None


@played
async def test_before_the_start_there_is_nothing_to_realign(world: ComparedWorld) -> None:
    fresh = ComparedWorld(clock=world.clock)
    await fresh.open()
    with pytest.raises(NotBegun):
        await plan(parts_of(fresh))
    with pytest.raises(NotBegun):
        await realigned(fresh)


# --- crashes

KINDS: dict[str, Callable[[], Fault]] = {
    "dies before": die,
    "dies after": lambda: die(done=True),
    "refused": refuse,
    "answer lost": lose,
}


def offsets(state: State) -> dict[TopicPartition, int]:
    return {at: c.next_offset for at, c in state.checkpoints.items()}


async def interrupted(world: ComparedWorld) -> None:
    with suppress(Died, Exception):
        await realign(parts_of(world), "realign:op:1", "op")


@pytest.mark.parametrize("kind", KINDS)
@played
async def test_whatever_fails_at_any_call_it_is_done_whole_or_not_at_all(world: ComparedWorld, kind: str) -> None:
    """And done again by another process, whatever lease the dead one left."""
    await lost_changes(world)
    assert world.beside is not None
    await world.beside.release()
    world.beside = None
    began, calls = copy.copy(world.database.state), dict(world.faults.calls)
    await interrupted(world)
    counted = {point: n - calls.get(point, 0) for point, n in world.faults.calls.items()}
    points = [(point, n) for point, many in counted.items() for n in range(1, many + 1)]
    assert len(points) > 20
    for point, n in points:
        world.database.state = copy.copy(began)
        world.faults.at(point, KINDS[kind](), n)
        await interrupted(world)
        state = world.database.state
        is_done = state.migration.epoch == 1
        assert [e.id for e in state.journal if e.kind == "break" and not e.closed] == (["realigned"] if is_done else [])
        for before, after in ((began.tables, state.tables), (offsets(began), offsets(state))):
            assert (before == after) is not is_done
        done = await realign(parts_of(world), "realign:op:2", "op")
        assert done.epoch == (2 if is_done else 1)
        world.faults.verify()
    await mended(world)
