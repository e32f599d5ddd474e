"""One process of a migration: the supervisor, and around it what an operator sees (logs, pages, metrics).

The status is looked at every few seconds on connections of its own; the pages and the metrics show the last look, so a
blocked loop or a slow part can neither hang them nor look alive.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from daemon.config import Loaded
from daemon.errors import RevectorError
from daemon.parts import Parts
from daemon.procedures.look import Looker
from daemon.service.supervise import Roles, Running, Supervisor

LOOK_EVERY_S = 2.0


async def serve(parts: Parts, loaded: Loaded, roles: Roles, stop: asyncio.Event) -> None:
    """Run until `stop`. Raises what `Supervisor.run` raises."""
    supervisor = Supervisor(parts, roles, stop)
    looking = asyncio.create_task(_look(parts, supervisor.running, stop))
    try:
        await supervisor.run()
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _look(parts: Parts, running: Running, stop: asyncio.Event) -> None:
    """Keep the last status in `running`, for pages and metrics."""
    async with Looker(parts, time.monotonic) as looker:
        while not stop.is_set():
            if running.is_ready:
                try:
                    running.status = await looker.look(datetime.now(UTC).isoformat(timespec="seconds"))
                except RevectorError:
                    running.status = None
            await asyncio.sleep(LOOK_EVERY_S)
