"""The generations of a migration: records, relations, sweep, certificates.

A generation's relations are made in the transaction that lists it, and go in the one that unlists it: a window that
works on every generation's chunks finds them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from connectors.postgres_budget import PgBudget
from connectors.postgres_comparisons import PgComparisons
from connectors.relations import comma, drop_chunks, name, wanted
from connectors.schema import control_files, make_chunks, table_of
from daemon.core.contract import changed
from daemon.core.model import Canary, Generation, Table
from daemon.errors import StepRefused, outdated
from daemon.ports import StoredCertificate

_GENERATION = (
    "id, name, contract_id, (contract->>'dimensions')::integer, contract->>'vector_type', contract->>'metric', "
    "phase, swept, fed"
)

_VERSION = "SELECT coalesce(max(version), 0) FROM revector.schema_version"

DROP_WAIT_S = 5  # the stream's windows wait as long as the drop does

# Backfill work for the wanted ones of some locked rows; a fresh seq each. An entry that exists is left as it is.
_SWEEP = """
INSERT INTO revector.work (generation_id, table_id, row_id, oldest_seq, newest_seq, changed_at, newest_at, priority)
SELECT %(generation)s, %(table)s, i.row_id, i.seq, i.seq, clock_timestamp(), clock_timestamp(), 1
FROM (
    SELECT t._row_id AS row_id, nextval('revector.work_seq') AS seq FROM {replica} AS t
    WHERE t._row_id = ANY(%(rows)s::bigint[]) AND {wanted}
) AS i
ON CONFLICT (generation_id, table_id, row_id) DO NOTHING
"""


class PgGenerations(PgBudget):
    """The Ledger port's methods on generations and certificates, over one open transaction."""

    async def generations(self) -> list[Generation]:
        return await self._generations(fed_only=False)

    async def _generations(self, *, fed_only: bool) -> list[Generation]:
        await self._refuse_newer()
        cursor = await self._connection.execute(
            sql.SQL("SELECT {} FROM revector.generation WHERE migration = %s AND (fed OR NOT %s) ORDER BY id").format(
                sql.SQL(_GENERATION)
            ),
            [self._name, fed_only],
        )
        return [Generation(*row) for row in await cursor.fetchall()]

    async def _refuse_newer(self) -> None:
        """Raises ProgramOutdated. Whoever upgrades the control schema locks every migration's row first: a window that
        holds it, and asks after that, is over before the upgrade or refused after it."""
        row = await (await self._connection.execute(_VERSION)).fetchone()
        version, known = (row[0] if row else 0), max(control_files())
        if version > known:
            raise outdated(version, known)

    async def add_generation(self, name: str, contract: Mapping[str, Any], contract_id: str) -> Generation:
        # FOR UPDATE waits for every window and page that has read the list without this generation.
        cursor = await self._connection.execute(
            "SELECT started_at IS NULL FROM revector.migration WHERE name = %s FOR UPDATE", [self._name]
        )
        row = await cursor.fetchone()
        existing = [generation for generation in await self.generations() if generation.name == name]
        if existing:
            if existing[0].contract_id != contract_id:
                raise changed(name, await self.generation_contract(existing[0]), contract)
            return existing[0]
        await self._connection.execute(
            "INSERT INTO revector.generation (migration, name, contract, contract_id, swept) "
            "VALUES (%s, %s, %s, %s, %s)",
            [self._name, name, Jsonb(contract), contract_id, bool(row and row[0])],
        )
        generation = next(g for g in await self.generations() if g.name == name)
        # Its relations exist as soon as it is listed: a window that drops chunks of every generation finds them.
        for table in await self._tables():
            await make_chunks(self._connection, self._relations, table, generation)
        return generation

    async def set_phase(self, generation: Generation, phase: str, index_state: Mapping[str, Any] | None) -> None:
        await self._connection.execute(
            "UPDATE revector.generation SET phase = %s, index_state = coalesce(%s, index_state) WHERE id = %s",
            [phase, None if index_state is None else Jsonb(index_state), generation.id],
        )

    async def index_state(self, generation: Generation) -> Mapping[str, Any]:
        cursor = await self._connection.execute(
            "SELECT index_state FROM revector.generation WHERE id = %s", [generation.id]
        )
        row = await cursor.fetchone()
        return row[0] if row else {}

    async def certificate_age(self, generation: Generation) -> float | None:
        cursor = await self._connection.execute(
            "SELECT extract(epoch FROM clock_timestamp() - max(c.at))::float8 FROM revector.certificate AS c "
            "JOIN revector.migration AS m ON m.name = c.migration "
            "AND m.epoch = coalesce((c.document->>'epoch')::integer, 0) "
            "WHERE c.migration = %s AND c.generation_id = %s",
            [self._name, generation.id],
        )
        row = await cursor.fetchone()
        return None if row is None else row[0]

    async def store_certificate(self, generation: Generation, document: Mapping[str, Any], digest: str) -> None:
        await self._connection.execute(
            "INSERT INTO revector.certificate (migration, generation_id, document, digest) VALUES (%s, %s, %s, %s)",
            [self._name, generation.id, Jsonb(document), digest],
        )

    async def certificates(
        self, generation: Generation | None, limit: int, digest: str | None = None
    ) -> list[StoredCertificate]:
        cursor = await self._connection.execute(
            "SELECT id, generation_id, document, digest, extract(epoch FROM clock_timestamp() - at)::float8 "
            "FROM revector.certificate WHERE migration = %(migration)s "
            "AND (%(generation)s::integer IS NULL OR generation_id = %(generation)s) "
            "AND starts_with(digest, %(digest)s) ORDER BY id DESC LIMIT %(limit)s",
            {
                "migration": self._name,
                "generation": None if generation is None else generation.id,
                "digest": digest or "",
                "limit": limit,
            },
        )
        return [StoredCertificate(*row) for row in await cursor.fetchall()]

    async def generation_contract(self, generation: Generation) -> Mapping[str, Any]:
        cursor = await self._connection.execute(
            "SELECT contract FROM revector.generation WHERE id = %s", [generation.id]
        )
        row = await cursor.fetchone()
        return row[0] if row else {}

    async def sweep(self, table: Table, generation: Generation, limit: int) -> int:
        """1. migration row FOR SHARE: the generation cannot be dropped between its work and its record;
        2. the next row ids, then their locks in key order, as windows take them: a window's change waits, or was there;
        3. in a statement that starts under the locks: work for what is wanted; an entry that is there owes a newer
           text, or was refused, and stays;
        4. the cursor, which a second sweeper cannot set back."""
        await self._connection.execute("SELECT 1 FROM revector.migration WHERE name = %s FOR SHARE", [self._name])
        cursor = await self._connection.execute(
            "SELECT coalesce((sweep->>%s)::bigint, 0) FROM revector.generation WHERE id = %s AND NOT swept",
            [str(table.id), generation.id],
        )
        row = await cursor.fetchone()
        replica = self._relations.replica(table)
        following = sql.SQL("SELECT r._row_id FROM {} AS r WHERE r._row_id > %s ORDER BY r._row_id LIMIT %s")
        found = await self._connection.execute(following.format(replica), [row[0], limit]) if row else None
        rows = [] if found is None else [row_id for (row_id,) in await found.fetchall()]
        if not rows:
            return 0
        keys = comma([sql.SQL("t.{}").format(name(k)) for k in table.key])
        lock = sql.SQL("SELECT 1 FROM {} AS t WHERE t._row_id = ANY(%s::bigint[]) ORDER BY {} FOR UPDATE")
        await self._connection.execute(lock.format(replica, keys), [rows])
        put = sql.SQL(_SWEEP).format(replica=replica, wanted=wanted(table, "t"))
        await self._connection.execute(put, {"generation": generation.id, "table": table.id, "rows": rows})
        await self._connection.execute(
            "UPDATE revector.generation SET sweep = sweep || jsonb_build_object(%(table)s::text, "
            "greatest(coalesce((sweep->>%(table)s)::bigint, 0), %(last)s)) WHERE id = %(generation)s",
            {"table": str(table.id), "last": rows[-1], "generation": generation.id},
        )
        return len(rows)

    async def set_swept(self, generation: Generation) -> None:
        await self._connection.execute("UPDATE revector.generation SET swept = true WHERE id = %s", [generation.id])

    async def routed(self) -> int | None:
        cursor = await self._connection.execute(
            "SELECT generation_id FROM revector.route WHERE migration = %s", [self._name]
        )
        row = await cursor.fetchone()
        return row[0] if row else None

    async def drop_generation(self, generation: Generation) -> None:
        # Whoever reads or builds on its relations for long must not hold the stream back meanwhile.
        await self._connection.execute(f"SET LOCAL lock_timeout = '{DROP_WAIT_S}s'".encode())
        await self._connection.execute("SELECT 1 FROM revector.migration WHERE name = %s FOR UPDATE", [self._name])
        if await self.routed() == generation.id:
            hint = "switch readers to another generation first"
            raise StepRefused("generation-routed", f"readers follow generation {generation.name}", hint)
        if [g.id for g in await self.generations()] == [generation.id]:
            hint = "a migration keeps at least one generation: add another one first"
            raise StepRefused("generation-last", f"{generation.name} is the only generation of {self._name}", hint)
        comparisons = PgComparisons(self._connection, self._relations)
        running = await comparisons.running()
        if running is not None and generation.id in running.generations:
            await comparisons.abandon(running.id)
        tables = await self._tables()
        for table in tables:
            # Waits for embedders that hold rows, entries and chunks, and keeps others from beginning: one by one, their
            # locks and ours could wait in a circle. Windows and pages wait for the migration row; readers go on.
            lock = sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(self._relations.replica(table))
            await self._connection.execute(lock)
        await self._connection.execute("DELETE FROM revector.work WHERE generation_id = %s", [generation.id])
        for table in tables:
            for statement in drop_chunks(self._relations, table, generation):
                await self._connection.execute(statement)
        await self._connection.execute("DELETE FROM revector.budget WHERE generation_id = %s", [generation.id])
        await self._connection.execute("DELETE FROM revector.generation WHERE id = %s", [generation.id])

    async def _tables(self) -> list[Table]:
        cursor = await self._connection.execute(
            "SELECT id, definition FROM revector.source_table WHERE migration = %s ORDER BY id", [self._name]
        )
        return [table_of(id, definition) for id, definition in await cursor.fetchall()]

    async def canary(self, generation: Generation) -> Canary | None:
        cursor = await self._connection.execute("SELECT canary FROM revector.generation WHERE id = %s", [generation.id])
        row = await cursor.fetchone()
        return None if row is None or row[0] is None else Canary(tuple(row[0]["vector"]), row[0]["model"])

    async def set_canary(self, generation: Generation, canary: Canary) -> None:
        await self._connection.execute(
            "UPDATE revector.generation SET canary = coalesce(canary, %s) WHERE id = %s",
            [Jsonb({"vector": list(canary.vector), "model": canary.model}), generation.id],
        )

    async def forecast(self, generation: Generation) -> Mapping[str, Any] | None:
        cursor = await self._connection.execute(
            "SELECT forecast FROM revector.generation WHERE id = %s", [generation.id]
        )
        row = await cursor.fetchone()
        return row[0] if row else None

    async def set_forecast(self, generation: Generation, forecast: Mapping[str, Any]) -> None:
        await self._connection.execute(
            "UPDATE revector.generation SET forecast = %s WHERE id = %s", [Jsonb(forecast), generation.id]
        )
