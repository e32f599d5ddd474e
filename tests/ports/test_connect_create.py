"""`ConnectRest.create`: a connector is made once, never changed, and what Connect refuses is named without values."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping

import pytest

from connectors.connect_rest import ConnectRest
from daemon.errors import ConfigError, PermissionRefused, TransientError
from tests.ports.loopback import Loopback, loopback

KIND = "io.debezium.connector.postgresql.PostgresConnector"
CONFIG = {"connector.class": KIND, "database.user": "dbz", "database.password": "hush"}
Answer = tuple[int, Mapping[str, str], bytes]
PLUGINS: Answer = (200, {}, json.dumps([{"class": KIND, "version": "3.7.0.Final"}]).encode())
MADE: Answer = (201, {}, b"{}")
CONFLICT: Answer = (409, {}, b'{"error_code": 409, "message": "hush"}')
INVALID: Answer = (400, {}, b'{"error_code": 400, "message": "The hush value is invalid"}')
ABSENT: Answer = (404, {}, b"{}")


@pytest.fixture
async def server() -> AsyncIterator[Loopback]:
    async with loopback() as server:
        yield server


@pytest.fixture
async def connect(server: Loopback) -> AsyncIterator[ConnectRest]:
    connect = ConnectRest(server.url, "shop")
    yield connect
    await connect.close()


async def test_it_is_posted_with_its_name(server: Loopback, connect: ConnectRest) -> None:
    server.answers = [PLUGINS, MADE]
    await connect.create(CONFIG)
    request = server.requests[-1]
    assert request.line.startswith("POST /connectors ")
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == {"name": "shop", "config": CONFIG}


async def test_an_existing_one_is_left_as_it_is(server: Loopback, connect: ConnectRest) -> None:
    server.answers = [PLUGINS, CONFLICT, (200, {}, b'{"connector.class": "other"}')]
    await connect.create(CONFIG)
    assert [r.line.split()[0] for r in server.requests] == ["GET", "POST", "GET"]


async def test_a_worker_that_rebalances_is_asked_again(server: Loopback, connect: ConnectRest) -> None:
    server.answers = [PLUGINS, CONFLICT, ABSENT]
    with pytest.raises(TransientError, match="answered 409") as caught:
        await connect.create(CONFIG)
    assert "hush" not in str(caught.value)


async def test_settings_that_are_refused_are_named_without_their_values(server: Loopback, connect: ConnectRest) -> None:
    values = [
        {"value": {"name": "database.user", "value": "dbz", "errors": ["hush: no such role"]}},
        {"value": {"name": "topic.prefix", "value": "shop", "errors": []}},
    ]
    server.answers = [PLUGINS, INVALID, (200, {}, json.dumps({"configs": values}).encode())]
    with pytest.raises(ConfigError) as caught:
        await connect.create(CONFIG)
    [problem] = caught.value.problems
    assert (problem.id, problem.where) == ("connector-refused", "connector shop database.user")
    assert "hush" not in repr(problem)
    asked = server.requests[-1]
    assert asked.line.startswith(f"PUT /connector-plugins/{KIND}/config/validate ")
    assert json.loads(asked.body)["name"] == "shop"


async def test_refusal_without_a_reason_names_the_profile(server: Loopback, connect: ConnectRest) -> None:
    server.answers = [PLUGINS, INVALID, (500, {}, b"")]
    with pytest.raises(ConfigError, match="does not accept"):
        await connect.create(CONFIG)


async def test_worker_without_debezium_is_said_before_anything_is_sent(server: Loopback, connect: ConnectRest) -> None:
    server.answers = [(200, {}, b'[{"class": "other"}]')]
    with pytest.raises(ConfigError, match="has no plugin"):
        await connect.create(CONFIG)
    assert len(server.requests) == 1


async def test_refused_credentials_are_a_permission(server: Loopback, connect: ConnectRest) -> None:
    server.answers = [PLUGINS, (403, {}, b"")]
    with pytest.raises(PermissionRefused, match="answered 403"):
        await connect.create(CONFIG)
