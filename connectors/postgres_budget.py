"""What processes of one migration share besides work: the budget of a provider, and the orders of operators.

The budget is `core.budget`'s schedule in one row per generation. A reservation is one statement: it waits for the
row's lock, reads the clock after that wait, takes its place and moves the schedule on. So reservations of any number
of processes follow one another exactly, and all of them by the clock of this database. Each holds the row for one
short transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from connectors.postgres_session import Connection
from connectors.relations import Relations
from daemon.core.budget import BURST_S, cost, is_limited, tokens_s
from daemon.core.model import Generation, Rates

# A cost that is null belongs to a rate that is not known: its instant is neither asked nor moved. On conflict the row's
# own instants are read under its lock; what was reserved at another rate is worth as many requests and tokens now.
_RESERVE = """
INSERT INTO revector.budget AS b (generation_id, requests_at, tokens_at, request_rate, token_rate)
VALUES (%(generation)s,
        coalesce(clock_timestamp() - %(burst)s * interval '1 second' + %(request)s::float8 * interval '1 second',
                 '-infinity'),
        coalesce(clock_timestamp() - %(burst)s * interval '1 second' + %(tokens)s::float8 * interval '1 second',
                 '-infinity'),
        %(request_rate)s, %(token_rate)s)
ON CONFLICT (generation_id) DO UPDATE SET (requests_at, tokens_at, request_rate, token_rate) = (
    SELECT coalesce(start + %(request)s::float8 * interval '1 second', b.requests_at),
           coalesce(start + %(tokens)s::float8 * interval '1 second', b.tokens_at),
           excluded.request_rate, excluded.token_rate
    FROM (SELECT greatest(b.held_until, c.now - %(burst)s * interval '1 second',
                          CASE WHEN %(request)s::float8 IS NOT NULL THEN
                              CASE WHEN b.requests_at > c.now AND b.request_rate IS NOT NULL
                                  THEN c.now + (b.requests_at - c.now) * (b.request_rate / %(request_rate)s::float8)
                                  ELSE b.requests_at END END,
                          CASE WHEN %(tokens)s::float8 IS NOT NULL THEN
                              CASE WHEN b.tokens_at > c.now AND b.token_rate IS NOT NULL
                                  THEN c.now + (b.tokens_at - c.now) * (b.token_rate / %(token_rate)s::float8)
                                  ELSE b.tokens_at END END) AS start
          FROM (SELECT clock_timestamp() AS now) AS c) AS s
)
RETURNING extract(epoch FROM
    greatest(CASE WHEN %(tokens)s::float8 IS NOT NULL THEN b.tokens_at - %(tokens)s::float8 * interval '1 second'
                  ELSE b.requests_at - %(request)s::float8 * interval '1 second' END, clock_timestamp())
    - clock_timestamp())::float8
"""

# Nothing lies behind the burst: what was not used is not given back a second time.
_REFUND = """
UPDATE revector.budget AS b
SET tokens_at = greatest(f.floor, greatest(f.floor, b.tokens_at) - %(seconds)s * interval '1 second')
FROM (SELECT clock_timestamp() - %(burst)s * interval '1 second' AS floor) AS f
WHERE b.generation_id = %(generation)s
"""

_HOLD_OFF = """
INSERT INTO revector.budget AS b (generation_id, held_until)
VALUES (%(generation)s, clock_timestamp() + %(seconds)s * interval '1 second')
ON CONFLICT (generation_id) DO UPDATE SET held_until = greatest(b.held_until, excluded.held_until)
"""

_HELD = """
SELECT greatest(0, extract(epoch FROM greatest(held_until, clock_timestamp()) - clock_timestamp()))::float8
FROM revector.budget WHERE generation_id = %s
"""


class PgBudget:
    """The Ledger port's methods on budgets and orders, over one open transaction."""

    def __init__(self, connection: Connection, relations: Relations) -> None:
        self._connection = connection
        self._relations = relations
        self._name = relations.migration

    async def reserve(self, generation: Generation, tokens: int, rates: Rates) -> float:
        if not is_limited(rates):
            found = await (await self._connection.execute(_HELD, [generation.id])).fetchone()
            return 0.0 if found is None else float(found[0])
        asked = cost(tokens, rates)
        values = {
            "generation": generation.id,
            "burst": BURST_S,
            "request": asked.requests_s,
            "tokens": asked.tokens_s,
            "request_rate": rates.requests_per_minute,
            "token_rate": rates.tokens_per_minute,
        }
        row = await (await self._connection.execute(_RESERVE, values)).fetchone()
        return 0.0 if row is None else max(0.0, float(row[0]))

    async def refund(self, generation: Generation, tokens: int, rates: Rates) -> None:
        seconds = tokens_s(tokens, rates)
        if seconds is not None:
            values = {"generation": generation.id, "burst": BURST_S, "seconds": seconds}
            await self._connection.execute(_REFUND, values)

    async def paced_by(self, generation: Generation) -> Rates | None:
        query = "SELECT request_rate, token_rate FROM revector.budget WHERE generation_id = %s"
        row = await (await self._connection.execute(query, [generation.id])).fetchone()
        return None if row is None or (row[0] is None and row[1] is None) else Rates(row[0], row[1])

    async def hold_off(self, generation: Generation, seconds: float) -> None:
        await self._connection.execute(_HOLD_OFF, {"generation": generation.id, "seconds": seconds})

    async def orders(self) -> Mapping[str, Any]:
        query = "SELECT settings FROM revector.control WHERE migration = %s"
        row = await (await self._connection.execute(query, [self._name])).fetchone()
        return {} if row is None else dict(row[0])

    async def order(self, settings: Mapping[str, Any]) -> None:
        query = "UPDATE revector.control SET settings = %s WHERE migration = %s"
        await self._connection.execute(query, [Jsonb(dict(settings)), self._name])
