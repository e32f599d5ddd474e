"""What the twins of source and target hand each other in a comparison: digests of values, and pages of keys as text.

Only these twins read the text. It is JSON here and an array literal in Postgres, so whoever reads a page elsewhere
fails in one of the two worlds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from daemon.core.comparison import Columns
from daemon.core.model import UNAVAILABLE, Key, Table, Values
from daemon.ports import DigestPage, KeyPage


def column_digests(values: Values) -> Columns:
    """A digest of each value; None for null, and where the value is not known."""
    return tuple(None if v is None or v is UNAVAILABLE else _digest(v) for v in values)


def row_digest(values: Values) -> bytes:
    """One digest of all values. A null is told from an empty text."""
    return _digest(json.dumps([None if c is None else c.hex() for c in column_digests(values)]))


def key_page(table: Table, keys: Sequence[Key]) -> KeyPage:
    return KeyPage(len(keys), _columns(table, keys))


def digest_page(table: Table, rows: Sequence[tuple[Key, Values]], last: Key | None) -> DigestPage:
    digests = json.dumps([row_digest(values).hex() for _, values in rows])
    return DigestPage(len(rows), _columns(table, [key for key, _ in rows]), digests, last)


def keys_of(page: KeyPage | DigestPage) -> list[Key]:
    """The keys that a page carries, in its order."""
    return list(zip(*(json.loads(column) for column in page.keys), strict=True))


def digests_of(page: DigestPage) -> list[bytes]:
    return [bytes.fromhex(text) for text in json.loads(page.digests)]


def _columns(table: Table, keys: Sequence[Key]) -> tuple[str, ...]:
    return tuple(json.dumps([key[n] for key in keys]) for n in range(len(table.key)))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
