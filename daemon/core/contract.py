"""The contract: everything that makes two vectors comparable, and the text that they are made from.

Two generations with equal contracts hold comparable vectors; one field changed, and they do not. The contract is
content-addressed: its `id` is derived from its canonical JSON, so the same configuration gives the same id on every
machine and in every version of the program.

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

SPLITTER = "semantic-text-splitter 0.33"  # another version may cut elsewhere, and so makes another contract
CANONICAL_FORM = 1  # version of the text form of values that `core.canonical` defines

_ID_DIGITS = 16  # 64 bits: contracts of one migration are few
_COLUMN = re.compile(r"[^\W\d][\w$ -]*")
_PIECE = re.compile(r"(?P<escape>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<stray>[{}])|(?P<text>[^{}]+)")

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
        return asdict(self)

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
    return [
        f"{name}: {_shown(left, name)} -> {_shown(right, name)}"
        for name in names
        if name not in left or name not in right or left[name] != right[name]
    ]


@lru_cache(maxsize=256)
def placeholders(template: str) -> tuple[str, ...]:
    """Columns of a template in order of first use. Raises TemplateError."""
    return tuple(dict.fromkeys(name for name, _ in _pieces(template) if name is not None))


def render(template: str, values: Mapping[str, str | None]) -> str:
    """The document of a row. A null renders as empty. Raises TemplateError; KeyError for a column without value."""
    return "".join(text if name is None else values[name] or "" for name, text in _pieces(template))


def whole_document(text: str) -> list[str]:
    """One chunk, the text as it is; none where it is blank."""
    return [text] if text.strip() else []


def digest(text: str, contract: Contract) -> bytes:
    """sha256 of what the provider gets for a chunk: the document prefix and the text."""
    return hashlib.sha256((contract.document_prefix + text).encode()).digest()


@lru_cache(maxsize=256)
def _pieces(template: str) -> tuple[tuple[str | None, str], ...]:
    """(column, "") for a placeholder, (None, text) for literal text."""
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


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _shown(flat: Mapping[str, Any], name: str) -> str:
    return repr(flat[name]) if name in flat else "none"
