"""The frame around every command: shared options, help pages, loading, errors, exit codes.

A command is a plain function registered with `page`; it gets the `Frame` from its context, loads the configuration
through it and writes through `frame.out`. It raises `RevectorError`s and never prints one; "the answer is no" is
`raise typer.Exit(ExitCode.NO)` after the answer was written. `run` is the only place where an exception becomes text
and a number.

Imports stay light: `revector check` has half a second.
"""

from __future__ import annotations

import asyncio
import enum
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, TypeVar

import typer

from daemon import config
from daemon.cli.output import Output
from daemon.errors import ConfigError, Problem, RevectorError

if TYPE_CHECKING:
    from daemon.parts import Parts
    from daemon.ports import Target

DOCS = "docs/reference/cli.md"

Command = TypeVar("Command", bound=Callable[..., None])
Answer = TypeVar("Answer")


class ExitCode(enum.IntEnum):
    """What a command returns."""

    YES = 0
    FAULT = 1
    USAGE = 2
    NO = 3
    TIMED_OUT = 4
    AWAY = 69
    HELD = 75
    REFUSED = 77
    CONFIG = 78
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143


MEANINGS: Mapping[ExitCode, str] = {
    ExitCode.YES: "yes, or done",
    ExitCode.FAULT: "a fault of revector, or a halt that waits for a person",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.NO: "the answer is no",
    ExitCode.TIMED_OUT: "timed out waiting",
    ExitCode.AWAY: "a dependency is away",
    ExitCode.HELD: "somebody else holds it",
    ExitCode.REFUSED: "permission refused",
    ExitCode.CONFIG: "the configuration, or what it names, cannot work",
    ExitCode.INTERRUPTED: "interrupted (SIGINT)",
    ExitCode.PIPE_CLOSED: "the reader of the answer went away (SIGPIPE)",
    ExitCode.TERMINATED: "ended (SIGTERM)",
}

Name = Annotated[
    str | None, typer.Argument(metavar="NAME", help="The migration; checked against the configuration's name.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="Configuration; else $REVECTOR_CONFIG, NAME.toml, revector.toml."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as limits.page_rows=500; repeatable."),
]
OfGeneration = Annotated[
    str | None,
    typer.Option("--generation", metavar="GENERATION", help="Which one; default: the one to cut over to."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@dataclass
class Frame:
    """What an invocation has from outside. parts: connectors for a configuration, opened when first used."""

    parts: Callable[[config.Loaded], Parts]
    environ: Mapping[str, str]
    stdin: TextIO = field(default_factory=lambda: sys.stdin)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    out: Output = field(init=False)

    def __post_init__(self) -> None:
        self.speak(is_json=False)

    def speak(self, is_json: bool) -> None:
        self.out = Output(self.stdout, self.stderr, self.environ, is_json)

    def load(
        self, name: str | None = None, file: Path | None = None, changes: Sequence[str] | None = None
    ) -> config.Loaded:
        """The configuration; its warnings go to stderr. Raises ConfigError."""
        path = config.locate(file, name, self.environ)
        loaded = config.load(path, self.environ, overrides(changes or ()))
        for warning in loaded.warnings:
            self.out.warn(warning)
        if name is not None and name != loaded.settings.name:
            message, hint = f"configures {loaded.settings.name}, not {name}", "name another file with --config"
            raise ConfigError([Problem("name-differs", f"{path} name", message, hint)])
        return loaded

    def ask_target(self, loaded: config.Loaded, role: str, procedure: Callable[[Target], Awaitable[Answer]]) -> Answer:
        """What a procedure over one connection to the target answers."""

        async def asked() -> Answer:
            target = self.parts(loaded).target(role)
            try:
                return await procedure(target)
            finally:
                await target.close()

        return asyncio.run(asked())


def frame_of(context: typer.Context) -> Frame:
    """The frame that `run` put there."""
    frame = context.obj
    if not isinstance(frame, Frame):
        raise TypeError("commands are run by daemon.cli.frame.run")
    return frame


def overrides(changes: Sequence[str], flag: str = "--set", example: str = "limits.page_rows=500") -> dict[str, str]:
    """`KEY=VALUE` arguments as a mapping. Raises BadParameter."""
    found: dict[str, str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"{flag} wants KEY=VALUE, such as {flag} {example}")
        found[key] = value
    return found


def page(
    app: typer.Typer, name: str, examples: tuple[str, str], exits: Sequence[ExitCode] = ()
) -> Callable[[Command], Command]:
    """Register a command with a help page: its docstring, two examples that the tests run, exit codes, docs link.

    exits: those beyond 0, 1, 2 and the signals, which every command can return.
    """
    codes = sorted({ExitCode.YES, ExitCode.FAULT, ExitCode.USAGE, *exits})
    lines = ["\b", "Examples:", *(f"  {e}" for e in examples), "", "\b", "Exit codes:"]
    lines += [f"  {code:<3} {MEANINGS[code]}" for code in codes]
    return app.command(name, epilog="\n".join([*lines, "", f"Docs: {DOCS}"]))


def run(app: typer.Typer, arguments: Sequence[str], frame: Frame) -> int:
    """Carry out a command line; the exit code. Nothing is raised, no stack trace is shown for a user's mistake."""
    frame.speak(is_json="--json" in arguments)
    arguments = arguments or ["--help"]
    try:
        code = _guarded(app, arguments, frame)
        frame.stdout.flush()
    except BrokenPipeError:
        # Without this the interpreter's own flush at exit would print a second complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.PIPE_CLOSED
    return code


def interrupted(frame: Frame, arguments: Sequence[str]) -> int:
    """What a Ctrl-C says that came before or after `run` could catch it; the exit code."""
    frame.speak(is_json="--json" in arguments)
    return _failed(frame, _Ended("interrupted", "interrupted", "", ExitCode.INTERRUPTED))


def _guarded(app: typer.Typer, arguments: Sequence[str], frame: Frame) -> int:
    try:
        code = app(args=list(arguments), prog_name="revector", standalone_mode=False, obj=frame)
    except RevectorError as error:
        return _failed(frame, error)
    except typer.TyperException as error:
        return _failed(frame, _Ended("usage", error.format_message(), _help_of(error), ExitCode.USAGE))
    except (typer.Abort, KeyboardInterrupt):  # the second: while typer builds the commands
        code = ExitCode.INTERRUPTED
    except SystemExit as ended:
        code = ended.code
    except BrokenPipeError:
        raise
    except Exception as error:
        return _failed(frame, _fault(frame, error))
    if code == ExitCode.INTERRUPTED:
        return interrupted(frame, arguments)
    if code == ExitCode.TERMINATED:
        return _failed(frame, _Ended("terminated", "ended by a signal", "", ExitCode.TERMINATED))
    return code if isinstance(code, int) else ExitCode.YES


class _Ended(RevectorError):
    """An end that is no command's own error."""

    def __init__(self, id: str, message: str, hint: str, code: ExitCode) -> None:
        super().__init__(id, message, hint)
        self.exit_code = int(code)


def _failed(frame: Frame, error: RevectorError) -> int:
    frame.out.failure(error)
    return error.exit_code


def _help_of(error: typer.TyperException) -> str:
    context: Any = getattr(error, "ctx", None)
    return f"see {context.command_path if context else 'revector'} --help"


def _fault(frame: Frame, error: Exception) -> RevectorError:
    """A fault of ours. Where it happened goes to stderr; its message does not: it may quote what must not be shown."""
    for line in traceback.format_tb(error.__traceback__):
        frame.out.note(line.rstrip())
    message = f"a fault of revector: {type(error).__name__}"
    return _Ended("internal-fault", message, "report it with the lines above", ExitCode.FAULT)


def operator() -> str:
    """The account that runs this command, for the journal."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user need not have a name
        return f"uid {os.getuid()}"


def ended_by_signal(*_: object) -> NoReturn:
    """Handler for SIGTERM while no loop handles it."""
    raise SystemExit(int(ExitCode.TERMINATED))
