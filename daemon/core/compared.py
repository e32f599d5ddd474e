"""What a comparison is worth: whether the newest one stands for a generation, and its figures for people and machines.

`objection` is the one rule behind step 1 of the proof and the verdict of `status`; `figures` the one shape in which a
comparison appears in a certificate, a status and a report. Pure; ages are readings, taken by the target's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemon.core.comparison import Comparison, Kind, State
from daemon.core.continuity import lsn_text


@dataclass(frozen=True, slots=True)
class ComparisonReading:
    """last: the newest that ended and covered the generation, or that found rows to differ without it; None where there
    is none. max_age_s: beyond it, counted from its begin, a comparison says too little about today. running: the one
    that has not ended, with what it found so far."""

    last: Comparison | None
    max_age_s: float
    running: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a comparison does not stand. id: of `core.reasons`."""

    id: str
    message: str
    number: int | None = None


def differences(comparison: Comparison) -> int:
    """What is not mended, and what could not be settled."""
    return sum((comparison.open or {}).values()) + comparison.unsettled


def concerns_rows(comparison: Comparison) -> bool:
    """Whether it found a row to differ, mended or not: rows are every generation's."""
    return any(Kind(kind).is_of_row for figures in (comparison.open, comparison.repaired) for kind in figures or {})


def has_mended(comparison: Comparison) -> bool:
    """Whether it wrote anything."""
    return any((comparison.repaired or {}).values())


def objection(reading: ComparisonReading, generation_id: int | None) -> Objection | None:
    """What stands against the newest comparison; None: it is clean, of age, and covers the generation (None: any)."""
    last, running = reading.last, reading.running
    if running is not None and _finds(running, generation_id):
        return Objection("comparison-differs", f"comparison {running.id}, which has not ended, found differences")
    if last is not None and last.state is State.ABANDONED and concerns_rows(last):
        return Objection("not-compared", f"comparison {last.id} found rows to differ and was given up")
    if last is None or last.state not in (State.CLEAN, State.DIFFERS):
        return Objection("not-compared", "never compared")
    if generation_id is not None and generation_id not in last.generations:
        return Objection("not-compared", f"comparison {last.id} left this generation out")
    if last.state is State.DIFFERS or differences(last):
        count = differences(last)
        return Objection("comparison-differs", f"comparison {last.id}: {_differing(last)}", count or None)
    if last.faults:
        causes = ", ".join(sorted(set(last.faults)))
        return Objection("not-compared", f"comparison {last.id} closed nothing: {causes} when it was made")
    if last.began_age_s > reading.max_age_s:
        age_s, limit_s = int(last.began_age_s), int(reading.max_age_s)
        return Objection("comparison-stale", f"comparison {last.id} began {age_s} s ago, the limit is {limit_s}", age_s)
    return None


def _finds(running: Comparison, generation_id: int | None) -> bool:
    is_covered = generation_id is None or generation_id in running.generations
    return concerns_rows(running) or (is_covered and (differences(running) > 0 or has_mended(running)))


def _differing(comparison: Comparison) -> str:
    """By kind, the worst first as the mapping has it."""
    parts = [f"{count} {kind}" for kind, count in (comparison.open or {}).items() if count]
    if comparison.unsettled:
        parts.append(f"{comparison.unsettled} unsettled")
    return ", ".join(parts) or "it differs"


def figures(comparison: Comparison) -> dict[str, Any]:
    """As plain data whose numbers fit RFC 8785: positions are text, ages are left out."""
    c = comparison
    return {
        "id": c.id,
        "state": c.state.value,
        "began_at": c.began_at,
        "began_position": lsn_text(c.began_lsn),
        "ended_at": c.ended_at,
        "ended_position": None if c.ended_lsn is None else lsn_text(c.ended_lsn),
        "rows": c.rows,
        "chunks": c.chunks,
        "sampled": c.sampled,
        "tokens": c.tokens,
        "differences": _counts(c.open),
        "repaired": _counts(c.repaired),
        "unsettled": c.unsettled,
        "breaks_closed": c.breaks_closed,
        "faults": list(c.faults),
    }


def _counts(by_kind: Mapping[str, int] | None) -> dict[str, int]:
    return {kind: count for kind, count in (by_kind or {}).items() if count}


def sentence(comparison: Comparison) -> str:
    """What a clean comparison found, for a certificate's statement."""
    c = comparison
    began, ended = lsn_text(c.began_lsn), lsn_text(c.ended_lsn or 0)
    mended = sum((c.repaired or {}).values())
    repaired = f", after it had mended {_counted(mended, 'difference')}" if mended else ""
    sampled = f"; {_counted(c.sampled, 'chunk')} embedded again got the same vector" if c.sampled else ""
    closed = f"; it closed {_counted(c.breaks_closed, 'break')} of continuity" if c.breaks_closed else ""
    return (
        f"Comparison {c.id}, between {began} and {ended}, found {_counted(c.rows, 'row')} equal to the source's and "
        f"{_counted(c.chunks, 'chunk')} true to their documents{repaired}{sampled}{closed}."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
