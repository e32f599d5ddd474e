"""Random play of the product's own steps over in-memory twins: one seed, one history.

Writers' transactions interleave, a connector delivers, restarts and leaves a late producer behind; two streams, two
backfill workers, completions and three embedding workers take their steps in any order, are forgotten in the middle
and find their leases expired; a second generation comes, is swept and goes; proofs run while all of this goes on.
After every step the invariants of `World` hold; every certificate is compared with the source's history; at the end
everything drains and equals the source.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from daemon.core.model import Generation
from daemon.errors import LeaseLost
from daemon.flow.backfill import Backfill, PageRead
from daemon.flow.batch import Answer, Plan
from daemon.flow.embed import EmbedWorker
from daemon.flow.stream import Stream
from daemon.procedures.prove import prove
from tests import builders
from tests.fakes import Blocked, Transaction, UniqueViolation, then
from tests.flow.world import World

KEYS = [str(n) for n in range(4)]
Act = Callable[[], Awaitable[None]]


class Simulation:
    """One random history. `run` plays it and raises AssertionError where a promise is broken."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        table = builders.articles(where="views <> 0", where_columns=("views",)) if seed % 2 else builders.articles()
        self.world = World(table)
        self.world.database.where("articles", ["views"], lambda row: row["views"] not in (None, "0"))
        self.steps, self.faults = self.rng.choice((60, 120, 240)), self.rng.choice((0, 2, 8))
        self.txs: list[Transaction] = []
        self.streams: list[Stream] = []
        self.fills: list[tuple[Backfill, PageRead | None]] = []
        self.workers: list[tuple[EmbedWorker, list[Plan | tuple[Plan, Answer]]]] = []
        self.certificates: Counter[str] = Counter()  # by generation
        self.proofs = self.generations = 0
        self.trace: list[str] = []

    async def run(self) -> None:
        world = await self.world.open()
        for key in KEYS:
            if self.rng.random() < 0.5:
                world.source.seed("articles", {"id": key, **self.values()})
        for _ in range(self.rng.randrange(12)):
            await self.upstream()
        world.clock.sleep = self.while_waiting  # type: ignore[method-assign]
        await world.begin(ranges=2)
        self.streams = [world.stream(f"s{n}") for n in range(2)]
        self.fills = [(world.backfill(f"b{n}", page_rows=2), None) for n in range(2)]
        self.workers = [(world.worker(f"e{n}"), []) for n in range(3)]
        for _ in range(self.steps):
            await self.step()
            world.check_rows()
        await self.drain()

    async def step(self) -> None:
        moves: list[tuple[Act, int]] = [
            (self.upstream, 30),
            (self.stream, 16),
            (self.page, 8),
            (self.complete, 5),
            (self.embed, 16),
            (self.regenerate, 8),
            (self.forget, self.faults),
            (self.expire, self.faults),
            (self.prove, 1),
        ]
        acts, weights = zip(*moves, strict=True)
        act = self.rng.choices(acts, weights)[0]
        self.trace.append(act.__name__)
        await act()

    # --- upstream: writers and connector

    async def upstream(self) -> None:
        move = self.rng.choices((self.write, self.deliver, self.disturb), (60, 30, self.faults))[0]
        move()

    def values(self) -> dict[str, str | None]:
        rng = self.rng
        return {
            "title": rng.choice((None, "", f"t{rng.randrange(3)}", f"t{rng.randrange(40)}")),
            "body": rng.choice((None, f"b{rng.randrange(3)}", f"b{rng.randrange(40)}")),
            "tenant": f"tenant{rng.randrange(3)}",
            "views": rng.choice((None, "0", "1", str(rng.randrange(50)))),
        }

    def write(self) -> None:
        rng, source = self.rng, self.world.source
        if not self.txs or (len(self.txs) < 3 and rng.random() < 0.3):
            self.txs.append(source.begin())
        tx = rng.choice(self.txs)
        if tx.in_log:
            tx.show()
            self.txs.remove(tx)
            return
        try:
            if tx.waiting and rng.random() < 0.2:
                self.roll_back(tx)  # a deadlock, or a writer that gives up
            elif tx.waiting:
                tx.resume()
            elif rng.random() < 0.3:
                tx.write_commit() if rng.random() < 0.9 else self.roll_back(tx)
            else:
                self.change(tx, rng.choice(KEYS))
        except UniqueViolation:
            self.txs.remove(tx)
        except Blocked:
            if rng.random() < 0.3:
                self.roll_back(tx)

    def change(self, tx: Transaction, key: str) -> None:
        rng, current = self.rng, self.world.source.newest("articles", (key,))
        if rng.random() < 0.03:
            tx.truncate("articles")
        elif current is None or rng.random() < 0.15:
            if self.world.source.holder("articles", (key,)) is not None or current is None:
                tx.insert("articles", id=key, **self.values())
        elif rng.random() < 0.25:
            tx.delete("articles", key)
        elif rng.random() < 0.35:
            other = rng.choice(KEYS)
            if other != key:
                tx.rekey("articles", key, other, unavailable=self.toast({}))
        else:
            fresh = self.values()
            changes = {n: v for n, v in fresh.items() if rng.random() < 0.5}
            tx.update("articles", key, unavailable=self.toast(changes), **changes)

    def toast(self, changes: dict[str, str | None]) -> tuple[str, ...]:
        return tuple(n for n in ("body", "tenant", "views") if n not in changes and self.rng.random() < 0.5)

    def roll_back(self, tx: Transaction) -> None:
        tx.rollback()
        self.txs.remove(tx)

    def deliver(self) -> None:
        rng, connector = self.rng, self.world.connector
        connector.truncate_partition = rng.randrange(2)
        connector.submit(rng.randint(1, 4))
        place = rng.choice(list(connector.queues))
        connector.ack(place, rng.randint(1, 4))
        if rng.random() < 0.4:
            connector.flush()
        if rng.random() < 0.25:
            connector.deliver_abandoned(1)
        if rng.random() < 0.05:
            self.world.broker.marker(place)

    def disturb(self) -> None:
        self.world.connector.restart(abandon=self.rng.random() < 0.5)

    async def while_waiting(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        await self.upstream()

    # --- the product

    async def stream(self) -> None:
        stream = self.rng.choice(self.streams)
        if not stream.is_owner and not await stream.take_over():
            return
        feed = stream.parts.feed
        places = self.world.broker.places()
        feed.hold([p for p in places if self.rng.random() < 0.3])  # type: ignore[attr-defined]
        stream.parts.limits = builders.limits(window_records=self.rng.choice((1, 3, 1000)))
        try:
            await stream.step()
        except LeaseLost:
            stream._forget()
        feed.release()  # type: ignore[attr-defined]

    async def page(self) -> None:
        n = self.rng.randrange(len(self.fills))
        fill, read = self.fills[n]
        if read is not None:
            await fill.write(read)
            self.fills[n] = (fill, None)
        elif not self.world.source.table_locks:  # a page waits for a truncate's lock
            self.fills[n] = (fill, await fill.read())

    async def complete(self) -> None:
        if self.world.source.table_locks:
            return
        if self.rng.random() < 0.5:
            self.world.faults.at("source.rows", then(self.meanwhile))
        await self.world.completion().step(self.world.table)
        self.world.faults.planned.clear()

    async def meanwhile(self) -> None:
        self.world.faults.planned.clear()
        for _ in range(self.rng.randrange(10)):
            await self.upstream()
            await self.stream()

    async def embed(self) -> None:
        worker, job = self.rng.choice(self.workers)
        table = self.world.table
        if not job:
            claims = await worker.claim(table)
            if claims:
                if self.rng.random() < 0.3:
                    await self.upstream()
                    await self.stream()
                job.append(await worker.prepare(table, claims))
        elif isinstance(plan := job[0], tuple):
            await worker.store(*plan)
            job.clear()
        else:
            job[0] = (plan, await worker.ask(plan))

    async def regenerate(self) -> None:
        """A second generation comes, is swept page by page by whoever has the stream, and goes now and then."""
        world, rng = self.world, self.rng
        if len(world.generations) == 1:
            if rng.random() < 0.3:
                made = await world.add_generation("v2")
                self.generations += 1
                crew = world.crew_of(made)
                self.workers += [(world.worker(f"g{made.id}-{n}", crew), []) for n in range(2)]
        elif rng.random() < 0.03:
            gone = world.generations[-1]
            await world.drop_generation()
            self.workers = [each for each in self.workers if each[0].crew.generation != gone]
        else:
            await world.sweep().step()

    async def forget(self) -> None:
        """A process dies between two steps."""
        kind = self.rng.randrange(3)
        if kind == 0:
            self.rng.choice(self.streams)._forget()
        elif kind == 1:
            n = self.rng.randrange(len(self.fills))
            self.fills[n] = (self.world.backfill(f"b{n}", page_rows=2), None)
        else:
            self.rng.choice(self.workers)[1].clear()

    async def expire(self) -> None:
        """Leases and claims expire while their owners still believe in them."""
        self.world.clock.advance(self.rng.choice((31, 301)))
        for stream in self.streams:
            stream.renew_at = self.world.clock() + 1000

    async def prove(self) -> None:
        async def pause(seconds: float) -> None:
            self.world.clock.advance(seconds)
            for _ in range(self.rng.randrange(6)):
                act = self.rng.choice((self.upstream, self.stream, self.stream, self.complete, self.embed, self.page))
                await act()
                self.world.connector.flush()

        await self.certify(self.rng.choice(self.world.generations), pause)

    async def certify(self, generation: Generation, pause: Callable[[float], Awaitable[None]]) -> None:
        """Try a proof, and hold what it certifies against the source's history."""
        self.proofs += 1
        token = f"proof-{self.proofs}"
        self.world.indexes.valid["articles", generation.id] = True
        await self.world.compared()
        certificate, _ = await prove(self.world.proof(pause, generation), token, "2026-01-01T00:00:00Z", 5)
        if certificate is not None:
            self.certificates[generation.name] += 1
            log = self.world.source.log
            self.world.check_certificate(max(r.lsn for r in log if f'"{token}"'.encode() in r.payload), generation)

    async def drain(self) -> None:
        """Writers end; then everything that is on its way arrives, and the replica equals the source."""
        self.world.faults.planned.clear()
        for tx in list(self.txs):
            if not tx.in_log and not tx.waiting and self.rng.random() < 0.7:
                tx.write_commit()
            with suppress(ValueError):
                tx.show() if tx.in_log else tx.rollback()
        self.world.connector.deliver()
        self.world.connector.deliver_abandoned()
        await self.world.settle()
        self.world.check()

        async def pause(seconds: float) -> None:
            self.world.clock.advance(seconds)
            await self.world.settle()

        for generation in self.world.generations:
            await self.certify(generation, pause)
