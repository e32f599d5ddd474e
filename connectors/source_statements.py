"""Parts of the statements that read rows of a source table, in its own key order and with its own types.

In every statement the table is called `row`. Bare, a name in ORDER BY would mean the output column of that name, which
is text: pages would follow the order of '10' < '9'. Each statement is sent with parameters, if only none: `%` in names,
types and conditions is doubled here.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from connectors.relations import comma, name, raw
from daemon.core.model import Key, Table


def relation(table: Table) -> sql.Composed:
    """`"schema"."name" AS "row"`."""
    return sql.SQL('{}.{} AS "row"').format(name(table.schema), name(table.name))


def columns(names: Sequence[str]) -> sql.Composed:
    """These columns of `row`."""
    return comma([_column(column) for column in names])


def texts(names: Sequence[str]) -> sql.Composed:
    """Postgres's text of these columns of `row`."""
    return comma([sql.SQL("{}::text").format(_column(column)) for column in names])


def sizes(names: Sequence[str]) -> sql.Composed:
    """Bytes of these columns of `row` as they are stored; reads no value that lies out of line."""
    parts = [sql.SQL("coalesce(pg_column_size({}), 0)").format(_column(column)) for column in names]
    return sql.SQL("({})").format(sql.SQL(" + ").join(parts))


def wanted(table: Table) -> sql.Composable:
    """Whether `where` is true of `row`, which shows its used columns only."""
    return sql.SQL("true") if table.where is None else sql.SQL("(({}) IS TRUE)").format(raw(table.where))


def between(table: Table, after: Key | None, upto: Key | None) -> tuple[sql.Composable, list[str]]:
    """`WHERE key > after AND key <= upto` with its parameters; types are as `format_type()` printed them in a session
    with the same search_path, which is valid SQL."""
    key = columns(table.key)
    casts = comma([sql.SQL("%s::text::{}").format(raw(column.type)) for column in table.columns[: len(table.key)]])
    conditions: list[sql.Composable] = []
    parameters: list[str] = []
    for operator, bound in ((">", after), ("<=", upto)):
        if bound is not None:
            conditions.append(sql.SQL("({}) {} ({})").format(key, sql.SQL(operator), casts))
            parameters.extend(bound)
    return sql.SQL("WHERE {}").format(sql.SQL(" AND ").join(conditions)) if conditions else sql.SQL(""), parameters


def _column(column: str) -> sql.Composed:
    return sql.SQL('"row".{}').format(name(column))
