"""Freshness as an outside client sees it: from its own commit at the source to its vector in the target.

Each probe inserts one note at the source and looks for its chunk in the target; one clock, this process's. Probes
overlap, so a slow one does not hide others.
"""

import threading
import time
import uuid
from dataclasses import dataclass, field

import psycopg

EVERY_S = 0.2
LOOK_S = 0.02


@dataclass
class Probes:
    """Milliseconds per probe that arrived; waiting: those that have not."""

    took_ms: list[float] = field(default_factory=list)
    waiting: dict[str, float] = field(default_factory=dict)

    def quantile(self, share: float) -> float | None:
        return quantile(self.took_ms, share)


def quantile(values: list[float], share: float) -> float | None:
    """None where there are none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Prober:
    """Probes until it is stopped. Its thread ends with `stop`."""

    def __init__(self, source_dsn: str, target_dsn: str, schema: str) -> None:
        self._source_dsn, self._target_dsn, self._schema = source_dsn, target_dsn, schema
        self.probes = Probes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probes")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> Probes:
        self._stop.set()
        self._thread.join()
        return self.probes

    def _run(self) -> None:
        with (
            psycopg.connect(self._source_dsn, autocommit=True) as source,
            psycopg.connect(self._target_dsn, autocommit=True) as target,
        ):
            next_at = time.monotonic()
            while not self._stop.is_set():
                if time.monotonic() >= next_at:
                    next_at += EVERY_S
                    self._insert(source)
                self._look(target)
                self._stop.wait(LOOK_S)

    def _insert(self, source: psycopg.Connection) -> None:
        key = str(uuid.uuid4())
        source.execute(
            "insert into app.note (id, body, author, pinned, written_on) values (%s, %s, 'probe', false, current_date)",
            [key, f"A note that asks how fresh the search is, number {key}."],
        )
        self.probes.waiting[key] = time.monotonic()

    def _look(self, target: psycopg.Connection) -> None:
        if not self.probes.waiting:
            return
        query = (
            f"select r.id::text from {self._schema}.note r join {self._schema}.note_v2 c using (_row_id)"
            " where r.id = any(%s::uuid[])"
        )
        arrived = target.execute(query.encode(), [list(self.probes.waiting)]).fetchall()
        now = time.monotonic()
        for (key,) in arrived:
            self.probes.took_ms.append((now - self.probes.waiting.pop(key)) * 1000)


class ReplicaTimer:
    """Times metadata changes and deletes from their commit at the source to the replica, one after the other."""

    def __init__(self, source_dsn: str, target_dsn: str, schema: str) -> None:
        self._source_dsn, self._target_dsn, self._schema = source_dsn, target_dsn, schema
        self._took_ms: list[float] = []
        self.outstanding = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replica timer")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> list[float]:
        """Milliseconds of each change that arrived."""
        self._stop.set()
        self._thread.join()
        return self._took_ms

    def _run(self) -> None:
        with (
            psycopg.connect(self._source_dsn, autocommit=True) as source,
            psycopg.connect(self._target_dsn, autocommit=True) as target,
        ):
            keys = [
                row[0]
                for row in source.execute("select id from app.note where author = 'probe' order by id").fetchall()
            ]
            for number, key in enumerate(keys):
                if self._stop.is_set():
                    return
                if number % 2:
                    source.execute("delete from app.note where id = %s", [key])
                    self._arrival(target, key, "_deleted")
                else:
                    source.execute("update app.note set pinned = not pinned, author = 'timed' where id = %s", [key])
                    self._arrival(target, key, "(author = 'timed' or _deleted)")
                self._stop.wait(EVERY_S)

    def _arrival(self, target: psycopg.Connection, key: object, condition: str) -> None:
        began = time.monotonic()
        query = f"select 1 from {self._schema}.note where id = %s and {condition}"
        while target.execute(query.encode(), [key]).fetchone() is None:
            if time.monotonic() - began > 30:
                self.outstanding += 1
                return
            time.sleep(LOOK_S)
        self._took_ms.append((time.monotonic() - began) * 1000)
