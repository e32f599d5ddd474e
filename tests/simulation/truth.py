"""What is true: the source's twin, which keeps for each key every committed version and which record made it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from daemon.core.model import Key, Table
from daemon.ports import SlotState
from tests.fakes import MemorySource, Transaction, VirtualClock
from tests.fakes.source import Row


@dataclass(frozen=True, slots=True)
class Committed:
    """One version of a key's row, None where it was deleted. commit: the LSN of its commit. at: when, by the clock."""

    commit: int
    at: float
    values: Row | None


class TrueSource(MemorySource):
    """history: of each key, oldest first; index 0 is what it was before the log. made: which record made which index
    of it. committed_lsn: what the slot says was confirmed."""

    def __init__(self, tables: list[Table], clock: VirtualClock) -> None:
        super().__init__(tables, clock)
        self.history: dict[Key, list[Committed]] = defaultdict(lambda: [Committed(0, 0.0, None)])
        self.made: dict[tuple[Key, int, int], int] = {}  # key, previous commit, LSN
        self.truncated: dict[tuple[int, int], dict[Key, int]] = {}
        self.times: list[tuple[float, int]] = []  # of commits, with their LSN
        self.session: str | None = "1@0"
        self.between: Callable[[], None] = lambda: None  # a message's LSN and its commit
        self.confirmed_lsn: int | None = None

    def seed(self, alias: str, *rows: dict[str, str | None]) -> None:
        super().seed(alias, *rows)
        for key, chain in self.chains[alias].items():
            if chain:
                self.history[key] = [Committed(0, 0.0, chain[0].values)]

    def append(self, tx: Transaction) -> None:
        previous = self.last_commit
        super().append(tx)
        if not tx.xid:
            return
        commit, now = self.last_commit, self.clock.now_s
        self.times.append((now, commit))
        (chains,) = self.chains.values()
        versions = {key: iter([v for v in chain if v.xid == tx.xid]) for key, chain in chains.items()}
        for record in tx.records:
            if record.kind == "t":
                last = {}
                for key, left in versions.items():
                    if next(left, None) is not None:
                        self.history[key].append(Committed(commit, now, None))
                    last[key] = len(self.history[key]) - 1
                self.truncated[previous, record.lsn] = last
            elif record.kind != "m":
                self.history[record.key].append(Committed(commit, now, next(versions[record.key]).values))
                self.made[record.key, previous, record.lsn] = len(self.history[record.key]) - 1

    async def emit(self, payload: bytes) -> int:
        tx = self.begin()
        lsn = tx.emit(payload)
        self.between()
        tx.commit()
        return lsn

    async def slot(self) -> SlotState:
        is_read = self.session is not None
        return SlotState(True, is_read, self.confirmed_lsn, 0, "reserved", None, self.session)

    async def bounds(self, table: Table, ranges: int) -> list[Key]:
        """Even a small table is split."""
        return await super().bounds(table, min(ranges, 3, len(self.current(table.alias))))

    def before(self, time: float) -> int:
        """The LSN above every commit that was made before this time."""
        lsn = 0
        for at, commit in reversed(self.times):
            if at < time:
                lsn = commit + 1
                break
        return lsn
