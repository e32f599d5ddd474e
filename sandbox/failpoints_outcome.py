"""What came of a round of kills (`sandbox.failpoints`): what must hold afterwards, and a report of several rounds.

Redone work is measured against two bounds. One kill: at most one window of records is read again, and what a process
had open, by its own notes, is at most what its limits allow. All kills: no row was read and no text was billed a
second time beyond what those notes add up to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sandbox.compare import Differences
from sandbox.processes import SandboxError

# The limits that the processes run under.
PAGE_ROWS, WORKERS = 20, 2
WINDOW_RECORDS = 200
IN_FLIGHT, REQUEST_INPUTS = 2, 16
CANARY = 1


@dataclass
class Redone:
    """Done again because processes died. records: by each new life of the stream. *_in_flight: what each had open when
    it died, by its own notes; rows_dropped: of pages whose transaction failed; rows, texts: what was read from the
    source, or billed, a second time, in all."""

    records: list[int] = field(default_factory=list)
    rows_in_flight: list[int] = field(default_factory=list)
    rows_dropped: int = 0
    rows: int = 0
    texts_in_flight: list[int] = field(default_factory=list)
    texts: int = 0


@dataclass
class Outcome:
    """What came of a round. reached: points. spared: where nobody was to die. builds:
    kills of an index build under way."""

    kills: Counter[str] = field(default_factory=Counter)
    reached: set[str] = field(default_factory=set)
    spared: frozenset[str] = frozenset()
    builds: Counter[str] = field(default_factory=Counter)
    redone: Redone = field(default_factory=Redone)
    lives: int = 0
    differences: Differences | None = None
    vectors: tuple[int, int] = (0, 0)
    breaks: list[str] = field(default_factory=list)
    certificates: int = 0
    transactions: int = 0
    seconds: float = 0.0

    @property
    def missed(self) -> list[str]:
        """Points where nobody died."""
        return sorted(self.reached - set(self.kills) - self.spared)


def check(came: Outcome) -> None:
    """What must hold after a round. Raises SandboxError."""
    redone = came.redone
    wrong = {
        "differences": came.differences if came.differences != Differences() else None,
        "vectors of another text": came.vectors[0],
        "breaks": came.breaks,
        "certificate": "none" if not came.certificates else None,
        "vectors compared": "none" if not came.vectors[1] else None,
        "records read again": [n for n in redone.records if n > WINDOW_RECORDS],
        "rows in flight": [n for n in redone.rows_in_flight if n > WORKERS * PAGE_ROWS],
        "rows read again, beyond those in flight": max(
            0, redone.rows - redone.rows_dropped - sum(redone.rows_in_flight)
        ),
        "texts in flight": [n for n in redone.texts_in_flight if n > IN_FLIGHT * REQUEST_INPUTS + CANARY],
        "texts billed again, beyond those in flight": max(0, redone.texts - sum(redone.texts_in_flight)),
    }
    if found := {what: seen for what, seen in wrong.items() if seen}:
        raise SandboxError(f"after {sum(came.kills.values())} kills: {found}")


def report(kills: Counter[str], rounds: Sequence[Outcome]) -> dict[str, Any]:
    """JSON-ready."""
    records = [n for came in rounds for n in came.redone.records]
    return {
        "rounds": len(rounds),
        "seconds": round(sum(came.seconds for came in rounds), 1),
        "points": dict(sorted(kills.items())),
        "kills": sum(kills.values()),
        "kills_of_held_builds": sum(sum(came.builds.values()) for came in rounds),
        "least": min(kills.values(), default=0),
        "lives": sum(came.lives for came in rounds),
        "transactions": sum(came.transactions for came in rounds),
        "records_again": {"most": max(records, default=0), "all": sum(records), "window": WINDOW_RECORDS},
        "rows_again": {
            "all": sum(came.redone.rows for came in rounds),
            "in_flight": sum(sum(came.redone.rows_in_flight) for came in rounds),
        },
        "texts_again": {
            "all": sum(came.redone.texts for came in rounds),
            "in_flight": sum(sum(came.redone.texts_in_flight) for came in rounds),
        },
        "differences": [asdict(came.differences) for came in rounds if came.differences is not None],
        "vectors": {
            "wrong": sum(came.vectors[0] for came in rounds),
            "all": sum(came.vectors[1] for came in rounds),
        },
        "breaks": [event for came in rounds for event in came.breaks],
        "certificates": sum(came.certificates for came in rounds),
    }
