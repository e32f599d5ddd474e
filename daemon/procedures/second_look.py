"""The second look of a comparison: which suspects are wrong, and how.

A row is read in the replica, then at the source; then a barrier is written, and while it passes the replica is read
again and again. A row that equals what the source had in any of these looks is settled. One that stood still until the
barrier had passed, and differs, is a difference (`core.comparison.confirm`). What moved is looked at again, and so is
what the source could not show yet: a commit is decoded before the source's own snapshots see it. A truncate moves
every row of its table: it leaves nothing of one that came and went. A row that lacks columns waits for its completion.

A row's chunks need no barrier: row, work and chunks are read in one statement of one database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from daemon.core.comparison import (
    Columns,
    Fault,
    Found,
    Judgement,
    Kind,
    ReplicaLook,
    confirm,
    is_shown,
    judge_chunks,
    judge_row,
)
from daemon.core.model import Key, Snapshot, Table
from daemon.flow.backfill import COMPLETION_WAIT_S
from daemon.ports import RowPieces, Suspect
from daemon.procedures.comparing import Compared, OutOfTime, Run, keys_of_rows, open_findings
from daemon.procedures.passage import passage

SLICE = 2000  # suspects of one barrier
POLLED = 500  # suspects that are read again while their barrier passes
CHUNK_SLICE = 200
ROUNDS = 30  # of looks at what moves
COMPLETION_S = 10 * COMPLETION_WAIT_S  # what a row that lacks columns is given, and
COMPLETION_POLL_S = 0.2
PASSAGE_S = 120.0  # longest wait for a barrier on a way on which nothing moves

Keys = Mapping[int, Sequence[Key]]  # by table id


@dataclass(slots=True)
class Looked:
    """settled: rows that agree. differing: rows that stood still and differ. Others moved."""

    settled: set[tuple[int, Key]] = field(default_factory=set)
    differing: dict[tuple[int, Key], tuple[Kind, ...]] = field(default_factory=dict)


async def cross(run: Run, looks: _Looks | None = None) -> int:
    """A barrier through the whole way. Raises OutOfTime where it has not passed when the comparison's time is used up,
    or nothing has moved for PASSAGE_S: the connector or the daemon stands still."""
    way, token = run.way, run.next_token()
    if looks is None:
        lsn = await passage(way, token, run.ends_at, PASSAGE_S)
    else:
        lsn = await passage(way, token, run.ends_at, PASSAGE_S, looks.look_again)
    if lsn is None:
        how = (
            f"within the {run.order.limit_s:.0f} s given" if run.is_over else f"and nothing moves for {PASSAGE_S:.0f} s"
        )
        raise _late(how)
    run.last_lsn = lsn
    return lsn


def _late(how: str) -> OutOfTime:
    late = OutOfTime()
    late.id, late.message = "passage-late", f"a barrier has not come through connector and stream {how}"
    late.hint = "see `revector status` and `revector doctor`: connector and stream have to run; then run it again"
    return late


@dataclass(slots=True)
class _Looks:
    """Looks at some rows around one barrier. open: neither settled nor judged yet. snapshot: the source's, from before
    its rows were read. truncates: of each table, counted before the first look."""

    run: Run
    snapshot: Snapshot = field(default=Snapshot(0, 0, frozenset()))
    truncates: dict[int, int] = field(default_factory=dict)
    before: dict[tuple[int, Key], ReplicaLook | None] = field(default_factory=dict)
    source: dict[tuple[int, Key], Columns | None] = field(default_factory=dict)
    open: set[tuple[int, Key]] = field(default_factory=set)
    settled: set[tuple[int, Key]] = field(default_factory=set)

    async def begin(self, keys: Keys) -> None:
        """The replica first, then the source."""
        self.truncates = await self.counted(keys)
        self.before = await self.replica(keys)
        self.snapshot = await self.run.way.source.snapshot()
        for table_id, wanted in keys.items():
            await self.run.pace.take(len(wanted))
            rows = await self.run.way.source.digests(self.run.tables[table_id], wanted)
            self.source |= {(table_id, key): rows.get(key) for key in wanted}
        self.open = set(self.before)
        self.settle(self.before)

    async def replica(self, keys: Keys) -> dict[tuple[int, Key], ReplicaLook | None]:
        looks: dict[tuple[int, Key], ReplicaLook | None] = {}
        async with self.run.target.begin() as tx:
            for table_id, wanted in keys.items():
                rows = await tx.audit.looks(self.run.tables[table_id], wanted)
                looks |= {(table_id, key): rows.get(key) for key in wanted}
        return looks

    async def counted(self, table_ids: Iterable[int]) -> dict[int, int]:
        async with self.run.target.begin() as tx:
            return {id: await tx.replica.truncate_count(self.run.tables[id]) for id in table_ids}

    def stood_still(self, at: tuple[int, Key], truncates: Mapping[int, int]) -> bool:
        """Beside equal looks: no truncate came between, and what the source was read with saw the row's change."""
        seen = is_shown(self.before[at], self.snapshot, self.run.epoch)
        return seen and truncates[at[0]] == self.truncates[at[0]]

    def settle(self, looks: Mapping[tuple[int, Key], ReplicaLook | None]) -> None:
        for at in [at for at in self.open if at in looks]:
            if not judge_row(self.run.tables[at[0]], self.source[at], looks[at]):
                self.open.remove(at)
                self.settled.add(at)

    async def look_again(self) -> None:
        """While the barrier passes: a row that changes all the time passes through what the source had."""
        if 0 < len(self.open) <= POLLED:
            self.settle(await self.replica(_by_table(self.open)))

    async def judged(self) -> Looked:
        """After the passage."""
        after = await self.replica(_by_table(self.open))
        truncates = await self.counted(self.truncates)
        looked = Looked(settled=self.settled)
        for at, look in after.items():
            judgement, kinds = confirm(self.run.tables[at[0]], self.before[at], self.source[at], look)
            if judgement is Judgement.AGREES:
                looked.settled.add(at)
            elif judgement is Judgement.DIFFERS and self.stood_still(at, truncates):
                looked.differing[at] = kinds
        return looked


def _by_table(places: Iterable[tuple[int, Key]]) -> dict[int, list[Key]]:
    keys: dict[int, list[Key]] = defaultdict(list)
    for table_id, key in sorted(places):
        keys[table_id].append(key)
    return keys


async def look_at_rows(run: Run, keys: Keys) -> Looked:
    """One look at these rows. Raises OutOfTime."""
    looks = _Looks(run)
    await looks.begin(keys)
    if not looks.open:
        return Looked(settled=looks.settled)
    await cross(run, looks)
    looked = await looks.judged()
    run.looks += 1
    return looked


async def judge_rows(run: Run) -> None:
    """Look at every suspect row until it is settled, found, or has moved ROUNDS times. Raises OutOfTime."""
    incomplete_until: dict[tuple[int, Key], float] = {}
    for _ in range(ROUNDS):
        after, moving = 0, 0
        while suspects := await _suspects(run, after, of_chunks=False):
            after = suspects[-1].id
            places: dict[tuple[int, Key], list[int]] = defaultdict(list)
            for s in suspects:
                places[s.table_id, s.key or ()].append(s.id)
            looked = await look_at_rows(run, _by_table(places))
            now = run.clock()
            differing = {
                at: kinds
                for at, kinds in looked.differing.items()
                if Kind.ROW_INCOMPLETE not in kinds or now >= incomplete_until.setdefault(at, now + COMPLETION_S)
            }
            found = [Found(kind, table_id, key) for (table_id, key), kinds in differing.items() for kind in kinds]
            done = [id for at in (*looked.settled, *differing) for id in places[at]]
            async with run.target.begin() as tx:
                await tx.comparisons.find(run.comparison.id, found)
                await tx.comparisons.settle(done)
            moving += len(suspects) - len(done)
            run.suspects = moving
            run.say()
        if not moving:
            return
        if incomplete_until:
            await run.pause(COMPLETION_POLL_S)


async def _suspects(run: Run, after: int, *, of_chunks: bool) -> list[Suspect]:
    run.check_time()
    limit = CHUNK_SLICE if of_chunks else SLICE
    async with run.target.begin() as tx:
        return await tx.comparisons.suspects(run.comparison.id, of_chunks=of_chunks, after=after, limit=limit)


# --- chunks


async def judge_suspect_chunks(run: Run) -> None:
    """Judge every suspect row's chunks; those of rows that differ from the source's are not held against them.
    Raises OutOfTime."""
    async with run.target.begin() as tx:
        differing = keys_of_rows(await open_findings(tx, run.comparison.id))
    while suspects := await _suspects(run, 0, of_chunks=True):
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for s in suspects:
            groups[s.table_id, s.generation_id or 0].append(s.row_id or 0)
        found: list[Found] = []
        for (table_id, generation_id), row_ids in groups.items():
            c, table = run.compared_of(generation_id), run.tables[table_id]
            rows = await read_pieces(run, c, table, row_ids)
            faults = await run.on_cpu(faults_of, c, table, rows)
            for row_id, faulty in faults.items():
                key = rows[row_id].key
                if key is None or key not in differing.get(table_id, {}):
                    found += [Found(f.kind, table_id, key, generation_id, row_id, f.n) for f in faulty]
        async with run.target.begin() as tx:
            await tx.comparisons.find(run.comparison.id, found)
            await tx.comparisons.settle([s.id for s in suspects])
        run.say()


async def read_pieces(run: Run, c: Compared, table: Table, row_ids: Sequence[int]) -> dict[int, RowPieces]:
    """These rows with their work and chunks, as they are."""
    async with run.target.begin() as tx:
        return await tx.audit.pieces(table, c.generation, c.contract, sorted(set(row_ids)))


def faults_of(c: Compared, table: Table, rows: Mapping[int, RowPieces]) -> dict[int, list[Fault]]:
    """What is wrong with the chunks of rows; only rows with faults. Renders and cuts: for the worker thread."""
    faults: dict[int, list[Fault]] = {}
    for row_id, row in rows.items():
        expected: list[bytes] | None = None
        if row.values is not None:
            expected = c.expected(table, row.values)
        elif row.is_wanted:  # a column is missing: what it should have is not known
            expected = []
        is_owed = row.is_owed or (row.is_wanted and row.values is None)
        found = judge_chunks(expected, row.pieces, c.rule, is_owed=is_owed)
        if found:
            faults[row_id] = found
    return faults
