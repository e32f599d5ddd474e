"""Faults between the product and its parts: what is written afterwards arrives, equal, and no break is said.

The proxies stand between; the test's own clients take the direct way. Each fault leaves its evidence in the proxy's
counters. Times are those of the product's own timeouts, with room for a loaded machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from sandbox.compare import Differences
from sandbox.config import Gen
from sandbox.parts import Part
from sandbox.proxied import Proxied
from sandbox.proxy import Proxy
from sandbox.stack import Sandbox
from tests.system.migration import Migration, Setting

log = logging.getLogger(__name__)
pytestmark = pytest.mark.system

ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 100) n"
LIMIT_S = 60.0  # 30 s, and room for a loaded machine
GENERATION = Gen(limits={"request_timeout_s": 5, "in_flight": 2, "request_inputs": 64})
KAFKA = {"socket.timeout.ms": "4000"}  # the product's own, 10 s, would be this test's time
OURS = "datname = current_database() and application_name like 'revector:%' and pid <> pg_backend_pid()"


@pytest.fixture
def proxied(stack: Sandbox) -> Iterator[Proxied]:
    with Proxied(stack) as ways:
        yield ways


class Trial:
    """A migration that is caught up, and a change after each fault."""

    def __init__(self, m: Migration) -> None:
        self.m, self.round = m, 0
        m.start()
        m.wait("caught-up")

    def change(self) -> None:
        self.round += 1
        with self.m.source.transaction():
            self.m.source.execute("insert into app.doc (id, title) values (%s, 'new')", [1000 + self.round])
            self.m.source.execute("update app.doc set body = 'changed', views = views + 1 where id = %s", [self.round])
            self.m.source.execute("delete from app.doc where id = %s", [50 + self.round])

    def arrives(self, after: str) -> None:
        """A change made now, in replica and chunks, before long."""
        self.change()
        key, began = 1000 + self.round, time.monotonic()
        self.m.until(lambda: dict(self.m.chunks()), lambda rows: key in rows, f"a change after {after}", LIMIT_S)
        log.info("%s: a change arrives after %.1f s", after, time.monotonic() - began)

    def equal(self) -> None:
        self.m.until(self.m.differences, lambda found: found == Differences(), "an equal replica", LIMIT_S)

    def said(self) -> set[str]:
        """Breaks and halts."""
        query = "select event from revector.journal where migration = %s and kind in ('break', 'halt')"
        return {event for (event,) in self.m.target.execute(query, [self.m.name]).fetchall()}

    def until_log(self, *words: str) -> None:
        seen = len(self.m.log.read_text())
        self.m.until(lambda: self.m.log.read_text()[seen:], lambda log: all(w in log for w in words), f"{words}")


@pytest.fixture
def trial(migrate: Callable[[Setting], Migration], proxied: Proxied) -> Trial:
    setting = Setting(rows=ROWS, proxied=proxied, generations=(GENERATION,), kafka_properties=KAFKA)
    return Trial(migrate(setting))


def terminate(connection: psycopg.Connection) -> int:
    """End the product's backends in this database; how many."""
    return len(connection.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS}").fetchall())


def test_lost_connections_are_made_anew(trial: Trial, proxied: Proxied) -> None:
    ways = (proxied.source, proxied.target, proxied.broker, proxied.connect, proxied.provider)
    for way in ways:
        way.cut()
    assert all(way.landed.cut > 0 for way in ways[:3])  # the others may have none open
    trial.arrives("cut connections")

    for way in ways:
        way.refuse()
    trial.change()
    trial.until_log("target-unreachable", "librdkafka")
    proxied.heal()
    trial.arrives("refused connections")

    assert terminate(trial.m.source) > 0 and terminate(trial.m.target) > 0
    trial.arrives("terminated backends")

    proxied.target.cut_at_commit(f"revector:{trial.m.name}:stream")
    proxied.target.cut_at_commit(f"revector:{trial.m.name}:embed")
    trial.arrives("commits of which only the server knew")
    trial.arrives("them")
    assert proxied.target.landed.commits_cut == 2
    trial.equal()
    assert trial.said() == set()


def test_silent_connections_are_given_up(trial: Trial, proxied: Proxied) -> None:
    ways = (proxied.source, proxied.target, proxied.broker, proxied.connect, proxied.provider)
    for way in ways:
        way.half_open()
    trial.change()
    trial.m.until(
        lambda: [way.landed.swallowed_bytes > 0 for way in (proxied.source, proxied.target, proxied.broker)],
        all,
        "something to be lost on each way",
    )
    proxied.heal()
    trial.arrives("half-open connections")
    trial.equal()
    assert trial.said() == set()


def test_frozen_target_and_broker_are_waited_for(trial: Trial, proxied: Proxied) -> None:
    parts: list[tuple[Part, Proxy]] = [(trial.m.stack.target, proxied.target), (trial.m.stack.broker, proxied.broker)]
    for part, way in parts:
        freeze(trial, part, way)
        trial.arrives(f"a frozen {part.name}")
    trial.equal()
    assert trial.said() == set()


def freeze(trial: Trial, part: Part, way: Proxy) -> None:
    """Until the product has looked what is the matter."""
    seen = way.landed.accepted
    part.freeze()
    try:
        trial.m.until(lambda: state(part), lambda found: found == "T", "it to stand still")
        trial.change()
        trial.m.until(lambda: way.landed.accepted, lambda accepted: accepted > seen, f"a look at {part.name}")
    finally:
        part.thaw()


def test_the_connectors_own_connections(trial: Trial, proxied: Proxied) -> None:
    for way in (proxied.capture_broker, proxied.capture_source):
        assert way.cut() > 0
        trial.arrives("a cut before the connector")
    trial.equal()
    assert trial.said() <= {"connector-restarted"}


def state(part: Part) -> str:
    """Of the process, as the kernel names it."""
    return (Path("/proc") / str(part.pid) / "stat").read_text().rsplit(")", 1)[1].split()[0]
