"""The index probe measures and leaves nothing behind, in a target that has nothing of ours."""

from __future__ import annotations

import psycopg
import pytest

from connectors.postgres_indexes import PostgresIndexes

pytestmark = pytest.mark.system


@pytest.mark.parametrize("shape", [("vector", 16, "cosine"), ("halfvec", 32, "ip"), ("vector", 2000, "l2")], ids=str)
async def test_a_probe_takes_time_and_leaves_nothing(dsn: str, shape: tuple[str, int, str]) -> None:
    indexes = PostgresIndexes(dsn, "shop", "test", build_memory="64MB")
    try:
        first = await indexes.probe(*shape, 200)
        second = await indexes.probe(*shape, 200)
    finally:
        await indexes.close()
    assert first is not None and second is not None and 0 < first < 60 and 0 < second < 60
    with psycopg.connect(dsn) as connection:
        tables = "select count(*) from pg_class where relname like 'revector%'"
        assert connection.execute(tables).fetchone() == (0,)


async def test_without_the_extension_there_is_nothing_to_measure(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("drop extension vector")
    indexes = PostgresIndexes(dsn, "shop", "test")
    try:
        assert await indexes.probe("vector", 16, "cosine", 10) is None
    finally:
        await indexes.close()
