"""What breaks on the Postgres side while a migration runs: said with its evidence, never proven over, mended as told.

Each test makes one thing happen to the real source or target, reads what `status` says of it, sees `prove` refuse, does
what the remedy names, and ends where everything is equal and a certificate can be had again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psycopg
import pytest

from sandbox.compare import Differences
from sandbox.pipeline import capture_tables
from sandbox.postgres import Postgres
from sandbox.stack import Sandbox
from tests.system.migration import DOCS, Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 40) n"


@pytest.fixture
def cluster(stack: Sandbox) -> Iterator[Postgres]:
    """A source of this test's own."""
    made = stack.cluster("apart")
    yield made
    made.stop()


def open_breaks(m: Migration) -> dict[str, dict[str, Any]]:
    """Detail by id."""
    query = "select event, detail from revector.journal where migration = %s and kind = 'break' and closed_at is null"
    return dict(m.target.execute(query, [m.name]).fetchall())


def broken(m: Migration, id: str) -> dict[str, Any]:
    """Wait for the break; its detail."""
    return m.until(lambda: open_breaks(m), lambda found: id in found, f"the break {id}")[id]


def halted(m: Migration, *ids: str) -> str:
    """Wait until replication is halted by one of these; what it says. The process stays up."""
    query = "select halted -> 'stream' from revector.control where migration = %s"

    def read() -> dict[str, Any]:
        row = m.target.execute(query, [m.name]).fetchone()
        return (row and row[0]) or {}

    return str(m.until(read, lambda note: note.get("id") in ids, f"a halt by {ids}")["message"])


def going_on(m: Migration) -> None:
    """Wait until nothing is halted."""
    query = "select halted from revector.control where migration = %s"
    m.until(lambda: m.target.execute(query, [m.name]).fetchone(), lambda row: row == (None,), "the end of the halt")


def blocker(m: Migration, id: str) -> dict[str, Any]:
    """Wait until `status` has this reason; with its verdict."""

    def read() -> dict[str, Any]:
        status = m.asked("status")
        found = {b["id"]: b for b in status["blockers"]}
        return {**found.get(id, {}), "verdict": status["verdict"]}

    return m.until(read, lambda b: "id" in b, f"the reason {id}")


def refused(m: Migration, id: str) -> None:
    """No certificate, for this reason among others."""
    found = {s["id"]: s for s in m.prove(code=3, timeout_s=1)["shortfalls"]}
    assert id in found, found


def reconnect(m: Migration) -> None:
    m.source.close()
    m.source = psycopg.connect(m.source_dsn, autocommit=True)


def stop_connector(m: Migration) -> None:
    """Its slot is free when this returns."""
    assert m.pipeline is not None
    m.pipeline.connector.stop()
    query = "select active from pg_replication_slots where slot_name = %s and active"
    slot = m.pipeline.capture.slot
    m.until(lambda: m.source.execute(query, [slot]).fetchone(), lambda row: row is None, "the slot to be free")


def make_slot_again(m: Migration) -> None:
    """As docs/howto/troubleshoot.md tells: stop, drop what is left, forget the offsets, start."""
    assert m.pipeline is not None
    connector, slot = m.pipeline.connector, m.pipeline.capture.slot
    stop_connector(m)
    drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s"
    m.source.execute(drop, [slot])
    connector.forget_offsets()
    connector.resume()
    (m.setting.cluster or m.stack.source).wait_slot_active(slot)


def mended(m: Migration) -> None:
    """`verify --repair`, then equal, and a certificate."""
    assert m.verify("--repair")["clean"] is True
    assert m.prove(timeout_s=60)["proven"] is True
    assert m.differences() == Differences()


def write_unseen(m: Migration) -> None:
    """Changes that the connector never sends."""
    m.source.execute("update app.doc set body = 'never sent' where id <= 3")
    m.source.execute("delete from app.doc where id = 4")
    m.source.execute("insert into app.doc (id, title) values (1000, 'never sent')")


# --- the slot


def test_a_dropped_slot_is_said_at_once_and_mended_once_it_is_there_again(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    m.start()
    m.wait("caught-up")
    assert m.pipeline is not None
    slot = m.pipeline.capture.slot
    stop_connector(m)
    write_unseen(m)
    m.source.execute("select pg_drop_replication_slot(%s)", [slot])
    assert broken(m, "slot-lost") == {"slot": slot, "found": "no slot of this name"}
    said = blocker(m, "slot-lost")
    assert said["verdict"] == "degraded: proof broken"
    assert said["message"] == "there is no slot"
    assert "delete the connector's offsets" in said["remedy"] and "verify --repair" in said["remedy"]
    assert f"slot-lost: slot {slot}, found no slot of this name" in blocker(m, "break-open")["evidence"]
    refused(m, "break-open")
    make_slot_again(m)
    broken(m, "connector-restarted")
    mended(m)


def test_a_slot_is_said_to_be_in_danger_and_then_invalidated_and_mended_once_it_is_there_again(
    migrate: Migrate, cluster: Postgres
) -> None:
    m = migrate(Setting(rows=ROWS, cluster=cluster))
    m.start()
    m.wait("caught-up")
    stop_connector(m)
    write_unseen(m)
    m.source.execute("alter system set max_slot_wal_keep_size = '4MB'")
    m.source.execute("select pg_reload_conf()")
    query = "select safe_wal_size from pg_replication_slots where slot_name = %s"

    def fill(upto: int) -> None:
        """Write log until so little is left to the slot."""
        while (left := m.source.execute(query, [m.name]).fetchone()) and left[0] is not None and left[0] > upto:
            m.source.execute("select pg_logical_emit_message(false, 'other', repeat('x', 200000))")

    m.until(lambda: m.source.execute("show max_slot_wal_keep_size").fetchone(), lambda row: row == ("4MB",), "it")
    fill(800_000)
    danger = blocker(m, "slot-endangered")
    assert 0 <= danger["number"] <= 800_000
    assert "max_slot_wal_keep_size" in danger["remedy"]
    fill(0)
    m.source.execute("select pg_switch_wal()")
    m.source.execute("checkpoint")
    found = broken(m, "slot-lost")
    assert found == {
        "slot": m.name,
        "found": "invalidated",
        "cause": "wal_removed",
        "max_slot_wal_keep_size": 4 << 20,
    }
    said = blocker(m, "slot-lost")
    assert (said["verdict"], said["message"]) == (
        "degraded: proof broken",
        "the slot was invalidated: wal_removed",
    )
    refused(m, "break-open")
    m.source.execute("alter system reset max_slot_wal_keep_size")
    m.source.execute("select pg_reload_conf()")
    make_slot_again(m)
    mended(m)


# --- another source behind the address


def test_a_source_that_was_set_back_halts_although_nothing_names_it_another_one(
    migrate: Migrate, cluster: Postgres
) -> None:
    """The same cluster on the same timeline: only its log ends where it had been before."""
    m = migrate(Setting(rows=ROWS, cluster=cluster, captured=False))
    m.source.close()
    cluster.stop()
    cluster.copy_to("before")
    cluster.start()
    reconnect(m)
    m.pipeline = capture_tables(m.stack, m.source_dsn, m.name, m.setting.names, None, cluster)
    daemon = m.start()
    m.wait("caught-up")
    m.source.execute("update app.doc set body = 'of the lost future' where id <= 3")
    m.source.execute("insert into app.doc (id, title) values (1000, 'of the lost future')")
    m.source.execute("select pg_logical_emit_message(false, 'other', repeat('x', 3000000))")
    m.until(m.differences, lambda found: found == Differences(), "the future in the replica")
    reached = "select (observed -> 'reached' ->> 1)::bigint > %s from revector.observation where migration = %s"
    ((lsn,),) = m.source.execute("select (pg_current_wal_lsn() - '0/0')::bigint - 100000")
    m.until(lambda: m.target.execute(reached, [lsn, m.name]).fetchone(), lambda row: row == (True,), "the mark")
    m.source.close()
    cluster.stop()
    cluster.put_back("before")
    cluster.start()
    reconnect(m)
    m.source.execute("delete from app.doc where id = 4")
    assert re.search(r"source log position was 0/\w+, is 0/\w+", halted(m, "identity-changed"))
    assert daemon.poll() is None
    said = blocker(m, "identity-changed")
    assert (said["verdict"], said["command"]) == ("halted", f"revector realign {m.name}")
    assert "log position" in said["evidence"]
    refused(m, "identity-changed")
    assert "log position" in str(m.asked("verify", code=1)["error"])
    assert m.asked("realign", "--confirm", m.name, code=3)["error"]["id"] in ("connector-ahead", "slot-missing")
    make_slot_again(m)
    m.revector("realign", "--confirm", m.name)
    going_on(m)
    m.source.execute("update app.doc set body = 'after the restore' where id = 1")
    mended(m)


def test_another_cluster_and_another_timeline_behind_the_address_halt(
    migrate: Migrate, stack: Sandbox, cluster: Postgres
) -> None:
    """The other cluster has a database of the same name with equal rows; back at the right one nothing is lost."""
    m = migrate(Setting(rows=ROWS, cluster=cluster))
    daemon = m.start()
    m.wait("caught-up")
    m.verify()
    m.source.close()
    other = stack.cluster("other")
    with psycopg.connect(other.create_database(m.name), autocommit=True) as stranger:
        stranger.execute(DOCS.encode())
        stranger.execute(ROWS.encode())
    other.set_password(cluster.password)
    other.stop()
    cluster.stop()
    cluster.copy_to("right")
    cluster.become_copy_of(other)
    cluster.start()
    assert re.search(r"system_identifier was \d+, is \d+", halted(m, "identity-changed"))
    assert daemon.poll() is None
    assert blocker(m, "identity-changed")["command"] == f"revector realign {m.name}"
    refused(m, "identity-changed")
    cluster.stop()
    cluster.put_back("right")
    cluster.start()
    assert m.stop(daemon) == 0
    daemon = m.start()
    reconnect(m)
    assert m.pipeline is not None
    m.pipeline.connector.restart_task()
    going_on(m)
    m.source.execute("update app.doc set body = 'of the right one' where id = 1")
    m.until(m.differences, lambda found: found == Differences(), "what the right one says")

    m.source.close()
    cluster.stop()
    cluster.recover_as_standby()
    cluster.start()
    cluster.promote()
    reconnect(m)
    assert "source timeline was 1, is 2" in halted(m, "identity-changed")
    m.source.execute("update app.doc set body = 'on the new timeline' where id = 2")
    refused(m, "identity-changed")
    make_slot_again(m)
    m.revector("realign", "--confirm", m.name)
    going_on(m)
    mended(m)


# --- the table


def test_a_column_that_is_renamed_dropped_or_retyped_under_traffic_halts_until_it_is_put_back(
    migrate: Migrate,
) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("caught-up")
    changes = (
        ("rename column views to hits", "rename column hits to views", "update app.doc set hits = 5 where id < 5"),
        ("drop column views", "add column views int not null default 0", "update app.doc set title = 'x' where id < 5"),
        (
            "alter column views type text",
            "alter column views type int using views::int",
            "update app.doc set views = '7' where id < 5",
        ),
    )
    for round, (change, back, traffic) in enumerate(changes):
        m.source.execute("update app.doc set views = id + %s where id > 20", [round])
        m.until(lambda: m.replica("id, views"), lambda rows: (30, 30 + round) in rows, "the traffic")  # noqa: B023
        m.source.execute(f"alter table app.doc {change}".encode())
        m.source.execute(traffic.encode())
        message = halted(m, "column-absent", "table-changed", "value-unreadable")
        assert "app.doc" in message and "column views" in message
        assert daemon.poll() is None
        said = blocker(m, "halted")
        assert (said["evidence"], said["command"]) == (message, f"revector realign {m.name}")
        refused(m, "halted")
        m.source.execute(f"alter table app.doc {back}".encode())
        m.revector("realign", "--confirm", m.name)
        going_on(m)
    mended(m)


def test_a_replica_identity_that_carries_less_halts_and_one_that_carries_more_does_not(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS, ddl=DOCS + "create unique index doc_title on app.doc (title);"))
    m.start()
    m.wait("caught-up")
    for identity in ("full", "default"):
        m.source.execute(f"alter table app.doc replica identity {identity}".encode())
        m.source.execute("update app.doc set views = views + 1 where id < 9")
        m.source.execute("update app.doc set id = id + 100 where id = (select min(id) from app.doc)")
        m.source.execute("delete from app.doc where id = (select min(id) from app.doc)")
        m.until(m.differences, lambda found: found == Differences(), f"the changes under {identity}")
    assert open_breaks(m) == {}
    m.source.execute("alter table app.doc replica identity nothing")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):  # the source does not let it happen unseen
        m.source.execute("delete from app.doc where id = 20")
    assert "replica identity is nothing" in halted(m, "table-changed")
    m.source.execute("insert into app.doc (id, title) values (2000, 'under nothing')")
    refused(m, "halted")
    m.source.execute("alter table app.doc replica identity default")
    m.revector("realign", "--confirm", m.name)
    going_on(m)
    m.source.execute("alter table app.doc replica identity using index doc_title")
    m.source.execute("delete from app.doc where id = 21")
    m.source.execute("update app.doc set title = 'under an index' where id = 22")
    halted(m, "table-changed", "key-absent", "key-mismatch")
    m.source.execute("alter table app.doc replica identity default")
    m.revector("realign", "--confirm", m.name)
    going_on(m)
    mended(m)


def test_full_replica_identity_that_is_taken_back_halts(migrate: Migrate) -> None:
    """Of some types an unchanged value that is not sent cannot be told from a null."""
    ddl = DOCS.replace("views int not null default 0", "views int[]") + "alter table app.doc replica identity full;"
    m = migrate(Setting(ddl=ddl, rows=ROWS))
    m.start()
    m.wait("caught-up")
    m.source.execute("update app.doc set views = '{1,2}' where id = 1")
    m.until(m.differences, lambda found: found == Differences(), "the array")
    m.source.execute("alter table app.doc replica identity default")
    m.source.execute("update app.doc set title = 'changed' where id = 1")
    halted(m, "table-changed", "replica-identity-changed")
    refused(m, "halted")
    m.source.execute("alter table app.doc replica identity full")
    m.revector("realign", "--confirm", m.name)
    going_on(m)
    mended(m)


# --- the target


def test_an_older_pgvector_is_refused_before_anything_is_made(migrate: Migrate) -> None:
    """The catalogue says 0.8.3, and the extension's own script brings it up to date."""
    m = migrate(Setting(rows=ROWS))
    m.target.execute("update pg_extension set extversion = '0.8.3' where extname = 'vector'")
    (found,) = [p for p in m.asked("doctor", code=78)["error"]["problems"] if p["id"] == "vector-too-old"]
    assert "0.8.3" in found["message"] and "ALTER EXTENSION vector UPDATE" in found["hint"]
    m.revector("run", code=78)
    query = "select count(*) from pg_namespace where nspname in ('revector', %s)"
    assert m.target.execute(query, [m.name]).fetchone() == (0,)
    m.target.execute("alter extension vector update")
    m.start()
    m.wait("caught-up")
    assert m.differences() == Differences()


def answered(m: Migration, path: str) -> tuple[int, str]:
    """What the newest process says over HTTP."""
    url = re.findall(r"status and metrics at (http://\S+)", m.log.read_text())[-1]
    try:
        with urlopen(url + path) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_newer_control_schema_stops_the_older_program_and_an_older_one_is_told_the_way(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("caught-up")
    before = m.replica("id, body")
    ((known,),) = m.target.execute("select max(version) from revector.schema_version")
    m.target.execute("insert into revector.schema_version (version) values (999)")
    m.source.execute("update app.doc set body = 'of the newer time'")
    m.until(m.log.read_text, lambda text: "halted: schema-newer" in text, "the old process to halt")
    assert daemon.poll() is None
    assert answered(m, "/readyz") == (503, "halted: schema-newer\n")
    seen = m.until(
        lambda: answered(m, "/v1/status"),
        lambda a: a[0] == 200 and json.loads(a[1])["verdict"] == "halted",
        "its status",
    )
    assert "version 999" in seen[1]
    assert answered(m, "/metrics")[0] == 200
    for words in (("prove",), ("verify",), ("realign",), ("pause",), ("quarantine", "list"), ("run",)):
        error = m.asked(*words, code=78)["error"] if words != ("run",) else {}
        if words == ("run",):
            m.revector("run", code=78)
        else:
            assert (error["id"], "999" in error["message"]) == ("schema-newer", True), words
            assert "newer revector" in error["hint"]
    assert blocker(m, "halted")["evidence"].endswith(f"version 999, this program knows {known}")
    assert m.replica("id, body") == before
    m.target.execute("delete from revector.schema_version where version = 999")
    assert m.stop(daemon) == 0
    m.start()
    m.wait("caught-up")
    assert m.differences() == Differences()

    m.target.execute("delete from revector.schema_version where version = %s", [known])
    for words in (("prove",), ("status",)):
        error = m.asked(*words, code=78)["error"]
        assert error["id"] == "schema-older"
        assert f"revector run {m.name}" in error["hint"]
    m.target.execute("insert into revector.schema_version (version) values (%s)", [known])
