"""Run the loops of a migration in one process until it is told to stop.

A process plays one or more roles: `stream` (with pulses, completion and the index), `backfill`, `embed`. Any number of
processes may play each; leases and claims in the target divide the work. A Halt stops the stream and is
recorded, but the process stays up, so that status and metrics answer; it goes on once an operator has the stream
realigned (`procedures.realign`). Telling it to stop lets every loop end what it has open, for at most DRAIN_S; then
whatever is left is cancelled, which loses nothing: what is not committed is done again.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Awaitable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol, TypeVar

from daemon.core.chunking import cut_of
from daemon.core.contract import Contract
from daemon.core.model import HaltNote
from daemon.errors import Halt, ProgramOutdated, SchemaChanged, first_of
from daemon.flow.backfill import Backfill, BackfillCounts, Completion
from daemon.flow.embed import Crew, EmbedCounts, EmbedWorker
from daemon.flow.gate import Gate
from daemon.flow.lifetime import Lifetime
from daemon.flow.orders import Orders
from daemon.flow.pacing import retrying, wait
from daemon.flow.provider import CANARY, Provider, pause_until
from daemon.flow.pulse import PulseLoop, PulseParts, root_of
from daemon.flow.stream import Stream, StreamCounts, StreamParts
from daemon.flow.sweep import Sweep
from daemon.parts import Parts
from daemon.procedures import start
from daemon.procedures.begun import has_begun
from daemon.procedures.doctor import START_LIMIT_S, examine, expected_connector, refuse
from daemon.procedures.index import IndexBuild
from daemon.procedures.prepare import Prepared, prepare
from daemon.settings_generation import GenerationSettings

log = logging.getLogger(__name__)

DRAIN_S = 20.0
HALTED_POLL_S = 1.0  # how often a halted process looks whether the stream was realigned


@dataclass(frozen=True, slots=True)
class Roles:
    stream: bool = False
    backfill: bool = False
    embed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the roles that are played, the one that weighs most first."""
        return tuple(name for name in ("stream", "backfill", "embed") if getattr(self, name))


@dataclass(slots=True)
class Running:
    """What this process is doing, read by telemetry and the web pages; never by decisions."""

    roles: Roles
    turned_at: float = 0.0  # time.monotonic() of the main loop's last turn
    is_ready: bool = False
    halted_by: str | None = None
    stream: StreamCounts = field(default_factory=StreamCounts)
    backfill: list[BackfillCounts] = field(default_factory=list)
    embed: dict[str, EmbedCounts] = field(default_factory=dict)  # by generation
    gates: dict[str, Gate] = field(default_factory=dict)


class Closable(Protocol):
    async def close(self) -> None: ...


Part = TypeVar("Part", bound=Closable)


class Supervisor:
    """Builds the loops of the given roles and runs them. `stop` is set by signals."""

    def __init__(self, parts: Parts, roles: Roles, stop: asyncio.Event) -> None:
        self.parts, self.roles, self.stop = parts, roles, stop
        self.settings = parts.settings
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.running = Running(roles)
        self.halts: set[tuple[str, str]] = set()
        self.stack, self.replication = AsyncExitStack(), AsyncExitStack()

    @cached_property
    def contracts(self) -> list[Contract]:
        """In the order of the settings. Raises ConfigError: a tokenizer cannot be read."""
        return [self.parts.contract(g) for g in self.settings.generation]

    @cached_property
    def orders(self) -> Orders:
        return Orders(self._held(self.parts.target("orders")), self.settings.quiet_hours)

    async def run(self) -> None:
        """Until `stop`. Raises ConfigError, PermissionRefused: the set-up cannot work; nothing was started."""
        async with self.stack:
            ticker = asyncio.create_task(self._tick())
            try:
                prepared = await self._ready()
                if prepared is not None:
                    self.running.is_ready = True
                    loops = self._loops(prepared)
                    stay_responsive()
                    await self._drained(loops)
            finally:
                ticker.cancel()

    async def _ready(self) -> Prepared | None:
        """`_prepared`. A Halt, such as of a used column that has another type since, is waited out as the stream's."""
        while not self.stop.is_set():
            try:
                return await self._prepared()
            except ProgramOutdated:
                raise
            except Halt as halt:
                await self._waited_out(halt)
        return None

    async def _waited_out(self, halt: Halt) -> None:
        async def turn(stop: asyncio.Event) -> None:
            await self._realigned(halt, await self._epoch())

        try:
            await retrying(turn, self.stop)
        except SchemaChanged:  # before the first start there is nothing to realign, nor to record it in
            with suppress(SchemaChanged):
                await self._say_halted(halt, self.roles.names[0])
            await self.stop.wait()

    async def _prepared(self) -> Prepared | None:
        """Examine every part before the first start, then make relations; waits while a part is away.
        None: told to stop meanwhile."""
        prepared: list[Prepared] = []

        async def turn(stop: asyncio.Event) -> None:
            source, target = self.parts.source("prepare"), self.parts.target("prepare")
            try:
                if not await has_begun(target):
                    refuse(await examine(self.parts, START_LIMIT_S))
                made = await prepare(source, target, self.settings, self.contracts)
                async with target.begin() as tx:  # what halted such a process before is met again, or was mended
                    embedders = [g.role for g in made.generations] if self.roles.embed else []
                    await tx.ledger.clear_halt([*self.roles.names, *embedders])
                prepared.append(made)
            finally:
                await source.close()
                await target.close()

        await retrying(turn, self.stop)
        return prepared[0] if prepared else None

    def _loops(self, prepared: Prepared) -> list[Awaitable[None]]:
        loops: list[Awaitable[None]] = []
        if self.roles.stream or self.roles.backfill:
            loops.append(self._replication(prepared))
        if self.roles.embed:
            loops += self._embedding(prepared)
        loops.append(self.orders.run(self.stop))
        return loops

    async def _drained(self, loops: list[Awaitable[None]]) -> None:
        """Run loops together; after `stop` they have DRAIN_S to end."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._loop(loop)) for loop in loops]

            async def drain() -> None:
                await self.stop.wait()
                if all(task.done() for task in tasks):
                    return
                log.info("draining: what is open ends within %.0f s; a second signal leaves at once", DRAIN_S)
                _, late = await asyncio.wait(tasks, timeout=DRAIN_S)
                for task in late:
                    log.warning("a loop did not end within %.0f s: cancelled", DRAIN_S)
                    task.cancel()

            group.create_task(drain())

    async def _loop(self, loop: Awaitable[None]) -> None:
        try:
            await loop
        finally:
            if not self.stop.is_set() and not (self.roles.stream or self.roles.embed):
                self.stop.set()  # the backfill is complete and this process has nothing else to do

    async def _replication(self, prepared: Prepared) -> None:
        """Fix the start, then follow and copy. A Halt is recorded and waited out; where an operator has the stream
        realigned, this process goes on with fresh parts."""
        halted: Halt | None = None
        epoch = 0

        async def turn(stop: asyncio.Event) -> None:
            nonlocal halted, epoch
            if halted is not None:
                await self._realigned(halted, epoch)
                halted = None
            epoch = await self._epoch()  # before the start is compared: a realignment in between is not missed
            await self._begin(prepared)

        while not self.stop.is_set():
            try:
                await retrying(turn, self.stop)
                if not self.stop.is_set():
                    await self._replicate(prepared, epoch)
                return
            except* Halt as halts:
                halted = first_of(halts)

    async def _realigned(self, halt: Halt, epoch: int) -> None:
        """Record a halt and wait until the migration has another epoch, or for the stop."""
        role = self.roles.names[0]
        if isinstance(halt, ProgramOutdated):
            await self._halted(halt, role)
            return
        halt = await self._root(halt)
        await self._say_halted(halt, role)
        while not self.stop.is_set() and await self._epoch() == epoch:
            await wait(self.stop, HALTED_POLL_S)
        if self.stop.is_set():
            return
        log.info("the stream was realigned: going on")
        self.halts.discard((role, halt.id))
        self.running.halted_by = None
        target = self.parts.target("halt")
        try:
            async with target.begin() as tx:  # as at a start: what halted it is met again, or was mended
                await tx.ledger.clear_halt([role])
        finally:
            await target.close()

    async def _root(self, halt: Halt) -> Halt:
        """What is to be said instead, where something else lies behind it."""
        async with AsyncExitStack() as stack:
            parts = self.parts.source("halt"), self.parts.feed("halt"), self.parts.target("halt")
            for part in parts:
                stack.push_async_callback(part.close)
            return await root_of(halt, *parts)

    async def _epoch(self) -> int:
        target = self.parts.target("epoch")
        try:
            async with target.begin() as tx:
                return (await tx.ledger.load()).epoch
        finally:
            await target.close()

    async def _begin(self, prepared: Prepared) -> None:
        """Record or compare the start."""
        source, feed, target = self.parts.source("start"), self.parts.feed("start"), self.parts.target("start")
        try:
            await start.begin(source, feed, target, prepared.tables)
        finally:
            await source.close()
            await feed.close()
            await target.close()

    async def _replicate(self, prepared: Prepared, epoch: int) -> None:
        async with AsyncExitStack() as self.replication, asyncio.TaskGroup() as group:
            if self.roles.stream:
                stream = self._stream(prepared, epoch)
                group.create_task(stream.run(self.stop))
                group.create_task(self._pulse(prepared).run(self.stop, stream))
                group.create_task(self._completion(prepared).run(self.stop, stream))
                group.create_task(self._sweep(prepared).run(self.stop, stream))
                group.create_task(self._index(prepared).run(self.stop, stream))
            if self.roles.backfill:
                group.create_task(self._copied(prepared))

    async def _copied(self, prepared: Prepared) -> None:
        workers = [self._backfill(prepared, n) for n in range(self.settings.limits.backfill_workers)]

        async def copy(worker: Backfill) -> None:
            await worker.run(self.stop)
            if sum(w.is_complete for w in workers) == 1:  # the first to see it; the others still wait for their peers
                log.info("the backfill is complete")

        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(copy(worker))

    async def _halted(self, halt: Halt, role: str) -> None:
        """Record it and stay up, so that status and metrics answer, until told to stop."""
        await self._say_halted(halt, role)
        await self.stop.wait()

    async def _say_halted(self, halt: Halt, role: str) -> None:
        if (role, halt.id) not in self.halts:  # several embedders meet the same one
            self.halts.add((role, halt.id))
            log.error("halted: %s: %s. %s", halt.id, halt.message, halt.hint)
            self.running.halted_by = halt.id
            if not isinstance(halt, ProgramOutdated):  # what it would write there may mean something else
                await self._record_halt(halt, role)

    async def _record_halt(self, halt: Halt, role: str) -> None:
        target = self._held(self.parts.target("halt"))

        async def turn(stop: asyncio.Event) -> None:
            async with target.begin() as tx:
                await tx.ledger.halt(halt.id, HaltNote(halt.message, halt.hint, halt.command), role)
                await tx.ledger.journal("halt", halt.id, {"message": halt.message})

        await retrying(turn, self.stop)

    def _stream(self, prepared: Prepared, epoch: int) -> Stream:
        return Stream(
            StreamParts(
                source=self._lent(self.parts.source("stream")),
                feed=self._lent(self.parts.feed("stream")),
                target=self._lent(self.parts.target("stream")),
                decoder=self.parts.decoder(prepared.tables, epoch),
                tables=prepared.tables,
                owner=self.owner,
                limits=self.settings.limits,
                clock=asyncio.get_running_loop().time,
                counts=self.running.stream,
            )
        )

    def _pulse(self, prepared: Prepared) -> PulseLoop:
        return PulseLoop(
            PulseParts(
                migration=self.settings.name,
                source=self._lent(self.parts.source("pulse")),
                feed=self._lent(self.parts.feed("pulse")),
                capture=self._lent(self.parts.capture("pulse")),
                target=self._lent(self.parts.target("pulse")),
                tables=prepared.tables,
                expected=expected_connector(self.settings),
                clock=asyncio.get_running_loop().time,
                interval_s=self.settings.pulse.interval_s,
            )
        )

    def _completion(self, prepared: Prepared) -> Completion:
        source, target = self.parts.source("complete"), self.parts.target("complete")
        return Completion(self._lent(source), self._lent(target), prepared.tables)

    def _sweep(self, prepared: Prepared) -> Sweep:
        return Sweep(self._lent(self.parts.target("sweep")), prepared.tables, lambda: self.orders.may_copy)

    def _index(self, prepared: Prepared) -> IndexBuild:
        target, indexes = self.parts.target("index"), self.parts.indexes("index")
        return IndexBuild(self._lent(target), self._lent(indexes), prepared.tables)

    def _backfill(self, prepared: Prepared, n: int) -> Backfill:
        source, target = self.parts.source(f"backfill-{n}"), self.parts.target(f"backfill-{n}")
        worker = Backfill(
            self._lent(source),
            self._lent(target),
            prepared.tables,
            f"{self.owner}:{n}",
            self.settings.limits,
            lambda: self.orders.may_copy,
        )
        self.running.backfill.append(worker.counts)
        return worker

    def _embedding(self, prepared: Prepared) -> list[Awaitable[None]]:
        """The workers of every configured generation. One thread renders and cuts for all of them."""
        cpu = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cut")
        self.stack.callback(cpu.shutdown, wait=False)
        loops: list[Awaitable[None]] = []
        lifetimes: list[Lifetime] = []
        for chosen, generation in zip(self.settings.generation, prepared.generations, strict=True):
            lifetime = Lifetime(self._held(self.parts.target(f"lifetime-{chosen.name}")), generation)
            crew = self._crew(chosen, lifetime, prepared, cpu)
            lifetimes.append(lifetime)
            for n in range(chosen.limits.in_flight):
                name = f"{generation.name}-{n}"
                target = self._held(self.parts.target(f"embed-{name}"))
                worker = EmbedWorker(target, f"{self.owner}:{name}", crew)
                loops.append(self._embedded(lifetime, worker.run(lifetime.ended)))
        return [*loops, *(self._watched(lifetime, lifetimes) for lifetime in lifetimes)]

    async def _embedded(self, lifetime: Lifetime, loop: Awaitable[None]) -> None:
        """One embedder's loop. A Halt of it is recorded; replication and other generations go on."""
        try:
            await lifetime.within(loop)
        except Halt as halt:
            await self._halted(halt, lifetime.generation.role)

    async def _watched(self, lifetime: Lifetime, lifetimes: Sequence[Lifetime]) -> None:
        """See the end of a dropped generation; a process that embeds nothing any more has nothing else to do."""
        await lifetime.run(self.stop)
        if all(each.is_dropped for each in lifetimes) and self.roles.names == ("embed",):
            self.stop.set()

    def _crew(self, chosen: GenerationSettings, lifetime: Lifetime, prepared: Prepared, cpu: Executor) -> Crew:
        generation, ended = lifetime.generation, lifetime.ended
        contract = self.contracts[self.settings.generation.index(chosen)]
        tokenizer = self.parts.tokenizer(chosen)
        canary = contract.document_prefix + CANARY
        embedder = self._held(self.parts.embedder(chosen))
        budget = self._held(self.parts.target(f"gate-{chosen.name}"))
        clock = asyncio.get_running_loop().time
        gate = Gate(budget, generation, chosen.limits, self.orders, clock, partial(pause_until, ended))
        self.running.gates[generation.name] = gate
        provider = Provider(embedder, gate, generation, canary, tokenizer.count(canary), clock, stopping=ended.is_set)
        return Crew(
            generation=generation,
            contract=contract,
            tables=prepared.tables,
            provider=provider,
            orders=self.orders,
            tokenizer=tokenizer,
            cut=cut_of(contract, tokenizer),
            limits=chosen.limits,
            claim_lease_s=self.settings.limits.claim_lease_s,
            cpu=cpu,
            most_input_tokens=chosen.most_input_tokens,
            counts=self.running.embed.setdefault(generation.name, EmbedCounts()),
        )

    def _held(self, part: Part) -> Part:
        """Close this part when the supervisor ends."""
        self.stack.push_async_callback(part.close)
        return part

    def _lent(self, part: Part) -> Part:
        """Close this part when replication ends, or halts."""
        self.replication.push_async_callback(part.close)
        return part

    async def _tick(self) -> None:
        """Prove that the loop turns; a blocked loop stops this and `/livez` says so."""
        while True:
            self.running.turned_at = time.monotonic()
            await asyncio.sleep(0.5)


def stay_responsive() -> None:
    """Let the event loop run beside the worker thread (`./dev bench stall`): whatever is imported stays, and is not
    looked at by every garbage collection; and the worker's bytecode gives way after 1 ms instead of 5."""
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.001)
