"""What psycopg knows of pgvector's types: learnt once, for all connections of a process.

psycopg keeps every adapter class that it was ever given, so a class for each connection would be a leak of some 24 KB
a connection. The types' numbers differ between databases, and change where the extension is made anew.
"""

from __future__ import annotations

import psycopg
from pgvector.psycopg import register_vector_async
from psycopg.adapt import AdaptersMap
from psycopg.rows import TupleRow

_EXTENSION = """
SELECT n.nspname, n.nspname = ANY(current_schemas(true)), ARRAY(
    SELECT t.typname || ' ' || t.oid FROM pg_type t
    WHERE t.typnamespace = n.oid AND t.typname IN ('vector', 'halfvec', 'sparsevec') ORDER BY t.typname)
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
"""


class PgvectorTypes:
    """adapters: what a new connection starts from."""

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)

    async def teach(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        """Make a connection ready for these types, wherever the extension lives; nothing where it is not installed
        yet."""
        row = await (await connection.execute(_EXTENSION)).fetchone()
        if row is None:
            return
        schema, is_found, types = row
        if not is_found:
            await connection.execute(
                "SELECT set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''), "
                "quote_ident(%s)), false)",
                [schema],
            )
        if types != self._known(connection):
            await register_vector_async(connection)
            self.adapters = AdaptersMap(connection.adapters)

    @staticmethod
    def _known(connection: psycopg.AsyncConnection[TupleRow]) -> list[str]:
        found = [connection.adapters.types.get(name) for name in ("halfvec", "sparsevec", "vector")]
        return [f"{info.name} {info.oid}" for info in found if info is not None]


PGVECTOR = PgvectorTypes()
