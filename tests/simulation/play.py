"""One history: processes, operators and everything outside of them, one step at a time, in an order that a tape gives.

After so many steps everything comes to rest, without faults: then the replica equals the source, chunks equal what it
renders to, and a certificate can be had.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from unittest.mock import patch

from daemon.core.comparison import State as ComparisonState
from daemon.core.model import REPLICATION, Generation, WorkState
from tests.simulation.checks import Violation
from tests.simulation.loop import SimulationLoop
from tests.simulation.operators import Operator
from tests.simulation.parts import CLAIM_LEASE_S, LEASE_S, ProcessParts
from tests.simulation.process import Process
from tests.simulation.scheduler import CALM_STEPS, ROLES, Scheduler

DRAIN_S = 900.0


class Simulation(Scheduler):
    """`run` plays it."""

    def run(self) -> Simulation:
        before = random.getstate()
        random.seed(self.seed)
        loop = SimulationLoop(self.clock)
        try:
            with patch("daemon.service.supervise.stay_responsive"), asyncio.Runner(loop_factory=lambda: loop) as runner:
                loop.decided_by(self.turn)
                loop.set_exception_handler(self.unhandled)
                runner.run(self.played())
                loop.decided_by(None)
        finally:
            random.setstate(before)
        return self

    async def played(self) -> None:
        self.is_over = asyncio.Event()
        for key in self.world.upstream.keys:
            if self.choices.below(10) >= 5:
                self.world.source.seed("articles", {"id": key, **self.world.upstream.values()})
        for _ in range(self.swarm.warm_up):
            self.world.upstream.move()
        try:
            if self.swarm.is_steady:
                await self.calmly(self.become_steady())
            self.limit += self.steps
            if self.violation is None:
                await self.is_over.wait()
            if self.violation is None:
                await self.calmly(self.come_to_rest())
        finally:
            self.choices.is_calm = True
            for process in [p for p in self.slots.values() if p is not None]:
                self.kill(process)
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*tasks, return_exceptions=True)

    async def calmly(self, scene: Coroutine[object, object, None]) -> None:
        """Play it without faults, to its end or to the first violation."""
        self.is_over.clear()
        self.choices.is_calm, self.calm_until = True, self.steps + CALM_STEPS
        playing = asyncio.create_task(scene)
        watch = asyncio.create_task(self.is_over.wait())
        await asyncio.wait((playing, watch), return_when=asyncio.FIRST_COMPLETED)
        for task in (playing, watch):
            task.cancel()
        for error in await asyncio.gather(playing, watch, return_exceptions=True):
            if isinstance(error, Exception):
                self.fail(error)
        self.choices.is_calm = False

    # --- the end

    def operator(self, name: str) -> Operator:
        parts = ProcessParts(self.world, Process(name, self.parked), self.world.settings(*self.names()))
        return Operator(parts, self.choices, self.counts)

    async def become_steady(self) -> None:
        """Started, copied, embedded, indexed and compared."""
        self.world.upstream.end_writers()
        if self.world.source.session is None:
            self.world.upstream.connect()
        self.start_daemon("p0", ROLES[0])
        await self.until(lambda: bool(self.world.database.state.ranges) and self.is_drained(), "is never copied")
        await self.operator("op-first").verify(is_repair=False, limit_s=DRAIN_S)
        self.note("everything is steady")

    async def come_to_rest(self) -> None:
        """Everybody dies, writers end, everything arrives; then fresh processes finish, and prove it."""
        for process in self.living():
            self.kill(process)
        for session in self.orphans:
            session.end()
        self.orphans.clear()
        world = self.world
        world.upstream.come_to_rest()
        self.clock.advance(LEASE_S + CLAIM_LEASE_S + 1)
        self.slots = {"last": None}
        self.note("everything comes to rest")
        if not world.database.state.generations:
            first = self.start_daemon("last", ROLES[0])
            await self.until(lambda: bool(world.database.state.migration.started), "does not start")
            self.kill(first)
        last = self.start_daemon("last", ROLES[0])
        op = self.operator("op-last")
        await op.resume()
        await self.until(self.is_drained, "does not drain")
        await op.verify(is_repair=True, limit_s=DRAIN_S)
        await self.until(self.is_drained, "does not drain after a comparison")
        for generation in await op.listed():
            await op.accept(generation.name)
        self.checks.at_rest()
        report = await op.verify(is_repair=False, limit_s=DRAIN_S)
        if not report.is_finished or report.comparison.state is not ComparisonState.CLEAN:
            raise Violation(f"a comparison at rest finds {report.found}, {report.unfinished}")
        for generation in await op.listed():
            await self.certified(op, generation)
        await self.ended(last)

    async def certified(self, op: Operator, generation: Generation) -> None:
        certificate, shortfalls = await op.prove(generation.name, 60.0)
        if certificate is None:
            raise Violation(f"no certificate for {generation.name} at rest: {shortfalls}")
        self.counts["certificates at rest"] += 1

    async def ended(self, process: Process) -> None:
        process.stop.set()
        assert process.task is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.shield(process.task)
        if not process.task.done():
            raise Violation("told to stop, the process does not end")

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        ends_at = self.clock.now_s + DRAIN_S
        while not holds():
            if self.clock.now_s > ends_at:
                raise Violation(f"{what} within {DRAIN_S:.0f} s: {self.left()}")
            await asyncio.sleep(0.5)

    def is_drained(self) -> bool:
        return not self.left()

    def left(self) -> list[str]:
        """What there is still to do."""
        world, state = self.world, self.world.database.state
        left = [
            f"{at}"
            for at, c in state.checkpoints.items()
            if c.next_offset < world.broker.end(at) and at.topic != world.broker.message_topic
        ]
        left += [f"range {r.id}" for r in state.ranges.values() if not r.done] or ([] if state.ranges else ["ranges"])
        left += [f"sweep of {g.generation.name}" for g in state.generations.values() if not g.generation.swept]
        left += [f"index of {g.generation.name}" for g in state.generations.values() if g.generation.phase != "live"]
        left += [f"work {place}" for place, entry in state.work.items() if entry.state is WorkState.WAITING]
        lacking = [row.key for row in state.rows.values() if row.missing(self.checks.table)]
        left += [f"missing in {key}" for key in lacking if key not in world.upstream.lost]  # its delete may be lost
        halted = {role: halt for role, halt in state.migration.halted.items() if role in REPLICATION}
        return left + [f"halted {halted}"] * bool(halted)
