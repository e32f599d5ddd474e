"""Who goes on: the scheduler of a history, its processes, and what is done to them.

Whenever no task of the product can go on by itself, `turn` takes one step: a parked call is carried out (or fails), a
writer, the connector or the broker does one thing, the clock moves to the next timer or leaps, or a process is killed,
frozen, thawed, stopped or started. Which of these, the tape says.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from daemon.core.chunking import cut_of
from daemon.errors import RevectorError
from daemon.service.supervise import Roles, Supervisor
from tests.fakes import Died, VirtualClock, WordTokenizer
from tests.simulation.checks import Checks, Violation
from tests.simulation.choices import Choices
from tests.simulation.operators import Operator
from tests.simulation.parts import CLAIM_LEASE_S, LEASE_S, ProcessParts, World
from tests.simulation.process import NEVER_FAIL, Outcome, Parked, Process
from tests.simulation.swarm import Swarm, swarm_of
from tests.simulation.target import Session

ROLES = (
    Roles(stream=True, backfill=True, embed=True),
    Roles(stream=True),
    Roles(embed=True),
    Roles(backfill=True),
    Roles(stream=True, embed=True),
)
JUMPS_S = (LEASE_S + 1.0, 3.0, CLAIM_LEASE_S + 1.0, 130.0)
CALM_STEPS = 30_000


class Scheduler:
    """violation: what was broken, if anything. trace: what happened, but for calls that went well."""

    def __init__(self, seed: int, tape: Sequence[int] | None = None, steps: int | None = None) -> None:
        self.seed = seed
        self.choices = Choices(seed, tape)
        self.swarm: Swarm = swarm_of(self.choices, steps)
        self.clock = VirtualClock(1000.0)
        self.world = World(self.choices, self.swarm, self.clock)
        self.counts: Counter[str] = self.world.upstream.counts
        settings = self.world.settings("v1")
        contract = settings.contract_of(settings.generation[0], WordTokenizer.identity)
        self.checks = Checks(self.world.database, self.world.upstream, cut_of(contract, WordTokenizer()))
        self.checks.counts, self.checks.told = self.counts, self.fail
        self.parked: list[Parked] = []
        self.slots: dict[str, Process | None] = dict.fromkeys([f"p{n}" for n in range(self.swarm.slots)])
        self.slots |= dict.fromkeys([f"op{n}" for n in range(self.swarm.operators)])
        self.frozen: list[Process] = []
        self.orphans: list[Session] = []
        self.started = 0
        self.steps = 0
        self.limit = self.swarm.steps
        self.violation: BaseException | None = None
        self.trace: list[str] = []
        self.is_over: asyncio.Event
        swarm = self.swarm
        acts: tuple[tuple[Callable[[], None], float], ...] = (
            (self.go, 100),
            (self.pass_time, swarm.clock),
            (self.world.upstream.move, swarm.upstream),
            (self.leap, swarm.jump),
            (self.kill_one, swarm.kill),
            (self.stop_one, swarm.stop),
            (self.freeze_one, swarm.freeze),
            (self.thaw_one, swarm.thaw if swarm.freeze else 0),
            (self.start_one, swarm.start),
            (self.hold_one, swarm.hold),
            (self.end_orphan, swarm.orphan if swarm.freeze or swarm.kill else 0),
        )
        self.acts, self.weights = [act for act, _ in acts], [weight for _, weight in acts]
        self.timeout: float | None = None
        self.calm_until = CALM_STEPS

    def fail(self, error: BaseException) -> None:
        if self.violation is None:
            self.violation = error
            self.note(f"VIOLATION: {error}")
            self.is_over.set()

    def note(self, what: str) -> None:
        self.trace.append(f"{self.steps:6} {self.clock.now_s:9.2f} {what}")

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException) and not isinstance(error, Died | RevectorError):
            self.fail(error)

    # --- one step

    def turn(self, timeout: float | None) -> None:
        self.steps += 1
        self.timeout = timeout
        if self.choices.is_calm:
            self.calm_turn()
        elif self.steps >= self.limit:
            self.is_over.set()
            self.choices.is_calm = True
        else:
            self.acts[self.choices.weighted(self.weights)]()

    def calm_turn(self) -> None:
        if self.steps % 16 == 0:
            self.world.connector.deliver()
            self.world.upstream.flush()
        if self.steps > self.calm_until:
            self.fail(Violation(f"does not come to rest in {CALM_STEPS} steps"))
        self.go()

    def eligible(self) -> list[Parked]:
        now, step = self.clock.now_s, self.steps
        return [c for c in self.parked if c.until <= now and c.held <= step and not c.process.is_frozen]

    def go(self) -> None:
        """A parked call is carried out."""
        ready = self.eligible()
        if not ready:
            if self.timeout is None or self.choices.chance(0.4):
                self.idle()
            else:
                self.pass_time()
            return
        hasty = [call for call in ready if call.process.is_hasty]
        if hasty and self.choices.chance(self.swarm.haste):
            ready = hasty
        call = ready[self.choices.below(len(ready))]
        outcome = Outcome.DONE
        swarm = self.swarm
        if call.point not in NEVER_FAIL:
            if self.choices.chance(swarm.slow):
                call.until = self.clock.now_s + 1 + self.choices.below(60)
                self.counts["slow calls"] += 1
                return
            if self.choices.chance(swarm.refused):
                outcome = Outcome.REFUSED
                self.counts["refused calls"] += 1
            elif self.choices.chance(swarm.lost * (10 if call.point == "target.commit" else 1)):
                outcome = Outcome.LOST
                self.counts["ambiguous commits" if call.point == "target.commit" else "lost answers"] += 1
            if outcome is not Outcome.DONE:
                self.note(f"{call.process} {call.point}: {outcome.value}")
        self.release(call, outcome)

    def hold_one(self) -> None:
        """One call stands still while much else goes on."""
        if ready := self.eligible():
            call = ready[self.choices.below(len(ready))]
            call.held = self.steps + self.choices.pick((30, 100, 300))
            self.counts["held calls"] += 1

    def release(self, call: Parked, outcome: Outcome) -> None:
        self.parked.remove(call)
        call.is_waiting = False
        if not call.go.done():
            call.go.set_result(outcome)

    def idle(self) -> None:
        """Nothing of the product waits for its turn."""
        if not self.choices.is_calm:
            if self.choices.below(3) == 2:
                self.start_one()
            else:
                self.world.upstream.move()
        elif self.timeout is None and not self.parked:
            self.fail(Violation("everything waits, and nothing will come"))
        else:
            self.pass_time()

    def pass_time(self) -> None:
        """To the next timer, or a little further."""
        waits = [] if self.timeout is None else [self.timeout]
        waits += [call.until - self.clock.now_s for call in self.parked if call.until > self.clock.now_s]
        if waits:
            more = 0.0 if self.choices.is_calm else self.choices.pick((0.0, 0.0, 0.0, 0.5))
            self.clock.advance(min(waits) + more)

    def leap(self) -> None:
        """Leases and claims run out while their owners still believe in them."""
        seconds = self.choices.pick(JUMPS_S)
        self.clock.advance(seconds)
        self.counts["leaps of the clock"] += 1
        self.note(f"{seconds} s pass")

    # --- processes

    def living(self) -> list[Process]:
        return [process for process in self.slots.values() if process is not None]

    def start_one(self) -> None:
        empty = [slot for slot, process in self.slots.items() if process is None]
        if empty:
            slot = self.choices.pick(empty)
            if not slot.startswith("op"):
                roles = ROLES[0] if slot == "p0" else ROLES[self.choices.below(len(ROLES))]
                self.start_daemon(slot, roles)
            elif self.world.database.state.migration.started:
                self.start_operator(slot)

    def names(self) -> list[str]:
        """Generations that a configuration of today names."""
        known = [g.generation.name for g in self.world.database.state.generations.values()]
        return known or ["v1"]

    def start_daemon(self, slot: str, roles: Roles) -> Process:
        process = self.new_process(slot)
        parts = ProcessParts(self.world, process, self.world.settings(*self.names()))
        supervisor = Supervisor(parts, roles, process.stop)
        supervisor.owner = process.owner
        self.note(f"{process} starts: {', '.join(roles.names)}")
        self.live(slot, process, supervisor.run)
        return process

    def start_operator(self, slot: str, command: Callable[[Operator], Awaitable[object]] | None = None) -> Process:
        process = self.new_process(slot)
        parts = ProcessParts(self.world, process, self.world.settings(*self.names()))
        operator = Operator(parts, self.choices, self.counts)
        self.live(slot, process, operator.run)
        return process

    def new_process(self, slot: str) -> Process:
        self.started += 1
        process = Process(f"{slot}#{self.started}", self.parked)
        self.slots[slot] = process
        return process

    def live(self, slot: str, process: Process, run: Callable[[], Awaitable[object]]) -> None:
        async def lived() -> None:
            try:
                await run()
            except RevectorError as error:
                self.counts[f"ended by {error.id}"] += 1
                if not process.is_dead:
                    self.note(f"{process} ended: {error.id}: {error.message}")
            except asyncio.CancelledError:
                pass
            except BaseException as error:
                if not process.is_dead:
                    error.add_note(f"in {process}")
                    self.fail(error)
            finally:
                for session in list(process.sessions):
                    if not session.is_orphan:
                        session.end()
                if self.slots.get(slot) is process:
                    self.slots[slot] = None

        process.task = asyncio.get_running_loop().create_task(lived())

    def kill_one(self) -> None:
        living = self.living()
        if living:
            process = self.choices.pick(living)
            self.counts["kills"] += 1
            calls = [call.point for call in self.parked if call.process is process]
            self.counts["kills in a transaction"] += bool(process.sessions)
            self.note(f"{process} is killed, in {', '.join(calls)}")
            self.kill(process)

    def kill(self, process: Process) -> None:
        """A commit that it had sent may happen, now or later, or never."""
        process.is_dead = True
        for session in list(process.sessions):
            if session.is_committing and self.choices.chance(0.6):
                session.is_orphan = True
                self.orphans.append(session)
            else:
                session.end()
        if process in self.frozen:
            self.frozen.remove(process)
        for call in [call for call in self.parked if call.process is process]:
            self.parked.remove(call)
            call.is_waiting = False
            if not call.go.done():
                call.go.set_exception(Died())
        for slot, held in self.slots.items():
            if held is process:
                self.slots[slot] = None
        if process.task is not None:
            process.task.cancel()

    def end_orphan(self) -> None:
        """The server gets to what a dead process had sent, or ends the session of a frozen one."""
        if self.orphans:
            session = self.orphans.pop(self.choices.below(len(self.orphans)))
            if self.choices.below(3) and not session.is_ended:
                session.commit()
                self.counts["commits of the dead"] += 1
                self.note(f"a commit of {session} happens")
            session.end()
        for process in self.frozen:
            for session in list(process.sessions):
                session.end()
                self.counts["sessions of the frozen ended"] += 1

    def stop_one(self) -> None:
        living = self.living()
        if living:
            process = self.choices.pick(living)
            self.note(f"{process} is told to stop")
            self.counts["stops"] += 1
            if process.name.startswith("op") and process.task is not None:
                process.task.cancel()
            process.stop.set()

    def freeze_one(self) -> None:
        living = [process for process in self.living() if not process.is_frozen]
        if living:
            process = self.choices.pick(living)
            process.is_frozen = True
            self.frozen.append(process)
            process.was_owner = self.world.database.state.migration.lease_owner == process.owner
            self.counts["freezes"] += 1
            self.note(f"{process} is frozen")

    def thaw_one(self) -> None:
        if self.frozen:
            process = self.frozen.pop(self.choices.below(len(self.frozen)))
            process.is_frozen = False
            lost = process.was_owner and self.world.database.state.migration.lease_owner != process.owner
            self.counts["zombies"] += lost
            self.note(f"{process} goes on{', a zombie' if lost else ''}")
