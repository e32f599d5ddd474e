"""From settings to what the loops run on: tables resolved in the source's catalogue, relations made in the target.

Everything here may be repeated: what exists is compared and left alone, what is missing is made. Nothing is copied and
no position is fixed; that is `procedures.start`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from daemon.core.catalog import TableChoice, resolve
from daemon.core.contract import Contract
from daemon.core.model import Generation, Table
from daemon.errors import ConfigError, Problem
from daemon.ports import Source, Target
from daemon.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a migration's loops share: its tables with their ids, and the generations in the order of the settings."""

    tables: tuple[Table, ...]
    generations: tuple[Generation, ...]

    @property
    def candidate(self) -> Generation:
        """The one to cut over to."""
        return self.generations[-1]


def choices(settings: Settings) -> list[TableChoice]:
    """The configured tables as the catalogue check reads them."""
    return [
        TableChoice(
            schema=t.relation[0],
            name=t.relation[1],
            alias=t.alias,
            template=t.text,
            text_columns=tuple(t.text_columns),
            columns=tuple(t.columns),
            filters=tuple(t.filters),
            where=t.where,
        )
        for t in settings.table
    ]


async def resolve_tables(source: Source, wanted: Sequence[TableChoice]) -> list[Table]:
    """Every configured table as it is replicated. Raises ConfigError with all problems of all tables."""
    tables: list[Table] = []
    problems: list[Problem] = []
    for choice in wanted:
        found = resolve(choice, await source.describe(choice.schema, choice.name))
        if isinstance(found, Table):
            tables.append(found)
        else:
            problems += found
    if problems:
        raise ConfigError(problems)
    return tables


async def _refuse_another_shape(target: Target, settings: Settings) -> None:
    """Which tables a migration has is fixed at its start: one named later has no floor, no checkpoint and no fence; one
    that is left out would have its events passed over. A generation named later is an operator's step: a slip in its
    name would have every row embedded again. Refused before anything is made for it."""
    names, aliases = [g.name for g in settings.generation], {t.alias for t in settings.table}
    async with target.begin() as tx:
        started = (await tx.ledger.load()).started
        known = [g.name for g in await tx.ledger.generations()]
        began = {state.table.alias for state in await tx.ledger.tables()}
    if started:
        refuse_other_tables(aliases, began)
        found = [unknown_generation(name, known) for name in names if name not in known]
        if found:
            raise ConfigError(found)


def refuse_other_tables(aliases: AbstractSet[str], began: AbstractSet[str]) -> None:
    """Raises ConfigError where the configured tables are not those of the start."""
    if aliases != began:
        differing = ", ".join(sorted(aliases ^ began))
        message = f"the migration began with {', '.join(sorted(began))}; the configuration differs in {differing}"
        hint = "name the tables it began with, or begin a migration of another name"
        raise ConfigError([Problem("tables-differ", "tables", message, hint)])


def unknown_generation(name: str, known: Sequence[str]) -> Problem:
    """What is wrong with a configured generation that the begun migration does not have."""
    message = f"the migration has begun and has no such generation; it has {', '.join(known)}"
    hint = f"add it with `revector generation add {name}`, or take it out of the configuration"
    return Problem("generation-unknown", f"generation {name}", message, hint)


def unconfigured(settings: Settings, generations: Sequence[Generation]) -> list[str]:
    """Fed generations that this configuration does not name: this process keeps them fed and does not embed them."""
    named = {g.name for g in settings.generation}
    return [g.name for g in generations if g.fed and g.name not in named]


async def add_generations(
    target: Target, settings: Settings, contracts: Sequence[Contract], tables: Sequence[Table]
) -> list[Generation]:
    """Record the configured generations where they are missing, with their relations. Raises ConfigError."""
    generations = []
    for chosen, contract in zip(settings.generation, contracts, strict=True):
        async with target.begin() as tx:
            generation = await tx.ledger.add_generation(chosen.name, contract.as_json(), contract.id)
        await target.create_chunks(tables, generation)
        generations.append(generation)
    return generations


async def prepare(source: Source, target: Target, settings: Settings, contracts: Sequence[Contract]) -> Prepared:
    """Make schema, replica and chunk relations where they are missing. contracts: of the generations, in their order.

    Raises ConfigError: a table cannot be replicated, a schema is not ours, a generation has another contract, or
    the tables are not those of the start, or a generation is not one of the begun migration.
    """
    resolved = await resolve_tables(source, choices(settings))
    await target.prepare()
    await _refuse_another_shape(target, settings)
    tables = await target.create_tables(resolved)
    generations = await add_generations(target, settings, contracts, tables)
    async with target.begin() as tx:
        for name in unconfigured(settings, await tx.ledger.generations()):
            log.warning("generation %s is not in this configuration: it is kept fed, and not embedded here", name)
    return Prepared(tuple(tables), tuple(generations))
