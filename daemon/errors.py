"""What can go wrong, sorted by what must happen next.

Every error carries a stable kebab-case `id` (the same word in text, JSON, metrics and docs), a message that names
operation, key or position, and a `hint` that says what to do. The class decides the rest: retry, halt, exit code.
Messages never carry row text, a provider's prose or a secret.

Adapters translate their driver's errors into these in one place each; nothing above an adapter sees a driver error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

Shown = TypeVar("Shown", bound="RevectorError")


class RevectorError(Exception):
    """Base of all errors that are meant for a person. `exit_code` is what a command returns for it."""

    exit_code = 1

    def __init__(self, id: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.id = id
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a configuration or of a part's set-up.

    where: "file:line key", or the part it was found in ("source", "connector shop"). severity is "error" or "warning".
    """

    id: str
    where: str
    message: str
    hint: str
    severity: str = "error"


def first_of(group: BaseExceptionGroup[Shown]) -> Shown:
    """One error of a group, for a person: what several loops met at once is mostly the same."""
    for error in group.exceptions:
        return first_of(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("an exception group is never empty")


class ConfigError(RevectorError):
    """The configuration, or the set-up of a part it names, cannot work. Carries all problems found at once."""

    exit_code = 78

    def __init__(self, problems: list[Problem]) -> None:
        first = problems[0]
        super().__init__(first.id, f"{first.where}: {first.message}", first.hint)
        self.problems = problems


class TransientError(RevectorError):
    """A part is away or throttles: retry with backoff, not before `retry_after_s` where the part named a time."""

    exit_code = 69

    def __init__(self, id: str, message: str, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(id, message, hint)
        self.retry_after_s = retry_after_s


class PermissionRefused(RevectorError):
    """A part refuses us: wrong password, missing grant, missing ACL. Retrying cannot help."""

    exit_code = 77


class ItemRefused(RevectorError):
    """The provider refuses this request's content. `status`, `code`, `param` only: providers echo input in prose."""

    def __init__(self, status: int, code: str | None, param: str | None) -> None:
        super().__init__(
            "item-refused",
            f"provider refused the input: status {status}, code {code or 'none'}, param {param or 'none'}",
            "see `revector quarantine list`; the entry counts as refused until the row changes",
        )
        self.status, self.code, self.param = status, code, param


class ProviderWrong(RevectorError):
    """The provider's answer cannot be right (count, order, dimension, non-finite, zero vector): nothing is stored."""


class StrangeAnswer(ProviderWrong):
    """One answer cannot be right. A single one may be an accident on the way; several in a row are the provider."""


REALIGN = "revector realign {migration}"  # shows what would be skipped; takes nothing without --confirm


class Halt(RevectorError):
    """Going on could lose data: stop, keep answering status, wait for a person. `command`: what goes on from there
    once the cause is mended, `{migration}` in it; None where a start of the process is enough."""

    command: str | None = None


class UndecodableEvent(Halt):
    """A record is not what the connector profile produces."""

    command = REALIGN


class SchemaChanged(Halt):
    """A used column, a key or a type is not what it was at the start."""


class OffsetsGone(Halt):
    """The offsets that come next are no longer in Kafka."""

    command = REALIGN


class IdentityChanged(Halt):
    """Source, slot, Kafka cluster, topic or partition count is another one than at the start."""

    command = REALIGN


class ProgramOutdated(Halt):
    """A newer program has changed the control schema: nothing is written any more that could mean something else."""

    exit_code = 78


def outdated(version: int, known: int) -> ProgramOutdated:
    """version: of the control schema in the target; known: the newest one of this program."""
    message = f"target: its control schema is version {version}, this program knows {known}"
    return ProgramOutdated("schema-newer", message, "use the newer revector in every process, and for every command")


class LeaseLost(RevectorError):
    """Another process owns the stream: drop everything in memory, stand by."""

    exit_code = 75


class HeldElsewhere(RevectorError):
    """Somebody else holds what this command needs."""

    exit_code = 75


class WaitTimedOut(RevectorError):
    """The deadline passed before what was waited for."""

    exit_code = 4


class StepRefused(RevectorError):
    """A step that an operator asked for must not be taken as things are; nothing was done."""

    exit_code = 3


class NotBegun(RevectorError):
    """The migration has no state in the target yet, so there is nothing to look at."""

    exit_code = 3
