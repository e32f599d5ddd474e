"""`init --apply` from the command line down to the parts: what is asked of them, in which order, and what is shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from daemon import config
from daemon.cli.app import build
from daemon.cli.frame import ExitCode, Frame, run
from daemon.core.groundwork import Action, CreateConnector, CreateTopic
from daemon.core.setup import SlotState, SourceSetup, TargetSetup, TopicSetup
from daemon.errors import ConfigError, PermissionRefused, Problem, RevectorError, TransientError

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
SECRET = "h0rse-b4ttery"
ENVIRON = {"DB_PASSWORD": SECRET}
PASSWORD = ("--connector-password-env", "DB_PASSWORD")
SLOT = SlotState(False, False, None, None, None, 1)


class Absent:
    """Every port that `init --apply` asks, over parts where nothing exists yet. fails: kind of action -> errors, in
    turn, that making it meets first."""

    def __init__(self, loaded: config.Loaded, fails: dict[str, list[RevectorError]] | None = None) -> None:
        self.settings = loaded.settings
        self.made: list[Action] = []
        self.fails = fails or {}
        self.is_started = False

    def part(self, role: str) -> Absent:
        assert role == "init"
        return self

    source = target = capture = groundwork = part

    async def close(self) -> None:
        """Nothing is open."""

    async def slot(self) -> SlotState:
        return SlotState(True, True, 1, 0, "reserved", 1) if self.is_started else SLOT

    async def config(self) -> dict[str, str] | None:
        return None

    async def state(self) -> str:
        return "running" if self.is_started else "unassigned"

    async def topics(self) -> tuple[tuple[TopicSetup, ...], tuple[TopicSetup, ...]]:
        return (TopicSetup("articles.app.article", 0, {}),), (TopicSetup("articles.message", 0, {}),)

    async def make(self, action: Action) -> None:
        if errors := self.fails.get(type(action).__name__):
            raise errors.pop(0)
        self.made.append(action)
        self.is_started = self.is_started or isinstance(action, CreateConnector)


class AbsentSource(Absent):
    async def setup(self) -> SourceSetup:
        return SourceSetup(180004, "logical", False, None, (), SLOT)


class AbsentTarget(Absent):
    async def setup(self) -> TargetSetup:
        return TargetSetup(180004, None, "0.8.5", True, None, 1, False)


class AbsentParts(Absent):
    def source(self, role: str) -> Absent:
        found = AbsentSource.__new__(AbsentSource)
        found.__dict__ = self.__dict__
        return found

    def target(self, role: str) -> Absent:
        found = AbsentTarget.__new__(AbsentTarget)
        found.__dict__ = self.__dict__
        return found


class Ended:
    def __init__(self, code: int, out: str, err: str, parts: AbsentParts | None) -> None:
        self.code, self.out, self.err, self.parts = code, out, err, parts

    @property
    def steps(self) -> dict[str, Any]:
        return {step["what"]: step for step in json.loads(self.out)["steps"]}

    @property
    def outcomes(self) -> list[str]:
        return [step["outcome"] for step in self.steps.values()]

    @property
    def connector(self) -> dict[str, str]:
        assert self.parts is not None
        [action] = [a for a in self.parts.made if isinstance(a, CreateConnector)]
        return dict(action.config)


@pytest.fixture
def apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, tmp_path / "revector.toml")

    def invoked(
        *words: str, fails: dict[str, list[RevectorError]] | None = None, environ: dict[str, str] | None = None
    ) -> Ended:
        made: list[AbsentParts] = []

        def parts(loaded: config.Loaded) -> Any:
            made.append(AbsentParts(loaded, fails))
            return made[-1]

        code = run(build(), ["init", *words], Frame(parts=parts, environ=ENVIRON if environ is None else environ))
        shown = capsys.readouterr()
        assert SECRET not in shown.out + shown.err
        return Ended(code, *shown, made[0] if made else None)

    return invoked


def names(actions: Sequence[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_everything_absent_is_made_in_order_and_the_password_goes_to_connect_only(apply: Any) -> None:
    ended = apply("--apply", *PASSWORD, "--json")
    assert ended.code == ExitCode.YES, ended.err
    made = ["CreatePublication", "CreateTopic", "CreateTopic", "CreateExtension", "CreateConnector"]
    assert names(ended.parts.made) == made
    assert set(ended.outcomes) == {"made"}
    assert [a.partitions for a in ended.parts.made if isinstance(a, CreateTopic)] == [3, 1]
    assert ended.connector["database.password"] == SECRET
    settings = ended.parts.settings
    assert ended.connector["database.hostname"] == settings.source.dsn.get("host")
    assert ended.connector["slot.name"] == settings.source.slot


def test_plan_is_shown_first_and_is_all_where_that_was_asked_for(apply: Any) -> None:
    ended = apply("--plan", *PASSWORD)
    assert (ended.code, ended.parts.made) == (ExitCode.YES, [])
    assert "to make  publication" in ended.out
    applied = apply("--apply", *PASSWORD)
    assert applied.err.index("to make") < applied.err.index("made ")
    assert "CREATE PUBLICATION" in applied.err
    assert "next: revector doctor --config revector.toml" in applied.out


def test_flags_reach_topics_and_connector(apply: Any) -> None:
    flags = ("--partitions", "6", "--retention-days", "2", "--connector-user", "dbz")
    more = ("--connector-set", "database.hostname=inside", "--connector-set", "database.password=${dir:/x:y}")
    ended = apply("--apply", *flags, *more, "--json")
    assert ended.code == ExitCode.YES, ended.err + ended.out
    topics = [a for a in ended.parts.made if isinstance(a, CreateTopic)]
    assert [t.partitions for t in topics] == [6, 1]
    assert {t.config["retention.ms"] for t in topics} == {str(2 * 24 * 3600 * 1000)}
    found = ended.connector
    assert (found["database.hostname"], found["database.user"]) == ("inside", "dbz")
    assert found["database.password"] == "${dir:/x:y}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--config", "revector.toml"), "--apply"),
        (("--apply", "--connector-set", f"database.password={SECRET}"), "no place on a command line"),
        (("--apply", "--connector-set", "x"), "--connector-set wants KEY=VALUE"),
        (("--apply", *PASSWORD, "--connector-password-file", "x"), "give one of"),
        (("--apply", "--table", "app.other"), "exists; --force replaces it"),
        (("--apply", "--partitions", "0"), "--partitions"),
    ],
)
def test_command_lines_that_cannot_be_meant_are_usage_errors(words: tuple[str, ...], said: str, apply: Any) -> None:
    ended = apply(*words)
    assert (ended.code, ended.parts is None or not ended.parts.made) == (ExitCode.USAGE, True)
    assert said in ended.err


def test_without_a_password_everything_else_is_made(apply: Any) -> None:
    ended = apply("--apply", "--json")
    assert ended.code == ExitCode.CONFIG
    assert "CreateConnector" not in names(ended.parts.made)
    assert names(ended.parts.made)[0] == "CreatePublication"
    *others, connector, slot = ended.outcomes
    assert (set(others), connector, slot) == ({"made"}, "refused", "not tried")
    assert "--connector-password-env" in ended.out


def test_missing_secret_ends_before_anything_is_made(apply: Any) -> None:
    ended = apply("--apply", *PASSWORD, environ={})
    assert (ended.code, ended.parts is None or ended.parts.made) == (ExitCode.CONFIG, [])
    assert "secret-missing" in ended.err


@pytest.mark.parametrize("kind", ["CreatePublication", "CreateTopic"])
def test_connector_is_not_made_on_what_is_not_there(kind: str, apply: Any) -> None:
    refusal = PermissionRefused("permission-denied", "refused", "a hint")
    ended = apply("--apply", *PASSWORD, "--json", fails={kind: [refusal]})
    assert ended.code == ExitCode.REFUSED
    assert ended.outcomes[-2:] == ["not tried", "not tried"]
    assert "CreateExtension" in names(ended.parts.made)
    [problem] = next(s["problems"] for s in ended.steps.values() if s["outcome"] == "refused")
    expected = {"CreatePublication": "CREATE PUBLICATION ", "CreateTopic": "--operation Create --topic"}
    assert expected[kind] in problem["hint"]


def test_part_that_is_away_for_a_moment_is_asked_again(apply: Any) -> None:
    away = [TransientError("connect-unreachable", "rebalancing") for _ in range(2)]
    ended = apply("--apply", *PASSWORD, "--json", fails={"CreateConnector": list(away)})
    assert ended.code == ExitCode.YES
    assert ended.outcomes[-2:] == ["made", "made"]


def test_connector_that_connect_refuses_has_no_slot_to_wait_for(apply: Any) -> None:
    wrong = ConfigError([Problem("connector-refused", "connector articles database.user", "is not accepted", "see it")])
    ended = apply("--apply", *PASSWORD, "--json", fails={"CreateConnector": [wrong]})
    assert (ended.code, ended.outcomes[-2:]) == (ExitCode.CONFIG, ["refused", "not tried"])


def test_configuration_is_written_and_applied_in_one_go(apply: Any, tmp_path: Path) -> None:
    (tmp_path / "revector.toml").unlink()
    answers = ("--no-input", "--source-dsn", "host=127.0.0.1 user=me dbname=app", "--target-dsn", "dbname=search")
    more = ("--table", "app.article", "--text", "title", "--kafka", "127.0.0.1:9092")
    ended = apply("--apply", *answers, *more, *PASSWORD, "--json")
    assert ended.code == ExitCode.YES, ended.err
    assert (tmp_path / "revector.toml").exists()
    assert ended.connector["database.user"] == "me"
    assert ended.connector["table.include.list"] == "app.article"
