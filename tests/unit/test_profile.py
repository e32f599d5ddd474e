"""The connector profile: the profile itself passes, each setting that loses or changes events is named."""

from __future__ import annotations

import pytest

from daemon.core.profile import (
    JSON_CONVERTER,
    RULES,
    ExpectedConnector,
    Rule,
    connector_problems,
    version_problems,
)

EXPECTED = ExpectedConnector(
    name="shop",
    slot="revector",
    publication="revector_pub",
    message_prefix="revector",
    topic_prefix="shop",
    database="shopdb",
    tables={"public.articles": ("id", "title")},
)
PROFILE = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "database.dbname": "shopdb",
    "database.password": "hunter2",
    "topic.prefix": "shop",
    "plugin.name": "pgoutput",
    "slot.name": "revector",
    "publication.name": "revector_pub",
    "publication.autocreate.mode": "disabled",
    "snapshot.mode": "no_data",
    "skipped.operations": "none",
    "tombstones.on.delete": "true",
    "provide.transaction.metadata": "false",
    "heartbeat.interval.ms": "500",
    "message.prefix.include.list": "revector",
    "lsn.flush.mode": "connector",
    "decimal.handling.mode": "string",
    "time.precision.mode": "isostring",
    "event.processing.failure.handling.mode": "fail",
    "key.converter": JSON_CONVERTER,
    "value.converter": JSON_CONVERTER,
    "value.converter.replace.null.with.default": "false",
    "errors.tolerance": "none",
    "producer.override.max.request.size": "16777216",
    "slot.drop.on.stop": "false",
    "table.include.list": "public.articles,public.other",
    "column.include.list": r"public\.articles\.(id|title),public.other.x",
}


def settings_at_fault(config: dict[str, str] | None) -> set[str]:
    return {p.where.split()[-1] for p in connector_problems(config, EXPECTED)}


def test_the_profile_has_no_problem() -> None:
    assert connector_problems(PROFILE, EXPECTED) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.key)
def test_another_value_of_a_ruled_setting_is_named_with_its_remedy(rule: Rule) -> None:
    key = rule.key
    [problem] = connector_problems({**PROFILE, key: "something-else"}, EXPECTED)
    assert problem.where == f"connector shop {key}"
    assert problem.hint.startswith(f"set {key}=")


def test_an_absent_setting_counts_with_debeziums_default() -> None:
    for key in ("snapshot.mode", "decimal.handling.mode", "time.precision.mode", "skipped.operations", "plugin.name"):
        assert settings_at_fault({k: v for k, v in PROFILE.items() if k != key}) == {key}
    for key in ("errors.tolerance", "tombstones.on.delete", "slot.drop.on.stop", "lsn.flush.mode"):
        assert settings_at_fault({k: v for k, v in PROFILE.items() if k != key}) == set()


@pytest.mark.parametrize(("size", "said"), [(None, "is absent"), ("1048576", "is 1048576"), ("much", "is much")])
def test_a_producer_that_a_large_document_would_stop_is_warned_of(size: str | None, said: str) -> None:
    key = "producer.override.max.request.size"
    config = {k: v for k, v in PROFILE.items() if k != key} | ({} if size is None else {key: size})
    [problem] = connector_problems(config, EXPECTED)
    assert (problem.where, problem.severity) == (f"connector shop {key}", "warning")
    assert problem.message.startswith(said)


def test_an_untuned_connector_is_refused_for_each_default_that_harms() -> None:
    assert settings_at_fault({}) >= {"snapshot.mode", "slot.name", "publication.name", "heartbeat.interval.ms"}


@pytest.mark.parametrize(
    "key",
    [
        "transforms",
        "post.processors",
        "converters",
        "message.key.columns",
        "column.mask.hash.SHA-256.with.salt.x",
        "column.truncate.to.20.chars",
    ],
)
def test_what_changes_events_on_their_way_is_refused(key: str) -> None:
    assert settings_at_fault({**PROFILE, key: "unwrap"}) == {key}
    assert settings_at_fault({**PROFILE, key: " "}) == set()


@pytest.mark.parametrize("key", ["slot.name", "publication.name", "topic.prefix", "database.dbname"])
def test_another_name_than_the_migrations_is_a_mismatch(key: str) -> None:
    [problem] = connector_problems({**PROFILE, key: "other"}, EXPECTED)
    assert (problem.id, problem.where) == ("connector-mismatch", f"connector shop {key}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("message.prefix.include.list", "other,reve"),
        ("message.prefix.exclude.list", "rev.*"),
        ("table.include.list", "public.other"),
        ("table.exclude.list", ".*articles"),
        ("schema.include.list", "private"),
        ("column.include.list", "public.articles.id"),
        ("column.exclude.list", "public.articles.title"),
        ("table.include.list", "public.(articles"),
        ("column.exclude.list", "(("),
    ],
)
def test_a_list_that_keeps_out_what_is_used_is_named(key: str, value: str) -> None:
    [problem] = connector_problems({**PROFILE, key: value}, EXPECTED)
    assert (problem.id, problem.where) == ("connector-filters", f"connector shop {key}")


def test_a_converter_that_replaces_nulls_is_refused_also_by_default() -> None:
    key = "value.converter.replace.null.with.default"
    for config in ({**PROFILE, key: "true"}, {k: v for k, v in PROFILE.items() if k != key}):
        [found] = connector_problems(config, EXPECTED)
        assert (found.id, found.severity, found.where.split()[-1]) == ("connector-converter", "error", key)


def test_converters_other_than_json_are_refused_and_unknown_ones_warned_of() -> None:
    [avro] = connector_problems({**PROFILE, "value.converter": "AvroConverter"}, EXPECTED)
    assert (avro.id, avro.severity) == ("connector-converter", "error")
    for key, severity in (("key.converter", "warning"), ("value.converter", "error")):
        [absent] = connector_problems({k: v for k, v in PROFILE.items() if k != key}, EXPECTED)
        assert absent.severity == severity


def test_an_absent_connector_is_one_problem() -> None:
    assert [p.id for p in connector_problems(None, EXPECTED)] == ["connector-absent"]


def test_no_message_repeats_a_setting_that_may_be_secret() -> None:
    for p in connector_problems({"database.password": "hunter2", "transforms": "t"}, EXPECTED):
        assert "hunter2" not in p.message + p.hint + p.where


@pytest.mark.parametrize(
    ("version", "fine"),
    [("3.7.0.Final", True), ("3.10.1.Final", True), ("4.0.0.Final", True), ("3.6.3.Final", False), ("x", False)],
)
def test_debezium_below_3_7_is_refused(version: str, fine: bool) -> None:
    problems = version_problems(version, EXPECTED)
    assert (problems == []) is fine
    assert all(p.severity == "error" for p in problems)


def test_unread_version_is_not_taken_for_good() -> None:
    assert [p.id for p in version_problems(None, EXPECTED)] == ["not-observed"]
