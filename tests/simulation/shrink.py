"""Make a failing history smaller: cut pieces out of its tape, or set them to 0, as long as it still fails.

A smaller tape is a smaller history (`tests.simulation.choices`): fewer faults, fewer processes, fewer steps. What is
left is printed as a short trace, and can be played again from its seed or, shorter, from the tape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tests.simulation.play import Simulation

Tape = Sequence[int]


def shrunk(failing: Simulation, limit_s: float, play: Callable[[int, Tape], Simulation] | None = None) -> Simulation:
    """The smallest history of the same kind of failure that was found within `limit_s`."""
    play = play or (lambda seed, tape: Simulation(seed, tape).run())
    best, ends_at = failing, time.monotonic() + limit_s
    kind = kind_of(failing)
    size = len(best.choices.drawn) // 2
    while size >= 8 and time.monotonic() < ends_at:
        at = 0
        while at < len(best.choices.drawn) and time.monotonic() < ends_at:
            tape = list(best.choices.drawn)
            for smaller in (tape[:at] + tape[at + size :], tape[:at] + [0] * size + tape[at + size :]):
                if smaller == tape:
                    continue
                tried = play(failing.seed, smaller)
                if tried.violation is not None and kind_of(tried) == kind and size_of(tried) < size_of(best):
                    best = tried
                    break
            else:
                at += size
        size //= 2
    return best


def size_of(history: Simulation) -> tuple[int, int]:
    """Events that a person has to read; then numbers that are not 0."""
    return len(history.trace) + history.steps // 50, sum(1 for number in history.choices.drawn if number)


def kind_of(history: Simulation) -> str:
    """What was broken, without keys and numbers."""
    words = str(history.violation).split(":")[0]
    return "".join(c for c in words if not c.isdigit())[:40]
