"""`revector generation`: what it adds, shows and removes, what it refuses. On the target's twin, through the command
line; and how a process starts among generations that it does not know."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon import config
from daemon.cli.app import build
from daemon.cli.frame import ExitCode, Frame, operator, run
from daemon.core.contract import Contract
from daemon.core.model import Generation
from daemon.errors import ConfigError, TransientError
from daemon.flow.stream import follow_up
from daemon.ports import SourceRow
from daemon.procedures.look import Looker
from daemon.procedures.prepare import prepare
from daemon.settings_generation import GenerationSettings
from tests import builders
from tests.fakes import Faults, MemoryDatabase, MemorySource, MemoryTarget, refuse

CONFIG = builders.CONFIG
GENERATION = """
[[generation]]
name = "%s"
model = "small"
dimensions = 8
base_url = "http://127.0.0.1:1/v1"
"""


@dataclass
class Bench:
    """A migration on the twin, and the command line over it."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    database: MemoryDatabase = field(default_factory=lambda: MemoryDatabase("shop"))
    faults: Faults = field(default_factory=Faults)

    def configure(self, *names: str, table: str = "articles", model: str = "small") -> None:
        text = CONFIG.replace("public.articles", f"public.{table}") + "".join(GENERATION % name for name in names)
        (self.folder / "revector.toml").write_text(text.replace('"small"', f'"{model}"'))

    def target(self) -> MemoryTarget:
        return self.faults.wrap("target", MemoryTarget(self.database))

    def settings(self) -> config.Settings:
        return config.load(self.folder / "revector.toml", {}, {}).settings

    def contract(self, generation: GenerationSettings) -> Contract:
        return self.settings().contract_of(generation, "")

    def prepare(self) -> tuple[Generation, ...]:
        """As a process does when it starts."""
        settings = self.settings()
        source: Any = MemorySource([builders.articles()], self.database.clock)
        contracts = [self.contract(g) for g in settings.generation]
        return asyncio.run(prepare(source, MemoryTarget(self.database), settings, contracts)).generations

    def begin(self, *names: str, started: bool = True) -> tuple[Generation, ...]:
        self.configure(*names)
        made = self.prepare()
        self.database.state.migration = replace(self.database.state.migration, started=started)
        return made

    def copy(self, *keys: str) -> None:
        async def put() -> None:
            table = self.database.table("articles")
            async with MemoryTarget(self.database).begin() as tx:
                generations = await tx.ledger.hold_migration()
                rows = [SourceRow((k,), (k, *[None] * (len(table.columns) - 1))) for k in keys]
                await follow_up(tx, table, generations, await tx.replica.copy_in(table, rows), live=False)

        asyncio.run(put())

    def names(self) -> list[str]:
        return [g.generation.name for g in self.database.state.generations.values()]

    def journal(self) -> list[tuple[str, str, Any]]:
        return [(e.kind, e.id, e.detail) for e in self.database.state.journal]

    def __call__(self, *words: str) -> tuple[int, str, str]:
        parts: Any = SimpleNamespace(target=lambda role: self.target(), contract=self.contract)
        self.capsys.readouterr()
        frame = Frame(parts=lambda loaded: parts, environ={})
        code = run(build(), ["generation", *words, "--config", str(self.folder / "revector.toml")], frame)
        return code, *self.capsys.readouterr()

    def asked(self, *words: str, code: int = 0) -> Any:
        ended, out, err = self(*words, "--json")
        assert ended == code, out + err
        return json.loads(out)


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


# --- add


def test_a_generation_is_added_once_fed_at_once_and_journaled(bench: Bench) -> None:
    bench.begin("v1")
    bench.configure("v1", "v2")
    code, out, _ = bench("add", "v2")
    assert code == ExitCode.YES
    assert "generation v2 is added and fed by every change" in out
    assert "restart them" in out
    bench.copy("1")
    assert len({g for g, _, _ in bench.database.state.work}) == 2
    contract = bench.contract(bench.settings().candidate).id
    detail = {"by": operator(), "generation": "v2", "contract": contract}
    assert bench.journal() == [("operator", "generation-added", detail)]
    again = bench.asked("add", "v2")
    assert (again["schema"], again["added"]) == ("revector.generation/1", False)
    assert len(bench.journal()) == 1


def test_what_cannot_be_added_is_refused_and_leaves_nothing(bench: Bench) -> None:
    bench.configure("v1", "v2")
    assert bench.asked("add", "v2", code=ExitCode.NO)["error"]["id"] == "migration-unknown"
    bench.begin("v1", started=False)
    bench.configure("v1", "v2")
    refused = bench.asked("add", "v2", code=ExitCode.NO)["error"]
    assert (refused["id"], "revector run shop" in refused["hint"]) == ("migration-unknown", True)
    bench.begin("v1")
    bench.configure("v1", "v2")
    refused = bench.asked("add", "v3", code=ExitCode.CONFIG)["error"]
    assert (refused["id"], "it has v1, v2" in refused["message"]) == ("generation-unknown", True)
    bench.configure("v1", "v2", table="others")
    assert bench.asked("add", "v2", code=ExitCode.CONFIG)["error"]["id"] == "tables-differ"
    bench.configure("v1", model="large")
    assert bench.asked("add", "v1", code=ExitCode.CONFIG)["error"]["id"] == "contract-changed"
    assert (bench.names(), bench.journal()) == (["v1"], [])


# --- list


def test_the_list_says_what_each_one_is_and_whose_it_is(bench: Bench) -> None:
    first, _ = bench.begin("v1", "v2")
    bench.copy("1", "2")
    bench.configure("v1", "v2", "v3", "v4")
    bench("add", "v3")
    bench.database.state.migration = replace(bench.database.state.migration, routed=first.id)
    bench.configure("v1", "v3", "v4")
    document = bench.asked("list")
    shown = [(g["name"], g["waiting"], g["swept"], g["configured"]) for g in document["generations"]]
    assert shown == [("v1", 2, True, True), ("v2", 2, True, False), ("v3", 0, False, True)]
    assert [g["name"] for g in document["generations"] if g["routed"]] == ["v1"]
    assert document["not_added"] == ["v4"]
    code, out, _ = bench("list")
    assert code == ExitCode.YES
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "readers follow it" in lines["v1"]
    assert "not in this configuration" in lines["v2"]
    assert "not swept yet" in lines["v3"]
    assert "revector generation add v4 shop" in lines["v4"]
    assert "vector(8)" in lines["v1"] and "small" in lines["v1"]


def test_a_migration_that_has_not_begun_has_no_list(bench: Bench) -> None:
    bench.configure("v1")
    assert bench.asked("list", code=ExitCode.NO)["error"]["id"] == "migration-unknown"


# --- drop


def test_without_confirmation_the_plan_is_shown_and_nothing_is_done(bench: Bench) -> None:
    bench.begin("v1", "v2")
    bench.copy("1", "2", "3")
    code, out, _ = bench("drop", "v1")
    assert code == ExitCode.NO
    assert "would be dropped" in out and "3 waiting" in out and "articles_v1" in out
    assert out.splitlines()[-1].endswith("revector generation drop v1 shop --confirm v1")
    assert bench.asked("drop", "v1", code=ExitCode.NO)["dropped"] is False
    assert (bench.names(), bench.journal()) == (["v1", "v2"], [])


def test_a_confirmed_drop_is_done_and_journaled(bench: Bench) -> None:
    first, _ = bench.begin("v1", "v2")
    bench.copy("1")
    code, out, _ = bench("drop", "v1", "--confirm", "v1")
    assert code == ExitCode.YES
    assert "take [[generation]] v1 out" in out
    assert bench.names() == ["v2"]
    assert first.id not in {g for g, _, _ in bench.database.state.work}
    assert [(kind, id, detail["generation"]) for kind, id, detail in bench.journal()] == [
        ("operator", "generation-dropped", "v1")
    ]
    assert bench.asked("drop", "v1", "--confirm", "v1", code=ExitCode.NO)["error"]["id"] == "generation-absent"


@pytest.mark.parametrize("confirm", [[], ["--confirm", "v1"]], ids=["plan", "confirmed"])
@pytest.mark.parametrize("why", ["generation-routed", "generation-last"])
def test_what_must_stay_is_refused_with_and_without_confirmation(bench: Bench, why: str, confirm: list[str]) -> None:
    first = bench.begin("v1", "v2")[0] if why == "generation-routed" else bench.begin("v1")[0]
    if why == "generation-routed":
        bench.database.state.migration = replace(bench.database.state.migration, routed=first.id)
    assert bench.asked("drop", "v1", *confirm, code=ExitCode.NO)["error"]["id"] == why
    assert "v1" in bench.names()


def test_a_confirmation_of_another_name_does_nothing(bench: Bench) -> None:
    bench.begin("v1", "v2")
    code, _, err = bench("drop", "v1", "--confirm", "v2")
    assert code == ExitCode.USAGE
    assert "--confirm wants v1" in err
    assert bench.names() == ["v1", "v2"]


@pytest.mark.parametrize("call", [1, 2])
def test_a_drop_that_loses_its_connection_leaves_everything(bench: Bench, call: int) -> None:
    bench.begin("v1", "v2")
    bench.faults.at("target.begin", refuse(), call)
    assert bench("drop", "v1", "--confirm", "v1")[0] == ExitCode.AWAY
    bench.faults.verify()
    assert (bench.names(), bench.journal()) == (["v1", "v2"], [])


def test_a_drop_that_collided_with_another_transaction_is_repeated(bench: Bench) -> None:
    bench.begin("v1", "v2")
    bench.faults.at("target.begin", refuse(lambda: TransientError("target-conflict", "deadlock")), 2)
    assert bench("drop", "v1", "--confirm", "v1")[0] == ExitCode.YES
    bench.faults.verify()
    assert bench.names() == ["v2"]


# --- a start among generations


def test_before_the_start_every_configured_generation_is_made(bench: Bench) -> None:
    bench.configure("v1", "v2", "v3")
    made = bench.prepare()
    assert [(g.name, g.swept) for g in made] == [("v1", True), ("v2", True), ("v3", True)]
    assert bench.prepare() == made


def test_after_the_start_an_unknown_generation_is_refused_with_the_command_that_adds_it(bench: Bench) -> None:
    bench.begin("v1")
    bench.configure("v1", "v2", "v3")
    with pytest.raises(ConfigError) as refused:
        bench.prepare()
    assert [p.id for p in refused.value.problems] == ["generation-unknown"] * 2
    assert "`revector generation add v2`" in refused.value.problems[0].hint
    assert bench.names() == ["v1"]
    bench("add", "v2")
    bench("add", "v3")
    assert [g.name for g in bench.prepare()] == ["v1", "v2", "v3"]


def test_a_generation_that_is_not_configured_any_more_is_kept_fed_and_said(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    bench.begin("v1", "v2")
    bench.configure("v2")
    assert [g.name for g in bench.prepare()] == ["v2"]
    assert "generation v1 is not in this configuration" in caplog.text
    assert bench.names() == ["v1", "v2"]
    bench.copy("1")
    assert len(bench.database.state.work) == 2


# --- status


class Silent:
    """A part that is not asked about here."""

    async def close(self) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def away(*_: object) -> None:
            return None

        return away


def look(bench: Bench, generation: str | None = None) -> Any:
    parts: Any = SimpleNamespace(
        settings=bench.settings(),
        target=lambda role: bench.target(),
        **{name: lambda role: Silent() for name in ("source", "feed", "capture")},
    )

    async def looked() -> Any:
        async with Looker(parts, bench.database.clock, generation) as looker:
            return await looker.look("2026-11-02T14:02:00Z")

    return asyncio.run(looked())


def observe(bench: Bench, **lags: float) -> None:
    ids = {r.generation.name: r.generation.id for r in bench.database.state.generations.values()}

    async def put() -> None:
        async with MemoryTarget(bench.database).begin() as tx:
            await tx.ledger.observe({"generation_lag_s": {str(ids[name]): lag for name, lag in lags.items()}})

    asyncio.run(put())


def test_a_status_speaks_of_the_candidate_or_of_the_one_that_is_named(bench: Bench) -> None:
    bench.begin("v1", "v2")
    bench.copy("1", "2")
    observe(bench, v1=3.0)
    seen = look(bench)
    assert (seen.facts.generation, seen.facts.freshness_s) == ("v2", None), "another one's freshness is not shown"
    assert [(o.name, o.waiting) for o in seen.facts.others] == [("v1", 2)]
    seen = look(bench, "v1")
    assert (seen.facts.generation, seen.facts.freshness_s) == ("v1", 3.0)
    assert [o.name for o in seen.facts.others] == ["v2"]


def test_a_dropped_generation_s_freshness_is_not_that_of_its_namesake(bench: Bench) -> None:
    bench.begin("v1", "v2")
    observe(bench, v1=3.0, v2=4.0)
    bench("drop", "v2", "--confirm", "v2")
    bench("add", "v2")
    assert look(bench).facts.freshness_s is None


def test_a_configured_generation_that_was_not_added_is_a_reason_with_its_remedy(bench: Bench) -> None:
    bench.begin("v1")
    bench.configure("v1", "v2")
    seen = look(bench)
    (found,) = [b for b in seen.blockers if b.part == "embed"]
    assert (found.id, found.command) == ("generation-unlisted", None)
    assert "revector generation add v2 shop" in found.remedy
    assert seen.facts.freshness_s is None
