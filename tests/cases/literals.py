"""Awkward values of every allowed type, as literals: what is read from change events, and what is refused there."""

from __future__ import annotations

# Literals of each type: what is written in source code, and what is refused when it comes.
LITERALS: dict[str, list[str]] = {
    "smallint": ["-5"],
    "integer": ["42"],
    "bigint": ["-9223372036854775808", "9007199254740993"],
    "boolean": ["t", "f"],
    "uuid": ["6F1C1C0E-2a0b-4d0e-9c59-222222222222"],
    "text": ["", " a\nb\t", "__debezium_unavailable_value", "☃ \\ \"'"],
    "character varying(10)": ["vc "],
    "character(5)": ["", "a", "a  b", "  a"],
    "bpchar": ["a  "],
    "date": [
        "2026-01-31", "10000-01-01", "5874897-12-31", "0001-01-01 BC", "0044-03-15 BC", "4714-11-24 BC",
        "1582-10-10",
    ],
    "timestamp without time zone": [
        "2026-03-29 02:30", "1900-01-01 00:00:00.000001", "294276-12-31 23:59:59.999999", "4714-11-24 BC",
    ],
    "timestamp(3) without time zone": ["2026-01-01 10:00:00.1239", "0044-03-15 12:00 BC"],
    "timestamp with time zone": [
        "infinity", "-infinity", "1880-01-01 00:00+09:18:59", "0044-03-15 12:00+00 BC",
        "294276-12-31 23:59:59.999999+00",
    ],
    "timestamp(0) with time zone": ["2026-01-01 10:00:00.7+09"],
    "numeric": ["NaN", "Infinity", "-Infinity", "1e-20", "0e-10", "1e30", "-1.50", "1e400"],
    "numeric(12,4)": ["NaN", "-1.5", "0"],
    "numeric(10,0)": ["1234", "-5"],
    "real": [
        "NaN", "Infinity", "-0", "3.4028235e38", "1e-45", "16777216", "8.5899346e9", "1.17549435e-38", "1e6",
        "0.3", "1.262177448353619e-29", "1.5474250491067253e+26",
    ],
    "double precision": [
        "NaN", "-Infinity", "-0", "1e23", "2e23", "8.41e21", "1e15", "1e14", "5e-324", "1.7976931348623157e308",
        "9.999999999999998",
    ],
    "json": ['{"a": 1,  "a":2}', "null"],
    "jsonb": ['{"b":1.0,"a":[1e2]}', "null", '"__debezium_unavailable_value"'],
    "tsvector": ["'b c':1A a:2", "it''s:3"],
    "inet": ["10.0.0.1", "10.0.0.1/8", "::1", "::ffff:1.2.3.4", "0.0.0.0/0"],
    "cidr": ["10.1.2.3", "::/0"],
    "macaddr": ["08-00-2B-01-02-03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "int4range": ["empty", "[1,5]", "(,)"],
    "int8range": ["(,5)"],
    "daterange": ["[2026-01-31,2026-03-01)", "[infinity,]"],
    "tsrange": ["[2026-01-31 10:00,)"],
    "numrange": ["[1.50,2)"],
    "text[]": ["{}", "{NULL}", '{"NULL",null,"","a b","a\\\\b","a\\"b","{x}","a,b","\t"}', "[0:1]={a,b}"],
    "character varying(5)[]": ['{NULL,"null"}'],
    "uuid[]": ["{6f1c1c0e-2a0b-4d0e-9c59-222222222222,NULL}"],
    "smallint[]": ["{1}"],
    "integer[]": ["{}", "{1,NULL}", "[3:4]={1,2}"],
    "bigint[]": ["{9223372036854775807}"],
    "boolean[]": ["{t,f,NULL}"],
    "bytea": ["\\x", "\\xdeadbeef", "\\x00ff"],
    "vector(3)": ["[0.1,1e-10,1e10]", "[-0,123456.7,1234567]", "[1e6,3.4e38,0.00001]"],
    "halfvec(3)": ["[0.1,1e-5,65504]", "[0.3333,1e-7,1000]"],
}  # fmt: skip


LITERALS_REFUSED: dict[str, list[str]] = {
    "date": ["infinity", "-infinity"],
    "timestamp without time zone": ["infinity", "-infinity"],
    "text[]": ["{{a,b},{c,NULL}}"],
    "character varying(5)[]": ["{{a},{b}}"],
    "uuid[]": ["{{6f1c1c0e-2a0b-4d0e-9c59-222222222222}}"],
    "integer[]": ["{{1,2},{3,4}}", "{NULL}"],
    "boolean[]": ["{{t}}"],
}
