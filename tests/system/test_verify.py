"""`revector verify` on the real stack: what it finds, what it mends, what it refuses to call a difference."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bench.trial import QUICK, Trial, flaws, tried
from sandbox.compare import Checked, Differences
from sandbox.config import Gen
from sandbox.corruptions import DDL, TABLE, Place, Surgeon, corrupt
from sandbox.provider import ProviderServer
from sandbox.stack import Sandbox
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 300) n"
SLOWLY = ("--set", "verify.page_rows=100", "--set", "verify.rows_per_second=100")
LONG_S = 240.0


def found(answer: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(kind, table, key) of each difference in an answer, in order."""
    return sorted((d["kind"], d["table"], tuple((d["key"] or {}).values())) for d in answer["found"])


def damage(m: Migration, statement: str, *values: object) -> None:
    """Behind its back."""
    m.target.execute(statement.encode(), values)


@pytest.mark.timeout(900)
def test_every_kind_of_corruption_is_found_and_mended_under_live_writes(
    stack: Sandbox, provider: ProviderServer, tmp_path: Path
) -> None:
    """Of documents that are cut; `./dev bench trial` is the same at size."""
    plan = replace(QUICK, rate=100, clean_runs=1)
    trial = Trial(stack, provider, tmp_path, plan, 4711, "cut")
    try:
        trial.prepare()
        figures = tried(trial)
    finally:
        trial.close()
    assert flaws(figures) == [], json.dumps(figures, indent=2)
    assert figures["find"]["found"] == plan.corruptions


def test_a_vector_of_a_model_that_changed_is_found_by_embedding_every_chunk_again(
    migrate: Migrate, provider: ProviderServer
) -> None:
    rows = "insert into app.doc select n, 1, 'title ' || n, 'body of ' || n, true from generate_series(1, 60) n"
    generation = Gen("v2", "test-embedding", 64, provider.url, extra={"tokenizer": "cl100k_base"})
    m = migrate(Setting(ddl=DDL, tables=TABLE, rows=rows, checks=(), generations=(generation,)))
    m.start()
    m.wait("ready")
    drifted = corrupt(m.target_dsn, Place(m.name, 1, 60, 1000, 64), 3, 5, [Surgeon.vector_drifted])
    assert m.verify("--reembed-sample", "0")["clean"] is True  # each is in order by itself
    answer = m.verify("--reembed-sample", "1000", code=3)
    assert answer["comparison"]["sampled"] == 60
    expected = sorted(("vector-drifted", "doc", (d.key,)) for c in drifted for d in c.expected)
    assert found(answer) == expected
    billed = provider.stats()["tokens"]
    mended = m.verify("--reembed-sample", "1000", "--repair")
    assert mended["comparison"]["repaired"] == {"vector-drifted": 3}
    assert provider.stats()["tokens"] - billed < 2 * billed  # each once to know, and three to mend
    assert m.verify("--reembed-sample", "1000")["clean"] is True


def test_lost_rows_and_a_gap_in_the_log_are_mended_and_the_certificate_says_so(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    m.start()
    m.wait("ready")
    assert m.pipeline is not None
    connector, slot = m.pipeline.connector, m.pipeline.capture.slot
    connector.stop()
    query = "select not active from pg_replication_slots where slot_name = %s"
    m.until(lambda: m.source.execute(query, [slot]).fetchone(), lambda row: row == (True,), "the slot to be free")
    m.source.execute("update app.doc set body = 'never sent' where id <= 5")
    m.source.execute("delete from app.doc where id in (6, 7)")
    m.source.execute("insert into app.doc (id, title, body) values (1000, 'never', 'sent')")
    m.source.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", [slot])
    damage(m, f"delete from {m.name}.doc_v2 using {m.name}.doc r where r._row_id = doc_v2._row_id and id > 297")
    damage(m, f"delete from {m.name}.doc where id > 297 and id <= 300")
    connector.resume()
    connector.wait_running()

    def said() -> str:
        return str(m.asked("status")["verdict"])

    m.until(said, lambda verdict: verdict == "degraded: proof broken", "the break to be said")
    assert "break-open" in {s["id"] for s in m.prove(code=3, timeout_s=5)["shortfalls"]}

    lost = Counter({"row-missing": 4, "row-extra": 2, "text-stale": 5})
    answer = m.verify(code=3)
    assert Counter(kind for kind, _, _ in found(answer)) == lost
    assert said() == "degraded: proof broken", "a comparison that found differences closed a break"
    answer = m.verify("--repair")
    assert answer["clean"] is True
    assert answer["comparison"]["repaired"] == lost
    assert answer["comparison"]["breaks_closed"] >= 1
    m.wait("ready")
    certificate = m.prove(timeout_s=60)["certificate"]
    assert certificate["compared"] is True
    assert certificate["comparison"]["id"] == answer["comparison"]["id"]
    assert certificate["comparison"]["repaired"] == lost
    assert m.differences() == Differences()

    saved = m.folder / "certificate.json"
    m.revector("certificate", "show", "latest", "--output", str(saved))
    assert m.asked("certificate", "check", str(saved))["holds"] is True
    saved.write_text(saved.read_text().replace('"compared":true', '"compared":false'))
    assert m.asked("certificate", "check", str(saved), code=3)["ours"] is False


KEYS = """
create schema app;
create table app.label (code text primary key, title text not null, views int);
create table app.place (region text, spot int, title text not null, primary key (region, spot));
create table app.single (id int primary key, title text not null);
create table app.nothing (id uuid primary key, title text not null);
create table app.edge (id bigint primary key, title text not null);
create publication revector for table app.label, app.place, app.single, app.nothing, app.edge
    with (publish = 'insert, update, delete, truncate');
"""
KEY_TABLES = "".join(
    f'[[table]]\nsource = "app.{name}"\ntext = "{{title}}"\n{columns}\n'
    for name, columns in {
        "label": 'columns = ["views"]',
        "place": "",
        "single": "",
        "nothing": "",
        "edge": "",
    }.items()
)
KEY_NAMES = tuple(f"app.{name}" for name in ("label", "place", "single", "nothing", "edge"))
KEY_CHECKS = tuple(
    Checked(f"app.{name}", name, f"{name}_v2", key, "title", "''", key_columns=columns)
    for name, key, columns in (
        ("label", "code", "code"),
        ("place", "jsonb_build_array(region, spot)::text", "region, spot"),
        ("single", "id::text", "id"),
        ("nothing", "id::text", "id"),
        ("edge", "id::text", "id"),
    )
)
ODD_KEYS = ("", " ", "a", "A", "ä", "ß", "z", "a b", "100%", "{x}", '"', "\\", "'", "null", "NULL", "\t", "€", "a,b")
EDGES = (-(2**63), -1, 0, 1, 2**63 - 1)


def test_keys_of_every_shape_at_their_edges(migrate: Migrate) -> None:
    """Text, composite and 64-bit keys, a table of one row and an empty one, in one migration."""
    m = migrate(Setting(ddl=KEYS, tables=KEY_TABLES, names=KEY_NAMES, checks=KEY_CHECKS))
    with m.source.cursor() as cursor:
        cursor.executemany(
            "insert into app.label values (%s, %s, 1)", [(k, f"label {n}") for n, k in enumerate(ODD_KEYS)]
        )
        places = [(region, spot, f"{region} {spot}") for region in ("", "b,c", "é") for spot in (-1, 0, 2**31 - 1)]
        cursor.executemany("insert into app.place values (%s, %s, %s)", places)
        cursor.execute("insert into app.single values (7, 'the only one')")
        cursor.executemany("insert into app.edge values (%s, %s)", [(id, f"edge {id}") for id in EDGES])
    m.start()
    m.wait("ready")
    answer = m.verify()
    assert (answer["clean"], answer["comparison"]["rows"]) == (True, len(ODD_KEYS) + len(places) + 1 + len(EDGES))

    damage(m, f"update {m.name}.label set title = 'x' where code = any(%s)", list(ODD_KEYS[::2]))
    damage(m, f"update {m.name}.place set title = 'x' where region = 'b,c'")
    damage(m, f"delete from {m.name}.single")
    damage(m, f"delete from {m.name}.edge where id in (%s, %s)", EDGES[0], EDGES[-1])
    damage(m, f"insert into {m.name}.nothing (id, title) values (gen_random_uuid(), 'from nowhere')")
    (stray,) = (id for (id,) in m.replica("id::text", "nothing"))
    expected: list[tuple[str, str, tuple[str, ...]]] = [("text-stale", "label", (key,)) for key in ODD_KEYS[::2]]
    expected += [("text-stale", "place", ("b,c", str(spot))) for spot in (-1, 0, 2**31 - 1)]
    expected += [("row-missing", "edge", (str(id),)) for id in (EDGES[0], EDGES[-1])]
    expected += [("row-missing", "single", ("7",)), ("row-extra", "nothing", (stray,))]
    orphans = {("chunk-orphan", "single", ()), ("chunk-orphan", "edge", ())}
    seen = found(m.verify(code=3))
    assert sorted(d for d in seen if d not in orphans) == sorted(expected)
    assert Counter(d for d in seen if d in orphans) == {
        ("chunk-orphan", "single", ()): 1,
        ("chunk-orphan", "edge", ()): 2,
    }
    assert m.verify("--repair")["clean"] is True
    assert m.verify()["clean"] is True
    m.wait("caught-up")
    assert m.differences() == Differences()


def slow(m: Migration, *words: str) -> subprocess.Popen[str]:
    """A comparison that takes its time, in the middle of the source's rows."""
    line = m.command("verify", "--json", "--reembed-sample", "0", *SLOWLY, *words)
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    query = "select coalesce(max(rows), 0) from revector.comparison_scan where side = 'source'"
    m.until(lambda: m.target.execute(query).fetchone(), lambda row: bool(row and row[0]), "the first page", LONG_S)
    return process


@pytest.mark.timeout(600)
def test_truncate_while_rows_are_compared_is_no_difference(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS.replace("300", "1500")))
    m.start()
    m.wait("ready")
    process = slow(m)
    m.source.execute("truncate app.doc")
    m.source.execute("insert into app.doc (id, title, body) select n, 'after', 'y' || n from generate_series(1, 40) n")
    out, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, out + err
    assert json.loads(out)["clean"] is True
    m.wait("caught-up")
    assert m.verify()["comparison"]["rows"] == 40
    assert m.differences() == Differences()


@pytest.mark.timeout(600)
def test_second_comparison_beside_a_running_one_is_told_who_has_it_and_a_resumed_one_does_not_start_over(
    migrate: Migrate,
) -> None:
    m = migrate(Setting(rows=ROWS.replace("300", "1500")))
    m.start()
    m.wait("ready")
    process = slow(m)
    refused = m.asked("verify", code=75)
    assert refused["error"]["id"] == "comparison-running"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 130, out + err
    query = "select sum(rows) from revector.comparison_scan where side = 'source'"
    (done,) = m.target.execute(query).fetchall()[0]
    assert done >= 100
    answer = m.verify("--reembed-sample", "0")
    assert (answer["clean"], answer["comparison"]["rows"]) == (True, 1500)
    assert m.target.execute("select count(*) from revector.comparison").fetchone() == (1,)


def test_without_a_daemon_rows_in_flight_are_no_differences_and_the_wait_ends(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("ready")
    assert m.stop(daemon) == 0
    m.source.execute("update app.doc set body = body || ' changed', views = 1")
    done = subprocess.run(
        m.command("verify", "--max-duration", "5s"), capture_output=True, text=True, timeout=LONG_S, check=False
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert "barrier" in done.stdout + done.stderr
    assert m.target.execute("select count(*) from revector.comparison_finding").fetchone() == (0,)
    m.start()
    assert m.verify("--max-duration", "80s")["clean"] is True


def test_rows_that_change_while_they_are_damaged_are_mended_by_whichever_comes_first(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    m.start()
    m.wait("ready")
    damage(m, f"update {m.name}.doc set body = 'spoilt', views = 99 where id <= 20")
    m.source.execute("update app.doc set body = 'changed since' where id <= 10")
    answer = m.verify("--repair")
    assert answer["clean"] is True
    with psycopg.connect(m.target_dsn) as target:
        query = f"select count(*), count(distinct _row_id) from {m.name}.doc where not _deleted"
        assert target.execute(query.encode()).fetchone() == (300, 300)
    m.wait("caught-up")
    assert m.differences() == Differences()
