"""How many bytes a migration adds to the target. Pure: from sizes of rows and chunks to sizes of relations and WAL.

Layouts are computed, page by page where it matters: PostgreSQL moves a value out of its row when the row passes 2 032
bytes and cuts it into pieces of 1 996, four to a page; pgvector puts a graph's element and its neighbours on one page.
So a vector of 1 536 dimensions takes 8 kB in the table and 8 kB more in its index, and one of 1 024 not much less.

What cannot be computed is measured: the constants below that say so come from `./dev bench storage` (PostgreSQL 18.4,
pgvector 0.8.5; 3 000 rows of real text, one of twelve long, with 64 to 3 072 dimensions of both types, written through
the adapters). Every size forecast was within 7 % of what pg_total_relation_size said there, and within 3 % from 384
dimensions on.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

PAGE = 8192
PAGE_ROOM = PAGE - 24  # without the page header
ROW_LIMIT = 2032  # TOAST_TUPLE_THRESHOLD: a larger row is made smaller
PIECE = 1996  # TOAST_MAX_CHUNK_SIZE
POINTER = 18  # what stays in the row of a value that was moved out
LINE = 4  # line pointer of a row on its page
HEADER = 24

BUILD_MEMORY_MB = 1024  # what one index build is given
BUILD_PROCESSES = 8  # at most, as far as the server lets them run

VECTOR_BYTES = {"vector": 4, "halfvec": 2}  # of one dimension
HNSW_M = 16  # pgvector's default, which the index is built with
HNSW_ROOM = PAGE - 24 - 8
HNSW_ELEMENT = 72  # HnswElementTupleData before its vector

CHUNK_FIXED = 8 + 4 + 33  # row id, number, digest
CHUNK_KEY = 28 / 0.9  # an entry of the primary key's index, filled to nine tenths
FILTER_ENTRY = 12.0  # an entry of a filter column's index: equal values share one
TOAST_ENTRY = 20 / 0.9
REPLICA_FIXED = 32 + 8 + 16 + 1  # header with its null bitmap, row id, empty `missing`, `deleted`
REPLICA_FILL = 0.8
WORK_ENTRY = 280.0  # measured, with its indexes: an entry waits from the copy of its row to its embedding
GRAPH_ROW = 700  # measured: of the graph in memory beside the vector
TEXT_COMPRESSED = 0.75  # what pglz leaves of a text, where it is used at all


TOLERANCE = 0.10  # measured: of the forecast sizes
# WAL, measured: per byte of replica and waiting work; per chunk beside its bytes, its claim and its end included; per
# piece of a vector out of line. WAL_FULL_PAGES: times as much where a checkpoint falls after every 200 rows.
WAL_COPY = 1.22
WAL_CHUNK = 860
WAL_PIECE = 145
WAL_FULL_PAGES = 2.5


class ChunkSize(NamedTuple):
    """Bytes of one chunk. row: in the table's own pages; moved: of text, out of line; has_vector: in the row."""

    row: int
    moved: int
    has_vector: bool


def vector_bytes(dimensions: int, vector_type: str) -> int:
    """Of the value with its header."""
    return 8 + VECTOR_BYTES[vector_type] * dimensions


def chunk_size(text_bytes: int, vector: int, filters: int = 0) -> ChunkSize:
    """How a chunk is stored: the toaster compresses or moves the largest value first until the row fits."""
    text = text_bytes + (1 if text_bytes < 127 else 4)
    fixed = HEADER + CHUNK_FIXED + filters
    moved, in_row = 0, vector
    if fixed + text + vector > ROW_LIMIT:
        if vector > ROW_LIMIT - HEADER:
            in_row = POINTER
        if fixed + text + in_row > ROW_LIMIT:
            text = round(text * TEXT_COMPRESSED)
        if fixed + text + in_row > ROW_LIMIT and in_row > text:
            in_row = POINTER
        if fixed + text + in_row > ROW_LIMIT:
            text, moved = POINTER, text
        if fixed + text + in_row > ROW_LIMIT:
            in_row = POINTER
    return ChunkSize(_aligned(fixed + text + in_row) + LINE, moved, in_row == vector)


def chunk_bytes(text_bytes: int, vector: int, filters: int = 0) -> int:
    """What a chunk adds to its table, out-of-line values and the indexes but HNSW included."""
    size = chunk_size(text_bytes, vector, filters)
    heap = size.row * PAGE / (PAGE_ROOM - size.row / 2)
    moved = toast_bytes(size.moved) if size.moved else 0.0
    return round(
        heap + moved + (0 if size.has_vector else toast_bytes(vector)) + CHUNK_KEY + FILTER_ENTRY * filters / 8
    )


@lru_cache(maxsize=4096)
def toast_bytes(size: int) -> float:
    """What each of many values of this size takes out of line, index included: pieces fill pages in their order."""
    pieces = [PIECE] * (size // PIECE) + ([size % PIECE] if size % PIECE else [])
    rows = [_aligned(HEADER + 12 + piece) + LINE for piece in pieces]
    pages, room, values = 0, 0, 120
    for _ in range(values):
        for row in rows:
            if row > room:
                pages, room = pages + 1, PAGE_ROOM
            room -= row
    return pages * PAGE / values + TOAST_ENTRY * len(pieces)


def replica_bytes(stored_bytes: int, key_bytes: int) -> int:
    """What a row adds to the replica, indexes included. stored_bytes: of its used columns as the source stores them;
    key_bytes: of its key."""
    row, moved = _aligned(REPLICA_FIXED + stored_bytes) + LINE, 0
    if row > ROW_LIMIT:  # the largest values go, about all there is
        row, moved = _aligned(REPLICA_FIXED + 4 * POINTER) + LINE, stored_bytes
    heap = row * PAGE / (PAGE * REPLICA_FILL - 24 - row / 2)
    keys = (20 + 12 + _aligned(key_bytes)) / 0.9
    return round(heap + (toast_bytes(moved) if moved else 0) + keys)


def graph_bytes(chunks: float, vector: int) -> float:
    """Memory that a build of the vector index needs, so as not to become many times slower (maintenance_work_mem)."""
    return chunks * (GRAPH_ROW + vector)


def hnsw_bytes(chunks: float, vector: int) -> float:
    """Of the vector index. An element lies on one page with its neighbours where a page has room for both."""
    element, neighbours = _node(vector)
    both = element + neighbours + 2 * LINE
    if both > HNSW_ROOM:
        return chunks * PAGE * 2
    return chunks * PAGE / (HNSW_ROOM // both)


def chunk_wal(text_bytes: int, vector: int, filters: int = 0) -> int:
    """WAL of one chunk: its values, and what it takes to claim, write and settle it."""
    size = chunk_size(text_bytes, vector, filters)
    pieces = -(-size.moved // PIECE) + (0 if size.has_vector else -(-vector // PIECE))
    return text_bytes + vector + WAL_CHUNK + WAL_PIECE * pieces


def hnsw_wal(chunks: float, vector: int) -> float:
    """A finished index is logged page by page, without the holes of its pages."""
    element, neighbours = _node(vector)
    return chunks * (element + neighbours + 2 * LINE)


def wal_bytes(copied: float, chunks_wal: float, index_wal: float) -> tuple[float, float]:
    """WAL that the target writes, (low, high). copied: bytes of replica and waiting work."""
    low = copied * WAL_COPY + chunks_wal
    return low + index_wal, low * WAL_FULL_PAGES + index_wal


def _node(vector: int) -> tuple[int, int]:
    """An element and its neighbours on the lowest layer; 15 of 16 elements are on no other."""
    return _aligned(HNSW_ELEMENT + vector), _aligned(4 + 6 * 2 * HNSW_M)


def _aligned(size: int) -> int:
    return (size + 7) // 8 * 8
