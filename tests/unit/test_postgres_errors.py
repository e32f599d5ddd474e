"""What a driver's error means to us, where no server of the suites gives it."""

from __future__ import annotations

from types import SimpleNamespace

import psycopg
import pytest

from connectors.postgres_errors import translate
from daemon.errors import RevectorError, TransientError


def not_as_required(function: str) -> psycopg.Error:
    class Raised(psycopg.errors.ObjectNotInPrerequisiteState):
        diag = SimpleNamespace(source_function=function)  # type: ignore[assignment]

    return Raised("recovery is in progress")


def test_a_source_that_became_a_standby_is_away_and_no_fault_of_ours() -> None:
    """Asked how far its log is, it answers with another SQLSTATE than to every other statement."""
    error = translate(not_as_required("pg_current_wal_flush_lsn"), "source", "wal position")
    assert isinstance(error, TransientError)
    assert (error.id, "primary" in error.hint) == ("source-read-only", True)


@pytest.mark.parametrize("function", ["", "CheckLogicalDecodingRequirements"])
def test_other_states_that_are_not_as_required_are_not_waited_for(function: str) -> None:
    error = translate(not_as_required(function), "source", "slot")
    assert type(error) is RevectorError
