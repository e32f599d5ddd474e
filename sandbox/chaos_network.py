"""Faults of the network in a chaos run: made at a proxy, shown by its counters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sandbox.proxy import Proxy

LAND_LIMIT_S = 60.0
DELAY_S = 0.4
BYTES_PER_S = 20_000.0
COMMITTERS = ("revector:articles:stream", "revector:articles:embed")

# Connect's own clients do not notice a connection that was forgotten on the way; it is reset when the network is back.
RESET_IN_THE_END = (":capture_source", ":capture_broker")

# Which counter shows that a fault landed.
SHOWN_BY = {
    "cut": "cut",
    "refuse": "refusals",
    "delay": "delayed_bytes",
    "throttle": "throttled_bytes",
    "half-open": "silent",
    "cut-at-commit": "commits_cut",
}


def network_fault(proxy: Proxy, name: str, seconds: float) -> dict[str, Any]:
    """Make it, wait until it has lasted and has landed, heal. The counters that moved."""
    fault = name.removeprefix("net-").split(":")[0]
    before = asdict(proxy.landed)
    wanted = len(COMMITTERS) if fault == "cut-at-commit" else 1

    def landed() -> int:
        return int(getattr(proxy.landed, SHOWN_BY[fault])) - int(before[SHOWN_BY[fault]])

    began = time.monotonic()
    begin: dict[str, Callable[[], object]] = {
        "cut": proxy.cut,
        "refuse": proxy.refuse,
        "delay": lambda: proxy.delay(DELAY_S),
        "throttle": lambda: proxy.throttle(BYTES_PER_S),
        "half-open": proxy.half_open,
        "cut-at-commit": lambda: _cut_at_commits(proxy),
    }
    try:
        begin[fault]()
        while landed() < wanted and time.monotonic() < began + LAND_LIMIT_S:
            if fault == "cut":  # nobody was connected
                proxy.cut()
            time.sleep(0.02)
        time.sleep(max(0.0, began + seconds - time.monotonic()))
    finally:
        if fault == "half-open" and name.endswith(RESET_IN_THE_END):
            proxy.cut()
        proxy.heal()
    moved = {key: value - before[key] for key, value in asdict(proxy.landed).items() if value != before[key]}
    return moved | {"landed": landed() >= wanted}


def _cut_at_commits(proxy: Proxy) -> None:
    for whose in COMMITTERS:
        proxy.cut_at_commit(whose)
