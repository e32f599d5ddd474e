"""What a migration stands on: what is absent is planned, what exists is left alone, what cannot be used is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.core.connector_role import ConnectorRole, role_problems
from daemon.core.grants import kafka_acls, quoted, source_grants, target_grants
from daemon.core.groundwork import (
    AwaitSlot,
    CreateConnector,
    CreateExtension,
    CreatePublication,
    CreateTopic,
    ExtendPublication,
    Outcome,
    Step,
    connector_step,
    extension_step,
    publication_step,
    slot_step,
    topic_steps,
)
from daemon.core.profile import (
    ExpectedConnector,
    SourceAccess,
    connector_problems,
    connector_profile,
    topic_config,
)
from daemon.core.setup import PublishedTable, SlotState, SourceSetup, TargetSetup, TopicSetup, topic_problems

ALL = frozenset({"insert", "update", "delete", "truncate"})
TABLES = (("app", "doc"), ("app", "Order Item"))
SLOT = SlotState(True, True, 1, 0, "reserved", 1 << 30)
NO_SLOT = SlotState(False, False, None, None, None, 1 << 30)
EXPECTED = ExpectedConnector(
    "shop", "revector_shop", "revector_shop", "revector", "shop", tables={"app.doc": ("id",), "app.Order Item, x": ()}
)
ACCESS = SourceAccess("db.example.com", "5432", "connector", "app", "hush", "verify-full")
DAY_MS = 24 * 3600 * 1000


def published(*tables: tuple[str, str], **odd: bool) -> tuple[PublishedTable, ...]:
    has_key, column_list, row_filter = (
        odd.get(k, d) for k, d in (("has_key", True), ("columns", False), ("rows", False))
    )
    return tuple(PublishedTable(*table, has_key, column_list, row_filter) for table in tables)


def source(tables: tuple[PublishedTable, ...] = (), **changes: Any) -> SourceSetup:
    return replace(SourceSetup(180004, "logical", False, ALL, tables, SLOT), **changes)


def publication(setup: SourceSetup) -> Step:
    return publication_step(setup, "revector_shop", "shop", TABLES)


# --- the profile of a new connector


@pytest.fixture
def docker_profile() -> Mapping[str, str]:
    path = Path(__file__).parents[2] / "docker/connector.json"
    profile: dict[str, str] = json.loads(path.read_text())
    return profile


def test_the_profile_is_one_that_every_check_accepts() -> None:
    profile = connector_profile(EXPECTED, ACCESS, 3, 7 * DAY_MS)
    assert connector_problems(profile, EXPECTED) == []
    assert profile["database.password"] == "hush"
    assert profile["database.sslmode"] == "verify-full"
    assert "database.sslmode" not in connector_profile(EXPECTED, replace(ACCESS, sslmode=""), 3, DAY_MS)


def test_the_profile_is_the_documented_one_with_the_migrations_names(docker_profile: Mapping[str, str]) -> None:
    names = {"database.hostname", "database.user", "database.password", "database.dbname", "topic.prefix"}
    names |= {"slot.name", "publication.name", "table.include.list"}
    profile = connector_profile(EXPECTED, ACCESS, 3, 7 * DAY_MS)
    assert {k: v for k, v in profile.items() if k not in names} == {
        k: v for k, v in docker_profile.items() if k not in names
    }
    assert set(profile) == set(docker_profile)


def test_the_table_list_is_split_and_matched_as_meant() -> None:
    patterns = connector_profile(EXPECTED, ACCESS, 3, DAY_MS)["table.include.list"].split(",")
    assert len(patterns) == 2
    assert all(any(re.fullmatch(p, name) for p in patterns) for name in EXPECTED.tables)


def test_topics_that_are_made_have_no_problem() -> None:
    [step] = topic_steps([TopicSetup("shop.app.doc", 0, {})], 3, topic_config(7 * DAY_MS))
    assert isinstance(step.action, CreateTopic)
    assert list(topic_problems([TopicSetup("shop.app.doc", step.action.partitions, step.action.config)])) == []


# --- steps


def test_absent_publication_is_made_for_the_configured_tables() -> None:
    step = publication(source(publication_operations=None))
    assert step.outcome is Outcome.TO_MAKE
    assert step.action == CreatePublication("shop", TABLES)
    assert step.action.shown == (
        'CREATE PUBLICATION shop FOR TABLE app.doc, app."Order Item" '
        "WITH (publish = 'insert, update, delete, truncate')"
    )


def test_existing_publication_gains_only_what_it_lacks() -> None:
    assert publication(source(published(*TABLES))).outcome is Outcome.THERE
    step = publication(source(published(("app", "doc"), ("app", "other"))))
    assert step.action == ExtendPublication("shop", (("app", "Order Item"),))
    assert step.action.shown == 'ALTER PUBLICATION shop ADD TABLE app."Order Item"'


@pytest.mark.parametrize(
    ("setup", "id"),
    [
        (source(published(*TABLES), publication_operations=frozenset({"insert"})), "publication-operations"),
        (source(published(*TABLES, columns=True)), "publication-column-list"),
        (source(published(("app", "doc"), rows=True)), "publication-row-filter"),
        (source(published(*TABLES, has_key=False)), "publication-keyless"),
        (source(publication_operations=None, wal_level="replica"), "wal-level"),
        (source(publication_operations=None, in_recovery=True), "source-standby"),
    ],
)
def test_what_others_may_depend_on_is_refused_and_not_changed(setup: SourceSetup, id: str) -> None:
    step = publication(setup)
    assert (step.outcome, step.action) == (Outcome.REFUSED, None)
    assert id in {p.id for p in step.problems}
    assert all(p.hint for p in step.problems)


def test_a_slot_that_is_missing_does_not_keep_the_publication_from_being_made() -> None:
    assert publication(source(publication_operations=None, slot=NO_SLOT)).outcome is Outcome.TO_MAKE


def test_topics_keep_what_they_have() -> None:
    config = topic_config(DAY_MS)
    found = [TopicSetup("a", 5, {}), TopicSetup("b", 3, {"cleanup.policy": "compact"}), TopicSetup("c", 0, {})]
    steps = topic_steps(found, 3, config)
    assert [s.outcome for s in steps] == [Outcome.THERE, Outcome.REFUSED, Outcome.TO_MAKE]
    assert steps[1].problems[0].id == "topic-compacted"
    assert steps[2].action == CreateTopic("c", 3, config)


@pytest.mark.parametrize(
    ("installed", "available", "outcome"),
    [
        ("0.8.5", "0.8.5", Outcome.THERE),
        (None, "0.8.5", Outcome.TO_MAKE),
        (None, None, Outcome.REFUSED),
        ("0.7.0", "0.8.5", Outcome.REFUSED),
    ],
)
def test_extension_is_made_where_the_server_has_it(
    installed: str | None, available: str | None, outcome: Outcome
) -> None:
    step = extension_step(TargetSetup(180004, installed, available, True, None, 1, False), "shop")
    assert step.outcome is outcome
    assert (step.action == CreateExtension()) == (outcome is Outcome.TO_MAKE)
    assert bool(step.problems) == (outcome is Outcome.REFUSED)


def test_new_connector_is_shown_without_its_password() -> None:
    profile = connector_profile(EXPECTED, ACCESS, 3, DAY_MS)
    step = connector_step(None, profile, EXPECTED)
    assert step.action == CreateConnector(profile)
    assert "hush" not in repr(step) + step.action.shown + repr(ACCESS)
    assert "db.example.com:5432/app as connector" in step.action.shown


@pytest.mark.parametrize("key", ["hostname", "user", "password", "dbname"])
def test_new_connector_that_nobody_described_is_refused_with_the_flag(key: str) -> None:
    profile = connector_profile(EXPECTED, ACCESS, 3, DAY_MS) | {f"database.{key}": ""}
    step = connector_step(None, profile, EXPECTED)
    [problem] = step.problems
    assert (step.outcome, problem.id) == (Outcome.REFUSED, "connector-incomplete")
    assert "--connector-" in problem.hint


def test_connector_is_made_with_no_setting_that_doctor_would_refuse() -> None:
    profile = connector_profile(EXPECTED, ACCESS, 3, DAY_MS) | {"errors.tolerance": "all"}
    step = connector_step(None, profile, EXPECTED)
    assert (step.outcome, step.problems[0].id) == (Outcome.REFUSED, "connector-skips-errors")


def test_existing_connector_is_judged_and_left_alone() -> None:
    profile = connector_profile(EXPECTED, ACCESS, 3, DAY_MS)
    assert connector_step(profile, {}, EXPECTED) == Step("connector shop", Outcome.THERE)
    step = connector_step(profile | {"snapshot.mode": "initial"}, profile, EXPECTED)
    assert (step.outcome, step.action) == (Outcome.REFUSED, None)


def test_slot_is_the_connectors_to_make() -> None:
    assert slot_step(SLOT, "shop").outcome is Outcome.THERE
    assert slot_step(NO_SLOT, "shop").action == AwaitSlot()
    assert slot_step(replace(SLOT, wal_status="lost"), "shop").problems[0].id == "slot-lost"


# --- the connector's role

FIT = ConnectorRole(True, {"extra_float_digits": "1", "bytea_output": "hex"}, 1, 10, 1, 10)


def ids(role: ConnectorRole | None, slot: SlotState = NO_SLOT, types: tuple[str, ...] = ("real", "bytea")) -> list[str]:
    return [p.id for p in role_problems("dbz", role, slot, types, types)]


def test_fit_role_has_no_problem() -> None:
    assert ids(FIT) == []
    assert ids(replace(FIT, settings={})) == []


def test_absent_role_and_one_that_may_not_replicate_are_named() -> None:
    assert ids(None) == ["connector-role-missing"]
    assert ids(replace(FIT, may_replicate=False)) == ["connector-replication"]
    assert ids(replace(FIT, may_replicate=False), SLOT) == [], "it reads from the slot, so it may"


@pytest.mark.parametrize(
    ("settings", "types", "remedy"),
    [
        ({"extra_float_digits": "0"}, ("double precision",), "ALTER ROLE dbz SET extra_float_digits = 1;"),
        ({"extra_float_digits": "-3"}, ("text", "real"), "ALTER ROLE dbz SET extra_float_digits = 1;"),
        ({"bytea_output": "escape"}, ("bytea",), "ALTER ROLE dbz SET bytea_output = 'hex';"),
    ],
)
def test_session_that_prints_another_form_is_named_where_a_used_column_depends_on_it(
    settings: dict[str, str], types: tuple[str, ...], remedy: str
) -> None:
    [problem] = role_problems("dbz", replace(FIT, settings=settings), SLOT, types, types)
    assert (problem.id, problem.severity) == ("connector-session", "error")
    assert problem.hint.startswith(remedy)
    others = ("text", "bigint")
    assert list(role_problems("dbz", replace(FIT, settings=settings), SLOT, others, others)) == []


def test_unused_bytea_fails_the_task_all_the_same_and_an_unused_float_harms_nobody() -> None:
    odd = replace(FIT, settings={"extra_float_digits": "0", "bytea_output": "escape"})
    [problem] = role_problems("dbz", odd, SLOT, ("text",), ("text", "real", "bytea"))
    assert "bytea_output" in problem.hint


def test_full_slots_and_senders_are_warnings_until_the_connector_has_its_own() -> None:
    full = replace(FIT, slots_used=10, senders_used=10)
    found = list(role_problems("dbz", full, NO_SLOT, (), ()))
    assert [(p.id, p.severity) for p in found] == [
        ("replication-slots-full", "warning"),
        ("wal-senders-full", "warning"),
    ]
    assert ids(full, SLOT) == []


# --- grants


@pytest.mark.parametrize(
    ("name", "written"), [("doc", "doc"), ("Doc", '"Doc"'), ("user", '"user"'), ('a"b', '"a""b"'), ("1st", '"1st"')]
)
def test_identifiers_are_quoted_where_they_must_be(name: str, written: str) -> None:
    assert quoted(name) == written


def test_grants_are_statements_for_the_configured_role() -> None:
    assert source_grants("reader", {("app", "doc"): ("id", "Title"), ("app", "note"): ()}) == [
        "GRANT USAGE ON SCHEMA app TO reader;",
        'GRANT SELECT (id, "Title") ON app.doc TO reader;',
        "GRANT SELECT ON app.note TO reader;",
    ]
    assert target_grants("writer", None) == ["GRANT CONNECT, CREATE ON DATABASE DATABASE TO writer;"]
    topics, group = kafka_acls(None, ["shop.app.doc", "shop.message"], "revector.shop")
    assert "'User:PRINCIPAL' --operation Describe --operation DescribeConfigs --operation Read" in topics
    assert topics.endswith("--topic 'shop.app.doc' --topic 'shop.message'")
    assert "--group 'revector.shop'" in group
