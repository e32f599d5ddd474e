"""`revector requeue` on the real stack: what the provider bills, and which chunk rows were written, by version."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sandbox.config import Gen
from sandbox.provider import ProviderServer, Script
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
# Rows of three chunks or so; one paragraph is the same in all of them.
ROWS = """
insert into app.doc (id, title, body, views)
select n, 'title ' || n, string_agg(case when p = 2 then 'This paragraph, of a good many words, is the same in each '
    'of the rows that there are, and it is a chunk of its own wherever it stands.' else format('Row %s says in its '
    'paragraph %s that %s comes before %s, at length.', n, p, md5((n * p)::text), md5((n + p)::text)) end,
    E'\n\n' order by p), n % 10
from generate_series(1, 60) n, generate_series(1, 3) p group by n
"""
WHERE = "views = 3 and id > 10"
CHOSEN = {13, 23, 33, 43, 53}
NAMED = {5, 6}


def setting(provider: ProviderServer) -> Setting:
    generation = Gen(
        model="test-embedding",
        base_url=provider.url,
        limits={"in_flight": 2, "request_timeout_s": 30},
        extra={"tokenizer": "cl100k_base", "chunk_tokens": 60},
    )
    return Setting(rows=ROWS, generations=(generation,))


def versions(m: Migration) -> dict[tuple[int, int], tuple[Any, ...]]:
    """(row, chunk) -> which version of which row of the chunk table it is."""
    return {(id, n): (xmin, ctid) for id, n, xmin, ctid in m.chunks("id, _n, c.xmin::text, c.ctid::text")}


def texts(m: Migration, rows: set[int]) -> Counter[str]:
    """How often each text is to be billed when these rows are embedded in one batch: once."""
    return Counter({hashlib.sha256(text.encode()).hexdigest(): 1 for id, text in m.chunks() if id in rows})


def test_only_the_chosen_rows_are_billed_and_written(migrate: Migrate, provider: ProviderServer) -> None:
    provider.set(Script(count_texts=True))
    m = migrate(setting(provider))
    m.start()
    m.wait("caught-up")
    before, billed = versions(m), Counter(provider.texts())
    stored = sorted(m.chunks("id, _n, _text"))
    assert len(before) == len(stored) >= 3 * 60

    planned = m.asked("requeue", "--where", WHERE, "--dry-run")
    assert (planned["rows"], planned["requeued"]) == (len(CHOSEN), False)
    assert planned["tokens_about"] > 0
    assert m.asked("requeue", "--all", code=3)["rows"] == 60
    m.wait("caught-up")
    assert (versions(m), Counter(provider.texts())) == (before, billed), "a plan was carried out"

    tokens = provider.stats()["tokens"]
    assert m.asked("requeue", "--where", WHERE)["rows"] == len(CHOSEN)
    m.wait("caught-up")
    after = versions(m)
    assert {place for place in before if after[place] != before[place]} == {p for p in before if p[0] in CHOSEN}
    assert set(after) == set(before)
    assert Counter(provider.texts()) - billed == texts(m, CHOSEN)
    paid = provider.stats()["tokens"] - tokens
    assert 0.5 < paid / planned["tokens_about"] < 2, "the estimate is of another order than the bill"

    billed = Counter(provider.texts())
    m.source.execute("delete from app.doc where id = 7")
    m.until(m.replica, lambda rows: len(rows) == 59, "the delete")
    assert m.asked("requeue", "--key", "5", "--key", "7", code=3)["error"]["id"] == "row-unknown"
    assert m.asked("requeue", *(f"--key={id}" for id in sorted(NAMED)))["rows"] == len(NAMED)
    m.wait("caught-up")
    last = versions(m)
    assert {place for place in last if last[place] != after[place]} == {p for p in last if p[0] in NAMED}
    assert Counter(provider.texts()) - billed == texts(m, NAMED)

    query = b"select detail from revector.journal where event = 'requeued' order by id"
    details = [detail for (detail,) in m.target.execute(query).fetchall()]
    assert [(d["chosen_by"], d["rows"]) for d in details] == [("where", 5), ("key", 2)]
    assert "views" not in str(details), "the condition was journaled"
    assert m.asked("requeue", "--where", "views > random()", code=78)["error"]["id"] == "where-invalid"
    assert sorted(m.chunks("id, _n, _text")) == [row for row in stored if row[0] != 7]
