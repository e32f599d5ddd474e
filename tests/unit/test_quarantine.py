"""`revector quarantine`: what it shows, what it changes, what it writes into the journal, and that it is all or
nothing. On the target's twin, through the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.cli.app import build
from daemon.cli.frame import ExitCode, Frame, operator, run
from daemon.core.model import Generation, Table, WorkState
from daemon.core.refusals import Refusal, meaning, refusal, remedy
from daemon.flow.stream import follow_up
from daemon.ports import SourceRow
from daemon.procedures import quarantine
from tests import builders
from tests.fakes import MemoryDatabase, MemoryTarget
from tests.fakes.replica import MemoryReplica
from tests.fakes.work import MemoryLedger

CONFIG = (
    builders.CONFIG
    + """[[generation]]
name = "v1"
model = "small"
dimensions = 8
base_url = "http://127.0.0.1:1/v1"
"""
)
PARTS = '[[table]]\nsource = "public.parts"\ntext = "{title}"\n'
SECRET = "the text of a row, which is nobody's business"


@dataclass
class Bench:
    """A migration on the twin, and the command line over it."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    database: MemoryDatabase = field(default_factory=lambda: MemoryDatabase("shop"))
    tables: dict[str, Table] = field(default_factory=dict)

    @property
    def generation(self) -> Generation:
        return next(iter(self.database.state.generations.values())).generation

    def begin(self, *tables: Table) -> None:
        async def prepare() -> None:
            target = MemoryTarget(self.database)
            await target.prepare()
            made = await target.create_tables(tables)
            contract = builders.contract(made)
            async with target.begin() as tx:
                await tx.ledger.add_generation("v1", contract.as_json(), contract.id)
            self.tables |= {t.alias: t for t in made}

        asyncio.run(prepare())
        text = CONFIG.replace("[[generation]]", f"{PARTS}[[generation]]" if len(tables) > 1 else "[[generation]]")
        (self.folder / "revector.toml").write_text(text)

    def add(self, alias: str, *keys: tuple[str, ...], reason: str | None = "status-400 bad input") -> None:
        """Rows of a table; refused unless reason is None."""
        table = self.tables[alias]

        async def put() -> None:
            async with MemoryTarget(self.database).begin() as tx:
                await tx.ledger.hold_migration()
                blanks: list[str | None] = [SECRET] * (len(table.columns) - len(table.key))
                effects = await tx.replica.copy_in(table, [SourceRow(k, (*k, *blanks)) for k in keys])
                await follow_up(tx, table, [self.generation], effects, live=False)
                if reason is not None:
                    claims = await tx.ledger.claim(table, self.generation, "w", 1000, 60)
                    await tx.ledger.refuse(table, self.generation, "w", claims, reason)

        asyncio.run(put())

    def states(self) -> dict[tuple[str, ...], WorkState]:
        found = self.database.state
        return {found.keys[t, row]: entry.state for (_, t, row), entry in found.work.items()}

    def journal(self) -> list[tuple[str, str, Any]]:
        return [(e.kind, e.id, e.detail) for e in self.database.state.journal]

    def __call__(self, *words: str) -> tuple[int, str, str]:
        return self.revector("quarantine", words[0], *words[1:])

    def revector(self, *words: str) -> tuple[int, str, str]:
        parts: Any = SimpleNamespace(target=lambda role: MemoryTarget(self.database))
        self.capsys.readouterr()
        frame = Frame(parts=lambda loaded: parts, environ={})
        code = run(build(), [*words, "--config", str(self.folder / "revector.toml")], frame)
        out, err = self.capsys.readouterr()
        assert SECRET not in out + err
        return code, out, err

    def asked(self, *words: str, code: int = 0) -> Any:
        ended, out, err = self(*words, "--json")
        assert ended == code, out + err
        return json.loads(out)


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Rows 1 and 2 are refused, 3 waits."""
    made = Bench(tmp_path, capsys)
    made.begin(builders.articles())
    made.add("articles", ("1",), reason="status-400 context_length_exceeded input")
    made.add("articles", ("2",), reason="status-422 content_filter")
    made.add("articles", ("3",), reason=None)
    return made


@pytest.fixture
def several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Two tables; the key of the second has two columns."""
    made = Bench(tmp_path, capsys)
    columns = (builders.column("part"), builders.column("n", "integer"), builders.column("title"))
    parts = replace(builders.articles(), alias="parts", name="parts", key=("part", "n"), columns=columns, filters=())
    made.begin(builders.articles(), replace(parts, template="{title}", text_columns=("title",)))
    made.add("articles", ("1",))
    made.add("parts", ("a", "1"), ("a", "2"))
    return made


# --- looking


def test_list_shows_key_state_age_and_reason(bench: Bench) -> None:
    code, out, _ = bench("list")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "shop: 2 refused, 0 accepted in generation v1"
    assert lines[2].split()[:3] == ["articles", "1", "refused"]
    assert lines[2].endswith("status 400, code context_length_exceeded, parameter input")
    assert lines[-1] == "next: revector quarantine show shop --table articles --key 1"


def test_list_as_a_document(bench: Bench) -> None:
    bench("accept", "--key", "2", "--reason", "why not")
    document = bench.asked("list")
    assert document["schema"] == "revector.quarantine/1"
    assert (document["migration"], document["generation"], document["action"]) == ("shop", "v1", "list")
    assert (document["refused"], document["accepted"], document["changed"]) == (1, 1, None)
    assert [(e["key"], e["state"]) for e in document["entries"]] == [
        ({"id": "1"}, "refused"),
        ({"id": "2"}, "accepted"),
    ]
    assert document["entries"][0]["reason"] == {
        "status": 400,
        "code": "context_length_exceeded",
        "parameter": "input",
    }


@pytest.mark.parametrize(("state", "keys"), [("refused", ["1"]), ("accepted", ["2"])])
def test_list_of_one_state(bench: Bench, state: str, keys: list[str]) -> None:
    bench("accept", "--key", "2", "--reason", "why not")
    assert [e["key"]["id"] for e in bench.asked("list", "--state", state)["entries"]] == keys


def test_list_says_that_there_is_more(bench: Bench) -> None:
    document = bench.asked("list", "--limit", "1")
    assert (len(document["entries"]), document["is_cut"], document["refused"]) == (1, True, 2)
    assert not bench.asked("list", "--limit", "2")["is_cut"]
    assert "and more" in bench("list", "--limit", "1")[1]


def test_list_of_one_table(several: Bench) -> None:
    assert {e["table"] for e in several.asked("list")["entries"]} == {"articles", "parts"}
    assert [e["key"] for e in several.asked("list", "--table", "parts")["entries"]] == [
        {"part": "a", "n": "1"},
        {"part": "a", "n": "2"},
    ]


def test_an_empty_quarantine_is_said(bench: Bench) -> None:
    bench("retry", "--all")
    assert bench("list")[:2] == (0, "shop: nothing in quarantine of generation v1\n")


def test_show_explains_one_entry(bench: Bench) -> None:
    code, out, _ = bench("show", "--key", "1")
    assert code == 0
    assert out.startswith("articles 1: refused in generation v1\n")
    for part in ("too long", "shorten the row", "1 time", "quarantine retry shop --table articles --key 1"):
        assert part in out
    (entry,) = bench.asked("show", "--key", "2")["entries"]
    assert (entry["key"], entry["attempts"], entry["meaning"]) == (
        {"id": "2"},
        1,
        meaning(Refusal(422, "content_filter")),
    )


def test_what_comes_next_names_the_generation_where_it_was_named(bench: Bench) -> None:
    assert bench("list", "--generation", "v1")[1].endswith("show shop --generation v1 --table articles --key 1\n")
    assert "retry shop --generation v1 --table articles" in bench("show", "--generation", "v1", "--key", "1")[1]


def test_a_key_cannot_move_the_cursor(several: Bench) -> None:
    several.add("parts", ("\x1b[2J", "7"))
    assert "\x1b" not in several("list")[1] + several("show", "--table", "parts", "--key", "\x1b[2J", "--key", "7")[1]


# --- changing


@pytest.mark.parametrize("check", ["provider-not-finite", "provider-answer-too-large"])
def test_a_text_whose_answer_cannot_be_right_is_not_called_too_long(check: str) -> None:
    read = refusal(f"status-200 {check}")
    assert (read.status, read.code) == (200, check)
    assert "cannot be right" in meaning(read) and "shorten" not in remedy(read)


@pytest.mark.parametrize("words", [("retry", "--all"), ("accept", "--all", "--reason", "why")], ids=["retry", "accept"])
def test_tables_are_locked_in_the_order_in_which_windows_lock_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """That of their aliases, whatever the order of the configuration: two orders would wait in a circle."""
    made = Bench(tmp_path, capsys)
    made.begin(replace(builders.articles(), alias="second"), replace(builders.articles(), alias="first"))
    made.add("second", ("1",))
    made.add("first", ("1",))
    locked: list[str] = []
    lock_rows = MemoryReplica.lock_rows

    async def lock(self: MemoryReplica, table: Table, row_ids: Sequence[int]) -> set[int]:
        locked.append(table.alias)
        return await lock_rows(self, table, row_ids)

    monkeypatch.setattr(MemoryReplica, "lock_rows", lock)
    assert made(*words)[0] == 0
    assert locked == ["first", "second"]


def test_retry_makes_a_row_wait_again_and_is_in_the_journal(bench: Bench) -> None:
    code, out, _ = bench("retry", "--key", "1")
    assert (code, out.splitlines()[0]) == (0, "shop: 1 row waiting again in generation v1")
    assert bench.states() == {("1",): WorkState.WAITING, ("2",): WorkState.REFUSED, ("3",): WorkState.WAITING}
    detail = {"by": operator(), "generation": "v1", "rows": 1, "keys": {"articles": [["1"]]}}
    assert bench.journal() == [("operator", "quarantine-retried", detail)]


def test_retry_all_takes_refused_entries_and_leaves_accepted_ones(bench: Bench) -> None:
    bench("accept", "--key", "2", "--reason", "why not")
    assert bench.asked("retry", "--all")["changed"] == 1
    assert bench.states()["2",] is WorkState.ACCEPTED
    assert bench.asked("retry", "--key", "2")["changed"] == 1
    assert bench.states()["2",] is WorkState.WAITING


def test_accept_needs_a_reason_and_journals_it_with_the_keys_and_the_account(bench: Bench) -> None:
    for missing in ([], ["--reason", " "], ["--reason", "x" * 501]):
        assert bench("accept", "--all", *missing)[0] == ExitCode.USAGE
    assert bench.journal() == []
    document = bench.asked("accept", "--all", "--reason", "scans")
    assert (document["changed"], document["refused"], document["accepted"]) == (2, 0, 2)
    keys = {"articles": [["1"], ["2"]]}
    detail = {"by": operator(), "reason": "scans", "generation": "v1", "rows": 2, "keys": keys}
    assert bench.journal() == [("operator", "quarantine-accepted", detail)]
    assert bench.states() == {("1",): WorkState.ACCEPTED, ("2",): WorkState.ACCEPTED, ("3",): WorkState.WAITING}


def test_what_changes_nothing_is_said_and_not_journaled(bench: Bench) -> None:
    bench("accept", "--all", "--reason", "scans")
    before = bench.journal()
    assert "accepted already" in bench("accept", "--key", "1", "--reason", "again")[1]
    assert "nothing to accept" in bench("accept", "--all", "--reason", "again")[1]
    assert "nothing to retry" in bench("retry", "--all")[1]
    assert bench.journal() == before


def test_all_of_one_table_is_of_that_table_only(several: Bench) -> None:
    assert several.asked("accept", "--all", "--table", "parts", "--reason", "x")["changed"] == 2
    assert several.states()["1",] is WorkState.REFUSED
    assert several.asked("retry", "--table", "parts", "--key", "a", "--key", "2")["changed"] == 1
    assert several.states()["a", "2"] is WorkState.WAITING
    assert several.states()["a", "1"] is WorkState.ACCEPTED


def test_many_entries_are_changed_in_one_transaction_and_the_journal_stays_small(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add("articles", *((str(n),) for n in range(100, 400)))
    monkeypatch.setattr(quarantine, "BATCH", 7)
    before = bench.database.commits
    document = bench.asked("accept", "--all", "--reason", "many")
    assert (document["changed"], bench.database.commits - before) == (303, 1)
    ((_, _, detail),) = bench.journal()
    assert (detail["rows"], sum(len(k) for k in detail["keys"].values()), detail["keys_left_out"]) == (303, 100, 203)
    assert (len(document["entries"]), document["is_cut"]) == (20, True)


def test_one_command_takes_so_many_and_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MOST_ENTRIES", 1)
    code, out, _ = bench("retry", "--all")
    assert code == 0
    assert out.splitlines()[-1].strip() == "that was as many as one command takes: repeat it"
    assert bench.asked("list")["refused"] == 1


def test_nothing_is_half_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(MemoryLedger, "journal", fail)
    before = bench.states()
    assert bench("accept", "--all", "--reason", "x")[0] == ExitCode.FAULT
    assert bench("retry", "--all")[0] == ExitCode.FAULT
    assert bench.states() == before


@contextmanager
def meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[MemoryLedger], None]) -> Iterator[None]:
    """Another transaction's change between the look and the lock."""
    look = MemoryLedger.quarantine

    async def then(self: MemoryLedger, *arguments: Any) -> Any:
        found = await look(self, *arguments)
        change(self)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(MemoryLedger, "quarantine", then)
        yield


@pytest.mark.parametrize("command", [["retry", "--all"], ["accept", "--all", "--reason", "x"]])
def test_an_entry_that_went_meanwhile_is_not_made_again(
    bench: Bench, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row was deleted, and its work with it: a new entry would be of a row that does not exist."""

    def delete(ledger: MemoryLedger) -> None:
        ledger.state.work = {p: e for p, e in ledger.state.work.items() if ledger.state.keys[p[1], p[2]] != ("1",)}

    with meanwhile(monkeypatch, delete):
        assert bench.asked(*command)["changed"] == 1
    assert ("1",) not in bench.states()


# --- what cannot be meant


def test_an_unknown_key_is_the_answer_no(bench: Bench) -> None:
    for command in (["show"], ["retry"], ["accept", "--reason", "x"]):
        code, out, err = bench(*command, "--key", "99")
        assert (code, out) == (ExitCode.NO, "")
        assert "no entry in quarantine for articles 99" in err
        assert bench.asked(*command, "--key", "3", code=ExitCode.NO)["error"]["id"] == "entry-unknown"
    assert bench.journal() == []


def test_a_key_of_other_length_is_refused_with_the_columns(several: Bench) -> None:
    code, _, err = several("show", "--table", "parts", "--key", "a")
    assert code == ExitCode.NO
    assert "(part, n)" in err
    assert "key-incomplete" in err


def test_a_negative_key_is_a_key(bench: Bench) -> None:
    bench.add("articles", ("-5",))
    for flags in (["--key=-5"], ["--key", "-5"]):
        assert bench.asked("show", *flags)["entries"][0]["key"] == {"id": "-5"}
    assert "--key=-5" in bench("show", "--key=-5")[1]


@pytest.mark.parametrize(
    "words",
    [
        ["show"],
        ["retry"],
        ["retry", "--all", "--key", "1"],
        ["accept", "--reason", "x"],
        ["list", "--state", "waiting"],
        ["list", "--table", "other"],
        ["list", "--limit", "0"],
    ],
    ids=" ".join,
)
def test_wrong_command_lines(bench: Bench, words: list[str]) -> None:
    assert bench(*words)[0] == ExitCode.USAGE


def test_a_key_without_its_table_where_there_are_several(several: Bench) -> None:
    code, _, err = several("show", "--key", "1")
    assert code == ExitCode.USAGE
    assert "articles, parts" in err


def test_an_unknown_generation_or_migration_is_the_answer_no(bench: Bench) -> None:
    assert bench.asked("list", "--generation", "v9", code=ExitCode.NO)["error"]["id"] == "migration-unknown"
    bench.database.state.is_prepared = False
    assert bench.asked("list", code=ExitCode.NO)["error"]["id"] == "migration-unknown"


# --- words


@pytest.mark.parametrize(
    ("reason", "read"),
    [
        ("status-400 context_length_exceeded input", Refusal(400, "context_length_exceeded", "input")),
        ("status-400 input[3]", Refusal(400, None, "input[3]")),
        ("status-422 content_filter", Refusal(422, "content_filter")),
        ("status-413", Refusal(413)),
        ("input-too-long", Refusal(None, "input-too-long")),
        ("status-500", Refusal(500)),
        ("", Refusal()),
    ],
)
def test_what_is_kept_of_a_refusal_is_read(reason: str, read: Refusal) -> None:
    assert refusal(reason) == read
    assert meaning(read).endswith(".")
    assert not remedy(read).endswith(".")


def test_lengths_and_contents_have_their_own_remedy() -> None:
    long, content, other = Refusal(400, "context_length_exceeded"), Refusal(400, "content_filter"), Refusal(400)
    assert len({remedy(r) for r in (long, content, other)}) == 3
    assert remedy(Refusal(413)) == remedy(Refusal(500)) == remedy(Refusal(None, "input-too-long")) == remedy(long)
    assert str(Refusal()) == "unknown"
