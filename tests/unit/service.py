"""Builders for the tests of `daemon.service`: a status, a running process, a clock that is moved by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from daemon.core.catchup import Shortfall
from daemon.core.compared import ComparisonReading
from daemon.core.model import Backlog, Rates, TopicPartition
from daemon.core.status import CopyFacts, FeedFacts, SourceFacts, Status, StatusFacts, judge
from daemon.flow.backfill import BackfillCounts
from daemon.flow.embed import EmbedCounts
from daemon.service.instruments import Sources
from daemon.service.last_status import LastStatus
from daemon.service.supervise import Roles, Running
from tests import builders

ALL_ROLES = Roles(stream=True, backfill=True, embed=True)


class HandClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def facts(**changes: object) -> StatusFacts:
    """A migration of which everything was observed and nothing is wrong, but for what `changes` say."""
    sound = StatusFacts(
        migration="articles",
        generation="v2",
        begun=True,
        halts={},
        breaks=(),
        source=SourceFacts(0.4, 2_100_000, 10_000_000_000, True, True, "reserved"),
        feed=FeedFacts({TopicPartition("shop.article", n): n for n in range(3)}, 3, "running"),
        embed=Backlog(5, 7, 0, 0, 0, 3.5, 900, 42_000, 8_000, 11, 60),
        swept=True,
        backfill=CopyFacts(7000, True, 7400),
        freshness_s=1.5,
        comparison=ComparisonReading(builders.comparison(), 86_400),
        proof=(),
    )
    return replace(sound, **changes)  # type: ignore[arg-type]


def status(**changes: object) -> Status:
    return judge(facts(**changes))


def shortfall(id: str) -> Shortfall:
    return Shortfall(id, 7, id, None, "", None)


def process(roles: Roles = ALL_ROLES) -> tuple[Sources, HandClock]:
    """A process whose main loop turned just now and which has no status yet."""
    clock = HandClock()
    running = Running(roles, turned_at=clock.now, is_ready=True, backfill=[BackfillCounts(), BackfillCounts()])
    if roles.embed:
        gate: Any = SimpleNamespace(in_flight=3, most_in_flight=8, rates=Rates(600, 90_000))
        running.embed["v2"], running.gates["v2"] = EmbedCounts(), gate
    return Sources(running, LastStatus(clock), clock), clock
