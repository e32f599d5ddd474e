"""`plan`: what a migration will cost and take, before anything exists in the target, or beside a run."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Json, Name, OfGeneration, frame_of, page
from daemon.errors import ConfigError, Problem, RevectorError

if TYPE_CHECKING:
    from daemon.core.forecast import Forecast
    from daemon.parts import Parts
    from daemon.procedures.plan import Wish
    from daemon.settings import Settings
    from daemon.settings_generation import GenerationSettings

EXITS = [ExitCode.AWAY, ExitCode.REFUSED, ExitCode.CONFIG]


def register(app: typer.Typer) -> None:
    """Add the command."""
    page(app, "plan", ("revector plan articles", "revector plan articles --sample 50000 --probe --json"), EXITS)(plan)


def plan(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    exact: Annotated[bool, typer.Option("--exact", help="Read every row, however many there are.")] = False,
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=100, metavar="ROWS", help="Rows to pick at random from a table that has more."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="Send a few dozen chunks to the provider, which costs their tokens, and build a small index at the "
            "target in a temporary table.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a migration will cost and take: rows, chunks, tokens, money, time, storage. The source is read, a small
    table whole, a larger one by a random sample; nothing is made. Nothing is sent to the provider without --probe."""
    from daemon.core.forecast_face import as_json as document
    from daemon.core.forecast_face import render_text
    from daemon.procedures.plan import Wish

    frame = frame_of(context)
    if exact and sample is not None:
        raise typer.BadParameter("--exact reads every row: leave --sample out")
    loaded = frame.load(name, file, changes)
    wanted = chosen(loaded.settings, generation)
    found, is_kept = asyncio.run(_planned(frame.parts(loaded), wanted, Wish(sample, exact, probe)))
    body = {"migration": loaded.settings.name, "kept": is_kept, **document(found)}
    frame.out.answer("plan", body, render_text(found, loaded.settings.name))


def chosen(settings: Settings, name: str | None) -> GenerationSettings:
    """The generation of that name. Raises ConfigError."""
    if name is None:
        return settings.candidate
    known = {g.name: g for g in settings.generation}
    if name not in known:
        hint = f"the configuration has {', '.join(known)}"
        raise ConfigError([Problem("generation-unknown", "generation", f"there is no generation {name}", hint)])
    return known[name]


async def _planned(parts: Parts, generation: GenerationSettings, wish: Wish) -> tuple[Forecast, bool]:
    """The forecast, and whether it is kept for `status`: only where the migration exists and the target answers."""
    from daemon.procedures import plan as procedure

    found = await procedure.plan(parts, generation, wish, time.monotonic)
    target = parts.target("plan")
    try:
        async with asyncio.timeout(procedure.TARGET_LIMIT_S):
            planned_at = datetime.now(UTC).isoformat(timespec="seconds")
            return found, await procedure.keep(target, found, planned_at)
    except (RevectorError, TimeoutError):
        return found, False
    finally:
        await target.close()
