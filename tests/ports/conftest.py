"""A real Postgres with pgvector, started once per test run, and an empty database of its own for each test."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.parts import Ports
from sandbox.postgres import Postgres
from sandbox.processes import Guardian

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
