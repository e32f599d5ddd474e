"""What systemd is told, by its datagram protocol (sd_notify(3)); nothing where it did not start us.

address: the value of `NOTIFY_SOCKET`. A message that cannot be sent is lost without a word: systemd being away must not
end a process that works.
"""

from __future__ import annotations

import socket
from contextlib import suppress

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def notify(address: str | None, *lines: str) -> None:
    """Send assignments such as READY or `status("…")` in one datagram."""
    if not address:
        return
    path = f"\0{address[1:]}" if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        sock.sendto("\n".join(lines).encode(), path)


def status(text: str) -> str:
    """The assignment that `systemctl status` shows."""
    return f"STATUS={' '.join(text.split())}"


def watchdog_interval_s(usec: str | None) -> float | None:
    """How often to send WATCHDOG: half of `WATCHDOG_USEC`. None where systemd does not watch."""
    return int(usec) / 2_000_000 if usec and usec.isdigit() and int(usec) else None
