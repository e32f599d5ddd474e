"""`revector realign`: what it shows, what it wants before it does anything, and what it answers. On the twins."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest

from daemon.cli.app import build
from daemon.cli.frame import ExitCode, Frame, operator, run
from daemon.core.model import HaltNote
from daemon.errors import HeldElsewhere
from daemon.parts import Parts
from daemon.procedures import realign as procedure
from tests import builders
from tests.fakes import MemoryTarget
from tests.flow.compared_world import CUT, GENERATION, ComparedWorld

TOPIC = "shop.public.articles"


class Bench:
    """The command over a migration that has halted: three records are unread, and the topic was made anew or not."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file, self.capsys, self.world = folder / "revector.toml", capsys, ComparedWorld()
        self.file.write_text(builders.CONFIG + GENERATION + CUT)

        async def prepare() -> None:
            await self.world.steady()
            for key in "013":
                self.world.change(key, title="unread")
            self.world.connector.deliver()
            async with MemoryTarget(self.world.database).begin() as tx:
                await tx.ledger.halt("offsets-gone", HaltNote("what was lost", "see it", None), "stream")

        asyncio.run(prepare())

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        parts = cast(Parts, self.world.parts)
        code = run(build(), ["realign", *words, "--config", str(self.file)], Frame(lambda loaded: parts, {}))
        return (code, *self.capsys.readouterr())

    def asked(self, *words: str) -> Any:
        code, out, err = self(*words, "--json")
        assert code == ExitCode.YES, out + err
        return json.loads(out)

    @property
    def epoch(self) -> int:
        return self.world.database.state.migration.epoch


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


def test_without_a_confirmation_the_plan_is_shown_and_nothing_is_done(bench: Bench) -> None:
    before = bench.world.database.state
    code, out, _ = bench("shop")
    assert code == ExitCode.YES
    assert bench.world.database.state.migration == before.migration
    assert bench.world.database.state.checkpoints == before.checkpoints
    assert bench.world.database.state.journal == before.journal
    lines = out.splitlines()
    assert lines[0] == "shop: would go on at the ends of the topics, in epoch 1, and skip 3 records"
    assert "  identity  as it was" in lines
    assert "  halt      offsets-gone: what was lost" in lines
    assert any(line.split() == [f"{TOPIC}-0", "0", "1", "1"] for line in lines)
    assert lines[-2:] == [
        "nothing was done; to do it: revector realign shop --confirm shop",
        "afterwards: revector verify shop --repair",
    ]


def test_the_plan_says_what_it_does_not_know(bench: Bench) -> None:
    bench.world.broker.topic_ids[TOPIC] = "another"
    said = bench.asked()
    assert (said["realigned"], said["is_exact"], said["barrier"]) == (False, False, None)
    assert {p["skipped"] for p in said["partitions"] if p["topic"] == TOPIC} == {None}
    (change,) = said["changes"]
    assert (change["part"], change["field"], change["after"]) == ("kafka", f"topic {TOPIC} id", "another")
    assert "and skip at least 0 records" in bench()[1]


def test_with_the_name_it_is_done_and_the_journal_says_by_whom(bench: Bench) -> None:
    said = bench.asked("--confirm", "shop")
    assert (said["realigned"], said["epoch"], said["skipped"]) == (True, {"before": 0, "after": 1}, 3)
    assert (said["halts"], said["next"]) == (["offsets-gone"], ["revector verify shop --repair"])
    assert bench.epoch == 1
    broken, done = bench.world.database.state.journal[-2:]
    assert (broken.kind, broken.id, done.kind) == ("break", "realigned", "operator")
    assert broken.detail == {"skipped": 3, "halted": ["offsets-gone"], "by": operator()}
    assert [TOPIC, 0, 0, 1] in done.detail["offsets"]
    assert bench.world.database.state.migration.halted == {}
    out = bench("--confirm", "shop")[1]
    assert out.splitlines()[0] == "shop: goes on at the ends of the topics, in epoch 2; 0 records skipped"
    assert out.splitlines()[-1] == "next: revector verify shop --repair"


def test_another_name_is_refused_before_anything_is_asked(bench: Bench) -> None:
    code, _, err = bench("--confirm", "article")
    assert (code, bench.epoch) == (ExitCode.USAGE, 0)
    assert "--confirm wants shop" in err


def test_a_stream_that_runs_is_somebody_else_s(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def held(*_: object) -> None:
        raise HeldElsewhere("stream-running", "the stream of shop is followed by host:7", "stop it first")

    monkeypatch.setattr(procedure, "realign", held)
    code, _, err = bench("--confirm", "shop")
    assert code == ExitCode.HELD
    assert "host:7" in err
