"""The last look of a comparison: chunks that share a vector, and a random sample, embedded again.

What a vector shows by itself was judged before. Two texts may have one vector because a model sees no difference in
them, and a model that changed silently leaves vectors that look sound: both are told by what the provider says today.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from daemon.core.comparison import Found, Kind
from daemon.flow.gate import Gate
from daemon.flow.orders import Orders
from daemon.ports import ChunkText
from daemon.procedures.comparing import Compared, Run, open_findings
from daemon.procedures.resample import Again, refuted, shared_faults
from daemon.procedures.second_look import read_pieces

MOST_GROUPS = 500  # of chunks with one vector


async def judge(run: Run, *, is_sampled: bool = True) -> bool:
    """Embed again what shares a vector, and `Order.sample` chunks of each generation; whether a shared one was refuted
    that was not before. Raises OutOfTime, and what the embedder raises."""
    run.unjudged, is_refuted = 0, False
    if is_sampled:
        run.sampled = None
    for c in run.compared:
        run.check_time()
        async with run.target.begin() as tx:
            alike = await tx.audit.shared(run.comparison.id, c.generation, MOST_GROUPS)
            known = {(f.table_id, f.row_id, f.n) for _, f in await open_findings(tx, run.comparison.id)}
        # What is wrong already is said once: zero vectors, for one, are all alike.
        groups = [left for g in alike if (left := [t for t in g if (t.table_id, t.row_id, t.n) not in known])]
        picked = await _sample(run, c) if is_sampled else []
        sample = [t for t in picked if (t.table_id, t.row_id, t.n) not in known]
        if not groups and not sample:
            continue
        async with _again(run, c) as again:
            if groups:
                shared = await shared_faults(again, groups)
                run.tokens += shared.tokens
                run.unjudged += shared.unjudged if shared.is_cut or not shared.compared else 0
                places = {(c.generation.id, t.table_id, t.row_id, t.n) for t in shared.chunks}
                is_refuted = is_refuted or not places <= run.refuted
                run.refuted |= places
                await _record(run, c, shared.chunks, Kind.VECTOR_SHARED)
            if sample:
                drifted = await refuted(again, sample)
                run.tokens += drifted.tokens
                run.sampled = (run.sampled or 0) + drifted.compared
                is_shared = {(t.table_id, t.row_id, t.n) for group in groups for t in group}
                chunks = [t for t in drifted.chunks if (t.table_id, t.row_id, t.n) not in is_shared]
                await _record(run, c, chunks, Kind.VECTOR_DRIFTED)
        run.say()
    return is_refuted


async def _sample(run: Run, c: Compared) -> list[ChunkText]:
    """Of each table as many as it has of the chunks that were compared, and at least one."""
    chunks: dict[int, int] = defaultdict(int)
    sample: list[ChunkText] = []
    async with run.target.begin() as tx:
        for s in await tx.comparisons.scans(run.comparison.id):
            if s.generation_id == c.generation.id:
                chunks[s.table_id] += s.chunks
        for table_id, count in chunks.items():
            if count and run.order.sample:
                share = max(1, round(run.order.sample * count / sum(chunks.values())))
                sample += await tx.audit.sample(run.tables[table_id], c.generation, share)
    return sample


@asynccontextmanager
async def _again(run: Run, c: Compared) -> AsyncIterator[Again]:
    """The generation's embedder behind its shared budget."""
    embedder = run.parts.embedder(c.chosen)
    budget, told = run.parts.target("verify-gate"), run.parts.target("verify-orders")
    try:
        orders = Orders(told, run.parts.settings.quiet_hours)
        gate = Gate(budget, c.generation, c.chosen.limits, orders, clock=run.clock, pause=run.pause)
        yield Again(embedder, gate, orders, c.contract, c.tokenizer, c.chosen.limits, run.pause)
    finally:
        for part in (embedder, budget, told):
            await part.close()


async def _record(run: Run, c: Compared, chunks: Sequence[ChunkText], kind: Kind) -> None:
    rows: dict[int, list[ChunkText]] = defaultdict(list)
    for chunk in chunks:
        rows[chunk.table_id].append(chunk)
    found: list[Found] = []
    for table_id, texts in rows.items():
        pieces = await read_pieces(run, c, run.tables[table_id], [t.row_id for t in texts])
        found += [
            Found(kind, table_id, pieces[t.row_id].key, c.generation.id, t.row_id, t.n)
            for t in texts
            if t.row_id in pieces
        ]
    async with run.target.begin() as tx:
        await tx.comparisons.find(run.comparison.id, found)
