"""What a migration will cost and take, from what was counted at the source. Pure.

Every number carries where it comes from: tokens their sampling error, a duration the limits or the probe it follows
from. What has no basis is None and is shown as unknown; a duration is always a range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemon.core import storage
from daemon.core.sampling import Draw, Estimate, Picking, Tally, population, sum_of, total

USED_BUDGET = 0.95  # of the permitted tokens: what embedding makes of its budget at least


@dataclass(frozen=True, slots=True)
class Terms:
    """What a generation is made under. price: per million tokens. input_tokens: most tokens of one input."""

    name: str
    model: str
    dimensions: int
    vector_type: str
    price: float | None = None
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    request_tokens: int = 50_000
    request_inputs: int = 256
    in_flight: int = 8
    input_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TableForecast:
    """One table. size_from: counted | planner | sample, where the number of rows is from. key_bytes: of a key."""

    alias: str
    draw: Draw
    rows_read: int
    size_from: str
    rows: Estimate
    wanted: Estimate
    blank: Estimate
    chunks: Estimate
    tokens: Estimate
    too_long: Estimate
    replica_bytes: Estimate
    chunk_bytes: Estimate
    chunk_wal: Estimate


@dataclass(frozen=True, slots=True)
class ProviderProbe:
    """A few requests, one after the other. billed: tokens as the provider counted, 0 where it does not say. timed:
    counted tokens of the requests that took `seconds`."""

    inputs: int
    counted: int
    billed: int
    timed: int
    seconds: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Billed tokens per counted one; 1 where the provider does not say."""
        return self.billed / self.counted if self.billed and self.counted else 1.0


@dataclass(frozen=True, slots=True)
class IndexProbe:
    """A small index built by one process of the target: vectors in it, and seconds."""

    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds, as a range, and what they follow from."""

    low_s: float
    high_s: float
    basis: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """The whole. cost: in the currency of the price. bytes: of replica, work, chunks, index. wal_bytes: (low, high).
    graph_bytes: memory of the largest index build. is_probed: whether
    the provider was asked, in vain or not."""

    terms: Terms
    tables: tuple[TableForecast, ...]
    tokens: Estimate
    requests: Estimate
    cost: Estimate | None
    embedding: Span | None
    index: Span | None
    graph_bytes: float
    bytes: Mapping[str, float]
    wal_bytes: tuple[float, float]
    provider_probe: ProviderProbe | None = None
    index_probe: IndexProbe | None = None
    is_probed: bool = False
    notes: tuple[str, ...] = ()

    def summed(self, of: Callable[[TableForecast], Estimate]) -> Estimate:
        """Over all tables."""
        return sum_of(of(t) for t in self.tables)


@dataclass(frozen=True, slots=True)
class Size:
    """What is known of a whole table. counted: rows, wanted rows and text bytes; estimate: rows by the planner, where
    they could not be counted."""

    counted: tuple[int, int, int] | None = None
    estimate: int | None = None


def forecast_table(alias: str, draw: Draw, size: Size, clusters: Sequence[Tally]) -> TableForecast:
    """A table's totals."""
    share = 1.0 if draw.picking is Picking.EVERY_ROW else draw.share
    rows, bases = _bases(size, clusters, share)

    def totalled(of: Callable[[Tally], int]) -> Estimate:
        """By whichever base it follows more closely in the sample."""
        return min((total(clusters, of, per, whole, share) for per, whole in bases), key=lambda e: e.high - e.low)

    by_planner = "sample" if size.estimate is None else "planner"
    return TableForecast(
        alias=alias,
        draw=draw,
        rows_read=sum(c.rows for c in clusters),
        size_from="counted" if share >= 1 or size.counted else by_planner,
        rows=rows,
        wanted=Estimate.exact(size.counted[1]) if size.counted and share < 1 else totalled(_wanted),
        blank=totalled(lambda t: t.blank),
        chunks=totalled(lambda t: t.chunks),
        tokens=totalled(lambda t: t.tokens),
        too_long=totalled(lambda t: t.too_long),
        replica_bytes=total(clusters, lambda t: t.replica_bytes, _rows, rows, share),
        chunk_bytes=totalled(lambda t: t.chunk_bytes),
        chunk_wal=totalled(lambda t: t.chunk_wal),
    )


def _bases(
    size: Size, clusters: Sequence[Tally], share: float
) -> tuple[Estimate, list[tuple[Callable[[Tally], int], Estimate]]]:
    """Rows of the table, and what its totals can be counted per."""
    if share >= 1:
        rows = Estimate.exact(sum(c.rows for c in clusters))
        return rows, [(_rows, rows)]
    if size.counted is not None:
        rows, wanted, text_bytes = (Estimate.exact(n) for n in size.counted)
        return rows, [(_wanted, wanted), (lambda t: t.text_bytes, text_bytes)]
    rows = population(clusters, _rows, share) if size.estimate is None else Estimate.exact(size.estimate)
    return rows, [(_rows, rows)]


def _rows(tally: Tally) -> int:
    return tally.rows


def _wanted(tally: Tally) -> int:
    return tally.wanted


def forecast(
    terms: Terms,
    tables: Sequence[TableForecast],
    provider: ProviderProbe | None = None,
    index: IndexProbe | None = None,
) -> Forecast:
    """The whole, from its tables and what was probed."""
    tokens = sum_of(t.tokens for t in tables).times(1.0 if provider is None else provider.ratio)
    chunks = sum_of(t.chunks for t in tables)
    requests = _requests(terms, tokens, chunks)
    vector = storage.vector_bytes(terms.dimensions, terms.vector_type)
    sizes = {
        "replica": sum(t.replica_bytes.value for t in tables),
        "work": sum(t.wanted.value for t in tables) * storage.WORK_ENTRY,
        "chunks": sum(t.chunk_bytes.value for t in tables),
        "index": sum(storage.hnsw_bytes(t.chunks.value, vector) for t in tables),
    }
    return Forecast(
        terms=terms,
        tables=tuple(tables),
        tokens=tokens,
        requests=requests,
        cost=None if terms.price is None else tokens.times(terms.price / 1e6),
        embedding=_embedding(terms, tokens, requests, provider),
        index=_index(tables, vector, index),
        graph_bytes=max((storage.graph_bytes(t.chunks.value, vector) for t in tables), default=0.0),
        bytes=sizes,
        wal_bytes=storage.wal_bytes(
            sizes["replica"] + sizes["work"],
            sum(t.chunk_wal.value for t in tables),
            storage.hnsw_wal(chunks.value, vector),
        ),
        provider_probe=provider,
        index_probe=index,
    )


def _requests(terms: Terms, tokens: Estimate, chunks: Estimate) -> Estimate:
    """Requests are filled by tokens or by inputs, whatever comes first."""

    def needed(tokens: float, chunks: float) -> float:
        most = max(tokens / terms.request_tokens, chunks / terms.request_inputs)
        return float(math.ceil(most)) if math.isfinite(most) else most

    return Estimate(
        needed(tokens.value, chunks.value), needed(tokens.low, chunks.low), needed(tokens.high, chunks.high)
    )


def _embedding(terms: Terms, tokens: Estimate, requests: Estimate, probe: ProviderProbe | None) -> Span | None:
    """None without limits and without a probe. A probe sends one request at a time: several at once are at best as
    fast each, at worst they only wait for each other."""
    bases = []
    low = high = 0.0
    budgets = ((tokens, terms.tokens_per_minute, "tokens"), (requests, terms.requests_per_minute, "requests"))
    for amount, per_minute, noun in budgets:
        if per_minute is not None:
            low = max(low, amount.low / per_minute * 60)
            high = max(high, amount.high / (per_minute * USED_BUDGET) * 60)
            bases.append(f"{per_minute:,} {noun}/min permitted".replace(",", " "))
    if probe is not None and sum(probe.seconds) > 0 and probe.timed:
        rate = probe.timed * probe.ratio / sum(probe.seconds)
        low, high = max(low, tokens.low / rate / terms.in_flight), max(high, tokens.high / rate)
        bases.append(f"a probe at {rate:,.0f} tokens/s, 1 to {terms.in_flight} requests at once".replace(",", " "))
    if not bases or not math.isfinite(high):
        return None
    return Span(low, high, " and ".join(bases))


def _index(tables: Sequence[TableForecast], vector: int, probe: IndexProbe | None) -> Span | None:
    """None without a probe, and where a graph does not fit into the memory of a build: that is many times slower, by
    how much nobody measured. Each new element searches the graph so far: n log n."""
    memory = storage.BUILD_MEMORY_MB * 1024 * 1024
    if probe is None or any(storage.graph_bytes(t.chunks.high, vector) > memory for t in tables):
        return None
    unit = probe.seconds / (probe.rows * math.log(probe.rows))
    low = sum(unit * t.chunks.low * math.log(max(2.0, t.chunks.low)) for t in tables) / storage.BUILD_PROCESSES
    high = sum(unit * t.chunks.high * math.log(max(2.0, t.chunks.high)) for t in tables)
    basis = f"{probe.rows:,} random vectors in {probe.seconds:.1f} s, 1 to {storage.BUILD_PROCESSES} processes"
    return Span(low, high, basis.replace(",", " "))


def record(forecast: Forecast, planned_at: str) -> dict[str, Any]:
    """What is kept with the generation, for `status` to compare with."""
    tokens = forecast.tokens
    return {
        "planned_at": planned_at,
        "price": forecast.terms.price,
        "tokens": {"value": round(tokens.value), "low": round(tokens.low), "high": round(tokens.high)},
        "rows": round(forecast.summed(lambda t: t.wanted).value),
        "chunks": round(forecast.summed(lambda t: t.chunks).value),
        "method": sorted({t.draw.picking.value for t in forecast.tables}),
    }
