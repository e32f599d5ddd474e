"""Where a process can be made to die: at each call that the product makes through a port.

Everything durable passes a port, so the ports' calls are the fail points: the product has no line for them, and a new
step of it is a new point by itself. `Armed` stands where `daemon.__main__` hands over its parts; it passes every call
on to the real connector, and where a point is armed the process ends there by its own SIGKILL: no handler, no flush.

A point is `<role>.<port>.<method> <when>`. Calls that change something outside have three: before, during (when the
answer is first awaited, or a thread kills meanwhile), after; all others one, after. A transaction's calls are points,
and so is its commit, which is named after the first call in it: what it wrote is lost before, done after, either
during.

What was reached, and what was in flight when the process died, is written to a file with one `write` each: the kernel
keeps it. Knows nothing of how processes are started.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from daemon.errors import ItemRefused
from daemon.parts import Parts

# Readings: a transaction of these alone has nothing to lose. Whatever is not listed counts as a change.
_READS = """
backfill_progress backlog breaks canary certificate_age certificates checkpoint chosen chosen_of chunk_page condition
counts differing documents forecast found generation_contract generations highest_seq index_state keys_page last
last_row load looks lowest_owed missing orders owed paced_by pieces quarantine routed row_ids running sample scans
suspects tables tally truncate_count
"""
READS = frozenset(_READS.split())
# Calls outside of a transaction that change something, and how long they are let run before they are cut short.
CHANGES = {
    "source.emit": 0.002,
    "source.own_xid": 0.002,
    "feed.commit": 0.001,
    "embedder.embed": 0.01,
    "target.prepare": 0.02,
    "target.create_tables": 0.02,
    "target.create_chunks": 0.02,
    "indexes.build": 0.03,
    "indexes.analyze_and_prewarm": 0.01,
}
COMMIT_S = 0.002
AT_FIRST_WAIT = 0.7  # share of the kills during a call that no short call escapes
# They only look, for the operator's eyes: nothing to lose and nothing to be wrong.
LOOKERS = ("status", "plan", "doctor", "orders", "lifetime")
EMBEDDERS = ("run", "embed", "verify")  # commands; others ask the provider only whether it is there
OF_MANY = ("backfill", "embed", "gate")  # roles with a number or a generation behind them

# A reading changes nothing: to die after one is to die after the change before it. Where the steps of a role are
# readings they are points all the same; here, and of these roles in the target's transactions too.
READERS = ("stream", "backfill", "embed", "verify", "prove")
READERS_IN_TRANSACTIONS = ("embed", "prove")

# What a worker of `embed` has claimed, sends (in tasks of their own, which inherit this) and stores.
_batch: ContextVar[str] = ContextVar("batch", default="")
_numbers = itertools.count()


@dataclass(frozen=True)
class Arm:
    """Which points kill: every one that is not spared, each time with this chance. all_readings: of
    every role."""

    spared: frozenset[str] = frozenset()
    chance: float = 1.0
    seed: int = 0
    all_readings: bool = False


class Killer:
    """One process's points. evidence: a file descriptor open for appending. kind: the command, for the embedder."""

    def __init__(self, arm: Arm, evidence: int, kind: str) -> None:
        self.arm, self.kind = arm, kind
        self._evidence = evidence
        self._random = random.Random(arm.seed)
        self._reached: set[str] = set()
        self._death = threading.Lock()
        self.pages: Counter[str] = Counter()  # rows that a worker read and has not stored
        self.texts: dict[str, set[str]] = defaultdict(set)  # that a batch sent to the provider and has not stored

    def note(self, **facts: Any) -> None:
        """Evidence that outlives this process."""
        os.write(self._evidence, json.dumps(facts).encode() + b"\n")

    def at(self, point: str) -> None:
        """The process is here; it goes on, or it ends."""
        if self._is_armed(point):
            self.kill(point)
        if point not in self._reached:
            self._reached.add(point)
            self.note(reached=point)

    def watch(self, point: str, most_s: float) -> _Watch:
        """Kills while the call that follows is awaited: when it first waits, or after a while unless it ended."""
        if not self._is_armed(point):
            return _Watch(self, point, None)
        return _Watch(self, point, 0.0 if self._random.random() < AT_FIRST_WAIT else self._random.uniform(0, most_s))

    def kill(self, point: str) -> None:
        self._death.acquire()  # of two threads one kills; never released
        texts = {batch: len(sent) for batch, sent in list(self.texts.items()) if sent}  # another thread's, maybe
        in_flight = {"pages": dict(+self.pages), "texts": texts}
        self.note(killed=point, at=time.time(), **in_flight)
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()

    def _is_armed(self, point: str) -> bool:
        return point not in self.arm.spared and self._random.random() < self.arm.chance

    def has_readings(self, role: str, *, in_transaction: bool = False) -> bool:
        """Whether readings of this role are points."""
        readers = READERS_IN_TRANSACTIONS if in_transaction else READERS
        return self.arm.all_readings or role.startswith(readers)


class _Watch:
    def __init__(self, killer: Killer, point: str, after_s: float | None) -> None:
        self._killer, self._point, self._ended = killer, point, threading.Event()
        self._soon: asyncio.Handle | None = None
        if after_s == 0.0:
            self._soon = asyncio.get_running_loop().call_soon(killer.kill, point)
        elif after_s is not None:
            threading.Thread(target=self._run, args=(after_s,), daemon=True).start()

    def _run(self, after_s: float) -> None:
        if not self._ended.wait(after_s):
            self._killer.kill(self._point)

    def end(self) -> None:
        self._ended.set()
        if self._soon is not None:
            self._soon.cancel()


class Armed:
    """`daemon.parts.Parts` with the killer between."""

    def __init__(self, parts: Parts, killer: Killer) -> None:
        self._parts, self._killer = parts, killer

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._parts, name)
        if name == "embedder" and self._killer.kind in EMBEDDERS:
            return lambda generation: _Port(self._killer, self._killer.kind, name, member(generation))
        if name not in ("source", "target", "feed", "capture", "groundwork", "indexes"):
            return member
        return lambda role: member(role) if role.startswith(LOOKERS) else _Port(self._killer, role, name, member(role))


class _Port:
    """A port behind the killer."""

    def __init__(self, killer: Killer, worker: str, kind: str, port: Any) -> None:
        self._killer, self._worker, self._kind, self._port = killer, worker, kind, port
        first = worker.split("-", maxsplit=1)[0]
        self._role = first if first in OF_MANY else worker

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._port, name)
        if name == "begin":
            return self._begin
        if name == "close" or not inspect.iscoroutinefunction(member):
            return member
        killer, call = self._killer, f"{self._kind}.{name}"
        point, most_s = f"{self._role}.{call}", CHANGES.get(call)

        async def called(*given: Any, **named: Any) -> Any:
            self._note_before(call, given)
            if most_s is None:
                result = await member(*given, **named)
            else:
                killer.at(f"{point} before")
                watch = killer.watch(f"{point} during", most_s)
                try:
                    result = await member(*given, **named)
                except ItemRefused:
                    self._note_refused(given)
                    raise
                finally:
                    watch.end()
            self._note_after(call, result)
            if most_s is not None or killer.has_readings(self._role):
                killer.at(f"{point} after")
            return result

        return called

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[Any]:
        calls: list[str] = []
        stored: set[str] = set()
        watch, changes = None, False
        try:
            async with self._port.begin() as unit:
                yield _Unit(self._killer, self._role, (calls, stored), unit)
                point = f"{self._role}.target.commit({calls[0] if calls else ''})"
                changes = any(call not in READS for call in calls)
                if changes:
                    self._killer.at(f"{point} before")
                    watch = self._killer.watch(f"{point} during", COMMIT_S)
        finally:
            if watch is not None:
                watch.end()
        self._note_commit(calls, stored)
        if changes:
            self._killer.at(f"{point} after")

    def _note_before(self, call: str, given: Sequence[Any]) -> None:
        if call == "embedder.embed":
            self._killer.texts[_batch.get()].update(given[0])
            self._killer.note(sent=[hashlib.sha256(text.encode()).hexdigest()[:12] for text in given[0]])
        elif call == "feed.seek":
            self._killer.note(seek=_offsets(given[0]))

    def _note_refused(self, given: Sequence[Any]) -> None:
        self._killer.texts[_batch.get()].difference_update(given[0])  # what is refused is not billed

    def _note_after(self, call: str, result: Any) -> None:
        if call == "source.page":
            if dropped := self._killer.pages[self._worker]:  # its transaction failed, such as by a deadlock
                self._killer.note(dropped=dropped)
            self._killer.pages[self._worker] = len(result.rows)
            self._killer.note(page=len(result.rows))
        elif call == "feed.poll" and result.next_offsets:
            self._killer.note(polled=_offsets(result.next_offsets), records=len(result.records))

    def _note_commit(self, calls: Sequence[str], stored: set[str]) -> None:
        if "advance_range" in calls:
            self._killer.pages[self._worker] = 0
        if "claim" in calls:
            self._killer.texts.pop(_batch.get(), None)  # what it did not store was of no use any more
            _batch.set(f"{self._worker}/{next(_numbers)}")
        self._killer.texts[_batch.get()].difference_update(stored)  # of a batch, or of a part of it


class _Unit:
    """A transaction's ports. noted: the calls that are made, and the texts that get vectors."""

    def __init__(self, killer: Killer, role: str, noted: tuple[list[str], set[str]], unit: Any) -> None:
        self._killer, self._role, self._noted, self._unit = killer, role, noted, unit

    def __getattr__(self, name: str) -> Any:
        return _Calls(self._killer, f"{self._role}.{name}", self._noted, getattr(self._unit, name))


class _Calls:
    def __init__(self, killer: Killer, place: str, noted: tuple[list[str], set[str]], port: Any) -> None:
        self._killer, self._place, self._port = killer, place, port
        self._calls, self._stored = noted

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._port, name)
        if not inspect.iscoroutinefunction(member):
            return member

        async def called(*given: Any, **named: Any) -> Any:
            self._calls.append(name)
            if name == "replace" and self._place.endswith(".vectors"):
                _, _, chunks, *_ = given
                self._stored.update(chunk.text for chunk in chunks)
            result = await member(*given, **named)
            if name not in READS or self._killer.has_readings(self._place, in_transaction=True):
                self._killer.at(f"{self._place}.{name} after")
            return result

        return called


def _offsets(offsets: Any) -> dict[str, int]:
    return {f"{at.topic}/{at.partition}": offset for at, offset in offsets.items()}
