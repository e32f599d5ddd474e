"""A real Postgres with pgvector, started once per test run, and an empty database for each test.

`dsn` is a database of the test's own. `emptied_dsn` is one that all tests share and that is emptied after each: the
control schema stays, so a test is ready in a fraction of the time.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from sandbox.parts import Ports
from sandbox.postgres import Postgres
from sandbox.processes import Guardian
from tests.ports.target_shop import Shop
from tests.ports.two_connections import Connections, Postgresql

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="revector-ports-"))
    folder.chmod(0o711)
    ports = Ports()
    with Guardian(folder) as guardian:
        cluster = Postgres(guardian, "target", ports.take(), folder / "target", folder / "target.log")
        cluster.initialise()
        cluster.start()
        yield cluster
    ports.release()


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Callable[[], str]]:
    """Makes databases with pgvector; each call gives the DSN of another one."""
    made: list[str] = []

    def make() -> str:
        made.append(f"test_{next(_numbers)}")
        return postgres.create_database(made[-1], vector=True)

    yield make
    for name in made:
        postgres.drop_database(name)


@pytest.fixture
def dsn(database: Callable[[], str]) -> str:
    return database()


@pytest.fixture(scope="session")
def shared_dsn(postgres: Postgres) -> str:
    return postgres.create_database("shared", vector=True)


@pytest.fixture
def emptied_dsn(shared_dsn: str) -> Iterator[str]:
    yield shared_dsn
    with psycopg.connect(shared_dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        schemas = connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' "
            "AND nspname NOT IN ('public', 'information_schema', 'revector')"
        ).fetchall()
        for (schema,) in schemas:
            connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'revector' AND tablename <> 'schema_version'"
        ).fetchall()
        names = [sql.Identifier("revector", table) for (table,) in tables]
        if names:
            connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(sql.SQL(", ").join(names)))
            connection.execute("ALTER SEQUENCE revector.work_seq RESTART")


@pytest.fixture
async def postgresql(emptied_dsn: str) -> AsyncIterator[Postgresql]:
    async with await psycopg.AsyncConnection.connect(emptied_dsn, autocommit=True) as connection:
        yield Postgresql(connection)


@pytest.fixture
async def connections(emptied_dsn: str) -> AsyncIterator[Connections]:
    connections = Connections(emptied_dsn)
    yield connections
    for target in connections.made:
        await target.close()


@pytest.fixture
async def first(connections: Connections) -> Shop:
    return await Shop.open(connections)


@pytest.fixture
def second(first: Shop, connections: Connections) -> Shop:
    """The same migration over another connection."""
    return Shop(connections, connections.connect("second"), first.table, first.generation)
