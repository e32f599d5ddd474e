"""The Debezium connector as Kafka Connect's REST interface reports it: `daemon.ports.Capture`.

Five seconds a question, no redirects: the credentials go to the configured address only. Nothing is written but by
`create`, which `init --apply` asks for. What Connect answers is judged elsewhere; here an answer that cannot be read is
"try again", because a worker that starts or rebalances gives such answers for a moment.

Secrets in the connector's configuration are replaced by `***` before anybody sees them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx2
import orjson

from connectors.connect_failures import failure_of
from daemon.errors import ConfigError, PermissionRefused, Problem, TransientError

TIMEOUT_S = 5.0
CREATE_TIMEOUT_S = 30.0  # Connect asks Debezium, which connects to the source, before it answers

# Worst first; what Connect calls RESTARTING or DESTROYED runs nothing either.
STATES = ("failed", "unassigned", "stopped", "paused", "running")

_SECRET = re.compile(r"password|secret|token|credential|jaas|private.key|key\.pem", re.IGNORECASE)
_HINT = "check that Kafka Connect runs and that [connect] url is right"


class ConnectRest:
    """Implements `daemon.ports.Capture`."""

    def __init__(self, url: str, connector: str, username: str | None = None, password: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._connector = connector
        self._path = f"/connectors/{quote(connector, safe='')}"
        self._auth = None if username is None else httpx2.BasicAuth(username, password or "")
        self._client: httpx2.AsyncClient | None = None

    async def committed_lsn(self) -> int | None:
        """`lsn` of `GET /connectors/NAME/offsets` (Kafka 3.6 and later). Of several source partitions, which a changed
        topic.prefix leaves behind, the connector's present one counts."""
        answer = await self._get(f"{self._path}/offsets")
        entries = [] if answer is None else answer.get("offsets") or []
        if len(entries) > 1:
            prefix = (await self.config() or {}).get("topic.prefix")
            entries = [entry for entry in entries if entry["partition"].get("server") == prefix]
        lsns = [entry["offset"]["lsn"] for entry in entries if entry.get("offset") and "lsn" in entry["offset"]]
        return min(lsns, default=None)

    async def config(self) -> dict[str, str] | None:
        """`GET /connectors/NAME/config` without its secrets."""
        answer = await self._get(f"{self._path}/config")
        if answer is None:
            return None
        return {name: "***" if _SECRET.search(name) else str(value) for name, value in answer.items()}

    async def version(self) -> str | None:
        """Version of the plugin that the connector's class comes from; None where several are installed and Connect
        does not say which one runs."""
        config = await self.config()
        plugins = await self._get("/connector-plugins?connectorsOnly=false")
        if config is None or plugins is None:
            return None
        versions = {plugin.get("version") for plugin in plugins if plugin.get("class") == config.get("connector.class")}
        if len(versions) > 1:
            status = await self._get(f"{self._path}/status")
            versions = {None if status is None else status["connector"].get("version")}
        return versions.pop() if versions else None

    async def state(self) -> str:
        """The worst of connector and tasks. A running connector without a task is `unassigned`."""
        answer = await self._get(f"{self._path}/status")
        if answer is None:
            return "absent"
        parts = [answer["connector"], *answer.get("tasks", [])]
        states = {state if (state := str(part["state"]).lower()) in STATES else "unassigned" for part in parts}
        if states == {"running"} and len(parts) == 1:
            return "unassigned"
        return next(state for state in STATES if state in states)

    async def failure(self) -> str | None:
        """Of the first part that failed; None where none did."""
        answer = await self._get(f"{self._path}/status")
        parts = [] if answer is None else [answer["connector"], *answer.get("tasks", [])]
        return next((failure_of(part.get("trace") or "") for part in parts if part["state"] == "FAILED"), None)

    async def create(self, config: Mapping[str, str]) -> None:
        """`POST /connectors`, which never changes an existing one: that is left as it is. Raises ConfigError
        `connector-refused` with the settings that Connect does not accept."""
        plugins = await self._get("/connector-plugins?connectorsOnly=false") or []
        kind = config["connector.class"]
        if all(plugin.get("class") != kind for plugin in plugins):
            hint = "put debezium-connector-postgres 3.7.0.Final or later into a folder of the workers' plugin.path"
            raise ConfigError([self._refused("", f"Kafka Connect has no plugin {kind}", hint)])
        named = {"name": self._connector, **config}
        response = await self._send("POST", "/connectors", {"name": self._connector, "config": dict(config)})
        if response.status_code == 400:
            raise ConfigError(await self._faults(kind, named))
        if response.status_code == 409 and await self.config() is not None:
            return
        if response.status_code != 201:
            raise TransientError("connect-unreachable", _answered("POST", "/connectors", response), _HINT)

    async def _faults(self, kind: str, config: Mapping[str, str]) -> list[Problem]:
        """The settings that `PUT /connector-plugins/…/config/validate` finds fault with: names only, its prose may
        quote values."""
        response = await self._send("PUT", f"/connector-plugins/{kind}/config/validate", dict(config))
        entries = orjson.loads(response.content).get("configs", []) if response.status_code == 200 else []
        names = [entry["value"]["name"] for entry in entries if entry["value"].get("errors")]
        hint = "see the worker's log, or ask its config/validate: database.* means that it cannot work with the source"
        return [self._refused(f" {name}", "Kafka Connect does not accept it", hint) for name in names or ["profile"]]

    def _refused(self, key: str, message: str, hint: str) -> Problem:
        return Problem("connector-refused", f"connector {self._connector}{key}", message, hint)

    async def close(self) -> None:
        """May be called twice; a later question connects again."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _get(self, path: str) -> Any:
        """The answer's JSON, None for 404."""
        response = await self._send("GET", path)
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            raise TransientError("connect-unreachable", _answered("GET", path, response), _HINT)
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise TransientError(
                "connect-unreachable", f"connect: GET {path} did not answer with JSON", _HINT
            ) from error

    async def _send(self, method: str, path: str, body: object = None) -> httpx2.Response:
        """One request; what keeps it from being answered is translated."""
        if self._client is None:
            self._client = httpx2.AsyncClient(auth=self._auth, timeout=TIMEOUT_S, follow_redirects=False)
        timeout_s = TIMEOUT_S if body is None else CREATE_TIMEOUT_S
        content, headers = (None, {}) if body is None else (orjson.dumps(body), {"Content-Type": "application/json"})
        try:
            response = await self._client.request(
                method, self._url + path, content=content, headers=headers, timeout=timeout_s
            )
        except httpx2.TransportError as error:
            reason = "timed out" if isinstance(error, httpx2.TimeoutException) else "no connection"
            raise TransientError("connect-unreachable", f"connect: {method} {path} failed: {reason}", _HINT) from error
        if response.status_code in (401, 403):
            hint = "check username and password under [connect]"
            raise PermissionRefused("password-refused", _answered(method, path, response), hint)
        return response


def _answered(method: str, path: str, response: httpx2.Response) -> str:
    return f"connect: {method} {path} answered {response.status_code}"
