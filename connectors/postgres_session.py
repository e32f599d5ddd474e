"""One lazy Postgres connection for one task: opened on first use, reopened after it broke.

`Session.use` is the only way to the connection: it serialises its users, translates driver errors
(`connectors.postgres_errors`) and discards a connection that is left in an unknown state, so that the next use starts
on a fresh one. It pins the session's settings, which make a value's text canonical, and bounds how long a dead
network can hold us.

It knows no table and no statement; which side it serves is a word for messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from connectors.pgvector_types import PgvectorTypes
from connectors.postgres_errors import Side, translated
from connectors.postgres_watch import Backend, WatchedConnection

Connection = psycopg.AsyncConnection[TupleRow]

# What makes `col::text` one form per value, on either side. `extra_float_digits = 1` is the shortest exact float.
CANONICAL: Mapping[str, str] = {
    "DateStyle": "ISO, YMD",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmloption": "content",
    "standard_conforming_strings": "on",
    "client_encoding": "UTF8",
}

# Used where the dsn says nothing: a network that swallows packets is noticed in about half a minute, not in hours.
_NETWORK: Mapping[str, str] = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

# The same on the server's side, where nothing was set for the session, its role or the database: locks of a client
# that is gone are freed.
_SERVER_NETWORK: Mapping[str, str] = {
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30s",
    "client_connection_check_interval": "5s",
}

_SET = "SELECT count(set_config(name, value, false)) FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)"
# Servers on other systems refuse to check.
_SET_DEFAULTS = """
SELECT count(set_config(w.name, w.value, false))
FROM unnest(%s::text[], %s::text[]) AS w (name, value) JOIN pg_settings AS s ON s.name = w.name
WHERE s.source NOT IN ('client', 'user', 'database', 'database user', 'session')
  AND (w.name <> 'client_connection_check_interval' OR version() LIKE '%%linux%%')
"""

# A predecessor that broke may still hold locks, or be in the middle of a commit.
_END = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE pid = %s AND extract(epoch FROM backend_start)::text = %s
   AND usename = current_user AND application_name = current_setting('application_name')
"""


class Session:
    """A connection in autocommit mode with pinned settings.

    settings: run-time parameters set once per connection. types: what it is to know beside Postgres's own.
    """

    def __init__(
        self,
        dsn: str,
        application_name: str,
        side: Side,
        settings: Mapping[str, str] = CANONICAL,
        types: PgvectorTypes | None = None,
    ) -> None:
        self.side = side
        self._dsn = dsn
        self._application_name = application_name
        self._settings = settings
        self._types = types
        self._connection: WatchedConnection | None = None
        self._broken: Backend | None = None  # the last connection's: it may not have ended in order
        self._busy = asyncio.Lock()

    @asynccontextmanager
    async def use(self, operation: str) -> AsyncIterator[Connection]:
        """The connection, ours alone until the block ends. Errors leave translated; `operation` names them."""
        async with self._busy:
            with translated(self.side, operation):
                try:
                    yield await self._connected()
                except BaseException:
                    await self._discard_unless_idle()
                    raise

    async def close(self) -> None:
        """May be called twice; a later use connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error, OSError):
                await connection.close()

    async def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        given = conninfo_to_dict(self._dsn)
        defaults = {name: value for name, value in _NETWORK.items() if name not in given}
        conninfo = make_conninfo(self._dsn, application_name=self._application_name, **defaults)
        context = None if self._types is None else self._types.adapters
        connection = await WatchedConnection.connect(conninfo, autocommit=True, context=context)
        try:
            await connection.watch(conninfo)
            await self._settle(connection)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return connection

    async def _settle(self, connection: WatchedConnection) -> None:
        """Pin the settings, and end what is left of the connection before this one."""
        await connection.execute(_SET_DEFAULTS, [list(_SERVER_NETWORK), list(_SERVER_NETWORK.values())])
        await connection.execute(_SET, [list(self._settings), list(self._settings.values())])
        if self._broken is not None:
            await connection.execute(_END, self._broken)
        self._broken = connection.backend
        if self._types is not None:
            await self._types.teach(connection)

    async def _discard_unless_idle(self) -> None:
        """Without this, a query cancelled half-way would leave its transaction to the next user."""
        connection = self._connection
        if connection is None:
            return
        if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE:
            await self.close()
