"""From the source's tables to Kafka's topics: what an operator sets up once before revector starts.

Topics first, with fixed partitions (a quiet table has none otherwise), then slot and connector. One `Pipeline` may be
set up per prefix; the corpus has the one named here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from confluent_kafka.admin import AdminClient, NewTopic

from sandbox.connect import Capture, Connector, debezium_profile
from sandbox.corpus import PUBLICATION, TABLES
from sandbox.kafka import LARGEST_MESSAGE_BYTES
from sandbox.postgres import Postgres
from sandbox.stack import Sandbox

PREFIX = "shop"
PARTITIONS = 3


@dataclass(frozen=True)
class Pipeline:
    """A running connector and what it feeds. The connector has the prefix's name, the slot too."""

    connector: Connector
    capture: Capture

    @property
    def topics(self) -> list[str]:
        """The data topics, one per table."""
        return [f"{self.capture.prefix}.{table}" for table in self.capture.tables]


def capture_tables(
    sandbox: Sandbox,
    dsn: str | None = None,
    prefix: str = PREFIX,
    tables: Sequence[str] = TABLES,
    overrides: Mapping[str, str] | None = None,
    cluster: Postgres | None = None,
) -> Pipeline:
    """Topics, slot and connector for tables of a source database (default: the corpus); streaming when it returns.

    The tables and the publication exist. Every column of them is captured unless `overrides` says otherwise. cluster:
    that `dsn` is in, default: the sandbox's source.
    """
    capture = Capture(dsn or sandbox.source_dsn, prefix, prefix, PUBLICATION, tables, partitions=PARTITIONS)
    pipeline = Pipeline(sandbox.connector(prefix), capture)
    create_topics(sandbox.broker.admin(), dict.fromkeys(pipeline.topics, PARTITIONS))
    create_topics(sandbox.broker.admin(), {f"{prefix}.message": 1, f"__debezium-heartbeat.{prefix}": 1})
    with psycopg.connect(capture.dsn, autocommit=True) as connection:
        connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [capture.slot])
    pipeline.connector.register(debezium_profile(capture, overrides))
    pipeline.connector.wait_running()
    (cluster or sandbox.source).wait_slot_active(capture.slot)
    return pipeline


def create_topics(admin: AdminClient, partitions: Mapping[str, int]) -> None:
    """Create topics that keep every message and take large ones; returns when the broker has them."""
    settings = {"cleanup.policy": "delete", "retention.ms": "-1", "max.message.bytes": str(LARGEST_MESSAGE_BYTES)}
    topics = [NewTopic(name, count, 1, config=settings) for name, count in partitions.items()]
    for future in admin.create_topics(topics).values():
        future.result(timeout=30)
