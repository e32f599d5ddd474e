"""A transaction's own view of the target: what is committed at this moment, below what it wrote itself.

That is READ COMMITTED: a statement sees what others have committed until it begins. Nothing is copied when a
transaction begins; its writes are put into the committed state when it commits. That two transactions do not write one
row is for the locks of `tests.simulation.statements` to hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar, cast

from tests.fakes.state import JournalEntry, MigrationRecord, State

K = TypeVar("K")
V = TypeVar("V")
GONE: Any = object()

DICTS = (
    "tables",
    "rows",
    "keys",
    "chunks",
    "work",
    "ranges",
    "checkpoints",
    "generations",
    "budgets",
    "comparisons",
    "scans",
    "suspects",
    "findings",
    "heads",
)


class Layer(Generic[K, V]):
    """A dictionary over a committed one. own: what this transaction wrote; GONE for what it removed."""

    def __init__(self, base: dict[K, V]) -> None:
        self.base, self.own = base, dict[K, Any]()

    def _view(self) -> dict[K, V]:
        if not self.own:
            return self.base
        merged = {**self.base, **self.own}
        return {key: value for key, value in merged.items() if value is not GONE}

    def __getitem__(self, key: K) -> V:
        value: Any = self.own.get(key, self)
        if value is GONE:
            raise KeyError(key)
        found: V = self.base[key] if value is self else value
        return found

    def get(self, key: K, default: Any = None) -> Any:
        value = self.own.get(key, self)
        if value is self:
            return self.base.get(key, default)
        return default if value is GONE else value

    def __contains__(self, key: object) -> bool:
        value = self.own.get(cast(K, key), self)
        return key in self.base if value is self else value is not GONE

    def __setitem__(self, key: K, value: V) -> None:
        self.own[key] = value

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        self.own[key] = GONE

    def pop(self, key: K, *default: Any) -> Any:
        if key in self:
            value = self[key]
            self.own[key] = GONE
            return value
        if default:
            return default[0]
        raise KeyError(key)

    def __iter__(self) -> Iterator[K]:
        return iter(self._view())

    def __len__(self) -> int:
        return len(self._view())

    def keys(self) -> Any:
        return self._view().keys()

    def values(self) -> Any:
        return self._view().values()

    def items(self) -> Any:
        return self._view().items()

    def assign(self, values: Mapping[K, V]) -> None:
        """Make it these values; what stays the same is not written."""
        for key in list(self._view()):
            if key not in values:
                self.own[key] = GONE
        for key, value in values.items():
            if key not in self or self[key] is not value:
                self.own[key] = value

    def commit(self) -> None:
        for key, value in self.own.items():
            if value is GONE:
                self.base.pop(key, None)
            else:
                self.base[key] = value


class Branch(State):
    """The `State` that a transaction works on."""

    def __init__(self, base: State) -> None:
        own: dict[str, Any] = vars(self)
        own["base"] = base
        for name in DICTS:
            own[name] = Layer(getattr(base, name))
        own["of_migration"] = dict[str, Any]()
        own["closed"] = dict[int, JournalEntry]()
        own["journaled"] = own["issued"] = ()
        own["others"] = dict[str, Any]()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in DICTS:
            getattr(self, name).assign(value)
        else:
            object.__setattr__(self, name, value)

    def commit(self) -> None:
        """Put what was written into the committed state."""
        own: dict[str, Any] = vars(self)
        base: State = own["base"]
        for name in DICTS:
            own[name].commit()
        if own["of_migration"]:
            base.migration = replace(base.migration, **own["of_migration"])
        if own["closed"] or own["journaled"]:
            base.journal = _journal(self)
        if own["issued"]:
            base.certificates = (*base.certificates, *own["issued"])
        for name, value in own["others"].items():
            setattr(base, name, value)

    @property
    def is_read_only(self) -> bool:
        own = vars(self)
        return not any(own[n] for n in SCALARS) and not any(own[name].own for name in DICTS)


SCALARS = ("of_migration", "closed", "journaled", "issued", "others")


def _migration(branch: Any) -> MigrationRecord:
    base: MigrationRecord = branch.base.migration
    return replace(base, **branch.of_migration) if branch.of_migration else base


def _set_migration(branch: Any, value: MigrationRecord) -> None:
    before = _migration(branch)
    for each in fields(MigrationRecord):
        if getattr(value, each.name) is not getattr(before, each.name):
            branch.of_migration[each.name] = getattr(value, each.name)


def _journal(branch: Any) -> tuple[JournalEntry, ...]:
    committed = branch.base.journal
    if branch.closed:
        committed = tuple(branch.closed.get(n, entry) for n, entry in enumerate(committed))
    return (*committed, *branch.journaled)


def _set_journal(branch: Any, value: tuple[JournalEntry, ...]) -> None:
    before = _journal(branch)
    committed = len(branch.base.journal)
    for n in range(committed):
        if value[n] is not before[n]:
            branch.closed[n] = value[n]
    vars(branch)["journaled"] = tuple(value[committed:])


def _set_certificates(branch: Any, value: tuple[Any, ...]) -> None:
    vars(branch)["issued"] = tuple(value[len(branch.base.certificates) :])


def _other(name: str) -> property:
    def get(branch: Any) -> Any:
        return branch.others.get(name, getattr(branch.base, name))

    def put(branch: Any, value: Any) -> None:
        branch.others[name] = value

    return property(get, put)


for _name, _field in {
    "migration": property(_migration, _set_migration),
    "journal": property(_journal, _set_journal),
    "certificates": property(lambda branch: (*branch.base.certificates, *branch.issued), _set_certificates),
    "orders": _other("orders"),
    "is_prepared": _other("is_prepared"),
}.items():
    setattr(Branch, _name, _field)
