"""The processes of the product in a chaos run: started, killed, frozen, and watched for what they hold.

Each is under a guardian, so that none outlives this run. One that ends although nobody ended it is noted: the product
stays up whatever happens around it. `Samples` of memory and open files are kept by process and age.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandbox.chaos_plan import Sample, flatness
from sandbox.processes import Guardian, Process, Program, tail

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_S = 1.0
END_S = 40.0
STOPS_S = 2.0
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1024 / 1024


class Member:
    """One process of a role, started again after each end."""

    def __init__(self, guardian: Guardian, name: str, role: str, config: Path, log: Path) -> None:
        self.name, self.role, self.config, self.log = name, role, config, log
        self._guardian = guardian
        self._process: Process | None = None
        self.started_at = 0.0
        self.is_expected = True  # that it runs

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        words = [sys.executable, "-m", "daemon", self.role, "--config", str(self.config)]
        environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._process = self._guardian.spawn(Program(self.name, words, self.log, environment))
        self.started_at, self.is_expected = time.monotonic(), True

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def kill(self) -> dict[str, Any]:
        """SIGKILL; what shows that it landed."""
        return self._ended(signal.SIGKILL)

    def terminate(self) -> dict[str, Any]:
        """SIGTERM, and its end; its exit status."""
        return self._ended(signal.SIGTERM)

    def _ended(self, signum: int) -> dict[str, Any]:
        assert self._process is not None
        pid, self.is_expected = self.pid, False
        began = time.monotonic()
        self._process.signal(signum)
        try:
            status = self._process.wait(END_S)
        except TimeoutError:  # which the exit status shows
            self._process.signal(signal.SIGKILL)
            status = self._process.wait(END_S)
        return {"pid": pid, "exit_status": status, "ended_after_s": round(time.monotonic() - began, 2)}

    def freeze(self) -> dict[str, Any]:
        """SIGSTOP; the process's state afterwards, T where it landed."""
        os.kill(self.pid, signal.SIGSTOP)
        return {"pid": self.pid, "state": state_when_stopped(self.pid)}

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def held(self) -> Sample | None:
        """Memory and open files now; None where it is gone."""
        with contextlib.suppress(OSError):
            proc = Path("/proc") / str(self.pid)
            rss = int((proc / "statm").read_text().split()[1]) * PAGE_MB
            return Sample(time.monotonic() - self.started_at, rss, sum(1 for _ in (proc / "fd").iterdir()))
        return None


class Fleet:
    """All of them. `faults` are the ends that nobody asked for."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.members: dict[str, Member] = {}
        self.faults: list[str] = []
        self.samples: defaultdict[tuple[str, int], list[Sample]] = defaultdict(list)
        self._guardian = Guardian(Path(tempfile.mkdtemp(prefix="revector-chaos-")))
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._watching, name="fleet")

    def start(self, name: str, role: str, config: Path) -> Member:
        """One more process."""
        member = Member(self._guardian, name, role, config, self.logs / f"{name}.log")
        member.start()
        self.members[name] = member
        if not self._watch.is_alive():
            self._watch.start()
        return member

    def with_pid(self, pid: int | None) -> Member | None:
        """The member of that process."""
        return next((m for m in self.members.values() if m.pid == pid), None)

    def of_role(self, role: str) -> list[Member]:
        """Its members, in the order of their start."""
        return [m for m in self.members.values() if m.role == role]

    def stop(self) -> dict[str, int]:
        """SIGTERM to all; exit statuses by name. One that does not end is killed, which the status shows."""
        self._stop.set()
        if self._watch.is_alive():
            self._watch.join()
        statuses: dict[str, int] = {}
        for member in self.members.values():
            member.is_expected = False
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGCONT)
        for name, member in self.members.items():
            status = member.poll()
            statuses[name] = member.terminate()["exit_status"] if status is None else status
        return statuses

    def close(self) -> None:
        """Whatever is left ends now; repeatable."""
        self._stop.set()
        if self._watch.is_alive():
            self._watch.join()
        self._guardian.finish()

    def held(self) -> dict[str, Any]:
        """Memory and open files of each process that lived for a while, the longest lives first."""
        lives = sorted(self.samples.items(), key=lambda life: -len(life[1]))
        return {f"{name}:{pid}": flatness(samples) for (name, pid), samples in lives if len(samples) >= 30}

    def _watching(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            for member in list(self.members.values()):
                if not member.is_expected:
                    continue
                status = member.poll()
                if status is not None and member.is_expected:
                    member.is_expected = False
                    self._missed(member, status)
                elif (sample := member.held()) is not None:
                    self.samples[member.name, member.pid].append(sample)

    def _missed(self, member: Member, status: int) -> None:
        """What a service manager does. A backfill that is complete has nothing else to do."""
        if (member.role, status) != ("backfill", 0):
            self.faults.append(f"{member.name} ended by itself with {status}\n{tail(member.log)}")
            member.start()


def state_of(pid: int) -> str:
    """A process's state as the kernel shows it: R, S, T …; "" where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def state_when_stopped(pid: int) -> str:
    """The state of a process that was sent SIGSTOP: a process that waits for a processor stops when it gets one."""
    deadline = time.monotonic() + STOPS_S
    while (state := state_of(pid)) != "T" and time.monotonic() < deadline:
        time.sleep(0.01)
    return state


def logged(logs: Sequence[Path], words: str) -> int:
    """How many lines of these logs hold the words."""
    return sum(words in line for log in logs if log.exists() for line in log.read_text(errors="replace").splitlines())
