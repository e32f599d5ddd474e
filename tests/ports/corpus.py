"""Rows in a real target, the real connector and the embedding workers between them, and a look that trusts neither.

What is stored is read in plain SQL and compared with the provider's own function of the text, so a vector that belongs
to another text, or a text that belongs to another row, cannot hide. Time is virtual: waits pass at once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg

from connectors.openai_embedder import OpenAIEmbedder
from connectors.tokenizers import BpeTokenizer
from daemon.core.contract import Contract, Cut, from_json
from daemon.errors import RevectorError
from daemon.flow.embed import Crew, EmbedWorker
from daemon.flow.gate import Gate
from daemon.flow.orders import Orders
from daemon.flow.provider import ASK_AGAIN_S, CANARY, CANARY_EVERY_S
from daemon.flow.provider import Provider as Trusted
from daemon.settings_generation import GenerationLimits
from sandbox.provider import Provider, vector_of
from tests.builders import row
from tests.fakes import VirtualClock
from tests.ports.target_shop import Shop, Targets

KEY = "sk-zebra-quartz"
MODEL = "test-embedding"
DIMENSIONS = 8
MOST_ERRORS = 500
TIMEOUT_S = 2.0

_TOKENIZER = BpeTokenizer("cl100k_base")
_numbers = itertools.count()
_CPU = ThreadPoolExecutor(max_workers=1)


def lines(text: str) -> list[str]:
    """A chunker with several chunks a document: its distinct lines."""
    return list(dict.fromkeys(line for line in text.splitlines() if line.strip()))


@dataclass
class Corpus:
    """`bodies` by key, copied and owed. `errors`: what the workers met so far."""

    shop: Shop
    looking: psycopg.Connection[Any]
    provider: Provider
    bodies: dict[str, str]
    clock: VirtualClock = field(default_factory=VirtualClock)
    is_real_time: bool = False
    errors: list[RevectorError] = field(default_factory=list)
    made: list[OpenAIEmbedder] = field(default_factory=list)

    @classmethod
    async def open(cls, dsn: str, targets: Targets, provider: Provider, bodies: dict[str, str]) -> Corpus:
        shop = await Shop.open(targets)
        await shop.start()
        await shop.copy(*(row(key, title="", body=body) for key, body in bodies.items()))
        return cls(shop, psycopg.connect(dsn, autocommit=True), provider, dict(bodies))

    async def close(self) -> None:
        self.looking.close()
        for embedder in self.made:
            await embedder.close()

    # --- the product

    async def crew(self, connector: dict[str, Any] | None = None, cut: Cut = lines, **limits: int) -> Crew:
        """One embedding process's share. connector: what differs in how it is configured."""
        settings: dict[str, Any] = {"base_url": self.provider.url, "api_key": KEY, "model": MODEL}
        settings |= {"dimensions": DIMENSIONS, "timeout_s": TIMEOUT_S, "normalised": True, **(connector or {})}
        embedder = OpenAIEmbedder(**settings)
        self.made.append(embedder)
        chosen = GenerationLimits(**limits)
        orders = Orders(self.shop.targets.connect())
        await orders.refresh()
        clock, pause = (time.monotonic, asyncio.sleep) if self.is_real_time else (self.clock, self._pause)
        gate = Gate(self.shop.targets.connect(), self.shop.generation, chosen, orders, clock, pause)
        tokens = _TOKENIZER.count(CANARY)
        return Crew(
            generation=self.shop.generation,
            contract=await self._contract(),
            tables=[self.shop.table],
            provider=Trusted(embedder, gate, self.shop.generation, CANARY, tokens, clock),
            orders=orders,
            tokenizer=_TOKENIZER,
            cut=cut,
            limits=chosen,
            claim_lease_s=60,
            cpu=_CPU,
        )

    async def workers(self, count: int = 1, crew: Crew | None = None, **limits: int) -> list[EmbedWorker]:
        crew = crew or await self.crew(None, lines, **limits)
        return [EmbedWorker(self.shop.targets.connect(), f"w{next(_numbers)}", crew) for _ in range(count)]

    async def drain(self, workers: Sequence[EmbedWorker], *, halts: bool = False) -> None:
        """Let them work until nothing waits; what they raise is noted and tried again, as their loop does. halts:
        return at the first error instead."""

        async def work(worker: EmbedWorker) -> None:
            while True:
                try:
                    if await worker.step(self.shop.table) == 0:
                        return
                except RevectorError as error:
                    self.errors.append(error)
                    if halts:
                        return
                    self.clock.advance(ASK_AGAIN_S + 1)
                    assert len(self.errors) < MOST_ERRORS, f"it does not recover: {self.ids()}"

        while self.owed(state="waiting"):
            await asyncio.gather(*(work(worker) for worker in workers))
            if halts and self.errors:
                return

    def pass_canary(self) -> None:
        """Let so much time pass that the provider is vouched for again."""
        self.clock.advance(CANARY_EVERY_S + 1)

    async def change(self, key: str, body: str, lsn: int) -> None:
        """A change of a row arrives by the stream."""
        await self.shop.change(key, row(key, title="", body=body), lsn)
        self.bodies[key] = body

    # --- what is there

    def ids(self) -> set[str]:
        """Of the errors that the workers met."""
        return {error.id for error in self.errors}

    def owed(self, state: str | None = None) -> int:
        condition, values = ("where state = %s", [state]) if state else ("", [])
        return int(self.read(f"select count(*) from revector.work {condition}", values)[0][0])

    def claimed(self) -> int:
        return int(self.read("select count(*) from revector.work where claimed_by is not null")[0][0])

    def refused(self) -> dict[str, str]:
        """What is in quarantine: the reason by key."""
        query = "select id::text, reason from revector.work join shop.articles on _row_id = row_id"
        return dict(self.read(f"{query} where state = 'refused'"))

    def replication(self) -> list[Any]:
        """What the stream owns: embedding never touches it."""
        relations = ("checkpoint", "migration", "lease", "continuity", "pulse", "source_table")
        queries = [f"select * from revector.{relation} order by 1" for relation in relations]
        queries.append("select * from shop.articles order by _row_id")
        return [self.read(query) for query in queries]

    def stored(self) -> dict[str, list[str]]:
        """Texts of the chunks by row; every vector is held against its own text, every number against its place."""
        query = "select id::text, _n, _text, _embedding::text from shop.articles join shop.articles_v1 using (_row_id)"
        found: dict[str, list[str]] = {}
        for key, n, text, vector in self.read(f"{query} order by 1, 2"):
            expected = vector_of(text, DIMENSIONS, self.provider.script.model_seed)
            stored = np.fromstring(vector.strip("[]"), np.float32, sep=",")
            assert np.array_equal(stored, expected), f"row {key}, chunk {n}: the vector belongs to another text"
            texts = found.setdefault(key, [])
            assert n == len(texts), f"row {key}: chunk numbers have a hole"
            texts.append(text)
        return found

    def check(self, missing: Sequence[str] = ()) -> None:
        """Every row but `missing` has the chunks of its own text, and nothing else is there."""
        expected = {key: cut for key, body in self.bodies.items() if key not in missing and (cut := lines(body))}
        assert self.stored() == expected, "a row lacks chunks, or has those of another text"
        assert self.claimed() == 0

    def check_part(self) -> None:
        """What is stored so far is right."""
        for key, texts in self.stored().items():
            assert texts == lines(self.bodies[key])

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        return self.looking.execute(query.encode(), values).fetchall()

    async def _contract(self) -> Contract:
        async with self.shop.target.begin() as tx:
            return from_json(await tx.ledger.generation_contract(self.shop.generation))

    async def _pause(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await asyncio.sleep(0)


def numbered(count: int, chunks: int = 1) -> dict[str, str]:
    """Rows whose texts tell whose they are."""
    return {str(n): "\n".join(f"row {n} part {m}" for m in range(chunks)) for n in range(count)}
