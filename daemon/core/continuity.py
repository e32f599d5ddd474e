"""Evidence that no event was skipped, and what ends it (DESIGN.md section 7, Continuity).

Each detector compares a reading with what is known and answers with `Break`s (journaled; the stream goes on, the
proof is broken until a comparison) or with changes of identity (the caller halts). A reading that could not be taken
ends no continuity and proves none: that it is unknown is for `status` and `prove` to say.

Pure. What is wrong in a connector's configuration is decided in `core.profile`; here it becomes a break. Breaks name
numbers, settings and names, never row text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields

from daemon.core.model import Break, FeedIdentity, Position, ReadEvent, SourceIdentity
from daemon.core.profile import setting_problems

FLUSH_INTERVAL_S = 5.0  # the profile's offset.flush.interval.ms is at most 1 s; the rest is room for a slow worker
ABSENT = ("absent", 0)


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


def slot_ahead(
    confirmed_lsn: int | None,
    committed_lsn: int | None,
    ahead_for_s: float | None,
    flush_interval_s: float = FLUSH_INTERVAL_S,
) -> list[Break]:
    """A break if the slot has been ahead of Connect's committed offset for more than two flush intervals.

    confirmed_lsn is read *first*: in the other order an innocent commit between the readings would count.
    ahead_for_s: how long each reading has shown it ahead, None if it is not. For a moment it always is: Debezium
    confirms what was acknowledged last, Connect commits on its interval.
    """
    if confirmed_lsn is None or committed_lsn is None or ahead_for_s is None:
        return []
    if confirmed_lsn <= committed_lsn or ahead_for_s <= 2 * flush_interval_s:
        return []
    return [Break("slot-ahead", {"confirmed": lsn_text(confirmed_lsn), "committed": lsn_text(committed_lsn)})]


def connector_breaks(config: Mapping[str, str] | None) -> list[Break]:
    """One break naming every setting under which events can be skipped or changed.

    None (no such connector, or not readable): no break, since the slot keeps the log; status says the connector is
    down.
    """
    if config is None:
        return []
    settings = sorted({p.where for p in setting_problems(config, "") if p.severity == "error"})
    return [Break("connector-drift", {"settings": [s.split()[-1] for s in settings]})] if settings else []


def identity_changes(
    old_source: SourceIdentity | None,
    new_source: SourceIdentity,
    old_feed: FeedIdentity | None,
    new_feed: FeedIdentity,
) -> list[str]:
    """Every field of the log's and Kafka's identity that differs from the recorded one, as words; empty: the same.

    Positions and offsets of one identity mean nothing under another, so any change halts. An identity that was never
    recorded cannot be called unchanged. A topic that only one side has counts too.
    """
    changes: list[str] = []

    def compare(what: str, old: object, new: object) -> None:
        if old != new:
            changes.append(f"{what} was {old}, is {new}")

    if old_source is None:
        changes.append("source was never recorded")
    else:
        for f in fields(SourceIdentity):
            compare(f"source {f.name.replace('_', ' ')}", getattr(old_source, f.name), getattr(new_source, f.name))
    if old_feed is None:
        changes.append("kafka was never recorded")
    else:
        compare("kafka cluster id", old_feed.cluster_id, new_feed.cluster_id)
        for topic in sorted({*old_feed.topics, *new_feed.topics}):
            old_id, old_count = old_feed.topics.get(topic, ABSENT)
            new_id, new_count = new_feed.topics.get(topic, ABSENT)
            compare(f"topic {topic} id", old_id, new_id)
            compare(f"topic {topic} partitions", old_count, new_count)
    return changes
