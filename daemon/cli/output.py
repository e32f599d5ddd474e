"""How a command speaks: its answer on stdout, everything else on stderr, one JSON document where it was asked for.

No escape byte leaves this module unless the stream is a terminal that wants colour (`NO_COLOR`, `TERM=dumb`). With
`--json` exactly one document is written, also for a failure, so a script can parse whatever happens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from daemon.errors import ConfigError, Problem, RevectorError

LINES_EVERY_S = 30.0
REDRAW_S = 0.1
UNKNOWN_WIDTH = 100

_COLOURS = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "dim": "2"}


class Output:
    """Where one invocation writes. Colour is decided for each stream by itself."""

    def __init__(self, stdout: TextIO, stderr: TextIO, environ: Mapping[str, str], is_json: bool) -> None:
        self.is_json = is_json
        self._stdout, self._stderr, self._environ = stdout, stderr, environ

    def answer(self, what: str, body: Mapping[str, Any], lines: Iterable[str]) -> None:
        """The command's one result: a document `revector.<what>/1`, or the lines."""
        if self.is_json:
            self._document(what, body)
        else:
            self._stdout.write("".join(f"{line}\n" for line in lines))

    def note(self, line: str) -> None:
        """Anything that is not the answer: progress, what happens next."""
        print(line, file=self._stderr)

    @property
    def is_redrawn(self) -> bool:
        """Whether a line on stderr can be written over."""
        return self._is_drawable(self._stderr)

    def redraw(self, line: str) -> None:
        """Write over the line on stderr that was drawn before; "" leaves an empty one. Only where `is_redrawn`."""
        self._stderr.write(f"\r\x1b[K{line[: _columns(self._stderr) - 1]}")
        self._stderr.flush()

    def warn(self, problem: Problem) -> None:
        self.note(f"{self._on_stderr('warning', 'yellow')}: {problem.where}: {problem.message}; {problem.hint}")

    def failure(self, error: RevectorError) -> None:
        """The failure as text on stderr, or as a document on stdout."""
        problems = error.problems if isinstance(error, ConfigError) else []
        if self.is_json:
            body = {"id": error.id, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
            self._document("error", {"error": {**body, "problems": [asdict(p) for p in problems]}})
            return
        word = self._on_stderr("error", "red")
        if problems:
            self.note(f"{word}: {counted(len(problems), 'problem')}")
            for line in _described(problems):
                self.note(line)
        else:
            self.note(f"{word}: {error.message} [{error.id}]")
            for line in error.hint.splitlines():
                self.note(f"  {line}")

    def styled(self, text: str, style: str) -> str:
        """For an answer's line: bold, red, green, yellow or dim on a terminal, the plain text elsewhere."""
        return self._styled(text, style, self._stdout)

    @property
    def is_terminal(self) -> bool:
        """Whether the answer goes to a terminal that can be drawn on."""
        return self._is_drawable(self._stdout)

    def width(self) -> int:
        """Columns for an answer: the terminal's, 100 elsewhere."""
        return _columns(self._stdout) if self.is_terminal else UNKNOWN_WIDTH

    def _document(self, what: str, body: Mapping[str, Any]) -> None:
        document = {"schema": f"revector.{what}/1", **body}
        self._stdout.write(json.dumps(document, ensure_ascii=False, indent=2, default=str) + "\n")

    def _on_stderr(self, text: str, style: str) -> str:
        return self._styled(text, style, self._stderr)

    def _styled(self, text: str, style: str, stream: TextIO) -> str:
        if self._environ.get("NO_COLOR") or not self._is_drawable(stream):
            return text
        return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m"

    def _is_drawable(self, stream: TextIO) -> bool:
        return not self.is_json and stream.isatty() and self._environ.get("TERM", "dumb") != "dumb"


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or UNKNOWN_WIDTH
    except (OSError, ValueError):
        return UNKNOWN_WIDTH


class ProgressLine:
    """How far something is, on stderr: one line that is drawn again on a terminal, elsewhere a whole one every 30 s.
    clock: monotonic seconds."""

    def __init__(self, out: Output, clock: Callable[[], float]) -> None:
        self._out, self._clock = out, clock
        self._said_at = clock()

    def show(self, line: str) -> None:
        now = self._clock()
        if self._out.is_redrawn:
            if now - self._said_at >= REDRAW_S:
                self._out.redraw(line)
                self._said_at = now
        elif now - self._said_at >= LINES_EVERY_S:
            self._out.note(line)
            self._said_at = now

    def end(self) -> None:
        """Nothing of it stays on a terminal."""
        if self._out.is_redrawn:
            self._out.redraw("")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their columns aligned; the last column is not padded."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def counted(number: int, noun: str) -> str:
    """ "1 problem", "2 problems"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _described(problems: Sequence[Problem]) -> Iterable[str]:
    for problem in problems:
        yield f"  {problem.where}: {problem.message} [{problem.id}]"
        if problem.hint:
            yield from (f"      {line}" for line in problem.hint.splitlines())
