"""librdkafka's connections and its own voice: log lines and connection errors of one handle.

Its lines go to Python's logger `librdkafka`. While a broker is away it repeats itself several times a second: a line
that only differs in its timing passes once per `REPEAT_S`. Its connection errors are told by callback, apart from any
request; the last one is kept until somebody asks, a refused credential before "all brokers down", which follows it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from confluent_kafka import KafkaError

# Used where the properties say nothing: a broker that comes back is found in two seconds, not in ten, and one that was
# forgotten by the network in ten, not in sixty. Within this time a fetch of all partitions has to arrive.
CONNECTION: Mapping[str, str] = {
    "socket.keepalive.enable": "true",
    "socket.timeout.ms": "10000",
    "socket.connection.setup.timeout.ms": "5000",
    "reconnect.backoff.max.ms": "2000",
}

REPEAT_S = 30.0
REFUSED = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.UNSUPPORTED_SASL_MECHANISM}
AWAY = {KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._SSL}


def connection(properties: Mapping[str, str]) -> dict[str, object]:
    """The properties, and ours where they say nothing. librdkafka refuses a first wait beyond the longest one."""
    left = {"reconnect.backoff.max.ms"} if "reconnect.backoff.ms" in properties else set()
    return {**{name: value for name, value in CONNECTION.items() if name not in left}, **properties}


class KafkaLog:
    """Takes the place of a `logging.Logger` for confluent-kafka, which calls `log` only."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("librdkafka")
        self._passed: dict[str, float] = {}
        self._error: KafkaError | None = None

    def log(self, level: int, format: str, *values: object) -> None:
        """Pass a line on, unless an equal one passed lately."""
        line = (format % values) if values else format
        words = line.split(" (after ")[0]
        now = time.monotonic()
        if now - self._passed.get(words, -REPEAT_S) >= REPEAT_S:
            self._passed = {kept: at for kept, at in self._passed.items() if now - at < REPEAT_S} | {words: now}
            self._logger.log(level, "%s", line)

    def note(self, error: KafkaError) -> None:
        """`error_cb`."""
        is_refused = self._error is not None and self._error.code() in REFUSED
        if error.code() in REFUSED or (not is_refused and (error.code() in AWAY or error.fatal())):
            self._error = error

    def take_error(self) -> KafkaError | None:
        """The connection error since the last call, if any."""
        error, self._error = self._error, None
        return error
