"""What is wrong with a configuration, in words a person can act on.

Turns pydantic's errors and the faults of our own checks into problems: place, key, constraint, remedy. Pydantic's own
messages are not used, because they print the refused value. Unknown keys get the nearest known one, or the section
that the key belongs to. Pure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from daemon.errors import Problem
from daemon.settings import Settings
from daemon.settings_checks import Fault, Frozen, Secret
from daemon.toml_places import Path as Key

_TYPES = {
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "model_type": "must be a table",
}
_BOUNDS = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le")}

# Lists of tables: each may be repeated.
LISTS: Sequence[Key] = (("table",), ("generation",), ("quiet_hours",))

# Keys that belong elsewhere under another name -> where they do.
ELSEWHERE: Mapping[Key, Key] = {
    ("limits", "embed_workers"): ("generation", "limits", "in_flight"),
    ("limits", "embed_batch"): ("generation", "limits", "request_inputs"),
    ("limits", "request_timeout_s"): ("generation", "limits", "request_timeout_s"),
}


class Places(NamedTuple):
    """Where each key was set. origins: path of a key or table -> "file:line", "environment …" or "flag"."""

    origins: Mapping[Key, str]
    file: object

    def of(self, key: Key) -> str:
        """Where the key is set, else where the table that lacks it begins, else the file."""
        for length in range(len(key), 0, -1):
            if origin := self.origins.get(key[:length]):
                return origin
        return str(self.file)


def problems_of(error: ValidationError, data: Mapping[str, Any], places: Places) -> list[Problem]:
    """Every problem, in the order of places. data: the document that was refused, for the nearest choice only."""
    found: list[tuple[Key, Fault]] = []
    for detail in error.errors(include_input=False, include_url=False):
        if _follows(detail, data):
            continue
        for fault in detail.get("ctx", {}).get("faults") or [_explained(detail, data)]:
            found.append(((*detail["loc"], *fault.path), fault))
    problems = [Problem(f.id, f"{places.of(k)} {show_key(k)}", f.message, f.hint) for k, f in found]
    return sorted(problems, key=_by_line)


def show_key(key: Key) -> str:
    """A path as text: `table[0].text`, `kafka.properties."bootstrap.servers"`."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            quoted = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"'
            text += f".{quoted}" if text else quoted
    return text


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The sentence "did you mean …", or None where nothing is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None


def section_at(key: Key) -> type[Frozen] | None:
    """The class of the table at a path (a list's elements have the list's class), None for a plain value."""
    model: type[Frozen] | None = Settings
    for part in key:
        if isinstance(part, int):
            continue
        info = model.model_fields.get(part) if model is not None else None
        model = _class(info.annotation) if info is not None else None
    return model


def sections(at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[Frozen]]]:
    """Every table that a file may have below a path, each before those within it: path and class."""
    for name in (section_at(at) or Settings).model_fields:
        section = section_at((*at, name))
        if section is not None and section is not Secret:
            yield (*at, name), section
            yield from sections((*at, name))


def header(key: Key) -> str:
    """How a table begins in the file: `[kafka]`, `[[table]]`, `[generation.limits]`."""
    names = tuple(part for part in key if isinstance(part, str))
    return f"[[{names[0]}]]" if names in LISTS else f"[{show_key(names)}]"


def _class(annotation: Any) -> type[Frozen] | None:
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _class(arg)) is not None), None)


def _follows(detail: ErrorDetails, data: Mapping[str, Any]) -> bool:
    """Whether this error only follows from another one: a default that needs a refused key, a list whose elements
    were refused and that counts as empty."""
    kind = detail["type"]
    return kind == "default_factory_not_called" or (kind == "too_short" and bool(_value(data, detail["loc"])))


def _explained(detail: ErrorDetails, data: Mapping[str, Any]) -> Fault:
    kind, key, ctx = detail["type"], detail["loc"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(key)
    if kind == "missing":
        return _missing(key)
    if kind == "tuple_type" and key in LISTS:
        return Fault((), "wrong-type", "must be a list of tables", f"write {header(key)}")
    if kind in _TYPES:
        return Fault((), "wrong-type", _TYPES[kind], _meaning(key))
    if kind in _BOUNDS:
        word, bound = _BOUNDS[kind]
        return Fault((), "out-of-range", f"must be {word} {ctx[bound]}", _meaning(key))
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", ctx["expected"])
        hint = nearest(str(_value(data, key)), choices) or _meaning(key)
        return Fault((), "not-a-choice", "must be one of " + ", ".join(choices), hint)
    if kind == "string_pattern_mismatch":
        return Fault((), "wrong-form", f"must match {ctx['pattern']}", _meaning(key))
    if kind in {"string_too_short", "too_short"}:
        return Fault((), "empty", "must not be empty", _meaning(key))
    return Fault((), "invalid", f"cannot be used ({kind.replace('_', ' ')})", _meaning(key))


def _unknown(key: Key) -> Fault:
    name, section = str(key[-1]), section_at(key[:-1]) or Settings
    known = list(section.model_fields)
    elsewhere = [at for at, other in sections() if name in other.model_fields]
    hint = nearest(name, known)
    if there := ELSEWHERE.get(key):
        hint = f"write {there[-1]} in {header(there[:-1])}"
    elif hint is None and elsewhere:
        hint = f"it belongs in {header(elsewhere[0])}"
    place = header(key[:-1]) if len(key) > 1 else "the top level"
    return Fault((), "unknown-key", f"no such key in {place}", hint or f"known: {', '.join(known)}")


def _missing(key: Key) -> Fault:
    section = section_at(key)
    if section is None or section is Secret:
        return Fault((), "missing-key", "is required", _meaning(key))
    needed = ", ".join(name for name, info in section.model_fields.items() if info.is_required())
    return Fault((), "missing-key", "is required", f"add {header(key)} with {needed}")


def _meaning(key: Key) -> str:
    """The setting's description, for a hint."""
    names = [part for part in key if isinstance(part, str)]
    for length in range(len(names), 0, -1):
        section = section_at(tuple(names[: length - 1]))
        info = section.model_fields.get(names[length - 1]) if section is not None else None
        if info is not None and info.description:
            return info.description
    return (section_at(key) or Settings).__doc__ or ""


def _value(data: Any, key: Key) -> Any:
    for part in key:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _by_line(problem: Problem) -> tuple[str, int]:
    match = re.match(r"(.*):(\d+) ", problem.where)
    return (match[1], int(match[2])) if match else ("", 0)
