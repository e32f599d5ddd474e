"""The embedder: work becomes chunks, in any order, in any number of processes.

One step is one batch:

    claim (own transaction) -> read the rows -> render, cut, digest, count (worker thread) -> vouch for the provider
    -> pack -> call the provider, requests side by side -> store (short transactions of whole rows)

No transaction is open while the provider works, and nothing here holds back the stream. What may be stored afterwards
is decided under the replica row's lock by `core.work`: a deleted row gets nothing, a row that changed meanwhile stays
owed. A digest that already has a vector for its row is kept, never paid for again, unless the claim is afresh; what was
paid for is stored even if the rest of its batch fails.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from daemon.core.contract import Contract, Cut, digest, render
from daemon.core.model import Chunk, Claim, Generation, HaltNote, Table, Tally
from daemon.core.packing import Isolation, RequestLimits, pack
from daemon.core.refusals import TOO_LONG
from daemon.core.work import settle, writable
from daemon.errors import Halt, ItemRefused, PermissionRefused, ProviderWrong, RevectorError, TransientError
from daemon.flow.batch import Answer, Plan, is_doubtful, is_newest, is_strange, reason_of
from daemon.flow.orders import Orders
from daemon.flow.pacing import FIRST_WAIT_S, LONGEST_WAIT_S, retrying, wait
from daemon.flow.provider import ASK_AGAIN_S, Provider
from daemon.ports import Document, Target, Tokenizer, UnitOfWork
from daemon.settings_generation import GenerationLimits

log = logging.getLogger(__name__)

IDLE_WAITS_S = (0.05, 0.4)  # the first, and the longest: an idle target is asked a few times a second
RELEASE_LIMIT_S = 3.0  # of a process that is leaving
FIRST_ROWS, MOST_ROWS = 32, 1000  # of one claim; its size follows what rows turn out to hold
ROOM_FROM = 128  # inputs of a request, from which one of them is left for the canary
TOO_LARGE = 413  # of a request, whatever its texts
STORE_S = 0.2  # of one transaction that stores chunks: a live HNSW index makes them some 50 times slower
FIRST_STORED, MOST_STORED = 256, 10_000  # chunks of it
FILL = 0.9  # of a request, at which a claim aims: a batch of one request and a crumb wastes the second


@dataclass(slots=True)
class EmbedCounts:
    """Of one generation in this process. blank: of the rows, those without a chunk. avoided: tokens of kept chunks."""

    rows: int = 0
    blank: int = 0
    tokens: int = 0
    avoided: int = 0
    requests: int = 0
    refused: int = 0
    stalled_by: str | None = None  # id of the error that keeps the provider from being used


@dataclass(slots=True)
class Crew:
    """What the workers of one generation in one process share. cut: a document's chunks, as the contract says.
    cpu: where documents are rendered and cut. most_input_tokens: of one text, None where it is not known.
    poller: one idle worker at a time asks for work."""

    generation: Generation
    contract: Contract
    tables: Sequence[Table]
    provider: Provider
    orders: Orders
    tokenizer: Tokenizer
    cut: Cut
    limits: GenerationLimits
    claim_lease_s: float
    cpu: Executor
    most_input_tokens: int | None = None
    most_inputs: int = 2048  # of one request, as the provider's refusals teach
    counts: EmbedCounts = field(default_factory=EmbedCounts)
    rows_per_claim: dict[str, float] = field(default_factory=dict)
    store_chunks: int = FIRST_STORED  # of one transaction, as its speed teaches
    halted_by: str | None = None  # as the target has it
    idle_s: float = 0.0
    poller: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def inputs(self) -> int:
        """Most of one request, as configured and as the provider's refusals teach."""
        return min(self.limits.request_inputs, self.most_inputs)

    def request_limits(self) -> RequestLimits:
        return RequestLimits(self.inputs - (self.inputs >= ROOM_FROM), self.provider.gate.request_tokens)

    def learn(self, table: Table, rows: int, chunks: int, tokens: int) -> None:
        """Let the next claim of a table fill about one request."""
        if not rows or not chunks:
            return
        limits = self.request_limits()
        fits = FILL * min(limits.inputs * rows / chunks, limits.tokens * rows / max(tokens, 1))
        before = self.rows_per_claim.get(table.alias, fits)
        self.rows_per_claim[table.alias] = min(MOST_ROWS, max(1.0, (before + fits) / 2))

    def paced(self, chunks: int, seconds: float) -> None:
        """Let the next transaction that stores take about STORE_S."""
        if seconds > STORE_S:
            self.store_chunks = max(1, int(chunks * STORE_S / seconds))
        elif seconds < STORE_S / 2 and 2 * chunks > self.store_chunks:
            self.store_chunks = min(MOST_STORED, 2 * self.store_chunks)

    def claim_rows(self, table: Table) -> int:
        first = min(FIRST_ROWS, self.limits.request_inputs)
        return int(self.rows_per_claim.get(table.alias, first))


class EmbedWorker:
    """One embedding worker of a crew. `run` is the loop, `step` one batch; tests call the parts of a step."""

    def __init__(self, target: Target, name: str, crew: Crew) -> None:
        self.target, self.name, self.crew = target, name, crew
        self.turns = 0
        self._using = asyncio.Lock()  # of the target's one connection: claims are renewed beside everything else
        self.stopping: asyncio.Event | None = None

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[UnitOfWork]:
        async with self._using, self.target.begin() as tx:
            yield tx

    async def run(self, stop: asyncio.Event) -> None:
        self.stopping = stop
        while not stop.is_set():
            await retrying(self._turn, stop)

    async def _turn(self, stop: asyncio.Event) -> None:
        crew = self.crew
        self.turns += 1
        try:
            worked = False
            for table in crew.tables:
                worked = await self.step(table) > 0 or worked
        except TransientError as error:
            if stop.is_set():
                return
            crew.counts.stalled_by = error.id
            raise
        except (ProviderWrong, PermissionRefused) as error:
            # Embedding halts, replication goes on: nothing wrong was stored, the claims are free, a person must look.
            await self._stalled(error)
            await wait(stop, ASK_AGAIN_S)  # before that it is not asked, and each claim comes to nothing
            return
        if worked:
            crew.idle_s = 0.0
            if not crew.provider.is_wrong:
                await self._recovered()
        else:
            async with crew.poller:
                await wait(stop, crew.idle_s)
                crew.idle_s = max(IDLE_WAITS_S[0], min(2 * crew.idle_s, IDLE_WAITS_S[1]))

    async def _stalled(self, error: RevectorError) -> None:
        """Say what keeps the crew from embedding: once in the log, and to everyone who looks at the migration."""
        self.crew.counts.stalled_by = error.id
        if self.crew.halted_by != error.id:
            self.crew.halted_by = error.id
            log.error("embedding halted: %s: %s. %s", error.id, error.message, error.hint)
        async with self._begin() as tx:
            await tx.ledger.halt(error.id, HaltNote(error.message, error.hint), self.crew.generation.role)

    async def _recovered(self) -> None:
        self.crew.counts.stalled_by = None
        if self.crew.halted_by is None:
            return
        self.crew.halted_by = None
        async with self._begin() as tx:
            await tx.ledger.clear_halt([self.crew.generation.role])

    async def step(self, table: Table) -> int:
        """One batch of one table; the number of claims it held. When the provider fails, or this is cancelled, rows
        that are complete are stored and the other claims freed: otherwise a restart would wait for their lease."""
        claims = await self.claim(table)
        if not claims:
            return 0
        plan: Plan | None = None
        answer = Answer()
        try:
            async with self._kept(table, claims):
                plan = await self.prepare(table, claims)
                if plan.texts:
                    await self.crew.provider.vouch(self._begin)
                await self.ask(plan, answer)
        except RevectorError as error:
            if not isinstance(error, Halt):  # such as a wrong provider's refusals: they say nothing of the texts
                answer.refused.clear()
            await self.salvage(table, claims, plan, answer)
            raise
        except asyncio.CancelledError:
            answer.refused.clear()
            with suppress(RevectorError, TimeoutError):
                async with asyncio.timeout(RELEASE_LIMIT_S):
                    await self.salvage(table, claims, plan, answer)
            raise
        async with self._kept(table, claims):
            await self.store(plan, answer)
        return len(claims)

    async def claim(self, table: Table) -> list[Claim]:
        """Take work, committed before anything is read: a claim that read its row in the same statement could pair a
        newer seq with an older text."""
        crew = self.crew
        order = crew.orders.claim_order(self.turns)
        if order is None:
            return []
        async with self._begin() as tx:
            return await tx.ledger.claim(
                table, crew.generation, self.name, crew.claim_rows(table), crew.claim_lease_s, order
            )

    async def prepare(self, table: Table, claims: Sequence[Claim]) -> Plan:
        """Read the claimed rows; render and cut them in the worker thread, and find what has a vector already."""
        crew = self.crew
        async with self._begin() as tx:
            documents = await tx.replica.documents(table, crew.generation, [c.row_id for c in claims])
        loop = asyncio.get_running_loop()
        plan = await loop.run_in_executor(crew.cpu, planned, crew, table, tuple(claims), documents)
        crew.learn(
            table,
            len(plan.claims) - len(plan.gone),
            len(plan.chunks),
            sum((*plan.tokens.values(), *plan.avoided.values())),
        )
        return plan

    @asynccontextmanager
    async def _kept(self, table: Table, claims: Sequence[Claim]) -> AsyncIterator[None]:
        """Renew the claims while the block cuts their documents, waits for the provider or stores: a row whose claim
        ran out is paid for twice."""
        crew, rows = self.crew, [c.row_id for c in claims]

        async def renew() -> None:
            while True:
                await asyncio.sleep(crew.claim_lease_s / 3)
                with suppress(RevectorError):
                    async with self._begin() as tx:
                        await tx.ledger.renew(table, crew.generation, self.name, rows, crew.claim_lease_s)

        renewal = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)  # which does not swallow a cancellation of ours

    async def ask(self, plan: Plan, answer: Answer | None = None) -> Answer:
        """Have the plan's texts embedded, into `answer` as they come. A request that fails is repeated while a part of
        the batch is paid for; before that its claims are worth nothing, and who claims them next reads fresher text.
        One whose answer was strange is repeated in any case, and then taken apart: a text of it may be the cause.
        """
        answer = Answer() if answer is None else answer
        answer.refused.update(dict.fromkeys(plan.too_long, TOO_LONG))
        live = any(claim.live for claim in plan.claims)
        wanted = [(d, plan.tokens[d]) for d in plan.texts if not answer.has(d)]
        pending = pack(wanted, self.crew.request_limits())
        while pending:
            requests = [self._request([d for d in r if not answer.has(d)], plan, answer, live) for r in pending]
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            errors = [e for e in outcomes if isinstance(e, BaseException)]
            transient = [e for e in errors if isinstance(e, TransientError)]
            if fatal := [e for e in errors if e not in transient]:
                raise fatal[0]
            doubtful = (r for r, e in zip(pending, outcomes, strict=True) if is_doubtful(e))
            answer.doubtful.update(itertools.chain(*doubtful))
            is_worth_it = answer.vectors or all(is_strange(e) for e in transient)
            if transient and (not is_worth_it or (self.stopping is not None and self.stopping.is_set())):
                raise transient[0]
            pending = [r for r, e in zip(pending, outcomes, strict=True) if isinstance(e, TransientError)]
            if transient:
                self.crew.counts.stalled_by = transient[0].id
        return answer

    async def _request(self, digests: list[bytes], plan: Plan, answer: Answer, live: bool) -> None:
        """Send one request; if it is refused, find out for which texts."""
        isolation = Isolation(digests, plan.tokens)
        refusal: ItemRefused | None = None
        known = 0
        too_large: list[list[bytes]] = []
        while group := isolation.group:
            try:
                await self._send(group, plan, answer, live)
            except ItemRefused as error:
                refusal = error
                is_too_large = error.status == TOO_LARGE
                isolation.told(is_taken=False, too_large=is_too_large)
                too_large += [group] if is_too_large and len(group) > 1 else []
            else:
                isolation.told(is_taken=True)
                self.crew.provider.taken()
            for refused in isolation.refused[known:]:
                if not isolation.taken:
                    await self.crew.provider.check()  # nothing of this request was taken: is it us?
                answer.refused[refused] = reason_of(refusal)
                self.crew.provider.refused(next(c.row_id for c in plan.asked if c.digest == refused))
            known = len(isolation.refused)
        for group in too_large:
            if answer.refused.keys().isdisjoint(group):  # else one text was too large, not the number of them
                self.crew.most_inputs = min(self.crew.most_inputs, len(group) // 2)

    async def _send(self, group: Sequence[bytes], plan: Plan, answer: Answer, live: bool) -> None:
        answer.requests += 1
        tokens = sum(plan.tokens[d] for d in group)
        texts, has_room = [plan.texts[d] for d in group], len(group) < self.crew.inputs
        is_probe = not answer.doubtful.isdisjoint(group)
        embedded = await self.crew.provider.embed(texts, tokens, live=live, has_room=has_room, is_probe=is_probe)
        answer.vectors.update(zip(group, embedded.vectors, strict=True))
        answer.tokens += embedded.tokens

    async def salvage(self, table: Table, claims: Sequence[Claim], plan: Plan | None, answer: Answer) -> None:
        """Store the rows of which every text came back, or one was refused; free the other claims."""
        stored: set[int] = set()
        if plan is not None and answer.requests:
            refused = {c.row_id for c in plan.asked if c.digest in answer.refused}
            lacking = {c.row_id for c in plan.asked if c.digest not in answer.vectors}
            stored = {c.row_id for c in plan.chunks} - (lacking - refused) - {c.row_id for c in plan.gone}
            await self.store(plan.of(stored), answer)
        await self.release(table, [c for c in claims if c.row_id not in stored])

    async def store(self, plan: Plan, answer: Answer) -> None:
        """Write a batch in parts of whole rows, as large as STORE_S allows: the stream waits for a row that is stored
        until its transaction ends. What was spent is counted with the first."""
        crew, loop = self.crew, asyncio.get_running_loop()
        for n, part in enumerate(plan.parts(crew.store_chunks)):
            began = loop.time()
            await self._persist(part, answer if n == 0 else replace(answer, tokens=0, requests=0))
            crew.paced(len(part.chunks), loop.time() - began)

    async def _persist(self, plan: Plan, answer: Answer) -> None:
        """`_store`, repeated while the target is away: what was paid for is not thrown away. Whether a first attempt
        was committed may be unknown; then its entries are gone, and a second one writes nothing."""
        for attempt in itertools.count():
            try:
                await self._store(plan, answer, is_first=attempt == 0)
                break
            except TransientError as error:
                if self.stopping is None or self.stopping.is_set():
                    raise
                log.warning("%s: %s; storing again what was embedded", error.id, error.message)
                await wait(self.stopping, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt, 10)))

    async def _store(self, plan: Plan, answer: Answer, *, is_first: bool) -> None:
        """Write what may be written (DESIGN.md section 6), all in one transaction:

        1. lock the replica rows: the stream cannot delete or change them until this commits;
        2. entries with oldest_seq <= the claimed seq get their chunks; entry deleted, or moved past the claim;
        3. refused texts, where the row has not changed since: the older text's chunks go, the entry is refused;
        4. all others: nothing written, claim freed.
        """
        crew, generation = self.crew, self.crew.generation
        bad = {c.row_id: answer.refused[c.digest] for c in plan.asked if c.digest in answer.refused}
        gone = {c.row_id for c in plan.gone}
        claims = [c for c in plan.claims if c.row_id not in gone and c.row_id not in bad]
        rows = [c.row_id for c in plan.claims]
        async with self._begin() as tx:
            locked = await tx.replica.lock_rows(plan.table, rows)
            entries = await tx.ledger.entries(plan.table, generation, rows)
            accepted = {c.row_id for c in writable(claims, entries, locked)}
            chunks = [c for c in plan.chunks if c.row_id in accepted]
            lacking = await tx.vectors.replace(plan.table, generation, chunks, answer.vectors, sorted(accepted))
            settlement = settle([c for c in plan.claims if c.row_id not in bad], entries, accepted - lacking)
            await tx.ledger.settle(
                plan.table, generation, self.name, settlement.done, settlement.moved, settlement.freed
            )
            for row_id, reason in bad.items():
                refused = [c for c in plan.claims if c.row_id == row_id]
                await tx.ledger.refuse(plan.table, generation, self.name, refused, reason)
            outdated = [c.row_id for c in plan.claims if c.row_id in bad and is_newest(c, entries)]
            await tx.vectors.drop(plan.table, [generation], outdated)
            written = accepted - lacking
            canary, crew.provider.canary_billed = crew.provider.canary_billed, 0
            tally = Tally(
                rows=len(written),
                blank=len(written - {c.row_id for c in chunks}),
                tokens=answer.tokens + canary,
                avoided=sum(plan.avoided.get(row_id, 0) for row_id in written),
                requests=answer.requests,
            )
            if written or is_first:
                await tx.ledger.count_embedded(generation, tally)
        crew.counts.rows += tally.rows
        crew.counts.blank += tally.blank
        crew.counts.tokens += tally.tokens
        crew.counts.avoided += tally.avoided
        crew.counts.requests += tally.requests
        crew.counts.refused += len(bad)

    async def release(self, table: Table, claims: Sequence[Claim]) -> None:
        """Free claims that came to nothing, so that they need not wait for their lease."""
        if not claims:
            return
        async with self._begin() as tx:
            await tx.replica.lock_rows(table, [c.row_id for c in claims])
            await tx.ledger.settle(table, self.crew.generation, self.name, [], {}, [c.row_id for c in claims])


def planned(crew: Crew, table: Table, claims: tuple[Claim, ...], documents: Sequence[Document]) -> Plan:
    """Render, cut, digest and count. Runs in the worker thread: reads only what does not change."""
    by_row = {d.row_id: d for d in documents}
    prefix, most = crew.contract.document_prefix, crew.most_input_tokens
    chunks: list[Chunk] = []
    texts: dict[bytes, str] = {}
    tokens: dict[bytes, int] = {}
    gone: list[Claim] = []
    kept: set[tuple[int, bytes]] = set()
    avoided: Counter[int] = Counter()
    for claim in claims:
        document = by_row.get(claim.row_id)
        if document is None or document.values is None:
            gone.append(claim)
            continue
        stored = {} if claim.afresh else document.stored
        for n, piece in enumerate(crew.cut(render(table.template, document.values))):
            chunk = Chunk(claim.row_id, n, piece, digest(piece, crew.contract))
            chunks.append(chunk)
            if chunk.digest in stored:
                kept.add((claim.row_id, chunk.digest))
                avoided[claim.row_id] += crew.tokenizer.count(prefix + piece)
            elif chunk.digest not in texts:
                texts[chunk.digest] = prefix + piece
                tokens[chunk.digest] = crew.tokenizer.count(prefix + piece)
    too_long = frozenset(d for d, n in tokens.items() if most is not None and n > most)
    return Plan(table, claims, tuple(chunks), texts, tokens, tuple(gone), too_long, avoided, frozenset(kept))
