"""How a comparison is shown: its progress in a line, its outcome as text and as one document.

Counts are of everything that was found; keys are listed up to a number, a file of keys has them all. A key is data:
nothing in it may move a terminal's cursor.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from daemon.cli.output import Output, counted, table
from daemon.core.compared import differences, figures
from daemon.core.comparison import Found, Kind, State
from daemon.core.continuity import lsn_text
from daemon.core.face import duration
from daemon.core.status import grouped
from daemon.procedures.compare import Progress, Report

LISTED = 1000  # differences in the document
SHOWN = 20  # keys on a terminal
KINDS = [kind.value for kind in Kind]  # the worst first
STAGES = {
    "passage": "waiting for a barrier to pass",
    "rows": "comparing rows",
    "suspects": "looking again",
    "chunks": "comparing chunks",
    "vectors": "comparing vectors",
    "repair": "mending",
    "end": "waiting for the last barrier to pass",
}


@dataclass
class Outcome:
    """What a comparison came to. counts: (kind, table, generation) -> [left, mended]."""

    report: Report
    counts: dict[tuple[str, str, str | None], list[int]] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, found: Found) -> dict[str, Any]:
        """Count a difference; what it is as plain data. key: null of a chunk whose row is gone; row_id names it then.
        n: of the chunk."""
        alias, columns = self.report.keys[found.table_id]
        generation = None if found.generation_id is None else self.report.generations.get(found.generation_id)
        difference = {
            "kind": found.kind.value,
            "table": alias,
            "key": None if found.key is None else dict(zip(columns, found.key, strict=True)),
            "row_id": found.row_id if found.key is None else None,
            "generation": generation,
            "n": found.n,
            "repaired": found.is_repaired,
        }
        self.counts.setdefault((found.kind.value, alias, generation), [0, 0])[found.is_repaired] += 1
        if len(self.listed) < LISTED:
            self.listed.append(difference)
        return difference

    @property
    def is_clean(self) -> bool:
        return self.report.comparison.state is State.CLEAN

    @property
    def rows(self) -> list[tuple[str, str, str | None, list[int]]]:
        """Counted differences, the worst kind first."""
        ordered = sorted(self.counts.items(), key=lambda c: (KINDS.index(c[0][0]), c[0][1], c[0][2] or ""))
        return [(*place, numbers) for place, numbers in ordered]


# --- while it runs


def progress(told: Progress) -> str:
    """One line. A percentage is never 100: what is estimated may be wrong, and the end is said by the answer."""
    parts = [STAGES.get(told.stage, told.stage)]
    if told.stage == "rows":
        parts.append(_of(told.rows, told.rows_total, "rows"))
    elif told.stage == "chunks":
        parts.append(_of(told.chunks, told.chunks_total, "chunks"))
    if told.suspects:
        parts.append(f"{grouped(told.suspects)} to look at again")
    parts.append(duration(told.elapsed_s))
    if told.eta_s is not None:
        low, high = (duration(seconds) for seconds in told.eta_s)
        parts.append(f"{low} left" if low == high else f"{low} to {high} left")
    return ", ".join(parts)


def _of(done: int, total: int | None, noun: str) -> str:
    if not total:
        return f"{grouped(done)} {noun}"
    return f"{grouped(done)} of about {grouped(total)} {noun} ({min(99, done * 100 // total)} %)"


# --- when it is over


def document(migration: str, found: Outcome) -> dict[str, Any]:
    """The answer as plain data. found: the first ones; differences: all of them, counted."""
    report = found.report
    return {
        "migration": migration,
        "clean": found.is_clean,
        "finished": report.is_finished,
        "unfinished": report.unfinished,
        "comparison": figures(report.comparison),
        "generations": sorted(report.generations.values()),
        "differences": [
            {"kind": kind, "table": alias, "generation": generation, "left": left, "repaired": mended}
            for kind, alias, generation, (left, mended) in found.rows
        ],
        "found": found.listed,
        "is_cut": sum(map(sum, found.counts.values())) > len(found.listed),
        "next": following(migration, found),
    }


def following(migration: str, found: Outcome) -> str:
    """The next command."""
    if not found.report.is_finished:
        return f"revector verify {migration}"
    if differences(found.report.comparison):
        is_settled = any((found.report.comparison.open or {}).values())
        return f"revector verify {migration} --repair" if is_settled else f"revector verify {migration}"
    return f"revector doctor {migration}" if found.report.comparison.faults else f"revector prove {migration}"


def report_lines(out: Output, migration: str, found: Outcome) -> list[str]:
    """The answer as text."""
    report = found.report
    c = report.comparison
    generations = ", ".join(sorted(report.generations.values()))
    ended = "" if c.ended_lsn is None else f" to {lsn_text(c.ended_lsn)}"
    lines = [
        f"{migration}: {_verdict(out, found)}",
        f"  comparison  {c.id}, from {lsn_text(c.began_lsn)}{ended}",
        f"  compared    {_plural(c.rows, 'row')}; {_plural(c.chunks, 'chunk')} of {generations}",
    ]
    if c.sampled:
        lines.append(f"  sampled     {_plural(c.sampled, 'chunk')} embedded again")
    if c.tokens:
        lines.append(f"  spent       {_plural(c.tokens, 'token')}")
    lines += [*_continuity(found), *_table(found), *_keys(found)]
    if c.unsettled:
        what = "rows that moved at every look, vectors of which the provider said nothing"
        lines.append(f"  unsettled   {grouped(c.unsettled)}: {what}")
    return [*lines, f"next: {following(migration, found)}"]


def _plural(number: int, noun: str) -> str:
    return counted(number, noun) if number < 1000 else f"{grouped(number)} {noun}s"


def _verdict(out: Output, found: Outcome) -> str:
    report = found.report
    count = differences(report.comparison)
    if not report.is_finished:
        so_far = f"; {_plural(count, 'difference')} so far" if count else ""
        return out.styled("not finished", "yellow") + f": {report.unfinished}{so_far}"
    if found.is_clean:
        mended = sum((report.comparison.repaired or {}).values())
        return out.styled("clean", "green") + (f", {_plural(mended, 'difference')} mended" if mended else "")
    return out.styled(_plural(count, "difference"), "red")


def _continuity(found: Outcome) -> Iterator[str]:
    c = found.report.comparison
    if c.breaks_closed:
        yield f"  continuity  {_plural(c.breaks_closed, 'break')} closed"
    elif c.faults and found.report.is_finished:
        yield f"  continuity  no break is closed while this persists: {', '.join(c.faults)}"


def _table(found: Outcome) -> list[str]:
    if not found.counts:
        return []
    rows = [("KIND", "TABLE", "GENERATION", "LEFT", "MENDED")]
    rows += [
        (kind, alias, generation or "-", grouped(left), grouped(mended))
        for kind, alias, generation, (left, mended) in found.rows
    ]
    return [f"  {line}" for line in table(rows)]


def _keys(found: Outcome) -> list[str]:
    """Of what is left, or was mended; a row once for each kind and generation."""
    if not found.listed:
        return []
    chosen = [d for d in found.listed if not d["repaired"]] or found.listed
    places = Counter(f"{d['kind']}  {d['table']}  {_key(d)}{_where(d)}" for d in chosen)
    lines = [f"    {place}" + (f", {count} chunks" if count > 1 else "") for place, count in places.items()]
    more = len(lines) > SHOWN or len(found.listed) == LISTED
    return [*lines[:SHOWN], *(["    and more: --keys FILE writes every one"] if more else [])]


def _key(difference: dict[str, Any]) -> str:
    if difference["key"] is None:
        return f"row {difference['row_id']}"
    return " ".join(_plain(value) for value in difference["key"].values())


def _where(difference: dict[str, Any]) -> str:
    return "" if difference["generation"] is None else f"  in {difference['generation']}"


def _plain(text: str) -> str:
    return shlex.quote(text) if text.isprintable() else json.dumps(text)
