"""The configuration described: JSON schema and reference page, both derived from the settings classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from daemon.config import is_variable, variable
from daemon.config_problems import header, section_at, sections
from daemon.settings import Settings
from daemon.settings_checks import OWNED_PROPERTIES, Frozen, Secret

_HEAD = """# Configuration

One TOML file describes one migration. `config.example.toml` has every key; `revector check` says what is wrong with a
file, all at once; `revector config show --origin` prints what is in force and why; `revector config schema` writes a
JSON schema for editors.

Precedence: flag (`--set KEY=VALUE`), environment, file, default. An empty environment variable counts as not set; the
variable of a secret holds the secret itself; `REVECTOR_KAFKA_PROPERTIES_SASL_USERNAME` sets `"sasl.username"`.

`[[table]]`, `[[generation]]` and `[[quiet_hours]]` are lists of tables: each may be repeated, and
`[generation.limits]` belongs to the `[[generation]]` above it. Variables and flags of `generation`
(`REVECTOR_GENERATION_MODEL`, `REVECTOR_GENERATION_LIMITS_IN_FLIGHT`, `--set generation.limits.in_flight=16`) set the
last `[[generation]]`, the one to cut over to; the other two lists are set in the file only.

Unknown keys are refused. `${VAR}` is not substituted: secrets are references, read when they are needed:
`{ env = "NAME" }`, `{ file = "path" }` (relative to the file's folder) or `{ credential = "name" }` (systemd).
"""


def schema_json() -> str:
    """JSON schema (draft 2020-12) of a configuration file."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Settings.model_json_schema(),
        "title": "revector",
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def reference_page() -> str:
    """The reference page in Markdown."""
    parts = [_HEAD, *_section("Top level", Settings, ())]
    for at, section in sections():
        parts += _section(f"`{header(at)}`", section, at)
    parts.append("Keys of `[kafka.properties]` that are refused, because revector sets them:\n")
    parts += [f"- `{key}`: {reason}" for key, reason in OWNED_PROPERTIES.items()]
    return "\n".join(parts) + "\n"


def _section(title: str, model: type[Frozen], within: tuple[str, ...]) -> Iterator[str]:
    yield f"## {title}\n\n{model.__doc__ or ''}\n"
    yield "| key | type | default | environment | |\n|---|---|---|---|---|"
    for key, info in model.model_fields.items():
        at = (*within, key)
        if section_at(at) not in {None, Secret}:
            continue
        place = f"`{variable(at)}`" if is_variable(at) else ""
        if at == ("kafka", "properties"):
            place = f"`{variable(at)}_…`"
        yield f"| `{key}` | {_type(info)} | {_default(info)} | {place} | {_cell(info.description or '')} |"
    yield ""


def _type(info: FieldInfo) -> str:
    """The kind of value, its unit and its bounds."""
    words: dict[Any, str] = {int: "integer", bool: "boolean", str: "string", float: "number"}
    text = str(info.annotation)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    bounds = {type(m).__name__: m for m in info.metadata}
    if "Literal" in text:
        choice = get_args(info.annotation)[0] if "tuple" in text else info.annotation
        shown = ", ".join(f"`{json.dumps(a)}`" for a in get_args(choice))
        return f"list of {shown}" if "tuple" in text else f"one of {shown}"
    if Secret.__name__ in text:
        return "table" if "Mapping" in text else "secret"
    if "tuple" in text:
        return "list of strings"
    kinds = (info.annotation, *get_args(info.annotation))  # of `int | None`: the two
    word = next((words[kind] for kind in kinds if kind in words), "string")
    if unit := extra.get("unit"):
        word = f"{word}, {unit}"
    if "Ge" in bounds and "Le" in bounds:
        word += f", {bounds['Ge'].ge} to {bounds['Le'].le}"
    elif "Ge" in bounds:
        word += f", at least {bounds['Ge'].ge}"
    return word


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value: Any = info.default
    if value is PydanticUndefined:
        return "see right"
    if value is None:
        return "not set"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
