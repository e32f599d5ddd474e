"""Digests say whether values are equal: the source's own values against those that the replica stores."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from daemon.core.canonical import ALLOWED
from daemon.core.comparison import Columns
from daemon.core.model import Key, Known, Values
from sandbox.postgres import Postgres
from tests.cases.literals import LITERALS, LITERALS_REFUSED
from tests.cases.values import ODD_TEXTS, any_literals
from tests.ports.sides import Sides

pytestmark = pytest.mark.system

# A value of every allowed type, and another one that is close to it.
NEIGHBOURS: dict[str, list[tuple[str, str | None]]] = {
    "smallint": [("0", None), ("-5", "5")],
    "integer": [("0", None), ("2147483647", "-2147483648")],
    "bigint": [("9007199254740993", "9007199254740992"), ("-9223372036854775808", "9223372036854775807")],
    "boolean": [("t", "f"), ("f", None)],
    "uuid": [("6f1c1c0e-2a0b-4d0e-9c59-222222222222", "6f1c1c0e-2a0b-4d0e-9c59-222222222223")],
    "text": [("", None), ("a", "a "), ("é", "e\u0301"), ("NULL", None), ("x\\", "x")],
    "character varying(10)": [("a", "a "), ("", None)],
    "character(5)": [("a", " a"), ("", None)],
    "bpchar": [("a", " a"), ("", None)],
    "date": [("2026-01-31", "2026-02-01"), ("0001-01-01", "0001-01-01 BC"), ("infinity", "-infinity")],
    "timestamp without time zone": [("2026-01-31 10:00:00.000001", "2026-01-31 10:00:00.000002")],
    "timestamp(3) without time zone": [("2026-01-31 10:00:00.001", "2026-01-31 10:00:00")],
    "timestamp with time zone": [("infinity", "-infinity"), ("2026-01-31 10:00+00", "2026-01-31 10:00+01")],
    "timestamp(0) with time zone": [("2026-01-31 10:00:01+00", "2026-01-31 10:00:02+00")],
    "numeric": [("1.0", "1.00"), ("NaN", "Infinity"), ("0", None)],
    "numeric(12,4)": [("0.0001", "0.0002")],
    "numeric(10,0)": [("1", "-1")],
    "real": [("0", "-0"), ("NaN", "Infinity"), ("16777216", "16777218")],
    "double precision": [("0", "-0"), ("0.1", "0.10000000000000002")],
    "json": [('{"a":1}', '{"a": 1}'), ("null", None)],
    "jsonb": [("1.0", "1.00"), ('""', "null"), ("null", None)],
    "tsvector": [("'a':1", "'a':2"), ("", None)],
    "inet": [("10.0.0.1", "10.0.0.1/31"), ("::1", "::2")],
    "cidr": [("10.0.0.0/8", "10.0.0.0/9")],
    "macaddr": [("08:00:2b:01:02:03", "08:00:2b:01:02:04")],
    "macaddr8": [("08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03:04:06")],
    "int4range": [("[1,5)", "[1,6)"), ("empty", None)],
    "int8range": [("[1,)", "(,1)")],
    "daterange": [("[2026-01-31,)", "[2026-02-01,)")],
    "tsrange": [("[2026-01-31,2026-02-01)", "[2026-01-31,2026-02-01]")],
    "numrange": [("[1.5,2)", "[1.50,2)")],
    "text[]": [("{}", None), ('{"NULL"}', "{NULL}"), ('{"a,b"}', "{a,b}"), ('{""}', "{}")],
    "character varying(5)[]": [("{a}", '{"a "}')],
    "uuid[]": [("{6f1c1c0e-2a0b-4d0e-9c59-222222222222}", "{NULL}")],
    "smallint[]": [("{1}", "{1,1}")],
    "integer[]": [("{1,NULL}", "{1}"), ("{{1,2}}", "{1,2}")],
    "bigint[]": [("{9007199254740993}", "{9007199254740992}")],
    "boolean[]": [("{t}", "{f}")],
    "bytea": [("\\x", None), ("\\x00", "\\x0000")],
    "vector(3)": [("[1,2,3]", "[1,2,3.0000002]")],
    "halfvec(3)": [("[1,2,3]", "[1,2,3.002]")],
}

_numbers = itertools.count()


@pytest.fixture
def bare(postgres: Postgres) -> Iterator[Callable[..., str]]:
    """Makes databases without pgvector, of any encoding."""
    made: list[str] = []

    def make(encoding: str = "UTF8") -> str:
        made.append(f"bare_{next(_numbers)}")
        with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as connection:
            query = "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE 'C'"
            connection.execute(sql.SQL(query).format(sql.Identifier(made[-1]), sql.Literal(encoding)))
        return postgres.dsn(made[-1])

    yield make
    for name in made:
        postgres.drop_database(name)


def digest(text: Known) -> bytes | None:
    return None if text is None else hashlib.sha256(text.encode()).digest()[:16]


def insert(side: psycopg.Connection, name: str, **values: Known) -> None:
    """Each value as an untyped literal: the column decides."""
    query = sql.SQL("INSERT INTO app.{} ({}) VALUES ({})").format(
        sql.Identifier(name),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(map(sql.Literal, values.values())),
    )
    side.execute(query)


def typed(literals: dict[str, list[tuple[str, str | None]]] | dict[str, list[str]]) -> list[tuple[str, str]]:
    """A column for each type; pgvector's lies in a schema of its own at the source."""
    return [(f"c{n}", f"ext.{t}" if t.startswith(("vector", "halfvec")) else t) for n, t in enumerate(literals)]


def wide(columns: Sequence[tuple[str, str]]) -> str:
    listed = ", ".join(f"{name} {type}" for name, type in columns)
    return (
        f"CREATE SCHEMA ext; CREATE EXTENSION vector SCHEMA ext; CREATE TABLE app.t (id int PRIMARY KEY, {listed}); "
        "ALTER TABLE app.t REPLICA IDENTITY FULL"
    )


def base_names(types: Sequence[str]) -> set[str]:
    return {type.split("(")[0] + type.partition(")")[2] for type in types}


# --- every type


async def test_digests_of_every_allowed_type_are_of_its_canonical_text(dsn: str, bare: Callable[..., str]) -> None:
    assert base_names(list(LITERALS)) == set(ALLOWED)
    columns = typed(LITERALS)
    async with Sides.open(bare(), dsn, wide(columns)) as sides:
        numbers = itertools.count(1)
        for (name, _), type in zip(columns, LITERALS, strict=True):
            for literal in LITERALS[type] + LITERALS_REFUSED.get(type, []):
                insert(sides.app, "t", id=str(next(numbers)), **{name: literal})
        insert(sides.app, "t", id=str(next(numbers)))
        firsts = {name: LITERALS[type][0] for (name, _), type in zip(columns, LITERALS, strict=True)}
        insert(sides.app, "t", id=str(next(numbers)), **firsts)
        rows = await sides.copy()
        expected = {row.key: tuple(digest(value) for value in row.values) for row in rows}
        assert len(expected) == next(numbers) - 1
        assert await sides.digests(list(expected)) == expected
        assert {key: look.columns for key, look in (await sides.looks(list(expected))).items()} == expected
        assert await sides.differing() == await sides.extra() == []


async def test_a_changed_value_of_every_type_is_found_in_its_column(dsn: str, bare: Callable[..., str]) -> None:
    assert base_names(list(NEIGHBOURS)) == set(ALLOWED)
    columns = typed(NEIGHBOURS)
    async with Sides.open(bare(), dsn, wide(columns)) as sides:
        changes: list[tuple[str, str, str | None]] = []
        for (name, _), type in zip(columns, NEIGHBOURS, strict=True):
            for value, other in NEIGHBOURS[type]:
                changes.append((name, value, other))
                insert(sides.app, "t", id=str(len(changes)), **{name: value})
        await sides.copy()
        assert await sides.differing() == []
        names = sides.table.names
        for n, (name, _, other) in enumerate(changes, 1):
            change = "UPDATE shop.t SET {} = {} WHERE id = {}"
            sides.there.execute(sql.SQL(change).format(sql.Identifier(name), sql.Literal(other), n))
        keys = sorted((str(n),) for n in range(1, len(changes) + 1))
        assert await sides.differing() == keys
        theirs, ours = await sides.digests(keys), await sides.looks(keys)
        for n, (name, value, _) in enumerate(changes, 1):
            key = (str(n),)
            pairs = zip(names, theirs[key], ours[key].columns, strict=True)
            assert [column for column, a, b in pairs if a != b] == [name], (name, value)


ALIKE = """
CREATE TYPE app.mood AS ENUM ('so so', 'ok ', 'NULL');
CREATE DOMAIN app.code AS character(5);
CREATE DOMAIN app.codes AS integer[];
CREATE DOMAIN app.moment AS timestamp(3);
CREATE DOMAIN app.name AS character varying(10) CHECK (value <> '');
CREATE TABLE app.t (id int PRIMARY KEY, mood app.mood, code app.code, codes app.codes, moment app.moment, n app.name,
                    f double precision, r real, a integer[], b text[], big text, zipped text, oct bytea);
ALTER TABLE app.t REPLICA IDENTITY FULL;
ALTER TABLE app.t ALTER big SET STORAGE EXTERNAL;
INSERT INTO app.t VALUES (1, 'ok ', 'a', '[0:1]={1,2}', '2026-01-31 10:00:00.1239', 'x ',
  'inf'::double precision - 'inf', 'inf'::real - 'inf', '{1,NULL}', '[2:3][0:1]={{a,b},{c,d}}',
  (SELECT string_agg(sha256(n::text::bytea)::text, '☃') FROM generate_series(1, 20000) n), repeat('long ', 100000),
  decode(repeat('00ff', 50000), 'hex'));
UPDATE app.t SET a[2] = 2;
INSERT INTO app.t (id, mood) VALUES (2, 'NULL'), (3, NULL);
"""


async def test_values_that_are_stored_otherwise_are_equal(dsn: str, bare: Callable[..., str]) -> None:
    """Enums and domains; not-a-numbers of other bits; bounds and leftovers in arrays; what lies out of line."""
    async with Sides.open(bare(), dsn, ALIKE) as sides:
        rows = await sides.copy()
        assert await sides.differing() == await sides.extra() == []
        theirs = await sides.digests([row.key for row in rows])
        assert theirs == {row.key: tuple(digest(value) for value in row.values) for row in rows}
        assert theirs == {key: look.columns for key, look in (await sides.looks(list(theirs))).items()}
        sides.there.execute("UPDATE shop.t SET big = overlay(big PLACING 'x' FROM length(big)) WHERE id = 1")
        assert await sides.differing() == [("1",)]


ENCODED = {
    "LATIN1": ["é", "ÿ ß", "plain"],
    "WIN1252": ["€", "Š…", "plain"],
    "EUC_JP": ["日本語", "かな ", "plain"],
    "SQL_ASCII": ["é☃", "plain"],
}


@pytest.mark.parametrize("encoding", ENCODED)
async def test_text_in_another_encoding_of_the_source_is_compared(
    dsn: str, bare: Callable[..., str], encoding: str
) -> None:
    texts = ENCODED[encoding]
    ddl = f"""CREATE TYPE app.word AS ENUM ('{texts[0]}');
              CREATE TABLE app.t (k text, "{texts[0]}" character(9), mood app.word, list text[], PRIMARY KEY (k))"""
    async with Sides.open(bare(encoding), dsn, ddl) as sides:
        for text in texts:
            insert(sides.app, "t", k=text, **{texts[0]: text, "mood": texts[0], "list": "{" + texts[0] + ",NULL}"})
        rows = await sides.copy()
        assert sorted(row.key[0] for row in rows) == sorted(texts)
        assert await sides.differing(1) == await sides.extra(1) == []
        assert await sides.digests([row.key for row in rows]) == {
            row.key: tuple(digest(value) for value in row.values) for row in rows
        }
        sides.there.execute("UPDATE shop.t SET list = '{other}' WHERE k = %s", [texts[0]])
        assert await sides.differing() == [(texts[0],)]


# --- any value


def test_any_values_are_equal_where_their_canonical_texts_are(dsn: str, bare: Callable[..., str]) -> None:
    types = any_literals()
    columns = [(f"c{n}", type) for n, type in enumerate(types)]
    row = st.tuples(*(st.none() | strategy for strategy in types.values()))

    async def compare(sides: Sides, rows: list[tuple[Known, ...]]) -> None:
        """Copied they are equal; after each row took its neighbour's values, those differ that differed before."""
        sides.app.execute("TRUNCATE app.t")
        sides.there.execute("TRUNCATE shop.t")
        for n, values in enumerate(rows):
            insert(sides.app, "t", id=str(n), **{name: v for (name, _), v in zip(columns, values, strict=True)})
        copied = {row.key: row.values for row in await sides.copy()}
        assert await sides.differing() == await sides.extra() == []
        expected = {key: tuple(digest(value) for value in values) for key, values in copied.items()}
        assert await sides.digests(list(copied)) == expected
        names = ", ".join(name for name, _ in columns)
        other = f"SELECT {names} FROM shop.t AS other WHERE other.id = (t.id + 1) %% {len(rows)}"
        sides.there.execute(f"UPDATE shop.t SET ({names}) = ({other})".encode(), ())
        moved: dict[Key, Values] = {(str(n),): copied[(str((n + 1) % len(rows)),)][1:] for n in range(len(rows))}
        assert await sides.differing() == sorted(key for key, values in copied.items() if values[1:] != moved[key])

    with asyncio.Runner() as runner:
        opened = Sides.open(bare(), dsn, wide(columns))
        sides = runner.run(opened.__aenter__())

        @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(row, min_size=1, max_size=5))
        def examples(rows: list[tuple[Known, ...]]) -> None:
            runner.run(compare(sides, rows))

        try:
            examples()
        finally:
            runner.run(opened.__aexit__(None, None, None))


# --- keys


async def settled(sides: Sides, expected: Sequence[Key], limit: int) -> None:
    """Every key is compared once from either side, in the order that the source has it, and all agree."""
    await sides.copy()
    pages = await sides.pages(limit)
    in_order = [row.key for row in (await sides.source.page(sides.table, None, None, 100_000)).rows]
    assert sides.read(pages) == in_order
    assert sorted(in_order) == sorted(expected)
    assert [page.last for page in pages[:-1]] == [
        in_order[end - 1] for end in range(limit, limit * (len(pages) - 1) + 1, limit)
    ]
    assert sorted(sides.read(await sides.key_pages(limit))) == sorted(expected)
    assert await sides.differing(limit) == await sides.extra(limit) == []
    found: dict[Key, Columns] = await sides.digests(expected)
    assert found.keys() == (await sides.looks(expected)).keys() == set(expected)


async def test_texts_of_any_kind_are_keys(dsn: str, database: Callable[[], str]) -> None:
    async with Sides.open(database(), dsn, "CREATE TABLE app.t (k text PRIMARY KEY, v text)") as sides:
        for text in ODD_TEXTS:
            insert(sides.app, "t", k=text, v=text)
        await settled(sides, [(text,) for text in ODD_TEXTS], 4)
        sides.there.execute("UPDATE shop.t SET v = v || ' '")
        assert await sides.differing(5) == sorted((text,) for text in ODD_TEXTS)
        sides.app.execute("DELETE FROM app.t")
        assert await sides.extra(6) == sorted((text,) for text in ODD_TEXTS)


async def test_composite_keys_are_compared_as_a_whole(dsn: str, database: Callable[[], str]) -> None:
    ddl = """CREATE TYPE app.mood AS ENUM ('so so', 'ok', 'bad');
             CREATE TABLE app.t (v text, b bigint, m app.mood, c character(3), at timestamptz,
                                 PRIMARY KEY (m, b, c, at))"""
    parts = [("so so", "bad"), ("-9", "10"), ("", "é"), ("infinity", "2026-01-31 10:00:00.5+00")]
    keys = list(itertools.product(*parts))
    async with Sides.open(database(), dsn, ddl) as sides:
        for n, (m, b, c, at) in enumerate(keys):
            insert(sides.app, "t", v=str(n), m=m, b=b, c=c, at=at)
        await settled(sides, keys, 3)
        sides.there.execute("DELETE FROM shop.t WHERE m = 'bad' AND b = 10 AND c = '' AND at = 'infinity'")
        assert await sides.differing(3) == [("bad", "10", "", "infinity")]
        sides.app.execute("DELETE FROM app.t WHERE m = 'so so' AND b = -9 AND c = 'é' AND at < 'infinity'")
        assert await sides.extra(3) == [("so so", "-9", "é", "2026-01-31 10:00:00.5+00")]


async def test_keys_at_the_edges_of_64_bits_are_compared(dsn: str, database: Callable[[], str]) -> None:
    numbers = [-(2**63), -(2**63) + 1, -1, 0, 9007199254740992, 9007199254740993, 2**63 - 2, 2**63 - 1]
    async with Sides.open(database(), dsn, "CREATE TABLE app.t (k bigint PRIMARY KEY, v text)") as sides:
        for number in numbers:
            insert(sides.app, "t", k=str(number), v="v")
        await settled(sides, [(str(number),) for number in numbers], 2)
        sides.there.execute("UPDATE shop.t SET v = 'w' WHERE k IN (%s, %s)", [2**63 - 1, 9007199254740993])
        assert await sides.differing(2) == sorted([(str(2**63 - 1),), ("9007199254740993",)])


async def test_odd_names_are_read(dsn: str, database: Callable[[], str]) -> None:
    names = ["k1", "k0", "100%s", "%", "digest", "row", "i", "r", "there", "page", 'we"ird', "größe", "select", "#0"]
    key, one = ("100%s", "k1", "digest", "row"), 't 100% "odd"'
    columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in names)
    identifiers = sql.SQL(", ").join(map(sql.Identifier, key))
    ddl = sql.SQL("CREATE TABLE app.{} (n int, {}, PRIMARY KEY ({}))")
    made = ddl.format(sql.Identifier(one), columns, identifiers).as_string()
    async with Sides.open(database(), dsn, made, one) as sides:
        for n in range(5):
            insert(sides.app, one, n=str(n), **{name: f"{name}{n}" for name in names})
        await settled(sides, [tuple(f"{name}{n}" for name in key) for n in range(5)], 2)
        sides.there.execute('UPDATE shop.t SET "%" = NULL WHERE n = 3')
        assert await sides.differing() == [tuple(f"{name}3" for name in key)]


async def test_a_key_that_the_sources_enum_does_not_have_is_absent(dsn: str, database: Callable[[], str]) -> None:
    ddl = "CREATE TYPE app.mood AS ENUM ('ok', 'bad'); CREATE TABLE app.t (k app.mood PRIMARY KEY)"
    async with Sides.open(database(), dsn, ddl) as sides:
        sides.app.execute("INSERT INTO app.t VALUES ('ok'), ('bad')")
        await settled(sides, [("ok",), ("bad",)], 1)
        sides.app.execute("ALTER TYPE app.mood RENAME VALUE 'ok' TO 'fine'")
        assert await sides.extra() == [("ok",)]
        assert await sides.differing() == [("fine",)]
        assert (await sides.digests([("ok",), ("fine",)])).keys() == {("fine",)}
        assert (await sides.source.rows(sides.table, [("ok",), ("bad",)]))[0].keys() == {("bad",)}


async def test_tables_of_no_row_and_of_one(dsn: str, database: Callable[[], str]) -> None:
    async with Sides.open(database(), dsn, "CREATE TABLE app.t (k text PRIMARY KEY, v text)") as sides:
        await settled(sides, [], 1)
        (page,) = await sides.pages(10)
        assert (page.rows, page.keys, page.digests, page.last) == (0, ("{}",), "{}", None)
        async with sides.target.begin() as tx:
            assert await tx.audit.last_row(sides.table) == 0
        insert(sides.app, "t", k="only", v=None)
        assert await sides.differing() == [("only",)]
        await settled(sides, [("only",)], 1)
        assert [page.last for page in await sides.pages(1)] == [("only",), None]
        assert [page.last for page in await sides.pages(2)] == [None]
        sides.app.execute("DELETE FROM app.t")
        assert (await sides.differing(), await sides.extra()) == ([], [("only",)])
