"""The source database: `daemon.ports.Source` over one lazy psycopg connection.

Values are read as `col::text` under the settings of `SESSION`, which make the text of a value the same in every
session, role and database. Every read of rows is ONE statement that also returns `pg_current_snapshot()`: a single
READ COMMITTED statement has one snapshot by definition, and takes it after it waited for its table lock. A REPEATABLE
READ transaction takes it before: after a table rewrite it would find the table empty and end the range early.

Nothing here writes a table (`default_transaction_read_only` is on); `emit` and `own_xid` write WAL only. The catalogue
is read in `connectors.postgres_catalog`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from connectors import postgres_catalog
from connectors.digests import asked, key_match
from connectors.postgres_session import CANONICAL, Session
from connectors.postgres_source_digests import SourceDigests
from connectors.source_statements import between, columns, relation, sizes, texts, wanted
from daemon.core.canonical import normaliser
from daemon.core.model import Key, Known, Snapshot, SourceIdentity, Table
from daemon.core.sampling import Draw, Picking
from daemon.errors import ConfigError, Problem, RevectorError
from daemon.ports import (
    Blocker,
    Counted,
    Page,
    SampledRow,
    SlotState,
    SourceRow,
    SourceSetup,
    TableCatalog,
)

MESSAGE_PREFIX = "revector"  # the connector's message.prefix.include.list

SESSION: Mapping[str, str] = {
    **CANONICAL,
    # format_type() leaves out the schema of what is in the path, so types print alike for every role.
    "search_path": "public",
    # A policy must fail the read, not hide rows from it.
    "row_security": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "on",
    # A barrier has to be on disk before it is waited for, whatever the role's default; standbys do not matter to it.
    "synchronous_commit": "local",
    "statement_timeout": "5min",
    "idle_in_transaction_session_timeout": "1min",
    # A generic plan does not know how much a page's key bounds leave; JIT costs more than a page.
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
}

SMALL_TABLE_ROWS = 50_000  # below, one worker is done before a second one has planned
SAMPLED_KEYS_PER_RANGE = 400  # ranges come out within about 10 % of each other
PORTION_ROWS = 500  # of a sample: what is in memory at once

_PICKINGS = {
    Picking.EVERY_ROW: "",
    Picking.ROWS: "TABLESAMPLE BERNOULLI ({})",
    Picking.BLOCKS: "TABLESAMPLE SYSTEM ({})",
}


class PostgresSource(SourceDigests):
    """Implements `daemon.ports.Source`. One connection: statements of several tasks wait for each other."""

    def __init__(self, dsn: str, slot: str, publication: str, application_name: str) -> None:
        self._session = Session(dsn, application_name, "source", SESSION)
        self._slot = slot
        self._publication = publication

    async def close(self) -> None:
        """May be called twice."""
        await self._session.close()

    # --- what the source is

    async def setup(self) -> SourceSetup:
        """One reading of version, settings, publication and slot."""
        async with self._session.use("setup") as connection:
            return await postgres_catalog.setup(connection, self._slot, self._publication)

    async def describe(self, schema: str, name: str) -> TableCatalog | None:
        """The table (plain or partitioned) as the catalogue has it; None where there is none of that name."""
        async with self._session.use(f"describe {schema}.{name}") as connection:
            return await postgres_catalog.describe(connection, schema, name)

    async def schema_fingerprint(self, table: Table) -> str:
        """sha256 (hex) over key, used columns with types and collation, and replica identity. Raises SchemaChanged
        where the table is gone; a used column that is gone changes the digest."""
        async with self._session.use(f"describe {table.schema}.{table.name}") as connection:
            return postgres_catalog.fingerprint(
                table, await postgres_catalog.describe(connection, table.schema, table.name)
            )

    async def identity(self) -> SourceIdentity:
        """The timeline is the one being written: the control file lags behind a promotion until its checkpoint."""
        system, timeline, database = await self._one(
            "identity",
            """SELECT (pg_control_system()).system_identifier::text,
                      CASE WHEN pg_is_in_recovery() THEN (pg_control_checkpoint()).timeline_id
                           ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END,
                      current_database()""",
        )
        return SourceIdentity(system, timeline, database, self._slot, self._publication)

    async def slot(self) -> SlotState:
        """The slot as `pg_replication_slots` has it."""
        async with self._session.use("slot") as connection:
            return await postgres_catalog.slot(connection, self._slot)

    async def estimate(self, table: Table) -> int | None:
        """Sum of `reltuples` over the table and its partitions; None where one that holds data was never analysed."""
        async with self._session.use(f"estimate {table.alias}") as connection:
            return await postgres_catalog.estimate(connection, table)

    # --- log and transactions

    async def emit(self, payload: bytes) -> int:
        """`pg_logical_emit_message`, transactional, in a transaction of its own. Its LSN."""
        (lsn,) = await self._one(
            "emit",
            "SELECT (pg_logical_emit_message(true, %s, %s::bytea) - '0/0'::pg_lsn)::bigint",
            (MESSAGE_PREFIX, payload),
        )
        return int(lsn)

    async def wal_lsn(self) -> int:
        """How far the primary's WAL is on disk: a crash does not take that back, and no reader is sent more."""
        (lsn,) = await self._one("wal position", "SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint")
        return int(lsn)

    async def own_xid(self) -> int:
        """A fresh 64-bit transaction id."""
        (xid,) = await self._one("own xid", "SELECT pg_current_xact_id()::text")
        return int(xid)

    async def snapshot(self) -> Snapshot:
        """The current snapshot."""
        (text,) = await self._one("snapshot", "SELECT pg_current_snapshot()::text")
        return parse_snapshot(text)

    async def blocker(self) -> Blocker | None:
        """Who holds back `pg_snapshot_xmin`: the oldest transaction that has an id. Readers never do. `age_s` is NaN
        where this role may not see when it began (pg_read_all_stats)."""
        row = await self._row(
            "blocker",
            """SELECT pid, extract(epoch FROM clock_timestamp() - began)::float8, what FROM (
                 SELECT pid, backend_xid AS xid, xact_start AS began, 'backend' AS what
                   FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
                 UNION ALL
                 SELECT 0, transaction, prepared, 'prepared transaction' FROM pg_prepared_xacts) AS holder
               ORDER BY age(xid) DESC LIMIT 1""",
        )
        if row is None:
            return None
        pid, age_s, what = row
        return Blocker(pid, math.nan if age_s is None else age_s, what)

    # --- rows

    async def count(self, table: Table, limit_s: float) -> Counted | None:
        """One pass over the table; a value stored out of line is read only where `where` looks at it."""
        query = sql.SQL(
            """SELECT count(*), count(*) FILTER (WHERE {wanted}), coalesce(sum({bytes}) FILTER (WHERE {wanted}), 0)
                 FROM (SELECT {names} FROM {table}) AS "row" """
        ).format(
            wanted=wanted(table),
            bytes=sizes(table.text_columns),
            names=columns(table.names),
            table=relation(table),
        )
        async with self._session.use(f"count of {table.alias}") as connection, connection.transaction():
            limit = f"{max(1, round(limit_s * 1000))}ms"
            await connection.execute("SELECT set_config('statement_timeout', %s, true)", [limit])
            try:
                with _where_checked(table):
                    async with connection.transaction():
                        row = await (await connection.execute(query, ())).fetchone()
            except psycopg.errors.QueryCanceled:
                return None
        return None if row is None else Counted(*(int(number) for number in row))

    async def sample(self, table: Table, draw: Draw) -> AsyncGenerator[Sequence[SampledRow]]:
        """A cursor of the server, so that no more than a portion is held. BERNOULLI reads the whole table and gives
        each row the same chance; SYSTEM reads only the blocks that it picks (PostgreSQL documentation, TABLESAMPLE)."""
        condition = wanted(table)
        cases = [sql.SQL("CASE WHEN {} THEN {} END").format(condition, texts([name])) for name in table.text_columns]
        is_block = draw.picking is Picking.BLOCKS
        block = """"row".tableoid::text || split_part("row".ctid::text, ',', 1)""" if is_block else "''"
        query = sql.SQL(
            """SELECT "#block", {wanted}, {text_bytes}, {stored_bytes}, {texts}
                 FROM (SELECT {block} AS "#block", {names} FROM {table} {picking}) AS "row" """
        ).format(
            wanted=condition,
            text_bytes=sizes(table.text_columns),
            stored_bytes=sizes(table.names),
            texts=sql.SQL(", ").join(cases),
            block=sql.SQL(block),
            names=columns(table.names),
            table=relation(table),
            picking=sql.SQL(_PICKINGS[draw.picking]).format(sql.Literal(100 * draw.share)),
        )
        types = {column.name: column.target_type for column in table.columns}
        rules = [normaliser(types[name]) for name in table.text_columns]
        async with (
            self._session.use(f"sample of {table.alias}") as connection,
            connection.transaction(),
            connection.cursor("sample") as cursor,
        ):
            with _where_checked(table):
                await cursor.execute(query, ())
                found = await cursor.fetchmany(PORTION_ROWS)
            while found:
                yield [_sampled(row, rules) for row in found]
                with _where_checked(table):
                    found = await cursor.fetchmany(PORTION_ROWS)

    async def bounds(self, table: Table, ranges: int) -> list[Key]:
        """Quantiles of a block sample of about `SAMPLED_KEYS_PER_RANGE` keys per range."""
        rows = await self.estimate(table)
        if ranges < 2 or rows is None or rows < SMALL_TABLE_ROWS:
            return []
        percent = min(100.0, 100.0 * SAMPLED_KEYS_PER_RANGE * ranges / rows)
        keys = columns(table.key)
        query = sql.SQL(
            """SELECT {texts} FROM (
                 SELECT {keys}, row_number() OVER (ORDER BY {keys}) AS "#n", count(*) OVER () AS "#rows"
                   FROM {table} TABLESAMPLE SYSTEM ({percent})) AS "row"
               WHERE "#n" < "#rows" AND "#n" * {ranges} / "#rows" > ("#n" - 1) * {ranges} / "#rows"
               ORDER BY "#n" """
        ).format(texts=texts(table.key), keys=keys, table=relation(table), percent=sql.Literal(percent), ranges=ranges)
        async with self._session.use(f"bounds of {table.alias}") as connection:
            found = await (await connection.execute(query, ())).fetchall()
        return [tuple(row) for row in found]

    async def page(self, table: Table, after: Key | None, upto: Key | None, limit: int) -> Page:
        """One statement on the primary key's index, in its own order."""
        where, parameters = between(table, after, upto)
        query = sql.SQL(
            """SELECT taken.snapshot, page.*
                 FROM (SELECT pg_current_snapshot()::text AS snapshot) AS taken
                 LEFT JOIN LATERAL (
                   SELECT row_number() OVER (ORDER BY {keys}) AS "#n", {texts} FROM {table} {where}
                    ORDER BY {keys} LIMIT {limit}) AS page ON true
                ORDER BY page."#n" """
        ).format(keys=columns(table.key), texts=texts(table.names), table=relation(table), where=where, limit=limit)
        async with self._session.use(f"page of {table.alias}") as connection:
            found = await (await connection.execute(query, parameters)).fetchall()
        rows = tuple(_rows(table, [row[2:] for row in found if row[1] is not None]))
        return Page(rows, parse_snapshot(found[0][0]), rows[-1].key if len(rows) == limit else None)

    async def rows(self, table: Table, keys: Sequence[Key]) -> tuple[dict[Key, SourceRow], Snapshot]:
        """One statement; the answer has the keys as they were asked for."""
        if not keys:
            return {}, await self.snapshot()
        query = sql.SQL(
            """SELECT pg_current_snapshot()::text, {first} IS NOT NULL, i.*, {texts}
                 FROM {asked} LEFT JOIN {table} ON {match}"""
        ).format(
            first=columns(table.key[:1]),
            texts=texts(table.names),
            asked=asked(table),
            table=relation(table),
            match=key_match(table, "row", at_source=True),
        )
        async with self._session.use(f"rows of {table.alias}") as connection:
            found = await (await connection.execute(query, [list(part) for part in zip(*keys, strict=True)])).fetchall()
        width = len(table.key)
        visible = [row for row in found if row[1]]
        rows = _rows(table, [row[2 + width :] for row in visible])
        found_keys = [tuple(row[2 : 2 + width]) for row in visible]
        return dict(zip(found_keys, rows, strict=True)), parse_snapshot(found[0][0])

    async def _row(self, operation: str, query: str, parameters: Sequence[object] = ()) -> tuple[Any, ...] | None:
        async with self._session.use(operation) as connection:
            return await (await connection.execute(query.encode(), parameters)).fetchone()

    async def _one(self, operation: str, query: str, parameters: Sequence[object] = ()) -> tuple[Any, ...]:
        row = await self._row(operation, query, parameters)
        if row is None:
            raise RevectorError("source-fault", f"source: {operation} answered without a row", "please report it")
        return row


def parse_snapshot(text: str) -> Snapshot:
    """`xmin:xmax:xip,xip,…`, the text form of pg_snapshot (PostgreSQL documentation, 9.27.8)."""
    xmin, xmax, running = text.split(":")
    return Snapshot(int(xmin), int(xmax), frozenset(int(xid) for xid in running.split(",") if xid))


def _rows(table: Table, found: Sequence[Sequence[Known]]) -> list[SourceRow]:
    """Rows in canonical form, of which Postgres's text of a few types is not the only one."""
    normalise = [(n, rule) for n, c in enumerate(table.columns) if (rule := normaliser(c.target_type)) is not None]
    rows = []
    for row in found:
        values = list(row)
        for n, rule in normalise:
            if (text := values[n]) is not None:
                values[n] = rule(text)
        rows.append(SourceRow(table.key_of(tuple(values)), tuple(values)))
    return rows


def _sampled(row: Sequence[Any], rules: Sequence[Callable[[str], str] | None]) -> SampledRow:
    block, is_wanted, text_bytes, stored_bytes, *texts = row
    if not is_wanted:
        return SampledRow(block, None, text_bytes, stored_bytes)
    canonical = (t if t is None or rule is None else rule(t) for t, rule in zip(texts, rules, strict=True))
    return SampledRow(block, tuple(canonical), text_bytes, stored_bytes)


@contextmanager
def _where_checked(table: Table) -> Iterator[None]:
    """Say that it is the condition that Postgres does not understand, or that fails on a row."""
    try:
        yield
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError) as error:
        if table.where is None:
            raise
        message = f"where of {table.alias} cannot be used: the source refuses it with SQLSTATE {error.sqlstate}"
        hint = "a condition over used columns by their bare names, with immutable functions only and no subquery"
        raise ConfigError([Problem("where-invalid", "source", message, hint)]) from None
