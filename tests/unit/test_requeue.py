"""`revector requeue`: which rows it chooses, what it puts, what it says and writes into the journal. On the target's
twin, through the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.frame import ExitCode, operator
from daemon.core.model import Known, Table, Tally, WorkState
from daemon.procedures import requeue
from tests import builders
from tests.fakes import MemoryTarget
from tests.fakes.replica import MemoryReplica
from tests.fakes.state import WorkEntry
from tests.fakes.work import MemoryLedger
from tests.unit.test_quarantine import Bench

CONDITION = "id > 2"


class Requeue(Bench):
    """The command over a migration on the twin."""

    def __call__(self, *words: str) -> tuple[int, str, str]:
        return self.revector("requeue", *words)

    def entries(self) -> dict[tuple[str, ...], WorkEntry]:
        found = self.database.state
        return {found.keys[t, row]: entry for (_, t, row), entry in found.work.items()}

    def afresh(self) -> set[str]:
        """Keys of the rows that are to be embedded again, whatever is stored."""
        return {key[-1] for key, entry in self.entries().items() if entry.afresh_seq is not None}

    def do(self, step: Callable[[Any], Any]) -> None:
        async def done() -> None:
            async with MemoryTarget(self.database).begin() as tx:
                await step(tx)

        asyncio.run(done())

    def embedded(self, rows: int, tokens: int) -> None:
        self.do(lambda tx: tx.ledger.count_embedded(self.generation, Tally(rows=rows, tokens=tokens)))

    def settle(self, alias: str = "articles") -> None:
        """Every entry of a table is done."""
        table = self.tables[alias]
        self.database.state.work = {p: e for p, e in self.database.state.work.items() if p[1] != table.id}


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Requeue:
    """Rows 1 to 5, all embedded."""
    made = Requeue(tmp_path, capsys)
    made.begin(builders.articles())
    made.add("articles", *((str(n),) for n in range(1, 6)), reason=None)
    made.settle()
    made.database.condition(CONDITION, ("id",), _above_two)
    return made


@pytest.fixture
def several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Requeue:
    """Two tables; the key of the second has two columns."""
    made = Requeue(tmp_path, capsys)
    columns = (builders.column("part"), builders.column("n", "integer"), builders.column("title"))
    parts = replace(builders.articles(), alias="parts", name="parts", key=("part", "n"), columns=columns, filters=())
    made.begin(builders.articles(), replace(parts, template="{title}", text_columns=("title",)))
    made.add("articles", ("1",))
    made.add("parts", ("a", "1"), ("a", "2"), ("b", "1"))
    return made


def _above_two(values: Mapping[str, Known]) -> bool:
    return int(values["id"] or 0) > 2


# --- what is chosen


def test_rows_by_key_wait_afresh_like_backfill_and_are_in_the_journal(bench: Requeue) -> None:
    code, out, _ = bench("--key", "2", "--key", "4")
    assert code == 0
    assert out.splitlines()[0] == "shop: 2 rows waiting to be embedded again in generation v1"
    assert out.splitlines()[1:3] == ["  articles 2", "  articles 4"]
    entries = bench.entries()
    assert set(entries) == {("2",), ("4",)}
    assert all(e.afresh_seq == e.newest and not e.is_live for e in entries.values())
    detail = {"by": operator(), "generation": "v1", "table": "articles", "chosen_by": "key", "rows": 2}
    assert bench.journal() == [("operator", "requeued", {**detail, "keys": [["2"], ["4"]]})]


def test_keys_of_several_columns_follow_each_other(several: Requeue) -> None:
    words = ["--table", "parts", "--key", "a", "--key", "2", "--key", "b", "--key", "1"]
    document = several.asked(*words)
    assert document["rows"] == 2
    assert [k["key"] for k in document["keys"]] == [["a", "2"], ["b", "1"]]
    assert several.asked(*words, "--key", "c", code=ExitCode.NO)["error"]["id"] == "key-incomplete"


def test_one_key_that_is_not_there_and_nothing_is_done(bench: Requeue) -> None:
    error = bench.asked("--key", "2", "--key", "99", code=ExitCode.NO)["error"]
    assert error["id"] == "row-unknown"
    assert "articles 99" in error["message"]
    assert bench.entries() == {}
    assert bench.journal() == []


def test_a_row_tombstone_is_not_there(bench: Requeue) -> None:
    state = bench.database.state
    place = (bench.tables["articles"].id, ("2",))
    state.rows[place] = replace(state.rows[place], values=None)
    assert bench.asked("--key", "2", code=ExitCode.NO)["error"]["id"] == "row-unknown"
    assert bench.asked("--all", "--confirm", "shop")["rows"] == 4


def test_a_condition_chooses_what_it_holds_for_and_is_not_journaled(bench: Requeue) -> None:
    document = bench.asked("--where", CONDITION)
    assert (document["rows"], document["requeued"], document["chosen_by"]) == (3, True, "where")
    assert bench.afresh() == {"3", "4", "5"}
    ((_, event, detail),) = bench.journal()
    assert (event, detail["rows"]) == ("requeued", 3)
    assert CONDITION not in json.dumps(detail)


def test_a_condition_that_is_none_is_said_with_its_place(bench: Requeue) -> None:
    error = bench.asked("--where", "views >", code=ExitCode.CONFIG)["error"]
    assert (error["id"], error["problems"][0]["where"]) == ("where-invalid", "--where")


def test_a_condition_that_holds_for_nothing_is_done_at_once(bench: Requeue) -> None:
    bench.database.condition("false", (), lambda values: False)
    code, out, _ = bench("--where", "false")
    assert (code, out) == (0, "shop: nothing to embed again in generation v1: no row is chosen\n")
    assert bench.journal() == []


def test_pages_cover_the_table_and_each_is_a_transaction(bench: Requeue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue, "PAGE_ROWS", 2)
    assert bench.asked("--all", "--confirm", "shop")["rows"] == 5
    assert bench.afresh() == set("12345")
    (_, begun, first), (_, requeued, last) = bench.journal()
    assert (begun, requeued) == ("requeue-begun", "requeued")
    assert "rows" not in first
    assert (last["rows"], last["keys"]) == (5, [[k] for k in "12345"])


def test_the_journal_and_the_answer_stay_small(bench: Requeue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue, "KEPT_KEYS", 3)
    document = bench.asked("--all", "--confirm", "shop")
    assert (document["rows"], len(document["keys"])) == (5, 3)
    ((_, _, detail),) = bench.journal()
    assert (len(detail["keys"]), detail["keys_left_out"]) == (3, 2)


def test_refused_entries_are_retried_and_not_afresh(several: Requeue) -> None:
    document = several.asked("--refused", "--table", "parts")
    assert (document["rows"], document["chosen_by"]) == (3, "refused")
    assert several.states()["1",] is WorkState.REFUSED
    assert several.states()["a", "1"] is WorkState.WAITING
    assert several.afresh() == set()
    assert several.asked("--refused")["rows"] == 1
    assert [event for _, event, _ in several.journal()] == ["quarantine-retried"] * 2


def test_an_accepted_entry_stays_unless_it_is_named(bench: Requeue) -> None:
    bench.add("articles", ("6",), reason="status-400")
    assert bench.revector("quarantine", "accept", "--key", "6", "--reason", "x")[0] == 0
    assert bench.asked("--all", "--confirm", "shop")["rows"] == 5
    assert bench.states()["6",] is WorkState.ACCEPTED
    assert bench.asked("--key", "6")["rows"] == 1
    assert bench.states()["6",] is WorkState.WAITING


def test_a_row_that_is_changed_between_the_look_and_the_lock_is_judged_again(
    bench: Requeue, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_rows = MemoryReplica.lock_rows

    async def then(self: MemoryReplica, table: Table, row_ids: Sequence[int]) -> set[int]:
        place = (table.id, ("4",))
        self.state.rows[place] = replace(self.state.rows[place], values=None)
        return await lock_rows(self, table, row_ids)

    monkeypatch.setattr(MemoryReplica, "lock_rows", then)
    assert bench.asked("--where", CONDITION)["rows"] == 2
    assert bench.afresh() == {"3", "5"}


def test_repeating_it_keeps_one_entry_each(bench: Requeue) -> None:
    for _ in range(2):
        assert bench.asked("--where", CONDITION)["rows"] == 3
    assert bench.afresh() == {"3", "4", "5"}


def test_what_is_waiting_for_a_change_keeps_its_place(bench: Requeue) -> None:
    async def change(tx: Any) -> None:
        table = bench.tables["articles"]
        row_id = bench.database.state.rows[table.id, ("2",)].row_id
        await tx.replica.lock_rows(table, [row_id])
        await tx.ledger.put_work(table, [bench.generation], [row_id], live=True)

    bench.do(change)
    before = bench.entries()["2",]
    bench("--key", "2")
    after = bench.entries()["2",]
    assert (after.oldest, after.is_live) == (before.oldest, True)
    assert after.afresh_seq is not None


# --- what it says beforehand


def test_a_dry_run_says_rows_and_tokens_and_does_nothing(bench: Requeue) -> None:
    bench.embedded(rows=10, tokens=125)
    code, out, _ = bench("--where", CONDITION, "--dry-run")
    assert code == 0
    assert out.splitlines()[0] == "shop: 3 rows would be embedded again in generation v1"
    assert out.splitlines()[-1] == "  tokens    about 38"
    document = bench.asked("--key", "1", "--dry-run")
    assert (document["rows"], document["tokens_about"], document["requeued"]) == (1, 12, False)
    assert bench.asked("--refused", "--dry-run")["rows"] == 0
    assert bench.entries() == {}
    assert bench.journal() == []


def test_tokens_are_unknown_before_anything_was_embedded(bench: Requeue) -> None:
    assert bench.asked("--key", "1")["tokens_about"] is None
    assert "tokens    unknown" in bench("--key", "1")[1]


def test_all_shows_the_plan_and_wants_the_name(bench: Requeue) -> None:
    code, out, _ = bench("--all")
    assert code == ExitCode.NO
    assert out.splitlines()[0] == "shop: 5 rows would be embedded again in generation v1"
    command = "revector requeue shop --generation v1 --table articles --all --confirm shop"
    assert out.splitlines()[-1] == f"nothing was done; to do it: {command}"
    assert bench("--all", "--dry-run")[0] == 0
    assert bench.entries() == {}
    assert bench.revector(*command.split()[1:])[0] == 0
    assert bench.afresh() == set("12345")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--key", "1", "--all"],
        ["--where", "true", "--refused"],
        ["--where", " "],
        ["--where", "id = '\udcff'"],
        ["--all", "--confirm", "other"],
        ["--all", "--table", "other"],
        [*["--key", "1"] * 1001],
    ],
    ids=lambda words: " ".join(words)[:30].encode("ascii", "replace").decode(),
)
def test_wrong_command_lines(bench: Requeue, words: list[str]) -> None:
    assert bench(*words)[0] == ExitCode.USAGE
    assert bench.entries() == {}


def test_a_table_is_named_where_there_are_several(several: Requeue) -> None:
    for words in (["--key", "1"], ["--where", "true"], ["--all"]):
        code, _, err = several(*words)
        assert code == ExitCode.USAGE
        assert "articles, parts" in err


def test_an_unknown_generation_or_migration_is_the_answer_no(bench: Requeue) -> None:
    for words in (["--key", "1"], ["--where", CONDITION], ["--all", "--confirm", "shop"], ["--refused"]):
        error = bench.asked(*words, "--generation", "v9", code=ExitCode.NO)["error"]
        assert error["id"] == "migration-unknown"
    bench.database.state.is_prepared = False
    assert bench.asked("--key", "1", code=ExitCode.NO)["error"]["id"] == "migration-unknown"


def test_a_page_is_done_with_its_line_in_the_journal_or_not_at_all(
    bench: Requeue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(MemoryLedger, "journal", fail)
    for words in (["--key", "1"], ["--where", CONDITION]):
        assert bench(*words)[0] == ExitCode.FAULT
    assert bench.entries() == {}
