"""Names and definitions of one migration's relations: replica, chunk tables, search views.

Everything lies in the schema that has the migration's name. Names are composed through `psycopg.sql` and cut with a
hash beyond Postgres's 63 bytes. Columns of ours begin with an underscore, so that source columns called `deleted`,
`position` or `text` keep their names; a used column with one of our names is refused.

Builds statements; executes none. The column types come from the source's catalogue and have been resolved by the
target (`resolve` in `connectors.schema`) before they reach a statement.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from psycopg import sql

from daemon.core.model import Column, Generation, Table

LONGEST_NAME = 63  # bytes; NAMEDATALEN - 1

REPLICA_COLUMNS = ("_row_id", "_missing", "_missing_xid", "_deleted", "_epoch", "_commit", "_lsn", "_xid")
CHUNK_COLUMNS = ("_row_id", "_n", "_text", "_digest", "_embedding")
RESERVED = frozenset(REPLICA_COLUMNS + CHUNK_COLUMNS)

OPERATORS = {"cosine": "<=>", "l2": "<->", "ip": "<#>"}


def raw(text: str) -> sql.SQL:
    """Text of a statement that is no literal of ours: a type name the target has resolved, or a checked `where`.
    `%` is doubled: every statement is executed with parameters."""
    return sql.SQL(text.replace("%", "%%"))


def name(text: str) -> sql.Identifier:
    """A column or relation name. `%` is doubled for the same reason."""
    return sql.Identifier(text.replace("%", "%%"))


def comma(parts: list[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def shortened(text: str) -> str:
    """The name itself up to 63 bytes, else its beginning and eight digits of its hash."""
    encoded = text.encode()
    if len(encoded) <= LONGEST_NAME:
        return text
    tail = "_" + hashlib.sha256(encoded).hexdigest()[:8]
    return encoded[: LONGEST_NAME - len(tail)].decode(errors="ignore") + tail


@dataclass(frozen=True, slots=True)
class Relations:
    """The relations of the migration called `migration`."""

    migration: str

    @property
    def schema(self) -> str:
        return shortened(self.migration)

    def replica_name(self, table: Table) -> str:
        return shortened(table.alias)

    def chunks_name(self, table: Table, generation: Generation) -> str:
        return shortened(f"{table.alias}_{generation.name}")

    def search_name(self, table: Table, generation: Generation) -> str:
        return shortened(f"{table.alias}_{generation.name}_search")

    def index_name(self, table: Table, generation: Generation) -> str:
        return shortened(f"{table.alias}_{generation.name}_embedding")

    def qualified(self, relation: str) -> sql.Identifier:
        return sql.Identifier(self.schema, relation)

    def replica(self, table: Table) -> sql.Identifier:
        return self.qualified(self.replica_name(table))

    def chunks(self, table: Table, generation: Generation) -> sql.Identifier:
        return self.qualified(self.chunks_name(table, generation))

    def search(self, table: Table, generation: Generation) -> sql.Identifier:
        return self.qualified(self.search_name(table, generation))


@dataclass(frozen=True, slots=True)
class SearchColumns:
    """What the view calls the parts of a chunk: `n`, `text`, `embedding`; `chunk_…` where the table has the name."""

    n: str
    text: str
    embedding: str


def search_columns(table: Table) -> SearchColumns:
    taken = set(table.names)
    names = (word if word not in taken else _free(f"chunk_{word}", taken) for word in ("n", "text", "embedding"))
    return SearchColumns(*names)


def _free(word: str, taken: set[str]) -> str:
    while word in taken:
        word += "_"
    return word


def create_replica(relations: Relations, table: Table, collated: frozenset[str]) -> list[sql.Composed]:
    """Statements that make the replica. collated: columns whose type has a collation; as keys they are `COLLATE "C"`,
    so that equal keys are equal bytes and the order is the same on every machine."""
    columns = [_replica_column(column, table, collated) for column in table.columns]
    relation, key = relations.replica(table), comma([name(k) for k in table.key])
    unique = sql.Identifier(shortened(f"{table.alias}_key"))
    missing = sql.Identifier(shortened(f"{table.alias}_missing"))
    return [
        sql.SQL(
            "CREATE TABLE {} (_row_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {}, "
            "_missing text[] NOT NULL DEFAULT '{{}}', _missing_xid bigint, _deleted boolean NOT NULL DEFAULT false, "
            "_epoch integer, _commit bigint, _lsn bigint, _xid bigint) WITH (fillfactor = 80)"
        ).format(relation, comma(columns)),
        sql.SQL("CREATE UNIQUE INDEX {} ON {} ({})").format(unique, relation, key),
        sql.SQL("CREATE INDEX {} ON {} (_row_id) WHERE _missing <> '{{}}'").format(missing, relation),
    ]


def _replica_column(column: Column, table: Table, collated: frozenset[str]) -> sql.Composable:
    parts: list[sql.Composable] = [name(column.name), raw(column.target_type)]
    if column.name in table.key:
        if column.name in collated:
            parts.append(sql.SQL('COLLATE "C"'))
        parts.append(sql.SQL("NOT NULL"))
    return sql.SQL(" ").join(parts)


def create_chunks(relations: Relations, table: Table, generation: Generation) -> list[sql.Composed]:
    """Statements that make a chunk table. No foreign key: it costs 22 % of a load, and rows go by our own deletes."""
    chunks = relations.chunks(table, generation)
    types = {column.name: raw(column.target_type) for column in table.columns}
    filters = [sql.SQL(", {} {}").format(name(f), types[f]) for f in table.filters]
    vector = sql.SQL("{}({})").format(raw(generation.vector_type), sql.Literal(generation.dimensions))
    statements = [
        sql.SQL(
            "CREATE TABLE {} (_row_id bigint NOT NULL, _n integer NOT NULL, _text text NOT NULL, "
            "_digest bytea NOT NULL, _embedding {} NOT NULL{}, PRIMARY KEY (_row_id, _n))"
        ).format(chunks, vector, sql.Composed(filters))
    ]
    for column in table.filters:
        index = name(shortened(f"{relations.chunks_name(table, generation)}_{column}"))
        statements.append(sql.SQL("CREATE INDEX {} ON {} ({})").format(index, chunks, name(column)))
    return statements


def create_search(relations: Relations, table: Table, generation: Generation, invoker: bool) -> sql.Composed:
    """The view that readers query: live rows only, each used column, and the chunk's number, text and vector.

    Filter columns are the chunk's copies: a condition on them is met inside the scan of the vector index. invoker:
    the reader's own rights count (Postgres 15 and later).
    """
    called = search_columns(table)
    columns: list[sql.Composable] = [
        sql.SQL("{}.{}").format(sql.SQL("c" if column in table.filters else "r"), name(column))
        for column in table.names
    ]
    parts = (("_n", called.n), ("_text", called.text), ("_embedding", called.embedding))
    columns += [sql.SQL("c.{} AS {}").format(sql.Identifier(ours), name(theirs)) for ours, theirs in parts]
    options = sql.SQL(" WITH (security_invoker = true)" if invoker else "")
    return sql.SQL(
        "CREATE VIEW {}{} AS SELECT {} FROM {} AS c JOIN {} AS r ON r._row_id = c._row_id WHERE NOT r._deleted"
    ).format(
        relations.search(table, generation),
        options,
        comma(columns),
        relations.chunks(table, generation),
        relations.replica(table),
    )


def drop_chunks(relations: Relations, table: Table, generation: Generation) -> list[sql.Composed]:
    """Statements that remove a chunk table and its view, where they are. What others built on them refuses that."""
    return [
        sql.SQL("DROP VIEW IF EXISTS {}").format(relations.search(table, generation)),
        sql.SQL("DROP TABLE IF EXISTS {}").format(relations.chunks(table, generation)),
    ]


def wanted(table: Table, row: str) -> sql.Composable:
    """Whether a row is live and `where` is true for it as stored; unknown, or a column it reads missing, is false.

    row: alias of the replica in the statement. The condition sees only the columns it was checked with, under no
    table name, so that no name of the statement around it can be meant.
    """
    alias = sql.Identifier(row)
    if table.where is None:
        return sql.SQL("(NOT {}._deleted)").format(alias)
    known = sql.SQL("NOT {0}._deleted AND NOT ({0}._missing && {1}::text[])").format(
        alias, sql.Literal([column.replace("%", "%%") for column in table.where_columns])
    )
    return sql.SQL("({} AND {})").format(known, _condition(table, alias))


def _condition(table: Table, row: sql.Identifier) -> sql.Composable:
    if not table.where_columns:
        return sql.SQL("(({}) IS TRUE)").format(raw(table.where or ""))
    columns = comma([name(c) for c in table.where_columns])
    values = comma([sql.SQL("{}.{}").format(row, name(c)) for c in table.where_columns])
    return sql.SQL("(SELECT ({}) IS TRUE FROM (SELECT {}) AS w ({}))").format(raw(table.where or ""), values, columns)
