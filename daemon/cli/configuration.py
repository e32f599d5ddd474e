"""Commands about the configuration alone: `check`, `config show`, `config schema`. Offline, no secret is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from daemon import config
from daemon.cli.frame import Changes, ConfigFile, ExitCode, Json, Name, frame_of, page
from daemon.cli.output import counted, table
from daemon.config_problems import show_key
from daemon.conninfo import Conninfo
from daemon.settings_checks import Secret


def register(app: typer.Typer) -> None:
    """Add the commands."""
    page(app, "check", ("revector check", "revector check articles --config articles.toml --json"), [ExitCode.CONFIG])(
        check
    )
    group = typer.Typer(help="Show the configuration, or describe it for an editor.")
    page(
        group,
        "show",
        ("revector config show --origin", "revector config show --set limits.page_rows=500 --json"),
        [ExitCode.CONFIG],
    )(show)
    page(group, "schema", ("revector config schema", "revector config schema > config.schema.json"))(schema)
    app.add_typer(group, name="config")


def check(
    context: typer.Context, name: Name = None, file: ConfigFile = None, changes: Changes = None, as_json: Json = False
) -> None:
    """Say whether the configuration is sound. Offline: nothing is connected to, no secret is read."""
    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    settings = loaded.settings
    parts = frame.parts(loaded)
    for generation in settings.generation:
        if "tokenizer" in generation.model_fields_set:  # a file may be missing
            parts.tokenizer(generation)
    contracts = [(g.name, parts.contract(g)) for g in settings.generation]
    frame.out.answer(
        "check",
        {
            "path": str(loaded.path),
            "migration": settings.name,
            "tables": [t.alias for t in settings.table],
            "generations": [{"name": name, "contract": contract.id} for name, contract in contracts],
            "warnings": [asdict(w) for w in loaded.warnings],
        },
        [
            f"{loaded.path}: {frame.out.styled('sound', 'green')}",
            f"  migration   {settings.name}, {counted(len(settings.table), 'table')}",
            *(f"  generation  {name}: {c.model}, {c.dimensions} dimensions, contract {c.id}" for name, c in contracts),
        ],
    )


def show(
    context: typer.Context,
    name: Name = None,
    file: ConfigFile = None,
    changes: Changes = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    as_json: Json = False,
) -> None:
    """Print every setting in force. Passwords are hidden, secrets stay references."""
    frame = frame_of(context)
    loaded = frame.load(name, file, changes)
    rows = list(_settings(loaded))
    lines = [(key, _text(value), f"# {where}") for key, value, where in rows]
    frame.out.answer(
        "config",
        {"path": str(loaded.path), "settings": [{"key": k, "value": v, "origin": o} for k, v, o in rows]},
        table(lines if origin else [line[:2] for line in lines]),
    )


def schema(context: typer.Context) -> None:
    """Print the configuration's JSON schema, for editors (`#:schema ./config.schema.json`)."""
    from daemon.config_reference import schema_json

    frame_of(context).stdout.write(schema_json())


def _settings(loaded: config.Loaded) -> Iterator[tuple[str, Any, str]]:
    """(key, value as plain data, origin)."""
    for key, value in config.leaves(loaded.settings):
        name = show_key(key)
        if isinstance(value, Secret):
            value = value.model_dump(exclude_none=True)  # noqa: PLW2901
        elif isinstance(value, Conninfo):
            value = str(value)  # noqa: PLW2901
        yield name, list(value) if isinstance(value, tuple) else value, loaded.origins.get(name, "default")


def _text(value: Any) -> str:
    """As it would stand in the file."""
    if value is None:
        return "(not set)"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
