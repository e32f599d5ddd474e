"""`Looker`: what could not be read is unknown, and a migration that nobody has started is no fault of any part."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from daemon.core.status import Status, Verdict
from daemon.errors import ConfigError, SchemaChanged, TransientError
from daemon.procedures.look import Looker


class Away:
    """A part that does not answer. setup: what it says of itself all the same."""

    def __init__(self, error: Exception, setup: Any = None) -> None:
        self.error, self._setup = error, setup

    def begin(self) -> NoReturn:
        raise self.error

    async def _refuse(self) -> NoReturn:
        raise self.error

    slot = data_ends = state = _refuse

    async def setup(self) -> Any:
        if self._setup is None:
            raise self.error
        return self._setup

    async def close(self) -> None: ...


def looker(target: Away) -> Looker:
    other = Away(TransientError("source-unreachable", "away"))
    settings = SimpleNamespace(name="articles", candidate=SimpleNamespace(name="v2"))
    parts: Any = SimpleNamespace(
        settings=settings,
        target=lambda role: target,
        source=lambda role: other,
        feed=lambda role: other,
        capture=lambda role: other,
    )
    return Looker(parts, lambda: 0.0)


async def looked(target: Away) -> Status:
    async with looker(target) as there:
        return await there.look("2026-11-02T14:02:00Z")


async def test_a_target_without_control_tables_means_that_nothing_has_begun() -> None:
    absent = Away(SchemaChanged("schema-changed", "no such relation"), SimpleNamespace(schema_version=None))
    status = await looked(absent)
    assert [b.id for b in status.blockers] == ["not-begun"]
    assert status.next == "revector run articles"


@pytest.mark.parametrize("setup", [None, SimpleNamespace(schema_version=3, known_schema=3)])
async def test_a_target_that_cannot_be_read_is_unknown_and_not_unbegun(setup: Any) -> None:
    status = await looked(Away(TransientError("target-unreachable", "away"), setup))
    assert {b.id for b in status.blockers} == {"not-observed"}


async def test_a_control_schema_of_a_newer_program_is_said_as_a_halt_and_an_older_one_refused() -> None:
    away = SchemaChanged("schema-changed", "no such column")
    status = await looked(Away(away, SimpleNamespace(schema_version=4, known_schema=3)))
    assert (status.verdict, status.blockers[0].evidence) == (
        Verdict.HALTED,
        "target: its control schema is version 4, this program knows 3",
    )
    with pytest.raises(ConfigError, match="version 2, this program works with 3") as refused:
        await looked(Away(away, SimpleNamespace(schema_version=2, known_schema=3)))
    assert "revector run articles" in refused.value.hint


async def test_a_look_that_is_interrupted_before_its_first_reading_leaves_nothing_unawaited() -> None:
    async with looker(Away(TransientError("target-unreachable", "away"))) as there:
        look = asyncio.ensure_future(there.look("2026-11-02T14:02:00Z"))
        await asyncio.sleep(0)  # the readings are tasks by then, none has had a turn
        look.cancel()
        with pytest.raises(asyncio.CancelledError):
            await look
    del look
    gc.collect()  # a coroutine that nobody awaited warns here, and warnings are errors
