"""Texts that the provider refuses, on the real stack: what is shown, what blocks the proof, and what lifts that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sandbox.compare import Differences
from sandbox.config import Gen
from sandbox.provider import ProviderServer, Script
from sandbox.provider_script import Faults, Poison
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
MARKER = "p01son"
ROWS = f"""
insert into app.doc (id, title, body)
select n, 'title ' || n, case when n in (7, 8, 9) then '{MARKER} ' else '' end || 'body of ' || n
from generate_series(1, 60) n
"""
HONEST = Script()
POISONED = Script(poison=Poison(markers=(MARKER,), code="content_filter"))


def scripted(provider: ProviderServer) -> Setting:
    generation = Gen(
        model="test-embedding",
        base_url=provider.url,
        limits={"in_flight": 2, "request_timeout_s": 30},
        extra={"tokenizer": "cl100k_base"},
    )
    return Setting(rows=ROWS, generations=(generation,))


def listed(m: Migration) -> dict[str, str]:
    """Key -> state."""
    return {e["key"]["id"]: e["state"] for e in m.asked("quarantine", "list")["entries"]}


def ids(answer: dict[str, Any]) -> set[str]:
    return {s["id"] for s in answer["shortfalls"]}


def embedded(m: Migration) -> set[int]:
    return {id for (id,) in m.chunks("id")}


def test_refused_rows_block_the_proof_until_they_are_accepted_changed_or_retried(
    migrate: Migrate, provider: ProviderServer
) -> None:
    provider.set(POISONED)
    m = migrate(scripted(provider))
    m.start()
    m.until(lambda: embedded(m), lambda seen: len(seen) == 57, "all others to be embedded")
    m.until(lambda: listed(m), lambda seen: len(seen) == 3, "three refused rows")
    assert listed(m) == {"7": "refused", "8": "refused", "9": "refused"}
    assert "work-refused" in ids(m.prove(code=3, timeout_s=5))
    said = m.revector("quarantine", "show", "--key", "7")
    assert "status 400, code content_filter, parameter input" in said
    assert m.asked("quarantine", "show", "--key", "1", code=3)["error"]["id"] == "entry-unknown"

    m.revector("quarantine", "accept", "--key", "7", "--reason", "not worth a search")
    query = b"select kind, detail from revector.journal where event = 'quarantine-accepted'"
    ((kind, detail),) = m.target.execute(query).fetchall()
    assert (kind, detail["reason"], detail["keys"]) == ("operator", "not worth a search", {"doc": [["7"]]})
    assert detail["by"]

    m.source.execute("update app.doc set body = 'harmless' where id = 8")
    m.until(lambda: embedded(m), lambda seen: 8 in seen, "a changed row to supersede its entry")
    assert listed(m) == {"9": "refused", "7": "accepted"}

    provider.set(HONEST)
    assert m.asked("quarantine", "retry", "--all")["changed"] == 1
    m.wait("ready")
    assert 9 in embedded(m)
    m.verify()
    proof = m.prove()
    assert proof["certificate"]["steps"][6]["accepted"] == 1
    assert "1 accepted" in m.revector("status")

    m.source.execute("update app.doc set title = 'again' where id = 7")
    m.until(lambda: embedded(m), lambda seen: 7 in seen, "a change of an accepted row")
    m.wait("caught-up")
    assert listed(m) == {}
    assert m.prove()["certificate"]["steps"][6]["accepted"] == 0
    assert m.differences() == Differences()
    everything = m.log.read_text() + said + m.revector("quarantine", "list") + m.revector("status", "--json")
    assert MARKER not in everything, "row text was shown"


def test_a_provider_that_refuses_the_key_halts_embedding_and_nothing_else(
    migrate: Migrate, provider: ProviderServer
) -> None:
    m = migrate(scripted(provider))
    m.start()
    m.wait("ready")
    provider.set(Script(faults=Faults(always="status-401")))
    m.source.execute("update app.doc set body = 'changed' where id <= 20")
    m.source.execute("delete from app.doc where id = 60")

    def blockers() -> dict[str, Any]:
        return {b["id"]: b for b in m.asked("status")["blockers"]}

    found = m.until(blockers, lambda seen: "embedding-halted" in seen, "the halt to be said")["embedding-halted"]
    assert found["message"].startswith("provider-key-refused")
    assert found["remedy"]
    assert m.asked("status")["verdict"] == "not ready"
    assert "embedding-halted" in ids(m.prove(code=3, timeout_s=2))
    m.until(m.replica, lambda rows: len(rows) == 59 and 60 not in embedded(m), "replication to go on")
    assert listed(m) == {}
    provider.set(HONEST)
    m.wait("caught-up")
    m.until(blockers, lambda seen: "embedding-halted" not in seen, "the halt to be taken back")
    assert m.differences() == Differences()
