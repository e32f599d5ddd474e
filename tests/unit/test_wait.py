"""`revector wait`: it never says that something holds which was only true of an earlier instant."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.cli import observing
from daemon.core.model import Break, HaltNote
from daemon.core.status import Status
from daemon.errors import WaitTimedOut
from tests.fakes import VirtualClock
from tests.unit.service import status


class SlowLooker:
    """Reads the control tables at once, then waits `slow_s` for another part. fresh_at: the instant that is fresh."""

    def __init__(self, clock: VirtualClock, slow_s: float, fresh_at: Callable[[], float], **facts: Any) -> None:
        self.clock, self.slow_s, self.fresh_at, self.facts = clock, slow_s, fresh_at, facts

    async def __aenter__(self) -> SlowLooker:
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    async def look(self, observed_at: str) -> Status:
        freshness_s = self.clock() - self.fresh_at()
        self.clock.advance(self.slow_s)
        return status(freshness_s=freshness_s, **self.facts)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    clock = VirtualClock()
    monkeypatch.setattr(observing, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(observing, "LOOK_EVERY_S", 0)
    return clock


async def waited(monkeypatch: pytest.MonkeyPatch, looker: SlowLooker, what: str = "caught-up") -> bool:
    monkeypatch.setattr(observing, "_looker", lambda frame, loaded, generation: looker)
    frame: Any = SimpleNamespace(out=SimpleNamespace(note=lambda text: None))
    loaded: Any = SimpleNamespace(settings=SimpleNamespace(name="articles"))
    return (await observing._waited(frame, loaded, (what, None), 60))[0]


async def test_a_slow_look_does_not_make_an_old_instant_fresh(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualClock
) -> None:
    before = clock() - 2
    with pytest.raises(WaitTimedOut):
        await waited(monkeypatch, SlowLooker(clock, 3, lambda: before))


async def test_it_holds_once_the_fresh_instant_lies_after_the_beginning(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualClock
) -> None:
    began = clock()
    assert await waited(monkeypatch, SlowLooker(clock, 1, lambda: began + 0.5))


@pytest.mark.parametrize("what", ["caught-up", "ready"])
async def test_a_break_of_continuity_is_the_answer_no(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualClock, what: str
) -> None:
    broken = (Break("connector-restarted", {}),)
    assert not await waited(monkeypatch, SlowLooker(clock, 1, clock, breaks=broken), what)


async def test_breaks_that_could_not_be_read_are_no_evidence(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualClock
) -> None:
    with pytest.raises(WaitTimedOut):
        await waited(monkeypatch, SlowLooker(clock, 1, clock, breaks=None))


@pytest.mark.parametrize("what", ["caught-up", "index", "ready"])
async def test_a_halt_of_embedding_that_stays_is_the_answer_no(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualClock, what: str
) -> None:
    began = clock()
    looker = SlowLooker(clock, 7, lambda: began - 100, embed_halts={"provider-key-refused": HaltNote("", "")})
    monkeypatch.setattr(observing, "MENDED_S", 30.0)
    assert not await waited(monkeypatch, looker, what)
    assert 30 < clock() - began < 60


async def test_a_halt_of_embedding_does_not_end_a_wait_for_the_backfill_nor_one_that_is_mended(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualClock
) -> None:
    began = clock()
    monkeypatch.setattr(observing, "MENDED_S", 30.0)
    halted = SlowLooker(
        clock, 7, lambda: began - 100, embed_halts={"provider-key-refused": HaltNote("", "")}, backfill=None
    )
    with pytest.raises(WaitTimedOut):
        await waited(monkeypatch, halted, "backfill")

    class Mended(SlowLooker):
        async def look(self, observed_at: str) -> Status:
            self.facts = {"embed_halts": {"provider-key-refused": HaltNote("", "")} if self.clock() % 28 < 14 else {}}
            return await super().look(observed_at)

    with pytest.raises(WaitTimedOut):
        await waited(monkeypatch, Mended(clock, 7, lambda: began - 100))
