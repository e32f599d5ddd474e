"""How long a comparison of a million rows takes, what memory, what it does to freshness, and what a kill costs it.

The real stack. Three migrations: a table of a million rows with a numeric key, one of a tenth of that (memory must not
grow with rows), and one with text keys under another collation than the replica's. Beside them the real daemon with
live writes. Of the large table:

    quiet     no read budget, the daemon beside it, nobody writes: seconds of each side
    live      the same under live writes
    killed    SIGKILL in the middle of the first side, then to the end: rows read at the source again
    fresh     the default read budget; freshness without a comparison and with one, A B A B A B

Every comparison has to come out clean: what was filled in for this bench is what the product stores.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.filled import NUMBERS, Filled, KeyKind, words
from bench.verifying import LIFTED, Verified, last_comparison, rows_read, verify
from sandbox.daemons import wait
from sandbox.probe import Prober, quantile
from sandbox.processes import SandboxError
from sandbox.stack import Sandbox

SIDE_GOAL_S = 10.0  # for a million rows
RATIO_GOAL = 1.5  # of freshness p99
GROWTH_GOAL = 1.2  # of memory, for ten times the rows
WRITES_PER_SECOND = 200.0
PAGE_ROWS, WORKERS = 5000, 2  # the product's defaults
ROUNDS = 3  # so that a comparison of a million rows comes to its last stages
SIDES = ("source", "replica", "chunks")


@dataclass(frozen=True)
class Plan:
    """rows: of the large table; fewer: of the small one; texts: of the one with text keys. window_s: of freshness."""

    rows: int = 1_000_000
    fewer: int = 100_000
    texts: int = 200_000
    window_s: float = 60.0


QUICK = Plan(60_000, 20_000, 20_000, window_s=8.0)


def measure(*, is_quick: bool, rows: int | None = None) -> dict[str, Any]:
    """Some ten minutes. rows: of the large table, the others in proportion. Raises SandboxError where a comparison
    is not clean or a part does not do its share."""
    plan = QUICK if is_quick else Plan()
    if rows is not None:
        plan = Plan(rows, max(1000, rows // 10), max(1000, rows // 5), plan.window_s)
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox.start())
        bench = Bench(sandbox, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="revector-bench-"))))
        found: dict[str, Any] = {"rows": plan.rows}
        with bench.filled("few", plan.fewer) as run:
            found["few"] = _figures(_clean(run))
        kind = words(sandbox.source_dsn)
        with bench.filled("text", plan.texts, kind) as run:
            found["text"] = {"key": kind.type, **_figures(_clean(run))}
        with bench.filled("many", plan.rows) as run:
            found |= _measured(run, plan)
        found["filled_s"] = bench.filled_s
    return found


class Bench:
    """The stack and what was filled in it."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self._sandbox, self._folder = sandbox, folder
        self._provider = sandbox.scripted_provider()
        self.filled_s: dict[str, dict[str, float]] = {}

    @contextmanager
    def filled(self, name: str, rows: int, kind: KeyKind = NUMBERS) -> Iterator[Filled]:
        """A migration with its daemon beside it, caught up; its processes are gone afterwards."""
        with ExitStack() as stack:
            run = Filled(self._sandbox, self._provider, self._folder, name, stack, kind)
            stack.callback(run.close)
            self.filled_s[name] = run.fill(rows)
            run.start("run")
            wait(run.config, (), "caught-up")
            print(f"compare   {name}: {rows} rows are there", flush=True)
            yield run


def _measured(run: Filled, plan: Plan) -> dict[str, Any]:
    """Everything of the large table."""
    before = rows_read(run)
    found = {"quiet": _figures(_clean(run))}
    _say("quiet", found)
    found["killed"] = _killed(run, plan.rows, undisturbed=rows_read(run) - before)
    _say("killed", found)
    with run.written(WRITES_PER_SECOND):
        found["live"] = _figures(_clean(run))
        _say("live", found)
        found["fresh"] = _freshness(run, plan.window_s)
    return found


def _say(name: str, found: dict[str, Any]) -> None:
    print(f"compare   {name}: {json.dumps(found[name])}", flush=True)


def _clean(run: Filled) -> Verified:
    """A comparison without a read budget, begun and ended by one process."""
    verified = verify(run, *LIFTED)
    recorded = last_comparison(run)
    if verified.code != 0 or recorded["state"] != "clean":
        raise SandboxError(f"not clean: {recorded}\n{verified.document}")
    return verified


def _figures(verified: Verified) -> dict[str, Any]:
    return {"sides_s": verified.sides, "seconds": verified.seconds, "rss_bytes": verified.rss_bytes}


def _killed(run: Filled, rows: int, undisturbed: int) -> dict[str, Any]:
    """Kill it when it has recorded two fifths of the source's rows; another process ends the comparison.

    undisturbed: rows read at the source by a comparison that was not killed. Nobody writes meanwhile.
    """
    before, earlier = rows_read(run), last_comparison(run)
    victim = verify(run, *LIFTED, killed_at=lambda recorded: recorded.get("source", 0) >= 0.4 * rows)
    resumed = _clean(run)
    after = last_comparison(run)
    if after["id"] != earlier["id"] + 1:
        raise SandboxError(f"the comparison that was killed was not the one that ended: {earlier}, {after}")
    return {
        "recorded_rows": victim.recorded["source"],
        "read_again": rows_read(run) - before - undisturbed,
        "read_again_at_most": PAGE_ROWS * WORKERS,
        "rows": after["rows"],
        "chunks": after["chunks"],
        "seconds": [victim.seconds, resumed.seconds],
        "is_same": {name: after[name] for name in RESULT} == {name: earlier[name] for name in RESULT},
    }


RESULT = ("state", "rows", "chunks", "open", "unsettled")


def _freshness(run: Filled, window_s: float) -> dict[str, Any]:
    """Milliseconds from a client's commit at the source to its vector in the target, without a comparison and with
    one at the default read budget, in turn."""
    without: list[list[float]] = []
    beside: list[list[float]] = []
    for _ in range(ROUNDS):
        window = _Window(run, window_s)
        time.sleep(window_s)
        without.append(window.end())
        beside.append(_beside(run, window_s))
    whole = [_quantiles([took for window in side for took in window]) for side in (without, beside)]
    return {
        "without_ms": whole[0],
        "beside_ms": whole[1],
        "windows_p99_ms": [[_quantiles(w)["p99"] for w in side] for side in (without, beside)],
        "ratios_p50": _ratios(beside, without, "p50"),
        "ratios_p99": _ratios(beside, without, "p99"),
    }


def _ratios(beside: list[list[float]], without: list[list[float]], name: str) -> list[float]:
    """Of each pair of windows, ascending."""
    pairs = zip(beside, without, strict=True)
    return sorted(_quantiles(one)[name] / _quantiles(other)[name] for one, other in pairs)


class _Window:
    """Probes for some seconds from when it is made."""

    def __init__(self, run: Filled, seconds: float) -> None:
        self.ends_at = time.monotonic() + seconds
        self._prober = Prober(run.source_dsn, run.target_dsn, run.name)
        self._prober.start()

    def end(self) -> list[float]:
        """Milliseconds of each probe; one that has not arrived has taken as long as it has waited."""
        probes = self._prober.stop()
        now = time.monotonic()
        return probes.took_ms + [took for at in probes.waiting.values() if (took := (now - at) * 1000) > 1000]


def _beside(run: Filled, window_s: float) -> list[float]:
    """A window that begins when a comparison reads, one after the other; the last one is left unfinished."""
    window: _Window | None = None

    def is_over(recorded: dict[str, int]) -> bool:
        nonlocal window
        if window is None and any(recorded.values()):
            window = _Window(run, window_s)
        return window is not None and time.monotonic() >= window.ends_at

    while window is None or time.monotonic() < window.ends_at:
        verify(run, ended_at=is_over)
    return window.end()


def _quantiles(took_ms: list[float]) -> dict[str, float]:
    p50, p99 = quantile(took_ms, 0.5), quantile(took_ms, 0.99)
    if p50 is None or p99 is None:
        raise SandboxError("no probe arrived")
    return {"p50": round(p50), "p99": round(p99), "worst": round(max(took_ms)), "probes": len(took_ms)}


def _shown(ratios: list[float]) -> str:
    return f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def told(found: dict[str, Any]) -> str:
    """The figures against the goals."""
    lines = [f"{found['rows']} rows, {WORKERS} workers"]
    for name in ("quiet", "live"):
        sides = "  ".join(f"{side} {found[name]['sides_s'].get(side, 0):.1f} s" for side in SIDES)
        lines.append(
            f"{name:<7}{sides}  (at most {SIDE_GOAL_S:.0f} s each for a million rows), "
            f"{found[name]['seconds']:.1f} s in all"
        )
    text = found["text"]
    sides = "  ".join(f"{side} {text['sides_s'].get(side, 0):.1f} s" for side in SIDES)
    lines.append(f"{'text':<7}{sides}  for a fifth of the rows, keys {text['key']}")
    few, many = found["few"]["rss_bytes"], found["quiet"]["rss_bytes"]
    lines.append(
        f"memory {many / 2**20:.0f} MB, {few / 2**20:.0f} MB for a tenth of the rows: {many / few:.2f} times "
        f"(at most {GROWTH_GOAL})"
    )
    killed = found["killed"]
    lines.append(
        f"killed at {killed['recorded_rows']} rows: {killed['read_again']} read again "
        f"(at most {killed['read_again_at_most']}), {killed['rows']} compared in all, "
        f"{'the same' if killed['is_same'] else 'ANOTHER'} result"
    )
    fresh = found["fresh"]
    lines.append(
        f"fresh  p99 {fresh['beside_ms']['p99']} ms beside a comparison, {fresh['without_ms']['p99']} ms without: "
        f"{_shown(fresh['ratios_p99'])} times (at most {RATIO_GOAL}); p50 {_shown(fresh['ratios_p50'])} times"
    )
    return "\n          ".join(lines)
