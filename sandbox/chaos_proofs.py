"""`verify` and `prove` in a chaos run, and what holds each certificate against the databases at once.

Two ways. Still: pgbench is paused, no transaction of a client is open; a certificate means that the independent
comparison finds no difference, now and without waiting. Beside writers: rows that nobody changed between a look before
the proof and one after it must be in the target as they are (`sandbox.chaos_snapshots`). A certificate that either
contradicts is raised as `FalseCertificate`: there is no graver failure.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from sandbox.chaos_snapshots import differences, look, seen, visible_in
from sandbox.chaos_world import World
from sandbox.compare import compare
from sandbox.failpoints_killer import Arm
from sandbox.failpoints_life import Zygote
from sandbox.processes import SandboxError

PROVE_TIMEOUT_S, BEYOND_S = 10, 60
VERIFY_LIMIT_S = 90
ANSWERS = {0, 3, 4, 69, 75}  # of a command whose parts may be away
TARGET_LIMIT_S = 60.0

UNHARMED = Arm(chance=0.0)  # the forking process kills its children where it is told to

Read = TypeVar("Read")


class FalseCertificate(SandboxError):
    """`prove` said yes while the databases differ."""


class Proofs:
    """Commands one at a time; `counts` is what they answered."""

    def __init__(self, world: World, stack: ExitStack) -> None:
        self._world = world
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="revector-commands-")))
        self._commands = stack.enter_context(Zygote(self._folder))
        self._numbers = itertools.count()
        self._turn = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.shortfalls: Counter[str] = Counter()
        self.held_against: list[dict[str, Any]] = []  # of each certificate: what it was held against
        self.faults: list[str] = []  # answers that no command may give

    def still(self, generation: str, during: str = "") -> bool:
        """Prove while nobody writes; whether a certificate was issued. Both databases answer meanwhile."""
        with self._turn, self._world.traffic.paused():
            document = self._prove(generation, "still")
            if document is None:
                return False
            w = self._world
            found, rows = compare(w.source_dsn, w.target_dsn, w.name, generation=generation)
            self._hold("still", generation, document, during, rows=sum(rows.values()), differences=asdict(found))
            if found.total:
                raise FalseCertificate(f"{generation}: {document['digest']} but {found}")
        return True

    def beside(self, generation: str, during: str = "") -> bool:
        """Prove beside writers; whether a certificate was issued."""
        w = self._world
        with self._turn:
            try:
                before = look(w.source_dsn)
            except psycopg.OperationalError:
                self.counts["beside: source away"] += 1
                return False
            document = self._prove(generation, "beside")
            if document is None:
                return False
            found = _insisting(lambda: seen(w.target_dsn, w.name, generation))
            after = _insisting(lambda: look(w.source_dsn))
            wrong = differences(before, found, after, visible_in(w.source_dsn, before.snapshot, found))
            rows = sum(len(table) for table in before.tables.values())
            self._hold("beside", generation, document, during, rows=rows, differences=len(wrong))
            if wrong:
                raise FalseCertificate(f"{generation}: {document['digest']} but {len(wrong)}: {wrong[:20]}")
        return True

    def verify(self) -> dict[str, Any] | None:
        """`verify --repair` of everything; its figures, None where it did not end."""
        with self._turn:
            words = ("verify", "--repair", "--max-duration", f"{VERIFY_LIMIT_S}s")
            code, document = self._asked(words, VERIFY_LIMIT_S + BEYOND_S)
        self.counts[f"verify: exit {code}"] += 1
        if document is None or "comparison" not in document:
            return None
        figures: dict[str, Any] = document["comparison"]
        if code == 3:  # what it mended is clean only for the next one
            self.counts["verify: differed"] += 1
            self.held_against.append({"verify": figures})
        return figures

    def _prove(self, generation: str, way: str) -> dict[str, Any] | None:
        words = ("prove", "--timeout", str(PROVE_TIMEOUT_S), "--generation", generation)
        code, document = self._asked(words, PROVE_TIMEOUT_S + BEYOND_S)
        self.counts[f"{way}: attempts"] += 1
        if code == 0 and document is not None:
            self.counts[f"{way}: certificates"] += 1
            return document
        for shortfall in (document or {}).get("shortfalls", ()):
            self.shortfalls[shortfall["id"]] += 1
        if code != 3:
            self.counts[f"{way}: exit {code}"] += 1
        return None

    def _asked(self, words: tuple[str, ...], limit_s: float) -> tuple[int, dict[str, Any] | None]:
        """A command with --json; its exit code and document. An answer that it may not give is kept as a fault."""
        said = self._folder / f"{next(self._numbers)}.log"
        line = [*words, "--json", "--config", str(self._world.config)]
        began = time.monotonic()
        child = self._commands.fork(line, UNHARMED, said)
        code = child.wait(limit_s)
        self.counts["seconds in commands"] += round(time.monotonic() - began)
        if code is None:
            child.signal(signal.SIGKILL)
            self.faults.append(f"{' '.join(words)}: no answer within {limit_s:.0f} s\n{said.read_text()[-2000:]}")
            return -1, None
        text, document = said.read_text(), document_in(said.read_text())
        if not _may_answer(code, document) or "Traceback" in text or document is None:
            self.faults.append(f"{' '.join(words)}: exit {code}\n{text[-3000:]}")
        said.unlink()
        child.evidence.unlink()
        return code, document

    def _hold(self, way: str, generation: str, document: dict[str, Any], during: str, **found: Any) -> None:
        position = document["certificate"]["position"]
        self.held_against.append(
            {"way": way, "generation": generation, "position": position, "during": during, **found}
        )


def _may_answer(code: int, document: dict[str, Any] | None) -> bool:
    """A provider that answers wrongly is a fault of ours, too, and refuted at once by whoever embeds."""
    return code in ANSWERS or str((document or {}).get("error", {}).get("id")).startswith("provider-")


def document_in(text: str) -> dict[str, Any] | None:
    """The JSON document among lines for people; None where there is none."""
    for found in re.finditer(r"^\{", text, re.MULTILINE):
        try:
            document = json.JSONDecoder().raw_decode(text, found.start())[0]
        except ValueError:
            continue
        if isinstance(document, dict) and "schema" in document:
            return document
    return None


def _insisting(read: Callable[[], Read]) -> Read:
    """The reading, however often it has to be asked for."""
    deadline = time.monotonic() + TARGET_LIMIT_S
    while True:
        try:
            return read()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
