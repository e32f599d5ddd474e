"""How a `Forecast` is shown: one JSON document, and aligned lines for a terminal.

A number that nobody could know is the word unknown with what would make it known, never 0. Currency is the user's:
no sign is put to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from daemon.core import storage
from daemon.core.face import duration, money, size
from daemon.core.forecast import Forecast, Span, TableForecast
from daemon.core.sampling import Estimate, Picking
from daemon.core.status import grouped

FULL_PER_CENT = 100
LABEL = 11
HEADS = ("table", "rows", "to embed", "chunks", "tokens", "read")
SIZE_WORDS = {"planner": "rows by the planner's statistics", "sample": "rows by the sample"}


def as_json(forecast: Forecast) -> dict[str, Any]:
    """The forecast as plain data; null is unknown."""
    f = forecast
    probe, index = f.provider_probe, f.index_probe
    return {
        "generation": f.terms.name,
        "model": f.terms.model,
        "tables": [_table_json(t) for t in f.tables],
        "tokens": _number(f.tokens),
        "requests": _number(f.requests),
        "price": f.terms.price,
        "cost": None if f.cost is None else _number(f.cost, digits=4),
        "embedding": _span_json(f.embedding),
        "index_build": _span_json(f.index),
        "index_memory_bytes": _whole(f.graph_bytes),
        "bytes": {name: _whole(n) for name, n in f.bytes.items()},
        "wal_bytes": {"low": _whole(f.wal_bytes[0]), "high": _whole(f.wal_bytes[1])},
        "tolerance": storage.TOLERANCE,
        "probe": None
        if probe is None
        else {
            "inputs": probe.inputs,
            "tokens_counted": probe.counted,
            "tokens_billed": probe.billed or None,
            "ratio": probe.ratio,
            "seconds": list(probe.seconds),
        },
        "index_probe": None if index is None else {"rows": index.rows, "seconds": index.seconds},
        "notes": list(f.notes),
    }


def _table_json(t: TableForecast) -> dict[str, Any]:
    numbers = {name: _number(getattr(t, name)) for name in ("rows", "wanted", "blank", "chunks", "tokens", "too_long")}
    return {
        "table": t.alias,
        "method": t.draw.picking.value,
        "share": t.draw.share,
        "rows_read": t.rows_read,
        "rows_from": t.size_from,
        **numbers,
    }


def _number(estimate: Estimate, digits: int = 0) -> dict[str, float | None]:
    parts = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: _whole(n) if not digits else _finite(n, digits) for name, n in parts.items()}


def _span_json(span: Span | None) -> dict[str, Any] | None:
    return None if span is None else {"low_s": round(span.low_s), "high_s": round(span.high_s), "basis": span.basis}


def _whole(n: float) -> int | None:
    return round(n) if math.isfinite(n) else None


def _finite(n: float, digits: int) -> float | None:
    return round(n, digits) if math.isfinite(n) else None


# --- text


def render_text(forecast: Forecast, migration: str) -> list[str]:
    """Lines, the next command last."""
    f = forecast
    lines = [f"{migration}   generation {f.terms.name}: {f.terms.model}, {f.terms.dimensions} dimensions", ""]
    lines += [f"  {line}" for line in _aligned([HEADS, *(_table_cells(t) for t in f.tables)])]
    lines.append("")
    for label, text in _parts(f):
        lines.append(f"  {label:<{LABEL}}{text}")
    lines += [f"  {'note':<{LABEL}}{note}" for note in (*_notes(f), *f.notes)]
    lines += ["", f"next: revector run {migration}"]
    return lines


def _parts(f: Forecast) -> Iterable[tuple[str, str]]:
    yield "tokens", f"{_shown(f.tokens)}, in {_shown(f.requests)} requests"
    if f.cost is None:
        yield "cost", "unknown (set generation.price)"
    elif f.terms.price == 0:
        yield "cost", "nothing: the price is 0"
    else:
        yield "cost", f"{_money(f.cost)} at {f.terms.price:g} per million tokens"
    yield "embedding", _span(f.embedding, "unknown (--probe measures it; so do limits.tokens_per_minute)")
    memory = f"{_size(f.graph_bytes)} of memory"
    limit = storage.BUILD_MEMORY_MB * 1024 * 1024
    if f.graph_bytes > limit:
        yield "index", f"{memory} needed, a build has {size(limit)}: time unknown, many times longer"
    else:
        yield "index", f"{_span(f.index, 'time unknown (--probe measures it)')}; {memory}"
    b = {name: _size(n) for name, n in f.bytes.items()}
    total = _size(sum(f.bytes.values()))
    spread = f"± {storage.TOLERANCE * FULL_PER_CENT:.0f} %"
    yield "storage", f"{total} {spread}: replica {b['replica']}, chunks {b['chunks']}, index {b['index']},"
    yield "", f"waiting work at most {b['work']}"
    yield "wal", f"{_size(f.wal_bytes[0])} to {_size(f.wal_bytes[1])} at the target"


def _notes(f: Forecast) -> Iterable[str]:
    blank, too_long = f.summed(lambda t: t.blank), f.summed(lambda t: t.too_long)
    if blank.value:
        yield f"{_shown(blank)} rows are blank: they get no chunk"
    if too_long.value:
        yield (
            f"{_shown(too_long)} texts have more than {grouped(f.terms.input_tokens or 0)} tokens and would be "
            "refused: set chunk_tokens"
        )
    probe = f.provider_probe
    if probe is not None:
        told = f"{probe.ratio:.3f} billed for each counted" if probe.billed else "the provider bills none by its answer"
        yield f"the probe cost {grouped(probe.billed or probe.counted)} tokens; {told}"
    elif not f.is_probed and f.terms.price != 0:
        yield "nothing was sent to the provider; --probe sends a few dozen chunks and pays for them"


def _table_cells(t: TableForecast) -> tuple[str, ...]:
    read = t.draw.picking.value
    if t.draw.picking is not Picking.EVERY_ROW:
        read = f"{grouped(t.rows_read)} {read}"
    if t.size_from in SIZE_WORDS:
        read += f", {SIZE_WORDS[t.size_from]}"
    return (t.alias, _near(t.rows), _near(t.wanted), _near(t.chunks), _near(t.tokens), read)


def _near(e: Estimate) -> str:
    """The number, with its error in per cent where it has one."""
    if not math.isfinite(e.value):
        return "unknown"
    if e.is_exact:
        return grouped(round(e.value))
    error = f"{e.error * FULL_PER_CENT:.1f} %" if math.isfinite(e.error) else "unknown"
    return f"{grouped(_significant(e.value))} ± {error}"


def _shown(e: Estimate) -> str:
    """The number, or its interval."""
    if not math.isfinite(e.value):
        return "unknown"
    if e.is_exact:
        return grouped(round(e.value))
    if not math.isfinite(e.high):
        return f"about {grouped(_significant(e.value))}, error unknown"
    low, high = grouped(_significant(e.low)), grouped(_significant(e.high))
    return low if low == high else f"{low} to {high}"


def _money(e: Estimate) -> str:
    return money(e.low, e.high) if e.is_finite else "unknown"


def _span(span: Span | None, otherwise: str) -> str:
    if span is None:
        return otherwise
    low, high = duration(span.low_s), duration(span.high_s)
    return f"{low if low == high else f'{low} to {high}'}, from {span.basis}"


def _significant(n: float) -> int:
    """Four digits: an estimate says no more."""
    if n == 0 or not math.isfinite(n):
        return 0
    return int(round(n, 3 - math.floor(math.log10(abs(n)))))


def _size(n: float) -> str:
    return size(round(n)) if math.isfinite(n) else "unknown"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADS))]
    return [
        "  ".join(
            cell.ljust(width) if at in (0, len(HEADS) - 1) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
