"""The rules of the house, held with `ast`: layers, drivers, purity of the core, budgets.

Each rule is a function from one module to what breaks it. It is run on every module of the product, and on a sample
that breaks it: a rule that finds nothing there has gone blind.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("daemon", "connectors")

# Lowest first; a module imports from its own layer and below. The longest matching name decides.
LAYERS = (
    ("daemon", "daemon.errors"),
    ("daemon.core",),
    (
        "daemon.conninfo",
        "daemon.toml_places",
        "daemon.settings_checks",
        "daemon.settings_generation",
        "daemon.settings",
        "daemon.config_problems",
        "daemon.config",
        "daemon.config_reference",
        "daemon.installation",
    ),
    ("daemon.ports",),
    ("daemon.parts",),
    ("daemon.flow",),
    ("daemon.procedures",),
    ("daemon.service",),
    ("daemon.cli",),
    ("daemon.__main__",),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FOLDERS = {name for name in RANKS if (ROOT / name.replace(".", "/")).is_dir()} - {"daemon"}
SEEN_BY_CONNECTORS = ("daemon.errors", "daemon.core", "daemon.ports")

DRIVERS = {"psycopg", "psycopg_pool", "pgvector", "confluent_kafka", "openai", "httpx2"}
TELEMETRY = {"opentelemetry", "prometheus_client"}
NOT_SHIPPED = {"tests", "sandbox", "bench"}
IMPURE = {
    *("time", "random", "secrets", "uuid", "logging", "asyncio", "threading", "concurrent", "multiprocessing"),
    *("os", "sys", "io", "pathlib", "socket", "subprocess", "signal", "tempfile", "shutil", "urllib", "http"),
}
CLOCKS = {"now", "utcnow", "today"}
NOT_NAMES = ("util", "helper", "common", "manager", "handler", "misc")
MODULE_LINES, FUNCTION_LINES, PARAMETERS = 450, 59, 6

Function = ast.FunctionDef | ast.AsyncFunctionDef
Finding = tuple[int, str]


@dataclass(frozen=True)
class Module:
    """One source file. name: dotted, a package by its own name."""

    name: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


def modules() -> list[Module]:
    found = []
    for path in sorted(p for top in PRODUCT for p in (ROOT / top).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path.read_text(encoding="utf-8")))
    return found


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in the module, also late and for types only."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module.name}:{node.lineno}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in NAMES else str(node.module)


def layer(name: str) -> str | None:
    """The entry of LAYERS that a module belongs to; None where it stands in none."""
    if name in RANKS:
        return name
    return next((folder for folder in FOLDERS if name.startswith(f"{folder}.")), None)


# --- rules


def imports_of_higher_layers(module: Module) -> Iterator[Finding]:
    if not _in(module, "daemon"):
        return
    own = layer(module.name)
    if own is None:
        yield 1, "stands in no layer: put it into LAYERS of this test"
        return
    for line, name in imports(module):
        other = layer(name) if _below(name, "daemon") else own
        if other is None or RANKS[other] > RANKS[own]:
            yield line, f"imports {name}, which is above {own}"


def connectors_outside_the_root(module: Module) -> Iterator[Finding]:
    if _in(module, "daemon") and module.name != "daemon.__main__":
        yield from ((line, f"imports {name}") for line, name in imports(module) if _below(name, "connectors"))


def decisions_in_connectors(module: Module) -> Iterator[Finding]:
    """A connector knows nouns, errors and ports; settings, loops and procedures are handed down to it."""
    if _in(module, "connectors"):
        for line, name in imports(module):
            if _below(name, "daemon") and not any(_below(name, allowed) for allowed in SEEN_BY_CONNECTORS):
                yield line, f"imports {name}"


def drivers_outside_connectors(module: Module) -> Iterator[Finding]:
    if _in(module, "daemon"):
        yield from ((line, f"imports {name}") for line, name in imports(module) if _top(name) in DRIVERS)


def telemetry_elsewhere(module: Module) -> Iterator[Finding]:
    if module.name != "daemon.service.telemetry":
        yield from ((line, f"imports {name}") for line, name in imports(module) if _top(name) in TELEMETRY)


def foreign_imports(module: Module) -> Iterator[Finding]:
    """click is typer's own copy; tests, sandbox and bench are not installed."""
    for line, name in imports(module):
        if _top(name) in NOT_SHIPPED | {"click"}:
            yield line, f"imports {name}"


def environment_elsewhere(module: Module) -> Iterator[Finding]:
    if module.name == "daemon.config":
        return
    names = {"environ", "environb", "getenv", "putenv"}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in names and _is_name(node.value, "os"):
            yield node.lineno, f"reads os.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module == "os" and names & {a.name for a in node.names}:
            yield node.lineno, "imports the environment from os"


def impurity_of_the_core(module: Module) -> Iterator[Finding]:
    if not _in(module, "daemon.core"):
        return
    yield from ((line, f"imports {name}") for line, name in imports(module) if _top(name) in IMPURE)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield node.lineno, "waits"
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
                yield node.lineno, f"reads a clock: {node.func.attr}()"
            if isinstance(node.func, ast.Name) and node.func.id in {"open", "print", "input"}:
                yield node.lineno, f"{node.func.id}()"


def tasks_nobody_owns(module: Module) -> Iterator[Finding]:
    """A task belongs to a TaskGroup, or to a name that the same function awaits or cancels."""
    for function in _functions(module.tree):
        groups = {
            item.optional_vars.id
            for node in ast.walk(function)
            if isinstance(node, ast.AsyncWith)
            for item in node.items
            if isinstance(item.optional_vars, ast.Name) and "TaskGroup" in ast.unparse(item.context_expr)
        }
        ended = {
            call.func.value.id
            for call in ast.walk(function)
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "cancel"
            if isinstance(call.func.value, ast.Name)
        } | {n.value.id for n in ast.walk(function) if isinstance(n, ast.Await) and isinstance(n.value, ast.Name)}
        owned = {
            id(node.value)
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in ended
        }
        for node in ast.walk(function):
            if _makes_task(node) and id(node) not in owned and not _is_method_of(node, groups):
                yield node.lineno, "a task that nobody awaits or cancels"  # type: ignore[attr-defined]


def over_budget(module: Module) -> Iterator[Finding]:
    lines = len(module.source.splitlines())
    if lines > MODULE_LINES:
        yield 1, f"{lines} lines"
    for function in _functions(module.tree):
        start = min([function.lineno, *(d.lineno for d in function.decorator_list)])
        length = (function.end_lineno or start) - start + 1
        if length > FUNCTION_LINES:
            yield function.lineno, f"{function.name}: {length} lines"
        if _parameters(function) > PARAMETERS and not _in(module, "daemon.cli"):
            yield function.lineno, f"{function.name}: {_parameters(function)} parameters"


def unclear_names(module: Module) -> Iterator[Finding]:
    if not ast.get_docstring(module.tree):
        yield 1, "no docstring"
    names = [(1, module.name.rpartition(".")[2])]
    names += [(n.lineno, n.name) for n in ast.walk(module.tree) if isinstance(n, ast.ClassDef)]
    yield from ((line, f"named {name}") for line, name in names if any(word in name.lower() for word in NOT_NAMES))


# --- on the way to them


def _in(module: Module, name: str) -> bool:
    return _below(module.name, name)


def _below(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _makes_task(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in {"create_task", "ensure_future"}


def _is_method_of(node: ast.AST, names: set[str]) -> bool:
    func = node.func if isinstance(node, ast.Call) else node
    return isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id in names


def _parameters(function: Function) -> int:
    a = function.args
    named = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    return len(named) - (named[:1] in (["self"], ["cls"])) + (a.vararg is not None) + (a.kwarg is not None)


MODULES = modules()
NAMES = {module.name for module in MODULES}
RULES: tuple[Callable[[Module], Iterator[Finding]], ...] = (
    imports_of_higher_layers,
    connectors_outside_the_root,
    decisions_in_connectors,
    drivers_outside_connectors,
    telemetry_elsewhere,
    foreign_imports,
    environment_elsewhere,
    impurity_of_the_core,
    tasks_nobody_owns,
    over_budget,
    unclear_names,
)
LONG = "\n".join("    pass" for _ in range(FUNCTION_LINES))
TASK = "async def run():\n    {}\n"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_product_keeps_the_rule(rule: Callable[[Module], Iterator[Finding]]) -> None:
    found = [f"{module.name}:{line}: {what}" for module in MODULES for line, what in rule(module)]
    assert not found, "\n".join(found)


BROKEN = [
    (imports_of_higher_layers, "daemon.core.model", "import daemon.ports"),
    (imports_of_higher_layers, "daemon.core.model", "from daemon import settings"),
    (imports_of_higher_layers, "daemon.ports.feed", "from daemon.flow.stream import Stream"),
    (imports_of_higher_layers, "daemon.flow.pulse", "from daemon.procedures import prove"),
    (imports_of_higher_layers, "daemon.flow.pulse", "def late():\n    from daemon.service import web"),
    (imports_of_higher_layers, "daemon.procedures.start", "from daemon.service.supervise import Running"),
    (imports_of_higher_layers, "daemon.service.web", "from daemon.cli import output"),
    (imports_of_higher_layers, "daemon.cli.app", "import daemon.__main__"),
    (imports_of_higher_layers, "daemon.errors", "import daemon.core.model"),
    (imports_of_higher_layers, "daemon.unheard_of", ""),
    (imports_of_higher_layers, "daemon.cli.app", "import daemon.unheard_of"),
    (connectors_outside_the_root, "daemon.cli.app", "from connectors.kafka_feed import KafkaFeed"),
    (connectors_outside_the_root, "daemon.core.model", "import connectors"),
    (decisions_in_connectors, "connectors.schema", "from daemon.settings import Settings"),
    (decisions_in_connectors, "connectors.schema", "from daemon import config"),
    (decisions_in_connectors, "connectors.schema", "from daemon.flow.stream import Stream"),
    (drivers_outside_connectors, "daemon.procedures.start", "import psycopg.rows"),
    (drivers_outside_connectors, "daemon.cli.app", "def late():\n    from httpx2 import Client"),
    (telemetry_elsewhere, "daemon.service.web", "from opentelemetry.metrics import Meter"),
    (telemetry_elsewhere, "connectors.schema", "import prometheus_client"),
    (foreign_imports, "daemon.cli.app", "import click"),
    (foreign_imports, "daemon.cli.app", "from sandbox.stack import Sandbox"),
    (environment_elsewhere, "daemon.__main__", "import os\nos.environ['A']"),
    (environment_elsewhere, "connectors.schema", "import os\nos.getenv('A')"),
    (environment_elsewhere, "daemon.cli.app", "from os import environ"),
    (impurity_of_the_core, "daemon.core.fold", "import time"),
    (impurity_of_the_core, "daemon.core.fold", "from random import choice"),
    (impurity_of_the_core, "daemon.core.fold", "from datetime import datetime\ndatetime.now()"),
    (impurity_of_the_core, "daemon.core.fold", "async def decide(): ..."),
    (impurity_of_the_core, "daemon.core.fold", "open('x')"),
    (tasks_nobody_owns, "daemon.flow.stream", TASK.format("asyncio.create_task(work())")),
    (tasks_nobody_owns, "daemon.flow.stream", TASK.format("task = asyncio.create_task(work())")),
    (tasks_nobody_owns, "connectors.kafka_feed", TASK.format("asyncio.ensure_future(work())")),
    (over_budget, "daemon.flow.stream", "\n" * MODULE_LINES + "\n"),
    (over_budget, "daemon.flow.stream", f"def long():\n{LONG}"),
    (over_budget, "connectors.schema", "def wide(self, a, b, c, d, e, *, f, g): ..."),
    (unclear_names, "daemon.flow.stream", "x = 1"),
    (unclear_names, "daemon.flow.string_utils", '"""Doc."""'),
    (unclear_names, "daemon.flow.stream", '"""Doc."""\nclass StreamManager: ...'),
]
KEPT = [
    (imports_of_higher_layers, "daemon.service.web", "from daemon.core import face\nfrom daemon.service import logs"),
    (connectors_outside_the_root, "daemon.__main__", "from connectors.kafka_feed import KafkaFeed"),
    (decisions_in_connectors, "connectors.schema", "from daemon.ports.feed import Offsets\nimport daemon.errors"),
    (environment_elsewhere, "daemon.config", "import os\nos.environ"),
    (tasks_nobody_owns, "daemon.flow.stream", TASK.format("task = asyncio.create_task(work())\n    task.cancel()")),
    (tasks_nobody_owns, "daemon.flow.stream", TASK.format("task = asyncio.create_task(work())\n    await task")),
    (
        tasks_nobody_owns,
        "daemon.flow.stream",
        TASK.format("async with asyncio.TaskGroup() as group:\n        group.create_task(work())"),
    ),
    (over_budget, "daemon.flow.stream", "def wide(self, a, b, c, d, e, *, f): ..."),
    (over_budget, "daemon.cli.app", "def command(a, b, c, d, e, f, g): ..."),
]


@pytest.mark.parametrize(("rule", "name", "source"), BROKEN)
def test_a_rule_sees_what_breaks_it(rule: Callable[[Module], Iterator[Finding]], name: str, source: str) -> None:
    assert list(rule(Module(name, source)))


@pytest.mark.parametrize(("rule", "name", "source"), KEPT)
def test_a_rule_lets_pass_what_keeps_it(rule: Callable[[Module], Iterator[Finding]], name: str, source: str) -> None:
    assert not list(rule(Module(name, source)))


def test_every_rule_has_a_sample_and_every_layer_exists() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)
    assert set(RANKS) <= NAMES, "a layer that does not exist holds nothing"
    assert {"daemon.flow.stream", "connectors.kafka_feed"} <= NAMES
