"""Corrupt the target of a running migration behind revector's back: seeded, in plain SQL, with nothing of revector's.

For each way of corrupting a row or a chunk this says what a comparison must find, which row versions a repair may
replace, and which texts it has to embed again; whatever else it finds, touches or bills is wrong. The table is the one
that `DDL` makes, the rows are those between two keys, where nobody writes meanwhile: a later event would heal them.
The same seed over the same rows gives the same corruptions. Everything happens in one transaction.

Vectors that pgvector refuses (of another length, not finite) are written as their bytes, with the column's length and
its index out of the way for the transaction: both are as before when it commits.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

DDL = """
create schema app;
create table app.doc (id bigint primary key, tenant int not null, title text not null, body text not null,
                      published boolean not null, views int not null default 0);
create publication revector for table app.doc with (publish = 'insert, update, delete, truncate');
"""
TABLE = """
[[table]]
source = "app.doc"
text = "{title}\\n\\n{body}"
columns = ["published", "views"]
filters = ["tenant"]
where = "published"
"""
COLUMNS = "tenant, title, body, published, views"
FAR = 10**15  # row ids that no row will ever have


@dataclass(frozen=True)
class Place:
    """Whose rows and chunks. low, high: keys, both included; above: from here on nobody has keys."""

    schema: str
    low: int
    high: int
    above: int
    dimensions: int
    generation: str = "v2"

    @property
    def rows(self) -> str:
        return f"{self.schema}.doc"

    @property
    def chunks(self) -> str:
        return f"{self.schema}.doc_{self.generation}"


@dataclass(frozen=True, order=True)
class Difference:
    """What a comparison is to find. key: of the row; None: of an orphan whose row is gone, known by row_id. n: of a
    chunk."""

    kind: str
    key: str | None
    row_id: int | None = None
    n: int | None = None


@dataclass(frozen=True)
class Corruption:
    """rows: ids whose replica row a repair may replace; chunks: (row id, n). billed: texts that it has to embed.
    weighed: texts that the comparison itself has to embed to know whose vector it is."""

    way: str
    expected: tuple[Difference, ...]
    rows: frozenset[int] = frozenset()
    chunks: frozenset[tuple[int, int]] = frozenset()
    billed: tuple[str, ...] = ()
    weighed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A replica row and the texts of its chunks in their order."""

    row_id: int
    id: int
    texts: tuple[str, ...]

    @property
    def places(self) -> frozenset[tuple[int, int]]:
        return frozenset((self.row_id, n) for n in range(len(self.texts)))


@dataclass
class _Rows:
    """Rows nobody has corrupted yet: searchable ones, ones that `where` hides, row tombstones."""

    live: list[Row]
    hidden: list[Row]
    gone: list[Row]


@dataclass
class Surgeon:
    """Corrupts one row or chunk a call."""

    connection: psycopg.Connection[Any]
    place: Place
    chance: random.Random
    rows: _Rows = field(init=False)
    made: int = 0

    def __post_init__(self) -> None:
        self.rows = _Rows([], [], [])
        query = (
            "select _row_id, id, _deleted, published, (select coalesce(array_agg(_text order by _n), '{}') "
            f"from {self.place.chunks} c where c._row_id = r._row_id) from {self.place.rows} r "
            "where id between %s and %s order by id"
        )
        for row_id, id, is_deleted, is_published, texts in self._all(query, self.place.low, self.place.high):
            kind = self.rows.gone if is_deleted else self.rows.live if is_published else self.rows.hidden
            kind.append(Row(row_id, id, tuple(texts)))
        for rows in (self.rows.live, self.rows.hidden, self.rows.gone):
            self.chance.shuffle(rows)

    # --- rows

    def row_deleted(self) -> Corruption:
        row = self.rows.live.pop()
        self._drop_row(row)
        self._do(f"delete from {self.place.chunks} where _row_id = %s", row.row_id)
        return Corruption("row-deleted", (Difference("row-missing", str(row.id)),), billed=row.texts)

    def row_deleted_chunks_left(self) -> Corruption:
        row = self.rows.live.pop()
        self._drop_row(row)
        orphans = [Difference("chunk-orphan", None, row.row_id, n) for n in range(len(row.texts))]
        expected = (Difference("row-missing", str(row.id)), *orphans)
        return Corruption("row-deleted-chunks-left", expected, chunks=row.places, billed=row.texts)

    def row_inserted(self) -> Corruption:
        """A row that the source never had, searchable."""
        like, id = self.chance.choice(self.rows.live), self.place.above + self._next()
        (row_id,) = self._all(
            f"insert into {self.place.rows} (id, {COLUMNS}) select %s, {COLUMNS} from {self.place.rows} "
            "where _row_id = %s returning _row_id",
            id,
            like.row_id,
        )[0]
        self._copy_chunks(like.row_id, row_id)
        places = frozenset((row_id, n) for n in range(len(like.texts)))
        expected = (Difference("row-extra", str(id)),)
        return Corruption("row-inserted", expected, frozenset((row_id,)), places)

    def row_revived(self) -> Corruption:
        """A row that was deleted, searchable again."""
        row, like = self.rows.gone.pop(), self.chance.choice(self.rows.live)
        self._do(
            f"update {self.place.rows} as r set _deleted = false, tenant = o.tenant, title = o.title, body = o.body, "
            f"published = true, views = o.views from {self.place.rows} o where r._row_id = %s and o._row_id = %s",
            row.row_id,
            like.row_id,
        )
        self._copy_chunks(like.row_id, row.row_id)
        places = frozenset((row.row_id, n) for n in range(len(like.texts)))
        return self._of_row("row-revived", "row-extra", row, places)

    def title_changed(self) -> Corruption:
        return self._set("title-changed", "text-stale", "title = title || ' changed'")

    def body_changed(self) -> Corruption:
        return self._set("body-changed", "text-stale", "body = 'Somebody else says this.'")

    def metadata_changed(self) -> Corruption:
        return self._set("metadata-changed", "metadata-stale", "views = views + 1")

    def metadata_of_hidden_changed(self) -> Corruption:
        return self._set("metadata-of-hidden-changed", "metadata-stale", "views = -1", self.rows.hidden)

    def filter_changed(self) -> Corruption:
        """The row and its chunks agree: whoever may read the other tenant's rows finds it."""
        row = self.rows.live[-1]
        self._do(f"update {self.place.chunks} set tenant = tenant + 1000 where _row_id = %s", row.row_id)
        return self._set("filter-changed", "filter-stale", "tenant = tenant + 1000", places=True)

    def hidden_row_published(self) -> Corruption:
        return self._set("hidden-row-published", "filter-stale", "published = true", self.rows.hidden)

    def published_row_hidden(self) -> Corruption:
        row = self.rows.live[-1]
        self._do(f"delete from {self.place.chunks} where _row_id = %s", row.row_id)
        found = self._set("published-row-hidden", "filter-stale", "published = false", places=True)
        return Corruption(found.way, found.expected, found.rows, found.chunks, billed=row.texts)

    def text_lost(self) -> Corruption:
        return self._set("text-lost", "row-incomplete", "body = null, _missing = '{body}'")

    def metadata_lost(self) -> Corruption:
        return self._set("metadata-lost", "row-incomplete", "views = null, _missing = '{views}'")

    # --- chunks and their texts

    def chunk_deleted(self) -> Corruption:
        row, n = self._chunk()
        self._do(f"delete from {self.place.chunks} where _row_id = %s and _n = %s", row.row_id, n)
        return self._of_chunk("chunk-deleted", "chunk-missing", row, n)

    def chunk_added(self) -> Corruption:
        row = self.rows.live.pop()
        n = len(row.texts)
        self._put_chunk(row.row_id, n, f"Nobody wrote this, {self._next()}.")
        return self._of_chunk("chunk-added", "chunk-surplus", row, n, is_embedded=False)

    def chunk_text_changed(self) -> Corruption:
        row, n = self._chunk()
        self._set_chunk(row, n, "_text = _text || ' changed'")
        return self._of_chunk("chunk-text-changed", "chunk-stale", row, n)

    def chunk_outdated(self) -> Corruption:
        """Text, digest and vector of another version of the row."""
        row, n = self._chunk()
        self._do(f"delete from {self.place.chunks} where _row_id = %s and _n = %s", row.row_id, n)
        self._put_chunk(row.row_id, n, f"What it said before, {self._next()}.")
        return self._of_chunk("chunk-outdated", "chunk-stale", row, n)

    def digest_of_another_contract(self) -> Corruption:
        row, n = self._chunk()
        digest = hashlib.sha256(f"passage: {row.texts[n]}".encode()).digest()
        self._set_chunk(row, n, "_digest = %s", digest)
        return self._of_chunk("digest-of-another-contract", "contract-wrong", row, n)

    def chunk_filter_changed(self) -> Corruption:
        row, n = self._chunk()
        self._set_chunk(row, n, "tenant = tenant + 1000")
        return self._of_chunk("chunk-filter-changed", "chunk-filters", row, n, is_embedded=False)

    def chunk_filter_lost(self) -> Corruption:
        row, n = self._chunk()
        self._set_chunk(row, n, "tenant = null")
        return self._of_chunk("chunk-filter-lost", "chunk-filters", row, n, is_embedded=False)

    def orphan_of_no_row(self) -> Corruption:
        row_id = FAR + self._next()
        self._put_chunk(row_id, 0, f"Nobody's text, {row_id}.")
        expected = (Difference("chunk-orphan", None, row_id, 0),)
        return Corruption("orphan-of-no-row", expected, chunks=frozenset(((row_id, 0),)))

    def orphan_of_deleted_row(self) -> Corruption:
        row = self.rows.gone.pop()
        self._put_chunk(row.row_id, 0, f"A deleted row's text, {self._next()}.")
        return self._of_chunk("orphan-of-deleted-row", "chunk-orphan", row, 0, is_embedded=False)

    def orphan_of_hidden_row(self) -> Corruption:
        row = self.rows.hidden.pop()
        self._put_chunk(row.row_id, 0, f"A hidden row's text, {self._next()}.")
        return self._of_chunk("orphan-of-hidden-row", "chunk-orphan", row, 0, is_embedded=False)

    # --- vectors

    def vector_shortened(self) -> Corruption:
        return self._spoil("vector-shortened", "vector-dimension", lambda vector: vector[:-1])

    def vector_with_nan(self) -> Corruption:
        return self._spoil("vector-with-nan", "vector-not-finite", lambda vector: [math.nan, *vector[1:]])

    def vector_with_infinity(self) -> Corruption:
        return self._spoil("vector-with-infinity", "vector-not-finite", lambda vector: [*vector[:-1], -math.inf])

    def vector_of_zeros(self) -> Corruption:
        return self._spoil("vector-of-zeros", "vector-zero", lambda vector: [0.0 for _ in vector])

    def vector_stretched(self) -> Corruption:
        return self._spoil("vector-stretched", "vector-norm", lambda vector: [3 * x for x in vector])

    def vector_of_another(self) -> Corruption:
        row, n = self._chunk()
        other, m = self._chunk()
        self._do(
            f"update {self.place.chunks} as c set _embedding = o._embedding from {self.place.chunks} o "
            "where (c._row_id, c._n) = (%s, %s) and (o._row_id, o._n) = (%s, %s)",
            *(row.row_id, n, other.row_id, m),
        )
        found = self._of_chunk("vector-of-another", "vector-shared", row, n)
        weighed = (row.texts[n], other.texts[m])
        return Corruption(found.way, found.expected, found.rows, found.chunks, found.billed, weighed)

    def vector_drifted(self) -> Corruption:
        """As from a model that changed: in order by itself. Only a sample that holds this very chunk finds it."""
        row, n = self._chunk()
        self._set_chunk(row, n, "_embedding = %s", self._vector())
        return self._of_chunk("vector-drifted", "vector-drifted", row, n)

    # --- how

    def _of_row(self, way: str, kind: str, row: Row, places: frozenset[tuple[int, int]] = frozenset()) -> Corruption:
        return Corruption(way, (Difference(kind, str(row.id)),), frozenset((row.row_id,)), places)

    def _of_chunk(self, way: str, kind: str, row: Row, n: int, *, is_embedded: bool = True) -> Corruption:
        billed = (row.texts[n],) if is_embedded else ()
        place = frozenset(((row.row_id, n),))
        return Corruption(way, (Difference(kind, str(row.id), n=n),), chunks=place, billed=billed)

    def _set(
        self, way: str, kind: str, assignment: str, rows: list[Row] | None = None, *, places: bool = False
    ) -> Corruption:
        row = (self.rows.live if rows is None else rows).pop()
        self._do(f"update {self.place.rows} set {assignment} where _row_id = %s", row.row_id)
        return self._of_row(way, kind, row, row.places if places else frozenset())

    def _spoil(self, way: str, kind: str, spoilt: Callable[[list[float]], list[float]]) -> Corruption:
        row, n = self._chunk()
        query = f"select _embedding::real[] from {self.place.chunks} where _row_id = %s and _n = %s"
        vector = spoilt(self._all(query, row.row_id, n)[0][0])
        stored = struct.pack(f"=hh{len(vector)}f", len(vector), 0, *vector)  # pgvector's form in memory
        self._set_chunk(row, n, "_embedding = %s::bytea::vector", stored)
        return self._of_chunk(way, kind, row, n)

    def _chunk(self) -> tuple[Row, int]:
        row = self.rows.live.pop()
        return row, self.chance.randrange(len(row.texts))

    def _drop_row(self, row: Row) -> None:
        self._do("delete from revector.work where row_id = %s", row.row_id)
        self._do(f"delete from {self.place.rows} where _row_id = %s", row.row_id)

    def _set_chunk(self, row: Row, n: int, assignment: str, *values: object) -> None:
        self._do(f"update {self.place.chunks} set {assignment} where _row_id = %s and _n = %s", *values, row.row_id, n)

    def _put_chunk(self, row_id: int, n: int, text: str) -> None:
        digest = hashlib.sha256(text.encode()).digest()
        self._do(
            f"insert into {self.place.chunks} (_row_id, _n, _text, _digest, _embedding, tenant) "
            f"select %s, %s, %s, %s, %s, coalesce((select tenant from {self.place.rows} where _row_id = %s), 1)",
            *(row_id, n, text, digest, self._vector(), row_id),
        )

    def _copy_chunks(self, from_row: int, to_row: int) -> None:
        columns = "_n, _text, _digest, _embedding, tenant"
        self._do(
            f"insert into {self.place.chunks} (_row_id, {columns}) select %s, {columns} from {self.place.chunks} "
            "where _row_id = %s",
            *(to_row, from_row),
        )

    def _vector(self) -> str:
        """Of length 1, nobody's."""
        values = [self.chance.gauss(0, 1) for _ in range(self.place.dimensions)]
        length = math.sqrt(sum(x * x for x in values))
        return str([x / length for x in values])

    def _next(self) -> int:
        self.made += 1
        return self.made

    def _all(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self.connection.execute(query.encode(), values).fetchall()

    def _do(self, statement: str, *values: object) -> None:
        self.connection.execute(statement.encode(), values)


Way = Callable[[Surgeon], Corruption]

WAYS: tuple[Way, ...] = (
    Surgeon.row_deleted,
    Surgeon.row_deleted_chunks_left,
    Surgeon.row_inserted,
    Surgeon.row_revived,
    Surgeon.title_changed,
    Surgeon.body_changed,
    Surgeon.metadata_changed,
    Surgeon.metadata_of_hidden_changed,
    Surgeon.filter_changed,
    Surgeon.hidden_row_published,
    Surgeon.published_row_hidden,
    Surgeon.text_lost,
    Surgeon.metadata_lost,
    Surgeon.chunk_deleted,
    Surgeon.chunk_added,
    Surgeon.chunk_text_changed,
    Surgeon.chunk_outdated,
    Surgeon.digest_of_another_contract,
    Surgeon.chunk_filter_changed,
    Surgeon.chunk_filter_lost,
    Surgeon.orphan_of_no_row,
    Surgeon.orphan_of_deleted_row,
    Surgeon.orphan_of_hidden_row,
    Surgeon.vector_shortened,
    Surgeon.vector_with_nan,
    Surgeon.vector_with_infinity,
    Surgeon.vector_of_zeros,
    Surgeon.vector_stretched,
    Surgeon.vector_of_another,
)


def corrupt(dsn: str, place: Place, count: int, seed: int, ways: Sequence[Way] = WAYS) -> list[Corruption]:
    """Corrupt so often, each way in turn; what was done, committed. The account is a superuser."""
    with psycopg.connect(dsn) as connection, _unguarded(connection, place):
        surgeon = Surgeon(connection, place, random.Random(seed))
        return [ways[at % len(ways)](surgeon) for at in range(count)]


@contextmanager
def _unguarded(connection: psycopg.Connection[Any], place: Place) -> Iterator[None]:
    """Inside, in this transaction: vectors are taken as they are and bypass the vector index."""
    column = "attrelid = %s::regclass and attname = '_embedding'"
    query = f"select atttypmod from pg_attribute where {column}"
    (length,) = connection.execute(query.encode(), [place.chunks]).fetchall()[0]
    set_length = f"update pg_attribute set atttypmod = %s where {column}"
    set_index = (
        "update pg_index set indisready = %s where indrelid = %s::regclass and indkey::text = "
        f"(select attnum::text from pg_attribute where {column})"
    )
    connection.execute(set_length.encode(), [-1, place.chunks])
    connection.execute(set_index.encode(), [False, place.chunks, place.chunks])
    connection.execute("create cast (bytea as vector) without function")
    yield
    connection.execute("drop cast (bytea as vector)")
    connection.execute(set_length.encode(), [length, place.chunks])
    connection.execute(set_index.encode(), [True, place.chunks, place.chunks])
