"""The process that starts every other process of a sandbox, and ends them all when the owner is gone.

A test run can be killed with SIGKILL, and then no `finally` runs. So the owner starts nothing itself: it asks this
process over a pipe. The pipe's end, or the owner's death seen through a pidfd (a forked child of the owner may still
hold the pipe), means: stop everything, remove the run's folder. As a child subreaper the guardian also inherits what
its children leave behind, so "everything" is what the kernel says, not what a list says. Should the guardian itself be
killed, each child gets a death signal from the kernel.

Protocol: one JSON object per line in, one per line out, in order. Runs as a plain script with the standard library
only, so that it is up in 30 ms. Arguments: the owner's pid, the run's folder.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLITE_STOP_S = 8.0  # PostgreSQL needs a moment to give its shared memory back; after this everything gets SIGKILL

libc = ctypes.CDLL(None, use_errno=True)
Request = dict[str, Any]


class Guardian:
    """The children, by pid, and what each wants to be stopped with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.quit_signals: dict[int, int] = {}
        self.finished = False

    def answer(self, request: Request) -> Request:
        """Carry out one request."""
        operation = request["do"]
        if operation == "spawn":
            return self.spawn(request)
        if operation == "poll":
            return {"exit": self.children[request["pid"]].poll()}
        if operation == "signal":
            # Popen.send_signal checks first whether the child was reaped: a recycled pid is never hit.
            self.children[request["pid"]].send_signal(request["signal"])
            return {}
        if operation == "finish":
            self.clean_up(keep_logs=request["keep_logs"])
            return {}
        raise ValueError(operation)

    def spawn(self, request: Request) -> Request:
        """Start one program with its output appended to its log; the answer is its pid."""
        quit_signal = request["quit_signal"]

        def die_with_guardian() -> None:
            # After the change of user, which would clear it.
            libc.prctl(PR_SET_PDEATHSIG, quit_signal, 0, 0, 0)

        with Path(request["log"]).open("ab") as log:
            child = subprocess.Popen(
                request["argv"],
                cwd=request["cwd"],
                env=request["env"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=request["uid"],
                group=request["gid"],
                extra_groups=[] if request["uid"] is not None else None,
                start_new_session=True,
                preexec_fn=die_with_guardian,  # noqa: PLW1509 -- this process has one thread
            )
        self.children[child.pid] = child
        self.quit_signals[child.pid] = quit_signal
        return {"pid": child.pid}

    def clean_up(self, *, keep_logs: bool) -> None:
        """End every descendant, then remove the folder; repeatable."""
        if self.finished:
            return
        self.finished = True
        for pid, child in self.children.items():
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(self.quit_signals[pid])
                child.send_signal(signal.SIGCONT)  # a frozen child would sit on the signal
        polite_until = time.monotonic() + POLITE_STOP_S
        polite = [child for pid, child in self.children.items() if self.quit_signals[pid] != signal.SIGKILL]
        while any(child.poll() is None for child in polite) and time.monotonic() < polite_until:
            time.sleep(0.02)
        while reap():
            for pid in children(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        for entry in self.folder.iterdir() if self.folder.is_dir() else ():
            if not (keep_logs and entry.name == "logs"):
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)


def reap() -> bool:
    """Collect dead children; True while live ones are left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
    return False


def children(parent: int) -> list[int]:
    """Pids of a process's children, orphans handed to it included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def serve(guardian: Guardian, owner: int) -> None:
    """Answer requests until the owner closes the pipe, dies, or asks to finish."""
    requests, answers = os.fdopen(0, "rb", buffering=0), os.fdopen(1, "wb", buffering=0)
    waiting = b""
    while not guardian.finished:
        ready, _, _ = select.select([requests.fileno(), owner], [], [])
        if owner in ready:
            return
        data = requests.read(65536)
        if not data:
            return
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            try:
                answer = guardian.answer(json.loads(line))
            except Exception as error:  # the owner decides what a failed request means
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer).encode() + b"\n")


def stop_serving(signum: int, frame: FrameType | None) -> None:
    """Turn a signal into the end of `serve`, so that cleaning up still happens."""
    raise SystemExit(128 + signum)


def main() -> None:
    """Serve the owner named on the command line, then leave nothing behind."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guardian = Guardian(Path(sys.argv[2]))
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, stop_serving)
    try:
        with contextlib.suppress(ProcessLookupError, BrokenPipeError):
            serve(guardian, os.pidfd_open(int(sys.argv[1])))
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        guardian.clean_up(keep_logs=False)


if __name__ == "__main__":
    main()
