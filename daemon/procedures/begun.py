"""Whether there is a migration to work on: what every command asks that needs one."""

from __future__ import annotations

from daemon.errors import ConfigError, NotBegun, Problem, outdated
from daemon.ports import Target, TargetSetup


async def has_begun(target: Target) -> bool:
    """Whether the migration has a recorded start. What changed around it since is for identity check and continuity:
    a daemon that comes back while its provider or connector is away must replicate all the same."""
    if (await target.setup()).schema_version is None:
        return False
    async with target.begin() as tx:
        return (await tx.ledger.load()).started


async def require_schema(target: Target, migration: str) -> None:
    """Raises NotBegun: the target has no control schema, so nothing has begun; ProgramOutdated, ConfigError
    `schema-older`: it has one of another version of this program."""
    setup = await target.setup()
    if setup.schema_version is None:
        raise not_begun(migration)
    refuse_other_version(setup, migration)


def refuse_other_version(setup: TargetSetup, migration: str) -> None:
    """Raises ProgramOutdated, ConfigError `schema-older`."""
    version, known = setup.schema_version, setup.known_schema
    if version is not None and version > known:
        raise outdated(version, known)
    if version is not None and version < known:
        message = f"its control schema is version {version}, this program works with {known}"
        hint = (
            f"stop the processes of the older revector and start `revector run {migration}` with this one, which "
            "brings the schema up to date; until then use the older one's commands"
        )
        raise ConfigError([Problem("schema-older", "target", message, hint)])


def not_begun(migration: str, generation: str | None = None) -> NotBegun:
    """The target does not know the migration, or not with that generation."""
    if generation is None:
        message, hint = f"the target knows no migration {migration}", f"start it with `revector run {migration}`"
    else:
        message = f"the target knows no migration {migration} with a generation {generation}"
        hint = f"start it with `revector run {migration}`, or see `revector generation list {migration}`"
    return NotBegun("migration-unknown", message, hint)
