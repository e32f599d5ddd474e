"""`revector verify`: what it asks for, what it shows, what it writes and what it returns. The comparison itself has
tests of its own; here one stands in that tells its progress and ends as the test says."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import typer

from daemon.cli.app import build
from daemon.cli.frame import ExitCode, Frame, run
from daemon.cli.output import LINES_EVERY_S, Output, ProgressLine
from daemon.cli.verifying import seconds_of
from daemon.cli.verifying_face import LISTED, SHOWN, Outcome, progress
from daemon.core.comparison import Comparison, Found, Kind, State
from daemon.errors import HeldElsewhere, TransientError
from daemon.procedures import compare
from daemon.procedures.compare import Order, Progress, Report
from tests import builders

CONFIG = (
    builders.CONFIG + '[[generation]]\nname = "v1"\nprovider = "local"\nmodel = "wordllama-256"\ndimensions = 256\n'
)
KEYS = {1: ("articles", ("tenant", "id"))}
EXTRA = Found(Kind.ROW_EXTRA, 1, ("t1", "7"))
STALE = Found(Kind.CHUNK_STALE, 1, ("t1", "8"), generation_id=1, row_id=3, n=0)
ORPHAN = Found(Kind.CHUNK_ORPHAN, 1, None, generation_id=1, row_id=99, n=2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@dataclass
class Bench:
    """The command line over a comparison that ends as `comparison` and `found` say."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    comparison: Comparison = field(default_factory=builders.comparison)
    found: list[Found] = field(default_factory=list)
    unfinished: str | None = None
    raises: BaseException | None = None
    told: list[Progress] = field(default_factory=list)
    orders: list[tuple[Order, str]] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        (self.folder / "revector.toml").write_text(CONFIG)
        self.monkeypatch.chdir(self.folder)

    async def verify(self, parts: Any, order: Order, by: str, tell: Callable[[Progress], None]) -> Report:
        self.orders.append((order, by))
        for told in self.told:
            tell(told)
        self.meanwhile()
        if self.raises is not None:
            raise self.raises
        is_finished = self.unfinished is None
        return Report(self.comparison, is_finished, self.unfinished, KEYS, {1: "v1"}, tuple(self.found[:1000]))

    async def findings(self, parts: Any, comparison: int) -> AsyncGenerator[Found]:
        assert comparison == self.comparison.id
        for found in self.found:
            yield found

    def run(self, *arguments: str, err: io.StringIO | None = None, environ: dict[str, str] | None = None) -> Ended:
        self.monkeypatch.setattr(compare, "verify", self.verify)
        self.monkeypatch.setattr(compare, "findings", self.findings)
        out, err = io.StringIO(), err or io.StringIO()
        frame = Frame(parts=lambda loaded: cast(Any, loaded), environ=environ or {}, stdout=out, stderr=err)
        return Ended(run(build(), ["verify", *arguments], frame), out.getvalue(), err.getvalue())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def differing(bench: Bench, *found: Found) -> None:
    """The comparison ends with these; of them what is not repaired stands."""
    bench.found = list(found)
    left = [f.kind.value for f in found if not f.is_repaired]
    mended = [f.kind.value for f in found if f.is_repaired]
    bench.comparison = replace(
        bench.comparison,
        state=State.DIFFERS if left else State.CLEAN,
        open={kind: left.count(kind) for kind in left},
        repaired={kind: mended.count(kind) for kind in mended},
    )


# --- what is asked for


def test_options_become_the_order(bench: Bench) -> None:
    assert bench.run("shop").code == ExitCode.YES
    arguments = "--generation v1 --repair --max-duration 1h30m --reembed-sample 0 --fresh"
    bench.run(*arguments.split())
    orders = [order for order, _ in bench.orders]
    assert orders == [Order(None, False, 200, None, False), Order("v1", True, 0, 5400.0, True)]


def test_two_processes_of_one_operator_are_two_owners(bench: Bench) -> None:
    bench.run()
    bench.run()
    (_, one), (_, other) = bench.orders
    assert one != other


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("2h", 7200), ("1d", 86_400), ("1h30m", 5400), ("90", 90)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "30 m", "30x", "-5s", "0", "0s", "1h x", "1.5.2s", "s30"])
def test_what_is_no_time_is_a_usage_error(text: str, bench: Bench) -> None:
    with pytest.raises(typer.BadParameter):
        seconds_of(text)
    assert bench.run("--max-duration", text).code == ExitCode.USAGE
    assert bench.orders == []


# --- what it returns


def test_a_clean_comparison_is_yes_and_points_at_the_proof(bench: Bench) -> None:
    bench.comparison = replace(bench.comparison, breaks_closed=1, tokens=42)
    ended = bench.run()
    assert ended.code == ExitCode.YES
    assert ended.out.splitlines() == [
        "shop: clean",
        "  comparison  7, from 1/400 to 1/800",
        "  compared    100 rows; 120 chunks of v1",
        "  sampled     20 chunks embedded again",
        "  spent       42 tokens",
        "  continuity  1 break closed",
        "next: revector prove shop",
    ]


def test_differences_are_no_and_every_kind_has_its_count_table_generation_and_keys(bench: Bench) -> None:
    other = replace(STALE, n=1)
    differing(bench, STALE, other, EXTRA, ORPHAN)
    ended = bench.run()
    assert ended.code == ExitCode.NO
    assert ended.out.splitlines() == [
        "shop: 4 differences",
        "  comparison  7, from 1/400 to 1/800",
        "  compared    100 rows; 120 chunks of v1",
        "  sampled     20 chunks embedded again",
        "  KIND          TABLE     GENERATION  LEFT  MENDED",
        "  row-extra     articles  -           1     0",
        "  chunk-orphan  articles  v1          1     0",
        "  chunk-stale   articles  v1          2     0",
        "    chunk-stale  articles  t1 8  in v1, 2 chunks",
        "    row-extra  articles  t1 7",
        "    chunk-orphan  articles  row 99  in v1",
        "next: revector verify shop --repair",
    ]


def test_what_was_mended_is_counted_and_clean(bench: Bench) -> None:
    differing(bench, replace(EXTRA, is_repaired=True), replace(STALE, is_repaired=True))
    ended = bench.run("--repair")
    assert ended.code == ExitCode.YES
    assert "shop: clean, 2 differences mended" in ended.out
    assert "row-extra    articles  -           0     1" in ended.out
    assert bench.run("--json").document["differences"][0] == {
        "kind": "row-extra",
        "table": "articles",
        "generation": None,
        "left": 0,
        "repaired": 1,
    }


def test_keys_that_never_stood_still_are_no_and_are_to_be_compared_again(bench: Bench) -> None:
    bench.comparison = replace(bench.comparison, state=State.DIFFERS, unsettled=3)
    ended = bench.run()
    assert ended.code == ExitCode.NO
    assert "  unsettled   3: rows that moved at every look" in ended.out
    assert ended.out.splitlines()[-1] == "next: revector verify shop"


def test_what_persists_is_named_where_no_break_was_closed(bench: Bench) -> None:
    bench.comparison = replace(bench.comparison, faults=("connector-drift",))
    ended = bench.run()
    assert ended.code == ExitCode.YES
    assert "no break is closed while this persists: connector-drift" in ended.out
    assert ended.out.splitlines()[-1] == "next: revector doctor shop"


def test_running_out_of_time_is_4_and_says_how_to_go_on(bench: Bench) -> None:
    differing(bench, EXTRA)
    bench.comparison = replace(bench.comparison, state=State.RUNNING, ended_lsn=None)
    bench.unfinished = "the time given is used up"
    ended = bench.run("--max-duration", "1s")
    assert ended.code == ExitCode.TIMED_OUT
    assert ended.out.startswith("shop: not finished: the time given is used up; 1 difference so far\n")
    assert ended.out.splitlines()[-1] == "next: revector verify shop"
    document = bench.run("--max-duration", "1s", "--json").document
    assert (document["finished"], document["clean"]) == (False, False)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HeldElsewhere("comparison-running", "another process runs one"), ExitCode.HELD),
        (TransientError("source-unreachable", "away"), ExitCode.AWAY),
    ],
)
def test_errors_have_their_exit_codes_and_one_document(bench: Bench, error: Exception, code: ExitCode) -> None:
    bench.raises = error
    assert bench.run().code == code
    assert bench.run("--json").document["schema"] == "revector.error/1"


def test_an_interrupted_one_says_that_it_goes_on(bench: Bench) -> None:
    bench.raises = KeyboardInterrupt()
    ended = bench.run()
    assert ended.code == ExitCode.INTERRUPTED
    assert "what was compared is kept: `revector verify shop` goes on from there" in ended.err


# --- what it writes


def test_the_document_lists_differences_with_their_keys_and_no_text(bench: Bench) -> None:
    differing(bench, STALE, ORPHAN)
    document = bench.run("--json").document
    assert document["schema"] == "revector.verify/1"
    assert document["comparison"]["differences"] == {"chunk-stale": 1, "chunk-orphan": 1}
    assert [f["key"] for f in document["found"]] == [{"tenant": "t1", "id": "8"}, None]
    assert [f["row_id"] for f in document["found"]] == [None, 99]
    assert (document["is_cut"], document["next"]) == (False, "revector verify shop --repair")


def test_a_file_of_keys_has_every_difference_and_the_document_the_first(bench: Bench) -> None:
    many = [Found(Kind.TEXT_STALE, 1, ("t", str(n))) for n in range(LISTED + 5)]
    differing(bench, *many)
    ended = bench.run("--keys", "differing.jsonl", "--json")
    lines = [json.loads(line) for line in (bench.folder / "differing.jsonl").read_text().splitlines()]
    assert len(lines) == LISTED + 5
    assert lines[0] == {
        "kind": "text-stale",
        "table": "articles",
        "key": {"tenant": "t", "id": "0"},
        "row_id": None,
        "generation": None,
        "n": None,
        "repaired": False,
    }
    assert (len(ended.document["found"]), ended.document["is_cut"]) == (LISTED, True)
    assert ended.document["differences"][0]["left"] == LISTED + 5
    text = bench.run().out
    assert "and more: --keys FILE writes every one" in text
    assert text.count("text-stale  articles  t ") == SHOWN


def test_a_file_of_keys_is_whole_or_as_it_was(bench: Bench) -> None:
    kept = bench.folder / "keys.jsonl"
    kept.write_text("of an earlier one\n")
    seen: list[str] = []
    bench.meanwhile = lambda: seen.append(kept.read_text())
    bench.raises = TransientError("target-unreachable", "away")
    assert bench.run("--keys", "keys.jsonl").code == ExitCode.AWAY
    assert seen == [kept.read_text()] == ["of an earlier one\n"]
    assert sorted(p.name for p in bench.folder.iterdir()) == ["keys.jsonl", "revector.toml"]
    bench.raises = None
    assert bench.run("--keys", "keys.jsonl").code == ExitCode.YES
    assert kept.read_text() == ""


@pytest.mark.parametrize("place", ["absent/keys.jsonl", "."])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_compared(bench: Bench, place: str) -> None:
    ended = bench.run("--keys", place)
    assert (ended.code, bench.orders) == (ExitCode.USAGE, [])
    assert "--keys" in ended.err


def test_a_key_cannot_move_the_cursor(bench: Bench) -> None:
    differing(bench, Found(Kind.ROW_EXTRA, 1, ("\x1b[2J", "a b")))
    assert "row-extra  articles  \"\\u001b[2J\" 'a b'" in bench.run().out


# --- progress


ROWS = Progress("rows", 41_000, 100_000, 0, None, 3, 65.0, (14.0, 17.0))


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (ROWS, "comparing rows, 41 000 of about 100 000 rows (41 %), 3 to look at again, 1 min, 14 s to 17 s left"),
        (
            replace(ROWS, rows=120_000, suspects=0, eta_s=None),
            "comparing rows, 120 000 of about 100 000 rows (99 %), 1 min",
        ),
        (replace(ROWS, rows_total=None, suspects=0, eta_s=(9.1, 9.9)), "comparing rows, 41 000 rows, 1 min, 9 s left"),
        (Progress("passage", 0, None, 0, None, 0, 2.0), "waiting for a barrier to pass, 2 s"),
        (Progress("chunks", 9, 9, 50, 100, 0, 2.0), "comparing chunks, 50 of about 100 chunks (50 %), 2 s"),
    ],
)
def test_progress_is_a_line_with_an_estimate_that_never_says_all(told: Progress, line: str) -> None:
    assert progress(told) == line


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_is_whole_lines_every_half_a_minute_where_there_is_no_terminal() -> None:
    err, clock = io.StringIO(), Clock()
    line = ProgressLine(Output(io.StringIO(), err, {}, is_json=False), clock)
    for second in range(1, 70):
        clock.now = second
        line.show(f"second {second}")
    line.end()
    assert err.getvalue() == f"second {LINES_EVERY_S:.0f}\nsecond {2 * LINES_EVERY_S:.0f}\n"


def test_progress_is_drawn_over_itself_on_a_terminal_and_leaves_nothing() -> None:
    err, clock = Terminal(), Clock()
    line = ProgressLine(Output(io.StringIO(), err, {"TERM": "xterm"}, is_json=False), clock)
    for clock.now, text in ((1.0, "x" * 300), (1.01, "too soon"), (2.0, "later")):
        line.show(text)
    line.end()
    assert err.getvalue() == f"\r\x1b[K{'x' * 99}\r\x1b[Klater\r\x1b[K"


def test_a_document_on_stdout_comes_without_escapes_on_stderr(bench: Bench) -> None:
    bench.told = [ROWS]
    ended = bench.run("--json", err=Terminal(), environ={"TERM": "xterm"})
    assert "\x1b" not in ended.err
    assert ended.document["clean"] is True


def test_counts_are_in_the_order_of_the_kinds() -> None:
    report = Report(builders.comparison(), True, None, KEYS, {1: "v1"}, ())
    outcome = Outcome(report)
    for kind in reversed(Kind):
        outcome.add(Found(kind, 1, ("t", "1"), None if kind.is_of_row else 1))
    assert [kind for kind, *_ in outcome.rows] == [kind.value for kind in Kind]
