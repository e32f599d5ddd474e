"""Look at every part of a migration, each for at most five seconds, all at the same time.

`doctor` prints the findings; the daemon refuses to start on an error among them. A part that cannot be reached is a
finding like any other, so one broken part never hides what is wrong with the rest. Where a part refuses us, the finding
carries what somebody has to run there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from daemon.core.connector_role import role_problems
from daemon.core.grants import kafka_acls, quoted, source_grants, target_grants
from daemon.core.model import Table
from daemon.core.profile import ExpectedConnector, connector_problems, failure_hint, version_problems
from daemon.core.setup import source_problems, target_problems, topic_problems
from daemon.errors import (
    ConfigError,
    ItemRefused,
    PermissionRefused,
    Problem,
    ProviderWrong,
    RevectorError,
    TransientError,
)
from daemon.flow.provider import CANARY
from daemon.parts import Parts
from daemon.ports import Capture
from daemon.procedures.prepare import choices, resolve_tables
from daemon.settings import Settings
from daemon.settings_generation import GenerationSettings

PART_LIMIT_S = 5.0  # somebody looks on
START_LIMIT_S = 30.0  # a process that starts has time: a loaded part, or a long way to it, is no reason not to
CONNECT_LIMIT_S = 4.0  # of the role's look at Connect: that Connect is away is the connector's finding, not its own

UNREACHABLE = {
    "source": "source-unreachable",
    "tables": "source-unreachable",
    "target": "target-unreachable",
    "kafka": "kafka-unreachable",
    "connector": "connect-unreachable",
    "role": "source-unreachable",
    "provider": "provider-unreachable",
}

Check = Callable[[], Awaitable[tuple[str, list[Problem] | None]]]  # None: there was nothing to look at


@dataclass(frozen=True, slots=True)
class Finding:
    """What one part said. summary: one line when it could be read. cause: the error that kept it from being read.
    is_known False: there was nothing to look at; that stands against no start, and is not fit either."""

    part: str
    summary: str
    problems: tuple[Problem, ...]
    cause: RevectorError | None = None
    is_known: bool = True

    @property
    def is_ok(self) -> bool:
        return self.cause is None and not any(p.severity == "error" for p in self.problems)


def expected_connector(settings: Settings) -> ExpectedConnector:
    """What the configuration says of the connector. Columns are left to the catalogue check."""
    return ExpectedConnector(
        name=settings.connect.connector,
        slot=settings.source.slot,
        publication=settings.source.publication,
        message_prefix="revector",
        topic_prefix=settings.kafka.topic_prefix,
        tables={".".join(t.relation): tuple({*t.text_columns, *t.columns, *t.filters}) for t in settings.table},
    )


async def examine(parts: Parts, limit_s: float = PART_LIMIT_S) -> list[Finding]:
    """Findings of source, tables, target, kafka, connector, its role and each generation's provider, in this order.
    limit_s: how long each may take."""
    settings = parts.settings
    checks: dict[str, Check] = {
        "source": lambda: _source(parts),
        "tables": lambda: _tables(parts),
        "target": lambda: _target(parts),
        "kafka": lambda: _kafka(parts),
        "connector": lambda: _connector(parts),
        "role": lambda: _role(parts),
        **{f"provider {g.name}": partial(_provider, parts, g) for g in settings.generation},
    }
    return list(await asyncio.gather(*(_bounded(settings, part, check, limit_s) for part, check in checks.items())))


def refuse(findings: list[Finding]) -> None:
    """Raise what `findings` hold against a start: permission first, then set-up errors, then parts that are away."""
    causes = [f.cause for f in findings if f.cause is not None]
    for cause in causes:
        if isinstance(cause, PermissionRefused):
            raise cause
    problems = [p for f in findings for p in f.problems if p.severity == "error"]
    if problems:
        raise ConfigError(problems)
    if causes:
        raise causes[0]


def principal(settings: Settings) -> str | None:
    """revector's name at the brokers, where the configuration says it."""
    name = settings.kafka.properties.get("sasl.username")
    return name if isinstance(name, str) else None


def needed(settings: Settings, part: str) -> list[str]:
    """What has to be run so that a part stops to refuse revector; for either Postgres, Kafka, else nothing."""
    if part in ("source", "tables", "role"):
        return source_grants(settings.source.dsn.get("user"), {t.relation: () for t in settings.table})
    if part == "target":
        return target_grants(settings.target.dsn.get("user"), settings.target.dsn.get("dbname"))
    if part == "kafka":
        prefix = settings.kafka.topic_prefix
        topics = [*(f"{prefix}.{'.'.join(t.relation)}" for t in settings.table), f"{prefix}.message"]
        return kafka_acls(principal(settings), topics, settings.group_id)
    return []


async def _bounded(settings: Settings, part: str, check: Check, limit_s: float = PART_LIMIT_S) -> Finding:
    try:
        async with asyncio.timeout(limit_s):
            summary, problems = await check()
    except TimeoutError:
        id = UNREACHABLE[part.split(maxsplit=1)[0]]
        message = f"{part} did not answer within {limit_s:.0f} s"
        return Finding(part, "", (), TransientError(id, message, "check its address, and whether it is up"))
    except ConfigError as error:
        return Finding(part, "", tuple(error.problems))
    except PermissionRefused as error:
        lines = needed(settings, part) if error.id == "permission-denied" else []
        return Finding(part, "", (), PermissionRefused(error.id, error.message, "\n".join(lines) or error.hint))
    except RevectorError as error:
        return Finding(part, "", (), error)
    return Finding(part, summary, tuple(problems or ()), is_known=problems is not None)


async def _source(parts: Parts) -> tuple[str, list[Problem]]:
    settings = parts.settings
    source = parts.source("doctor")
    try:
        setup = await source.setup()
    finally:
        await source.close()
    wanted = [t.relation for t in settings.table]
    problems = list(source_problems(setup, settings.source.slot, settings.source.publication, wanted))
    return f"Postgres {setup.version // 10000}.{setup.version % 10000}, wal_level {setup.wal_level}", problems


async def _tables(parts: Parts) -> tuple[str, list[Problem]]:
    source, groundwork = parts.source("doctor"), parts.groundwork("doctor")
    try:
        tables = await resolve_tables(source, choices(parts.settings))
        refused = await groundwork.unreadable({(t.schema, t.name): t.names for t in tables})
    finally:
        await source.close()
        await groundwork.close()
    problems = [
        _unreadable(parts.settings, t, refused[t.schema, t.name]) for t in tables if (t.schema, t.name) in refused
    ]
    return f"{_counted(len(tables), 'table')}, {_counted(sum(len(t.columns) for t in tables), 'used column')}", problems


def _unreadable(settings: Settings, table: Table, columns: Sequence[str]) -> Problem:
    place = f"table {table.schema}.{table.name}"
    role = settings.source.dsn.get("user")
    if "*" in columns:
        hint = f"ALTER ROLE {quoted(role) if role else 'ROLE'} BYPASSRLS;"
        return Problem("permission-denied", place, "row-level security would hide rows from this role", hint)
    hint = "\n".join(source_grants(role, {(table.schema, table.name): table.names}))
    return Problem("permission-denied", place, f"this role may not read {', '.join(columns)}", hint)


async def _target(parts: Parts) -> tuple[str, list[Problem]]:
    target = parts.target("doctor")
    try:
        setup = await target.setup()
    finally:
        await target.close()
    grants = "\n".join(needed(parts.settings, "target"))
    problems = [
        replace(p, hint=grants) if p.id == "target-create" else p for p in target_problems(setup, parts.settings.name)
    ]
    vector = f", pgvector {setup.vector_version}" if setup.vector_version else ""
    return f"Postgres {setup.version // 10000}.{setup.version % 10000}{vector}", problems


async def _kafka(parts: Parts) -> tuple[str, list[Problem]]:
    feed = parts.feed("doctor")
    try:
        topics = await feed.setup()
    finally:
        await feed.close()
    partitions = _counted(sum(t.partitions for t in topics), "partition")
    return f"{_counted(len(topics), 'topic')}, {partitions}", list(topic_problems(topics))


async def _connector(parts: Parts) -> tuple[str, list[Problem]]:
    capture = parts.capture("doctor")
    expected = expected_connector(parts.settings)
    try:
        config, version, state = await capture.config(), await capture.version(), await capture.state()
        failure = await capture.failure() if state == "failed" else None
    finally:
        await capture.close()
    problems = connector_problems(config, expected)
    if config is not None:
        problems += version_problems(version, expected)
        if state != "running":
            hint = failure_hint(failure or "") or "see the task's error in Kafka Connect; resume or restart it"
            what = f"is {state}, not running" + ("" if failure is None else f": {failure}")
            problems.append(Problem("connector-down", f"connector {expected.name}", what, hint, "warning"))
    return f"Debezium {version or 'of unknown version'}, {state}", problems


async def _role(parts: Parts) -> tuple[str, list[Problem] | None]:
    """The role that Connect says the connector has, as the source has it."""
    capture, source, groundwork = parts.capture("doctor"), parts.source("doctor"), parts.groundwork("doctor")
    try:
        config = await _configured(capture)
        if config is None:
            return "not looked at: there is no connector to ask for it, or Connect is away", None
        name, database = config.get("database.user", ""), config.get("database.dbname", "")
        if not name or "${" in name + database:
            return "not looked at: the connector has it from a configuration provider", None
        role, slot = await groundwork.connector_role(name, database), await source.slot()
        catalogs = [await source.describe(*t.relation) for t in parts.settings.table]
    finally:
        await capture.close()
        await source.close()
        await groundwork.close()
    names = {name for t in parts.settings.table for name in (*t.text_columns, *t.columns, *t.filters)}
    columns = [column for catalog in catalogs if catalog for column in catalog.columns]
    used, captured = {c.base_type for c in columns if c.name in names}, {c.base_type for c in columns}
    return f"{name} reads the log", list(role_problems(name, role, slot, used, captured))


async def _configured(capture: Capture) -> Mapping[str, str] | None:
    """The connector's settings; None where there are none to be had, of which the connector's own look says why."""
    try:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            return await capture.config()
    except (RevectorError, TimeoutError):
        return None


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


async def _provider(parts: Parts, generation: GenerationSettings) -> tuple[str, list[Problem]]:
    """One canary text: key, model and dimension are told wrong before the first row is."""
    parts.tokenizer(generation)
    embedder = parts.embedder(generation)
    place = f"provider model {generation.model}"
    hint = f"check model, dimensions and base_url of generation {generation.name}"
    try:
        answer = await embedder.embed([CANARY])
    except ItemRefused as refusal:
        what = f"refuses a harmless text: status {refusal.status}, param {refusal.param or 'none'}"
        return "", [Problem("provider-refused", place, what, hint)]
    except ProviderWrong as wrong:
        return "", [Problem(wrong.id, place, wrong.message, wrong.hint or hint)]
    finally:
        await embedder.close()
    dimensions, tokens = answer.vectors.shape[1], answer.tokens
    return f"{generation.model}, {dimensions} dimensions, {tokens} tokens for one sentence", []
