"""Who writes to the source in a chaos run: pgbench all the time, and probes that show when changes arrive again.

pgbench ends when its database goes away; it is started again as soon as that answers. Paused, none of its transactions
is open. Probes are articles with negative keys, which pgbench never picks; one statement writes several of them, so
that every partition of their topic has to be read.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from sandbox.processes import SandboxError
from sandbox.writer import Writer

LOOK_S = 0.2
KEYS_PER_PROBE = 8
ARRIVAL_LIMIT_S = 120.0

INSERT = """
insert into app.article (id, tenant_id, title, body, lang, tags, is_public, views, price, updated_at)
select -n, 1, 'Probe', 'Probe ' || n || ' was written at ' || clock_timestamp(), 'en', '{probe}', true, 0, 1, now()
from generate_series(%(first)s::bigint, %(last)s::bigint) as n
"""
FORGET = "delete from app.article where id < 0 and id > %s and id %% 3 = 0"  # so that deletes have to arrive too


class Traffic:
    """pgbench, kept alive by a thread of its own."""

    def __init__(self, dsn: str, rate: float) -> None:
        self._dsn, self._rate = dsn, rate
        self._lock = threading.Lock()
        self._writer: Writer | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._kept, name="traffic")
        self.starts = 0

    def start(self) -> None:
        self._thread.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nobody writes in the block; no transaction of pgbench is open. The source answers meanwhile."""
        with self._lock:
            self._end()
            yield

    def stop(self) -> None:
        """For good; repeatable."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._end()

    def totals(self) -> dict[str, int]:
        """Rows changed by kind and committed transactions, of all its runs."""
        with psycopg.connect(self._dsn) as connection:
            query = "select kind, sum(n)::bigint from traffic.done group by kind order by kind"
            return dict(connection.execute(query).fetchall())

    def _end(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(SandboxError, psycopg.Error):  # it had lost its database before
                writer.stop()

    def _kept(self) -> None:
        while not self._stop.wait(LOOK_S):
            with self._lock:
                if self._writer is not None and not self._writer.is_running:
                    self._end()
                if self._writer is None:
                    writer = Writer(self._dsn, rate=self._rate)
                    with contextlib.suppress(psycopg.Error):
                        writer.start()
                        self._writer = writer
                        self.starts += 1


class Prober:
    """Measures from a moment until rows written after it are in the replica, and one of them has its vector."""

    def __init__(self, source_dsn: str, target_dsn: str, schema: str, generation: str) -> None:
        self._source_dsn, self._target_dsn = source_dsn, target_dsn
        self._rows = f"select count(*) from {schema}.article where id between %s and %s and not _deleted"
        chunks = f"{schema}.article_{generation}"
        self._chunks = f"select count(*) from {schema}.article join {chunks} using (_row_id) where id between %s and %s"
        self._last = 0

    def write(self) -> tuple[int, int]:
        """Insert a probe, remove some old ones; its keys. Waits while the source does not answer."""
        deadline = time.monotonic() + ARRIVAL_LIMIT_S
        while True:
            first, self._last = self._last + 1, self._last + KEYS_PER_PROBE  # a lost answer may have been a commit
            try:
                with psycopg.connect(self._source_dsn, connect_timeout=5) as connection:
                    connection.execute(INSERT, {"first": first, "last": self._last})
                    connection.execute(FORGET, [-first])
                    return -self._last, -first
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def arrived(self, keys: tuple[int, int], since: float, *, embedded: bool, limit_s: float) -> float | None:
        """Seconds from `since` until all rows of the probe are there (embedded: their vectors too); None: not within
        the limit."""
        query = self._chunks if embedded else self._rows
        while time.monotonic() < since + limit_s:
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(self._target_dsn, autocommit=True, connect_timeout=5) as target,
            ):
                while time.monotonic() < since + limit_s:
                    row: Any = target.execute(query.encode(), keys).fetchone()
                    if row[0] == KEYS_PER_PROBE:
                        return round(time.monotonic() - since, 3)
                    time.sleep(0.02)
            time.sleep(0.05)
        return None
