"""Each token once: what a change costs, counted by the provider itself."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from dataclasses import replace

from sandbox.config import Gen
from sandbox.programs import postgres_folder
from sandbox.provider import ProviderServer, Script
from sandbox.provider_script import Latency
from tests.system.migration import DOC_CHECK, Migration, Setting

Migrate = Callable[[Setting], Migration]
CHUNKS = 50
CANARY = 10  # tokens of the text that the first start asks the provider about, before there is anything to count in
# Paragraphs of 30 tokens or so: with 48 tokens a chunk, one each.
PARAGRAPHS = """
insert into app.doc (id, title, body)
select 1, 'long', string_agg(format('Paragraph %s says that %s comes before %s, and it says so at length, plainly.',
                                    n, md5(n::text), md5((n + 1)::text)), E'\\n\\n' order by n)
from generate_series(1, 50) n
"""


def scripted(provider: ProviderServer, rows: str, **extra: str | float | bool) -> Setting:
    generation = Gen(
        model="test-embedding",
        base_url=provider.url,
        limits={"in_flight": 2, "request_timeout_s": 30},
        extra={"tokenizer": "cl100k_base", **extra},
    )
    return Setting(rows=rows, generations=(generation,))


def embed(m: Migration) -> dict[str, int]:
    found: dict[str, int] = m.asked("status")["parts"]["embed"]
    return found


def test_a_change_costs_the_chunks_that_changed_and_metadata_cost_nothing(
    migrate: Migrate, provider: ProviderServer
) -> None:
    provider.set(Script(count_texts=True))
    m = migrate(scripted(provider, PARAGRAPHS, chunk_tokens=100))
    m.start()
    m.wait("caught-up")
    first = {str(text) for (text,) in m.chunks("_text")}
    assert len(first) >= CHUNKS
    spent, billed = embed(m), provider.texts()
    mine = {hashlib.sha256(text.encode()).hexdigest() for text in first}
    assert {billed[text] for text in mine} == {1}, "a text was billed twice"

    m.source.execute("update app.doc set views = views + 1, tenant = 7 where id = 1")
    m.until(lambda: m.replica("views"), lambda rows: rows == [(1,)], "the metadata change")
    m.wait("caught-up")
    assert provider.texts() == billed, "a metadata change was embedded"
    assert embed(m)["tokens"] == spent["tokens"]

    m.source.execute("update app.doc set body = replace(body, 'Paragraph 25 says', 'Paragraph 25 claims') where id = 1")
    m.until(lambda: m.chunks("_text"), lambda rows: any("25 claims" in t for (t,) in rows), "the changed chunk")
    m.wait("caught-up")
    changed = {str(text) for (text,) in m.chunks("_text")} - first
    after = provider.texts()
    assert set(after) - set(billed) == {hashlib.sha256(t.encode()).hexdigest() for t in changed}
    assert 1 <= len(changed) <= 2
    assert {after[text] for text in mine} == {1}
    last = embed(m)
    assert 0 <= provider.stats()["tokens"] - last["tokens"] <= CANARY, "tokens were billed that status does not know"
    assert last["tokens_avoided"] > (CHUNKS - 4) * (last["tokens"] - spent["tokens"]) / len(changed) / 2
    m.verify()
    m.prove()


def test_a_row_that_changes_faster_than_a_call_takes_still_gets_fresh_vectors(
    migrate: Migrate, provider: ProviderServer
) -> None:
    """Updated ten times a second while a call takes 300 ms: each batch stores a text and moves what is owed on."""
    rows = "create sequence app.hot; insert into app.doc (id, title, body) values (1, 'v0', 'hot')"
    m = migrate(replace(scripted(provider, rows), checks=(DOC_CHECK,)))
    m.start()
    m.wait("caught-up")
    provider.set(Script(latency=Latency(seconds=0.3)))
    script = m.folder / "hot.sql"
    script.write_text("update app.doc set title = 'v' || nextval('app.hot') where id = 1;\n")
    command = [
        str(postgres_folder() / "bin" / "pgbench"),
        "-n",
        "-f",
        str(script),
        "-R",
        "10",
        "-t",
        "60",
        m.source_dsn,
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as writer:
        stored: set[str] = set()

        def look() -> bool:
            stored.update(str(text) for (text,) in m.chunks("_text"))
            return writer.poll() is not None

        m.until(look, bool, "the writer's end")
    assert writer.returncode == 0
    assert len(stored) >= 5, f"the hot row was embedded {len(stored)} times in six seconds"
    m.wait("caught-up")
    assert m.chunks("_text") == [("v60\n\nhot",)]
    assert m.differences().total == 0
