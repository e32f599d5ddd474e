"""A set-up that cannot work is refused before anything is written: one clear message, id, place, remedy, exit code."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest

from sandbox.stack import Sandbox
from tests.system.migration import DOCS, Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]


def problems(m: Migration, *ids: str, code: int = 78) -> dict[str, dict[str, str]]:
    """What `doctor` finds, by id, once these are there: on a loaded machine a part may be too slow for it. Each has
    place, message and remedy."""

    def found() -> dict[str, dict[str, str]]:
        error = m.asked("doctor", code=code)["error"]
        return {p["id"]: p for p in error["problems"]} or {error["id"]: {**error, "where": error["message"]}}

    seen = m.until(found, lambda seen: set(ids) <= set(seen), f"doctor to find {', '.join(ids)}")
    assert all(p["where"] and p["message"] and p["hint"] for p in seen.values()), seen
    return seen


def edit(m: Migration, pattern: str, replacement: str) -> None:
    """Change the configuration file; the pattern must be there."""
    text, count = re.subn(pattern, lambda _: replacement, m.config.read_text(), flags=re.MULTILINE)
    assert count, f"{pattern} is not in the configuration"
    m.config.write_text(text)


def nothing_was_made(m: Migration) -> None:
    query = "select count(*) from pg_namespace where nspname in ('revector', %s)"
    assert m.target.execute(query, [m.name]).fetchone() == (0,)


def test_table_without_primary_key(migrate: Migrate) -> None:
    ddl = DOCS.replace("bigint primary key", "bigint not null")
    m = migrate(Setting(ddl=ddl, captured=False))
    found = problems(m, "primary-key-missing", "publication-keyless")
    assert "app.doc" in found["primary-key-missing"]["where"]
    assert "app.doc" in found["publication-keyless"]["message"]


@pytest.mark.parametrize("column", ["interval", "money", "int[]"])
def test_used_column_of_a_refused_type(migrate: Migrate, column: str) -> None:
    m = migrate(Setting(ddl=DOCS + f"alter table app.doc add column odd {column};", captured=False))
    edit(m, r'^columns = \["views"\]', 'columns = ["views", "odd"]')
    assert "odd" in problems(m, "type-refused")["type-refused"]["where"]


def test_key_of_a_refused_type(migrate: Migrate) -> None:
    m = migrate(Setting(ddl=DOCS.replace("id bigint primary key", "id numeric primary key"), captured=False))
    assert "id" in problems(m, "key-type-refused")["key-type-refused"]["where"]


def test_wrong_password_is_77_and_never_shown(migrate: Migrate) -> None:
    m = migrate(Setting(captured=False))
    password = str(psycopg.conninfo.conninfo_to_dict(m.source_dsn)["password"])
    m.config.write_text(m.config.read_text().replace(password, "wr0ng-passw0rd", 1))
    said = m.revector("doctor", "--json", code=77)
    assert json.loads(said)["error"]["id"] == "password-refused"
    assert "wr0ng-passw0rd" not in said


def test_unreachable_broker_is_69(migrate: Migrate) -> None:
    m = migrate(Setting())
    edit(m, r'^"bootstrap.servers" = .*$', '"bootstrap.servers" = "127.0.0.1:1"')
    m.until(
        lambda: set(problems(m, code=69)), lambda found: found == {"kafka-unreachable"}, "every other part's answer"
    )


def test_wrong_topic_prefix(migrate: Migrate) -> None:
    m = migrate(Setting())
    edit(m, r"^topic_prefix = .*$", 'topic_prefix = "elsewhere"')
    found = problems(m, "topic-missing", "connector-mismatch")
    assert "elsewhere.app.doc" in found["topic-missing"]["where"] or "elsewhere" in found["topic-missing"]["where"]
    assert "topic.prefix" in found["connector-mismatch"]["where"]


@pytest.mark.parametrize(
    ("setting", "value", "id"),
    [
        ("decimal.handling.mode", "precise", "connector-setting"),
        ("time.precision.mode", "adaptive", "connector-setting"),
        ("errors.tolerance", "all", "connector-skips-errors"),
    ],
)
def test_connector_that_loses_or_bends_values(migrate: Migrate, setting: str, value: str, id: str) -> None:
    m = migrate(Setting(connector={setting: value}))
    found = problems(m, id)
    assert setting in found[id]["where"]
    m.revector("run", code=78)
    nothing_was_made(m)


@contextmanager
def older_debezium(connect_url: str) -> Iterator[str]:
    """The real Connect behind a proxy that reports Debezium 3.6.3."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with urlopen(connect_url + self.path) as answer:
                body = answer.read().replace(b"3.7.0.Final", b"3.6.3.Final")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_debezium_below_3_7_0(stack: Sandbox, migrate: Migrate) -> None:
    m = migrate(Setting())
    with older_debezium(stack.connect_url) as url:
        edit(m, r"^url = .*$", f'url = "{url}"')
        assert "3.6.3" in problems(m, "connector-version")["connector-version"]["message"]


def test_missing_slot(migrate: Migrate) -> None:
    m = migrate(Setting(captured=False))
    assert m.name in problems(m, "slot-missing")["slot-missing"]["where"]


@pytest.mark.parametrize(
    ("publication", "id"),
    [
        ("with (publish = 'insert, update, delete')", "publication-operations"),
        ("keyless", "publication-keyless"),
        ("columns", "publication-column-list"),
    ],
)
def test_publication_that_leaves_something_out(migrate: Migrate, publication: str, id: str) -> None:
    head, _ = DOCS.split("create publication")
    tail = {
        "keyless": "create table app.loose (a int); create publication revector for table app.doc, app.loose;",
        "columns": "create publication revector for table app.doc (id, tenant, title, body);",
    }.get(publication, f"create publication revector for table app.doc {publication};")
    m = migrate(Setting(ddl=head + tail, captured=False))
    assert "revector" in problems(m, id)[id]["where"]


def test_dimension_that_is_not_the_models(migrate: Migrate) -> None:
    m = migrate(Setting())
    edit(m, r"^dimensions = .*$", "dimensions = 100")
    assert (
        "256, and no other where `dimensions` is asked for"
        in problems(m, "provider-dimension")["provider-dimension"]["message"]
    )
    m.revector("run", code=78)
    nothing_was_made(m)


def test_target_without_the_vector_extension(stack: Sandbox, migrate: Migrate) -> None:
    m = migrate(Setting(captured=False))
    m.target.execute("drop extension vector")
    assert "CREATE EXTENSION vector" in problems(m, "vector-missing")["vector-missing"]["hint"]


def test_unknown_key_is_refused_with_line_and_nearest_name(migrate: Migrate, tmp_path: Path) -> None:
    m = migrate(Setting(captured=False))
    edit(m, r"^publication = .*$", 'publicaton = "revector"')
    error = m.asked("check", code=78)["error"]
    line = next(n for n, text in enumerate(m.config.read_text().splitlines(), 1) if text.startswith("publicaton"))
    said = " ".join(f"{p['where']} {p['message']} {p['hint']}" for p in error["problems"])
    assert f":{line}" in said
    assert "publication" in said
