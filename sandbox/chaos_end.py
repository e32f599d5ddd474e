"""The end of a chaos run: everything is back, drained, compared, proven; then the verdict and its few lines."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sandbox.chaos_plan import GOAL_MAX_S, GOAL_MEDIAN_S, recoveries
from sandbox.chaos_proofs import Proofs
from sandbox.chaos_world import DIMENSIONS, HONEST, World
from sandbox.compare import compare, wrong_vectors

ATTEMPTS = 5


def ended(world: World, proofs: Proofs) -> dict[str, Any]:
    """Writers stop, what is left drains; repaired, proven, compared without revector's code; the processes end."""
    began = time.monotonic()
    world.proxied.heal()
    world.provider.set(HONEST)
    world.traffic.stop()
    retried = 0
    for _ in range(ATTEMPTS):  # an open break is no reason to wait, and the last one may have come just now
        retried += world.retry_refused()
        comparison = proofs.verify()
        late = [why for generation in world.generations if (why := world.wait("ready", generation)) is not None]
        if not late:
            break
    drained = time.monotonic()
    proven = {generation: _proven(proofs, generation) for generation in world.generations}
    found: dict[str, Any] = {}
    for generation in world.generations:
        differences, rows = compare(world.source_dsn, world.target_dsn, world.name, generation=generation)
        wrong, vectors = wrong_vectors(world.target_dsn, world.name, generation, DIMENSIONS[generation])
        found[generation] = {
            "differences": asdict(differences),
            "rows": rows,
            "vectors": vectors,
            "of_another_text": wrong,
        }
    return {
        "drained_in_s": round(drained - began, 1),
        "retried": retried,
        "late": late,
        "comparison": comparison,
        "proven": proven,
        "found": found,
        "halts": world.halts(),
        "traffic": world.traffic.totals() | {"pgbench_starts": world.traffic.starts},
        "exit_statuses": world.fleet.stop(),
    }


def _proven(proofs: Proofs, generation: str) -> bool:
    """A certificate, after another comparison where one is asked for."""
    for _ in range(ATTEMPTS):
        if proofs.still(generation, "the end"):
            return True
        proofs.verify()
    return False


def verdict(
    report: dict[str, Any], journal: Sequence[Mapping[str, Any]], errors: Sequence[str], world: World, proofs: Proofs
) -> dict[str, Any]:
    """The report with its figures, `wrong` (why it did not pass) and `passed`."""
    times = recoveries(journal)
    held = world.fleet.held()
    end = report["end"]
    wrong = [*errors, *world.fleet.faults, *proofs.faults]
    every = times.get("all", {})
    median_s, max_s = every.get("median_s"), every.get("max_s")
    if median_s is None or median_s > GOAL_MEDIAN_S:
        wrong.append(f"recovery: median {median_s} s, the goal is {GOAL_MEDIAN_S:g} s")
    if max_s is None or max_s > GOAL_MAX_S:
        wrong.append(f"recovery: at most {max_s} s, the goal is {GOAL_MAX_S:g} s")
    wrong += [f"{process} is not flat: {figures}" for process, figures in held.items() if figures["flat"] is False]
    for generation, found in end["found"].items():
        if any(found["differences"].values()) or found["of_another_text"]:
            wrong.append(f"{generation} differs: {found}")
        if not end["proven"][generation]:
            wrong.append(f"{generation} is not proven at the end")
    wrong += [f"{name} ended with {status}" for name, status in end["exit_statuses"].items() if status]
    wrong += end["late"]
    wrong += [f"{role} is halted by {halt}" for role, halt in end["halts"].items()]
    return report | {
        "journal": list(journal),
        "recovery": times,
        "processes": held,
        "proofs": {
            "counts": dict(sorted(proofs.counts.items())),
            "shortfalls": dict(proofs.shortfalls.most_common()),
            "held_against": proofs.held_against,
        },
        "wrong": wrong,
        "passed": not wrong,
    }


def told(report: dict[str, Any]) -> list[str]:
    """The result in lines."""
    lines = [f"{'kind':<28} {'landed':>6} {'median s':>9} {'max s':>7}"]
    for kind, figures in report["recovery"].items():
        median_s, max_s = (("-" if n is None else f"{n:.2f}") for n in (figures["median_s"], figures["max_s"]))
        lines.append(f"{kind:<28} {figures['landed']:>6} {median_s:>9} {max_s:>7}")
    skipped = [e["kind"] for e in report["journal"] if "skipped" in e]
    lines += [f"skipped: {', '.join(sorted(set(skipped)))}"] if skipped else []
    counts, end = report["proofs"]["counts"], report["end"]
    attempts = sum(counts.get(f"{way}: attempts", 0) for way in ("still", "beside"))
    issued = sum(counts.get(f"{way}: certificates", 0) for way in ("still", "beside"))
    lines.append(f"prove: {attempts} attempts, {issued} certificates, each held against the databases; {counts}")
    for process, figures in report["processes"].items():
        if figures["flat"] is not None:
            lines.append(f"{process}: {figures}")
    for generation, found in end["found"].items():
        vectors = f"{found['of_another_text']} of {found['vectors']} vectors of another text"
        lines.append(f"{generation}: differences {found['differences']}, {vectors}")
    lines.append(f"traffic: {end['traffic']}")
    lines.append(
        f"by the operator: {report['tasks_restarted_by_operator']} tasks restarted, "
        f"{report['rows_retried_by_operator']} refused rows retried"
    )
    lines += [f"thorough: {json.dumps(report['thorough'])}"] if "thorough" in report else []
    lines += [f"WRONG: {why}" for why in report["wrong"]]
    lines.append("passed" if report["passed"] else "NOT PASSED")
    return lines
