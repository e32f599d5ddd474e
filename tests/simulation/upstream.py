"""Writers, connector and broker: what happens outside of the product, one small thing at a time.

Up to three transactions interleave; a commit is decoded before it is seen. The connector delivers one partition before
another, restarts and sends a suffix again, leaves a producer behind that delivers late, and, where it is told to,
loses what it held: then `lost` names the keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from daemon.core.model import Key
from tests.fakes import Blocked, MemoryBroker, MemoryConnector, Transaction, UniqueViolation
from tests.fakes.source import LogRecord
from tests.simulation.choices import Choices
from tests.simulation.swarm import Swarm
from tests.simulation.truth import TrueSource

ALIAS = "articles"


class Upstream:
    """source, broker and connector, and whoever works on them. is_lossy: rows were lost that no repair has mended."""

    def __init__(
        self, source: TrueSource, broker: MemoryBroker, connector: MemoryConnector, choices: Choices, swarm: Swarm
    ) -> None:
        self.source, self.broker, self.connector = source, broker, connector
        self.choices, self.swarm = choices, swarm
        self.keys = [str(n) for n in range(swarm.keys)]
        self.txs: list[Transaction] = []
        self.lost: set[Key] = set()
        self.counts: Counter[str] = Counter()
        self.is_busy, self.mood_ends = True, 60  # moves
        self.source.between = self.commit_between
        for key in self.keys:
            source.chains[ALIAS].setdefault((key,), [])

    def move(self) -> None:
        """One thing; of the writers up to three. They are busy for a while, and almost quiet for a while."""
        swarm, choices = self.swarm, self.choices
        if self.mood_ends == 0:
            self.is_busy = not self.is_busy
            self.mood_ends = 20 + choices.below(100 if self.is_busy else 400)
        self.mood_ends -= 1
        write = swarm.write if self.is_busy or self.txs else swarm.write / 100
        weights = (swarm.deliver, write, swarm.flush, swarm.late, swarm.restart, swarm.loss, swarm.marker)
        moves: tuple[Callable[[], None], ...] = (
            self.deliver,
            self.write,
            self.flush,
            self.deliver_abandoned,
            self.restart,
            self.lose,
            self.mark,
        )
        move = moves[self.choices.weighted(weights)]
        for _ in range(1 + self.choices.below(3) if move == self.write else 1):
            move()

    # --- writers

    def values(self) -> dict[str, str | None]:
        choices, many = self.choices, self.swarm.texts
        title = f"t{choices.below(many)}"
        if self.swarm.refusals and choices.chance(self.swarm.refusals):
            title = "forbidden " + title
        return {
            "title": None if choices.chance(0.1) else title,
            "body": None if choices.chance(0.15) else f"b{choices.below(many)}",
            "tenant": f"tenant{choices.below(3)}",
            "views": "0" if choices.chance(0.2) else str(1 + choices.below(50)),
        }

    def write(self) -> None:
        choices = self.choices
        if not self.txs or (self.is_busy and len(self.txs) < 3 and choices.chance(0.2)):
            self.txs.append(self.source.begin())
        tx = choices.pick(self.txs)
        if tx.in_log:
            self._end(tx, tx.show)
            return
        try:
            if tx.waiting and choices.chance(0.1):
                self._roll_back(tx)  # a deadlock, or a writer that gives up
            elif tx.waiting:
                tx.resume()
            elif tx.records and choices.chance(0.5):
                self._commit(tx)
            else:
                self.change(tx, choices.pick(self.keys))
        except UniqueViolation:
            self.counts["rollbacks"] += 1
            self.txs.remove(tx)
        except Blocked:
            self.counts["blocked"] += 1
            if choices.chance(0.15):
                self._roll_back(tx)

    def _commit(self, tx: Transaction) -> None:
        if self.choices.chance(0.06):
            self._roll_back(tx)
            return
        tx.write_commit()
        self.counts["commits"] += 1
        if self.choices.chance(0.5):
            self._end(tx, tx.show)
        else:
            self.counts["late visibility"] += 1

    def change(self, tx: Transaction, key: str) -> None:
        choices, source = self.choices, self.source
        current = source.newest(ALIAS, (key,))
        if choices.chance(self.swarm.truncate):
            tx.truncate(ALIAS)
            self.counts["truncates"] += 1
        elif current is None or choices.chance(0.06):
            if source.holder(ALIAS, (key,)) is not None or current is None:
                tx.insert(ALIAS, id=key, **self.values())
                self.counts["blocked inserts"] += bool(tx.waiting)
        elif choices.chance(0.25):
            tx.delete(ALIAS, key)
        elif choices.chance(self.swarm.rekey):
            other = choices.pick(self.keys)
            if other != key:
                tx.rekey(ALIAS, key, other, unavailable=self.hidden({}))
                self.counts["key changes"] += 1
        else:
            changes = {n: v for n, v in self.values().items() if choices.chance(0.5)}
            tx.update(ALIAS, key, unavailable=self.hidden(changes), **changes)

    def hidden(self, changes: dict[str, str | None]) -> tuple[str, ...]:
        """Unchanged columns that their event does not carry."""
        hidden = tuple(
            n for n in ("body", "tenant", "views") if n not in changes and self.choices.chance(self.swarm.toast)
        )
        self.counts["unavailable"] += bool(hidden)
        return hidden

    def commit_between(self) -> None:
        """Another commit between a message's LSN and its own."""
        ready = [tx for tx in self.txs if tx.records and not tx.in_log and not tx.waiting]
        if ready and self.choices.chance(0.3):
            tx = self.choices.pick(ready)
            tx.write_commit()
            self.counts["commits within a barrier"] += 1
            if self.choices.chance(0.5):
                self._end(tx, tx.show)

    def _end(self, tx: Transaction, how: Callable[[], None]) -> None:
        how()
        self.txs.remove(tx)

    def _roll_back(self, tx: Transaction) -> None:
        self.counts["rollbacks"] += 1
        self._end(tx, tx.rollback)

    # --- connector and broker

    def deliver(self) -> None:
        choices, connector = self.choices, self.connector
        if self.source.session is None:
            if choices.chance(0.3) or choices.is_calm:
                self.connect()
            return
        connector.truncate_partition = choices.below(2)
        connector.submit(1 + choices.below(8))
        for _ in range(1 + choices.below(3)):
            full = [at for at, queue in connector.queues.items() if queue]
            if full:
                connector.ack(choices.pick(full), 1 + choices.below(6))

    def flush(self) -> None:
        """Connect commits the offset; what the slot confirms follows later."""
        if self.source.session is not None:
            self.connector.flush()
            self.source.confirmed_lsn = self.connector.offset_lsn()

    def deliver_abandoned(self) -> None:
        if self.connector.abandoned:
            self.counts["late producers"] += 1
            self.connector.deliver_abandoned(1)

    def mark(self) -> None:
        self.broker.marker(self.choices.pick(list(self.connector.queues)))
        self.counts["markers"] += 1

    def restart(self, is_losing: bool = False) -> None:
        """A new task, later: until then nobody reads the slot, and the old one may still send what it read last."""
        if self.source.session is None:
            return
        connector = self.connector
        if is_losing:
            self._forget_some()
        self.source.session = None
        connector.submit(self.choices.below(8))
        connector.restart(abandon=self.choices.chance(0.4))
        self.counts["connector restarts"] += 1

    def connect(self) -> None:
        self.source.session = f"{self.connector.run}@{self.source.clock.now_s}"

    def lose(self) -> None:
        """A restart that drops records: they are in no partition and never will be."""
        self.restart(is_losing=True)

    def _forget_some(self) -> None:
        connector, log = self.connector, self.source.log
        pending = [n for n in range(connector.committed, len(log)) if n not in connector.acked]
        dropped = [n for n in pending if self.choices.chance(0.5)]
        if not dropped:
            return
        self.counts["losses"] += 1
        for n in dropped:
            self._note(log[n])
            log[n] = LogRecord(log[n].lsn, log[n].previous_commit, log[n].xid, log[n].ts_ms, "m", payload=b"lost")

    def _note(self, record: LogRecord) -> None:
        if record.kind == "t":
            self.lost |= {(key,) for key in self.keys}
        elif record.kind != "m":
            self.lost.add(record.key)

    # --- the end

    def come_to_rest(self) -> None:
        """Writers end, and everything that is on its way arrives."""
        self.end_writers()
        if self.source.session is None:
            self.connect()
        self.connector.deliver()
        self.connector.deliver_abandoned()
        self.flush()

    def end_writers(self) -> None:
        while self.txs:
            for tx in list(self.txs):
                if not tx.in_log and tx.waiting:
                    self._end(tx, tx.rollback)
                elif not tx.in_log:
                    tx.write_commit()
                    self._end(tx, tx.show)
                else:
                    self._end(tx, tx.show)
