"""What a migration stands on and does not own: publication, topics, connector, extension; and who may do what there.

`init --apply` makes through this port what `core.groundwork` found absent; `doctor` asks it about roles and grants.
Nothing that runs for weeks uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from daemon.core.connector_role import ConnectorRole
from daemon.core.groundwork import Action
from daemon.core.setup import TopicSetup

Columns = Mapping[tuple[str, str], Sequence[str]]


class Groundwork(Protocol):
    """The parts' owner's side. Durable when a method returns."""

    async def topics(self) -> tuple[tuple[TopicSetup, ...], tuple[TopicSetup, ...]]:
        """The tables' topics; then those of one partition, of messages and heartbeats. Existing or not."""
        ...

    async def unreadable(self, tables: Columns) -> Columns:
        """Of these tables' columns those that revector's role may not read at the source. A table whose rows a policy
        would hide has the column `*`; one that does not exist is left out."""
        ...

    async def connector_role(self, name: str, database: str) -> ConnectorRole | None:
        """A role of the source, and what its sessions in `database` start with; None where there is none."""
        ...

    async def make(self, action: Action) -> None:
        """Carry out; what exists is left alone, so it may be repeated. `AwaitSlot` is nobody's: refused.
        Raises ConfigError: a part does not accept it."""
        ...

    async def close(self) -> None: ...
