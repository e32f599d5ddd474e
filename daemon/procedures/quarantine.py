"""The quarantine as an operator works on it: find entries, have them tried again, accept that they are not embedded.

Each is one transaction: whatever it changes is durable together with its line in the journal, or nothing is. An entry
is changed only as it is found under its replica row's lock, so a row that the stream deletes or changes meanwhile
keeps what the stream made of it. Keys are shown and journaled; row text is never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from daemon.core.model import Generation, Key, Quarantined, Table, WorkState
from daemon.errors import StepRefused
from daemon.ports import Target, UnitOfWork
from daemon.procedures.begun import not_begun, require_schema

MOST_ENTRIES = 20_000  # of one command: their rows stay locked until it commits, for a few seconds
BATCH = 1000  # entries of one statement
JOURNALED_KEYS = 100


@dataclass(frozen=True, slots=True)
class Which:
    """Entries of a generation. table: an alias, None for every table. key: of one row of `table`. state: None for both
    refused and accepted ones."""

    migration: str
    generation: str
    table: str | None = None
    key: Key | None = None
    state: WorkState | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """is_cut: there are more than `entries`. refused, accepted: of the generation in all. columns: alias -> names of
    the key's columns."""

    entries: tuple[Quarantined, ...]
    is_cut: bool
    refused: int
    accepted: int
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


async def find(target: Target, which: Which, limit: int) -> Found:
    """The first `limit` entries, refused ones first, then the oldest. Raises NotBegun, StepRefused."""
    await require_schema(target, which.migration)
    async with target.begin() as tx:
        tables, generation = await _scope(tx, which)
        return await _find(tx, tables, generation, which, limit)


async def retry(target: Target, which: Which, by: str) -> Found:
    """Make entries wait again, as if their rows had changed; those that were changed, and what is left. Of one row
    also an accepted entry. Raises NotBegun, StepRefused."""
    await require_schema(target, which.migration)
    async with target.begin() as tx:
        await tx.ledger.hold_migration()
        tables, generation = await _scope(tx, which)
        found = await _find(tx, tables, generation, which, MOST_ENTRIES)
        wanted = {WorkState.REFUSED} if which.key is None else {WorkState.REFUSED, WorkState.ACCEPTED}
        changed: list[Quarantined] = []
        for table in tables:
            held = await _held(tx, table, generation, found.entries, wanted)
            for part in _batches(held):
                await tx.ledger.put_work(table, [generation], [q.row_id for q in part], live=False)
            changed += held
        await _journal(tx, "quarantine-retried", which, changed, {"by": by})
        left = await tx.ledger.backlog(generation)
    return replace(found, entries=tuple(changed), refused=left.refused, accepted=left.accepted)


async def accept(target: Target, which: Which, by: str, reason: str) -> Found:
    """Accept refused entries: their rows stay without vectors in the generation, and no longer stand against a proof.
    Those that were changed, and what is left. Raises NotBegun, StepRefused."""
    await require_schema(target, which.migration)
    async with target.begin() as tx:
        await tx.ledger.hold_migration()
        tables, generation = await _scope(tx, which)
        found = await _find(tx, tables, generation, which, MOST_ENTRIES)
        changed: list[Quarantined] = []
        for table in tables:
            held = await _held(tx, table, generation, found.entries, {WorkState.REFUSED})
            for part in _batches(held):
                await tx.ledger.accept(table, generation, [q.row_id for q in part])
            changed += held
        await _journal(tx, "quarantine-accepted", which, changed, {"by": by, "reason": reason})
        left = await tx.ledger.backlog(generation)
    return replace(found, entries=tuple(changed), refused=left.refused, accepted=left.accepted)


async def _scope(tx: UnitOfWork, which: Which) -> tuple[list[Table], Generation]:
    """The tables, in the order in which windows lock them, and the generation that are meant."""
    generation = next((g for g in await tx.ledger.generations() if g.name == which.generation), None)
    if generation is None:
        raise not_begun(which.migration, which.generation)
    found = [s.table for s in await tx.ledger.tables() if which.table in (None, s.table.alias)]
    tables = sorted(found, key=lambda table: table.alias)
    for table in tables:
        if which.key is not None and len(which.key) != len(table.key):
            columns = ", ".join(table.key)
            raise StepRefused(
                "key-incomplete",
                f"the key of {table.alias} is ({columns}), and {len(which.key)} of its values were given",
                "give --key once for each column, in that order",
            )
    return tables, generation


async def _find(tx: UnitOfWork, tables: Sequence[Table], generation: Generation, which: Which, limit: int) -> Found:
    keys = None if which.key is None else [which.key]
    entries: list[Quarantined] = []
    for table in tables:
        entries += await tx.ledger.quarantine(table, generation, limit + 1, keys, which.state)
    if which.key is not None and not entries:
        raise StepRefused(
            "entry-unknown",
            f"no entry in quarantine for {named(which.table or '', which.key)} in generation {generation.name}",
            f"see `revector quarantine list {which.migration}`; an entry ends when its row is changed or deleted",
        )
    entries.sort(key=lambda q: (q.state is WorkState.ACCEPTED, -(q.age_s or 0.0)))
    backlog = await tx.ledger.backlog(generation)
    columns = {table.alias: table.key for table in tables}
    return Found(tuple(entries[:limit]), len(entries) > limit, backlog.refused, backlog.accepted, columns)


async def _held(
    tx: UnitOfWork,
    table: Table,
    generation: Generation,
    entries: Sequence[Quarantined],
    states: set[WorkState],
) -> list[Quarantined]:
    """Those of a table's entries that are still in one of these states once their replica rows are locked. Locked all
    at once, in key order: the stream locks in that order too, and two orders would wait for each other in a circle."""
    mine = [q for q in entries if q.table == table.alias]
    if not mine:
        return []
    await tx.replica.lock_rows(table, [q.row_id for q in mine])
    locked = await tx.ledger.entries(table, generation, [q.row_id for q in mine])
    return [q for q in mine if q.row_id in locked and locked[q.row_id].state in states]


def _batches(entries: Sequence[Quarantined]) -> list[Sequence[Quarantined]]:
    return [entries[at : at + BATCH] for at in range(0, len(entries), BATCH)]


async def _journal(
    tx: UnitOfWork, event: str, which: Which, changed: Sequence[Quarantined], said: Mapping[str, str]
) -> None:
    """Who did what to which rows; nothing where nothing was changed."""
    if not changed:
        return
    keys: dict[str, list[list[str]]] = {}
    for q in changed[:JOURNALED_KEYS]:
        keys.setdefault(q.table, []).append(list(q.key))
    detail: dict[str, Any] = {**said, "generation": which.generation, "rows": len(changed), "keys": keys}
    if len(changed) > JOURNALED_KEYS:
        detail["keys_left_out"] = len(changed) - JOURNALED_KEYS
    await tx.ledger.journal("operator", event, detail)


def named(table: str, key: Key) -> str:
    """`article 17`, `part (a, 2)`."""
    return f"{table} {key[0]}" if len(key) == 1 else f"{table} ({', '.join(key)})"
