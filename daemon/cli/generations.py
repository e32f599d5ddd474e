"""`generation add | list | drop`: the sets of vectors that one stream keeps fed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Json, Name, frame_of, operator, page
from daemon.cli.output import table

if TYPE_CHECKING:
    from daemon.procedures.generations import Listed
    from daemon.settings import Settings

EXITS = [ExitCode.NO, ExitCode.AWAY, ExitCode.REFUSED, ExitCode.CONFIG]

Which = Annotated[str, typer.Argument(metavar="GENERATION", help="Name of the generation.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="The sets of vectors that one stream keeps fed: one more, all of them, one fewer.")
    page(group, "add", ("revector generation add v3 articles", "revector generation add v3 --json"), EXITS)(add)
    page(group, "list", ("revector generation list articles", "revector generation list articles --json"), EXITS)(list_)
    examples = ("revector generation drop v2 articles", "revector generation drop v2 articles --confirm v2")
    page(group, "drop", examples, EXITS)(drop)
    app.add_typer(group, name="generation")


def add(
    context: typer.Context,
    generation: Which,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Add a configured generation to a migration that has begun: its record and its relations. The running stream feeds
    it from then on and hands it the rows that are there; nothing is read from the source again. It is embedded by the
    `run` and `embed` processes that are started with this configuration."""
    from daemon.procedures import generations as procedure

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    wanted = procedure.chosen(loaded.settings, generation)
    contract = frame.parts(loaded).contract(wanted)
    settings, said = loaded.settings, {"by": operator()}
    made, is_new = frame.ask_target(
        loaded, "generation", lambda target: procedure.add(target, settings, wanted, contract, said)
    )
    body = {"migration": settings.name, "generation": made.name, "contract": made.contract_id, "added": is_new}
    frame.out.answer("generation", body, _added(settings.name, made.name, is_new))


def list_(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """List the generations of the migration, the oldest first: what is embedded, what waits, and which of them this
    configuration embeds."""
    from daemon.procedures.generations import find

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    settings = loaded.settings
    found = frame.ask_target(loaded, "generation", lambda target: find(target, settings))
    absent = _absent(settings, found)
    body = {"migration": settings.name, "generations": [_document(each) for each in found], "not_added": absent}
    frame.out.answer("generation", body, _lines(settings.name, found, absent))


def drop(
    context: typer.Context,
    generation: Which,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    confirm: Annotated[
        str | None, typer.Option("--confirm", metavar="GENERATION", help="Its name again: do it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove a generation with its chunks, its work and its views, for good. Without --confirm the plan is shown and
    nothing is done. What readers follow, and the last generation of a migration, is never removed."""
    from daemon.procedures import generations as procedure

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    if confirm not in (None, generation):
        raise typer.BadParameter(f"--confirm wants {generation}, the name of what is to be dropped")
    settings, said = loaded.settings, {"by": operator()}
    it = frame.ask_target(loaded, "generation", lambda target: procedure.one(target, settings, generation))
    if confirm is not None:
        frame.ask_target(loaded, "generation", lambda target: procedure.drop(target, settings, it, said))
    body = {"migration": settings.name, "dropped": confirm is not None, "generation": _document(it)}
    frame.out.answer("generation", body, _dropped(settings, it, is_done=confirm is not None))
    if confirm is None:
        raise typer.Exit(ExitCode.NO)


def _absent(settings: Settings, found: list[Listed]) -> list[str]:
    """Configured, and not in the migration."""
    listed = {each.generation.name for each in found}
    return [g.name for g in settings.generation if g.name not in listed]


def _document(it: Listed) -> dict[str, Any]:

    g, b = it.generation, it.backlog
    return {
        "name": g.name,
        "model": it.model,
        "dimensions": g.dimensions,
        "vector_type": g.vector_type,
        "metric": g.metric,
        "contract": g.contract_id,
        "phase": g.phase,
        "swept": g.swept,
        "rows_embedded": b.rows_embedded,
        "waiting": b.waiting,
        "refused": b.refused,
        "accepted": b.accepted,
        "tokens": b.tokens,
        "configured": it.is_configured,
        "candidate": it.is_candidate,
        "routed": it.is_routed,
    }


def _added(migration: str, name: str, is_new: bool) -> list[str]:
    if not is_new:
        return [f"{migration} has generation {name} already", f"next: revector generation list {migration}"]
    return [
        f"{migration}: generation {name} is added and fed by every change from now on",
        "  rows      the process that holds the stream hands it those that are there; until then it is not swept",
        "  embedding by `run` and `embed` processes that are started with this configuration. Those that were started",
        "            before keep it fed and do not embed it: restart them, or start one more",
        f"next: revector embed {migration}",
    ]


def _lines(migration: str, found: list[Listed], absent: list[str]) -> list[str]:
    from daemon.core.status import grouped

    rows = [("NAME", "MODEL", "VECTOR", "PHASE", "EMBEDDED", "WAITING", "REFUSED", "")]
    for each in found:
        g, b = each.generation, each.backlog
        vector = f"{g.vector_type}({g.dimensions})"
        counts = (grouped(b.rows_embedded), grouped(b.waiting), grouped(b.refused))
        rows.append((g.name, each.model, vector, g.phase, *counts, ", ".join(_notes(each))))
    lines = [f"{migration}:", *(f"  {line}" for line in table(rows))]
    lines += [f"  {name} is configured and not added: revector generation add {name} {migration}" for name in absent]
    return lines


def _notes(it: Listed) -> list[str]:
    notes = {
        "readers follow it": it.is_routed,
        "to cut over to": it.is_candidate,
        "not swept yet": not it.generation.swept,
        "not in this configuration: fed, and embedded by others at most": not it.is_configured,
    }
    return [words for words, holds in notes.items() if holds]


def _dropped(settings: Settings, it: Listed, *, is_done: bool) -> list[str]:
    from daemon.core.status import grouped

    name, b = it.generation.name, it.backlog
    embedded = f"{grouped(b.rows_embedded)} rows embedded for {grouped(b.tokens)} tokens, {grouped(b.waiting)} waiting"
    lines = [
        f"{settings.name}: generation {name} ({it.model}) {'is dropped' if is_done else 'would be dropped'}",
        f"  lost      {embedded}",
        f"  relations {', '.join(f'{alias}_{name}' for alias in it.tables)}, each with its search view",
        "  stays     certificates, the journal, the replica, every other generation",
        "  processes that embed it stop to; the stream waits while it is removed",
    ]
    if it.is_configured:
        lines.append(f"  configuration: take [[generation]] {name} out, or the next start is refused")
    if not is_done:
        lines.append(f"nothing was done; to do it: revector generation drop {name} {settings.name} --confirm {name}")
    return lines
