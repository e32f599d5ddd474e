"""The record of comparisons in the target.

A comparison that runs owns four kinds of rows: scans, suspects, findings, heads. Whoever writes one of them holds the
comparison's row first; whoever ends the comparison waits for these transactions and then takes scans, suspects and
heads away, so none is left behind. The holder does not wait where the end is under way: it may hold what the end
needs, and is tried again instead.

Leases are judged by the database's clock alone. Takes no decision and never commits; the caller's transaction does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
from psycopg import sql
from psycopg.types.json import Jsonb

from connectors.postgres_session import Connection
from connectors.relations import Relations
from daemon.core.comparison import Comparison, Found, Kind, State
from daemon.core.model import Generation, Key, Table
from daemon.errors import StepRefused, TransientError
from daemon.ports import Scan, Suspect

_SELECT = """
SELECT id, state, generations, mark, began_at, began_lsn, extract(epoch FROM clock_timestamp() - began_at)::float8,
       ended_at, ended_lsn, faults, figures
FROM revector.comparison
"""

# Rows are every generation's: what was found of them counts for those that were left out, ended or not.
_CONCERNS = """
WHERE migration = %(name)s AND (
    (state IN ('clean', 'differs') AND %(generation)s = ANY(generations))
    OR (state <> 'running' AND ((figures->'open') ?| %(rows)s OR (figures->'repaired') ?| %(rows)s
                                OR (figures->>'breaks_closed')::bigint > 0))
) ORDER BY id DESC LIMIT 1
"""

# The migration's row keeps a generation from being dropped between this look and the record.
_HOLD_GENERATIONS = "SELECT 1 FROM revector.migration WHERE name = %s FOR SHARE"

# Waits for every transaction that has journaled and is open: an entry below the mark is there when the mark is taken.
_HOLD_JOURNAL = "LOCK TABLE revector.journal IN SHARE MODE"

# Of two at once the second waits for the first one's commit, and is then refused by the index of what runs.
_BEGIN = """
INSERT INTO revector.comparison (migration, generations, mark, began_lsn, faults)
SELECT %(migration)s, %(generations)s, coalesce((SELECT max(id) FROM revector.journal), 0), %(lsn)s, %(faults)s
ON CONFLICT (migration) WHERE state = 'running' DO NOTHING
RETURNING id
"""

_FORGET_FINDINGS = """
DELETE FROM revector.comparison_finding WHERE comparison_id IN (
    SELECT c.id FROM revector.comparison AS c WHERE c.migration = %(migration)s AND c.state <> 'running'
    AND c.id NOT IN (
        SELECT k.id FROM revector.comparison AS k WHERE k.migration = %(migration)s AND k.state IN ('clean', 'differs')
        ORDER BY k.id DESC LIMIT %(kept)s))
"""

KEPT = 2  # comparisons whose differences can still be listed: the newest, and the one to compare it with

_HOLD = """
UPDATE revector.comparison
SET owner = %(owner)s, lease_until = clock_timestamp() + %(lease)s * interval '1 second'
WHERE id = %(id)s AND migration = %(migration)s AND state = 'running'
AND (owner IS NULL OR owner = %(owner)s OR lease_until < clock_timestamp())
"""

_PLAN = """
INSERT INTO revector.comparison_scan
    (comparison_id, side, table_id, generation_id, lower_key, upper_key, cursor_key)
VALUES (%s, %s, %s, %s, %s, %s, %s)
"""

_SUSPECT_KEYS = """
INSERT INTO revector.comparison_suspect (comparison_id, table_id, generation_id, key)
SELECT %(id)s, %(table)s, %(generation)s, ARRAY(SELECT jsonb_array_elements_text(i.key))
FROM jsonb_array_elements(%(keys)s) WITH ORDINALITY AS i (key, n) ORDER BY i.n
"""

_SUSPECT_ROWS = """
INSERT INTO revector.comparison_suspect (comparison_id, table_id, generation_id, row_id)
SELECT %(id)s, %(table)s, %(generation)s, i.row_id
FROM unnest(%(rows)s::bigint[]) WITH ORDINALITY AS i (row_id, n) ORDER BY i.n
"""

_FIND = """
INSERT INTO revector.comparison_finding
    (comparison_id, kind, table_id, generation_id, key, row_id, n, place, repaired_at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, CASE WHEN %s THEN clock_timestamp() END)
ON CONFLICT (comparison_id, place) DO UPDATE SET repaired_at = NULL
WHERE comparison_finding.repaired_at IS NOT NULL AND excluded.repaired_at IS NULL
"""

_TALLY = """
SELECT kind, count(*) FILTER (WHERE repaired_at IS NULL), count(*) FILTER (WHERE repaired_at IS NOT NULL)
FROM revector.comparison_finding WHERE comparison_id = %s GROUP BY kind ORDER BY kind
"""

# A row is read at the source once; the other sides pass over it again.
_PROGRESS = """
SELECT coalesce(sum(rows) FILTER (WHERE side = 'source'), 0)::bigint, coalesce(sum(chunks), 0)::bigint
FROM revector.comparison_scan WHERE comparison_id = %s
"""

_PINNED = "SELECT mark FROM revector.comparison WHERE id = %s AND migration = %s AND state = 'running' "

_CLOSE_BREAKS = """
UPDATE revector.journal SET closed_at = clock_timestamp()
WHERE migration = %(migration)s AND kind = 'break' AND closed_at IS NULL AND id <= %(mark)s
"""

_END = """
UPDATE revector.comparison
SET state = %(state)s, ended_at = clock_timestamp(), ended_lsn = %(lsn)s, faults = %(faults)s, figures = %(figures)s,
    owner = NULL, lease_until = NULL
WHERE id = %(id)s
"""

_GONE_HINT = "a generation of it was dropped, the stream was realigned, or another process ended it: begin again"

_JOURNAL = "INSERT INTO revector.journal (migration, kind, event, detail) VALUES (%s, 'comparison', %s, %s)"


class PgComparisons:
    """The Comparisons port over one open transaction."""

    def __init__(self, connection: Connection, relations: Relations) -> None:
        self._connection = connection
        self._name = relations.migration

    # --- the comparison itself

    async def running(self) -> Comparison | None:
        row = await self._row(_SELECT + "WHERE migration = %s AND state = 'running'", [self._name])
        if row is None:
            return None
        open, repaired = await self.tally(row[0])
        rows, chunks = await self._row(_PROGRESS, [row[0]]) or (0, 0)
        return _comparison((*row[:-1], {"rows": rows, "chunks": chunks, "open": open, "repaired": repaired}))

    async def last(self, generation: Generation | None) -> Comparison | None:
        if generation is None:
            ended = "WHERE migration = %s AND state IN ('clean', 'differs') ORDER BY id DESC LIMIT 1"
            row = await self._row(_SELECT + ended, [self._name])
        else:
            of_rows = [kind.value for kind in Kind if kind.is_of_row]
            row = await self._row(
                _SELECT + _CONCERNS, {"name": self._name, "generation": generation.id, "rows": of_rows}
            )
        return None if row is None else _comparison(row)

    async def begin(self, generations: Sequence[int], began_lsn: int, faults: Sequence[str]) -> Comparison:
        await self._connection.execute(_HOLD_GENERATIONS.encode(), [self._name])
        rows = await self._rows("SELECT id FROM revector.generation WHERE migration = %s", [self._name])
        if not set(generations) <= {id for (id,) in rows}:
            raise StepRefused("generation-absent", f"{self._name} has lost a generation meanwhile", "begin again")
        await self._connection.execute(_HOLD_JOURNAL.encode())
        begun = await self._row(
            _BEGIN,
            {"migration": self._name, "generations": list(generations), "lsn": began_lsn, "faults": list(faults)},
        )
        if begun is None:
            hint = "go on with that one, or abandon it first"
            raise StepRefused("comparison-running", f"a comparison of {self._name} is running", hint)
        await self._connection.execute(_FORGET_FINDINGS.encode(), {"migration": self._name, "kept": KEPT})
        comparison = await self.running()
        assert comparison is not None  # the index of what runs: it is ours
        return comparison

    async def hold(self, id: int, owner: str, lease_s: float) -> float | None:
        held = await self._connection.execute(
            _HOLD.encode(), {"id": id, "migration": self._name, "owner": owner, "lease": lease_s}
        )
        if held.rowcount:
            return None
        row = await self._row(
            "SELECT greatest(0, extract(epoch FROM lease_until - clock_timestamp()))::float8 FROM revector.comparison "
            "WHERE id = %s AND migration = %s AND state = 'running'",
            [id, self._name],
        )
        if row is None:
            raise _gone(id)
        return float(row[0] or 0)

    async def release(self, id: int, owner: str) -> None:
        await self._connection.execute(
            "UPDATE revector.comparison SET owner = NULL, lease_until = NULL WHERE id = %s AND owner = %s", [id, owner]
        )

    async def end(self, comparison: Comparison, *, close_breaks: bool) -> int:
        """1. the comparison's row FOR UPDATE: what its workers are writing comes first, and nothing after;
        2. breaks up to the recorded mark; 3. state and figures; 4. a line in the journal; 5. forget."""
        mark = await self._take(comparison.id)
        if mark is None:
            raise _gone(comparison.id)
        closed = 0
        if close_breaks:
            cursor = await self._connection.execute(_CLOSE_BREAKS.encode(), {"migration": self._name, "mark": mark})
            closed = cursor.rowcount
        await self._finish(replace(comparison, breaks_closed=closed))
        return closed

    async def abandon(self, id: int) -> None:
        if await self._take(id) is None:
            return
        comparison = await self.running()
        assert comparison is not None and comparison.id == id
        await self._finish(replace(comparison, state=State.ABANDONED))
        await self._connection.execute("DELETE FROM revector.comparison_finding WHERE comparison_id = %s", [id])

    async def _finish(self, c: Comparison) -> None:
        figures = _figures(c)
        await self._connection.execute(
            _END.encode(),
            {
                "id": c.id,
                "state": c.state.value,
                "lsn": c.ended_lsn,
                "faults": list(c.faults),
                "figures": Jsonb(figures),
            },
        )
        detail = {"comparison": c.id, "generations": list(c.generations), "faults": list(c.faults), **figures}
        await self._connection.execute(_JOURNAL, [self._name, f"comparison-{c.state.value}", Jsonb(detail)])
        for table in ("comparison_scan", "comparison_suspect", "comparison_head"):
            forget = sql.SQL("DELETE FROM {} WHERE comparison_id = %s").format(sql.Identifier("revector", table))
            await self._connection.execute(forget, [c.id])

    async def _take(self, id: int) -> int | None:
        """The mark of a comparison that runs, when no transaction of its workers is open any more; None: none runs."""
        row = await self._row(_PINNED + "FOR UPDATE", [id, self._name])
        return None if row is None else int(row[0])

    async def _pin(self, id: int) -> None:
        """The comparison runs until this transaction ends. Raises StepRefused `comparison-gone`; TransientError where
        it is being ended."""
        if await self._row(_PINNED + "FOR KEY SHARE NOWAIT", [id, self._name]) is None:
            raise _gone(id)

    # --- what is left to compare

    async def plan(self, id: int, scans: Sequence[Scan]) -> None:
        await self._pin(id)
        planned = [
            [id, s.side, s.table_id, s.generation_id, _array(s.lower), _array(s.upper), _array(s.cursor)] for s in scans
        ]
        async with self._connection.cursor() as cursor:
            await cursor.executemany(_PLAN, planned)

    async def scans(self, id: int) -> list[Scan]:
        rows = await self._rows(
            "SELECT id, side, table_id, generation_id, lower_key, upper_key, cursor_key, rows, chunks, is_done "
            "FROM revector.comparison_scan WHERE comparison_id = %s ORDER BY id",
            [id],
        )
        return [
            Scan(id, side, table, generation, _key(lower), _key(upper), _key(cursor), *counted)
            for id, side, table, generation, lower, upper, cursor, *counted in rows
        ]

    async def advance(self, scan: Scan, cursor: Key | None, rows: int, chunks: int, *, done: bool) -> None:
        row = await self._row("SELECT comparison_id FROM revector.comparison_scan WHERE id = %s", [scan.id])
        if row is None:
            raise StepRefused("comparison-gone", f"scan {scan.id} is gone: its comparison has ended", _GONE_HINT)
        await self._pin(row[0])
        moved = await self._connection.execute(
            "UPDATE revector.comparison_scan SET cursor_key = coalesce(%s::text[], cursor_key), rows = rows + %s, "
            "chunks = chunks + %s, is_done = %s "
            "WHERE id = %s AND NOT is_done AND cursor_key IS NOT DISTINCT FROM %s::text[]",
            [_array(cursor), rows, chunks, done, scan.id, _array(scan.cursor)],
        )
        if moved.rowcount == 0:
            raise TransientError("comparison-moved", f"scan {scan.id} was taken further by somebody else", "")

    async def suspect(
        self,
        id: int,
        table: Table,
        generation: Generation | None,
        keys: Sequence[Key] = (),
        row_ids: Sequence[int] = (),
    ) -> None:
        await self._pin(id)
        place = {"id": id, "table": table.id, "generation": None if generation is None else generation.id}
        if keys:
            await self._connection.execute(_SUSPECT_KEYS, {**place, "keys": Jsonb([list(key) for key in keys])})
        if row_ids:
            await self._connection.execute(_SUSPECT_ROWS, {**place, "rows": list(row_ids)})

    async def suspects(self, id: int, *, of_chunks: bool, after: int, limit: int) -> list[Suspect]:
        rows = await self._rows(
            "SELECT id, table_id, generation_id, key, row_id FROM revector.comparison_suspect "
            "WHERE comparison_id = %s AND (generation_id IS NOT NULL) = %s AND id > %s ORDER BY id LIMIT %s",
            [id, of_chunks, after, limit],
        )
        return [Suspect(id, table, generation, _key(key), row_id) for id, table, generation, key, row_id in rows]

    async def settle(self, ids: Sequence[int]) -> None:
        await self._connection.execute(
            "DELETE FROM revector.comparison_suspect WHERE id = ANY(%s::bigint[])", [list(ids)]
        )

    # --- differences

    async def find(self, id: int, found: Sequence[Found]) -> None:
        await self._pin(id)
        differences = [
            [id, f.kind.value, f.table_id, f.generation_id, _array(f.key), f.row_id, f.n, _place(f), f.is_repaired]
            for f in found
        ]
        async with self._connection.cursor() as cursor:
            await cursor.executemany(_FIND, differences)

    async def found(
        self, id: int, *, after: int = 0, limit: int = 1000, only_open: bool = False
    ) -> list[tuple[int, Found]]:
        rows = await self._rows(
            "SELECT id, kind, table_id, key, generation_id, row_id, n, repaired_at IS NOT NULL "
            "FROM revector.comparison_finding WHERE comparison_id = %s AND id > %s "
            "AND (repaired_at IS NULL OR NOT %s) ORDER BY id LIMIT %s",
            [id, after, only_open, limit],
        )
        return [(id, Found(Kind(kind), table, _key(key), *rest)) for id, kind, table, key, *rest in rows]

    async def mended(self, ids: Sequence[int]) -> None:
        await self._connection.execute(
            "UPDATE revector.comparison_finding SET repaired_at = clock_timestamp() "
            "WHERE id = ANY(%s::bigint[]) AND repaired_at IS NULL",
            [list(ids)],
        )

    async def tally(self, id: int) -> tuple[dict[str, int], dict[str, int]]:
        rows = await self._rows(_TALLY, [id])
        return {k: open for k, open, _ in rows if open}, {k: mended for k, _, mended in rows if mended}

    # --- rows

    async def _rows(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        return await (await self._connection.execute(query.encode(), parameters)).fetchall()

    async def _row(self, query: str, parameters: Sequence[Any] | Mapping[str, Any]) -> tuple[Any, ...] | None:
        return await (await self._connection.execute(query.encode(), parameters)).fetchone()


def _comparison(row: Sequence[Any]) -> Comparison:
    id, state, generations, mark, began_at, began_lsn, age_s, ended_at, ended_lsn, faults, figures = row
    return Comparison(
        id,
        State(state),
        tuple(generations),
        mark,
        began_at.isoformat(),
        began_lsn,
        age_s,
        ended_at=None if ended_at is None else ended_at.isoformat(),
        ended_lsn=ended_lsn,
        faults=tuple(faults),
        **figures,
    )


def _figures(c: Comparison) -> dict[str, Any]:
    """What is kept of a comparison besides its columns."""
    return {
        "rows": c.rows,
        "chunks": c.chunks,
        "open": dict(c.open or {}),
        "repaired": dict(c.repaired or {}),
        "unsettled": c.unsettled,
        "sampled": c.sampled,
        "tokens": c.tokens,
        "breaks_closed": c.breaks_closed,
    }


def _place(found: Found) -> bytes:
    """A row is told by its key, a chunk by its row's id; by the other one where that is not known."""
    of_row = found.key is not None and (found.generation_id is None or found.row_id is None)
    where = [found.key] if of_row else [None, found.row_id]
    told = orjson.dumps([found.kind.value, found.table_id, found.generation_id, found.n, *where])
    return hashlib.sha256(told).digest()


def _array(key: Key | None) -> list[str] | None:
    return None if key is None else list(key)


def _key(value: list[str] | None) -> Key | None:
    return None if value is None else tuple(value)


def _gone(id: int) -> StepRefused:
    return StepRefused("comparison-gone", f"comparison {id} does not run any more", _GONE_HINT)
