"""What an operator chooses, on the twin: conditions mean what `MemoryDatabase.condition` was told."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.core.model import Generation, Key, Table, WorkState
from daemon.errors import ConfigError, Problem
from daemon.ports import ChosenRow, Condition
from tests.fakes.state import Context


class MemorySelection:
    def __init__(self, context: Context) -> None:
        self.context, self.state = context, context.state

    async def condition(self, table: Table, text: str) -> Condition:
        if text not in self.context.rules.conditions:
            raise ConfigError([Problem("where-invalid", "--where", f"where of {table.alias} cannot be used", "hint")])
        return Condition(text, self.context.rules.conditions[text][0])

    async def chosen(
        self, table: Table, condition: Condition | None, sparing: Generation, after: int, rows: int
    ) -> tuple[list[ChosenRow], int | None]:
        following = sorted(r for t, r in self.state.keys if t == table.id and r > after)[:rows]
        upto = following[-1] if len(following) == rows else None
        return self._of(table, condition, sparing, following), upto

    async def chosen_of(
        self, table: Table, condition: Condition | None, sparing: Generation | None, row_ids: Sequence[int]
    ) -> list[ChosenRow]:
        for row_id in row_ids:
            self.context.need_row(table, row_id)
        return self._of(table, condition, sparing, sorted(row_ids))

    async def row_ids(self, table: Table, keys: Sequence[Key]) -> dict[Key, int]:
        return {key: self.state.rows[table.id, key].row_id for key in keys if (table.id, key) in self.state.rows}

    def _of(
        self, table: Table, condition: Condition | None, sparing: Generation | None, row_ids: Sequence[int]
    ) -> list[ChosenRow]:
        rules, found = self.context.rules, []
        for row_id in row_ids:
            row = self.state.row(table, row_id)
            if row is None or row.values is None or not rules.wanted(table, row.values):
                continue
            if condition is not None and not rules.holds(table, row.values, *rules.conditions[condition.text]):
                continue
            entry = None if sparing is None else self.state.work.get((sparing.id, table.id, row_id))
            if entry is None or entry.state is not WorkState.ACCEPTED:
                found.append(ChosenRow(row_id, row.key))
        return found
