"""Control state in Postgres: the migration, the stream's lease and checkpoint, continuity, the backfill's ranges.

The stream's fence is in the checkpoint rows: a takeover writes its lease number into each of them, and so waits for a
window that is still open; the old owner's next window finds another number and is dropped whole. Leases are judged by
the database's clock alone. Rows that several processes lock are taken in one order (topic, partition).

Takes no decision and never commits; the caller's transaction does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from psycopg.types.json import Jsonb

from connectors.postgres_work import PgWork
from connectors.schema import table_of
from daemon.core.model import (
    Break,
    FeedIdentity,
    Generation,
    HaltNote,
    Key,
    Position,
    SourceIdentity,
    SourceTableState,
    Table,
    TopicPartition,
)
from daemon.errors import LeaseLost
from daemon.ports import BackfillRange, MigrationState, Offsets, Realignment

_STATE = """
SELECT m.epoch, m.started_at IS NOT NULL, m.evidence, m.source, m.feed, c.run_ids, c.pulse_seen, p.sent,
       l.number, l.owner, extract(epoch FROM l.until - clock_timestamp())::float8,
       k.halted, o.observed, extract(epoch FROM clock_timestamp() - o.observed_at)::float8
FROM revector.migration AS m
JOIN revector.continuity AS c ON c.migration = m.name
JOIN revector.pulse AS p ON p.migration = m.name
JOIN revector.lease AS l ON l.migration = m.name
JOIN revector.control AS k ON k.migration = m.name
JOIN revector.observation AS o ON o.migration = m.name
WHERE m.name = %s
"""

_TABLES = """
SELECT t.id, t.definition, t.floor, t.trunc_epoch, t.trunc_commit, t.trunc_lsn, t.truncate_count,
       t.planned_at IS NOT NULL AND NOT EXISTS
           (SELECT FROM revector.backfill_range AS r WHERE r.table_id = t.id AND r.completed_at IS NULL)
FROM revector.source_table AS t WHERE t.migration = %s ORDER BY t.id
"""

# A dead owner's lease is over, but one that was frozen, or that the network forgot, still has its transactions open.
# Those that wait for their client for half a lease are ended: their locks are the way of whoever takes over.
_FREE = """
SELECT pg_terminate_backend(a.pid) FROM revector.lease AS l, pg_stat_activity AS a
WHERE l.migration = %(name)s AND l.until < clock_timestamp() AND l.owner <> %(owner)s
  AND a.datname = current_database() AND a.usename = current_user AND a.pid <> pg_backend_pid()
  AND starts_with(a.application_name, %(ours)s)
  AND (a.state LIKE 'idle in transaction%%' OR a.state = 'active' AND a.wait_event_type = 'Client')
  AND a.state_change < clock_timestamp() - %(lease)s * interval '0.5 second'
"""

_CLAIM_RANGE = """
UPDATE revector.backfill_range AS r
SET owner = %(owner)s, lease_until = clock_timestamp() + %(lease)s * interval '1 second',
    started_at = coalesce(r.started_at, clock_timestamp()), takeovers = r.takeovers + (r.owner IS NOT NULL)::integer
WHERE r.id = (
    SELECT b.id FROM revector.backfill_range AS b JOIN revector.source_table AS t ON t.id = b.table_id
    WHERE t.migration = %(migration)s AND b.completed_at IS NULL
      AND (b.owner IS NULL OR b.owner = %(owner)s OR b.lease_until < clock_timestamp())
    ORDER BY b.table_id, b.number LIMIT 1 FOR UPDATE OF b SKIP LOCKED
)
RETURNING r.id, r.table_id, r.lower_key, r.upper_key, r.cursor_key, r.rows_read, r.rows_written
"""

_PROGRESS = """
SELECT t.alias, coalesce(sum(r.rows_read), 0)::bigint, coalesce(sum(r.rows_written), 0)::bigint, count(r.id),
       count(r.completed_at), t.planned_at IS NOT NULL AND count(r.completed_at) = count(r.id),
       min(r.started_at), max(r.completed_at)
FROM revector.source_table AS t LEFT JOIN revector.backfill_range AS r ON r.table_id = t.id
WHERE t.migration = %s GROUP BY t.id, t.alias, t.planned_at ORDER BY t.id
"""


class PgLedger(PgWork):
    """The Ledger port over one open transaction."""

    # migration

    async def load(self) -> MigrationState:
        row = await (await self._connection.execute(_STATE, [self._name])).fetchone()
        if row is None:
            return MigrationState(self._name, 0, False, {}, None, None, (), 0, 0, 0, None, None, {}, None, None)
        epoch, started, evidence, source, feed, run_ids, seen, sent, number, owner, left, halted, observed, age = row
        return MigrationState(
            name=self._name,
            epoch=epoch,
            started=started,
            evidence=evidence,
            source=None if source is None else SourceIdentity(**source),
            feed=None if feed is None else _feed(feed),
            run_ids=tuple(run_ids),
            pulse_seen=seen,
            pulse_sent=sent,
            lease_number=number,
            lease_owner=owner,
            lease_left_s=left if left is not None and left > 0 else None,
            halted=halted or {},
            observed=observed,
            observed_age_s=age,
        )

    async def start(
        self, evidence: Mapping[str, Any], source: SourceIdentity, feed: FeedIdentity, offsets: Offsets, floor: int
    ) -> None:
        cursor = await self._connection.execute(
            "UPDATE revector.migration SET started_at = clock_timestamp(), evidence = %s, source = %s, feed = %s "
            "WHERE name = %s AND started_at IS NULL",
            [Jsonb(evidence), Jsonb(asdict(source)), Jsonb(asdict(feed)), self._name],
        )
        if cursor.rowcount == 0:
            return
        await self._put_checkpoints(offsets)
        await self._connection.execute(
            "UPDATE revector.source_table SET floor = %s WHERE migration = %s", [floor, self._name]
        )

    async def realign(self, lease_number: int, to: Realignment) -> int:
        """In the order in which a window takes the same locks: migration, checkpoints, tables. The lease's row comes
        before the checkpoints, as in a takeover."""
        await self._connection.execute("SELECT 1 FROM revector.migration WHERE name = %s FOR UPDATE", [self._name])
        held = await self._connection.execute(
            "SELECT 1 FROM revector.lease WHERE migration = %s AND number = %s AND owner IS NOT NULL FOR UPDATE",
            [self._name, lease_number],
        )
        if held.rowcount == 0:
            raise _lost()
        await self._connection.execute("DELETE FROM revector.checkpoint WHERE migration = %s", [self._name])
        await self._put_checkpoints(to.offsets)
        await self._connection.execute(
            "UPDATE revector.source_table SET floor = %s, truncate_count = truncate_count + 1 WHERE migration = %s",
            [to.floor, self._name],
        )
        await self._connection.execute(
            "UPDATE revector.continuity SET pulse_seen = greatest(pulse_seen, %s::bigint) WHERE migration = %s",
            [to.pulse, self._name],
        )
        row = await self._row(
            "UPDATE revector.migration SET epoch = epoch + 1, evidence = %(evidence)s, source = %(source)s, "
            "feed = %(feed)s WHERE name = %(name)s RETURNING epoch",
            {
                "evidence": Jsonb(to.evidence),
                "source": Jsonb(asdict(to.source)),
                "feed": Jsonb(asdict(to.feed)),
                "name": self._name,
            },
        )
        assert row is not None  # its lease was there
        return int(row[0])

    async def _put_checkpoints(self, offsets: Offsets) -> None:
        await self._connection.execute(
            "INSERT INTO revector.checkpoint (migration, topic, partition, next_offset, lease_number) "
            "SELECT %(name)s, i.topic, i.partition, i.next_offset, l.number FROM "
            "unnest(%(topics)s::text[], %(partitions)s::integer[], %(offsets)s::bigint[]) "
            "AS i (topic, partition, next_offset), revector.lease AS l WHERE l.migration = %(name)s",
            {
                "name": self._name,
                "topics": [at.topic for at in offsets],
                "partitions": [at.partition for at in offsets],
                "offsets": list(offsets.values()),
            },
        )

    async def tables(self) -> list[SourceTableState]:
        states = []
        for id, record, floor, epoch, commit, lsn, count, backfilled in await self._rows(_TABLES):
            truncated = None if epoch is None else Position(epoch, commit, lsn)
            states.append(SourceTableState(table_of(id, record), floor, truncated, count, backfilled))
        return states

    async def hold_migration(self) -> list[Generation]:
        await self._connection.execute("SELECT 1 FROM revector.migration WHERE name = %s FOR SHARE", [self._name])
        # A statement of its own: its snapshot sees a generation whose creation the lock waited for.
        return await self._generations(fed_only=True)

    async def halt(self, id: str, note: HaltNote, role: str) -> None:
        await self._connection.execute(
            "UPDATE revector.control SET halted = jsonb_build_object(%(role)s::text, jsonb_build_object("
            "'id', %(id)s::text, 'message', %(message)s::text, 'hint', %(hint)s::text, "
            "'command', %(command)s::text, 'at', clock_timestamp())) "
            "|| coalesce(halted, '{}') WHERE migration = %(name)s",
            {"id": id, **note._asdict(), "role": role, "name": self._name},
        )

    async def clear_halt(self, roles: Sequence[str]) -> None:
        await self._connection.execute(
            "UPDATE revector.control SET halted = nullif(halted - %s::text[], '{}') WHERE migration = %s",
            [list(roles), self._name],
        )

    # the stream's lease and checkpoint

    async def acquire_lease(self, owner: str, lease_s: float) -> int | None:
        await self._connection.execute(
            _FREE.encode(), {"owner": owner, "name": self._name, "lease": lease_s, "ours": f"revector:{self._name}:"}
        )
        row = await self._row(
            "UPDATE revector.lease SET number = number + 1, owner = %(owner)s, "
            "until = clock_timestamp() + %(lease)s * interval '1 second' WHERE migration = %(name)s "
            "AND (owner IS NULL OR owner = %(owner)s OR until < clock_timestamp()) RETURNING number",
            {"owner": owner, "lease": lease_s, "name": self._name},
        )
        if row is None:
            return None
        # Waits for the window that the previous owner may have open; after this it cannot commit another.
        await self._connection.execute(
            "SELECT 1 FROM revector.checkpoint WHERE migration = %s ORDER BY topic, partition FOR UPDATE", [self._name]
        )
        await self._connection.execute(
            "UPDATE revector.checkpoint SET lease_number = %s WHERE migration = %s", [row[0], self._name]
        )
        return int(row[0])

    async def renew_lease(self, number: int, lease_s: float) -> None:
        cursor = await self._connection.execute(
            "UPDATE revector.lease SET until = clock_timestamp() + %s * interval '1 second' "
            "WHERE migration = %s AND number = %s AND owner IS NOT NULL",
            [lease_s, self._name, number],
        )
        if cursor.rowcount == 0:
            raise _lost()

    async def release_lease(self, number: int) -> None:
        await self._connection.execute(
            "UPDATE revector.lease SET owner = NULL, until = NULL WHERE migration = %s AND number = %s",
            [self._name, number],
        )

    async def checkpoint(self) -> dict[TopicPartition, int]:
        rows = await self._rows(
            "SELECT topic, partition, next_offset FROM revector.checkpoint WHERE migration = %s "
            "ORDER BY topic, partition"
        )
        return {TopicPartition(topic, partition): offset for topic, partition, offset in rows}

    async def advance(self, lease_number: int, moves: Mapping[TopicPartition, tuple[int, int]]) -> None:
        parameters = {
            "name": self._name,
            "number": lease_number,
            "topics": [at.topic for at in moves],
            "partitions": [at.partition for at in moves],
            "expected": [expected for expected, _ in moves.values()],
            "next": [offset for _, offset in moves.values()],
        }
        # Locked in order and re-read after each wait: a takeover that was waited for does not match any more.
        held = await self._connection.execute(
            "SELECT 1 FROM revector.checkpoint AS c JOIN "
            "unnest(%(topics)s::text[], %(partitions)s::integer[], %(expected)s::bigint[]) "
            "AS i (topic, partition, expected) ON c.topic = i.topic AND c.partition = i.partition "
            "WHERE c.migration = %(name)s AND c.lease_number = %(number)s AND c.next_offset = i.expected "
            "ORDER BY c.topic, c.partition FOR UPDATE OF c",
            parameters,
        )
        if held.rowcount != len(moves):
            raise _lost()
        await self._connection.execute(
            "UPDATE revector.checkpoint AS c SET next_offset = i.next_offset, applied_at = clock_timestamp() FROM "
            "unnest(%(topics)s::text[], %(partitions)s::integer[], %(next)s::bigint[]) "
            "AS i (topic, partition, next_offset) "
            "WHERE c.migration = %(name)s AND c.topic = i.topic AND c.partition = i.partition",
            parameters,
        )

    # continuity

    async def observe_stream(self, run_ids: Sequence[str], pulse: int | None) -> None:
        await self._connection.execute(
            "UPDATE revector.continuity SET pulse_seen = greatest(pulse_seen, %(pulse)s::bigint), "
            "run_ids = run_ids || ARRAY(SELECT i.run_id FROM unnest(%(runs)s::text[]) WITH ORDINALITY AS i (run_id, n) "
            "WHERE i.run_id <> ALL(run_ids) GROUP BY i.run_id ORDER BY min(i.n)) WHERE migration = %(name)s",
            {"pulse": pulse, "runs": list(run_ids), "name": self._name},
        )

    async def pulse_sent(self, number: int) -> None:
        await self._connection.execute(
            "UPDATE revector.pulse SET sent = greatest(sent, %s::bigint) WHERE migration = %s", [number, self._name]
        )

    async def observe(self, observation: Mapping[str, Any]) -> None:
        await self._connection.execute(
            "UPDATE revector.observation SET observed = %s, observed_at = now() WHERE migration = %s",
            [Jsonb(observation), self._name],
        )

    async def journal(self, kind: str, id: str, detail: Mapping[str, Any]) -> None:
        await self._connection.execute(
            "INSERT INTO revector.journal (migration, kind, event, detail) VALUES (%s, %s, %s, %s)",
            [self._name, kind, id, Jsonb(detail)],
        )

    async def breaks(self, after: int = 0) -> list[Break]:
        cursor = await self._connection.execute(
            "SELECT event, detail, at FROM revector.journal WHERE migration = %s AND kind = 'break' "
            "AND closed_at IS NULL AND id > %s ORDER BY id",
            [self._name, after],
        )
        rows = await cursor.fetchall()
        return [Break(event, detail, at.isoformat()) for event, detail, at in rows]

    # backfill

    async def plan_ranges(self, table: Table, bounds: Sequence[Key]) -> None:
        # The lock makes a second planner wait: ranges of two plans, mixed, could leave a gap.
        row = await self._row(
            "SELECT planned_at FROM revector.source_table WHERE id = %(id)s FOR NO KEY UPDATE", {"id": table.id}
        )
        if row is None or row[0] is not None:
            return
        edges = [None, *(list(bound) for bound in bounds), None]
        for number, (lower, upper) in enumerate(pairwise(edges)):
            await self._connection.execute(
                "INSERT INTO revector.backfill_range (table_id, number, lower_key, upper_key) VALUES (%s, %s, %s, %s)",
                [table.id, number, lower, upper],
            )
        await self._connection.execute(
            "UPDATE revector.source_table SET planned_at = clock_timestamp() WHERE id = %s", [table.id]
        )

    async def claim_range(self, owner: str, lease_s: float) -> BackfillRange | None:
        row = await self._row(_CLAIM_RANGE, {"owner": owner, "lease": lease_s, "migration": self._name})
        if row is None:
            return None
        id, table_id, lower, upper, cursor, rows_read, rows_written = row
        return BackfillRange(id, table_id, _key(lower), _key(upper), _key(cursor), rows_read, rows_written)

    async def hold_range(self, range_id: int, owner: str) -> None:
        row = await self._row(
            "SELECT 1 FROM revector.backfill_range WHERE id = %(id)s AND owner = %(owner)s "
            "AND completed_at IS NULL FOR UPDATE",
            {"id": range_id, "owner": owner},
        )
        if row is None:
            raise _range_lost(range_id)

    async def advance_range(
        self, range_id: int, owner: str, cursor: Key | None, done: bool, rows: tuple[int, int], lease_s: float
    ) -> None:
        updated = await self._connection.execute(
            "UPDATE revector.backfill_range SET cursor_key = coalesce(%(cursor)s::text[], cursor_key), "
            "batches = batches + 1, rows_read = rows_read + %(read)s, rows_written = rows_written + %(written)s, "
            "lease_until = CASE WHEN %(done)s THEN NULL ELSE clock_timestamp() + %(lease)s * interval '1 second' END, "
            "owner = CASE WHEN %(done)s THEN NULL ELSE owner END, "
            "completed_at = CASE WHEN %(done)s THEN clock_timestamp() END "
            "WHERE id = %(id)s AND owner = %(owner)s AND completed_at IS NULL",
            {
                "cursor": None if cursor is None else list(cursor),
                "read": rows[0],
                "written": rows[1],
                "done": done,
                "lease": lease_s,
                "id": range_id,
                "owner": owner,
            },
        )
        if updated.rowcount == 0:
            raise _range_lost(range_id)

    async def backfill_progress(self) -> Mapping[str, Any]:
        return {
            alias: {
                "rows_read": read,
                "rows_written": written,
                "ranges": ranges,
                "ranges_done": done,
                "complete": complete,
                "started_at": None if started is None else started.isoformat(),
                "completed_at": None if completed is None or not complete else completed.isoformat(),
            }
            for alias, read, written, ranges, done, complete, started, completed in await self._rows(_PROGRESS)
        }

    async def _rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query whose one parameter is the migration."""
        return await (await self._connection.execute(query.encode(), [self._name])).fetchall()

    async def _row(self, query: str, parameters: Mapping[str, Any]) -> tuple[Any, ...] | None:
        return await (await self._connection.execute(query.encode(), parameters)).fetchone()


def _feed(record: Mapping[str, Any]) -> FeedIdentity:
    topics = {topic: (str(id), int(partitions)) for topic, (id, partitions) in record["topics"].items()}
    return FeedIdentity(record["cluster_id"], topics)


def _key(value: list[str] | None) -> Key | None:
    return None if value is None else tuple(value)


def _lost() -> LeaseLost:
    return LeaseLost(
        "lease-lost",
        "the stream's lease or checkpoint is not as this process left it",
        "another process owns the stream; this one stands by",
    )


def _range_lost(range_id: int) -> LeaseLost:
    return LeaseLost("range-lost", f"backfill range {range_id} is not this worker's", "another worker goes on with it")
