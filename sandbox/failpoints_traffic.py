"""The source of a migration under fail points: its tables, its rows, and a writer that never rests.

Every text is written once only (a text that the provider was paid for twice was sent twice), bodies are long enough
to be left out of events that do not change them, keys move, and one small table is truncated now and then. Rows whose
id is below `RESERVED` are left alone, so that whoever corrupts their replica finds them as they were; so is the table
`still`, so that it can be locked.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import psycopg

from sandbox.compare import Checked
from sandbox.corruptions import DDL as DOCS
from sandbox.corruptions import TABLE as DOC_TABLE

RESERVED = 200
POISON = "POISON"  # a text with this is refused by the provider
DDL = f"""{DOCS}
alter table app.doc alter column body set storage external;
create table app.memo (id bigint primary key, body text not null);
create table app.still (id bigint primary key, body text not null);
alter publication revector add table app.memo, app.still;
"""
TABLES = f"""{DOC_TABLE}
[[table]]
source = "app.memo"
text = "{{body}}"

[[table]]
source = "app.still"
text = "{{body}}"
"""
NAMES = ("app.doc", "app.memo", "app.still")
CHECKS = (
    Checked(
        "app.doc",
        "doc",
        "doc_v2",
        "id::text",
        "title || E'\\n\\n' || body",
        "concat_ws('|', tenant, published, views)",
        filters="tenant::text",
        filter_columns=", tenant",
        searchable="published",
    ),
    Checked("app.memo", "memo", "memo_v2", "id::text", "body", "''"),
    Checked("app.still", "still", "still_v2", "id::text", "body", "''"),
)
# Of a toasted body an event that does not change it says nothing. Many characters, few tokens.
BODY = "'body of ' || {0} || ' ' || repeat('-', 2300)"
POISONED = 3


def fill(source: psycopg.Connection[Any], rows: int) -> None:
    """Rows that are there before anything starts, one in five of them hidden."""
    source.execute(
        "insert into app.doc (id, tenant, title, body, published) select n, n % 7, 'title ' || n, "
        f"{BODY.format('n')}, n % 5 <> 0 from generate_series(1, {rows}) n"
    )
    source.execute("insert into app.memo select n, 'memo ' || n from generate_series(1, 20) n")
    source.execute("insert into app.still select n, 'still ' || n from generate_series(1, 5) n")


class Traffic:
    """A writer in a thread, from `with` to its end, as often as wanted. What it writes is the seed's."""

    KINDS = ("insert", "text", "body", "metadata", "filter", "hide", "delete", "again", "key", "truncate", "poison")
    WEIGHTS = (8, 25, 5, 15, 10, 8, 8, 5, 12, 1, 1)

    def __init__(self, dsn: str, rows: int, seed: int, pause_s: float = 0.05) -> None:
        self._dsn, self._pause_s = dsn, pause_s
        self._random = random.Random(seed)
        self._live = list(range(RESERVED, rows + 1))
        self._gone: list[int] = []
        self._serial, self._poisoned = rows, 0
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self.transactions = 0

    def __enter__(self) -> Traffic:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                pause_s = self._pause_s
                while not self._stop.wait(pause_s):
                    began = time.monotonic()
                    with connection.transaction():
                        for kind in self._random.choices(self.KINDS, self.WEIGHTS, k=self._random.randint(1, 4)):
                            self._write(connection, kind)
                    self.transactions += 1
                    pause_s = self._pause_s + 5 * (time.monotonic() - began)  # a busy machine is given less to do
                connection.execute("delete from app.doc where title like %s", [f"{POISON}%"])
        except Exception as error:
            self._error = error

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _any(self) -> int:
        return self._random.choice(self._live)

    def _write(self, connection: psycopg.Connection[Any], kind: str) -> None:
        n = self._next()
        if kind == "poison":
            self._poisoned += 1
            kind = "poison" if self._poisoned <= POISONED else "insert"
        if kind in ("insert", "again", "poison"):
            id = self._gone.pop() if kind == "again" and self._gone else n
            title = f"{POISON} {n}" if kind == "poison" else f"title {n}"
            connection.execute(
                f"insert into app.doc (id, tenant, title, body, published) values (%s, 1, %s, {BODY.format(n)}, true)",
                [id, title],
            )
            if kind != "poison":
                self._live.append(id)
        elif kind in ("delete", "key"):
            id = self._live.pop(self._random.randrange(len(self._live)))
            if kind == "delete":
                connection.execute("delete from app.doc where id = %s", [id])
                self._gone.append(id)
            else:
                connection.execute("update app.doc set id = %s, title = %s where id = %s", [n, f"moved {n}", id])
                self._live.append(n)
        elif kind == "truncate":
            connection.execute("truncate app.memo")
            connection.execute(
                "insert into app.memo select %s + g, 'memo ' || %s + g from generate_series(1, 5) g", [n, n]
            )
            self._serial += 5
        else:
            change = {
                "text": f"title = 'title {n}'",
                "body": f"body = {BODY.format(n)}",
                "metadata": "views = views + 1",
                "filter": f"tenant = {n % 7}",
                "hide": "published = not published",
            }[kind]
            # A row that comes back into sight is embedded again: with another text.
            also = f", title = 'title {n}'" if kind == "hide" else ""
            connection.execute(f"update app.doc set {change}{also} where id = %s", [self._any()])
