"""Short builders for the nouns of the core: a test names what it is about, the rest has one plain default.

`articles` is the table of most tests: an integer key, two text columns of which `body` is large enough to be TOASTed,
a filter column and a number that no text is made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from daemon.core.comparison import Comparison, State
from daemon.core.contract import Contract
from daemon.core.model import (
    UNAVAILABLE,
    ChangeEvent,
    Column,
    Key,
    Op,
    Origin,
    Position,
    Table,
    TopicPartition,
    TruncateEvent,
    Value,
    Values,
)
from daemon.settings import LimitSettings

TEMPLATE = "{title}\n{body}"

# A configuration of `shop` without its generations.
CONFIG = """
name = "shop"
[source]
dsn = "host=127.0.0.1 dbname=app"
slot = "s"
publication = "p"
[kafka]
topic_prefix = "shop"
[kafka.properties]
"bootstrap.servers" = "127.0.0.1:9092"
[connect]
url = "http://127.0.0.1:8083"
connector = "shop"
[target]
dsn = "host=127.0.0.1 dbname=search"
[[table]]
source = "public.articles"
text = "{title}"
"""


def column(name: str, type: str = "text", nullable: bool = True) -> Column:
    return Column(name, type, type, nullable)


def articles(**changes: Any) -> Table:
    """`shop.public.articles (id, title, body, tenant, views)`; `changes` replace fields of the table."""
    fields: dict[str, Any] = {
        "id": 0,
        "alias": "articles",
        "schema": "public",
        "name": "articles",
        "key": ("id",),
        "columns": (
            column("id", "integer", nullable=False),
            column("title"),
            column("body"),
            column("tenant"),
            column("views", "integer"),
        ),
        "template": TEMPLATE,
        "text_columns": ("title", "body"),
        "filters": ("tenant",),
    }
    return Table(**{**fields, **changes})


def row(key: str = "1", title: Value = "A", body: Value = "text", tenant: Value = "t1", views: Value = "0") -> Values:
    """Values of `articles`, in its columns' order."""
    return (key, title, body, tenant, views)


def position(lsn: int, commit: int | None = None, epoch: int = 0) -> Position:
    """A position whose previous commit is one below its LSN unless said otherwise."""
    return Position(epoch, lsn - 1 if commit is None else commit, lsn)


def origin(at: Position, **changes: Any) -> Origin:
    fields: dict[str, Any] = {
        "at": TopicPartition("shop.public.articles", 0),
        "offset": 0,
        "run_id": "run-1",
        "source_ts_ms": 1_000,
        "position": at,
        "xid": 700,
    }
    return Origin(**{**fields, **changes})


def create(key: str, lsn: int, *, values: Values | None = None, **changes: Any) -> ChangeEvent:
    """`changes` go to the origin; `commit` to its position."""
    return _event(Op.CREATE, key, lsn, row(key) if values is None else values, changes)


def update(key: str, lsn: int, *, values: Values | None = None, **changes: Any) -> ChangeEvent:
    return _event(Op.UPDATE, key, lsn, row(key) if values is None else values, changes)


def delete(key: str, lsn: int, **changes: Any) -> ChangeEvent:
    return _event(Op.DELETE, key, lsn, None, changes)


def truncate(lsn: int, table: str = "articles", **changes: Any) -> TruncateEvent:
    return TruncateEvent(table, origin(_position(lsn, changes), **changes))


def without(values: Values, *names: str, table: Table | None = None) -> Values:
    """The same values with these columns unavailable."""
    return tuple(
        UNAVAILABLE if name in names else value for name, value in zip((table or articles()).names, values, strict=True)
    )


def contract(templates: Sequence[Table] = (), **changes: Any) -> Contract:
    fields: dict[str, Any] = {
        "provider": "openai",
        "model": "small",
        "revision": "",
        "dimensions": 8,
        "vector_type": "vector",
        "metric": "cosine",
        "normalised": True,
        "document_prefix": "",
        "query_prefix": "",
        "templates": {t.alias: t.template for t in templates or (articles(),)},
    }
    return Contract(**{**fields, **changes})


def comparison(**changes: Any) -> Comparison:
    """One that ended clean a minute ago and covered generation 1."""
    fields: dict[str, Any] = {
        "id": 7,
        "state": State.CLEAN,
        "generations": (1,),
        "mark": 3,
        "began_at": "2026-11-02T09:58:00+00:00",
        "began_lsn": 0x1_0000_0400,
        "began_age_s": 120.0,
        "ended_at": "2026-11-02T09:59:00+00:00",
        "ended_lsn": 0x1_0000_0800,
        "rows": 100,
        "chunks": 120,
        "open": {},
        "repaired": {},
        "sampled": 20,
    }
    return Comparison(**{**fields, **changes})


def limits(**changes: int) -> LimitSettings:
    return LimitSettings(**changes)


def _event(op: Op, key: str, lsn: int, after: Values | None, changes: dict[str, Any]) -> ChangeEvent:
    at = _position(lsn, changes)
    key_values: Key = (key,)
    return ChangeEvent("articles", op, key_values, after, origin(at, **changes))


def _position(lsn: int, changes: dict[str, Any]) -> Position:
    return position(lsn, changes.pop("commit", None), changes.pop("epoch", 0))
