"""What operators do while everything else goes on: prove, compare, mend, add and drop, pause and resume."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from daemon.core.model import Generation, WorkState
from daemon.core.orders import BACKFILL, EMBEDDING
from daemon.procedures import certificates, generations, orders, quarantine, requeue
from daemon.procedures.compare import Order, Report, verify
from daemon.procedures.look import Looker
from daemon.procedures.prove import Certificate, ProofParts, Shortfall, prove
from tests.simulation.choices import Choices
from tests.simulation.parts import ProcessParts

NAME = "shop"
ISSUED_AT = "2026-01-01T00:00:00Z"


class Operator:
    """One command, carried out by a process of its own."""

    def __init__(self, parts: ProcessParts, choices: Choices, counts: Counter[str]) -> None:
        self.parts, self.choices, self.counts = parts, choices, counts
        self.clock = parts.world.clock

    async def run(self) -> None:
        commands: tuple[tuple[Callable[[], Awaitable[object]], float], ...] = (
            (self.prove, 30),
            (self.verify, 14),
            (self.look, 3),
            (self.generation, 6),
            (self.accept, 3),
            (self.retry, 2),
            (self.requeue, 2),
            (self.pause, 2),
            (self.certificate, 2),
        )
        command = commands[self.choices.weighted([weight for _, weight in commands])][0]
        self.counts[f"command {command.__name__}"] += 1
        await command()

    async def listed(self) -> list[Generation]:
        found: list[Generation] = await self._in(lambda tx: tx.ledger.generations())
        return found

    async def _in(self, read: Callable[..., Awaitable[Any]]) -> Any:
        async with self.parts.target("operator").begin() as tx:
            return await read(tx)

    async def prove(self, name: str | None = None, timeout_s: float = 0) -> tuple[Certificate | None, list[Shortfall]]:
        """As `revector prove`."""
        known = await self.listed()
        if not known:
            return None, []
        generation = self.choices.pick(known) if name is None else next(g for g in known if g.name == name)
        tables = [s.table for s in await self._in(lambda tx: tx.ledger.tables())]
        parts = self.parts
        proof = ProofParts(
            migration=NAME,
            source=parts.source("prove"),
            feed=parts.feed("prove"),
            capture=parts.capture("prove"),
            target=parts.target("prove"),
            indexes=parts.indexes("prove"),
            tables=tables,
            generation=generation,
            max_age_s=parts.settings.verify.max_age_s,
            clock=self.clock,
            pause=asyncio.sleep,
        )
        return await prove(
            proof, f"proof-{parts.process.name}", ISSUED_AT, timeout_s or float(5 + self.choices.below(25))
        )

    async def verify(self, is_repair: bool | None = None, limit_s: float = 0) -> Report:
        """As `revector verify [--repair]`."""
        order = Order(
            repair=self.choices.below(10) < 7 if is_repair is None else is_repair,
            sample=self.choices.below(3),
            limit_s=limit_s or float(60 + self.choices.below(400)),
            is_fresh=self.choices.chance(0.2),
        )
        report = await verify(self.parts, order, self.parts.process.name, lambda _: None, self.clock, asyncio.sleep)
        if report.is_finished:
            self.counts["comparisons"] += 1
            self.counts["comparisons with repair"] += order.repair
            self.counts["rows mended"] += sum((report.comparison.repaired or {}).values())
            self.counts["breaks closed"] += report.comparison.breaks_closed
        return report

    async def look(self) -> None:
        async with Looker(self.parts, self.clock) as looker:
            await looker.look(ISSUED_AT)

    async def generation(self) -> None:
        """Add the second one, or drop it."""
        target, settings = self.parts.target("operator"), self.parts.world.settings("v1", "v2")
        names = [g.name for g in await self.listed()]
        if "v2" not in names:
            wanted = generations.chosen(settings, "v2")
            await generations.add(target, settings, wanted, self.parts.contract(wanted), {"by": "operator"})
            self.counts["generations added"] += 1
        elif self.choices.chance(0.4):
            it = await generations.one(target, settings, "v2")
            await generations.drop(target, settings, it, {"by": "operator"})
            self.counts["generations dropped"] += 1

    def _which(self, state: WorkState | None = None, name: str = "v1") -> quarantine.Which:
        return quarantine.Which(NAME, name, state=state)

    async def accept(self, name: str = "v1") -> None:
        found = await quarantine.accept(
            self.parts.target("operator"), self._which(WorkState.REFUSED, name), "op", "known"
        )
        self.counts["accepted"] += len(found.entries)

    async def retry(self) -> None:
        found = await quarantine.retry(self.parts.target("operator"), self._which(WorkState.REFUSED), "op")
        self.counts["retried"] += len(found.entries)

    async def requeue(self) -> None:
        wanted = requeue.Wanted(NAME, "v1", requeue.How.ALL, "articles")
        done = await requeue.requeue(self.parts.target("operator"), wanted, "op")
        self.counts["requeued"] += done.rows

    async def pause(self) -> None:
        what = self.choices.pick(([EMBEDDING], [BACKFILL], [EMBEDDING, BACKFILL]))
        await orders.pause(self.parts.target("operator"), NAME, what, "op")
        self.counts["paused"] += 1
        await asyncio.sleep(float(self.choices.below(5)))
        await self.resume()

    async def resume(self) -> None:
        await orders.resume(self.parts.target("operator"), NAME, [EMBEDDING, BACKFILL], "op")

    async def certificate(self) -> None:
        stored = await certificates.one(self.parts.target("operator"), NAME, "v1", None)
        await certificates.check(self.parts, stored.document)
