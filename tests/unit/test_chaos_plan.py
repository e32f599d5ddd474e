"""Which faults a chaos run deals, and what its figures mean."""

from __future__ import annotations

from itertools import islice
from typing import Any

from sandbox.chaos_faults import MADE
from sandbox.chaos_network import SHOWN_BY
from sandbox.chaos_plan import KINDS, LINKS, PROVIDERS, Sample, deal, flatness, recoveries
from sandbox.chaos_snapshots import Look, Seen, differences
from sandbox.provider_script import BILLED, UNBILLED


def test_the_same_seed_deals_the_same_faults_and_another_seed_others() -> None:
    dealt = list(islice(deal(7), 40))
    assert dealt == list(islice(deal(7), 40))
    assert dealt != list(islice(deal(8), 40))


def test_every_kind_is_dealt_before_any_is_dealt_again() -> None:
    for seed in range(20):
        names: list[str] = []
        for faults in deal(seed):
            names += [fault.kind.name for fault in faults]
            if len(names) >= len(KINDS):
                break
        assert sorted(names) == sorted(kind.name for kind in KINDS)


def test_faults_of_one_round_touch_nothing_in_common_and_last_as_long_as_their_kind_says() -> None:
    rounds = list(islice(deal(1), 500))
    assert {len(faults) for faults in rounds} == {1, 2, 3}
    for faults in rounds:
        touched = [part for fault in faults for part in fault.kind.touches]
        assert len(touched) == len(set(touched))
        for fault in faults:
            shortest, longest = fault.kind.seconds
            assert shortest <= fault.seconds <= longest


def test_every_kind_can_be_made() -> None:
    for kind in KINDS:
        if kind.link is not None:
            fault, _, link = kind.name.removeprefix("net-").partition(":")
            assert fault in SHOWN_BY and link in LINKS
        elif kind in PROVIDERS:
            assert kind.name.removeprefix("provider-") in {*BILLED, *UNBILLED, "slow", "crash", "freeze"}
        else:
            assert kind.name in MADE


def entry(kind: str, took: float | None, *, landed: bool = True) -> dict[str, Any]:
    return {"kind": kind, "landed": landed, "recovered_after_s": took}


def test_recovery_is_told_by_kind_and_of_all_and_what_did_not_land_or_was_not_measured_is_left_out() -> None:
    journal = [
        entry("net-cut:source", 1.0),
        entry("net-cut:target", 3.0),
        entry("broker-crash", 8.0),
        entry("broker-crash", None),
        entry("target-disk-full", 99.0, landed=False),
        {"kind": "generation-add"},
    ]
    assert recoveries(journal) == {
        "broker-crash": {"landed": 2, "median_s": 8.0, "max_s": 8.0},
        "net-cut": {"landed": 2, "median_s": 2.0, "max_s": 3.0},
        "all": {"landed": 4, "median_s": 3.0, "max_s": 8.0},
    }
    assert recoveries([]) == {}


def life(rss_mb: list[float], files: int = 30) -> list[Sample]:
    return [Sample(60.0 + n, rss, files) for n, rss in enumerate(rss_mb)]


def test_a_process_that_grows_is_not_flat_and_a_short_life_does_not_tell() -> None:
    assert flatness(life([100.0 + n % 5 for n in range(400)]))["flat"] is True
    assert flatness(life([100.0 + n * 0.2 for n in range(400)]))["flat"] is False
    leaking = [Sample(60.0 + n, 100.0, 30 + n // 10) for n in range(400)]
    assert flatness(leaking)["flat"] is False
    standby_then_owner = [Sample(60.0 + n, 98.0 if n < 150 else 130.0, 20 if n < 150 else 48) for n in range(400)]
    assert flatness(standby_then_owner)["flat"] is True
    assert flatness(life([100.0] * 20))["flat"] is None
    assert flatness([Sample(float(n), 100.0 + n, 9) for n in range(60)])["flat"] is None  # its first minute


def source(*rows: tuple[str, tuple[Any, ...]]) -> Look:
    return Look("1:9:", {"app.article": dict(rows), "app.page": {}, "app.note": {}})


def target(replica: dict[str, tuple[Any, ...]], chunks: dict[str, tuple[Any, ...]]) -> Seen:
    empty: dict[str, dict[str, tuple[Any, ...]]] = {"app.page": {}, "app.note": {}}
    return Seen({"app.article": replica, **empty}, {"app.article": chunks, **empty})


ROW = ("5", "text", "meta", "1", True)
MINE, CHUNK = ("text", "meta", 5), ("text", "1")
GOOD = target({"k": MINE}, {"k": CHUNK})


def found(before: Look, seen: Seen, after: Look | None = None, visible: set[int] | None = None) -> list[str]:
    return differences(before, seen, after or before, {5} if visible is None else visible)


def test_a_row_that_nobody_changed_must_be_in_the_target_as_it_is() -> None:
    before = source(("k", ROW))
    assert found(before, GOOD) == []
    assert found(before, target({}, {})) == ["app.article k: not in the replica", "app.article k: no chunk"]
    assert found(before, target({"k": ("old", "meta", 4)}, {"k": CHUNK})) == ["app.article k: stale in the replica"]
    assert found(before, target({"k": ("text", "old", 4)}, {"k": CHUNK})) == ["app.article k: stale in the replica"]
    assert found(before, target({"k": MINE}, {"k": ("old", "1")})) == ["app.article k: stale chunk"]
    hidden = source(("k", (*ROW[:4], False)))
    assert found(hidden, GOOD) == ["app.article k: a chunk too many"]
    assert found(hidden, target({"k": MINE}, {})) == []


def test_a_row_that_changed_meanwhile_says_nothing() -> None:
    before, after = source(("k", ROW)), source(("k", ("8", *ROW[1:])))
    assert found(before, target({}, {}), after) == []
    assert found(before, target({}, {}), source()) == []


def test_a_key_that_the_source_has_not_is_live_only_if_a_later_transaction_made_it() -> None:
    seen = target({"gone": MINE}, {"gone": CHUNK})
    wrong = ["app.article gone: live in the replica, not in the source"]
    assert found(source(), seen) == wrong
    assert found(source(), target({"gone": ("text", "meta", None)}, {})) == wrong
    assert found(source(), seen, visible=set()) == []
    assert found(source(("gone", ROW)), seen, source()) == []
    assert found(source(), seen, source(("gone", ROW))) == []
    assert found(source(), target({}, {"orphan": CHUNK})) == ["app.article orphan: chunk of no row"]
