"""The documentation says what is there: links, commands, ids, configurations and tables are held against the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from connectors.postgres_errors import _TRANSIENT
from daemon import config
from daemon.cli.app import build
from daemon.cli.error_reference import entries
from daemon.cli.reference import commands, help_of
from daemon.core.comparison import Kind
from daemon.core.reasons import REASONS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "docker").glob("*.md")])
PRODUCT = sorted(p for folder in ("daemon", "connectors") for p in (ROOT / folder).rglob("*.py"))
REGISTRIES = {"error_reference.py", "reasons.py"}
ID_PLACES = {"Fault": slice(1, 2), "_Ended": slice(0, 1)}  # whose ids may be single words
KEBAB = re.compile(r"[a-z]+(?:-[a-z]+)+")

# Kinds of difference are ids of their own: in reports, metrics and the table of verify.md.
DIFFERENCES = {kind.value for kind in Kind}

# Kebab-case words in the code and in the pages that are no ids.
WORDS = {
    *("caught-up", "kafka-admin", "kafka-consumer", "no-store", "retry-after", "retry-after-ms", "verify-full"),
    *("read-only", "certificate-issued", "migration-started", "utf-le", "catching-up", "not-ready"),
    *("debezium-connector-postgres", "connect-offsets", "quarantine-accepted", "quarantine-retried", "input-too-long"),
    *("generation-added", "generation-dropped", "generation-swept", "requeued", "requeue-begun"),
    *("certificate-list", "certificate-show", "certificate-check"),
    *("verify-check", "verify-findings", "verify-gate", "verify-lease", "verify-orders", "verify-scan", "verify-way"),
    *("api-key", "content-encoding", "local-embedder", "no-known-token"),
}
# Drawn from a real run of ./dev demo.
# Words that the glossary replaces.
NOT_WORDS = re.compile(
    r"\b(staging table|shadow table|dead letters?|DLQ|watermark|quarantined|embedding config)\b", re.I
)


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# --- links


def anchors(page: Path) -> set[str]:
    """Anchors of a page as GitHub makes them, and those written out."""
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def broken_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


@every_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](#b-title) [c](absent.md) [d](page.md#a-title)")
    assert list(broken_links(page)) == ["#b-title", "absent.md"]


def test_the_map_has_every_page() -> None:
    linked = {
        (ROOT / "docs" / target).resolve()
        for target in re.findall(r"\]\(([^)#\s]+)\)", text_of(ROOT / "docs" / "README.md"))
        if "://" not in target
    }
    assert {p for p in (ROOT / "docs").rglob("*.md") if p.name != "README.md"} <= linked


# --- commands


@cache
def known_commands() -> dict[tuple[str, ...], str]:
    return {words: help_of(words) for words in commands(build())}


def wrong_commands(lines: list[str]) -> Iterator[str]:
    """Command lines that name a command or an option that does not exist."""
    for line in lines:
        words = re.split(r"\s(?:#|\||>|&&)(?:\s|$)", f"{line} ")[0].split()
        found = next((tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in known_commands()), None)
        if words and words[0] in {"--help", "--version"}:
            continue
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if found is None or any(option not in known_commands()[found] for option in options):
            yield line


def shown_commands(text: str) -> list[str]:
    """What follows `revector` at the start of a line of code, in a container, or in a code span."""
    container = r"(?:\S+=\S+ )?docker compose (?:exec revector|run --rm) "
    code: list[str] = re.findall(rf"^(?:    )+(?:{container})?revector ([a-z-].*)$", text, re.M)
    return code + re.findall(r"`revector ([^`]+)`", text)


@every_page
def test_commands_exist_with_their_options(page: Path) -> None:
    assert list(wrong_commands(shown_commands(text_of(page)))) == []


def test_a_wrong_command_is_found() -> None:
    text = "Say `revector cutover x` or\n\n    revector run --fast\n    revector wait x --for ready   # long\n"
    assert list(wrong_commands(shown_commands(text))) == ["run --fast", "cutover x"]


def test_commands_in_hints_and_messages_exist() -> None:
    lines = [
        re.sub(r"\{.*?\}", "x", command)
        for module in PRODUCT
        for command in re.findall(r"`revector ([a-z][^`]*)`", text_of(module))
    ]
    assert lines
    assert list(wrong_commands(lines)) == []


def test_dev_commands_exist() -> None:
    known = set(re.findall(r"^  ([a-z]+)  ", text_of(ROOT / "dev"), re.M))
    shown = {word for page in PAGES for word in re.findall(r"(?:^    |`)\./dev ([a-z]+)", text_of(page), re.M)}
    assert {"demo", "test", "up", "down"} <= shown <= known


# --- errors and reasons


@cache
def ids_in_code() -> frozenset[str]:
    """Every id that the code can give: kebab-case literals, first words of errors, and ids made of a side and a
    suffix."""
    found: set[str] = set()
    for module in PRODUCT:
        if module.name in REGISTRIES:
            continue
        for node in ast.walk(ast.parse(text_of(module))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and KEBAB.fullmatch(node.value):
                found.add(node.value)
            elif isinstance(node, ast.Call) and _called(node) in ID_PLACES:
                given = [a.value for a in node.args[ID_PLACES[_called(node)]] if isinstance(a, ast.Constant)]
                found |= {id for id in given if isinstance(id, str)}
            elif isinstance(node, ast.JoinedStr) and _is_side(node):
                suffixes = [str(part.value) for part in node.values[1:] if isinstance(part, ast.Constant)]
                known = suffixes if suffixes != ["-"] else [f"-{suffix}" for suffix, _ in _TRANSIENT.values()]
                found |= {f"{side}{suffix}" for side in ("source", "target") for suffix in known}
    return frozenset(found - WORDS - DIFFERENCES)


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _is_side(node: ast.JoinedStr) -> bool:
    """`f"{side}-…"` and nothing after the suffix."""
    first, second = node.values[0], node.values[1] if len(node.values) > 1 else None
    return (
        isinstance(first, ast.FormattedValue)
        and isinstance(first.value, ast.Name)
        and first.value.id == "side"
        and isinstance(second, ast.Constant)
        and re.fullmatch(r"-[a-z-]*", str(second.value)) is not None
    )


def test_every_id_in_the_code_is_documented() -> None:
    assert ids_in_code() - {entry.id for entry in entries()} - set(REASONS) == frozenset()


def test_every_documented_id_exists_once() -> None:
    documented = [entry.id for entry in entries()]
    assert len(documented) == len(set(documented))
    assert set(documented) & set(REASONS) == set()
    assert set(documented) - ids_in_code() == set()


def test_every_entry_has_a_sentence_and_a_remedy() -> None:
    for entry in entries():
        assert entry.meaning.endswith(".")
        assert entry.remedy
        assert not entry.remedy.endswith(".")


@every_page
def test_ids_that_are_mentioned_exist(page: Path) -> None:
    known = ids_in_code() | set(REASONS) | WORDS | DIFFERENCES
    spans = re.findall(r"`([^`\s]+)`", re.sub(r"```.*?```", "", text_of(page), flags=re.S))
    assert {span for span in spans if KEBAB.fullmatch(span)} - known == set()


def documented_differences(text: str) -> list[str]:
    """First cells of the table of kinds."""
    return re.findall(r"^\| <a id=\"[a-z-]+\"></a>`([a-z-]+)` \|", text, re.M)


def test_every_kind_of_difference_is_documented_once_the_worst_first() -> None:
    page = text_of(ROOT / "docs/howto/verify.md")
    assert documented_differences(page) == [kind.value for kind in Kind]
    assert not DIFFERENCES & (set(REASONS) | {entry.id for entry in entries()})


# --- configurations


def configurations(text: str) -> list[str]:
    return [block for block in re.findall(r"```toml\n(.*?)```", text, re.S) if re.search(r"^\[source\]", block, re.M)]


@every_page
def test_complete_configurations_are_sound(page: Path) -> None:
    for block in configurations(text_of(page)):
        config.parse(block, page, {}, {})


def test_there_is_a_complete_configuration_to_start_from() -> None:
    assert any(configurations(text_of(page)) for page in PAGES)


# --- tables


def columns_of_sql(sql: str) -> dict[str, set[str]]:
    tables: dict[str, set[str]] = {}
    for name, body in re.findall(r"CREATE TABLE revector\.(\w+) \((.*?)^\)", sql, re.S | re.M):
        tables[name] = {w for w in re.findall(r"^    (\w+)", body, re.M) if w not in {"UNIQUE", "PRIMARY"}}
    for name, body in re.findall(r"ALTER TABLE revector\.(\w+)(.*?);$", re.sub(r" *--.*", "", sql), re.S | re.M):
        tables[name] |= set(re.findall(r"ADD COLUMN (\w+)", body))
        tables[name] -= set(re.findall(r"DROP COLUMN (\w+)", body))
    return tables


def columns_of_page(text: str) -> dict[str, set[str]]:
    tables = {}
    for name, body in re.findall(r"^### revector\.(\w+)\n(.*?)(?=^##|\Z)", text, re.S | re.M):
        rows = re.findall(r"^\| (`[^|]+) \|", body, re.M)
        tables[name] = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    return tables


def test_control_tables_are_documented_column_by_column() -> None:
    versions = sorted((ROOT / "connectors/sql").glob("control_*.sql"))
    sql = "\n".join(text_of(version) for version in versions)
    page = columns_of_page(text_of(ROOT / "docs/reference/tables.md"))
    assert [version.name for version in versions] == [f"control_{n:04}.sql" for n in range(1, len(versions) + 1)]
    assert page == columns_of_sql(sql)
    assert {"canary", "budget"} <= {*page["generation"], *page}
    assert all(name in text_of(ROOT / "docs/reference/tables.md") for name in re.findall(r"CREATE SEQUENCE (\S+)", sql))


# --- words and secrets


@every_page
def test_words_are_those_of_the_glossary(page: Path) -> None:
    assert NOT_WORDS.findall(text_of(page)) == []


@every_page
def test_lines_end_within_the_page_and_name_no_machine(page: Path) -> None:
    assert re.findall(r"(?:^|[\s`(])/(?:root|home|work|tmp)/\S*", text_of(page)) == []


def test_licence_is_named_where_it_counts() -> None:
    assert "Apache License" in text_of(ROOT / "LICENSE")[:200]
    assert 'license = "Apache-2.0"' in text_of(ROOT / "pyproject.toml")


def test_errors_page_is_written_by_the_reference_command() -> None:
    command = [sys.executable, "-c", "from daemon.cli.error_reference import errors_page as p; print(p(), end='')"]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert text_of(ROOT / "docs/reference/errors.md") == page
