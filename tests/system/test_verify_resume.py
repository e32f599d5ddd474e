"""A comparison that is killed on every side goes on where it was, and finds what one that nobody killed finds.

A trigger in the target holds the process inside a page's transaction: SIGKILL hits with the page compared and not yet
recorded, which is where starting over, skipping and counting twice would all show.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sandbox.compare import Differences
from sandbox.config import Gen
from tests.system.migration import GENERATION_LIMITS, Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]

COUNT, PAGE = 1000, 100
HELD_AT = 500  # rows of a side
SIDES = ("source", "replica", "chunks")
ROWS = f"""
insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, {COUNT}) n
"""
LOCK = 5105
WATCHED = f"""
create schema test;
create table test.held (side text);
create table test.advance (
    at bigint generated always as identity, comparison bigint, side text, cursor bigint, moved boolean
);
create function test.advanced() returns trigger language plpgsql as $$ begin
    if new.rows >= {HELD_AT} and exists (select from test.held where held.side = new.side) then
        perform pg_advisory_xact_lock({LOCK});
    end if;
    insert into test.advance (comparison, side, cursor, moved) values
        (new.comparison_id, new.side, new.cursor_key[1]::bigint, new.cursor_key is distinct from old.cursor_key);
    return new;
end $$;
create trigger advanced before update on revector.comparison_scan for each row execute function test.advanced();
"""
# Damage in the first pages of each side and in the last ones. The model knows no order of digits: 999 has no likeness.
DAMAGE = """
update {name}.doc set title = 'spoilt' where id in (5, 990);
update {name}.doc_v2 set _text = 'spoilt' where _row_id in (select _row_id from {name}.doc where id in (7, 999));
update {name}.doc_v2 set tenant = 9 where _row_id in (select _row_id from {name}.doc where id in (8, 996));
"""
FOUND = {
    ("text-stale", "5"),
    ("text-stale", "990"),
    ("chunk-stale", "7"),
    ("chunk-stale", "999"),
    ("chunk-filters", "8"),
    ("chunk-filters", "996"),
}


# One worker: it takes one side after the other.
VERIFY = ("verify", "--reembed-sample=0", "--set", f"verify.page_rows={PAGE}", "--set", "verify.workers=1")


@contextmanager
def held(m: Migration, side: str) -> Iterator[None]:
    """In the block no page of this side is recorded once half of its rows are."""
    m.target.execute("insert into test.held values (%s)", [side])
    m.target.execute("select pg_advisory_lock(%s)", [LOCK])
    try:
        yield
    finally:
        m.target.execute("delete from test.held")
        m.target.execute("select pg_advisory_unlock(%s)", [LOCK])


def waiting(m: Migration) -> list[int]:
    """Sessions that are held."""
    query = "select pid from pg_locks where locktype = 'advisory' and objid = %s and not granted"
    return [pid for (pid,) in m.target.execute(query, [LOCK]).fetchall()]


def killed(m: Migration, side: str) -> None:
    """Begin or go on with the comparison, and kill it in the middle of this side."""
    with held(m, side), m.log.open("ab") as log:
        verify = subprocess.Popen(m.command(*VERIFY), stdout=log, stderr=log)
        try:
            (session,) = m.until(lambda: waiting(m), lambda pids: verify.poll() is None and bool(pids), f"{side} held")
        finally:
            verify.send_signal(signal.SIGKILL)
            status = verify.wait()
        assert status == -signal.SIGKILL, f"it had ended by itself with {status}\n{m.tail()}"
    query = "select pid from pg_stat_activity where pid = %s"
    m.until(lambda: m.target.execute(query, [session]).fetchall(), lambda rows: not rows, "the end of its session")
    # What it held ends by itself after a time that this test does not wait for.
    m.target.execute("update revector.comparison set lease_until = now() where state = 'running'")


def recorded(m: Migration, side: str) -> int:
    query = "select sum(rows)::int from revector.comparison_scan where side = %s"
    ((rows,),) = m.target.execute(query, [side]).fetchall()
    return int(rows)


def cursors(m: Migration, side: str) -> list[int]:
    """Where this side stood after each page that was recorded; the page behind the last row moves it no more."""
    query = "select cursor from test.advance where side = %s and moved order by at"
    return [cursor for (cursor,) in m.target.execute(query, [side]).fetchall()]


def found(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(difference["kind"], difference["key"]["id"]) for difference in document["found"]}


def test_killed_on_every_side_it_goes_on_and_finds_the_same(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS, generations=(Gen(dimensions=64, limits=GENERATION_LIMITS),)))
    m.start()
    m.wait("caught-up")
    m.target.execute(WATCHED.encode())
    m.target.execute(DAMAGE.format(name=m.name).encode())

    for side in SIDES:
        killed(m, side)
        assert recorded(m, side) == HELD_AT - PAGE  # the page under way is lost, and no more

    document = m.asked(*VERIFY, code=3)
    assert found(document) == FOUND
    assert (document["comparison"]["rows"], document["comparison"]["chunks"]) == (COUNT, COUNT)
    assert m.target.execute("select count(distinct comparison) from test.advance").fetchone() == (1,)
    for side in SIDES:
        assert cursors(m, side) == list(range(PAGE, COUNT + 1, PAGE)), side

    whole = m.asked("verify", "--reembed-sample", "0", code=3)  # nobody kills this one
    assert found(whole) == FOUND
    m.asked("verify", "--reembed-sample", "0", "--repair")
    assert m.differences() == Differences()
