"""What reaches stderr: the shape of a line, and what never gets there."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from daemon.errors import TransientError
from daemon.service import logs
from daemon.service.redaction import Redaction, told
from daemon.settings import LogSettings

log = logging.getLogger("daemon.flow.stream")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging of the whole process is put back."""
    loggers = [logging.getLogger(name) for name in ("", *logs.OURS)]
    handlers, levels = loggers[0].handlers[:], [logger.level for logger in loggers]
    yield
    logging.captureWarnings(False)
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


Configured = tuple[Redaction, io.StringIO]


def configured(
    form: str = "console",
    level: str = "info",
    environ: Mapping[str, str] | None = None,
    make: Callable[[], io.StringIO] = io.StringIO,
) -> Configured:
    out = make()
    settings = LogSettings.model_validate({"format": form, "level": level})
    return logs.configure(settings, environ or {}, out), out


def test_a_console_line_has_time_level_logger_and_message() -> None:
    _, out = configured()
    log.info("stream lease %d taken", 7)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ info    daemon\.flow\.stream: stream lease 7 taken\n", out.getvalue()
    )


def test_json_is_one_object_per_line() -> None:
    _, out = configured("json")
    log.info("first\nwith a break")
    log.warning("second", extra={"rows": 3})
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first["message"] == "first\nwith a break"
    assert (second["message"], second["level"], second["logger"]) == ("second", "warning", "daemon.flow.stream")
    assert second["rows"] == 3
    assert second["time"].endswith("Z")


def test_the_level_is_ours_and_libraries_speak_from_warning() -> None:
    _, out = configured(level="debug")
    log.debug("ours")
    logging.getLogger("openai").debug("request with the text of a row")
    logging.getLogger("httpx2").info("POST")
    logging.getLogger("librdkafka").warning("broker away")
    assert [line.split(": ", 1)[1] for line in out.getvalue().splitlines()] == ["ours", "broker away"]


def test_a_higher_level_silences_the_lower_ones() -> None:
    _, out = configured(level="error")
    log.warning("not said")
    log.error("said")
    assert out.getvalue().endswith("daemon.flow.stream: said\n")
    assert "not said" not in out.getvalue()


def test_configuring_again_does_not_say_things_twice() -> None:
    configured()
    _, out = configured()
    log.info("once")
    assert out.getvalue().count("once") == 1


def test_no_colours_off_a_terminal() -> None:
    _, out = configured()
    log.error("plain")
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_colours_on_a_terminal_can_be_switched_off(environ: dict[str, str], coloured: bool) -> None:
    _, out = configured(environ=environ, make=Terminal)
    log.error("x")
    assert ("\x1b[31m" in out.getvalue()) is coloured


def test_text_from_outside_cannot_steer_a_terminal_or_forge_a_line() -> None:
    _, out = configured(make=Terminal)
    log.info("broker said %s", "\x1b[2J\r\n2026-01-01T00:00:00Z info    daemon: forged")
    assert out.getvalue().count("\n") == 1
    assert r"\x1b[2J\x0d\n2026" in out.getvalue()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("host=db password=hunter2 dbname=app", "host=db password=*** dbname=app"),
        (r"password='it\'s hunter2' host=db", "password=*** host=db"),
        ("postgresql://user:hunter2@db/app?x=1", "postgresql://user:***@db/app?x=1"),
        ("postgresql://user:hun@ter2@db/app", "postgresql://user:***@db/app"),
        ("{'sasl.password': 'hunter2', 'client.id': 'a'}", "{'sasl.password': ***, 'client.id': 'a'}"),
        ('{"api_key": "hunter2"}', '{"api_key": ***}'),
        ("Authorization: Bearer hunter2hunter2", "Authorization: ***"),
        ("{'authorization': 'Basic aHVudGVyMg=='}", "{'authorization': '***'}"),
        ("sent Bearer hunter2.hunter2 to it", "sent Bearer *** to it"),
        ("key sk-proj-hunter2_hunter2 refused", "key *** refused"),
        ("x -----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY----- y", "x *** y"),
        ("OPENAI_API_KEY=hunter2", "OPENAI_API_KEY=***"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(said: str, kept: str) -> None:
    assert Redaction().text(said) == kept
    _, out = configured("json")
    log.info("%s", said)
    assert json.loads(out.getvalue())["message"] == kept
    assert "hunter2" not in out.getvalue()


@pytest.mark.parametrize(
    "said",
    [
        "41200 rows waiting, tokens=500, max_batch_tokens: 8000",
        "status and metrics at http://127.0.0.1:9464",
        "kafka: poll failed with _TRANSPORT; trying again in 1.0 s",
        "set api_key, or change the reference",
        "basic authentication is refused",
    ],
)
def test_ordinary_lines_stay_as_they_are(said: str) -> None:
    assert Redaction().text(said) == said


def test_a_registered_secret_is_hidden_wherever_it_stands() -> None:
    redaction, out = configured("json")
    redaction.hide("p@ss word")
    log.info("at p@ss word", extra={"deep": {"p@ss word": ["p%40ss%20word", ("p%40ss+word",)]}})
    log.info("%s", ["p@ss word"])
    assert out.getvalue().count("***") == 5
    assert "word" not in out.getvalue()


def test_of_two_registered_secrets_the_longer_goes_first() -> None:
    redaction = Redaction()
    redaction.hide("abcd")
    redaction.hide("abcdefgh")
    assert redaction.text("abcdefgh abcd") == "*** ***"


def test_very_short_secrets_do_not_shred_ordinary_words() -> None:
    redaction = Redaction()
    redaction.hide("a")
    redaction.hide("")
    assert redaction.text("lease taken") == "lease taken"


def _driver_failure() -> None:
    class DriverError(Exception):
        pass

    try:
        raise DriverError("Key (email)=(jane@example.com) already exists, password=hunter2")
    except DriverError as error:
        raise TransientError("target-away", "target: write failed") from error


@pytest.mark.parametrize("form", ["console", "json"])
def test_an_exception_names_places_and_types_but_no_row_text(form: str) -> None:
    _, out = configured(form)
    try:
        _driver_failure()
    except TransientError:
        log.exception("window failed")
    text = out.getvalue()
    assert "DriverError" in text
    assert "daemon.errors.TransientError: target: write failed" in text
    assert f"{Path(__file__).name}:" in text
    assert "jane" not in text
    assert "hunter2" not in text


def test_groups_are_told_member_by_member_and_circles_end() -> None:
    inner = ValueError("row text")
    inner.__context__ = outer = ExceptionGroup("several", [inner, TransientError("x", "source: read failed")])
    text = told(outer)
    assert "row text" not in text
    assert text.endswith("of which:\ndaemon.errors.TransientError: source: read failed")


def test_arguments_that_do_not_fit_their_format_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    _, out = configured()
    log.info("%d rows", "row text")
    assert "daemon.flow.stream line" in out.getvalue()
    assert "row text" not in out.getvalue() + capsys.readouterr().err


def test_a_closed_stream_is_no_error() -> None:
    _, out = configured()
    out.close()
    log.info("to nobody")


def test_warnings_are_log_lines() -> None:
    _, out = configured("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old call", stacklevel=1)
    assert "old call" in json.loads(out.getvalue())["message"]
