"""The canonical form: every pair below was seen on PostgreSQL 18.4 and Debezium 3.7.0.Final, the right side as
`column::text` under the pinned settings, the left side as the JSON value of the event."""

from __future__ import annotations

import base64
import datetime as dt
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from daemon.core import canonical
from daemon.core.canonical import admits, from_debezium, from_postgres, normaliser, reader, target_type
from daemon.core.forms import Unreadable
from daemon.core.model import UNAVAILABLE

PLACEHOLDER = "__debezium_unavailable_value"
JAVA_TEXT_ARRAY = "[Ljava.lang.String;@5dd0428e"

SEEN: list[tuple[str, Any, str]] = [
    ("smallint", -5, "-5"),
    ("integer", 42, "42"),
    ("bigint", -9223372036854775808, "-9223372036854775808"),
    ("bigint", 9007199254740993, "9007199254740993"),
    ("boolean", True, "true"),
    ("boolean", False, "false"),
    ("uuid", "6f1c1c0e-2a0b-4d0e-9c59-222222222222", "6f1c1c0e-2a0b-4d0e-9c59-222222222222"),
    ("text", "line1\nline2\ttab ", "line1\nline2\ttab "),
    ("text", "", ""),
    ("character varying(10)", "vc ", "vc "),
    ("character(5)", "ch   ", "ch"),
    ("character(5)", "a  b ", "a  b"),
    ("character(5)", "     ", ""),
    ("character(5)", "  a  ", "  a"),
    ("bpchar", "a  ", "a"),
    ("date", "2026-01-31Z", "2026-01-31"),
    ("date", "9999-12-31Z", "9999-12-31"),
    ("date", "+10000-01-01Z", "10000-01-01"),
    ("date", "+5874897-12-31Z", "5874897-12-31"),
    ("date", "0001-01-01Z", "0001-01-01"),
    ("date", "0000-01-01Z", "0001-01-01 BC"),
    ("date", "-0043-03-15Z", "0044-03-15 BC"),
    ("date", "-4712-01-01Z", "4713-01-01 BC"),
    ("date", "1582-10-10Z", "1582-10-10"),
    ("timestamp without time zone", "2026-02-28T12:34:56.123456Z", "2026-02-28 12:34:56.123456"),
    ("timestamp without time zone", "2026-03-29T02:30:00Z", "2026-03-29 02:30:00"),
    ("timestamp without time zone", "+294276-12-31T23:59:59.999999Z", "294276-12-31 23:59:59.999999"),
    ("timestamp without time zone", "-0043-03-15T12:00:00Z", "0044-03-15 12:00:00 BC"),
    ("timestamp(3) without time zone", "2026-01-01T10:00:00.7Z", "2026-01-01 10:00:00.7"),
    ("timestamp(0) without time zone", "2026-01-01T10:00:01Z", "2026-01-01 10:00:01"),
    ("timestamp with time zone", "2026-02-28T10:34:56.123456Z", "2026-02-28 10:34:56.123456+00"),
    ("timestamp with time zone", "2026-11-21T12:30:58.414160Z", "2026-11-21 12:30:58.41416+00"),
    ("timestamp with time zone", "1970-01-01T00:00:00.000000Z", "1970-01-01 00:00:00+00"),
    ("timestamp with time zone", "+10000-01-01T00:00:00.000000Z", "10000-01-01 00:00:00+00"),
    ("timestamp with time zone", "-0043-03-15T12:00:00.000000Z", "0044-03-15 12:00:00+00 BC"),
    ("timestamp with time zone", "infinity", "infinity"),
    ("timestamp with time zone", "-infinity", "-infinity"),
    ("timestamp(3) with time zone", "2026-01-01T01:00:00.700Z", "2026-01-01 01:00:00.7+00"),
    ("numeric", "123456789.123456789", "123456789.123456789"),
    ("numeric", "0.00000000000000000001", "0.00000000000000000001"),
    ("numeric", "0.0000000000", "0.0000000000"),
    ("numeric", "NAN", "NaN"),
    ("numeric", "POSITIVE_INFINITY", "Infinity"),
    ("numeric", "NEGATIVE_INFINITY", "-Infinity"),
    ("numeric(12,4)", "3.1400", "3.1400"),
    ("numeric(12,4)", "-1.5000", "-1.5000"),
    ("numeric(12,4)", "NAN", "NaN"),
    ("numeric(10,0)", "-5", "-5"),
    ("real", 1.5, "1.5"),
    ("real", -0.0, "-0"),
    ("real", 0.0, "0"),
    ("real", "NaN", "NaN"),
    ("real", 3.4028235e38, "3.4028235e+38"),
    ("real", 1.4e-45, "1e-45"),
    ("real", 16777216.0, "1.6777216e+07"),
    ("real", 8589934600.0, "8.589935e+09"),
    ("real", 1.17549435e-38, "1.1754944e-38"),
    ("real", 1.262177448353619e-29, "1.2621775e-29"),
    ("real", 1.5474250491067253e26, "1.5474251e+26"),
    ("real", 999999.0, "999999"),
    ("real", 1000000.0, "1e+06"),
    ("double precision", 0.1, "0.1"),
    ("double precision", "Infinity", "Infinity"),
    ("double precision", "-Infinity", "-Infinity"),
    ("double precision", 1e23, "9.999999999999999e+22"),
    ("double precision", 2e23, "1.9999999999999998e+23"),
    ("double precision", 8.41e21, "8.409999999999999e+21"),
    ("double precision", 1e22, "1e+22"),
    ("double precision", 1e15, "1e+15"),
    ("double precision", 100000000000000.0, "100000000000000"),
    ("double precision", 123456789012345.0, "123456789012345"),
    ("double precision", 9007199254740992.0, "9.007199254740992e+15"),
    ("double precision", 1.7976931348623157e308, "1.7976931348623157e+308"),
    ("double precision", 5e-324, "5e-324"),
    ("double precision", 0.0001, "0.0001"),
    ("double precision", 1e-5, "1e-05"),
    ("double precision", 0.30000000000000004, "0.30000000000000004"),
    ("double precision", 9.999999999999998, "9.999999999999998"),
    ("double precision", -99999999.99999999, "-99999999.99999999"),
    ("json", '{"a": 1,  "a":2}', '{"a": 1,  "a":2}'),
    ("jsonb", '{"a": [100], "b": 1.0}', '{"a": [100], "b": 1.0}'),
    ("jsonb", "null", "null"),
    ("jsonb", f'"{PLACEHOLDER}"', f'"{PLACEHOLDER}"'),
    ("tsvector", "'a':2 'b c':1A", "'a':2 'b c':1A"),
    ("inet", "10.0.0.1", "10.0.0.1/32"),
    ("inet", "10.0.0.1/8", "10.0.0.1/8"),
    ("inet", "::1", "::1/128"),
    ("inet", "::ffff:1.2.3.4", "::ffff:1.2.3.4/128"),
    ("cidr", "10.1.2.3/32", "10.1.2.3/32"),
    ("macaddr", "08:00:2b:01:02:03", "08:00:2b:01:02:03"),
    ("macaddr8", "08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03:04:05"),
    ("int4range", "[1,6)", "[1,6)"),
    ("int8range", "(,5)", "(,5)"),
    ("numrange", "(1.0,)", "(1.0,)"),
    ("daterange", "[infinity,)", "[infinity,)"),
    ("tsrange", '["2026-01-31 10:00:00",)', '["2026-01-31 10:00:00",)'),
    ("text[]", [], "{}"),
    ("text[]", [None], "{NULL}"),
    ("text[]", ["a", "b,c", None], '{a,"b,c",NULL}'),
    (
        "text[]",
        ["NULL", "null", "", "a b", "a\\b", 'a"b', "{x}", "\t", "é", "\u00a0"],
        '{"NULL","null","","a b","a\\\\b","a\\"b","{x}","\t",é,\u00a0}',
    ),
    ("character varying(5)[]", [None, "x"], "{NULL,x}"),
]

SEEN_UNDER_FULL: list[tuple[str, Any, str]] = [
    ("bytea", "3q2+7w==", "\\xdeadbeef"),
    ("bytea", "", "\\x"),
    ("integer[]", [1, None], "{1,NULL}"),
    ("smallint[]", [], "{}"),
    ("bigint[]", [9223372036854775807], "{9223372036854775807}"),
    ("boolean[]", [True, False, None], "{t,f,NULL}"),
    ("uuid[]", ["6f1c1c0e-2a0b-4d0e-9c59-222222222222", None], "{6f1c1c0e-2a0b-4d0e-9c59-222222222222,NULL}"),
    ("vector(4)", [0.1, 1e-10, 10000000000.0, -0.0], "[0.1,1e-10,1e+10,-0]"),
    ("halfvec(3)", [0.099975586, 1.001358e-05, 65504.0], "[0.099975586,1.001358e-05,65504]"),
    ("extensions.vector(1)", [1.0], "[1]"),
]

# Type and JSON value of a column whose value is stored outside its row and was not changed.
UNAVAILABLE_FORMS: list[tuple[str, Any]] = [
    ("text", PLACEHOLDER),
    ("character varying(20000)", PLACEHOLDER),
    ("character(9000)", PLACEHOLDER),
    ("bpchar", PLACEHOLDER),
    ("json", PLACEHOLDER),
    ("jsonb", PLACEHOLDER),
    ("tsvector", PLACEHOLDER),
    ("numeric", PLACEHOLDER),
    ("numeric(1000,10)", PLACEHOLDER),
    ("numrange", PLACEHOLDER),
    ("text[]", [PLACEHOLDER]),
    ("character varying(50)[]", [PLACEHOLDER]),
]

# The same, where the value is null or an invented one.
HIDDEN_FORMS: list[tuple[str, Any]] = [
    ("integer[]", list(PLACEHOLDER.encode())),
    ("bigint[]", list(PLACEHOLDER.encode())),
    ("uuid[]", ["b68a35a7-17ad-35b3-af2a-ae46edb4545a"]),
    ("bytea", base64.b64encode(PLACEHOLDER.encode()).decode()),
    ("smallint[]", None),
    ("boolean[]", None),
    ("vector(500)", None),
    ("halfvec(500)", None),
]

ALWAYS_REFUSED = [
    "interval", "interval(3)", "time without time zone", "time(3) without time zone", "time with time zone",
    "numeric[]", "numeric(10,2)[]", "timestamp with time zone[]", "timestamp without time zone[]", "date[]", "real[]",
    "double precision[]", "jsonb[]", "character(5)[]", "tstzrange", "citext", "bit(4)", "bit varying", "money",
    "name", "point", "tsquery", "pg_lsn", "hstore", "sparsevec(5)", "xml", "oid", '"char"', "app.mood", "app.mood[]",
    "numeric(5,-2)", "int4multirange", "cidr[]", "text[][]", "",
]  # fmt: skip


@pytest.mark.parametrize(("type", "value", "text"), SEEN)
def test_event_value_becomes_the_text_that_postgres_prints(type: str, value: Any, text: str) -> None:
    assert from_debezium(type, value) == text
    assert from_debezium(type, value, full_identity=True) == text


@pytest.mark.parametrize(("type", "value", "text"), SEEN_UNDER_FULL)
def test_event_value_of_a_type_that_needs_full_identity_becomes_what_postgres_prints(
    type: str, value: Any, text: str
) -> None:
    assert from_debezium(type, value, full_identity=True) == text


@pytest.mark.parametrize(("type", "value", "text"), SEEN + SEEN_UNDER_FULL)
def test_text_of_postgres_is_canonical_already(type: str, value: Any, text: str) -> None:
    assert from_postgres(type, text) == text


@pytest.mark.parametrize(
    ("type", "text", "same"),
    [
        ("boolean", "t", "true"),
        ("boolean", "f", "false"),
        ("character(5)", "a    ", "a"),
        ("inet", "10.0.0.1", "10.0.0.1/32"),
        ("text[]", "[0:1]={a,b}", "{a,b}"),
        ("integer[]", "[3:4]={1,2}", "{1,2}"),
        ("text[]", '{"[0:1]={a}"}', '{"[0:1]={a}"}'),
        ("text", "[0:1]={a,b} ", "[0:1]={a,b} "),
    ],
)
def test_output_text_and_lower_bounds_are_brought_to_the_canonical_form(type: str, text: str, same: str) -> None:
    assert from_postgres(type, text) == same


def test_most_types_need_no_work_on_a_page() -> None:
    assert {name for name in canonical.ALLOWED if normaliser(name) is not None} == {
        "boolean", "character", "bpchar", "inet",
        "text[]", "character varying[]", "uuid[]", "smallint[]", "integer[]", "bigint[]", "boolean[]",
    }  # fmt: skip


@pytest.mark.parametrize("type", list(canonical.ALLOWED))
def test_null_is_null(type: str) -> None:
    assert from_debezium(type, None, full_identity=True) is None


# --- unavailable values


@pytest.mark.parametrize(("type", "value"), UNAVAILABLE_FORMS)
def test_unchanged_toast_is_unavailable(type: str, value: Any) -> None:
    assert from_debezium(type, value) is UNAVAILABLE


@pytest.mark.parametrize(("type", "value"), UNAVAILABLE_FORMS)
def test_nothing_is_unavailable_under_full_identity(type: str, value: Any) -> None:
    if type.startswith("numeric"):
        with pytest.raises(Unreadable):
            from_debezium(type, value, full_identity=True)
    else:
        assert from_debezium(type, value, full_identity=True) == from_postgres(
            type, "{" + PLACEHOLDER + "}" if type.endswith("[]") else PLACEHOLDER
        )


@pytest.mark.parametrize(("type", "value"), HIDDEN_FORMS)
def test_type_whose_unavailable_value_is_hidden_is_refused_without_full_identity(type: str, value: Any) -> None:
    refusal = admits(type, as_key=False, full_identity=False)
    assert refusal is not None
    assert refusal.id == "type-refused"
    assert "REPLICA IDENTITY FULL" in refusal.hint
    with pytest.raises(Unreadable, match="REPLICA IDENTITY FULL"):
        from_debezium(type, [1] if value is None else value)
    assert admits(type, as_key=False, full_identity=True) is None


def test_every_allowed_type_that_can_be_unavailable_is_listed_with_its_shape() -> None:
    shown = {canonical._parse(type).name for type, _ in UNAVAILABLE_FORMS}
    hidden = {canonical._parse(type).name for type, _ in HIDDEN_FORMS}
    assert shown == {name for name, form in canonical.ALLOWED.items() if form.unavailable == canonical.SHOWN}
    assert hidden == {name for name, form in canonical.ALLOWED.items() if form.unavailable == canonical.HIDDEN}


def test_placeholder_inside_a_longer_value_is_a_value() -> None:
    assert from_debezium("text", PLACEHOLDER + " ") == PLACEHOLDER + " "
    assert from_debezium("text[]", [PLACEHOLDER, PLACEHOLDER]) == "{" + PLACEHOLDER + "," + PLACEHOLDER + "}"


def test_domain_over_an_array_needs_full_identity_because_its_unavailable_value_is_null() -> None:
    assert admits("text[]", as_key=False, full_identity=False) is None
    refusal = admits("text[]", as_key=False, full_identity=False, kind="domain")
    assert refusal is not None
    assert "domain over text[]" in refusal.message
    assert admits("text[]", as_key=False, full_identity=True, kind="domain") is None
    assert admits("text", as_key=False, full_identity=False, kind="domain") is None


# --- what is admitted


@pytest.mark.parametrize("type", ALWAYS_REFUSED)
@pytest.mark.parametrize("full_identity", [False, True])
def test_type_without_a_known_form_is_refused(type: str, full_identity: bool) -> None:
    refusal = admits(type, as_key=False, full_identity=full_identity)
    assert refusal is not None
    assert (refusal.id, bool(refusal.message), bool(refusal.hint)) == ("type-refused", True, True)
    with pytest.raises(Unreadable) as raised:
        reader(type, full_identity)
    assert raised.value.id == "type-refused"


@pytest.mark.parametrize(
    "type",
    [
        "smallint", "integer", "bigint", "boolean", "uuid", "text", "character varying(20)", "character(3)", "date",
        "timestamp(3) without time zone", "timestamp with time zone", "inet", "cidr", "macaddr", "macaddr8",
    ],
)  # fmt: skip
def test_type_whose_equal_values_have_equal_text_may_be_a_key(type: str) -> None:
    assert admits(type, as_key=True, full_identity=False) is None


@pytest.mark.parametrize(
    "type",
    [
        "numeric", "numeric(10,2)", "real", "double precision", "citext", "bpchar", "jsonb", "json", "text[]", "bytea",
        "tsvector", "numrange", "int4range", "interval", "time without time zone", "vector(3)", "nonsense",
    ],
)  # fmt: skip
@pytest.mark.parametrize("full_identity", [False, True])
def test_other_types_are_refused_as_key(type: str, full_identity: bool) -> None:
    refusal = admits(type, as_key=True, full_identity=full_identity)
    assert refusal is not None
    assert refusal.id == "key-type-refused"


def test_enum_is_text_and_extension_types_lose_their_schema() -> None:
    assert target_type("app.mood", "enum") == "text"
    assert admits("app.mood", as_key=True, full_identity=False, kind="enum") is None
    assert target_type("app.mood", "domain") == "app.mood"
    assert admits("app.mood", as_key=False, full_identity=False, kind="domain") is not None
    assert target_type("extensions.halfvec(3)", "base") == "halfvec(3)"
    assert target_type("numeric(10,2)", "domain") == "numeric(10,2)"
    assert target_type("timestamp(3) without time zone", "base") == "timestamp(3) without time zone"


def test_users_type_with_a_builtin_name_is_not_taken_for_it() -> None:
    assert admits("app.text", as_key=False, full_identity=False) is not None


# --- forms that have two meanings, or belong to other settings


@pytest.mark.parametrize(
    ("type", "value", "id"),
    [
        ("date", "+5877611-06-21Z", "infinity-unreadable"),
        ("date", "-5877611-06-22Z", "infinity-unreadable"),
        ("timestamp without time zone", "+292278994-08-16T23:00:00Z", "infinity-unreadable"),
        ("timestamp without time zone", "-292275055-05-16T23:00:00Z", "infinity-unreadable"),
        ("date", 20484, "time-mode-wrong"),
        ("timestamp without time zone", 1772282096123456, "time-mode-wrong"),
        ("timestamp with time zone", 1772282096123, "time-mode-wrong"),
        ("timestamp with time zone", "2026-02-28T10:34:56+02:00", "time-mode-wrong"),
        ("timestamp without time zone", "2026-02-28T10:34:56", "time-mode-wrong"),
        ("date", "2026-01-31", "time-mode-wrong"),
        ("date", "infinity", "time-mode-wrong"),
        ("date", "２０２６-01-31Z", "time-mode-wrong"),
        ("date", True, "value-unreadable"),
        ("numeric(10,2)", "BM4=", "decimal-mode-wrong"),
        ("numeric(12,4)", "eqg=", "decimal-mode-wrong"),
        ("numeric(12,4)", "1234", "decimal-mode-wrong"),
        ("numeric(10,0)", "12.5", "decimal-mode-wrong"),
        ("numeric", {"scale": 9, "value": "AbabS6zQXxU="}, "decimal-mode-wrong"),
        ("numeric", 1.5, "decimal-mode-wrong"),
        ("numeric", "1E+30", "decimal-mode-wrong"),
        ("numeric", "٣", "decimal-mode-wrong"),
        ("text[]", [JAVA_TEXT_ARRAY, JAVA_TEXT_ARRAY], "array-nested"),
        ("text[]", ["[[Ljava.lang.String;@48044e24"], "array-nested"),
        ("text[]", ["a", 1], "value-unreadable"),
        ("text[]", "{a}", "value-unreadable"),
        ("text", 5, "value-unreadable"),
        ("character(5)", ["a"], "value-unreadable"),
        ("integer", "5", "value-unreadable"),
        ("integer", True, "value-unreadable"),
        ("integer", 5.0, "value-unreadable"),
        ("boolean", 1, "value-unreadable"),
        ("boolean", "true", "value-unreadable"),
        ("real", "1.5", "value-unreadable"),
        ("real", 1e39, "value-unreadable"),
        ("inet", 1, "value-unreadable"),
        ("uuid", 5, "value-unreadable"),
    ],
)
def test_value_in_another_form_is_refused_not_guessed(type: str, value: Any, id: str) -> None:
    with pytest.raises(Unreadable) as raised:
        from_debezium(type, value)
    assert raised.value.id == id
    assert raised.value.hint


@pytest.mark.parametrize(
    ("type", "value", "id"),
    [
        ("integer[]", [None, None], "array-nested"),
        ("bigint[]", [None], "array-nested"),
        ("boolean[]", [None], "array-nested"),
        ("uuid[]", ["[Ljava.util.UUID;@25cedc11"], "array-nested"),
        ("integer[]", ["1"], "value-unreadable"),
        ("bytea", "not base64", "value-unreadable"),
        ("bytea", [1], "value-unreadable"),
        ("vector(1)", [None], "value-unreadable"),
        ("vector(1)", "[1]", "value-unreadable"),
    ],
)
def test_value_in_another_form_is_refused_under_full_identity_too(type: str, value: Any, id: str) -> None:
    with pytest.raises(Unreadable) as raised:
        from_debezium(type, value, full_identity=True)
    assert raised.value.id == id


@given(st.sampled_from(sorted(canonical.ALLOWED)), st.text(alphabet="xyzäö☃", min_size=8))
def test_no_message_repeats_a_value(type: str, secret: str) -> None:
    for value in (secret, [secret, 7], {secret: secret}, {"scale": secret}):
        try:
            from_debezium(type, value, full_identity=True)
        except Unreadable as error:
            assert secret not in f"{error} {error.message} {error.hint}"


# --- properties


@given(st.floats(allow_nan=False))
def test_double_reads_back_as_the_same_number_and_is_no_longer_than_needed(number: float) -> None:
    text = from_debezium(
        "double precision", number if math.isfinite(number) else str(number).replace("inf", "Infinity")
    )
    assert isinstance(text, str)
    assert math.copysign(1, float(text)) == math.copysign(1, number)
    assert float(text) == number


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_real_reads_back_as_the_same_number(number: float) -> None:
    text = from_debezium("real", number)
    assert isinstance(text, str)
    assert struct.unpack("f", struct.pack("f", float(text))) == (number,)
    assert len(text.strip("-").split("e")[0].replace(".", "").strip("0")) <= 9


@given(st.datetimes(), st.booleans())
def test_timestamps_are_the_iso_text_without_trailing_zeros(moment: dt.datetime, has_six_digits: bool) -> None:
    expected = moment.isoformat(sep=" ")
    expected = expected.rstrip("0") if "." in expected else expected
    event = moment.isoformat(timespec="microseconds") if has_six_digits else expected.replace(" ", "T")
    assert from_debezium("timestamp with time zone", event + "Z") == expected + "+00"
    assert from_debezium("timestamp without time zone", event + "Z") == expected


def parse_array(text: str) -> list[str | None]:
    """PostgreSQL documentation 8.15.6, for one dimension."""
    assert text[0] == "{" and text[-1] == "}"
    found: list[str | None] = []
    n = 1
    while n < len(text) - 1:
        element = ""
        is_quoted = text[n] == '"'
        if is_quoted:
            n += 1
            while text[n] != '"':
                n += text[n] == "\\"
                element += text[n]
                n += 1
            n += 1
        else:
            while text[n] not in ",}":
                assert text[n] not in ' \t\n\r\v\f"\\{'
                element += text[n]
                n += 1
            assert element
        assert text[n] in ",}"
        found.append(None if element.upper() == "NULL" and not is_quoted else element)
        n += 1
    return found


@given(
    st.lists(st.none() | st.text(alphabet=st.sampled_from('aNULl{}",\\ \t\n\v;é\u00a0\u2003\x1c')) | st.just("null"))
)
def test_array_text_reads_back_as_the_same_list(elements: list[str | None]) -> None:
    text = from_debezium("text[]", elements)
    assert isinstance(text, str)
    assert parse_array(text) == elements


@given(st.sampled_from(["text", "character varying(10)", "json"]), st.text(), st.text())
def test_different_texts_stay_different(type: str, one: str, other: str) -> None:
    assume(one != other and PLACEHOLDER not in (one, other))
    assert from_debezium(type, one) != from_debezium(type, other)


def test_reference_page_is_the_rendered_one() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "types.md"
    assert page.read_text(encoding="utf-8") == canonical.reference_page()
