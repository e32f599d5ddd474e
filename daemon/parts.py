"""What a command is handed: the settings, and one factory per outside system.

Each call makes a connection of its own, opened when it is first used; whoever asked closes it. `role` names the loop
for `application_name` and `client.id`. `daemon.__main__` builds the real one from connectors, tests one from twins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from daemon.core.model import Table
from daemon.ports import Capture, ChangeFeed, Decoder, Embedder, Indexes, Source, Target
from daemon.settings import Settings


class Parts(Protocol):
    """Factories of one migration."""

    @property
    def settings(self) -> Settings: ...
    def source(self, role: str) -> Source: ...
    def target(self, role: str) -> Target: ...
    def feed(self, role: str) -> ChangeFeed: ...
    def capture(self, role: str) -> Capture: ...
    def embedder(self) -> Embedder: ...
    def indexes(self, role: str) -> Indexes: ...
    def decoder(self, tables: Sequence[Table], epoch: int) -> Decoder: ...
