"""What a certificate issued beside writers can be held against: rows that nobody changed between two looks.

Before the proof's barrier the source is read in one snapshot S0; after the certificate first the target, then the
source again, S1. A row with the same `xmin` in both was the same all the time in between, and its last change was
committed before the barrier: replica and chunks must have exactly it. A key in neither must not be live in the target,
unless the replica says that a transaction S0 does not see made it. Everything else was changed meanwhile and says
nothing. In plain SQL, without revector's code; the texts are those of `sandbox.compare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from sandbox.compare import CORPUS, Checked

Rows = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Look:
    """The source at one moment. tables: key -> (xmin, md5 of text, md5 of metadata, filters, searchable)."""

    snapshot: str
    tables: dict[str, Rows]


@dataclass(frozen=True)
class Seen:
    """The target at one moment. replica: key -> (md5 of text, md5 of metadata, xid); chunks: key -> (md5, filters)."""

    replica: dict[str, Rows]
    chunks: dict[str, Rows]


def look(source_dsn: str) -> Look:
    """Every row of the source, in one snapshot."""
    with psycopg.connect(source_dsn) as source:
        source.execute("set transaction isolation level repeatable read")
        source.execute("set local timezone = 'UTC'")
        row = source.execute("select pg_current_snapshot()::text").fetchone()
        assert row is not None
        tables = {}
        for t in CORPUS:
            columns = f"xmin::text, md5({t.text}), md5({t.metadata}), {t.filters}, {t.searchable}"
            tables[t.source] = _rows(source, f"select {t.key}, {columns} from {t.source}")
        return Look(row[0], tables)


def seen(target_dsn: str, schema: str, generation: str) -> Seen:
    """Live rows of the replica and the generation's chunks, in one snapshot."""
    with psycopg.connect(target_dsn) as target:
        target.execute("set transaction isolation level repeatable read")
        target.execute("set local timezone = 'UTC'")
        replica, chunks = {}, {}
        for t in CORPUS:
            columns = f"md5({t.text}), md5({t.metadata}), _xid"
            replica[t.source] = _rows(target, f"select {t.key}, {columns} from {schema}.{t.replica} where not _deleted")
            chunks[t.source] = _rows(target, _chunks_query(t, schema, generation))
        return Seen(replica, chunks)


def _chunks_query(table: Checked, schema: str, generation: str) -> str:
    """By key. An orphan has no key, and is found by its missing row."""
    t = table.of(generation)
    return (
        f"select coalesce({t.key}, 'orphan'), md5(c._text), {t.filters} "
        f"from (select _row_id, _n, _text{t.filter_columns} from {schema}.{t.chunks}) c "
        f"left join (select _row_id, {t.key_columns} from {schema}.{t.replica} where not _deleted) r using (_row_id)"
    )


def _rows(connection: psycopg.Connection[Any], query: str) -> Rows:
    return {row[0]: tuple(row[1:]) for row in connection.execute(query.encode())}


def differences(before: Look, found: Seen, after: Look, visible: set[int] | None = None) -> list[str]:
    """What stands against a certificate whose barrier came after `before`. visible: transactions of replica rows that
    `before` sees."""
    wrong = []
    for name, first in before.tables.items():
        last, replica, chunks = after.tables[name], found.replica[name], found.chunks[name]
        for key in sorted(first.keys() & last.keys()):
            xmin, text, metadata, filters, searchable = first[key]
            if last[key][0] != xmin:
                continue
            mine = replica.get(key)
            if mine is None:
                wrong.append(f"{name} {key}: not in the replica")
            elif mine[:2] != (text, metadata):
                wrong.append(f"{name} {key}: stale in the replica")
            chunk = chunks.get(key)
            if (chunk is not None) != searchable:
                wrong.append(f"{name} {key}: {'no chunk' if searchable else 'a chunk too many'}")
            elif chunk is not None and chunk != (text, filters):
                wrong.append(f"{name} {key}: stale chunk")
        for key in sorted(replica.keys() - first.keys() - last.keys()):
            xid = replica[key][2]
            if xid is None or (visible is not None and int(xid) in visible):
                wrong.append(f"{name} {key}: live in the replica, not in the source")
        wrong += [f"{name} {key}: chunk of no row" for key in sorted(chunks.keys() - replica.keys())]
    return wrong


def visible_in(source_dsn: str, snapshot: str, found: Seen) -> set[int]:
    """The transactions of the replica's rows that a snapshot of the source sees as committed or over."""
    xids = sorted({int(row[2]) for rows in found.replica.values() for row in rows.values() if row[2] is not None})
    with psycopg.connect(source_dsn) as source:
        query = "select x from unnest(%s::bigint[]) as x where pg_visible_in_snapshot(x::text::xid8, %s::pg_snapshot)"
        return {int(x) for (x,) in source.execute(query, [xids, snapshot])}
