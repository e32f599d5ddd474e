"""Kafka as one process, broker and controller at once; messages up to 16 MB, kept until the sandbox ends.

Topics are never created by accident: Connect creates its own and those of connectors, everything else is asked for.
"""

import base64
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from sandbox.parts import Part
from sandbox.processes import Guardian, Program
from sandbox.programs import JARS, jars, java

LARGEST_MESSAGE_BYTES = 16 * 1024 * 1024  # a document of several MB is one message

SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}{doors}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{advertised}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
num.partitions=3
auto.create.topics.enable=false
message.max.bytes={largest}
replica.fetch.max.bytes={largest}
log.retention.ms=-1
log.retention.bytes=-1
log.segment.bytes=268435456
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
"""


def java_command(main: str, *arguments: str | Path, heap_mb: int) -> list[str | Path]:
    """A command line that runs one of Kafka's programs."""
    return [
        java(),
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        # Half the processor time up to the first 100 000 events, which is as long as a sandbox mostly lives.
        "-XX:TieredStopAtLevel=1",
        f"-Dlog4j2.configurationFile={JARS / 'log4j2.properties'}",
        "-cp",
        f"{jars() / 'kafka'}/*",
        main,
        *arguments,
    ]


@dataclass(frozen=True)
class Door:
    """One more listener of the broker, whose clients are told to come to `proxy_port`."""

    name: str
    port: int
    proxy_port: int


class Broker(Part):
    """The broker; clients reach it at `address`, or through the proxy before one of its `doors`."""

    def __init__(
        self, guardian: Guardian, ports: tuple[int, int], folder: Path, log: Path, doors: Sequence[Door] = ()
    ) -> None:
        """ports: for clients, for the controller."""
        port, controller_port = ports
        self._folder = folder
        self.doors = {door.name: door for door in doors}
        self._properties = folder / "server.properties"
        self._text = SERVER.format(
            port=port,
            controller_port=controller_port,
            data=folder / "data",
            largest=LARGEST_MESSAGE_BYTES,
            doors="".join(f",{door.name}://127.0.0.1:{door.port}" for door in doors),
            advertised="".join(f",{door.name}://127.0.0.1:{door.proxy_port}" for door in doors),
            protocols="".join(f",{door.name}:PLAINTEXT" for door in doors),
        )
        super().__init__(
            guardian, Program("kafka", java_command("kafka.Kafka", self._properties, heap_mb=512), log), port
        )
        self.address = f"127.0.0.1:{port}"

    def initialise(self) -> None:
        """Format its storage."""
        self._folder.mkdir()
        self._properties.write_text(self._text)
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        arguments = ("format", f"--cluster-id={cluster}", "-c", self._properties)  # it may begin with a dash
        command = java_command("kafka.tools.StorageTool", *arguments, heap_mb=128)
        self._guardian.run(Program("kafka format", command, self.log))

    def not_ready(self) -> str | None:
        """It has to list its topics."""
        if (reason := super().not_ready()) is not None:
            return reason
        try:
            self.admin().list_topics(timeout=2)
        except KafkaException as error:
            return str(error.args[0].str())
        return None

    def admin(self) -> AdminClient:
        """A client for topics, groups and settings; its connection troubles are not printed."""
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})
