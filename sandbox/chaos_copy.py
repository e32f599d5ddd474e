"""A connector restarted in mid-COPY: while the client still copies, and while the connector sends what was copied.

The rows have negative keys far from those of probes and are not public, so nothing of them is embedded.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import psycopg
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from sandbox.pipeline import PARTITIONS, Pipeline

ROWS = 6_000
FIRST_KEY = 10**9
TOPIC_TABLE = "app.article"
COPY = "copy app.article (id, tenant_id, title, body, lang, tags, is_public, views, price, updated_at) from stdin"
LAND_LIMIT_S = 60.0

_times = itertools.count()


def restarted_in_copy(dsn: str, admin: AdminClient, pipeline: Pipeline) -> dict[str, Any]:
    """Copy rows in one transaction with a restart in its middle, and restart once more in the middle of their events.
    The rows are deleted again at the end."""
    first = FIRST_KEY + next(_times) * ROWS
    with psycopg.connect(dsn) as connection:
        with connection.cursor() as cursor, cursor.copy(COPY) as copy:
            for n in range(ROWS):
                if n == ROWS // 2:
                    pipeline.connector.restart_task()
                row = (
                    -first - n,
                    7,
                    f"Copied {n}",
                    f"Row {n} of a copy",
                    "en",
                    ["copy"],
                    False,
                    0,
                    "1.00",
                    "2026-01-01",
                )
                copy.write_row(row)
        begun = ends(admin, pipeline)
        connection.commit()
    deadline = time.monotonic() + LAND_LIMIT_S
    while (emitted := ends(admin, pipeline) - begun) < 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    pipeline.connector.restart_task()
    sent = ends(admin, pipeline) - begun
    with psycopg.connect(dsn) as connection:
        connection.execute("delete from app.article where id <= %s", [-FIRST_KEY])
    return {"rows": ROWS, "sent_before": emitted, "sent_at_restart": sent, "landed": 100 <= emitted < ROWS}


def ends(admin: AdminClient, pipeline: Pipeline) -> int:
    """Records in the table's topic so far."""
    topic = f"{pipeline.capture.prefix}.{TOPIC_TABLE}"
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, n): latest for n in range(PARTITIONS)}
    return sum(found.result(timeout=30).offset for found in admin.list_offsets(asked).values())
