"""The reference pages that are derived from code.

`python -m daemon.cli.reference`, in the repository's root, writes them; a test holds the files equal to the code.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import typer

from daemon.cli.app import build
from daemon.cli.error_reference import errors_page
from daemon.cli.frame import MEANINGS, Frame, run
from daemon.config_reference import reference_page, schema_json

FOLDER = Path("docs/reference")


def pages() -> Mapping[str, str]:
    """File name below `docs/reference` -> text."""
    return {
        "cli.md": cli_page(),
        "config.md": reference_page(),
        "config.schema.json": schema_json(),
        "errors.md": errors_page(),
        "exit-codes.md": exit_codes_page(),
    }


def commands(app: typer.Typer, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command's words, in the order of the help page."""
    for command in app.registered_commands:
        yield (*before, str(command.name))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from commands(group.typer_instance, (*before, str(group.name)))


def help_of(words: tuple[str, ...]) -> str:
    """A command's help page as text."""
    with contextlib.redirect_stdout(io.StringIO()) as page:
        run(build(), [*words, "--help"], Frame(parts=_no_parts, environ={}))
    return page.getvalue()


def cli_page() -> str:
    """Every help page, in Markdown."""
    parts = [
        "# Command line\n",
        "Results go to stdout, everything else to stderr. `--json` prints one document with a `schema`, also for a",
        "failure (`revector.error/1`). Exit codes: [exit-codes.md](exit-codes.md).\n",
    ]
    for words in commands(build()):
        parts += [f"## revector {' '.join(words)}\n", "```text", help_of(words).rstrip(), "```\n"]
    return "\n".join(parts)


def exit_codes_page() -> str:
    """The exit codes, in Markdown."""
    rows = [f"| {int(code)} | {meaning} |" for code, meaning in MEANINGS.items()]
    return "\n".join(["# Exit codes\n", "| code | meaning |", "|---|---|", *rows, ""])


def _no_parts(_: object) -> NoReturn:
    raise RuntimeError("a help page needs no parts")


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
