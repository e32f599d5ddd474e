"""From a configured table and the source's catalogue to the table that is replicated, or to every reason why not.

A table is usable when it has a primary key of types whose equal values have equal bytes, and every used column exists,
is carried by change events and has a type with one canonical form. All problems of a table are found at once, so that
a person mends them in one go. Pure: the catalogue is read by the source adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.core.canonical import admits, target_type
from daemon.core.model import Column, Table
from daemon.errors import Problem


@dataclass(frozen=True, slots=True)
class CatalogColumn:
    """A column as the source's catalogue has it. type: format_type() text; base_type: the same with domains resolved
    to their base; kind: base | enum | domain | range | composite | array. number: never given again in its table;
    altered: differs after each ALTER of the column."""

    name: str
    type: str
    base_type: str
    kind: str
    nullable: bool
    generated: bool
    deterministic: bool  # False under a nondeterministic collation
    number: int = 0
    altered: str = ""


@dataclass(frozen=True, slots=True)
class TableCatalog:
    """A source table as the catalogue has it. primary_key: empty where there is none. identity: default | full |
    index | nothing. files: differs after the table, or a partition of it, was rewritten."""

    schema: str
    name: str
    columns: tuple[CatalogColumn, ...]
    primary_key: tuple[str, ...]
    key_deferrable: bool
    identity: str
    files: str = ""


@dataclass(frozen=True, slots=True)
class TableChoice:
    """What the configuration says of one source table. columns: extra columns to copy, beside key, text and filters."""

    schema: str
    name: str
    alias: str
    template: str
    text_columns: tuple[str, ...]
    columns: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    where: str | None = None


def resolve(choice: TableChoice, catalog: TableCatalog | None, id: int = 0) -> Table | list[Problem]:
    """The table as it is replicated, or what stands against it."""
    place = f"table {choice.schema}.{choice.name}"
    if catalog is None:
        return [Problem("table-missing", place, "there is no such table", "check schema, name and USAGE on the schema")]
    if not catalog.primary_key:
        hint = "add a primary key: without one, updates and deletes carry no identity"
        return [Problem("primary-key-missing", place, "the table has no primary key", hint)]
    names = list(dict.fromkeys((*catalog.primary_key, *choice.text_columns, *choice.filters, *choice.columns)))
    found = {c.name: c for c in catalog.columns}
    full = catalog.identity == "full"
    problems = _key_problems(place, catalog) + _column_problems(place, names, catalog)
    if problems:
        return problems
    columns = tuple(
        Column(c.name, c.base_type, target_type(c.base_type, c.kind), c.nullable) for c in (found[n] for n in names)
    )
    return Table(
        id=id,
        alias=choice.alias,
        schema=choice.schema,
        name=choice.name,
        key=catalog.primary_key,
        columns=columns,
        template=choice.template,
        text_columns=tuple(n for n in names if n in choice.text_columns),
        filters=choice.filters,
        where=choice.where,
        full_identity=full,
    )


def schema_change(table: Table, catalog: TableCatalog | None) -> str | None:
    """What of a replicated table is not as it was resolved; None where nothing is. Nullability changes no value, and a
    replica identity that carries more than before does no harm."""
    choice = TableChoice(
        table.schema, table.name, table.alias, table.template, table.text_columns, table.names, table.filters
    )
    found = resolve(choice, catalog)
    if not isinstance(found, Table):
        return f"{found[0].where}: {found[0].message}"
    place = f"table {table.schema}.{table.name}"
    if found.key != table.key:
        return f"{place}: its primary key was {', '.join(table.key)}, is {', '.join(found.key)}"
    if table.full_identity and not found.full_identity:
        return f"{place}: its replica identity was full, is default"
    types = {c.name: c for c in found.columns}
    for c in table.columns:
        if (types[c.name].type, types[c.name].target_type) != (c.type, c.target_type):
            return f"{place}, column {c.name}: its type was {c.type}, is {types[c.name].type}"
    return None


def shape(table: Table, catalog: TableCatalog) -> dict[str, Any]:
    """By what `rewritten` tells; JSON-ready."""
    columns = {c.name: [c.number, c.altered] for c in catalog.columns if c.name in table.names}
    return {"files": catalog.files, "columns": columns}


def rewritten(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Used columns whose stored values may have changed without an event: dropped and added again, or given values by
    an ALTER that rewrote the table. Both only tell together: TRUNCATE and VACUUM FULL make new files too, and an ALTER
    of a default or a statistics target rewrites nothing."""
    is_rewritten = before["files"] != now["files"]
    return [
        name
        for name, (number, altered) in now["columns"].items()
        if (was := before["columns"].get(name)) is not None
        and (was[0] != number or (is_rewritten and was[1] != altered))
    ]


def _key_problems(place: str, catalog: TableCatalog) -> list[Problem]:
    problems = []
    if catalog.key_deferrable:
        message = "its primary key is deferrable: two rows can hold one key inside a transaction"
        problems.append(Problem("key-deferrable", place, message, "make the constraint NOT DEFERRABLE"))
    if catalog.identity not in ("default", "full"):
        message = f"its replica identity is {catalog.identity}: deletes would not carry the primary key"
        problems.append(Problem("identity-unusable", place, message, "ALTER TABLE ... REPLICA IDENTITY DEFAULT"))
    found = {c.name: c for c in catalog.columns}
    for name in catalog.primary_key:
        column = found[name]
        refusal = admits(column.base_type, kind=column.kind, as_key=True, full_identity=catalog.identity == "full")
        if refusal is not None:
            problems.append(Problem(refusal.id, f"{place}, key column {name}", refusal.message, refusal.hint))
        if not column.deterministic:
            message = "its collation is nondeterministic: equal keys can have different bytes"
            problems.append(
                Problem("key-type-refused", f"{place}, key column {name}", message, "use a deterministic collation")
            )
    return problems


def _column_problems(place: str, names: Sequence[str], catalog: TableCatalog) -> list[Problem]:
    problems = []
    found = {c.name: c for c in catalog.columns}
    for name in names:
        column = found.get(name)
        at = f"{place}, column {name}"
        if column is None:
            message = "there is no such column; the table has " + ", ".join(sorted(found))
            problems.append(Problem("column-missing", at, message, "correct the configuration"))
        elif column.generated:
            hint = "use the columns it is computed from"
            problems.append(Problem("column-generated", at, "generated columns are absent from change events", hint))
        elif name not in catalog.primary_key:
            refusal = admits(column.base_type, kind=column.kind, as_key=False, full_identity=catalog.identity == "full")
            if refusal is not None:
                problems.append(Problem(refusal.id, at, refusal.message, refusal.hint))
    return problems
