"""Many short lives of one program: a process that has imported it once, and forks a child for each.

A start of revector is a second of imports; a fork of a process that has done them is some milliseconds. The child is a
process like any other (pid, session, connections and memory of its own), ends with its parent, and runs the program's
own `main` with `failpoints_killer.Armed` around its parts. The forking process has one thread and no connection.

`python -m sandbox.failpoints_zygote`; protocol: one JSON object per line. `failpoints_life` is the other side.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import selectors
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

# What a daemon imports when it first needs it, drivers included: once, for all children.
import anyio._backends._asyncio  # noqa: F401
import h11  # noqa: F401
import httpx2
import typer.main

import connectors.connect_rest
import connectors.debezium
import connectors.groundwork
import connectors.kafka_feed
import connectors.openai_embedder
import connectors.postgres_indexes
import connectors.postgres_source
import connectors.postgres_target
import connectors.tokenizers
import daemon.__main__ as root
import daemon.cli.app
import daemon.installation
import daemon.procedures.compare
import daemon.procedures.prove
import daemon.service.serve
from sandbox.failpoints_killer import Arm, Armed, Killer

PR_SET_PDEATHSIG = 1


def _preload() -> None:
    """What is loaded when first used: the tokenizer's tables, the command line."""
    connectors.tokenizers.load("cl100k_base", Path()).count("a")
    typer.main.get_command(daemon.cli.app.build())
    httpx2.AsyncHTTPTransport()  # imports what it needs when it is made
    gc.collect()
    gc.freeze()


def _live(request: dict[str, Any], pipes: Sequence[int]) -> NoReturn:
    """The child: run the command, leave with its exit code."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for pipe in pipes:
            os.close(pipe)
        arm = request["arm"]
        arm = Arm(frozenset(arm["spared"]), arm["chance"], arm["seed"], arm["all_readings"])
        words = request["words"]
        killer = Killer(arm, os.open(request["evidence"], os.O_WRONLY | os.O_APPEND), words[0])
        code = _main(words, killer)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main(words: Sequence[str], killer: Killer) -> int:
    """`daemon.__main__.main` with the killer around the parts that it makes; the exit code."""
    real = root.ConnectorParts
    root.ConnectorParts = lambda loaded: Armed(real(loaded), killer)  # type: ignore[misc, assignment, return-value]
    sys.argv = ["revector", *words]
    try:
        root.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def _serve() -> None:
    """Fork as told; say who was born and who ended. Ends, and everybody with it, where the owner is gone."""
    _preload()
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    ready = selectors.DefaultSelector()
    ready.register(requests, selectors.EVENT_READ)
    ready.register(woken, selectors.EVENT_READ)
    running: set[int] = set()

    def say(**told: Any) -> None:
        os.write(answers, json.dumps(told).encode() + b"\n")

    buffer = b""
    while True:
        for key, _ in ready.select():
            if key.fd == woken:
                os.read(woken, 4096)
                continue
            read = os.read(requests, 1 << 20)
            if not read:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                return
            *lines, buffer = (buffer + read).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if request["do"] == "signal":
                    if request["pid"] in running:
                        os.kill(request["pid"], request["signal"])
                    continue
                pid = os.fork()
                if pid == 0:
                    _live(request, (requests, answers, woken, wake))
                running.add(pid)
                say(pid=pid, evidence=request["evidence"])
        while running:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                break
            running.discard(pid)
            say(pid=pid, status=os.waitstatus_to_exitcode(status), cpu_s=used.ru_utime + used.ru_stime)


if __name__ == "__main__":
    _serve()
