"""Caught up, or the list of what is missing: steps 1 to 8 of DESIGN.md section 7 over what was observed.

`prove` decides nothing that was not measured: every observation can be None, "could not be observed", and then it is a
shortfall of its own. `procedures/prove.py` observes in the order of the fields, upstream first, so that each reading
can only strengthen the claim; this module trusts that order and knows no clock.

Step 1 rests on a comparison of replica and source: the newest one must be clean and of age, and no break may be open.
It is read first and last. What a comparison mends after the highest seq was noted is owed, so one that was clean only
in the end does not do. The certificate carries its figures; its numbers fit RFC 8785 (log positions are text).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from daemon.core.compared import ComparisonReading, figures, has_mended, objection, sentence
from daemon.core.comparison import Comparison
from daemon.core.continuity import Identity, identity_changes, log_set_back, lsn_text
from daemon.core.model import Break, IndexState, TopicPartition
from daemon.core.reasons import REASONS, command_for

SCHEMA = "revector.certificate/1"


@dataclass(frozen=True, slots=True)
class CopyReading:
    """Backfill of one table."""

    complete: bool
    ranges: int
    ranges_done: int


@dataclass(frozen=True, slots=True)
class ProofObservations:
    """Everything measured for one proof of one generation, in the order it is to be read. None: not observed.

    tables (aliases) and partitions (every data partition) are what must be covered; empty is never enough.
    comparison, compared_again: read before the barrier and at the end. breaks: open at either. halts, embed_halts: ids;
    the second of embedding alone. missing: rows with a missing column, by table. highest_seq: W.
    owed: entries of the generation with `oldest_seq` <= W and not accepted, claimed and refused ones included. began:
    the recorded identity. epoch, epoch_again: of positions, before the barrier and at the end. reached_lsn: where the
    source's log is known to have been before this.
    """

    migration: str
    generation: str
    generation_id: int
    contract_id: str
    tables: tuple[str, ...]
    partitions: tuple[TopicPartition, ...]
    comparison: ComparisonReading | None = None
    compared_again: ComparisonReading | None = None
    breaks: tuple[Break, ...] | None = None
    halts: tuple[str, ...] | None = None
    embed_halts: tuple[str, ...] | None = None
    backfill: Mapping[str, CopyReading] | None = None
    swept: bool | None = None
    barrier_lsn: int | None = None
    connect_lsn: int | None = None
    ends: Mapping[TopicPartition, int] | None = None
    checkpoint: Mapping[TopicPartition, int] | None = None
    missing: Mapping[str, int] | None = None
    highest_seq: int | None = None
    owed: int | None = None
    refused: int | None = None
    accepted: int | None = None
    began: Identity | None = None
    found: Identity | None = None
    epoch: int = 0
    epoch_again: int = 0
    reached_lsn: int = 0
    indexes: Mapping[str, IndexState] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One thing that stands against the claim. id: of `core.reasons`. number: how much, where it can be counted."""

    id: str
    step: int
    message: str
    number: int | None
    remedy: str
    command: str | None


Found = Iterator[tuple[str, str, int | None]]  # id, message, number


def prove(seen: ProofObservations, issued_at: str) -> dict[str, Any] | list[Shortfall]:
    """The certificate's document if every step holds, else every shortfall in the order of the steps.

    issued_at: wall time as ISO text. Pure; the same observations give the same bytes.
    """
    shortfalls = [
        Shortfall(id, number, message, count, REASONS[id].remedy, command_for(id, seen.migration))
        for number, step in STEPS
        for id, message, count in step(seen)
    ]
    return shortfalls or _certificate(seen, issued_at)


def _unread(what: str) -> tuple[str, str, None]:
    return "not-observed", f"{what} could not be observed", None


def _continuity(seen: ProofObservations) -> Found:
    yield from _compared(seen)
    if seen.breaks is None:
        yield _unread("breaks of continuity")
    elif seen.breaks:
        ids = ", ".join(sorted({b.id for b in seen.breaks}))
        yield "break-open", f"continuity is broken, and no comparison has closed it: {ids}", len(seen.breaks)
    if seen.halts is None:
        yield _unread("whether the stream is halted")
    elif seen.halts:
        yield "halted", f"the stream is halted: {', '.join(sorted(seen.halts))}", len(seen.halts)
    if seen.embed_halts is None:
        yield _unread("whether embedding is halted")
    elif seen.embed_halts:
        yield "embedding-halted", f"embedding is halted: {', '.join(sorted(seen.embed_halts))}", None


def _compared(seen: ProofObservations) -> Found:
    """The newer reading counts where it is worse: differences that were found meanwhile, or found and mended."""
    if seen.comparison is None or seen.compared_again is None:
        yield _unread("comparisons")
        return
    against = objection(seen.compared_again, seen.generation_id) or objection(seen.comparison, seen.generation_id)
    if against is not None:
        yield against.id, against.message, against.number
        return
    first, again = seen.comparison.last, seen.compared_again.last
    if first is not None and again is not None and first.id != again.id and has_mended(again):
        yield "comparison-differs", f"comparison {again.id} mended what it found while this was looked at", None


def _copied(seen: ProofObservations) -> Found:
    if not seen.tables:
        yield _unread("the list of tables")
    for table in seen.tables:
        reading = None if seen.backfill is None else seen.backfill.get(table)
        if reading is None:
            yield _unread(f"backfill of {table}")
        elif not reading.complete:
            done = f"{reading.ranges_done} of {reading.ranges} ranges"
            yield "backfill-unfinished", f"backfill of {table}: {done}", reading.ranges - reading.ranges_done
    if seen.swept is None:
        yield _unread("the sweep of the generation")
    elif not seen.swept:
        yield "sweep-unfinished", f"rows are still being handed to generation {seen.generation}", None


def _barrier(seen: ProofObservations) -> Found:
    if not seen.barrier_lsn:
        yield _unread("a barrier in the source's log")


def _captured(seen: ProofObservations) -> Found:
    if seen.connect_lsn is None:
        yield _unread("the connector's committed source offset")
    elif seen.barrier_lsn and seen.connect_lsn < seen.barrier_lsn:
        behind = seen.barrier_lsn - seen.connect_lsn
        at, goal = lsn_text(seen.connect_lsn), lsn_text(seen.barrier_lsn)
        yield "connector-behind", f"the connector committed {at}, {behind} bytes before the barrier {goal}", behind


def _ends(seen: ProofObservations) -> Found:
    """A partition that has a checkpoint needs an end too, whoever listed the partitions."""
    if not seen.partitions:
        yield _unread("the list of data partitions")
    for at in sorted({*seen.partitions, *(seen.checkpoint or {})}):
        if seen.ends is None or at not in seen.ends:
            yield _unread(f"end offset of {at.topic}-{at.partition}")


def _applied(seen: ProofObservations) -> Found:
    """Partitions that only `ends` names count too: a topic can have grown."""
    for at in sorted({*seen.partitions, *(seen.ends or {})}):
        if seen.checkpoint is None or at not in seen.checkpoint:
            yield _unread(f"checkpoint of {at.topic}-{at.partition}")
        elif seen.ends is not None and seen.checkpoint[at] < seen.ends.get(at, 0):
            behind = seen.ends[at] - seen.checkpoint[at]
            yield "partition-behind", f"{at.topic}-{at.partition} is {behind} events behind", behind
    for table in seen.tables:
        count = None if seen.missing is None else seen.missing.get(table)
        if count is None:
            yield _unread(f"rows of {table} that lack a column")
        elif count:
            yield "columns-missing", f"{count} rows of {table} lack a column", count
    if seen.highest_seq is None:
        yield _unread("the highest seq of work")


def _embedded(seen: ProofObservations) -> Found:
    if seen.owed is None:
        yield _unread("work owed")
    elif seen.owed:
        yield "work-owed", f"{seen.owed} rows are owed to generation {seen.generation}", seen.owed
    if seen.refused is None:
        yield _unread("work refused")
    elif seen.refused:
        yield "work-refused", f"{seen.refused} rows are refused by the provider", seen.refused
    if seen.accepted is None:
        yield _unread("refused work that was accepted")


def _unchanged(seen: ProofObservations) -> Found:
    if seen.began is None or seen.found is None:
        yield _unread("the identity at the start" if seen.began is None else "the identity")
    else:
        changes = identity_changes(seen.began, seen.found)
        for c in changes or log_set_back(seen.reached_lsn, seen.barrier_lsn):
            yield "identity-changed", f"{c.part} {c.field} was {c.before}, is {c.after}", None
    if seen.epoch != seen.epoch_again:
        yield "identity-changed", f"the stream was realigned meanwhile: epoch {seen.epoch_again}", None
    for table in seen.tables:
        index = None if seen.indexes is None else seen.indexes.get(table)
        if index is None:
            yield _unread(f"index of {table}")
        elif not index.exists:
            yield "index-missing", f"{index.table} has no index", index.rows
        elif not index.valid:
            yield "index-invalid", f"the index of {index.table} is not valid", index.rows
        elif index.used_by_plan is None:
            yield _unread(f"the plan of a search in {index.table}")
        elif not index.used_by_plan and index.rows:  # of an empty table any plan is right
            yield "index-unused", f"a search in {index.table} does not use its index", index.rows


STEPS: tuple[tuple[int, Callable[[ProofObservations], Found]], ...] = (
    (1, _continuity),
    (2, _copied),
    (3, _barrier),
    (4, _captured),
    (5, _ends),
    (6, _applied),
    (7, _embedded),
    (8, _unchanged),
)


def _certificate(seen: ProofObservations, issued_at: str) -> dict[str, Any]:
    lsn = lsn_text(seen.barrier_lsn or 0)
    accepted = f", except {seen.accepted} refused rows that an operator accepted" if seen.accepted else ""
    comparison = _comparison(seen)
    return {
        "schema": SCHEMA,
        "migration": seen.migration,
        "generation": seen.generation,
        "contract_id": seen.contract_id,
        "statement": (
            f"Every change committed in the source before {lsn}, or a later one of the same row, is in the replica "
            f"and embedded in generation {seen.generation}{accepted}. {sentence(comparison)} No event was skipped "
            "since it began, as far as continuity shows."
        ),
        "position": lsn,
        "epoch": seen.epoch,
        "compared": True,
        "comparison": figures(comparison),
        "issued_at": issued_at,
        "steps": _evidence(seen),
        "identity": identity_figures(seen.found),
        "versions": dict(seen.versions),
    }


def _evidence(seen: ProofObservations) -> list[dict[str, Any]]:
    ends, checkpoint = seen.ends or {}, seen.checkpoint or {}
    indexes = {} if seen.indexes is None else seen.indexes
    copied = {} if seen.backfill is None else seen.backfill
    return [
        {
            "step": 1,
            "claim": "clean comparison of age, no break open, no halt",
            "comparison": _comparison(seen).id,
            "breaks": 0,
            "halts": 0,
        },
        {
            "step": 2,
            "claim": "backfill complete, generation swept",
            "tables": {t: {"ranges": copied[t].ranges} for t in seen.tables},
        },
        {"step": 3, "claim": "barrier in the source's log", "lsn": lsn_text(seen.barrier_lsn or 0)},
        {
            "step": 4,
            "claim": "the connector's committed offset is past the barrier",
            "lsn": lsn_text(seen.connect_lsn or 0),
        },
        {
            "step": 5,
            "claim": "end offsets of every data partition, taken after step 4",
            "ends": {f"{at.topic}-{at.partition}": n for at, n in ends.items()},
        },
        {
            "step": 6,
            "claim": "checkpoints past the end offsets, then no missing column, then the highest seq",
            "checkpoint": {f"{at.topic}-{at.partition}": checkpoint[at] for at in ends},
            "highest_seq": seen.highest_seq,
        },
        {
            "step": 7,
            "claim": "no work owed up to the highest seq, none refused",
            "owed": 0,
            "refused": 0,
            "accepted": seen.accepted,
        },
        {
            "step": 8,
            "claim": "identity unchanged, index valid and used",
            "indexes": {t: {"relation": indexes[t].table, "rows": indexes[t].rows} for t in seen.tables},
        },
    ]


def _comparison(seen: ProofObservations) -> Comparison:
    """The one that step 1 rests on: the first reading's, which was complete before the barrier."""
    if seen.comparison is None or seen.comparison.last is None:
        raise ValueError("a certificate needs a comparison")
    return seen.comparison.last


def identity_figures(identity: Identity | None) -> dict[str, Any]:
    """As a certificate has it; {} for None."""
    if identity is None:
        return {}
    source = {f.name: getattr(identity.source, f.name) for f in fields(identity.source)}
    topics = {topic: {"id": id, "partitions": n} for topic, (id, n) in identity.feed.topics.items()}
    return {"source": source, "kafka": {"cluster_id": identity.feed.cluster_id, "topics": topics}}
