"""When the proof must say no, and how much is missing; each on the real parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sandbox.compare import Differences
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 100) n"
CHANGE = "update app.doc set body = body || ' changed'"


def reasons(answer: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for shortfall in answer["shortfalls"]:
        found.setdefault(shortfall["id"], []).append(shortfall)
    return found


def test_stopped_daemon_with_changes_outstanding_names_each_partition_and_its_number(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("ready")
    m.verify()
    assert m.prove()["proven"] is True
    assert m.stop(daemon) == 0
    m.source.execute(CHANGE)
    answer = m.prove(code=3, timeout_s=5)
    behind = reasons(answer)["partition-behind"]
    assert sum(s["number"] for s in behind) == 100
    assert {s["step"] for s in behind} == {6}
    assert all(f"{m.name}.app.doc-" in s["message"] for s in behind)
    m.start()
    assert m.prove(timeout_s=60)["proven"] is True
    assert m.differences() == Differences()


def test_paused_connector_is_found_by_its_offset_although_kafka_has_no_lag(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    m.start()
    m.wait("ready")
    m.verify()
    assert m.pipeline is not None
    m.pipeline.connector.pause()
    paused = lambda status: status["connector"]["state"] == "PAUSED"  # noqa: E731
    m.until(m.pipeline.connector.status, paused, "the connector to pause")
    m.source.execute(CHANGE)
    answer = m.prove(code=3, timeout_s=5)
    found = reasons(answer)
    assert found["connector-behind"][0]["step"] == 4
    assert found["connector-behind"][0]["number"] > 0
    assert "partition-behind" not in found
    m.pipeline.connector.resume()
    m.wait("caught-up")
    assert m.prove(timeout_s=60)["proven"] is True
    assert m.differences() == Differences()


def test_restarted_task_breaks_the_proof_until_a_comparison(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    m.start()
    m.wait("ready")
    assert m.pipeline is not None
    m.pipeline.connector.restart_task()
    m.pipeline.connector.wait_running()
    m.source.execute(CHANGE)
    status = lambda: m.asked("status")  # noqa: E731
    m.until(status, lambda s: s["verdict"] == "degraded: proof broken", "the break to be said")
    found = reasons(m.prove(code=3, timeout_s=5))
    assert "connector-restarted" in found["break-open"][0]["message"]
    m.revector("wait", "--for", "caught-up", "--timeout", "60", code=3)
    m.until(m.differences, lambda found: found == Differences(), "degraded: it goes on applying")
    assert m.verify()["comparison"]["breaks_closed"] == 1
    m.wait("ready")
    assert m.prove(timeout_s=60)["certificate"]["compared"] is True


def test_deleted_rows_behind_the_stream_do_not_block_and_an_empty_source_is_proven(migrate: Migrate) -> None:
    m = migrate(Setting())
    m.start()
    m.wait("ready")
    assert m.verify()["comparison"]["rows"] == 0
    answer = m.prove()
    assert answer["proven"] is True
    assert m.replica() == []


def test_a_migration_that_never_ran_is_said_to_be_unknown(migrate: Migrate) -> None:
    m = migrate(Setting(captured=False))
    answer = m.asked("prove", code=3)
    assert answer["error"]["id"] == "migration-unknown"
    assert "revector run" in answer["error"]["hint"]
    status = m.asked("status")
    assert [b["id"] for b in status["blockers"]] == ["not-begun"]
    assert status["next"] == f"revector run {m.name}"
