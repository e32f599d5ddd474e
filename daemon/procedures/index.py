"""Build the HNSW indexes of every fed generation, each once its load is nearly over.

A live HNSW index makes upserts 55 to 90 times slower, so the load runs without one. When the backfill and the sweep
are complete and the backlog is small, each chunk table gets its index in a build that lets writes through: deletes and
revoked permissions must reach the chunks while it runs. Then ANALYZE and prewarm, and the generation is live.

Repeatable: a build that was interrupted leaves an invalid index, which the next run drops and builds again. A
generation that is dropped meanwhile is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from daemon.core.model import Generation, Table
from daemon.errors import SchemaChanged
from daemon.flow.pacing import retrying, wait
from daemon.flow.stream import Stream
from daemon.ports import Indexes, Target

log = logging.getLogger(__name__)

POLL_S = 1.0
SMALL_BACKLOG = 1000
SMALL_SHARE = 0.02


def is_small(backlog: int, embedded: int) -> bool:
    """Whether what is left is small enough to be written into a live index: 1000 rows, or 2 % of the rows embedded."""
    return backlog <= max(SMALL_BACKLOG, int(embedded * SMALL_SHARE))


class IndexBuild:
    """Waits for each generation's load to end, then builds. `run` is the loop, `step` one look."""

    def __init__(self, target: Target, indexes: Indexes, tables: Sequence[Table]) -> None:
        self.target, self.indexes, self.tables = target, indexes, tables

    async def run(self, stop: asyncio.Event, stream: Stream) -> None:
        """Until `stop`, while this process holds the stream's lease: a generation may be added at any time."""

        async def turn(stop: asyncio.Event) -> None:
            await self.step()

        while not stop.is_set():
            if stream.is_owner:
                await retrying(turn, stop)
            await wait(stop, POLL_S)

    async def step(self) -> bool:
        """Build for the first generation whose load is nearly over; True once every fed generation is live."""
        async with self.target.begin() as tx:
            loading = [g for g in await tx.ledger.generations() if g.fed and g.phase != "live"]
            if not loading:
                return True
            backfilled = all(s.backfilled for s in await tx.ledger.tables())
            backlogs = [await tx.ledger.backlog(g) for g in loading] if backfilled else []
        for generation, backlog in zip(loading, backlogs, strict=False):
            if generation.swept and is_small(backlog.waiting, backlog.rows_embedded):
                await self._built(generation)
                return len(loading) == 1
        return False

    async def _built(self, generation: Generation) -> None:
        try:
            await self._build(generation)
        except SchemaChanged:
            async with self.target.begin() as tx:
                if generation.id in [g.id for g in await tx.ledger.generations()]:
                    raise
            log.info("generation %s was dropped before its index was built", generation.name)

    async def _build(self, generation: Generation) -> None:
        await self._phase(generation, "indexing", {})
        for table in self.tables:
            state = await self.indexes.state(table, generation)
            if not (state.exists and state.valid):
                log.info("building the index of %s, %d chunks", state.table, state.rows)
                await self.indexes.build(table, generation)
                log.info("the index of %s is built", state.table)
            await self.indexes.analyze_and_prewarm(table, generation)
        states = {t.alias: await self.indexes.state(t, generation) for t in self.tables}
        await self._phase(
            generation, "live", {alias: {"valid": s.valid, "rows": s.rows} for alias, s in states.items()}
        )

    async def _phase(self, generation: Generation, phase: str, state: dict[str, object]) -> None:
        async with self.target.begin() as tx:
            await tx.ledger.set_phase(generation, phase, state)
            await tx.ledger.journal("index", f"generation-{phase}", {"generation": generation.name})
