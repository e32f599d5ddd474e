"""Evidence that no event was skipped, and what ends it (DESIGN.md section 7, Continuity).

Each detector compares a reading with what is known and answers with `Break`s (journaled; the stream goes on, the
proof is broken until a comparison) or with changes of identity (`identity_halt`: the stream stops). No detector may
answer "fine" for something it could not read: a None reading leaves what is known as it is.

Pure. What is a fault of the connector's configuration is `core.profile`'s, here it only becomes a break. Breaks name
numbers, settings and names, never row text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from daemon.core.model import Break, FeedIdentity, Position, ReadEvent, SourceIdentity, Table
from daemon.core.setup import SlotState, SourceSetup, publication_problems
from daemon.errors import IdentityChanged, Problem


def pulse_gap(seen: int, numbers: Iterable[int]) -> list[Break]:
    """A break per hole in the pulse numbers, in arrival order after `seen` (0: none yet; the first pulse is 1).

    Numbers at or below what was reached are duplicates, which every restart of a task brings.
    """
    breaks = []
    for number in numbers:
        if number > seen + 1:
            breaks.append(Break("pulse-missing", {"first": seen + 1, "last": number - 1}))
        seen = max(seen, number)
    return breaks


def new_runs(known: AbstractSet[str], seen: Iterable[str]) -> list[Break]:
    """A break per run id of the connector's task that is not known, except for the very first one ever seen."""
    runs = set(known)
    breaks = []
    for run in seen:
        if run in runs:
            continue
        if runs:
            breaks.append(Break("connector-restarted", {"run": run, "runs": len(runs) + 1}))
        runs.add(run)
    return breaks


SESSION = "session "  # what tells a slot session from a run id where both are kept


def new_sessions(known: AbstractSet[str], session: str | None) -> list[Break]:
    """A break if the slot is read by another connection than before: the connector's task began again.

    Run ids alone come too late: only change events carry them, so a restart that lost the rest of a transaction and
    was followed by silence would show nothing. known: what is kept of both; session None: nobody reads, nothing is
    known yet.
    """
    if session is None:
        return []
    return new_runs({k for k in known if k.startswith(SESSION)}, [SESSION + session])


def snapshot_reads(reads: Sequence[ReadEvent]) -> list[Break]:
    """One break for the `op=r` events of a window, however many there are."""
    if not reads:
        return []
    first = reads[0]
    return [Break("snapshot-event", {"table": first.table, "offset": first.origin.offset, "events": len(reads)})]


def null_sequences(first_commit: int | None, positions: Iterable[Position]) -> list[Break]:
    """A break if an event without a preceding commit lies above a commit that the connector did see.

    first_commit: the lowest non-null `commit_lsn` seen before (None: none). The events of the first transaction after
    the slot have none, and lie below that transaction's commit; they may arrive after later ones, since partitions
    are read independently, so LSNs decide and not arrival.
    """
    positions = list(positions)
    commits = [p.commit_lsn for p in positions if p.commit_lsn]
    first = min(commits + ([first_commit] if first_commit else []), default=None)
    late = [p.lsn for p in positions if not p.commit_lsn and first is not None and p.lsn > first]
    return [Break("null-sequence", {"lsn": lsn_text(min(late)), "events": len(late)})] if late else []


def lsn_text(lsn: int) -> str:
    """An LSN as Postgres prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_of(text: str) -> int:
    """The LSN that `lsn_text` wrote."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


# --- slot


@dataclass(frozen=True, slots=True)
class SlotWatch:
    """since_s: when the slot was first seen ahead, None while it is not."""

    since_s: float | None = None


class SlotReading(NamedTuple):
    """The slot's confirmed_flush_lsn, read *first*, then Connect's committed offset; at_s by a monotonic clock."""

    confirmed_lsn: int | None
    committed_lsn: int | None
    at_s: float


def slot_ahead(watch: SlotWatch, reading: SlotReading, flush_interval_s: float) -> tuple[SlotWatch, list[Break]]:
    """A break if the slot has been ahead of Connect's committed offset for more than two flush intervals.

    For a moment it always is: Debezium confirms what was acknowledged, Connect commits on its interval. Read in the
    other order an innocent commit between the readings would count. Each reading of the same time answers with it: a
    break that is journaled and open is not journaled again, one that a comparison has closed is.
    """
    if reading.confirmed_lsn is None or reading.committed_lsn is None:
        return watch, []
    if reading.confirmed_lsn <= reading.committed_lsn:
        return SlotWatch(), []
    since = reading.at_s if watch.since_s is None else watch.since_s
    if reading.at_s - since <= 2 * flush_interval_s:
        return SlotWatch(since), []
    detail = {"confirmed": lsn_text(reading.confirmed_lsn), "committed": lsn_text(reading.committed_lsn)}
    return SlotWatch(since), [Break("slot-ahead", detail)]


def slot_lost(slot: SlotState, name: str) -> list[Break]:
    """A break where the slot is gone, or the log it needs: what it had not sent never comes."""
    if not slot.exists:
        return [Break("slot-lost", {"slot": name, "found": "no slot of this name"})]
    if slot.wal_status != "lost":
        return []
    limit = {} if slot.limit_bytes is None else {"max_slot_wal_keep_size": slot.limit_bytes}
    return [Break("slot-lost", {"slot": name, "found": "invalidated", "cause": slot.cause or "log removed", **limit})]


# --- identity


class Identity(NamedTuple):
    """Which log and which Kafka: what positions and offsets mean depends on both."""

    source: SourceIdentity
    feed: FeedIdentity


class IdentityChange(NamedTuple):
    """field: such as `timeline` or `topic shop.public.articles partitions`. Absent topics read "absent"."""

    part: str  # source | kafka
    field: str
    before: str
    after: str


def identity_changes(before: Identity, after: Identity) -> list[IdentityChange]:
    """Every field that differs. A topic that is new on one side counts too."""
    changes = []
    for f in fields(SourceIdentity):
        old, new = getattr(before.source, f.name), getattr(after.source, f.name)
        if old != new:
            changes.append(IdentityChange("source", f.name, str(old), str(new)))
    if before.feed.cluster_id != after.feed.cluster_id:
        changes.append(IdentityChange("kafka", "cluster_id", before.feed.cluster_id, after.feed.cluster_id))
    absent = ("absent", 0)
    for topic in sorted({*before.feed.topics, *after.feed.topics}):
        old_id, old_count = before.feed.topics.get(topic, absent)
        new_id, new_count = after.feed.topics.get(topic, absent)
        if old_id != new_id:
            changes.append(IdentityChange("kafka", f"topic {topic} id", old_id, new_id))
        if old_count != new_count:
            changes.append(IdentityChange("kafka", f"topic {topic} partitions", str(old_count), str(new_count)))
    return changes


def reached_lsn(observed: Mapping[str, Any] | None, epoch: int) -> int | None:
    """How far the source's log is known to have been in this epoch, out of the recorded observation."""
    at_epoch, lsn = (observed or {}).get("reached", (None, None))
    return lsn if at_epoch == epoch else None


def log_set_back(reached: int | None, found: int | None) -> list[IdentityChange]:
    """A change where the source's durable log ends before what was known of it: an older state was put in its place,
    and changes up to `reached` would be taken for ones that are applied. reached is read before found."""
    if reached is None or found is None or found >= reached:
        return []
    return [IdentityChange("source", "log position", lsn_text(reached), lsn_text(found))]


def identity_halt(before: Identity, after: Identity) -> IdentityChanged | None:
    """The error to halt with, naming every changed field; None where nothing changed."""
    return halt_of(identity_changes(before, after))


def halt_of(changes: Sequence[IdentityChange]) -> IdentityChanged | None:
    """As `identity_halt`, of changes that were found already."""
    if not changes:
        return None
    what = ", ".join(f"{c.part} {c.field} was {c.before}, is {c.after}" for c in changes)
    return IdentityChanged(
        "identity-changed",
        f"not the log this migration started from: {what}",
        "point revector at the same source, slot and Kafka again, and start it; if the change is meant, `revector "
        "realign` goes on from here, and `revector verify --repair` mends what was skipped",
    )


# --- publication and connector


def publication_drift(setup: SourceSetup, publication: str, tables: Sequence[Table]) -> list[Break]:
    """A break if the publication does not send every change of every table: what it leaves out never comes."""
    problems = publication_problems(setup, publication, [(t.schema, t.name) for t in tables])
    faults = sorted({f"{p.id}: {p.message}" for p in problems if p.id != "publication-keyless"})
    return [Break("publication-drift", {"publication": publication, "faults": faults})] if faults else []


def told_by(b: Break) -> tuple[str, str]:
    """Under which an open break is known already: the numbers of one cause go on moving, the faults of a set-up are
    other ones."""
    return b.id, str(sorted(b.detail.items())) if b.id.endswith("-drift") else ""


def connector_drift(problems: Sequence[Problem]) -> list[Break]:
    """One break for the settings that are wrong, with what they are; warnings do not count."""
    wrong = sorted({f"{p.where} {p.message}" for p in problems if p.severity == "error"})
    detail: Mapping[str, object] = {"settings": wrong}
    return [Break("connector-drift", detail)] if wrong else []
