"""Plan a migration: count what there is at the source, and say what it will cost and take.

Reads the source; the target is asked only for a probe of an index build and to keep the forecast with a generation
that exists there. Rows are rendered, cut and counted by the functions that embedding uses, in a worker thread. Works
before anything was made, and beside a running migration.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace

from daemon.core import storage
from daemon.core.budget import in_force
from daemon.core.chunking import cut_of
from daemon.core.contract import Contract, render
from daemon.core.forecast import (
    Forecast,
    Size,
    TableForecast,
    Terms,
    forecast,
    forecast_table,
    record,
)
from daemon.core.model import Column, Rates, Table
from daemon.core.orders import Limits, standing
from daemon.core.sampling import FEW_CLUSTERS, Draw, Picking, Tally, draw
from daemon.errors import RevectorError
from daemon.parts import Parts
from daemon.ports import SampledRow, Source, Target, Tokenizer
from daemon.procedures.prepare import choices, resolve_tables
from daemon.procedures.probe import PROBE_CHUNKS, probe_index, probe_provider
from daemon.settings_generation import GenerationSettings

log = logging.getLogger(__name__)

COUNT_LIMIT_S = 20.0
TARGET_LIMIT_S = 5.0
BESIDE_ROWS, BESIDE_COUNT_S, BESIDE_LIMIT_S = 2000, 2.0, 60.0  # of a forecast made beside a run
KEY_BYTES = {"smallint": 2, "integer": 4, "bigint": 8, "uuid": 16, "boolean": 1, "date": 4}
OTHER_KEY_BYTES = 24


@dataclass(frozen=True, slots=True)
class Wish:
    """How well to look. sample_rows None: the defaults, which read a small table whole."""

    sample_rows: int | None = None
    exact: bool = False
    probe: bool = False
    count_limit_s: float = COUNT_LIMIT_S


class Counter:
    """Counts rows of one generation as its embedder would. probe_texts: a fair pick of what it would send, with the
    tokens of each. Used by one thread at a time."""

    def __init__(self, contract: Contract, tokenizer: Tokenizer, most_tokens: int | None) -> None:
        self.contract, self.tokenizer, self.most_tokens = contract, tokenizer, most_tokens
        self.probe_texts: list[tuple[str, int]] = []
        self._cut = cut_of(contract, tokenizer)
        self._vector = storage.vector_bytes(contract.dimensions, contract.vector_type)
        self._random, self._seen = random.Random(), 0  # noqa: S311

    def count(self, table: Table, row: SampledRow, key_bytes: int) -> Tally:
        """One row's sums."""
        tally = Tally(rows=1, replica_bytes=storage.replica_bytes(row.stored_bytes, key_bytes))
        if row.texts is None:
            return tally
        tally.wanted, tally.text_bytes = 1, row.text_bytes
        values = dict(zip(table.text_columns, row.texts, strict=True))
        chunks = self._cut(render(self.contract.templates[table.alias], values))
        tally.chunks, tally.blank = len(chunks), int(not chunks)
        for chunk in chunks:
            text = self.contract.document_prefix + chunk
            tokens = self.tokenizer.count(text)
            if self.most_tokens is not None and tokens > self.most_tokens:
                tally.too_long += 1
                continue
            tally.tokens += tokens
            stored = (len(chunk.encode()), self._vector, 8 * len(table.filters))
            tally.chunk_bytes += storage.chunk_bytes(*stored)
            tally.chunk_wal += storage.chunk_wal(*stored)
            self._keep(text, tokens)
        return tally

    def _keep(self, text: str, tokens: int) -> None:
        """Each chunk seen so far has the same chance to be among the kept ones."""
        self._seen += 1
        if len(self.probe_texts) < PROBE_CHUNKS:
            self.probe_texts.append((text, tokens))
        elif (at := self._random.randrange(self._seen)) < PROBE_CHUNKS:
            self.probe_texts[at] = (text, tokens)


async def plan(parts: Parts, generation: GenerationSettings, wish: Wish, clock: Callable[[], float]) -> Forecast:
    """The forecast of one generation. Raises ConfigError: a table or a `where` cannot be used; and what the source
    raises. A probe that fails is a note, not an error."""
    counter = Counter(parts.contract(generation), parts.tokenizer(generation), generation.most_input_tokens)
    source = parts.source("plan")
    try:
        tables = await resolve_tables(source, choices(parts.settings))
        with ThreadPoolExecutor(1, "plan") as worker:
            counted = [await count_table(source, table, counter, wish, worker) for table in tables]
    finally:
        await source.close()
    notes: list[str] = []
    provider, learnt, index = None, Rates(), None
    if wish.probe:
        provider, learnt, said = await probe_provider(parts, generation, counter.probe_texts, clock)
        notes += said
        index, said = await probe_index(parts, counter.contract)
        notes += said
    if parts.settings.quiet_hours:
        notes.append("quiet hours are on top of the embedding time")
    terms = terms_of(generation, await ordered(parts, generation.name), learnt)
    return replace(forecast(terms, counted, provider, index), is_probed=wish.probe, notes=tuple(notes))


async def count_table(
    source: Source, table: Table, counter: Counter, wish: Wish, worker: ThreadPoolExecutor
) -> TableForecast:
    """Count a table, whole or by a sample."""
    counted = await source.count(table, wish.count_limit_s)
    estimate = None if counted is not None else await source.estimate(table)
    rows = counted.rows if counted is not None else estimate
    how = draw(rows, counted=counted is not None, sample_rows=wish.sample_rows, exact=wish.exact)
    clusters = await _clusters(source, table, counter, how, worker)
    if how.picking is Picking.BLOCKS and len(clusters) < FEW_CLUSTERS and how.share < 1:
        how = Draw(Picking.ROWS, how.share)  # too few blocks to say how they differ
        clusters = await _clusters(source, table, counter, how, worker)
    whole = None if counted is None else (counted.rows, counted.wanted, counted.text_bytes)
    return forecast_table(table.alias, how, Size(whole, estimate), clusters)


async def _clusters(
    source: Source, table: Table, counter: Counter, how: Draw, worker: ThreadPoolExecutor
) -> list[Tally]:
    loop = asyncio.get_running_loop()
    key_bytes = sum(key_size(c) for c in table.columns[: len(table.key)])
    whole, blocks, single = Tally(), dict[str, Tally](), list[Tally]()

    def take(portion: Sequence[SampledRow]) -> None:
        for row in portion:
            tally = counter.count(table, row, key_bytes)
            if how.picking is Picking.EVERY_ROW:
                whole.add(tally)
            elif how.picking is Picking.ROWS:
                single.append(tally)
            else:
                blocks.setdefault(row.block, Tally()).add(tally)

    async with aclosing(source.sample(table, how)) as portions:
        async for portion in portions:
            await loop.run_in_executor(worker, take, portion)
    return [whole] if how.picking is Picking.EVERY_ROW else [*single, *blocks.values()]


def key_size(column: Column) -> int:
    return KEY_BYTES.get(column.type, OTHER_KEY_BYTES)


def terms_of(generation: GenerationSettings, by_operator: Limits, learnt: Rates) -> Terms:
    """What is in force: the lowest of what is configured, what an operator ordered and what the provider said."""
    g, limits = generation, generation.limits
    rates = in_force([Rates(limits.requests_per_minute, limits.tokens_per_minute), by_operator.rates, learnt])
    return Terms(
        name=g.name,
        model=g.model,
        dimensions=g.dimensions,
        vector_type=g.vector_type,
        price=0.0 if g.price is None and g.provider == "local" else g.price,
        tokens_per_minute=rates.tokens_per_minute,
        requests_per_minute=rates.requests_per_minute,
        request_tokens=limits.request_tokens,
        request_inputs=limits.request_inputs,
        in_flight=min(limits.in_flight, by_operator.in_flight or limits.in_flight),
        input_tokens=g.most_input_tokens,
    )


async def ordered(parts: Parts, generation: str) -> Limits:
    """What `revector limits` ordered; nothing where there is no migration yet or the target does not answer."""
    target = parts.target("plan")
    try:
        async with asyncio.timeout(TARGET_LIMIT_S):
            setup = await target.setup()
            if setup.schema_version is None or setup.schema_version < setup.known_schema:
                return Limits()
            async with target.begin() as tx:
                return standing(await tx.ledger.orders()).limits_of(generation)
    except (RevectorError, TimeoutError):
        return Limits()
    finally:
        await target.close()


# --- what `status` compares with


async def keep(target: Target, found: Forecast, planned_at: str, *, replace_old: bool = True) -> bool:
    """Store the forecast with its generation, if the target knows it; whether it was stored."""
    if not found.tokens.is_finite:
        return False
    setup = await target.setup()
    if setup.schema_version is None or setup.schema_version < setup.known_schema:
        return False
    async with target.begin() as tx:
        generation = next((g for g in await tx.ledger.generations() if g.name == found.terms.name), None)
        if generation is None or (not replace_old and await tx.ledger.forecast(generation) is not None):
            return False
        await tx.ledger.set_forecast(generation, record(found, planned_at))
        return True


async def forecast_beside(parts: Parts, planned_at: str) -> None:
    """Give every configured generation without a forecast one from a small sample. Beside a run: never raises, never
    takes long, and whoever waits for nothing is not held up by it."""
    try:
        async with asyncio.timeout(BESIDE_LIMIT_S):
            for generation in parts.settings.generation:
                await _forecast_missing(parts, generation, planned_at)
    except Exception as error:  # whatever it is: a run must not end because nobody could say what it will cost
        log.info("no forecast was made: %s", getattr(error, "id", type(error).__name__))


async def _forecast_missing(parts: Parts, generation: GenerationSettings, planned_at: str) -> None:
    target = parts.target("plan")
    try:
        async with target.begin() as tx:
            known = next((g for g in await tx.ledger.generations() if g.name == generation.name), None)
            if known is None or await tx.ledger.forecast(known) is not None:
                return
        wish = Wish(BESIDE_ROWS, count_limit_s=BESIDE_COUNT_S)
        await keep(target, await plan(parts, generation, wish, time.monotonic), planned_at, replace_old=False)
    finally:
        await target.close()
