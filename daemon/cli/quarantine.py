"""`quarantine list | show | retry | accept`: work that the provider refuses, and what becomes of it.

A row is named by `--table` and one `--key` for each column of its key; with one table in the configuration, `--table`
may be left out. Each command is one transaction. Shows keys, codes and counts; row text is never read.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Json, Name, OfGeneration, frame_of, operator, page
from daemon.cli.output import counted, table

if TYPE_CHECKING:
    from daemon import config
    from daemon.core.model import Quarantined
    from daemon.procedures.quarantine import Found, Which

EXITS = [ExitCode.NO, ExitCode.AWAY, ExitCode.REFUSED, ExitCode.CONFIG]
SHOWN_KEYS = 20  # of the entries that a command changed
LONGEST_REASON = 500

OfTable = Annotated[
    str | None, typer.Option("--table", metavar="TABLE", help="Its alias; needed where there are several.")
]
OfKey = Annotated[
    list[str] | None,
    typer.Option(
        "--key", metavar="VALUE", help="The row's key; repeated for a key of several columns, in their order."
    ),
]
All = Annotated[bool, typer.Option("--all", help="Every refused entry, of --table if it is given.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Work that the provider refuses: see it, try it again, or accept it.")
    examples = ("revector quarantine list articles", "revector quarantine list articles --state refused --json")
    page(group, "list", examples, EXITS)(list_)
    examples = (
        "revector quarantine show articles --key 17",
        "revector quarantine show articles --table part --key a --key 2 --json",
    )
    page(group, "show", examples, EXITS)(show)
    examples = ("revector quarantine retry articles --key 17", "revector quarantine retry articles --all")
    page(group, "retry", examples, EXITS)(retry)
    examples = (
        "revector quarantine accept articles --key 17 --reason 'an empty draft'",
        "revector quarantine accept articles --table article --all --reason 'TICKET-7: scans without text'",
    )
    page(group, "accept", examples, EXITS)(accept)
    app.add_typer(group, name="quarantine")


def list_(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    only_table: OfTable = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help="refused or accepted; else both.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, metavar="N", help="Most entries shown.")] = 100,
    as_json: Json = False,
) -> None:
    """List what the provider refuses: refused entries, then accepted ones, the oldest first."""
    from daemon.core.model import WorkState
    from daemon.procedures.quarantine import find

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    if state not in (None, WorkState.REFUSED.value, WorkState.ACCEPTED.value):
        raise typer.BadParameter("--state wants refused or accepted")
    which = _which(loaded, generation, only_table, None, None if state is None else WorkState(state))
    found = frame.ask_target(loaded, "quarantine", lambda target: find(target, which, limit))
    frame.out.answer("quarantine", _document("list", which, found), _listed(which, found, _of(generation)))


def show(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    only_table: OfTable = None,
    key: OfKey = None,
    as_json: Json = False,
) -> None:
    """Show one entry: what the provider said, how often it was tried, since when it is refused, and what to do."""
    from daemon.procedures.quarantine import find

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    if not key:
        raise typer.BadParameter("--key is missing: which row?")
    which = _which(loaded, generation, only_table, tuple(key), None)
    found = frame.ask_target(loaded, "quarantine", lambda target: find(target, which, 1))
    frame.out.answer("quarantine", _document("show", which, found), _shown(which, found, _of(generation)))


def retry(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    only_table: OfTable = None,
    key: OfKey = None,
    is_all: All = False,
    as_json: Json = False,
) -> None:
    """Have a row tried again, refused or accepted, or with --all every refused one. It waits like work of a change."""
    from daemon.procedures.quarantine import retry as procedure

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    which = _chosen(loaded, generation, only_table, key, is_all)
    changed = frame.ask_target(loaded, "quarantine", lambda target: procedure(target, which, operator()))
    nothing = "nothing to retry: no entry is refused"
    frame.out.answer(
        "quarantine", _document("retry", which, changed), _changed(which, changed, "waiting again", nothing)
    )


def accept(
    context: typer.Context,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the journal with your account.")
    ],
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    only_table: OfTable = None,
    key: OfKey = None,
    is_all: All = False,
    as_json: Json = False,
) -> None:
    """Accept that a refused row, or with --all every one, is not found by searches in this generation. It no longer
    stands against a proof; a later change of the row is embedded like any other."""
    from daemon.procedures.quarantine import accept as procedure

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    if not reason.strip() or len(reason) > LONGEST_REASON:
        raise typer.BadParameter(f"--reason wants a text of at most {LONGEST_REASON} characters")
    which = _chosen(loaded, generation, only_table, key, is_all)
    said = reason.strip()
    changed = frame.ask_target(loaded, "quarantine", lambda target: procedure(target, which, operator(), said))
    nothing = "nothing to accept: no entry is refused" if is_all else "nothing changed: it is accepted already"
    frame.out.answer("quarantine", _document("accept", which, changed), _changed(which, changed, "accepted", nothing))


def _chosen(
    loaded: config.Loaded, generation: str | None, only_table: str | None, key: list[str] | None, is_all: bool
) -> Which:
    """One row, or every refused entry. Raises BadParameter."""
    from daemon.core.model import WorkState

    if bool(key) == is_all:
        raise typer.BadParameter("name one row with --key, or every refused one with --all")
    return _which(loaded, generation, only_table, tuple(key or ()) or None, WorkState.REFUSED if is_all else None)


def _which(loaded: config.Loaded, generation: str | None, only_table: str | None, key: Any, state: Any) -> Which:
    """Raises BadParameter for a table that is not configured, or for a key without a table where there are several."""
    from daemon.procedures.quarantine import Which

    settings = loaded.settings
    aliases = [t.alias for t in settings.table]
    if only_table is not None and only_table not in aliases:
        raise typer.BadParameter(f"--table wants one of {', '.join(aliases)}")
    if key is not None and only_table is None:
        if len(aliases) > 1:
            raise typer.BadParameter(f"--key needs --table, one of {', '.join(aliases)}")
        only_table = aliases[0]
    return Which(settings.name, generation or settings.candidate.name, only_table, key, state)


def _document(action: str, which: Which, found: Found) -> dict[str, Any]:
    """changed: of a command that changes; its entries are as they were before. Only the first ones are listed."""
    is_look = action in ("list", "show")
    entries = found.entries if is_look else found.entries[:SHOWN_KEYS]
    return {
        "migration": which.migration,
        "generation": which.generation,
        "action": action,
        "changed": None if is_look else len(found.entries),
        "refused": found.refused,
        "accepted": found.accepted,
        "entries": [_entry(q, found) for q in entries],
        "is_cut": found.is_cut or len(entries) < len(found.entries),
    }


def _entry(q: Quarantined, found: Found) -> dict[str, Any]:
    from dataclasses import asdict

    from daemon.core.refusals import meaning, refusal, remedy

    refused = refusal(q.reason)
    return {
        "table": q.table,
        "key": dict(zip(found.columns[q.table], q.key, strict=True)),
        "state": q.state.value,
        "reason": asdict(refused),
        "meaning": meaning(refused),
        "remedy": remedy(refused),
        "attempts": q.attempts,
        "age_s": q.age_s,
    }


def _listed(which: Which, found: Found, of: str) -> list[str]:
    """of: the flag that names the generation, if it has to be named."""
    from daemon.core.face import duration
    from daemon.core.refusals import refusal
    from daemon.core.status import grouped

    if not found.entries:
        return [f"{which.migration}: nothing in quarantine of generation {which.generation}"]
    counts = f"{grouped(found.refused)} refused, {grouped(found.accepted)} accepted"
    rows = [("TABLE", "KEY", "STATE", "SINCE", "TRIED", "REASON")]
    for q in found.entries:
        since = "unknown" if q.age_s is None else duration(q.age_s)
        key = " ".join(plain(value) for value in q.key)
        rows.append((q.table, key, q.state.value, since, str(q.attempts), str(refusal(q.reason))))
    lines = [f"{which.migration}: {counts} in generation {which.generation}", *(f"  {line}" for line in table(rows))]
    if found.is_cut:
        lines.append(f"  and more: --limit {10 * len(found.entries)} shows them")
    return [*lines, f"next: revector quarantine show {which.migration}{of} {_flags(found.entries[0])}"]


def _shown(which: Which, found: Found, of: str) -> list[str]:
    from daemon.core.face import duration
    from daemon.core.model import WorkState
    from daemon.core.refusals import meaning, refusal, remedy
    from daemon.procedures.quarantine import named

    (q,) = found.entries
    refused = refusal(q.reason)
    key = ", ".join(f"{c} = {plain(v)}" for c, v in zip(found.columns[q.table], q.key, strict=True))
    lines = [
        f"{plain(named(q.table, q.key))}: {q.state.value} in generation {which.generation}",
        f"  key       {key}",
        f"  reason    {refused}",
        f"            {meaning(refused)}",
        f"  tried     {counted(q.attempts, 'time')}",
        f"  since     {'unknown' if q.age_s is None else duration(q.age_s) + ' ago'}",
        f"  to do     {remedy(refused)}",
    ]
    flags = _flags(q)
    lines.append(f"next: revector quarantine retry {which.migration}{of} {flags}")
    if q.state is WorkState.REFUSED:
        lines.append(f"      revector quarantine accept {which.migration}{of} {flags} --reason '…'")
    return lines


def _changed(which: Which, changed: Found, became: str, nothing: str) -> list[str]:
    from daemon.core.status import grouped
    from daemon.procedures.quarantine import named

    count = len(changed.entries)
    if not count:
        return [f"{which.migration}: {nothing}"]
    rows = "1 row" if count == 1 else f"{grouped(count)} rows"
    lines = [f"{which.migration}: {rows} {became} in generation {which.generation}"]
    lines += [f"  {plain(named(q.table, q.key))}" for q in changed.entries[:SHOWN_KEYS]]
    if count > SHOWN_KEYS:
        lines.append(f"  and {grouped(count - SHOWN_KEYS)} more")
    left = f"  left in quarantine: {grouped(changed.refused)} refused, {grouped(changed.accepted)} accepted"
    again = ["  that was as many as one command takes: repeat it"] if changed.is_cut else []
    return [*lines, left, *again]


def _of(generation: str | None) -> str:
    return "" if generation is None else f" --generation {shlex.quote(generation)}"


def _flags(q: Quarantined) -> str:
    """What names the row on a command line."""
    keys = (f"--key={_quoted(v)}" if v.startswith("-") else f"--key {_quoted(v)}" for v in q.key)
    return f"--table {shlex.quote(q.table)} {' '.join(keys)}"


def _quoted(text: str) -> str:
    """For a shell; what cannot be printed in the `$'…'` that bash and zsh read."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.encode("unicode_escape").decode().replace("'", "\\'")
    return f"$'{escaped}'"


def plain(text: str) -> str:
    """A key is data: nothing in it may move a terminal's cursor."""
    return text if text.isprintable() else json.dumps(text)
