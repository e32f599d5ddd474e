"""`revector plan` of a large synthetic table: how long it takes, and how far it is from the exact count.

A million rows of real text; rows that lie beside each other hold the same kind of text, so that whoever takes the rows
of a block for independent ones is found out. Planned as a user would (random rows), as for a table too large to be
counted (random blocks), and exactly. Nothing but the source is there.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg

from bench.storage import cluster
from daemon import config
from daemon.__main__ import ConnectorParts
from daemon.core.forecast import Forecast
from daemon.procedures import plan
from sandbox.config import Choice, Gen, render
from sandbox.corpus import corpus

ROWS, QUICK_ROWS = 1_000_000, 60_000
LIMIT_S = 60
TABLE = """
[[table]]
source = "app.doc"
text = "{title}\\n\\n{body}"
columns = ["tenant"]
where = "tenant <> 7"
"""
UNCOUNTED = 0.001  # seconds to count in: too few


def measure(*, is_quick: bool) -> dict[str, Any]:
    rows = QUICK_ROWS if is_quick else ROWS
    with cluster() as server, tempfile.TemporaryDirectory() as folder:
        dsn = server.create_database("app")
        fill(dsn, rows)
        parts = _parts(dsn, Path(folder))
        wishes = {
            "default": plan.Wish(),
            "blocks": plan.Wish(count_limit_s=UNCOUNTED),
            "exact": plan.Wish(exact=True),
        }
        found = {name: _timed(parts, wish) for name, wish in wishes.items()}
    exact = found["exact"][0].tokens.value
    return {
        "rows": rows,
        "limit_s": LIMIT_S,
        **{name: _figures(forecast, seconds, exact) for name, (forecast, seconds) in found.items()},
    }


def fill(dsn: str, rows: int) -> None:
    """The table: pieces of the corpus in its order, each many times."""
    pieces = corpus()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create schema app")
        connection.execute("create table app.piece (n int primary key, name text, body text)")
        with connection.cursor().copy("copy app.piece from stdin") as copy:
            for n, piece in enumerate(pieces):
                copy.write_row((n, piece.name, piece.text))
        connection.execute("create unlogged table app.doc (id bigint, tenant int not null, title text, body text)")
        connection.execute(
            "insert into app.doc select i, i %% 10, p.name, p.body || i "
            "from generate_series(0, %s - 1) i join app.piece p on p.n = i * %s::bigint / %s order by i",
            [rows, len(pieces), rows],
        )
        connection.execute("alter table app.doc add primary key (id)")
        connection.execute("analyze app.doc")


def _parts(dsn: str, folder: Path) -> ConnectorParts:
    key = folder / "key"
    key.write_text("none")
    stack: Any = SimpleNamespace(
        source_dsn=dsn,
        target_dsn=dsn,
        kafka="127.0.0.1:1",
        connect_url="http://127.0.0.1:1",
        embeddings_url="http://127.0.0.1:1/v1",
        embeddings_key_file=key,
    )
    file = folder / "revector.toml"
    generation = Gen(model="text-embedding-3-small", dimensions=1536, extra={"tokenizer": "cl100k_base"})
    file.write_text(render(stack, Choice(tables=TABLE, generations=(generation,))))
    return ConnectorParts(config.load(file, {}, {}))


def _timed(parts: ConnectorParts, wish: plan.Wish) -> tuple[Forecast, float]:
    began = time.perf_counter()
    found = asyncio.run(plan.plan(parts, parts.settings.candidate, wish, time.monotonic))
    return found, time.perf_counter() - began


def _figures(found: Forecast, seconds: float, exact: float) -> dict[str, Any]:
    (table,) = found.tables
    return {
        "seconds": seconds,
        "method": table.draw.picking.value,
        "rows_read": table.rows_read,
        "tokens": round(found.tokens.value),
        "error": found.tokens.value / exact - 1,
        "stated_error": found.tokens.error,
    }


def told(found: dict[str, Any]) -> str:
    lines = [f"{found['rows']} rows; the default is to take under {found['limit_s']} s"]
    for name in ("default", "blocks", "exact"):
        f = found[name]
        lines.append(
            f"  {name:<8} {f['seconds']:6.1f} s  {f['rows_read']:>8} rows read ({f['method']})  "
            f"{100 * f['error']:+.2f} % off the exact count, stated within {100 * f['stated_error']:.2f} %"
        )
    return "\n".join(lines)
