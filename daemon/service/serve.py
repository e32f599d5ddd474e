"""One process of a migration: the supervisor, and around it what an operator sees (logs, pages, metrics, systemd).

The status is looked at every few seconds on connections of its own; the pages and the metrics show the last look, so a
blocked loop or a slow part can neither hang them nor look alive.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from datetime import UTC, datetime

from daemon import config
from daemon.config_problems import show_key
from daemon.conninfo import Conninfo
from daemon.errors import RevectorError
from daemon.parts import Parts
from daemon.procedures.look import Looker
from daemon.procedures.plan import forecast_beside
from daemon.service import logs, notify
from daemon.service.instruments import Sources
from daemon.service.last_status import LastStatus
from daemon.service.redaction import Redaction
from daemon.service.supervise import Roles, Supervisor
from daemon.service.telemetry import Telemetry
from daemon.service.web import Web
from daemon.settings_checks import Secret

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
READY_POLL_S = 0.5


async def serve(parts: Parts, loaded: config.Loaded, roles: Roles, stop: asyncio.Event) -> None:
    """Run until `stop`. Raises what `Supervisor.run` raises, and ConfigError: a secret cannot be read."""
    settings, environ = loaded.settings, loaded.environ
    _hide_secrets(loaded, logs.configure(settings.log, environ))
    supervisor, last = Supervisor(parts, roles, stop), LastStatus()
    sources = Sources(supervisor.running, last)
    with ExitStack() as stack:
        telemetry = Telemetry(settings.name, sources, environ.get("OTEL_METRICS_EXPORTER"))
        stack.callback(telemetry.close)
        stack.enter_context(Web(settings.http.address, sources, telemetry))
        systemd = environ.get("NOTIFY_SOCKET")
        every_s = notify.watchdog_interval_s(environ.get("WATCHDOG_USEC"))
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(_look(parts, supervisor, last)),
                group.create_task(_tell_systemd(systemd, every_s)),
                group.create_task(_forecast(parts, supervisor)),
            ]
            notify.notify(systemd, notify.READY, notify.status(f"migration {settings.name}"))
            try:
                await supervisor.run()
            finally:
                notify.notify(systemd, notify.STOPPING)
                for task in beside:
                    task.cancel()


def _hide_secrets(loaded: config.Loaded, redaction: Redaction) -> None:
    for key, value in config.leaves(loaded.settings):
        if isinstance(value, Secret):
            redaction.hide(loaded.reveal(value, show_key(key)))
        elif isinstance(value, Conninfo) and (password := value.get("password")):
            redaction.hide(password)


async def _look(parts: Parts, supervisor: Supervisor, last: LastStatus) -> None:
    """Keep the last status for pages and metrics."""
    async with Looker(parts, time.monotonic) as looker:
        while True:
            if supervisor.running.is_ready or supervisor.running.halted_by is not None:
                try:
                    last.publish(await looker.look(datetime.now(UTC).isoformat(timespec="seconds")))
                except RevectorError as error:
                    log.debug("the status could not be looked at: %s", error.id)
                    last.forget()
            await asyncio.sleep(LOOK_EVERY_S)


async def _forecast(parts: Parts, supervisor: Supervisor) -> None:
    """Once the loops run: what the backfill is expected to cost, where nobody has planned it."""
    while supervisor.running.roles.backfill:
        if supervisor.running.is_ready:
            await forecast_beside(parts, datetime.now(UTC).isoformat(timespec="seconds"))
            return
        await asyncio.sleep(READY_POLL_S)


async def _tell_systemd(address: str | None, every_s: float | None) -> None:
    """Answer systemd's watchdog from the main loop: a blocked loop is restarted."""
    while every_s is not None:
        notify.notify(address, notify.WATCHDOG)
        await asyncio.sleep(every_s)
