"""What the target makes in Postgres: schemas it owns, relations for any table, the reader's view, the vector index."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest
from pgvector.psycopg.vector import VectorDumper

from connectors import schema
from connectors.postgres_indexes import PostgresIndexes
from connectors.postgres_target import PostgresTarget
from connectors.relations import Relations, shortened
from daemon.core.model import Generation, Table
from daemon.errors import ConfigError, PermissionRefused, ProgramOutdated, RevectorError, TransientError
from tests import builders
from tests.builders import column, row, without
from tests.ports.target_shop import Shop, chunks_of, source_row, vector_of


class Connections:
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.made: list[PostgresTarget] = []

    def connect(self, name: str = "shop") -> PostgresTarget:
        self.made.append(PostgresTarget(self.dsn, name, "test"))
        return self.made[-1]

    def where(self, alias: str, columns: object, predicate: object) -> None:
        """The database evaluates the condition itself."""

    condition = where

    async def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            cursor = await connection.execute(query.encode(), parameters or None)
            return await cursor.fetchall() if cursor.description else []


async def connected(dsn: str) -> AsyncIterator[Connections]:
    connections = Connections(dsn)
    yield connections
    for target in connections.made:
        await target.close()


@pytest.fixture
async def connections(emptied_dsn: str) -> AsyncIterator[Connections]:
    async for connections in connected(emptied_dsn):
        yield connections


@pytest.fixture
async def shop(connections: Connections) -> Shop:
    return await Shop.open(connections)


async def made(connections: Connections, table: Table, name: str = "v1", **contract: Any) -> Shop:
    """A migration of one table of any shape."""
    target = connections.connect()
    await target.prepare()
    (table,) = await target.create_tables([table])
    agreed = builders.contract([table], **contract)
    async with target.begin() as tx:
        generation = await tx.ledger.add_generation(name, agreed.as_json(), agreed.id)
    await target.create_chunks([table], generation)
    return Shop(connections, target, table, generation)


async def test_connections_share_what_psycopg_knows_of_the_types(connections: Connections) -> None:
    """It keeps whatever adapter it was ever given, and a daemon connects anew as long as it lives."""
    shop = await made(connections, builders.articles())
    known = VectorDumper.__subclasses__()
    async with await psycopg.AsyncConnection.connect(connections.dsn, autocommit=True) as other:
        await other.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'test'")
    with pytest.raises(TransientError):
        await shop.copy(row("1"))
    ids = await shop.copy(row("1"))
    again = PostgresTarget(connections.dsn, "shop", "test")
    async with again.begin() as tx:
        assert [d.row_id for d in await tx.replica.documents(shop.table, shop.generation, [ids["1"]])] == [ids["1"]]
    await again.close()
    assert VectorDumper.__subclasses__() == known


class TestSchemas:
    @pytest.fixture
    async def connections(self, dsn: str) -> AsyncIterator[Connections]:
        """A database of its own: these tests change what outlives a test."""
        async for connections in connected(dsn):
            yield connections

    async def test_a_newer_control_schema_is_refused(self, shop: Shop, connections: Connections) -> None:
        ids = await shop.copy(row("1"))
        await connections.sql("INSERT INTO revector.schema_version VALUES (9999)")
        with pytest.raises(ProgramOutdated, match="version 9999") as error:
            await shop.target.prepare()
        assert (error.value.id, error.value.exit_code) == ("schema-newer", 78)
        with pytest.raises(ProgramOutdated):  # nor does a process that runs copy, apply or claim a row
            await shop.copy(row("2"))
        with pytest.raises(ProgramOutdated):
            async with shop.target.begin() as tx:
                await tx.ledger.claim(shop.table, shop.generation, "w", 10, 60)
        assert list(ids) == ["1"]

    async def test_an_upgrade_waits_for_a_window_that_is_open(self, shop: Shop, connections: Connections) -> None:
        """Else a program that asked for the version before it would write after it."""
        await connections.sql(
            "DELETE FROM revector.schema_version WHERE version = (SELECT max(version) FROM revector.schema_version)"
        )
        newer = connections.connect()
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            upgrade = asyncio.create_task(newer.prepare())
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE%'"
            deadline = time.monotonic() + 20
            while not await connections.sql(waiting):
                assert time.monotonic() < deadline and not upgrade.done()
                await asyncio.sleep(0.01)
        with pytest.raises(RevectorError):  # the version is not really an older one: its tables are there
            await upgrade

    @pytest.mark.parametrize("name", ["revector", "shop"])
    async def test_a_schema_of_somebody_else_is_refused(self, connections: Connections, name: str) -> None:
        await connections.sql(f"CREATE SCHEMA {name}")
        target = connections.connect()
        assert (await target.setup()).foreign_schema
        with pytest.raises(ConfigError) as error:
            await target.prepare()
        assert error.value.id == "schema-foreign"
        assert await connections.sql("SELECT 1 FROM pg_class WHERE relname = 'migration'") == []

    async def test_two_migrations_share_the_control_schema(self, shop: Shop, connections: Connections) -> None:
        other = connections.connect("blog")
        await other.prepare()
        (table,) = await other.create_tables([builders.articles()])
        assert table.id != shop.table.id
        async with other.begin() as tx:
            assert await tx.ledger.generations() == []
            assert (await tx.ledger.load()).name == "blog"

    async def test_setup_says_what_is_there(self, database: Any) -> None:
        target = PostgresTarget(database(), "shop", "test")
        before = await target.setup()
        assert (before.schema_version, before.foreign_schema, before.can_create) == (None, False, True)
        await target.prepare()
        assert (await target.setup()).schema_version == max(schema.control_files())
        await target.close()

    async def test_a_missing_extension_is_made(self, connections: Connections) -> None:
        await connections.sql("DROP EXTENSION vector")
        shop = await Shop.open(connections)
        ids = await shop.copy(row("1"))
        await shop.store(ids["1"], "text")

    async def test_an_extension_outside_of_the_search_path_is_found(self, connections: Connections) -> None:
        await connections.sql("CREATE SCHEMA extensions")
        await connections.sql("ALTER EXTENSION vector SET SCHEMA extensions")
        shop = await Shop.open(connections)
        ids = await shop.copy(row("1"))
        await shop.store(ids["1"], "text")

    async def test_a_role_without_rights_is_refused(self, connections: Connections) -> None:
        await connections.sql("DROP ROLE IF EXISTS revector_guest")
        await connections.sql("CREATE ROLE revector_guest LOGIN PASSWORD 'guest'")
        dsn = psycopg.conninfo.make_conninfo(connections.dsn, user="revector_guest", password="guest")
        target = PostgresTarget(dsn, "shop", "test")
        with pytest.raises(PermissionRefused):
            await target.prepare()
        await target.close()
        await connections.sql("DROP ROLE revector_guest")


class TestWhere:
    @pytest.mark.parametrize(
        "where",
        [
            "tenant = ",
            "nothing = 1",
            "views > random()",
            "views = 1; DROP SCHEMA revector",
            "views IN (SELECT 1)",
            "_deleted",
            "views",
            "articles.views > 1",
            "count(*) > 1",
            "tenant = 'x' --",
        ],
    )
    async def test_a_condition_that_is_none_is_refused_and_leaves_nothing(
        self, connections: Connections, where: str
    ) -> None:
        with pytest.raises(ConfigError, match="articles") as error:
            await made(connections, builders.articles(where=where))
        assert error.value.id == "where-invalid"
        assert await connections.sql("SELECT 1 FROM pg_class WHERE relname = 'articles'") == []

    async def test_the_columns_that_it_reads_are_found(self, connections: Connections) -> None:
        shop = await made(connections, builders.articles(where="views % 2 = 0 AND lower(title) LIKE 'a%'"))
        assert shop.table.where_columns == ("title", "views")
        assert (await shop.change("1", row("1", title="A", views="2"), 7)).is_wanted
        assert not (await shop.change("2", row("2", title="A", views="3"), 8)).is_wanted
        assert not (await shop.change("3", without(row("3", title="A", views="2"), "title"), 9)).is_wanted

    async def test_a_missing_column_is_unknown_and_not_null(self, connections: Connections) -> None:
        shop = await made(connections, builders.articles(where="tenant IS NULL"))
        made_without = await shop.change("1", without(row("1"), "tenant"), 7)
        assert not made_without.is_wanted
        known = await shop.change("1", row("1", tenant=None), 8)
        assert (known.was_wanted, known.is_wanted) == (False, True)

    async def test_a_condition_without_columns_holds_for_all(self, connections: Connections) -> None:
        shop = await made(connections, builders.articles(where="true"))
        assert (await shop.change("1", row("1"), 7)).is_wanted


class TestTables:
    async def test_names_that_sound_like_ours_or_like_sql_are_kept(self, connections: Connections) -> None:
        names = ("text", "n", "embedding", "deleted", "row_id", "missing", "select", "100%", 'qu"ote', "ord", "v0", "t")
        table = Table(
            id=0,
            alias="odd",
            schema="public",
            name="odd",
            key=("text", "n"),
            columns=tuple(column(name) for name in names),
            template="{embedding}",
            text_columns=("embedding", "100%"),
            filters=("deleted", "100%"),
            where="\"100%\" <> 'x%'",
        )
        shop = await made(connections, table)
        assert shop.table.where_columns == ("100%",)
        values = tuple(f"{name} value" for name in names)
        odd = replace(source_row(values), key=values[:2])
        async with shop.target.begin() as tx:
            await tx.ledger.hold_migration()
            (effect,) = await tx.replica.copy_in(shop.table, [odd])
            states = await tx.replica.lock(shop.table, [values[:2]])
            assert set(states) == {values[:2]}
        assert effect.is_wanted
        assert (await shop.document(effect.row_id)).values == {"embedding": "embedding value", "100%": "100% value"}
        await shop.store(effect.row_id, "chunk")
        query = 'SELECT text, n, embedding, chunk_n, chunk_text, "100%", deleted FROM shop.odd_v1_search'
        assert await connections.sql(query) == [
            ("text value", "n value", "embedding value", 0, "chunk", "100% value", "deleted value")
        ]

    async def test_a_column_with_a_name_of_ours_is_refused(self, connections: Connections) -> None:
        table = builders.articles(columns=(*builders.articles().columns, column("_deleted")))
        with pytest.raises(ConfigError, match="_deleted") as error:
            await made(connections, table)
        assert error.value.id == "column-reserved"

    async def test_a_type_that_the_target_lacks_is_refused(self, connections: Connections) -> None:
        columns = (*builders.articles().columns, column("shape", "geometry"))
        with pytest.raises(ConfigError, match="geometry") as error:
            await made(connections, builders.articles(columns=columns))
        assert error.value.id == "type-missing"

    async def test_long_names_are_cut_with_a_hash(self, connections: Connections) -> None:
        alias = "a" * 60
        await made(connections, builders.articles(alias=alias), name="generation")
        names = {name for (name,) in await connections.sql("SELECT relname FROM pg_class WHERE relname LIKE 'aaa%'")}
        assert shortened(f"{alias}_generation") in names
        assert all(len(name) <= 63 for name in names)
        assert len(shortened("é" * 40).encode()) <= 63

    async def test_relations_of_another_generation_are_not_taken_over(self, connections: Connections) -> None:
        """Alias `a` with generation `b_c` and alias `a_b` with generation `c` have one name."""
        shop = await made(connections, builders.articles(alias="a"), name="b_c")
        (other,) = await shop.target.create_tables([builders.articles(alias="a_b")])
        with pytest.raises(ConfigError) as error:
            await shop.target.create_chunks([other], replace(shop.generation, name="c"))
        assert error.value.id == "relation-taken"

    async def test_text_keys_are_compared_by_bytes(self, connections: Connections) -> None:
        columns = (column("id"), *builders.articles().columns[1:])
        shop = await made(connections, builders.articles(columns=columns))
        ids = await shop.copy(row("a"), row("A"), row("ä"), row("a "))
        assert len(ids) == 4
        (collation,) = await connections.sql(
            "SELECT attcollation = '\"C\"'::regcollation FROM pg_attribute "
            "WHERE attrelid = 'shop.articles'::regclass AND attname = 'id'"
        )
        assert collation == (True,)

    @pytest.mark.parametrize(
        ("type", "old", "new", "differs"),
        [
            ("numeric", "1.0", "1.00", True),
            ("numeric", "1.0", "1.0", False),
            ("json", '{"a":1}', '{"a": 1}', True),
            ("jsonb", '{"a": 1}', '{"a":1}', False),
            ("double precision", "0.1", "0.1", False),
            ("timestamp with time zone", "2026-01-31 12:00:00+00", "2026-01-31 13:00:00+00", True),
            ("text[]", '{a,"b c"}', '{a,"b c"}', False),
            ("boolean", "t", "true", False),
            ("point", "(1,2)", "(1,3)", True),
        ],
    )
    async def test_text_is_compared_as_it_renders(
        self, connections: Connections, type: str, old: str, new: str, differs: bool
    ) -> None:
        columns = (*builders.articles().columns[:2], column("body", type), *builders.articles().columns[3:])
        shop = await made(connections, builders.articles(columns=columns))
        await shop.copy(row("1", body=old))
        assert (await shop.change("1", row("1", body=new), 7)).text_differs is differs


class TestSearch:
    async def test_readers_see_live_rows_with_metadata_and_the_chunk_s_filter(
        self, shop: Shop, connections: Connections
    ) -> None:
        ids = await shop.copy(row("1", views="3"), row("2"))
        for name, id in ids.items():
            await shop.store(id, f"text {name}")
        await shop.change("2", None, 7)
        probe = str(vector_of("text 1").tolist())
        found = await connections.sql(
            "SELECT id, title, views, tenant, n, text, embedding <-> %s::vector FROM shop.articles_v1_search "
            "WHERE tenant = 't1' ORDER BY 7 LIMIT 5",
            probe,
        )
        assert [r[:6] for r in found] == [(1, "A", 3, "t1", 0, "text 1")]
        assert found[0][6] == pytest.approx(0, abs=1e-6)

    async def test_the_reader_s_own_rights_count(self, shop: Shop, connections: Connections) -> None:
        (options,) = await connections.sql("SELECT reloptions FROM pg_class WHERE relname = 'articles_v1_search'")
        assert options == (["security_invoker=true"],)

    @pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
    async def test_vectors_arrive_exactly(self, connections: Connections, vector_type: str) -> None:
        shop = await made(connections, builders.articles(), vector_type=vector_type)
        ids = await shop.copy(row("1"))
        await shop.store(ids["1"], "text")
        ((stored,),) = await connections.sql("SELECT embedding::text FROM shop.articles_v1_search")
        expected = vector_of("text").astype(np.float16 if vector_type == "halfvec" else np.float32)
        assert np.array_equal(np.fromstring(stored.strip("[]"), sep=",").astype(expected.dtype), expected)

    async def test_moved_chunks_keep_their_vectors(self, shop: Shop, connections: Connections) -> None:
        ids = await shop.copy(row("1"))
        await shop.store(ids["1"], "a", "b")
        chunks, _ = chunks_of(ids["1"], "b", "a")
        async with shop.target.begin() as tx:
            await tx.replica.lock_rows(shop.table, [ids["1"]])
            assert await tx.vectors.replace(shop.table, shop.generation, chunks, {}, [ids["1"]]) == set()
        stored = await connections.sql("SELECT text, embedding::text FROM shop.articles_v1_search ORDER BY n")
        assert [text for text, _ in stored] == ["b", "a"]
        for text, vector in stored:
            assert np.allclose(np.fromstring(vector.strip("[]"), sep=","), vector_of(text))

    async def test_changed_filter_columns_reach_the_chunks(self, shop: Shop, connections: Connections) -> None:
        query = "SELECT tenant FROM shop.articles_v1"
        ids = await shop.copy(row("1", tenant="t1"))
        await shop.store(ids["1"], "text")
        await shop.change("1", row("1", tenant="t2"), 7)
        assert await connections.sql(query) == [("t2",)]
        await shop.change("1", without(row("1"), "tenant"), 8, create=True)
        assert await connections.sql(query) == [(None,)], "a row whose tenant is unknown is found by no tenant"


class TestIndex:
    @pytest.fixture
    async def indexes(self, connections: Connections) -> AsyncIterator[PostgresIndexes]:
        indexes = PostgresIndexes(connections.dsn, "shop", "test", build_memory="64MB")
        yield indexes
        await indexes.close()

    @pytest.mark.parametrize(
        ("vector_type", "metric"), [("vector", "cosine"), ("vector", "l2"), ("halfvec", "ip"), ("halfvec", "cosine")]
    )
    async def test_the_built_index_serves_the_reader_s_query(
        self, connections: Connections, indexes: PostgresIndexes, vector_type: str, metric: str
    ) -> None:
        shop = await made(connections, builders.articles(), vector_type=vector_type, metric=metric)
        ids = await shop.copy(row("1"))
        await shop.store(ids["1"], "text", "more")
        before = await indexes.state(shop.table, shop.generation)
        assert (before.exists, before.valid, before.used_by_plan, before.rows) == (False, False, None, 2)
        await indexes.build(shop.table, shop.generation)
        await indexes.analyze_and_prewarm(shop.table, shop.generation)
        after = await indexes.state(shop.table, shop.generation)
        assert (after.exists, after.valid, after.used_by_plan, after.rows) == (True, True, True, 2)
        assert await indexes.progress() is None

    async def test_an_index_of_another_operator_is_not_used(
        self, connections: Connections, indexes: PostgresIndexes, shop: Shop
    ) -> None:
        name = Relations("shop").index_name(shop.table, shop.generation)
        await connections.sql(f"CREATE INDEX {name} ON shop.articles_v1 USING hnsw (_embedding vector_l1_ops)")
        assert (await indexes.state(shop.table, shop.generation)).used_by_plan is False

    async def test_what_an_interrupted_build_left_is_replaced(
        self, connections: Connections, indexes: PostgresIndexes, shop: Shop
    ) -> None:
        await indexes.build(shop.table, shop.generation)
        name = Relations("shop").index_name(shop.table, shop.generation)
        await connections.sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", f"shop.{name}")
        assert not (await indexes.state(shop.table, shop.generation)).valid
        await indexes.build(shop.table, shop.generation)
        assert (await indexes.state(shop.table, shop.generation)).valid

    async def test_writes_go_through_while_it_builds(
        self, connections: Connections, indexes: PostgresIndexes, shop: Shop
    ) -> None:
        """A build that has to wait for an older writer must not make younger ones wait for it."""
        ids = await shop.copy(row("1"))
        await shop.store(ids["1"], "text")
        async with await psycopg.AsyncConnection.connect(connections.dsn) as older:
            await older.execute("DELETE FROM shop.articles_v1 WHERE false")
            build = asyncio.create_task(indexes.build(shop.table, shop.generation))
            await building(indexes)
            await asyncio.wait_for(shop.change("1", None, 7), 30)
            assert not build.done()
            await older.rollback()
            await build
        assert (await indexes.state(shop.table, shop.generation)).valid

    async def test_a_second_process_leaves_a_build_under_way_alone(
        self, connections: Connections, indexes: PostgresIndexes, shop: Shop
    ) -> None:
        """What it sees is invalid, like what an interrupted build has left; dropped, the first one's work is lost."""
        await shop.store((await shop.copy(row("1")))["1"], "text")
        second = PostgresIndexes(connections.dsn, "shop", "test", build_memory="64MB")
        async with await psycopg.AsyncConnection.connect(connections.dsn) as older:
            await older.execute("DELETE FROM shop.articles_v1 WHERE false")
            build = asyncio.create_task(indexes.build(shop.table, shop.generation))
            await building(indexes)
            with pytest.raises(TransientError, match="another process builds"):
                await asyncio.wait_for(second.build(shop.table, shop.generation), 10)
            await older.rollback()
            await build
        oid = await connections.sql("SELECT 'shop.articles_v1_embedding'::regclass::oid")
        await second.build(shop.table, shop.generation)
        assert await connections.sql("SELECT 'shop.articles_v1_embedding'::regclass::oid") == oid
        await second.close()


async def building(indexes: PostgresIndexes) -> None:
    deadline = time.monotonic() + 30
    while await indexes.progress() is None:
        assert time.monotonic() < deadline, "the build never began"
        await asyncio.sleep(0.01)


def test_generation_names_are_part_of_every_relation() -> None:
    relations, table = Relations("shop"), builders.articles()
    names = {relations.chunks_name(table, Generation(n, f"v{n}", "c", 8, "vector", "cosine")) for n in range(3)}
    assert names == {"articles_v0", "articles_v1", "articles_v2"}
