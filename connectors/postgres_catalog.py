"""The source's catalogue, read through a connection of `connectors.postgres_source`.

Plain functions from a connection to the values of `daemon.ports`: what a table is made of, what the publication
carries, how the slot stands. They read `pg_catalog` only, need no grant beyond CONNECT, and judge nothing: what is
acceptable as a key or a column is decided in `daemon`.
"""

from __future__ import annotations

import hashlib
import json

from connectors.postgres_session import Connection
from daemon.core.model import Table
from daemon.errors import SchemaChanged
from daemon.ports import CatalogColumn, PublishedTable, SlotState, SourceSetup, TableCatalog

IDENTITIES = {"d": "default", "f": "full", "i": "index", "n": "nothing"}

# The relation, its replica identity, its primary key, and the files of it or its leaves.
_RELATION = """
SELECT c.oid, c.relreplident::text, coalesce(not i.indimmediate, false),
       coalesce((SELECT array_agg(a.attname::text ORDER BY k.n)
                   FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
                   JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
                  WHERE k.n <= i.indnkeyatts), '{}'),
       coalesce((SELECT md5(string_agg(p.relid || ':' || pg_relation_filenode(p.relid), ',' ORDER BY p.relid))
                   FROM pg_partition_tree(c.oid) AS p WHERE p.isleaf), pg_relation_filenode(c.oid)::text, '')
  FROM pg_class c
  JOIN pg_namespace s ON s.oid = c.relnamespace
  LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
 WHERE s.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""

# Columns in table order; domains are followed down to their base type, with the innermost type modifier.
_COLUMNS = """
WITH RECURSIVE base AS (
  SELECT a.attnum, a.atttypid AS type, a.atttypmod AS modifier
    FROM pg_attribute a WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT b.attnum, t.typbasetype, t.typtypmod FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd'
)
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), format_type(b.type, b.modifier),
       CASE WHEN t.typtype = 'd' THEN 'domain' WHEN t.typtype = 'e' THEN 'enum' WHEN t.typtype = 'c' THEN 'composite'
            WHEN t.typtype IN ('r', 'm') THEN 'range' WHEN t.typcategory = 'A' THEN 'array' ELSE 'base' END,
       NOT a.attnotnull, a.attgenerated <> '', coalesce(l.collisdeterministic, true), a.attnum::int, a.xmin::text
  FROM pg_attribute a
  JOIN pg_type t ON t.oid = a.atttypid
  JOIN base b ON b.attnum = a.attnum
  JOIN pg_type bt ON bt.oid = b.type AND bt.typtype <> 'd'
  LEFT JOIN pg_collation l ON l.oid = a.attcollation
 WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""

# Tables of a publication. Column lists and row filters exist from version 15 on, hence the way over JSON.
_PUBLISHED = """
SELECT t.schemaname::text, t.tablename::text,
       c.relreplident = 'i' OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
       EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
                WHERE p.pubname = t.pubname AND to_jsonb(r) ->> 'prattrs' IS NOT NULL
                  AND (r.prrelid = c.oid OR r.prrelid IN (SELECT relid FROM pg_partition_ancestors(c.oid)))),
       to_jsonb(t) ->> 'rowfilter' IS NOT NULL
  FROM pg_publication_tables t
  JOIN pg_namespace s ON s.nspname = t.schemaname
  JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = t.tablename
 WHERE t.pubname = %s
 ORDER BY 1, 2
"""

# The invalidation's cause exists from version 17 on, hence the way over JSON.
_SLOT = """
SELECT active, (confirmed_flush_lsn - '0/0'::pg_lsn)::bigint, wal_status,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
                       restart_lsn)::bigint,
       active_pid || coalesce('@' || (SELECT extract(epoch FROM r.backend_start) FROM pg_stat_replication r
                                       WHERE r.pid = active_pid), ''),
       safe_wal_size, to_jsonb(s) ->> 'invalidation_reason'
  FROM pg_replication_slots s WHERE slot_name = %s AND slot_type = 'logical'
"""

# Leaves of a partitioned table, or the table itself. -1: never vacuumed or analysed; an empty leaf may well be so.
_ESTIMATE = """
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint,
       coalesce(bool_or(c.reltuples < 0 AND pg_relation_size(c.oid) > 0), true)
  FROM pg_class c
 WHERE c.relkind = 'r' AND c.oid IN (
   SELECT p.relid FROM pg_partition_tree(to_regclass(format('%%I.%%I', %s::text, %s::text))) p
   UNION SELECT to_regclass(format('%%I.%%I', %s::text, %s::text)))
"""


async def describe(connection: Connection, schema: str, name: str) -> TableCatalog | None:
    """The table's columns and key, None where there is no such plain or partitioned table."""
    relation = await (await connection.execute(_RELATION, (schema, name))).fetchone()
    if relation is None:
        return None
    oid, identity, deferrable, primary_key, files = relation
    columns = await (await connection.execute(_COLUMNS, {"oid": oid})).fetchall()
    return TableCatalog(
        schema=schema,
        name=name,
        columns=tuple(CatalogColumn(*column) for column in columns),
        primary_key=tuple(primary_key),
        key_deferrable=deferrable,
        identity=IDENTITIES[identity],
        files=files,
    )


def fingerprint(table: Table, catalog: TableCatalog | None) -> str:
    """sha256 (hex) over what a change of would make old and later rows incomparable. Nullability is left out: it
    changes no value."""
    if catalog is None:
        raise SchemaChanged(
            "table-missing",
            f"source: there is no table {table.schema}.{table.name}",
            "put the table back, or take it out of the migration and start another one",
        )
    found = {column.name: column for column in catalog.columns}
    columns = [
        [name, [c.type, c.base_type, c.kind, c.generated, c.deterministic] if (c := found.get(name)) else None]
        for name in table.names
    ]
    facts = [table.schema, table.name, catalog.primary_key, catalog.key_deferrable, catalog.identity, columns]
    return hashlib.sha256(json.dumps(facts, separators=(",", ":")).encode()).hexdigest()


async def estimate(connection: Connection, table: Table) -> int | None:
    """Rows by the planner's statistics."""
    names = (table.schema, table.name)
    row = await (await connection.execute(_ESTIMATE, (*names, *names))).fetchone()
    assert row is not None  # an aggregate without GROUP BY
    rows, unknown = row
    return None if unknown else int(rows)


async def slot(connection: Connection, name: str) -> SlotState:
    """The logical slot of that name."""
    limit = await (
        await connection.execute("SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'")
    ).fetchone()
    limit_bytes = None if limit is None or limit[0] < 0 else limit[0] * 1024 * 1024
    row = await (await connection.execute(_SLOT, (name,))).fetchone()
    if row is None:
        return SlotState(False, False, None, None, None, limit_bytes)
    active, confirmed_lsn, wal_status, retained_bytes, session, left_bytes, cause = row
    return SlotState(True, active, confirmed_lsn, retained_bytes, wal_status, limit_bytes, session, left_bytes, cause)


async def setup(connection: Connection, slot_name: str, publication: str) -> SourceSetup:
    """Version, settings, publication and slot in one reading."""
    server = await (
        await connection.execute(
            "SELECT current_setting('server_version_num')::int, current_setting('wal_level'), pg_is_in_recovery()"
        )
    ).fetchone()
    assert server is not None  # a SELECT without FROM
    operations = await (
        await connection.execute(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication WHERE pubname = %s", (publication,)
        )
    ).fetchone()
    names = ("insert", "update", "delete", "truncate")
    published = await (await connection.execute(_PUBLISHED, (publication,))).fetchall()
    version, wal_level, in_recovery = server
    return SourceSetup(
        version=version,
        wal_level=wal_level,
        in_recovery=in_recovery,
        publication_operations=None
        if operations is None
        else frozenset(name for name, on in zip(names, operations, strict=True) if on),
        published=tuple(PublishedTable(*row) for row in published),
        slot=await slot(connection, slot_name),
    )
