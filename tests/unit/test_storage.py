"""Sizes that were measured on PostgreSQL 18.4 with pgvector 0.8.5 (`./dev bench storage` measures them again)."""

from __future__ import annotations

import pytest

from daemon.core import storage
from daemon.core.storage import PAGE, TOLERANCE, chunk_bytes, chunk_size, hnsw_bytes, toast_bytes, vector_bytes

# Bytes per chunk of the vector index; of 3 000 docstrings of 272 bytes on average, the chunk table without it.
MEASURED = {
    (64, "vector"): (576, 715),
    (256, "vector"): (1371, 1565),
    (384, "vector"): (2051, 2146),
    (768, "vector"): (4099, 4609),
    (1024, "vector"): (8195, 5997),
    (1536, "vector"): (8195, 8755),
    (256, "halfvec"): (836, 991),
    (1024, "halfvec"): (2733, 3249),
    (3072, "halfvec"): (8195, 8755),
}


@pytest.mark.parametrize("shape", MEASURED, ids=str)
def test_sizes_are_those_that_were_measured(shape: tuple[int, str]) -> None:
    vector, (index, chunks) = vector_bytes(*shape), MEASURED[shape]
    assert hnsw_bytes(1000, vector) / 1000 == pytest.approx(index, rel=TOLERANCE)
    assert chunk_bytes(272, vector, 8) == pytest.approx(chunks, rel=TOLERANCE)


def test_an_element_that_fills_half_a_page_takes_a_whole_one() -> None:
    assert hnsw_bytes(10, vector_bytes(940, "vector")) == 5 * PAGE
    assert hnsw_bytes(10, vector_bytes(1024, "vector")) == 10 * PAGE
    assert hnsw_bytes(10, vector_bytes(2000, "vector")) == 20 * PAGE  # with its neighbours on the next one


def test_a_value_out_of_line_takes_whole_pieces() -> None:
    assert toast_bytes(4 * storage.PIECE) == pytest.approx(PAGE + 4 * storage.TOAST_ENTRY)
    assert toast_bytes(storage.PIECE) == pytest.approx(PAGE / 4 + storage.TOAST_ENTRY)
    assert PAGE <= toast_bytes(vector_bytes(1536, "vector")) < 1.02 * PAGE


def test_the_largest_value_leaves_the_row_first() -> None:
    assert chunk_size(200, vector_bytes(256, "vector")).has_vector
    assert not chunk_size(200, vector_bytes(768, "vector")).has_vector
    long = chunk_size(9000, vector_bytes(64, "vector"))
    assert long.has_vector and 0 < long.moved < 9000 and long.row < 500
    both = chunk_size(9000, vector_bytes(1536, "vector"))
    assert not both.has_vector and both.moved and both.row < 150


@pytest.mark.parametrize("text", [0, 100, 1000, 1900, 2100, 5000, 100_000])
@pytest.mark.parametrize("dimensions", [64, 400, 1536])
def test_no_row_passes_the_limit_and_more_text_is_never_smaller(text: int, dimensions: int) -> None:
    vector = vector_bytes(dimensions, "vector")
    assert chunk_size(text, vector).row <= storage.ROW_LIMIT + storage.LINE + 8
    assert storage.chunk_wal(text + 100, vector) > storage.chunk_wal(text, vector) > text + vector


def test_wal_has_a_range_and_holds_what_is_written() -> None:
    low, high = storage.wal_bytes(1000, 2000, 500)
    assert 3500 < low < high
