"""Orders on the real stack: what is paused stays undone while the replica goes on, and a running process resumes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sandbox.provider import ProviderServer, Script
from tests.system.migration import Migration, Setting
from tests.system.test_quarantine import embedded, ids, scripted

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]


def test_a_pause_holds_embedding_back_and_a_running_process_resumes(migrate: Migrate, provider: ProviderServer) -> None:
    provider.set(Script())
    m = migrate(scripted(provider))
    daemon = m.start()
    m.until(lambda: embedded(m), lambda seen: len(seen) == 60, "all rows to be embedded")
    m.stop(daemon)
    assert m.asked("pause")["paused"] == ["backfill", "embedding"]
    requests = provider.stats()["requests"]

    m.start()  # a process that starts later obeys too
    m.source.execute("insert into app.doc (id, title, body) values (99, 'late', 'row')")
    m.until(m.replica, lambda rows: (99, "late") in rows, "the replica to follow")
    assert "paused" in {b["id"] for b in m.asked("status")["blockers"]}
    assert "work-owed" in ids(m.prove(code=3, timeout_s=5))
    assert (provider.stats()["requests"], 99 in embedded(m)) == (requests, False)

    assert m.asked("resume", "--what", "backfill")["paused"] == ["embedding"]
    assert (
        m.asked("limits", "--tokens-per-minute", "1000000")["generations"]["v2"]["tokens_per_minute"]["from"] == "order"
    )
    assert m.asked("resume")["paused"] == []
    m.until(lambda: embedded(m), lambda seen: 99 in seen, "a running process to resume")
    limits = m.asked("limits")["generations"]["v2"]["tokens_per_minute"]
    assert (limits["in_force"], limits["paced_by"]) == (1_000_000, 1_000_000)
    query = b"select event from revector.journal where kind = 'operator' order by id"
    assert [event for (event,) in m.target.execute(query)] == ["paused", "resumed", "limited", "resumed"]
