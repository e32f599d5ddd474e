"""What a history is made of: a random subset of faults, sizes and weights, drawn before it begins.

Every fault in every history would hide what a few of them do: a history that restarts the connector every second never
gets as far as a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from tests.simulation.choices import Choices


@dataclass(frozen=True, slots=True)
class Swarm:
    """Weights of what happens upstream; shares of steps with a fault; sizes. 0 where a fault is left out."""

    # upstream, by weight
    deliver: float = 10
    write: float = 8
    flush: float = 4
    late: float = 0
    restart: float = 0
    loss: float = 0
    marker: float = 0
    # shares of a writer's moves
    truncate: float = 0
    rekey: float = 0.2
    toast: float = 0.4
    refusals: float = 0
    # what the scheduler does, by weight; a parked call that goes on weighs 100
    upstream: float = 40
    clock: float = 6
    jump: float = 0
    kill: float = 0
    stop: float = 0
    freeze: float = 0
    thaw: float = 0.4
    start: float = 8
    orphan: float = 4
    hold: float = 0
    haste: float = 0.35  # share of steps in which an operator's command goes on, if there is one
    warm_up: int = 0  # things that happened before the first process
    # shares of calls
    refused: float = 0
    lost: float = 0
    slow: float = 0
    provider: float = 0
    # sizes
    keys: int = 4
    texts: int = 40
    steps: int = 2500
    window_records: int = 1000
    page_rows: int = 2
    slots: int = 3
    operators: int = 1
    has_where: bool = False
    is_steady: bool = True  # everything is copied, embedded and compared before anything goes wrong

    def without(self, name: str) -> Swarm:
        left_out: dict[str, Any] = {name: 0}
        return replace(self, **left_out)


FAULTS = (
    "late",
    "restart",
    "loss",
    "marker",
    "truncate",
    "rekey",
    "toast",
    "refusals",
    "jump",
    "kill",
    "stop",
    "freeze",
    "refused",
    "lost",
    "slow",
    "hold",
    "provider",
)


def swarm_of(choices: Choices, steps: int | None = None) -> Swarm:
    """One drawn swarm."""

    def some(*values: float) -> float:
        return choices.pick((0, 0, *values))

    drawn = Swarm(
        write=choices.pick((14, 8, 25)),
        deliver=choices.pick((10, 5, 20)),
        flush=choices.pick((4, 2, 8)),
        late=some(2, 6),
        restart=some(0.02, 0.06, 0.2),
        loss=choices.pick((0, 0, 0, 0.03, 0.08)),
        marker=some(0.5),
        truncate=some(0.01, 0.03),
        rekey=choices.pick((0.2, 0, 0.4)),
        toast=choices.pick((0.4, 0, 0.8)),
        refusals=some(0.05),
        upstream=choices.pick((40, 20, 70)),
        clock=choices.pick((3, 1, 8)),
        jump=choices.pick((0, 0.04, 0.1)),
        kill=some(0.03, 0.08, 0.25),
        stop=some(0.03, 0.08),
        freeze=some(0.05, 0.15, 0.3),
        refused=some(0.001, 0.004),
        lost=some(0.001, 0.004),
        slow=some(0.005),
        hold=choices.pick((0, 1, 3)),
        warm_up=choices.pick((0, 10, 60)),
        provider=some(0.1, 0.3),
        keys=choices.pick((4, 2, 3, 6)),
        texts=choices.pick((40, 3)),
        steps=choices.pick((6000, 2500, 12000)),
        window_records=choices.pick((1000, 4, 20)),
        page_rows=choices.pick((2, 1, 100)),
        slots=choices.pick((2, 1, 3)),
        operators=choices.pick((1, 2)),
        has_where=choices.chance(0.5),
        is_steady=not choices.chance(0.5),
    )
    return drawn if steps is None else replace(drawn, steps=steps)


def named(swarm: Swarm) -> str:
    """What is not left out, for a person."""
    return " ".join(f"{f.name}={getattr(swarm, f.name):g}" for f in fields(swarm) if getattr(swarm, f.name))
