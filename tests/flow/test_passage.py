"""A barrier's passage: what is waited for, and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.core.model import TopicPartition
from daemon.errors import TransientError
from daemon.procedures.passage import Way, passage
from tests.fakes import VirtualClock

PART = TopicPartition("shop.app.doc", 0)
BARRIER, END = 500, 40
PATIENCE_S = 10.0


class Pipeline:
    """Readings as functions of the time since the barrier was written; None: the part is away."""

    def __init__(self, **readings: Any) -> None:
        self.clock = VirtualClock()
        self.readings = {"lsn": lambda s: BARRIER, "end": lambda s: END, "offset": lambda s: END} | readings
        self.written_at = self.clock()

    def at(self, name: str) -> Any:
        reading = self.readings[name](self.clock() - self.written_at)
        if reading is None:
            raise TransientError("part-away", "away")
        return reading

    @property
    def way(self) -> Way:
        @asynccontextmanager
        async def begin() -> AsyncIterator[Any]:
            yield SimpleNamespace(ledger=SimpleNamespace(checkpoint=lambda: answer({PART: self.at("offset")})))

        parts: dict[str, Any] = {
            "source": SimpleNamespace(emit=lambda payload: answer(BARRIER)),
            "capture": SimpleNamespace(committed_lsn=self.committed),
            "feed": SimpleNamespace(ends=lambda: answer({PART: self.at("end")})),
            "target": SimpleNamespace(begin=begin),
        }
        return Way("shop", clock=self.clock, pause=self.clock.sleep, **parts)

    async def committed(self) -> int | None:
        lsn: int = self.at("lsn")
        return lsn


async def answer(value: Any) -> Any:
    return value


def never(since_s: float) -> int:
    return 0


@pytest.mark.parametrize(
    "readings",
    [
        {},
        {"lsn": lambda s: 400 + int(s)},
        {"offset": lambda s: int(s) // 8},  # a step every eight seconds: slow, and it moves
        {"lsn": lambda s: None if s < PATIENCE_S / 2 else BARRIER},
    ],
)
async def test_what_moves_is_waited_for(readings: dict[str, Any]) -> None:
    assert await passage(Pipeline(**readings).way, "token", float("inf"), PATIENCE_S) == BARRIER


@pytest.mark.parametrize("stuck", ["lsn", "offset"])
async def test_what_stands_still_is_given_up(stuck: str) -> None:
    pipeline = Pipeline(**{stuck: never})
    assert await passage(pipeline.way, "token", float("inf"), PATIENCE_S) is None
    assert PATIENCE_S <= pipeline.clock() - pipeline.written_at < 2 * PATIENCE_S


async def test_what_is_delivered_until_the_connectors_offset_has_passed_is_waited_for() -> None:
    """End offsets from before do not bound it: every checkpoint is past those of an empty topic."""
    pipeline = Pipeline(lsn=lambda s: BARRIER if s >= 1 else 0, end=lambda s: END if s >= 1 else 0, offset=never)
    assert await passage(pipeline.way, "token", float("inf"), PATIENCE_S) is None


async def test_a_part_that_stays_away_is_given_up() -> None:
    assert await passage(Pipeline(lsn=lambda s: None).way, "token", float("inf"), PATIENCE_S) is None


async def test_a_deadline_ends_a_wait_for_what_moves() -> None:
    pipeline = Pipeline(offset=lambda s: int(s) // 8)
    assert await passage(pipeline.way, "token", pipeline.clock() + 30, PATIENCE_S) is None
    assert 30 <= pipeline.clock() - pipeline.written_at < 31
