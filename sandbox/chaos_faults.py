"""The faults of a chaos run, made on the real parts. Each returns when what it took away is back, with evidence.

Evidence comes from outside of who made the fault: exit statuses, the kernel's process states, other pids, counters of
proxies and provider, SQLSTATEs. Without it the fault did not land, which is an error of the run. One that this machine
does not permit is `Skipped`, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg

from sandbox.chaos_copy import restarted_in_copy
from sandbox.chaos_fleet import Member, logged, state_of, state_when_stopped
from sandbox.chaos_network import network_fault
from sandbox.chaos_plan import Fault
from sandbox.chaos_world import HONEST, World
from sandbox.parts import Part
from sandbox.processes import SandboxError
from sandbox.provider_script import Faults as ProviderFaults
from sandbox.provider_script import Latency, Script

Evidence = dict[str, Any]
LAND_LIMIT_S = 60.0
SLOT_LIMIT_S = 90.0

SESSIONS = (
    "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity "
    "where application_name like 'revector:%%' and pid <> pg_backend_pid()"
)
CLAIMS = "select count(*) from revector.work where claimed_by like %s and claimed_until > now()"


class NotLanded(SandboxError):
    """A planned fault left no evidence."""


class Skipped(Exception):
    """This machine does not permit the fault."""


def make(world: World, fault: Fault) -> Evidence:
    """Make it, wait as long as it lasts, undo it. Raises NotLanded, Skipped."""
    name = fault.kind.name
    if fault.kind.link is not None:
        evidence = network_fault(world.proxied.all[fault.kind.link], name, fault.seconds)
    elif name.startswith("provider-"):
        evidence = _provider(world, name.removeprefix("provider-"), fault.seconds)
    else:
        evidence = MADE[name](world, fault.seconds)
    if not evidence.pop("landed"):
        raise NotLanded(f"{name}: {evidence}")
    return evidence


def _holder(world: World) -> Member | None:
    try:
        return world.holder()
    except psycopg.OperationalError:
        return None


def _stream_kill(world: World, seconds: float) -> Evidence:
    member = world.fleet.members["stream-a"]
    held = _holder(world) is member
    evidence = member.kill()
    member.start()
    return evidence | {"held_lease": held, "landed": evidence["exit_status"] == -9}


def _stream_restart(world: World, seconds: float) -> Evidence:
    member = world.fleet.members["stream-a"]
    held = _holder(world) is member
    evidence = member.terminate()
    member.start()
    return evidence | {"held_lease": held, "landed": evidence["exit_status"] == 0}


def _stream_freeze(world: World, seconds: float) -> Evidence:
    holder = _holder(world)
    member = holder or world.fleet.members["stream-b"]
    evidence = _frozen(member, seconds)
    return evidence | {"process": member.name, "held_lease": holder is not None}


def _embed_kill(world: World, seconds: float) -> Evidence:
    member = world.fleet.members["embed-b"]
    evidence = member.kill()
    member.start()
    claims = _claims(world, evidence["pid"])
    return evidence | {"claims_held": claims, "landed": evidence["exit_status"] == -9}


def _embed_freeze(world: World, seconds: float) -> Evidence:
    member = world.fleet.members["embed-a"]
    return _frozen(member, seconds) | {"claims_held": _claims(world, member.pid)}


def _claims(world: World, pid: int) -> int | None:
    try:
        return int(world.scalar(CLAIMS, f"%:{pid}:%"))
    except psycopg.OperationalError:
        return None


def _frozen(member: Member, seconds: float) -> Evidence:
    evidence = member.freeze()
    time.sleep(seconds)
    evidence["state_at_end"] = state_of(member.pid)
    member.thaw()
    return evidence | {"landed": evidence["state"] == evidence["state_at_end"] == "T"}


def _restart(part: Callable[[World], Part], *, crash: bool) -> Callable[[World, float], Evidence]:
    """Stop it in order or crash it, and start it again at once."""

    def made(world: World, seconds: float) -> Evidence:
        it = part(world)
        before, began = it.pid, time.monotonic()
        it.crash() if crash else it.stop()
        ended = time.monotonic()
        gone = not state_of(before)
        it.start()
        evidence = {"pid": before, "pid_after": it.pid, "stopped_in_s": round(ended - began, 2)}
        return evidence | {"started_in_s": round(time.monotonic() - ended, 2), "landed": gone and it.pid != before}

    return made


def _freeze(part: Callable[[World], Part]) -> Callable[[World, float], Evidence]:
    """Stop its clock for a while."""

    def made(world: World, seconds: float) -> Evidence:
        it = part(world)
        it.freeze()
        state = state_when_stopped(it.pid)
        time.sleep(seconds)
        at_end = state_of(it.pid)
        it.thaw()
        return {"pid": it.pid, "state": state, "state_at_end": at_end, "landed": state == at_end == "T"}

    return made


def _connector_restart(world: World, seconds: float) -> Evidence:
    assert world.pipeline is not None
    before = world.walsender()
    world.pipeline.connector.restart_task()
    after = world.wait_walsender(before, SLOT_LIMIT_S)
    return {"walsender": before, "walsender_after": after, "landed": after is not None and after != before}


def _in_copy(world: World, seconds: float) -> Evidence:
    assert world.pipeline is not None
    before = world.walsender()
    evidence = restarted_in_copy(world.source_dsn, world.sandbox.broker.admin(), world.pipeline)
    after = world.wait_walsender(before, SLOT_LIMIT_S)
    return evidence | {"walsender": before, "walsender_after": after}


def _sessions(which: str) -> Callable[[World, float], Evidence]:
    def made(world: World, seconds: float) -> Evidence:
        dsn = world.source_dsn if which == "source" else world.target_dsn

        def ended() -> int:
            with psycopg.connect(dsn, autocommit=True) as connection:
                row = connection.execute(SESSIONS, ()).fetchone()
            return 0 if row is None else int(row[0])

        sessions = _until_some(ended)
        return {"sessions": sessions, "landed": sessions > 0}

    return made


def _walsender(world: World, seconds: float) -> Evidence:
    before = _until_some(lambda: world.walsender() or 0)
    with psycopg.connect(world.source_dsn, autocommit=True) as connection:
        row = connection.execute("select pg_terminate_backend(%s)", [before]).fetchone()
    after = world.wait_walsender(before, SLOT_LIMIT_S)
    return {"walsender": before, "walsender_after": after, "landed": row is not None and row[0] and after is not None}


def _disk_full(world: World, seconds: float) -> Evidence:
    disk = world.disk
    if disk.why_not is not None:
        raise Skipped(disk.why_not)
    logs = [member.log for member in world.fleet.members.values()]
    before = logged(logs, "SQLSTATE 53100")
    try:
        filled = disk.fill()
        refused = disk.is_full(world.target_dsn)
        time.sleep(seconds)
    finally:
        disk.free()
    met = logged(logs, "SQLSTATE 53100") - before
    return {"bytes": filled, "refused": refused, "met_by_processes": met, "landed": refused}


def _provider(world: World, name: str, seconds: float) -> Evidence:
    if name in ("crash", "freeze"):
        return _provider_away(world, name, seconds)
    before = world.provider.stats()["requests"]
    slow = name == "slow"
    faults = ProviderFaults() if slow else ProviderFaults.model_validate({"always": name, "retry_after_s": 0.5})
    latency = Latency(seconds=2.0) if slow else Latency()
    served: Evidence = {}

    def landed() -> int:
        stats = world.provider.stats()
        served.update(requests=stats["requests"] - before, faults=stats["faults"].get(name, 0))
        return int(served["requests"] if slow else served["faults"])

    try:
        already = world.provider.stats()["faults"].get(name, 0)
        world.provider.set(Script(faults=faults, latency=latency))
        time.sleep(seconds)
        found = _until_some(lambda: landed() - (0 if slow else already))
    finally:
        world.provider.set(HONEST)
    return served | {"landed": found > 0}


def _provider_away(world: World, name: str, seconds: float) -> Evidence:
    provider = world.provider
    if name == "freeze":
        return _freeze(lambda world: world.provider)(world, seconds)
    before = provider.pid
    provider.crash()
    gone = not state_of(before)
    time.sleep(seconds)
    provider.start()
    provider.set(HONEST)
    return {"pid": before, "pid_after": provider.pid, "landed": gone}


def _until_some(count: Callable[[], int]) -> int:
    """The count as soon as it is above 0, or what it is at the deadline."""
    deadline = time.monotonic() + LAND_LIMIT_S
    while (found := count()) <= 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


MADE: dict[str, Callable[[World, float], Evidence]] = {
    "stream-kill": _stream_kill,
    "stream-restart": _stream_restart,
    "stream-freeze-short": _stream_freeze,
    "stream-freeze-long": _stream_freeze,
    "embed-kill": _embed_kill,
    "embed-freeze-short": _embed_freeze,
    "embed-freeze-long": _embed_freeze,
    "broker-restart": _restart(lambda world: world.sandbox.broker, crash=False),
    "broker-crash": _restart(lambda world: world.sandbox.broker, crash=True),
    "broker-freeze": _freeze(lambda world: world.sandbox.broker),
    "connect-restart": _restart(lambda world: world.sandbox.connect, crash=False),
    "connect-crash": _restart(lambda world: world.sandbox.connect, crash=True),
    "connect-freeze": _freeze(lambda world: world.sandbox.connect),
    "connector-restart": _connector_restart,
    "connector-restart-in-copy": _in_copy,
    "source-fast": _restart(lambda world: world.sandbox.source, crash=False),
    "source-immediate": _restart(lambda world: world.sandbox.source, crash=True),
    "source-freeze": _freeze(lambda world: world.sandbox.source),
    "target-fast": _restart(lambda world: world.sandbox.target, crash=False),
    "target-immediate": _restart(lambda world: world.sandbox.target, crash=True),
    "target-freeze": _freeze(lambda world: world.sandbox.target),
    "target-disk-full": _disk_full,
    "source-sessions-terminated": _sessions("source"),
    "target-sessions-terminated": _sessions("target"),
    "walsender-terminated": _walsender,
}
