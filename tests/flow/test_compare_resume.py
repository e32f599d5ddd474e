"""A comparison that is killed, refused or left without time goes on where it was; and what its end closes.

The process dies at any of its calls with all that it had in memory. Another one goes on from what is recorded: no page
but those that were open is compared again, and what comes of it is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from daemon.core.comparison import State
from daemon.errors import TransientError
from daemon.procedures.compare import Report
from tests.fakes import Died, FaultMissed, Faults, MemoryTarget, die, lose, refuse, then
from tests.fakes.faults import Fault as Scripted
from tests.flow.compared_world import ComparedWorld, played, settings_of
from tests.flow.corruption import Fault, faults_of, orphan, spoil_chunks, spoil_row

WORKERS = 2
PAGES = ("source.digest_page", "audit.keys_page", "audit.chunk_page")
# What is not a commit may fail inside a transaction; that is a commit that fails.
POINTS = ("source.", "capture.", "feed.", "target.commit", "embedder.")
FAILS: dict[str, Callable[[], Scripted]] = {
    "dies before": die,
    "dies after": lambda: die(done=True),
    "refused": refuse,
    "answer lost": lose,
}


async def damaged(world: ComparedWorld) -> set[Fault]:
    """A source of twelve rows, in pages of two; rows and chunks of several kinds are wrong."""
    world.settings = settings_of(page_rows=2, workers=WORKERS)
    for key in range(5, 12):
        world.insert(str(key))
    await world.turn()
    world.is_completing = False
    async with world.spoil() as state:
        return {
            spoil_row(state, world, "1", "lost"),
            spoil_row(state, world, "77", "planted"),
            spoil_row(state, world, "4", "other title"),
            spoil_row(state, world, "9", "other tenant"),
            spoil_chunks(state, world, "2", "zero"),
            spoil_chunks(state, world, "6", "last lost"),
            spoil_chunks(state, world, "7", "other contract"),
            spoil_chunks(state, world, "8", "of another text"),
            orphan(state, world),
        }


def is_death(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(is_death(e) for e in error.exceptions)
    return isinstance(error, Died)


async def compared(world: ComparedWorld, script: Faults, repair: bool = False) -> tuple[Report, Counter[str]]:
    """What comes of it in the end, by this process or, where that died or gave up, by another one; and the pages that
    it took."""
    pages: Counter[str] = Counter()
    world.faults = script
    try:
        try:
            return await world.compare(repair=repair), pages
        except BaseException as error:
            if not is_death(error) and not isinstance(error, TransientError):
                raise
        pages.update({page: script.calls[page] for page in PAGES})
        world.faults = Faults()
        return await world.compare(by="another", repair=repair), pages
    finally:
        script.verify()
        pages.update({page: world.faults.calls[page] for page in PAGES})


@pytest.mark.parametrize("repair", [False, True], ids=["", "repair"])
@pytest.mark.parametrize("kind", FAILS)
def test_whatever_fails_at_any_call_the_same_is_found_and_no_page_is_compared_twice_but_open_ones(
    kind: str, repair: bool
) -> None:
    points: list[tuple[str, int]] = []
    at_least: Counter[str] = Counter()

    @played
    async def count(world: ComparedWorld) -> None:
        await damaged(world)
        script = Faults()
        _, pages = await compared(world, script, repair)
        at_least.update(pages)
        points.extend((p, n) for p, calls in script.calls.items() if p.startswith(POINTS) for n in range(1, calls + 1))

    @played
    async def fails(world: ComparedWorld, point: str, call: int) -> None:
        expected = await damaged(world)
        script = Faults(stays_dead=True)
        script.at(point, FAILS[kind](), call)
        try:
            report, pages = await compared(world, script, repair)
        except FaultMissed:
            return  # the calls of two workers are not the same each time
        c, kinds = report.comparison, Counter(fault.kind for fault in expected)
        if len(world.database.state.comparisons) == 1:
            assert sum((pages - at_least).values()) <= WORKERS, "pages that were recorded are compared again"
        else:  # it died after the end
            kinds, expected = (Counter(), set()) if repair else (kinds, expected)
        assert faults_of(report.found) == expected
        assert (c.open, c.repaired) == (({}, kinds) if repair else (kinds, {}))
        await world.turn()
        if repair:
            world.check()
        landed.append(point)

    count()
    landed: list[str] = []
    chosen = points[list(FAILS).index(kind) + repair * len(FAILS) :: 2 * len(FAILS)]  # each call in one of the tests
    for point, call in chosen:
        try:
            fails(point=point, call=call)
        except BaseException as error:
            error.add_note(f"{kind} at {point} #{call}")
            raise
    assert len(landed) > 0.9 * len(chosen)


async def out_of_time(world: ComparedWorld) -> Report:
    """A comparison that ends amidst its pages: few rows are read in a second."""
    world.settings = settings_of(page_rows=2, workers=WORKERS, rows_per_second=10)
    report = await world.compare(limit_s=1)
    assert not report.is_finished and report.unfinished is not None
    assert report.comparison.state is State.RUNNING
    assert 0 < report.comparison.rows < 12
    return report


@played
async def test_out_of_time_it_says_so_and_the_next_one_goes_on(world: ComparedWorld) -> None:
    expected = await damaged(world)
    first = await out_of_time(world)
    rest = await world.compare(by="another")
    assert rest.comparison.id == first.comparison.id and rest.is_finished
    assert faults_of(rest.found) == expected


# --- what the end closes


async def journal(world: ComparedWorld, id: str = "connector-restarted") -> None:
    async with MemoryTarget(world.database).begin() as tx:
        await tx.ledger.journal("break", id, {})


async def open_breaks(world: ComparedWorld) -> list[str]:
    async with MemoryTarget(world.database).begin() as tx:
        return [b.id for b in await tx.ledger.breaks()]


@played
async def test_a_clean_comparison_closes_the_breaks_from_before_it_and_no_later_one(world: ComparedWorld) -> None:
    await journal(world)
    await journal(world, "pulse-gap")
    world.faults.at("source.bounds", then(lambda: journal(world, "slot-ahead")))
    report = await world.compare(sample=0)
    world.faults.verify()
    assert (report.comparison.state, report.comparison.breaks_closed) == (State.CLEAN, 2)
    assert await open_breaks(world) == ["slot-ahead"]


@pytest.mark.parametrize("repair", [False, True], ids=["", "repair"])
@played
async def test_where_rows_differ_breaks_are_closed_only_by_a_repair(world: ComparedWorld, repair: bool) -> None:
    await journal(world)
    world.change("1", title="lost")
    world.loses()
    report = await world.compare(repair=repair, sample=0)
    assert report.comparison.breaks_closed == (1 if repair else 0)
    assert await open_breaks(world) == ([] if repair else ["connector-restarted"])


@played
async def test_no_break_is_closed_while_a_cause_persists(world: ComparedWorld) -> None:
    await journal(world)
    sound = world.connector.config
    assert sound is not None
    world.connector.config = {**sound, "errors.tolerance": "all"}
    report = await world.compare(sample=0)
    assert (report.comparison.faults, report.comparison.breaks_closed) == (("connector-drift",), 0)
    world.connector.config = sound
    assert (await world.compare(sample=0)).comparison.breaks_closed == 1


@pytest.mark.parametrize("at", ["before", "while"])
@played
async def test_a_cause_that_came_or_went_while_it_ran_closes_nothing(world: ComparedWorld, at: str) -> None:
    await journal(world)
    sound = world.connector.config
    assert sound is not None
    broken = {**sound, "errors.tolerance": "all"}
    world.connector.config = broken if at == "before" else sound

    async def turns() -> None:
        world.connector.config = sound if at == "before" else broken

    world.faults.at("source.bounds", then(turns))
    report = await world.compare(sample=0)
    world.faults.verify()
    assert (report.comparison.faults, report.comparison.breaks_closed) == (("connector-drift",), 0)
    assert await open_breaks(world) == ["connector-restarted"]


@played
async def test_an_unfinished_comparison_from_before_a_break_is_not_gone_on_with(world: ComparedWorld) -> None:
    """Rows that it has compared may have changed in what the break lost."""
    await damaged(world)
    first = await out_of_time(world)
    await journal(world)
    second = await world.compare(by="another", repair=True)
    assert second.comparison.id != first.comparison.id
    assert second.comparison.breaks_closed == 1
    assert await open_breaks(world) == []
