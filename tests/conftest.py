"""The real stack, started once per test run by the first test that asks for it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from sandbox.stack import Sandbox

# A shell that starts a command in the background has it ignore this signal, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def stack() -> Iterator[Sandbox]:
    """Source, target, Kafka, Connect and the embeddings server, empty. Tests make databases and topics of their own."""
    with Sandbox.start() as sandbox:
        yield sandbox
