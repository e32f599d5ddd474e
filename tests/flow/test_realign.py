"""Going on at the ends of the topics: what is skipped is mended by a comparison, and nothing of it comes back.

Each scene ends with the replica equal to the source, whatever was skipped, lost or given out again. The directed ones
are the steps of the proof in `procedures.realign`: each fails where its step is left out.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest

from daemon.core.comparison import State
from daemon.core.model import TopicPartition
from daemon.errors import Halt, HeldElsewhere, LeaseLost, OffsetsGone, StepRefused, UndecodableEvent
from daemon.procedures.realign import Realigned, RealignParts, plan, realign
from tests.fakes import MemoryTarget
from tests.fakes.source import MemorySource
from tests.flow.compared_world import ComparedWorld, played


def parts_of(world: ComparedWorld) -> RealignParts:
    return RealignParts(
        migration=world.database.name,
        source=world.faults.wrap("source", world.source),
        feed=world.faults.wrap("feed", world.feed()),
        capture=world.faults.wrap("capture", world.capture),
        target=world.target(),
        clock=world.clock,
        pause=world.clock.sleep,
    )


async def realigned(world: ComparedWorld) -> Realigned:
    """By an operator, once the stream beside has halted."""
    if world.beside is not None:
        await world.beside.release()
    return await realign(parts_of(world), "realign:op:1", "op")


async def open_breaks(world: ComparedWorld) -> list[str]:
    async with MemoryTarget(world.database).begin() as tx:
        return [b.id for b in await tx.ledger.breaks()]


async def mended(world: ComparedWorld) -> None:
    """A comparison that begins now leaves nothing that differs, and no break."""
    report = await world.compare(repair=True)
    assert (report.is_finished, report.comparison.state) == (True, State.CLEAN)
    assert await open_breaks(world) == []
    await world.turn()
    world.check()


@dataclass
class Saved:
    """A source as it was, to be put in the place of what it has become."""

    state: dict[str, Any]

    @classmethod
    def of(cls, source: MemorySource) -> Saved:
        names = ("chains", "log", "commits", "lsn", "last_commit", "next_xid", "completed")
        return cls({name: copy.deepcopy(getattr(source, name)) for name in names})

    def restore(self, world: ComparedWorld, *, timeline: int = 1) -> None:
        """timeline: by which the restored source's is another one. The connector is started afresh behind it."""
        source, connector = world.source, world.connector
        for name, value in copy.deepcopy(self.state).items():
            setattr(source, name, value)
        source.who = replace(source.who, timeline=source.who.timeline + timeline)
        connector.restart()
        connector.next = connector.committed = len(source.log)
        source.slot_session = f"{connector.run}@1"


# --- the halts it is for


@played
async def test_offsets_that_are_gone_are_passed_over(world: ComparedWorld) -> None:
    await world.turn()
    world.change("0", title="lost", tenant="t2")
    world.delete("1")
    world.insert("9")
    world.connector.deliver()
    for at in world.broker.table_places("articles"):
        world.broker.trim(at, world.broker.end(at))
    with pytest.raises(OffsetsGone):
        await world.turn()
    done = await realigned(world)
    assert (done.epoch, done.plan.is_exact) == (1, True)
    assert done.plan.skipped > 0
    assert await open_breaks(world) == ["realigned"]
    await world.turn()
    with pytest.raises(AssertionError, match="differs"):
        world.check()
    await mended(world)
