"""Starting programs through a guardian, from the owner's side.

Promises: a program started here ends with its owner, whatever ends the owner. Refuses to know what the programs are.
A `Guardian` may be used from several threads; each request is one short exchange.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self


class SandboxError(Exception):
    """A step of the sandbox failed; the text names the step, the cause and the remedy."""


@dataclass(frozen=True)
class User:
    """The account a program runs under; None in `uid` means the owner's own."""

    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True)
class Program:
    """What to run. `quit_signal` ends it at once but lets it return what the kernel would keep (shared memory)."""

    name: str
    argv: Sequence[str | Path]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: User = User()
    quit_signal: int = signal.SIGKILL


class Process:
    """One started program."""

    def __init__(self, guardian: "Guardian", program: Program, pid: int) -> None:
        self._guardian = guardian
        self.program = program
        self.pid = pid

    def poll(self) -> int | None:
        """The exit status, or None while it runs; negative: ended by that signal."""
        status: int | None = self._guardian.ask(do="poll", pid=self.pid)["exit"]
        return status

    def signal(self, signum: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        self._guardian.ask(do="signal", pid=self.pid, signal=int(signum))

    def wait(self, timeout_s: float) -> int:
        """The exit status. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.program.name} (pid {self.pid}) still runs after {timeout_s:.0f} s")
            time.sleep(0.02)
        return status


class Guardian:
    """The owner's handle on the process that starts, and in the end stops, all others."""

    def __init__(self, folder: Path) -> None:
        """Start the guardian; `folder` is removed when the owner is gone."""
        self.folder = folder
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("guardian.py")), str(os.getpid()), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,  # Ctrl-C reaches the owner only, which then finishes in order
        )
        self.pid = self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer. Raises SandboxError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except (OSError, ValueError) as error:
                raise SandboxError(f"the sandbox's guardian is gone, so is the sandbox: {error}") from error
        if not line:
            raise SandboxError("the sandbox's guardian was killed, so is the sandbox; start another")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SandboxError(f"guardian refused {request['do']}: {answer['error']}")
        return answer

    def spawn(self, program: Program) -> Process:
        """Start a program; it is under guard before this returns."""
        answer = self.ask(
            do="spawn",
            argv=[str(part) for part in program.argv],
            env={**_bare_environment(), **program.environment},
            cwd=str(self.folder),
            log=str(program.log),
            uid=program.user.uid,
            gid=program.user.gid,
            quit_signal=int(program.quit_signal),
        )
        return Process(self, program, answer["pid"])

    def run(self, program: Program, timeout_s: float = 60) -> None:
        """Run a program to its end. Raises SandboxError with its last words if it fails."""
        process = self.spawn(program)
        try:
            status = process.wait(timeout_s)
        except TimeoutError as error:
            process.signal(signal.SIGKILL)
            raise SandboxError(f"{error}\n{tail(program.log)}") from None
        if status != 0:
            raise SandboxError(f"{program.name} failed with exit status {status}\n{tail(program.log)}")

    def finish(self, *, keep_logs: bool = False) -> None:
        """End every program and remove the folder, except `logs/` in it if asked; repeatable."""
        if self._process.poll() is None:
            with contextlib.suppress(SandboxError):
                self.ask(do="finish", keep_logs=keep_logs)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.finish()


def _bare_environment() -> dict[str, str]:
    """What every program gets: no PG*, JAVA_* or PYTHON* of the caller's shell can bend the sandbox."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, each line marked as quoted; a sentence if there is none."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    last = text.splitlines()[-lines:]
    if not last:
        return f"({log.name} is empty)"
    return f"last lines of {log.name}:\n" + "\n".join(f"  | {line[:300]}" for line in last)
