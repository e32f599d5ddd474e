"""What the steps of a comparison share: its parts, its deadline, its record, and how fast it may read.

`Run` is one process's work on one comparison. Every connection is made here and closed with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from daemon.core.comparison import Comparison, Found, Kind, VectorRule
from daemon.core.contract import Contract, Cut, digest, render
from daemon.core.model import Generation, Key, Known, Table
from daemon.errors import WaitTimedOut
from daemon.flow import pulse
from daemon.parts import Parts
from daemon.ports import Target, Tokenizer, UnitOfWork
from daemon.procedures.passage import Way
from daemon.settings_generation import GenerationSettings

LEASE_S = 15.0
FOUND_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for. generation: None for every one that is configured. sample: chunks embedded again, of each
    generation. limit_s: None for as long as it takes. is_fresh: an unfinished comparison is not resumed."""

    generation: str | None = None
    repair: bool = False
    sample: int = 200
    limit_s: float | None = None
    is_fresh: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. stage: passage | rows | suspects | chunks | vectors | repair | end. rows: read at the source,
    those of earlier processes among them; *_total: estimates, None where there is none. eta_s: of this stage."""

    stage: str
    rows: int
    rows_total: int | None
    chunks: int
    chunks_total: int | None
    suspects: int
    elapsed_s: float
    eta_s: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it. unfinished: why it ended before it had looked at everything, in words; it is resumed by the
    next one. keys: table id -> alias, names of the key's columns. generations: id -> name. found: the first ones."""

    comparison: Comparison
    is_finished: bool
    unfinished: str | None
    keys: Mapping[int, tuple[str, tuple[str, ...]]]
    generations: Mapping[int, str]
    found: tuple[Found, ...]


class OutOfTime(WaitTimedOut):
    """What was given to the comparison is used up; all that was compared is recorded."""

    def __init__(self) -> None:
        super().__init__("time-used-up", "the time given is used up", "run it again: it goes on where it stopped")


@dataclass(frozen=True, slots=True)
class Compared:
    """A generation with what its chunks are judged by."""

    generation: Generation
    contract: Contract
    cut: Cut
    tokenizer: Tokenizer
    chosen: GenerationSettings

    @property
    def rule(self) -> VectorRule:
        return VectorRule(self.contract.dimensions, self.contract.normalised)

    def pieces_of(self, table: Table, values: Mapping[str, Known]) -> list[str]:
        """The chunks that a row's document has."""
        return self.cut(render(self.contract.templates[table.alias], values))

    def expected(self, table: Table, values: Mapping[str, Known]) -> list[bytes]:
        """Their digests, in order."""
        return [digest(piece, self.contract) for piece in self.pieces_of(table, values)]


class Pace:
    """A budget of rows of either database: `take` returns when so many may be read. Shared by all workers."""

    def __init__(
        self, rows_per_second: float, clock: Callable[[], float], pause: Callable[[float], Awaitable[None]]
    ) -> None:
        self._rate, self._clock, self._pause = rows_per_second, clock, pause
        self._free_at = clock()

    async def take(self, rows: int) -> None:
        """Pages are taken before they are read, so a burst is one page of each worker."""
        now = self._clock()
        begin = max(now, self._free_at)
        self._free_at = begin + rows / self._rate
        if begin > now:
            await self._pause(begin - now)


class Closable(Protocol):
    async def close(self) -> None: ...


Part = TypeVar("Part", bound=Closable)
Result = TypeVar("Result")


@dataclass(slots=True)
class Run:
    """One process's work on a comparison. ends_at: of the clock; infinite without a limit. awaited: rows that a repair
    owes to a generation (by its id and the table's), with the digests that they keep. looks: second ones, at rows, that
    came to an end. is_refuted: whether a vector that several texts share was not one of them; None until that was
    asked. epoch: the migration's; a realignment ends the comparison. refuted: generation, table, row and number of
    those that were not."""

    parts: Parts
    order: Order
    tables: Mapping[int, Table]
    compared: Sequence[Compared]
    stack: AsyncExitStack
    tell: Callable[[Progress], None]
    owner: str  # of the lease, this process alone
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ends_at: float = float("inf")
    began_s: float = 0.0
    stage: str = "passage"
    rows: int = 0
    rows_total: int | None = None
    chunks: int = 0
    chunks_total: int | None = None
    suspects: int = 0
    tokens: int = 0
    sampled: int | None = None
    unjudged: int = 0  # chunks with one vector of which the provider said nothing
    last_lsn: int = 0
    barriers: int = 0
    looks: int = 0
    is_refuted: bool | None = None
    epoch: int = 0
    refuted: set[tuple[int, int, int, int]] = field(default_factory=set)
    awaited: dict[tuple[int, int], dict[int, frozenset[bytes]]] = field(default_factory=dict)
    cpu: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="cut"))
    comparison: Comparison = field(init=False)
    target: Target = field(init=False)
    way: Way = field(init=False)
    pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        settings = self.parts.settings
        self.began_s = self.clock()
        if self.order.limit_s is not None:
            self.ends_at = self.began_s + self.order.limit_s
        self.stack.callback(self.cpu.shutdown, wait=False)
        self.target = self.held(self.parts.target("verify"))
        self.way = Way(
            settings.name,
            self.held(self.parts.source("verify")),
            self.held(self.parts.capture("verify")),
            self.held(self.parts.feed("verify")),
            self.held(self.parts.target("verify-way")),
            self.clock,
            self.pause,
        )
        self.pace = Pace(settings.verify.rows_per_second, self.clock, self.pause)

    def held(self, part: Part) -> Part:
        """Closed with the run."""
        self.stack.push_async_callback(part.close)
        return part

    @property
    def is_over(self) -> bool:
        return self.clock() >= self.ends_at

    def check_time(self) -> None:
        """Raises OutOfTime."""
        if self.is_over:
            raise OutOfTime

    def compared_of(self, generation_id: int | None) -> Compared:
        return next(c for c in self.compared if c.generation.id == generation_id)

    def next_token(self) -> str:
        """Names the next barrier."""
        self.barriers += 1
        return f"verify-{self.owner}-{self.barriers}"

    async def on_cpu(self, work: Callable[..., Result], *of: Any) -> Result:
        """Done in the worker thread: cutting must not stop the loop that renews the lease."""
        return await asyncio.get_running_loop().run_in_executor(self.cpu, work, *of)

    def say(self, eta_s: tuple[float, float] | None = None) -> None:
        elapsed = self.clock() - self.began_s
        self.tell(
            Progress(
                self.stage,
                self.rows,
                self.rows_total,
                self.chunks,
                self.chunks_total,
                self.suspects,
                elapsed,
                eta_s,
            )
        )


async def check_source(run: Run) -> None:
    """Raises IdentityChanged: this is another source than the one the replica was made from. Of a clone or an older
    state of it every barrier passes, and a repair would make the replica like it."""
    async with run.target.begin() as tx:
        state = await tx.ledger.load()
    await pulse.check_source(run.way.source, state)


async def open_findings(tx: UnitOfWork, comparison: int) -> list[tuple[int, Found]]:
    """Differences that are not mended, with their ids."""
    found: list[tuple[int, Found]] = []
    after = 0
    while page := await tx.comparisons.found(comparison, after=after, limit=FOUND_AT_ONCE, only_open=True):
        found += page
        after = page[-1][0]
    return found


def keys_of_rows(found: Sequence[tuple[int, Found]]) -> dict[int, dict[Key, list[tuple[int, Kind]]]]:
    """Of differences of rows: table id -> key -> (finding's id, kind)."""
    keys: dict[int, dict[Key, list[tuple[int, Kind]]]] = {}
    for id, difference in found:
        if difference.kind.is_of_row and difference.key is not None:
            keys.setdefault(difference.table_id, {}).setdefault(difference.key, []).append((id, difference.kind))
    return keys
