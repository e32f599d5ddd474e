"""In-memory twin of the source database: rows, transactions that interleave, snapshots and a log in commit order.

It keeps what makes a real Postgres log hard to follow: an INSERT (and the create half of a key change) takes its LSN
at the heap insert and only then waits at the unique index; a snapshot's xmax is the last *completed* xid plus one; a
commit record is decoded before snapshots see the transaction; unchanged TOAST columns are absent from an update.
Transaction ids start above 2**32, so that whoever forgets to widen an event's 32-bit id fails here.

`MemorySource` is the `Source` port over that state; `Transaction` is the writer's side, driven step by step by a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

from daemon.core.comparison import Columns
from daemon.core.model import UNAVAILABLE, Key, Known, Snapshot, SourceIdentity, Table, Values
from daemon.core.sampling import Draw, Picking
from daemon.ports import (
    Blocker,
    CatalogColumn,
    Counted,
    DigestPage,
    KeyPage,
    Page,
    PublishedTable,
    SampledRow,
    SlotState,
    SourceRow,
    SourceSetup,
    TableCatalog,
)
from tests.fakes import digests
from tests.fakes.clock import VirtualClock

NUMBERS = ("smallint", "integer", "bigint")
Row = tuple[Known, ...]


class Version(NamedTuple):
    """One version of a key's row: who wrote it, and what (None: deleted)."""

    xid: int
    values: Row | None


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One decoded record in commit order. kind: c u d t m. previous_commit is `source.sequence[0]` (0 for null)."""

    lsn: int
    previous_commit: int
    xid: int
    ts_ms: int
    kind: str
    alias: str = ""
    key: Key = ()
    after: Values | None = None
    payload: bytes = b""


@dataclass(slots=True)
class Waiting:
    """An insert that holds its LSN and waits at the unique index."""

    alias: str
    key: Key
    values: Row
    shown: Values
    lsn: int


class Blocked(Exception):
    """The statement would wait for another transaction's lock."""


class UniqueViolation(Exception):
    """The key exists; the transaction is rolled back."""


@dataclass(eq=False)
class Transaction:
    """A writer's transaction. `write_commit` then `show` split a commit; `commit` does both."""

    source: MemorySource
    xid: int = 0
    records: list[LogRecord] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    in_log: bool = False

    def insert(self, alias: str, /, **values: Known) -> bool:
        """Insert a row; False where it waits for another transaction's key (its LSN is taken all the same)."""
        table = self.source.table(alias)
        row = tuple(values.get(name) for name in table.names)
        self.waiting.append(Waiting(alias, table.key_of(row), row, row, self._lsn()))
        return self.resume()

    def update(self, alias: str, key: str | Key, /, *, unavailable: Collection[str] = (), **changes: Known) -> None:
        """Change columns of a live row; `unavailable`: unchanged TOAST columns that the event does not carry."""
        table, key = self.source.table(alias), as_key(key)
        row = self._live(alias, key)
        new = tuple(changes.get(c, old) for c, old in zip(table.names, row, strict=True))
        shown = hide(table, new, unavailable)
        if any(c in changes for c in unavailable):
            raise ValueError("a changed column is always in the event")
        self._put("u", alias, key, new, shown, self._lsn())

    def delete(self, alias: str, key: str | Key, /) -> None:
        key = as_key(key)
        self._live(alias, key)
        self._put("d", alias, key, None, None, self._lsn())

    def rekey(
        self, alias: str, old: str | Key, new: str | Key, /, *, unavailable: Collection[str] = (), **changes: Known
    ) -> bool:
        """Change a row's key: a delete and a create that share one LSN. False where the create waits."""
        table, old, new = self.source.table(alias), as_key(old), as_key(new)
        row = self._live(alias, old)
        moved = (*new, *(changes.get(c, v) for c, v in list(zip(table.names, row, strict=True))[len(new) :]))
        lsn = self._lsn()
        self._put("d", alias, old, None, None, lsn)
        self.waiting.append(Waiting(alias, new, moved, hide(table, moved, unavailable), lsn))
        return self.resume()

    def truncate(self, alias: str, /) -> None:
        """Empty the table; holds its lock until the transaction is visible."""
        if self.source.writers(alias) - {self}:
            raise Blocked(f"truncate of {alias} waits for writers")
        lsn = self._lsn()
        self.source.table_locks[alias] = self
        for chain in self.source.chains[alias].values():
            chain.append(Version(self.xid, None))
        self.records.append(LogRecord(lsn, 0, self.xid, 0, "t", alias))

    def emit(self, payload: bytes) -> int:
        lsn = self._lsn()
        self.records.append(LogRecord(lsn, 0, self.xid, 0, "m", payload=payload))
        return lsn

    def resume(self) -> bool:
        """Let waiting inserts go on; False while one still waits."""
        while self.waiting:
            w = self.waiting[0]
            if self.source.holder(w.alias, w.key) not in (None, self):
                return False
            if self.source.newest(w.alias, w.key) is not None:
                self.rollback()
                raise UniqueViolation(f"{w.alias} {w.key}")
            self.waiting.pop(0)
            self._put("c", w.alias, w.key, w.values, w.shown, w.lsn)
        return True

    def write_commit(self) -> None:
        """The commit record is in the log, where the connector decodes it; snapshots do not see it yet."""
        if self.waiting:
            raise Blocked("an insert still waits")
        self.in_log = True
        self.source.append(self)

    def show(self) -> None:
        """The transaction becomes visible and its locks go."""
        self.source.finish(self)

    def commit(self) -> None:
        self.write_commit()
        self.show()

    def rollback(self) -> None:
        if self.in_log:
            raise ValueError("committed")
        self.source.undo(self)

    def _lsn(self) -> int:
        self.source.open(self)
        return self.source.tick()

    def _live(self, alias: str, key: Key) -> Row:
        if self.source.holder(alias, key) not in (None, self):
            raise Blocked(f"{alias} {key}")
        row = self.source.newest(alias, key)
        if row is None:
            raise KeyError(f"{alias} {key} does not exist")
        return row

    def _put(self, kind: str, alias: str, key: Key, values: Row | None, shown: Values | None, lsn: int) -> None:
        self.source.chains[alias].setdefault(key, []).append(Version(self.xid, values))
        self.source.row_locks[alias, key] = self
        self.records.append(LogRecord(lsn, 0, self.xid, 0, kind, alias, key, shown))


class MemorySource:
    """The `Source` port, and the levers of a test.

    emitting: called between a message's LSN and its commit, to place another commit there.
    """

    def __init__(self, tables: Sequence[Table], clock: VirtualClock | None = None) -> None:
        self.tables = {t.alias: t for t in tables}
        self.clock = clock or VirtualClock()
        self.chains: dict[str, dict[Key, list[Version]]] = {t.alias: {} for t in tables}
        self.row_locks: dict[tuple[str, Key], Transaction] = {}
        self.table_locks: dict[str, Transaction] = {}
        self.active: dict[int, Transaction] = {}
        self.log: list[LogRecord] = []
        self.commits: dict[int, int] = {}
        self.lsn, self.last_commit = 1000, 0
        self.next_xid = (1 << 32) + 700
        self.completed = self.next_xid - 1
        self.lsn_step = 8
        self.who = SourceIdentity("7000000000000000001", 1, "shop", "revector_shop", "revector_shop")
        self.fingerprints: dict[str, str] = {}
        self.unpublished: set[str] = set()  # aliases
        self.catalogs: dict[str, TableCatalog | None] = {}  # alias -> what the catalogue says since
        self.slot_state: SlotState | None = None
        self.slot_session = "1@0"
        self.emitting: list[Transaction] = []
        self.wheres: dict[str, Callable[[Mapping[str, Known]], bool | None]] = {}  # alias -> what its `where` means
        self.countable = True  # False: a count takes too long
        self.block_rows = 10
        self.random = Random(1)
        self.closed = False
        self._changed = asyncio.Event()

    # --- the writer's side

    def begin(self) -> Transaction:
        return Transaction(self)

    def seed(self, alias: str, *rows: dict[str, Known]) -> None:
        """Rows from before the log begins: no record of them exists."""
        for values in rows:
            table = self.table(alias)
            row = tuple(values.get(name) for name in table.names)
            self.chains[alias][table.key_of(row)] = [Version(0, row)]

    def table(self, alias: str) -> Table:
        return self.tables[alias]

    def current(self, alias: str) -> dict[Key, Row]:
        """What a fresh snapshot sees."""
        return self._visible(alias, self._snapshot())

    def newest(self, alias: str, key: Key) -> Row | None:
        chain = self.chains[alias].get(key)
        return chain[-1].values if chain else None

    def holder(self, alias: str, key: Key) -> Transaction | None:
        return self.table_locks.get(alias) or self.row_locks.get((alias, key))

    def writers(self, alias: str) -> set[Transaction]:
        return {
            t
            for t in self.active.values()
            if any(r.alias == alias for r in t.records) or any(w.alias == alias for w in t.waiting)
        }

    def open(self, tx: Transaction) -> None:
        if not tx.xid:
            tx.xid, self.next_xid = self.next_xid, self.next_xid + 1
            self.active[tx.xid] = tx

    def tick(self) -> int:
        self.lsn += self.lsn_step
        return self.lsn

    def append(self, tx: Transaction) -> None:
        """Write the commit record: the records enter the log, in the order of their LSNs."""
        if not tx.xid:
            return
        previous, commit = self.last_commit, self.tick()
        for record in sorted(tx.records, key=lambda r: r.lsn):
            self.log.append(replace(record, previous_commit=previous, xid=tx.xid, ts_ms=self.clock.now_ms))
        self.last_commit = self.commits[tx.xid] = commit

    def finish(self, tx: Transaction) -> None:
        if not tx.xid:
            return
        self.active.pop(tx.xid)
        self.completed = max(self.completed, tx.xid)
        self.row_locks = {k: t for k, t in self.row_locks.items() if t is not tx}
        self.table_locks = {k: t for k, t in self.table_locks.items() if t is not tx}
        self._changed.set()
        self._changed = asyncio.Event()

    def undo(self, tx: Transaction) -> None:
        if not tx.xid:  # it wrote nothing; 0 marks rows from before the log
            return
        for chains in self.chains.values():
            for chain in chains.values():
                chain[:] = [v for v in chain if v.xid != tx.xid]
        tx.waiting.clear()
        tx.records.clear()
        self.finish(tx)

    # --- the port

    async def setup(self) -> SourceSetup:
        return SourceSetup(
            version=180000,
            wal_level="logical",
            in_recovery=False,
            publication_operations=frozenset({"insert", "update", "delete", "truncate"}),
            published=tuple(
                PublishedTable(t.schema, t.name, True, False, False)
                for t in self.tables.values()
                if t.alias not in self.unpublished
            ),
            slot=await self.slot(),
        )

    async def describe(self, schema: str, name: str) -> TableCatalog | None:
        found = [t for t in self.tables.values() if (t.schema, t.name) == (schema, name)]
        if not found:
            return None
        table = found[0]
        if table.alias in self.catalogs:
            return self.catalogs[table.alias]
        columns = tuple(CatalogColumn(c.name, c.type, c.type, "base", c.nullable, False, True) for c in table.columns)
        identity = "full" if table.full_identity else "default"
        return TableCatalog(schema, name, columns, table.key, False, identity)

    async def close(self) -> None:
        self.closed = True

    async def identity(self) -> SourceIdentity:
        return self.who

    async def schema_fingerprint(self, table: Table) -> str:
        names = ",".join(f"{c.name}:{c.type}" for c in table.columns)
        return self.fingerprints.get(table.alias, f"{table.key}/{names}/{table.full_identity}")

    async def emit(self, payload: bytes) -> int:
        tx = self.begin()
        lsn = tx.emit(payload)
        while self.emitting:
            self.emitting.pop().commit()
        tx.commit()
        return lsn

    async def own_xid(self) -> int:
        xid, self.next_xid = self.next_xid, self.next_xid + 1
        self.completed = max(self.completed, xid)
        return xid

    async def snapshot(self) -> Snapshot:
        return self._snapshot()

    async def blocker(self) -> Blocker | None:
        return Blocker(pid=4711, age_s=12.0, what="backend") if self.active else None

    async def slot(self) -> SlotState:
        return self.slot_state or SlotState(True, True, self.last_commit, 0, "reserved", None, self.slot_session)

    async def wal_lsn(self) -> int:
        return self.lsn

    async def estimate(self, table: Table) -> int | None:
        return len(self.current(table.alias))

    async def count(self, table: Table, limit_s: float) -> Counted | None:
        if not self.countable:
            return None
        rows = self.current(table.alias).values()
        wanted = [row for row in rows if self._is_wanted(table, row)]
        return Counted(len(rows), len(wanted), sum(self._text_bytes(table, row) for row in wanted))

    async def sample(self, table: Table, draw: Draw) -> AsyncGenerator[Sequence[SampledRow]]:
        rows = list(self.current(table.alias).values())
        blocks = [rows[at : at + self.block_rows] for at in range(0, len(rows), self.block_rows)]
        at = [table.names.index(name) for name in table.text_columns]
        for number, block in enumerate(blocks):
            is_picked = self._picked(draw) if draw.picking is Picking.BLOCKS else True
            picked = [row for row in block if is_picked and (draw.picking is not Picking.ROWS or self._picked(draw))]
            name = str(number) if draw.picking is Picking.BLOCKS else ""
            if picked:
                yield [
                    SampledRow(
                        name,
                        tuple(row[n] for n in at) if self._is_wanted(table, row) else None,
                        self._text_bytes(table, row),
                        sum(len((v or "").encode()) for v in row),
                    )
                    for row in picked
                ]

    def _text_bytes(self, table: Table, row: Row) -> int:
        return sum(len((row[table.names.index(name)] or "").encode()) for name in table.text_columns)

    def _is_wanted(self, table: Table, row: Row) -> bool:
        return table.where is None or self.wheres[table.alias](dict(zip(table.names, row, strict=True))) is True

    def _picked(self, draw: Draw) -> bool:
        return self.random.random() < draw.share

    async def bounds(self, table: Table, ranges: int) -> list[Key]:
        keys = self.ordered(table, self.current(table.alias))
        if ranges < 2 or len(keys) < ranges:
            return []
        return [keys[len(keys) * n // ranges - 1] for n in range(1, ranges)]

    async def page(self, table: Table, after: Key | None, upto: Key | None, limit: int) -> Page:
        await self._wait_for_table(table.alias)
        snapshot, rank = self._snapshot(), self._rank(table)
        rows = self._visible(table.alias, snapshot)
        low = None if after is None else rank(after)
        high = None if upto is None else rank(upto)
        keys = [
            k for k in self.ordered(table, rows) if (low is None or rank(k) > low) and (high is None or rank(k) <= high)
        ][:limit]
        return Page(tuple(SourceRow(k, rows[k]) for k in keys), snapshot, keys[-1] if len(keys) == limit else None)

    async def digest_page(self, table: Table, after: Key | None, upto: Key | None, limit: int) -> DigestPage:
        page = await self.page(table, after, upto, limit)
        return digests.digest_page(table, [(row.key, row.values) for row in page.rows], page.last)

    async def digests(self, table: Table, keys: Sequence[Key]) -> dict[Key, Columns]:
        rows, _ = await self.rows(table, keys)
        return {key: digests.column_digests(row.values) for key, row in rows.items()}

    async def absent(self, table: Table, page: KeyPage) -> list[Key]:
        keys = digests.keys_of(page)
        rows, _ = await self.rows(table, keys)
        return [key for key in keys if key not in rows]

    async def rows(self, table: Table, keys: Sequence[Key]) -> tuple[dict[Key, SourceRow], Snapshot]:
        await self._wait_for_table(table.alias)
        snapshot = self._snapshot()
        rows = self._visible(table.alias, snapshot)
        return {k: SourceRow(k, rows[k]) for k in keys if k in rows}, snapshot

    # --- inside

    def ordered(self, table: Table, keys: Iterable[Key]) -> list[Key]:
        return sorted(keys, key=self._rank(table))

    @staticmethod
    def _rank(table: Table):  # type: ignore[no-untyped-def]
        numeric = [c.type in NUMBERS for c in table.columns[: len(table.key)]]
        return lambda key: tuple(int(part) if n else part for part, n in zip(key, numeric, strict=True))

    def _snapshot(self) -> Snapshot:
        xmax = self.completed + 1
        running = frozenset(x for x in self.active if x < xmax)
        return Snapshot(min(running, default=xmax), xmax, running)

    def _visible(self, alias: str, snapshot: Snapshot) -> dict[Key, Row]:
        seen = {}
        for key, chain in self.chains[alias].items():
            row = next((v.values for v in reversed(chain) if snapshot.sees(v.xid)), None)
            if row is not None:
                seen[key] = row
        return seen

    async def _wait_for_table(self, alias: str) -> None:
        while alias in self.table_locks:
            await self._changed.wait()


def as_key(key: str | Key) -> Key:
    return (key,) if isinstance(key, str) else key


def hide(table: Table, row: Row, unavailable: Collection[str]) -> Values:
    """The row as its event shows it."""
    if table.full_identity:
        return row
    return tuple(UNAVAILABLE if name in unavailable else v for name, v in zip(table.names, row, strict=True))
