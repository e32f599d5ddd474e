"""The embedder: work becomes chunks, in any order, in any number of processes.

One step is one batch:

    claim (own transaction) -> read the rows -> render, chunk, digest -> call the provider -> store (one transaction)

No transaction is open while the provider works, and nothing here holds back the stream. What may be stored afterwards
is decided under the replica row's lock by `core.work`: a deleted row gets nothing, a row that changed meanwhile stays
owed. A digest that already has a vector for its row is kept, never paid for again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from daemon.core.contract import Contract, digest, render
from daemon.core.model import Chunk, Claim, Entry, Generation, Table
from daemon.core.work import settle, writable
from daemon.errors import ItemRefused, PermissionRefused, ProviderWrong, RevectorError, TransientError
from daemon.flow.pacing import LONGEST_WAIT_S, retrying, wait
from daemon.ports import Document, Embedder, Matrix, Target
from daemon.settings import LimitSettings

log = logging.getLogger(__name__)

IDLE_WAITS_S = (0.05, 0.4)  # the first, and the longest: an idle target is asked a few times a second
RELEASE_LIMIT_S = 3.0  # of a process that is leaving

Chunker = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch of claims needs. texts: digest -> text to embed, without those that have a vector. gone: claims
    whose row is deleted or incomplete."""

    table: Table
    claims: tuple[Claim, ...]
    chunks: tuple[Chunk, ...]
    texts: Mapping[bytes, str]
    gone: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """vectors: digest -> float32 (D,). refused: digests the provider refuses, with the reason code."""

    vectors: Mapping[bytes, Matrix]
    refused: Mapping[bytes, str]
    tokens: int


@dataclass(slots=True)
class EmbedCounts:
    rows: int = 0
    tokens: int = 0
    requests: int = 0
    refused: int = 0
    stalled_by: str | None = None  # id of the error that keeps the provider from being used


@dataclass(slots=True)
class EmbedParts:
    """What an embedding worker works with. `worker` names it in claims."""

    target: Target
    embedder: Embedder
    generation: Generation
    contract: Contract
    chunker: Chunker
    tables: Sequence[Table]
    worker: str
    limits: LimitSettings
    counts: EmbedCounts = field(default_factory=EmbedCounts)


class EmbedWorker:
    """One embedding worker for one generation. `run` is the loop, `step` one batch; tests call the parts of a step."""

    def __init__(self, parts: EmbedParts) -> None:
        self.parts = parts
        self.idle_s = IDLE_WAITS_S[0]

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await retrying(self._turn, stop)

    async def _turn(self, stop: asyncio.Event) -> None:
        counts = self.parts.counts
        try:
            worked = False
            for table in self.parts.tables:
                worked = await self.step(table) > 0 or worked
            if worked:
                counts.stalled_by = None
                self.idle_s = IDLE_WAITS_S[0]
            else:
                await wait(stop, self.idle_s)
                self.idle_s = min(2 * self.idle_s, IDLE_WAITS_S[1])
        except TransientError as error:
            counts.stalled_by = error.id
            raise
        except (ProviderWrong, PermissionRefused) as error:
            # Embedding halts, replication goes on: nothing was stored, the claims are free, a person must look.
            counts.stalled_by = error.id
            log.error("embedding stalled: %s: %s. %s", error.id, error.message, error.hint)
            await wait(stop, LONGEST_WAIT_S)

    async def step(self, table: Table) -> int:
        """One batch of one table; the number of claims it held. Claims are freed when the provider fails, and when this
        is cancelled while the provider hangs: otherwise a restart would wait for their lease."""
        claims = await self.claim(table)
        if not claims:
            return 0
        try:
            plan = await self.prepare(table, claims)
            answer = await self.ask(plan)
        except RevectorError:
            await self.release(table, claims)
            raise
        except asyncio.CancelledError:
            with suppress(RevectorError, TimeoutError):
                async with asyncio.timeout(RELEASE_LIMIT_S):
                    await self.release(table, claims)
            raise
        await self.store(plan, answer)
        return len(claims)

    async def claim(self, table: Table) -> list[Claim]:
        """Take work, committed before anything is read: a claim that read its row in the same statement could pair a
        newer seq with an older text."""
        p = self.parts
        async with p.target.begin() as tx:
            return await tx.ledger.claim(table, p.generation, p.worker, p.limits.embed_batch, p.limits.claim_lease_s)

    async def prepare(self, table: Table, claims: Sequence[Claim]) -> Plan:
        """Read the claimed rows, render and chunk them, and find what has a vector already."""
        p = self.parts
        async with p.target.begin() as tx:
            documents = await tx.replica.documents(table, p.generation, [c.row_id for c in claims])
        by_row = {d.row_id: d for d in documents}
        chunks: list[Chunk] = []
        texts: dict[bytes, str] = {}
        gone: list[Claim] = []
        for claim in claims:
            document = by_row.get(claim.row_id)
            if document is None or document.values is None:
                gone.append(claim)
                continue
            for chunk in self._chunks(table, document):
                chunks.append(chunk)
                if chunk.digest not in document.stored:
                    texts[chunk.digest] = p.contract.document_prefix + chunk.text
        return Plan(table, tuple(claims), tuple(chunks), texts, tuple(gone))

    def _chunks(self, table: Table, document: Document) -> list[Chunk]:
        text = render(table.template, document.values or {})
        pieces = self.parts.chunker(text)
        return [Chunk(document.row_id, n, piece, digest(piece, self.parts.contract)) for n, piece in enumerate(pieces)]

    async def ask(self, plan: Plan) -> Answer:
        """Have the plan's texts embedded; a refused request is halved until the refused text stands alone."""
        digests = list(plan.texts)
        vectors: dict[bytes, Matrix] = {}
        refused: dict[bytes, str] = {}
        tokens = 0
        parts = [digests] if digests else []
        while parts:
            part = parts.pop()
            try:
                matrix, spent = await self.parts.embedder.embed([plan.texts[d] for d in part])
            except ItemRefused as refusal:
                if len(part) == 1:
                    refused[part[0]] = refusal.code or f"status-{refusal.status}"
                else:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                continue
            finally:
                self.parts.counts.requests += 1
            vectors.update(zip(part, matrix, strict=True))
            tokens += spent
        return Answer(vectors, refused, tokens)

    async def store(self, plan: Plan, answer: Answer) -> None:
        """Write what may be written (DESIGN.md section 6), all in one transaction:

        1. lock the replica rows: the stream cannot delete or change them until this commits;
        2. entries with oldest_seq <= the claimed seq get their chunks; entry deleted, or moved past the claim;
        3. refused texts, where the row has not changed since: the older text's chunks go, the entry is refused;
        4. all others: nothing written, claim freed.
        """
        p = self.parts
        bad = {c.row_id: answer.refused[c.digest] for c in plan.chunks if c.digest in answer.refused}
        gone = {c.row_id for c in plan.gone}
        claims = [c for c in plan.claims if c.row_id not in gone and c.row_id not in bad]
        rows = [c.row_id for c in plan.claims]
        async with p.target.begin() as tx:
            locked = await tx.replica.lock_rows(plan.table, rows)
            entries = await tx.ledger.entries(plan.table, p.generation, rows)
            accepted = {c.row_id for c in writable(claims, entries, locked)}
            chunks = [c for c in plan.chunks if c.row_id in accepted]
            lacking = await tx.vectors.replace(plan.table, p.generation, chunks, answer.vectors, sorted(accepted))
            settlement = settle([c for c in plan.claims if c.row_id not in bad], entries, accepted - lacking)
            await tx.ledger.settle(
                plan.table, p.generation, p.worker, settlement.done, settlement.moved, settlement.freed
            )
            for row_id, reason in bad.items():
                refused = [c for c in plan.claims if c.row_id == row_id]
                await tx.ledger.refuse(plan.table, p.generation, p.worker, refused, reason)
            outdated = [c.row_id for c in plan.claims if c.row_id in bad and is_newest(c, entries)]
            await tx.vectors.drop(plan.table, [p.generation], outdated)
            written = len(accepted - lacking)
            await tx.ledger.count_embedded(p.generation, written, answer.tokens)
            if spared := len(plan.chunks) - len(plan.texts):
                await tx.ledger.count_spared([p.generation], spared)
        p.counts.rows += written
        p.counts.tokens += answer.tokens
        p.counts.refused += len(bad)

    async def release(self, table: Table, claims: Sequence[Claim]) -> None:
        """Free claims that came to nothing, so that they need not wait for their lease."""
        p = self.parts
        async with p.target.begin() as tx:
            await tx.replica.lock_rows(table, [c.row_id for c in claims])
            await tx.ledger.settle(table, p.generation, p.worker, [], {}, [c.row_id for c in claims])


def is_newest(claim: Claim, entries: Mapping[int, Entry]) -> bool:
    """Whether the row has not changed since it was claimed."""
    entry = entries.get(claim.row_id)
    return entry is not None and entry.newest_seq == claim.seq
