"""The Target port on Postgres: the conformance suite, and what only SQL can get wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import pytest

from connectors.postgres_target import PostgresTarget
from daemon.core.model import Known
from tests.builders import row
from tests.ports.budget_suite import BudgetSuite
from tests.ports.comparison_suite import ComparisonSuite
from tests.ports.generation_suite import GenerationSuite
from tests.ports.realign_suite import RealignSuite
from tests.ports.requeue_suite import AfreshSuite, SelectionSuite
from tests.ports.target_shop import Shop
from tests.ports.target_suite import LedgerSuite, QuarantineSuite, ReplicaSuite, VectorsSuite, WorkSuite


class PostgresTargets:
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.made: list[PostgresTarget] = []

    def connect(self, name: str = "shop") -> PostgresTarget:
        self.made.append(PostgresTarget(self.dsn, name, f"revector:{name}:test"))
        return self.made[-1]

    def where(
        self, alias: str, columns: Sequence[str], predicate: Callable[[Mapping[str, Known]], bool | None]
    ) -> None:
        """The database evaluates the condition itself."""

    condition = where


@pytest.fixture
async def targets(emptied_dsn: str) -> AsyncIterator[PostgresTargets]:
    targets = PostgresTargets(emptied_dsn)
    yield targets
    for target in targets.made:
        await target.close()


class TestReplica(ReplicaSuite):
    pass


class TestVectors(VectorsSuite):
    pass


class TestLedger(LedgerSuite):
    pass


class TestWork(WorkSuite):
    pass


class TestQuarantine(QuarantineSuite):
    async def test_of_refused_entries_the_oldest_comes_first(self, shop: Shop) -> None:
        ids = await shop.copy(*(row(k) for k in "123"))
        for k in "312":
            await self.refuse(shop, ids[k], "status-400")
        assert [q.key[0] for q in await self.quarantine(shop)] == ["3", "1", "2"]


class TestSelection(SelectionSuite):
    pass


class TestAfresh(AfreshSuite):
    pass


class TestBudget(BudgetSuite):
    pass


class TestGenerations(GenerationSuite):
    pass


class TestComparisons(ComparisonSuite):
    pass


class TestRealign(RealignSuite):
    pass
