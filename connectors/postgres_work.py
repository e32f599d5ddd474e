"""The work table: what each generation must embed.

Writing, settling and dropping entries happens under the replica rows' locks of the caller; only claiming does not. So
two writers of one entry never meet, and the one wait that can happen is behind a claim, which takes no seq. The upsert
draws its seq inside the statement that starts after the row's lock is held, and on conflict draws another one after
that wait: per row, seqs rise in the order of commits, which is all that the proof needs.

The claim is a statement of its own and returns the seq of the version that it locked. It may judge a row's missing
columns by an older version: whoever reads the row afterwards finds its text unavailable and frees the claim.

Entries are found by `row_id = ANY(array)`, never by a join alone: while the queue grows its statistics lag behind, and
a join is planned as one scan of the queue for each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from connectors.postgres_generations import PgGenerations
from connectors.relations import comma, name
from daemon.core.model import Backlog, Claim, ClaimOrder, Entry, Generation, Key, Quarantined, Table, Tally, WorkState

LIVE, BACKFILL = 0, 1  # priority

# One entry per generation and row; a fresh seq each, on insert and on conflict alike. On conflict afresh_seq lies above
# every claim so far and not above the new seq.
_PUT = """
INSERT INTO revector.work AS w
    (generation_id, table_id, row_id, oldest_seq, newest_seq, changed_at, newest_at, priority, afresh_seq)
SELECT i.generation_id, %(table)s, i.row_id, i.seq, i.seq, i.changed_at, i.changed_at, %(priority)s,
       CASE WHEN %(afresh)s THEN i.seq END
FROM (
    SELECT g.id AS generation_id, r.row_id, nextval('revector.work_seq') AS seq,
           coalesce(to_timestamp(r.changed_ms / 1000.0), clock_timestamp()) AS changed_at
    FROM unnest(%(generations)s::integer[]) AS g (id),
         unnest(%(rows)s::bigint[], %(changed)s::bigint[]) AS r (row_id, changed_ms)
) AS i
ON CONFLICT (generation_id, table_id, row_id) DO UPDATE
SET newest_seq = nextval('revector.work_seq'), newest_at = excluded.newest_at, state = 'waiting', reason = NULL,
    refused_at = NULL, priority = least(w.priority, excluded.priority),
    afresh_seq = CASE WHEN %(afresh)s THEN w.newest_seq + 1 ELSE w.afresh_seq END
"""

# Served by work_claim. The OFFSET keeps the check a look-up per entry: joined, it could become a scan of the replica.
_CLAIM = """
WITH picked AS (
    SELECT w.row_id FROM revector.work AS w
    WHERE w.generation_id = %(generation)s AND w.table_id = %(table)s AND w.state = 'waiting' {which}
      AND (w.claimed_until IS NULL OR w.claimed_until < clock_timestamp() OR w.claimed_by = %(worker)s)
      AND EXISTS (SELECT FROM {replica} AS r WHERE r._row_id = w.row_id AND NOT r._deleted
                  AND NOT (r._missing && %(needed)s::text[]) OFFSET 0)
    ORDER BY {order} LIMIT %(limit)s FOR UPDATE OF w SKIP LOCKED
)
UPDATE revector.work AS w
SET claimed_by = %(worker)s, claimed_until = clock_timestamp() + %(lease)s * interval '1 second',
    attempts = w.attempts + 1
WHERE w.generation_id = %(generation)s AND w.table_id = %(table)s AND w.row_id = ANY(ARRAY(SELECT row_id FROM picked))
RETURNING w.priority, w.oldest_seq, w.row_id, w.newest_seq, w.attempts, w.afresh_seq IS NOT NULL
"""

_BACKLOG = """
SELECT count(*) FILTER (WHERE state = 'waiting' AND priority = 0 AND NOT taken),
       count(*) FILTER (WHERE state = 'waiting' AND priority = 1 AND NOT taken),
       count(*) FILTER (WHERE state = 'waiting' AND taken),
       count(*) FILTER (WHERE state = 'refused'),
       count(*) FILTER (WHERE state = 'accepted'),
       extract(epoch FROM clock_timestamp() - min(changed_at) FILTER (WHERE state = 'waiting'))::float8
FROM (SELECT *, coalesce(claimed_until >= clock_timestamp(), false) AS taken FROM revector.work
      WHERE generation_id = %s) AS w
"""

# Served by work_quarantine. An entry whose row is gone does not exist: it went with the row.
_QUARANTINE = """
SELECT w.row_id, w.state, coalesce(w.reason, ''), w.attempts,
       extract(epoch FROM clock_timestamp() - w.refused_at)::float8, {key}
FROM revector.work AS w JOIN {replica} AS t ON t._row_id = w.row_id
WHERE w.generation_id = %(generation)s AND w.table_id = %(table)s AND w.state <> 'waiting'
  AND (%(state)s::text IS NULL OR w.state = %(state)s) {only}
ORDER BY w.state DESC, w.refused_at, w.row_id LIMIT %(limit)s
"""


class PgWork(PgGenerations):
    """The Ledger port's methods on work, over one open transaction."""

    async def put_work(
        self,
        table: Table,
        generations: Sequence[Generation],
        row_ids: Sequence[int],
        live: bool,
        changed_at_ms: Mapping[int, int] | None = None,
        *,
        afresh: bool = False,
    ) -> None:
        if not generations or not row_ids:
            return
        times = changed_at_ms or {}
        await self._connection.execute(
            _PUT,
            {
                "table": table.id,
                "generations": [generation.id for generation in generations],
                "rows": list(row_ids),
                "changed": [times.get(row_id) for row_id in row_ids],
                "priority": LIVE if live else BACKFILL,
                "afresh": afresh,
            },
        )

    async def drop_work(self, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> None:
        await self._connection.execute(
            "DELETE FROM revector.work WHERE generation_id = ANY(%s::integer[]) AND table_id = %s "
            "AND row_id = ANY(%s::bigint[])",
            [[generation.id for generation in generations], table.id, list(row_ids)],
        )

    async def claim(
        self,
        table: Table,
        generation: Generation,
        worker: str,
        limit: int,
        lease_s: float,
        order: ClaimOrder = ClaimOrder.LIVE_FIRST,
    ) -> list[Claim]:
        await self._refuse_newer()
        # Backward within the index's first column: two scans, the smaller one sorted; the usual order needs none.
        by = "w.priority DESC, w.oldest_seq" if order is ClaimOrder.BACKFILL_FIRST else "w.priority, w.oldest_seq"
        which = "AND w.priority = 0" if order is ClaimOrder.LIVE_ONLY else ""
        statement = sql.SQL(_CLAIM).format(
            replica=self._relations.replica(table), order=sql.SQL(by), which=sql.SQL(which)
        )
        cursor = await self._connection.execute(
            statement,
            {
                "generation": generation.id,
                "table": table.id,
                "needed": [*table.text_columns, *table.filters],
                "limit": limit,
                "worker": worker,
                "lease": lease_s,
            },
        )
        rows = sorted(await cursor.fetchall())
        return [
            Claim(generation.id, table.id, row_id, seq, attempts, priority == LIVE, afresh)
            for priority, _, row_id, seq, attempts, afresh in rows
        ]

    async def renew(
        self, table: Table, generation: Generation, worker: str, row_ids: Sequence[int], lease_s: float
    ) -> None:
        # Entries that a window holds are left for the next time: no replica row is locked here that it would wait for.
        await self._connection.execute(
            "WITH held AS MATERIALIZED (SELECT row_id FROM revector.work WHERE generation_id = %s AND table_id = %s "
            "AND row_id = ANY(%s::bigint[]) AND claimed_by = %s FOR UPDATE SKIP LOCKED) "
            "UPDATE revector.work SET claimed_until = clock_timestamp() + %s * interval '1 second' "
            "WHERE generation_id = %s AND table_id = %s AND row_id = ANY(ARRAY(SELECT row_id FROM held))",
            [generation.id, table.id, list(row_ids), worker, lease_s, generation.id, table.id],
        )

    async def entries(self, table: Table, generation: Generation, row_ids: Sequence[int]) -> dict[int, Entry]:
        cursor = await self._connection.execute(
            "SELECT row_id, oldest_seq, newest_seq, state, claimed_by FROM revector.work WHERE generation_id = %s "
            "AND table_id = %s AND row_id = ANY(%s::bigint[]) ORDER BY row_id FOR UPDATE",
            [generation.id, table.id, list(row_ids)],
        )
        rows = await cursor.fetchall()
        return {row_id: Entry(row_id, old, new, WorkState(state), owner) for row_id, old, new, state, owner in rows}

    async def settle(
        self,
        table: Table,
        generation: Generation,
        worker: str,
        done: Sequence[int],
        moved: Mapping[int, int],
        freed: Sequence[int],
    ) -> None:
        if done:
            await self.drop_work(table, [generation], done)
        if moved:
            # What is owed from here on came after the claim; its oldest time is not kept, the newest one is.
            await self._connection.execute(
                "UPDATE revector.work AS w SET oldest_seq = i.oldest_seq, changed_at = w.newest_at, "
                "claimed_until = CASE WHEN claimed_by = %s THEN NULL ELSE claimed_until END, "
                "claimed_by = nullif(claimed_by, %s), "
                "afresh_seq = CASE WHEN afresh_seq >= i.oldest_seq THEN afresh_seq END "
                "FROM unnest(%s::bigint[], %s::bigint[]) AS i (row_id, oldest_seq) "
                "WHERE w.generation_id = %s AND w.table_id = %s AND w.row_id = i.row_id "
                "AND w.row_id = ANY(%s::bigint[])",
                [worker, worker, list(moved), list(moved.values()), generation.id, table.id, list(moved)],
            )
        if freed:
            await self._free(table, generation, worker, freed)

    async def refuse(
        self, table: Table, generation: Generation, worker: str, claims: Sequence[Claim], reason: str
    ) -> None:
        rows = [claim.row_id for claim in claims]
        cursor = await self._connection.execute(
            "UPDATE revector.work AS w SET state = 'refused', reason = %s, refused_at = clock_timestamp(), "
            "claimed_by = NULL, claimed_until = NULL "
            "FROM unnest(%s::bigint[], %s::bigint[]) AS i (row_id, seq) "
            "WHERE w.generation_id = %s AND w.table_id = %s AND w.row_id = i.row_id AND w.newest_seq = i.seq "
            "AND w.row_id = ANY(%s::bigint[])",
            [reason, rows, [c.seq for c in claims], generation.id, table.id, rows],
        )
        await self._connection.execute(
            "UPDATE revector.generation SET rows_refused = rows_refused + %s WHERE id = %s",
            [cursor.rowcount, generation.id],
        )
        await self._free(table, generation, worker, [claim.row_id for claim in claims])

    async def _free(self, table: Table, generation: Generation, worker: str, row_ids: Sequence[int]) -> None:
        await self._connection.execute(
            "UPDATE revector.work SET claimed_by = NULL, claimed_until = NULL WHERE generation_id = %s "
            "AND table_id = %s AND row_id = ANY(%s::bigint[]) AND claimed_by = %s",
            [generation.id, table.id, list(row_ids), worker],
        )

    async def count_embedded(self, generation: Generation, tally: Tally) -> None:
        await self._connection.execute(
            "UPDATE revector.generation SET rows_embedded = rows_embedded + %s, rows_blank = rows_blank + %s, "
            "tokens = tokens + %s, tokens_avoided = tokens_avoided + %s, requests = requests + %s WHERE id = %s",
            [tally.rows, tally.blank, tally.tokens, tally.avoided, tally.requests, generation.id],
        )

    async def count_spared(self, generations: Sequence[Generation], texts: int) -> None:
        await self._connection.execute(
            "UPDATE revector.generation SET tokens_avoided = tokens_avoided + %s * (tokens / rows_embedded) "
            "WHERE id = ANY(%s) AND rows_embedded > 0",
            [texts, [g.id for g in generations]],
        )

    async def backlog(self, generation: Generation) -> Backlog:
        counts = await (await self._connection.execute(_BACKLOG, [generation.id])).fetchone()
        cursor = await self._connection.execute(
            "SELECT rows_embedded, tokens, tokens_avoided, rows_blank, requests FROM revector.generation WHERE id = %s",
            [generation.id],
        )
        totals = await cursor.fetchone()
        return Backlog(*(counts or (0, 0, 0, 0, 0, None)), *(totals or (0, 0, 0, 0, 0)))

    async def highest_seq(self) -> int:
        cursor = await self._connection.execute(
            "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM revector.work_seq"
        )
        row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def owed(self, generation: Generation, seq: int) -> int:
        """Served by work_owed."""
        cursor = await self._connection.execute(
            "SELECT count(*) FROM revector.work WHERE generation_id = %s AND oldest_seq <= %s AND state <> 'accepted'",
            [generation.id, seq],
        )
        row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def lowest_owed(self, generation: Generation) -> int | None:
        """Served by work_owed."""
        cursor = await self._connection.execute(
            "SELECT min(oldest_seq) FROM revector.work WHERE generation_id = %s AND state <> 'accepted'",
            [generation.id],
        )
        row = await cursor.fetchone()
        return row[0] if row else None

    # quarantine

    async def quarantine(
        self,
        table: Table,
        generation: Generation,
        limit: int,
        keys: Sequence[Key] | None = None,
        state: WorkState | None = None,
    ) -> list[Quarantined]:
        query = sql.SQL(_QUARANTINE).format(
            key=comma([_key_text(column) for column in table.key]),
            replica=self._relations.replica(table),
            only=sql.SQL("") if keys is None else _only(table),
        )
        parameters: dict[str, Any] = {
            "generation": generation.id,
            "table": table.id,
            "state": None if state is None else state.value,
            "limit": limit,
        }
        for n in range(len(table.key)):
            parameters[f"k{n}"] = [key[n] for key in keys or ()]
        rows = await (await self._connection.execute(query, parameters)).fetchall()
        return [
            Quarantined(table.alias, tuple(key), row_id, WorkState(state), reason, attempts, age_s)
            for row_id, state, reason, attempts, age_s, *key in rows
        ]

    async def accept(self, table: Table, generation: Generation, row_ids: Sequence[int]) -> int:
        """Served by the primary key."""
        cursor = await self._connection.execute(
            "UPDATE revector.work SET state = 'accepted' WHERE generation_id = %s AND table_id = %s "
            "AND row_id = ANY(%s::bigint[]) AND state = 'refused'",
            [generation.id, table.id, list(row_ids)],
        )
        return cursor.rowcount


def _key_text(column: str) -> sql.Composed:
    return sql.SQL("t.{}::text").format(name(column))


def _only(table: Table) -> sql.Composed:
    """A condition: the row's key is one of those given, as text, so that what is no value of the key's type is just
    not found."""
    arrays = [sql.SQL("{}::text[]").format(sql.Placeholder(f"k{n}")) for n in range(len(table.key))]
    key = comma([_key_text(column) for column in table.key])
    return sql.SQL("AND ({}) IN (SELECT * FROM unnest({}))").format(key, comma(list(arrays)))
