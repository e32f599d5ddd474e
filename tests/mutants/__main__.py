"""`python -m tests.mutants [NAME…]`: put each guard's absence on trial, and say which test noticed it.

The tests that are named have to pass on a copy of the tree as it is; then each mutant is applied to a copy, and its
tests have to fail: by an assertion or by an error that the product means, not because the mutant cannot be read or
calls what is not there. Copies are of the working tree (what git tracks, and new files that it does not ignore); the
tree itself is never touched. One line a mutant; exit status 1 where one survives.

A copy is used for several mutants: their files get times of their own, and only a copy's first run writes bytecode, so
that none is ever run with the bytecode of another.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.mutants import ROOT, Mutant, apply, mutants
from tests.mutants.forked import Outcome, Runs

TOUCHED_S = 10_000.0  # between the time of a mutant's file and the original's
# A mutant that does this is badly made: it shows nothing of the test.
ACCIDENTS = frozenset(
    (
        *("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError"),
        *("NameError", "UnboundLocalError", "AttributeError", "TypeError"),
        *("UndefinedColumn", "UndefinedTable", "UndefinedFunction", "UndefinedParameter", "AmbiguousColumn"),
    )
)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def copy_of_tree(at: Path) -> Path:
    """What git tracks and what it would, as the working tree has it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, at / name)
    return at


@dataclass(slots=True)
class Trial:
    """A mutant in a tree. before: what its files were, and when they were changed."""

    mutant: Mutant
    tree: Path
    began_s: float = field(default_factory=time.monotonic)
    before: dict[str, tuple[bytes, float]] = field(default_factory=dict)

    def begin(self) -> str:
        """Apply the mutant; what keeps it from being applied."""
        for name in self.mutant.files:
            path = self.tree / name
            self.before[name] = (path.read_bytes(), path.stat().st_mtime)
        objection = apply(self.mutant, self.tree)
        for name, (_, modified) in self.before.items():
            os.utime(self.tree / name, (modified, modified + TOUCHED_S))
        return objection

    def end(self) -> None:
        """Make the tree what it was."""
        for name, (content, modified) in self.before.items():
            (self.tree / name).write_bytes(content)
            os.utime(self.tree / name, (modified, modified))


def objection_to(mutant: Mutant, outcome: Outcome) -> tuple[bool, str]:
    """Whether the tests killed it, and what they raised or why not."""
    if not outcome.is_sound:
        return False, "pytest could not run: " + outcome.output.strip().rpartition("\n")[2]
    if not outcome.failed:
        return False, "SURVIVES"
    ((test, raised),) = outcome.failed.items()
    kind = raised.partition(":")[0].rpartition(".")[2]
    is_accident = kind in ACCIDENTS or "Timeout (>" in raised
    return not is_accident, f"{'an accident: ' if is_accident else ''}{test}  {raised[:100]}"


def check_unharmed(runs: Runs, tree: Path, tests: Sequence[str], at_once: int) -> None:
    """Every test passes in the tree as it is. Raises SystemExit."""
    by_file = sorted(tests)
    begun = [runs.began(tree, part, is_first=True) for n in range(at_once) if (part := by_file[n::at_once])]
    for outcome in [runs.ended()[1] for _ in begun]:
        if outcome.failed or not outcome.is_sound:
            say(outcome.output)
            raise SystemExit("the named tests have to pass in the tree as it is")


def play(chosen: Sequence[Mutant], folder: Path, at_once: int) -> list[str]:
    """First every test in the tree as it is, then the mutants, `at_once` of them side by side; those not killed."""
    runs = Runs(folder)
    first = copy_of_tree(folder / "0")
    tests = {test for mutant in chosen for test in mutant.killers}
    say(f"{len(chosen)} mutants, {len(tests)} tests; first these in the tree as it is")
    check_unharmed(runs, first, sorted(tests), at_once)
    free = [first, *(shutil.copytree(first, folder / str(n)) for n in range(1, at_once))]
    waiting, playing, left = list(chosen), dict[int, Trial](), list[str]()

    def said(trial: Trial, is_killed: bool, why: str) -> None:
        trial.end()
        free.append(trial.tree)
        left.extend([] if is_killed else [trial.mutant.name])
        mark, seconds = "killed" if is_killed else "NOT", time.monotonic() - trial.began_s
        say(f"{mark:<7} {trial.mutant.name:<42} {seconds:5.1f} s  {why}")

    while waiting or playing:
        while waiting and free:
            trial = Trial(waiting.pop(0), free.pop())
            if objection := trial.begin() or ("" if trial.mutant.killers else "no test is named"):
                said(trial, False, objection)
            else:
                playing[runs.began(trial.tree, trial.mutant.killers)] = trial
        if playing:
            process, outcome = runs.ended()
            trial = playing.pop(process)
            said(trial, *objection_to(trial.mutant, outcome))
    return left


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev mutants", description="Defects made by hand, and who notices them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to play; all of them where none is named")
    parser.add_argument("--at-once", type=int, default=2, help="how many side by side (2)")
    arguments = parser.parse_args()
    known = {mutant.name: mutant for mutant in mutants()}
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"there is no mutant {', '.join(unknown)}")
    chosen = [known[name] for name in arguments.names or known]
    os.environ.setdefault("REVECTOR_CACHE", str(ROOT / ".cache"))
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="revector-mutants-") as folder:
        left = play(chosen, Path(folder), arguments.at_once)
    say(f"{len(chosen) - len(left)} of {len(chosen)} mutants killed in {time.monotonic() - began_s:.0f} s")
    if left:
        say(f"not killed: {', '.join(sorted(left))}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
