"""Any values of the types that can be drawn, as literals."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import strategies as st

ODD_TEXTS = [
    "", " ", "NULL", "null", "{}", "{a,b}", '"', "'", "\\", '\\"', "\\N", "(a,b)", ",", "%s", "%", "a\nb\tc", "\x01",
    "é", "e\u0301", "ß", "☃", "𝔘", "\u202e", "10", "9", "a", "B", "b", "A", "_", "\\x00", "[1:2]={a}", "E'", "$1", ";",
]  # fmt: skip


def any_literals() -> dict[str, st.SearchStrategy[str]]:
    """By type."""
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
    words = st.lists(st.none() | text | st.sampled_from(ODD_TEXTS), max_size=4)
    plain = st.recursive(
        st.none() | st.booleans() | st.integers() | text, lambda inner: st.lists(inner, max_size=3), max_leaves=4
    )
    single = st.floats(width=32).map(repr)
    finite = st.floats(-(2.0**100), 2.0**100, width=32).map(repr)
    number = st.decimals().filter(lambda d: not d.is_snan()).map(lambda d: "NaN" if d.is_nan() else str(d))
    octets = st.binary(max_size=20).map(lambda b: "\\x" + b.hex())
    return {
        "text": text | st.sampled_from(ODD_TEXTS),
        "character varying(30)": text,
        "character(30)": text,
        "bpchar": text,
        "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
        "numeric": number,
        "numeric(12,4)": st.decimals(-(10**7), 10**7, places=4).map(str),
        "real": single,
        "double precision": st.floats().map(repr),
        "date": st.dates().map(str),
        "timestamp without time zone": st.datetimes().map(str),
        "timestamp with time zone": st.datetimes().map(lambda at: f"{at}+00"),
        "boolean": st.booleans().map(str),
        "uuid": st.uuids().map(str),
        "inet": st.ip_addresses().map(str),
        "bytea": octets,
        "json": plain.map(json.dumps).filter(lambda t: "\\u0000" not in t),
        "jsonb": plain.map(json.dumps).filter(lambda t: "\\u0000" not in t),
        "text[]": words.map(array),
        "integer[]": st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), max_size=4).map(array),
        "ext.vector(2)": st.lists(finite, min_size=2, max_size=2).map(lambda v: f"[{','.join(v)}]"),
    }


def array(elements: Sequence[object]) -> str:
    quoted = (str(e).replace("\\", "\\\\").replace('"', '\\"') for e in elements)
    return "{" + ",".join("NULL" if e is None else f'"{q}"' for e, q in zip(elements, quoted, strict=True)) + "}"
