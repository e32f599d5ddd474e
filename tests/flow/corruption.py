"""What may be wrong with a row or a chunk, made on purpose: each kind of difference, in every shape that it has.

A corruption changes a transaction's copy of the target's state behind everybody's back and says what a comparison is
to find. Rows and chunks that it does not name stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daemon.core.comparison import Found, Kind
from daemon.core.contract import digest
from daemon.core.model import UNAVAILABLE, Key
from tests.fakes import vector_of
from tests.fakes.state import ReplicaRow, State, StoredChunk
from tests.flow.compared_world import ComparedWorld, texts

Chunks = tuple[StoredChunk, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """kind: id of it. key: None of a row that is not there. n: chunk."""

    kind: str
    key: Key | None
    n: int | None = None


def faults_of(found: tuple[Found, ...]) -> set[Fault]:
    """What a report says, in these words; nothing is said twice."""
    faults = [Fault(f.kind.value, f.key, f.n) for f in found]
    assert len(set(faults)) == len(faults), "a difference is reported twice"
    return set(faults)


# --- rows: each takes the state and the key of a live row


def put(state: State, world: ComparedWorld, key: str, **values: Any) -> None:
    """Change columns of a replica row, its position kept."""
    place, names = (world.table.id, (key,)), world.table.names
    row = state.rows[place]
    assert row.values is not None
    new = tuple(values.get(name, old) for name, old in zip(names, row.values, strict=True))
    missing_xid = row.xid if UNAVAILABLE in new else None
    state.rows[place] = replace(row, values=new, missing_xid=missing_xid)


def lose(state: State, world: ComparedWorld, key: str) -> None:
    """The row with its chunks, as if its insert had never come."""
    row = state.rows.pop((world.table.id, (key,)))
    del state.keys[world.table.id, row.row_id]
    for derived in (state.chunks, state.work):
        for place in [p for p in derived if p[1:] == (world.table.id, row.row_id)]:
            del derived[place]


def bury(state: State, world: ComparedWorld, key: str) -> None:
    """A row tombstone in its place, without chunks."""
    place = world.table.id, (key,)
    row = state.rows[place]
    state.rows[place] = replace(row, values=None)
    for at in [p for p in state.chunks if p[1:] == (world.table.id, row.row_id)]:
        del state.chunks[at]


def plant(state: State, world: ComparedWorld, key: str) -> None:
    """A row that the source does not have, embedded as it should be."""
    values, row_id = texts(key), next(world.database.sequences.row)
    row = tuple(key if name == "id" else values[name] for name in world.table.names)
    state.rows[world.table.id, (key,)] = ReplicaRow(row_id, (key,), row, None, None)
    state.keys[world.table.id, row_id] = (key,)
    for generation in world.generations:
        state.chunks[generation.id, world.table.id, row_id] = tuple(
            chunk(world, n, str(values[name]), "t1") for n, name in enumerate(("title", "body"))
        )


def chunk(world: ComparedWorld, n: int, text: str, tenant: str) -> StoredChunk:
    """As the embedder stores it."""
    return StoredChunk(n, text, digest(text, world.contract), vector_of(text), (tenant,))


Spoil = Callable[[State, ComparedWorld, str], None]

ROWS: dict[str, tuple[Kind, Spoil]] = {
    "lost": (Kind.ROW_MISSING, lose),
    "buried": (Kind.ROW_MISSING, bury),
    "planted": (Kind.ROW_EXTRA, plant),
    "other title": (Kind.TEXT_STALE, lambda s, w, k: put(s, w, k, title="of yesterday")),
    "null for text": (Kind.TEXT_STALE, lambda s, w, k: put(s, w, k, body=None)),
    "empty for text": (Kind.TEXT_STALE, lambda s, w, k: put(s, w, k, body="")),
    "other number": (Kind.METADATA_STALE, lambda s, w, k: put(s, w, k, views="99")),
    "null for a number": (Kind.METADATA_STALE, lambda s, w, k: put(s, w, k, views=None)),
    "other tenant": (Kind.FILTER_STALE, lambda s, w, k: put(s, w, k, tenant="t9")),
    "missing text": (Kind.ROW_INCOMPLETE, lambda s, w, k: put(s, w, k, body=UNAVAILABLE)),
    "missing tenant": (Kind.ROW_INCOMPLETE, lambda s, w, k: put(s, w, k, tenant=UNAVAILABLE)),
}


# --- chunks: each takes a row's two chunks and gives others


def first(**changes: Any) -> Callable[[ComparedWorld, Chunks], Chunks]:
    return lambda world, chunks: (replace(chunks[0], **changes), *chunks[1:])


def one_hot(at: int, length: float = 1.0, dimensions: int = 8) -> Any:
    """A vector that no text has."""
    vector = np.zeros(dimensions, dtype=np.float32)
    vector[at] = length
    return vector


def _not_finite(value: float) -> Any:
    vector = one_hot(0)
    vector[3] = value
    return vector


def _of_other_contract(world: ComparedWorld, chunks: Chunks) -> Chunks:
    other = replace(world.contract, document_prefix="passage: ")
    return (replace(chunks[0], digest=digest(chunks[0].text, other)), *chunks[1:])


CHUNKS: dict[str, tuple[Kind, int, Callable[[ComparedWorld, Chunks], Chunks]]] = {
    "first lost": (Kind.CHUNK_MISSING, 0, lambda w, c: c[1:]),
    "last lost": (Kind.CHUNK_MISSING, 1, lambda w, c: c[:1]),
    "one more": (Kind.CHUNK_SURPLUS, 2, lambda w, c: (*c, chunk(w, 2, "one more", "t1"))),
    "far beyond": (Kind.CHUNK_SURPLUS, 9, lambda w, c: (*c, chunk(w, 9, "far beyond", "t1"))),
    "text under its digest": (Kind.CHUNK_STALE, 0, first(text="not this")),
    "whole of another text": (Kind.CHUNK_STALE, 0, lambda w, c: (chunk(w, 0, "not this", "t1"), c[1])),
    "other contract": (Kind.CONTRACT_WRONG, 0, _of_other_contract),
    "other filter": (Kind.CHUNK_FILTERS, 0, first(filters=("t9",))),
    "null for a filter": (Kind.CHUNK_FILTERS, 0, first(filters=(None,))),
    "shorter vector": (Kind.VECTOR_DIMENSION, 0, first(vector=one_hot(0, dimensions=4))),
    "not a number": (Kind.VECTOR_NOT_FINITE, 0, first(vector=_not_finite(float("nan")))),
    "infinite": (Kind.VECTOR_NOT_FINITE, 0, first(vector=_not_finite(float("inf")))),
    "zero": (Kind.VECTOR_ZERO, 0, first(vector=one_hot(0, 0.0))),
    "longer": (Kind.VECTOR_NORM, 0, first(vector=one_hot(0, 1.5))),
    "of another text": (Kind.VECTOR_SHARED, 0, lambda w, c: (replace(c[0], vector=vector_of("title 0")), c[1])),
    "of another model": (
        Kind.VECTOR_DRIFTED,
        0,
        lambda w, c: (replace(c[0], vector=vector_of(c[0].text, model="large")), c[1]),
    ),
}


def spoil_chunks(state: State, world: ComparedWorld, key: str, name: str) -> Fault:
    kind, n, change = CHUNKS[name]
    place = world.generation.id, world.table.id, state.rows[world.table.id, (key,)].row_id
    left = change(world, state.chunks.pop(place))
    if left:
        state.chunks[place] = left
    return Fault(kind.value, (key,), n)


def spoil_row(state: State, world: ComparedWorld, key: str, name: str) -> Fault:
    kind, change = ROWS[name]
    change(state, world, key)
    return Fault(kind.value, (key,))


def orphan(state: State, world: ComparedWorld) -> Fault:
    """A chunk of no row at all."""
    row_id = next(world.database.sequences.row)
    state.chunks[world.generation.id, world.table.id, row_id] = (chunk(world, 0, "of nobody", "t1"),)
    return Fault(Kind.CHUNK_ORPHAN.value, None, 0)
