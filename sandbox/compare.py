"""The independent check: source against replica and chunks, in plain SQL, with nothing of revector's.

Each side renders its own text and hashes it in its own database; the source's keys and hashes are copied into a
temporary table of the target, where one full join per claim counts what is missing, extra or stale. The texts of the
corpus are written out here as SQL, not read from revector's configuration.
"""

from dataclasses import dataclass, replace

import numpy as np
import psycopg
from psycopg import sql

from sandbox.provider_answers import vectors_of


@dataclass(frozen=True)
class Checked:
    """One source table and what must be in the target. Expressions are SQL over the source's and replica's columns;
    searchable: rows that must have a chunk.
    filter_columns: as they stand behind other columns, with a comma before each."""

    source: str
    replica: str
    chunks: str
    key: str
    text: str
    metadata: str
    key_columns: str = "id"
    filters: str = "''"
    filter_columns: str = ""
    searchable: str = "true"

    def of(self, generation: str) -> "Checked":
        """The same with the chunks of another generation."""
        return replace(self, chunks=f"{self.replica}_{generation}")


CORPUS = (
    Checked(
        "app.article",
        "article",
        "article_v2",
        "id::text",
        "title || E'\\n\\n' || body",
        "concat_ws('|', tenant_id, lang, tags::text, is_public, views, price, updated_at::text)",
        filters="tenant_id::text",
        filter_columns=", tenant_id",
        searchable="is_public",
    ),
    Checked(
        "app.page",
        "page",
        "page_v2",
        "jsonb_build_array(site, path)::text",
        "title || E'\\n\\n' || body",
        "concat_ws('|', meta::text, updated_at::text)",
        key_columns="site, path",
    ),
    Checked("app.note", "note", "note_v2", "id::text", "body", "concat_ws('|', author, pinned, written_on::text)"),
)

# How many rows each claim fails for, after a full join of the source's hashes (s) with the target's (t).
REPLICA = """
select count(*) filter (where t.key is null), count(*) filter (where s.key is null),
       count(*) filter (where s.text <> t.text), count(*) filter (where s.metadata <> t.metadata)
from pg_temp.of_source s full join ({mine}) t using (key)
"""
CHUNKS = """
select count(*) filter (where t.key is null), count(*) filter (where s.key is null),
       count(*) filter (where s.text <> t.text or t.n <> 0), count(*) filter (where s.filters <> t.filters)
from (select * from pg_temp.of_source where searchable) s full join ({mine}) t using (key)
"""


@dataclass(frozen=True)
class Differences:
    """Rows of replica and chunks together."""

    missing: int = 0
    extra: int = 0
    stale_text: int = 0
    stale_metadata: int = 0

    def __add__(self, other: "Differences") -> "Differences":
        return Differences(
            self.missing + other.missing,
            self.extra + other.extra,
            self.stale_text + other.stale_text,
            self.stale_metadata + other.stale_metadata,
        )

    @property
    def total(self) -> int:
        return self.missing + self.extra + self.stale_text + self.stale_metadata


def compare(
    source_dsn: str,
    target_dsn: str,
    schema: str,
    tables: tuple[Checked, ...] = CORPUS,
    generation: str | None = None,
) -> tuple[Differences, dict[str, int]]:
    """All differences, and rows per source table. Nobody writes to the source meanwhile. generation: whose chunks;
    None: those that `tables` name."""
    tables = tables if generation is None else tuple(table.of(generation) for table in tables)
    found, rows = Differences(), {}
    with psycopg.connect(source_dsn) as source, psycopg.connect(target_dsn) as target:
        for connection in (source, target):
            connection.execute("set timezone = 'UTC'")
        for table in tables:
            rows[table.source] = _bring(source, target, table)
            for query, mine in ((REPLICA, _replica(schema, table)), (CHUNKS, _chunks(schema, table))):
                row = target.execute(sql.SQL(query).format(mine=mine)).fetchone()
                assert row is not None
                found = found + Differences(*row)
            target.execute("drop table pg_temp.of_source")
    return found, rows


def wrong_vectors(
    target_dsn: str, schema: str, generation: str, dimensions: int, tables: tuple[Checked, ...] = CORPUS
) -> tuple[int, int]:
    """Chunks of a generation made by the scriptable provider: those with a vector that is not their text's, and all."""
    wrong = seen = 0
    with psycopg.connect(target_dsn) as target, target.cursor("chunks") as chunks:
        for table in tables:
            query = sql.SQL("select _text, _embedding::text from {}")
            chunks.execute(query.format(sql.Identifier(schema, table.of(generation).chunks)))
            for block in iter(lambda: chunks.fetchmany(1000), []):
                expected = vectors_of([text for text, _ in block], dimensions)
                found = np.array([np.fromstring(vector[1:-1], np.float32, sep=",") for _, vector in block])
                wrong += int((found != expected).any(axis=1).sum())
                seen += len(block)
    return wrong, seen


def _bring(source: psycopg.Connection, target: psycopg.Connection, table: Checked) -> int:
    """Copy the source's keys and hashes next to the target's rows; their number."""
    target.execute(
        "create temporary table of_source (key text primary key, text text, metadata text, filters text,"
        " searchable boolean)"
    )
    query = (
        f"copy (select {table.key}, md5({table.text}), md5({table.metadata}), {table.filters}, {table.searchable}"
        f" from {table.source}) to stdout"
    )
    with (
        source.cursor().copy(query.encode()) as out,
        target.cursor().copy("copy pg_temp.of_source from stdin") as into,
    ):
        for block in out:
            into.write(block)
    row = target.execute("select count(*) from pg_temp.of_source").fetchone()
    assert row is not None
    return int(row[0])


def _replica(schema: str, table: Checked) -> sql.Composed:
    query = "select {key} as key, md5({text}) as text, md5({metadata}) as metadata from {relation} where not _deleted"
    return _filled(query, schema, table)


def _chunks(schema: str, table: Checked) -> sql.Composed:
    query = (
        "select {key} as key, md5(c._text) as text, c._n as n, {filters} as filters"
        " from (select _row_id, _n, _text{filter_columns} from {chunks}) c"
        " left join (select _row_id, {key_columns} from {relation}) r using (_row_id)"
    )
    return _filled(query, schema, table)


def _filled(query: str, schema: str, table: Checked) -> sql.Composed:
    return sql.SQL(query).format(
        key=sql.SQL(table.key),
        text=sql.SQL(table.text),
        metadata=sql.SQL(table.metadata),
        filters=sql.SQL(table.filters),
        filter_columns=sql.SQL(table.filter_columns),
        key_columns=sql.SQL(table.key_columns),
        relation=sql.Identifier(schema, table.replica),
        chunks=sql.Identifier(schema, table.chunks),
    )
