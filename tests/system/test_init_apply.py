"""`init --apply` makes what a migration stands on, once; `doctor` finds nothing against it, and the migration runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from confluent_kafka.admin import ConfigResource, ResourceType
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sandbox.compare import Differences
from sandbox.connect import Capture, ConnectRefused
from sandbox.pipeline import Pipeline
from sandbox.stack import Sandbox
from tests.system.migration import DOCS, Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
TABLES, _, _ = DOCS.partition("create publication")
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 50) n"
MADE = ["publication", "topic", "topic", "topic", "extension", "connector", "slot"]


def bare(stack: Sandbox, migrate: Migrate, ddl: str = TABLES) -> Migration:
    """A source with rows and a target, and nothing else: no publication, topics, connector, slot, extension."""
    m = migrate(Setting(ddl=ddl, rows=ROWS, captured=False))
    m.target.execute("drop extension vector")
    m.pipeline = Pipeline(stack.connector(m.name), Capture(m.source_dsn, m.name, m.name))  # for the end of the test
    (m.folder / "password").write_text(password_of(m))
    return m


def password_of(m: Migration) -> str:
    return str(conninfo_to_dict(m.source_dsn)["password"])


def applied(m: Migration, *words: str, code: int = 0) -> list[dict[str, Any]]:
    """The steps of `init --apply`, in which the connector's password never shows."""
    flags = ("--connector-password-file", str(m.folder / "password"))
    command = m.command("init", *(words or ("--apply",)), *flags, "--json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert password_of(m) not in done.stdout + done.stderr
    steps: list[dict[str, Any]] = json.loads(done.stdout)["steps"]
    return steps


def outcomes(steps: list[dict[str, Any]]) -> dict[str, str]:
    return {step["what"]: step["outcome"] for step in steps}


def topic_settings(stack: Sandbox, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = stack.broker.admin()  # its answers end with it
    [future] = admin.describe_configs([resource]).values()
    return {name: entry.value for name, entry in future.result(30).items()}


def test_what_is_made_passes_doctor_stays_as_it_is_and_carries_a_migration(stack: Sandbox, migrate: Migrate) -> None:
    m = bare(stack, migrate)
    planned = applied(m, "--plan")
    assert [(s["what"].split()[0], s["outcome"]) for s in planned] == [(what, "to make") for what in MADE]
    assert m.source.execute("select count(*) from pg_publication").fetchone() == (0,)
    with pytest.raises(ConnectRefused, match="404"):
        stack.connector(m.name).config()

    made = applied(m)
    assert [(s["what"].split()[0], s["outcome"]) for s in made] == [(what, "made") for what in MADE]
    published = "select pubinsert, pubupdate, pubdelete, pubtruncate from pg_publication where pubname = 'revector'"
    assert m.source.execute(published).fetchone() == (True, True, True, True)
    topics = stack.broker.admin().list_topics(timeout=10).topics
    partitions = {f"{m.name}.app.doc": 3, f"{m.name}.message": 1, f"__debezium-heartbeat.{m.name}": 1}
    assert {name: len(topics[name].partitions) for name in partitions} == partitions
    for name in partitions:
        settings = topic_settings(stack, name)
        assert settings["cleanup.policy"] == "delete"
        assert settings["retention.ms"] == str(7 * 24 * 3600 * 1000)
        assert settings["max.message.bytes"] == str(16 * 1024 * 1024)
    connector = stack.connector(m.name).config()

    examined = m.asked("doctor")["parts"]
    assert [part["problems"] for part in examined if part["problems"] or not part["ok"]] == []

    again = outcomes(applied(m))
    assert set(again.values()) == {"was there"}
    assert list(again) == [s["what"] for s in made]
    assert stack.connector(m.name).config() == connector
    assert m.asked("doctor")["parts"] == examined

    m.start()
    m.wait("caught-up")
    m.source.execute("update app.doc set body = 'another text' where id <= 10")
    m.source.execute("delete from app.doc where id > 40")
    m.wait("caught-up")
    assert m.differences() == Differences()
    m.wait("ready")
    m.verify()
    assert m.prove()["proven"] is True


def test_existing_publication_gains_the_table_it_lacks_and_keeps_the_others(stack: Sandbox, migrate: Migrate) -> None:
    every = "with (publish = 'insert, update, delete, truncate')"
    other = f"create table app.other (id int primary key); create publication revector for table app.other {every};"
    m = bare(stack, migrate, TABLES + other)
    [step] = [s for s in applied(m) if s["what"] == "publication revector"]
    assert (step["outcome"], step["action"]) == ("made", "ALTER PUBLICATION revector ADD TABLE app.doc")
    tables = "select tablename from pg_publication_tables where pubname = 'revector' order by 1"
    assert m.source.execute(tables).fetchall() == [("doc",), ("other",)]
    m.asked("doctor")


def test_role_that_may_not_publish_is_told_what_to_have_run_and_no_connector_is_made(
    stack: Sandbox, migrate: Migrate
) -> None:
    m = bare(stack, migrate)
    as_stranger(m)
    steps = {s["what"]: s for s in applied(m, code=77)}
    [problem] = steps["publication revector"]["problems"]
    assert (steps["publication revector"]["outcome"], problem["id"]) == ("refused", "permission-denied")
    assert "CREATE PUBLICATION revector FOR TABLE app.doc WITH (publish = " in problem["hint"]
    assert steps[f"connector {m.name}"]["outcome"] == steps[f"slot {m.name}"]["outcome"] == "not tried"
    assert steps["extension vector"]["outcome"] == "made"
    with pytest.raises(ConnectRefused, match="404"):
        stack.connector(m.name).config()


def test_settings_that_connect_refuses_are_named_without_their_values(stack: Sandbox, migrate: Migrate) -> None:
    m = bare(stack, migrate)
    steps = {s["what"]: s for s in applied(m, "--apply", "--connector-set", "database.user=nobody-of-them", code=78)}
    refused = steps[f"connector {m.name}"]
    assert refused["outcome"] == "refused"
    assert {p["id"] for p in refused["problems"]} == {"connector-refused"}
    assert any("database." in p["where"] for p in refused["problems"])
    assert "nobody-of-them" not in json.dumps(refused["problems"])
    assert steps[f"slot {m.name}"]["outcome"] == "not tried"


def test_doctor_prints_the_grants_that_the_role_lacks(stack: Sandbox, migrate: Migrate) -> None:
    m = bare(stack, migrate)
    applied(m)
    role = as_stranger(m)
    problem = next(p for p in m.asked("doctor", code=78)["error"]["problems"] if p["id"] == "permission-denied")
    assert problem["where"] == "table app.doc"
    with psycopg.connect(m.source_dsn, autocommit=True) as owner:
        for statement in problem["hint"].splitlines():
            assert statement.endswith(f"TO {role};")
            owner.execute(statement.encode())
    m.asked("doctor")
    m.source.execute("alter table app.doc enable row level security")
    problem = m.asked("doctor", code=78)["error"]["problems"][0]
    assert problem["hint"] == f"ALTER ROLE {role} BYPASSRLS;"


@pytest.mark.parametrize(
    ("setting", "column", "type"),
    [("extra_float_digits = 0", "score", "real"), ("bytea_output = 'escape'", "raw", "bytea")],
)
def test_doctor_finds_a_session_of_the_connector_that_prints_values_in_another_form(
    setting: str, column: str, type: str, stack: Sandbox, migrate: Migrate
) -> None:
    m = bare(stack, migrate, TABLES + "alter table app.doc replica identity full;")
    applied(m)
    m.source.execute(f"alter database {m.name} set {setting}".encode())
    m.asked("doctor")  # no column depends on it
    m.source.execute(f"alter table app.doc add {column} {type}".encode())
    m.config.write_text(m.config.read_text().replace('columns = ["views"]', f'columns = ["views", "{column}"]'))
    [problem] = m.asked("doctor", code=78)["error"]["problems"]
    assert problem["id"] == "connector-session"
    name, _, value = setting.partition(" = ")
    user = conninfo_to_dict(m.source_dsn)["user"]
    assert problem["hint"].startswith(f"ALTER ROLE {user} SET {name} = ")
    m.source.execute(problem["hint"].partition(";")[0].replace(" SET ", f" IN DATABASE {m.name} SET ").encode())
    m.asked("doctor")  # what the role says in this database wins over what the database says
    m.source.execute(f"alter role {user} in database {m.name} set {name} = {value}".encode())
    m.source.execute(f"alter database {m.name} reset {name}".encode())
    m.asked("doctor", code=78)


def as_stranger(m: Migration) -> str:
    """Let the configuration name a role at the source that may connect and nothing else."""
    role, password = f"stranger_{m.name}", "p4ssw0rd"
    create = sql.SQL("create role {} login password {}").format(sql.Identifier(role), sql.Literal(password))
    m.source.execute(create)
    dsn = make_conninfo(m.source_dsn, user=role, password=password)
    text = m.config.read_text()
    assert m.source_dsn in text
    m.config.write_text(text.replace(json.dumps(m.source_dsn), json.dumps(dsn), 1))
    return role
