"""A target of a version before: its control schema is brought forward under a migration that runs."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from connectors import schema
from connectors.postgres_target import PostgresTarget
from connectors.relations import Relations
from daemon.core.comparison import Found, Kind, State
from daemon.core.model import Rates, WorkState
from tests import builders
from tests.builders import row
from tests.ports.target_shop import FEED, P0, SOURCE, Shop
from tests.ports.two_connections import Connections

# A contract as version 1 of the control schema holds it, and the id it had there.
CONTRACT: dict[str, Any] = {
    "provider": "openai",
    "model": "small",
    "revision": "",
    "dimensions": 8,
    "vector_type": "vector",
    "metric": "cosine",
    "normalised": True,
    "document_prefix": "",
    "query_prefix": "",
    "templates": {"articles": builders.articles().template},
    "chunker": {"name": "whole", "version": "1", "limits": {}},
    "canonical_form": 1,
}
CONTRACT_ID = "2b7924f906f93ce9"


async def install(connection: psycopg.AsyncConnection, version: int) -> None:
    """The control schema as that version left it, and the migration's rows."""
    for number in range(1, version + 1):
        await connection.execute(schema.control_files()[number].encode())
        await connection.execute("INSERT INTO revector.schema_version (version) VALUES (%s)", [number])
    await schema.claim_schema(connection, Relations("shop"))


@pytest.fixture
async def old(dsn: str) -> str:
    """A target with version 1: a generation that began, a halt of its embedder."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await install(connection, 1)
        await connection.execute(
            "INSERT INTO revector.generation (migration, name, contract, contract_id, swept) "
            "VALUES ('shop', 'v1', %s, %s, true)",
            [json.dumps(CONTRACT), CONTRACT_ID],
        )
        halt = json.dumps({"id": "provider-dimension", "message": "m", "hint": "h", "role": "embed"})
        await connection.execute("UPDATE revector.control SET halted = %s", [halt])
    return dsn


async def test_a_migration_of_version_1_goes_on(old: str) -> None:
    target = PostgresTarget(old, "shop", "test")
    try:
        await target.prepare()
        (table,) = await target.create_tables([builders.articles()])
        contract = builders.contract([table])
        async with target.begin() as tx:
            generation = await tx.ledger.add_generation("v1", contract.as_json(), contract.id)
            assert list((await tx.ledger.load()).halted) == ["embed"]
        assert (contract.id, generation.contract_id, generation.swept) == (CONTRACT_ID, CONTRACT_ID, True)
        await target.create_chunks([table], generation)
        shop = Shop(Connections(old), target, table, generation)
        async with target.begin() as tx:
            await tx.ledger.start({"barrier_lsn": 50}, SOURCE, FEED, {P0: 10}, 50)
            assert await tx.ledger.canary(generation) is None and await tx.ledger.forecast(generation) is None
            assert await tx.ledger.reserve(generation, 10, Rates(60, 1000)) == 0.0
            assert await tx.ledger.sweep(table, generation, 10) == 0
        ids = await shop.copy(row("1"))
        assert set(await shop.claim()) == set(ids.values())
        assert (await shop.entry(ids["1"])).state is WorkState.WAITING
        async with target.begin() as tx:
            assert (await tx.ledger.backlog(generation)).requests == 0
    finally:
        await target.close()


@pytest.fixture
async def before_comparisons(dsn: str) -> str:
    """A target with version 2 in the middle of a migration: a row that waits, a break."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await install(connection, 2)
        await connection.execute(
            "INSERT INTO revector.generation (migration, name, contract, contract_id, swept) "
            "VALUES ('shop', 'v1', %s, %s, true)",
            [json.dumps(CONTRACT), CONTRACT_ID],
        )
        await connection.execute(
            "INSERT INTO revector.work (generation_id, table_id, row_id, oldest_seq, newest_seq, changed_at, "
            "newest_at, priority) SELECT 1, 1, 1, s, s, now(), now(), 1 FROM nextval('revector.work_seq') AS s"
        )
        for kind, event in (("start", "migration-started"), ("break", "connector-restarted")):
            await connection.execute(
                "INSERT INTO revector.journal (migration, kind, event) VALUES ('shop', %s, %s)", [kind, event]
            )
    return dsn


async def test_a_migration_of_version_2_goes_on_and_can_be_compared(before_comparisons: str) -> None:
    target = PostgresTarget(before_comparisons, "shop", "test")
    try:
        for _ in range(2):
            await target.prepare()
        assert (await target.setup()).schema_version == max(schema.control_files())
        (table,) = await target.create_tables([builders.articles()])
        contract = builders.contract([table])
        async with target.begin() as tx:
            generation = await tx.ledger.add_generation("v1", contract.as_json(), contract.id)
        await target.create_chunks([table], generation)
        shop = Shop(Connections(before_comparisons), target, table, generation)
        ids = await shop.copy(row("1"), row("2"))
        claims = await shop.claim()
        assert set(claims) == {ids["1"], ids["2"]} == {1, 2}
        assert (await shop.entry(1)).oldest_seq == 1
        async with target.begin() as tx:
            assert [b.id for b in await tx.ledger.breaks()] == ["connector-restarted"]
            assert await tx.comparisons.running() is None and await tx.comparisons.last(generation) is None
            begun = await tx.comparisons.begin([generation.id], 50, [])
            assert begun.mark == 2
            await tx.comparisons.find(begun.id, [Found(Kind.ROW_MISSING, table.id, ("9",))])
            assert await tx.comparisons.end(replace(begun, state=State.CLEAN), close_breaks=True) == 1
            assert await tx.ledger.breaks() == []
    finally:
        await target.close()
