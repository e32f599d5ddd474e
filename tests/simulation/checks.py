"""What must hold, held against what is true, at every commit and at the end.

At each commit only what it wrote is looked at. The promises: a row is never older than its position says and its
position never goes back within an epoch; a deleted row does not come back; the checkpoint is not ahead of the rows;
no work is lost, no orphan is searchable, every vector and every filter belongs to its row; only the holder of a lease
writes under it; freshness and certificates are true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from daemon.core.continuity import lsn_of
from daemon.core.contract import render
from daemon.core.model import (
    UNAVAILABLE,
    ChangeEvent,
    Key,
    Position,
    Table,
    TopicPartition,
    TruncateEvent,
    Values,
    WorkState,
)
from tests.fakes import vector_of
from tests.fakes.state import ReplicaRow, State
from tests.simulation.layers import GONE
from tests.simulation.target import Session, SharedDatabase
from tests.simulation.truth import Committed
from tests.simulation.upstream import Upstream


class Violation(AssertionError):
    """A promise is broken."""


@lru_cache(maxsize=4096)
def vector_bytes(text: str, model: str) -> bytes:
    return vector_of(text, 8, model).tobytes()


class Checks:
    """chunks_of: the chunks that a document has."""

    def __init__(self, database: SharedDatabase, upstream: Upstream, chunks_of: Callable[[str], list[str]]) -> None:
        self.database, self.upstream, self.chunks_of = database, upstream, chunks_of
        self.truth = upstream.source
        self.counts: Counter[str] = Counter()
        self.told: Callable[[Violation], None] = lambda violation: None
        self.was_before: list[Any] = []
        database.before_commit, database.after_commit = self.before, self.after

    @property
    def table(self) -> Table:
        (record,) = self.database.state.tables.values()
        return record.table

    # --- at each commit

    def before(self, session: Session) -> None:
        """What is there, of what is about to be written."""
        state, own = self.database.state, vars(session.branch)
        rows = {place: state.rows.get(place) for place in own["rows"].own}
        checkpoints = {at: state.checkpoints[at] for at in own["checkpoints"].own if at in state.checkpoints}
        self.was_before = [rows, checkpoints, state.migration, len(state.certificates), dict(own["ranges"].own)]

    def after(self, session: Session) -> None:
        try:
            self._after(session)
        except Violation as violation:
            violation.add_note(f"committed by {session}")
            self.told(violation)

    def _after(self, session: Session) -> None:
        rows, checkpoints, migration, certificates, _ = self.was_before
        own, state = vars(session.branch), self.database.state
        if not state.tables:
            return
        for place, before in rows.items():
            self.row(place[1], before, state.rows.get(place))
        now_owner = own["of_migration"].get("lease_owner")
        if now_owner is not None and migration.lease_owner not in (None, now_owner):
            self.counts["takeovers"] += 1
        if "ledger.advance" in session.said:
            self.stream(session, checkpoints, migration)
        row_ids = {p[2] for name in ("chunks", "work") for p in own[name].own}
        row_ids |= {r.row_id for r in own["rows"].own.values() if r is not GONE}
        row_ids |= {r.row_id for r in rows.values() if r is not None}
        for row_id in row_ids:
            self.derived(state, row_id)
        if own["generations"].own:
            self.everything()
        for id, document, _, _ in state.certificates[certificates:]:
            self.certificate(id, document)
        if own["of_migration"].get("observed") is not None:
            self.observation(state.migration.observed)

    def row(self, key: Key, before: ReplicaRow | None, after: ReplicaRow | None) -> None:
        state, history = self.database.state, self.truth.history[key]
        (record,) = state.tables.values()
        if after is None:
            if (
                before is not None
                and before.position is not None
                and (record.truncated is None or before.position >= record.truncated)
            ):
                raise Violation(f"{key} at {before.position} is removed by truncate {record.truncated}")
            return
        was = None if before is None else before.position
        if was is not None and (after.position is None or after.position < was):
            raise Violation(f"{key} went back from {was} to {after.position}")
        if key in self.upstream.lost:
            return
        since = self.since(key, after.position)
        later = history[since:]
        if after.values is None:
            if not any(version.values is None for version in later):
                raise Violation(f"{key} is deleted at {after.position}, and never was since: {later[:3]}")
            return
        for n, value in enumerate(after.values):
            if value is not UNAVAILABLE and not any(v.values is not None and v.values[n] == value for v in later):
                raise Violation(f"{key} at {after.position} is older than that: {after.values}, since then {later[:3]}")

    def since(self, key: Key, position: Position | None) -> int:
        """Which version of its history a position stands for; of a copied row, the one at the start."""
        if position is not None:
            at = (key, position.commit_lsn, position.lsn)
            if at not in self.truth.made:
                raise Violation(f"{key} has position {position}, which no record has")
            return self.truth.made[at]
        (record,) = self.database.state.tables.values()
        history = self.truth.history[key]
        since = max(n for n, version in enumerate(history) if version.commit < max(record.floor, 1))
        if record.truncated is not None:
            since = max(since, 0)
        return since

    def stream(self, session: Session, checkpoints: dict[TopicPartition, Any], migration: Any) -> None:
        """One window: by the holder of the lease, and with everything below the checkpoint in the rows."""
        state = self.database.state
        self.counts["windows"] += 1
        number = migration.lease_number
        for at, before in checkpoints.items():
            if before.lease_number != number:
                raise Violation(f"{at} is held under lease {before.lease_number}, which is not the newest, {number}")
            if migration.lease_owner != session.process.owner:
                raise Violation(f"{session.process} wrote a window under the lease of {migration.lease_owner}")
            self.applied(at, before.next_offset, state.checkpoints[at].next_offset)

    def applied(self, at: TopicPartition, since: int, upto: int) -> None:
        """The reference: replay what is below the checkpoint."""
        state, broker = self.database.state, self.upstream.broker
        (record,) = state.tables.values()
        if upto < since:
            raise Violation(f"the checkpoint of {at} went back from {since} to {upto}")
        if upto > broker.end(at):
            raise Violation(f"the checkpoint of {at} is {upto}, its end {broker.end(at)}")
        for raw in broker.logs[at][since:upto]:
            event = None if raw is None or raw.value is None else broker.events[int(raw.value)]
            if isinstance(event, TruncateEvent):
                self.counts["truncates applied"] += 1
                if (
                    event.origin.position.commit_lsn >= record.floor
                    and (record.truncated or (0, 0, 0)) < event.origin.position
                ):
                    raise Violation(f"truncate at {event.origin.position} is below the checkpoint and not recorded")
            if not isinstance(event, ChangeEvent):
                continue
            position = event.origin.position
            if position.commit_lsn < record.floor or (record.truncated is not None and position < record.truncated):
                continue
            row = state.rows.get((record.table.id, event.key))
            if row is None or row.position is None or row.position < position:
                raise Violation(f"the checkpoint of {at} is past {position} of {event.key}, which is at {row}")

    # --- chunks and work

    def rendered(self, values: Values) -> list[str]:
        if not self.database.rules.wanted(self.table, values):
            return []
        by_name = {n: v for n, v in zip(self.table.names, values, strict=True) if v is None or isinstance(v, str)}
        return self.chunks_of(render(self.table.template, by_name))

    def derived(self, state: State, row_id: int) -> None:
        """Chunks and work of one row, in each generation."""
        table = self.table
        key = state.keys.get((table.id, row_id))
        row = None if key is None else state.rows[table.id, key]
        is_wanted = row is not None and self.database.rules.wanted(table, row.values)
        for id, record in state.generations.items():
            place = (id, table.id, row_id)
            chunks, entry = state.chunks.get(place, ()), state.work.get(place)
            if not is_wanted:
                if chunks or entry is not None:
                    raise Violation(f"{key} is gone or not wanted, and generation {id} has {chunks} {entry}")
                continue
            assert row is not None and row.values is not None and key is not None
            texts = [chunk.text for chunk in chunks]
            if entry is None and (chunks or record.generation.swept):
                if UNAVAILABLE in row.values[1:3]:
                    raise Violation(f"{key} lacks text and owes nothing to generation {id}")
                if texts != self.rendered(row.values):
                    raise Violation(f"work of {key} in generation {id} is lost: {texts}, row {row.values}")
            self.vectors(table, row, chunks, str(record.contract["model"]))
            if texts and entry is not None and key not in self.upstream.lost:
                self.of_this_row(key, row, texts)

    def vectors(self, table: Table, row: ReplicaRow, chunks: Iterable[Any], model: str) -> None:
        assert row.values is not None
        filters = tuple(
            None if v is UNAVAILABLE else v for n, v in zip(table.names, row.values, strict=True) if n in table.filters
        )
        for chunk in chunks:
            if np.asarray(chunk.vector).tobytes() != vector_bytes(chunk.text, model):
                raise Violation(f"the vector of {row.key} chunk {chunk.n} is not that of its text {chunk.text!r}")
            if chunk.filters != filters:
                raise Violation(f"{row.key} chunk {chunk.n} has filters {chunk.filters}, its row {filters}")

    def of_this_row(self, key: Key, row: ReplicaRow, texts: list[str]) -> None:
        """An older text of the same row may be searchable while its work is owed; that of a deleted predecessor not."""
        history = self.truth.history[key]
        at = self.since(key, row.position)
        born = max((n for n in range(at + 1) if history[n].values is None), default=-1)
        known = [self.rendered(v.values) for v in history[born + 1 :] if v.values is not None]
        if texts not in known and texts != self.rendered(row.values):  # type: ignore[arg-type]
            # A column that was filled is younger than its row; `where` may have held for neither version alone.
            mixed = {text for v in history[born + 1 :] if v.values is not None for text in v.values[1:3]}
            if not set(texts) <= mixed:
                raise Violation(f"{key} has the text of a row that was deleted: {texts}, since then {known[:3]}")

    def everything(self) -> None:
        state = self.database.state
        table = self.table
        known = set(state.generations)
        for derived in (state.chunks, state.work):
            if strangers := {p for p in derived if p[0] not in known or (table.id, p[2]) not in state.keys}:
                raise Violation(f"chunks or work of nothing: {sorted(strangers)}")
        for _, row_id in state.keys:
            self.derived(state, row_id)

    # --- what is said

    def certificate(self, id: int, document: Any) -> None:
        lsn = lsn_of(next(step["lsn"] for step in document["steps"] if step["step"] == 3))
        self.counts["certificates"] += 1
        self.counts["certificates of a second generation"] += id > 1
        self.counts["certificates amid changes"] += not self.upstream.choices.is_calm
        self.caught_up(lsn, id, f"certificate for {lsn}")

    def observation(self, observed: Any) -> None:
        """What is said of lag and freshness, unless rows are known to be lost."""
        if any(e.kind == "break" and not e.closed for e in self.database.state.journal) or self.upstream.lost:
            return
        now = self.database.state.migration.observed_at or 0.0  # from which on its age counts
        lag = observed.get("replica_lag_s")
        is_copied = all(r.done for r in self.database.state.ranges.values())  # until then it speaks of the stream only
        if lag is not None and is_copied:
            self.counts["lags"] += 1
            self.caught_up(self.truth.before(now - lag - 1e-6), None, f"replica lag of {lag:.3f} s")
        for id, lag in observed.get("generation_lag_s", {}).items():
            if int(id) in self.database.state.generations:
                self.counts["freshness"] += 1
                self.caught_up(self.truth.before(now - lag - 1e-6), int(id), f"freshness of {lag:.3f} s")

    def caught_up(self, lsn: int, id: int | None, claim: str) -> None:
        """Every change committed before `lsn`, or a later one of its row, is in the replica and, with a generation,
        embedded."""
        state, table = self.database.state, self.table
        for key, history in self.truth.history.items():
            last = max(n for n, version in enumerate(history) if version.commit < lsn or n == 0)
            self._claimed(state.rows.get((table.id, key)), key, history[last:], (id, claim))

    def _claimed(self, row: ReplicaRow | None, key: Key, allowed: list[Committed], of: tuple[int | None, str]) -> None:
        (id, claim), table, state = of, self.table, self.database.state
        said = (
            f"false {claim}: {key} is {None if row is None else row.values}, allowed {[v.values for v in allowed[:4]]}"
        )
        if row is None or row.values is None:
            if all(version.values is not None for version in allowed):
                raise Violation(said)
            return
        for n, value in enumerate(row.values):
            is_open = value is UNAVAILABLE and len(allowed) > 1
            if not is_open and not any(v.values is not None and v.values[n] == value for v in allowed):
                raise Violation(said)
        if id is None:
            return
        place = (id, table.id, row.row_id)
        entry = state.work.get(place)
        chunks = [chunk.text for chunk in state.chunks.get(place, ())]
        if entry is not None and (entry.state is WorkState.ACCEPTED or len(allowed) > 1):
            return
        if entry is not None and entry.state is WorkState.REFUSED and claim.startswith("freshness") is False:
            raise Violation(f"{said}, and refused")
        if UNAVAILABLE not in row.values and chunks == self.rendered(row.values):
            return  # columns that were read later than the others: what changes them is still to come
        if chunks not in [[] if v.values is None else self.rendered(v.values) for v in allowed]:  # deleted in between
            raise Violation(f"{said}, chunks {chunks}, entry {entry}")

    # --- at the end

    def at_rest(self) -> None:
        """Everything drained: replica equals source, chunks what the replica renders to; only accepted work is left."""
        self.everything()
        state, table = self.database.state, self.table
        rows, source = self.database.rows(table.alias), self.truth.current(table.alias)
        if rows != source:
            differing = {k: (rows.get(k), source.get(k)) for k in {*rows, *source} if rows.get(k) != source.get(k)}
            raise Violation(f"the replica differs from the source: {differing}")
        for id in state.generations:
            for key, values in rows.items():
                row_id = state.rows[table.id, key].row_id
                entry = state.work.get((id, table.id, row_id))
                if entry is not None and entry.state is not WorkState.ACCEPTED:
                    raise Violation(f"{key} is owed to generation {id}: {entry}")
                chunks = [chunk.text for chunk in state.chunks.get((id, table.id, row_id), ())]
                if chunks != ([] if entry is not None else self.rendered(values)):
                    raise Violation(f"{key} in generation {id}: {chunks}, entry {entry}")
