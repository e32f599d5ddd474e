"""The real server on loopback, asked with the standard library's client."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from daemon.core.model import HaltNote
from daemon.core.reasons import REASONS
from daemon.errors import ConfigError, HeldElsewhere
from daemon.service.instruments import Sources
from daemon.service.last_status import FRESH_S
from daemon.service.telemetry import Telemetry
from daemon.service.web import ALIVE_S, Web
from tests.unit.service import HandClock, process, status

LOOPBACK = ("127.0.0.1", 0)


@dataclass
class Answer:
    code: int
    headers: dict[str, str]
    text: str


@dataclass
class Site:
    sources: Sources
    clock: HandClock
    base: str

    def get(self, path: str, accept: str = "*/*", method: str = "GET") -> Answer:
        place = urlsplit(self.base)
        with closing(http.client.HTTPConnection(place.hostname or "", place.port, timeout=10)) as connection:
            connection.request(method, path, headers={"Accept": accept})
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, headers, answer.read().decode())


@contextmanager
def serving(exporters: str | None = None) -> Iterator[Site]:
    sources, clock = process()
    telemetry = Telemetry("articles", sources, exporters)
    try:
        with Web(LOOPBACK, sources, telemetry) as base:
            yield Site(sources, clock, base)
    finally:
        telemetry.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def site(server: Site) -> Site:
    """The module's one server, as if its process had just started."""
    sources, clock = process()
    server.clock.now = clock.now
    for name in ("turned_at", "is_ready", "halted_by"):
        setattr(server.sources.running, name, getattr(sources.running, name))
    server.sources.last.forget()
    return server


def test_a_turning_loop_is_alive_whatever_else_is_wrong(site: Site) -> None:
    site.sources.running.is_ready = False
    site.sources.running.halted_by = "offsets-gone"
    site.clock.now += ALIVE_S
    assert site.get("/livez").code == 200


def test_a_loop_that_stands_still_is_not_alive(site: Site) -> None:
    site.clock.now += ALIVE_S + 0.1
    answer = site.get("/livez")
    assert (answer.code, answer.text) == (503, "the main loop has not turned for 10 s\n")


def test_a_loop_that_never_turned_is_not_alive(site: Site) -> None:
    site.sources.running.turned_at = 0.0
    site.clock.now = ALIVE_S / 2  # a machine that was just started: 0 would look recent
    assert site.get("/livez").code == 503


def test_ready_once_the_loops_run_and_nothing_halted(site: Site) -> None:
    assert site.get("/readyz").code == 200
    site.sources.running.is_ready = False
    assert (site.get("/readyz").code, site.get("/readyz").text) == (503, "starting\n")
    site.sources.running.is_ready = True
    site.sources.running.halted_by = "offsets-gone"
    assert (site.get("/readyz").code, site.get("/readyz").text) == (503, "halted: offsets-gone\n")


def test_status_is_the_last_document(site: Site) -> None:
    site.sources.last.publish(status(halts={"identity-changed": HaltNote("", "point it back")}))
    answer = site.get("/v1/status")
    document = json.loads(answer.text)
    assert (answer.code, answer.headers["content-type"]) == (200, "application/json")
    assert (document["schema"], document["verdict"]) == ("revector.status/1", "halted")
    site.sources.last.publish(status())
    assert json.loads(site.get("/v1/status").text)["verdict"] == "ready to cut over"


def test_status_before_the_first_one_is_an_error_with_a_hint(site: Site) -> None:
    answer = site.get("/v1/status")
    document = json.loads(answer.text)
    assert (answer.code, document["schema"]) == (503, "revector.error/1")
    assert document["error"]["id"] == "status-not-made"
    assert document["error"]["hint"]


def test_a_status_that_is_not_renewed_is_no_answer(site: Site) -> None:
    site.sources.last.publish(status())
    site.clock.now += FRESH_S + 1
    answer = site.get("/v1/status")
    assert (answer.code, json.loads(answer.text)["error"]["id"]) == (503, "status-stale")
    assert "ready to cut over" not in answer.text
    assert site.get("/").text.startswith("OUT OF DATE: observed 61 s ago.")


def test_metrics_are_prometheus_text(site: Site) -> None:
    site.sources.last.publish(status())
    answer = site.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "\nrevector_lag_seconds 0.4\n" in answer.text
    assert answer.text.count("revector_blocker{") == len(REASONS)


def test_metrics_say_why_there_are_none() -> None:
    with serving("none") as site:
        answer = site.get("/metrics")
    assert answer.code == 404
    assert "OTEL_METRICS_EXPORTER" in answer.text


def test_the_page_is_whole_in_itself_and_its_text_is_escaped(site: Site) -> None:
    site.sources.last.publish(status(migration="<b>articles</b>"))
    answer = site.get("/", accept="text/html,*/*;q=0.8")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "&lt;b&gt;articles" in answer.text
    assert "<b>" not in answer.text
    assert "http" not in answer.text.replace("http-equiv", "")
    assert "src=" not in answer.text


def test_a_terminal_gets_the_same_status_as_plain_text(site: Site) -> None:
    site.sources.last.publish(status())
    answer = site.get("/")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.startswith("articles   ready to cut over")


def test_answers_are_not_stored_and_change_nothing(site: Site) -> None:
    for path in ("/", "/livez", "/readyz", "/v1/status", "/metrics"):
        assert site.get(path).headers["cache-control"] == "no-store"
        assert site.get(path, method="POST").code == 405
    assert site.get("/nothing").code == 404


async def test_it_answers_while_the_main_loop_is_blocked() -> None:
    with serving() as site:
        assert site.get("/livez").code == 200  # a plain call: this loop does not turn until the answer is here


def test_a_taken_port_is_one_clear_error(site: Site) -> None:
    port = urlsplit(site.base).port
    assert port is not None
    sources, _ = process()
    telemetry = Telemetry("articles", sources, "none")
    with pytest.raises(HeldElsewhere, match="another process listens") as refused:
        Web(("127.0.0.1", port), sources, telemetry).start()
    telemetry.close()
    assert (refused.value.id, refused.value.exit_code) == ("port-taken", 75)
    assert '"127.0.0.1:0"' in refused.value.hint


def test_an_address_of_another_machine_is_a_configuration_error() -> None:
    sources, _ = process()
    telemetry = Telemetry("articles", sources, "none")
    with pytest.raises(ConfigError, match="not an address of this machine"):
        Web(("192.0.2.1", 0), sources, telemetry).start()
    telemetry.close()


def test_the_real_port_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "daemon")
    with serving() as site:
        assert f"status and metrics at {site.base}" in caplog.text
        assert urlsplit(site.base).port not in (None, 0)


def test_nothing_is_left_after_stop() -> None:
    before = set(threading.enumerate())
    with serving() as site:
        place = urlsplit(site.base)
        assert place.hostname is not None and place.port is not None
        assert site.get("/livez").code == 200
        idle = socket.create_connection((place.hostname, place.port), timeout=10)  # a client that never asks
    with idle:
        assert idle.recv(1) == b""
    assert set(threading.enumerate()) == before
    with socket.create_server((place.hostname, place.port)):
        pass


def test_stop_may_be_called_twice_and_before_start() -> None:
    sources, _ = process()
    telemetry = Telemetry("articles", sources, "none")
    web = Web(LOOPBACK, sources, telemetry)
    web.stop()
    web.start()
    web.stop()
    web.stop()
    telemetry.close()
