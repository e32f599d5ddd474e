"""One verdict about a migration, from whatever could be observed: the model behind CLI, HTTP, metrics and docs.

`judge(facts)` computes the verdict, every blocker (id, number, remedy, next command) and the numbers of each part.
The worst part wins; a fact that is None was not observed and is a blocker of its own, never "ok" and never 0. The
words come from `core.reasons`; `core.face` turns a `Status` into JSON and text.

Pure: no clock (ages are facts), no colour, no I/O.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from daemon.core.catchup import Shortfall
from daemon.core.compared import ComparisonReading, objection
from daemon.core.model import Backlog, Break, HaltNote, TopicPartition
from daemon.core.profile import failure_hint
from daemon.core.reasons import REASONS, Kind, command_for

READY_LAG_S = 10.0  # a live system always has a few events and rows on their way; beyond this it is catching up
STALLED_LAG_S = 150.0  # Connect may commit only once a minute; silence beyond two of those has another cause
READY_WORK_AGE_S = 60.0
READY_WORK_ROWS = 1000
PROOF_ONLY = frozenset(
    ("identity-changed", "connector-behind", "columns-missing", "index-missing", "index-invalid", "index-unused")
)  # reasons that only an attempt at a proof evaluates


class Verdict(enum.Enum):
    """Best first; the value is the text that is shown."""

    READY = "ready to cut over"
    CATCHING_UP = "catching up"
    NOT_READY = "not ready"
    DEGRADED = "degraded: proof broken"
    HALTED = "halted"


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """lag_s: age of the newest commit instant up to which the replica is known to be complete. limit_bytes None:
    unlimited. wal_status: of the slot, as Postgres says it; left_bytes, slot_cause: as `SlotState` has them."""

    lag_s: float | None = None
    retained_bytes: int | None = None
    limit_bytes: int | None = None
    slot_exists: bool | None = None
    slot_active: bool | None = None
    wal_status: str | None = None
    left_bytes: int | None = None
    slot_cause: str | None = None


@dataclass(frozen=True, slots=True)
class FeedFacts:
    """behind: events between checkpoint and end, by partition; a partition that could not be read is absent.
    partitions: how many data partitions there are. connector: the worst state of connector and task. failure: why it
    failed, where it did."""

    behind: Mapping[TopicPartition, int]
    partitions: int | None = None
    connector: str | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class CopyFacts:
    """Backfill of all tables together. rows_total: the planner's estimate. rates: rows per second of recent intervals
    that span `basis_s` together."""

    rows: int
    complete: bool
    rows_total: int | None = None
    rates: tuple[float, ...] = ()
    basis_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """rows_per_s: rows written by the stream and pages together. phase: of the generation."""

    rows_per_s: float | None = None
    phase: str | None = None


@dataclass(frozen=True, slots=True)
class OtherGeneration:
    """One that is fed beside the one that the status is about. waiting: claimed entries among them."""

    name: str
    phase: str
    swept: bool
    waiting: int
    refused: int


@dataclass(frozen=True, slots=True)
class CostFacts:
    """price: per million tokens, None where none is configured. forecast: tokens of the whole backfill, (low, high),
    None where none was made."""

    price: float | None = None
    forecast: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class RunningComparison:
    """One that has begun and not ended; whether a process works on it is not known. rows, chunks: compared so far.
    ranges, ranges_done: of what it scans; 0 before that is planned."""

    id: int
    age_s: float
    rows: int
    chunks: int
    ranges: int
    ranges_done: int


@dataclass(frozen=True, slots=True)
class StatusFacts:
    """What was observed. proof: the shortfalls of a recent attempt (empty: every step held), None where none was made.

    halts: open ones by id. embed_halts: of embedding alone, while replication goes on; unknown with halts.
    freshness_s: age of the instant up to which the generation is known complete.
    paused: what an operator paused, in words; None where nothing is.
    begun: whether a start is recorded; False with a generation: its relations are made, the start is on its way.
    listed: whether the migration has the generation that is asked for. others: those it has beside it.
    """

    migration: str
    generation: str | None = None
    listed: bool | None = None
    others: tuple[OtherGeneration, ...] = ()
    paused: str | None = None
    begun: bool | None = None
    observed_at: str | None = None
    running_for_s: float | None = None
    halts: Mapping[str, HaltNote] | None = None
    embed_halts: Mapping[str, HaltNote] = field(default_factory=dict)
    breaks: tuple[Break, ...] | None = None
    source: SourceFacts | None = None
    feed: FeedFacts | None = None
    embed: Backlog | None = None
    cost: CostFacts = CostFacts()
    swept: bool | None = None
    target: TargetFacts | None = None
    backfill: CopyFacts | None = None
    freshness_s: float | None = None
    comparison: ComparisonReading | None = None
    comparing: RunningComparison | None = None
    proof: tuple[Shortfall, ...] | None = None


@dataclass(frozen=True, slots=True)
class Blocker:
    """One reason against the cutover. number is None where nothing can be counted. evidence: what was and what is, of a
    halt or a break; None where the message says it."""

    id: str
    part: str
    message: str
    number: int | None
    remedy: str
    command: str | None
    evidence: str | None = None

    @property
    def kind(self) -> Kind:
        return REASONS[self.id].kind


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds left, as a range, and what it is computed from."""

    low_s: float
    high_s: float
    basis: str


@dataclass(frozen=True, slots=True)
class Status:
    """The verdict, worst blockers first, and the facts it was computed from. percent: never 100 before done."""

    verdict: Verdict
    blockers: tuple[Blocker, ...]
    percent: int | None
    eta: Eta | None
    next: str | None
    facts: StatusFacts

    def gauges(self) -> dict[str, int]:
        """1 or 0 per reason; a reason that could not be evaluated is absent, and `not-observed` is then 1."""
        on = {b.id for b in self.blockers} | {b.id for b in self.facts.breaks or ()}
        blind = {b.part for b in self.blockers if b.id == "not-observed"}
        unknown = {r.id for r in REASONS.values() if r.part in blind}
        if self.facts.proof is None:
            unknown |= PROOF_ONLY
        if self.facts.halts is None:
            unknown.add("embedding-halted")
        if self.facts.begun is None:
            unknown.add("not-begun")
        elif not self.facts.begun:
            unknown |= set(REASONS) - {"not-begun"}
        if unknown - on:
            on.add("not-observed")
        return {id: int(id in on) for id in REASONS if id in on or id not in unknown}


def judge(facts: StatusFacts) -> Status:
    """Verdict, blockers and estimates of what was observed. Within a kind, blockers come in the registry's order."""
    found = list(_unique(facts))
    kinds, ids = list(Kind), list(REASONS)
    blockers = tuple(sorted(found, key=lambda b: (kinds.index(b.kind), ids.index(b.id))))
    verdict = VERDICTS[blockers[0].kind] if blockers else Verdict.READY
    command = next((b.command for b in blockers if b.command), None)
    return Status(verdict, blockers, percent(facts.backfill), eta(facts.backfill), command, facts)


VERDICTS = {
    Kind.HALT: Verdict.HALTED,
    Kind.BREAK: Verdict.DEGRADED,
    Kind.FAULT: Verdict.NOT_READY,
    Kind.WAIT: Verdict.CATCHING_UP,
    Kind.LATER: Verdict.NOT_READY,
}


def percent(copied: CopyFacts | None) -> int | None:
    """Whole percent of the backfill, at most 99 until it is complete; None where the total is not known."""
    if copied is None:
        return None
    if copied.complete:
        return 100
    if not copied.rows_total:
        return None
    return min(99, copied.rows * 100 // copied.rows_total)


def eta(copied: CopyFacts | None) -> Eta | None:
    """Seconds left from the slowest and the fastest recent rate; None where that would be a guess: no total, a total
    already passed, no rates, or an interval in which nothing moved."""
    if copied is None or copied.complete or not copied.rows_total or not copied.rates:
        return None
    left = copied.rows_total - copied.rows
    if left <= 0 or min(copied.rates) <= 0:
        return None
    minutes = copied.basis_s / 60
    basis = f"the last {minutes:.0f} min" if minutes >= 1 else f"the last {copied.basis_s:.0f} s"
    return Eta(left / max(copied.rates), left / min(copied.rates), basis)


def grouped(n: int) -> str:
    """41200 -> 41 200."""
    return f"{n:,}".replace(",", " ")


def _unique(facts: StatusFacts) -> Iterator[Blocker]:
    """What the parts say, then what the proof adds. Only when nothing else stands against it is a proof asked for.
    Before the start only a halt is worth saying: a slot that is not there yet is no break of anything."""
    seen: set[str] = set()
    if facts.begun is False:
        yield from _stream(facts) if facts.halts else ()
        yield from _embed_halted(facts)
        yield _not_begun(facts)
        return
    for check in (_stream, _source, _feed, _backfill, _embed, _compared):
        for b in check(facts):
            seen.add(b.id)
            yield b
    for s in facts.proof or ():
        if s.id not in seen or s.id == "not-observed":
            yield Blocker(s.id, "proof", s.message, s.number, s.remedy, s.command)
    if facts.proof is None and not seen:
        yield _blocker(facts, "not-proven", "no proof was made")


def evidence_of(breaks: Sequence[Break]) -> str | None:
    """What the newest break of each id says of itself; None where none says anything."""
    newest = {b.id: b.detail for b in breaks if b.detail}
    said = (f"{id}: " + ", ".join(f"{name} {_shown(value)}" for name, value in newest[id].items()) for id in newest)
    return "; ".join(said) or None


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _blocker(facts: StatusFacts, id: str, message: str, number: int | None = None) -> Blocker:
    r = REASONS[id]
    return Blocker(id, r.part, message, number, r.remedy, command_for(id, facts.migration))


def _unread(facts: StatusFacts, part: str, what: str) -> Blocker:
    r = REASONS["not-observed"]
    return Blocker(r.id, part, f"{what}: unknown", None, r.remedy, command_for(r.id, facts.migration))


def _not_begun(facts: StatusFacts) -> Blocker:
    if facts.generation is None:
        return _blocker(facts, "not-begun", "nothing has been started")
    on_its_way = _blocker(facts, "not-begun", "the start is on its way")
    return replace(on_its_way, remedy="wait; if it stays, see the log of the process that starts it", command=None)


def _stream(facts: StatusFacts) -> Iterator[Blocker]:
    if facts.halts is None:
        yield _unread(facts, "stream", "whether the stream is halted")
    else:
        for id, note in sorted(facts.halts.items()):
            known = id in REASONS and REASONS[id].kind is Kind.HALT
            yield _noted(_blocker(facts, id if known else "halted", id), note, facts.migration)
    if facts.breaks is None:
        yield _unread(facts, "continuity", "breaks of continuity")
    elif facts.breaks:
        ids = ", ".join(sorted({b.id for b in facts.breaks}))
        found = _blocker(facts, "break-open", ids, len(facts.breaks))
        own = [REASONS[id].remedy for id in dict.fromkeys(b.id for b in facts.breaks) if id in REASONS]
        remedy = "; ".join(dict.fromkeys(own)) or found.remedy
        yield replace(found, evidence=evidence_of(facts.breaks), remedy=remedy)


def _noted(b: Blocker, note: HaltNote, migration: str) -> Blocker:
    """With the halt's own evidence, hint and command, which say more than those of its reason."""
    if not note.hint:
        return replace(b, evidence=note.message or None)
    command = None if note.command is None else note.command.format(migration=migration)
    return replace(b, evidence=note.message or None, remedy=note.hint, command=command)


def _source(facts: StatusFacts) -> Iterator[Blocker]:
    s = facts.source
    if s is None:
        yield _unread(facts, "source", "the source")
        return
    copying = facts.backfill is not None and not facts.backfill.complete
    if s.lag_s is None and not copying:  # while rows are being copied no instant is complete, which is said already
        yield _unread(facts, "source", "lag of the replica")
    if s.slot_exists is None:
        yield _unread(facts, "source", "the replication slot")
    elif not s.slot_exists or s.wal_status == "lost":
        lost = f"the slot was invalidated: {s.slot_cause or 'its log was removed'}"
        yield _blocker(facts, "slot-lost", lost if s.slot_exists else "there is no slot")
    else:
        yield from _slot(facts, s)


def _slot(facts: StatusFacts, s: SourceFacts) -> Iterator[Blocker]:
    """Of a slot that is there."""
    if is_endangered(s):
        left = max(0, s.left_bytes or 0)
        yield _blocker(facts, "slot-endangered", f"{grouped(left)} bytes of log until the slot may be lost", left)
    if s.slot_active is None:
        yield _unread(facts, "source", "whether the slot is in use")
    elif not s.slot_active:
        yield _blocker(facts, "slot-inactive", "nobody reads from the slot", s.retained_bytes)


def is_endangered(source: SourceFacts) -> bool:
    """Whether the next checkpoint, or a fifth of the limit, may cost the slot."""
    if source.wal_status == "unreserved":
        return True
    return (
        source.limit_bytes is not None and source.left_bytes is not None and 5 * source.left_bytes < source.limit_bytes
    )


def _feed(facts: StatusFacts) -> Iterator[Blocker]:
    f = facts.feed
    if f is None:
        yield _unread(facts, "kafka", "kafka")
        return
    if f.connector is None:
        yield _unread(facts, "kafka", "the connector's state")
    elif f.connector != "running":
        down = replace(_blocker(facts, "connector-down", f"the connector is {f.connector}"), evidence=f.failure)
        hint = None if f.failure is None else failure_hint(f.failure)
        yield down if hint is None else replace(down, remedy=hint)
    if not f.partitions or len(f.behind) < f.partitions:
        which = "" if not f.partitions else f" in {f.partitions - len(f.behind)} of {f.partitions} partitions"
        yield _unread(facts, "kafka", f"events behind{which}")
    total = sum(f.behind.values())
    lag = None if facts.source is None else facts.source.lag_s
    if total and (lag is None or lag > READY_LAG_S):
        count = sum(1 for n in f.behind.values() if n)
        yield _blocker(facts, "partition-behind", f"{grouped(total)} events behind in {count} partitions", total)
    elif lag is not None and lag > STALLED_LAG_S:
        # Nothing waits in Kafka and yet no instant since is known to be complete: the connector is stuck, or nobody
        # measures. An older certificate must not make that ready.
        yield _blocker(facts, "connector-behind", f"nothing is known of the last {lag:.0f} s", int(lag))


def _backfill(facts: StatusFacts) -> Iterator[Blocker]:
    if facts.backfill is None:
        yield _unread(facts, "backfill", "backfill")
    elif not facts.backfill.complete:
        done = percent(facts.backfill)
        yield _blocker(facts, "backfill-unfinished", "progress unknown" if done is None else f"{done} %", done)


def _embed_halted(facts: StatusFacts) -> Iterator[Blocker]:
    for id, note in sorted(facts.embed_halts.items()):
        yield _noted(_blocker(facts, "embedding-halted", f"{id}; replication goes on"), note, facts.migration)


def _embed(facts: StatusFacts) -> Iterator[Blocker]:
    if facts.listed is False:
        b = _blocker(facts, "generation-unlisted", f"the migration has no generation {facts.generation}")
        remedy = f"revector generation add {facts.generation} {facts.migration}, if the configuration has it"
        yield replace(b, remedy=remedy, command=None)
        return
    yield from _embed_halted(facts)
    if facts.paused:
        yield _blocker(facts, "paused", f"{facts.paused} paused")
    if facts.swept is None:
        yield _unread(facts, "embed", "sweep of the generation")
    elif not facts.swept:
        yield _blocker(facts, "sweep-unfinished", f"generation {facts.generation or ''}".strip())
    e = facts.embed
    if e is None:
        yield _unread(facts, "embed", "work")
        return
    waiting = e.waiting
    old = e.oldest_age_s is None or e.oldest_age_s > READY_WORK_AGE_S
    if waiting > READY_WORK_ROWS or (waiting and old):
        yield _blocker(facts, "work-owed", f"{grouped(waiting)} rows waiting", waiting)
    if e.refused:
        yield _blocker(facts, "work-refused", f"{grouped(e.refused)} rows refused", e.refused)


def _compared(facts: StatusFacts) -> Iterator[Blocker]:
    if facts.listed is False:  # said already; it has nothing that could be compared
        return
    if facts.comparison is None:
        yield _unread(facts, "comparison", "the last comparison")
        return
    against = objection(facts.comparison, None)
    if against is not None:
        yield _blocker(facts, against.id, against.message, against.number)
