"""Every reason that can stand between a migration and its cutover, once: id, part, kind, meaning, remedy, command.

The id is at once the word in the status text, the JSON value, the metric label and the anchor in the reference page.
`catchup` and `status` take their words from here, so a reason without an explanation cannot be shown;
`reference_page` renders the page, and a test holds the file under `docs/` equal to it.

A command is the exact next thing to type. It is never one that destroys or switches anything.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """What a reason means for the verdict, worst first."""

    HALT = "halts the stream"
    BREAK = "breaks the proof"
    FAULT = "needs a person"
    WAIT = "passes by itself"
    LATER = "is a step that comes after catching up"


@dataclass(frozen=True, slots=True)
class Reason:
    """One stable id. part: of the status it belongs to. command: with `{migration}` in it, None where none helps."""

    id: str
    part: str
    kind: Kind
    meaning: str
    remedy: str
    command: str | None = None


_ALL = (
    Reason(
        "halted",
        "stream",
        Kind.HALT,
        "The stream stopped because going on could lose data.",
        "follow the hint of the halt, then start the process again",
        "revector status {migration}",
    ),
    Reason(
        "identity-changed",
        "stream",
        Kind.HALT,
        "The source, slot, publication, Kafka cluster, a topic or a partition count is another one than at the start, "
        "or the source was set back to an older state.",
        "point revector at the same log again; if the change is meant, `revector realign` goes on from here, and "
        "`revector verify --repair` mends what was skipped",
        "revector realign {migration}",
    ),
    Reason(
        "break-open",
        "continuity",
        Kind.BREAK,
        "Something happened after which it cannot be shown that no event was skipped. Changes are still applied.",
        "find the cause, or it happens again; then compare: a clean comparison that began after the break closes it, "
        "and with --repair it mends what differs",
        "revector verify {migration}",
    ),
    Reason(
        "connector-restarted",
        "continuity",
        Kind.BREAK,
        "The connector's task began again. A restart can lose rows of a multi-insert (below Debezium 3.7.0) or the "
        "create half of a key change (every version).",
        "find out why the task restarted, then compare with --repair",
    ),
    Reason(
        "pulse-missing",
        "continuity",
        Kind.BREAK,
        "A numbered pulse was written into the source's log and never arrived, so other events may be missing too.",
        "look for a re-created slot, connector or message topic, then compare with --repair",
    ),
    Reason(
        "realigned",
        "continuity",
        Kind.BREAK,
        "An operator had the stream go on at the ends of the topics: what was unread then was never applied.",
        "compare with --repair: a comparison that began after it mends what was skipped, and closes it",
        "revector verify {migration} --repair",
    ),
    Reason(
        "slot-ahead",
        "continuity",
        Kind.BREAK,
        "The slot confirmed more of the log than the connector has committed, for longer than two flush intervals: "
        "what lies between would not be sent again.",
        "check that nobody else reads from or advances the slot, then compare with --repair",
    ),
    Reason(
        "slot-lost",
        "source",
        Kind.BREAK,
        "The replication slot is gone, or the log it needs is.",
        "stop the connector, drop what is left of the slot, delete the connector's offsets, start it: Debezium makes "
        "the slot; then `revector verify --repair` mends what was not sent and closes the break",
    ),
    Reason(
        "snapshot-event",
        "continuity",
        Kind.BREAK,
        "The connector sent a snapshot read in mid-run: somebody re-created it or asked for an incremental snapshot.",
        "keep `snapshot.mode=no_data`, then compare with --repair",
    ),
    Reason(
        "null-sequence",
        "continuity",
        Kind.BREAK,
        "An event does not say which commit preceded it although commits were seen before: the connector forgot its "
        "offset.",
        "find out who reset the connector's offsets, then compare with --repair",
    ),
    Reason(
        "connector-drift",
        "continuity",
        Kind.BREAK,
        "The connector's configuration no longer is one under which every event arrives unchanged.",
        "set the named settings back, then compare with --repair",
        "revector doctor {migration}",
    ),
    Reason(
        "publication-drift",
        "continuity",
        Kind.BREAK,
        "The publication no longer sends every change of every table: what it leaves out never arrives.",
        "set the publication back, then compare with --repair",
        "revector doctor {migration}",
    ),
    Reason(
        "table-rewritten",
        "continuity",
        Kind.BREAK,
        "A used column was dropped and added again, or given values by an ALTER that rewrote the table (or the table "
        "was made anew): of values that changed by that no event tells.",
        "compare with --repair",
    ),
    Reason(
        "not-begun",
        "migration",
        Kind.FAULT,
        "The target has no record of a start of this migration, so there is nothing to judge yet.",
        "start it; if a process is starting it, its log says what it waits for",
        "revector run {migration}",
    ),
    Reason(
        "not-observed",
        "observation",
        Kind.FAULT,
        "Something that the verdict depends on could not be measured. Unknown is never taken for good.",
        "see whether the part that is named is up and readable",
        "revector doctor {migration}",
    ),
    Reason(
        "backfill-unfinished",
        "backfill",
        Kind.WAIT,
        "Not every row that was in the source at the start has been copied into the replica.",
        "wait",
        "revector wait {migration} --for backfill",
    ),
    Reason(
        "sweep-unfinished",
        "embed",
        Kind.WAIT,
        "Not every row of the replica has been handed to this generation yet.",
        "wait",
    ),
    Reason(
        "generation-unlisted",
        "embed",
        Kind.FAULT,
        "The configuration, or the command, names a generation that the migration does not have.",
        "add it with `revector generation add`, or correct the name",
        "revector generation list {migration}",
    ),
    Reason(
        "connector-behind",
        "kafka",
        Kind.WAIT,
        "The connector has not committed past the barrier, or past any pulse of late: changes may not be in Kafka yet.",
        "wait; if the number does not fall, see whether a stream is running, then look at the connector's task",
    ),
    Reason(
        "partition-behind",
        "kafka",
        Kind.WAIT,
        "A partition holds events that are not applied yet.",
        "wait; if the number does not fall, see whether a stream is running",
    ),
    Reason(
        "columns-missing",
        "replica",
        Kind.WAIT,
        "Rows lack a column that no event and no page has carried yet (unchanged TOAST).",
        "wait; the columns are read at the source as soon as the snapshot there is new enough",
    ),
    Reason(
        "work-owed",
        "embed",
        Kind.WAIT,
        "Rows that changed before the proof's position are not embedded yet.",
        "wait; if the number does not fall, see whether an embedder is running",
    ),
    Reason(
        "work-refused",
        "embed",
        Kind.FAULT,
        "The provider refuses the text of these rows, so they are not searchable in the new generation.",
        "see why; then correct the rows at the source (a changed row is tried again by itself), have them retried, or "
        "accept them",
        "revector quarantine list {migration}",
    ),
    Reason(
        "embedding-halted",
        "embed",
        Kind.FAULT,
        "The provider, or how it is configured, is wrong, so nothing is embedded. Replication goes on.",
        "follow the hint; then start the process again, if embedding does not go on by itself",
        "revector doctor {migration}",
    ),
    Reason(
        "paused",
        "embed",
        Kind.FAULT,
        "An operator paused backfill work, or embedding, or both. The replica follows its source all the same.",
        "resume it once the reason for the pause has passed",
        "revector resume {migration}",
    ),
    Reason(
        "comparison-differs",
        "comparison",
        Kind.FAULT,
        "The last comparison found rows or chunks that are not what the source says, or could not settle some.",
        "see which and why, mend them with --repair; compare again where some are only unsettled",
        "revector verify {migration}",
    ),
    Reason(
        "slot-endangered",
        "source",
        Kind.FAULT,
        "Little is left of what the source keeps for the slot (max_slot_wal_keep_size). Beyond it the log is removed "
        "at the source's next checkpoint, and the slot is lost.",
        "start the connector, or see why it falls behind; raise max_slot_wal_keep_size at the source meanwhile",
    ),
    Reason(
        "slot-inactive",
        "source",
        Kind.FAULT,
        "Nobody reads from the replication slot; the source keeps its log for it.",
        "start the connector",
        "revector doctor {migration}",
    ),
    Reason(
        "connector-down",
        "kafka",
        Kind.FAULT,
        "The connector or its task is not running, so nothing new reaches Kafka.",
        "see the task's error in Kafka Connect, then restart the task",
        "revector doctor {migration}",
    ),
    Reason(
        "index-missing",
        "target",
        Kind.LATER,
        "A chunk table has no HNSW index: searches would scan it.",
        "let the index be built once the backlog is small",
    ),
    Reason(
        "index-invalid",
        "target",
        Kind.LATER,
        "An HNSW index exists but its build did not finish, so Postgres ignores it.",
        "let the index be built again",
    ),
    Reason(
        "index-unused",
        "target",
        Kind.LATER,
        "The plan of the readers' query does not use the HNSW index.",
        "analyse the chunk table; see whether the query's operator is the one of the contract's metric",
    ),
    Reason(
        "not-compared",
        "comparison",
        Kind.LATER,
        "No comparison with the source has ended that covers this generation and counts, so what was lost or changed "
        "unseen would not be known.",
        "compare, once the backfill is complete",
        "revector verify {migration}",
    ),
    Reason(
        "comparison-stale",
        "comparison",
        Kind.LATER,
        "The last comparison began longer ago than `verify.max_age_s`.",
        "compare again",
        "revector verify {migration}",
    ),
    Reason(
        "not-proven",
        "proof",
        Kind.LATER,
        "Nothing known stands against it, but there is no certificate of the last quarter of an hour.",
        "make one",
        "revector prove {migration}",
    ),
)

REASONS: dict[str, Reason] = {r.id: r for r in _ALL}


def command_for(id: str, migration: str) -> str | None:
    """The next command for a reason, with the migration's name filled in."""
    template = REASONS[id].command
    return None if template is None else template.format(migration=migration)


def reference_page() -> str:
    """The Markdown of the reference page: one section per reason, anchored by its id, worst kind first."""
    lines = [
        "# Reasons",
        "",
        "Each reason that `revector status` and `revector prove` can give. The id is the same word in the text, in",
        "`--json`, in the metric `revector_blocker{reason=…}` and in the anchor of its section here.",
    ]
    for kind in Kind:
        lines += ["", f"## What {kind.value}"]
        for r in (r for r in _ALL if r.kind is kind):
            lines += ["", f"### {r.id}", "", r.meaning, "", f"Remedy: {r.remedy}."]
            if r.command:
                lines += ["", f"    {r.command.format(migration='NAME')}"]
    return "\n".join(lines) + "\n"
