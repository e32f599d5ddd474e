"""`revector pause`, `resume` and `limits`: what they order, show and write into the journal. On the target's twin."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.cli.app import build
from daemon.cli.frame import ExitCode, Frame, operator, run
from daemon.core.face import as_json
from daemon.core.model import Rates
from daemon.core.status import StatusFacts, judge
from daemon.procedures.look import Looker
from daemon.settings import VerifySettings
from tests import builders
from tests.fakes import MemoryDatabase, MemoryTarget
from tests.flow.world import World

CONFIG = (
    builders.CONFIG
    + """[[generation]]
name = "v1"
model = "small"
dimensions = 8
base_url = "http://127.0.0.1:1/v1"
[[generation]]
name = "v2"
model = "large"
dimensions = 8
base_url = "http://127.0.0.1:1/v1"
[generation.limits]
tokens_per_minute = 1000000
requests_per_minute = 500
"""
)


@dataclass
class Line:
    """The command line over a migration on the twin."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    database: MemoryDatabase = field(default_factory=lambda: MemoryDatabase("shop"))

    def begin(self) -> None:
        async def prepare() -> None:
            target = MemoryTarget(self.database)
            await target.prepare()
            for name, model in (("v1", "small"), ("v2", "large")):
                contract = builders.contract([builders.articles()], model=model)
                async with target.begin() as tx:
                    await tx.ledger.add_generation(name, contract.as_json(), contract.id)

        asyncio.run(prepare())

    def paced(self, requests: int | None, tokens: int | None) -> None:
        """A process of v2 reserved at these rates."""

        async def reserve() -> None:
            async with MemoryTarget(self.database).begin() as tx:
                generation = (await tx.ledger.generations())[1]
                await tx.ledger.reserve(generation, 10, Rates(requests, tokens))

        asyncio.run(reserve())

    @property
    def orders(self) -> Any:
        return self.database.state.orders

    @property
    def journal(self) -> list[tuple[str, str, Any]]:
        return [(e.kind, e.id, e.detail) for e in self.database.state.journal]

    def __call__(self, *words: str) -> tuple[int, str, str]:
        parts: Any = SimpleNamespace(target=lambda role: MemoryTarget(self.database))
        self.capsys.readouterr()
        frame = Frame(parts=lambda loaded: parts, environ={})
        code = run(build(), [words[0], "--config", str(self.folder / "revector.toml"), *words[1:]], frame)
        return code, *self.capsys.readouterr()

    def asked(self, *words: str, code: int = 0) -> Any:
        ended, out, err = self(*words, "--json")
        assert ended == code, out + err
        return json.loads(out)


@pytest.fixture
def line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    (tmp_path / "revector.toml").write_text(CONFIG)
    made = Line(tmp_path, capsys)
    made.begin()
    return made


def test_pause_without_an_option_pauses_both_and_resume_takes_both_back(line: Line) -> None:
    code, out, _ = line("pause")
    assert (code, out.splitlines()) == (0, ["shop: backfill and embedding paused", "next: revector resume shop"])
    assert line.orders["paused"] == ["backfill", "embedding"]
    code, out, _ = line("resume")
    assert (code, out) == (0, "shop: nothing is paused\n")
    assert line.orders["paused"] == []
    by = {"by": operator(), "what": ["backfill", "embedding"]}
    assert line.journal == [("operator", "paused", by), ("operator", "resumed", by)]


def test_one_of_both_is_paused_and_resumed_by_itself(line: Line) -> None:
    assert line.asked("pause", "--what", "backfill")["paused"] == ["backfill"]
    assert line.asked("pause", "--what", "embedding")["paused"] == ["backfill", "embedding"]
    found = line.asked("resume", "--what", "backfill")
    assert found == {"schema": "revector.resume/1", "migration": "shop", "action": "resume", "paused": ["embedding"]}
    assert [detail["what"] for _, _, detail in line.journal] == [["backfill"], ["embedding"], ["backfill"]]


def test_what_is_ordered_already_changes_nothing(line: Line) -> None:
    line.asked("pause", "--what", "backfill")
    line.asked("pause", "--what", "backfill")
    line.asked("resume", "--what", "embedding")
    assert len(line.journal) == 1


def test_a_pause_keeps_limits_and_limits_keep_a_pause(line: Line) -> None:
    line.asked("limits", "--in-flight", "2")
    line.asked("pause")
    line.asked("limits", "--tokens-per-minute", "5")
    assert line.orders == {
        "paused": ["backfill", "embedding"],
        "limits": {"v2": {"tokens_per_minute": 5, "in_flight": 2}},
    }


@pytest.mark.parametrize("words", [("pause", "--what", "all"), ("limits", "--generation", "v3"), ("pause", "other")])
def test_a_word_that_means_nothing_is_refused(line: Line, words: tuple[str, ...]) -> None:
    code, _, err = line(*words)
    assert code in (ExitCode.USAGE, ExitCode.CONFIG), err
    assert line.orders == {}


@pytest.mark.parametrize("words", [("pause",), ("resume",), ("limits",), ("limits", "--reset")])
def test_a_migration_that_has_not_begun_is_the_answer_no(line: Line, words: tuple[str, ...]) -> None:
    line.database = MemoryDatabase("shop")
    assert line.asked(*words, code=ExitCode.NO)["error"]["id"] == "migration-unknown"


def test_limits_show_each_number_and_where_it_comes_from(line: Line) -> None:
    line.paced(400, 900_000)
    line.asked("limits", "--tokens-per-minute", "900000", "--in-flight", "20")
    shown = line.asked("limits")
    assert shown["generations"]["v2"] == {
        "requests_per_minute": {"in_force": 500, "from": "config", "order": None, "config": 500, "paced_by": 400},
        "tokens_per_minute": {
            "in_force": 900_000,
            "from": "order",
            "order": 900_000,
            "config": 1_000_000,
            "paced_by": 900_000,
        },
        "in_flight": {"in_force": 8, "from": "config", "order": 20, "config": 8},
    }
    assert shown["generations"]["v1"]["tokens_per_minute"]["in_force"] is None
    _, out, _ = line("limits", "--generation", "v2")
    assert out.splitlines() == [
        "shop: limits",
        "  generation v2",
        "    requests per minute  500      config, last request paced by 400, as the provider permits",
        "    tokens per minute    900 000  order, config: 1 000 000",
        "    requests at once     8        config, order: 20",
    ]
    assert "not limited" in line("limits", "--generation", "v1")[1]


def test_limits_are_ordered_for_the_generation_to_cut_over_to_or_the_one_that_is_named(line: Line) -> None:
    line.asked("limits", "--requests-per-minute", "10")
    line.asked("limits", "--generation", "v1", "--requests-per-minute", "20")
    assert line.orders["limits"] == {"v2": {"requests_per_minute": 10}, "v1": {"requests_per_minute": 20}}
    assert [(kind, id, detail["generation"]) for kind, id, detail in line.journal] == [
        ("operator", "limited", "v2"),
        ("operator", "limited", "v1"),
    ]


def test_reset_forgets_what_was_ordered_before(line: Line) -> None:
    line.asked("limits", "--requests-per-minute", "10", "--in-flight", "3")
    found = line.asked("limits", "--reset", "--in-flight", "4")["generations"]["v2"]
    assert (found["requests_per_minute"]["from"], found["in_flight"]["in_force"]) == ("config", 4)
    line.asked("limits", "--reset")
    assert line.orders["limits"] == {}
    line.asked("limits", "--reset")
    assert len(line.journal) == 3


def test_status_says_what_is_paused_and_how_to_go_on() -> None:
    found = judge(StatusFacts("shop", "v2", paused="backfill and embedding", swept=True))
    (blocker,) = [b for b in found.blockers if b.id == "paused"]
    assert (blocker.message, blocker.command) == ("backfill and embedding paused", "revector resume shop")
    assert as_json(found)["paused"] == "backfill and embedding"
    assert found.gauges()["paused"] == 1
    assert "paused" not in {b.id for b in judge(StatusFacts("shop", "v2", swept=True)).blockers}


async def test_whoever_looks_at_the_migration_sees_a_pause() -> None:
    world = await World().open()
    async with world.target().begin() as tx:
        await tx.ledger.order({"paused": ["embedding"]})
    settings = SimpleNamespace(candidate=SimpleNamespace(name="v1"), verify=VerifySettings())
    parts: Any = SimpleNamespace(settings=settings)
    looker = Looker(parts, world.clock)
    looker._target = world.target()
    assert (await looker._control()).paused == "embedding"
