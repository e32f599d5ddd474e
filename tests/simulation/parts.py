"""The `Parts` of one simulated process, over twins that all processes share."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from daemon import config
from daemon.core.connector_role import ConnectorRole
from daemon.core.contract import Contract
from daemon.core.model import Generation, IndexState, Table
from daemon.core.profile import SourceAccess, connector_profile
from daemon.errors import ProviderWrong, SchemaChanged, StrangeAnswer, TransientError
from daemon.ports import Embedded, Polled, Throttled
from daemon.procedures.doctor import expected_connector
from daemon.settings import Settings
from daemon.settings_generation import GenerationSettings
from tests import builders
from tests.fakes import (
    MemoryBroker,
    MemoryCapture,
    MemoryConnector,
    MemoryDecoder,
    MemoryEmbedder,
    MemoryFeed,
    MemoryIndexes,
    VirtualClock,
    WordTokenizer,
)
from tests.simulation.choices import Choices
from tests.simulation.process import Process
from tests.simulation.swarm import Swarm
from tests.simulation.target import SharedDatabase, SharedTarget
from tests.simulation.truth import TrueSource
from tests.simulation.upstream import Upstream

GENERATION = """
[[generation]]
name = "{name}"
provider = "local"
model = "{model}"
dimensions = 8
chunk_tokens = 16
"""
MODELS = {"v1": "small", "v2": "large"}
LEASE_S, CLAIM_LEASE_S = 10, 30


@functools.cache
def settings_of(names: tuple[str, ...], has_where: bool, page_rows: int, window_records: int) -> Settings:
    """A configuration of `shop` with these generations; limits are far below those of a real one."""
    where = '\nwhere = "views <> 0"' if has_where else ""
    text = builders.CONFIG.replace(
        'text = "{title}"', 'text = "{title}\\n{body}"\nfilters = ["tenant"]\ncolumns = ["views"]' + where
    )
    text += "".join(GENERATION.format(name=name, model=MODELS[name]) for name in names)
    settings = config.parse(text, Path("revector.toml"), {}, {}).settings
    limits = {
        "lease_s": LEASE_S,
        "claim_lease_s": CLAIM_LEASE_S,
        "page_rows": page_rows,
        "window_records": window_records,
        "window_wait_ms": 400,
        "backfill_workers": 2,
    }
    few = {"in_flight": 2, "request_inputs": 3}
    generations = [g.model_copy(update={"limits": g.limits.model_copy(update=few)}) for g in settings.generation]
    return settings.model_copy(
        update={
            "limits": settings.limits.model_copy(update=limits),
            "generation": tuple(generations),
            "verify": settings.verify.model_copy(update={"page_rows": page_rows, "workers": 2}),
        }
    )


class World:
    """Everything outside of the product."""

    def __init__(self, choices: Choices, swarm: Swarm, clock: VirtualClock) -> None:
        self.choices, self.swarm, self.clock = choices, swarm, clock
        where = {"where": "views <> 0", "where_columns": ("views",)} if swarm.has_where else {}
        self.table: Table = builders.articles(**where)
        self.source = TrueSource([self.table], clock)
        self.broker = MemoryBroker([self.table], partitions=2)
        self.connector = MemoryConnector(self.source, self.broker)
        access = SourceAccess("source", "5432", "connect", "app", "secret")
        expected = expected_connector(self.settings("v1"))
        self.connector.config = connector_profile(expected, access, 2, -1)
        self.database = SharedDatabase("shop", clock)
        self.database.where("articles", ["views"], lambda row: row["views"] not in (None, "0"))
        self.indexes = MemoryIndexes(self.database)
        self.upstream = Upstream(self.source, self.broker, self.connector, choices, swarm)
        self.source.who = self.source.who.__class__(**{**_fields(self.source.who), "publication": "p", "slot": "s"})

    def settings(self, *names: str) -> Settings:
        swarm = self.swarm
        return settings_of(names, swarm.has_where, swarm.page_rows, swarm.window_records)


def _fields(of: Any) -> dict[str, Any]:
    return {name: getattr(of, name) for name in of.__dataclass_fields__}


class ProcessParts:
    """What one process is handed."""

    def __init__(self, world: World, process: Process, settings: Settings) -> None:
        self.world, self.process, self.settings = world, process, settings

    def source(self, role: str) -> Any:
        return self.process.wrap("source", self.world.source)

    def target(self, role: str) -> Any:
        return SharedTarget(self.world.database, self.process)

    def feed(self, role: str) -> Any:
        return self.process.wrap("feed", UnevenFeed(self.world.broker, self.world.choices))

    def capture(self, role: str) -> Any:
        return self.process.wrap("capture", MemoryCapture(self.world.connector))

    def embedder(self, generation: GenerationSettings) -> Any:
        return self.process.wrap("embedder", MoodyEmbedder(self.world, generation.model))

    def tokenizer(self, generation: GenerationSettings) -> WordTokenizer:
        return WordTokenizer()

    def contract(self, generation: GenerationSettings) -> Contract:
        return self.settings.contract_of(generation, WordTokenizer.identity)

    def indexes(self, role: str) -> Any:
        return self.process.wrap("indexes", SharedIndexes(self.world))

    def decoder(self, tables: Sequence[Table], epoch: int) -> MemoryDecoder:
        return MemoryDecoder(self.world.broker, epoch)

    def groundwork(self, role: str) -> Any:
        return SoundGroundwork()


class SoundGroundwork:
    async def unreadable(self, tables: Any) -> Mapping[Any, Any]:
        return {}

    async def connector_role(self, name: str, database: str) -> ConnectorRole:
        return ConnectorRole(True, {"extra_float_digits": "1", "bytea_output": "hex"}, 1, 10, 1, 10)

    async def close(self) -> None:
        pass


class SharedIndexes:
    """A handle of one process. Those of a generation that was dropped are gone with its relations."""

    def __init__(self, world: World) -> None:
        self.world, self.port = world, world.indexes

    def _there(self, generation: Generation) -> None:
        if generation.id not in self.world.database.state.generations:
            raise SchemaChanged("schema-changed", f"simulated: chunks of generation {generation.name} are gone")

    async def build(self, table: Table, generation: Generation) -> None:
        self._there(generation)
        await self.port.build(table, generation)

    async def state(self, table: Table, generation: Generation) -> IndexState:
        self._there(generation)
        return await self.port.state(table, generation)

    async def analyze_and_prewarm(self, table: Table, generation: Generation) -> None:
        self._there(generation)

    async def close(self) -> None:
        pass


class UnevenFeed(MemoryFeed):
    """One partition is read before another; an empty poll takes its time."""

    def __init__(self, broker: MemoryBroker, choices: Choices) -> None:
        super().__init__(broker)
        self.choices = choices

    async def poll(self, max_records: int, timeout_s: float) -> Polled:
        self.held = {at for at in sorted(self.position) if self.choices.chance(0.2)}
        polled = await super().poll(max_records, timeout_s)
        if not polled.next_offsets:
            await asyncio.sleep(timeout_s)
            polled = await super().poll(max_records, timeout_s)
        return polled


class MoodyEmbedder(MemoryEmbedder):
    """A provider that refuses, throttles and fails."""

    def __init__(self, world: World, model: str) -> None:
        super().__init__(model=model)
        self.world = world
        self.refuses = lambda text: "forbidden" in text

    async def embed(self, texts: Sequence[str]) -> Embedded:
        choices, counts = self.world.choices, self.world.upstream.counts
        if choices.chance(self.world.swarm.provider):
            mood = choices.below(8)
            counts["provider faults"] += 1
            if mood < 3:
                raise Throttled("embedder-throttled", "simulated: throttled", retry_after_s=float(1 + 5 * mood))
            if mood < 6:
                raise TransientError("embedder-away", "simulated: status 503")
            if mood == 6:
                raise StrangeAnswer("answer-count", "simulated: one vector too few")
            raise ProviderWrong("answer-dimension", "simulated: another dimension")
        return await super().embed(texts)
