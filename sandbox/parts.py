"""What every part of the stack can do: start, stop, crash, freeze, and say when it is ready.

A part keeps its port and its data over stop and start, so a test can take it away and give it back. Waiting is always
for a condition with a deadline, never for a time; a part that dies while one waits for it is told at once, with the
end of its log.
"""

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from sandbox.guardian import children
from sandbox.processes import Guardian, Process, Program, SandboxError, tail

START_TIMEOUT_S = 120.0  # a loaded machine with two cores; a healthy start takes 2 to 8 s
STOP_TIMEOUT_S = 30.0
FIRST_PORT, LAST_PORT = 15000, 31999


class PortTaken(SandboxError):
    """Somebody else listens on a port that was free when it was chosen; start again with others."""


class Ports:
    """Free loopback ports, reserved among all sandboxes of this machine until `release`.

    Below the kernel's ephemeral range: otherwise any client connection could take the port of a part that is stopped
    for a moment. The reservation is an abstract socket name, so it ends with the process that holds it.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self) -> int:
        """One port."""
        for port in random.sample(range(FIRST_PORT, LAST_PORT + 1), 500):
            name = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(OSError), socket.socket() as probe:
                name.bind(f"\0revector-sandbox-port-{port}")
                probe.bind(("127.0.0.1", port))
                self._held.append(name)
                return port
            name.close()
        raise SandboxError(f"no free port found between {FIRST_PORT} and {LAST_PORT} on 127.0.0.1")

    def release(self) -> None:
        """Give all of them back."""
        while self._held:
            self._held.pop().close()


class Part:
    """One server of the stack."""

    stop_signal: int = signal.SIGTERM
    crash_signal: int = signal.SIGKILL

    def __init__(self, guardian: Guardian, program: Program, port: int) -> None:
        self._guardian = guardian
        self._program = program
        self._process: Process | None = None
        self.port = port

    @property
    def name(self) -> str:
        """The part's name, also that of its log."""
        return self._program.name

    @property
    def log(self) -> Path:
        """Where its output goes; appended to over restarts."""
        return self._program.log

    @property
    def pid(self) -> int:
        """The running process. Raises SandboxError when stopped."""
        if self._process is None:
            raise SandboxError(f"{self.name} is stopped; start it before asking for its pid")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process is there; it may not answer yet."""
        return self._process is not None and self._process.poll() is None

    def not_ready(self) -> str | None:
        """Why it cannot be used yet, or None when it can; each part adds its own question."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError as error:
            return f"port {self.port}: {error.strerror or error}"
        return None

    def start(self, *, wait: bool = True, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it on its port; with `wait`, return when it can be used."""
        if self.is_running:
            return
        self._process = self._guardian.spawn(self._program)
        if wait:
            self.wait_ready(timeout_s)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when it can be used. Raises SandboxError: it died, or the deadline passed."""
        deadline = time.monotonic() + timeout_s
        while (reason := self.not_ready()) is not None:
            status = self._process.poll() if self._process is not None else 0
            if status is not None:
                words = tail(self.log)
                kind = PortTaken if _is_port_conflict(words) else SandboxError
                raise kind(f"{self.name} ended with exit status {status} before it was ready\n{words}")
            if time.monotonic() > deadline:
                raise SandboxError(f"{self.name} is not ready after {timeout_s:.0f} s: {reason}\n{tail(self.log)}")
            time.sleep(0.05)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop it in order; after the deadline, by force. Nothing happens if it is stopped."""
        self._end(self.stop_signal, timeout_s)

    def crash(self) -> None:
        """End it without warning, as a power cut would; data stay, `start` recovers."""
        self._end(self.crash_signal, STOP_TIMEOUT_S)

    def freeze(self) -> None:
        """Stop its clock: connections stay open, nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, signum: int) -> None:
        # PostgreSQL serves each connection with a child of its own, in a process group of its own. The parent first:
        # a frozen one has no more children.
        os.kill(self.pid, signum)
        for child in children(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signum)

    def _end(self, signum: int, timeout_s: float) -> None:
        if self._process is None:
            return
        self._process.signal(signum)
        if self._process.poll() is None:
            self.thaw()  # a frozen process would sit on the signal
        try:
            self._process.wait(timeout_s)
        except TimeoutError:
            self._process.signal(self._program.quit_signal)
            self._process.wait(STOP_TIMEOUT_S)
        self._process = None


def wait_until(question: Callable[[], str | None], what: str, timeout_s: float) -> None:
    """Ask until the answer is None. Raises SandboxError with the last answer when the deadline passes."""
    deadline = time.monotonic() + timeout_s
    while (reason := question()) is not None:
        if time.monotonic() > deadline:
            raise SandboxError(f"waited {timeout_s:.0f} s for {what}: {reason}")
        time.sleep(0.05)


def _is_port_conflict(words: str) -> bool:
    return any(sign in words for sign in ("Address already in use", "Address in use", "address already in use"))
