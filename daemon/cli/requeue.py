"""`requeue`: embed a chosen set of rows again, without touching the rest.

Rows are chosen by key, by a condition over their columns, because they are refused, or all of a table; the last one
shows what it would cost and wants the migration's name. Shows keys and counts; row text is never read.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.frame import Changes, ConfigFile, ExitCode, Json, Name, OfGeneration, frame_of, operator, page

if TYPE_CHECKING:
    from daemon import config
    from daemon.procedures.requeue import Requeued, Wanted

EXITS = [ExitCode.NO, ExitCode.AWAY, ExitCode.REFUSED, ExitCode.CONFIG]
SHOWN_KEYS = 20

OfTable = Annotated[
    str | None, typer.Option("--table", metavar="TABLE", help="Its alias; needed where there are several.")
]
OfKeys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="VALUE", help="A row's key; repeated for each column of the key, and for more rows."),
]
OfWhere = Annotated[
    str | None,
    typer.Option("--where", metavar="CONDITION", help="An SQL condition over used columns, as a table's `where`."),
]
Refused = Annotated[bool, typer.Option("--refused", help="Every refused entry, of --table if it is given.")]
All = Annotated[bool, typer.Option("--all", help="Every row of the table; wants --confirm.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Only say how many rows, and about how many tokens.")]
Confirm = Annotated[str | None, typer.Option("--confirm", metavar="NAME", help="The migration's name: do it.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    examples = (
        "revector requeue articles --key 17 --key 18",
        'revector requeue articles --where "views >= 100" --dry-run',
    )
    page(app, "requeue", examples, EXITS)(requeue)


def requeue(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    generation: OfGeneration = None,
    only_table: OfTable = None,
    key: OfKeys = None,
    where: OfWhere = None,
    refused: Refused = False,
    is_all: All = False,
    dry_run: Dry = False,
    confirm: Confirm = None,
    as_json: Json = False,
) -> None:
    """Embed a chosen set of rows of a generation again. Each chunk of theirs gets a new vector; until it is there the
    old one is found. No other row is touched. The rows wait like backfill work, behind changes."""
    from daemon.procedures.requeue import How
    from daemon.procedures.requeue import requeue as procedure

    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    chosen = [how for how, is_given in zip(How, (key, where is not None, refused, is_all), strict=True) if is_given]
    if len(chosen) != 1:
        raise typer.BadParameter("choose rows by one of --key, --where, --refused and --all")
    wanted = _wanted(loaded, chosen[0], generation, only_table, key or [], where or "")
    migration = loaded.settings.name
    if confirm not in (None, migration):
        raise typer.BadParameter(f"--confirm wants {migration}, the name of the migration")
    is_plan = not dry_run and wanted.how is How.ALL and confirm is None
    is_dry = dry_run or is_plan
    done = frame.ask_target(loaded, "requeue", lambda target: procedure(target, wanted, operator(), is_dry=is_dry))
    lines = _lines(wanted, done)
    if is_plan:
        lines.append(f"nothing was done; to do it: {_command(wanted)}")
    frame.out.answer("requeue", _document(wanted, done), lines)
    if is_plan:
        raise typer.Exit(ExitCode.NO)


def _wanted(
    loaded: config.Loaded, how: Any, generation: str | None, only_table: str | None, keys: list[str], where: str
) -> Wanted:
    """Raises BadParameter."""
    from daemon.procedures.requeue import MOST_KEYS, How, Wanted

    settings = loaded.settings
    aliases = [t.alias for t in settings.table]
    if only_table is not None and only_table not in aliases:
        raise typer.BadParameter(f"--table wants one of {', '.join(aliases)}")
    if only_table is None and how is not How.REFUSED:
        if len(aliases) > 1:
            raise typer.BadParameter(f"--{how.value} needs --table, one of {', '.join(aliases)}")
        only_table = aliases[0]
    if len(keys) > MOST_KEYS:
        raise typer.BadParameter(f"--key is taken at most {MOST_KEYS} times; --where can choose more rows")
    if how is How.WHERE and not where.strip():
        raise typer.BadParameter("--where wants a condition, such as --where 'views >= 100'")
    if not all(_is_text(value) for value in (*keys, where)):
        raise typer.BadParameter("--key and --where want UTF-8")
    return Wanted(settings.name, generation or settings.candidate.name, how, only_table, tuple(keys), where)


def _is_text(value: str) -> bool:
    """Whether Postgres can be given it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _document(wanted: Wanted, done: Requeued) -> dict[str, Any]:
    """rows: chosen; requeued: whether they wait now. tokens_about: null where nothing was embedded yet."""
    return {
        "migration": wanted.migration,
        "generation": wanted.generation,
        "table": wanted.table,
        "chosen_by": wanted.how.value,
        "rows": done.rows,
        "tokens_about": done.tokens,
        "requeued": done.is_done,
        "keys": [{"table": table, "key": list(key)} for table, key in done.keys],
        "is_cut": done.is_cut,
    }


def _lines(wanted: Wanted, done: Requeued) -> list[str]:
    from daemon.cli.quarantine import plain
    from daemon.core.status import grouped
    from daemon.procedures.quarantine import named

    if not done.rows:
        return [f"{wanted.migration}: nothing to embed again in generation {wanted.generation}: no row is chosen"]
    rows = "1 row" if done.rows == 1 else f"{grouped(done.rows)} rows"
    become = "waiting to be embedded again" if done.is_done else "would be embedded again"
    lines = [f"{wanted.migration}: {rows} {become} in generation {wanted.generation}"]
    lines += [f"  {plain(named(table, key))}" for table, key in done.keys[:SHOWN_KEYS]]
    if done.rows > SHOWN_KEYS:
        lines.append(f"  and {grouped(done.rows - SHOWN_KEYS)} more")
    about = "unknown: no row was embedded yet" if done.tokens is None else f"about {grouped(done.tokens)}"
    lines.append(f"  tokens    {about}")
    if done.is_cut:
        lines.append("  that was as many entries as one command takes: repeat it")
    return lines


def _command(wanted: Wanted) -> str:
    """What does it for all rows of a table."""
    where = f"--generation {shlex.quote(wanted.generation)} --table {shlex.quote(wanted.table or '')}"
    return f"revector requeue {wanted.migration} {where} --all --confirm {wanted.migration}"
