"""Control state in the target: what is done, who owns what, and what is owed.

One part of the unit of work (`daemon.ports.target`): nothing is durable before its transaction commits, and a
transaction that was rolled back may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from daemon.core.model import (
    Backlog,
    Break,
    Canary,
    Claim,
    ClaimOrder,
    Entry,
    FeedIdentity,
    Generation,
    HaltNote,
    Key,
    Quarantined,
    Rates,
    SourceIdentity,
    SourceTableState,
    Table,
    Tally,
    TopicPartition,
    WorkState,
)
from daemon.ports.feed import Offsets


@dataclass(frozen=True, slots=True)
class BackfillRange:
    """A key range (after, upto] of one table under a lease. cursor: last key copied."""

    id: int
    table_id: int
    after: Key | None
    upto: Key | None
    cursor: Key | None
    rows_read: int = 0
    rows_written: int = 0


@dataclass(frozen=True, slots=True)
class MigrationState:
    """The `migration` row. started: start evidence recorded and floors set, so pages and stream may run.
    evidence: JSON of identity, start offsets, L0, X."""

    name: str
    epoch: int
    started: bool
    evidence: Mapping[str, Any]
    source: SourceIdentity | None
    feed: FeedIdentity | None
    run_ids: tuple[str, ...]
    pulse_seen: int
    pulse_sent: int
    lease_number: int
    lease_owner: str | None
    lease_left_s: float | None  # None: free
    halted: Mapping[str, Mapping[str, Any]]  # role -> id, message, hint, command, at
    observed: Mapping[str, Any] | None  # the stream's last observation (lag, freshness), with observed_age_s
    observed_age_s: float | None

    def halts_of(self, roles: Sequence[str]) -> dict[str, HaltNote]:
        """By id, what these roles recorded."""
        return {
            str(h["id"]): HaltNote(str(h.get("message", "")), str(h.get("hint", "")), h.get("command"))
            for role, h in self.halted.items()
            if role in roles
        }


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """A certificate as it is kept. generation_id: of one that may be gone. digest: as it was stored, not computed."""

    id: int
    generation_id: int
    document: Mapping[str, Any]
    digest: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Realignment:
    """Where a migration goes on. evidence: as of a start. floor: LSN of a barrier that was written after `offsets` were
    read. pulse: the newest number that was sent before: those up to it are not waited for."""

    evidence: Mapping[str, Any]
    source: SourceIdentity
    feed: FeedIdentity
    offsets: Offsets
    floor: int
    pulse: int


class Ledger(Protocol):
    """Control state in the target: leases, checkpoints, ranges, work, generations, journal, certificates."""

    # migration
    async def load(self) -> MigrationState: ...
    async def start(
        self, evidence: Mapping[str, Any], source: SourceIdentity, feed: FeedIdentity, offsets: Offsets, floor: int
    ) -> None:
        """Record start evidence, checkpoints at `offsets` and every table's floor, once; all or nothing. A second
        call changes nothing."""
        ...

    async def realign(self, lease_number: int, to: Realignment) -> int:
        """Replace evidence, identity, checkpoints (partitions that are gone with them) and every table's floor, begin
        the next epoch and bump every table's truncate count: what was read at the source before is not written any
        more. The new epoch. First the migration row FOR UPDATE: no window, page or repair is open meanwhile.
        Raises LeaseLost: the lease is not this one any more."""
        ...

    async def tables(self) -> list[SourceTableState]: ...
    async def hold_migration(self) -> list[Generation]:
        """FOR SHARE on the migration row, then the fed generations: the first statement of every transaction that
        writes replica rows."""
        ...

    async def halt(self, id: str, note: HaltNote, role: str) -> None:
        """role: stream | backfill | `Generation.role`. The first one of a role stays until it is cleared."""
        ...

    async def clear_halt(self, roles: Sequence[str]) -> None:
        """Forget what these roles recorded: a process that starts says nothing of its peers."""
        ...

    # the stream's lease and checkpoint
    async def acquire_lease(self, owner: str, lease_s: float) -> int | None:
        """Take the stream if it is free, expired or already ours: bump the lease number, write it into every
        checkpoint row (waits for an open window). None: a peer holds it."""
        ...

    async def renew_lease(self, number: int, lease_s: float) -> None:
        """Raises LeaseLost."""
        ...

    async def release_lease(self, number: int) -> None: ...
    async def checkpoint(self) -> dict[TopicPartition, int]: ...
    async def advance(self, lease_number: int, moves: Mapping[TopicPartition, tuple[int, int]]) -> None:
        """(expected, next) per partition, guarded by lease number and expected offset. Raises LeaseLost: nothing of
        this transaction may be kept."""
        ...

    # continuity
    async def observe_stream(self, run_ids: Sequence[str], pulse: int | None) -> None:
        """Durable with the window that carried them: run ids seen so far, last pulse number seen."""
        ...

    async def pulse_sent(self, number: int) -> None: ...
    async def observe(self, observation: Mapping[str, Any]) -> None:
        """Its age counts from the beginning of this transaction: compute it inside, or it is older than it says."""
        ...

    async def journal(self, kind: str, id: str, detail: Mapping[str, Any]) -> None:
        """kind: break | halt | start | index | sweep | comparison | certificate | operator."""
        ...

    async def breaks(self, after: int = 0) -> list[Break]:
        """Breaks not closed by a comparison, oldest first. after: of the journal; only newer entries."""
        ...

    # backfill
    async def plan_ranges(self, table: Table, bounds: Sequence[Key]) -> None:
        """len(bounds) + 1 ranges; a second call changes nothing."""
        ...

    async def claim_range(self, owner: str, lease_s: float) -> BackfillRange | None:
        """FOR UPDATE SKIP LOCKED; an expired lease may be taken over, and the own one again: after an error the worker
        asks anew, for what is durable."""
        ...

    async def hold_range(self, range_id: int, owner: str) -> None:
        """Lock the range for this transaction. Raises LeaseLost when it is no longer this owner's."""
        ...

    async def advance_range(
        self, range_id: int, owner: str, cursor: Key | None, done: bool, rows: tuple[int, int], lease_s: float
    ) -> None:
        """rows: (read, written) of this page. done marks the range complete and frees it."""
        ...

    async def backfill_progress(self) -> Mapping[str, Any]:
        """Per table alias: rows_read, rows_written, ranges, ranges_done, complete, started_at, completed_at."""
        ...

    # work
    async def put_work(
        self,
        table: Table,
        generations: Sequence[Generation],
        row_ids: Sequence[int],
        live: bool,
        changed_at_ms: Mapping[int, int] | None = None,
        *,
        afresh: bool = False,
    ) -> None:
        """One entry per generation and row, a fresh seq each, taken in a statement that starts after this transaction
        holds the replica row's lock. Existing entry: newest_seq only, waiting again, claim kept, live wins. afresh:
        claims from this seq on embed every chunk, whatever is stored; an entry that was put afresh stays so."""
        ...

    async def drop_work(self, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> None: ...
    async def claim(
        self,
        table: Table,
        generation: Generation,
        worker: str,
        limit: int,
        lease_s: float,
        order: ClaimOrder = ClaimOrder.LIVE_FIRST,
    ) -> list[Claim]:
        """Waiting entries in the wanted order, then oldest first; unclaimed, expired or this worker's own (it has one
        batch at a time: that one failed); never of a row that lacks a text or filter column."""
        ...

    async def renew(
        self, table: Table, generation: Generation, worker: str, row_ids: Sequence[int], lease_s: float
    ) -> None:
        """Claims that are still this worker's last `lease_s` from now on; the others are left alone, as are those that
        somebody else's transaction holds: it never waits for one."""
        ...

    async def entries(self, table: Table, generation: Generation, row_ids: Sequence[int]) -> dict[int, Entry]:
        """Locked, in row order."""
        ...

    async def settle(
        self,
        table: Table,
        generation: Generation,
        worker: str,
        done: Sequence[int],
        moved: Mapping[int, int],
        freed: Sequence[int],
    ) -> None:
        """done: delete the entry. moved: row -> new oldest_seq, claim cleared if ours; no longer afresh unless it was
        put so at that seq or later: what was written is of a claim below it. freed: claim cleared if ours."""
        ...

    async def refuse(
        self, table: Table, generation: Generation, worker: str, claims: Sequence[Claim], reason: str
    ) -> None:
        """State refused where newest_seq is the claimed one, else only free the claim."""
        ...

    async def count_embedded(self, generation: Generation, tally: Tally) -> None: ...
    async def count_spared(self, generations: Sequence[Generation], texts: int) -> None:
        """Texts of live rows that were changed, or claimed, and needed no call because their vector was there. Adds
        an estimate to tokens_avoided: the generation's mean tokens per embedded row; nothing before the first one."""
        ...

    # quarantine: refused entries, and those that an operator accepted
    async def quarantine(
        self,
        table: Table,
        generation: Generation,
        limit: int,
        keys: Sequence[Key] | None = None,
        state: WorkState | None = None,
    ) -> list[Quarantined]:
        """Refused and accepted entries, refused first, then oldest, without locking. keys, state: only these."""
        ...

    async def accept(self, table: Table, generation: Generation, row_ids: Sequence[int]) -> int:
        """Refused entries become accepted, under their replica rows' locks (`Replica.lock_rows`; whether it calls a row
        usable does not matter here); how many. Entries in another state stay as they are. A later change of a row
        makes its entry waiting again (so does `put_work`, which is how one is retried)."""
        ...

    # the budget of one generation's provider, shared by all processes
    async def reserve(self, generation: Generation, tokens: int, rates: Rates) -> float:
        """Take one request of `tokens` out of the budget: seconds to wait before it may be sent. Reservations are
        served in the order in which they commit; each delays the next by its own cost. Rates without a number take
        nothing. By the target's clock."""
        ...

    async def refund(self, generation: Generation, tokens: int, rates: Rates) -> None:
        """Give back (or, negative, take) tokens that a sent request did not (or did also) cost."""
        ...

    async def paced_by(self, generation: Generation) -> Rates | None:
        """The rates of the last reservation. None: there was none."""
        ...

    async def hold_off(self, generation: Generation, seconds: float) -> None:
        """No reservation is served within `seconds`: the provider said so to one of the processes."""
        ...

    # orders of operators to running processes
    async def orders(self) -> Mapping[str, Any]:
        """`control.settings`, {} without any: see `daemon.core.orders`."""
        ...

    async def order(self, settings: Mapping[str, Any]) -> None:
        """Replace them."""
        ...

    async def backlog(self, generation: Generation) -> Backlog: ...
    async def highest_seq(self) -> int:
        """W: highest `newest_seq` handed out so far (the sequence's last value)."""
        ...

    async def owed(self, generation: Generation, seq: int) -> int:
        """Entries with oldest_seq <= seq, not accepted; claimed ones count."""
        ...

    async def lowest_owed(self, generation: Generation) -> int | None:
        """The smallest oldest_seq of an entry that is not accepted; None where nothing is owed."""
        ...

    # generations, certificates
    async def generations(self) -> list[Generation]: ...
    async def add_generation(self, name: str, contract: Mapping[str, Any], contract_id: str) -> Generation:
        """FOR UPDATE on the migration row, insert, commit belongs to the caller. Same name with another contract:
        ConfigError `contract-changed`. A generation added before the start is swept from the beginning."""
        ...

    async def generation_contract(self, generation: Generation) -> Mapping[str, Any]:
        """The stored contract, as `Contract.as_json` gave it."""
        ...

    async def sweep(self, table: Table, generation: Generation, limit: int) -> int:
        """Hand the next `limit` replica rows, in row order, to a generation that was added after the start: lock them,
        put backfill work for the wanted ones that have none, move the sweep's cursor. Rows taken; 0: the table is
        swept, as is every table of a generation that is swept or gone. May be repeated, and by two at once."""
        ...

    async def set_swept(self, generation: Generation) -> None: ...
    async def drop_generation(self, generation: Generation) -> None:
        """FOR UPDATE on the migration row, then its views, chunks, work and record: nothing of it is left but its
        certificates and the journal. Raises StepRefused `generation-routed`, `generation-last`; TransientError after a
        few seconds where somebody holds its relations: the stream waits meanwhile."""
        ...

    async def routed(self) -> int | None:
        """Id of the generation that readers follow; None before a cutover."""
        ...

    async def canary(self, generation: Generation) -> Canary | None: ...
    async def set_canary(self, generation: Generation, canary: Canary) -> None:
        """The first one stays."""
        ...

    async def forecast(self, generation: Generation) -> Mapping[str, Any] | None: ...
    async def set_forecast(self, generation: Generation, forecast: Mapping[str, Any]) -> None: ...
    async def set_phase(self, generation: Generation, phase: str, index_state: Mapping[str, Any] | None) -> None: ...
    async def index_state(self, generation: Generation) -> Mapping[str, Any]: ...
    async def certificate_age(self, generation: Generation) -> float | None:
        """Seconds since the generation's newest certificate of this epoch; None where it has none."""
        ...

    async def store_certificate(self, generation: Generation, document: Mapping[str, Any], digest: str) -> None: ...

    async def certificates(
        self, generation: Generation | None, limit: int, digest: str | None = None
    ) -> list[StoredCertificate]:
        """Of this generation, or (None) of all that the migration has or had; the newest first. digest: only those
        whose digest begins with it."""
        ...
