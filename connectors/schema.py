"""The target's schemas: numbered migrations of `revector`, one schema per migration, its tables and views.

Everything here runs in a transaction of the caller under one advisory lock, so that several processes can start at
once. What exists and is not ours is never touched: ownership is a comment that we put on what we create, which
survives dump and restore.

A newer control schema than this program knows, a foreign schema, a table that differs from its record are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from importlib import resources
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from connectors.postgres_session import Connection
from connectors.relations import RESERVED, Relations, create_chunks, create_replica, create_search, name, raw, wanted
from daemon.core.model import Column, Generation, Table
from daemon.core.setup import OLDEST_PGVECTOR
from daemon.errors import ConfigError, Problem, SchemaChanged, outdated

CONTROL = "revector"
LOCK = 0x7265_7665  # "reve"; one number for all databases' migrations, the lock is per database


def refused(id: str, message: str, hint: str) -> ConfigError:
    return ConfigError([Problem(id, "target", message, hint)])


async def lock(connection: Connection) -> None:
    """Wait for other processes that change schemas; held to the end of the transaction."""
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


@cache
def control_files() -> Mapping[int, str]:
    """Version -> text of each numbered migration of the control schema."""
    folder = resources.files("connectors") / "sql"
    files = (f for f in folder.iterdir() if f.name.startswith("control_"))
    return {int(f.name.removeprefix("control_").removesuffix(".sql")): f.read_text() for f in files}


async def control_version(connection: Connection) -> int | None:
    """Version of the control schema, None where there is none. Raises ConfigError `schema-foreign`."""
    if await _comment(connection, CONTROL) is None:
        return None
    cursor = await connection.execute("SELECT to_regclass('revector.schema_version') IS NOT NULL")
    row = await cursor.fetchone()
    if row is None or not row[0]:
        raise _foreign(CONTROL)
    cursor = await connection.execute("SELECT max(version) FROM revector.schema_version")
    row = await cursor.fetchone()
    return row[0] if row else None


async def install_control(connection: Connection) -> None:
    """Bring the control schema to this program's version. Raises ProgramOutdated; ConfigError `schema-foreign`."""
    files = control_files()
    version, latest = await control_version(connection) or 0, max(files)
    if version > latest:
        raise outdated(version, latest)
    if 0 < version < latest:  # waits for open windows and pages; a program that knows less finds the new version next
        await connection.execute("SELECT 1 FROM revector.migration ORDER BY name FOR UPDATE")
    for number in range(version + 1, latest + 1):
        await connection.execute(files[number].encode())
        await connection.execute("INSERT INTO revector.schema_version (version) VALUES (%s)", [number])


async def install_vector(connection: Connection) -> None:
    """Make sure that pgvector is there and recent enough. Raises ConfigError `vector-missing`, `vector-too-old`."""
    query = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
    row = await (await connection.execute(query)).fetchone()
    if row is None:
        available = await connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
        if await available.fetchone() is None:
            hint = "install pgvector 0.8.4 or newer on the target's server"
            raise refused("vector-missing", "the server has no extension vector", hint)
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        row = await (await connection.execute(query)).fetchone()
    version = str(row[0]) if row else "0"
    if tuple(int(part) for part in version.split(".")) < OLDEST_PGVECTOR:
        wanted_version = ".".join(map(str, OLDEST_PGVECTOR))
        hint = "ALTER EXTENSION vector UPDATE, after a newer pgvector is installed on the server"
        raise refused("vector-too-old", f"pgvector is {version}, at least {wanted_version} is needed", hint)


async def is_foreign(connection: Connection, relations: Relations) -> bool:
    """Whether a schema of the migration's name exists that we have not made."""
    comment = await _comment(connection, relations.schema)
    return comment is not None and comment != _mark(relations)


async def claim_schema(connection: Connection, relations: Relations) -> None:
    """Make the migration's schema and its rows. Raises ConfigError `schema-foreign`."""
    if await is_foreign(connection, relations) or relations.schema == CONTROL:
        raise _foreign(relations.schema)
    if await _comment(connection, relations.schema) is None:
        schema = sql.Identifier(relations.schema)
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
        await connection.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(schema, sql.Literal(_mark(relations))))
    for table, column in (
        ("migration", "name"),
        ("lease", "migration"),
        ("continuity", "migration"),
        ("pulse", "migration"),
        ("observation", "migration"),
        ("control", "migration"),
    ):
        insert = sql.SQL("INSERT INTO {} ({}) VALUES (%s) ON CONFLICT DO NOTHING")
        statement = insert.format(sql.Identifier(CONTROL, table), sql.Identifier(column))
        await connection.execute(statement, [relations.migration])


def definition(table: Table) -> dict[str, Any]:
    """What is recorded of a table; its id is the record's own."""
    return {key: value for key, value in asdict(table).items() if key != "id"}


def table_of(id: int, record: dict[str, Any]) -> Table:
    """The table of a record."""
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    fields["columns"] = tuple(Column(**column) for column in record["columns"])
    return Table(id=id, **fields)


async def make_table(connection: Connection, relations: Relations, table: Table) -> Table:
    """Record a table and make its replica, or compare it with its record; the table with id and `where_columns`.

    Raises SchemaChanged `table-changed`; ConfigError `column-reserved`, `type-missing`, `where-invalid`.
    """
    cursor = await connection.execute(
        "SELECT id, definition FROM revector.source_table WHERE migration = %s AND alias = %s",
        [relations.migration, table.alias],
    )
    row = await cursor.fetchone()
    if row is not None:
        return _compared(table, table_of(row[0], row[1]))
    reserved = sorted(RESERVED & set(table.names))
    if reserved:
        hint = "take it out of the used columns, or offer it under another name through a generated column"
        raise refused("column-reserved", f"{table.alias}.{reserved[0]} is a name that the replica uses", hint)
    collated = await _resolve(connection, table)
    for statement in create_replica(relations, table, collated):
        await connection.execute(statement, ())
    made = replace(table, where_columns=await where_columns(connection, relations, table, relations.replica(table)))
    cursor = await connection.execute(
        "INSERT INTO revector.source_table (migration, alias, definition) VALUES (%s, %s, %s) RETURNING id",
        [relations.migration, table.alias, Jsonb(definition(made))],
    )
    created = await cursor.fetchone()
    return replace(made, id=created[0] if created else 0)


async def make_chunks(connection: Connection, relations: Relations, table: Table, generation: Generation) -> None:
    """Make one chunk table and its search view where they do not exist. Raises ConfigError `relation-taken`."""
    mark = f"revector: chunks of {table.alias} in generation {generation.name}"
    chunks = relations.chunks(table, generation)
    cursor = await connection.execute(
        "SELECT obj_description(c.oid, 'pg_class') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s",
        [relations.schema, relations.chunks_name(table, generation)],
    )
    row = await cursor.fetchone()
    if row is None:
        for statement in create_chunks(relations, table, generation):
            await connection.execute(statement, ())
        await connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(chunks, sql.Literal(mark)))
        invoker = connection.info.server_version >= 150000
        await connection.execute(create_search(relations, table, generation, invoker), ())
    elif row[0] != mark:
        name_taken = relations.chunks_name(table, generation)
        hint = "choose another alias or another generation name"
        raise refused("relation-taken", f"{relations.schema}.{name_taken} is something else", hint)


def _compared(table: Table, recorded: Table) -> Table:
    """The recorded table under the configured template, if nothing that is stored depends on the difference."""
    # Events of either replica identity may still be in Kafka: they are read as the one that carries less.
    full_identity = table.full_identity and recorded.full_identity
    same = replace(table, id=recorded.id, where_columns=recorded.where_columns, full_identity=full_identity)
    differing = [
        field
        for field, value in definition(_comparable(same)).items()
        if value != definition(_comparable(recorded))[field]
    ]
    if differing:
        raise SchemaChanged(
            "table-changed",
            f"table {table.alias} differs from its record in {', '.join(differing)}",
            "set the configuration back, or start a migration of another name",
        )
    return same


def _comparable(table: Table) -> Table:
    """Without what changes no stored value: the template is the contract's, nullability and identity the source's."""
    columns = tuple(replace(column, nullable=True) for column in table.columns)
    return replace(table, columns=columns, template="", full_identity=False)


async def _resolve(connection: Connection, table: Table) -> frozenset[str]:
    """Columns whose type has a collation here. Raises ConfigError for types that the target does not have."""
    collated = set()
    for column in table.columns:
        cursor = await connection.execute(
            "SELECT t.typcollation <> 0 FROM pg_type t WHERE t.oid = to_regtype(%s)", [column.target_type]
        )
        row = await cursor.fetchone()
        if row is None:
            message = f"{table.alias}.{column.name} has type {column.target_type}, which the target does not have"
            raise refused("type-missing", message, "install the extension that provides it, or leave the column out")
        if row[0]:
            collated.add(column.name)
    return frozenset(collated)


async def where_columns(
    connection: Connection, relations: Relations, table: Table, empty: sql.Identifier, place: str = "target"
) -> tuple[str, ...]:
    """The columns that `where` reads, asked of the catalogue. Raises ConfigError `where-invalid`.

    A partial index with the condition as its predicate is made on `empty`, a table without rows that has the
    replica's columns, and rolled back: Postgres accepts only immutable expressions over the row there, so the answer
    can never depend on time, session or other tables; and it records the columns. `where` is sent as a prepared
    statement, which cannot hold a second one.
    """
    if table.where is None:
        return ()
    probe = sql.Identifier("revector_where_probe")
    index = sql.SQL("CREATE INDEX {} ON {} ((1)) WHERE ({})").format(probe, empty, raw(table.where))
    try:
        async with connection.transaction(force_rollback=True):
            await connection.execute(index, (), prepare=True)
            cursor = await connection.execute(
                "SELECT DISTINCT a.attname FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid "
                "AND a.attnum = d.refobjsubid WHERE d.classid = 'pg_class'::regclass "
                "AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid <> 0 AND d.objid = "
                "(SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = %s AND c.relname = 'revector_where_probe')",
                [relations.schema],
            )
            read = {row[0] for row in await cursor.fetchall()}
        columns = tuple(column for column in table.names if column in read)
        if read - set(columns):
            raise where_invalid(table, f"it reads {sorted(read - set(columns))[0]}", place)
        await _probe_where(connection, relations, replace(table, where_columns=columns))
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError) as error:
        raise where_invalid(table, f"Postgres refuses it with SQLSTATE {error.sqlstate}", place) from None
    return columns


async def _probe_where(connection: Connection, relations: Relations, table: Table) -> None:
    """Run the condition once in the form that the statements use."""
    query = sql.SQL("SELECT {} FROM {} AS r LIMIT 0").format(wanted(table, "r"), relations.replica(table))
    async with connection.transaction(force_rollback=True):
        await connection.execute(query, (), prepare=True)


def where_invalid(table: Table, reason: str, place: str = "target") -> ConfigError:
    """place: where the condition stands."""
    hint = "a condition over used columns by their bare names, with immutable functions only and no subquery"
    return ConfigError([Problem("where-invalid", place, f"where of {table.alias} cannot be used: {reason}", hint)])


def _mark(relations: Relations) -> str:
    return f"revector: migration {relations.migration}"


def _foreign(schema: str) -> ConfigError:
    hint = "choose another name for the migration; revector never writes into a schema that it has not made"
    return refused("schema-foreign", f"schema {schema} exists and is not revector's", hint)


async def _comment(connection: Connection, schema: str) -> str | None:
    """The schema's comment, empty where it has none; None where there is no such schema."""
    cursor = await connection.execute(
        "SELECT coalesce(obj_description(oid, 'pg_namespace'), '') FROM pg_namespace WHERE nspname = %s", [schema]
    )
    row = await cursor.fetchone()
    return str(row[0]) if row else None


async def relation_exists(connection: Connection, schema: str, relation: str) -> bool:
    cursor = await connection.execute(
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND relname = %s",
        [schema, relation],
    )
    return await cursor.fetchone() is not None


__all__ = [
    "claim_schema",
    "control_version",
    "install_control",
    "install_vector",
    "is_foreign",
    "lock",
    "make_chunks",
    "make_table",
    "name",
    "relation_exists",
    "table_of",
    "where_columns",
    "where_invalid",
]
