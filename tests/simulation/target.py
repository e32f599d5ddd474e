"""The target as several processes share it: sessions whose transactions interleave at every statement.

Statements are those of the twin in `tests.fakes`; what a transaction reads and writes goes through a `Branch`, and
before each statement its locks are taken as `tests.simulation.statements` says. A session ends with its process, with
its connection, or when a commit is answered; the commit of a killed process may still be on its way.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from daemon.core.model import Claim, Generation, Table
from daemon.errors import SchemaChanged, TransientError
from daemon.ports import BackfillRange
from tests.fakes import Died, MemoryDatabase, MemoryTarget
from tests.fakes.audit import MemoryAudit
from tests.fakes.comparisons import MemoryComparisons
from tests.fakes.replica import MemoryReplica, MemoryVectors
from tests.fakes.state import Context, WorkEntry
from tests.fakes.work import MemoryLedger
from tests.simulation.layers import Branch
from tests.simulation.locks import Locks
from tests.simulation.process import Outcome, Process, away
from tests.simulation.statements import PINNED, STATEMENTS, entry, nothing


class SharedDatabase(MemoryDatabase):
    """on_commit: called with each session that is about to commit something, and with it again when it has."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.locks = Locks()
        self.before_commit: Callable[[Session], None] = lambda session: None
        self.after_commit: Callable[[Session], None] = lambda session: None


class Session:
    """One transaction of one process. ended: the server has rolled it back; said at its next statement."""

    def __init__(self, process: Process, database: SharedDatabase) -> None:
        self.process, self.database, self.locks = process, database, database.locks
        self.branch = Branch(database.state)
        self.state = self.branch
        self.is_open, self.is_ended, self.is_committing, self.is_orphan = True, False, False, False
        self.said: list[str] = []  # statements, in their order
        process.sessions[self] = None

    def __repr__(self) -> str:
        return f"{self.process} ({', '.join(self.said)})"

    @property
    def now(self) -> float:
        return self.database.clock.now_s

    def commit(self) -> None:
        if self.is_ended or not self.is_open:
            raise away("target.commit")
        self.is_open = False
        if not self.branch.is_read_only:
            self.database.before_commit(self)
            self.branch.commit()
            self.database.commits += 1
            self.database.after_commit(self)
        self.close()

    def end(self) -> None:
        """The server ends the session: rolled back, locks gone."""
        if self.is_open:
            self.is_ended = True
            self.locks.fail(self, Died() if self.process.is_dead else away("target.session"))
        self.close()

    def close(self) -> None:
        self.is_open = False
        self.process.sessions.pop(self, None)
        self.locks.release(self)

    async def say(self, point: str, member: Callable[..., Any], args: Any, named: Any) -> Any:
        """One statement: its turn, its locks, what it does, its answer."""
        outcome = await self.process.park(point)
        if self.is_ended or outcome is not Outcome.DONE:
            self.end()
            raise away(point)
        self.said.append(point)
        if point in PINNED:
            id = args[0]
            if not self.locks.take(self, ("comparison", id), "K"):
                raise TransientError("target-locked", "simulated: the comparison is being ended")
        if point == "replica.lock":  # the rows that are there when it begins; one that comes meanwhile is not seen
            args = (args[0], [k for k in args[1] if (args[0].id, k) in self.state.rows])
        wanted: Any = STATEMENTS.get(point, nothing)
        while missing := next((w for w in wanted(self, *args, **named) if not self.locks.holds(self, *w)), None):
            await self.locks.acquire(self, *missing)
            if self.is_ended:
                raise away(point)
        gone = [g for g in args if isinstance(g, Generation) and g.id not in self.state.generations]
        if gone and point in OF_RELATIONS:
            raise SchemaChanged("schema-changed", f"simulated: chunks of generation {gone[0].name} are gone")
        result = OF_NOTHING[point] if gone and point in OF_NOTHING else await member(*args, **named)
        if self.process.is_dead:
            raise Died
        return result


# What statements say of a generation that was dropped: an UPDATE finds no row, a SELECT none; its relations are gone.
OF_NOTHING: dict[str, Any] = {
    "ledger.generation_contract": {},
    "ledger.set_swept": None,
    "ledger.set_phase": None,
    "ledger.index_state": {},
    "ledger.canary": None,
    "ledger.set_canary": None,
    "ledger.forecast": None,
    "ledger.set_forecast": None,
    "ledger.count_embedded": None,
}
OF_RELATIONS = {
    "replica.documents",
    "vectors.replace",
    "vectors.counts",
    "audit.chunk_page",
    "audit.keep_heads",
    "audit.shared",
    "audit.pieces",
    "audit.drop_chunks",
    "audit.sample",
}


class Unit:
    """The unit of work: `replica`, `vectors`, `ledger`, `audit`, `comparisons`."""

    def __init__(self, session: Session, context: Context, name: str) -> None:
        self.replica = Part(session, "replica", MemoryReplica(context))
        self.vectors = Part(session, "vectors", MemoryVectors(context))
        self.ledger = Part(session, "ledger", SharedLedger(context, name, session))
        self.audit = Part(session, "audit", MemoryAudit(context))
        self.comparisons = Part(session, "comparisons", MemoryComparisons(context))


class Part:
    def __init__(self, session: Session, name: str, port: Any) -> None:
        self._session, self._name, self._port = session, name, port

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._port, name)
        if not inspect.iscoroutinefunction(member):
            return member
        session, point = self._session, f"{self._name}.{name}"

        async def call(*args: Any, **named: Any) -> Any:
            return await session.say(point, member, args, named)

        return call


class SharedLedger(MemoryLedger):
    """SKIP LOCKED, which the serial twin has no need of."""

    def __init__(self, context: Context, name: str, session: Session) -> None:
        super().__init__(context, name)
        self.session = session

    def _is_claimable(self, table: Table, row_id: int, held: WorkEntry, worker: str) -> bool:
        if not super()._is_claimable(table, row_id, held, worker):
            return False
        ours = [
            place for place in self.state.work if place[1:] == (table.id, row_id) and self.state.work[place] is held
        ]
        return all(self.session.locks.is_free_for(self.session, entry(*place)) for place in ours)

    async def claim(self, *args: Any, **named: Any) -> list[Claim]:
        claims = await super().claim(*args, **named)
        for claim in claims:
            assert self.session.locks.take(self.session, entry(claim.generation_id, claim.table_id, claim.row_id), "X")
        return claims

    async def renew(self, table: Table, generation: Generation, worker: str, row_ids: Any, lease_s: float) -> None:
        locks, session = self.session.locks, self.session
        free = [r for r in row_ids if locks.take(session, entry(generation.id, table.id, r), "X")]
        await super().renew(table, generation, worker, free, lease_s)

    async def claim_range(self, owner: str, lease_s: float) -> BackfillRange | None:
        locks, layer = self.session.locks, vars(self.state)["ranges"]
        free = {r: held for r, held in layer.items() if locks.is_free_for(self.session, ("range", r))}
        vars(self.state)["ranges"] = dict(free)
        try:
            chosen = await super().claim_range(owner, lease_s)
        finally:
            changed, vars(self.state)["ranges"] = vars(self.state)["ranges"], layer
        if chosen is not None:
            assert locks.take(self.session, ("range", chosen.id), "X")
            layer[chosen.id] = changed[chosen.id]
        return chosen


class SharedTarget(MemoryTarget):
    """A connection of one process."""

    def __init__(self, database: SharedDatabase, process: Process) -> None:
        super().__init__(database)
        self.shared, self.process = database, process

    async def prepare(self) -> None:
        await self.process.meet("target.prepare", super().prepare)

    async def setup(self) -> Any:
        return await self.process.meet("target.setup", super().setup)

    async def create_tables(self, tables: Any) -> list[Table]:
        made: list[Table] = await self.process.meet("target.create_tables", lambda: self._create_tables(tables))
        return made

    async def _create_tables(self, tables: Any) -> list[Table]:
        return await super().create_tables(tables)

    async def create_chunks(self, tables: Any, generation: Generation) -> None:
        await self.process.meet("target.create_chunks", lambda: self._create_chunks(tables, generation))

    async def _create_chunks(self, tables: Any, generation: Generation) -> None:
        if generation.id in self.shared.state.generations:  # else it was dropped meanwhile: relations of nothing
            await super().create_chunks(tables, generation)

    def begin(self) -> AbstractAsyncContextManager[Any]:
        return self._shared()

    def _session(self) -> Session:
        if self.closed:
            raise TransientError("target-away", "the connection is closed")
        if self.is_in_transaction:
            raise AssertionError("a transaction inside a transaction of the same connection")
        return Session(self.process, self.shared)

    def _context(self, session: Session) -> Context:
        return Context(session.branch, self.shared.sequences, self.shared.rules, self.shared.clock)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Context]:
        session = self._session()
        try:
            await session.locks.acquire(session, "schema", "X")
            yield self._context(session)
            session.commit()
        finally:
            session.close()

    @asynccontextmanager
    async def _shared(self) -> AsyncIterator[Unit]:
        if await self.process.park("target.begin") is not Outcome.DONE:
            raise away("target.begin")
        session = self._session()
        self.is_in_transaction = True
        try:
            yield Unit(session, self._context(session), self.shared.name)
            session.is_committing = True
            outcome = await self.process.park("target.commit")
            if outcome is Outcome.REFUSED:
                raise away("target.commit")
            session.commit()
            if outcome is Outcome.LOST:
                raise away("target.commit")
        finally:
            self.is_in_transaction = False
            if not session.is_orphan:
                session.close()
