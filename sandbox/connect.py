"""Kafka Connect with Debezium: the worker, one connector's life over REST, and the connector profile.

`debezium_profile` is the profile that the product's guide recommends and its checks accept; a test that wants another
passes overrides.
"""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from sandbox.kafka import LARGEST_MESSAGE_BYTES, java_command
from sandbox.parts import Part, wait_until
from sandbox.processes import Guardian, Program, SandboxError
from sandbox.programs import jars

WORKER = """\
bootstrap.servers={kafka}
group.id=revector-connect
key.converter=org.apache.kafka.connect.json.JsonConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
key.converter.schemas.enable=false
value.converter.schemas.enable=false
offset.storage.topic=connect-offsets
config.storage.topic=connect-configs
status.storage.topic=connect-status
offset.storage.replication.factor=1
config.storage.replication.factor=1
status.storage.replication.factor=1
offset.storage.partitions=1
status.storage.partitions=1
offset.flush.interval.ms=500
listeners=http://127.0.0.1:{port}
rest.advertised.host.name=127.0.0.1
plugin.path={plugins}
plugin.discovery=SERVICE_LOAD
connector.client.config.override.policy=All
topic.creation.enable=true
producer.max.request.size={largest}
scheduled.rebalance.max.delay.ms=0
task.shutdown.graceful.timeout.ms=3000
"""


class ConnectWorker(Part):
    """The worker; its REST endpoint is at `url`."""

    def __init__(self, guardian: Guardian, port: int, kafka: str, folder: Path, log: Path) -> None:
        self._folder = folder
        self._properties = folder / "connect.properties"
        self._text = WORKER.format(kafka=kafka, port=port, plugins=jars() / "plugins", largest=LARGEST_MESSAGE_BYTES)
        main = "org.apache.kafka.connect.cli.ConnectDistributed"
        super().__init__(guardian, Program("connect", java_command(main, self._properties, heap_mb=768), log), port)
        self.url = f"http://127.0.0.1:{port}"

    def initialise(self) -> None:
        """Write its settings."""
        self._folder.mkdir()
        self._properties.write_text(self._text)

    def not_ready(self) -> str | None:
        """It has to have read its settings topics and joined its group."""
        if (reason := super().not_ready()) is not None:
            return reason
        try:
            request(f"{self.url}/health", timeout_s=5)
        except ConnectRefused as error:
            return str(error)
        return None

    def connector(self, name: str) -> "Connector":
        """The connector of that name, registered or not."""
        return Connector(self.url, name)


class ConnectRefused(SandboxError):
    """Connect answered with an error, or not at all (`status` 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def request(url: str, method: str = "GET", body: object = None, timeout_s: float = 30) -> Any:
    """One REST call; the decoded answer, None if it has no body. Raises ConnectRefused."""
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(call, timeout=timeout_s) as response:
            text = response.read()
    except urllib.error.HTTPError as error:
        with error:
            message = error.read().decode(errors="replace")
        raise ConnectRefused(error.code, f"{method} {url}: {error.code} {message[:500]}") from None
    except OSError as error:
        raise ConnectRefused(0, f"{method} {url}: {error}") from None
    return json.loads(text) if text else None


@dataclass(frozen=True)
class Connector:
    """One connector, over Connect's REST interface."""

    connect_url: str
    name: str

    @property
    def url(self) -> str:
        """Its address."""
        return f"{self.connect_url}/connectors/{self.name}"

    def register(self, config: Mapping[str, str]) -> None:
        """Create it or change its settings; returns when Connect has taken them, not when it runs."""
        self._insist("PUT", f"{self.url}/config", dict(config))

    def pause(self) -> None:
        """Stop its task from reading, keep it."""
        self._insist("PUT", f"{self.url}/pause")

    def resume(self) -> None:
        """Let it read again, from `pause` or `stop`."""
        self._insist("PUT", f"{self.url}/resume")

    def stop(self) -> None:
        """End its task and free the slot; keep settings and offsets."""
        self._insist("PUT", f"{self.url}/stop")

    def restart_task(self) -> None:
        """Restart its only task."""
        self._insist("POST", f"{self.url}/tasks/0/restart")

    def delete(self) -> None:
        """Remove it; its offsets stay in Connect. Absent is fine."""
        try:
            self._insist("DELETE", self.url)
        except ConnectRefused as error:
            if error.status != 404:
                raise

    def status(self) -> dict[str, Any]:
        """What Connect says about it and its task."""
        answer: dict[str, Any] = request(f"{self.url}/status")
        return answer

    def config(self) -> dict[str, str]:
        """Its settings as Connect holds them."""
        answer: dict[str, str] = request(f"{self.url}/config")
        return answer

    def offsets(self) -> list[dict[str, Any]]:
        """Its committed source offsets, one object per source partition; empty before the first flush."""
        answer: list[dict[str, Any]] = request(f"{self.url}/offsets")["offsets"]
        return answer

    def forget_offsets(self) -> None:
        """Delete its committed source offsets; it is stopped."""
        self._insist("DELETE", f"{self.url}/offsets")

    def wait_running(self, timeout_s: float = 60) -> None:
        """Return when connector and task are RUNNING. Raises SandboxError: failed, with the cause; or the deadline.

        The task connects to the source a moment later: `Postgres.wait_slot_active` says when it streams.
        """

        def question() -> str | None:
            try:
                status = self.status()
            except ConnectRefused as error:
                return str(error)
            for part in (status["connector"], *status["tasks"]):
                if part["state"] == "FAILED":
                    raise SandboxError(f"connector {self.name} failed:\n{_causes(part.get('trace', ''))}")
            states = [status["connector"]["state"], *(task["state"] for task in status["tasks"])]
            return None if len(states) > 1 and set(states) == {"RUNNING"} else f"states {states}"

        wait_until(question, f"connector {self.name}", timeout_s)

    def _insist(self, method: str, url: str, body: object = None, timeout_s: float = 60) -> None:
        """Repeat while Connect is busy with a rebalance, which it says with 409."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                request(url, method, body)
                return
            except ConnectRefused as error:
                is_absent = error.status == 409 and "not found" in str(error)
                if error.status not in {409, 500, 503} or is_absent or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


def _causes(trace: str) -> str:
    """A Java trace without its frames."""
    lines = [line for line in trace.splitlines() if not line.startswith("\t")]
    return "\n".join(f"  | {line[:400]}" for line in lines)


@dataclass(frozen=True)
class Capture:
    """What a connector reads: a database, through a slot and a publication, as `<prefix>.<schema>.<table>` topics.

    tables: `schema.table`; columns: `schema.table.column`; empty means all of the publication.
    """

    dsn: str
    prefix: str
    slot: str
    publication: str = "revector"
    tables: Sequence[str] = field(default_factory=tuple)
    columns: Sequence[str] = field(default_factory=tuple)
    partitions: int = 3


def debezium_profile(capture: Capture, overrides: Mapping[str, str] | None = None) -> dict[str, str]:
    """The settings of a connector that revector can prove things about."""
    source = conninfo_to_dict(capture.dsn)
    profile = {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "database.hostname": str(source["host"]),
        "database.port": str(source["port"]),
        "database.user": str(source["user"]),
        "database.password": str(source["password"]),
        "database.dbname": str(source["dbname"]),
        "topic.prefix": capture.prefix,
        "plugin.name": "pgoutput",
        "slot.name": capture.slot,
        "slot.drop.on.stop": "false",
        "publication.name": capture.publication,
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "skipped.operations": "none",
        "tombstones.on.delete": "true",
        "provide.transaction.metadata": "false",
        "heartbeat.interval.ms": "500",
        "retriable.restart.connector.wait.ms": "1000",
        "slot.retry.delay.ms": "1000",
        "slot.max.retries": "60",
        "message.prefix.include.list": "revector",
        "lsn.flush.mode": "connector",
        "decimal.handling.mode": "string",
        "time.precision.mode": "isostring",
        "event.processing.failure.handling.mode": "fail",
        "errors.tolerance": "none",
        "poll.interval.ms": "20",
        "producer.override.max.request.size": str(LARGEST_MESSAGE_BYTES),
        "topic.creation.default.partitions": str(capture.partitions),
        "topic.creation.default.replication.factor": "1",
        "topic.creation.default.cleanup.policy": "delete",
        "topic.creation.default.retention.ms": "-1",
        "topic.creation.default.max.message.bytes": str(LARGEST_MESSAGE_BYTES),
        "key.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
        "value.converter.replace.null.with.default": "false",
    }
    if capture.tables:
        profile["table.include.list"] = ",".join(capture.tables)
    if capture.columns:
        profile["column.include.list"] = ",".join(capture.columns)
    return profile | dict(overrides or {})
