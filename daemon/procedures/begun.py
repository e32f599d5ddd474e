"""Whether there is a migration to work on: what every command asks that needs one."""

from __future__ import annotations

from daemon.errors import NotBegun
from daemon.ports import Target


async def require_schema(target: Target, migration: str) -> None:
    """Raises NotBegun: the target has no control schema, so nothing has begun."""
    if (await target.setup()).schema_version is None:
        raise not_begun(migration)


def not_begun(migration: str, generation: str | None = None) -> NotBegun:
    """The target does not know the migration, or not with that generation."""
    if generation is None:
        message, hint = f"the target knows no migration {migration}", f"start it with `revector run {migration}`"
    else:
        message = f"the target knows no migration {migration} with a generation {generation}"
        hint = f"start it with `revector run {migration}`, or see `revector generation list {migration}`"
    return NotBegun("migration-unknown", message, hint)
