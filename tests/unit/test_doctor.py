"""`doctor`: each part answers for itself, and what could not be looked at is neither fit nor unfit."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from daemon.cli.observing import _finding, _finding_lines
from daemon.cli.output import Output
from daemon.errors import Problem, TransientError
from daemon.procedures import doctor
from daemon.procedures.doctor import Finding, examine, refuse
from tests.fakes.embedder import MemoryEmbedder, WordTokenizer

FRAME: Any = SimpleNamespace(out=Output(io.StringIO(), io.StringIO(), {}, is_json=False))


class Connect:
    """What Kafka Connect says of the connector: settings, an error, or nothing in time."""

    def __init__(self, says: Mapping[str, str] | Exception | None, is_silent: bool = False) -> None:
        self.says, self.is_silent = says, is_silent

    async def config(self) -> Mapping[str, str] | None:
        if self.is_silent:
            await asyncio.Event().wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    async def close(self) -> None: ...


class Unasked:
    """A part that nobody has a reason to ask."""

    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"{name} was called")

    async def close(self) -> None: ...


@pytest.mark.parametrize(
    "connect",
    [
        Connect(None),
        Connect(TransientError("connect-unreachable", "away")),
        Connect(None, is_silent=True),
        Connect({"database.user": "${file:/run/secrets/source:user}", "database.dbname": "app"}),
    ],
    ids=["absent", "away", "silent", "provided"],
)
async def test_a_role_that_connect_does_not_name_is_unknown_and_the_source_is_not_blamed(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "CONNECT_LIMIT_S", 0.01)
    parts: Any = SimpleNamespace(
        settings=None, capture=lambda role: connect, source=lambda role: Unasked(), groundwork=lambda role: Unasked()
    )
    found = await doctor._bounded(parts.settings, "role", lambda: doctor._role(parts))
    assert (found.is_known, found.cause, found.problems) == (False, None, ())
    refuse([found])  # raises nothing
    assert _finding(found)["ok"] is None
    assert _finding_lines(FRAME, found, 8)[0].startswith("role      unknown  not looked at")


def test_columns_are_aligned_whatever_the_parts_are_called() -> None:
    bad = Problem("topic-missing", "topic a", "does not exist", "create it")
    findings = [
        Finding("source", "Postgres 18.4", ()),
        Finding("kafka", "", (bad,)),
        Finding("provider a-long-model", "", (), TransientError("provider-unreachable", "no connection", "look")),
    ]
    lines = [_finding_lines(FRAME, f, 21)[0] for f in findings]
    assert lines == [
        "source                 ok       Postgres 18.4",
        "kafka                  not fit  1 problem, listed below",
        "provider a-long-model  not fit  no connection [provider-unreachable]",
    ]


class Providers:
    """Parts of which only the providers are there: one a generation, each with vectors of its own length."""

    def __init__(self, **dimensions: int) -> None:
        made = [SimpleNamespace(name=name, model="same", dimensions=d) for name, d in dimensions.items()]
        self.settings = SimpleNamespace(generation=made, kafka=SimpleNamespace(topic_prefix="x"), table=[])
        self.made: list[MemoryEmbedder] = []

    def embedder(self, generation: Any) -> MemoryEmbedder:
        self.made.append(MemoryEmbedder(generation.dimensions))
        self.made[-1].refuses = lambda text: generation.dimensions == 3
        return self.made[-1]

    def tokenizer(self, generation: Any) -> WordTokenizer:
        return WordTokenizer()

    def __getattr__(self, name: str) -> Any:
        def away(*_: str) -> NoReturn:
            raise TransientError("away", "not part of this test")

        return away


async def test_every_generations_provider_is_asked_and_closed() -> None:
    parts: Any = Providers(v2=4, v3=8, v4=3)
    found = {f.part: f for f in await examine(parts) if f.part.startswith("provider")}
    assert list(found) == ["provider v2", "provider v3", "provider v4"]
    assert [f.summary.split(", ")[:2] for f in found.values()] == [
        ["same", "4 dimensions"],
        ["same", "8 dimensions"],
        [""],
    ]
    assert [p.id for p in found["provider v4"].problems] == ["provider-refused"]
    assert [(len(made.calls), made.closed) for made in parts.made] == [(1, True)] * 3
