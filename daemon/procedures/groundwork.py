"""Make what a migration stands on: look at every part, show the plan, then make what is absent, step by step.

1. the publication: without it the connector cannot start;
2. the topics, with their partitions: a quiet table has none otherwise, and Connect would choose for itself;
3. the extension at the target;
4. the connector, once 1 and 2 are there: from its first start the source keeps its log for its slot;
5. its slot, which is waited for.

Every step leaves alone what exists, so all of this may be repeated. A part that refuses or is away ends its own steps
only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from daemon.core.grants import kafka_create_acl
from daemon.core.groundwork import (
    Action,
    AwaitSlot,
    CreateConnector,
    CreateTopic,
    Outcome,
    Step,
    connector_step,
    extension_step,
    publication_step,
    refused,
    slot_step,
    topic_steps,
)
from daemon.core.profile import SourceAccess, connector_profile, topic_config
from daemon.errors import ConfigError, PermissionRefused, Problem, RevectorError, TransientError
from daemon.parts import Parts
from daemon.ports import Capture, Groundwork, Source
from daemon.procedures.doctor import PART_LIMIT_S, expected_connector, principal

DAY_MS = 24 * 3600 * 1000
MAKE_LIMIT_S = 60.0
START_LIMIT_S = 90.0
POLL_S = 0.2
# Parts on which the connector's first start depends.
UNDER_THE_CONNECTOR = ("publication", "topic")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What only a person can say. settings: more of the connector's, which win over the profile's."""

    access: SourceAccess
    settings: dict[str, str]
    partitions: int = 3
    retention_days: int = 7

    @property
    def retention_ms(self) -> int:
        return self.retention_days * DAY_MS


async def plan(parts: Parts, wishes: Wishes) -> list[Step]:
    """Every step, in the order in which it is carried out. Nothing is made."""
    s = parts.settings
    looks = {
        f"publication {s.source.publication}": _publication,
        f"topics {s.kafka.topic_prefix}": _topics,
        "extension vector": _extension,
        f"connector {s.connect.connector}": _connector,
        f"slot {s.source.slot}": _slot,
    }
    found = await asyncio.gather(*(_looked(what, look(parts, wishes)) for what, look in looks.items()))
    return [step for steps in found for step in steps]


async def lay(parts: Parts, steps: list[Step], say: Callable[[Step], None]) -> list[Step]:
    """Carry out the steps of `plan`; what became of each. `say` is told as it happens."""
    done: list[Step] = []
    groundwork = parts.groundwork("init")
    try:
        for step in steps:
            done.append(await _carried_out(parts, groundwork, step, done))
            say(done[-1])
    finally:
        await groundwork.close()
    return done


async def _looked(what: str, look: Awaitable[list[Step]]) -> list[Step]:
    try:
        async with asyncio.timeout(PART_LIMIT_S):
            return await look
    except TimeoutError:
        message = f"did not answer within {PART_LIMIT_S:.0f} s"
        problem = Problem("not-observed", what, message, "check its address, and whether it is up")
        return [refused(what, [problem], TransientError.exit_code)]
    except RevectorError as error:
        return [_refused(what, error)]


async def _publication(parts: Parts, wishes: Wishes) -> list[Step]:
    s = parts.settings
    source = parts.source("init")
    try:
        setup = await source.setup()
    finally:
        await source.close()
    return [publication_step(setup, s.source.slot, s.source.publication, [t.relation for t in s.table])]


async def _topics(parts: Parts, wishes: Wishes) -> list[Step]:
    groundwork = parts.groundwork("init")
    try:
        data, single = await groundwork.topics()
    finally:
        await groundwork.close()
    config = topic_config(wishes.retention_ms)
    return [*topic_steps(data, wishes.partitions, config), *topic_steps(single, 1, config)]


async def _extension(parts: Parts, wishes: Wishes) -> list[Step]:
    target = parts.target("init")
    try:
        setup = await target.setup()
    finally:
        await target.close()
    return [extension_step(setup, parts.settings.name)]


async def _connector(parts: Parts, wishes: Wishes) -> list[Step]:
    expected = expected_connector(parts.settings)
    capture = parts.capture("init")
    try:
        config = await capture.config()
    finally:
        await capture.close()
    profile = connector_profile(expected, wishes.access, wishes.partitions, wishes.retention_ms)
    return [connector_step(config, profile | wishes.settings, expected)]


async def _slot(parts: Parts, wishes: Wishes) -> list[Step]:
    source = parts.source("init")
    try:
        return [slot_step(await source.slot(), parts.settings.source.slot)]
    finally:
        await source.close()


async def _carried_out(parts: Parts, groundwork: Groundwork, step: Step, done: list[Step]) -> Step:
    if step.outcome is not Outcome.TO_MAKE or step.action is None:
        return step
    if any(_stands_on(step.action, other) for other in done):
        return replace(step, outcome=Outcome.NOT_TRIED)
    try:
        if isinstance(step.action, AwaitSlot):
            await _started(parts)
        else:
            await _made(groundwork, step.action)
    except RevectorError as error:
        return _refused(step.what, _explained(parts, step.action, error))
    return replace(step, outcome=Outcome.MADE)


def _stands_on(action: Action, other: Step) -> bool:
    """Whether `action` cannot work because `other` is not there. A connector without its publication fails; without
    its topics it makes them with partitions and retention of its own."""
    if other.outcome not in (Outcome.REFUSED, Outcome.NOT_TRIED):
        return False
    if isinstance(action, CreateConnector):
        return other.what.startswith(UNDER_THE_CONNECTOR)
    return isinstance(action, AwaitSlot) and other.what.startswith("connector")


async def _made(groundwork: Groundwork, action: Action) -> None:
    """A part that is away for a moment, such as a rebalancing Connect, is asked again; making may be repeated."""
    deadline = asyncio.get_running_loop().time() + MAKE_LIMIT_S
    while True:
        try:
            await groundwork.make(action)
            return
        except TransientError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(POLL_S)


async def _started(parts: Parts) -> None:
    """Wait until the connector runs and reads from its slot. Raises ConfigError `connector-down`."""
    source, capture = parts.source("init"), parts.capture("init")
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while True:
                if await _is_streaming(parts, source, capture):
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise _down(parts, f"does not read from its slot after {START_LIMIT_S:.0f} s") from None
    finally:
        await source.close()
        await capture.close()


async def _is_streaming(parts: Parts, source: Source, capture: Capture) -> bool:
    try:
        state = await capture.state()
        if state in ("failed", "paused", "stopped"):
            raise _down(parts, f"is {state}")
        return state == "running" and (await source.slot()).active
    except TransientError:
        return False


def _down(parts: Parts, message: str) -> ConfigError:
    place = f"connector {parts.settings.connect.connector}"
    hint = "see the task's error in Kafka Connect, mend it, restart the task; then repeat this command"
    return ConfigError([Problem("connector-down", place, message, hint)])


def _refused(what: str, error: RevectorError) -> Step:
    problems = error.problems if isinstance(error, ConfigError) else []
    return refused(what, problems or [Problem(error.id, what, error.message, error.hint)], error.exit_code)


def _explained(parts: Parts, action: Action, error: RevectorError) -> RevectorError:
    """A missing grant, with what somebody who has it would run."""
    if not isinstance(error, PermissionRefused) or error.id != "permission-denied":
        return error
    if isinstance(action, CreateTopic):
        lines = [kafka_create_acl(principal(parts.settings), [action.name])]
    else:
        lines = ["have it made by a role that may, then repeat this command:", f"{action.shown};"]
    return PermissionRefused(error.id, error.message, "\n".join(lines))
