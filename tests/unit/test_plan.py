"""`revector plan`: counted as the embedder counts, said as it was found out, and nothing made or sent unasked."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon import config
from daemon.__main__ import ConnectorParts
from daemon.cli.app import build
from daemon.cli.frame import ExitCode, Frame, run
from daemon.cli.reference import help_of
from daemon.core.chunking import cut_of
from daemon.core.contract import Contract, Cut, render
from daemon.core.forecast import forecast
from daemon.core.forecast_face import render_text
from daemon.core.model import Rates, Table
from daemon.core.orders import Limits, with_limits
from daemon.errors import TransientError
from daemon.ports import Embedded
from daemon.procedures.plan import Wish, forecast_beside, keep, plan
from daemon.settings import QuietHours, Settings
from daemon.settings_generation import GenerationSettings
from tests import builders
from tests.fakes import MemoryDatabase, MemoryEmbedder, MemoryIndexes, MemorySource, MemoryTarget

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
TABLE = replace(
    builders.articles(),
    alias="article",
    schema="app",
    name="article",
    columns=builders.articles().columns[:3],
    filters=(),
)


class Words:
    """A tokenizer whose tokens are words; cuts after so many."""

    identity = "cl100k_base"

    def count(self, text: str) -> int:
        return len(text.split())

    def cutter(self, tokens: int, overlap: int) -> Cut:
        def cut(text: str) -> list[str]:
            words = text.split()
            return [" ".join(words[at : at + tokens]) for at in range(0, len(words), tokens)]

        return cut


class Away(MemoryTarget):
    async def setup(self) -> Any:
        raise TransientError("target-unreachable", "target: away", "wait")


class TwinParts:
    """Parts over twins."""

    def __init__(self, settings: Settings, source: MemorySource) -> None:
        self.settings, self.memory = settings, source
        self.database, self.sent = MemoryDatabase("articles"), MemoryEmbedder()
        self.target_away = False
        self.asked: list[str] = []

    def source(self, role: str) -> MemorySource:
        return self.memory

    def target(self, role: str) -> MemoryTarget:
        return Away(self.database) if self.target_away else MemoryTarget(self.database)

    def indexes(self, role: str) -> MemoryIndexes:
        self.asked.append("indexes")
        return MemoryIndexes(self.database)

    def embedder(self, generation: GenerationSettings) -> MemoryEmbedder:
        self.asked.append("embedder")
        return self.sent

    def tokenizer(self, generation: GenerationSettings) -> Words:
        return Words()

    def contract(self, generation: GenerationSettings) -> Contract:
        return self.settings.contract_of(generation, "cl100k_base")

    async def begin(self) -> Table:
        """The migration exists in the target."""
        target = self.target("test")
        await target.prepare()
        (table,) = await target.create_tables([TABLE])
        g = self.settings.candidate
        contract = self.contract(g)
        async with target.begin() as tx:
            await tx.ledger.add_generation(g.name, contract.as_json(), contract.id)
        return table


def parts_of(rows: Sequence[tuple[str | None, str | None]], **changes: str) -> Any:
    loaded = config.load(EXAMPLE, {}, changes)
    source = MemorySource([TABLE])
    source.seed("article", *({"id": str(n), "title": title, "body": body} for n, (title, body) in enumerate(rows)))
    return TwinParts(loaded.settings, source)


def clock() -> float:
    clock.now += 0.5  # type: ignore[attr-defined]
    return clock.now  # type: ignore[attr-defined,no-any-return]


clock.now = 0.0  # type: ignore[attr-defined]


async def planned(parts: Any, wish: Wish | None = None) -> Any:
    return await plan(parts, parts.settings.candidate, wish or Wish(), clock)


ROWS = [("one two", "three"), ("a", None), (None, None), ("  ", "\n"), ("x", " ".join(["w"] * 30))]


async def test_tokens_are_those_of_what_the_embedder_would_send() -> None:
    parts = parts_of(ROWS, **{"generation.document_prefix": "search document: ", "generation.chunk_tokens": "18"})
    contract, tokenizer = parts.contract(parts.settings.candidate), Words()
    cut = cut_of(contract, tokenizer)
    texts = [
        contract.document_prefix + chunk
        for title, body in ROWS
        for chunk in cut(render(contract.templates["article"], {"title": title, "body": body}))
    ]
    (table,) = (await planned(parts)).tables
    assert table.tokens.value == sum(tokenizer.count(t) for t in texts) and table.tokens.is_exact
    assert (table.chunks.value, table.blank.value, table.rows.value) == (len(texts), 2, 5)
    assert len(texts) == 4  # the long one is cut


async def test_rows_for_which_where_is_not_true_cost_nothing_but_their_replica() -> None:
    parts = parts_of(ROWS)
    settings = parts.settings
    table = settings.table[0].model_copy(update={"where": "title <> 'x'"})
    parts.settings = settings.model_copy(update={"table": (table,)})
    parts.memory.wheres["article"] = lambda row: None if row["title"] is None else row["title"] != "x"
    (found,) = (await planned(parts)).tables
    assert (found.rows.value, found.wanted.value, found.chunks.value, found.blank.value) == (5, 3, 2, 1)


async def test_inputs_beyond_the_providers_limit_are_named_and_not_paid_for() -> None:
    parts = parts_of(ROWS, **{"generation.limits.input_tokens": "20"})
    found = await planned(parts)
    assert found.tables[0].too_long.value == 1
    assert found.tokens.value == 4  # the others'
    assert any("more than 20 tokens and would be refused" in line for line in render_text(found, "articles"))


async def test_a_large_table_is_sampled_and_the_interval_holds_the_exact_count() -> None:
    parts = parts_of([(f"t{n}", "w " * (1 + n % 40)) for n in range(6000)])
    sampled, exact = await planned(parts, Wish(sample_rows=2000)), await planned(parts, Wish(exact=True))
    (table,) = sampled.tables
    assert table.draw.picking.value == "random rows" and 1800 < table.rows_read < 2200
    assert exact.tokens.is_exact and not sampled.tokens.is_exact
    assert sampled.tokens.value == pytest.approx(exact.tokens.value, rel=0.02)
    assert table.rows.is_exact and table.size_from == "counted"
    assert "± " in "\n".join(render_text(sampled, "articles"))


async def test_rows_that_are_not_wanted_and_the_length_of_texts_are_no_source_of_error() -> None:
    parts = parts_of([(f"t{n}", "word " * (1 + n % 400)) for n in range(4000)])
    table = parts.settings.table[0].model_copy(update={"where": "id % 2 = 0"})
    parts.settings = parts.settings.model_copy(update={"table": (table,)})
    parts.memory.wheres["article"] = lambda row: int(row["id"]) % 2 == 0
    (found,) = (await planned(parts, Wish(sample_rows=400))).tables
    assert found.wanted.value == found.chunks.value == 2000 and found.chunks.is_exact
    assert found.tokens.error < 0.01  # per row it is above 0.05


async def test_a_table_that_cannot_be_counted_in_time_is_said_to_be_estimated() -> None:
    parts = parts_of([(f"t{n}", "w w") for n in range(3000)])
    parts.memory.countable = False
    found = await planned(parts, Wish(sample_rows=600))
    (table,) = found.tables
    assert (table.draw.picking.value, table.size_from, table.rows.value) == ("random blocks", "planner", 3000)
    assert table.tokens.value == pytest.approx(9000)
    assert any("rows by the planner's statistics" in line for line in render_text(found, "articles"))


# --- money and time


async def test_without_a_price_the_cost_is_unknown_and_without_a_basis_so_is_the_time() -> None:
    found = await planned(parts_of(ROWS))
    assert (found.cost, found.embedding, found.index) == (None, None, None)
    text = "\n".join(render_text(found, "articles"))
    assert "cost       unknown (set generation.price)" in text
    assert "embedding  unknown" in text and "time unknown" in text


async def test_what_runs_here_costs_nothing_and_quiet_hours_are_said() -> None:
    parts = parts_of(ROWS)
    g = parts.settings.candidate.model_copy(update={"provider": "local", "price": None})
    quiet = QuietHours(start="08:00", end="18:00")
    parts.settings = parts.settings.model_copy(update={"generation": (g,), "quiet_hours": (quiet,)})
    text = "\n".join(render_text(await planned(parts), "articles"))
    assert "cost       nothing: the price is 0" in text and "sent to the provider" not in text
    assert "quiet hours are on top of the embedding time" in text


async def test_money_follows_the_price_and_time_the_permitted_tokens() -> None:
    changes = {"generation.price": "0.5", "generation.limits.tokens_per_minute": "70"}
    found = await planned(parts_of(ROWS, **changes))
    assert found.tokens.value == 35 and found.cost is not None and found.cost.value == pytest.approx(35 * 0.5e-6)
    assert found.embedding is not None
    assert (found.embedding.low_s, round(found.embedding.high_s, 1)) == (30, 31.6)
    assert found.embedding.basis == "70 tokens/min permitted"


async def test_the_lowest_of_configured_and_ordered_limits_is_in_force() -> None:
    parts = parts_of(ROWS, **{"generation.limits.tokens_per_minute": "70", "generation.limits.in_flight": "4"})
    await parts.begin()
    name = parts.settings.candidate.name
    for tokens, expected in ((35, 35), (700, 70)):
        async with parts.target("t").begin() as tx:
            await tx.ledger.order(with_limits({}, name, Limits(requests_per_minute=9, tokens_per_minute=tokens)))
        terms = (await planned(parts)).terms
        assert (terms.tokens_per_minute, terms.requests_per_minute, terms.in_flight) == (expected, 9, 4)


async def test_budgets_that_the_probed_provider_names_are_in_force() -> None:
    parts = parts_of([(f"t{n}", "w w") for n in range(100)], **{"generation.limits.tokens_per_minute": "900"})
    parts.sent = Telling()
    found = await planned(parts, Wish(probe=True))
    assert found.terms.tokens_per_minute == 60 and "60 tokens/min permitted" in found.embedding.basis


class Telling(MemoryEmbedder):
    """Its answers name a budget."""

    async def embed(self, texts: Sequence[str]) -> Embedded:
        return replace(await super().embed(texts), rates=Rates(None, 60))


async def test_nothing_is_sent_to_the_provider_unasked() -> None:
    parts = parts_of(ROWS * 20)
    await planned(parts)
    assert parts.asked == [] and parts.sent.calls == []


async def test_a_probe_corrects_the_count_by_what_was_billed_and_says_what_it_cost() -> None:
    parts = parts_of([(f"t{n}", "one two three") for n in range(100)])
    parts.tokenizer = lambda generation: Halved()
    found = await planned(parts, Wish(probe=True))
    sent = [text for call in parts.sent.calls for text in call]
    assert len(sent) == 36 == len(set(sent)) and len(parts.sent.calls) == 4 and parts.sent.closed
    assert found.provider_probe is not None and found.provider_probe.ratio == 2
    assert found.tokens.value == 400  # 200 by our count
    assert found.embedding is not None
    assert found.embedding.low_s == pytest.approx(found.embedding.high_s / 8)
    assert found.index is not None and "random vectors" in found.index.basis
    text = "\n".join(render_text(found, "articles"))
    assert "the probe cost 144 tokens; 2.000 billed for each counted" in text


class Halved(Words):
    def count(self, text: str) -> int:
        return len(text.split()) // 2


async def test_a_probe_that_fails_is_a_note_and_the_plan_is_made() -> None:
    parts = parts_of([(f"t{n}", "a secret text") for n in range(50)])
    parts.sent.refuses = lambda text: True
    found = await planned(parts, Wish(probe=True))
    assert found.provider_probe is None and found.tokens.value == 200
    assert any("could not be probed" in note for note in found.notes)
    assert not any("secret" in note for note in found.notes)


async def test_an_index_that_outgrows_the_builds_memory_has_no_time() -> None:
    rows = [("t", "w")] * 300
    parts = parts_of(rows)
    found = await planned(parts, Wish(probe=True))
    large = replace(found.tables[0], chunks=found.tables[0].chunks.times(1e5))
    whole = forecast(found.terms, [large], None, found.index_probe)
    assert whole.index is None and whole.graph_bytes > 2**30
    assert any("time unknown, many times longer" in line for line in render_text(whole, "articles"))


# --- what is kept for `status`


async def test_a_forecast_is_kept_with_a_generation_that_exists() -> None:
    parts = parts_of(ROWS)
    found = await planned(parts)
    assert not await keep(parts.target("t"), found, "2026-11-21T17:00:00+00:00")  # there is nothing yet
    await parts.begin()
    assert await keep(parts.target("t"), found, "2026-11-21T17:00:00+00:00")
    stored = await stored_of(parts)
    assert stored["tokens"] == {"value": 35, "low": 35, "high": 35} and stored["rows"] == 5


async def test_a_sample_beside_a_run_never_takes_the_place_of_a_plan() -> None:
    parts = parts_of(ROWS)
    await parts.begin()
    found = await planned(parts)
    assert await keep(parts.target("t"), found, "2026-11-21T17:00:00+00:00")
    assert not await keep(parts.target("t"), found, "2026-11-21T18:00:00+00:00", replace_old=False)
    assert (await stored_of(parts))["planned_at"] == "2026-11-21T17:00:00+00:00"
    assert await keep(parts.target("t"), found, "2026-11-21T19:00:00+00:00")
    assert (await stored_of(parts))["planned_at"] == "2026-11-21T19:00:00+00:00"


async def stored_of(parts: Any) -> Any:
    async with parts.target("t").begin() as tx:
        (generation,) = await tx.ledger.generations()
        return await tx.ledger.forecast(generation)


async def test_a_run_makes_a_forecast_once_and_leaves_the_one_of_plan() -> None:
    parts = parts_of(ROWS)
    await parts.begin()
    await forecast_beside(parts, "2026-11-21T17:00:00+00:00")
    first = await stored_of(parts)
    assert first["tokens"]["value"] == 35
    parts.memory.seed("article", {"id": "99", "title": "more", "body": "words"})
    await forecast_beside(parts, "2026-11-21T18:00:00+00:00")
    assert await stored_of(parts) == first


@pytest.mark.parametrize("fault", ["where", "target"])
async def test_a_forecast_beside_a_run_that_fails_disturbs_nothing(fault: str) -> None:
    parts = parts_of(ROWS)
    await parts.begin()

    async def refuse(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    if fault == "where":
        parts.memory.count = refuse
    else:
        parts.target = lambda role: Closed(parts.database)
    await forecast_beside(parts, "2026-11-21T17:00:00+00:00")


class Closed(MemoryTarget):
    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__(database)
        self.closed = True


# --- the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, "articles.toml")
    return tmp_path


def invoked(arguments: Sequence[str], parts: Any) -> int:
    def made(loaded: config.Loaded) -> Any:
        parts.settings = loaded.settings
        return parts

    return run(build(), arguments, Frame(parts=made, environ={}))


def examples() -> list[str]:
    lines = help_of(("plan",)).partition("Examples:")[2].partition("Exit codes:")[0].splitlines()
    return [line.strip() for line in lines if line.strip()]


@pytest.mark.parametrize("example", examples())
def test_the_examples_run_whether_or_not_the_target_answers(
    example: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = parts_of(ROWS * 20)
    parts.target_away = True
    arguments = shlex.split(example)[1:]
    assert invoked(arguments, parts) == ExitCode.YES
    out = capsys.readouterr().out
    if "--json" not in arguments:
        assert out.splitlines()[-1] == "next: revector run articles"
        return
    document = json.loads(out)
    assert document["schema"] == "revector.plan/1" and document["kept"] is False
    assert document["tokens"]["value"] > 0 and document["cost"] is None
    assert document["probe"]["inputs"] == 36


def test_a_generation_that_is_not_configured_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoked(["plan", "articles", "--generation", "v9"], parts_of(ROWS)) == ExitCode.CONFIG
    assert "there is no generation v9" in capsys.readouterr().err


def test_exact_and_sample_exclude_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoked(["plan", "articles", "--exact", "--sample", "500"], parts_of(ROWS)) == ExitCode.USAGE


def test_the_real_parts_offer_what_a_plan_asks_for() -> None:
    for name in ("source", "target", "indexes", "embedder", "tokenizer", "contract"):
        assert callable(getattr(ConnectorParts, name))
