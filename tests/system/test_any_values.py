"""Any values of allowed types, through the real stack: copied, streamed, compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from tests.cases.values import any_literals
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

TYPES = {type.removeprefix("ext."): strategy for type, strategy in any_literals().items()}
# A list of nulls only is refused when it comes: its event may be of a nested array.
TYPES["integer[]"] = TYPES["integer[]"].filter(lambda text: set(text[1:-1].split(",")) != {"NULL"})
NAMES = tuple(f"c{n}" for n in range(len(TYPES)))
COLUMNS = ", ".join(f"{name} {type}" for name, type in zip(NAMES, TYPES, strict=True))
DDL = f"""
create schema app;
create extension if not exists vector;
create table app.any (id bigint generated always as identity primary key, title text not null, {COLUMNS});
alter table app.any replica identity full;
create publication revector for table app.any with (publish = 'insert, update, delete, truncate');
"""
CONFIG = f"""
[[table]]
source = "app.any"
text = "{{title}}"
columns = {list(NAMES)!r}
""".replace("'", '"')
ROWS = st.lists(st.tuples(*(st.none() | strategy for strategy in TYPES.values())), min_size=10, max_size=25)

Row = tuple[str | None, ...]


def insert(connection: psycopg.Connection[tuple[object, ...]], rows: Sequence[Row]) -> None:
    statement = sql.SQL("insert into app.any (title, {}) values ('a row', {})").format(
        sql.SQL(", ").join(map(sql.Identifier, NAMES)),
        sql.SQL(", ").join(sql.SQL("%s::text::{}").format(sql.SQL(type)) for type in TYPES),
    )
    with connection.cursor() as cursor:
        cursor.executemany(statement, rows)


def test_any_values_of_allowed_types_are_the_same_on_both_ways(migrate: Callable[[Setting], Migration]) -> None:
    """Some are copied by pages, some come as change events, some are changed into others."""
    m = migrate(Setting(ddl=DDL, tables=CONFIG, names=("app.any",), checks=()))
    drawn: list[Sequence[Row]] = []

    @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(ROWS)
    def draw(rows: Sequence[Row]) -> None:
        drawn.append(rows)

    draw()
    half = len(drawn) // 2
    for rows in drawn[:half]:
        insert(m.source, rows)
    m.start()
    m.wait("backfill")
    for rows in drawn[half:]:
        insert(m.source, rows)
    names = sql.SQL(", ").join(map(sql.Identifier, NAMES))
    m.source.execute(
        sql.SQL(
            "update app.any t set ({names}) = (select {names} from app.any o where o.id = t.id + 7) "
            "where id % 3 = 0 and exists (select from app.any o where o.id = t.id + 7)"
        ).format(names=names)
    )
    m.wait("caught-up")
    count = sum(map(len, drawn))
    assert m.source.execute("select count(*) from app.any").fetchone() == (count,)
    found = m.verify()
    assert (found["clean"], found["comparison"]["rows"], found["differences"]) == (True, count, [])
