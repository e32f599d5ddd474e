"""Chunks as a comparison reads them, on Postgres: whatever is wrong is named, and nothing else is."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import psycopg
import pytest

from connectors.postgres_target import PostgresTarget
from daemon.core.comparison import Kind
from tests.builders import row
from tests.ports.library import Library


@pytest.fixture
async def behind(emptied_dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(emptied_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def target(emptied_dsn: str) -> AsyncIterator[PostgresTarget]:
    target = PostgresTarget(emptied_dsn, "shop", "test")
    yield target
    await target.close()


@pytest.fixture
async def library(target: PostgresTarget, behind: psycopg.AsyncConnection) -> Library:
    return await Library.open(target, behind)


async def test_nothing_is_wrong_with_what_was_embedded(library: Library) -> None:
    ids = await library.copy(*(row(str(n), f"title {n}", f"body {n}") for n in range(1, 8)))
    await library.embed()
    page = await library.page()
    assert (page.rows, page.chunks, page.suspects, page.texts, page.last_row) == (7, 7, (), (), None)
    assert {kind for row_id in ids for kind in await library.kinds(row_id)} == set()


# What is done to one chunk behind our back, and what it is.
SPOILT = {
    "stale text": ("UPDATE {chunks} SET _text = _text || '!' WHERE _row_id = %s", Kind.CHUNK_STALE),
    "another digest": ("UPDATE {chunks} SET _digest = sha256('x') WHERE _row_id = %s", Kind.CONTRACT_WRONG),
    "filter": ("UPDATE {chunks} SET tenant = 't2' WHERE _row_id = %s", Kind.CHUNK_FILTERS),
    "filter is null": ("UPDATE {chunks} SET tenant = NULL WHERE _row_id = %s", Kind.CHUNK_FILTERS),
    "gone": ("DELETE FROM {chunks} WHERE _row_id = %s", Kind.CHUNK_MISSING),
    "surplus": (
        "INSERT INTO {chunks} SELECT _row_id, 1, _text, _digest, _embedding, tenant FROM {chunks} WHERE _row_id = %s",
        Kind.CHUNK_SURPLUS,
    ),
    "wrong number": ("UPDATE {chunks} SET _n = 1 WHERE _row_id = %s", Kind.CHUNK_MISSING),
    "negative number": ("UPDATE {chunks} SET _n = -1 WHERE _row_id = %s", Kind.CHUNK_MISSING),
    "row gone": ("DELETE FROM {replica} WHERE _row_id = %s", Kind.CHUNK_ORPHAN),
    "row tombstone": ("UPDATE {replica} SET _deleted = true WHERE _row_id = %s", Kind.CHUNK_ORPHAN),
    "row with another text": ("UPDATE {replica} SET body = 'x' WHERE _row_id = %s", Kind.CHUNK_STALE),
    "row turned blank": ("UPDATE {replica} SET body = ' ', title = NULL WHERE _row_id = %s", Kind.CHUNK_SURPLUS),
    "another row's chunk": ("UPDATE {chunks} SET _row_id = _row_id + 100 WHERE _row_id = %s", Kind.CHUNK_MISSING),
}

VECTORS = {
    "zero": ((0.0,) * 8, Kind.VECTOR_ZERO),
    "too long": ((1.02, *(0.0,) * 7), Kind.VECTOR_NORM),
    "too short": ((0.98, *(0.0,) * 7), Kind.VECTOR_NORM),
    "not a number": ((math.nan, *(0.5,) * 7), Kind.VECTOR_NOT_FINITE),
    "one of two not a number": ((1.0, *(0.0,) * 6, math.nan), Kind.VECTOR_NOT_FINITE),
    "infinite": ((-math.inf, *(0.0,) * 7), Kind.VECTOR_NOT_FINITE),
    "infinite and not a number": ((math.inf, math.nan, *(0.0,) * 6), Kind.VECTOR_NOT_FINITE),
    "too few dimensions": ((1.0, *(0.0,) * 6), Kind.VECTOR_DIMENSION),
    "too many dimensions": ((1.0, *(0.0,) * 8), Kind.VECTOR_DIMENSION),
}


@pytest.mark.parametrize("how", SPOILT)
async def test_what_is_spoilt_is_named_and_nothing_else(library: Library, how: str) -> None:
    statement, kind = SPOILT[how]
    ids = await library.copy(*(row(str(n), f"title {n}", f"body {n}") for n in range(1, 6)))
    await library.embed()
    await library.spoil(statement, ids[2])
    moved = {ids[2] + 100} if "_row_id + 100" in statement else set()
    assert await library.suspects() == {ids[2]} | moved
    assert kind in await library.kinds(ids[2])


@pytest.mark.parametrize("type", ["vector", "halfvec"])
@pytest.mark.parametrize("normalised", [True, False])
async def test_a_vector_that_cannot_be_is_named(
    target: PostgresTarget, behind: psycopg.AsyncConnection, type: str, normalised: bool
) -> None:
    library = await Library.open(target, behind, vector_type=type, normalised=normalised)
    ids = await library.copy(*(row(str(n), f"title {n}") for n in range(len(VECTORS) + 1)))
    await library.embed()
    expected = {}
    async with library.any_vector():
        for row_id, (values, kind) in zip(ids, VECTORS.values(), strict=False):
            await library.spoil(
                f"UPDATE {{chunks}} SET _embedding = %s::bytea::{type} WHERE _row_id = %s",
                library.image(*values),
                row_id,
            )
            if normalised or kind is not Kind.VECTOR_NORM:
                expected[row_id] = {kind}
        assert await library.suspects() == set(expected)
        assert {row_id: await library.kinds(row_id) for row_id in expected} == expected
        assert await library.kinds(ids[-1]) == set()
