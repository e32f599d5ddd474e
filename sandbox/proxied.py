"""A sandbox with a proxy on every way: what stands between revector and its parts, and between Connect and its own.

    with Proxied(sandbox) as proxied:
        Choice(source_dsn=proxied.source_dsn(dsn), target_dsn=…, ways=proxied.ways, …)
        capture_tables(sandbox, dsn, …, overrides=proxied.capture)
        proxied.target.half_open()

The broker has a listener for each of its two proxies: a client goes where the broker tells it to go. Connect's own
topics stay on the direct way; the connector's records and its replication connection go through the proxies.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

from psycopg.conninfo import make_conninfo

from sandbox.config import Ways
from sandbox.proxy import HOST, Proxy
from sandbox.stack import CAPTURE_DOOR, PRODUCT_DOOR, Sandbox


class Proxied:
    """The proxies of one sandbox, all healthy. One at a time: the broker's are fixed ports."""

    def __init__(self, sandbox: Sandbox, provider_port: int | None = None) -> None:
        """provider_port: of another provider than the sandbox's own."""
        doors = sandbox.broker.doors

        def before(port: int) -> Proxy:
            return Proxy(sandbox.take_port(), port)

        self.source = before(sandbox.source.port)
        self.target = before(sandbox.target.port)
        self.broker = Proxy(doors[PRODUCT_DOOR].proxy_port, doors[PRODUCT_DOOR].port)
        self.connect = before(sandbox.connect.port)
        self.provider = before(provider_port or sandbox.embeddings.port)
        self.capture_source = before(sandbox.source.port)
        self.capture_broker = Proxy(doors[CAPTURE_DOOR].proxy_port, doors[CAPTURE_DOOR].port)
        self._started = ExitStack()

    @property
    def all(self) -> dict[str, Proxy]:
        """Every proxy by name."""
        return {
            "source": self.source,
            "target": self.target,
            "broker": self.broker,
            "connect": self.connect,
            "provider": self.provider,
            "capture_source": self.capture_source,
            "capture_broker": self.capture_broker,
        }

    @property
    def ways(self) -> Ways:
        """For the config file."""
        return Ways(self.broker.address, f"http://{self.connect.address}", f"http://{self.provider.address}/v1")

    def source_dsn(self, dsn: str) -> str:
        """The same database of the source, through the proxy."""
        return _through(dsn, self.source)

    def target_dsn(self, dsn: str) -> str:
        """The same database of the target, through the proxy."""
        return _through(dsn, self.target)

    @property
    def capture(self) -> dict[str, str]:
        """Settings of a connector that reads the source and writes to the broker through the proxies."""
        return {
            "database.hostname": HOST,
            "database.port": str(self.capture_source.port),
            "producer.override.bootstrap.servers": self.capture_broker.address,
        }

    def heal(self) -> None:
        """End every lasting fault."""
        for proxy in self.all.values():
            proxy.heal()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for proxy in self.all.values():
                started.enter_context(proxy)
            self._started = started.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._started.close()


def _through(dsn: str, proxy: Proxy) -> str:
    return make_conninfo(dsn, host=HOST, port=proxy.port)
