"""The one canonical form of a value: the text that `column::text` gives under the pinned session settings.

DateStyle ISO, TimeZone UTC, extra_float_digits 1 (shortest exact), bytea_output hex. Both readers of the source end
here: change events by `reader`, pages and comparisons by `from_postgres`. Equal values of a key column are equal
strings; that, and not the text itself, decides what may be a key.

A type is allowed only if every value of it that a change event carries, and the absence of one (unchanged TOAST), can
be told apart, or at least refused when it comes. Everything else is refused before anything starts, with the reason.
What each function reads is in `daemon.core.forms`; `reference_page` renders the tables below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from daemon.core import forms
from daemon.core.forms import Reader, Unreadable
from daemon.core.model import Value

__all__ = [
    "Reader",
    "Refusal",
    "Unreadable",
    "admits",
    "from_debezium",
    "from_postgres",
    "normaliser",
    "reader",
    "reference_page",
    "target_type",
]

Modifiers = tuple[int, ...]

NEVER = "never"
SHOWN = "shown"
HIDDEN = "hidden"

_TYPE = re.compile(
    r"(?P<name>.+?)(?:\((?P<modifiers>-?\d+(?:,-?\d+)*)\))?(?P<zone> with(?:out)? time zone)?(?P<array>\[\])?"
)
_EXTENSION_TYPES = ("citext", "halfvec", "hstore", "ltree", "sparsevec", "vector")
_BOUNDS = re.compile(r"(?:\[-?\d+:-?\d+\])+=", re.ASCII)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a type cannot be used, or cannot be a key."""

    id: str  # type-refused | key-type-refused
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Form:
    """An allowed type.

    unavailable: NEVER stored outside its row; SHOWN: an unchanged value can be told from every other, or is taken for
    unavailable; HIDDEN: it looks like null or like another value, so the table needs REPLICA IDENTITY FULL.
    key: whether equal values have equal text. read: for a column whose events may leave it out; whole: for one whose
    events never do.
    """

    example: str
    unavailable: str
    key: bool
    read: Callable[[Modifiers], Reader]
    whole: Callable[[Modifiers], Reader]
    note: str = ""


def _form(
    example: str, unavailable: str, read: Reader, whole: Reader | None = None, key: bool = False, note: str = ""
) -> Form:
    return Form(example, unavailable, key, lambda _: read, lambda _: whole or read, note)


def _text_form(example: str, key: bool = False, note: str = "") -> Form:
    return _form(example, SHOWN, forms.text, forms.whole_text, key, note)


def _scale(modifiers: Modifiers) -> int | None:
    return modifiers[1] if len(modifiers) > 1 else 0 if modifiers else None


_INFINITY_NOTE = "infinity is refused when it comes: its event cannot be told from garbage"
_FLOAT_NOTE = "exact only while extra_float_digits is at least 1 (the default) for the connector's role and database"
_AMBIGUOUS_NOTE = "a text equal to the placeholder `__debezium_unavailable_value` counts as unavailable"
_ARRAY_NOTE = "flat arrays only, a nested one is refused when it comes; lower bounds are not kept"

ALLOWED: Mapping[str, Form] = {
    "smallint": _form("-5", NEVER, forms.integer, key=True),
    "integer": _form("42", NEVER, forms.integer, key=True),
    "bigint": _form("9223372036854775807", NEVER, forms.integer, key=True),
    "boolean": _form("true", NEVER, forms.boolean, key=True),
    "uuid": _form("6f1c1c0e-2a0b-4d0e-9c59-222222222222", NEVER, forms.whole_text, key=True),
    "text": _text_form("as it is", key=True, note=_AMBIGUOUS_NOTE),
    "character varying": _text_form("as it is", key=True, note=_AMBIGUOUS_NOTE),
    "character": _form(
        "without its padding",
        SHOWN,
        forms.padded(forms.text),
        forms.padded(forms.whole_text),
        key=True,
        note=_AMBIGUOUS_NOTE,
    ),
    "bpchar": _form(
        "without trailing spaces",
        SHOWN,
        forms.padded(forms.text),
        forms.padded(forms.whole_text),
        note="no key: equal values may have different padding",
    ),
    "date": _form("2026-01-31", NEVER, forms.date, key=True, note=_INFINITY_NOTE),
    "timestamp without time zone": _form(
        "2026-01-31 12:34:56.7", NEVER, forms.timestamp, key=True, note=_INFINITY_NOTE
    ),
    "timestamp with time zone": _form("2026-01-31 12:34:56.7+00", NEVER, forms.instant, key=True),
    "numeric": Form(
        "12.30",
        SHOWN,
        False,
        lambda modifiers: forms.decimal(_scale(modifiers)),
        lambda modifiers: forms.decimal(_scale(modifiers), is_whole=True),
        "no key: 1.0 and 1.00 are equal; scale must not be negative",
    ),
    "real": _form("0.1", NEVER, forms.single, note=f"no key: 0 and -0 are equal; {_FLOAT_NOTE}"),
    "double precision": _form("1e+15", NEVER, forms.double, note=f"no key: 0 and -0 are equal; {_FLOAT_NOTE}"),
    "json": _text_form('{"b":1, "a":2}'),
    "jsonb": _text_form('{"a": 2, "b": 1.0}', note="no key: 1.0 and 1.00 are equal"),
    "tsvector": _text_form("'a' 'b'"),
    "inet": _form("10.0.0.1/32", NEVER, forms.address, key=True, note="always with its mask length"),
    "cidr": _form("10.0.0.0/8", NEVER, forms.address, key=True),
    "macaddr": _form("08:00:2b:01:02:03", NEVER, forms.whole_text, key=True),
    "macaddr8": _form("08:00:2b:01:02:03:04:05", NEVER, forms.whole_text, key=True),
    "int4range": _form("[1,5)", NEVER, forms.whole_text),
    "int8range": _form("[1,5)", NEVER, forms.whole_text),
    "daterange": _form("[2026-01-31,2026-03-01)", NEVER, forms.whole_text),
    "tsrange": _form('["2026-01-31 10:00:00",)', NEVER, forms.whole_text),
    "numrange": _text_form("[1.50,2)"),
    "text[]": _form('{a,"b c",NULL}', SHOWN, forms.text_array, forms.whole_text_array, note=_ARRAY_NOTE),
    "character varying[]": _form('{a,"b c",NULL}', SHOWN, forms.text_array, forms.whole_text_array, note=_ARRAY_NOTE),
    "uuid[]": _form("{6f1c1c0e-2a0b-4d0e-9c59-222222222222}", HIDDEN, forms.whole_text_array, note=_ARRAY_NOTE),
    "smallint[]": _form("{1,NULL}", HIDDEN, forms.plain_array(forms.integer), note=_ARRAY_NOTE),
    "integer[]": _form("{1,NULL}", HIDDEN, forms.plain_array(forms.integer), note=_ARRAY_NOTE),
    "bigint[]": _form("{1,NULL}", HIDDEN, forms.plain_array(forms.integer), note=_ARRAY_NOTE),
    "boolean[]": _form("{t,f,NULL}", HIDDEN, forms.plain_array(forms.boolean_element), note=_ARRAY_NOTE),
    "bytea": _form(
        "\\xdeadbeef",
        HIDDEN,
        forms.octets,
        note="exact only while bytea_output is hex (the default) for the connector's role and database",
    ),
    "vector": _form("[1,0.5]", HIDDEN, forms.vector),
    "halfvec": _form("[1,0.5]", HIDDEN, forms.vector),
}

# What is known about types that are not allowed: what goes wrong, and what to use in their place.
REFUSED: Mapping[str, tuple[str, str]] = {
    "interval": ("its months are lost in change events", "store whole seconds or days as a number"),
    "time without time zone": ("24:00:00 arrives as 00:00:00", "store seconds of the day as a number, or text"),
    "time with time zone": ("its zone is lost in change events", "use timestamp with time zone"),
    "date[]": ("infinity and years before Christ arrive as other dates", "use text[] with ISO dates"),
    "timestamp without time zone[]": ("infinity arrives as another time", "use text[] with ISO times"),
    "timestamp with time zone[]": ("-infinity and years before Christ arrive as other times", "use text[]"),
    "numeric[]": ("an array with a NaN arrives as null", "use text[]"),
    "tstzrange": ("its bounds are printed in the time zone of the connector's machine", "use two columns"),
    "citext": ("equal values can have different bytes, and its events are not verified", "use text"),
    "bit": ("change events carry bytes without their length", "use text or a number"),
    "bit varying": ("change events carry bytes without their length", "use text or a number"),
    "money": ("its text depends on the server's locale", "use numeric"),
    "name": ("its values arrive as null", "use text"),
    "point": ("it arrives as an object whose numbers are not the ones printed", "use two double precision columns"),
    "tsquery": ("change events leave it out", "use text"),
    "pg_lsn": ("change events leave it out", "use text or a number"),
    "hstore": ("its form depends on a connector setting", "use jsonb"),
    "sparsevec": ("it arrives as an object", "use vector"),
    "xml": ("its events are not verified", "use text"),
}


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A `format_type()` text taken apart: `numeric(10,2)` is name numeric, modifiers (10, 2)."""

    name: str
    modifiers: Modifiers


@lru_cache(maxsize=1024)
def _parse(type: str) -> _Parsed:
    match = _TYPE.fullmatch(type)
    if match is None:
        return _Parsed(type, ())
    modifiers = tuple(int(m) for m in match["modifiers"].split(",")) if match["modifiers"] else ()
    return _Parsed(_plain(match["name"]) + (match["zone"] or "") + (match["array"] or ""), modifiers)


def _plain(name: str) -> str:
    """Without the schema, for types of extensions: those may live in any."""
    last = name.rpartition(".")[2]
    return last if last in _EXTENSION_TYPES else name


def target_type(type: str, kind: str) -> str:
    """What the replica stores a column of this base type as. kind: see `daemon.core.catalog.CatalogColumn`."""
    if kind == "enum":
        return "text"
    schema, _, last = type.rpartition(".")
    return last if schema and _parse(type).name in _EXTENSION_TYPES else type


def admits(type: str, *, as_key: bool, full_identity: bool, kind: str = "base") -> Refusal | None:
    """Why a column of this base type (`format_type()` text, domains resolved) cannot be used; None if it can.

    full_identity: the table has REPLICA IDENTITY FULL. kind: of the column's own type; `base` says nothing special.
    """
    stored = target_type(type, kind)
    parsed = _parse(stored)
    form = ALLOWED.get(parsed.name)
    if form is None or not _is_readable(parsed):
        return _unknown(type, parsed.name, "key-type-refused" if as_key else "type-refused", kind)
    if as_key and not form.key:
        return Refusal(
            "key-type-refused",
            f"{type} cannot be a key: {_why_no_key(parsed.name, form)}",
            "use a key of integer, bigint, uuid or text",
        )
    is_hidden = form.unavailable == HIDDEN or (kind == "domain" and parsed.name.endswith("[]"))
    if is_hidden and not full_identity:
        what = f"a domain over {type}" if kind == "domain" else type
        return Refusal(
            "type-refused",
            f"{what} can be used only with REPLICA IDENTITY FULL: "
            "an unchanged value stored outside its row arrives as null or as another value",
            "ALTER TABLE ... REPLICA IDENTITY FULL, or leave the column out",
        )
    return None


def _is_readable(parsed: _Parsed) -> bool:
    return not (parsed.name == "numeric" and len(parsed.modifiers) > 1 and parsed.modifiers[1] < 0)


def _unknown(type: str, name: str, id: str, kind: str) -> Refusal:
    if name == "numeric":
        return Refusal(id, f"{type} is refused: a negative scale arrives with thousands of zeros", "use scale 0")
    if name in REFUSED:
        why, instead = REFUSED[name]
        return Refusal(id, f"{type} is refused: {why}", f"{instead}, or leave the column out")
    what = "a domain over an enum or another unlisted type" if kind == "domain" else "not a type with a known form"
    return Refusal(id, f"{type} is refused: it is {what}", "see docs/reference/types.md for the types that can be used")


def _why_no_key(name: str, form: Form) -> str:
    reason = next((part[8:] for part in form.note.split("; ") if part.startswith("no key: ")), None)
    return reason or f"equal values of {name} need not have equal text"


def reader(type: str, full_identity: bool = False) -> Reader:
    """The function that reads a non-null JSON value of this type (`Column.target_type`) from a change event.

    With full_identity nothing is unavailable. Raises Unreadable `type-refused` for a type that is not admitted.
    """
    refusal = admits(type, as_key=False, full_identity=full_identity)
    if refusal is not None:
        raise Unreadable(refusal.id, refusal.message, refusal.hint)
    parsed = _parse(type)
    form = ALLOWED[parsed.name]
    return (form.whole if full_identity else form.read)(parsed.modifiers)


def from_debezium(type: str, value: Any, full_identity: bool = False) -> Value:
    """The canonical text of a JSON value. Raises Unreadable: refused type, other form, or a form with two meanings."""
    return None if value is None else reader(type, full_identity)(value)


def normaliser(type: str) -> Callable[[str], str] | None:
    """What is left to do to Postgres's text of this type; None where the text is canonical as it is."""
    return _NORMALISERS.get(_parse(type).name)


def from_postgres(type: str, text: str) -> str:
    """The canonical text of what the driver gives for `column::text`, or for the column itself in text format."""
    normalise = normaliser(type)
    return text if normalise is None else normalise(text)


def _without_bounds(text: str) -> str:
    return _BOUNDS.sub("", text, count=1) if text.startswith("[") else text


def _without_padding(text: str) -> str:
    return text.rstrip(" ")


def _long_boolean(text: str) -> str:
    return {"t": "true", "f": "false"}.get(text, text)


def _with_mask(text: str) -> str:
    return str(forms.address(text))


_NORMALISERS: Mapping[str, Callable[[str], str]] = {
    "boolean": _long_boolean,
    "character": _without_padding,
    "bpchar": _without_padding,
    "inet": _with_mask,
    **{name: _without_bounds for name in ALLOWED if name.endswith("[]")},
}


_PAGE = """# Types

What a used column may be, and what its value looks like inside revector. The canonical form of a value is the text
that `column::text` gives with `DateStyle = ISO`, `TimeZone = UTC`, `extra_float_digits = 1` and `bytea_output = hex`.
Change events and pages are both brought to this form. A type is allowed only if every value of it, and its absence
from an event, can be told apart or is refused when it comes; the statements below were seen on Debezium 3.7.0.Final
with PostgreSQL 18.4 under the connector profile of this project.

- An enum is stored as text and may be a key. A domain counts as its base type; a domain over an array needs
  `REPLICA IDENTITY FULL`, a domain over an enum is refused. Generated columns are absent from events.
- A key with a nondeterministic collation is refused whatever its type.
- **Unchanged** says what an update carries for a value that is stored outside its row (TOAST) and that it did not
  change. *known*: it is recognised, the replica keeps its value. *hidden*: it looks like null or like another value, so
  the table needs `REPLICA IDENTITY FULL`, under which every event carries every value. *never*: such values are always
  stored in their row.
- A text that equals `__debezium_unavailable_value` cannot be told from an unchanged one and counts as unchanged,
  except under `REPLICA IDENTITY FULL`: a new row's column is then read at the source, an updated one keeps its old
  value until the next comparison.
- The connector's session prints floats and bytea as the source is set up. Where `extra_float_digits` is below 1 or
  `bytea_output` is `escape`, give the connector's role its own setting: `ALTER ROLE ... SET extra_float_digits = 1`.

## Allowed

| type | canonical form | key | unchanged | remark |
|---|---|---|---|---|
"""

_UNCHANGED = {NEVER: "never", SHOWN: "known", HIDDEN: "hidden"}


def reference_page() -> str:
    """The Markdown of docs/reference/types.md."""
    allowed = [
        f"| `{name}` | {_cell(form.example)} | {'yes' if form.key else 'no'} | {_UNCHANGED[form.unavailable]} "
        f"| {form.note.replace('|', ' ')} |"
        for name, form in ALLOWED.items()
    ]
    refused = [f"| `{name}` | {why} | {instead} |" for name, (why, instead) in REFUSED.items()]
    head = ["", "## Refused", "", "Every other type is refused too; of these the reason is known.", ""]
    return _PAGE + "\n".join([*allowed, *head, "| type | reason | instead |", "|---|---|---|", *refused]) + "\n"


def _cell(example: str) -> str:
    return example if example[0].islower() and " " in example else f"`{example}`"
