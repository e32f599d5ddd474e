"""How fresh the replica and a generation are, told by pulses: tokens in the source's own log.

A pulse carries the instant it was written. When the connector's committed offset has passed it, the end offsets taken
afterwards bound everything that was committed before it; when the checkpoint has passed those and no column is
missing, the replica holds every commit up to that instant to rows that were copied; when the backfill is over and no
work up to the then highest seq is owed, so does the generation. One process writes and judges a pulse, so no clocks of
two machines are compared.

Pure: the loop in `flow/pulse.py` observes in the order upstream to downstream, so that each reading can only
strengthen the claim, and feeds the readings in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from daemon.core.model import TopicPartition

KEPT_PULSES = 64


@dataclass(frozen=True, slots=True)
class Pulse:
    """A pulse on its way. written_at: seconds of the writing process's clock. ends: taken after the connector passed
    it. upto: highest seq noted after the checkpoint passed `ends` with nothing missing."""

    number: int
    lsn: int
    written_at: float
    ends: tuple[tuple[TopicPartition, int], ...] | None = None
    upto: int | None = None


@dataclass(frozen=True, slots=True)
class Tracker:
    """Pulses on their way into the replica, oldest first, and the instant it has reached (None: not yet)."""

    pulses: tuple[Pulse, ...] = ()
    replicated_at: float | None = None

    def sent(self, pulse: Pulse) -> Tracker:
        """Note a written pulse."""
        return replace(self, pulses=_kept((*self.pulses, pulse)))

    def is_passed(self, committed_lsn: int | None) -> bool:
        """Whether the connector has committed past a pulse that has no end offsets yet."""
        return committed_lsn is not None and any(p.ends is None and p.lsn <= committed_lsn for p in self.pulses)

    def captured(self, committed_lsn: int | None, ends: Sequence[tuple[TopicPartition, int]]) -> Tracker:
        """The connector committed up to `committed_lsn`; `ends` were taken after that was read. No ends at all were
        not a reading: every checkpoint would be past them."""
        if committed_lsn is None or not ends:
            return self
        mark = tuple(ends)
        return replace(
            self,
            pulses=tuple(
                replace(p, ends=mark) if p.ends is None and p.lsn <= committed_lsn else p for p in self.pulses
            ),
        )

    def applied(
        self, checkpoint: dict[TopicPartition, int], missing: int, highest_seq: int | None
    ) -> tuple[Tracker, tuple[Pulse, ...]]:
        """The checkpoint, then the number of incomplete rows, then the highest seq, read in this order. The pulses that
        the replica has passed, with that seq, are handed on to the generations.

        highest_seq None: rows were still being copied before the checkpoint was read. Their work comes with seqs above
        all that was noted until then, so the pulses wait for one that is noted later."""
        passed = [p for p in self.pulses if p.ends is not None and all(checkpoint.get(at, 0) >= n for at, n in p.ends)]
        if missing or not passed:
            return self, ()
        reached = max(p.written_at for p in passed)
        replicated_at = reached if self.replicated_at is None else max(reached, self.replicated_at)
        if highest_seq is None:
            return replace(self, replicated_at=replicated_at), ()
        left = tuple(p for p in self.pulses if p not in passed)
        return Tracker(left, replicated_at), tuple(replace(p, upto=highest_seq) for p in passed)


@dataclass(frozen=True, slots=True)
class Freshness:
    """Of one generation: pulses that the replica has passed, oldest first, and the instant reached (None: not yet)."""

    pulses: tuple[Pulse, ...] = ()
    fresh_at: float | None = None

    def replicated(self, pulses: Sequence[Pulse]) -> Freshness:
        """Take over what the replica has passed. Only while the generation is known, before their seq was noted, to be
        swept: what a sweep hands over later has seqs above it and would be taken for embedded."""
        return replace(self, pulses=_kept((*self.pulses, *pulses)))

    def embedded(self, lowest_owed: int | None) -> Freshness:
        """`lowest_owed`: the smallest oldest_seq that is not accepted, None where nothing is owed. Pulses that it
        leaves behind are fresh and done."""
        fresh_at, left = self.fresh_at, []
        for p in self.pulses:
            if p.upto is not None and (lowest_owed is None or lowest_owed > p.upto):
                fresh_at = p.written_at if fresh_at is None else max(fresh_at, p.written_at)
            else:
                left.append(p)
        return Freshness(tuple(left), fresh_at)


def _kept(pulses: tuple[Pulse, ...]) -> tuple[Pulse, ...]:
    """All of them; of too many, every second one is given up and the newest kept: the rest says it coarser."""
    while len(pulses) > KEPT_PULSES:
        pulses = (*pulses[:-1:2], pulses[-1])
    return pulses
