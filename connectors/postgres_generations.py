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
from connectors.schema import make_chunks, table_of
from daemon.core.model import Canary, Generation, Table
from daemon.errors import ConfigError, Problem

_GENERATION = (
    "id, name, contract_id, (contract->>'dimensions')::integer, contract->>'vector_type', contract->>'metric', "
    "phase, swept, fed"
)


class PgGenerations(PgBudget):
    """The Ledger port's methods on generations and certificates, over one open transaction."""

    async def generations(self) -> list[Generation]:
        return await self._generations(fed_only=False)

    async def _generations(self, *, fed_only: bool) -> list[Generation]:
        cursor = await self._connection.execute(
            sql.SQL("SELECT {} FROM revector.generation WHERE migration = %s AND (fed OR NOT %s) ORDER BY id").format(
                sql.SQL(_GENERATION)
            ),
            [self._name, fed_only],
        )
        return [Generation(*row) for row in await cursor.fetchall()]

    async def add_generation(self, name: str, contract: Mapping[str, Any], contract_id: str) -> Generation:
        # FOR UPDATE waits for every window and page that has read the list without this generation.
        cursor = await self._connection.execute(
            "SELECT started_at IS NULL FROM revector.migration WHERE name = %s FOR UPDATE", [self._name]
        )
        row = await cursor.fetchone()
        existing = [generation for generation in await self.generations() if generation.name == name]
        if existing:
            if existing[0].contract_id != contract_id:
                hint = "give the new contract a generation of another name; vectors of two contracts are never mixed"
                problem = Problem("contract-changed", "target", f"generation {name} has another contract", hint)
                raise ConfigError([problem])
            return existing[0]
        await self._connection.execute(
            "INSERT INTO revector.generation (migration, name, contract, contract_id, swept) "
            "VALUES (%s, %s, %s, %s, %s)",
            [self._name, name, Jsonb(contract), contract_id, bool(row and row[0])],
        )
        generation = next(g for g in await self.generations() if g.name == name)
        # Its relations exist as soon as it is listed: a window that drops chunks of every generation finds them.
        cursor = await self._connection.execute(
            "SELECT id, definition FROM revector.source_table WHERE migration = %s ORDER BY id", [self._name]
        )
        for id, definition in await cursor.fetchall():
            await make_chunks(self._connection, self._relations, table_of(id, definition), generation)
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
            "SELECT extract(epoch FROM clock_timestamp() - max(at))::float8 FROM revector.certificate "
            "WHERE migration = %s AND generation_id = %s",
            [self._name, generation.id],
        )
        row = await cursor.fetchone()
        return None if row is None else row[0]

    async def store_certificate(self, generation: Generation, document: Mapping[str, Any], digest: str) -> None:
        await self._connection.execute(
            "INSERT INTO revector.certificate (migration, generation_id, document, digest) VALUES (%s, %s, %s, %s)",
            [self._name, generation.id, Jsonb(document), digest],
        )

    async def generation_contract(self, generation: Generation) -> Mapping[str, Any]:
        cursor = await self._connection.execute(
            "SELECT contract FROM revector.generation WHERE id = %s", [generation.id]
        )
        row = await cursor.fetchone()
        return row[0] if row else {}

    async def sweep(self, table: Table, generation: Generation, limit: int) -> int:
        raise NotImplementedError

    async def set_swept(self, generation: Generation) -> None:
        raise NotImplementedError

    async def drop_generation(self, generation: Generation) -> None:
        raise NotImplementedError

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
