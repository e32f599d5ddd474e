"""What a running process says: one line per event on stderr, for a person or as JSON.

Every module logs with the standard library (`logging.getLogger(__name__)` and `%` arguments); here its records pass
structlog's processors, so that our lines, librdkafka's and every library's have one shape and one redaction. Libraries
speak from `warning` on whatever the level: some print requests, and with them row text, at `debug`.

`configure` is called once, by the command. What it changes is the process's logging, and nothing else.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from daemon.service.redaction import Redaction, told
from daemon.settings import LogSettings

OURS = ("daemon", "connectors")
LIBRARIES = logging.WARNING
_CONTROL = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if c not in (9, 10)}


def configure(settings: LogSettings, environ: Mapping[str, str], stream: TextIO | None = None) -> Redaction:
    """Send all logging to `stream` (default: stderr). The answer takes the secrets that are never to be shown."""
    out = sys.stderr if stream is None else stream
    redaction = Redaction()
    handler = _Lines(out)
    handler.setFormatter(_formatter(settings.format, redaction, _is_colourful(out, environ)))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LIBRARIES)
    for name in OURS:
        logging.getLogger(name).setLevel(settings.level.upper())
    logging.captureWarnings(True)
    return redaction


class _Lines(logging.StreamHandler[TextIO]):
    """A record that cannot be rendered is named by its place; the standard library would print its arguments."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        with suppress(OSError, ValueError):  # the stream may be what failed: then there is nothing to say it with
            self.stream.write(f"a log record of {record.name} line {record.lineno} could not be rendered\n")


def _is_colourful(stream: TextIO, environ: Mapping[str, str]) -> bool:
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def _formatter(form: str, redaction: Redaction, colours: bool) -> logging.Formatter:
    first: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    last: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, _exception, redaction]
    if form == "json":
        last += [structlog.processors.EventRenamer("message"), structlog.processors.JSONRenderer(ensure_ascii=False)]
    else:
        last += [_Console(colours)]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=first, processors=last, use_get_message=True)


def _exception(logger: Any, method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put the exception, told without values, in the place of `exc_info`."""
    given = record.pop("exc_info", None)
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        record["exception"] = told(error)
    return record


class _Console:
    """`time level logger: message name=value`, then the exception in lines of its own. Control characters are
    written out: a text from outside must not steer a terminal or forge a line."""

    COLOURS: Mapping[str, str] = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}

    def __init__(self, colours: bool) -> None:
        self._colours = colours

    def __call__(self, logger: Any, method: str, record: MutableMapping[str, Any]) -> str:
        time, level, name, event = (record.pop(key, "") for key in ("time", "level", "logger", "event"))
        exception = record.pop("exception", "")
        shown = f"{level:<7}"
        if self._colours and level in self.COLOURS:
            shown = f"{self.COLOURS[level]}{shown}\x1b[0m"
        rest = "".join(f" {key}={value}" for key, value in record.items())
        line = _plain(f"{name}: {event}{rest}").replace("\n", "\\n")
        told = "".join(f"\n    {part}" for part in _plain(exception).split("\n")) if exception else ""
        return f"{time[:19]}Z {shown} {line}{told}"


def _plain(text: str) -> str:
    return text.translate(_CONTROL)
