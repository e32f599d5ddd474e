"""revector as its users run it: daemons as processes, commands, the painted status. For the demo and its stages."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandbox.processes import SandboxError

STAGE_LIMIT_S = 300


class Daemon:
    """`revector run`, or another role, as a process of its own, which ends with this one."""

    def __init__(self, config: Path, log: Path, role: str = "run") -> None:
        self.config, self.log, self.role = config, log, role
        self.kills: list[dict[str, Any]] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command(self.config, self.role), stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL, the evidence that it landed, and a new start."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        status = self._process.wait()
        if status != -signal.SIGKILL:
            raise SandboxError(f"the kill did not land: the daemon had ended by itself with {status}")
        self.kills.append({"pid": self._process.pid, "status": status})
        self.start()

    def stop(self) -> int:
        """SIGTERM and the exit status, within the daemon's own bound."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise SandboxError(f"the daemon did not end within 40 s of SIGTERM; its log: {self.log}") from None

    def check(self) -> None:
        if self._process is not None and (status := self._process.poll()) is not None:
            raise SandboxError(f"the daemon ended by itself with exit status {status}; its log: {self.log}")


def command(config: Path, *words: str) -> list[str]:
    """A revector command of this environment."""
    return [sys.executable, "-m", "daemon", *words, "--config", str(config)]


def asked(config: Path, *words: str) -> dict[str, Any]:
    """Run a command with --json; its document. Raises SandboxError where it does not answer yes."""
    done = subprocess.run(command(config, *words, "--json"), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SandboxError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def verified(config: Path) -> dict[str, Any]:
    """`revector verify` of every generation; its figures. Raises SandboxError where anything differs."""
    figures: dict[str, Any] = asked(config, "verify")["comparison"]
    return figures


def wait(config: Path, daemons: Sequence[Daemon], what: str, *words: str) -> None:
    """`revector wait --for`, and a look at the daemons. Raises SandboxError."""
    line = command(config, "wait", "--for", what, "--timeout", str(STAGE_LIMIT_S), *words)
    done = subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    for daemon in daemons:
        daemon.check()
    if done.returncode != 0:
        raise SandboxError(f"waiting for {what}: exit status {done.returncode}\n{done.stderr}")


class Watch:
    """`revector watch` paints the status on our stdout while the block runs."""

    def __init__(self, config: Path) -> None:
        self._words = command(config, "watch")

    def __enter__(self) -> None:
        sys.stdout.flush()
        self._process = subprocess.Popen(self._words, stdin=subprocess.DEVNULL)

    def __exit__(self, *exc: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
