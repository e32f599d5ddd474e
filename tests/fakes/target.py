"""In-memory target: one database that several connections share, and the unit of work over it.

A transaction works on a copy of the state and swaps it in when it commits; transactions are serial by a lock, so what
row locks order in Postgres is ordered here by construction. What Postgres can still get wrong inside one statement
(statement snapshots, a seq taken before a lock) is tested at the port against Postgres itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from daemon.core.model import Generation, Table
from daemon.errors import SchemaChanged, TransientError
from daemon.ports import IndexState, TargetSetup
from tests.fakes.audit import MemoryAudit
from tests.fakes.clock import VirtualClock
from tests.fakes.comparisons import MemoryComparisons
from tests.fakes.replica import MemoryReplica, MemoryVectors
from tests.fakes.state import Context, Rules, Sequences, State, TableRecord, Where
from tests.fakes.work import MemoryLedger


class MemoryDatabase:
    """What is durable. intrusions: called once each inside the next replica write, as another transaction's insert
    between that transaction's lock and its own insert."""

    def __init__(self, name: str = "shop", clock: VirtualClock | None = None) -> None:
        self.name, self.clock = name, clock or VirtualClock()
        self.state, self.sequences, self.rules = State(), Sequences(), Rules()
        self.intrusions: list[Callable[[State], None]] = []
        self.commits = 0
        self.lock = asyncio.Lock()

    def where(self, alias: str, columns: Sequence[str], predicate: Where) -> None:
        """What the `where` of a table means; None for unknown."""
        self.rules.where[alias] = (tuple(columns), predicate)

    def condition(self, text: str, columns: Sequence[str], predicate: Where) -> None:
        """What an operator's condition means."""
        self.rules.conditions[text] = (tuple(columns), predicate)

    # --- what a test looks at

    def table(self, alias: str) -> Table:
        return next(t.table for t in self.state.tables.values() if t.table.alias == alias)

    def rows(self, alias: str) -> dict[tuple[str, ...], Any]:
        """Values of the live rows by key; UNAVAILABLE where missing."""
        return {k: r.values for k, r in self.state.live_rows(self.table(alias)).items()}

    def chunks(self, alias: str, generation: Generation) -> dict[tuple[str, ...], list[str]]:
        """Chunk texts by the row's key, in order."""
        table = self.table(alias)
        return {
            self.state.keys[t, row_id]: [c.text for c in chunks]
            for (g, t, row_id), chunks in self.state.chunks.items()
            if (g, t) == (generation.id, table.id)
        }


@dataclass(frozen=True, slots=True)
class MemoryUnitOfWork:
    replica: MemoryReplica
    vectors: MemoryVectors
    ledger: MemoryLedger
    audit: MemoryAudit
    comparisons: MemoryComparisons


class MemoryTarget:
    """The `Target` port: one connection to a database. Nesting its transactions is an error, as on one connection."""

    def __init__(self, database: MemoryDatabase) -> None:
        self.database = database
        self.is_in_transaction = False
        self.closed = False

    async def setup(self) -> TargetSetup:
        version = 1 if self.database.state.is_prepared else None
        return TargetSetup(180000, "0.8.5", "0.8.5", True, version, 1, False)

    async def prepare(self) -> None:
        async with self._transaction() as context:
            context.state.is_prepared = True

    async def create_tables(self, tables: Sequence[Table]) -> list[Table]:
        made = []
        async with self._transaction() as context:
            recorded = {t.table.alias: t for t in context.state.tables.values()}
            for table in tables:
                known = recorded.get(table.alias)
                if known is not None and replace(table, id=known.table.id, where_columns=()) != replace(
                    known.table, where_columns=()
                ):
                    raise SchemaChanged("schema-changed", f"table {table.alias} is not what it was at the start")
                if known is None:
                    columns = self.database.rules.where[table.alias][0] if table.where is not None else ()
                    number = next(context.sequences.table)
                    known = TableRecord(replace(table, id=number, where_columns=columns))
                    context.state.tables[number] = known
                made.append(known.table)
        return made

    async def create_chunks(self, tables: Sequence[Table], generation: Generation) -> None:
        async with self._transaction() as context:
            if generation.id not in context.state.generations:
                raise AssertionError(f"generation {generation.name} is not recorded")

    def begin(self) -> AbstractAsyncContextManager[MemoryUnitOfWork]:
        return self._begin()

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[MemoryUnitOfWork]:
        async with self._transaction() as context:
            ledger = MemoryLedger(context, self.database.name)
            audit, comparisons = MemoryAudit(context), MemoryComparisons(context)
            yield MemoryUnitOfWork(MemoryReplica(context), MemoryVectors(context), ledger, audit, comparisons)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Context]:
        if self.closed:
            raise TransientError("target-away", "the connection is closed")
        if self.is_in_transaction:
            raise AssertionError("a transaction inside a transaction of the same connection")
        database = self.database
        async with database.lock:
            self.is_in_transaction = True
            try:
                copy = database.state.copy()
                context = Context(copy, database.sequences, database.rules, database.clock)
                context.intrusions = database.intrusions
                yield context
                database.state = copy
                database.commits += 1
            finally:
                self.is_in_transaction = False

    async def close(self) -> None:
        self.closed = True


class MemoryIndexes:
    """The `Indexes` port: which chunk tables have a valid index. `build` may be made to fail half-way."""

    def __init__(self, database: MemoryDatabase) -> None:
        self.database = database
        self.valid: dict[tuple[str, int], bool] = {}
        self.prewarmed: list[tuple[str, int]] = []
        self.fails_half_way = False
        self.closed = False

    async def build(self, table: Table, generation: Generation) -> None:
        self.valid[table.alias, generation.id] = False
        if self.fails_half_way:
            self.fails_half_way = False
            raise TransientError("target-away", f"index build of {table.alias} was interrupted")
        self.valid[table.alias, generation.id] = True

    async def progress(self) -> dict[str, Any] | None:
        return None

    async def state(self, table: Table, generation: Generation) -> IndexState:
        valid = self.valid.get((table.alias, generation.id))
        chunks = self.database.chunks(table.alias, generation)
        rows = sum(len(c) for c in chunks.values())
        return IndexState(f"{table.alias}_{generation.name}", valid is not None, bool(valid), bool(valid), rows)

    async def probe(self, vector_type: str, dimensions: int, metric: str, rows: int) -> float | None:
        return rows * dimensions / 1e6

    async def analyze_and_prewarm(self, table: Table, generation: Generation) -> None:
        self.prewarmed.append((table.alias, generation.id))

    async def close(self) -> None:
        self.closed = True
