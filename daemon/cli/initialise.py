"""`init`: writes a configuration from at most six answers, or from flags alone; with `--apply` it makes what is needed.

What follows from an answer is not asked: names of slot, publication, prefix and connector come from the table's name,
vector type and dimensions from a known model. An answer that cannot be used is asked for again at once, and the file is
checked before it is written: what `init` leaves behind passes `revector check`. An existing file is never replaced
without `--force`. Offline, unless `--apply` or `--plan` asks for more: then an existing configuration is taken as it is
(`daemon.cli.applying`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from daemon import config, conninfo
from daemon.cli.applying import (
    ConnectorPasswordEnv,
    ConnectorPasswordFile,
    ConnectorSettings,
    ConnectorUser,
    ExistingConfig,
    Flags,
    Partitions,
    RetentionDays,
    carry_out,
)
from daemon.cli.frame import ExitCode, Frame, Json, frame_of, page
from daemon.errors import ConfigError
from daemon.settings_checks import is_local_server
from daemon.settings_generation import MAX_DIMENSIONS, OPENAI_URL

# dimensions of models that need not be asked for
KNOWN_MODELS: Mapping[str, int] = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}


EXITS = [ExitCode.AWAY, ExitCode.REFUSED, ExitCode.CONFIG]


class Question(NamedTuple):
    """One answer that only a person can give. flag: what gives it without asking. key: the setting that it becomes;
    sound: an answer that nothing is wrong with."""

    flag: str
    text: str
    key: str
    sound: str
    default: str | None = None


QUESTIONS: Mapping[str, Question] = {
    "source": Question("--source-dsn", "Source database (libpq connection string)", "source.dsn", "dbname=app"),
    "table": Question(
        "--table", "Table to search, with its schema (such as app.article)", "table[0].source", "app.article"
    ),
    "text": Question(
        "--text", "Its text columns, comma-separated, or a template with {column}", "table[0].text", "title"
    ),
    "target": Question(
        "--target-dsn", "Target database with pgvector (libpq connection string)", "target.dsn", "dbname=search"
    ),
    "kafka": Question("--kafka", "Kafka servers (host:port, comma-separated)", "kafka.properties", "localhost:9092"),
    "model": Question(
        "--model",
        "Embedding model (NAME or NAME:DIMENSIONS)",
        "generation[0].",
        "text-embedding-3-small",
        "text-embedding-3-small",
    ),
}


@dataclass(frozen=True)
class Choices:
    """What has a default and is set by flags only."""

    name: str | None
    connect: str | None
    base_url: str
    api_key_env: str | None
    security: str | None


def register(app: typer.Typer) -> None:
    """Add the command."""
    flags = (
        "--no-input --source-dsn 'host=db.example.com dbname=app' --target-dsn 'host=search.example.com dbname=search' "
        "--table app.article --text title,body --kafka kafka.example.com:9093 --security SASL_SSL"
    )
    page(app, "init", ("revector init", f"revector init articles.toml {flags}"), EXITS)(initialise)


def initialise(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path(config.DEFAULT_PATH),
    source_dsn: Annotated[str | None, typer.Option(help="Source database.")] = None,
    table: Annotated[str | None, typer.Option(help="Table with its schema.")] = None,
    text: Annotated[str | None, typer.Option(help="Text columns or template.")] = None,
    target_dsn: Annotated[str | None, typer.Option(help="Target database.")] = None,
    kafka: Annotated[str | None, typer.Option(help="Kafka servers.")] = None,
    model: Annotated[str | None, typer.Option(help="NAME or NAME:DIMENSIONS.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the migration; else the table's.")] = None,
    connect: Annotated[str | None, typer.Option(help="URL of Kafka Connect; else port 8083 of a Kafka host.")] = None,
    base_url: Annotated[str, typer.Option(help="URL of the provider.")] = OPENAI_URL,
    api_key_env: Annotated[str | None, typer.Option(help="Variable with the provider's key.")] = None,
    security: Annotated[str | None, typer.Option(help="security.protocol of the brokers, such as SASL_SSL.")] = None,
    no_input: Annotated[bool, typer.Option("--no-input", help="Ask nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Show the plan, then make what is absent.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only show what --apply would make.")] = False,
    file: ExistingConfig = None,
    connector_user: ConnectorUser = None,
    connector_password_env: ConnectorPasswordEnv = None,
    connector_password_file: ConnectorPasswordFile = None,
    connector_set: ConnectorSettings = None,
    partitions: Partitions = 3,
    retention_days: RetentionDays = 7,
    as_json: Json = False,
) -> None:
    """Write a configuration: at most six questions, none with --no-input. With --apply, make what it needs:
    publication, topics, extension, connector; what exists is left as it is."""
    frame = frame_of(context)
    questions = (source_dsn, table, text, target_dsn, kafka, model)
    given = dict(zip(QUESTIONS, questions, strict=True))
    choices = Choices(name, connect, base_url, api_key_env, security)
    is_online = apply or plan
    if file is not None and not is_online:
        raise typer.BadParameter("--config goes with --apply or --plan; to write a file, name it as the argument")
    path = file or path
    is_taken = is_online and not force and path.exists() and not any((*questions, name, connect))
    if file is None and not is_taken:
        if path.exists() and not force:
            raise typer.BadParameter(f"{path} exists; --force replaces it")
        may_ask = not no_input and frame.stdin.isatty() and not frame.out.is_json
        answers = _answers(frame, given, may_ask)
        if may_ask and not security and not _is_on_this_machine(answers["kafka"]):
            choices = replace(choices, security="SASL_SSL")
            frame.out.note("brokers off this machine: security.protocol SASL_SSL is written; --security changes it")
        _create(path, render(answers, choices))
    if is_online:
        password = (connector_password_env, connector_password_file)
        flags = Flags(connector_user, *password, connector_set or (), partitions, retention_days)
        carry_out(frame, path, flags, is_plan=plan)
    else:
        _written(frame, path)


def _create(path: Path, document: str) -> None:
    """Write a configuration that `check` accepts. Raises ConfigError."""
    settings = config.parse(document, path, environ={}, overrides={}).settings
    _write(path, document, is_secret=conninfo.HIDDEN in f"{settings.source.dsn} {settings.target.dsn}")


def _written(frame: Frame, path: Path) -> None:
    shown = shlex.quote(str(path))
    following = [f"revector {command} --config {shown}" for command in ("check", "init --plan", "doctor")]
    migration = config.load(path, {}, {}).settings.name
    frame.out.answer(
        "init",
        {"path": str(path), "migration": migration, "next": following},
        [
            f"{path}: written, migration {migration}",
            f"next: {following[0]}",
            f"      {following[1]}   # what is absent yet; --apply makes it",
            f"      {following[2]}",
        ],
    )


def render(answers: Mapping[str, str], choices: Choices) -> str:
    """The configuration as TOML text. answers: one per question. Raises BadParameter."""
    name = choices.name or _slug(answers["table"])
    model, dimensions = _model(answers["model"])
    vector_type = "vector" if dimensions <= MAX_DIMENSIONS["vector"] else "halfvec"
    host = answers["kafka"].split(",")[0].rpartition(":")[0] or answers["kafka"]
    key = choices.api_key_env or ("OPENAI_API_KEY" if choices.base_url == OPENAI_URL else None)
    protocol = [f'"security.protocol" = {_toml(choices.security)}'] if choices.security else []
    if choices.security and choices.security.upper().startswith("SASL"):
        protocol.append('# also "sasl.mechanism", "sasl.username" and "sasl.password" = { env = "VARIABLE" }')
    lines = [
        "# Every key with its default and the reason: docs/reference/config.md",
        "# For completion in an editor: revector config schema > config.schema.json",
        "#:schema ./config.schema.json",
        f"name = {_toml(name)}",
        "",
        "[source]",
        f"dsn = {_toml(answers['source'])}",
        f"slot = {_toml(f'revector_{name}')}",
        f"publication = {_toml(f'revector_{name}')}",
        "",
        "[kafka]",
        f"topic_prefix = {_toml(name)}",
        "",
        "[kafka.properties]",
        f'"bootstrap.servers" = {_toml(answers["kafka"])}',
        *protocol,
        "",
        "[connect]",
        f"url = {_toml(choices.connect or f'http://{host}:8083')}",
        f"connector = {_toml(name)}",
        "",
        "[target]",
        f"dsn = {_toml(answers['target'])}",
        "",
        "[[table]]",
        f"source = {_toml(answers['table'])}",
        f"text = {_toml(_template(answers['text']))}",
        "",
        "[[generation]]",
        'name = "v2"',
        f"model = {_toml(model)}",
        f"dimensions = {dimensions}",
        *([f"vector_type = {_toml(vector_type)}"] if vector_type != "vector" else []),
        *([f"base_url = {_toml(choices.base_url)}"] if choices.base_url != OPENAI_URL else []),
        *([f"api_key = {{ env = {_toml(key)} }}"] if key else []),
    ]
    return "\n".join(lines) + "\n"


def _answers(frame: Frame, given: Mapping[str, str | None], may_ask: bool) -> dict[str, str]:
    """Every answer: from its flag, from a person, or from its default. Raises BadParameter naming all missing flags."""
    answers = {key: value for key, value in given.items() if value}
    missing = [key for key in QUESTIONS if key not in answers]
    if not may_ask:
        answers |= {key: default for key in missing if (default := QUESTIONS[key].default)}
        if flags := [QUESTIONS[key].flag for key in missing if key not in answers]:
            raise typer.BadParameter("no terminal to ask at, and missing: " + ", ".join(flags))
        return answers
    for at, key in enumerate(missing, start=1):
        question = QUESTIONS[key]
        prompt = f"{at}/{len(missing)} {question.text}"
        answers[key] = str(typer.prompt(prompt, default=question.default, err=True, value_proc=_accepted(key)))
    return answers


def _accepted(key: str) -> Callable[[str], str]:
    """What takes an answer or refuses it with BadParameter, upon which it is asked for again: who mistypes the second
    answer should not hear of it after the sixth, and begin again."""

    def accept(answer: str) -> str:
        answers = {name: question.sound for name, question in QUESTIONS.items()} | {key: answer.strip()}
        document = render(answers, Choices(None, None, OPENAI_URL, None, "PLAINTEXT"))
        try:
            config.parse(document, Path(config.DEFAULT_PATH), environ={}, overrides={})
        except ConfigError as error:
            for problem in error.problems:
                if f" {QUESTIONS[key].key}" in problem.where:
                    raise typer.BadParameter(f"{problem.message}; {problem.hint}") from None
        return answers[key]

    return accept


def _is_on_this_machine(servers: str) -> bool:
    return all(is_local_server(server) for server in servers.split(","))


def _model(answer: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+):(\d+)", answer)
    if match:
        return match[1], int(match[2])
    if answer in KNOWN_MODELS:
        return answer, KNOWN_MODELS[answer]
    raise typer.BadParameter(f"how many dimensions has {answer}? write {answer}:DIMENSIONS")


def _template(answer: str) -> str:
    """A template as it is; column names joined by blank lines."""
    if "{" in answer:
        return answer
    return "\n\n".join("{" + column.strip() + "}" for column in answer.split(",") if column.strip())


def _slug(table: str) -> str:
    """A migration's name from a table's."""
    word = re.sub(r"[^a-z0-9_]+", "_", table.rpartition(".")[2].lower()).strip("_")
    return re.sub(r"^(?=\d)", "t", word)[:31] or "migration"


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _write(path: Path, document: str, is_secret: bool) -> None:
    """A file that holds a password is for its owner alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if is_secret else 0o666)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(document)
    if is_secret:
        path.chmod(0o600)
