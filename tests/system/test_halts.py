"""What stops the stream for good: the process stays up, says why, and goes on once the cause is mended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sandbox.compare import Differences
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 50) n"


def halted_by(m: Migration) -> str:
    """Wait until status says halted; the first blocker's message."""
    seen = m.until(lambda: m.asked("status"), lambda s: s["verdict"] == "halted", "the halt to be said")
    return str(seen["blockers"][0]["message"])


def test_renamed_column_halts_and_goes_on_when_it_has_its_name_again(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("ready")
    m.source.execute("alter table app.doc rename column views to hits")
    m.source.execute("update app.doc set hits = 5 where id = 1")
    assert halted_by(m) == "column-absent"
    assert daemon.poll() is None
    m.revector("prove", "--timeout", "1", code=3)
    m.source.execute("alter table app.doc rename column hits to views")
    assert m.stop(daemon) == 0
    # The event without the column is in Kafka for good: the halt comes back rather than a silent hole.
    m.start()
    m.until(m.log.read_text, lambda text: text.count("halted: column-absent") == 2, "the halt to come back")


def test_used_column_of_another_type_at_start_halts_and_stays_up(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("caught-up")
    assert m.stop(daemon) == 0
    m.source.execute("alter table app.doc alter column views type text")
    daemon = m.start()
    assert halted_by(m) == "table-changed"
    assert daemon.poll() is None
    m.source.execute("alter table app.doc alter column views type int using views::int")
    assert m.stop(daemon) == 0
    m.start()
    m.source.execute("update app.doc set body = 'after the halt' where id = 1")
    read = lambda: "table-rewritten" in str(m.asked("status")["breaks"])  # noqa: E731
    m.until(read, bool, "the break: a USING may have given other values")
    assert m.verify("--repair")["clean"] is True
    m.wait("caught-up")
    assert m.differences() == Differences()


def test_generation_of_another_name_after_the_start_is_refused(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("caught-up")
    assert m.stop(daemon) == 0
    m.config.write_text(m.config.read_text().replace('name = "v2"', 'name = "v3"'))
    m.revector("run", code=78)


def test_table_that_is_added_after_the_start_is_refused_and_leaves_nothing_behind(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("caught-up")
    assert m.stop(daemon) == 0
    m.source.execute("create table app.note (id bigint primary key, body text)")
    config = m.config.read_text()
    m.config.write_text(config + '\n[[table]]\nsource = "app.note"\ntext = "{body}"\n')
    m.revector("run", code=78)
    m.config.write_text(config)
    m.start()
    m.source.execute("update app.doc set body = 'after the refusal' where id = 1")
    m.wait("caught-up")
    assert m.differences() == Differences()


def test_table_that_is_published_no_longer_is_no_silence(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    m.start()
    m.wait("ready")
    m.source.execute("alter publication revector drop table app.doc")
    m.source.execute("update app.doc set body = 'nobody hears of it' where id = 1")
    m.revector("prove", "--timeout", "10", code=3)
    m.revector("wait", "--for", "caught-up", "--timeout", "60", code=3)
    status = m.asked("status")
    assert status["verdict"] == "degraded: proof broken"
    said = next(b for b in status["blockers"] if b["id"] == "break-open")
    assert "publication-drift" in said["message"]
    assert "publication-table-missing: lacks app.doc" in said["evidence"]
    assert "set the publication back" in said["remedy"]
    m.source.execute("alter publication revector add table app.doc")
    assert m.verify("--repair")["comparison"]["repaired"] == {"text-stale": 1}
    m.wait("caught-up")
    assert m.prove(timeout_s=60)["proven"] is True
    assert m.differences() == Differences()


def test_renamed_table_halts(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    m.start()
    m.wait("ready")
    m.source.execute("alter table app.doc rename to document")
    m.source.execute("update app.document set body = 'nobody hears of it' where id = 1")
    assert halted_by(m) == "table-changed"
    m.source.execute("alter table app.document rename to doc")


def test_nullability_and_identity_may_change_between_runs(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("caught-up")
    assert m.stop(daemon) == 0
    m.source.execute("update app.doc set views = 7 where id = 1")  # read as an event without a before image
    m.source.execute("alter table app.doc alter column views drop not null, replica identity full")
    m.source.execute("update app.doc set views = null where id = 2")
    m.start()
    m.wait("caught-up")
    assert m.differences() == Differences()
