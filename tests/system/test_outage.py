"""A provider that is away holds back vectors, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sandbox.compare import Differences
from sandbox.stack import Sandbox
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 200) n"


def test_deletes_and_metadata_arrive_while_the_provider_is_away(
    stack: Sandbox, migrate: Callable[[Setting], Migration]
) -> None:
    m = migrate(Setting(rows=ROWS))
    daemon = m.start()
    m.wait("ready")
    stack.embeddings.stop()
    try:
        m.source.execute("update app.doc set body = 'waits for the provider ' || id where id <= 50")
        for n in range(100, 110):
            m.source.execute("delete from app.doc where id = %s", [n])
            m.source.execute("update app.doc set views = 42 where id = %s", [n + 50])
            m.until(
                lambda: dict(m.replica("id, views")),
                lambda rows, n=n: n not in rows and rows[n + 50] == 42,  # type: ignore[misc]
                "the delete and the metadata",
            )
            assert n not in dict(m.chunks())
        status = m.until(
            lambda: m.asked("status"), lambda s: s["parts"]["kafka"]["events_behind"] == 0, "the stream to be current"
        )
        embed = status["parts"]["embed"]
        assert embed["waiting_live"] + embed["waiting_backfill"] + embed["claimed"] == 50
        assert embed["oldest_age_s"] > 0
        assert status["parts"]["source"]["lag_s"] is not None
        assert m.stop(daemon) == 0
        daemon = m.start()  # a daemon that comes back while the provider is away replicates all the same
        m.source.execute("delete from app.doc where id = 120")
        m.until(lambda: dict(m.replica()), lambda rows: 120 not in rows, "a delete after the restart")
    finally:
        stack.embeddings.start()
    m.wait("caught-up")
    assert m.differences() == Differences()
