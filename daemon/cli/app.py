"""The command line: every command, in the order of a migration's journey."""

from __future__ import annotations

from typing import Annotated

import typer

from daemon.cli import (
    certificates,
    configuration,
    generations,
    health,
    initialise,
    observing,
    ordering,
    planning,
    proving,
    quarantine,
    realigning,
    requeue,
    running,
    verifying,
)


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
    for module in (
        initialise,
        planning,
        observing,
        running,
        ordering,
        generations,
        quarantine,
        requeue,
        realigning,
        verifying,
        proving,
        certificates,
        configuration,
        health,
    ):
        module.register(app)
    return app


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"revector {version('revector')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Every command is one of its own; the root only carries options."""
