"""What `revector plan` says of the demo's corpus, against what a backfill of it then costs and takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from sandbox import corpus
from sandbox.config import CORPUS
from sandbox.pipeline import capture_tables
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 300) n"
DEADLINE_S = 240.0


LEFT = """
select (select count(*) from revector.source_table),
       (select count(distinct table_id) from revector.backfill_range where completed_at is not null),
       (select count(*) from revector.backfill_range where completed_at is null), (select count(*) from revector.work)
"""


def left(m: Migration) -> tuple[int, ...]:
    """Tables, those of which a range is copied, ranges not copied, rows not embedded; () before there are any."""
    try:
        return m.target.execute(LEFT.encode()).fetchone() or ()
    except psycopg.errors.UndefinedTable:
        return ()


def of_generation(m: Migration, column: str) -> Any:
    row = m.target.execute(f"select {column} from revector.generation".encode()).fetchone()
    assert row is not None
    return row[0]


def spent(m: Migration) -> dict[str, Any]:
    """Of the status; {} where the target did not answer in time."""
    part: dict[str, Any] | None = m.asked("status")["parts"]["cost"]
    return part or {}


def test_planned_tokens_are_those_that_a_backfill_then_costs(migrate: Migrate) -> None:
    m = migrate(Setting(ddl="select 1", tables=CORPUS, captured=False))
    rows = corpus.load(m.source_dsn)
    planned = m.asked("plan")  # nothing is there yet but the source
    assert not planned["kept"]
    assert {t["table"]: t["rows"]["value"] for t in planned["tables"]} == {
        name.removeprefix("app."): count for name, count in rows.items()
    }
    sampled = m.asked("plan", "--sample", "2000")
    low, high = sampled["tokens"]["low"], sampled["tokens"]["high"]
    assert low < high < 1.2 * low
    m.pipeline = capture_tables(m.stack, m.source_dsn, m.name, corpus.TABLES)
    daemon = m.start()
    m.until(lambda: left(m), lambda seen: seen == (3, 3, 0, 0), "everything is copied and embedded", DEADLINE_S)
    billed = of_generation(m, "tokens")
    assert billed == pytest.approx(planned["tokens"]["value"], rel=0.02)
    wanted = sum(t["wanted"]["value"] for t in planned["tables"])
    assert of_generation(m, "rows_embedded") == wanted
    assert m.stop(daemon) == 0


def test_a_run_that_nobody_planned_shows_what_it_expects_to_cost(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("caught-up")
    seen = m.until(lambda: spent(m), lambda cost: cost.get("forecast") is not None, "a forecast")
    exact = m.asked("plan")
    assert exact["kept"]
    kept = m.until(lambda: spent(m), bool, "the cost")
    planned = exact["tokens"]["value"]
    assert seen["forecast"]["tokens"] == kept["forecast"]["tokens"] == {"low": planned, "high": planned}
    assert kept["tokens"] == pytest.approx(planned, rel=0.02)  # the canary text is paid for too
    assert f"of {planned:,} tokens forecast".replace(",", " ") in m.revector("status")
    assert m.stop(daemon) == 0


def test_a_probe_measures_provider_and_index_and_leaves_nothing_behind(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS, captured=False))
    m.target.execute("create extension if not exists vector")
    planned = m.asked("plan", "--probe", "--set", "generation.price=2.5")
    probe = planned["probe"]
    assert probe["tokens_billed"] == probe["tokens_counted"] and probe["ratio"] == 1
    assert planned["embedding"]["low_s"] <= planned["embedding"]["high_s"] and planned["index_probe"]["rows"] > 0
    assert planned["cost"]["value"] == pytest.approx(planned["tokens"]["value"] * 2.5e-6, abs=1e-4)
    tables = "select count(*) from pg_class where relname like 'revector_probe%'"
    assert m.target.execute(tables.encode()).fetchone() == (0,)
    assert m.target.execute("select to_regnamespace('revector')").fetchone() == (None,)


def test_a_plan_does_not_need_the_target_and_names_a_source_that_is_away(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS, captured=False))
    nowhere = "--set", "target.dsn=host=127.0.0.1 port=1 dbname=none user=none"
    assert m.asked("plan", *nowhere)["tables"][0]["rows"]["value"] == 300
    away = m.asked("plan", "--set", "source.dsn=host=127.0.0.1 port=1 dbname=none user=none", code=69)
    assert away["error"]["id"] == "source-unreachable"
