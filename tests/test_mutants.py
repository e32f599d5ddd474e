"""Every mutant can still be played: it applies to the tree, and the tests that have to notice it exist.

Whether they notice it is for `./dev mutants` to say, which takes minutes. A patch that no longer applies is to be made
anew, or goes together with the guard that it took out.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.mutants import ROOT, apply, mutants

LEAST = 40


def test_every_mutant_applies_to_the_tree() -> None:
    objections = {m.name: objection for m in mutants() if (objection := apply(m, ROOT, "--check"))}
    assert objections == {}


def test_every_mutant_says_what_it_breaks_in_one_sentence_and_who_notices() -> None:
    listed = mutants()
    assert len(listed) >= LEAST
    assert [m.name for m in listed if not m.killers] == []
    assert [m.name for m in listed if not (m.sentence.endswith(".") and m.sentence[0].isupper())] == []
    assert [m.name for m in listed if any(not file.startswith(("daemon/", "connectors/")) for file in m.files)] == []


def test_every_test_that_has_to_notice_a_mutant_exists() -> None:
    named = {killer.partition("[")[0] for mutant in mutants() for killer in mutant.killers}
    assert sorted(test for test in named if not is_defined(*test.split("::"))) == []


def is_defined(path: str, *names: str) -> bool:
    """Whether a file has this function, or this class with this method, its own or one of its bases'."""
    body, imported = _module(ROOT / path)
    if len(names) < 2:
        return _has_function(body, names)
    owner = next((node for node in body if isinstance(node, ast.ClassDef) and node.name == names[0]), None)
    if owner is None:
        return False
    if _has_function(owner.body, names[1:]):
        return True
    bases = [base.id for base in owner.bases if isinstance(base, ast.Name)]
    return any(is_defined(imported.get(base, path), base, names[1]) for base in bases)


def _has_function(body: list[ast.stmt], names: Sequence[str]) -> bool:
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in names for node in body)


@cache
def _module(path: Path) -> tuple[list[ast.stmt], dict[str, str]]:
    """A file's statements, and where the names come from that it imports from other modules of the tests."""
    if not path.is_file():
        return [], {}
    body = ast.parse(path.read_bytes()).body
    imported = {
        alias.asname or alias.name: node.module.replace(".", "/") + ".py"
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("tests.")
        for alias in node.names
    }
    return body, imported


def test_what_is_not_defined_is_told() -> None:
    assert is_defined("tests/test_mutants.py", "test_what_is_not_defined_is_told")
    assert is_defined(
        "tests/ports/test_target_postgres.py", "TestWork", "test_what_is_owed_includes_claimed_and_refused_entries"
    )
    assert not is_defined("tests/test_mutants.py", "test_that_nobody_wrote")
    assert not is_defined("tests/ports/test_target_postgres.py", "TestWork", "test_that_nobody_wrote")
    assert not is_defined("tests/no_such_file.py", "test_that_nobody_wrote")
