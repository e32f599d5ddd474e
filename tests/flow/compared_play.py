"""Random play of a comparison: one seed, one history.

Writers change some keys all the time, and commit before they are seen; the stream is held back and let go, embedders
pause, processes die. Other keys stand still. Rows and chunks of both are spoilt behind everybody's back, or their
events are lost. A comparison must find what was spoilt of the keys that stand still, by its kind, and nothing of a key
that was not spoilt; one with a repair leaves everything as it should be.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from daemon.core.comparison import State
from daemon.errors import TransientError
from daemon.procedures.compare import Report
from tests.fakes import Blocked, Died, Faults, Transaction, UniqueViolation, VirtualClock, die
from tests.flow.compared_world import ComparedWorld, settings_of, texts
from tests.flow.corruption import CHUNKS, ROWS, Fault, faults_of, orphan, spoil_chunks, spoil_row

LIVE = [str(n) for n in range(1, 6)]
STILL = [str(n) for n in range(10, 18)]
ABSENT = ["70", "71"]  # keys that the source never has
# A completion fills what is missing before anybody looks.
ROW_NAMES = [name for name in ROWS if not name.startswith(("missing", "planted"))]


class Play:
    """`run` plays it, and raises AssertionError where a comparison is wrong."""

    def __init__(self, seed: int, clock: VirtualClock) -> None:
        self.rng = rng = random.Random(seed)
        settings = settings_of(page_rows=rng.choice((1, 3, 100)), workers=rng.choice((1, 2)))
        self.world = ComparedWorld(clock=clock, settings=settings)
        self.txs: list[Transaction] = []
        self.must: set[Fault] = set()
        self.may: set[tuple[str, ...] | None] = set()  # keys
        self.is_truncated = False

    async def run(self) -> None:
        world, rng = await self.world.steady(1), self.rng
        for key in (*LIVE, *STILL):
            world.insert(key)
        await world.turn()
        await self.spoil_before()
        world.meanwhile = self.write
        async with world.everything_goes_on():
            await asyncio.sleep(rng.random())
        self.judge(await self.compared())
        report = await self.compared(repair=True)
        assert not report.comparison.open, report.comparison.open
        self.come_to_rest()
        world.faults = Faults()
        await asyncio.sleep(1)
        for _ in range(2):  # what a turn completes the next one embeds
            await world.turn()
        world.check()
        last = await world.compare(by="last", sample=1000)
        assert (last.found, last.comparison.state) == ((), State.CLEAN)

    def judge(self, report: Report) -> None:
        found = faults_of(report.found)
        assert {fault.key for fault in found} <= self.may, (
            f"never spoilt: {[f for f in found if f.key not in self.may]}"
        )
        if not self.is_truncated:
            assert self.must <= found, f"not found: {self.must - found}"
            still = {fault for fault in found if fault.key is None or fault.key[0] not in LIVE}
            assert still == self.must, f"of another kind: {still - self.must}"

    async def compared(self, repair: bool = False) -> Report:
        """In the end, by whoever lives."""
        world = self.world
        world.faults = Faults(stays_dead=True)
        if self.rng.random() < 0.4:
            world.faults.at("target.commit", die(done=self.rng.random() < 0.5), self.rng.randrange(10, 90))
        with suppress(Died, BaseExceptionGroup, TransientError):
            return await world.compare(by="first", repair=repair)
        world.faults = Faults()
        return await world.compare(by="second", repair=repair)

    # --- what is wrong

    async def spoil_before(self) -> None:
        world, rng = self.world, self.rng
        for key in rng.sample(STILL, rng.randrange(len(STILL))):
            await self.spoil(key, is_still=True)
        for key in rng.sample(LIVE, rng.randrange(len(LIVE))):
            await self.spoil(key, is_still=False)
        async with world.spoil() as state:
            for key in rng.sample(ABSENT, rng.randrange(len(ABSENT) + 1)):
                self.note(spoil_row(state, world, key, "planted"), True)
            if rng.random() < 0.3:
                self.note(orphan(state, world), True)

    async def spoil(self, key: str, *, is_still: bool) -> None:
        world, rng = self.world, self.rng
        kind = rng.randrange(3)
        if kind == 0:
            async with world.spoil() as state:
                self.note(spoil_row(state, world, key, rng.choice(ROW_NAMES)), is_still)
        elif kind == 1:
            async with world.spoil() as state:
                self.note(spoil_chunks(state, world, key, rng.choice(list(CHUNKS))), is_still)
        else:
            self.note(self.lost(key), is_still)

    def lost(self, key: str) -> Fault:
        """An event that never comes."""
        world, kind = self.world, self.rng.choice(("row-extra", "text-stale", "metadata-stale", "filter-stale"))
        world.connector.deliver()
        if kind == "row-extra":
            world.delete(key)
        else:
            world.change(
                key,
                **{"text-stale": {"body": "lost"}, "metadata-stale": {"views": "500"}}.get(kind, {"tenant": "lost"}),
            )
        world.loses()
        return Fault(kind, (key,))

    def note(self, fault: Fault, is_still: bool) -> None:
        self.may.add(fault.key)
        if is_still:
            self.must.add(fault)

    # --- what goes on

    def write(self) -> None:
        """Before each turn."""
        world, rng = self.world, self.rng
        if rng.random() < 0.2 and world.beside is not None:
            world.release() if rng.random() < 0.7 else world.hold()
        world.is_embedding = rng.random() < 0.7
        for _ in range(rng.randrange(4)):
            if not self.txs or (len(self.txs) < 3 and rng.random() < 0.3):
                self.txs.append(world.source.begin())
            tx = rng.choice(self.txs)
            try:
                self.step(tx)
            except UniqueViolation:
                self.txs.remove(tx)
            except Blocked:
                self.end(tx, tx.rollback)

    def step(self, tx: Transaction) -> None:
        rng = self.rng
        if tx.in_log:
            self.end(tx, tx.show)
        elif tx.waiting:
            self.end(tx, tx.rollback)
        elif tx.xid and rng.random() < 0.5:
            tx.write_commit()
            if rng.random() < 0.7:
                self.end(tx, tx.show)
        else:
            self.change(tx, rng.choice(LIVE))

    def end(self, tx: Transaction, how: object) -> None:
        assert callable(how)
        how()
        self.txs.remove(tx)

    def change(self, tx: Transaction, key: str) -> None:
        rng, source = self.rng, self.world.source
        tag = f" {rng.randrange(50)}"
        if source.newest("articles", (key,)) is None:
            tx.insert("articles", id=key, **texts(key, tag))
        elif rng.random() < 0.01:
            tx.truncate("articles")
            self.is_truncated = True
        elif rng.random() < 0.2:
            tx.delete("articles", key)
        elif rng.random() < 0.2:
            other = rng.choice(LIVE)
            if other != key:
                tx.rekey("articles", key, other, unavailable=("body",) if rng.random() < 0.5 else ())
        else:
            changed = {n: v for n, v in texts(key, tag).items() if n != "views" and rng.random() < 0.6}
            hidden = [n for n in ("body", "tenant") if n not in changed and rng.random() < 0.5]
            tx.update("articles", key, unavailable=hidden, views=str(rng.randrange(9)), **changed)

    def come_to_rest(self) -> None:
        world = self.world
        world.meanwhile, world.is_embedding = (lambda: None), True
        world.release()
        for tx in list(self.txs):
            self.end(tx, tx.show if tx.in_log else tx.rollback)
