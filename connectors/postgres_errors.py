"""One place where psycopg's errors become `daemon.errors`.

Both Postgres sides use it: `with translated("source", "page"): ...`. What happens next is decided by SQLSTATE alone,
or, while connecting (libpq gives no SQLSTATE there), by known phrases of its message.

The driver's text never travels on: it can hold row values ("Key (email)=(…) already exists"), parameters, or parts of
a connection string. The translated error names the operation, the SQLSTATE and the condition's name; the driver's
error stays the `__cause__` with its text struck out, so that a traceback is safe to log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import psycopg

from daemon.errors import (
    ConfigError,
    PermissionRefused,
    Problem,
    RevectorError,
    SchemaChanged,
    TransientError,
)

Side = Literal["source", "target"]

# SQLSTATE or its class -> (id suffix, hint). Longest match wins. All of these pass by themselves.
_TRANSIENT: dict[str, tuple[str, str]] = {
    "08": ("unreachable", "check that Postgres runs and that the network reaches it"),
    "25006": ("read-only", "the server is in recovery: point the dsn at the primary"),
    "25P03": ("timeout", "an idle transaction was ended; it is repeated"),
    "25P04": ("timeout", "a transaction ran too long and was ended; it is repeated"),
    "40": ("conflict", "concurrent transactions collided; it is repeated"),
    "53": ("overloaded", "the server is out of connections, memory or disk"),
    "55P03": ("locked", "somebody holds a lock for long: see pg_stat_activity"),
    "55006": ("locked", "the object is in use: see pg_stat_activity"),
    "57014": ("timeout", "the statement was cancelled or ran past statement_timeout"),
    "57": ("unreachable", "the server is shutting down or starting up"),
    "58": ("unreachable", "the server had a system error: see its log"),
    "XX000": ("unreachable", "the server had an internal error: see its log"),
}
_CHANGED = {"42703", "42P01", "42704", "3F000"}
_REFUSED = {"28000", "28P01"}

# Phrases of libpq and of a server that speaks English -> SQLSTATE.
_PHRASES: tuple[tuple[str, str], ...] = (
    ("password authentication failed", "28P01"),
    ("no password supplied", "28P01"),
    ("authentication failed", "28000"),
    ("no pg_hba.conf entry", "28000"),
    ("pg_hba.conf rejects", "28000"),
    ("is not permitted to log in", "28000"),
    ("permission denied for database", "42501"),
    ("too many connections", "53300"),
    ("remaining connection slots are reserved", "53300"),
    ("is starting up", "57P03"),
    ("is shutting down", "57P03"),
)
_REASONS: tuple[tuple[str, str], ...] = (
    ("connection refused", "connection refused"),
    ("too many clients", "it takes no more connections (max_connections)"),
    ("remaining connection slots", "it takes no more connections (max_connections)"),
    ("timeout", "timed out"),
    ("could not translate host name", "host name unknown"),
    ("name or service not known", "host name unknown"),
    ("certificate", "TLS certificate not accepted"),
    ("ssl", "TLS failed"),
    ("closed", "connection closed"),
)


def translate(error: psycopg.Error, side: Side, operation: str) -> RevectorError:
    """The error that a driver error means for `side` while it did `operation`. Strikes out the driver's text."""
    text = str(error).lower()
    state = error.sqlstate or _state_of_connect(error, text)
    function = error.diag.source_function or ""
    if state == "55000" and function.startswith("pg_current_wal"):
        state = "25006"  # what other statements say of a server in recovery, such as a primary that was taken over
    error.args = (f"SQLSTATE {state or 'none'}",)
    if isinstance(error, psycopg.ProgrammingError) and state is None:
        return _config(side, "dsn-invalid", "the connection string cannot be read", "see libpq, connection strings")
    if state is None:
        return _lost(error, side, operation, text)
    what = f"{side}: {operation} failed with SQLSTATE {state} ({_condition(error, state)})"
    if state in _REFUSED:
        hint = f"check user, password and pg_hba.conf of the {side}"
        return PermissionRefused("password-refused", what, hint)
    if state == "42501":
        return PermissionRefused("permission-denied", what, "docs/howto/deploy.md lists the grants that are needed")
    if state == "3D000":
        return _config(side, "database-missing", "there is no such database", "check dbname in the dsn")
    if state in _CHANGED:
        hint = "compare the table with the configuration, then start a migration for the changed table"
        return SchemaChanged("schema-changed", what, hint)
    if function == "RevalidateCachedQuery":  # DDL under a prepared statement: a fresh connection plans it again
        return TransientError(f"{side}-conflict", what, "the statement is planned again")
    for prefix in (state, state[:2]):
        if prefix in _TRANSIENT:
            suffix, hint = _TRANSIENT[prefix]
            return TransientError(f"{side}-{suffix}", what, hint)
    return RevectorError(f"{side}-fault", what, "this is a fault of revector: please report it with this message")


@contextmanager
def translated(side: Side, operation: str) -> Iterator[None]:
    """Raise psycopg's errors from the block as ours. operation: a few words, such as `page`; never a value."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, side, operation) from error


def _state_of_connect(error: psycopg.Error, text: str) -> str | None:
    """SQLSTATE of a refused connection, for which libpq has only text."""
    for phrase, state in _PHRASES:
        if phrase in text:
            return state
    if "does not exist" in text:
        return "3D000" if 'database "' in text else "28000"
    if error.pgconn is not None and error.pgconn.needs_password:
        return "28P01"
    return None


def _lost(error: psycopg.Error, side: Side, operation: str, text: str) -> RevectorError:
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        reason = next((reason for phrase, reason in _REASONS if phrase in text), "connection lost")
        return TransientError(
            f"{side}-unreachable",
            f"{side}: {operation} failed: {reason}",
            f"check that the {side} Postgres runs and that the network reaches it",
        )
    what = f"{side}: {operation} failed in the driver ({type(error).__name__})"
    return RevectorError(f"{side}-fault", what, "this is a fault of revector: please report it with this message")


def _config(side: Side, id: str, message: str, hint: str) -> ConfigError:
    return ConfigError([Problem(id, side, message, hint)])


def _condition(error: psycopg.Error, state: str) -> str:
    name = type(error).__name__
    try:
        return psycopg.errors.lookup(state).__name__
    except KeyError:
        return name
