"""`revector requeue` on Postgres: conditions that try to be more than one, and rows that change meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from daemon.core.model import WorkState
from daemon.errors import ConfigError, StepRefused
from daemon.flow.stream import follow_up
from daemon.ports import Target
from daemon.procedures.requeue import How, Requeued, Wanted, requeue
from tests.builders import row
from tests.ports.target_shop import WHERE, Shop
from tests.ports.two_connections import Connections, Postgresql

CONDITION = "views % 2 = 1"


def where(text: str) -> Wanted:
    return Wanted("shop", "v1", How.WHERE, "articles", where=text)


def named(*values: str) -> Wanted:
    return Wanted("shop", "v1", How.KEY, "articles", values=values)


async def run(target: Target, wanted: Wanted, *, is_dry: bool = False) -> Requeued:
    return await requeue(target, wanted, "me", is_dry=is_dry)


async def relations(postgresql: Postgresql) -> int:
    return await postgresql.scalar("SELECT count(*) FROM pg_class WHERE relname LIKE 'revector_where%'")


@pytest.mark.parametrize(
    "text",
    [
        "views = 1; DROP SCHEMA revector CASCADE",
        "true) ; DELETE FROM revector.work; --",
        "true) OR (EXISTS (SELECT FROM revector.work)",
        "true) --",
        "true /*",
        "views IN (SELECT 1)",
        "(SELECT true FROM revector.migration)",
        "count(*) > 1",
        "views > random()",
        "now() > '2020-01-01'",
        "pg_terminate_backend(views)",
        "nextval('revector.work_seq') > 0",
        "current_setting('x') = 'x'",
        "_deleted",
        "_missing = '{}'",
        "_row_id > 1",
        "t._row_id > 1",
        "t.title = 'a'",
        "w.title = 'a'",
        "articles.views = 1",
        "revector_where_table.views = 1",
        "articles IS NOT NULL",
        "ctid IS NOT NULL",
        "tableoid > 0",
        "nothing = 1",
        "views",
        "title = ",
        "title = '\x00'",
        "$1 = 1",
        "generate_series(1, views) > 0",
    ],
)
async def test_what_is_no_condition_over_columns_is_refused_and_nothing_is_left(
    first: Shop, postgresql: Postgresql, text: str
) -> None:
    ids = await first.copy(row("1", views="1"))
    before = await first.entry(ids["1"])
    with pytest.raises(ConfigError) as error:
        await run(first.target, where(text))
    assert (error.value.id, error.value.problems[0].where) == ("where-invalid", "--where")
    assert await first.entry(ids["1"]) == before
    assert await relations(postgresql) == 0


@pytest.mark.parametrize("text", ["1 / views > 0", "title::integer = 1", "(title || '{')::jsonb IS NOT NULL"])
async def test_a_condition_that_fails_on_a_row_says_so_without_its_value(first: Shop, text: str) -> None:
    await first.copy(row("1", title="a secret", views="0"))
    with pytest.raises(ConfigError, match="SQLSTATE") as error:
        await run(first.target, where(text))
    assert error.value.id == "where-invalid"
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "views % 2 = 1 AND title LIKE 'A%'",
        "views = 1 -- one line\n",
        "title = 'A' OR title = '%s' OR title = '{}'",
        "coalesce(lower(title), '') = 'a'",
        "true",
    ],
)
async def test_conditions_of_any_form(first: Shop, text: str, postgresql: Postgresql) -> None:
    ids = await first.copy(row("1", title="A", views="1"))
    found = await run(first.target, where(text))
    assert (found.rows, found.keys) == (1, [("articles", ("1",))])
    assert (await first.claim())[ids["1"]].afresh
    assert await relations(postgresql) == 0


async def test_a_condition_cannot_reach_past_the_table_s_where(connections: Connections) -> None:
    shop = await Shop.open(connections, WHERE)
    await shop.copy(row("1"), row("2", tenant="draft"))
    await shop.change("3", row("3"), 7)
    await shop.change("3", None, 8)
    for text in ("true OR true", "true) OR (true", "false OR title = 'A'"):
        assert [key for _, key in (await run(shop.target, where(text), is_dry=True)).keys] == [("1",)]


async def test_the_check_does_not_wait_for_a_window_nor_hold_one_up(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    """The table that the condition is checked on is empty and its own."""
    await first.copy(row("1"))
    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        await first.apply(tx, "1", row("1", title="new"), 7)
        async with second.target.begin() as other:
            await asyncio.wait_for(other.replica.condition(second.table, CONDITION), 20)


async def test_a_key_is_a_value_and_not_its_text(first: Shop) -> None:
    ids = await first.copy(row("7"))
    assert (await run(first.target, named("007"))).keys == [("articles", ("7",))]
    assert (await first.claim())[ids["7"]].afresh
    for wrong in ("x", "7 OR true", "99999999999999"):
        with pytest.raises(StepRefused) as error:
            await run(first.target, named(wrong))
        assert error.value.id == "key-unreadable"


async def test_rows_that_a_window_changes_meanwhile_are_judged_as_it_left_them(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    """1 is deleted, 2 no longer fits, 3 gets another text, 4 does not change."""
    ids = await first.copy(*(row(k, views="1") for k in "1234"))
    for row_id in ids.values():
        await first.store(row_id, "text")
    await _settle_all(first)
    async with first.target.begin() as tx:
        generations = await tx.ledger.hold_migration()
        effects = [
            await first.apply(tx, "1", None, 7),
            await first.apply(tx, "2", row("2", views="2"), 8),
            await first.apply(tx, "3", row("3", title="new", views="1"), 9),
        ]
        task = asyncio.ensure_future(run(second.target, where(CONDITION)))
        await postgresql.waits()
        await follow_up(tx, first.table, generations, effects, live=True)
    assert [key for _, key in (await task).keys] == [("3",), ("4",)]
    assert await first.entry(ids["1"]) is None
    assert await first.entry(ids["2"]) is None
    assert (await first.entry(ids["3"])).state is WorkState.WAITING
    claims = await first.claim()
    assert {k: (claims[ids[k]].live, claims[ids[k]].afresh) for k in "34"} == {"3": (True, True), "4": (False, True)}


async def test_a_window_waits_for_one_page_and_its_change_is_owed_too(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    ids = await first.copy(row("1", views="1"))
    await _settle_all(first)
    async with first.target.begin() as tx:
        await tx.ledger.hold_migration()
        await tx.replica.lock_rows(first.table, list(ids.values()))
        change = asyncio.ensure_future(second.change("1", row("1", title="new", views="1"), 7))
        await postgresql.waits()
        await tx.ledger.put_work(first.table, [first.generation], list(ids.values()), live=False, afresh=True)
    await change
    entry, claim = await first.entry(ids["1"]), (await first.claim())[ids["1"]]
    assert entry.newest_seq > entry.oldest_seq
    assert (claim.afresh, claim.live) == (True, True)


async def test_a_generation_that_is_dropped_meanwhile_gets_nothing(
    first: Shop, second: Shop, postgresql: Postgresql
) -> None:
    await first.copy(row("1", views="1"))
    async with first.target.begin() as tx:
        await tx.ledger.add_generation("v2", {**await tx.ledger.generation_contract(first.generation)}, "other")
    async with first.target.begin() as tx:
        (v2,) = [g for g in await tx.ledger.generations() if g.name == "v2"]
        await tx.ledger.drop_generation(v2)
        wanted = Wanted("shop", "v2", How.ALL, "articles")
        task = asyncio.ensure_future(run(second.target, wanted))
        await postgresql.waits()
    with pytest.raises(Exception, match="v2"):
        await task
    assert await postgresql.scalar(f"SELECT count(*) FROM revector.work WHERE generation_id = {v2.id}") == 0


async def _settle_all(shop: Shop) -> None:
    claims = await shop.claim()
    async with shop.target.begin() as tx:
        await tx.replica.lock_rows(shop.table, list(claims))
        await tx.ledger.settle(shop.table, shop.generation, "w", list(claims), {}, [])
