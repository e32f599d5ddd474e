"""A connection that the network forgot is given up, its backend ended; one that works or is slow is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors import postgres_watch
from connectors.postgres_session import Session
from daemon.errors import TransientError
from sandbox.parts import Ports
from sandbox.postgres import Postgres
from sandbox.proxy import HOST, Proxy

NAME = "revector:test:watched"
LIMIT_S = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_watch, "QUIET_S", 0.1)
    monkeypatch.setattr(postgres_watch, "AGAIN_S", 0.2)
    monkeypatch.setattr(postgres_watch, "NEXT_LOOK_S", 0.1)
    monkeypatch.setattr(postgres_watch, "ASK_S", 1.0)


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    ports = Ports()
    with Proxy(ports.take(), postgres.port) as started:
        yield started
    ports.release()


@pytest.fixture
def session(dsn: str, proxy: Proxy) -> Session:
    return Session(make_conninfo(dsn, host=HOST, port=proxy.port), NAME, "target")


@pytest.fixture
def eye(dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def backends(eye: psycopg.Connection) -> list[tuple[int, str]]:
    return eye.execute("SELECT pid, state FROM pg_stat_activity WHERE application_name = %s", [NAME]).fetchall()


async def until_gone(eye: psycopg.Connection) -> None:
    deadline = time.monotonic() + LIMIT_S
    while backends(eye):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_forgotten_connection_is_given_up_and_its_locks_are_free(
    session: Session, proxy: Proxy, eye: psycopg.Connection
) -> None:
    eye.execute("CREATE TABLE held (n int)")
    with pytest.raises(TransientError) as caught:
        async with session.use("window") as connection, connection.transaction():
            await connection.execute("LOCK TABLE held")
            proxy.half_open()
            proxy.heal()
            await asyncio.wait_for(connection.execute("SELECT 1"), LIMIT_S)
    assert caught.value.id == "target-unreachable"
    assert proxy.landed.swallowed_bytes > 0
    await until_gone(eye)
    eye.execute("DROP TABLE held; CREATE TABLE held (n int)")
    async with session.use("next") as connection:
        await connection.execute("INSERT INTO held VALUES (1)")
    await session.close()


async def test_a_lost_answer_is_noticed_too(session: Session, proxy: Proxy, eye: psycopg.Connection) -> None:
    async with session.use("warm") as connection:
        await connection.execute("SELECT 1")
    with pytest.raises(TransientError):
        async with session.use("sleep") as connection:
            asked = asyncio.create_task(connection.execute("SELECT pg_sleep(0.5)"))
            while [state for _, state in backends(eye)] != ["active"]:
                await asyncio.sleep(0.01)
            proxy.half_open()
            proxy.heal()
            await asyncio.wait_for(asked, LIMIT_S)
    assert proxy.landed.swallowed_bytes > 0
    await session.close()


async def test_while_nobody_can_be_asked_it_waits(session: Session, proxy: Proxy) -> None:
    async with session.use("warm") as connection:
        await connection.execute("SELECT 1")
        proxy.half_open()
        asked = asyncio.create_task(connection.execute("SELECT 1"))
        done, _ = await asyncio.wait([asked], timeout=3)
        assert not done
        proxy.heal()
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(asked, LIMIT_S)
    await session.close()


async def test_a_long_statement_is_waited_for(session: Session, eye: psycopg.Connection) -> None:
    async with session.use("long") as connection:
        ((pid, _),) = backends(eye)
        await connection.execute("SELECT pg_sleep(2)")
        assert connection.pgconn.backend_pid == pid
    await session.close()


async def test_a_slow_way_is_waited_for(
    session: Session, proxy: Proxy, eye: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_watch, "AGAIN_S", 1.0)
    async with session.use("long") as connection:
        ((pid, _),) = backends(eye)
        proxy.throttle(500_000)
        cursor = await connection.execute("SELECT repeat('x', 1000000)")
        assert len((await cursor.fetchone() or ("",))[0]) == 1_000_000
        await connection.execute("SELECT length(%s)", ["x" * 1_000_000])
        assert connection.pgconn.backend_pid == pid
    assert proxy.landed.throttled_bytes > 2_000_000
    await session.close()


async def test_what_is_left_of_a_broken_connection_ends_before_the_next_works(
    session: Session, proxy: Proxy, eye: psycopg.Connection
) -> None:
    with pytest.raises(TransientError):
        async with session.use("window") as connection:
            ((pid, _),) = backends(eye)
            proxy.half_open()
            connection.pgconn.finish()  # as a keepalive that was not answered would
            proxy.heal()
            await connection.execute("SELECT 1")
    assert [each for each, _ in backends(eye)] == [pid]
    async with session.use("next") as connection:
        await connection.execute("SELECT 1")
        ended = time.monotonic() + LIMIT_S
        while pid in [each for each, _ in backends(eye)]:
            assert time.monotonic() < ended
            await asyncio.sleep(0.01)
    await session.close()


@pytest.mark.parametrize("whose", ["ours", "the-look's"])
async def test_a_first_answer_that_is_lost_is_not_waited_for(
    session: Session, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    original = postgres_watch.WatchedConnection.connect
    made = []

    async def connect(conninfo: str, **options: Any) -> postgres_watch.WatchedConnection:
        connection = await original(conninfo, **options)
        made.append(connection)
        if len(made) == (1 if whose == "ours" else 2):
            proxy.half_open()
            proxy.heal()  # for those to come
        return connection

    monkeypatch.setattr(postgres_watch, "FIRST_S", 0.5)
    monkeypatch.setattr(postgres_watch.WatchedConnection, "connect", connect)
    with pytest.raises(TransientError):
        async with asyncio.timeout(LIMIT_S), session.use("first") as connection:
            # The second connection looks, and what it and ours wait for is lost.
            await connection.execute("SELECT pg_sleep(1)")
    assert proxy.landed.swallowed_bytes > 0
    await session.close()


def looked(session: Session) -> postgres_watch.WatchedConnection:
    connection = session._connection
    assert connection is not None
    return connection


async def test_another_backend_under_the_same_number_is_left_alone(
    session: Session, proxy: Proxy, eye: psycopg.Connection
) -> None:
    async with session.use("warm") as connection:
        ((pid, _),) = backends(eye)
        theirs = postgres_watch.Backend(pid, "1.000000")  # what had this number before is gone
        with pytest.raises(psycopg.OperationalError):
            looked(session).backend = theirs
            proxy.half_open()
            proxy.heal()
            await asyncio.wait_for(connection.execute("SELECT 1"), LIMIT_S)
    async with asyncio.timeout(LIMIT_S):
        while (left := [each for each, _ in backends(eye)]) != [pid]:  # the look's own leaves by itself
            assert pid in left
            await asyncio.sleep(0)
    assert eye.execute("SELECT pg_terminate_backend(%s)", [pid]).fetchone() == (True,)
    await session.close()


async def test_a_server_that_is_another_one_says_nothing_of_ours(
    session: Session, eye: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()
    original = postgres_watch.WatchedConnection._is_forgotten

    async def counted(connection: postgres_watch.WatchedConnection, before: tuple[int, int]) -> bool:
        answer = await original(connection, before)
        asked.set()
        return answer

    monkeypatch.setattr(postgres_watch.WatchedConnection, "_is_forgotten", counted)
    async with session.use("long") as connection:
        looked(session).server = ("192.0.2.1", 5432)  # a dsn of several hosts led the look elsewhere,
        looked(session).backend = postgres_watch.Backend(1, "1.000000")  # where our backend is not
        await connection.execute("SELECT pg_sleep(2)")
    assert asked.is_set()
    await session.close()


async def test_behind_a_pooler_nobody_looks(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_watch, "_WHO", "SELECT 4000000, '1.000000'")  # its clients are told other numbers
    async with session.use("long") as connection:
        assert (looked(session).asks_at, looked(session).backend) == (None, None)
        await connection.execute("SELECT pg_sleep(1)")
    await session.close()


async def test_dates_in_any_style_are_no_matter(dsn: str, proxy: Proxy, eye: psycopg.Connection) -> None:
    given = make_conninfo(dsn, host=HOST, port=proxy.port, options="-c datestyle=German,DMY")
    session = Session(given, NAME, "target")
    with pytest.raises(TransientError):
        async with session.use("window") as connection:
            proxy.half_open()
            proxy.heal()
            await asyncio.wait_for(connection.execute("SELECT 1"), LIMIT_S)
    await until_gone(eye)
    await session.close()


async def test_settings_of_a_role_win(dsn: str, eye: psycopg.Connection) -> None:
    eye.execute("ALTER ROLE CURRENT_USER IN DATABASE " + eye.info.dbname + " SET tcp_keepalives_idle = 78")
    session = Session(dsn, NAME, "target")
    async with session.use("look") as connection:
        shown = "SELECT current_setting('tcp_keepalives_idle'), current_setting('client_connection_check_interval')"
        assert await (await connection.execute(shown)).fetchone() == ("78", "5s")
    await session.close()


async def test_settings_of_the_dsn_win(dsn: str) -> None:
    given = make_conninfo(dsn, options="-c tcp_keepalives_idle=77", connect_timeout=9, tcp_user_timeout=12345)
    session = Session(given, NAME, "target")
    shown = "SELECT current_setting('tcp_keepalives_idle'), current_setting('client_connection_check_interval')"
    async with session.use("look") as connection:
        assert await (await connection.execute(shown)).fetchone() == ("77", "5s")
        options = {o.keyword.decode(): o.val for o in connection.pgconn.info}
        assert (options["connect_timeout"], options["tcp_user_timeout"]) == (b"9", b"12345")
        assert options["keepalives_idle"] == b"15"
    await session.close()
