"""systemd's side of the protocol is a datagram socket."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

import pytest

from daemon.service.notify import READY, STOPPING, WATCHDOG, notify, status, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@revector-{uuid.uuid4().hex}"


def test_assignments_arrive_in_one_datagram(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(10)
        systemd.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        notify(address, READY, status("catching up,\n3 blockers"))
        assert systemd.recv(1000) == b"READY=1\nSTATUS=catching up, 3 blockers"
        notify(address, WATCHDOG)
        notify(address, STOPPING)
        assert (systemd.recv(1000), systemd.recv(1000)) == (b"WATCHDOG=1", b"STOPPING=1")


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    notify(None, READY)
    notify("", READY)
    notify(str(tmp_path / "gone"), READY)


@pytest.mark.parametrize(("usec", "interval"), [("30000000", 15.0), (None, None), ("", None), ("0", None), ("x", None)])
def test_the_watchdog_is_fed_twice_per_interval(usec: str | None, interval: float | None) -> None:
    assert watchdog_interval_s(usec) == interval
