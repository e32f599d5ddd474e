"""The in-memory target passes the suite of the real one: what the flow's tests prove on it holds on Postgres."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from daemon.core.model import Known
from tests.fakes import MemoryDatabase, MemoryTarget
from tests.ports.budget_suite import BudgetSuite
from tests.ports.comparison_suite import ComparisonSuite
from tests.ports.generation_suite import GenerationSuite
from tests.ports.realign_suite import RealignSuite
from tests.ports.requeue_suite import AfreshSuite, SelectionSuite
from tests.ports.target_suite import LedgerSuite, QuarantineSuite, ReplicaSuite, VectorsSuite, WorkSuite


class MemoryTargets:
    def __init__(self) -> None:
        self.database = MemoryDatabase("shop")

    def connect(self) -> MemoryTarget:
        return MemoryTarget(self.database)

    def where(
        self, alias: str, columns: Sequence[str], predicate: Callable[[Mapping[str, Known]], bool | None]
    ) -> None:
        self.database.where(alias, columns, predicate)

    def condition(
        self, text: str, columns: Sequence[str], predicate: Callable[[Mapping[str, Known]], bool | None]
    ) -> None:
        self.database.condition(text, columns, predicate)


@pytest.fixture
def targets() -> MemoryTargets:
    return MemoryTargets()


class TestReplica(ReplicaSuite):
    pass


class TestVectors(VectorsSuite):
    pass


class TestLedger(LedgerSuite):
    pass


class TestWork(WorkSuite):
    pass


class TestQuarantine(QuarantineSuite):
    pass


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
