"""What a history is made of: a random subset of faults, sizes and weights, drawn before it begins.

Every fault in every history would hide what a few of them do: a history that restarts the connector every second never
gets as far as a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

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
    thaw: float = 2
    start: float = 8
    orphan: float = 4
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

    def without(self, name: str) -> Swarm:
        return replace(self, **{name: 0})


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
    "provider",
)


def swarm_of(choices: Choices, steps: int | None = None) -> Swarm:
    """One drawn swarm."""

    def some(*values: float) -> float:
        return choices.pick((0, 0, *values))

    drawn = Swarm(
        write=choices.pick((8, 3, 14, 1)),
        deliver=choices.pick((10, 5, 20)),
        flush=choices.pick((4, 2, 8)),
        late=some(1, 2),
        restart=some(0.15, 0.4, 1),
        loss=choices.pick((0, 0, 0, 0, 0.2)),
        marker=some(0.5),
        truncate=some(0.01, 0.04),
        rekey=choices.pick((0.2, 0, 0.4)),
        toast=choices.pick((0.4, 0, 0.8)),
        refusals=some(0.05),
        upstream=choices.pick((40, 15, 80)),
        clock=choices.pick((6, 2, 15)),
        jump=some(0.1, 0.3),
        kill=some(0.15, 0.4, 0.8),
        stop=some(0.1, 0.3),
        freeze=some(0.15, 0.4),
        refused=some(0.003, 0.01),
        lost=some(0.003, 0.01),
        slow=some(0.005),
        provider=some(0.1, 0.3),
        keys=choices.pick((4, 2, 3, 6)),
        texts=choices.pick((40, 3)),
        steps=choices.pick((2500, 1200, 4000)),
        window_records=choices.pick((1000, 1, 3)),
        page_rows=choices.pick((2, 1, 100)),
        slots=choices.pick((3, 2, 4)),
        operators=choices.pick((1, 2)),
        has_where=choices.chance(0.5),
    )
    return drawn if steps is None else replace(drawn, steps=steps)


def named(swarm: Swarm) -> str:
    """What is not left out, for a person."""
    return " ".join(f"{f.name}={getattr(swarm, f.name):g}" for f in fields(swarm) if getattr(swarm, f.name))
