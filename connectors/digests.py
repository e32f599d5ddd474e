"""Digests of a column and of a row as SQL: one expression for both databases, so that equal values give equal bytes.

A column's digest is taken of its canonical text in UTF-8: what `daemon.core.canonical.from_postgres` makes of
`column::text`, computed by the database. That form holds on both sides whatever they store the value as (an enum is
text in the replica, a domain its base type) and whatever encoding they keep text in.

A row's digest serves only to find rows worth a second look, a million of them in seconds. It is taken of `record_send`,
which writes for each column its type, its length in bytes (-1 for null) and its bytes: no two rows share that, and
nothing has to be quoted. Types whose bytes are one for each value are sent as they are; every other one as its
canonical text. `record_send` gives text in the client's encoding, which `connectors.postgres_session` pins to UTF-8.

sha256 is built into every supported version and allowed under FIPS, which md5 is not. Both digests are cut: a column's
to 16 bytes, a row's to 8 (one row in 2**64 that differs looks equal).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from psycopg import sql

from connectors.relations import comma, name, raw
from daemon.core.model import Column, Table

COLUMN_BYTES = 16
ROW_BYTES = 8

# Sent as they are: the type that decides the bytes, without modifiers. Not among them: floats (NaN has several bit
# patterns), numeric and arrays (headers may differ), character (padding), types of extensions (their number differs).
_SENT = {
    **{
        type: type
        for type in (
            "smallint",
            "integer",
            "bigint",
            "boolean",
            "uuid",
            "text",
            "bytea",
            "date",
            "timestamp without time zone",
            "timestamp with time zone",
        )
    },
    "character varying": "text",
}
_MODIFIERS = re.compile(r"\([^)]*\)")


def canonical_text(value: sql.Composable, type: str) -> sql.Composed:
    """SQL for the canonical text of a value. type: `Column.target_type`.

    The cast writes a boolean in full, a network address with its mask and `character` without its padding. A slice
    over everything has lower bounds of 1, which arrays print without bounds.
    """
    whole = sql.SQL("({})[:]") if type.endswith("[]") else sql.SQL("{}")
    return sql.SQL("{}::text").format(whole.format(value))


def column_digest(value: sql.Composable, type: str) -> sql.Composed:
    """SQL for 16 bytes; null for null. type: `Column.target_type`."""
    digest = sql.SQL("substring(sha256(convert_to({}, 'UTF8')) for {})")
    return digest.format(canonical_text(value, type), sql.SQL(str(COLUMN_BYTES)))


def row_digest(values: Iterable[tuple[sql.Composable, str]]) -> sql.Composed:
    """SQL for 8 bytes of a row's values, each with its `Column.target_type`; only with client_encoding UTF8."""
    sent = comma([_sent(value, type) for value, type in values])
    return sql.SQL("substring(sha256(record_send(ROW({}))) for {})").format(sent, sql.SQL(str(ROW_BYTES)))


def columns_of(table: Table, row: str) -> list[tuple[sql.Composable, str]]:
    """Every used column of the relation that is called `row` in a statement with parameters, with its target type."""
    return [(_column(row, column.name), column.target_type) for column in table.columns]


def column_digests(table: Table, row: str) -> sql.Composed:
    """The digest of each used column, in the order of `Table.columns`."""
    return comma([column_digest(value, type) for value, type in columns_of(table, row)])


# --- the keys that pages and questions come with


def asked(table: Table, *, with_digests: bool = False) -> sql.Composed:
    """The relation `i`: a parameter for each key column, a text array or its literal, and one of digests."""
    arrays: list[sql.Composable] = [sql.SQL("%s::text[]")] * len(table.key)
    names = [key_name(n) for n in range(len(table.key))]
    if with_digests:
        arrays.append(sql.SQL("%s::bytea[]"))
        names.append(sql.Identifier("digest"))
    return sql.SQL("unnest({}) AS i ({})").format(comma(arrays), comma(names))


def key_name(n: int) -> sql.Composable:
    """What the key column number `n` is called in `i` and in pages."""
    return sql.Identifier(f"k{n}")


def key_match(table: Table, row: str, *, at_source: bool) -> sql.Composed:
    """Whether a row of the relation that is called `row` has the key of `i`; serves the key's index."""
    parts = [
        sql.SQL("{} = {}").format(_column(row, column.name), _key(column, n, at_source=at_source))
        for n, column in enumerate(table.columns[: len(table.key)])
    ]
    return sql.SQL(" AND ").join(parts)


def _key(column: Column, n: int, *, at_source: bool) -> sql.Composed:
    """A label that the source's enum does not have (the replica stores text) is no row's key; cast, it would fail."""
    type = raw(column.type if at_source else column.target_type)
    cast = sql.SQL("i.{}::{}").format(key_name(n), type)
    if not at_source or column.target_type != "text" or column.type == "text":
        return cast
    guarded = "CASE WHEN i.{} = ANY (enum_range(NULL::{})::text[]) THEN {} END"
    return sql.SQL(guarded).format(key_name(n), type, cast)


def _column(row: str, column: str) -> sql.Composed:
    return sql.SQL("{}.{}").format(sql.Identifier(row), name(column))


def _sent(value: sql.Composable, type: str) -> sql.Composed:
    sent = _SENT.get(_MODIFIERS.sub("", type))
    if sent is None:
        return canonical_text(value, type)
    return sql.SQL("{}::{}").format(value, sql.SQL(sent))
