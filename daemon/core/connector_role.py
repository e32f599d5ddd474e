"""The connector's role at the source: may it replicate, is there room for its slot, how do its sessions print values?

Debezium reads the log as the role of its `database.user`. Floats and bytea arrive as the text that this session
prints, so two settings of the role (or its database, or the server) decide whether an event and a page have one form:
`extra_float_digits` (seen on Debezium 3.7.0: below 1 floats arrive rounded) and `bytea_output` (not hex: the task
fails, also at a column that is not used). Pure: the adapter reads, `doctor` asks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from daemon.core.grants import quoted
from daemon.core.setup import SlotState
from daemon.errors import Problem

FLOATS = ("real", "double precision")


@dataclass(frozen=True, slots=True)
class ConnectorRole:
    """A role as the source has it. settings: what a session of it in the connector's database starts with."""

    may_replicate: bool
    settings: Mapping[str, str]
    slots_used: int
    slots_limit: int
    senders_used: int
    senders_limit: int


def role_problems(
    name: str, role: ConnectorRole | None, slot: SlotState, used: Collection[str], captured: Collection[str]
) -> Iterator[Problem]:
    """used: types of the used columns, captured: of all columns of the tables; a setting that none of them depends on
    is no problem. role None: there is none."""
    place = f"role {name}"
    if role is None:
        hint = "correct database.user of the connector"
        yield Problem("connector-role-missing", place, "the source has no role of the connector's name", hint)
        return
    if not role.may_replicate and not slot.active:
        message = "may not replicate, so the connector cannot read the log"
        yield Problem("connector-replication", place, message, f"ALTER ROLE {quoted(name)} REPLICATION;")
    yield from _session_problems(name, role, used, captured)
    if not slot.exists and role.slots_used >= role.slots_limit:
        message = (
            f"{role.slots_used} of {role.slots_limit} replication slots exist: there is none left for the connector"
        )
        hint = "drop a slot that nobody needs, or raise max_replication_slots and restart the source"
        yield Problem("replication-slots-full", "source", message, hint, "warning")
    if not slot.active and role.senders_used >= role.senders_limit:
        message = (
            f"{role.senders_used} of {role.senders_limit} WAL senders are in use: there is none left for the connector"
        )
        hint = "raise max_wal_senders and restart the source"
        yield Problem("wal-senders-full", "source", message, hint, "warning")


def _session_problems(
    name: str, role: ConnectorRole, used: Collection[str], captured: Collection[str]
) -> Iterator[Problem]:
    place = f"role {name}"
    then = "; then restart the connector, before the migration begins"
    digits = role.settings.get("extra_float_digits", "1")
    if int(digits) < 1 and any(t.startswith(FLOATS) for t in used):
        message = f"its sessions have extra_float_digits = {digits}: floats in events are rounded"
        hint = f"ALTER ROLE {quoted(name)} SET extra_float_digits = 1;{then}"
        yield Problem("connector-session", place, message, hint)
    output = role.settings.get("bytea_output", "hex")
    if output != "hex" and any(t.startswith("bytea") for t in captured):
        message = f"its sessions have bytea_output = {output}: Debezium's task fails at the first bytea"
        hint = f"ALTER ROLE {quoted(name)} SET bytea_output = 'hex';{then}"
        yield Problem("connector-session", place, message, hint)
