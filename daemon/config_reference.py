"""The configuration described: JSON schema and reference page, both derived from the settings classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from daemon.config import variable
from daemon.config_problems import section_at
from daemon.settings import Settings
from daemon.settings_checks import OWNED_PROPERTIES, Frozen, Secret

_HEAD = """# Configuration

One TOML file describes one migration. `config.example.toml` has every key; `revector check` says what is wrong with a
file, all at once; `revector config show --origin` prints what is in force and why; `revector config schema` writes a
JSON schema for editors.

Precedence: flag (`--set KEY=VALUE`), environment, file, default. An empty environment variable counts as not set; the
variable of a secret holds the secret itself; `REVECTOR_KAFKA_PROPERTIES_SASL_USERNAME` sets `"sasl.username"`.
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
    parts = [_HEAD, *_section("Top level", Settings, "")]
    for name in Settings.model_fields:
        section = section_at((name,))
        if section is not None:
            title = f"[[{name}]]" if name == "table" else f"[{name}]"
            parts += _section(f"`{title}`", section, name)
    parts.append("Keys of `[kafka.properties]` that are refused, because revector sets them:\n")
    parts += [f"- `{key}`: {reason}" for key, reason in OWNED_PROPERTIES.items()]
    return "\n".join(parts) + "\n"


def _section(title: str, model: type[Frozen], name: str) -> Iterator[str]:
    yield f"## {title}\n\n{model.__doc__ or ''}\n"
    yield "| key | type | default | environment | |\n|---|---|---|---|---|"
    for key, info in model.model_fields.items():
        at = (name, key) if name else (key,)
        if not name and section_at(at) is not None:
            continue
        place = "" if name == "table" else f"`{variable(at)}`"
        if at == ("kafka", "properties"):
            place = f"`{variable(at)}_…`"
        yield f"| `{key}` | {_type(info)} | {_default(info)} | {place} | {_cell(info.description or '')} |"
    yield ""


def _type(info: FieldInfo) -> str:
    """The kind of value, its unit and its bounds."""
    words: dict[Any, str] = {int: "integer", bool: "boolean", str: "string"}
    text = str(info.annotation)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    bounds = {type(m).__name__: m for m in info.metadata}
    if "Literal" in text:
        return "one of " + ", ".join(f"`{json.dumps(a)}`" for a in info.annotation.__args__)  # type: ignore[union-attr]
    if Secret.__name__ in text:
        return "table" if "Mapping" in text else "secret"
    if "tuple" in text:
        return "list of strings"
    word = words.get(info.annotation, "string")
    if unit := extra.get("unit"):
        word = f"{word}, {unit}"
    if "Ge" in bounds and "Le" in bounds:
        word += f", {bounds['Ge'].ge} to {bounds['Le'].le}"
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
