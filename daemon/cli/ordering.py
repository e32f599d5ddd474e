"""`pause`, `resume`, `limits`: orders that reach every running process of a migration within about a second.

An order stands in the target until it is taken back; processes that start later obey it too. It changes no
configuration, and never permits more than the configuration does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Frame, Json, Name, OfGeneration, frame_of, operator, page
from daemon.cli.output import table

if TYPE_CHECKING:
    from daemon import config
    from daemon.core.orders import Standing
    from daemon.ports import Target
    from daemon.procedures.orders import InForce

    Order = Callable[[Target, str, Collection[str], str], Awaitable[Standing]]

EXITS = [ExitCode.NO, ExitCode.AWAY, ExitCode.REFUSED, ExitCode.CONFIG]
NAMES = {
    "requests_per_minute": "requests per minute",
    "tokens_per_minute": "tokens per minute",
    "in_flight": "requests at once",
}

What = Annotated[
    str | None, typer.Option("--what", metavar="WHAT", help="backfill or embedding; both without the option.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    page(app, "pause", ("revector pause articles", "revector pause articles --what backfill --json"), EXITS)(pause)
    page(app, "resume", ("revector resume articles", "revector resume articles --what embedding"), EXITS)(resume)
    examples = ("revector limits articles", "revector limits articles --tokens-per-minute 500000 --in-flight 4")
    page(app, "limits", examples, EXITS)(limits)


def pause(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    what: What = None,
    as_json: Json = False,
) -> None:
    """Pause backfill work (copying pages and embedding copied rows), or embedding (nothing is sent to the provider), or
    both. The replica follows its source all the same. What has begun is ended."""
    from daemon.procedures.orders import pause as procedure

    frame = frame_of(context)
    _ordered(frame, frame.load(name, file, changes), "pause", what, procedure)


def resume(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    what: What = None,
    as_json: Json = False,
) -> None:
    """Take a pause back. Every process goes on within about a second."""
    from daemon.procedures.orders import resume as procedure

    frame = frame_of(context)
    _ordered(frame, frame.load(name, file, changes), "resume", what, procedure)


def limits(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    requests: Annotated[
        int | None, typer.Option("--requests-per-minute", min=1, metavar="N", help="All processes together.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens-per-minute", min=1, metavar="N", help="All processes together.")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option("--in-flight", min=1, max=256, metavar="N", help="Requests at once of each process.")
    ] = None,
    is_reset: Annotated[bool, typer.Option("--reset", help="Forget what was ordered before.")] = False,
    as_json: Json = False,
) -> None:
    """Order lower limits of a generation, or without options show what is in force and where each number comes from.
    Of order, configuration and what the provider's answers name, the lowest holds."""
    from daemon.core.orders import Limits
    from daemon.procedures.orders import limit as order
    from daemon.procedures.orders import limits as look

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    settings = loaded.settings
    names = [g.name for g in settings.generation]
    if generation is not None and generation not in names:
        raise typer.BadParameter(f"--generation wants one of {', '.join(names)}")
    change = Limits(requests, tokens, in_flight)
    shown = [g for g in settings.generation if generation in (None, g.name)]

    async def asked(target: Target) -> list[InForce]:
        if is_reset or change != Limits():
            of = generation or settings.candidate.name
            await order(target, settings.name, of, change, operator(), is_reset=is_reset)
        return await look(target, settings.name, shown)

    found = frame.ask_target(loaded, "orders", asked)
    body = {"migration": settings.name, "generations": {of.generation: _limits_document(of) for of in found}}
    frame.out.answer("limits", body, [f"{settings.name}: limits", *(line for of in found for line in _limit_lines(of))])


def _chosen(what: str | None) -> tuple[str, ...]:
    """Raises BadParameter."""
    from daemon.core.orders import WHAT

    if what is not None and what not in WHAT:
        raise typer.BadParameter(f"--what wants {' or '.join(WHAT)}")
    return WHAT if what is None else (what,)


def _ordered(frame: Frame, loaded: config.Loaded, action: str, what: str | None, procedure: Order) -> None:
    chosen, migration = _chosen(what), loaded.settings.name
    found = frame.ask_target(loaded, "orders", lambda target: procedure(target, migration, chosen, operator()))
    body = {"migration": migration, "action": action, "paused": sorted(found.paused)}
    lines = [f"{migration}: {found.words} paused" if found.words else f"{migration}: nothing is paused"]
    if found.words:
        lines.append(f"next: revector resume {migration}")
    frame.out.answer(action, body, lines)


def _limits_document(of: InForce) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in NAMES:
        ordered, configured = getattr(of.ordered, name), getattr(of.configured, name)
        lowest, origin = _lowest(ordered, configured)
        found[name] = {"in_force": lowest, "from": origin, "order": ordered, "config": configured}
    for name in ("requests_per_minute", "tokens_per_minute"):
        found[name]["paced_by"] = None if of.paced_by is None else getattr(of.paced_by, name)
    return found


def _lowest(ordered: int | None, configured: int | None) -> tuple[int | None, str | None]:
    if ordered is not None and (configured is None or ordered < configured):
        return ordered, "order"
    return configured, None if configured is None else "config"


def _limit_lines(of: InForce) -> list[str]:
    from daemon.core.status import grouped

    rows = []
    for name, words in NAMES.items():
        found = _limits_document(of)[name]
        number = "not limited" if found["in_force"] is None else grouped(found["in_force"])
        notes = [found["from"]] if found["from"] else []
        notes += [f"{o}: {grouped(found[o])}" for o in ("order", "config") if found[o] and o != found["from"]]
        paced_by = found.get("paced_by")
        if paced_by is not None and paced_by != found["in_force"]:
            notes.append(f"last request paced by {grouped(paced_by)}, as the provider permits")
        rows.append([words, number, ", ".join(notes)])
    return [f"  generation {of.generation}", *(f"    {line}" for line in table(rows))]
