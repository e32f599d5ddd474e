"""The supervisor's answer to a loop that cannot go on: the others do, and the halt is said."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from daemon.core.model import Generation, HaltNote
from daemon.errors import Halt, IdentityChanged, OffsetsGone, PermissionRefused, RevectorError, SchemaChanged
from daemon.flow import pulse
from daemon.flow.lifetime import Lifetime
from daemon.service import supervise
from daemon.service.supervise import Roles, Supervisor
from tests.fakes import MemoryDatabase, MemoryTarget

IDENTITY = IdentityChanged("identity-changed", "kafka cluster_id was A, is B", "see")


async def test_an_embedder_that_halts_leaves_replication_running_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, recorded, turned = asyncio.Event(), asyncio.Event(), asyncio.Event()
    parts: Any = SimpleNamespace(settings=None)
    supervisor = Supervisor(parts, Roles(stream=True, embed=True), stop)
    said: list[tuple[str, str]] = []

    async def record(halt: Halt, role: str) -> None:
        said.append((halt.id, role))
        recorded.set()

    async def embed() -> None:
        raise SchemaChanged("schema-changed", "target: a relation is gone", "")

    async def listed() -> bool:
        return True

    generation = Generation(3, "v2", "c", 8, "vector", "cosine")
    lifetime = Lifetime(parts, generation)
    monkeypatch.setattr(lifetime, "look", listed)

    async def replicate() -> None:
        await recorded.wait()
        await asyncio.sleep(0)
        turned.set()
        await stop.wait()

    monkeypatch.setattr(supervisor, "_record_halt", record)
    running = asyncio.create_task(supervisor._drained([replicate(), supervisor._embedded(lifetime, embed())]))
    await asyncio.wait_for(turned.wait(), 60)
    assert (said, supervisor.running.halted_by, running.done()) == (
        [("schema-changed", "embed:3")],
        "schema-changed",
        False,
    )
    stop.set()
    await asyncio.wait_for(running, 60)


@pytest.mark.parametrize(
    ("roles", "names"),
    [
        (Roles(stream=True, backfill=True, embed=True), ("stream", "backfill", "embed")),
        (Roles(backfill=True), ("backfill",)),
        (Roles(embed=True), ("embed",)),
    ],
)
def test_a_process_clears_and_records_the_halts_of_its_own_roles(roles: Roles, names: tuple[str, ...]) -> None:
    assert roles.names == names


@pytest.mark.parametrize("is_told", [False, True])
async def test_a_backfill_that_is_complete_leaves_without_talk_of_draining(
    is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stop, copying = asyncio.Event(), asyncio.Event()
    parts: Any = SimpleNamespace(settings=None)
    supervisor = Supervisor(parts, Roles(backfill=True), stop)

    async def copy() -> None:
        copying.set()
        if is_told:
            await stop.wait()
            await asyncio.sleep(0)  # the page that is open

    running = asyncio.create_task(supervisor._drained([copy()]))
    await asyncio.wait_for(copying.wait(), 60)
    if is_told:
        stop.set()
    await asyncio.wait_for(running, 60)
    assert ("draining" in caplog.text) is is_told


async def test_the_complete_backfill_is_said_once_and_not_when_the_process_was_told_to_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    last_sees = asyncio.Event()

    class Worker:
        def __init__(self, sees: asyncio.Event | None, is_complete: bool = True) -> None:
            self.sees, self.will_be, self.is_complete = sees, is_complete, False

        async def run(self, stop: asyncio.Event) -> None:
            if self.sees is not None:
                await self.sees.wait()
            self.is_complete = self.will_be

    def supervisor(workers: list[Worker]) -> Supervisor:
        settings = SimpleNamespace(limits=SimpleNamespace(backfill_workers=len(workers)))
        parts: Any = SimpleNamespace(settings=settings)
        made = Supervisor(parts, Roles(backfill=True), asyncio.Event())
        monkeypatch.setattr(made, "_backfill", lambda prepared, n: workers[n])
        return made

    nothing: Any = None
    copying = asyncio.create_task(supervisor([Worker(None), Worker(last_sees)])._copied(nothing))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert caplog.messages == ["the backfill is complete"]  # a peer still waits
    last_sees.set()
    await asyncio.wait_for(copying, 60)
    await supervisor([Worker(None, is_complete=False)] * 2)._copied(nothing)
    assert caplog.messages == ["the backfill is complete"]


@pytest.mark.parametrize("is_told", [False, True])
async def test_a_halted_process_goes_on_in_another_epoch_and_not_before(
    monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    database, stop, halted = MemoryDatabase(), asyncio.Event(), asyncio.Event()
    closed: list[str] = []
    replicated: list[int] = []
    parts: Any = SimpleNamespace(settings=None, target=lambda role: MemoryTarget(database))
    supervisor = Supervisor(parts, Roles(stream=True), stop)

    async def replicate(prepared: Any, epoch: int) -> None:
        replicated.append(epoch)
        if epoch == 0:
            raise ExceptionGroup("loops", [OffsetsGone("offsets-gone", "kafka: they are gone", "see")])

    async def nothing(*_: object) -> None:
        closed.append("compared")

    async def root(halt: Halt) -> Halt:
        return halt

    async def record(halt: Halt, role: str) -> None:
        async with MemoryTarget(database).begin() as tx:
            await tx.ledger.halt(halt.id, HaltNote(halt.message, halt.hint, None), role)
        halted.set()

    monkeypatch.setattr(supervise, "HALTED_POLL_S", 0.0)
    for name, stub in (("_begin", nothing), ("_replicate", replicate), ("_root", root), ("_record_halt", record)):
        monkeypatch.setattr(supervisor, name, stub)
    running = asyncio.create_task(supervisor._replication(cast(Any, None)))
    await asyncio.wait_for(halted.wait(), 60)
    for _ in range(50):
        await asyncio.sleep(0)
    assert (replicated, running.done(), supervisor.running.halted_by) == ([0], False, "offsets-gone")
    if is_told:
        stop.set()
    else:
        database.state.migration = replace(database.state.migration, epoch=1)
    await asyncio.wait_for(running, 60)
    assert replicated == ([0] if is_told else [0, 1])
    assert bool(database.state.migration.halted) is is_told
    assert (supervisor.running.halted_by is None) is not is_told


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_process_that_halted_before_it_followed_goes_on_in_another_epoch_too(
    monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    database, stop, halted = MemoryDatabase(), asyncio.Event(), asyncio.Event()
    parts: Any = SimpleNamespace(settings=None, target=lambda role: MemoryTarget(database))
    supervisor = Supervisor(parts, Roles(stream=True), stop)
    prepared: Any = object()

    async def prepare() -> Any:
        if supervisor.running.halted_by is None and not database.state.migration.epoch:
            raise SchemaChanged("table-changed", "table app.doc, column views: there is no such column", "put it back")
        return prepared

    async def root(halt: Halt) -> Halt:
        return halt

    async def record(halt: Halt, role: str) -> None:
        async with MemoryTarget(database).begin() as tx:
            await tx.ledger.halt(halt.id, HaltNote(halt.message, halt.hint, None), role)
        halted.set()

    monkeypatch.setattr(supervise, "HALTED_POLL_S", 0.0)

    async def absent() -> int:
        raise SchemaChanged("schema-changed", "target: transaction failed with SQLSTATE 42P01 (UndefinedTable)", "see")

    for name, stub in (("_prepared", prepare), ("_root", root), ("_record_halt", record)):
        monkeypatch.setattr(supervisor, name, stub)
    if not has_begun:
        monkeypatch.setattr(supervisor, "_epoch", absent)
    running = asyncio.create_task(supervisor._ready())
    await asyncio.wait_for(halted.wait(), 60)
    for _ in range(50):
        await asyncio.sleep(0)
    assert (running.done(), supervisor.running.halted_by) == (False, "table-changed")
    if has_begun:
        database.state.migration = replace(database.state.migration, epoch=1)
        assert await asyncio.wait_for(running, 60) is prepared
        assert (supervisor.running.halted_by, bool(database.state.migration.halted)) == (None, False)
    else:
        stop.set()
        assert await asyncio.wait_for(running, 60) is None


@pytest.mark.parametrize("cause", [PermissionRefused("permission-denied", "source: refused"), IDENTITY])
async def test_what_lies_behind_a_halt_is_asked_and_no_answer_hides_the_halt(
    monkeypatch: pytest.MonkeyPatch, cause: RevectorError
) -> None:
    async def check(*_: object) -> None:
        raise cause

    monkeypatch.setattr(pulse, "check_identity", check)
    halt, part = OffsetsGone("offsets-gone", "kafka: they are gone", "see"), cast(Any, None)
    found = await pulse.root_of(halt, part, part, part)
    assert found is (cause if cause is IDENTITY else halt)
