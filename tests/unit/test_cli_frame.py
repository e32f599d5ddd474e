"""What every command has in common: help pages, exit codes, streams, JSON, colour; and the offline commands."""

import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any, cast

import pytest
import typer

from daemon import config
from daemon.__main__ import ConnectorParts
from daemon.cli.app import build
from daemon.cli.frame import MEANINGS, ExitCode, Frame, ended_by_signal, frame_of, page, run
from daemon.cli.initialise import QUESTIONS
from daemon.cli.output import Output, table
from daemon.cli.reference import FOLDER, commands, help_of, pages
from daemon.errors import (
    ConfigError,
    Halt,
    HeldElsewhere,
    ItemRefused,
    LeaseLost,
    PermissionRefused,
    Problem,
    RevectorError,
    TransientError,
    WaitTimedOut,
)
from daemon.installation import mismatch
from daemon.parts import Parts

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.toml"
OFFLINE = [("init",), ("check",), ("config", "show"), ("config", "schema")]
DRIVERS = {"psycopg", "confluent_kafka", "openai", "httpx2", "numpy", "opentelemetry", "uvicorn", "connectors"}
INIT = shlex.split(
    "init --no-input --source-dsn dbname=app --target-dsn dbname=search --table app.article --text title,body "
    "--kafka 127.0.0.1:9092"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Ended:
    """One finished invocation."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Invoke = Callable[..., Ended]


class OfflineParts:
    """What an offline command may ask for: what neither connects nor reads a secret."""

    def __init__(self, loaded: config.Loaded) -> None:
        self._parts = ConnectorParts(loaded)

    def __getattr__(self, name: str) -> Any:
        assert name in {"contract", "tokenizer"}, f"an offline command asked for {name}"
        return getattr(self._parts, name)


def offline_parts(loaded: config.Loaded) -> Parts:
    return cast(Parts, OfflineParts(loaded))


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    def invoked(*arguments: str, app: typer.Typer | None = None, environ: dict[str, str] | None = None) -> Ended:
        capsys.readouterr()
        code = run(app or build(), arguments, Frame(parts=offline_parts, environ=environ or {}))
        return Ended(code, *capsys.readouterr())

    return invoked


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a sound configuration."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, "revector.toml")
    return tmp_path


def examples(words: tuple[str, ...]) -> list[str]:
    lines = help_of(words).partition("Examples:")[2].partition("Exit codes:")[0].splitlines()
    return [line.strip() for line in lines if line.strip()]


def failing(error: BaseException) -> typer.Typer:
    """An application with one command that raises."""
    app = typer.Typer(rich_markup_mode=None)

    def command(context: typer.Context, as_json: bool = typer.Option(False, "--json")) -> None:
        frame_of(context).out.note("trying")
        raise error

    page(app, "fail", ("revector fail", "revector fail --json"))(command)
    app.callback()(lambda: None)
    return app


# --- help pages


@pytest.mark.parametrize("words", list(commands(build())), ids=" ".join)
def test_help_page_has_two_examples_that_parse_exit_codes_and_a_docs_link(words: tuple[str, ...]) -> None:
    text = help_of(words)
    found = examples(words)
    assert len(found) == 2
    for example in found:
        program, *arguments = shlex.split(example.partition(" > ")[0])
        assert program == "revector"
        assert tuple(arguments[: len(words)]) == words
        assert run(build(), [*arguments, "--help"], Frame(parts=offline_parts, environ={})) == ExitCode.YES
    for code in (ExitCode.YES, ExitCode.FAULT, ExitCode.USAGE):
        assert f"{code:<3} {MEANINGS[code]}" in text
    link = text.strip().splitlines()[-1].partition("Docs: ")[2]
    assert (ROOT / link).is_file()


@pytest.mark.parametrize("words", OFFLINE, ids=" ".join)
def test_examples_of_offline_commands_run(
    words: tuple[str, ...], invoke: Invoke, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for example in examples(words):
        arguments = shlex.split(example.partition(" > ")[0])[1:]
        if words == ("init",):
            (folder / "revector.toml").unlink(missing_ok=True)
            answers = ["dbname=app", "app.article", "title", "dbname=search", "127.0.0.1:9092", ""]
            monkeypatch.setattr("sys.stdin", Terminal("".join(f"{a}\n" for a in answers)))
        elif "articles.toml" in example:
            shutil.copy(EXAMPLE, "articles.toml")
        ended = invoke(*arguments)
        assert (ended.code, bool(ended.out)) == (ExitCode.YES, True), ended.err


@pytest.mark.parametrize("name", pages())
def test_reference_pages_are_what_the_code_says(name: str) -> None:
    assert (ROOT / FOLDER / name).read_text() == pages()[name], "python -m daemon.cli.reference writes them"


def test_no_arguments_print_the_help_page(invoke: Invoke) -> None:
    ended = invoke()
    assert ended.code == ExitCode.YES
    assert "Commands:" in ended.out


def test_version_is_the_distributions(invoke: Invoke) -> None:
    assert invoke("--version").out.startswith("revector ")


# --- exit codes and streams


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TransientError("source-away", "the source is away", "wait"), ExitCode.AWAY),
        (PermissionRefused("source-refused", "the source refuses us", "grant"), ExitCode.REFUSED),
        (ConfigError([Problem("a", "b", "c", "d")]), ExitCode.CONFIG),
        (HeldElsewhere("held", "somebody holds it", "wait"), ExitCode.HELD),
        (LeaseLost("lease-lost", "a peer owns it", "wait"), ExitCode.HELD),
        (WaitTimedOut("timed-out", "not in time", "wait longer"), ExitCode.TIMED_OUT),
        (Halt("halted", "stopped", "look"), ExitCode.FAULT),
        (ItemRefused(400, None, None), ExitCode.FAULT),
        (typer.Exit(ExitCode.NO), ExitCode.NO),
        (typer.BadParameter("wrong"), ExitCode.USAGE),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (typer.Abort(), ExitCode.INTERRUPTED),
        (ZeroDivisionError("a secret"), ExitCode.FAULT),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failure_has_its_exit_code_one_document_and_no_answer_on_stdout(
    error: BaseException, code: ExitCode, invoke: Invoke
) -> None:
    text = invoke("fail", app=failing(error))
    assert (text.code, text.out) == (code, "")
    assert ("Traceback" in text.err or "File " in text.err) == isinstance(error, ZeroDivisionError)
    assert "a secret" not in text.err
    as_json = invoke("fail", "--json", app=failing(error))
    assert as_json.code == code
    if code == ExitCode.NO:
        return
    assert as_json.document["schema"] == "revector.error/1"
    assert as_json.document["error"]["exit_code"] == code
    assert "a secret" not in as_json.out + as_json.err
    if isinstance(error, RevectorError):
        assert as_json.document["error"]["id"] == error.id
        assert error.id in text.err


def test_every_exit_code_has_a_meaning_and_every_error_class_a_known_code() -> None:
    assert set(MEANINGS) == set(ExitCode)
    waiting: list[type[RevectorError]] = [RevectorError]
    while waiting:
        found = waiting.pop()
        waiting += found.__subclasses__()
        assert found.exit_code in set(ExitCode)


def test_json_failure_lists_every_problem(invoke: Invoke, folder: Path) -> None:
    text = (folder / "revector.toml").read_text().replace("slot =", "slott =").replace("model =", "modell =")
    (folder / "revector.toml").write_text(text)
    ended = invoke("check", "--json")
    assert ended.code == ExitCode.CONFIG
    assert [p["id"] for p in ended.document["error"]["problems"]] == ["missing-key", "unknown-key"] * 2
    plain = invoke("check")
    assert plain.out == ""
    assert "revector.toml:14 source.slott: no such key in [source] [unknown-key]" in plain.err
    assert "did you mean `slot`?" in plain.err


@pytest.mark.parametrize("arguments", [("chek",), ("check", "--jsn"), ("config",), ("check", "--set", "x")])
def test_wrong_command_lines_are_usage_errors_that_point_at_help(arguments: tuple[str, ...], invoke: Invoke) -> None:
    ended = invoke(*arguments)
    assert (ended.code, ended.out) == (ExitCode.USAGE, "")
    assert "--help" in ended.err
    assert invoke(*arguments, "--json").document["error"]["id"] == "usage"


@pytest.fixture
def handled() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, ended_by_signal)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("handled")
def test_sigterm_ends_with_143_and_one_document(invoke: Invoke) -> None:
    app = failing(RuntimeError())

    def waiting(as_json: bool = typer.Option(False, "--json")) -> None:
        signal.raise_signal(signal.SIGTERM)

    app.command("wait")(waiting)
    ended = invoke("wait", "--json", app=app)
    assert (ended.code, ended.document["error"]["id"]) == (ExitCode.TERMINATED, "terminated")


IMPATIENT = """
import runpy, sys
class Impatient:
    def find_spec(self, name, *rest):
        if name == "daemon.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Impatient())
sys.argv = ["revector", "check", "--json"]
runpy.run_module("daemon", run_name="__main__")
"""


def test_ctrl_c_while_the_program_is_imported_ends_with_130_and_one_document() -> None:
    command, environ = [sys.executable, "-c", IMPATIENT], {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (ExitCode.INTERRUPTED, "")
    assert json.loads(ended.stdout)["error"]["id"] == "interrupted"


def process(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "daemon", *arguments]
    return subprocess.Popen(command, env=environ, text=True, stderr=subprocess.PIPE, **options)


def test_reader_that_goes_away_gets_no_complaint() -> None:
    read, write = os.pipe()
    os.close(read)
    with process("config", "show", "--config", str(EXAMPLE), stdout=write) as ended:
        os.close(write)
        assert ended.stderr is not None
        assert ended.stderr.read() == ""
    assert ended.returncode == ExitCode.PIPE_CLOSED


def test_check_needs_no_secret_and_loads_no_driver() -> None:
    """What keeps it under half a second; the time itself is no test's business on a shared machine."""
    with process("check", "--config", str(EXAMPLE), "--json", stdout=subprocess.PIPE) as ended:
        out, err = ended.communicate(timeout=60)
    assert (ended.returncode, err) == (0, "")
    assert json.loads(out)["schema"] == "revector.check/1"
    code = f"import sys, runpy; sys.argv = ['revector', 'check', '--config', {str(EXAMPLE)!r}]\n"
    code += "try: runpy.run_module('daemon', run_name='__main__')\n"
    code += "except SystemExit: print(*sys.modules, file=sys.stderr)"
    environ = {"PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert "daemon.config" in loaded.stderr.split()
    assert not DRIVERS & set(loaded.stderr.split())


# --- colour


@pytest.mark.parametrize(
    ("stream", "environ", "coloured"),
    [
        (Terminal, {"TERM": "xterm"}, True),
        (Terminal, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal, {"TERM": "dumb"}, False),
        (Terminal, {}, False),
        (io.StringIO, {"TERM": "xterm"}, False),
    ],
)
def test_escape_bytes_go_to_terminals_that_want_them_only(
    stream: type[io.StringIO], environ: dict[str, str], coloured: bool
) -> None:
    stdout, stderr = stream(), stream()
    out = Output(stdout, stderr, environ, is_json=False)
    out.answer("x", {}, [out.styled("yes", "green")])
    out.failure(Halt("halted", "stopped", "look"))
    assert ("\x1b[" in stdout.getvalue(), "\x1b[" in stderr.getvalue()) == (coloured, coloured)
    as_json = Output(stdout := stream(), stderr, environ, is_json=True)
    as_json.answer("x", {"text": as_json.styled("yes", "green")}, [])
    assert json.loads(stdout.getvalue()) == {"schema": "revector.x/1", "text": "yes"}


def test_tables_are_aligned_and_have_no_trailing_blanks() -> None:
    assert table([("a", "bb", ""), ("aaa", "b", "c")]) == ["a    bb", "aaa  b   c"]
    assert table([]) == []


# --- check and config


def test_check_says_what_the_configuration_is(invoke: Invoke, folder: Path) -> None:
    assert "articles, 1 table" in invoke("check").out
    document = invoke("check", "articles", "--json").document
    assert (document["migration"], document["tables"]) == ("articles", ["article"])
    settings = config.load(EXAMPLE, {}, {}).settings
    contract = settings.contract_of(settings.candidate, "")
    assert document["generations"] == [{"name": "v2", "contract": contract.id}]


def test_check_has_every_generation_and_the_contracts_depend_on_what_cuts(invoke: Invoke, folder: Path) -> None:
    later = '\n[[generation]]\nname = "v3"\nmodel = "m"\nprovider = "local"\ndimensions = 64\nchunk_tokens = 100\n'
    with (folder / "revector.toml").open("a") as file:
        file.write(later)
    first = invoke("check", "--json").document["generations"]
    other = invoke("check", "--json", "--set", "generation.tokenizer=o200k_base").document["generations"]
    assert [g["name"] for g in first] == ["v2", "v3"]
    assert (first[0], first[1]["contract"] != other[1]["contract"]) == (other[0], True)
    lines = [line for line in invoke("check").out.splitlines() if "generation" in line]
    assert [line.split()[1] for line in lines] == ["v2:", "v3:"]


def test_check_loads_a_tokenizer_that_is_named(invoke: Invoke, folder: Path) -> None:
    ended = invoke("check", "--set", "generation.tokenizer=none.json")
    assert ended.code == ExitCode.CONFIG
    assert "no such file: none.json" in ended.err


def test_name_must_be_the_configurations(invoke: Invoke, folder: Path) -> None:
    ended = invoke("check", "other")
    assert ended.code == ExitCode.CONFIG
    assert "configures articles, not other" in ended.err


def test_warnings_go_to_stderr_and_do_not_fail(invoke: Invoke, folder: Path) -> None:
    ended = invoke("check", environ={"REVECTOR_LOG_LEVELL": "debug"})
    assert ended.code == ExitCode.YES
    assert "did you mean `REVECTOR_LOG_LEVEL`?" in ended.err


def test_config_show_has_origins_and_hides_secrets(invoke: Invoke, folder: Path) -> None:
    environ = {"REVECTOR_SOURCE_DSN": "host=db password=hush", "REVECTOR_GENERATION_API_KEY": "hush"}
    ended = invoke("config", "show", "--origin", "--set", "log.level=debug", environ=environ)
    shown = {line.split()[0]: line for line in ended.out.splitlines()}
    assert "host=db password=*** sslmode=verify-full" in shown["source.dsn"]
    assert shown["source.dsn"].endswith("# environment REVECTOR_SOURCE_DSN")
    assert '{ env = "REVECTOR_GENERATION_API_KEY" }' in shown["generation[0].api_key"]
    assert re.search(r" 8 +# default$", shown["generation[0].limits.in_flight"])
    assert shown["log.level"].endswith("# flag")
    assert shown["log.format"].endswith("# default")
    assert shown["name"].endswith("# revector.toml:7")
    as_json = invoke("config", "show", "--json", environ=environ)
    keys = {s["key"]: s for s in as_json.document["settings"]}
    assert keys["limits.page_rows"] == {"key": "limits.page_rows", "value": 2000, "origin": "default"}
    assert "hush" not in ended.out + ended.err + as_json.out


# --- init


def test_init_asks_at_most_six_questions_and_fewer_where_flags_answer(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(QUESTIONS) <= 6
    monkeypatch.setattr("sys.stdin", Terminal("dbname=app\n127.0.0.1:9092\nmy-model:64\n"))
    path = tmp_path / "r.toml"
    flags = ["--table", "app.article", "--text", "{title}", "--target-dsn", "dbname=x", "--base-url", "http://[::1]/v1"]
    ended = invoke("init", str(path), *flags)
    assert ended.code == ExitCode.YES, ended.err
    assert [f"{n}/3 " in ended.err for n in (1, 2, 3)] == [True] * 3
    settings = config.load(path, {}, {}).settings
    assert (settings.name, settings.candidate.model, settings.candidate.dimensions) == ("article", "my-model", 64)
    assert (settings.source.slot, settings.connect.connector) == ("revector_article", "article")


WRONG_THEN_RIGHT = {
    "--source-dsn": ("dbname", "dbname=app"),
    "--table": ("article", "app.article"),
    "--text": ("{title", "title, body"),
    "--target-dsn": ("dbname", "dbname=search"),
    "--kafka": ("127.0.0.1:9092",),
    "--model": ("my-model", "my-model:64"),
}


def test_init_asks_again_at_once_for_an_answer_that_cannot_be_used(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(WRONG_THEN_RIGHT) == [question.flag for question in QUESTIONS.values()]
    answers = [answer for pair in WRONG_THEN_RIGHT.values() for answer in pair]
    monkeypatch.setattr("sys.stdin", Terminal("\n".join(answers) + "\n"))
    ended = invoke("init", str(tmp_path / "r.toml"))
    assert ended.code == ExitCode.YES, ended.err
    asked = [ended.err.count(f"{n}/6 ") for n in range(1, 7)]
    assert asked == [len(given) for given in WRONG_THEN_RIGHT.values()], ended.err


def test_init_takes_tls_for_brokers_elsewhere_where_a_person_answers(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("broker.example:9092\n\n"))
    path = tmp_path / "r.toml"
    flags = ["--source-dsn", "dbname=app", "--table", "app.article", "--text", "title", "--target-dsn", "dbname=x"]
    ended = invoke("init", str(path), *flags)
    assert ended.code == ExitCode.YES, ended.err
    assert "SASL_SSL" in ended.err
    assert config.load(path, {}, {}).settings.kafka.properties["security.protocol"] == "SASL_SSL"


def test_init_without_a_terminal_lists_every_missing_flag(invoke: Invoke, tmp_path: Path) -> None:
    ended = invoke("init", str(tmp_path / "r.toml"), "--table", "app.article")
    assert ended.code == ExitCode.USAGE
    for flag in ("--source-dsn", "--text", "--target-dsn", "--kafka"):
        assert flag in ended.err
    assert not list(tmp_path.iterdir())


def test_init_names_the_commands_that_come_next(invoke: Invoke, folder: Path) -> None:
    done = invoke(*INIT, "a b.toml")
    assert done.code == ExitCode.YES
    told = [line.removeprefix("next:").split("#")[0].split() for line in done.out.splitlines()[1:]]
    assert [words[:2] for words in told] == [["revector", "check"], ["revector", "init"], ["revector", "doctor"]]
    assert all(shlex.split(" ".join(words))[-1] == "a b.toml" for words in told)  # they can be pasted as they are
    assert "--plan" in told[1]


def test_init_never_replaces_a_file_unasked(invoke: Invoke, folder: Path) -> None:
    before = (folder / "revector.toml").read_bytes()
    assert invoke(*INIT).code == ExitCode.USAGE
    assert (folder / "revector.toml").read_bytes() == before
    assert invoke(*INIT, "--force").code == ExitCode.YES
    assert invoke("check", "--json").document["migration"] == "article"


def test_init_writes_nothing_that_check_would_refuse(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    ended = invoke(*INIT, str(path), "--kafka", "broker.example:9092")
    assert ended.code == ExitCode.CONFIG
    assert "kafka-in-clear" in ended.err
    assert not path.exists()


def test_init_keeps_a_password_to_its_owner(invoke: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    ended = invoke(*INIT, str(path), "--source-dsn", "dbname=app password='a \"b\" \\\\'")
    assert ended.code == ExitCode.YES, ended.err
    assert path.stat().st_mode & 0o777 == 0o600
    assert config.load(path, {}, {}).settings.source.dsn.get("password") == 'a "b" \\'


@pytest.mark.parametrize(
    ("model", "dimensions", "vector_type"),
    [("text-embedding-3-small", 1536, "vector"), ("text-embedding-3-large", 3072, "halfvec"), ("x:8", 8, "vector")],
)
def test_init_derives_what_a_model_implies(
    model: str, dimensions: int, vector_type: str, invoke: Invoke, tmp_path: Path
) -> None:
    path = tmp_path / "r.toml"
    assert invoke(*INIT, str(path), "--model", model).code == ExitCode.YES
    (generation,) = config.load(path, {}, {}).settings.generation
    assert (generation.dimensions, generation.vector_type) == (dimensions, vector_type)
    assert invoke(*INIT, str(path), "--force", "--model", "unknown").code == ExitCode.USAGE


# --- the loaded package


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An installation of one package, as pip leaves it."""
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon/__init__.py").write_text('"""Ours."""\n')
    info = tmp_path / "revector-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: revector\nVersion: 1\n")
    digest = hashlib.sha256((tmp_path / "daemon/__init__.py").read_bytes()).digest()
    recorded = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"daemon/__init__.py,sha256={recorded},12\n")
    return tmp_path


def test_own_package_passes_and_an_overwritten_or_shadowed_one_is_named(site: Path, tmp_path: Path) -> None:
    installed = PathDistribution(site / "revector-1.dist-info")
    loaded = site / "daemon/__init__.py"
    assert mismatch(loaded, installed) is None
    elsewhere = tmp_path / "other/daemon/__init__.py"
    assert "comes first on the import path" in (mismatch(elsewhere, installed) or "")
    loaded.write_text('"""Theirs."""\n')
    assert "overwrote the package" in (mismatch(loaded, installed) or "")


def test_editable_installation_lists_no_modules_and_passes(site: Path) -> None:
    (site / "revector-1.dist-info/RECORD").write_text("revector-1.dist-info/METADATA,,\n")
    assert mismatch(site / "daemon/__init__.py", PathDistribution(site / "revector-1.dist-info")) is None
