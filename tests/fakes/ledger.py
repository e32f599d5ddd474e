"""The Ledger port over a transaction's `State`, first half: migration, lease, checkpoint, continuity, generations.

`MemoryLedger` of `tests.fakes.work` adds ranges and work. Time is the virtual clock's: leases and claims expire when a
test advances it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from daemon.core.contract import changed
from daemon.core.model import FeedIdentity, Generation, HaltNote, SourceIdentity, TopicPartition
from daemon.errors import LeaseLost
from daemon.ports import Break, MigrationState, Offsets, Realignment, SourceTableState, StoredCertificate
from tests.fakes.state import Checkpoint, Context, GenerationRecord, JournalEntry, MigrationRecord


class ControlLedger:
    """Everything of the ledger but ranges and work."""

    def __init__(self, context: Context, name: str) -> None:
        self.context, self.state, self.name = context, context.state, name

    @property
    def _now(self) -> float:
        return self.context.clock()

    def _migration(self, **changes: Any) -> MigrationRecord:
        self.state.migration = replace(self.state.migration, **changes)
        return self.state.migration

    async def load(self) -> MigrationState:
        m = self.state.migration
        left = None if m.lease_owner is None or m.lease_until <= self._now else m.lease_until - self._now
        return MigrationState(
            name=self.name,
            epoch=m.epoch,
            started=m.started,
            evidence=m.evidence,
            source=m.source,
            feed=m.feed,
            run_ids=m.run_ids,
            pulse_seen=m.pulse_seen,
            pulse_sent=m.pulse_sent,
            lease_number=m.lease_number,
            lease_owner=m.lease_owner,
            lease_left_s=left,
            halted=m.halted,
            observed=m.observed,
            observed_age_s=None if m.observed_at is None else self._now - m.observed_at,
        )

    async def start(
        self, evidence: Mapping[str, Any], source: SourceIdentity, feed: FeedIdentity, offsets: Offsets, floor: int
    ) -> None:
        if self.state.migration.started:
            return
        self._migration(started=True, evidence=dict(evidence), source=source, feed=feed)
        number = self.state.migration.lease_number
        self.state.checkpoints = {at: Checkpoint(offset, number) for at, offset in offsets.items()}
        self.state.tables = {n: replace(t, floor=floor) for n, t in self.state.tables.items()}

    async def realign(self, lease_number: int, to: Realignment) -> int:
        self.context.holds_migration = True
        m = self.state.migration
        if m.lease_number != lease_number or m.lease_owner is None:
            raise LeaseLost("lease-lost", f"lease {lease_number} is taken over by {m.lease_number}")
        self.state.checkpoints = {at: Checkpoint(offset, lease_number) for at, offset in to.offsets.items()}
        self.state.tables = {
            n: replace(t, floor=to.floor, truncate_count=t.truncate_count + 1) for n, t in self.state.tables.items()
        }
        moved = self._migration(
            epoch=m.epoch + 1,
            evidence=dict(to.evidence),
            source=to.source,
            feed=to.feed,
            pulse_seen=max(m.pulse_seen, to.pulse),
        )
        return moved.epoch

    async def tables(self) -> list[SourceTableState]:
        return [
            SourceTableState(t.table, t.floor, t.truncated, t.truncate_count, self._is_backfilled(n))
            for n, t in sorted(self.state.tables.items())
        ]

    def _is_backfilled(self, table_id: int) -> bool:
        ranges = [r for r in self.state.ranges.values() if r.table_id == table_id]
        return bool(ranges) and all(r.done for r in ranges)

    async def hold_migration(self) -> list[Generation]:
        self.context.holds_migration = True
        return [g for g in await self.generations() if g.fed]

    async def halt(self, id: str, note: HaltNote, role: str) -> None:
        held = self.state.migration.halted
        self._migration(halted={role: {"id": id, **note._asdict()}, **held})

    async def clear_halt(self, roles: Sequence[str]) -> None:
        held = self.state.migration.halted
        self._migration(halted={role: halt for role, halt in held.items() if role not in roles})

    # --- the stream's lease and checkpoint

    async def acquire_lease(self, owner: str, lease_s: float) -> int | None:
        m = self.state.migration
        if m.lease_owner not in (None, owner) and m.lease_until > self._now:
            return None
        number = m.lease_number + 1
        self._migration(lease_number=number, lease_owner=owner, lease_until=self._now + lease_s)
        self.state.checkpoints = {at: replace(c, lease_number=number) for at, c in self.state.checkpoints.items()}
        return number

    async def renew_lease(self, number: int, lease_s: float) -> None:
        m = self.state.migration
        if m.lease_number != number or m.lease_owner is None:
            raise LeaseLost("lease-lost", f"lease {number} is taken over by {m.lease_number}")
        self._migration(lease_until=self._now + lease_s)

    async def release_lease(self, number: int) -> None:
        if self.state.migration.lease_number == number:
            self._migration(lease_owner=None, lease_until=0.0)

    async def checkpoint(self) -> dict[TopicPartition, int]:
        return {at: c.next_offset for at, c in self.state.checkpoints.items()}

    async def advance(self, lease_number: int, moves: Mapping[TopicPartition, tuple[int, int]]) -> None:
        for at, (expected, following) in moves.items():
            held = self.state.checkpoints.get(at)
            if held is None or held.lease_number != lease_number or held.next_offset != expected:
                raise LeaseLost("lease-lost", f"checkpoint of {at.topic}/{at.partition} is not at {expected}")
            self.state.checkpoints[at] = replace(held, next_offset=following)

    # --- continuity

    async def observe_stream(self, run_ids: Sequence[str], pulse: int | None) -> None:
        m = self.state.migration
        fresh = tuple(r for r in dict.fromkeys(run_ids) if r not in m.run_ids)
        self._migration(run_ids=m.run_ids + fresh, pulse_seen=max(m.pulse_seen, pulse or 0))

    async def pulse_sent(self, number: int) -> None:
        self._migration(pulse_sent=max(self.state.migration.pulse_sent, number))

    async def observe(self, observation: Mapping[str, Any]) -> None:
        self._migration(observed=dict(observation), observed_at=self.context.began_s)

    async def journal(self, kind: str, id: str, detail: Mapping[str, Any]) -> None:
        self.state.journal = (*self.state.journal, JournalEntry(kind, id, dict(detail), self._now))

    async def breaks(self, after: int = 0) -> list[Break]:
        journal = enumerate(self.state.journal, 1)
        return [
            Break(e.id, e.detail, str(e.at_s)) for n, e in journal if n > after and e.kind == "break" and not e.closed
        ]

    # --- generations and certificates

    async def generations(self) -> list[Generation]:
        return [g.generation for _, g in sorted(self.state.generations.items())]

    async def add_generation(self, name: str, contract: Mapping[str, Any], contract_id: str) -> Generation:
        for record in self.state.generations.values():
            if record.generation.name == name:
                if record.generation.contract_id != contract_id:
                    raise changed(name, record.contract, contract)
                return record.generation
        generation = Generation(
            id=next(self.context.sequences.generation),
            name=name,
            contract_id=contract_id,
            dimensions=int(contract["dimensions"]),
            vector_type=str(contract.get("vector_type", "vector")),
            metric=str(contract.get("metric", "cosine")),
            swept=not self.state.migration.started,
        )
        self.state.generations[generation.id] = GenerationRecord(generation, dict(contract))
        return generation

    async def set_phase(self, generation: Generation, phase: str, index_state: Mapping[str, Any] | None) -> None:
        record = self.state.generations[generation.id]
        state = record.index_state if index_state is None else dict(index_state)
        self.state.generations[generation.id] = replace(
            record, generation=replace(record.generation, phase=phase), index_state=state
        )

    async def index_state(self, generation: Generation) -> Mapping[str, Any]:
        return self.state.generations[generation.id].index_state

    async def certificate_age(self, generation: Generation) -> float | None:
        epoch = self.state.migration.epoch
        issued = [
            at_s
            for of, document, _, at_s in self.state.certificates
            if of == generation.id and document.get("epoch", 0) == epoch
        ]
        return self._now - max(issued) if issued else None

    async def store_certificate(self, generation: Generation, document: Mapping[str, Any], digest: str) -> None:
        self.state.certificates = (*self.state.certificates, (generation.id, dict(document), digest, self._now))

    async def certificates(
        self, generation: Generation | None, limit: int, digest: str | None = None
    ) -> list[StoredCertificate]:
        found = [
            StoredCertificate(id, of, document, held, self._now - at_s)
            for id, (of, document, held, at_s) in enumerate(self.state.certificates, 1)
            if (generation is None or of == generation.id) and held.startswith(digest or "")
        ]
        return found[::-1][:limit]
