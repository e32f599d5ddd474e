"""Counting and sampling at the source: the twin and Postgres keep the same promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol

import psycopg
import pytest

from connectors.postgres_source import PostgresSource
from daemon.core.model import Column, Known, Table
from daemon.core.sampling import Draw, Picking
from daemon.errors import ConfigError
from daemon.ports import Counted, SampledRow, Source
from tests.fakes import MemorySource

TABLE = Table(
    1,
    "notes",
    "app",
    "notes",
    ("id",),
    (Column("id", "bigint", "bigint"), Column("body", "text", "text"), Column("n", "integer", "integer")),
    "{body}",
    ("body",),
)
WANTED = replace(TABLE, where="n % 2 = 0 AND coalesce(body, '') <> 'a%sb'")


def is_wanted(values: Any) -> bool | None:
    if values["n"] is None:
        return None
    return int(values["n"]) % 2 == 0 and values["body"] != "a%sb"


class Opened(Protocol):
    def __call__(self, *rows: tuple[int, Known, Known]) -> Any: ...


@pytest.fixture(params=["twin", pytest.param("postgres", marks=pytest.mark.system)])
def opened(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Opens a source that holds the given rows."""

    @asynccontextmanager
    async def twin(*rows: tuple[int, Known, Known]) -> AsyncIterator[Source]:
        source = MemorySource([TABLE])
        source.wheres["notes"] = is_wanted
        source.seed("notes", *({"id": str(id), "body": body, "n": n} for id, body, n in rows))
        yield source

    @asynccontextmanager
    async def postgres(*rows: tuple[int, Known, Known]) -> AsyncIterator[Source]:
        dsn = request.getfixturevalue("dsn")
        with psycopg.connect(dsn, autocommit=True) as app:
            app.execute("CREATE SCHEMA app")
            app.execute("CREATE TABLE app.notes (id bigint PRIMARY KEY, body text, n integer)")
            with app.cursor().copy("COPY app.notes FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        source = PostgresSource(dsn, "slot_a", "publication_a", "revector:test:source")
        try:
            yield source
        finally:
            await source.close()

    return twin if request.param == "twin" else postgres


async def drawn(source: Source, table: Table, draw: Draw) -> list[SampledRow]:
    async with aclosing(source.sample(table, draw)) as portions:
        return [row async for portion in portions for row in portion]


ROWS = [(1, "one", "1"), (2, "two", "2"), (3, None, None), (4, None, "4"), (5, "a%sb", "6")]
EVERY_ROW = Draw(Picking.EVERY_ROW)


async def test_rows_are_counted_and_an_unknown_where_is_not_true(opened: Opened) -> None:
    async with opened(*ROWS) as source:
        every, wanted = await source.count(TABLE, 30), await source.count(WANTED, 30)
        assert every is not None and (every.rows, every.wanted) == (5, 5)
        assert wanted is not None and (wanted.rows, wanted.wanted) == (5, 2)
        for table, counted in ((TABLE, every), (WANTED, wanted)):
            rows = await drawn(source, table, EVERY_ROW)
            assert counted.text_bytes == sum(r.text_bytes for r in rows if r.texts is not None) > 0


async def test_every_row_comes_once_with_its_texts_where_it_is_wanted(opened: Opened) -> None:
    async with opened(*ROWS) as source:
        rows = await drawn(source, WANTED, EVERY_ROW)
        assert sorted((r.texts for r in rows), key=repr) == [("two",), (None,), None, None, None]
        assert {r.block for r in rows} == {""} and all(r.stored_bytes > r.text_bytes for r in rows)
        assert {r.texts for r in await drawn(source, TABLE, EVERY_ROW)} == {("one",), ("two",), (None,), ("a%sb",)}


async def test_an_empty_table_has_no_rows_to_draw(opened: Opened) -> None:
    async with opened() as source:
        assert await source.count(TABLE, 30) == Counted(0, 0, 0)
        assert await drawn(source, TABLE, EVERY_ROW) == []
        assert await drawn(source, TABLE, Draw(Picking.BLOCKS, 0.5)) == []


@pytest.mark.parametrize("picking", [Picking.ROWS, Picking.BLOCKS])
async def test_a_draw_takes_about_its_share_and_another_one_each_time(opened: Opened, picking: Picking) -> None:
    rows = 20_000
    async with opened(*((n, f"{n:0200}", str(n)) for n in range(rows))) as source:
        first = await drawn(source, TABLE, Draw(picking, 0.3))
        assert 0.2 * rows < len(first) < 0.4 * rows
        second = await drawn(source, TABLE, Draw(picking, 0.3))
        assert {r.texts for r in first} != {r.texts for r in second}


async def test_rows_of_a_block_name_it(opened: Opened) -> None:
    async with opened(*((n, "x" * 200, str(n)) for n in range(2000))) as source:
        whole = await drawn(source, TABLE, Draw(Picking.BLOCKS, 1.0))
        blocks = {row.block for row in whole}
        assert len(whole) == 2000 and 40 <= len(blocks) <= 200
        part = await drawn(source, TABLE, Draw(Picking.BLOCKS, 0.3))
        for block in {row.block for row in part}:  # a block is taken whole
            assert sum(r.block == block for r in part) == sum(r.block == block for r in whole)


async def test_a_draw_that_is_given_up_leaves_the_source_usable(opened: Opened) -> None:
    async with opened(*((n, "x", "1") for n in range(2000))) as source:
        async with aclosing(source.sample(TABLE, EVERY_ROW)) as portions:
            async for _ in portions:
                break
        assert (await source.count(TABLE, 30) or Counted(0, 0, 0)).rows == 2000


@pytest.mark.system
@pytest.mark.parametrize("condition", ["nowhere = 1", "n / 0 = 1", "missing_function(n)", "n = ", "n; DROP TABLE x"])
async def test_a_condition_that_the_source_refuses_is_the_configurations_fault(dsn: str, condition: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as app:
        app.execute("CREATE SCHEMA app")
        app.execute("CREATE TABLE app.notes (id bigint PRIMARY KEY, body text, n integer, extra integer)")
        app.execute("INSERT INTO app.notes VALUES (1, 'a', 1)")
    source = PostgresSource(dsn, "slot_a", "publication_a", "revector:test:source")
    try:
        with pytest.raises(ConfigError, match="where of notes cannot be used") as found:
            await source.count(replace(TABLE, where=condition), 30)
        assert found.value.problems[0].id == "where-invalid"
        with pytest.raises(ConfigError, match="where of notes cannot be used"):
            await drawn(source, replace(TABLE, where=condition), EVERY_ROW)
        assert (await source.count(TABLE, 30) or Counted(0, 0, 0)).rows == 1  # the connection is sound
    finally:
        await source.close()


@pytest.mark.system
async def test_a_count_that_takes_too_long_is_given_up(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as app:
        app.execute("CREATE SCHEMA app")
        app.execute("CREATE TABLE app.notes (id bigint PRIMARY KEY, body text, n integer)")
        app.execute("INSERT INTO app.notes VALUES (1, 'a', 1)")
    source = PostgresSource(dsn, "slot_a", "publication_a", "revector:test:source")
    try:
        assert await source.count(replace(TABLE, where="pg_sleep(60) IS NULL"), 0.05) is None
        assert (await source.count(TABLE, 30) or Counted(0, 0, 0)).rows == 1
    finally:
        await source.close()
