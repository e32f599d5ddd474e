"""Which faults a chaos run makes, and what its figures mean. Pure: the same seed deals the same faults in one order.

Kinds are dealt like cards: every one before any comes again, one to three at a time, never two that touch the same
part. How long each lasts is drawn with it. When they land is not foretold: that depends on the machine.

Figures: recovery by kind (median, largest), and whether memory and open files of a process stay flat.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

LEASE_S = 5
CLAIM_LEASE_S = 10
GOAL_MEDIAN_S, GOAL_MAX_S = 5.0, 30.0

# What a kind touches; two faults at a time touch nothing in common.
STREAM, EMBED, BROKER, CONNECT, SOURCE, TARGET, PROVIDER = (
    "stream",
    "embed",
    "broker",
    "connect",
    "source",
    "target",
    "provider",
)
DATABASES = frozenset({SOURCE, TARGET})


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault. seconds: shortest and longest duration. link: the proxy it is made at, for those of the
    network. embeds: it disturbs embedding, so the vector of a probe is waited for too."""

    name: str
    touches: frozenset[str]
    seconds: tuple[float, float] = (0.0, 0.0)
    link: str | None = None
    embeds: bool = False

    @property
    def leaves_databases(self) -> bool:
        """Whether both databases answer all the time, to whoever asks them directly."""
        return self.link is not None or not self.touches & DATABASES


@dataclass(frozen=True, slots=True)
class Fault:
    """One dealt fault."""

    kind: Kind
    seconds: float


def _kind(
    name: str, *touches: str, seconds: tuple[float, float] = (0, 0), link: str | None = None, embeds: bool = False
) -> Kind:
    return Kind(name, frozenset(touches), seconds, link, embeds)


PROCESSES = (
    _kind("stream-kill", STREAM),
    _kind("stream-restart", STREAM),
    _kind("stream-freeze-short", STREAM, seconds=(1, LEASE_S - 2)),
    _kind("stream-freeze-long", STREAM, seconds=(LEASE_S + 2, LEASE_S + 5)),
    _kind("embed-kill", EMBED, embeds=True),
    _kind("embed-freeze-short", EMBED, seconds=(1, 4), embeds=True),
    _kind("embed-freeze-long", EMBED, seconds=(CLAIM_LEASE_S + 2, CLAIM_LEASE_S + 4), embeds=True),
)
PARTS = (
    _kind("broker-restart", BROKER),
    _kind("broker-crash", BROKER),
    _kind("broker-freeze", BROKER, seconds=(2, 8)),
    _kind("connect-restart", CONNECT),
    _kind("connect-crash", CONNECT),
    _kind("connect-freeze", CONNECT, seconds=(2, 8)),
    _kind("connector-restart", CONNECT),
    _kind("connector-restart-in-copy", CONNECT, SOURCE),
    _kind("source-fast", SOURCE),
    _kind("source-immediate", SOURCE),
    _kind("source-freeze", SOURCE, seconds=(2, 8)),
    _kind("target-fast", TARGET),
    _kind("target-immediate", TARGET),
    _kind("target-freeze", TARGET, seconds=(2, 8)),
    _kind("target-disk-full", TARGET, seconds=(3, 6), embeds=True),
    _kind("source-sessions-terminated", SOURCE),
    _kind("target-sessions-terminated", TARGET),
    _kind("walsender-terminated", CONNECT, SOURCE),
)
_PROVIDER = {
    "throttled": (3, 6),
    "status-500": (2, 4),
    "status-503": (2, 4),
    "reset": (2, 4),
    "truncated": (2, 4),
    "shuffled": (4, 8),
    "html": (1, 2),
    "too-few": (1, 3),
    "index-twice": (1, 3),
    "dimensions": (1, 3),
    "nan": (1, 3),
    "hang": (2, 4),
    "slow": (4, 8),
}
PROVIDERS = (
    *(_kind(f"provider-{name}", PROVIDER, seconds=s, embeds=True) for name, s in _PROVIDER.items()),
    _kind("provider-crash", PROVIDER, seconds=(2, 5), embeds=True),
    _kind("provider-freeze", PROVIDER, seconds=(2, 5), embeds=True),
)

# Which parts each proxy of `sandbox.proxied` is before; the first five are revector's way, the others Connect's.
LINKS: Mapping[str, tuple[str, ...]] = {
    "source": (SOURCE,),
    "target": (TARGET,),
    "broker": (BROKER,),
    "connect": (CONNECT,),
    "provider": (PROVIDER,),
    "capture_source": (CONNECT, SOURCE),
    "capture_broker": (CONNECT, BROKER),
}
_NETWORK = {"cut": (0, 0), "refuse": (2, 6), "delay": (4, 8), "throttle": (4, 8), "half-open": (3, 8)}
NETWORK = (
    *(
        _kind(f"net-{fault}:{link}", *touches, seconds=s, link=link, embeds=link == "provider")
        for link, touches in LINKS.items()
        for fault, s in _NETWORK.items()
    ),
    _kind("net-cut-at-commit:target", TARGET, seconds=(1, 3), link="target"),
)

KINDS = PROCESSES + PARTS + PROVIDERS + NETWORK
MOST_AT_ONCE = 3
SINGLE = 0.55  # of the rounds make one fault: its recovery is its own


def deal(seed: int, kinds: Sequence[Kind] = KINDS) -> Iterator[tuple[Fault, ...]]:
    """Rounds of faults without end. Every kind is dealt once before any is dealt again."""
    dice = random.Random(seed)
    deck: list[Kind] = []
    while True:
        wanted = 1 if dice.random() < SINGLE else dice.randint(2, MOST_AT_ONCE)
        if not deck:
            deck = dice.sample(list(kinds), len(kinds))
        hand = [deck.pop()]
        for kind in reversed(deck.copy()):
            if len(hand) < wanted and not any(kind.touches & held.touches for held in hand):
                deck.remove(kind)
                hand.append(kind)
        yield tuple(Fault(kind, round(dice.uniform(*kind.seconds), 2)) for kind in hand)


def recoveries(journal: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """By kind of fault: how many landed, and the median and largest time until rows arrived again. The network's
    faults are one kind over all links. `all` is last."""
    took: defaultdict[str, list[float]] = defaultdict(list)
    landed: defaultdict[str, int] = defaultdict(int)
    for entry in journal:
        if not entry.get("landed"):
            continue
        for kind in (str(entry["kind"]).split(":")[0], "all"):
            landed[kind] += 1
            if entry["recovered_after_s"] is not None:
                took[kind].append(entry["recovered_after_s"])
    names = [*sorted(name for name in landed if name != "all"), *(["all"] if landed else [])]
    return {name: {"landed": landed[name], **_middle(took[name])} for name in names}


def _middle(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"median_s": None, "max_s": None}
    return {"median_s": round(median(values), 2), "max_s": round(max(values), 2)}


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process held at an age."""

    age_s: float
    rss_mb: float
    files: int


WARM_S = 60.0  # memory of the first minute is imports and first buffers
WINDOWS = 4
GROWTH, GROWTH_MB, GROWTH_FILES = 1.10, 8.0, 8


def flatness(samples: Sequence[Sample]) -> dict[str, Any]:
    """The quarters of a process's life after its first minute, medians. One that grows is above the tolerance at the
    end and rises from each quarter to the next: a standby that takes the stream over rises once, to what an owner
    holds. `flat` is None where it lived too short to tell."""
    kept = [s for s in samples if s.age_s >= WARM_S]
    if len(kept) < 8 * WINDOWS:
        return {"flat": None, "samples": len(samples)}
    size = len(kept) // WINDOWS
    quarters = [kept[n * size : (n + 1) * size] for n in range(WINDOWS)]
    rss = [median(s.rss_mb for s in quarter) for quarter in quarters]
    files = [median(s.files for s in quarter) for quarter in quarters]
    has_grown = rss[-1] > rss[0] * GROWTH + GROWTH_MB and _rises(rss)
    is_flat = not has_grown and not (files[-1] > files[0] + GROWTH_FILES and _rises(files))
    return {
        "flat": is_flat,
        "samples": len(samples),
        "lived_s": round(samples[-1].age_s),
        "rss_mb": [round(n, 1) for n in rss],
        "files": files,
    }


def _rises(values: Sequence[float]) -> bool:
    return all(before < after for before, after in pairwise(values))
