"""What `init --apply` and `init --plan` show: the plan first, then each step as it ends, and what comes next.

The connector's password comes as a reference and goes to Kafka Connect only; it is never printed. The exit code is that
of what refused a step: permission first, then a set-up that cannot work, then a part that is away.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon import config
from daemon.cli.frame import ExitCode, Frame, overrides
from daemon.cli.output import table
from daemon.settings_checks import Secret

if TYPE_CHECKING:
    from daemon.core.groundwork import Step
    from daemon.core.profile import SourceAccess
    from daemon.procedures.groundwork import Wishes

DEFAULT_PORT = "5432"
STYLES = {"made": "green", "refused": "red", "to make": "yellow"}
SECRETS = ("password", "secret", "token", "credential", "jaas", "private.key", "key.pem")

ExistingConfig = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="With --apply or --plan: a file that exists.")
]
ConnectorUser = Annotated[
    str | None, typer.Option(help="Role of the connector at the source; else the user of the source's DSN.")
]
ConnectorPasswordEnv = Annotated[str | None, typer.Option(metavar="VARIABLE", help="Variable with its password.")]
ConnectorPasswordFile = Annotated[Path | None, typer.Option(metavar="FILE", help="File with its password.")]
ConnectorSettings = Annotated[
    list[str] | None,
    typer.Option("--connector-set", metavar="KEY=VALUE", help="A setting of the new connector; repeatable."),
]
Partitions = Annotated[int, typer.Option(min=1, max=1000, help="Of each table's new topic; fixed from then on.")]
RetentionDays = Annotated[int, typer.Option(min=1, max=3650, help="Of new topics: how long revector may be stopped.")]


@dataclass(frozen=True)
class Flags:
    """What the command line says about the things to make."""

    user: str | None
    password_env: str | None
    password_file: Path | None
    settings: Sequence[str]
    partitions: int
    retention_days: int


def carry_out(frame: Frame, path: Path, flags: Flags, *, is_plan: bool) -> None:
    """Show the plan; unless it is all that was asked for, make what is absent. Raises Exit where a step is refused."""
    from daemon.procedures.groundwork import lay, plan

    loaded = frame.load(None, path)
    parts = frame.parts(loaded)
    wishes = _wishes(loaded, flags)
    steps = asyncio.run(plan(parts, wishes))
    planned = table([_row(step) for step in steps])
    if not is_plan:
        frame.out.note(f"plan for {loaded.settings.name}:")
        for line in planned:
            frame.out.note(f"  {line}")
        frame.out.note("")
        steps = asyncio.run(lay(parts, steps, lambda step: frame.out.note(f"{step.outcome.value:<9}  {step.what}")))
        frame.out.note("")
    code = _code(steps)
    command = "doctor" if code == ExitCode.YES and not is_plan else "init --apply"
    following = f"revector {command} --config {shlex.quote(str(path))}"
    body = {
        "path": str(path),
        "migration": loaded.settings.name,
        "applied": not is_plan,
        "steps": [_document(step) for step in steps],
        "next": [following],
    }
    lines = [_styled(frame, step, line) for step, line in zip(steps, table([_row(s) for s in steps]), strict=True)]
    remedies = [line for step in steps for line in _remedy(step)]
    then = "next: " if code == ExitCode.YES else "next: mend what is listed above, or add the flag it names, then "
    frame.out.answer("init", body, [*lines, *remedies, f"{then}{following}"])
    if code != ExitCode.YES:
        raise typer.Exit(code)


def _wishes(loaded: config.Loaded, flags: Flags) -> Wishes:
    from daemon.procedures.groundwork import Wishes

    settings = overrides(flags.settings, "--connector-set", "database.hostname=source")
    for key, value in settings.items():
        if any(word in key.lower() for word in SECRETS) and not value.startswith("${"):
            hint = "a secret has no place on a command line: give --connector-password-env or --connector-password-file"
            raise typer.BadParameter(
                f"--connector-set {key}: {hint}, or ${{PROVIDER:PATH:KEY}}, which Connect resolves"
            )
    return Wishes(_access(loaded, flags), settings, flags.partitions, flags.retention_days)


def _access(loaded: config.Loaded, flags: Flags) -> SourceAccess:
    """The source as the DSN and libpq's variables name it: Kafka Connect is taken to reach it in the same way."""
    from daemon.core.profile import SourceAccess

    dsn, environ = loaded.settings.source.dsn, loaded.environ

    def said(keyword: str, variable: str) -> str:
        return dsn.get(keyword) or environ.get(variable, "")

    user = flags.user or said("user", "PGUSER")
    host = said("host", "PGHOST")
    return SourceAccess(
        host="" if host.startswith("/") or "," in host else host,
        port=said("port", "PGPORT") or DEFAULT_PORT,
        user=user,
        database=said("dbname", "PGDATABASE") or user,
        password=_password(loaded, flags),
        sslmode=said("sslmode", "PGSSLMODE"),
    )


def _password(loaded: config.Loaded, flags: Flags) -> str:
    if flags.password_env and flags.password_file:
        raise typer.BadParameter("give one of --connector-password-env and --connector-password-file")
    if flags.password_env:
        return loaded.reveal(Secret(env=flags.password_env), "--connector-password-env")
    if flags.password_file:
        return loaded.reveal(Secret(file=str(flags.password_file.resolve())), "--connector-password-file")
    return ""


def _code(steps: list[Step]) -> ExitCode:
    from daemon.core.groundwork import Outcome

    codes = {step.exit_code for step in steps if step.outcome is Outcome.REFUSED}
    order = (ExitCode.REFUSED, ExitCode.CONFIG, ExitCode.AWAY)
    return next((code for code in order if code in codes), ExitCode.FAULT if codes else ExitCode.YES)


def _row(step: Step) -> tuple[str, str, str]:
    return step.outcome.value, step.what, step.action.shown if step.action else ""


def _styled(frame: Frame, step: Step, line: str) -> str:
    word = step.outcome.value
    return line.replace(word, frame.out.styled(word, STYLES[word]), 1) if word in STYLES else line


def _remedy(step: Step) -> list[str]:
    lines = []
    for problem in step.problems:
        lines.append(f"  {problem.where}: {problem.message} [{problem.id}]")
        lines += [f"      {line}" for line in problem.hint.splitlines()]
    return lines


def _document(step: Step) -> Mapping[str, Any]:
    return {
        "what": step.what,
        "outcome": step.outcome.value,
        "action": step.action.shown if step.action else None,
        "problems": [asdict(problem) for problem in step.problems],
    }
