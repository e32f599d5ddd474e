"""Orders to running processes: pause, resume, limits. Each is one transaction with its line in the journal.

Running processes read them about once a second (`daemon.flow.orders`); a process that starts later obeys them too.
Nothing here waits for a process to follow, and none of them need be running.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from daemon.core.budget import in_force
from daemon.core.model import Rates
from daemon.core.orders import Limits, Standing, standing, with_limits, with_paused
from daemon.ports import Target, UnitOfWork
from daemon.procedures.begun import not_begun, require_schema
from daemon.settings_generation import GenerationSettings


@dataclass(frozen=True, slots=True)
class InForce:
    """Limits of one generation. ordered, configured: as given. paced_by: the rates of its last reservation, None where
    there was none: they are lower than both where the provider's answers said so, or it refused requests."""

    generation: str
    ordered: Limits
    configured: Limits
    paced_by: Rates | None

    @property
    def rates(self) -> Rates:
        return in_force([self.ordered.rates, self.configured.rates])


async def pause(target: Target, migration: str, what: Collection[str], by: str) -> Standing:
    """Stop what is named from beginning anything; what is paused now. Raises NotBegun."""
    return await _paused(target, migration, what, by, is_pause=True)


async def resume(target: Target, migration: str, what: Collection[str], by: str) -> Standing:
    """Let what is named go on; what is still paused. Raises NotBegun."""
    return await _paused(target, migration, what, by, is_pause=False)


async def _paused(target: Target, migration: str, what: Collection[str], by: str, *, is_pause: bool) -> Standing:
    await require_schema(target, migration)
    async with target.begin() as tx:
        await _begun(tx, migration)
        document = await tx.ledger.orders()
        before = standing(document).paused
        after = before | set(what) if is_pause else before - set(what)
        if after == before:
            return standing(document)
        await tx.ledger.order(with_paused(document, after))
        event = "paused" if is_pause else "resumed"
        await tx.ledger.journal("operator", event, {"by": by, "what": sorted(after ^ before)})
        return standing(await tx.ledger.orders())


async def limit(target: Target, migration: str, generation: str, change: Limits, by: str, *, is_reset: bool) -> Limits:
    """Order limits of a generation: those of `change` in the place of earlier ones, which `is_reset` forgets first.
    The limits that are ordered then. Raises NotBegun."""
    await require_schema(target, migration)
    async with target.begin() as tx:
        await _begun(tx, migration)
        document = await tx.ledger.orders()
        before = standing(document).limits_of(generation)
        kept = asdict(Limits() if is_reset else before)
        after = Limits(**{name: asdict(change)[name] or kept[name] for name in kept})
        if after != before:
            await tx.ledger.order(with_limits(document, generation, after))
            said: Mapping[str, Any] = {"by": by, "generation": generation, **asdict(after)}
            await tx.ledger.journal("operator", "limited", said)
        return after


async def limits(target: Target, migration: str, generations: Sequence[GenerationSettings]) -> list[InForce]:
    """What is in force for each configured generation. Raises NotBegun."""
    await require_schema(target, migration)
    async with target.begin() as tx:
        await _begun(tx, migration)
        orders = standing(await tx.ledger.orders())
        made = {g.name: g for g in await tx.ledger.generations()}
        found = []
        for g in generations:
            configured = Limits(g.limits.requests_per_minute, g.limits.tokens_per_minute, g.limits.in_flight)
            paced_by = await tx.ledger.paced_by(made[g.name]) if g.name in made else None
            found.append(InForce(g.name, orders.limits_of(g.name), configured, paced_by))
        return found


async def _begun(tx: UnitOfWork, migration: str) -> None:
    if not await tx.ledger.generations():
        raise not_begun(migration)
