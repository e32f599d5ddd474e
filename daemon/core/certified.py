"""A certificate afterwards: its bytes and digest, and which of its observations still hold.

The digest is over the document's RFC 8785 form, so that whoever has the document can compute it, from a file in any
layout too. `still_holds` goes through the steps as they were certified and compares each with a reading of today; what
could not be read is unknown and never counts as holding. It is called only for a document that is known to be ours.

A later break, halt or difference does not make a certificate false, since it speaks of one position; it says that the
position can no longer be relied on for today. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import rfc8785

from daemon.core.catchup import identity_figures
from daemon.core.compared import ComparisonReading, objection
from daemon.core.continuity import Identity, lsn_of
from daemon.core.model import Break, Generation, IndexState, TopicPartition


class NotACertificate(ValueError):
    """What was read is no certificate's document; the message says why."""


def canonical_bytes(document: Mapping[str, Any]) -> bytes:
    """RFC 8785: what the digest is computed over. Raises NotACertificate."""
    try:
        return rfc8785.dumps(dict(document))
    except rfc8785.CanonicalizationError as error:
        raise NotACertificate("has a value that RFC 8785 has no form for") from error


def digest_of(document: Mapping[str, Any]) -> str:
    """SHA-256 over `canonical_bytes`, hexadecimal. Raises NotACertificate."""
    return hashlib.sha256(canonical_bytes(document)).hexdigest()


def parse(text: str) -> tuple[dict[str, Any], str | None]:
    """The document in a file, bare or as `prove --json` and `certificate show --json` print it, and the digest that is
    given beside it. Raises NotACertificate; a name that is there twice too: readers would not agree on it."""
    try:
        read = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise NotACertificate(str(error) if isinstance(error, NotACertificate) else "is not JSON") from error
    if isinstance(read, dict) and isinstance(read.get("certificate"), dict):
        digest = read.get("digest")
        read = read["certificate"]
    else:
        digest = None
    if not isinstance(read, dict) or not str(read.get("schema", "")).startswith("revector.certificate/"):
        raise NotACertificate("has no certificate in it")
    return read, digest if isinstance(digest, str) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise NotACertificate("has a name twice in one object")
    return dict(pairs)


@dataclass(frozen=True, slots=True)
class Today:
    """What is read now. None: not observed. generation: None where `is_listed` is False, too. copied: every table's
    backfill is complete. owed: up to the certificate's highest seq. indexes: by table."""

    is_listed: bool | None = None
    generation: Generation | None = None
    comparison: ComparisonReading | None = None
    breaks: tuple[Break, ...] | None = None
    halts: tuple[str, ...] | None = None
    copied: bool | None = None
    checkpoint: Mapping[TopicPartition, int] | None = None
    owed: int | None = None
    wal_lsn: int | None = None
    connect_lsn: int | None = None
    ends: Mapping[TopicPartition, int] | None = None
    identity: Identity | None = None
    epoch: int | None = None
    indexes: Mapping[str, IndexState | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that a step rests on. holds None: not known."""

    step: int
    what: str
    holds: bool | None
    says: str


def still_holds(document: Mapping[str, Any], today: Today) -> list[Observation]:
    """Every observation of the certificate as it is today, in the order of the steps."""
    steps = {step["step"]: step for step in document["steps"]}
    return [
        *_continuity(document, today),
        *_generation(document, today),
        *_positions(document, steps, today),
        *_owed(steps, today),
        *_identity(document, today),
        *_indexes(steps, today),
    ]


def _known(step: int, what: str, reading: Any, holds: bool, says: str) -> Observation:
    """Unknown where there is no reading."""
    return Observation(step, what, None, "not observed") if reading is None else Observation(step, what, holds, says)


def _continuity(document: Mapping[str, Any], today: Today) -> Iterator[Observation]:
    stated = document.get("comparison")
    if stated is None:
        yield Observation(1, "comparison", False, "it was issued without one")
    elif today.comparison is None:
        yield Observation(1, "comparison", None, "not observed")
    else:
        last = today.comparison.last
        against = objection(today.comparison, None if today.generation is None else today.generation.id)
        if last is not None and last.id < stated["id"]:
            yield Observation(1, "comparison", False, f"comparison {stated['id']} is not recorded any more")
        elif against is not None:
            yield Observation(1, "comparison", False, f"{against.id}: {against.message}")
        else:
            newer = last is not None and last.id != stated["id"]
            which = "a newer one is clean" if newer else "is the newest, clean and of age"
            yield Observation(1, "comparison", True, f"comparison {stated['id']}: {which}")
    ids = ", ".join(sorted({b.id for b in today.breaks or ()}))
    yield _known(1, "continuity", today.breaks, not today.breaks, ids or "no break is open")
    halts = ", ".join(sorted(today.halts or ()))
    yield _known(1, "halts", today.halts, not today.halts, halts or "nothing is halted")


def _generation(document: Mapping[str, Any], today: Today) -> Iterator[Observation]:
    name, generation = document["generation"], today.generation
    if today.is_listed is None or generation is None:
        holds = None if today.is_listed is None else False
        yield Observation(2, "generation", holds, "not observed" if holds is None else f"{name} was dropped")
        return
    is_same = generation.contract_id == document["contract_id"]
    yield Observation(2, "contract", is_same, f"contract {generation.contract_id}")
    yield Observation(2, "sweep", generation.swept, "swept" if generation.swept else "not swept")
    yield _known(2, "backfill", today.copied, bool(today.copied), "complete" if today.copied else "not complete")


def _positions(document: Mapping[str, Any], steps: Mapping[int, Any], today: Today) -> Iterator[Observation]:
    """Each may only have grown: a smaller one is of another log, or of one that was set back."""
    for step, what, reading in ((3, "source's log", today.wal_lsn), (4, "connector's offset", today.connect_lsn)):
        is_past = (reading or 0) >= lsn_of(steps[step]["lsn"])
        yield _known(step, what, reading, is_past, "past it" if is_past else f"behind {steps[step]['lsn']}")
    for step, what, field_name, readings in (
        (5, "end offsets", "ends", today.ends),
        (6, "checkpoint", "checkpoint", today.checkpoint),
    ):
        found = {f"{at.topic}-{at.partition}": n for at, n in (readings or {}).items()}
        behind = [at for at, n in steps[step][field_name].items() if found.get(at, -1) < n]
        yield _known(step, what, readings, not behind, f"behind in {', '.join(behind)}" if behind else "past them")


def _owed(steps: Mapping[int, Any], today: Today) -> Iterator[Observation]:
    if today.is_listed is False:
        return
    highest = steps[6]["highest_seq"]
    yield _known(7, "work", today.owed, not today.owed, f"{today.owed or 'none'} owed up to {highest}")


def _identity(document: Mapping[str, Any], today: Today) -> Iterator[Observation]:
    is_same = identity_figures(today.identity) == document["identity"]
    words = "as it was" if is_same else "another source, slot, publication, Kafka, topic or partition count"
    yield _known(8, "identity", today.identity, is_same, words)
    is_same = today.epoch == document.get("epoch", 0)
    words = "as it was" if is_same else f"the stream was realigned since: epoch {today.epoch}"
    yield _known(8, "epoch", today.epoch, is_same, words)


def _indexes(steps: Mapping[int, Any], today: Today) -> Iterator[Observation]:
    if today.is_listed is False:
        return
    for table in steps[8]["indexes"]:
        index = today.indexes.get(table)
        is_sound = index is not None and index.exists and index.valid
        yield _known(8, f"index of {table}", index, is_sound, "valid" if is_sound else "missing or not valid")
