"""Whatever ends the owner of a sandbox, nothing it started stays: neither process nor file."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from sandbox.guardian import children
from sandbox.processes import Guardian, Program, SandboxError

pytestmark = pytest.mark.system

T = TypeVar("T")
ROOT = Path(__file__).parents[2]

# Starts a shell that leaves a grandchild in a session of its own behind, and one that ignores polite signals.
# Signals have their default effect, also where the tests run in the background and inherit ignored ones.
OWNER = """
import signal, sys, time
for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(signum, signal.SIG_DFL)
from pathlib import Path
from sandbox.processes import Guardian, Program
folder = Path(sys.argv[1])
(folder / "logs").mkdir()
guardian = Guardian(folder)
scripts = {"orphan": "setsid sleep 1000 & sleep 1000", "stubborn": "trap '' TERM INT QUIT; while :; do sleep 1; done"}
for name, script in scripts.items():
    guardian.spawn(Program(name, ["sh", "-c", script], folder / "logs" / name))
print(guardian.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_owner_ended_by_a_signal_leaves_nothing(signum: int, tmp_path: Path) -> None:
    owner, guardian = _start_owner(tmp_path / "run")
    started = _wait(lambda: found if len(found := _descendants(guardian)) >= 4 else None)

    owner.send_signal(signum)
    owner.wait(10)

    _wait(lambda: not any(_exists(pid) for pid in (guardian, *started)) or None)
    assert not (tmp_path / "run").exists()


def test_killed_guardian_takes_its_children_along(tmp_path: Path) -> None:
    owner, guardian = _start_owner(tmp_path / "run")
    started = _wait(lambda: found if len(found := _descendants(guardian)) >= 4 else None)
    direct = children(guardian)

    os.kill(guardian, signal.SIGKILL)

    _wait(lambda: not any(_exists(pid) for pid in direct) or None)
    owner.kill()
    owner.wait(10)
    for pid in started:  # the kernel's signal reaches children only; servers end their own children themselves
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_finish_keeps_only_the_logs_when_asked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "data").mkdir()
    guardian = Guardian(run)
    guardian.run(Program("speaker", ["echo", "hello"], run / "logs" / "speaker.log"))

    guardian.finish(keep_logs=True)

    assert [path.name for path in run.iterdir()] == ["logs"]
    assert (run / "logs" / "speaker.log").read_text() == "hello\n"


def test_failed_program_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (
        Guardian(tmp_path) as guardian,
        pytest.raises(SandboxError, match=r"(?s)teller failed with exit status 3.*\| no disk left"),
    ):
        guardian.run(Program("teller", ["sh", "-c", "echo no disk left; exit 3"], tmp_path / "teller.log"))


def _start_owner(folder: Path) -> tuple[subprocess.Popen[str], int]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OWNER, str(folder)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert owner.stdout is not None
    with owner.stdout as output:
        return owner, int(output.readline())


def _wait(question: Callable[[], T | None], timeout_s: float = 20) -> T:
    deadline = time.monotonic() + timeout_s
    while (answer := question()) is None:
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)
    return answer


def _exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _descendants(parent: int) -> list[int]:
    direct = children(parent)
    return [*direct, *(pid for child in direct for pid in _descendants(child))]
