"""From settings to what the loops run on: tables resolved in the source's catalogue, relations made in the target.

Everything here may be repeated: what exists is compared and left alone, what is missing is made. Nothing is copied and
no position is fixed; that is `procedures.start`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.core.catalog import TableChoice, resolve
from daemon.core.contract import Contract
from daemon.core.model import Generation, Table
from daemon.errors import ConfigError, Problem
from daemon.ports import Source, Target
from daemon.settings import Settings


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a migration's loops share: its tables with their ids, and the generations in the order of the settings."""

    tables: tuple[Table, ...]
    generations: tuple[Generation, ...]

    @property
    def generation(self) -> Generation:
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
    """What a migration consists of is fixed at its start. A table named later has no floor, no checkpoint and no fence;
    one that is left out would have its events passed over; a generation named later would wait for ever, because
    nothing hands it the rows that are there already. Refused before anything is made for it."""
    names, aliases = [g.name for g in settings.generation], {t.alias for t in settings.table}
    async with target.begin() as tx:
        started = (await tx.ledger.load()).started
        known = [g.name for g in await tx.ledger.generations()]
        began = {state.table.alias for state in await tx.ledger.tables()}
    if started and aliases != began:
        differing = ", ".join(sorted(aliases ^ began))
        message = f"the migration began with {', '.join(sorted(began))}; the configuration differs in {differing}"
        hint = "name the tables it began with, or begin a migration of another name"
        raise ConfigError([Problem("tables-differ", "tables", message, hint)])
    unknown = [name for name in names if name not in known]
    if started and unknown:
        message = f"the migration began with generation {', '.join(known)}; this version adds no other one"
        hint = "name that generation, or begin a migration of another name"
        raise ConfigError([Problem("generation-unknown", f"generation {unknown[0]}", message, hint)])


async def prepare(source: Source, target: Target, settings: Settings, contracts: Sequence[Contract]) -> Prepared:
    """Make schema, replica and chunk relations where they are missing.

    Raises ConfigError: a table cannot be replicated, a schema is not ours, the generation has another contract, or
    tables or generation are not those of the start.
    """
    resolved = await resolve_tables(source, choices(settings))
    await target.prepare()
    await _refuse_another_shape(target, settings)
    tables = await target.create_tables(resolved)
    generations = []
    for chosen, contract in zip(settings.generation, contracts, strict=True):
        async with target.begin() as tx:
            generation = await tx.ledger.add_generation(chosen.name, contract.as_json(), contract.id)
        await target.create_chunks(tables, generation)
        generations.append(generation)
    return Prepared(tuple(tables), tuple(generations))
