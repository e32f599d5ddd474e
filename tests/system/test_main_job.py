"""The main job on the real stack, and the histories that can be staged there."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from sandbox.compare import Differences
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
NONE = Differences()
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 300) n"
# Long enough to be stored out of line, short enough for the model.
BIG = "(select string_agg(md5(g::text || %s), '') from generate_series(1, 100) g)"


def settled(m: Migration) -> None:
    """Everything committed so far is in replica and chunks, and both equal the source."""
    m.wait("caught-up")
    assert m.differences() == NONE


def test_every_kind_of_change_reaches_replica_and_chunks(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("backfill")
    m.source.execute("insert into app.doc (id, title, body) values (1000, 'new', 'row')")
    m.source.execute("update app.doc set body = 'another text' where id = 1")
    m.source.execute("update app.doc set views = 7, tenant = 2 where id = 2")
    m.source.execute("update app.doc set id = 2000 where id = 3")
    m.source.execute("delete from app.doc where id = 4")
    m.source.execute("delete from app.doc where id = 5")
    m.source.execute("insert into app.doc (id, title, body) values (5, 'back', 'again')")
    m.wait("ready")
    assert m.differences() == NONE
    assert m.verify()["clean"] is True
    certificate = m.prove()["certificate"]
    assert certificate["compared"] is True
    assert certificate["generation"] == "v2"
    assert m.stop(daemon) == 0
    assert m.prove()["proven"] is True  # nothing changed since: what is in the target is still proven without a daemon


def test_blocked_insert_ends_with_the_row_present(migrate: Migrate) -> None:
    """A delete at a higher LSN arrives before the create at a lower one; both are real."""
    m = migrate(Setting(rows="insert into app.doc (id, title, body) values (1, 'first', 'x')"))
    m.start()
    m.wait("caught-up")
    insert = "insert into app.doc (id, title, body) values (1, 'the blocked insert', 'y')"
    with (
        ThreadPoolExecutor(1) as thread,
        psycopg.connect(m.source_dsn, autocommit=True) as b,
        psycopg.connect(m.source_dsn) as a,
    ):
        a.execute("update app.doc set title = 'held' where id = 1")
        pid = b.info.backend_pid
        blocked = thread.submit(b.execute, insert)
        waiting = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
        m.until(lambda: m.source.execute(waiting, [pid]).fetchone(), lambda row: row == (True,), "the insert to wait")
        a.execute("delete from app.doc where id = 1")
        a.commit()
        blocked.result(60)
    assert m.source.execute("select title from app.doc where id = 1").fetchone() == ("the blocked insert",)
    settled(m)
    assert m.replica() == [(1, "the blocked insert")]


def test_key_change_with_unchanged_toast_keeps_the_body(migrate: Migrate) -> None:
    m = migrate(Setting())
    m.source.execute(f"insert into app.doc (id, title, body) values (1, 'toasted', {BIG})", ["a"])
    m.start()
    m.wait("caught-up")
    m.source.execute("update app.doc set id = 2 where id = 1")
    settled(m)
    body = m.source.execute("select md5(body) from app.doc where id = 2").fetchone()
    assert m.replica("id, md5(body)") == [(2, body[0] if body else None)]


def test_second_update_of_a_window_that_leaves_the_text_unavailable_keeps_the_first_ones_text(migrate: Migrate) -> None:
    m = migrate(Setting(rows="insert into app.doc (id, title, body) values (1, 'one', 'old')"))
    m.start()
    m.wait("caught-up")
    with m.source.transaction():
        m.source.execute(f"update app.doc set body = {BIG} where id = 1", ["b"])
        m.source.execute("update app.doc set title = 'two' where id = 1")
    settled(m)


def test_truncate_under_load_leaves_exactly_what_came_after_it(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS, limits={"page_rows": 20}))
    m.start()
    m.source.execute(
        "insert into app.doc (id, title, body) select n, 'late', 'x' || n from generate_series(400, 900) n"
    )
    m.source.execute("truncate app.doc")
    m.source.execute("insert into app.doc (id, title, body) select n, 'after', 'y' || n from generate_series(1, 50) n")
    m.wait("backfill")
    settled(m)
    assert len(m.replica()) == 50
    m.source.execute("truncate app.doc")
    settled(m)
    assert m.replica() == []
    assert m.chunks() == []


def test_rolled_back_changes_never_appear(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    m.start()
    m.wait("backfill")
    with pytest.raises(psycopg.errors.DivisionByZero), m.source.transaction():
        m.source.execute("update app.doc set body = 'never' where id < 100")
        m.source.execute("insert into app.doc (id, title) values (5000, 'never')")
        m.source.execute("select 1 / 0")
    settled(m)
    assert not [row for row in m.replica() if row[1] == "never"]


def test_sigkill_and_restart_lose_and_repeat_nothing(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS, limits={"page_rows": 10}))
    daemon = m.start()
    m.until(m.replica, lambda rows: len(rows) > 20, "some rows")
    assert m.stop(daemon, signal.SIGKILL) == -signal.SIGKILL
    m.source.execute("update app.doc set body = 'while nobody looked' where id % 3 = 0")
    m.source.execute("delete from app.doc where id % 7 = 0")
    m.start()
    m.wait("backfill")
    settled(m)


def test_roles_as_processes_of_their_own_do_the_whole_job(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    stream, embed, backfill = m.start("stream"), m.start("embed"), m.start("backfill")
    m.wait("backfill")
    settled(m)
    assert backfill.wait(60) == 0  # the copy is complete: this process has nothing else to do
    assert m.stop(embed) == 0
    assert m.stop(stream, signal.SIGINT) == 0
