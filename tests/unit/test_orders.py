"""Orders and quiet hours: what a document means, what the clock on the wall allows, and when loops heed them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from daemon.core.model import ClaimOrder
from daemon.core.orders import BACKFILL, EMBEDDING, Limits, Standing, standing, with_limits, with_paused
from daemon.core.quiet import Quiet, backfill_may_begin
from daemon.errors import TransientError
from daemon.flow.orders import Orders
from daemon.settings import QuietHours
from tests.fakes import Faults, MemoryDatabase, MemoryTarget, refuse
from tests.flow.world import World

BERLIN = ZoneInfo("Europe/Berlin")
WORKDAYS = frozenset(("mon", "tue", "wed", "thu", "fri"))


def quiet(start: str, end: str, days: frozenset[str] = WORKDAYS, share: float = 0.0, zone: Any = BERLIN) -> Quiet:
    return Quiet(days, time.fromisoformat(start), time.fromisoformat(end), zone, share)


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN)


# --- documents


def test_an_empty_document_orders_nothing() -> None:
    assert standing({}) == Standing()
    assert Standing().words is None
    assert Standing().limits_of("v1") == Limits()


def test_a_document_is_read_and_written_again() -> None:
    document = with_limits(with_paused({"later": 1}, [EMBEDDING, BACKFILL]), "v1", Limits(5, None, 2))
    assert document == {
        "later": 1,
        "paused": ["backfill", "embedding"],
        "limits": {"v1": {"requests_per_minute": 5, "in_flight": 2}},
    }
    found = standing(document)
    assert (found.paused, found.words) == (frozenset(["backfill", "embedding"]), "backfill and embedding")
    assert found.limits_of("v1") == Limits(5, None, 2)
    assert standing(with_paused(document, [BACKFILL])).words == "backfill"
    assert with_limits(document, "v1", Limits())["limits"] == {}
    assert with_limits(document, "v2", Limits(in_flight=1))["limits"].keys() == {"v1", "v2"}


@pytest.mark.parametrize(
    "document",
    [
        {"paused": "embedding", "limits": []},
        {"paused": ["everything"], "limits": {"v1": 3}},
        {"limits": {"v1": {"in_flight": 0, "tokens_per_minute": -1, "requests_per_minute": "many"}}},
        {"limits": {"v1": {"in_flight": True}}},
    ],
)
def test_what_cannot_be_read_orders_nothing(document: dict[str, Any]) -> None:
    found = standing(document)
    assert (found.paused, found.limits_of("v1")) == (frozenset(), Limits())


# --- the clock on the wall


@pytest.mark.parametrize(
    ("at", "covered"),
    [
        ("2026-11-20 07:59:59", False),
        ("2026-11-20 08:00:00", True),  # a Friday
        ("2026-11-20 17:59:59", True),
        ("2026-11-20 18:00:00", False),
        ("2026-11-21 12:00:00", False),  # a Saturday
    ],
)
def test_quiet_hours_of_a_day(at: str, covered: bool) -> None:
    assert quiet("08:00", "18:00").covers(berlin(at)) is covered


@pytest.mark.parametrize(
    ("at", "covered"),
    [
        ("2026-11-20 21:59:00", False),
        ("2026-11-20 22:00:00", True),  # Friday evening
        ("2026-11-21 05:59:00", True),  # began on Friday
        ("2026-11-21 06:00:00", False),
        ("2026-11-21 23:00:00", False),  # Saturday evening begins none
        ("2026-11-23 03:00:00", False),  # Monday morning belongs to Sunday
    ],
)
def test_quiet_hours_over_midnight_belong_to_the_day_they_begin_on(at: str, covered: bool) -> None:
    assert quiet("22:00", "06:00").covers(berlin(at)) is covered


def test_the_same_start_and_end_is_a_whole_day() -> None:
    hours = quiet("06:00", "06:00", frozenset(["sat"]))
    assert [hours.covers(berlin(f"2026-11-{day} 12:00:00")) for day in (20, 21, 22)] == [False, True, False]
    assert hours.covers(berlin("2026-11-22 05:59:00"))


@pytest.mark.parametrize("day", ["2026-03-29", "2026-03-30", "2026-10-25", "2026-10-26"])
def test_quiet_hours_follow_the_wall_on_days_of_23_and_25_hours(day: str) -> None:
    """Clocks in Berlin change on 29 March and 25 October; eight in the morning is another hour of UTC afterwards."""
    hours = quiet("08:00", "09:00", frozenset(("mon", "sun")))
    begin = berlin(f"{day} 08:00:00").astimezone(UTC)
    assert [hours.covers(begin + timedelta(minutes=m)) for m in (-1, 0, 59, 60)] == [False, True, True, False]
    assert begin.hour == (6 if "2026-03-29" <= day < "2026-10-25" else 7)


def test_a_night_with_a_repeated_hour_is_quiet_in_both() -> None:
    hours = quiet("01:30", "02:30", frozenset(["sun"]))
    first = datetime(2026, 10, 25, 0, 15, tzinfo=UTC)  # 02:15 in summer time
    assert [hours.covers(first + timedelta(hours=h)) for h in (-1, 0, 1, 2)] == [False, True, True, False]


def test_backfill_work_may_begin_in_its_share_of_each_minute() -> None:
    hours = [quiet("08:00", "18:00", share=0.25)]
    begins = [backfill_may_begin(hours, berlin(f"2026-11-20 12:30:{s:02}")) for s in range(60)]
    assert begins == [True] * 15 + [False] * 45
    assert backfill_may_begin(hours, berlin("2026-11-20 18:00:30"))
    assert not backfill_may_begin([*hours, quiet("12:00", "13:00")], berlin("2026-11-20 12:30:00"))
    assert backfill_may_begin([], berlin("2026-11-20 12:30:59"))


# --- running processes


async def ordered(database: MemoryDatabase, **document: Any) -> None:
    async with MemoryTarget(database).begin() as tx:
        await tx.ledger.order(document)


async def test_nothing_begins_before_the_orders_were_read() -> None:
    orders = Orders(MemoryTarget(MemoryDatabase()))
    assert (orders.may_send, orders.may_copy, orders.claim_order(0)) == (False, False, None)
    await orders.refresh()
    assert (orders.may_send, orders.may_copy, orders.claim_order(0)) == (True, True, ClaimOrder.LIVE_FIRST)


@pytest.mark.parametrize(
    ("paused", "send", "copy", "claims"),
    [
        ([], True, True, ClaimOrder.LIVE_FIRST),
        (["backfill"], True, False, ClaimOrder.LIVE_ONLY),
        (["embedding"], False, True, None),
        (["backfill", "embedding"], False, False, None),
    ],
)
async def test_what_each_pause_stops(paused: list[str], send: bool, copy: bool, claims: ClaimOrder | None) -> None:
    database = MemoryDatabase()
    orders = Orders(MemoryTarget(database))
    await ordered(database, paused=paused)
    await orders.refresh()
    assert (orders.may_send, orders.may_copy, orders.claim_order(0)) == (send, copy, claims)


async def test_quiet_hours_stop_backfill_work_only() -> None:
    hours = QuietHours(start="08:00", end="18:00", timezone="Europe/Berlin")
    at = [berlin("2026-11-20 12:00:00")]
    orders = Orders(MemoryTarget(MemoryDatabase()), [hours], lambda: at[0])
    await orders.refresh()
    assert (orders.may_send, orders.may_copy, orders.claim_order(4)) == (True, False, ClaimOrder.LIVE_ONLY)
    at[0] = berlin("2026-11-20 18:00:00")
    assert (orders.may_copy, orders.claim_order(4)) == (True, ClaimOrder.BACKFILL_FIRST)


async def test_the_last_orders_stand_while_the_target_is_away() -> None:
    database, faults = MemoryDatabase(), Faults()
    orders = Orders(faults.wrap("target", MemoryTarget(database)))
    await ordered(database, paused=["embedding"], limits={"v1": {"in_flight": 3}})
    await orders.refresh()
    faults.at("target.begin", refuse())
    with pytest.raises(TransientError):
        await orders.refresh()
    assert (orders.may_send, orders.limits("v1")) == (False, Limits(in_flight=3))
    faults.verify()


async def test_a_run_reads_the_orders_survives_an_outage_and_ends_at_once() -> None:
    database, faults, stop = MemoryDatabase(), Faults(), asyncio.Event()
    orders = Orders(faults.wrap("target", MemoryTarget(database)))
    faults.at("target.begin", refuse())
    task = asyncio.create_task(orders.run(stop))
    async with asyncio.timeout(20):
        while orders.standing is None:
            await asyncio.sleep(0.01)
    stop.set()
    await task
    faults.verify()


async def test_a_paused_backfill_reads_no_page_lets_its_range_go_and_goes_on_afterwards() -> None:
    world = await World().open()
    for n in range(6):
        world.source.seed("articles", {"id": str(n), "title": "", "body": str(n), "tenant": "t", "views": "0"})
    await world.begin()
    worker, stop, allowed = world.backfill(page_rows=2), asyncio.Event(), [True]
    worker.may_copy = lambda: allowed[0]
    await worker.step()
    assert worker.range is not None
    allowed[0] = False
    task = asyncio.create_task(worker.run(stop))
    async with asyncio.timeout(20):
        while worker.range is not None:
            await asyncio.sleep(0.01)
    assert worker.counts.pages == 1
    allowed[0] = True
    world.clock.advance(3600)  # the lease ran out meanwhile
    async with asyncio.timeout(20):
        await task
    assert (worker.is_complete, worker.counts.rows_written, len(world.database.rows("articles"))) == (True, 6, 6)
