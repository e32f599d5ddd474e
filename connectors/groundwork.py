"""The parts' owner's side of the connectors: `daemon.ports.Groundwork` over both databases, the brokers and Connect.

What `core.groundwork` found absent is made here, one statement or request per action, and nothing is ever replaced: a
thing that exists by then is left as it is. The sessions pin no settings, so that what the server would give another
session can be read in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from psycopg import errors, sql

from connectors.connect_rest import ConnectRest
from connectors.kafka_topics import KafkaTopics
from connectors.postgres_session import Session
from daemon.core.connector_role import ConnectorRole
from daemon.core.groundwork import (
    PUBLISHED,
    Action,
    AwaitSlot,
    CreateConnector,
    CreateExtension,
    CreatePublication,
    CreateTopic,
    ExtendPublication,
)
from daemon.errors import RevectorError
from daemon.ports import TopicSetup
from daemon.ports.groundwork import Columns

# Somebody who holds a table for long must not be queued behind: everybody else would wait behind us.
SESSION = {"lock_timeout": "5s"}

_UNREADABLE = """
SELECT CASE WHEN row_security_active(c.oid) THEN '{*}'::text[]
            ELSE (SELECT coalesce(array_agg(a.attname::text ORDER BY a.attnum), '{}') FROM pg_attribute a
                   WHERE a.attrelid = c.oid AND a.attname = ANY(%(columns)s) AND NOT a.attisdropped
                     AND NOT (has_schema_privilege(s.oid, 'USAGE') AND has_column_privilege(c.oid, a.attnum, 'SELECT')))
       END
  FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
 WHERE s.nspname = %(schema)s AND c.relname = %(name)s AND c.relkind IN ('r', 'p')
"""

# On Amazon RDS a membership stands for the attribute.
_ROLE = """
SELECT r.rolsuper OR r.rolreplication
         OR coalesce((SELECT pg_has_role(r.oid, g.oid, 'MEMBER') FROM pg_roles g WHERE g.rolname = 'rds_replication'),
                     false),
       (SELECT count(*) FROM pg_replication_slots), current_setting('max_replication_slots')::int,
       (SELECT count(*) FROM pg_stat_replication), current_setting('max_wal_senders')::int
  FROM pg_roles r WHERE r.rolname = %(role)s
"""

# What a new session of the role in the database starts with, in the server's order of precedence: role in database,
# role, database, all; else the server's own value, which this session shows where nothing of ours overrides it.
_SETTINGS = """
SELECT p.name, coalesce(
         (SELECT substr(entry, strpos(entry, '=') + 1)
            FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) AS entry
           WHERE split_part(entry, '=', 1) = p.name
             AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = %(database)s))
             AND s.setrole IN (0, (SELECT r.oid FROM pg_roles r WHERE r.rolname = %(role)s))
           ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1),
         CASE WHEN p.source IN ('database', 'user', 'database user', 'client', 'session') THEN p.boot_val
              ELSE p.reset_val END)
  FROM pg_settings p WHERE p.name IN ('extra_float_digits', 'bytea_output')
"""


class PartsGroundwork:
    """Implements `daemon.ports.groundwork.Groundwork`.

    data, single: the tables' topics, and those of one partition; `topics` knows both. Closes what it is given.
    """

    def __init__(
        self,
        sessions: tuple[Session, Session],
        topics: KafkaTopics,
        connect: ConnectRest,
        single: Sequence[str],
    ) -> None:
        self._source, self._target = sessions
        self._topics = topics
        self._connect = connect
        self._single = frozenset(single)

    async def topics(self) -> tuple[tuple[TopicSetup, ...], tuple[TopicSetup, ...]]:
        found = await self._topics.setup()
        data = tuple(topic for topic in found if topic.name not in self._single)
        return data, tuple(topic for topic in found if topic.name in self._single)

    async def unreadable(self, tables: Columns) -> Columns:
        refused: dict[tuple[str, str], Sequence[str]] = {}
        async with self._source.use("read privileges") as connection:
            for (schema, name), columns in tables.items():
                asked = {"schema": schema, "name": name, "columns": list(columns)}
                row = await (await connection.execute(_UNREADABLE, asked)).fetchone()
                if row is not None and row[0]:
                    refused[schema, name] = tuple(row[0])
        return refused

    async def connector_role(self, name: str, database: str) -> ConnectorRole | None:
        async with self._source.use("connector's role") as connection:
            asked = {"role": name, "database": database}
            row = await (await connection.execute(_ROLE, asked)).fetchone()
            settings = await (await connection.execute(_SETTINGS, asked)).fetchall()
        return None if row is None else ConnectorRole(row[0], dict(settings), *row[1:])

    async def make(self, action: Action) -> None:
        if isinstance(action, CreatePublication | ExtendPublication):
            await self._publish(action)
        elif isinstance(action, CreateTopic):
            await self._topics.create({action.name: action.partitions}, action.config)
        elif isinstance(action, CreateExtension):
            async with self._target.use("create extension") as connection:
                await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        elif isinstance(action, CreateConnector):
            await self._connect.create(action.config)
        elif isinstance(action, AwaitSlot):
            raise RevectorError("internal-fault", "a slot is made by its connector", "please report it")

    async def close(self) -> None:
        """May be called twice."""
        await asyncio.gather(self._source.close(), self._target.close(), self._topics.close(), self._connect.close())

    async def _publish(self, action: CreatePublication | ExtendPublication) -> None:
        """Adding is one statement per table: one that is a member by then must not keep the others out."""
        name = sql.Identifier(action.name)
        tables = [sql.Identifier(*table) for table in action.tables]
        if isinstance(action, CreatePublication):
            command = "CREATE PUBLICATION {} FOR TABLE {} WITH (publish = {})"
            listed = sql.SQL(", ").join(tables)
            statements = [sql.SQL(command).format(name, listed, sql.Literal(PUBLISHED))]
        else:
            statements = [sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(name, table) for table in tables]
        async with self._source.use("publish tables") as connection:
            for statement in statements:
                try:
                    await connection.execute(statement)
                except errors.DuplicateObject:
                    continue
