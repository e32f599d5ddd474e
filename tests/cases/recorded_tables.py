"""The tables behind recorded/source.sql, as revector would replicate them, and the recorded files themselves.

`TYPES` has every column of `app.types` that is admitted; `REFUSED_COLUMNS` names the others with their types.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon.core.canonical import target_type
from daemon.core.model import Column, Table, TopicPartition
from daemon.ports import RawRecord

FOLDER = Path(__file__).parent / "recorded"


def table(name: str, key: tuple[str, ...], columns: dict[str, str], **fields: Any) -> Table:
    """A table of schema `app`. columns: name -> base type, `enum` for the enum."""
    made = tuple(
        Column(n, t, target_type(t, "enum" if t == "app.mood" else "base"), n not in key) for n, t in columns.items()
    )
    text = tuple(n for n in columns if n in ("title", "body", "t"))
    return Table(1, name, "app", name, key, made, "".join(f"{{{n}}}" for n in text), text, **fields)


ARTICLE_COLUMNS = {
    "id": "bigint",
    "tenant_id": "integer",
    "title": "text",
    "body": "text",
    "price": "numeric(10,2)",
    "tags": "text[]",
    "meta": "jsonb",
    "is_public": "boolean",
    "published": "date",
    "updated_at": "timestamp with time zone",
}

TYPES_COLUMNS = {
    "id": "integer",
    "i2": "smallint",
    "i8": "bigint",
    "r": "real",
    "d": "double precision",
    "n": "numeric",
    "n2": "numeric(12,4)",
    "b": "boolean",
    "t": "text",
    "vc": "character varying(10)",
    "ch": "character(5)",
    "u": "uuid",
    "da": "date",
    "ts": "timestamp without time zone",
    "tstz": "timestamp with time zone",
    "js": "json",
    "jb": "jsonb",
    "ta": "text[]",
    "m": "app.mood",
    "e": "text",
    "ip": "inet",
    "r4": "int4range",
    "mac": "macaddr",
    "tv": "tsvector",
}

REFUSED_COLUMNS = {
    "by": "bytea",
    "ti": "time without time zone",
    "titz": "time with time zone",
    "iv": "interval",
    "ia": "integer[]",
    "bits": "bit(4)",
    "v": "vector(3)",
    "hv": "halfvec(2)",
    "money": "money",
    "pt": "point",
}

ARTICLE = table("article", ("id",), ARTICLE_COLUMNS)
COMPOSITE = table("composite", ("org", "seq"), {"org": "text", "seq": "integer", "body": "text"})
FULLIDENT = table("fullident", ("id",), {"id": "uuid", "body": "text", "acl": "text[]"}, full_identity=True)
TYPES = table("types", ("id",), TYPES_COLUMNS)
FINITE_TYPES = table("types", ("id",), {n: t for n, t in TYPES_COLUMNS.items() if n not in ("da", "ts")})
TABLES = (ARTICLE, COMPOSITE, FULLIDENT, TYPES)


def records(name: str) -> Iterator[RawRecord]:
    """The records of a recorded file (`profile`, `schemas`, `defaults`), in append order."""
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as file:
        yield from map(raw, map(json.loads, file))


def raw(record: dict[str, Any]) -> RawRecord:
    """One line of a recorded file as the feed would hand it over."""
    return RawRecord(
        at=TopicPartition(record["topic"], record["partition"]),
        offset=record["offset"],
        timestamp_ms=record["timestamp_ms"],
        key=_bytes(record["key"]),
        value=_bytes(record["value"]),
        headers=tuple((name, _bytes(value)) for name, value in record["headers"]),
    )


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
