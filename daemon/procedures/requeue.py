"""Embed a chosen set of rows again, and nothing else: their work is put afresh, and no chunk is touched here.

A row's chunks stay searchable until the new ones are stored, in one transaction, by whoever embeds it. Rows are chosen
by key, by a condition, or all of a table; refused entries are retried as `procedures.quarantine` does. Keys are one
transaction. The others go through the replica in pages: each is one short transaction that chooses without a lock,
locks what it found, and chooses again under the lock, so a row that the stream changes meanwhile is judged as it is.

A repetition asks for vectors of its own: rows that were embedded meanwhile are embedded once more, those that still
wait are not embedded twice.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.core.model import Generation, Key, Table, WorkState
from daemon.errors import StepRefused
from daemon.ports import ChosenRow, Condition, Target, UnitOfWork
from daemon.procedures import quarantine
from daemon.procedures.begun import not_begun, require_schema

PAGE_ROWS = 2000  # looked at in one transaction: at most so many are locked, for a fraction of a second
MOST_KEYS = 1000  # of one command
KEPT_KEYS = 100  # in the journal, and in the answer


class How(enum.Enum):
    """How rows are chosen."""

    KEY = "key"
    WHERE = "where"
    REFUSED = "refused"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be embedded again. table: an alias, None for refused entries of every table. values: of the keys, one
    after the other. where: an SQL condition."""

    migration: str
    generation: str
    how: How
    table: str | None = None
    values: tuple[str, ...] = ()
    where: str = ""


@dataclass
class Requeued:
    """rows: chosen, or put where `is_done`. tokens: about so many will be paid; None where nothing is known of the
    generation's rows. keys: table and key of the first ones. is_cut: more are refused than one command takes."""

    rows: int = 0
    tokens: int | None = None
    keys: list[tuple[str, Key]] = field(default_factory=list)
    is_done: bool = False
    is_cut: bool = False

    def add(self, table: str, keys: Sequence[Key]) -> None:
        self.rows += len(keys)
        self.keys += [(table, key) for key in keys[: KEPT_KEYS - len(self.keys)]]


async def requeue(target: Target, wanted: Wanted, by: str, *, is_dry: bool = False) -> Requeued:
    """Put work for the chosen rows, or with is_dry only count them. by: the operator's account, for the journal.

    Raises NotBegun, StepRefused, ConfigError `where-invalid`. After another error the pages that are done stay done;
    repeating is harmless."""
    await require_schema(target, wanted.migration)
    done = Requeued(is_done=not is_dry)
    async with target.begin() as tx:
        backlog = await tx.ledger.backlog(await _generation(tx, wanted))
    if wanted.how is How.REFUSED:
        await _retry(target, wanted, by, done)
    elif wanted.how is How.KEY:
        await _by_key(target, wanted, by, done)
    else:
        await _by_page(target, wanted, by, done)
    if backlog.rows_embedded:
        done.tokens = round(done.rows * backlog.tokens / backlog.rows_embedded)
    return done


async def _retry(target: Target, wanted: Wanted, by: str, done: Requeued) -> None:
    which = quarantine.Which(wanted.migration, wanted.generation, wanted.table, state=WorkState.REFUSED)
    if done.is_done:
        found = await quarantine.retry(target, which, by)
    else:
        found = await quarantine.find(target, which, quarantine.MOST_ENTRIES)
    for entry in found.entries:
        done.add(entry.table, [entry.key])
    done.is_cut = found.is_cut


async def _by_key(target: Target, wanted: Wanted, by: str, done: Requeued) -> None:
    """All of the keys in one transaction, an accepted entry too: it was named. Raises StepRefused: one is not there."""
    async with target.begin() as tx:
        table, generation = await _scope(tx, wanted)
        keys = _keys(table, wanted.values)
        if done.is_done:
            generation = await _hold(tx, wanted)
        ids = await tx.replica.row_ids(table, keys)
        rows = sorted(set(ids.values()))
        await tx.replica.lock_rows(table, rows)
        there = {row.row_id: row for row in await tx.replica.chosen_of(table, None, None, rows)}
        absent = [key for key in keys if ids.get(key) not in there]
        if absent:
            raise StepRefused(
                "row-unknown",
                f"there is no row {quarantine.named(table.alias, absent[0])} to embed; nothing was done",
                "it is not at the source, has not arrived, or the table's `where` leaves it out",
            )
        done.add(table.alias, [row.key for row in there.values()])
        if done.is_done:
            await _put(tx, table, generation, list(there.values()))
            await _journal(tx, "requeued", wanted, done, by)


async def _by_page(target: Target, wanted: Wanted, by: str, done: Requeued) -> None:
    """One page after the other; the last one journals what all of them came to, the first one that there are more."""
    condition: Condition | None = None
    if wanted.how is How.WHERE:
        async with target.begin() as tx:
            table, _ = await _scope(tx, wanted)
            condition = await tx.replica.condition(table, wanted.where)
    after, is_over = 0, False
    while not is_over:
        async with target.begin() as tx:
            table, generation = await _scope(tx, wanted)
            found, upto = await tx.replica.chosen(table, condition, generation, after, PAGE_ROWS)
            is_over = upto is None
            after = upto or after
            if done.is_done and found:
                generation = await _hold(tx, wanted)
                await tx.replica.lock_rows(table, [row.row_id for row in found])
                ids = [row.row_id for row in found]
                found = await tx.replica.chosen_of(table, condition, generation, ids)
                await _put(tx, table, generation, found)
            done.add(table.alias, [row.key for row in found])
            if done.is_done and done.rows and is_over:
                await _journal(tx, "requeued", wanted, done, by)
            elif done.is_done and found and done.rows == len(found):
                await _journal(tx, "requeue-begun", wanted, done, by)


async def _put(tx: UnitOfWork, table: Table, generation: Generation, rows: Sequence[ChosenRow]) -> None:
    """Backfill work, so that changes go first. An entry that was refused or accepted waits again."""
    await tx.ledger.put_work(table, [generation], [row.row_id for row in rows], live=False, afresh=True)


async def _scope(tx: UnitOfWork, wanted: Wanted) -> tuple[Table, Generation]:
    """The table and the generation that are meant. Raises NotBegun."""
    generation = await _generation(tx, wanted)
    table = next((s.table for s in await tx.ledger.tables() if s.table.alias == wanted.table), None)
    if table is None:
        raise not_begun(wanted.migration)
    return table, generation


async def _generation(tx: UnitOfWork, wanted: Wanted) -> Generation:
    generation = next((g for g in await tx.ledger.generations() if g.name == wanted.generation), None)
    if generation is None:
        raise not_begun(wanted.migration, wanted.generation)
    return generation


async def _hold(tx: UnitOfWork, wanted: Wanted) -> Generation:
    """The generation as it is fed; it stays until this transaction ends. Raises NotBegun: it went meanwhile."""
    generation = next((g for g in await tx.ledger.hold_migration() if g.name == wanted.generation), None)
    if generation is None:
        raise not_begun(wanted.migration, wanted.generation)
    return generation


def _keys(table: Table, values: Sequence[str]) -> list[Key]:
    """The values as keys, each once. Raises StepRefused."""
    width = len(table.key)
    if len(values) % width:
        raise StepRefused(
            "key-incomplete",
            f"the key of {table.alias} is ({', '.join(table.key)}), and {len(values)} values were given",
            "give --key once for each column, in that order, row after row",
        )
    return list(dict.fromkeys(tuple(values[at : at + width]) for at in range(0, len(values), width)))


async def _journal(tx: UnitOfWork, event: str, wanted: Wanted, done: Requeued, by: str) -> None:
    """Who had how many rows embedded again. Never the condition: it can hold values of rows."""
    detail: dict[str, Any] = {"by": by, "generation": wanted.generation, "table": wanted.table}
    detail["chosen_by"] = wanted.how.value
    if event == "requeued":
        detail |= {"rows": done.rows, "keys": [list(key) for _, key in done.keys]}
        if done.rows > len(done.keys):
            detail["keys_left_out"] = done.rows - len(done.keys)
    await tx.ledger.journal("operator", event, detail)
