"""Two generations on the real stack: one stream feeds both while clients write; one is added, one is dropped."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import psycopg
import pytest

from sandbox.compare import Differences
from sandbox.config import Gen
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
NONE = Differences()
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 2500) n"
LIMITS = {"in_flight": 2, "request_timeout_s": 30}
V2 = Gen("v2", dimensions=64, limits=LIMITS)
V3 = Gen("v3", dimensions=256, limits=LIMITS)
PAUSE_S = 0.005  # of the writer: some hundred transactions a second leave the other processes their share

INSERT = "insert into app.doc (id, title, body) values (%(id)s, %(title)s, 'written') on conflict do nothing"
TEXT = "update app.doc set body = %(title)s where id = %(id)s"
METADATA = "update app.doc set views = views + 1, tenant = %(id)s %% 7 where id = %(id)s"
DELETE = "delete from app.doc where id = %(id)s"
KEY = """
update app.doc set id = %(id)s + 100000
where id = %(id)s and not exists (select from app.doc where id = %(id)s + 100000)
"""
STATEMENTS = (INSERT, TEXT, TEXT, METADATA, DELETE, KEY)


@contextmanager
def writing(m: Migration) -> Iterator[SimpleNamespace]:
    """A client that changes rows of every kind for the block; `count` of its transactions."""
    stop, dice, seen = threading.Event(), random.Random(7), SimpleNamespace(count=0, error=None)

    def write() -> None:
        try:
            with psycopg.connect(m.source_dsn, autocommit=True) as client:
                while not stop.wait(PAUSE_S):
                    id = dice.randrange(1, 4000)
                    client.execute(dice.choice(STATEMENTS).encode(), {"id": id, "title": f"text {seen.count}"})
                    seen.count += 1
        except psycopg.Error as error:
            seen.error = error

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
    assert seen.error is None, seen.error


def names(m: Migration) -> dict[str, bool]:
    """Name -> swept."""
    return {g["name"]: g["swept"] for g in m.asked("generation", "list")["generations"]}


def test_a_generation_that_is_added_in_mid_run_equals_the_source_as_the_first_one_does(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS, generations=(V2,)))
    first = m.start()  # knows v2 alone
    m.wait("backfill")
    with writing(m) as writer:
        m.configure(V2, V3)
        refused = subprocess.run(m.command("embed"), capture_output=True, text=True, timeout=60, check=False)
        assert (refused.returncode, "revector generation add v3" in refused.stderr) == (78, True), refused.stderr
        assert {b["id"] for b in m.asked("status")["blockers"]} >= {"generation-unlisted"}
        m.revector("generation", "add", "v3")
        second = m.start("embed")  # knows both
        m.until(lambda: names(m), lambda seen: seen == {"v2": True, "v3": True}, "the sweep of v3")
        reached = writer.count
        m.until(lambda: writer.count, lambda count: count >= reached + 300, "changes after the sweep")
    m.wait("ready", "v3")
    m.wait("ready", "v2")
    assert (m.differences("v2"), m.differences("v3")) == (NONE, NONE)
    dimensions = "vector_dims(_embedding)"
    assert {row[0] for row in m.chunks(dimensions)} == {64}
    assert {row[0] for row in m.chunks(dimensions, generation="v3")} == {256}
    assert m.verify()["generations"] == ["v2", "v3"]
    assert [m.prove(generation=g)["certificate"]["generation"] for g in ("v2", "v3")] == ["v2", "v3"]
    assert m.asked("status")["generation"] == "v3"

    with writing(m) as writer:
        m.until(lambda: writer.count, lambda count: count >= 50, "changes before the drop")
        m.revector("generation", "drop", "v2", code=3)
        m.revector("generation", "drop", "v2", "--confirm", "v2")
        m.until(m.log.read_text, lambda log: log.count("generation v2 was dropped") == 2, "both embedders to notice")
        reached = writer.count
        m.until(lambda: writer.count, lambda count: count >= reached + 50, "changes after the drop")
    m.wait("ready", "v3")
    assert m.differences("v3") == NONE
    assert m.target.execute("select count(*) from pg_class where relname like 'doc_v2%'").fetchone() == (0,)
    assert "halted" not in m.log.read_text()
    assert [m.stop(daemon) for daemon in (second, first)] == [0, 0]


def test_a_stream_killed_during_the_sweep_and_an_embedder_of_nothing_else(migrate: Migrate) -> None:
    """The next owner of the stream goes on with the sweep; an `embed` process ends with its only generation."""
    m = migrate(Setting(rows=ROWS, generations=(V2,)))
    stream, backfill = m.start("stream"), m.start("backfill")
    m.wait("backfill")
    assert backfill.wait(60) == 0
    m.ended(backfill)
    m.configure(V3)
    m.revector("generation", "add", "v3")
    assert m.stop(stream, signal.SIGKILL) == -signal.SIGKILL
    stream, embed = m.start("stream"), m.start("embed")  # neither knows v2
    m.wait("ready", "v3")
    assert m.differences("v3") == NONE
    waiting = {g["name"]: (g["waiting"], g["configured"]) for g in m.asked("generation", "list")["generations"]}
    assert waiting == {"v2": (2500, False), "v3": (0, True)}
    m.source.execute("delete from app.doc where id <= 10")
    m.wait("caught-up", "v3")
    assert m.asked("status", "--generation", "v2")["parts"]["embed"]["waiting_backfill"] == 2490
    m.revector("generation", "drop", "v3", "--confirm", "v3")
    assert embed.wait(60) == 0
    m.ended(embed)
    assert "generation v3 was dropped" in m.log.read_text()
    assert m.stop(stream) == 0
