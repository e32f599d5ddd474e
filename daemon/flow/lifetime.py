"""When a generation is dropped, those who embed it end: quietly, and nobody else with them.

An embedder in the middle of a batch meets relations that are gone, which would otherwise be a reason to halt; one that
has nothing to do would ask for work for ever. Both are told apart from a fault by one question: is it still listed?
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from daemon.core.model import Generation
from daemon.errors import RevectorError, SchemaChanged
from daemon.flow.pacing import retrying
from daemon.ports import Target

log = logging.getLogger(__name__)

POLL_S = 2.0


class Lifetime:
    """Of one generation in this process. ended: set when it is dropped, or when the process is told to stop."""

    def __init__(self, target: Target, generation: Generation) -> None:
        self.target, self.generation = target, generation
        self.ended = asyncio.Event()
        self.is_dropped = False
        self._using = asyncio.Lock()  # of the one connection: every loop of the generation may ask at once

    async def run(self, stop: asyncio.Event) -> None:
        """Watch until either happens. A target that does not answer never keeps the others from stopping."""
        watching = asyncio.create_task(self._watch())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((watching, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.ended.set()
            watching.cancel()
            stopped.cancel()
            await asyncio.gather(watching, stopped, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                if not await self.look():
                    return
            except RevectorError as error:  # whoever works with the target says so louder
                log.debug("%s: %s", error.id, error.message)
            await asyncio.sleep(POLL_S)

    async def look(self) -> bool:
        """Whether it is still listed; said once when it is not."""
        async with self._using, self.target.begin() as tx:
            listed = self.generation.id in [g.id for g in await tx.ledger.generations()]
        if not listed and not self.is_dropped:
            self.is_dropped = True
            log.info("generation %s was dropped: this process stops embedding it", self.generation.name)
            self.ended.set()
        return listed

    async def within(self, loop: Awaitable[None]) -> None:
        """Run one of its loops; relations that are gone with it end the loop without a word more."""
        try:
            await loop
        except SchemaChanged:
            if await self._is_listed() and not self.is_dropped:
                raise

    async def _is_listed(self) -> bool:
        """`look`, asked again while the target is away: that must not end the process. True where told to stop."""
        listed = True

        async def ask(stop: asyncio.Event) -> None:
            nonlocal listed
            listed = await self.look()

        await retrying(ask, self.ended)
        return listed
