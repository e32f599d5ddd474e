"""The forecast of what a migration adds to the target, against what it does add.

A few thousand rows of real text are copied, embedded (with random vectors) and indexed through the product's adapters,
for several dimensions and both vector types; each relation is then measured with pg_total_relation_size and the WAL by
its position, and compared with `daemon.core.storage`. The constants there come from here.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from connectors.postgres_indexes import PostgresIndexes
from connectors.postgres_target import PostgresTarget
from daemon.core import storage
from daemon.core.contract import Contract
from daemon.core.model import Chunk, Column, Generation, Table
from daemon.ports import SourceRow
from sandbox.corpus import corpus
from sandbox.parts import Ports
from sandbox.postgres import Postgres
from sandbox.processes import Guardian

SHAPES = (
    *((d, "vector") for d in (64, 256, 384, 768, 1024, 1536)),
    *((d, "halfvec") for d in (256, 768, 1024, 1536, 3072)),
)
ROWS = 3000
BATCH = 200
LONG_EVERY, LONG_PIECES = 12, 12  # each twelfth text is long enough to be stored out of line
BUILD_MEMORY = "256MB"
SMALL_MEMORY = "4MB"  # a graph outgrows it: how many rows it held says what one takes

COLUMNS = (
    Column("id", "bigint", "bigint", nullable=False),
    Column("title", "text", "text"),
    Column("body", "text", "text"),
    Column("tenant", "integer", "integer"),
)
TABLE = Table(0, "doc", "app", "doc", ("id",), COLUMNS, "{title}\n\n{body}", ("title", "body"), ("tenant",))
MIGRATION = "bench"


@contextmanager
def cluster() -> Iterator[Postgres]:
    """A Postgres of its own."""
    folder = Path(tempfile.mkdtemp(prefix="revector-bench-"))
    folder.chmod(0o711)
    ports = Ports()
    with Guardian(folder) as guardian:
        server = Postgres(guardian, "target", ports.take(), folder / "target", folder / "target.log")
        server.initialise()
        server.start()
        yield server
    ports.release()


def measure(*, is_quick: bool) -> list[dict[str, Any]]:
    """One result per shape: forecast and measured bytes of each kind, and the WAL written."""
    rows, shapes = (300, SHAPES[1:2]) if is_quick else (ROWS, SHAPES)
    with cluster() as server:
        found = []
        for dimensions, kind in shapes:
            dsn = server.create_database(f"bench_{dimensions}_{kind}", vector=True)
            found.append(asyncio.run(_measured(dsn, (dimensions, kind), rows, is_checked=False)))
        dsn = server.create_database("bench_checkpoints", vector=True)
        found.append(asyncio.run(_measured(dsn, shapes[0], rows, is_checked=True)))
        return found


async def _measured(dsn: str, shape: tuple[int, str], rows: int, *, is_checked: bool) -> dict[str, Any]:
    """is_checked: with a checkpoint after every batch, which makes each first change of a page log the whole page."""
    dimensions, vector_type = shape
    target = PostgresTarget(dsn, MIGRATION, "revector:bench:target")
    try:
        with psycopg.connect(dsn, autocommit=True) as watch:
            loaded = await _loaded(target, watch, shape, rows, is_checked=is_checked)
            built = await _built(dsn, watch, loaded["generation"], loaded["table"])
            found = _sizes(watch) | loaded["wal"] | built
            stored = _stored(watch)
    finally:
        await target.close()
    vector = storage.vector_bytes(dimensions, vector_type)
    texts = [f"{title}\n\n{body}" for title, body in _texts(rows)]
    forecast = {
        "replica": sum(storage.replica_bytes(n, 8) for n in stored),
        "work": rows * storage.WORK_ENTRY,
        "chunks": sum(storage.chunk_bytes(len(t.encode()), vector, 8) for t in texts),
        "index": storage.hnsw_bytes(rows, vector),
        "graph_per_row": storage.graph_bytes(1, vector),
        "wal_copy": found["replica"] * storage.WAL_COPY + found["work"] * storage.WAL_COPY,
        "wal_chunks": sum(storage.chunk_wal(len(t.encode()), vector, 8) for t in texts),
        "wal_index": storage.hnsw_wal(rows, vector),
    }
    return {
        "dimensions": dimensions,
        "type": vector_type,
        "rows": rows,
        "is_checked": is_checked,
        "forecast": {name: round(value) for name, value in forecast.items()},
        "measured": found,
    }


async def _loaded(
    target: PostgresTarget, watch: psycopg.Connection[Any], shape: tuple[int, str], rows: int, *, is_checked: bool
) -> dict[str, Any]:
    """Copy all rows with their work, then embed them; WAL bytes of both."""
    dimensions, vector_type = shape
    contract = Contract("openai", "bench", "", dimensions, vector_type, "cosine", True, "", "", {"doc": TABLE.template})
    await target.prepare()
    (table,) = await target.create_tables([TABLE])
    async with target.begin() as tx:
        generation = await tx.ledger.add_generation("v2", contract.as_json(), contract.id)
    await target.create_chunks([table], generation)
    began = _wal(watch)
    texts = list(_texts(rows))
    for at in range(0, rows, BATCH):
        page = [
            SourceRow((f"{n}",), (f"{n}", title, body, f"{n % 50}"))
            for n, (title, body) in enumerate(texts[at : at + BATCH], at)
        ]
        async with target.begin() as tx:
            await tx.ledger.hold_migration()
            effects = await tx.replica.copy_in(table, page)
            await tx.ledger.put_work(table, [generation], [e.row_id for e in effects], live=False)
        if is_checked:
            watch.execute("checkpoint")
    copied = _wal(watch)
    size = watch.execute("select pg_total_relation_size('revector.work')").fetchone()
    await _embedded(target, watch if is_checked else None, table, generation)
    wal = {"wal_copy": copied - began, "wal_chunks": _wal(watch) - copied, "work": size[0] if size else 0}
    return {"table": table, "generation": generation, "wal": wal}


async def _embedded(
    target: PostgresTarget, checked: psycopg.Connection[Any] | None, table: Table, generation: Generation
) -> None:
    random = np.random.default_rng(1)
    while True:
        async with target.begin() as tx:
            claims = await tx.ledger.claim(table, generation, "bench", BATCH, 60)
        if not claims:
            return
        ids = sorted(claim.row_id for claim in claims)
        async with target.begin() as tx:
            documents = await tx.replica.documents(table, generation, ids)
            chunks = []
            for document in documents:
                values = document.values or {}
                text = f"{values['title']}\n\n{values['body']}"
                chunks.append(Chunk(document.row_id, 0, text, hashlib.sha256(text.encode()).digest()))
            vectors = {c.digest: _vector(random, generation.dimensions) for c in chunks}
            await tx.replica.lock_rows(table, ids)
            await tx.vectors.replace(table, generation, chunks, vectors, ids)
            await tx.ledger.settle(table, generation, "bench", ids, {}, [])
        if checked is not None:
            checked.execute("checkpoint")


async def _built(dsn: str, watch: psycopg.Connection[Any], generation: Generation, table: Table) -> dict[str, int]:
    """Build the index; its WAL, and the bytes of graph memory that a row takes."""
    began = _wal(watch)
    indexes = PostgresIndexes(dsn, MIGRATION, "revector:bench:index", BUILD_MEMORY)
    try:
        await indexes.build(table, generation)
    finally:
        await indexes.close()
    return {"wal_index": _wal(watch) - began, "graph_per_row": _graph_per_row(watch, generation)}


def _graph_per_row(watch: psycopg.Connection[Any], generation: Generation) -> int:
    """pgvector says after how many rows a graph no longer fits."""
    said: list[str] = []
    watch.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    watch.execute("set max_parallel_maintenance_workers = 0")
    watch.execute(f"set maintenance_work_mem = '{SMALL_MEMORY}'".encode())
    watch.execute("create temp table few as select _embedding from bench.doc_v2")
    watch.execute(f"create index on few using hnsw (_embedding {generation.vector_type}_cosine_ops)".encode())
    fits = [re.search(r"after (\d+) tuples", line) for line in said]
    return next((4 * 1024 * 1024 // int(found[1]) for found in fits if found), 0)


def _sizes(watch: psycopg.Connection[Any]) -> dict[str, int]:
    row = watch.execute(
        "select pg_total_relation_size('bench.doc'), pg_total_relation_size('bench.doc_v2'), "
        "pg_relation_size('bench.doc_v2_embedding'), pg_table_size('bench.doc_v2')"
    ).fetchone()
    replica, chunks, index, _ = row or (0, 0, 0, 0)
    return {"replica": replica, "chunks": chunks - index, "index": index}


def _stored(watch: psycopg.Connection[Any]) -> list[int]:
    """Bytes of each row's used columns as they are stored: the target stores them as most sources do."""
    query = "select pg_column_size(id) + pg_column_size(title) + pg_column_size(body) + pg_column_size(tenant)"
    return [int(n) for (n,) in watch.execute(f"{query} from bench.doc".encode()).fetchall()]


def _wal(watch: psycopg.Connection[Any]) -> int:
    row = watch.execute("select (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    return int(row[0]) if row else 0


def _texts(rows: int) -> Iterator[tuple[str, str]]:
    pieces = corpus()
    for n in range(rows):
        piece = pieces[n % len(pieces)]
        text = piece.text
        if n % LONG_EVERY == 0:
            text = "\n\n".join(p.text for p in pieces[n : n + LONG_PIECES])
        yield piece.name, text


def _vector(random: np.random.Generator, dimensions: int) -> Any:
    vector = random.standard_normal(dimensions).astype(np.float32)
    return vector / np.linalg.norm(vector)


def told(found: list[dict[str, Any]]) -> str:
    lines = ["forecast over measured; TOLERANCE is of the sizes"]
    for case in found:
        forecast, measured = case["forecast"], case["measured"]
        ratios = "  ".join(
            f"{name} {forecast[name] / measured[name]:.2f}" if measured[name] else f"{name} not seen"
            for name in forecast
        )
        checked = "  (a checkpoint after every batch)" if case["is_checked"] else ""
        lines.append(f"  {case['dimensions']:>5} {case['type']:<8} {ratios}{checked}")
    return "\n".join(lines)
