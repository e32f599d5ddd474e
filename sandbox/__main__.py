"""`python -m sandbox up | down`: a stack in the background with the corpus loaded and its changes flowing to Kafka.

`up` starts a holder process and returns when everything can be used; the holder owns the sandbox until `down`. The
holder keeps a lock on a file while it lives, so a stale state file is never believed.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

from sandbox.processes import SandboxError, tail
from sandbox.programs import cache_folder

UP_TIMEOUT_S = 300.0
DOWN_TIMEOUT_S = 60.0


def main() -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(prog="dev", description="the stack in the background")
    commands = parser.add_subparsers(dest="command", required=True)
    up_options = commands.add_parser("up", help="start the stack, load the corpus, capture its changes")
    up_options.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    commands.add_parser("down", help="stop it and remove its data")
    commands.add_parser("hold")
    options = parser.parse_args()
    folder = cache_folder().resolve() / "up"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if options.command == "hold":
            hold(folder)
        elif options.command == "down":
            down(folder)
        else:
            show(up(folder), as_json=options.json)
    except SandboxError as error:
        print(f"dev {options.command}: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    return 0


def up(folder: Path) -> dict[str, Any]:
    """Start the stack, or find the one that is up; its description."""
    state, log = folder / "state.json", folder / "holder.log"
    if is_held(folder) and state.is_file():
        print("dev up: it is up already", file=sys.stderr)
    else:
        print("dev up: starting the stack, about 20 s", file=sys.stderr)
        state.unlink(missing_ok=True)
        with log.open("wb") as output:
            holder = subprocess.Popen(
                [sys.executable, "-m", "sandbox", "hold"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + UP_TIMEOUT_S
        try:
            while not state.is_file():
                if holder.poll() is not None:
                    raise SandboxError(f"the stack did not start\n{tail(log, lines=25)}")
                if time.monotonic() > deadline:
                    raise SandboxError(f"the stack is not up after {UP_TIMEOUT_S:.0f} s\n{tail(log, lines=25)}")
                time.sleep(0.1)
        except BaseException:
            holder.terminate()
            raise
    description: dict[str, Any] = json.loads(state.read_text())
    return description


def down(folder: Path) -> None:
    """Stop the stack and wait until it is gone; fine if none is up."""
    if not is_held(folder):
        print("dev down: nothing is up", file=sys.stderr)
        return
    os.kill(int((folder / "lock").read_text()), signal.SIGTERM)
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while is_held(folder):
        if time.monotonic() > deadline:
            raise SandboxError(f"the holder, pid {(folder / 'lock').read_text()}, does not end; its log: {folder}")
        time.sleep(0.05)
    print("dev down: stopped, its data are removed", file=sys.stderr)


def hold(folder: Path) -> None:
    """Own a stack until a signal comes."""
    from sandbox import config, corpus, pipeline  # noqa: PLC0415 -- `down` and errors should not wait for these
    from sandbox.stack import Sandbox  # noqa: PLC0415

    signal.signal(signal.SIGTERM, leave)
    state = folder / "state.json"
    with lock(folder) as file:
        file.write(str(os.getpid()))
        file.flush()
        try:
            with Sandbox.start() as sandbox:
                corpus.load(sandbox.source_dsn)
                pipeline.capture_tables(sandbox)
                sandbox.config.write_text(config.render(sandbox))
                draft = state.with_suffix(".draft")
                draft.touch(mode=0o600)  # it holds passwords
                draft.write_text(json.dumps(sandbox.describe(), indent=2))
                draft.rename(state)
                while True:
                    signal.pause()
        finally:
            state.unlink(missing_ok=True)


def leave(signum: int, frame: FrameType | None) -> None:
    """End the holder in order."""
    raise SystemExit(0)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[IO[str]]:
    """The holder's lock. Raises SandboxError: another one has it."""
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SandboxError("a stack is up or on its way; ./dev down stops it") from None
        file.truncate(0)
        yield file


def is_held(folder: Path) -> bool:
    """Whether a holder lives."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def show(description: dict[str, Any], *, as_json: bool) -> None:
    """Print what is up, and how to go on with it."""
    if as_json:
        print(json.dumps(description, indent=2))
        return
    for name, value in description.items():
        words = ", ".join(f"{part} {pid}" for part, pid in value.items()) if isinstance(value, dict) else value
        print(f"{name:16}{words}", flush=True)
    programs = shlex.quote(str(Path(sys.executable).parent))
    lines = [
        "next, in this terminal and in every other one:",
        f"  export PATH={programs}:$PATH",
        f"  export REVECTOR_CONFIG={shlex.quote(str(description['config']))}",
        "then: revector check, revector doctor, revector run; ./dev down ends it",
    ]
    print(*lines, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
