"""The deployment files: linted by their own tools, and of one mind with the product.

Containers cannot be run where these tests run, so what can be judged without one is judged here. A tool that is missing
is an error: a check that was skipped looks like one that passed.
"""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from daemon import config
from daemon.cli.app import build
from daemon.cli.frame import ExitCode
from daemon.cli.reference import commands
from daemon.core.profile import RULES, ExpectedConnector, connector_problems
from daemon.service.supervise import DRAIN_S
from daemon.settings import Settings
from sandbox.connect import Capture, debezium_profile

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
UNIT = (DOCKER / "revector.service").read_text()
LOOPBACK = re.compile(r"127\.0\.0\.1:\d+:\d+")
# What differs from deployment to deployment.
PLACES = re.compile(r"database\.(hostname|port|user|password|dbname|sslmode)|topic\.prefix|(slot|publication)\.name")
SIZES = re.compile(r"table\.include\.list|heartbeat\.interval\.ms|poll\.interval\.ms|topic\.creation\..*")


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment. Raises FileNotFoundError where it is missing."""
    program = Path(sys.executable).with_name(name)
    return subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def compose() -> dict[str, Any]:
    document: dict[str, Any] = YAML(typ="safe").load(DOCKER / "compose.yaml")
    return document


def settings() -> Settings:
    return config.load(DOCKER / "compose.toml", {}, {}).settings


def profile() -> dict[str, str]:
    document: dict[str, str] = json.loads((DOCKER / "connector.json").read_text())
    return document


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT)
    return parser


def test_hadolint_has_no_complaint(tmp_path: Path) -> None:
    linted = tool("hadolint", DOCKER / "Dockerfile")
    assert (linted.returncode, linted.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd /tmp && pip install requests\n")
    assert tool("hadolint", bad).returncode != 0


def test_compose_file_is_of_the_compose_specification(tmp_path: Path) -> None:
    command = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    linted = tool(*command, DOCKER / "compose.yaml")
    assert linted.returncode == 0, linted.stdout + linted.stderr
    bad = tmp_path / "compose.yaml"
    bad.write_text("services:\n  revector:\n    imagine: revector\n")
    assert tool(*command, bad).returncode != 0


def test_image_is_pinned_unprivileged_and_asks_for_its_health() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert set(bases) == {"python:3.12-slim"}
    final = DOCKERFILE.rpartition("FROM ")[2]
    assert re.search(r"^USER (?!0|root)\d+:\d+$", final, re.M)
    assert 'ENTRYPOINT ["revector"]' in final
    assert "--require-hashes" in DOCKERFILE
    assert "pip wheel --no-deps" in DOCKERFILE
    check = json.loads(re.findall(r"CMD (\[.*\])", final)[0])
    assert check == ["revector", "health"]
    assert "health" in {words[0] for words in commands(build())}
    port = Settings.model_fields["http"].get_default().address[1]
    assert f"EXPOSE {port}" in final


def test_build_sends_what_the_image_copies_and_nothing_else() -> None:
    sent = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {
        source.removeprefix("./")
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    }
    assert sent == copied
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("name", ["requirements.txt", "build-requirements.txt"])
def test_requirements_have_hashes_and_no_addresses(name: str) -> None:
    lines = (DOCKER / name).read_text().splitlines()
    assert [line for line in lines if "://" in line or "index" in line] == []
    pinned = [n for n, line in enumerate(lines) if re.match(r"[a-z0-9][\w.-]*==", line)]
    assert pinned
    assert all("--hash=sha256:" in lines[n + 1] for n in pinned)


def test_compose_binds_loopback_and_keeps_secrets_in_files() -> None:
    document = compose()
    for service in document["services"].values():
        assert all(LOOPBACK.fullmatch(port) for port in service.get("ports", []))
        names = [key for key in service.get("environment", {}) if re.search("PASSWORD|KEY|SECRET", key)]
        assert all(name.endswith("_FILE") for name in names)
    assert all(set(secret) == {"file"} for secret in document["secrets"].values())
    used = {secret for service in document["services"].values() for secret in service.get("secrets", [])}
    assert used == set(document["secrets"])


def test_compose_runs_revector_on_a_read_only_root_and_waits_for_its_drain() -> None:
    revector = compose()["services"]["revector"]
    assert revector["read_only"] is True
    assert revector["cap_drop"] == ["ALL"]
    assert int(revector["stop_grace_period"].removesuffix("s")) > DRAIN_S
    listen = revector["environment"]["REVECTOR_HTTP_LISTEN"]
    assert revector["ports"][0].rpartition(":")[2] == listen.rpartition(":")[2]


def test_example_configuration_fits_its_compose_file() -> None:
    found, services = settings(), compose()["services"]
    hosts = {str(found.source.dsn.get("host")), str(found.target.dsn.get("host"))}
    hosts |= {found.kafka.properties["bootstrap.servers"].split(":")[0], found.connect.url.split("/")[2].split(":")[0]}  # type: ignore[union-attr]
    assert hosts <= set(services)
    assert found.candidate.api_key is not None
    assert Path(str(found.candidate.api_key.file)).name in services["revector"]["secrets"]
    sql = (DOCKER / "source.sql").read_text()
    assert f"CREATE PUBLICATION {found.source.publication} " in sql
    assert all(f"CREATE TABLE {table.source} " in sql for table in found.table)


def test_connector_profile_has_no_problem() -> None:
    found = settings()
    expected = ExpectedConnector(
        name=found.connect.connector,
        slot=found.source.slot,
        publication=found.source.publication,
        message_prefix="revector",
        topic_prefix=found.kafka.topic_prefix,
        database=found.source.dsn.get("dbname"),
        tables={".".join(t.relation): ("id", *t.text_columns, *t.columns) for t in found.table},
    )
    assert connector_problems(profile(), expected) == []
    assert connector_problems({**profile(), "errors.tolerance": "all"}, expected) != []


def test_connector_profile_is_the_sandboxes_and_says_every_rule() -> None:
    ours = profile()
    capture = Capture("host=h port=1 user=u password=p dbname=d", "p", "s")
    for key, value in debezium_profile(capture).items():
        if not PLACES.fullmatch(key) and not SIZES.fullmatch(key):
            assert ours.get(key) == value, key
    assert {rule.key for rule in RULES} - {"unavailable.value.placeholder"} <= set(ours)
    assert ours["database.password"].startswith("${")


def test_every_setting_of_the_profile_is_explained() -> None:
    page = (ROOT / "docs/howto/deploy.md").read_text()
    for rule in RULES:
        if rule.severity == "error" and rule.key != "unavailable.value.placeholder":
            assert rule.key in page, rule.key


def test_worker_commits_offsets_often_and_lets_the_connector_raise_sizes() -> None:
    worker = dict(
        line.split("=", 1) for line in (DOCKER / "connect.properties").read_text().splitlines() if re.match(r"\w", line)
    )
    assert int(worker["offset.flush.interval.ms"]) <= 1000
    assert worker["connector.client.config.override.policy"] == "All"
    assert worker["config.providers"] in profile()["database.password"]


def test_unit_restarts_after_failures_but_not_where_a_person_is_needed() -> None:
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"
    stays = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert stays == {ExitCode.CONFIG, ExitCode.REFUSED}
    assert int(service["TimeoutStopSec"]) > DRAIN_S
    assert int(service["WatchdogSec"]) > 0
    assert service["ExecStart"].endswith("/revector run")


def test_unit_gives_the_process_nothing_to_write_and_its_secrets_as_credentials() -> None:
    service = unit()["Service"]
    assert service["ProtectSystem"] == "strict"
    assert service["DynamicUser"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    names = {line.split(":")[0] for line in re.findall(r"^LoadCredential=(.+)$", UNIT, re.M)}
    assert names == {"provider_key", "pgpass"}
    assert "PGPASSFILE=%d/pgpass" in UNIT
