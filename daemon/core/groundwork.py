"""What a migration stands on and does not own: publication, topics, connector, extension. What is there, what to make?

`init --apply` makes what is absent and leaves alone what exists: a thing that exists and cannot be used is refused with
its remedy, because others may depend on it as it is. The decisions are made here from what each part says of itself;
an action is a value that the adapter carries out and a person can read.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from daemon.core.grants import quoted, relation
from daemon.core.profile import ExpectedConnector, connector_problems, incomplete
from daemon.core.setup import (
    OPERATIONS,
    SlotState,
    SourceSetup,
    TargetSetup,
    TopicSetup,
    source_problems,
    target_problems,
    topic_problems,
)
from daemon.errors import Problem

Tables = tuple[tuple[str, str], ...]

PUBLISHED = ", ".join(o for o in ("insert", "update", "delete", "truncate") if o in OPERATIONS)
MENDED_BY_CREATING = {"publication-missing"}
MENDED_BY_ADDING = {"publication-table-missing"}
SOURCE_UNFIT = {"source-too-old", "source-standby", "wal-level"}


@dataclass(frozen=True, slots=True)
class CreatePublication:
    name: str
    tables: Tables

    @property
    def shown(self) -> str:
        listed = ", ".join(relation(*table) for table in self.tables)
        return f"CREATE PUBLICATION {quoted(self.name)} FOR TABLE {listed} WITH (publish = '{PUBLISHED}')"


@dataclass(frozen=True, slots=True)
class ExtendPublication:
    name: str
    tables: Tables

    @property
    def shown(self) -> str:
        return f"ALTER PUBLICATION {quoted(self.name)} ADD TABLE {', '.join(relation(*t) for t in self.tables)}"


@dataclass(frozen=True, slots=True)
class CreateTopic:
    name: str
    partitions: int
    config: Mapping[str, str]

    @property
    def shown(self) -> str:
        number = f"{self.partitions} partition" + ("" if self.partitions == 1 else "s")
        return ", ".join([number, *(f"{key}={value}" for key, value in self.config.items())])


@dataclass(frozen=True, slots=True)
class CreateExtension:
    @property
    def shown(self) -> str:
        return "CREATE EXTENSION vector"


@dataclass(frozen=True, slots=True)
class CreateConnector:
    """config may hold the connector's password: it is shown by names only."""

    config: Mapping[str, str] = field(repr=False)

    @property
    def shown(self) -> str:
        c = self.config
        place = f"{c['database.hostname']}:{c['database.port']}/{c['database.dbname']}"
        return f"the profile of docker/connector.json, reading {place} as {c['database.user']}"


@dataclass(frozen=True, slots=True)
class AwaitSlot:
    """Not ours to make: the connector makes its slot when it first starts."""

    @property
    def shown(self) -> str:
        return "the connector makes it at its first start"


Action = CreatePublication | ExtendPublication | CreateTopic | CreateExtension | CreateConnector | AwaitSlot


class Outcome(enum.Enum):
    """What became of a step. TO_MAKE only before it is carried out; NOT_TRIED: what it stands on is not there."""

    THERE = "was there"
    TO_MAKE = "to make"
    MADE = "made"
    REFUSED = "refused"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing. exit_code: the class of what refused it, as `errors` has them."""

    what: str
    outcome: Outcome
    action: Action | None = None
    problems: tuple[Problem, ...] = ()
    exit_code: int = 0


def refused(what: str, problems: Sequence[Problem], exit_code: int = 78) -> Step:
    return Step(what, Outcome.REFUSED, None, tuple(problems), exit_code)


def publication_step(setup: SourceSetup, slot: str, publication: str, tables: Sequence[tuple[str, str]]) -> Step:
    """tables: configured (schema, name) pairs. An existing publication only ever gains tables."""
    what = f"publication {publication}"
    found = [p for p in source_problems(setup, slot, publication, tables) if p.severity == "error"]
    mendable = MENDED_BY_CREATING | MENDED_BY_ADDING
    others = [p for p in found if p.id in SOURCE_UNFIT or (p.where == what and p.id not in mendable)]
    if others:
        return refused(what, others)
    ids = {p.id for p in found}
    if ids & MENDED_BY_CREATING:
        return Step(what, Outcome.TO_MAKE, CreatePublication(publication, tuple(tables)))
    if ids & MENDED_BY_ADDING:
        published = {(t.schema, t.name) for t in setup.published}
        lacking = tuple(table for table in tables if table not in published)
        return Step(what, Outcome.TO_MAKE, ExtendPublication(publication, lacking))
    return Step(what, Outcome.THERE)


def topic_steps(topics: Sequence[TopicSetup], partitions: int, config: Mapping[str, str]) -> list[Step]:
    """config: of the topics that are made. An existing topic keeps its partitions and its settings."""
    steps = []
    for topic in topics:
        what = f"topic {topic.name}"
        errors = [p for p in topic_problems([topic]) if p.severity == "error"]
        if topic.partitions == 0:
            steps.append(Step(what, Outcome.TO_MAKE, CreateTopic(topic.name, partitions, config)))
        elif errors:
            steps.append(refused(what, errors))
        else:
            steps.append(Step(what, Outcome.THERE))
    return steps


def extension_step(setup: TargetSetup, name: str) -> Step:
    """An old extension is not updated: its indexes belong to others too."""
    what = "extension vector"
    found = [p for p in target_problems(setup, name) if p.id in {"vector-missing", "vector-too-old"}]
    if setup.vector_version is None and setup.vector_available is not None:
        return Step(what, Outcome.TO_MAKE, CreateExtension())
    return refused(what, found) if found else Step(what, Outcome.THERE)


def connector_step(config: Mapping[str, str] | None, profile: Mapping[str, str], expected: ExpectedConnector) -> Step:
    """config: the existing connector's, None where there is none. profile: of the one to make."""
    what = f"connector {expected.name}"
    if config is not None:
        errors = [p for p in connector_problems(config, expected) if p.severity == "error"]
        return refused(what, errors) if errors else Step(what, Outcome.THERE)
    problems = [*incomplete(profile, expected.name), *connector_problems(profile, expected)]
    if any(p.severity == "error" for p in problems):
        return refused(what, problems)
    return Step(what, Outcome.TO_MAKE, CreateConnector(profile))


def slot_step(slot: SlotState, name: str) -> Step:
    what = f"slot {name}"
    if slot.wal_status == "lost":
        hint = "the log it needs is gone: drop slot and connector, and begin again"
        return refused(what, [Problem("slot-lost", what, "was invalidated", hint)])
    return Step(what, Outcome.THERE) if slot.exists else Step(what, Outcome.TO_MAKE, AwaitSlot())
