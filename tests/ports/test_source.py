"""`PostgresSource` keeps what `daemon.ports.Source` promises, on a real Postgres."""

from __future__ import annotations

import asyncio
import itertools
import struct
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.postgres_session import Session
from connectors.postgres_source import PostgresSource, parse_snapshot
from daemon.core.model import Column, Key, Snapshot, Table
from daemon.errors import ConfigError, PermissionRefused, RevectorError, SchemaChanged, TransientError
from daemon.ports import SourceRow

pytestmark = pytest.mark.system

Connection = psycopg.Connection[Any]
DEADLINE_S = 60.0


@pytest.fixture
def app(dsn: str) -> Iterator[Connection]:
    """The application's own connection to the source database."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA app")
        yield connection


@pytest.fixture
async def source(dsn: str, app: Connection) -> AsyncIterator[PostgresSource]:
    async with reading(dsn) as source:
        yield source


@asynccontextmanager
async def reading(dsn: str) -> AsyncIterator[PostgresSource]:
    source = PostgresSource(dsn, "slot_a", "publication_a", "revector:test:source")
    try:
        yield source
    finally:
        await source.close()


def table(name: str, key: tuple[str, ...], **types: str) -> Table:
    columns = tuple(Column(n, t, t) for n, t in types.items())
    return Table(1, name, "app", name, key, columns, "", ())


def numbers(app: Connection, rows: int) -> Table:
    app.execute("CREATE TABLE app.numbers (id bigint PRIMARY KEY, body text)")
    app.execute("INSERT INTO app.numbers SELECT n, 'body ' || n FROM generate_series(1, %s) n", (rows,))
    return table("numbers", ("id",), id="bigint", body="text")


async def every_row(source: PostgresSource, wanted: Table, limit: int, upto: Key | None = None) -> list[SourceRow]:
    rows: list[SourceRow] = []
    after: Key | None = None
    while True:
        page = await source.page(wanted, after, upto, limit)
        rows += page.rows
        if page.last is None:
            return rows
        assert page.last == page.rows[-1].key
        after = page.last


async def until(app: Connection, query: str) -> None:
    """Wait for a query's answer to be true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (app.execute(query).fetchone() or (False,))[0]:
        assert time.monotonic() < deadline, query
        await asyncio.sleep(0.01)


# --- pages and rows


async def test_pages_give_every_row_once_in_the_order_of_the_key(source: PostgresSource, app: Connection) -> None:
    wanted = numbers(app, 25)
    rows = await every_row(source, wanted, 10)
    assert [row.key for row in rows] == [(str(n),) for n in range(1, 26)]  # as numbers, not as text
    assert rows[9].values == ("10", "body 10")
    assert await every_row(source, wanted, 5) == rows  # the last page is full


async def test_a_page_begins_after_its_lower_and_ends_at_its_upper_key(source: PostgresSource, app: Connection) -> None:
    wanted = numbers(app, 25)
    page = await source.page(wanted, ("9",), ("12",), 100)
    assert [row.key for row in page.rows] == [("10",), ("11",), ("12",)]
    assert page.last is None
    assert (await source.page(wanted, ("9",), ("12",), 3)).last == ("12",)
    assert (await source.page(wanted, ("25",), None, 3)).rows == ()


KEYS = {
    "character(6)": ["a", "ab", "b  ", "ä", ""],
    "text": ["b", "B", "a", "ä", "é", "", "it's", '"', "10", "9", "%s", "\\", "a\nb"],
    'text COLLATE "C.utf8"': ["b", "B", "a", "ä", ""],
    "app.mood": ["ok", "bad", "so so"],
    "app.email": ["a@b", "B@b"],
    "uuid": ["6f1c1c0e-2a0b-4d0e-9c59-222222222222", "6f1c1c0e-2a0b-4d0e-9c59-111111111111"],
    "boolean": ["true", "false"],
    "bigint": ["-9223372036854775808", "-1", "9", "10"],
    "date": ["2026-01-31", "0044-03-15 BC"],
    "timestamp with time zone": ["2026-01-31 12:00:00+02", "2026-01-31 11:00:00.5+00", "infinity"],
    "inet": ["10.0.0.1", "10.0.0.0/8", "::1"],
}


@pytest.mark.parametrize("type", KEYS)
async def test_keys_of_every_type_round_trip(source: PostgresSource, app: Connection, type: str) -> None:
    app.execute("CREATE TYPE app.mood AS ENUM ('so so', 'ok', 'bad')")
    app.execute("CREATE DOMAIN app.email AS text CHECK (value ~ '@')")
    app.execute(f"CREATE TABLE app.keyed (n int, k {type}, PRIMARY KEY (k, n))".encode())
    pairs = list(itertools.product(KEYS[type], (2, 10)))
    for key, n in pairs:
        app.execute(f"INSERT INTO app.keyed VALUES (%s, %s::{type})".encode(), (n, key))
    wanted = table("keyed", ("k", "n"), k=type.removesuffix(' COLLATE "C.utf8"'), n="integer")
    rows = await every_row(source, wanted, 1)
    assert len(rows) == len({row.key for row in rows}) == len(pairs)
    in_order = app.execute("SELECT array_agg(ROW(k, n)::text ORDER BY k, n) FROM app.keyed").fetchone()
    by_page = app.execute(
        f"SELECT array_agg(ROW(k::{type}, n::int)::text ORDER BY o) FROM unnest(%s::text[], %s::text[])"
        " WITH ORDINALITY AS u(k, n, o)".encode(),
        ([row.key[0] for row in rows], [row.key[1] for row in rows]),
    ).fetchone()
    assert by_page == in_order
    found, _ = await source.rows(wanted, [row.key for row in rows])
    assert found == {row.key: row for row in rows}


async def test_an_open_transaction_is_neither_in_the_page_nor_in_its_snapshot(
    source: PostgresSource, app: Connection, dsn: str
) -> None:
    wanted = numbers(app, 3)
    with psycopg.connect(dsn) as writer:
        writer.execute("INSERT INTO app.numbers VALUES (2000, 'later'), (2001, 'later')")
        (xid,) = writer.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,)
        before = await source.page(wanted, None, None, 100)
        gone, snapshot = await source.rows(wanted, [("1",), ("2000",)])
        writer.commit()
    after = await source.page(wanted, None, None, 100)
    assert len(before.rows) == 3 and not before.snapshot.sees(xid)
    assert set(gone) == {("1",)} and not snapshot.sees(xid)
    assert len(after.rows) == 5 and after.snapshot.sees(xid)


async def test_rows_and_snapshot_agree_while_others_commit(source: PostgresSource, app: Connection, dsn: str) -> None:
    """Every page holds exactly the transactions that its snapshot sees: none half, none too many, none missing."""
    app.execute("CREATE TABLE app.written (id bigint PRIMARY KEY, xid bigint)")
    app.execute("CREATE TABLE app.done (xid bigint)")
    wanted = table("written", ("id",), id="bigint", xid="bigint")
    insert = "INSERT INTO app.written SELECT n, pg_current_xact_id()::text::bigint FROM unnest(%s::bigint[]) n"

    def write(first: int) -> list[int]:
        xids = []
        with psycopg.connect(dsn) as writer:
            for n in range(first, 1000, 2):
                writer.execute(insert.encode(), ([n, 100_000 - n],))
                row = writer.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
                writer.commit()
                xids.append(row[0] if row else 0)
        return xids

    writers = [asyncio.create_task(asyncio.to_thread(write, first)) for first in (0, 1)]
    pages, probes = [], []
    while not all(writer.done() for writer in writers):
        pages.append(await source.page(wanted, None, None, 100_000))
        found, snapshot = await source.rows(wanted, [(str(n),) for n in range(0, 100_000, 97)])
        probes.append((found, snapshot))
    committed = {xid for writer in writers for xid in await writer}
    for page in pages:
        held = [int(row.values[1] or 0) for row in page.rows]
        assert set(held) == {xid for xid in committed if page.snapshot.sees(xid)}
        assert all(held.count(xid) == 2 for xid in held)
    assert any(0 < len(page.rows) < 2000 for page in pages), "no page fell into the writing"
    assert all(snapshot.sees(int(row.values[1] or 0)) for found, snapshot in probes for row in found.values())


async def test_a_page_that_waited_for_a_rewrite_still_sees_the_rows(
    source: PostgresSource, app: Connection, dsn: str
) -> None:
    wanted = numbers(app, 5)
    with psycopg.connect(dsn) as owner:
        owner.execute("ALTER TABLE app.numbers ADD COLUMN stamp timestamptz DEFAULT clock_timestamp()")
        page = asyncio.create_task(source.page(wanted, None, None, 100))
        await until(app, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        owner.commit()
    assert len((await page).rows) == 5


async def test_rows_answers_with_the_keys_that_were_asked(source: PostgresSource, app: Connection) -> None:
    app.execute("CREATE TABLE app.padded (k char(4) PRIMARY KEY, body text, tags text[])")
    app.execute("INSERT INTO app.padded VALUES ('a', NULL, '[0:1]={x,y}')")
    wanted = table("padded", ("k",), k="character(4)", body="text", tags="text[]")
    found, _ = await source.rows(wanted, [("a   ",), ("zz",)])
    assert found == {("a   ",): SourceRow(("a",), ("a", None, "{x,y}"))}
    assert (await source.rows(wanted, []))[0] == {}


async def test_the_text_of_values_does_not_depend_on_role_or_database(
    source: PostgresSource, app: Connection, dsn: str
) -> None:
    app.execute("CREATE TABLE app.shown (id int PRIMARY KEY, t timestamptz, d double precision, b bytea, day date)")
    app.execute("INSERT INTO app.shown VALUES (1, '2026-02-28 12:00+02', 0.1, '\\xdead', '2026-02-28')")
    wanted = table(
        "shown", ("id",), id="integer", t="timestamp with time zone", d="double precision", b="bytea", day="date"
    )
    (name,) = app.execute("SELECT current_database()").fetchone() or ("",)
    for setting in ("DateStyle = 'SQL, DMY'", "TimeZone = 'Asia/Tokyo'", "extra_float_digits = -5"):
        app.execute(f'ALTER DATABASE "{name}" SET {setting}'.encode())
    app.execute(f'ALTER DATABASE "{name}" SET bytea_output = escape'.encode())
    expected = ("1", "2026-02-28 10:00:00+00", "0.1", "\\xdead", "2026-02-28")
    assert (await source.page(wanted, None, None, 1)).rows[0].values == expected


# --- ranges


async def test_bounds_cut_a_large_table_into_about_equal_ranges(source: PostgresSource, app: Connection) -> None:
    app.execute("CREATE TABLE app.large (org text, n int, PRIMARY KEY (org, n)) WITH (fillfactor = 50)")
    app.execute("INSERT INTO app.large SELECT 'o' || n % 7, n FROM generate_series(1, 60000) n")
    wanted = table("large", ("org", "n"), org="text", n="integer")
    assert await source.bounds(wanted, 4) == []  # never analysed: no estimate
    assert await source.estimate(wanted) is None
    app.execute("ANALYZE app.large")
    assert await source.estimate(wanted) == 60000
    bounds = await source.bounds(wanted, 4)
    assert len(bounds) == 3
    ends: list[Key | None] = [None, *bounds, None]
    sizes = [len((await source.page(wanted, low, high, 60001)).rows) for low, high in itertools.pairwise(ends)]
    assert sum(sizes) == 60000
    assert all(7500 < size < 30000 for size in sizes), sizes
    assert await source.bounds(wanted, 1) == []


async def test_a_small_table_is_one_range(source: PostgresSource, app: Connection) -> None:
    wanted = numbers(app, 1000)
    app.execute("ANALYZE app.numbers")
    assert await source.estimate(wanted) == 1000
    assert await source.bounds(wanted, 8) == []


async def test_a_partitioned_table_is_estimated_by_its_leaves(source: PostgresSource, app: Connection) -> None:
    app.execute("CREATE TABLE app.parted (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    app.execute("CREATE TABLE app.low PARTITION OF app.parted FOR VALUES FROM (0) TO (100)")
    app.execute("CREATE TABLE app.high PARTITION OF app.parted FOR VALUES FROM (100) TO (200)")
    app.execute("CREATE TABLE app.empty PARTITION OF app.parted FOR VALUES FROM (200) TO (300)")
    app.execute("INSERT INTO app.parted SELECT generate_series(0, 149)")
    wanted = table("parted", ("id",), id="integer")
    app.execute("ANALYZE app.low")
    assert await source.estimate(wanted) is None
    app.execute("ANALYZE app.high")
    assert await source.estimate(wanted) == 150
    assert len(await every_row(source, wanted, 40)) == 150


# --- log and transactions


async def test_emit_writes_where_it_says_and_own_xid_is_committed(source: PostgresSource, app: Connection) -> None:
    app.execute("CREATE PUBLICATION all_of_it")
    app.execute("SELECT pg_create_logical_replication_slot('slot_messages', 'pgoutput')")
    before = await source.wal_lsn()
    lsns = [await source.emit(b"first"), await source.emit(b"second \x00\xff")]
    assert before <= lsns[0] < lsns[1] < await source.wal_lsn()
    changes = app.execute(
        """SELECT data FROM pg_logical_slot_peek_binary_changes('slot_messages', NULL, NULL,
             'proto_version', '1', 'publication_names', 'all_of_it', 'messages', 'true')"""
    ).fetchall()
    # PostgreSQL documentation, 54.9: 'M', flags (1: transactional), LSN, prefix, length, content
    messages = [(*struct.unpack(">cBq", data[:10]), data[10:]) for (data,) in changes if data[:1] == b"M"]
    assert messages == [
        (b"M", 1, lsns[0], b"revector\0\0\0\0\5first"),
        (b"M", 1, lsns[1], b"revector\0\0\0\0\x09second \x00\xff"),
    ]
    first, second = await source.own_xid(), await source.own_xid()
    assert first < second and (await source.snapshot()).sees(second)
    app.execute("SELECT pg_drop_replication_slot('slot_messages')")


async def test_nothing_of_ours_can_write_a_table(source: PostgresSource, app: Connection) -> None:
    numbers(app, 1)
    async with source._session.use("write") as connection:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await connection.execute("DELETE FROM app.numbers")


async def test_the_blocker_is_who_holds_back_the_snapshot(source: PostgresSource, app: Connection, dsn: str) -> None:
    wanted = numbers(app, 1)
    with psycopg.connect(dsn) as reader, psycopg.connect(dsn) as writer:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM app.numbers")
        assert await source.blocker() is None  # a reader holds back no snapshot
        (xid,) = writer.execute("SELECT pg_current_xact_id()::text::bigint").fetchone() or (0,)
        newer = await source.own_xid()
        blocker = await source.blocker()
        assert blocker is not None
        assert (blocker.pid, blocker.what) == (writer.info.backend_pid, "backend")
        assert 0 <= blocker.age_s < DEADLINE_S
        snapshot = await source.snapshot()
        assert snapshot.xmin <= xid and snapshot.sees(newer) and not snapshot.sees(xid)
        assert (await source.page(wanted, None, None, 1)).snapshot.xmin <= xid


def test_a_snapshot_is_read_with_and_without_running_transactions() -> None:
    assert parse_snapshot("4294967300:4294967310:4294967300,4294967305") == Snapshot(
        4294967300, 4294967310, frozenset({4294967300, 4294967305})
    )
    assert parse_snapshot("10:10:") == Snapshot(10, 10, frozenset())


# --- catalogue


async def test_describe_tells_what_a_table_is_made_of(source: PostgresSource, app: Connection) -> None:
    app.execute("CREATE TYPE app.mood AS ENUM ('ok'); CREATE TYPE app.pair AS (a int, b int)")
    app.execute("CREATE DOMAIN app.name AS varchar(20); CREATE DOMAIN app.nick AS app.name CHECK (value <> '')")
    app.execute(
        """CREATE TABLE app.all_kinds (b int, a text, dropped int, nick app.nick, mood app.mood, pair app.pair,
             tags text[], span int4range, price numeric(10,2) NOT NULL, twice int GENERATED ALWAYS AS (b * 2) STORED,
             PRIMARY KEY (a, b) INCLUDE (price) DEFERRABLE)"""
    )
    app.execute("ALTER TABLE app.all_kinds DROP COLUMN dropped; ALTER TABLE app.all_kinds REPLICA IDENTITY FULL")
    catalog = await source.describe("app", "all_kinds")
    assert catalog is not None
    assert (catalog.primary_key, catalog.key_deferrable, catalog.identity) == (("a", "b"), True, "full")
    assert [(c.name, c.type, c.base_type, c.kind, c.nullable, c.generated) for c in catalog.columns] == [
        ("b", "integer", "integer", "base", False, False),
        ("a", "text", "text", "base", False, False),
        ("nick", "app.nick", "character varying(20)", "domain", True, False),
        ("mood", "app.mood", "app.mood", "enum", True, False),
        ("pair", "app.pair", "app.pair", "composite", True, False),
        ("tags", "text[]", "text[]", "array", True, False),
        ("span", "int4range", "int4range", "range", True, False),
        ("price", "numeric(10,2)", "numeric(10,2)", "base", False, False),
        ("twice", "integer", "integer", "base", True, True),
    ]
    assert all(c.deterministic for c in catalog.columns)
    assert await source.describe("app", "nothing") is None
    app.execute("CREATE TABLE app.plain (a int); CREATE VIEW app.seen AS SELECT 1 AS a")
    plain = await source.describe("app", "plain")
    assert plain is not None and plain.primary_key == () and plain.identity == "default"
    assert await source.describe("app", "seen") is None


CHANGES = {
    "ALTER TABLE app.numbers ADD COLUMN unused int": False,
    "ALTER TABLE app.numbers ALTER COLUMN body SET NOT NULL": False,
    "ALTER TABLE app.numbers ALTER COLUMN body TYPE varchar": True,
    "ALTER TABLE app.numbers RENAME COLUMN body TO text": True,
    "ALTER TABLE app.numbers REPLICA IDENTITY FULL": True,
    "ALTER TABLE app.numbers DROP CONSTRAINT numbers_pkey, ADD PRIMARY KEY (id, body)": True,
}


@pytest.mark.parametrize("change", CHANGES)
async def test_the_fingerprint_changes_with_what_is_used(source: PostgresSource, app: Connection, change: str) -> None:
    wanted = numbers(app, 1)
    before = await source.schema_fingerprint(wanted)
    app.execute(change.encode())
    assert (await source.schema_fingerprint(wanted) != before) is CHANGES[change]


async def test_a_table_that_is_gone_is_a_schema_change(source: PostgresSource, app: Connection) -> None:
    wanted = replace(numbers(app, 1), name="elsewhere")
    with pytest.raises(SchemaChanged, match=r"no table app\.elsewhere"):
        await source.schema_fingerprint(wanted)
    with pytest.raises(SchemaChanged, match="42P01"):
        await source.page(wanted, None, None, 1)


async def test_setup_reports_publication_and_slot(source: PostgresSource, app: Connection) -> None:
    empty = await source.setup()
    assert empty.publication_operations is None and empty.published == () and not empty.slot.exists
    assert empty.wal_level == "logical" and not empty.in_recovery and empty.version >= 160000
    numbers(app, 1)
    app.execute("CREATE TABLE app.bare (a int, b int); CREATE TABLE app.listed (id int PRIMARY KEY, x int)")
    app.execute("CREATE TABLE app.parted (id int PRIMARY KEY, x int) PARTITION BY RANGE (id)")
    app.execute("CREATE TABLE app.part PARTITION OF app.parted FOR VALUES FROM (0) TO (9)")
    app.execute(
        "CREATE PUBLICATION publication_a FOR TABLE app.numbers WHERE (id > 1), app.bare, app.listed (id), app.parted"
        " WITH (publish = 'insert, truncate')"
    )
    app.execute("SELECT pg_create_logical_replication_slot('slot_a', 'pgoutput')")
    setup = await source.setup()
    assert setup.publication_operations == frozenset({"insert", "truncate"})
    facts = {t.name: (t.has_key, t.has_column_list, t.has_row_filter) for t in setup.published}
    assert facts == {
        "numbers": (True, False, True),
        "bare": (False, False, False),
        "listed": (True, True, False),
        "part": (True, False, False),
    }
    assert setup.slot.exists and not setup.slot.active
    assert setup.slot.confirmed_lsn is not None and setup.slot.confirmed_lsn <= await source.wal_lsn()
    assert setup.slot.retained_bytes is not None and setup.slot.retained_bytes >= 0
    assert (setup.slot.wal_status, setup.slot.limit_bytes) == ("reserved", 4 << 30)
    app.execute("SELECT pg_drop_replication_slot('slot_a')")


async def test_identity_is_the_servers(source: PostgresSource, app: Connection) -> None:
    row = app.execute("SELECT system_identifier::text, current_database() FROM pg_control_system()").fetchone()
    identity = await source.identity()
    assert (identity.system_identifier, identity.database) == row
    assert (identity.timeline, identity.slot, identity.publication) == (1, "slot_a", "publication_a")


# --- faults


async def test_a_lost_connection_is_transient_and_the_next_call_connects_again(
    source: PostgresSource, app: Connection
) -> None:
    await source.snapshot()
    ended = app.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'revector:test:source'"
    ).fetchone()
    assert ended == (1,)
    with pytest.raises(TransientError, match="snapshot") as caught:
        await source.snapshot()
    assert caught.value.id == "source-unreachable"
    await source.snapshot()


async def test_a_cancelled_call_leaves_a_source_that_works(source: PostgresSource, app: Connection, dsn: str) -> None:
    wanted = numbers(app, 5)
    with psycopg.connect(dsn) as owner:
        owner.execute("LOCK TABLE app.numbers")
        page = asyncio.create_task(source.page(wanted, None, None, 100))
        await until(app, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        page.cancel()
        with pytest.raises(asyncio.CancelledError):
            await page
        await source.snapshot()
    assert len((await source.page(wanted, None, None, 100)).rows) == 5


async def test_a_transaction_left_open_is_not_handed_to_the_next_user(dsn: str) -> None:
    session = Session(dsn, "revector:test:session", "target")
    try:
        with pytest.raises(ValueError, match="ours"):
            async with session.use("first") as connection:
                await connection.execute("CREATE TABLE half_done (a int)")
                await connection.execute("BEGIN")
                await connection.execute("INSERT INTO half_done VALUES (1)")
                raise ValueError("ours")
        async with session.use("second") as connection:
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            assert await (await connection.execute("SELECT count(*) FROM half_done")).fetchone() == (0,)
    finally:
        await session.close()


async def test_errors_never_carry_values(source: PostgresSource, app: Connection) -> None:
    wanted = numbers(app, 1)
    text = "-".join(["text", "of", "a", "row"])
    with pytest.raises(RevectorError, match="22P02") as caught:
        await source.rows(wanted, [(text,)])
    told = "".join(traceback.format_exception(caught.value))
    assert "InvalidTextRepresentation" in told and text not in told


async def test_column_grants_are_enough_and_a_missing_one_is_said(app: Connection, dsn: str) -> None:
    wanted = numbers(app, 2)
    (name,) = app.execute("SELECT current_database()").fetchone() or ("",)
    role = f"reader_{name}"
    app.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'right'".encode())
    try:
        app.execute(f"GRANT USAGE ON SCHEMA app TO {role}; GRANT SELECT (id) ON app.numbers TO {role}".encode())
        async with reading(make_conninfo(dsn, user=role, password="right")) as source:
            narrow = table("numbers", ("id",), id="bigint")
            assert len((await source.page(narrow, None, None, 9)).rows) == 2
            assert (await source.identity()).database == name
            assert await source.emit(b"x") > 0 and await source.own_xid() > 0
            assert (await source.setup()).slot.exists is False
            with pytest.raises(PermissionRefused, match="42501") as caught:
                await source.page(wanted, None, None, 9)
            assert caught.value.id == "permission-denied"
            app.execute("ALTER TABLE app.numbers ENABLE ROW LEVEL SECURITY")
            with pytest.raises(PermissionRefused, match="42501"):  # a policy would hide rows from the copy
                await source.page(narrow, None, None, 9)
    finally:
        app.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


async def test_a_source_that_cannot_be_reached_says_why(dsn: str) -> None:
    expected: list[tuple[str, type[RevectorError], str]] = [
        (make_conninfo(dsn, password="wrong"), PermissionRefused, "password-refused"),
        (make_conninfo(dsn, user="nobody_known"), PermissionRefused, "password-refused"),
        (make_conninfo(dsn, dbname="nowhere"), ConfigError, "database-missing"),
        (make_conninfo(dsn, port=1), TransientError, "source-unreachable"),
        (make_conninfo(dsn, host="nowhere.invalid"), TransientError, "source-unreachable"),
        ("postgresql://user:secret@[", ConfigError, "dsn-invalid"),
    ]
    for conninfo, kind, id in expected:
        async with reading(conninfo) as source:
            with pytest.raises(kind) as caught:
                await source.snapshot()
            assert caught.value.id == id
            told = "".join(traceback.format_exception(caught.value))
            assert "secret" not in told and "wrong" not in told
