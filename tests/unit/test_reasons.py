"""The registry of reasons: ids fit for text, labels and anchors, and the reference page says what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemon.core.reasons import REASONS, Kind, Reason, command_for, reference_page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"
DESTRUCTIVE = ("cutover", "rollback", "cleanup", "abort", "requeue")


@pytest.mark.parametrize("reason", REASONS.values(), ids=lambda r: r.id)
def test_each_reason_has_a_kebab_id_a_meaning_and_a_remedy(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", reason.id)
    assert reason.meaning.endswith(".")
    assert reason.remedy
    assert not reason.remedy.endswith(".")


@pytest.mark.parametrize("reason", REASONS.values(), ids=lambda r: r.id)
def test_no_command_destroys_or_switches_anything(reason: Reason) -> None:
    command = command_for(reason.id, "shop")
    if command is not None:
        assert command.startswith("revector ")
        assert command.split()[1] not in DESTRUCTIVE
        assert "{" not in command


def test_reference_page_begins_with_the_registry() -> None:
    assert PAGE.read_text().startswith(reference_page())


def test_reference_page_has_an_anchor_per_reason_and_a_chapter_per_kind() -> None:
    page = reference_page()
    assert [m for m in re.findall(r"^### (.+)$", page, re.M) if m not in REASONS] == []
    assert len(re.findall(r"^### ", page, re.M)) == len(REASONS)
    assert len(re.findall(r"^## ", page, re.M)) == len(Kind)
