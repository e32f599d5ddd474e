"""Guards on trial: defects made by hand, each with the test that has to notice it.

`NAME.patch` takes one guard out of the product. Above the diff it says in one sentence what is then broken, and names
what kills it, `Killed-by: path::test`, once or more. `python -m tests.mutants` plays them on copies of the tree;
`tests/test_mutants.py` only looks whether each still applies and whether its tests exist.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
KILLED_BY = "Killed-by: "


@dataclass(frozen=True, slots=True)
class Mutant:
    """sentence: what is broken. killers: ids of tests, of which one has to fail. diff: as `git apply` takes it."""

    name: str
    sentence: str
    killers: tuple[str, ...]
    diff: str

    @property
    def files(self) -> list[str]:
        """What the diff changes, relative to the root."""
        return [line.removeprefix("+++ b/") for line in self.diff.splitlines() if line.startswith("+++ b/")]


def mutants() -> list[Mutant]:
    """All of them, in the order of their names."""
    return [read(path) for path in sorted(FOLDER.glob("*.patch"))]


def read(path: Path) -> Mutant:
    """The mutant in a patch."""
    header, mark, diff = path.read_text(encoding="utf-8").partition("--- a/")
    lines = [line.strip() for line in header.splitlines() if line.strip()]
    killers = tuple(line.removeprefix(KILLED_BY) for line in lines if line.startswith(KILLED_BY))
    return Mutant(path.stem, " ".join(line for line in lines if not line.startswith(KILLED_BY)), killers, mark + diff)


def apply(mutant: Mutant, tree: Path, *options: str) -> str:
    """Apply the diff to a tree; what git has against it, empty where nothing. options: such as `--check`."""
    # Where the tree lies inside of a repository, git would take the paths from there and skip what it does not track.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", *options, "-"],
        cwd=tree,
        input=mutant.diff,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() or ("" if done.returncode == 0 else f"git apply ended with {done.returncode}")
