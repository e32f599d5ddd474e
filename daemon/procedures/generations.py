"""Generations of a begun migration: which there are, one more, one fewer.

Adding is one short transaction: the record, its relations, a line in the journal. From its commit on every window and
page feeds the generation; the process that holds the stream hands it the rows that are there (`flow.sweep`). Dropping
is one transaction too, and the stream waits while it lasts.

Who embeds is another matter: processes that were started with a configuration that has the generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from daemon.core.contract import Contract
from daemon.core.model import Backlog, Generation
from daemon.errors import ConfigError, Problem, StepRefused, TransientError
from daemon.ports import Target, UnitOfWork
from daemon.procedures.begun import not_begun, require_schema
from daemon.procedures.prepare import refuse_other_tables
from daemon.settings import Settings
from daemon.settings_generation import GenerationSettings

TRIES = 3
CONFLICT = "target-conflict"


@dataclass(frozen=True, slots=True)
class Listed:
    """A generation as it stands. is_routed: readers follow it."""

    generation: Generation
    model: str
    backlog: Backlog
    tables: tuple[str, ...]
    is_configured: bool
    is_candidate: bool
    is_routed: bool
    is_last: bool


def chosen(settings: Settings, name: str) -> GenerationSettings:
    """The configured generation of that name. Raises ConfigError."""
    for generation in settings.generation:
        if generation.name == name:
            return generation
    message = f"the configuration has no generation {name}; it has {', '.join(g.name for g in settings.generation)}"
    raise ConfigError([Problem("generation-unknown", "generation", message, "add a [[generation]] of that name to it")])


async def find(target: Target, settings: Settings) -> list[Listed]:
    """Every generation of the migration, the oldest first. Raises NotBegun."""
    await require_schema(target, settings.name)
    async with target.begin() as tx:
        return await _listed(tx, settings)


async def _listed(tx: UnitOfWork, settings: Settings) -> list[Listed]:
    named = {g.name for g in settings.generation}
    tables = tuple(state.table.alias for state in await tx.ledger.tables())
    routed, generations = await tx.ledger.routed(), await tx.ledger.generations()
    return [
        Listed(
            generation=g,
            model=str((await tx.ledger.generation_contract(g)).get("model", "")),
            backlog=await tx.ledger.backlog(g),
            tables=tables,
            is_configured=g.name in named,
            is_candidate=g.name == settings.candidate.name,
            is_routed=g.id == routed,
            is_last=len(generations) == 1,
        )
        for g in generations
    ]


async def add(
    target: Target, settings: Settings, wanted: GenerationSettings, contract: Contract, said: Mapping[str, str]
) -> tuple[Generation, bool]:
    """The generation, and whether it is new. said: who did it, for the journal.

    Raises NotBegun: nothing runs that could feed it; ConfigError: it is there under another contract, the tables are
    not those of the start, or a relation of its name is something else."""
    await require_schema(target, settings.name)
    async with target.begin() as tx:
        if not (await tx.ledger.load()).started:
            raise not_begun(settings.name)
        refuse_other_tables({t.alias for t in settings.table}, {s.table.alias for s in await tx.ledger.tables()})
        is_new = wanted.name not in [g.name for g in await tx.ledger.generations()]
        generation = await tx.ledger.add_generation(wanted.name, contract.as_json(), contract.id)
        if is_new:
            detail = {**said, "generation": generation.name, "contract": generation.contract_id}
            await tx.ledger.journal("operator", "generation-added", detail)
    return generation, is_new


async def one(target: Target, settings: Settings, name: str) -> Listed:
    """A generation that may be dropped. Raises NotBegun; StepRefused: it is not there, or must stay."""
    found = [each for each in await find(target, settings) if each.generation.name == name]
    if not found:
        hint = f"see `revector generation list {settings.name}`"
        raise StepRefused("generation-absent", f"{settings.name} has no generation {name}", hint)
    (it,) = found
    if it.is_routed:
        raise StepRefused("generation-routed", f"readers follow {name}", "switch readers to another generation first")
    if it.is_last:
        hint = "a migration keeps at least one generation: add another one first"
        raise StepRefused("generation-last", f"{name} is the only generation of {settings.name}", hint)
    return it


async def drop(target: Target, settings: Settings, it: Listed, said: Mapping[str, str]) -> None:
    """Remove it with its relations, chunks and work; certificates and journal stay. The ledger looks again under the
    lock, so two that drop the last two meet a refusal, not an empty migration.

    Raises StepRefused; TransientError: somebody holds its relations for long, nothing was done."""
    for left in reversed(range(TRIES)):
        try:
            async with target.begin() as tx:
                await tx.ledger.drop_generation(it.generation)
                detail = {**said, "generation": it.generation.name, "contract": it.generation.contract_id}
                await tx.ledger.journal("operator", "generation-dropped", detail)
            return
        except TransientError as error:
            if error.id != CONFLICT or not left:
                raise
