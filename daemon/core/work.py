"""What may be written for a finished piece of work (DESIGN.md section 6, step 2 and 3).

A claim carries the `newest_seq` it was taken at. While the provider worked, the row may have changed (a higher
newest_seq), been deleted (no entry), or been deleted and made again (an entry whose oldest_seq is above the claim).
Only an entry with `oldest_seq` <= the claimed seq accepts this text: so a hot row still makes progress, a deleted row
gets nothing, and a zombie's text never lands under a newer row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from daemon.core.model import Claim, Entry, WorkState


@dataclass(frozen=True, slots=True)
class Settlement:
    """done: entry goes. moved: row -> new oldest_seq, claim cleared. freed: nothing written, claim cleared if ours."""

    done: tuple[int, ...]
    moved: Mapping[int, int]
    freed: tuple[int, ...]


def writable(claims: Sequence[Claim], entries: Mapping[int, Entry], locked: Collection[int]) -> list[Claim]:
    """Claims whose text may replace the row's chunks. locked: rows that are live with every filter column known."""
    return [claim for claim in claims if claim.row_id in locked and _takes(entries.get(claim.row_id), claim)]


def _takes(entry: Entry | None, claim: Claim) -> bool:
    """Beside a refusal only the text that was refused: an older one would be found for as long as the refusal lasts."""
    if entry is None or entry.oldest_seq > claim.seq:
        return False
    return entry.state is WorkState.WAITING or entry.newest_seq == claim.seq


def settle(claims: Sequence[Claim], entries: Mapping[int, Entry], written: Collection[int]) -> Settlement:
    """What becomes of the claimed entries once the rows in `written` have their chunks."""
    done, moved, freed = [], {}, []
    for claim in claims:
        entry = entries.get(claim.row_id)
        if claim.row_id not in written or entry is None:
            freed.append(claim.row_id)
        elif entry.newest_seq == claim.seq:
            done.append(claim.row_id)
        else:
            # Text newer than ours is still owed; what is owed now is only what came after the claim.
            moved[claim.row_id] = claim.seq + 1
    return Settlement(tuple(done), moved, tuple(freed))
