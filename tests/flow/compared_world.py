"""A `World` in its steady state, and the `Parts` of a command over it: what a comparison runs on.

Everything is copied, applied and embedded, and a comparison is played on a virtual timeline: `compare` runs it while
connector, stream and embedder take a turn every TURN_S. `loses` drops what the log holds since the last delivery, as a
broken connector would; `spoil` changes the target behind everybody's back.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon import config
from daemon.core.chunking import cut_of
from daemon.core.contract import Contract
from daemon.core.model import Generation, Key, Known, Table
from daemon.core.profile import SourceAccess, connector_profile
from daemon.flow.backfill import Completion
from daemon.flow.embed import EmbedWorker
from daemon.flow.stream import Stream, StreamParts
from daemon.procedures.compare import Order, Progress, Report, verify
from daemon.procedures.doctor import expected_connector
from daemon.settings import Settings
from daemon.settings_generation import GenerationSettings
from tests import builders
from tests.fakes import (
    MemoryCapture,
    MemoryDecoder,
    MemoryEmbedder,
    MemoryFeed,
    MemoryIndexes,
    MemorySource,
    MemoryTarget,
    VirtualClock,
    WordTokenizer,
)
from tests.fakes.state import ReplicaRow, State, StoredChunk
from tests.flow.timeline import timeline
from tests.flow.world import World

TURN_S = 0.1
CUT = "chunk_tokens = 16\n"  # without it a document is one chunk
GENERATION = """
[[generation]]
name = "v1"
provider = "local"
model = "small"
dimensions = 8
"""


@functools.cache
def settings_of(**verify: int) -> Settings:
    """Of `shop`, whose documents are cut by lines. verify: of `[verify]`, whatever its bounds."""
    text = builders.CONFIG.replace('text = "{title}"', 'text = "{title}\\n{body}"\nfilters = ["tenant"]')
    settings = config.parse(text + GENERATION + CUT, Path("revector.toml"), {}, {}).settings
    return settings.model_copy(update={"verify": settings.verify.model_copy(update=verify)})


@dataclass
class WorldParts:
    """The `Parts` of a command, over a world's twins."""

    world: ComparedWorld

    @property
    def settings(self) -> Settings:
        return self.world.settings

    def source(self, role: str) -> MemorySource:
        return self.world.faults.wrap("source", self.world.source)

    def target(self, role: str) -> MemoryTarget:
        return self.world.target()

    def feed(self, role: str) -> MemoryFeed:
        return self.world.faults.wrap("feed", self.world.feed())

    def capture(self, role: str) -> MemoryCapture:
        return self.world.faults.wrap("capture", self.world.capture)

    def embedder(self, generation: GenerationSettings) -> MemoryEmbedder:
        return self.world.faults.wrap("embedder", self.world.embedder)

    def tokenizer(self, generation: GenerationSettings) -> WordTokenizer:
        return WordTokenizer()

    def contract(self, generation: GenerationSettings) -> Contract:
        return self.settings.contract_of(generation, WordTokenizer.identity)

    def indexes(self, role: str) -> MemoryIndexes:
        return self.world.indexes

    def decoder(self, tables: Sequence[Table], epoch: int) -> MemoryDecoder:
        return MemoryDecoder(self.world.broker, epoch)

    def groundwork(self, role: str) -> Any:
        raise AssertionError("a comparison makes nothing")


@dataclass
class ComparedWorld(World):
    """meanwhile: called in every turn, before anything is delivered. is_delivering, is_applying, is_completing,
    is_embedding: what goes on beside the comparison."""

    settings: Settings = field(default_factory=settings_of)
    meanwhile: Callable[[], None] = lambda: None
    is_delivering: bool = True
    is_applying: bool = True
    is_completing: bool = True
    is_embedding: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        (chosen,) = self.settings.generation
        self.contract = self.settings.contract_of(chosen, WordTokenizer.identity)
        self.chunker = cut_of(self.contract, WordTokenizer())
        access = SourceAccess("source", "5432", "connect", "app", "secret")
        self.connector.config = connector_profile(expected_connector(self.settings), access, 2, -1)
        self.turns = 0
        self._turning = asyncio.Lock()
        self.beside: Stream | None = None
        self.workers: dict[int, EmbedWorker] = {}

    @property
    def parts(self) -> WorldParts:
        return WorldParts(self)

    async def steady(self, rows: int = 5) -> ComparedWorld:
        """Copied, applied and embedded to the end, with `rows` rows, keys from "0" on."""
        await self.open()
        self.source.seed("articles", *({"id": str(n), **texts(str(n))} for n in range(rows)))
        await self.begin()
        await self.copy()
        await self.settle()
        self.clock.advance(self.limits.lease_s + 1)
        self.check()
        return self

    async def compare(self, by: str = "v1", tell: Callable[[Progress], None] = lambda _: None, **order: Any) -> Report:
        """A whole comparison, every chunk embedded again, with everything else beside it."""
        async with self.everything_goes_on():
            chosen = Order(**{"sample": 1000, **order})
            return await verify(self.parts, chosen, by, tell, self.clock, asyncio.sleep)

    # --- what goes on beside a comparison

    @asynccontextmanager
    async def everything_goes_on(self) -> AsyncIterator[None]:
        """The last turn is ended: a stream that is stopped amidst a window must not be used again."""
        is_over = False

        async def go_on() -> None:
            while not is_over:
                await asyncio.sleep(TURN_S)
                await self.turn()

        going = asyncio.create_task(go_on())
        try:
            yield
        finally:
            is_over = True
            await going

    async def turn(self) -> None:
        """What the log holds is applied and embedded."""
        async with self._turning:
            self.turns += 1
            self.meanwhile()
            if self.is_delivering:
                self.connector.deliver()
            if self.is_applying:
                self.beside = self.beside or self._stream()
                await self.read(self.beside)
            if self.is_completing and not self.source.table_locks:  # a completion waits for a truncate's lock
                await Completion(self.source, MemoryTarget(self.database), [self.table]).step(self.table)
            if self.is_embedding:
                for generation in self.generations:
                    await self.embed(self._worker(generation))

    def hold(self) -> None:
        """Apply no change until `release`; barriers still pass the connector."""
        assert self.beside is not None
        places = self.broker.table_places(self.table.alias)
        self.beside.parts.feed.hold(places)  # type: ignore[attr-defined]

    def release(self) -> None:
        assert self.beside is not None
        self.beside.parts.feed.release()  # type: ignore[attr-defined]

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(seconds, act)

    def _stream(self) -> Stream:
        """Faults are for the comparison's own calls."""
        return Stream(
            StreamParts(
                source=self.source,
                feed=MemoryFeed(self.broker),
                target=MemoryTarget(self.database),
                decoder=MemoryDecoder(self.broker),
                tables=[self.table],
                owner="beside",
                limits=self.limits,
                clock=self.clock,
            )
        )

    def _worker(self, generation: Generation) -> EmbedWorker:
        if generation.id not in self.workers:
            crew = self.crew_of(generation)
            crew.provider.embedder = self.embedder
            self.workers[generation.id] = EmbedWorker(MemoryTarget(self.database), "beside", crew)
        return self.workers[generation.id]

    def loses(self) -> None:
        """What is in the log and not yet delivered never is; the connector believes that it was."""
        connector = self.connector
        connector.acked.update(range(connector.next, len(self.source.log)))
        connector.next = len(self.source.log)
        connector.flush()

    # --- the source

    def change(self, key: str, **values: Any) -> None:
        tx = self.source.begin()
        tx.update("articles", key, **values)
        tx.commit()

    def insert(self, key: str, **values: Known) -> None:
        tx = self.source.begin()
        tx.insert("articles", id=key, **{**texts(key), **values})
        tx.commit()

    def delete(self, key: str) -> None:
        tx = self.source.begin()
        tx.delete("articles", key)
        tx.commit()

    def truncate(self) -> None:
        tx = self.source.begin()
        tx.truncate("articles")
        tx.commit()

    # --- the target, behind everybody's back

    @asynccontextmanager
    async def spoil(self) -> AsyncIterator[State]:
        async with MemoryTarget(self.database)._transaction() as context:
            yield context.state

    def replica_row(self, key: str) -> ReplicaRow:
        return self.database.state.rows[self.table.id, (key,)]

    def stored(self, key: str) -> tuple[StoredChunk, ...]:
        return self.database.state.chunks.get((self.generation.id, self.table.id, self.replica_row(key).row_id), ())

    def durable(self) -> dict[Key, Version]:
        """Every replica row with its chunks in the first generation."""
        state, of = self.database.state, (self.generation.id, self.table.id)
        return {key: Version(row, state.chunks.get((*of, row.row_id), ())) for (_, key), row in state.rows.items()}


@dataclass(frozen=True, eq=False)
class Version:
    """What was written of a row; written again, even with the same values, it is another version."""

    row: ReplicaRow
    chunks: tuple[StoredChunk, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self.row is other.row and self.chunks is other.chunks

    __hash__ = None  # type: ignore[assignment]


def texts(key: str, tag: str = "") -> dict[str, Known]:
    """Values of a row whose two texts nobody else has."""
    return {"title": f"title {key}{tag}", "body": f"body {key}{tag}", "tenant": "t1", "views": key}


def played(scene: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test whose first parameter is a steady world, played on a timeline of its own."""

    @functools.wraps(scene)
    def test(**named: Any) -> None:
        async def on(clock: VirtualClock) -> None:
            await scene(await ComparedWorld(clock=clock).steady(), **named)

        timeline(on)

    signature = inspect.signature(scene)
    test.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return test
