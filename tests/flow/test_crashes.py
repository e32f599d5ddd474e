"""A crash, a refusal or a lost answer at every call that the product makes, one at a time.

A journey visits start, stream, pages, completion, embedding and a proof. It is played once to count its calls; then
again for every call and kind of fault. Whatever dies is gone with its memory; fresh processes go on from what is
durable, and the end is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from daemon.errors import TransientError
from daemon.procedures.prove import prove
from tests.fakes import Died, die, lose, refuse
from tests.fakes.faults import Fault
from tests.flow.world import World

KINDS: dict[str, Callable[[], Fault]] = {
    "dies before": die,
    "dies after": lambda: die(done=True),
    "refused": refuse,
    "answer lost": lose,
}


async def fresh() -> World:
    world = await World().open()
    for n in range(3):
        world.source.seed("articles", {"id": str(n), "title": f"t{n}", "body": f"b{n}", "tenant": "t1", "views": "0"})
    return world


async def journey(world: World) -> None:
    source = world.source
    tx = source.begin()
    tx.insert("articles", id="5", title="t5", body="b5")
    tx.commit()
    await world.begin(ranges=2)
    stream, worker = world.stream("s1"), world.worker("e1")
    changed, gone = source.begin(), source.begin()
    changed.update("articles", "0", title="changed", tenant="t2")
    changed.commit()
    gone.delete("articles", "1")
    gone.commit()
    await world.follow(stream)
    await world.copy(world.backfill("b1", page_rows=1))
    await world.embed(worker)
    moved = source.begin()
    moved.rekey("articles", "2", "4", unavailable=("body", "tenant"))
    moved.commit()
    await world.follow(stream)
    await world.completion().step(world.table)
    tenant = source.begin()
    tenant.update("articles", "0", tenant="t9")
    tenant.commit()
    await world.follow(stream)
    await world.embed(worker)
    await world.indexes.build(world.table, world.generation)

    async def pump(seconds: float) -> None:
        world.clock.advance(seconds)
        await world.follow(stream)

    await world.compared()
    await prove(world.proof(pump), "proof-1", "2026-01-01T00:00:00Z", 1)


async def recover(world: World) -> None:
    """Fresh processes from what is durable."""
    world.faults.planned.clear()
    for tx in list(world.source.active.values()):
        tx.show() if tx.in_log else tx.rollback()
    await world.begin(ranges=2)
    await world.settle()


async def calls(kind: str) -> list[tuple[str, int]]:
    """Every call of the journey. Inside a transaction, failing after a call is failing before the next one."""
    world = await fresh()
    await journey(world)
    counted = dict(world.faults.calls)
    await recover(world)
    world.check()
    assert len(world.database.state.certificates) == 1
    durable = ("target.commit", "source.", "feed.", "capture.", "embedder.")
    points = counted if kind in ("dies before", "refused") else [p for p in counted if p.startswith(durable)]
    return [(point, n) for point in points for n in range(1, counted[point] + 1)]


@pytest.mark.parametrize("kind", KINDS)
async def test_whatever_fails_at_any_call_the_end_is_the_same(kind: str) -> None:
    points = await calls(kind)
    assert len(points) > 50
    for point, call in points:
        world = await fresh()
        world.faults.at(point, KINDS[kind](), call)
        with suppress(Died, TransientError):
            await journey(world)
        world.faults.verify()
        world.check_rows()
        await recover(world)
        world.check()
