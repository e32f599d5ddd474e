"""Lives of a process: the owner's side of `failpoints_zygote`, which forks a child for each command line.

A child ends with its parent, the parent with its owner. What a child noted of itself lies in a file of its own.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sandbox.failpoints_killer import Arm

START_LIMIT_S = 60.0


class Child:
    """One life. evidence: what it noted, see `failpoints_killer`."""

    def __init__(self, zygote: Zygote, pid: int, evidence: Path) -> None:
        self._zygote, self.pid, self.evidence = zygote, pid, evidence
        self.cpu_s = 0.0
        self.born = time.monotonic()
        self.statuses: queue.Queue[int] = queue.Queue()

    def wait(self, timeout_s: float) -> int | None:
        """The exit status, negative for a signal; None: it still runs."""
        try:
            return self.statuses.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def signal(self, signum: int) -> None:
        """Nothing happens if it has ended."""
        self._zygote.tell(do="signal", pid=self.pid, signal=signum)

    def noted(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.evidence.read_bytes().splitlines()]


class Zygote:
    """The owner's handle; may be used from several threads. What it started ends with the block."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock, self._count = folder, threading.Lock(), 0
        root = str(Path(__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.failpoints_zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._born: queue.Queue[Child] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def fork(self, words: Sequence[str], arm: Arm, log: Path) -> Child:
        """A process that runs this command line."""
        with self._lock:
            self._count += 1
            evidence = self._folder / f"evidence-{self._count}"
            evidence.touch()
            given = {**asdict(arm), "spared": sorted(arm.spared)}
            self._tell(do="fork", words=list(words), arm=given, log=str(log), evidence=str(evidence))
            return self._born.get(timeout=START_LIMIT_S)

    def tell(self, **request: Any) -> None:
        with self._lock:
            self._tell(**request)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _tell(self, **request: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        children: dict[int, Child] = {}
        for line in self._process.stdout:
            told = json.loads(line)
            if "evidence" in told:
                child = children[told["pid"]] = Child(self, told["pid"], Path(told["evidence"]))
                self._born.put(child)
            else:
                child = children.pop(told["pid"])
                child.cpu_s = told["cpu_s"]
                child.statuses.put(told["status"])
