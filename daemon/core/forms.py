"""One function per type: from the JSON value of a Debezium event to the text that Postgres prints for it.

Each takes a value that is not null and either answers with exact text, answers UNAVAILABLE, or raises `Unreadable`.
None guesses: a form that two source values share, or that belongs to another connector setting, is refused. What was
seen of each form, and where Debezium loses something, is in docs/reference/types.md; which types may use which
function is decided in `daemon.core.canonical`.

Messages of `Unreadable` describe the form, never the value.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from daemon.core.model import UNAVAILABLE, Value
from daemon.core.profile import PLACEHOLDER

Reader = Callable[[Any], Value]

_DATE = re.compile(r"([+-]?\d{4,9})-(\d\d-\d\d)Z", re.ASCII)
_TIMESTAMP = re.compile(r"([+-]?\d{4,9})-(\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?Z", re.ASCII)
_DECIMAL = re.compile(r"-?\d+(?:\.(\d+))?", re.ASCII)
_JAVA_ARRAY = re.compile(r"\[+L[\w.$]+;@[0-9a-f]+", re.ASCII)
_NEEDS_QUOTES = re.compile(r'[\s"\\{},]', re.ASCII)
_SPECIAL_DECIMALS = {"NAN": "NaN", "POSITIVE_INFINITY": "Infinity", "NEGATIVE_INFINITY": "-Infinity"}
_SPECIAL_FLOATS = ("NaN", "Infinity", "-Infinity")

_SMALLEST_NORMAL_SINGLE = 2.0**-126

# Years that Postgres can hold, astronomical (0 is 1 BC): documentation, table 8.9.
_FIRST_YEAR = -4713
_LAST_YEAR_OF_DATE = 5874897
_LAST_YEAR_OF_TIMESTAMP = 294276

_WRONG_TYPE = "check that the column's type is still the recorded one and that the connector has no converters"
_DECIMAL_HINT = "set decimal.handling.mode=string on the connector, or check that the column's type has not changed"
_TIME_HINT = "set time.precision.mode=isostring on the connector"


class Unreadable(Exception):
    """A value whose form does not say which source value it stands for. id and hint as in `daemon.errors`."""

    def __init__(self, id: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.id = id
        self.message = message
        self.hint = hint


def _wrong(value: object, wanted: str) -> Unreadable:
    return Unreadable("value-unreadable", f"{_json_name(value)} where {wanted} is expected", _WRONG_TYPE)


def _json_name(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "an unknown value")


# --- text


def text(value: Any) -> Value:
    """Text as it is. A real text that equals the placeholder cannot be told apart: it counts as unavailable."""
    if type(value) is not str:
        raise _wrong(value, "text")
    return UNAVAILABLE if value == PLACEHOLDER else value


def whole_text(value: Any) -> Value:
    """Text under REPLICA IDENTITY FULL: nothing is unavailable, so the placeholder is a text like any other."""
    if type(value) is not str:
        raise _wrong(value, "text")
    return value


def padded(read: Reader) -> Reader:
    """char(n): without its padding, as a cast to text prints it."""

    def read_padded(value: Any) -> Value:
        plain = read(value)
        return plain.rstrip(" ") if isinstance(plain, str) else plain

    return read_padded


def address(value: Any) -> Value:
    """inet: with its mask length, as a cast to text prints it."""
    if type(value) is not str:
        raise _wrong(value, "text")
    if "/" in value:
        return value
    return f"{value}/128" if ":" in value else f"{value}/32"


# --- numbers


def boolean(value: Any) -> Value:
    """true or false, as a cast to text prints it."""
    if type(value) is not bool:
        raise _wrong(value, "a boolean")
    return "true" if value else "false"


def integer(value: Any) -> Value:
    """smallint, integer, bigint."""
    if type(value) is not int:
        raise _wrong(value, "a whole number")
    return str(value)


def decimal(scale: int | None, is_whole: bool = False) -> Reader:
    """numeric: the decimal text with exactly `scale` digits after the point (None: as many as there are).

    is_whole: nothing is unavailable, so the placeholder is as wrong as any other text.

    The digits are counted because Debezium's default mode sends bytes in base64, which may consist of digits only.
    With scale 0 such a text passes: there the check of the connector's settings is the only guard.
    """

    def read_decimal(value: Any) -> Value:
        if type(value) is not str:
            raise Unreadable(
                "decimal-mode-wrong", f"{_json_name(value)} where a decimal text is expected", _DECIMAL_HINT
            )
        match = _DECIMAL.fullmatch(value)
        if match is not None and (scale is None or len(match[1] or "") == scale):
            return value
        if value == PLACEHOLDER and not is_whole:
            return UNAVAILABLE
        special = _SPECIAL_DECIMALS.get(value)
        if special is None:
            wanted = "a decimal text" if scale is None else f"a decimal text with {scale} digits after the point"
            raise Unreadable("decimal-mode-wrong", f"other text where {wanted} is expected", _DECIMAL_HINT)
        return special

    return read_decimal


def double(value: Any) -> Value:
    """double precision: the shortest text that reads back as the same number, written as Postgres writes it."""
    number = _number(value)
    return _special(number) or _write_float(number < 0, _double_digits(abs(number)), fixed_below=15)


def single(value: Any) -> Value:
    """real, and an element of a vector: likewise, for 32 bits."""
    number = _number(value)
    if (special := _special(number)) is not None:
        return special
    try:
        (number,) = struct.unpack("<f", struct.pack("<f", number))
    except OverflowError:
        raise _wrong(value, "a number of 32 bits") from None
    return _write_float(number < 0, _single_digits(abs(number)), fixed_below=6)


def _number(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int or (type(value) is str and value in _SPECIAL_FLOATS):
        return float(value)
    raise _wrong(value, "a number")


def _special(number: float) -> str | None:
    """Text of what has no shortest digits."""
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    if number == 0:
        return "-0" if math.copysign(1, number) < 0 else "0"
    return None


def _double_digits(number: float) -> tuple[str, int]:
    """Python's repr is what Postgres prints, but it also accepts a midpoint to a neighbour where rounding to even
    leads back (1e23). Below 1e15 a midpoint has too many digits to be shortest."""
    mantissa, _, exponent = repr(number).partition("e")
    figures = mantissa.replace(".", "").strip("0")
    if number < 1e15:
        return figures, int(exponent or f"{number:.16e}".partition("e")[2])
    return _shortest(number, math.nextafter(number, 0), math.nextafter(number, math.inf), len(figures))


def _single_digits(number: float) -> tuple[str, int]:
    """6 figures are never too many (fewer are the same with zeros behind), except for subnormal numbers. The bounds
    are exact in 64 bits, so only a candidate on a bound, or a power of two, needs exact arithmetic."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    below, above = (struct.unpack("<f", struct.pack("<I", b))[0] for b in (bits - 1, bits + 1))
    if number < _SMALLEST_NORMAL_SINGLE or math.isinf(above) or not bits & 0x7FFFFF:
        return _shortest(number, below, above, 1)
    low, high = (number + below) / 2, (number + above) / 2
    for digits in (6, 7, 8, 9):
        mantissa, _, exponent = (written := f"{number:.{digits - 1}e}").partition("e")
        candidate = float(written)
        if low < candidate < high:
            return mantissa.replace(".", "").rstrip("0"), int(exponent)
        if candidate in (low, high):
            break
    return _shortest(number, below, above, digits)


def _shortest(number: float, below: float, above: float, digits: int) -> tuple[str, int]:
    """Figures and decimal exponent of the shortest decimal strictly between the midpoints to the neighbours, the
    nearest of those: Postgres's rule (src/common/d2s.c, `acceptBounds` false). digits: none shorter exists.

    number > 0. At a power of two the interval is narrower below: the nearest may be outside, the next one above inside.
    """
    exact = Fraction(number)
    low = (exact + Fraction(below)) / 2
    high = (3 * exact - Fraction(below)) / 2 if math.isinf(above) else (exact + Fraction(above)) / 2
    while True:
        mantissa, _, exponent = f"{number:.{digits - 1}e}".partition("e")
        nearest = int(mantissa.replace(".", ""))
        unit = Fraction(10) ** (int(exponent) - digits + 1)
        for candidate in (nearest, nearest + 1):
            if low < candidate * unit < high:
                figures = str(candidate)
                return figures.rstrip("0"), int(exponent) + len(figures) - digits
        digits += 1


def _write_float(is_negative: bool, digits: tuple[str, int], fixed_below: int) -> str:
    """Postgres's layout: fixed for exponents from -4 up to `fixed_below`, exclusive."""
    figures, exponent = digits
    if not -4 <= exponent < fixed_below:
        written = figures[0] + ("." + figures[1:] if len(figures) > 1 else "") + f"e{exponent:+03d}"
    elif exponent < 0:
        written = "0." + "0" * (-exponent - 1) + figures
    elif len(figures) <= exponent + 1:
        written = figures.ljust(exponent + 1, "0")
    else:
        written = figures[: exponent + 1] + "." + figures[exponent + 1 :]
    return f"-{written}" if is_negative else written


# --- dates


def date(value: Any) -> Value:
    """`2026-01-31Z`. Infinity arrives as a year that Postgres cannot hold: raised, not read."""
    match = _DATE.fullmatch(_iso(value))
    if match is None:
        raise _not_iso()
    year, era = _year(match[1], _LAST_YEAR_OF_DATE)
    return f"{year}-{match[2]}{era}"


def timestamp(value: Any) -> Value:
    """`2026-01-31T12:34:56.7Z` without a zone. Infinity as for `date`."""
    return _timestamp(_iso(value), "")


def instant(value: Any) -> Value:
    """`2026-01-31T12:34:56.700000Z`, always UTC; infinity arrives as the words that Postgres prints."""
    plain = _iso(value)
    return plain if plain in ("infinity", "-infinity") else _timestamp(plain, "+00")


def _timestamp(value: str, zone: str) -> str:
    match = _TIMESTAMP.fullmatch(value)
    if match is None:
        raise _not_iso()
    signed_year, day, clock, fraction = match.groups()
    year, era = _year(signed_year, _LAST_YEAR_OF_TIMESTAMP)
    if fraction is not None and (fraction := fraction.rstrip("0")):
        clock = f"{clock}.{fraction}"
    return f"{year}-{day} {clock}{zone}{era}"


def _iso(value: Any) -> str:
    if type(value) is str:
        return value
    if type(value) is int:
        raise Unreadable("time-mode-wrong", "a number where ISO 8601 text is expected", _TIME_HINT)
    raise _wrong(value, "ISO 8601 text")


def _not_iso() -> Unreadable:
    return Unreadable("time-mode-wrong", "text that is not ISO 8601 in UTC", _TIME_HINT)


def _year(signed: str, last: int) -> tuple[str, str]:
    """Year and era as Postgres prints them; astronomical year 0 is 1 BC."""
    year = int(signed)
    if not _FIRST_YEAR <= year <= last:
        raise Unreadable(
            "infinity-unreadable",
            "a year that Postgres cannot hold: the connector's form of infinity",
            "put a finite value or NULL in its place at the source, then let the stream go on, or leave the column out",
        )
    return (f"{year:04d}", "") if year > 0 else (f"{1 - year:04d}", " BC")


# --- arrays, vectors, bytes


def text_array(value: Any) -> Value:
    """text[] or varchar[]; a single placeholder is the unavailable array."""
    return UNAVAILABLE if value == [PLACEHOLDER] else whole_text_array(value)


def whole_text_array(value: Any) -> Value:
    """text[], varchar[] or uuid[] where nothing is unavailable. Lower bounds are not carried: 1 is assumed."""
    return "{" + ",".join(map(_text_element, _elements(value))) + "}"


def plain_array(write: Reader) -> Reader:
    """An array whose elements need no quotes, of a type whose nested arrays arrive as lists of nulls."""

    def read_array(value: Any) -> Value:
        elements = _elements(value)
        if elements and all(e is None for e in elements):
            raise _nested("a list of nulls only, which may also be a nested array")
        return "{" + ",".join("NULL" if e is None else str(write(e)) for e in elements) + "}"

    return read_array


def boolean_element(value: Any) -> Value:
    """t or f: inside an array, Postgres prints the short form."""
    return "t" if boolean(value) == "true" else "f"


def vector(value: Any) -> Value:
    """pgvector's vector and halfvec: both print their elements as real does."""
    return "[" + ",".join(str(single(e)) for e in _elements(value)) + "]"


def octets(value: Any) -> Value:
    """bytea: base64 to the hex form."""
    if type(value) is not str:
        raise _wrong(value, "base64 text")
    try:
        return "\\x" + base64.b64decode(value, validate=True).hex()
    except ValueError:
        raise _wrong(value, "base64 text") from None


def _elements(value: Any) -> list[Any]:
    if type(value) is not list:
        raise _wrong(value, "a list")
    return value


def _text_element(element: Any) -> str:
    if element is None:
        return "NULL"
    if type(element) is not str:
        raise _wrong(element, "text in a list")
    if element.startswith("[") and _JAVA_ARRAY.fullmatch(element):
        raise _nested("the name of a Java array, which stands for a nested array")
    if element and not _NEEDS_QUOTES.search(element) and element.upper() != "NULL":
        return element
    return '"' + element.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _nested(what: str) -> Unreadable:
    hint = "keep the column's arrays flat at the source, or leave the column out of the migration"
    return Unreadable("array-nested", what, hint)
