"""Runs of pytest in forked processes, so that what all of them import is imported once.

A run imports two seconds' worth of libraries before its first test, which takes a few milliseconds. Here one process
imports the libraries, never a module of this repository, and each run is a fork of it that takes those from its tree.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import Phase, settings

TIMEOUT_S = 240.0  # of one test, what it has to start included
OURS = frozenset(("tests", "daemon", "connectors", "sandbox", "bench"))
LIBRARIES = (
    *("pytest", "pytest_asyncio", "pytest_timeout", "hypothesis.strategies"),
    *("numpy", "orjson", "pydantic", "structlog", "stamina", "rfc8785", "typer", "rich.console"),
    *("psycopg.types.json", "pgvector.psycopg", "confluent_kafka.admin", "openai", "httpx2", "uvicorn"),
    *("starlette.applications", "opentelemetry.sdk.metrics", "opentelemetry.sdk.trace"),
)
OPTIONS = (
    *("-q", "-rfE", "--no-header", "--tb=short"),
    *("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # of plugins that are imported before pytest begins
)
_SUMMARY = re.compile(r"^(FAILED|ERROR) (\S+?::.+?)(?: - (.*))?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run. failed: test -> the first line of what it raised. is_sound: pytest itself had no trouble."""

    failed: dict[str, str]
    is_sound: bool
    output: str


@dataclass(slots=True)
class Runs:
    """Runs under way, by their process. Use `began`, then `ended` as often."""

    folder: Path
    _outputs: dict[int, Path] = field(default_factory=dict)
    _number: int = 0

    def __post_init__(self) -> None:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a thread would not survive the fork
        for name in LIBRARIES:
            with suppress(ImportError):
                importlib.import_module(name)
        # That a mutant is noticed is enough: the smallest example of it takes Hypothesis a minute.
        settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutants")

    def began(self, tree: Path, tests: Sequence[str], *, is_first: bool = False) -> int:
        """Begin a run of these tests in a tree; its process. It stops at the first failure and leaves no bytecode,
        unless it is the tree's first."""
        self._number += 1
        output = self.folder / f"{self._number}.output"
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            _become(
                tree, output, [*OPTIONS, f"--timeout={TIMEOUT_S:g}", *([] if is_first else ["-x"]), *tests], is_first
            )
        self._outputs[process] = output
        return process

    def ended(self) -> tuple[int, Outcome]:
        """Wait for one of the runs."""
        process, status = os.wait()
        output = self._outputs.pop(process).read_text(errors="replace")
        code = os.waitstatus_to_exitcode(status)
        found = _SUMMARY.findall(output)
        failed = {test: raised for kind, test, raised in found if kind == "FAILED"}
        is_sound = code in (0, 1) and len(failed) == len(found) and bool(failed) == (code == 1)
        return process, Outcome(failed, is_sound, output)


def _become(tree: Path, output: Path, arguments: Sequence[str], keeps_bytecode: bool) -> None:
    """In the fork: run pytest as if it had been started in the tree."""
    code = 70
    try:
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        os.chdir(tree)
        os.environ["PYTHONPATH"] = str(tree)  # of programs that a test starts
        os.environ["COLUMNS"] = "400"  # else pytest cuts what was raised
        sys.dont_write_bytecode = not keeps_bytecode
        here = {"", str(Path.cwd()), str(Path(__file__).resolve().parents[2])}
        sys.path[:] = [str(tree), *(path for path in sys.path if path not in here)]
        for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
            del sys.modules[name]
        code = int(importlib.import_module("pytest").main(list(arguments)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
