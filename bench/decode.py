"""Decoding the recorded change events against `orjson.loads` alone on the same bytes, in turn."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from connectors.debezium import DebeziumDecoder
from daemon.core.model import Column, Table, TopicPartition
from daemon.ports import RawRecord

RECORDED = Path(__file__).resolve().parents[1] / "tests" / "cases" / "recorded" / "profile.jsonl"
TOPIC = "profile.app.article"


def records() -> list[RawRecord]:
    """The recorded events of one table, as Kafka would deliver them."""
    found = []
    for line in RECORDED.read_text().splitlines():
        r: dict[str, Any] = json.loads(line)
        if r["topic"] == TOPIC and r["value"] is not None and '"subtitle"' not in r["value"]:
            headers = tuple((name, value.encode()) for name, value in r["headers"])
            at = TopicPartition(r["topic"], r["partition"])
            key = None if r["key"] is None else r["key"].encode()
            found.append(RawRecord(at, r["offset"], r["timestamp_ms"], key, r["value"].encode(), headers))
    return found


def article() -> Table:
    """The recorded table with its text and two more columns."""
    columns = (
        Column("id", "bigint", "bigint", nullable=False),
        Column("title", "text", "text", nullable=False),
        Column("body", "text", "text"),
        Column("tenant_id", "integer", "integer", nullable=False),
        Column("updated_at", "timestamp with time zone", "timestamp with time zone", nullable=False),
    )
    return Table(1, "article", "app", "article", ("id",), columns, "{title}\n\n{body}", ("title", "body"))


def decode(runs: int, repeat: int) -> dict[str, Any]:
    """Events per second of the decoder and of orjson alone, and their ratio pair by pair."""
    events = records()
    decoder = DebeziumDecoder("profile", "bench", [article()], 0)

    def whole() -> None:
        for event in events:
            decoder.decode(event)

    def parse() -> None:
        for event in events:
            orjson.loads(event.value or b"null")

    pairs = [(rate(whole, len(events), repeat), rate(parse, len(events), repeat)) for _ in range(runs)]
    ratios = [a / b for a, b in pairs]
    return {
        "events_per_s": round(statistics.median(a for a, _ in pairs)),
        "orjson_per_s": round(statistics.median(b for _, b in pairs)),
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "runs": runs,
    }


def rate(work: Callable[[], None], size: int, repeat: int) -> float:
    began = time.perf_counter()
    for _ in range(repeat):
        work()
    return size * repeat / (time.perf_counter() - began)


def measure(*, is_quick: bool) -> dict[str, Any]:
    return decode(runs=1 if is_quick else 7, repeat=10 if is_quick else 500)


def told(found: dict[str, Any]) -> str:
    ratio = found["ratio"]
    return (
        f"{found['events_per_s']} events/s, {ratio['median']:.2f} of orjson alone "
        f"({ratio['min']:.2f} to {ratio['max']:.2f}, {found['runs']} pairs)"
    )
