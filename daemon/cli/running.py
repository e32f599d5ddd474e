"""Commands that stay: `run` (stream, backfill and embedding together), and each of the three as its own process.

SIGINT and SIGTERM drain: open windows and pages end, then the process leaves with 0. A second signal leaves at once;
nothing is lost by that, what was not committed is done again.
"""

from __future__ import annotations

import asyncio
import os
import signal
from types import FrameType
from typing import TYPE_CHECKING

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Frame, Name, frame_of, page
from daemon.errors import RevectorError, first_of

if TYPE_CHECKING:
    from daemon.service.supervise import Roles

EXITS = [ExitCode.AWAY, ExitCode.HELD, ExitCode.REFUSED, ExitCode.CONFIG]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    examples = ("revector run articles", "revector run --config articles.toml --set generation.limits.in_flight=16")
    page(app, "run", examples, EXITS)(run)
    page(app, "stream", ("revector stream articles", "revector stream --config articles.toml"), EXITS)(stream)
    page(app, "backfill", ("revector backfill articles", "revector backfill --config articles.toml"), EXITS)(backfill)
    page(app, "embed", ("revector embed articles", "revector embed --config articles.toml"), EXITS)(embed)


def run(context: typer.Context, name: Name = None, file: ConfigFile = None, changes: Changes = None) -> None:
    """Run the migration: follow changes, copy what is there, embed. Stays until it is told to stop."""
    from daemon.service.supervise import Roles

    _serve(frame_of(context), (name, file, changes), Roles(stream=True, backfill=True, embed=True))


def stream(context: typer.Context, name: Name = None, file: ConfigFile = None, changes: Changes = None) -> None:
    """Follow changes only: one process at a time does, further ones stand by."""
    from daemon.service.supervise import Roles

    _serve(frame_of(context), (name, file, changes), Roles(stream=True))


def backfill(context: typer.Context, name: Name = None, file: ConfigFile = None, changes: Changes = None) -> None:
    """Copy what is in the source only; any number of processes share the ranges. Leaves when all is copied."""
    from daemon.service.supervise import Roles

    _serve(frame_of(context), (name, file, changes), Roles(backfill=True))


def embed(context: typer.Context, name: Name = None, file: ConfigFile = None, changes: Changes = None) -> None:
    """Embed what waits only; any number of processes share the work."""
    from daemon.service.supervise import Roles

    _serve(frame_of(context), (name, file, changes), Roles(embed=True))


def _serve(frame: Frame, given: tuple[Name, ConfigFile, Changes], roles: Roles) -> None:
    from daemon.service.serve import serve

    name, file, changes = given
    loaded = frame.load(name, file, changes)
    with asyncio.Runner() as runner:
        stop = asyncio.Event()
        _drain_on_signals(runner.get_loop(), stop)
        try:
            runner.run(serve(frame.parts(loaded), loaded, roles, stop))
        except* RevectorError as errors:
            raise first_of(errors) from None


def _drain_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """First signal: stop. Second: leave at once, without the interpreter's own tidying, which could block.

    Plain handlers, not the loop's: those wait for the loop's turn, and a second signal is for a loop that has none.
    """
    told: list[int] = []

    def on_signal(signum: int, _: FrameType | None) -> None:
        if told:
            os._exit(128 + signum)
        told.append(signum)
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, on_signal)
