"""Freshness never claims an instant that is not reached, whatever happens between two of the pulse's readings.

The pulse's loop reads upstream to downstream; others act once at every boundary between two readings. What it then
says of replica and generation is compared with the source's own history.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from daemon.core.model import Generation
from daemon.core.profile import ExpectedConnector
from daemon.errors import Halt, IdentityChanged, OffsetsGone, SchemaChanged, TransientError
from daemon.flow.pulse import SUSPECT_S, PulseLoop, PulseParts, root_of
from daemon.flow.stream import Stream
from daemon.flow.sweep import Sweep
from daemon.ports import SlotState
from tests.fakes import Faults, lose, refuse, then
from tests.fakes.faults import Fault
from tests.flow.world import World

A = {"title": "t", "body": "A", "tenant": "t1", "views": "1"}
BOUNDARIES = [
    ("source.slot", 1),
    ("capture.committed_lsn", 1),
    ("feed.data_ends", 1),
    *[("target.begin", n) for n in range(1, 6)],
]


@pytest.fixture
async def world() -> World:
    opened = await World().open()
    opened.source.seed("articles", {"id": "0", **A}, {"id": "1", **A})
    await opened.begin()
    await opened.copy()
    await opened.embed()
    return opened


@pytest.fixture
async def stream(world: World) -> Stream:
    stream = world.stream()
    assert await stream.take_over()
    await world.follow(stream)
    return stream


def pulses(world: World, script: Faults | None = None) -> PulseLoop:
    own, world.faults = world.faults, script or Faults()
    loop = PulseLoop(
        PulseParts(
            migration="shop",
            source=world.faults.wrap("source", world.source),
            feed=world.faults.wrap("feed", world.feed()),
            capture=world.faults.wrap("capture", world.capture),
            target=world.target(),
            tables=[world.table],
            expected=ExpectedConnector("shop", "revector_shop", "revector_shop", "revector"),
            clock=world.clock,
            interval_s=5,
        )
    )
    world.faults = own
    loop.config_at = float("inf")
    return loop


def fresh_at(world: World, loop: PulseLoop, generation: Generation | None = None) -> float | None:
    """The instant reached by a generation, the first one unless another is named."""
    return loop.fresh[(generation or world.generation).id].fresh_at


async def change(world: World, **changes: str) -> None:
    tx = world.source.begin()
    tx.update("articles", "0", **changes)
    tx.commit()


async def move_key(world: World) -> None:
    tx = world.source.begin()
    tx.delete("articles", "0")
    tx.rekey("articles", "1", "0", unavailable=("views",))
    tx.commit()


async def test_freshness_moves_to_the_pulse_once_everything_before_it_is_applied_and_embedded(
    world: World, stream: Stream
) -> None:
    loop = pulses(world)
    written_at = world.clock()
    await change(world, title="changed")
    await loop.step()
    assert loop.tracker.replicated_at is None
    world.connector.deliver()
    await loop.step()
    assert loop.tracker.replicated_at is None, "in Kafka is not in the replica"
    await world.read(stream)
    world.clock.advance(1)
    await loop.step()
    assert loop.tracker.replicated_at == written_at
    assert fresh_at(world, loop) is None, "in the replica is not embedded"
    await world.embed()
    observed = await loop.step()
    assert fresh_at(world, loop) == written_at
    assert observed["generation_lag_s"] == {str(world.generation.id): world.clock() - written_at}
    assert world.clock() - written_at > 1


async def test_nothing_is_fresh_while_a_topic_was_made_anew_and_that_halts(world: World, stream: Stream) -> None:
    """It is empty: every checkpoint is past its ends."""
    loop = pulses(world)
    await loop.send()
    at = world.broker.table_places("articles")[0]
    await change(world, title="lost with the topic")
    world.connector.deliver()
    for place in world.broker.table_places("articles"):
        world.broker.logs[place].clear()
    world.broker.topic_ids[at.topic] = "another id"
    await loop.step()
    assert loop.tracker.replicated_at is None
    world.clock.advance(SUSPECT_S)
    with pytest.raises(IdentityChanged, match=r"id was id-0, is another id"):
        await loop.step()
    assert loop.tracker.replicated_at is None


async def test_a_topic_that_is_not_known_for_a_moment_halts_nothing(world: World, stream: Stream) -> None:
    loop = pulses(world)
    await loop.send()
    await world.follow(stream)
    topic = world.broker.table_places("articles")[0].topic
    was, world.broker.topic_ids[topic] = world.broker.topic_ids[topic], "not known yet"
    await loop.step()
    world.broker.topic_ids[topic] = was
    world.clock.advance(SUSPECT_S)
    await loop.step()
    assert loop.tracker.replicated_at is not None


@pytest.mark.parametrize(
    ("halt", "found"),
    [
        (OffsetsGone("offsets-gone", "m"), "identity-changed"),
        (OffsetsGone("topic-missing", "m"), "identity-changed"),
        (SchemaChanged("table-changed", "m"), "table-changed"),
    ],
)
async def test_lost_offsets_in_a_topic_that_was_made_anew_are_told_by_its_id(
    world: World, halt: Halt, found: str
) -> None:
    parts = world.source, world.feed(), world.target()
    assert (await root_of(halt, *parts)).id == halt.id, "nothing lies behind it"
    world.broker.topic_ids[world.broker.table_places("articles")[0].topic] = "another id"
    assert (await root_of(halt, *parts)).id == found


async def test_a_missing_column_holds_the_replica_back(world: World, stream: Stream) -> None:
    loop = pulses(world)
    await move_key(world)
    await loop.send()
    await world.follow(stream)
    await loop.step()
    assert loop.tracker.replicated_at is None
    await world.completion().step(world.table)
    await loop.step()
    assert loop.tracker.replicated_at is not None


@pytest.mark.parametrize("arrives", ["in Kafka", "in the replica", "in both"])
@pytest.mark.parametrize("other", ["text", "key"])
@pytest.mark.parametrize(("point", "call"), BOUNDARIES)
async def test_no_false_freshness_whatever_arrives_between_two_readings(
    world: World, stream: Stream, point: str, call: int, other: str, arrives: str
) -> None:
    """The change is committed before the pulse and arrives at one boundary; embedding and completion stand still."""
    script = Faults()
    loop = pulses(world, script)
    await (change(world, title="changed") if other == "text" else move_key(world))
    await loop.send()
    if arrives == "in the replica":
        world.connector.deliver()

    async def arrive() -> None:
        world.connector.deliver()
        if arrives != "in Kafka":
            await world.read(stream)

    script.at(point, then(arrive), call)
    await loop.step()
    script.verify()
    is_replicated = arrives != "in Kafka" and other == "text"
    for _ in range(2):
        assert fresh_at(world, loop) is None
        assert is_replicated or loop.tracker.replicated_at is None
        await loop.step()
    assert (loop.tracker.replicated_at is not None) == is_replicated


async def test_freshness_needs_the_whole_table_copied() -> None:
    world = await World().open()
    world.source.seed("articles", {"id": "0", **A})
    await world.begin()
    stream, loop = world.stream(), pulses(world)
    await loop.step()
    await world.follow(stream)
    await loop.step()
    assert fresh_at(world, loop) is None
    await world.copy()
    await world.embed()
    await loop.step()
    assert fresh_at(world, loop) is not None


async def test_a_pulse_that_passed_while_rows_were_copied_says_nothing_of_what_came_later() -> None:
    """Work of a page that is copied after the seq was noted lies above that seq: it would pass for embedded."""
    world = await World().open()
    world.source.seed("articles", {"id": "0", **A})
    await world.begin()
    stream, loop = world.stream(), pulses(world)
    await loop.step()
    await world.follow(stream)
    await loop.step()
    assert loop.tracker.replicated_at is not None
    await world.copy()
    await loop.step()
    assert fresh_at(world, loop) is None, "nothing is embedded"
    await world.embed()
    await loop.step()
    assert fresh_at(world, loop) is not None


async def add(world: World) -> Generation:
    async with world.target().begin() as tx:
        return await tx.ledger.add_generation("v2", world.contract.as_json(), world.contract.id)


async def test_each_generation_has_a_freshness_of_its_own(world: World, stream: Stream) -> None:
    loop = pulses(world)
    await loop.send()
    await world.follow(stream)
    await loop.step()
    assert fresh_at(world, loop) is not None
    second = await add(world)
    observed = await loop.step()
    assert fresh_at(world, loop, second) is None, "it was not swept"
    assert observed["generation_lag_s"].keys() == {str(world.generation.id)}


@pytest.mark.parametrize("swept", ["before the pulse", "after the pulse"])
async def test_a_generation_is_fresh_only_with_what_its_sweep_handed_over(
    world: World, stream: Stream, swept: str
) -> None:
    """A pulse that passed before the sweep ended has a seq below what the sweep wrote."""
    loop = pulses(world)
    second = await add(world)
    sweep = Sweep(world.target(), [world.table])
    if swept == "before the pulse":
        while await sweep.step():
            pass
    await loop.send()
    await world.follow(stream)
    await loop.step()
    while await sweep.step():
        pass
    await loop.step()
    await loop.step()
    assert fresh_at(world, loop) is not None
    assert fresh_at(world, loop, second) is None, "nothing of it is embedded"
    await forget_work(world, second)
    sent_at = world.clock()
    await loop.send()
    await world.follow(stream)
    await loop.step()
    assert fresh_at(world, loop, second) == sent_at


async def forget_work(world: World, generation: Generation) -> None:
    """As if all of it were embedded."""
    async with world.target().begin() as tx:
        rows = [row_id for g, _, row_id in world.database.state.work if g == generation.id]
        assert rows
        await tx.replica.lock_rows(world.table, rows)
        await tx.ledger.drop_work(world.table, [generation], rows)


async def test_a_generation_that_was_dropped_is_not_observed_any_more(world: World, stream: Stream) -> None:
    loop = pulses(world)
    second = await add(world)
    await loop.step()
    assert second.id in loop.fresh
    async with world.target().begin() as tx:
        await tx.ledger.drop_generation(second)
    await loop.step()
    assert second.id not in loop.fresh


@pytest.mark.parametrize("fault", [refuse, lose])
async def test_a_pulse_of_which_nobody_knows_whether_it_was_written_leaves_no_gap(
    world: World, stream: Stream, fault: Callable[[], Fault]
) -> None:
    """The same number is sent again; a gap in the numbers would read as a lost event."""
    script = Faults()
    loop = pulses(world, script)
    await loop.send()
    script.at("source.emit", fault())
    with pytest.raises(TransientError, match="scripted"):
        await loop.send()
    await pulses(world).send()
    await world.follow(stream)
    assert world.database.state.migration.pulse_seen == 2
    assert not [e for e in world.database.state.journal if e.kind == "break"]


async def test_a_pulse_that_never_comes_is_a_break(world: World, stream: Stream) -> None:
    loop = pulses(world)
    await loop.send()
    await world.follow(stream)
    await loop.send()
    world.connector.submit()
    lost = next(q for q in world.connector.queues.values() if q)
    lost.clear()
    await loop.send()
    world.connector.submit()
    for at in world.connector.queues:
        world.connector.ack(at)
    await world.read(stream)
    assert [e.id for e in world.database.state.journal if e.kind == "break"] == ["pulse-missing"]


Move = Callable[[World], Awaitable[None]]


async def restart(world: World) -> None:
    await change(world, title="changed")
    world.connector.restart()
    world.connector.deliver()


async def snapshot_event(world: World) -> None:
    world.connector.snapshot_event("articles", ("0",))


@pytest.mark.parametrize(("move", "id"), [(restart, "connector-restarted"), (snapshot_event, "snapshot-event")])
async def test_what_ends_continuity_is_journaled_with_the_window(
    world: World, stream: Stream, move: Move, id: str
) -> None:
    await change(world, title="first")
    await world.follow(stream)
    await move(world)
    await world.read(stream)
    assert [e.id for e in world.database.state.journal if e.kind == "break"] == [id]


async def test_a_lost_slot_is_a_break_noted_once(world: World) -> None:
    loop = pulses(world)
    world.source.slot_state = SlotState(False, False, None, None, None, None)
    await loop.step()
    await loop.step()
    assert [e.id for e in world.database.state.journal if e.kind == "break"] == ["slot-lost"]


async def test_a_reading_that_cannot_be_taken_is_absent(world: World) -> None:
    """Never 0: nothing was measured yet, and the connector has committed nothing."""
    observed = await pulses(world).step()
    assert "replica_lag_s" not in observed
    assert observed["generation_lag_s"] == {}
