"""A comparison that ends clean is right about everything it covers, however it came to its end.

Directed sequences over the twins, with connector, stream and embedder beside: breaks around its beginning, an
interruption between a first pass and a repair, more chunks with one vector than are looked at at once, and a process
that was stopped in the middle of a repair while another one took over.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest

from daemon.core.comparison import State
from daemon.core.model import SourceIdentity
from daemon.errors import HeldElsewhere, IdentityChanged, TransientError
from daemon.ports import ChunkText
from daemon.procedures import vectors
from daemon.procedures.comparing import Compared, Progress, Run
from daemon.procedures.resample import Again, Refuted
from tests.fakes import refuse, then, vector_of
from tests.fakes.audit import MemoryAudit
from tests.fakes.state import JournalEntry
from tests.flow.compared_world import ComparedWorld, played
from tests.flow.corruption import one_hot, put, spoil_chunks, spoil_row


class Interrupted(Exception):
    """The process ends here."""


def interrupted_at(stage: str):  # type: ignore[no-untyped-def]
    def tell(progress: Progress) -> None:
        if progress.stage == stage:
            raise Interrupted

    return tell


# --- the beginning


@played
async def test_what_was_lost_after_the_first_barrier_and_before_the_mark_is_found(world: ComparedWorld) -> None:
    """A row goes to another value and back; the way back is lost. While the first change is under way the replica has
    what the source has, and the break that tells of the loss is journaled before the comparison begins."""
    await world.turn()

    async def loses_the_way_back() -> None:
        world.hold()
        world.later(20, world.release)
        world.change("1", title="elsewhere")
        world.connector.deliver()
        world.change("1", title="title 1")
        world.loses()
        async with world.spoil() as state:
            state.journal = (*state.journal, JournalEntry("break", "pulse-missing", {}, 0.0))

    world.faults.at("source.slot", then(loses_the_way_back))
    report = await world.compare(repair=True)
    world.faults.verify()
    assert report.comparison.repaired == {"text-stale": 1}
    assert (report.comparison.state, report.comparison.breaks_closed) == (State.CLEAN, 1)
    world.check()


# --- on with repair, after a pass without


@pytest.mark.parametrize("row", ["other number", "other tenant", "missing tenant"])
@played
async def test_chunks_of_a_row_that_differed_are_judged_once_it_is_mended(world: ComparedWorld, row: str) -> None:
    world.is_completing = False
    async with world.spoil() as state:
        spoil_chunks(state, world, "1", "zero")
        spoil_row(state, world, "1", row)
    with pytest.raises(Interrupted):
        await world.compare(tell=interrupted_at("vectors"), sample=0)
    report = await world.compare(repair=True, sample=0)
    assert report.comparison.id == 1, "it did not go on with the first one"
    assert report.comparison.state is State.CLEAN
    world.check()


# --- chunks with one vector


@played
async def test_a_repair_goes_on_until_no_two_texts_have_one_vector(
    world: ComparedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "MOST_GROUPS", 1)
    async with world.spoil() as state:
        for right, wrong in (("0", "1"), ("2", "3")):
            place = world.generation.id, world.table.id, world.replica_row(wrong).row_id
            first, *others = state.chunks[place]
            state.chunks[place] = (replace(first, vector=vector_of(f"title {right}")), *others)
    report = await world.compare(repair=True, sample=0)
    assert (report.comparison.state, report.comparison.repaired) == (State.CLEAN, {"vector-shared": 2})
    world.check()


@played
async def test_a_repair_ends_where_the_provider_gives_the_wrong_vector_again(
    world: ComparedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked for ever, and what it gave is no more than it was."""
    rounds = itertools.count(1)

    async def never_theirs(again: Again, groups: Sequence[Sequence[ChunkText]]) -> Refuted:
        assert next(rounds) < 10
        return Refuted(tuple(groups[0]), 1, 0, 3)

    async def shared(*_: object) -> list[list[ChunkText]]:
        return [[ChunkText(world.table.id, world.replica_row("1").row_id, 0, "title 1", [0.0])]]

    monkeypatch.setattr(vectors, "shared_faults", never_theirs)
    monkeypatch.setattr(MemoryAudit, "shared", shared)
    report = await world.compare(repair=True, sample=0)
    assert report.is_finished and next(rounds) == 3
    assert (report.comparison.state, report.comparison.open) == (State.DIFFERS, {"vector-shared": 1})


@played
async def test_a_pause_in_the_middle_of_shared_vectors_leaves_the_others_unsettled(
    world: ComparedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut(again: Again, groups: Sequence[Sequence[ChunkText]]) -> Refuted:
        return Refuted((), 1, 1, 3, is_cut=True)

    monkeypatch.setattr(vectors, "shared_faults", cut)
    async with world.spoil() as state:
        spoil_chunks(state, world, "1", "of another text")
    report = await world.compare(sample=0)
    assert (report.comparison.state, report.comparison.unsettled) == (State.DIFFERS, 1)


# --- stopped, and woken after another one took over


@played
async def test_who_lost_the_lease_in_the_middle_of_a_repair_writes_nothing(world: ComparedWorld) -> None:
    """A mended row keeps its position: it does not tell one repair from the other."""
    await world.turn()
    async with world.spoil() as state:
        put(state, world, "1", title="of yesterday")

    async def another_takes_over_and_mends() -> None:
        world.change("1", title="newer")
        world.loses()
        async with world.spoil() as state:
            ((id, record),) = state.comparisons.items()
            state.comparisons[id] = replace(record, owner="other", lease_until=world.clock() + 3600)
            put(state, world, "1", title="newer")

    world.faults.at("source.rows", then(another_takes_over_and_mends))
    with pytest.raises(HeldElsewhere):
        await world.compare(repair=True)
    world.faults.verify()
    values = world.replica_row("1").values
    assert values is not None and "newer" in values


# --- a vector that was refuted


@played
async def test_no_chunk_of_the_row_lends_a_refuted_vector_to_the_text_it_shares(
    world: ComparedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that has one text twice has one wrong vector twice; the sample picked one of them."""
    world.change("1", title="the same", body="the same")
    for _ in range(2):
        await world.turn()
    async with world.spoil() as state:
        place = world.generation.id, world.table.id, world.replica_row("1").row_id
        state.chunks[place] = tuple(replace(chunk, vector=one_hot(5)) for chunk in state.chunks[place])

    sample = vectors._sample

    async def first_of_row_1(run: Run, c: Compared) -> list[ChunkText]:
        return [t for t in await sample(run, c) if (t.row_id, t.n) == (place[2], 0)]

    monkeypatch.setattr(vectors, "_sample", first_of_row_1)
    report = await world.compare(repair=True)
    assert (report.comparison.state, report.comparison.repaired) == (State.CLEAN, {"vector-drifted": 1})
    world.check()


@played
async def test_what_was_embedded_again_is_not_paid_for_again_while_a_part_stays_away(world: ComparedWorld) -> None:
    for n in range(2, 60):
        world.faults.at("capture.config", refuse(), n)
    calls = len(world.embedder.calls)
    with pytest.raises(TransientError):
        await world.compare()
    assert len(world.embedder.calls) - calls <= 5


# --- another source


@pytest.mark.parametrize("point", ["source.emit", "source.digests"])
@played
async def test_a_replica_is_not_made_like_another_source(world: ComparedWorld, point: str) -> None:
    """Such as yesterday's copy under the same name: its positions are lower, so every barrier passes at once."""
    async with world.spoil() as state:
        put(state, world, "1", title="of yesterday")
    before = world.durable()
    of_the_copy = replace(await world.source.identity(), system_identifier="a copy")

    async def is_the_copy() -> SourceIdentity:
        return of_the_copy

    async def changes() -> None:
        world.source.identity = is_the_copy  # type: ignore[method-assign]

    world.faults.at(point, then(changes))
    with pytest.raises(IdentityChanged):
        await world.compare(repair=True)
    world.faults.verify()
    assert world.durable() == before
