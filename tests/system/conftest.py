"""Migrations on the real stack, each with databases, topics, slot and connector of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.provider import ProviderServer
from sandbox.stack import Sandbox
from tests.system.migration import Migration, Setting

_numbers = itertools.count(1)


@pytest.fixture
def migrate(stack: Sandbox, tmp_path: Path) -> Iterator[Callable[[Setting], Migration]]:
    """Sets a migration up: call it with a Setting. What it started is gone after the test."""
    made: list[Migration] = []

    def make(setting: Setting) -> Migration:
        made.append(Migration(stack, tmp_path, f"m{next(_numbers)}", setting))
        return made[-1]

    yield make
    for migration in made:
        migration.close()


@pytest.fixture
def provider(stack: Sandbox) -> Iterator[ProviderServer]:
    """A scriptable provider of this test's own, honest until it is told otherwise."""
    server = stack.scripted_provider()
    yield server
    server.stop()
