"""Chunks as a comparison reads them, on Postgres: whatever is wrong is named, and nothing else is."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import psycopg
import pytest

from connectors.postgres_target import PostgresTarget
from daemon.core.comparison import Kind
from daemon.core.contract import BLANK
from daemon.core.model import WriteKind
from tests import builders
from tests.builders import column, row
from tests.fakes.embedder import vector_of
from tests.ports.spoilt_rows import CUT, EVERY, Library
from tests.ports.target_shop import WHERE


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


# --- what is not a difference


async def owed(library: Library) -> list[int]:
    return await library.copy(*(row(str(n), f"title {n}", f"body {n}") for n in range(1, 5)))


async def test_a_row_that_is_owed_is_not_missing_its_chunks(library: Library) -> None:
    ids = await owed(library)
    assert await library.suspects() == set()
    await library.embed()
    await library.change(ids[0], WriteKind.UPDATE, row("1", "title 1", "another body"))
    assert await library.suspects() == set()
    assert (await library.pieces(ids[0]))[ids[0]].is_owed


@pytest.mark.parametrize("how", ["stale text", "another digest", "filter"])
async def test_a_chunk_that_contradicts_itself_is_named_though_its_row_is_owed(library: Library, how: str) -> None:
    ids = await owed(library)
    await library.embed()
    await library.change(ids[0], WriteKind.UPDATE, row("1", "title 1", "another body"))
    await library.spoil(SPOILT[how][0], ids[0])
    assert await library.suspects() == {ids[0]}
    assert await library.kinds(ids[0]) != set()


@pytest.mark.parametrize("state", ["refused", "accepted"])
async def test_a_text_that_the_provider_refuses_is_not_missing(library: Library, state: str) -> None:
    ids = await owed(library)
    await library.embed(only=ids[1:])
    await library.spoil("UPDATE revector.work SET state = %s", state)
    assert await library.suspects() == set()
    assert (await library.pieces(ids[0]))[ids[0]].is_owed


async def test_the_work_of_another_generation_excuses_nothing(library: Library) -> None:
    ids = await owed(library)
    await library.embed()
    other, _ = await Library.add(library.target, library.table, "v2", model="large")
    await library.spoil("DELETE FROM {chunks} WHERE _row_id = %s", ids[0])
    async with library.target.begin() as tx:
        await tx.ledger.put_work(library.table, [other], ids, live=True)
    assert await library.suspects() == {ids[0]}


async def test_two_generations_are_two_comparisons(library: Library) -> None:
    other, contract = await Library.add(library.target, library.table, "v2", model="large", vector_type="halfvec")
    second = Library(library.target, library.table, other, contract, library.behind)
    ids = await owed(library)
    await library.embed()
    await second.embed()
    await second.spoil("UPDATE {chunks} SET _text = 'x' WHERE _row_id = %s", ids[0])
    assert (await library.suspects(), await second.suspects()) == (set(), {ids[0]})
    assert (await second.kinds(ids[0]), await second.kinds(ids[1])) == ({Kind.CHUNK_STALE}, set())


# --- documents


async def test_a_blank_document_has_no_chunk_and_nothing_is_wrong_with_that(library: Library) -> None:
    await library.copy(row("1", None, None), row("2", "", " "), row("3", BLANK, BLANK), row("4", "", BLANK * 9 + "x"))
    await library.embed()
    page = await library.page()
    assert (page.rows, page.chunks, page.suspects) == (4, 1, ())


async def test_a_chunk_of_a_blank_document_is_surplus(library: Library) -> None:
    ids = await library.copy(row("1"), row("2", "", " "))
    await library.embed()
    await library.spoil(
        "INSERT INTO {chunks} SELECT %s, 0, E'\\n ', sha256(E'\\n '), _embedding, tenant FROM {chunks}", ids[1]
    )
    assert await library.suspects() == {ids[1]}
    assert await library.kinds(ids[1]) == {Kind.CHUNK_SURPLUS}


async def test_a_template_is_rendered_as_the_embedder_renders_it(
    target: PostgresTarget, behind: psycopg.AsyncConnection
) -> None:
    columns = (
        column("id", "integer", nullable=False),
        column("Texte $-é", "text"),
        column("price", "numeric(10,2)"),
        column("at", "timestamp with time zone"),
        column("code", "character(4)"),
        column("data", "jsonb"),
        column("raw", "bytea"),
        column("100% it's\""),
    )
    names = tuple(c.name for c in columns[1:-1])
    template = "%s 'quoted' {{braces}} \\n {Texte $-é}: {price} {at} {code}|{data}{raw}{price} é"
    table = builders.articles(columns=columns, template=template, text_columns=names, filters=("100% it's\"",))
    library = await Library.open(target, behind, table, document_prefix="100% 'passage': ")
    values = ("50% of 'é'", "1.50", "2026-01-31 12:00:00.5+00", "ab", '{"a": 1}', "\\x00ff", "50%")
    ids = await library.copy(("1", *values), ("2", *(None,) * 7), ("3", "é", *(None,) * 6))
    await library.embed()
    assert (await library.page()).suspects == ()
    assert {kind for row_id in ids for kind in await library.kinds(row_id)} == set()
    await library.spoil("UPDATE {replica} SET price = 1.51 WHERE _row_id = %s", ids[0])
    await library.spoil('UPDATE {chunks} SET "100%% it\'s""" = \'%%\' WHERE _row_id = %s', ids[1])
    assert await library.suspects() == set(ids[:2])


async def test_the_prefix_is_part_of_a_digest(target: PostgresTarget, behind: psycopg.AsyncConnection) -> None:
    library = await Library.open(target, behind, document_prefix="passage: ")
    ids = await library.copy(row("1"), row("2"))
    await library.embed()
    await library.spoil("UPDATE {chunks} SET _digest = sha256(convert_to(_text, 'UTF8')) WHERE _row_id = %s", ids[0])
    assert await library.suspects() == {ids[0]}
    assert await library.kinds(ids[0]) == {Kind.CONTRACT_WRONG}


# --- rows


async def test_a_chunk_of_a_row_that_is_not_wanted_is_an_orphan(
    target: PostgresTarget, behind: psycopg.AsyncConnection
) -> None:
    library = await Library.open(target, behind, builders.articles(where=WHERE))
    ids = await library.copy(row("1"), row("2", tenant="draft"), row("3", tenant=None), row("4"))
    await library.embed()
    assert await library.suspects() == set()
    await library.spoil("UPDATE {replica} SET tenant = 'draft' WHERE _row_id = %s", ids[0])
    await library.spoil("UPDATE {replica} SET _missing = ARRAY['tenant'] WHERE _row_id = %s", ids[3])
    assert await library.suspects() == {ids[0], ids[3]}
    found = await library.pieces(*ids)
    assert set(found) == set(ids)
    assert [(found[i].key, found[i].is_wanted, found[i].values is None) for i in ids[:2]] == [
        (("1",), False, True), (("2",), False, True)
    ]  # fmt: skip
    assert await library.kinds(ids[0]) == {Kind.CHUNK_ORPHAN}


async def test_what_a_row_lacks_is_not_judged(library: Library) -> None:
    ids = await owed(library)
    await library.embed()
    await library.spoil("UPDATE {replica} SET tenant = NULL, _missing = ARRAY['tenant'] WHERE _row_id = %s", ids[0])
    await library.spoil("UPDATE {replica} SET body = NULL, _missing = ARRAY['body'] WHERE _row_id = %s", ids[1])
    await library.spoil("UPDATE {replica} SET body = NULL, _missing = ARRAY['body'] WHERE _row_id = %s", ids[2])
    await library.spoil("DELETE FROM {chunks} WHERE _row_id = %s", ids[2])
    assert await library.suspects() == set()
    found = await library.pieces(*ids)
    assert [found[i].values is None for i in ids] == [True, True, True, False]
    assert all(found[i].is_wanted and not any(p.filters_differ for p in found[i].pieces) for i in ids)
    await library.spoil("UPDATE {chunks} SET tenant = 'x' WHERE _row_id = %s", ids[1])
    assert await library.suspects() == {ids[1]}


async def test_composite_keys_and_a_filter_that_is_part_of_the_key(
    target: PostgresTarget, behind: psycopg.AsyncConnection
) -> None:
    columns = (column("tenant", nullable=False), column("no", "bigint", nullable=False), column("body"))
    table = builders.articles(
        key=("tenant", "no"), columns=columns, template="{body} {tenant}", text_columns=("tenant", "body"),
        filters=("tenant", "no"),
    )  # fmt: skip
    library = await Library.open(target, behind, table)
    ids = await library.copy(("a", "9223372036854775807", "x"), ("b", "-1", "y"), ("a", "1", "z"))
    await library.embed()
    assert await library.suspects() == set()
    await library.spoil("UPDATE {chunks} SET no = 2 WHERE _row_id = %s", ids[0])
    await library.spoil("UPDATE {chunks} SET tenant = 'A' WHERE _row_id = %s", ids[1])
    assert await library.suspects() == set(ids[:2])
    found = await library.pieces(*ids)
    assert [found[i].key for i in ids] == [("a", "9223372036854775807"), ("b", "-1"), ("a", "1")]
    assert [found[i].pieces[0].filters_differ for i in ids] == [True, True, False]


async def test_filters_are_compared_as_text(target: PostgresTarget, behind: psycopg.AsyncConnection) -> None:
    columns = (column("id", "integer", nullable=False), column("body"), column("price", "numeric"))
    table = builders.articles(columns=columns, template="{body}", text_columns=("body",), filters=("price",))
    library = await Library.open(target, behind, table)
    ids = await library.copy(("1", "x", "1.0"), ("2", "y", None))
    await library.embed()
    await library.spoil("UPDATE {chunks} SET price = 1.00 WHERE _row_id = %s", ids[0])
    await library.spoil("UPDATE {chunks} SET price = 0 WHERE _row_id = %s", ids[1])
    assert await library.suspects() == set(ids)


# --- pages


async def test_pages_cover_every_row_and_every_orphan_once(library: Library) -> None:
    ids = await library.copy(*(row(str(n), f"title {n}") for n in range(1, 11)))
    await library.embed()
    orphans = [-7, -1, 0, max(ids) + 5, max(ids) + 6, 2**63 - 1]
    for orphan in orphans:
        await library.spoil(
            "INSERT INTO {chunks} SELECT %s, _n, _text, _digest, _embedding, tenant FROM {chunks} WHERE _row_id = %s",
            orphan, ids[0],
        )  # fmt: skip
    for limit in (1, 3, 10, 11, 100):
        pages = [await library.page(EVERY, None, limit)]
        while (last := pages[-1].last_row) is not None:
            pages.append(await library.page(last, None, limit))
        assert sum(p.rows for p in pages) == 10
        assert sum(p.chunks for p in pages) == 16
        assert [row_id for p in pages for row_id in p.suspects] == sorted(orphans)


async def test_a_page_ends_at_its_upper_bound(library: Library) -> None:
    ids = await library.copy(*(row(str(n)) for n in range(1, 7)))
    await library.embed()
    await library.spoil("DELETE FROM {chunks} WHERE _row_id = ANY(%s)", [ids[1], ids[4]])
    first = await library.page(EVERY, ids[2], 100)
    rest = await library.page(ids[2], None, 100)
    assert (first.rows, first.chunks, first.suspects, first.last_row) == (3, 2, (ids[1],), None)
    assert (rest.rows, rest.chunks, rest.suspects, rest.last_row) == (3, 2, (ids[4],), None)
    assert (await library.page(ids[2], ids[2], 100)).rows == 0


async def test_rows_with_many_chunks_make_smaller_pages(
    target: PostgresTarget, behind: psycopg.AsyncConnection
) -> None:
    library = await Library.open(target, behind, chunker=CUT)
    ids = await library.copy(*(row(str(n), None, "\n".join(f"{n} {i}" for i in range(40))) for n in range(1, 4)))
    await library.embed()
    page = await library.page(EVERY, None, 3)
    assert (page.rows, page.chunks, page.last_row) == (1, 40, ids[0])
    rest = await library.page(ids[1], None, 100)
    assert (rest.rows, rest.chunks, rest.last_row) == (1, 40, None)


# --- documents that are cut


@pytest.fixture
async def cut(target: PostgresTarget, behind: psycopg.AsyncConnection) -> Library:
    return await Library.open(target, behind, chunker=CUT)


async def test_documents_that_are_cut_are_handed_out_with_their_digests(cut: Library) -> None:
    ids = await cut.copy(
        row("1", "a", "b\nc"), row("2", None, " "), row("3", "d", "e"), row("4", "f", "g"), row("5", "h", "i\nj")
    )
    await cut.embed()
    await cut.spoil("UPDATE {replica} SET _deleted = true WHERE _row_id = %s", ids[2])
    await cut.change(ids[3], WriteKind.UPDATE, row("4", "f", "another"))
    await cut.spoil("DELETE FROM {chunks} WHERE _row_id = %s AND _n = 1", ids[4])
    page = await cut.page()
    assert set(page.suspects) == {ids[2], ids[4]}
    texts = {t.row_id: t for t in page.texts}
    assert set(texts) == {ids[0], ids[1]}
    assert texts[ids[0]].values == {"title": "a", "body": "b\nc"}
    pieces = (await cut.pieces(ids[0]))[ids[0]].pieces
    assert [p.n for p in pieces] == [0, 1, 2]
    assert texts[ids[0]].digests == tuple(p.digest for p in pieces)
    assert (texts[ids[1]].values["title"], texts[ids[1]].digests) == (None, ())


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 1, 3), (-1, 0, 1), (-1, 1, 2), (0, 2, 4)])
async def test_numbers_of_chunks_with_gaps_are_named(cut: Library, numbers: tuple[int, int, int]) -> None:
    ids = await cut.copy(row("1", "a", "b\nc"), row("2", "a", "b\nc"))
    await cut.embed()
    await cut.spoil("UPDATE {chunks} SET _n = 10 + (%s::integer[])[_n + 1] WHERE _row_id = %s", list(numbers), ids[0])
    await cut.spoil("UPDATE {chunks} SET _n = _n - 10 WHERE _row_id = %s", ids[0])
    page = await cut.page()
    assert (page.suspects, [t.row_id for t in page.texts]) == ((ids[0],), [ids[1]])


async def test_rows_without_a_document_are_not_handed_out(
    target: PostgresTarget, behind: psycopg.AsyncConnection
) -> None:
    cut = await Library.open(target, behind, builders.articles(where=WHERE), chunker=CUT)
    ids = await cut.copy(row("1"), row("2", tenant="draft"), row("3"), row("4"))
    await cut.embed()
    await cut.spoil("UPDATE {replica} SET _deleted = true WHERE _row_id = %s", ids[2])
    await cut.spoil("DELETE FROM {chunks} WHERE _row_id = %s", ids[2])
    await cut.spoil("UPDATE {replica} SET body = NULL, _missing = ARRAY['body'] WHERE _row_id = %s", ids[3])
    page = await cut.page()
    assert (page.rows, page.suspects, [t.row_id for t in page.texts]) == (4, (), ids[:1])


async def test_a_row_that_was_cut_and_has_no_chunk_left_is_handed_out(cut: Library) -> None:
    ids = await cut.copy(row("1", "a", "b"))
    await cut.embed()
    await cut.spoil("DELETE FROM {chunks}")
    page = await cut.page()
    assert (page.suspects, [t.row_id for t in page.texts], page.texts[0].digests) == ((), ids, ())


@pytest.mark.parametrize("how", ["stale text", "another digest", "filter", "row gone"])
async def test_one_spoilt_chunk_of_many_is_named(cut: Library, how: str) -> None:
    ids = await cut.copy(*(row(str(n), "a", "b\nc\nd") for n in range(3)))
    await cut.embed()
    only = " AND _n = 2" if "{chunks}" in SPOILT[how][0] else ""
    await cut.spoil(SPOILT[how][0] + only, ids[1])
    page = await cut.page()
    assert page.suspects == (ids[1],)
    assert {t.row_id for t in page.texts} == {ids[0], ids[2]}


# --- one by one


async def test_pieces_of_what_is_not_there(library: Library) -> None:
    ids = await owed(library)
    await library.embed()
    await library.spoil("DELETE FROM {replica} WHERE _row_id = %s", ids[0])
    await library.spoil("UPDATE {replica} SET _deleted = true WHERE _row_id = %s", ids[1])
    found = await library.pieces(ids[0], ids[1], 12345)
    assert set(found) == set(ids[:2])
    assert (found[ids[0]].key, found[ids[0]].is_wanted, len(found[ids[0]].pieces)) == (None, False, 1)
    assert (found[ids[1]].key, found[ids[1]].is_wanted, found[ids[1]].values) == (("2",), False, None)
    assert await library.pieces() == {}


async def test_chunks_are_dropped_by_row_and_number(cut: Library) -> None:
    ids = await cut.copy(row("1", "a", "b\nc"), row("2", "a", "b"))
    await cut.embed()
    async with cut.target.begin() as tx:
        await tx.audit.drop_chunks(cut.table, cut.generation, [(ids[0], 1), (ids[1], 0), (ids[1], 7)])
        await tx.audit.drop_chunks(cut.table, cut.generation, [])
    found = await cut.pieces(*ids)
    assert [[p.n for p in found[i].pieces] for i in ids] == [[0, 2], [1]]


# --- one vector for several texts


async def heads(library: Library, after: int = EVERY, upto: int | None = None) -> None:
    async with library.target.begin() as tx:
        await tx.audit.keep_heads(1, library.table, library.generation, after, upto)


async def shared(library: Library, limit: int = 100) -> list[set[tuple[int, int]]]:
    async with library.target.begin() as tx:
        groups = await tx.audit.shared(1, library.generation, limit)
    return [{(chunk.row_id, chunk.n) for chunk in group} for group in groups]


COPY = "UPDATE {chunks} SET _embedding = (SELECT _embedding FROM {chunks} WHERE _row_id = %s) WHERE _row_id = %s"


@pytest.mark.parametrize("type", ["vector", "halfvec"])
async def test_one_vector_for_different_texts_is_found(
    target: PostgresTarget, behind: psycopg.AsyncConnection, type: str
) -> None:
    library = await Library.open(target, behind, vector_type=type)
    ids = await library.copy(*(row(str(n), "same" if n > 7 else f"title {n}") for n in range(1, 10)))
    await library.embed()
    await library.spoil(COPY, ids[0], ids[3])
    await library.spoil(COPY, ids[1], ids[4])
    await library.spoil(COPY, ids[1], ids[5])
    await heads(library, EVERY, ids[4])
    await heads(library, ids[4], None)
    expected = [{(ids[0], 0), (ids[3], 0)}, {(ids[1], 0), (ids[4], 0), (ids[5], 0)}]
    assert await shared(library) == expected
    assert await shared(library) == expected
    assert await shared(library, 1) == expected[:1]
    async with library.target.begin() as tx:
        ((chunk, _),) = await tx.audit.shared(1, library.generation, 1)
    assert (chunk.table_id, chunk.text) == (library.table.id, "title 1\ntext")
    assert list(chunk.vector) == pytest.approx(vector_of("title 1\ntext"), abs=1e-3)


async def test_vectors_that_only_begin_alike_are_not_one(library: Library) -> None:
    ids = await library.copy(row("1"), row("2", "B"), row("3", "C"))
    await library.embed()
    for n, row_id in enumerate(ids):
        await library.spoil(
            "UPDATE {chunks} SET _embedding = %s::real[]::vector WHERE _row_id = %s", [0, 0, 0, 0, 1, 0, n, 0], row_id
        )
    await heads(library)
    assert await shared(library) == []


async def test_a_chunk_that_is_made_anew_shares_its_vector_no_more(library: Library) -> None:
    ids = await library.copy(row("1"), row("2", "B"), row("3", "C"))
    await library.embed()
    await library.spoil(COPY, ids[0], ids[1])
    await library.spoil(COPY, ids[0], ids[2])
    await heads(library)
    await library.spoil("DELETE FROM {replica} WHERE _row_id = %s", ids[2])
    assert await shared(library) == [{(ids[0], 0), (ids[1], 0)}]
    await library.spoil("DELETE FROM {chunks} WHERE _row_id = %s", ids[1])
    assert await shared(library) == []


async def test_heads_of_other_comparisons_and_generations_are_left_alone(library: Library) -> None:
    other, contract = await Library.add(library.target, library.table, "v2")
    second = Library(library.target, library.table, other, contract, library.behind)
    await library.copy(row("1"), row("2", "B"))
    await library.embed()
    await second.embed()
    await heads(library)
    await heads(second)
    async with library.target.begin() as tx:
        await tx.audit.keep_heads(2, library.table, library.generation, EVERY, None)
    assert await shared(library) == []
    cursor = await library.behind.execute(
        "SELECT comparison_id, generation_id, count(*) FROM revector.comparison_head GROUP BY 1, 2"
    )
    assert sorted(await cursor.fetchall()) == [(1, other.id, 2), (2, library.generation.id, 2)]


# --- a sample


async def sample(library: Library, count: int) -> set[int]:
    async with library.target.begin() as tx:
        found = await tx.audit.sample(library.table, library.generation, count)
    assert len({chunk.row_id for chunk in found}) == len(found) <= count
    for chunk in found:
        assert list(chunk.vector) == pytest.approx(vector_of(chunk.text))
    return {chunk.row_id for chunk in found}


async def test_a_sample_of_a_small_table_is_another_one_each_time(library: Library) -> None:
    ids = await library.copy(*(row(str(n), f"title {n}") for n in range(60)))
    await library.embed()
    assert await sample(library, 100) == set(ids)
    assert await sample(library, 7) != await sample(library, 7)


async def test_a_sample_has_nothing_that_is_owed_or_gone_or_no_vector(library: Library) -> None:
    ids = await library.copy(*(row(str(n), f"title {n}") for n in range(6)))
    await library.embed()
    await library.change(ids[0], WriteKind.UPDATE, row("0", "another"))
    await library.spoil("UPDATE {replica} SET _deleted = true WHERE _row_id = %s", ids[1])
    await library.spoil("DELETE FROM {replica} WHERE _row_id = %s", ids[2])
    async with library.any_vector():
        await library.spoil(
            "UPDATE {chunks} SET _embedding = %s::bytea::vector WHERE _row_id = %s",
            library.image(math.nan, *(0.0,) * 7), ids[3],
        )  # fmt: skip
        await library.spoil("UPDATE {chunks} SET _embedding = '[1,0]' WHERE _row_id = %s", ids[4])
        assert await sample(library, 10) == {ids[5]}


async def test_a_sample_of_a_large_table_reads_a_part_of_it(library: Library) -> None:
    ids = await library.copy(*(row(str(n), f"title {n}", f"{n} {'word ' * 300}") for n in range(1000)))
    await library.embed()
    async with library.target.begin() as tx:
        found = await tx.audit.sample(library.table, library.generation, 5)
        cursor = await tx.audit._connection.execute(
            "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'articles_v1'"
        )
        ((read,),) = await cursor.fetchall()
    assert len(found) == 5
    assert read < 700
    await library.spoil("DELETE FROM {chunks} WHERE _row_id <> ALL(%s)", ids[:6])
    assert len(await sample(library, 5)) == 5
