"""What operators ask of running processes: pause, and limits of a generation. A document in the target.

    {"paused": ["backfill", "embedding"],
     "limits": {"v2": {"requests_per_minute": 500, "tokens_per_minute": 1000000, "in_flight": 4}}}

`standing` reads it, the others give the document that an order makes of it. What a program of another version wrote
beside it is kept; a value that cannot be read orders nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from daemon.core.model import Rates

BACKFILL = "backfill"  # no page is copied, and no copied row embedded; live changes go on
EMBEDDING = "embedding"  # nothing is sent to the provider; the replica goes on
WHAT = (BACKFILL, EMBEDDING)


@dataclass(frozen=True, slots=True)
class Limits:
    """An operator's limits of one generation. None: not ordered."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    in_flight: int | None = None

    @property
    def rates(self) -> Rates:
        return Rates(self.requests_per_minute, self.tokens_per_minute)


@dataclass(frozen=True, slots=True)
class Standing:
    """The orders in force. paused: of WHAT. limits: by the generation's name."""

    paused: frozenset[str] = frozenset()
    limits: Mapping[str, Limits] = field(default_factory=dict)

    def limits_of(self, generation: str) -> Limits:
        return self.limits.get(generation, Limits())

    @property
    def words(self) -> str | None:
        """What is paused, for a person; None where nothing is."""
        return " and ".join(what for what in WHAT if what in self.paused) or None


def standing(document: Mapping[str, Any]) -> Standing:
    """The orders that a document holds."""
    paused, limits = document.get("paused"), document.get("limits")
    found = {name: _limits(of) for name, of in limits.items()} if isinstance(limits, Mapping) else {}
    given = paused if isinstance(paused, list) else []
    return Standing(frozenset(what for what in WHAT if what in given), found)


def with_paused(document: Mapping[str, Any], paused: Collection[str]) -> dict[str, Any]:
    """The document in which exactly these are paused."""
    return {**document, "paused": [what for what in WHAT if what in paused]}


def with_limits(document: Mapping[str, Any], generation: str, limits: Limits) -> dict[str, Any]:
    """The document with these limits of one generation, in the place of those it had."""
    before = document.get("limits")
    others = {name: of for name, of in before.items() if name != generation} if isinstance(before, Mapping) else {}
    ordered = {name: value for name, value in asdict(limits).items() if value is not None}
    return {**document, "limits": {**others, generation: ordered} if ordered else others}


def _limits(given: Any) -> Limits:
    if not isinstance(given, Mapping):
        return Limits()
    return Limits(*(_number(given.get(name)) for name in ("requests_per_minute", "tokens_per_minute", "in_flight")))


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
