"""A migration of any size on the real stack whose replica and chunks hold what the product would have put there.

The replica is filled by the product's own backfill. Embedding a million rows takes longer than a bench may, so the
chunks are written by COPY instead: whole documents, their digests, and the vectors that the scriptable provider gives
for them. Whether that is exactly what the product stores is not assumed: a comparison of it has to be clean.

A second small table, of notes, is for the freshness prober.
"""

from __future__ import annotations

import hashlib
import random
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from sandbox.config import Choice, Gen, render
from sandbox.daemons import command
from sandbox.pipeline import Pipeline, capture_tables
from sandbox.processes import SandboxError
from sandbox.provider import ProviderServer, Script, vectors_of
from sandbox.stack import Sandbox

DIMENSIONS = 64
DEADLINE_S = 900.0
BLOCK = 5000  # rows that are embedded and copied at once
DDL = """
create schema app;
create table app.doc (
    id {type} primary key, tenant integer not null, lang text not null, title text not null, body text not null,
    views integer not null default 0, price numeric(10,2), updated_at timestamptz not null default now()
);
create table app.note (
    id uuid primary key, body text not null, author text, pinned boolean not null, written_on date not null
);
create publication revector for table app.doc, app.note with (publish = 'insert, update, delete, truncate');
insert into app.note select gen_random_uuid(), 'A note, number ' || n, 'nobody', false, current_date
from generate_series(1, 100) n;
"""
# About 300 bytes of text. The key is made from n by `{key}`.
ROWS = """
insert into app.doc (id, tenant, lang, title, body, views, price)
select {key}, mod(n, 50), (array['en', 'de', 'fr'])[1 + mod(n, 3)], 'Document ' || n,
       'It says ' || md5(n::text) || repeat(' and then ' || md5((n / 7)::text), 6), mod(n, 1000), mod(n, 10000) / 100.0
from generate_series(1, %(rows)s) n
"""
TABLES = """
[[table]]
source = "app.doc"
text = "{title}\\n\\n{body}"
columns = ["lang", "views", "price", "updated_at"]
filters = ["tenant"]

[[table]]
source = "app.note"
text = "{body}"
columns = ["author", "pinned", "written_on"]
"""
# Statement -> how often, in percent. The numbers of new rows are microseconds since 1970: far above the others.
WRITES = {
    "update app.doc set body = 'Change ' || %(n)s || ' of ' || body where id = {id}": 30,
    "update app.doc set views = views + 1, updated_at = now() where id = {id}": 40,
    "update app.doc set tenant = %(tenant)s where id = {id}": 10,
    "insert into app.doc (id, tenant, lang, title, body) select {key}, %(tenant)s, 'en', 'New ' || n, "
    "'It is ' || md5(n::text) from (select %(n)s::bigint) as given (n)": 10,
    "delete from app.doc where id = {id}": 10,
}


@dataclass(frozen=True)
class KeyKind:
    """Type of the key in SQL and how it is made from a number."""

    type: str = "bigint"
    key: str = "n"


NUMBERS = KeyKind()
# The replica's collation is "C"; the first of these that the source has. The last one's order is that of the bytes too.
COLLATIONS = ("en-x-icu", "en_US.utf8", "C.utf8")


def words(dsn: str) -> KeyKind:
    """Text keys of upper and lower case, hyphens and accents, under another collation than the replica's."""
    key = "(array['a', 'B', 'é', '-c', 'Zz'])[1 + mod(n, 5)] || '-' || md5(n::text)"
    with psycopg.connect(dsn, autocommit=True) as source:
        for name in COLLATIONS:
            try:
                source.execute(sql.SQL("select 'a' < 'B' collate {}").format(sql.Identifier(name)))
            except (psycopg.errors.UndefinedObject, psycopg.NotSupportedError):
                continue
            return KeyKind(f'text collate "{name}"', key)
    raise SandboxError(f"the source has none of the collations {', '.join(COLLATIONS)}")


@dataclass
class Filled:
    """The migration: databases, config file, processes."""

    sandbox: Sandbox
    provider: ProviderServer
    folder: Path
    name: str
    stack: ExitStack
    kind: KeyKind = NUMBERS
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = self.folder / f"{self.name}.log"
        self.config = self.folder / f"{self.name}.toml"
        self.source_dsn = self.sandbox.create_database("source", self.name)
        self.target_dsn = self.sandbox.create_database("target", self.name)
        self.source = self.stack.enter_context(psycopg.connect(self.source_dsn, autocommit=True))
        self.target = self.stack.enter_context(psycopg.connect(self.target_dsn, autocommit=True))
        self.pipeline: Pipeline | None = None

    def fill(self, rows: int) -> dict[str, float]:
        """Source, replica, chunks; seconds of each. No process runs when it returns."""
        seconds: dict[str, float] = {}
        with timed(seconds, "source"):
            self.source.execute(DDL.format(type=self.kind.type).encode())
            self.source.execute(ROWS.replace("{key}", self.kind.key).encode(), {"rows": rows})
            self.source.execute("vacuum analyze app.doc")
        self.pipeline = capture_tables(self.sandbox, self.source_dsn, self.name, ("app.doc", "app.note"))
        self.provider.set(Script(dimensions=DIMENSIONS))
        self.configure()
        with timed(seconds, "backfill"):
            stream, backfill = self.start("stream"), self.start("backfill")
            if backfill.wait(DEADLINE_S) != 0:
                raise SandboxError(f"the backfill ended with {backfill.returncode}\n{self.tail()}")
            self.end(stream)
        with timed(seconds, "chunks"):
            self.embed()
        return seconds

    def configure(self) -> None:
        generation = Gen(
            model="test-embedding",
            dimensions=DIMENSIONS,
            base_url=self.provider.url,
            limits={"in_flight": 4, "request_timeout_s": 10},
            extra={"tokenizer": "cl100k_base"},
        )
        where = (self.name, self.name, "revector", self.source_dsn, self.target_dsn)
        choice = Choice(*where, TABLES, (generation,), {"lease_s": 5, "claim_lease_s": 10})
        self.config.write_text(render(self.sandbox, choice))

    def embed(self) -> None:
        """Chunks of all rows, as an embedder would have written them, and no work left."""
        for table, texts, filters in (
            ("doc", "title || E'\\n\\n' || body", sql.SQL(", tenant")),
            ("note", "body", sql.SQL("")),
        ):
            query = sql.SQL("select _row_id, {}{} from {} order by _row_id").format(
                sql.SQL(texts), filters, sql.Identifier(self.name, table)
            )
            into = sql.SQL("copy {} (_row_id, _n, _text, _digest, _embedding{}) from stdin (format binary)").format(
                sql.Identifier(self.name, f"{table}_v2"), filters
            )
            with psycopg.connect(self.target_dsn) as reading, reading.cursor("rows", withhold=False) as rows:
                rows.execute(query)
                with self.target.cursor() as cursor, cursor.copy(into) as copy:
                    copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
                    for block in iter(lambda: rows.fetchmany(BLOCK), []):
                        copy.write(_packed(block))
                    copy.write(struct.pack("!h", -1))
            self._index(f"{table}_v2")
        self.target.execute("truncate revector.work")
        self.target.execute("vacuum analyze")

    def _index(self, chunks: str) -> None:
        """The index that the daemon would build, of the least effort: nobody searches here."""
        for setting in ("maintenance_work_mem = '2GB'", "max_parallel_maintenance_workers = 2"):
            self.target.execute(f"set {setting}".encode())
        statement = "create index {} on {} using hnsw (_embedding vector_cosine_ops) with (m = 4, ef_construction = 8)"
        names = sql.Identifier(f"{chunks}_embedding"), sql.Identifier(self.name, chunks)
        self.target.execute(sql.SQL(statement).format(*names))

    # processes

    def start(self, role: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self.daemons.append(subprocess.Popen(command(self.config, role), stdout=log, stderr=log))
        return self.daemons[-1]

    def end(self, daemon: subprocess.Popen[bytes]) -> None:
        daemon.terminate()
        if daemon.wait(60) != 0:
            raise SandboxError(f"a daemon ended with {daemon.returncode}\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """End the processes, the connector and the slot."""
        for daemon in self.daemons:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
        if self.pipeline is not None:
            self.pipeline.connector.delete()

    @contextmanager
    def written(self, per_second: float, seed: int = 5) -> Iterator[None]:
        """Live writes to the documents inside the block: new text, metadata, permissions, new rows, deletes."""
        stop, failed = threading.Event(), list[BaseException]()

        def write() -> None:
            try:
                _write(self.source_dsn, self.kind, per_second, stop, random.Random(seed))
            except psycopg.Error as error:
                failed.append(error)

        writer = threading.Thread(target=write, name="writes")
        writer.start()
        try:
            yield
        finally:
            stop.set()
            writer.join()
        if failed:
            raise failed[0]


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - began, 2)


def _packed(rows: Sequence[tuple[Any, ...]]) -> bytes:
    """Chunks in COPY's binary format (PostgreSQL documentation, COPY): each field with its length before it."""
    vectors = vectors_of([row[1] for row in rows], DIMENSIONS).astype(">f4").tobytes()
    width = 4 * DIMENSIONS
    head = struct.pack("!i hh", width + 4, DIMENSIONS, 0)
    parts = []
    for at, (row_id, text, *filters) in enumerate(rows):
        data = text.encode()
        parts += [
            struct.pack("!h iq ii i", 5 + len(filters), 8, row_id, 4, 0, len(data)),
            data,
            struct.pack("!i", 32),
            hashlib.sha256(data).digest(),
            head,
            vectors[at * width : (at + 1) * width],
            *(struct.pack("!ii", 4, value) for value in filters),
        ]
    return b"".join(parts)


def _write(dsn: str, kind: KeyKind, per_second: float, stop: threading.Event, chance: random.Random) -> None:
    """One transaction after another, at this rate, on rows anywhere in the table."""
    cast = kind.type.split()[0]
    statements = [text.replace("{id}", f"%(id)s::{cast}").replace("{key}", kind.key).encode() for text in WRITES]
    with psycopg.connect(dsn, autocommit=True) as source:
        query = "select id::text from app.doc tablesample bernoulli (2)"
        keys = [key for (key,) in source.execute(query.encode()).fetchall()]
        began, count = time.monotonic(), 0
        while not stop.is_set():
            count += 1
            values = {"id": chance.choice(keys), "n": time.time_ns() // 1000, "tenant": chance.randrange(50)}
            source.execute(chance.choices(statements, list(WRITES.values()))[0], values)
            stop.wait(max(0.0, began + count / per_second - time.monotonic()))
