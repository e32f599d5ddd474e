"""Every part restarts under a running migration: what was written meanwhile arrives, and nothing green is said falsely.

The databases and the broker are stopped in order and killed. A restart of the target or of the broker leaves the proof
intact; after one of the source or of Connect the connector's task has begun again, which is a break and is said.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from sandbox.compare import Differences
from sandbox.parts import Part
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 300) n"
ENDS = pytest.mark.parametrize("end", [Part.stop, Part.crash], ids=["stopped", "killed"])


@contextmanager
def away(part: Part, end: Callable[[Part], None]) -> Iterator[None]:
    """The part is gone inside the block and is back after it, whatever happens there."""
    end(part)
    try:
        yield
    finally:
        part.start()


def change(m: Migration, round: int) -> None:
    """Insert, update, delete, and a change of a key: all in one transaction."""
    with m.source.transaction():
        m.source.execute("insert into app.doc (id, title) values (%s, %s)", [1000 + round, f"born in {round}"])
        m.source.execute("update app.doc set body = body || %s where id %% 7 = %s", [f" round {round}", round % 7])
        m.source.execute("delete from app.doc where id = %s", [10 + round])
        m.source.execute("update app.doc set id = id + 5000 where id = %s", [100 + round])


def begun(m: Migration, round: int = 0) -> None:
    m.start()
    m.wait("caught-up")
    change(m, round)


def breaks(m: Migration) -> set[str]:
    rows: list[tuple[Any, ...]] = m.target.execute(
        "select event from revector.journal where migration = %s and kind = 'break'", [m.name]
    ).fetchall()
    return {event for (event,) in rows}


@ENDS
def test_target_restarts(migrate: Migrate, end: Callable[[Part], None]) -> None:
    m = migrate(Setting(rows=ROWS))
    begun(m)
    with away(m.stack.target, end):
        change(m, 1)
    m.target.close()
    m.target = psycopg.connect(m.target_dsn, autocommit=True)
    change(m, 2)
    m.wait("ready")
    assert m.differences() == Differences()
    assert breaks(m) == set()
    m.verify()
    m.prove()


@ENDS
def test_broker_restarts(migrate: Migrate, end: Callable[[Part], None]) -> None:
    m = migrate(Setting(rows=ROWS))
    begun(m)
    with away(m.stack.broker, end):
        change(m, 1)
    change(m, 2)
    m.until(m.replica, lambda rows: (1002, "born in 2") in rows, "the last change")
    m.until(m.differences, lambda found: found == Differences(), "an equal replica")
    assert breaks(m) <= {"connector-restarted"}
    assert m.asked("status")["verdict"] != "halted"


@ENDS
def test_source_restarts(migrate: Migrate, end: Callable[[Part], None]) -> None:
    m = migrate(Setting(rows=ROWS))
    begun(m)
    with away(m.stack.source, end):
        pass
    m.source.close()
    m.source = psycopg.connect(m.source_dsn, autocommit=True)
    change(m, 1)
    m.until(m.replica, lambda rows: (1001, "born in 1") in rows, "the change after the restart")
    m.until(m.differences, lambda found: found == Differences(), "an equal replica")
    m.until(lambda: breaks(m), lambda found: found == {"connector-restarted"}, "the break to be said")
    assert m.asked("status")["verdict"] == "degraded: proof broken"
    m.prove(code=3, timeout_s=5)


@ENDS
def test_connect_restarts(migrate: Migrate, end: Callable[[Part], None]) -> None:
    m = migrate(Setting(rows=ROWS))
    begun(m)
    m.wait("caught-up")
    with away(m.stack.connect, end):
        change(m, 1)
    change(m, 2)
    m.until(m.replica, lambda rows: (1002, "born in 2") in rows, "the last change")
    m.until(lambda: breaks(m), lambda found: found == {"connector-restarted"}, "the break to be said")
    m.revector("wait", "--for", "caught-up", "--timeout", "30", code=3)
    m.prove(code=3, timeout_s=5)


def test_two_processes_start_at_once_and_one_takes_over_when_the_other_dies(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemons = [m.start(), m.start()]
    m.wait("ready")
    change(m, 1)
    query = "select owner from revector.lease where migration = %s"
    (owner,) = m.until(lambda: m.target.execute(query, [m.name]).fetchone() or (None,), lambda row: bool(row[0]), "it")
    (first,) = [d for d in daemons if f":{d.pid}:" in owner]
    m.stop(first, signal.SIGKILL)
    change(m, 2)
    m.wait("caught-up")
    assert m.differences() == Differences()
    assert breaks(m) == set()
    m.verify()
    m.prove()
