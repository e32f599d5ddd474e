"""What each recorded record is expected to decode to, as text that can be read beside recorded/source.sql.

`python -m tests.cases.golden` prints it; recorded/profile.expected is that text, reviewed by hand against source.sql.
A value longer than a line is written as its length and the start of its sha256.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator

from connectors.debezium import DebeziumDecoder
from daemon.core.model import ChangeEvent, Decoded, Ignored, Origin, PulseEvent, Table, Unavailable, Value
from daemon.errors import UndecodableEvent
from daemon.ports import RawRecord
from tests.cases.recorded_tables import TABLES, records

EPOCH = 1
LONGEST = 90


def rendered(name: str = "profile", tables: tuple[Table, ...] = TABLES) -> str:
    """The decodings of a recorded file, one block per record, transaction metadata left out."""
    decoder = DebeziumDecoder(name, "shop", tables, EPOCH)
    by_alias = {table.alias: table for table in tables}
    lines: list[str] = []
    for record in records(name):
        if not record.at.topic.endswith(".transaction"):
            lines.append(f"{record.at.topic} {record.at.partition}@{record.offset}: {_outcome(decoder, record)}")
            lines.extend(_values(decoder, record, by_alias))
    return "\n".join(lines) + "\n"


def _outcome(decoder: DebeziumDecoder, record: RawRecord) -> str:
    try:
        decoded = decoder.decode(record)
    except UndecodableEvent as error:
        return f"refused, {error.id}"
    return _line(decoded)


def _line(decoded: Decoded) -> str:
    match decoded:
        case ChangeEvent():
            return f"{decoded.op.name.lower()} {decoded.table} {decoded.key} {_place(decoded.origin)}"
        case Ignored():
            return "ignored"
        case PulseEvent():
            return f"pulse {decoded.number} {decoded.token} {_place(decoded.origin)}"
        case _:
            return f"{type(decoded).__name__} {decoded.table} {_place(decoded.origin)}"


def _place(origin: Origin) -> str:
    _, commit, lsn = origin.position
    return f"lsn {lsn}, previous commit {commit}, xid {origin.xid}, {origin.source_ts_ms} ms"


def _values(decoder: DebeziumDecoder, record: RawRecord, tables: dict[str, Table]) -> Iterator[str]:
    try:
        decoded = decoder.decode(record)
    except UndecodableEvent:
        return
    if isinstance(decoded, ChangeEvent) and decoded.after is not None:
        named = dict(zip(tables[decoded.table].names, decoded.after, strict=True))
        for name, value in named.items():
            if value is not None:
                yield f"    {name} = {_short(value)}"
        if nulls := [name for name, value in named.items() if value is None]:
            yield f"    null: {', '.join(nulls)}"


def _short(value: Value) -> str:
    if isinstance(value, Unavailable):
        return "unavailable"
    text = repr(value)
    if len(text) <= LONGEST:
        return text
    return f"{len(value or '')} characters, sha256 {hashlib.sha256((value or '').encode()).hexdigest()[:16]}"


if __name__ == "__main__":
    sys.stdout.write(rendered())
