"""The command line: every command, in the order of a migration's journey."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.cli import configuration, initialise, observing, proving, running


def build() -> typer.Typer:
    """The root application. Each module adds its commands with `register`."""
    app = typer.Typer(
        name="revector",
        help="Move a live pgvector search to a new embedding model without downtime, and prove that nothing was lost.",
        epilog="Docs: docs/reference/cli.md",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 100},
    )
    app.callback()(_root)
    for module in (initialise, observing, running, proving, configuration):
        module.register(app)
    return app


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"revector {installed('revector')}")
        raise typer.Exit
