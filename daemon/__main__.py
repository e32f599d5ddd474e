"""The composition root: joins the command line with the connectors. The only importer of `connectors`.

A connector is imported when a command first asks for it: `revector check` loads no driver, and a missing system
library is found by the command that needs it. Ctrl-C while the program itself is still being imported ends it like
any other: `main` imports the command line, so that it can answer for that.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import daemon

if TYPE_CHECKING:
    from connectors.connect_rest import ConnectRest
    from daemon import config
    from daemon.core.contract import Contract
    from daemon.core.model import Table
    from daemon.ports import Capture, ChangeFeed, Decoder, Embedder, Groundwork, Indexes, Source, Target, Tokenizer
    from daemon.settings import Settings
    from daemon.settings_generation import GenerationSettings


class ConnectorParts:
    """Implements `daemon.parts.Parts` with the connectors. Each call makes one of its own; secrets are read anew."""

    def __init__(self, loaded: config.Loaded) -> None:
        self._loaded = loaded

    @property
    def settings(self) -> Settings:
        return self._loaded.settings

    def source(self, role: str) -> Source:
        from connectors.postgres_source import PostgresSource

        s = self.settings
        return PostgresSource(s.source.dsn.reveal(), s.source.slot, s.source.publication, s.application_name(role))

    def target(self, role: str) -> Target:
        from connectors.postgres_target import PostgresTarget

        s = self.settings
        return PostgresTarget(s.target.dsn.reveal(), s.name, s.application_name(role), s.limits.lease_s)

    def indexes(self, role: str) -> Indexes:
        from connectors.postgres_indexes import PostgresIndexes

        s = self.settings
        return PostgresIndexes(s.target.dsn.reveal(), s.name, s.application_name(role))

    def feed(self, role: str) -> ChangeFeed:
        from connectors.debezium import message_topic, table_topic
        from connectors.kafka_feed import KafkaFeed

        s, prefix = self.settings, self.settings.kafka.topic_prefix
        topics = [table_topic(prefix, *table.relation) for table in s.table]
        return KafkaFeed(self._kafka_properties(), topics, message_topic(prefix), s.group_id, s.client_id(role))

    def groundwork(self, role: str) -> Groundwork:
        from connectors.debezium import message_topic, table_topic
        from connectors.groundwork import SESSION, PartsGroundwork
        from connectors.kafka_topics import KafkaTopics
        from connectors.postgres_session import Session
        from daemon.core.profile import heartbeat_topic

        s, prefix = self.settings, self.settings.kafka.topic_prefix
        name = s.application_name(role)
        single = [message_topic(prefix), heartbeat_topic(prefix)]
        topics = [*(table_topic(prefix, *table.relation) for table in s.table), *single]
        return PartsGroundwork(
            (
                Session(s.source.dsn.reveal(), name, "source", SESSION),
                Session(s.target.dsn.reveal(), name, "target", SESSION),
            ),
            KafkaTopics({**self._kafka_properties(), "client.id": s.client_id(role)}, topics),
            self._connect(),
            single,
        )

    def capture(self, role: str) -> Capture:
        return self._connect()

    def _connect(self) -> ConnectRest:
        from connectors.connect_rest import ConnectRest

        c = self.settings.connect
        password = None if c.password is None else self._loaded.reveal(c.password, "connect.password")
        return ConnectRest(c.url, c.connector, c.username, password)

    def embedder(self, generation: GenerationSettings) -> Embedder:
        g = generation
        place = f"generation[{self.settings.generation.index(g)}]"
        if g.provider == "local":
            from connectors.local_embedder import LocalEmbedder

            return LocalEmbedder(g.model, g.dimensions, g.normalised, place)
        from connectors.openai_embedder import AzureEmbedder, OpenAIEmbedder

        made = AzureEmbedder if g.provider == "azure" else OpenAIEmbedder
        api_key = None if g.api_key is None else self._loaded.reveal(g.api_key, f"{place}.api_key")
        return made(g.base_url, api_key, g.model, g.dimensions, g.limits.request_timeout_s, g.normalised)

    def tokenizer(self, generation: GenerationSettings) -> Tokenizer:
        from connectors import tokenizers

        return tokenizers.load(generation.tokenizer, self._loaded.path.parent)

    def contract(self, generation: GenerationSettings) -> Contract:
        is_cut = generation.chunk_tokens is not None
        return self.settings.contract_of(generation, self.tokenizer(generation).identity if is_cut else "")

    def decoder(self, tables: Sequence[Table], epoch: int) -> Decoder:
        from connectors.debezium import DebeziumDecoder

        s = self.settings
        return DebeziumDecoder(s.kafka.topic_prefix, s.name, tables, epoch)

    def _kafka_properties(self) -> dict[str, str]:
        return {
            key: value if isinstance(value, str) else self._loaded.reveal(value, f'kafka.properties."{key}"')
            for key, value in self.settings.kafka.properties.items()
        }


def main() -> None:
    """Run the command line of this process and leave with its exit code."""
    try:
        code = _run()
    except KeyboardInterrupt:
        from daemon.cli import frame

        code = frame.interrupted(frame.Frame(parts=ConnectorParts, environ={}), sys.argv[1:])
    sys.exit(code)


def _run() -> int:
    from daemon import config
    from daemon.cli import app, frame
    from daemon.errors import RevectorError
    from daemon.installation import require_own_package

    signal.signal(signal.SIGTERM, frame.ended_by_signal)
    # What a driver logs says the same as the error that follows; `run` and its like set up logging of their own.
    logging.getLogger().addHandler(logging.NullHandler())
    here = frame.Frame(parts=ConnectorParts, environ=config.environment())
    try:
        require_own_package(Path(str(daemon.__file__)))
    except RevectorError as error:
        here.speak(is_json="--json" in sys.argv)
        here.out.failure(error)
        return error.exit_code
    return frame.run(app.build(), sys.argv[1:], here)


if __name__ == "__main__":
    main()
