"""Where each key of a TOML document stands, for messages that point at a line.

The standard parser gives values without places. It is used here to find statements as well: lines are gathered until
they parse on their own, so strings and arrays over several lines cost no grammar of ours. Pure.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]


def lines(text: str) -> dict[Path, int]:
    """Path of every table and key -> number of the line on which its statement starts; text: a valid document."""
    found: dict[Path, int] = {}
    last: dict[Path, int] = {}  # array of tables -> index of its last element
    header: Path = ()
    for line, statement, document in _statements(text):
        is_header = statement.lstrip().startswith("[")
        if is_header:
            names = tuple(part for part in next(_paths(document, ())) if isinstance(part, str))
            header = _opened(names, statement.lstrip().startswith("[["), last)
            found.setdefault(header, line)
            continue
        for path in _paths(document, header):
            found.setdefault(path, line)
    return found


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    held: list[str] = []
    start = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not held:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            start = number
        held.append(line)
        statement = "\n".join(held)
        try:
            document = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        yield start, statement, document
        held = []


def _opened(names: tuple[str, ...], is_array: bool, last: dict[Path, int]) -> Path:
    """The path that a header opens: every array of tables on the way stands for its last element."""
    path: Path = ()
    for at, name in enumerate(names):
        path = (*path, name)
        if is_array and at == len(names) - 1:
            last[path] = last.get(path, -1) + 1
        if path in last:
            path = (*path, last[path])
    return path


def _paths(value: Any, path: Path) -> Iterator[Path]:
    """Deepest first for a header (its only path), every key for an assignment."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = list(enumerate(value))
    for name, item in items:
        yield from _paths(item, (*path, name))
    if path:
        yield path
