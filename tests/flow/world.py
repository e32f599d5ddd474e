"""One migration over in-memory twins, driven step by step through the product's own loops and procedures.

A history is a sequence of writer's transactions, deliveries and steps; `World.settle` then lets everything drain, and
the checks compare replica with source and chunks with what the replica renders to. Every loop has a connection of its
own, as in production; `World.faults` scripts failures of any of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from daemon.core.comparison import State as ComparisonState
from daemon.core.contract import Contract, Cut, render
from daemon.core.model import UNAVAILABLE, Generation, Key, Table, TopicPartition, Values
from daemon.flow.backfill import Backfill, Completion
from daemon.flow.embed import Crew, EmbedWorker
from daemon.flow.provider import CANARY, Provider
from daemon.flow.stream import Stream, StreamParts
from daemon.flow.sweep import Sweep
from daemon.ports import SourceRow
from daemon.procedures import start
from daemon.procedures.prove import ProofParts
from daemon.settings import LimitSettings
from daemon.settings_generation import GenerationLimits
from tests import builders
from tests.fakes import (
    Faults,
    MemoryBroker,
    MemoryCapture,
    MemoryConnector,
    MemoryDatabase,
    MemoryDecoder,
    MemoryEmbedder,
    MemoryFeed,
    MemoryIndexes,
    MemorySource,
    MemoryTarget,
    VirtualClock,
    WordTokenizer,
    vector_of,
)
from tests.fakes.budget import free_orders, open_gate
from tests.fakes.state import ReplicaRow, State, WorkEntry

SEPARATOR = "\n"

T = TypeVar("T")


class InlineExecutor(Executor):
    """The worker thread's place, without a thread: what is submitted is done at once."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def lines(text: str) -> list[str]:
    """A chunker with several chunks a document: its distinct non-empty lines."""
    return list(dict.fromkeys(line for line in text.split(SEPARATOR) if line))


@dataclass
class World:
    """Everything outside of the product, and makers of its parts. `open` first, then `begin`."""

    table: Table = field(default_factory=builders.articles)
    chunker: Cut = lines
    limits: LimitSettings = field(default_factory=builders.limits)
    clock: VirtualClock = field(default_factory=VirtualClock)

    def __post_init__(self) -> None:
        self.source = MemorySource([self.table], self.clock)
        self.broker = MemoryBroker([self.table], partitions=2)
        self.connector = MemoryConnector(self.source, self.broker)
        self.capture = MemoryCapture(self.connector)
        self.database = MemoryDatabase("shop", self.clock)
        self.indexes = MemoryIndexes(self.database)
        self.embedder = MemoryEmbedder()
        self.faults = Faults()
        self.contract: Contract = builders.contract([self.table])
        self.generations: list[Generation] = []
        self.embedded_after: dict[Key, int] = {}

    # --- parts of the product

    def target(self) -> MemoryTarget:
        return self.faults.wrap("target", MemoryTarget(self.database))

    def feed(self) -> MemoryFeed:
        return MemoryFeed(self.broker, self.clock)

    @property
    def generation(self) -> Generation:
        return self.generations[0]

    async def open(self) -> World:
        """Control schema, replica tables, the first generation."""
        target = MemoryTarget(self.database)
        await target.prepare()
        self.table = (await target.create_tables([self.table]))[0]
        async with target.begin() as tx:
            made = await tx.ledger.add_generation("v1", self.contract.as_json(), self.contract.id)
        await target.create_chunks([self.table], made)
        self.generations.append(made)
        return self

    async def add_generation(self, name: str) -> Generation:
        """One more, as an operator adds it; of the same contract, so that its chunks must be the same."""
        async with MemoryTarget(self.database).begin() as tx:
            made = await tx.ledger.add_generation(name, self.contract.as_json(), self.contract.id)
        self.generations.append(made)
        return made

    async def drop_generation(self) -> None:
        """The one that was added last."""
        async with MemoryTarget(self.database).begin() as tx:
            await tx.ledger.drop_generation(self.generations.pop())

    def sweep(self, page_rows: int = 2) -> Sweep:
        return Sweep(self.target(), [self.table], page_rows=page_rows)

    async def begin(self, ranges: int = 1) -> bool:
        source, feed = self.faults.wrap("source", self.source), self.faults.wrap("feed", self.feed())
        return await start.begin(source, feed, self.target(), [self.table], self.clock.sleep, ranges)

    def stream(self, owner: str = "s1", feed: MemoryFeed | None = None) -> Stream:
        return Stream(
            StreamParts(
                source=self.faults.wrap("source", self.source),
                feed=self.faults.wrap("feed", feed or self.feed()),
                target=self.target(),
                decoder=MemoryDecoder(self.broker),
                tables=[self.table],
                owner=owner,
                limits=self.limits,
                clock=self.clock,
            )
        )

    def backfill(self, owner: str = "b1", page_rows: int = 100) -> Backfill:
        limits = self.limits.model_copy(update={"page_rows": page_rows})
        return Backfill(self.faults.wrap("source", self.source), self.target(), [self.table], owner, limits)

    def completion(self) -> Completion:
        return Completion(self.faults.wrap("source", self.source), self.target(), [self.table])

    def crew(self, is_trusted: bool = True, **limits: int) -> Crew:
        """What a process's workers share. is_trusted: the canary is not sent."""
        return self.crew_of(self.generation, is_trusted, **limits)

    def crew_of(self, generation: Generation, is_trusted: bool = True, **limits: int) -> Crew:
        """The same for another generation than the first."""
        trusted = float("inf") if is_trusted else None
        embedder = self.faults.wrap("embedder", self.embedder)
        gate = open_gate(MemoryTarget(self.database), generation, self.clock, GenerationLimits(**limits))
        return Crew(
            generation=generation,
            contract=self.contract,
            tables=[self.table],
            provider=Provider(embedder, gate, generation, CANARY, 6, self.clock, sane_until=trusted),
            orders=free_orders(MemoryTarget(self.database)),
            tokenizer=WordTokenizer(),
            cut=self.chunker,
            limits=GenerationLimits(**limits),
            claim_lease_s=self.limits.claim_lease_s,
            cpu=InlineExecutor(),
        )

    def worker(self, name: str = "e1", crew: Crew | None = None) -> EmbedWorker:
        return EmbedWorker(self.target(), name, crew or self.crew())

    def proof(self, pause: Callable[[float], Awaitable[None]], generation: Generation | None = None) -> ProofParts:
        return ProofParts(
            migration=self.database.name,
            source=self.faults.wrap("source", self.source),
            feed=self.faults.wrap("feed", self.feed()),
            capture=self.faults.wrap("capture", self.capture),
            target=self.target(),
            indexes=self.indexes,
            tables=[self.table],
            generation=generation or self.generation,
            max_age_s=86_400,
            clock=self.clock,
            pause=pause,
        )

    async def compared(self) -> None:
        """Record a comparison of every generation that found nothing. It is made elsewhere: here proofs rest on it."""
        async with MemoryTarget(self.database).begin() as tx:
            begun = await tx.comparisons.begin([g.id for g in self.generations], 1, [])
            await tx.comparisons.end(replace(begun, state=ComparisonState.CLEAN, ended_lsn=1), close_breaks=False)

    # --- moves

    async def follow(self, stream: Stream) -> None:
        """Deliver the whole log and apply it; a stream without the lease takes it first."""
        self.connector.deliver()
        await self.read(stream)

    async def read(self, stream: Stream) -> None:
        """Apply what is in Kafka, without delivering more."""
        if not stream.is_owner and not await stream.take_over():
            raise AssertionError("a peer holds the stream's lease")
        while await stream.step():
            pass

    async def copy(self, backfill: Backfill | None = None) -> None:
        backfill = backfill or self.backfill()
        while await backfill.step():
            pass

    async def embed(self, worker: EmbedWorker | None = None) -> None:
        worker = worker or self.worker()
        while await worker.step(self.table):
            pass

    async def settle(self) -> None:
        """Fresh processes, no faults: everything drains. Leases and claims of the dead expire first."""
        self.faults.planned.clear()
        self.clock.advance(self.limits.claim_lease_s + self.limits.lease_s + 1)
        self.connector.is_paused = False
        stream = self.stream("settle")
        await self.follow(stream)
        await self.copy(self.backfill("settle"))
        await self.completion().step(self.table)
        sweep = self.sweep()
        while await sweep.step():
            pass
        for generation in self.generations:
            await self.embed(self.worker("settle", self.crew_of(generation)))

    def intrude(self, row: SourceRow) -> None:
        """Copy a page's row in, as another transaction, inside the next replica write."""

        def insert(state: State) -> None:
            row_id = next(self.database.sequences.row)
            place = (self.table.id, row.key)
            state.rows[place] = ReplicaRow(row_id, row.key, row.values, None, None)
            state.keys[self.table.id, row_id] = row.key
            for generation in self.generations:
                seq = self.database.sequences.next_seq()
                state.work[generation.id, self.table.id, row_id] = WorkEntry(
                    seq, seq, self.clock.now_ms, self.clock.now_ms, False
                )

        self.database.intrusions.append(insert)

    # --- looks

    def place(self, key: str) -> TopicPartition:
        """The partition of a numeric key."""
        places = self.broker.table_places(self.table.alias)
        return places[int(key) % len(places)]

    def rows(self) -> dict[Key, Values]:
        return self.database.rows(self.table.alias)

    def chunks(self, generation: Generation | None = None) -> dict[Key, list[str]]:
        return self.database.chunks(self.table.alias, generation or self.generation)

    def owed(self, generation: Generation | None = None) -> set[Key]:
        """Keys with a work entry of a generation, the first one unless given."""
        places, id = self.database.state.work, (generation or self.generation).id
        return {self.database.state.keys[t, r] for g, t, r in places if g == id}

    def check(self) -> None:
        """Replica equals source, and every vector belongs to what the replica renders to; nothing is owed."""
        assert self.rows() == self.source.current(self.table.alias), "the replica differs from the source"
        self.check_rows()
        expected = {key: chunks for key, values in self.rows().items() if (chunks := self.rendered(values))}
        for generation in self.generations:
            assert self.owed(generation) == set(), "work is left"
            assert self.chunks(generation) == expected, "the chunks differ from what the replica renders to"

    def check_rows(self) -> None:
        """What holds at every instant between transactions: no orphan, no lost work, no wrong vector or filter."""
        state, table = self.database.state, self.table
        live = state.live_rows(table)
        wanted = {k for k, r in live.items() if self.database.rules.wanted(table, r.values)}
        for generation in self.generations:
            chunks, owed = self.chunks(generation), self.owed(generation)
            assert set(chunks) <= wanted, "a row that is gone or not wanted is searchable"
            assert owed <= wanted, "a row that is gone or not wanted has work"
            is_swept = state.generations[generation.id].generation.swept
            for key in wanted - owed:
                if not is_swept and key not in chunks:
                    continue  # the sweep hands it over
                values = live[key].values
                assert values is not None
                assert UNAVAILABLE not in values[1:3], f"{key} lacks text and has no work"
                assert chunks.get(key, []) == self.rendered(values), f"work of {key} is lost"
        for (g, t, row_id), stored in state.chunks.items():
            values = state.rows[t, state.keys[t, row_id]].values
            assert values is not None and g in {generation.id for generation in self.generations}
            by_name = dict(zip(table.names, values, strict=True))
            for chunk in stored:
                wanted_vector = vector_of(self.contract.document_prefix + chunk.text, self.embedder.dimensions)
                assert np.array_equal(chunk.vector, wanted_vector), "a vector belongs to another text"
                filters = tuple(None if by_name[n] is UNAVAILABLE else by_name[n] for n in table.filters)
                assert chunk.filters == filters, "a filter column was not copied"

    def check_certificate(self, lsn: int, generation: Generation | None = None) -> None:
        """Every change committed before `lsn`, or a later one of the same row, is in the replica and embedded."""
        table, rows = self.table, self.rows()
        chunks, owed = self.chunks(generation), self.owed(generation)
        for key, chain in self.source.chains[table.alias].items():
            known = [(self.source.commits.get(v.xid, 0), v.values) for v in chain if not v.xid or self.committed(v.xid)]
            before = [values for at, values in known if at < lsn][-1:] or [None]
            allowed = before + [values for at, values in known if at >= lsn]
            held = rows.get(key)
            assert held is None if held is None and None in allowed else held is not None, f"{key} is false for {lsn}"
            if held is None:
                continue
            for n, value in enumerate(held):
                is_open = value is UNAVAILABLE and len(allowed) > 1
                fits = is_open or any(v is not None and v[n] == value for v in allowed)
                assert fits, f"false certificate for {lsn}: {key} is {held}, allowed {allowed}"
            texts = [self.rendered(v) for v in allowed if v is not None]
            is_later = len(allowed) > 1 and key in owed
            assert is_later or chunks.get(key, []) in texts, f"false certificate for {lsn}: chunks of {key}"

    def committed(self, xid: int) -> bool:
        return xid in self.source.commits

    def rendered(self, values: Values) -> list[str]:
        """The chunks of a row whose text is known; none where `where` does not hold."""
        if not self.database.rules.wanted(self.table, values):
            return []
        by_name = {n: v for n, v in zip(self.table.names, values, strict=True) if v is None or isinstance(v, str)}
        return list(self.chunker(render(self.table.template, by_name)))
