"""Hand the rows that are there to generations that were added after the start.

Since a generation is listed, every window and page writes its work too; what lay in the replica before is handed over
here, page by page: no second copy of the source, no replay. A table is swept once its backfill is complete, because
pages feed every listed generation by themselves. The sweep's cursor lives with the generation, so whoever holds the
stream's lease goes on where the last one ended; a page that is repeated changes nothing.

Until a generation is swept nothing says of it that it is caught up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from daemon.core.model import Table
from daemon.flow.pacing import retrying, wait
from daemon.flow.stream import Stream
from daemon.ports import Target

log = logging.getLogger(__name__)

POLL_S = 0.5
PAGE_ROWS = 1000  # a window that changes one of them waits for the page, some 20 ms


class Sweep:
    """Runs where the stream's lease is held; tests call `step`. may_begin: whether backfill work may begin now."""

    def __init__(
        self,
        target: Target,
        tables: Sequence[Table],
        may_begin: Callable[[], bool] = lambda: True,
        page_rows: int = PAGE_ROWS,
    ) -> None:
        self.target, self.tables, self.may_begin, self.page_rows = target, tables, may_begin, page_rows
        self.taken: dict[int, int] = {}  # rows by the generation's id, for the log

    async def run(self, stop: asyncio.Event, stream: Stream) -> None:
        """Until `stop`: a generation may be added at any time."""
        worked = False

        async def turn(stop: asyncio.Event) -> None:
            nonlocal worked
            worked = await self.step()

        while not stop.is_set():
            worked = False
            if stream.is_owner and self.may_begin():
                await retrying(turn, stop)
            if not worked:
                await wait(stop, POLL_S)

    async def step(self) -> bool:
        """One page, or the end of one generation's sweep; False where there is nothing to do, or not yet."""
        async with self.target.begin() as tx:
            unswept = [g for g in await tx.ledger.generations() if g.fed and not g.swept]
            copied = {s.table.id for s in await tx.ledger.tables() if s.backfilled} if unswept else set()
        for generation in unswept:
            for table in self.tables:
                if table.id not in copied:
                    continue
                async with self.target.begin() as tx:
                    rows = await tx.ledger.sweep(table, generation, self.page_rows)
                if rows:
                    self.taken[generation.id] = self.taken.get(generation.id, 0) + rows
                    return True
            if len(copied) == len(self.tables):
                async with self.target.begin() as tx:
                    await tx.ledger.set_swept(generation)
                    await tx.ledger.journal("sweep", "generation-swept", {"generation": generation.name})
                rows = self.taken.pop(generation.id, 0)
                log.info("generation %s is swept: %d rows were handed to it here", generation.name, rows)
                return True
        return False
