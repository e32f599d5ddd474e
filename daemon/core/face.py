"""How a `Status` is shown: one JSON document, and plain text lines for a terminal or a log.

Colour, animation and the terminal's width are the CLI's business; it passes the width in. Here "unknown" is a word,
never 0, and numbers are grouped for the eye. Text carries numbers, names and ids only.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from daemon.core.compared import differences, figures
from daemon.core.comparison import State
from daemon.core.model import Backlog
from daemon.core.reasons import REASONS, Kind
from daemon.core.status import (
    Blocker,
    CopyFacts,
    CostFacts,
    OtherGeneration,
    Status,
    StatusFacts,
    Verdict,
    grouped,
    is_endangered,
)

SCHEMA = "revector.status/1"
NARROWEST = 40
TWO_COLUMNS = 100
LEFT_COLUMN = 56
ID_COLUMN = 20


def as_json(status: Status) -> dict[str, Any]:
    """The status as plain data. A part that was not observed is null; so is a number that was not."""
    f = status.facts
    return {
        "schema": SCHEMA,
        "migration": f.migration,
        "generation": f.generation,
        "others": [asdict(other) for other in f.others],
        "paused": f.paused,
        "observed_at": f.observed_at,
        "verdict": status.verdict.value,
        "ready": status.verdict is Verdict.READY,
        "blockers": [asdict(b) for b in status.blockers],
        "next": status.next,
        "freshness_s": f.freshness_s,
        "comparison": _comparison(f),
        "breaks": None if f.breaks is None else [{"id": b.id, "at": b.at, "detail": dict(b.detail)} for b in f.breaks],
        "parts": {
            "source": None if f.source is None else asdict(f.source),
            "kafka": _kafka(f),
            "embed": None if f.embed is None else asdict(f.embed),
            "target": None if f.target is None else asdict(f.target),
            "backfill": _backfill(status),
            "cost": _cost(f),
        },
    }


def _comparison(facts: StatusFacts) -> dict[str, Any] | None:
    """age_s: since it began; of the one that runs too. last: null where none has ended."""
    if facts.comparison is None:
        return None
    last = facts.comparison.last
    return {
        "last": None if last is None else {**figures(last), "age_s": round(last.began_age_s, 1)},
        "running": None if facts.comparing is None else asdict(facts.comparing),
        "max_age_s": facts.comparison.max_age_s,
    }


def _kafka(facts: StatusFacts) -> dict[str, Any] | None:
    if facts.feed is None:
        return None
    partitions = [
        {"topic": at.topic, "partition": at.partition, "behind": n} for at, n in sorted(facts.feed.behind.items())
    ]
    return {
        "connector": facts.feed.connector,
        "failure": facts.feed.failure,
        "partitions": partitions,
        "partitions_expected": facts.feed.partitions,
        "events_behind": _events_behind(facts),
    }


def _events_behind(facts: StatusFacts) -> int | None:
    """A sum over all partitions, None unless each was read."""
    feed = facts.feed
    if feed is None or not feed.partitions or len(feed.behind) < feed.partitions:
        return None
    return sum(feed.behind.values())


def _backfill(status: Status) -> dict[str, Any] | None:
    copied = status.facts.backfill
    if copied is None:
        return None
    return {
        "rows": copied.rows,
        "rows_total": copied.rows_total,
        "complete": copied.complete,
        "percent": status.percent,
        "eta": None if status.eta is None else asdict(status.eta),
    }


def _cost(facts: StatusFacts) -> dict[str, Any] | None:
    if facts.embed is None:
        return None
    e, c = facts.embed, facts.cost
    return {
        "tokens": e.tokens,
        "tokens_avoided": e.tokens_avoided,
        "requests": e.requests,
        "price": c.price,
        "amount": None if c.price is None else _amount(e.tokens, c.price),
        "forecast": None if c.forecast is None else _forecast(c.forecast, c.price),
    }


def _forecast(tokens: tuple[int, int], price: float | None) -> dict[str, Any]:
    low, high = tokens
    amount = None if price is None else {"low": _amount(low, price), "high": _amount(high, price)}
    return {"tokens": {"low": low, "high": high}, "amount": amount}


def _amount(tokens: float, price: float) -> float:
    """In the currency of the price, which is per million tokens."""
    return round(tokens * price / 1e6, 4)


# --- text


def render_text(status: Status, width: int) -> list[str]:
    """Plain lines, none longer than `width` (at least 40) unless a command or name itself is longer."""
    width = max(width, NARROWEST)
    head = [status.facts.migration, status.verdict.value]
    if status.facts.running_for_s is not None:
        head.append(f"for {duration(status.facts.running_for_s)}")
    has_begun = status.facts.begun is not False  # before the start every number of a part would be one of nothing
    if has_begun:
        head.append(_proof(status.facts))
    lines = _fit("   ".join(head), width, 2)
    lines += [line for pair in _parts(status) if has_begun for line in _columns(pair, width)]
    if status.blockers:
        count = len(status.blockers)
        lines.append(f"not ready to cut over: {count} {'reason' if count == 1 else 'reasons'}")
        lines += [line for b in status.blockers for line in _blocker(b, width)]
    if status.next:
        lines += [f"next: {status.next}"]
    return lines


def _proof(facts: StatusFacts) -> str:
    if facts.breaks is None:
        return "continuity: unknown"
    return "continuity: broken" if facts.breaks else "continuity: intact"


def _parts(status: Status) -> Iterable[tuple[str, ...]]:
    f = status.facts
    yield (f"source   {_source(f)}", f"kafka   {_kafka_words(f)}")
    yield (f"embed    {_embed(f)}", f"target  {_target(f)}")
    yield (f"backfill {_copied(f.backfill, status.percent)}", _left(status))
    if f.embed is not None:
        yield (f"cost     {_spent(f.embed, f.cost)}", f"avoided {_avoided(f)}")
    if f.listed is not False:
        yield (f"compared {_compared(f)}",)
    for other in f.others:
        yield (f"also     {_other(other)}",)


def _source(facts: StatusFacts) -> str:
    s = facts.source
    if s is None:
        return "unknown"
    lag = "lag unknown" if s.lag_s is None else f"{s.lag_s:.1f} s"
    kept = "unknown WAL kept" if s.retained_bytes is None else f"{size(s.retained_bytes)} of WAL kept"
    limit = "" if s.limit_bytes is None else f" of {size(s.limit_bytes)}"
    if s.left_bytes is not None and is_endangered(s):
        limit += f", {size(max(0, s.left_bytes))} left"
    return f"{lag}, {kept}{limit}"


def _kafka_words(facts: StatusFacts) -> str:
    if facts.feed is None:
        return "unknown"
    behind = _events_behind(facts)
    if not facts.feed.partitions or not facts.feed.behind:
        return "events behind unknown"
    known = len(facts.feed.behind)
    count = "events behind unknown" if behind is None else f"{grouped(behind)} events behind"
    return f"{count}, {known} of {facts.feed.partitions} partitions"


def _embed(facts: StatusFacts) -> str:
    e = facts.embed
    if e is None:
        return "unknown"
    waiting = e.waiting
    blank = f", {_rows(e.rows_blank)} without text" if e.rows_blank else ""
    if not waiting:
        return f"nothing waiting{blank}"
    oldest = "oldest unknown" if e.oldest_age_s is None else f"oldest {duration(e.oldest_age_s)}"
    return f"{grouped(waiting)} waiting, {oldest}{blank}"


def _other(other: OtherGeneration) -> str:
    waits = f"{_rows(other.waiting)} waiting" if other.waiting else "nothing waiting"
    swept = "" if other.swept else ", not swept yet"
    return f"{other.name}: {other.phase}, {waits}{swept}" + (
        f", {grouped(other.refused)} refused" * bool(other.refused)
    )


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{grouped(count)} rows"


def _target(facts: StatusFacts) -> str:
    rate = None if facts.target is None else facts.target.rows_per_s
    written = "rate unknown" if rate is None else f"{grouped(round(rate))} rows/s"
    if facts.embed is None:
        return f"{written}, quarantine unknown"
    accepted = f", {grouped(facts.embed.accepted)} accepted" if facts.embed.accepted else ""
    return f"{written}, {grouped(facts.embed.refused)} refused{accepted}"


def _copied(copied: CopyFacts | None, percent: int | None) -> str:
    if copied is None:
        return "unknown"
    if copied.complete:
        return f"complete, {grouped(copied.rows)} rows"
    if copied.rows_total is None or percent is None:
        return f"{grouped(copied.rows)} rows of an unknown number"
    return f"{grouped(copied.rows)} of about {grouped(copied.rows_total)} rows ({percent} %)"


def _left(status: Status) -> str:
    copied, eta = status.facts.backfill, status.eta
    if copied is None or copied.complete:
        return ""
    if eta is None:
        return "time left unknown"
    return f"{duration(eta.low_s)} to {duration(eta.high_s)} left, from {eta.basis}"


def _spent(e: Backlog, cost: CostFacts) -> str:
    """What was spent, of what was forecast: in money where there is a price."""
    requests = "1 request" if e.requests == 1 else f"{grouped(e.requests)} requests"
    spent = f"{grouped(e.tokens)} tokens in {requests}"
    if cost.forecast is None:
        return spent if cost.price is None else f"{money(_amount(e.tokens, cost.price))}, {spent}"
    low, high = cost.forecast
    if cost.price is None:
        expected = grouped(low) if low == high else f"{grouped(low)} to {grouped(high)}"
        return f"{grouped(e.tokens)} of {expected} tokens forecast"
    expected = money(_amount(low, cost.price), _amount(high, cost.price))
    return f"{money(_amount(e.tokens, cost.price))} of {expected} forecast"


def _compared(facts: StatusFacts) -> str:
    if facts.comparison is None:
        return "unknown"
    last, running = facts.comparison.last, facts.comparing
    said = "never"
    if last is not None:
        count = differences(last)
        found = "clean" if last.state is State.CLEAN else f"{grouped(count)} differing" if count else "differing"
        said = f"{duration(last.began_age_s)} ago: {found}, {_rows(last.rows)}, {grouped(last.chunks)} chunks"
    if running is None:
        return said
    ranges = f", {running.ranges_done} of {running.ranges} ranges" if running.ranges else ""
    return f"{said}; begun {duration(running.age_s)} ago and not ended: {_rows(running.rows)}{ranges}"


def money(low: float, high: float | None = None) -> str:
    """An amount, or a range of them: two digits after the point, four below one. The currency is the user's."""
    digits = 2 if max(low, high or 0.0) >= 1 else 4
    least, most = f"{low:.{digits}f}", f"{low if high is None else high:.{digits}f}"
    return least if least == most else f"{least}–{most}"


def _avoided(facts: StatusFacts) -> str:
    e = facts.embed
    if e is None or e.tokens + e.tokens_avoided == 0:
        return "unknown"
    return f"{e.tokens_avoided * 100 // (e.tokens + e.tokens_avoided)} % of tokens"


def _columns(pair: tuple[str, ...], width: int) -> list[str]:
    texts = [text for text in pair if text]
    if width >= TWO_COLUMNS and len(texts) == 2 and len(texts[0]) < LEFT_COLUMN:
        line = f"  {texts[0]:<{LEFT_COLUMN}}{texts[1]}"
        if len(line) <= width:
            return [line]
    return [line for text in texts for line in _fit(f"  {text}", width, 4)]


def _blocker(b: Blocker, width: int) -> list[str]:
    line = f"  {b.id:<{ID_COLUMN}}  {b.message}"
    evidence = [] if b.evidence is None else _fit(f"    {b.evidence}", width, 4)
    is_own = b.kind is Kind.HALT or b.remedy != REASONS[b.id].remedy
    said = [b.remedy, b.command] if is_own else [b.command or b.remedy]
    todo = [line for words in said if words for line in _fit(f"    {words}", width, 6)]
    return [*_fit(line, width, 4), *evidence, *todo]


def _fit(line: str, width: int, indent: int) -> list[str]:
    if len(line) <= width:
        return [line]
    lead = len(line) - len(line.lstrip())
    return textwrap.wrap(
        line.strip(),
        width,
        initial_indent=" " * lead,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def size(n: int) -> str:
    """Bytes in decimal units, two digits of meaning at most after the point."""
    value = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """The two largest units, rounded down: 4 s, 3 min, 1 h 12 min, 2 d 4 h."""
    s = int(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"
