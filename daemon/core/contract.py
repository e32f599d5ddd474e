"""The contract: everything that makes two vectors comparable, and the text that they are made from.

Two generations with equal contracts hold comparable vectors; one field changed, and they do not. The contract is
content-addressed: its `id` is derived from its canonical JSON, so the same configuration gives the same id on every
machine and in every version of the program. A field that comes later is left out of the JSON where it says nothing.

The text of a row is rendered from a template, cut by the chunker, prefixed and digested here, and nowhere else: a
chunk is stale if and only if its digest differs. Pure. Knows no provider and no database.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import rfc8785

from daemon.errors import ConfigError, Problem

# What cuts: the splitter's minor version and that of `core.chunking.segments`. Another one may cut elsewhere.
SPLITTER = "semantic-text-splitter 0.33, segments 1"
CANONICAL_FORM = 1  # version of the text form of values that `core.canonical` defines

_ID_DIGITS = 16  # 64 bits: contracts of one migration are few
# From 2048 bytes on hashlib lets go of the interpreter for some microseconds. Between two of these another thread is
# woken, finds it taken and begins to wait anew: a worker that digests many chunks would stop the event loop.
_HASHED_AT_ONCE = 2047
_SHOWN = 60  # characters of a value in a difference
_COLUMN = re.compile(r"[^\W\d][\w$ -]*")
_PIECE = re.compile(r"(?P<escape>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<stray>[{}])|(?P<text>[^{}]+)")

# What `str.strip` removes: a document of nothing else has no chunk. For whoever renders outside of Python.
BLANK = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)

Cut = Callable[[str], list[str]]  # a document -> its chunks in order, none blank


class TemplateError(ValueError):
    """A text template that cannot be rendered. The message names the place, not the whole template."""


@dataclass(frozen=True, slots=True)
class Chunker:
    """How documents are cut: a name (`whole` or `tokens`), the version of the code that cuts, its limits, and the
    identity of the tokenizer that counts for it."""

    name: str = "whole"
    version: str = "1"
    limits: Mapping[str, int] = field(default_factory=dict)
    tokenizer: str = ""


WHOLE = Chunker()


@dataclass(frozen=True, slots=True)
class Contract:
    """What two comparable vectors have in common. templates: text template by table alias."""

    provider: str
    model: str
    revision: str
    dimensions: int
    vector_type: str  # vector | halfvec
    metric: str  # cosine | l2 | ip
    normalised: bool
    document_prefix: str
    query_prefix: str
    templates: Mapping[str, str]
    chunker: Chunker = field(default_factory=Chunker)
    canonical_form: int = CANONICAL_FORM

    def as_json(self) -> dict[str, Any]:
        """The contract as plain data, complete: `from_json` gives an equal contract."""
        document = asdict(self)
        if not self.chunker.tokenizer:
            del document["chunker"]["tokenizer"]
        return document

    @property
    def id(self) -> str:
        """Hex digits of sha256 over the canonical JSON (RFC 8785)."""
        return hashlib.sha256(rfc8785.dumps(self.as_json())).hexdigest()[:_ID_DIGITS]


def from_json(document: Mapping[str, Any]) -> Contract:
    """The contract of an `as_json` document. Raises TypeError for missing or unknown fields."""
    return Contract(**{**document, "chunker": Chunker(**document["chunker"])})


def difference(a: Contract, b: Contract) -> list[str]:
    """What differs, one line per field, such as `model: 'small' -> 'large'`; empty for equal contracts."""
    left, right = _flat(a.as_json()), _flat(b.as_json())
    names = [*left, *(name for name in right if name not in left)]
    pairs = ((name, left.get(name), right.get(name)) for name in names)
    return [f"{name}: {_shown(one, other)} -> {_shown(other, one)}" for name, one, other in pairs if one != other]


def changed(name: str, stored: Mapping[str, Any], configured: Mapping[str, Any]) -> ConfigError:
    """What to say of generation `name` where its contract in the target is not the configured one; both `as_json`."""
    lines = ["in the target -> configured:", *difference(from_json(stored), from_json(configured))]
    lines += [
        "vectors of two contracts are never mixed: undo the change here, make it in another [[generation]] below this",
        "one, and add that with `revector generation add NAME`",
    ]
    return ConfigError(
        [Problem("contract-changed", f"generation {name}", "its contract has changed", "\n".join(lines))]
    )


@lru_cache(maxsize=256)
def placeholders(template: str) -> tuple[str, ...]:
    """Columns of a template in order of first use. Raises TemplateError."""
    return tuple(dict.fromkeys(name for name, _ in template_parts(template) if name is not None))


@lru_cache(maxsize=256)
def template_parts(template: str) -> tuple[tuple[str | None, str], ...]:
    """(column, "") for a placeholder, (None, text) for literal text. Raises TemplateError."""
    pieces: list[tuple[str | None, str]] = []
    for match in _PIECE.finditer(template):
        at = f"at character {match.start() + 1}"
        if match["stray"]:
            brace = match["stray"]
            raise TemplateError(f"single `{brace}` {at}; write `{brace * 2}` for the character itself")
        name = match["name"]
        if name is None:
            pieces.append((None, (match["escape"] or match["text"])[: 1 if match["escape"] else None]))
        elif _COLUMN.fullmatch(name):
            pieces.append((name, ""))
        else:
            raise TemplateError(f"`{{{name}}}` {at} is not a column; a placeholder is a column's name and nothing else")
    if all(name is None for name, _ in pieces):
        raise TemplateError("no {column} in it")
    return tuple(pieces)


def render(template: str, values: Mapping[str, str | None]) -> str:
    """The document of a row. A null renders as empty. Raises TemplateError; KeyError for a column without value."""
    return "".join(text if name is None else values[name] or "" for name, text in template_parts(template))


def whole_document(text: str) -> list[str]:
    """One chunk, the text as it is; none where it is blank."""
    return [text] if text.strip() else []


def digest(text: str, contract: Contract) -> bytes:
    """sha256 of what the provider gets for a chunk: the document prefix and the text."""
    data, hasher = memoryview((contract.document_prefix + text).encode()), hashlib.sha256()
    for at in range(0, len(data), _HASHED_AT_ONCE):
        hasher.update(data[at : at + _HASHED_AT_ONCE])
    return hasher.digest()


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _shown(value: object, other: object) -> str:
    """One side of a difference; of a long text what surrounds the first character that differs."""
    if value is None:
        return "none"
    text = repr(value)
    if len(text) <= _SHOWN:
        return text
    both = zip(text, repr(other), strict=False)
    at = next((n for n, (a, b) in enumerate(both) if a != b), min(len(text), len(repr(other))))
    begin = max(0, at - _SHOWN // 4)
    part = text[begin : begin + _SHOWN]
    return ("…" if begin else "") + part + ("…" if begin + _SHOWN < len(text) else "")
