"""SIGKILL at every fail point of the real process, and nothing is lost, stale, mixed up or back afterwards.

Which points there are is not written here: a process is killed at whatever it reaches (`sandbox.failpoints`). What is
written here is what they must include, one step of each loop and procedure after the other, so that a role that was
never played, or a port that nobody stands before any more, is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from sandbox.failpoints import HELD_BUILDS, Round
from sandbox.failpoints_life import Zygote
from sandbox.failpoints_outcome import Outcome, check
from sandbox.stack import Sandbox

pytestmark = pytest.mark.system

THREE = ("before", "during", "after")
MIGRATION = {
    "start": [
        *(f"start.source.emit {when}" for when in THREE),
        *(f"start.source.own_xid {when}" for when in THREE),
        "start.target.commit(start) before",
        "start.ledger.start after",
        "start.ledger.plan_ranges after",
    ],
    "stream": [
        *(f"stream.target.commit(acquire_lease) {when}" for when in THREE),
        "stream.feed.seek after",
        "stream.feed.poll after",
        "stream.ledger.advance after",
        "stream.replica.lock after",
        "stream.replica.write after",
        "stream.vectors.drop after",
        "stream.ledger.put_work after",
        *(f"stream.target.commit(hold_migration) {when}" for when in THREE),
        "stream.feed.commit before",
        "pulse.source.emit after",
        "pulse.target.commit(pulse_sent) after",
    ],
    "page": [
        *(f"backfill.target.commit(claim_range) {when}" for when in THREE),
        "backfill.source.page after",
        "backfill.replica.copy_in after",
        "backfill.ledger.put_work after",
        "backfill.ledger.advance_range after",
        *(f"backfill.target.commit(hold_migration) {when}" for when in THREE),
        *(f"backfill.target.commit(hold_range) {when}" for when in THREE),
    ],
    "embed": [
        *(f"embed.target.commit(claim) {when}" for when in THREE),
        "embed.replica.documents after",
        *(f"embed.embedder.embed {when}" for when in THREE),
        "embed.replica.lock_rows after",
        "embed.vectors.replace after",
        "embed.ledger.settle after",
        *(f"embed.target.commit(lock_rows) {when}" for when in THREE),
        "embed.ledger.renew after",
        "embed.target.commit(renew) before",
    ],
    "index": [
        "index.ledger.set_phase after",
        *(f"index.indexes.build {when}" for when in THREE),
        *(f"index.target.commit(set_phase) {when}" for when in THREE),
    ],
}
AUDIT = {
    "compare": [
        *(f"verify.source.emit {when}" for when in THREE),
        "verify.comparisons.begin after",
        "verify.comparisons.plan after",
        "verify-scan.comparisons.advance after",
        "verify.comparisons.find after",
        "verify.comparisons.end after",
    ],
    "repair": ["verify.ledger.put_work after", "verify.audit.drop_chunks after", "verify.comparisons.mended after"],
    "prove": [
        *(f"prove.source.emit {when}" for when in THREE),
        "prove.capture.committed_lsn after",
        "prove.feed.data_ends after",
        "prove.ledger.checkpoint after",
        "prove.replica.missing after",
        "prove.ledger.highest_seq after",
        "prove.ledger.owed after",
        "prove.ledger.store_certificate after",
        *(f"prove.target.commit(store_certificate) {when}" for when in THREE),
    ],
}


Play = Callable[[Callable[[Round], Outcome], Mapping[str, Sequence[str]]], Outcome]


@pytest.fixture
def play(stack: Sandbox, tmp_path: Path) -> Play:
    """Plays a round; after it everything holds and these steps were died at."""

    def called(played: Callable[[Round], Outcome], steps: Mapping[str, Sequence[str]]) -> Outcome:
        with Zygote(tmp_path) as zygote:
            round = Round(stack, zygote, tmp_path, f"failpoints_{played.__name__}")
            try:
                came = played(round)
            finally:
                round.close()
        check(came)
        assert not came.missed
        missing = {part: [point for point in points if not came.kills[point]] for part, points in steps.items()}
        assert not any(missing.values()), missing
        assert came.vectors[1] > 500
        assert came.certificates >= 1
        return came

    return called


@pytest.mark.timeout(600)
def test_a_migration_killed_at_every_fail_point_loses_nothing_and_does_again_what_was_in_flight(play: Play) -> None:
    came = play(Round.migrate, MIGRATION)
    assert came.kills["start.target.commit(start) during"] or came.kills["start.target.commit(start) after"]  # once
    assert set(came.builds) == {phase for _, phase in HELD_BUILDS}
    assert sum(came.redone.rows_in_flight) > 0, "no page was in flight when a process died"
    assert sum(came.redone.texts_in_flight) > 0, "no text was in flight when a process died"
    assert max(came.redone.records) > 0, "no window was in flight when a process died"


@pytest.mark.timeout(600)
def test_comparisons_repairs_and_proofs_killed_at_every_fail_point_say_and_leave_what_is_true(play: Play) -> None:
    play(Round.audit, AUDIT)
