"""Which locks a statement of the target takes before it does what it does: what `connectors` says in SQL, once more.

Each function gets the transaction's session and the call's arguments and names (resource, mode) in the order of asking.
It is asked again after each wait, because what there is to lock may have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from daemon.core.model import Generation, Key, Table

if TYPE_CHECKING:
    from tests.simulation.target import Session

Wanted = Iterable[tuple[Hashable, str]]
Statement = Callable[..., Wanted]

MIGRATION = "migration row"
JOURNAL = "journal"


def replica(table: Table) -> Hashable:
    return ("replica", table.id)


def row(table: Table, key: Key) -> Hashable:
    return ("row", table.id, key)


def entry(generation_id: int, table_id: int, row_id: int) -> Hashable:
    return ("work", generation_id, table_id, row_id)


def record(generation: Generation | int) -> Hashable:
    return ("generation", generation if isinstance(generation, int) else generation.id)


def source_table(table: Table) -> Hashable:
    return ("source_table", table.id)


def nothing(session: Session, *args: Any, **named: Any) -> Wanted:
    return ()


def one(resource: Hashable, mode: str) -> Statement:
    return lambda session, *args, **named: ((resource, mode),)


def _keys(session: Session, table: Table, keys: Iterable[Key]) -> Wanted:
    yield replica(table), "R"
    rows = session.state.rows
    for key in sorted(keys):
        if (table.id, key) in rows:
            yield row(table, key), "X"


def _row_ids(session: Session, table: Table, row_ids: Iterable[int]) -> Wanted:
    of = session.state.keys
    return _keys(session, table, [of[table.id, r] for r in row_ids if (table.id, r) in of])


def lock(session: Session, table: Table, keys: Sequence[Key], *, only_missing: bool = False) -> Wanted:
    rows = session.state.rows
    there = [k for k in keys if (found := rows.get((table.id, k))) and (not only_missing or found.missing(table))]
    return _keys(session, table, there) if there else ()


def lock_rows(session: Session, table: Table, row_ids: Sequence[int]) -> Wanted:
    return _row_ids(session, table, row_ids)


def insert(session: Session, table: Table, rows: Sequence[Any]) -> Wanted:
    """A key that another transaction has inserted and not committed is waited for."""
    yield replica(table), "R"
    for each in sorted(rows, key=lambda r: r.key):
        yield row(table, each.key), "X"


def truncate(session: Session, table: Table, position: Any) -> Wanted:
    yield source_table(table), "X"
    recorded = session.state.tables[table.id].truncated
    if recorded is None or position > recorded:
        yield replica(table), "X"
        ids = {r.row_id for (t, _), r in session.state.rows.items() if t == table.id}
        for place in sorted(p for p in session.state.work if p[2] in ids and p[1] == table.id):
            yield entry(*place), "X"


def work(
    session: Session, table: Table, generations: Sequence[Generation], row_ids: Sequence[int], *_: Any, **__: Any
) -> Wanted:
    for generation in generations:
        for row_id in row_ids:
            yield entry(generation.id, table.id, row_id), "X"


def drop_work(session: Session, table: Table, generations: Sequence[Generation], row_ids: Sequence[int]) -> Wanted:
    there = session.state.work
    return [w for w in work(session, table, generations, row_ids) if w[0][1:] in there]  # type: ignore[index]


def entries(session: Session, table: Table, generation: Generation, row_ids: Sequence[int]) -> Wanted:
    return drop_work(session, table, [generation], sorted(row_ids))


def settle(
    session: Session, table: Table, generation: Generation, worker: str, done: Any, moved: Any, freed: Any
) -> Wanted:
    return drop_work(session, table, [generation], [*done, *moved, *freed])


def refuse(session: Session, table: Table, generation: Generation, worker: str, claims: Any, reason: str) -> Wanted:
    yield from drop_work(session, table, [generation], [c.row_id for c in claims])
    yield record(generation), "N"


def accept(session: Session, table: Table, generation: Generation, row_ids: Sequence[int]) -> Wanted:
    return drop_work(session, table, [generation], row_ids)


def sweep(session: Session, table: Table, generation: Generation, limit: int) -> Wanted:
    yield MIGRATION, "S"
    held = session.state.generations.get(generation.id)
    if held is not None and not held.generation.swept:
        after = held.swept_to.get(table.id, 0)
        rows = sorted(r for t, r in session.state.keys if t == table.id and r > after)[:limit]
        yield from _row_ids(session, table, rows)
        yield record(generation), "N"


def drop_generation(session: Session, generation: Generation) -> Wanted:
    yield MIGRATION, "X"
    for id, held in session.state.comparisons.items():
        if held.comparison.state.value == "running":
            yield ("comparison", id), "X"
    for _, table in sorted(session.state.tables.items()):
        yield replica(table.table), "X"
    for place in sorted(p for p in session.state.work if p[0] == generation.id):
        yield entry(*place), "X"
    yield record(generation), "X"


def acquire_lease(session: Session, owner: str, lease_s: float) -> Wanted:
    yield "lease", "N"
    m = session.state.migration
    if m.lease_owner in (None, owner) or m.lease_until <= session.now:
        for at in sorted(session.state.checkpoints):
            yield ("checkpoint", at), "X"


def advance(session: Session, lease_number: int, moves: Any) -> Wanted:
    held = session.state.checkpoints
    for at in sorted(moves):
        if at in held and held[at].lease_number == lease_number and held[at].next_offset == moves[at][0]:
            yield ("checkpoint", at), "X"


def begin_comparison(session: Session, *args: Any) -> Wanted:
    yield MIGRATION, "S"
    yield JOURNAL, "S"
    yield "running comparison", "X"


def end_comparison(session: Session, comparison: Any, **named: Any) -> Wanted:
    yield ("comparison", comparison.id), "X"
    yield JOURNAL, "R"


def abandon(session: Session, id: int) -> Wanted:
    yield ("comparison", id), "X"
    yield JOURNAL, "R"


def of_comparison(mode: str) -> Statement:
    return lambda session, id, *args, **named: ((("comparison", id), mode),)


def of_generation(session: Session, generation: Generation, *args: Any, **named: Any) -> Wanted:
    yield record(generation), "N"


def of_generations(session: Session, generations: Sequence[Generation], *args: Any) -> Wanted:
    for generation in generations:
        yield record(generation), "N"


def budget(session: Session, generation: Generation, *args: Any) -> Wanted:
    yield ("budget", generation.id), "N"


STATEMENTS: dict[str, Statement] = {
    "replica.truncate": truncate,
    "replica.hold_truncate_count": lambda session, table: ((source_table(table), "S"),),
    "replica.lock": lock,
    "replica.lock_rows": lock_rows,
    "replica.write": insert,
    "replica.copy_in": insert,
    "ledger.hold_migration": one(MIGRATION, "S"),
    "ledger.start": one(MIGRATION, "N"),
    "ledger.add_generation": one(MIGRATION, "X"),
    "ledger.drop_generation": drop_generation,
    "ledger.sweep": sweep,
    "ledger.set_swept": of_generation,
    "ledger.set_phase": of_generation,
    "ledger.set_canary": of_generation,
    "ledger.count_embedded": of_generation,
    "ledger.count_spared": of_generations,
    "ledger.acquire_lease": acquire_lease,
    "ledger.renew_lease": one("lease", "N"),
    "ledger.release_lease": one("lease", "N"),
    "ledger.advance": advance,
    "ledger.observe_stream": one("continuity", "N"),
    "ledger.pulse_sent": one("pulse", "N"),
    "ledger.observe": one("observation", "N"),
    "ledger.halt": one("control", "N"),
    "ledger.clear_halt": one("control", "N"),
    "ledger.order": one("orders", "N"),
    "ledger.journal": one(JOURNAL, "R"),
    "ledger.plan_ranges": lambda session, table, bounds: ((source_table(table), "N"),),
    "ledger.hold_range": lambda session, id, owner: ((("range", id), "X"),),
    "ledger.advance_range": lambda session, id, *args: ((("range", id), "N"),),
    "ledger.put_work": work,
    "ledger.drop_work": drop_work,
    "ledger.entries": entries,
    "ledger.settle": settle,
    "ledger.refuse": refuse,
    "ledger.accept": accept,
    "ledger.reserve": budget,
    "ledger.refund": budget,
    "ledger.hold_off": budget,
    "comparisons.begin": begin_comparison,
    "comparisons.hold": of_comparison("N"),
    "comparisons.release": of_comparison("N"),
    "comparisons.advance": lambda session, scan, *args, **named: ((("scan", scan.id), "N"),),
    "comparisons.end": end_comparison,
    "comparisons.abandon": abandon,
}
# KEY SHARE NOWAIT of the comparison's row
PINNED = ("comparisons.plan", "comparisons.suspect", "comparisons.find")
