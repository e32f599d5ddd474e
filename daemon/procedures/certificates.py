"""Certificates afterwards: list what is stored, find one, and read what the observations of one are today.

Nothing is written. Each part is asked by itself and has a few seconds; one that does not answer leaves unknowns, and
where the target is away only the digest of a certificate can be checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from daemon.core.certified import Observation, Today, digest_of, still_holds
from daemon.core.compared import ComparisonReading
from daemon.core.continuity import Identity
from daemon.core.model import REPLICATION, Generation
from daemon.errors import StepRefused
from daemon.parts import Parts
from daemon.ports import Indexes, StoredCertificate, Target, UnitOfWork
from daemon.procedures.begun import not_begun, require_schema
from daemon.procedures.look import read


@dataclass(frozen=True, slots=True)
class Checked:
    """digest: computed from the document. is_ours None: the target is away, and nothing else could be checked."""

    digest: str
    is_ours: bool | None
    age_s: float | None
    observations: tuple[Observation, ...]

    @property
    def holds(self) -> bool | None:
        """False where anything does not hold; None where nothing speaks against it and something is not known."""
        found = [self.is_ours, *(o.holds for o in self.observations)]
        if False in found:
            return False
        return None if None in found else True


async def find(target: Target, migration: str, generation: str, limit: int) -> list[StoredCertificate]:
    """Those of a generation, the newest first. Raises NotBegun."""
    await require_schema(target, migration)
    async with target.begin() as tx:
        listed = await _listed(tx, generation)
        if listed is None:
            raise not_begun(migration, generation)
        return await tx.ledger.certificates(listed, limit)


async def one(target: Target, migration: str, generation: str, digest: str | None) -> StoredCertificate:
    """The newest of a generation, or (digest) the one whose digest begins so, of whatever generation, gone ones too.
    Raises StepRefused `certificate-absent`, `certificate-ambiguous`; NotBegun."""
    if digest is None:
        found = await find(target, migration, generation, 1)
        hint = f"issue one with `revector prove {migration}`"
        message = f"generation {generation} has no certificate"
    else:
        await require_schema(target, migration)
        async with target.begin() as tx:
            found = await tx.ledger.certificates(None, 2, digest)
        hint, message = f"see `revector certificate list {migration}`", f"{migration} has no certificate {digest}"
        if len({c.digest for c in found}) > 1:
            raise StepRefused("certificate-ambiguous", f"several certificates begin with {digest}", "give more of it")
    if not found:
        raise StepRefused("certificate-absent", message, hint)
    return found[0]


async def check(parts: Parts, document: Mapping[str, Any]) -> Checked:
    """Whether a document is one that was issued here, and whether what it rests on still is so. Only one that is ours
    is looked into: of any other nothing is known, not even its shape. Raises NotACertificate."""
    digest = digest_of(document)
    async with AsyncExitStack() as stack:
        target = parts.target("certificate")
        stack.push_async_callback(target.close)
        stored = await read(partial(_stored, target, digest))
        if not stored:
            return Checked(digest, None if stored is None else False, None, ())
        # What is stored could have been changed as well as what is in the file.
        is_whole = digest_of(stored[0].document) == digest
        today = await _today(parts, stack, target, stored[0])
        return Checked(digest, is_whole, stored[0].age_s, tuple(still_holds(document, today)))


async def _stored(target: Target, digest: str) -> list[StoredCertificate]:
    if (await target.setup()).schema_version is None:
        return []
    async with target.begin() as tx:
        return await tx.ledger.certificates(None, 1, digest)


async def _today(parts: Parts, stack: AsyncExitStack, target: Target, stored: StoredCertificate) -> Today:
    """Every reading that its observations are compared with."""
    source, feed = parts.source("certificate"), parts.feed("certificate")
    capture, indexes = parts.capture("certificate"), parts.indexes("certificate")
    for part in (source, feed, capture, indexes):
        stack.push_async_callback(part.close)
    control, at_source, at_feed, wal_lsn, connect_lsn, ends = await asyncio.gather(
        read(partial(_control, target, stored, parts.settings.verify.max_age_s)),
        read(source.identity),
        read(feed.identity),
        read(source.wal_lsn),
        read(capture.committed_lsn),
        read(feed.data_ends),
    )
    today = replace(control or Today(), wal_lsn=wal_lsn, connect_lsn=connect_lsn, ends=ends)
    if at_source is not None and at_feed is not None:
        today = replace(today, identity=Identity(at_source, at_feed))
    return today if today.generation is None else await _indexed(today, target, indexes, today.generation)


async def _indexed(today: Today, target: Target, indexes: Indexes, generation: Generation) -> Today:
    async def tables() -> Any:
        async with target.begin() as tx:
            return [s.table for s in await tx.ledger.tables()]

    known = await read(tables) or []
    states = {table.alias: await read(partial(indexes.state, table, generation)) for table in known}
    return replace(today, indexes=states)


async def _control(target: Target, stored: StoredCertificate, max_age_s: float) -> Today:
    steps = {step["step"]: step for step in stored.document["steps"]}
    async with target.begin() as tx:
        state, tables = await tx.ledger.load(), await tx.ledger.tables()
        # By id: a generation that was dropped and added again under its name is another one.
        generation = next((g for g in await tx.ledger.generations() if g.id == stored.generation_id), None)
        today = Today(
            is_listed=generation is not None,
            epoch=state.epoch,
            generation=generation,
            breaks=tuple(await tx.ledger.breaks()),
            halts=tuple(state.halts_of(REPLICATION)),
            copied=all(t.backfilled for t in tables),
            checkpoint=await tx.ledger.checkpoint(),
        )
        if generation is None:
            return today
        running = await tx.comparisons.running()
        reading = ComparisonReading(await tx.comparisons.last(generation), max_age_s, running)
        halts = (*(today.halts or ()), *state.halts_of([generation.role]))
        owed = await tx.ledger.owed(generation, steps[6]["highest_seq"])
        return replace(today, comparison=reading, halts=halts, owed=owed)


async def _listed(tx: UnitOfWork, name: str) -> Generation | None:
    return next((g for g in await tx.ledger.generations() if g.name == name), None)
