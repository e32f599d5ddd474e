"""A generation's chunks as a comparison reads them: against their rows, by themselves, and one against the other.

What is compared never leaves the database: digests are made again from the stored texts, lengths of vectors are taken,
documents that are not cut are rendered where they lie. What leaves is the ids of rows with anything that may be wrong;
`core.comparison` decides on them from `pieces`. So a statement here may name a row too many, never one too few.

Rows with a work entry are looked up one by one and last: only where their document seems to be wrong, and never by a
join (`connectors.postgres_work` says why). Takes no lock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from psycopg import sql

from connectors.postgres_session import Connection
from connectors.relations import Relations, comma, name, wanted
from connectors.schema import table_of
from daemon.core.comparison import LENGTH_TOLERANCE, Piece
from daemon.core.contract import BLANK, WHOLE, Contract, template_parts
from daemon.core.model import Generation, Table
from daemon.ports import ChunkPage, ChunkText, RowPieces, RowText

Parameters = dict[str, Any]
Row = tuple[Any, ...]

NORMS = {"vector": "vector_norm", "halfvec": "l2_norm"}
LAST_ROW = 2**63 - 1
CHUNKS_OF_A_ROW = 10  # of a page; where rows have more, a page has fewer rows
HEAD_BYTES, DIGEST_BYTES = 16, 8  # of a vector's first elements, of a digest: hardly ever equal by chance
MOST_ALIKE = 20_000  # chunks whose vectors begin alike that are looked at
MOST_SHARED = 2000  # chunks of groups with one vector that are handed out
PAGES_OF_A_CHUNK = 3  # of a sample: neighbours were embedded together
PICKED = 4  # chunks for each one of a sample: rows that are owed are left out
TRIES = 4  # with four times as much each time

# The id of the last row that a page has, if there are so many; served by the primary key.
_LAST = """
SELECT t._row_id FROM {replica} AS t WHERE {rows} ORDER BY t._row_id OFFSET %(limit)s - 1 LIMIT 1
"""

# The row of the chunk that ends a page before its rows do; served by the primary key.
_LAST_BY_CHUNKS = """
SELECT c._row_id FROM {chunks} AS c WHERE {range} ORDER BY c._row_id OFFSET %(most)s LIMIT 1
"""

# Rows and chunks of a range, and the rows to be looked at again. Both sides are read by their primary keys.
_PAGE = """
SELECT count(DISTINCT t._row_id), count(c._row_id),
       array_agg(DISTINCT coalesce(t._row_id, c._row_id)) FILTER (WHERE CASE
           WHEN c._row_id IS NULL THEN {lacks}
           WHEN t.wanted IS NOT TRUE OR c.is_spoilt OR {filters_differ} THEN true
           ELSE {differs} END)
FROM (SELECT t._row_id, t._missing, {wanted} AS wanted, {document} AS document {row_filters}
      FROM {replica} AS t WHERE {rows}) AS t
FULL JOIN (SELECT c._row_id, c._n, c._text, {spoilt} AS is_spoilt {chunk_filters}
           FROM {chunks} AS c WHERE {range}) AS c ON c._row_id = t._row_id
"""

# Documents that are cut, with the digests that are stored of them and whether their numbers have gaps.
_TEXTS = """
SELECT t._row_id, d.digests, coalesce(d.gaps, false), {texts} FROM {replica} AS t
LEFT JOIN LATERAL (
    SELECT array_agg(c._digest ORDER BY c._n) AS digests, min(c._n) <> 0 OR max(c._n) <> count(*) - 1 AS gaps
    FROM {chunks} AS c WHERE c._row_id = t._row_id
) AS d ON true
WHERE {rows} AND {wanted} AND {known} AND NOT {owed} ORDER BY t._row_id
"""

_KEEP = """
INSERT INTO revector.comparison_head (comparison_id, generation_id, table_id, row_id, n, head, digest)
SELECT %(comparison)s, %(generation)s, %(table)s, c._row_id, c._n,
       substr({send}(c._embedding), 5, %(head)s), substr(c._digest, 1, %(digest)s)
FROM {chunks} AS c WHERE {range}
"""

# Heads that no other text has.
_FORGET = """
WITH alike AS MATERIALIZED (
    SELECT head FROM revector.comparison_head WHERE comparison_id = %(comparison)s AND generation_id = %(generation)s
    GROUP BY head HAVING count(DISTINCT digest) > 1
)
DELETE FROM revector.comparison_head AS h WHERE h.comparison_id = %(comparison)s AND h.generation_id = %(generation)s
AND NOT EXISTS (SELECT FROM alike WHERE alike.head = h.head)
"""

# Chunks by the whole of their vectors; of each text some, before more of any.
_SHARED = """
WITH alike AS MATERIALIZED (
    SELECT table_id, row_id, n, row_number() OVER (PARTITION BY head, digest ORDER BY table_id, row_id, n) AS of_text
    FROM revector.comparison_head WHERE comparison_id = %(comparison)s AND generation_id = %(generation)s
    ORDER BY of_text, head LIMIT %(alike)s
), stored AS MATERIALIZED ({stored}), groups AS (
    SELECT embedding, row_number() OVER (ORDER BY min(table_id), min(row_id), min(n)) AS number FROM stored
    GROUP BY embedding HAVING count(DISTINCT digest) > 1 ORDER BY number LIMIT %(limit)s
), members AS (
    SELECT g.number, s.*, row_number() OVER (PARTITION BY g.number, s.digest ORDER BY s.table_id, s.row_id, s.n) AS nth
    FROM groups AS g JOIN stored AS s ON s.embedding = g.embedding ORDER BY nth, g.number LIMIT %(most)s
)
SELECT number, table_id, row_id, n, text, embedding::real[] FROM members ORDER BY number, table_id, row_id, n
"""

_STORED = """
SELECT h.table_id, c._row_id AS row_id, c._n AS n, c._text AS text, c._digest AS digest, c._embedding AS embedding
FROM alike AS h JOIN {chunks} AS c ON c._row_id = h.row_id AND c._n = h.n
WHERE h.table_id = {table} AND {sane} AND {is_live}
"""

# Everything that a row's chunks are judged by, in one snapshot; served by the primary keys.
_PIECES = """
SELECT i.row_id, t._row_id IS NOT NULL, coalesce({wanted}, false), coalesce(t._missing && %(needed)s::text[], false),
       {owed}, c.n, c.digest, c.derived, c.filters_differ, c.dimensions, c.norm, {columns}
FROM unnest(%(rows)s::bigint[]) AS i (row_id) LEFT JOIN {replica} AS t ON t._row_id = i.row_id
LEFT JOIN LATERAL (
    SELECT array_agg(c._n ORDER BY c._n) AS n, array_agg(c._digest ORDER BY c._n) AS digest,
           array_agg({derived} ORDER BY c._n) AS derived,
           array_agg(coalesce(NOT t._deleted AND {filters_differ}, false) ORDER BY c._n) AS filters_differ,
           array_agg(vector_dims(c._embedding) ORDER BY c._n) AS dimensions,
           array_agg({norm} ORDER BY c._n) AS norm
    FROM {chunks} AS c WHERE c._row_id = i.row_id
) AS c ON true
"""

# Chunks of live rows that nothing is on its way for. Vectors are read of those that were picked.
_SAMPLE = """
SELECT c._row_id, c._n, c._text, c._embedding::real[]
FROM (SELECT * FROM {chunks} {sampled} ORDER BY random() LIMIT %(pick)s) AS c
WHERE {is_live} AND NOT {owed} AND {sane} LIMIT %(count)s
"""

_OWED = """EXISTS (SELECT FROM revector.work AS w WHERE w.generation_id = %(generation)s AND w.table_id = %(table)s
AND w.row_id = {row} OFFSET 0)"""

_IS_LIVE = "EXISTS (SELECT FROM {replica} AS r WHERE r._row_id = c._row_id AND NOT r._deleted OFFSET 0)"

# Most documents show it by their first characters.
_IS_BLANK = "(btrim(left(t.document, 64), %(blank)s) = '' AND btrim(t.document, %(blank)s) = '')"


class PgChunkAudit:
    """The Audit port's methods on chunks, over one open transaction."""

    def __init__(self, connection: Connection, relations: Relations) -> None:
        self._connection = connection
        self._relations = relations

    # --- pages

    async def chunk_page(
        self, table: Table, generation: Generation, contract: Contract, after_row: int, upto_row: int | None, limit: int
    ) -> ChunkPage:
        parameters = _parameters(table, generation, contract) | _range(after_row, upto_row)
        last = await self._last_of_page(table, generation, parameters, limit)
        if last is not None:
            parameters["upto"] = last
        ((rows, chunks, found),) = await self._fetch(self._page(table, generation, contract), parameters)
        suspects: set[int] = set(found or ())
        texts: list[RowText] = []
        if contract.chunker != WHOLE:
            fragments = self._fragments(table, generation) | {"owed": _owed("t._row_id")}
            columns = comma(_as_text("t", table.text_columns))
            for row_id, digests, has_gaps, *values in await self._fetch(
                sql.SQL(_TEXTS).format(**fragments, texts=columns), parameters
            ):
                if has_gaps:
                    suspects.add(row_id)
                elif row_id not in suspects:
                    by_name = dict(zip(table.text_columns, values, strict=True))
                    texts.append(RowText(row_id, by_name, tuple(digests or ())))
        return ChunkPage(rows, chunks, tuple(sorted(suspects)), tuple(texts), last)

    async def _last_of_page(
        self, table: Table, generation: Generation, parameters: Parameters, limit: int
    ) -> int | None:
        """The row that a page ends with: the limit-th of the replica, or one before it where rows have many chunks."""
        fragments = self._fragments(table, generation)
        rows = await self._fetch(sql.SQL(_LAST).format(**fragments), parameters | {"limit": limit})
        last: int | None = rows[0][0] if rows else None
        bounds = parameters | {"most": CHUNKS_OF_A_ROW * limit}
        if last is not None:
            bounds["upto"] = last
        earlier = await self._fetch(sql.SQL(_LAST_BY_CHUNKS).format(**fragments), bounds)
        return earlier[0][0] if earlier else last

    def _page(self, table: Table, generation: Generation, contract: Contract) -> sql.Composed:
        fragments = self._fragments(table, generation)
        lacks: sql.Composable = sql.SQL("false")
        differs, document = lacks, sql.Composed([sql.SQL("NULL::text")])
        if contract.chunker == WHOLE:
            document, blank, owed = _document(contract.templates[table.alias]), sql.SQL(_IS_BLANK), _owed("t._row_id")
            lacks = sql.SQL("t.wanted AND {} AND NOT {} AND NOT {}").format(fragments["known"], blank, owed)
            differs = sql.SQL('{} AND (c._n <> 0 OR c._text COLLATE "C" <> t.document OR {}) AND NOT {}').format(
                fragments["known"], blank, owed
            )
        numbered = range(len(table.filters))
        return sql.SQL(_PAGE).format(
            **fragments,
            lacks=lacks,
            differs=differs,
            document=document,
            spoilt=_spoilt(generation, contract),
            filters_differ=_filters_differ(table, [(_n("c", n), _n("t", n)) for n in numbered]),
            row_filters=_numbered("t", table),
            chunk_filters=_numbered("c", table),
        )

    # --- vectors that several texts have

    async def keep_heads(
        self, comparison: int, table: Table, generation: Generation, after_row: int, upto_row: int | None
    ) -> None:
        send = sql.SQL(f"{generation.vector_type}_send")
        parameters = {"comparison": comparison, "generation": generation.id, "table": table.id}
        sizes = {"head": HEAD_BYTES, "digest": DIGEST_BYTES}
        statement = sql.SQL(_KEEP).format(**self._fragments(table, generation), send=send)
        await self._connection.execute(statement, parameters | sizes | _range(after_row, upto_row))

    async def shared(self, comparison: int, generation: Generation, limit: int) -> list[list[ChunkText]]:
        parameters = {"comparison": comparison, "generation": generation.id}
        await self._connection.execute(_FORGET, parameters)
        cursor = await self._connection.execute(
            "SELECT id, definition FROM revector.source_table WHERE id IN (SELECT table_id FROM "
            "revector.comparison_head WHERE comparison_id = %(comparison)s AND generation_id = %(generation)s)",
            parameters,
        )
        tables = [table_of(*row) for row in await cursor.fetchall()]
        if not tables:
            return []
        stored = [
            sql.SQL(_STORED).format(**self._fragments(table, generation), table=sql.Literal(table.id))
            for table in tables
        ]
        rows = await self._fetch(
            sql.SQL(_SHARED).format(stored=sql.SQL(" UNION ALL ").join(stored)),
            parameters
            | {"limit": limit, "alike": MOST_ALIKE, "most": MOST_SHARED, "dimensions": generation.dimensions},
        )
        groups: dict[int, list[ChunkText]] = defaultdict(list)
        for number, *chunk in rows:
            groups[number].append(ChunkText(*chunk))
        return list(groups.values())

    # --- one by one

    async def pieces(
        self, table: Table, generation: Generation, contract: Contract, row_ids: Sequence[int]
    ) -> dict[int, RowPieces]:
        columns = [
            (sql.SQL("c.{}::text").format(name(f)), sql.SQL("t.{}::text").format(name(f))) for f in table.filters
        ]
        statement = sql.SQL(_PIECES).format(
            **self._fragments(table, generation),
            owed=_owed("i.row_id"),
            derived=_derived(contract),
            filters_differ=_filters_differ(table, columns),
            columns=comma(_as_text("t", (*table.key, *table.text_columns))),
        )
        parameters = _parameters(table, generation, contract) | {"rows": list(row_ids)}
        found = {}
        for row_id, is_there, is_wanted, is_incomplete, is_owed, *rest in await self._fetch(statement, parameters):
            chunks, columns_of = rest[:6], rest[6:]
            if not is_there and not is_owed and chunks[0] is None:
                continue
            found[row_id] = RowPieces(
                key=tuple(columns_of[: len(table.key)]) if is_there else None,
                is_wanted=is_wanted,
                values=dict(zip(table.text_columns, columns_of[len(table.key) :], strict=True))
                if is_wanted and not is_incomplete
                else None,
                is_owed=is_owed,
                pieces=tuple(Piece(*piece) for piece in zip(*chunks, strict=True)) if chunks[0] is not None else (),
            )
        return found

    async def drop_chunks(self, table: Table, generation: Generation, chunks: Sequence[tuple[int, int]]) -> None:
        statement = sql.SQL(
            "DELETE FROM {} AS c USING unnest(%s::bigint[], %s::integer[]) AS i (row_id, n) "
            "WHERE c._row_id = i.row_id AND c._n = i.n"
        ).format(self._relations.chunks(table, generation))
        await self._connection.execute(statement, [[row_id for row_id, _ in chunks], [n for _, n in chunks]])

    async def sample(self, table: Table, generation: Generation, count: int) -> list[ChunkText]:
        relation = self._relations.chunks(table, generation)
        ((pages,),) = await self._fetch(
            sql.SQL("SELECT pg_relation_size(%(relation)s::regclass) / current_setting('block_size')::bigint"),
            {"relation": relation.as_string(self._connection)},
        )
        fragments = self._fragments(table, generation) | {"owed": _owed("c._row_id")}
        parameters = {"generation": generation.id, "table": table.id, "dimensions": generation.dimensions}
        rows: list[Row] = []
        for scale in (4**n for n in range(TRIES)):
            share = PAGES_OF_A_CHUNK * count * scale / max(pages, 1)
            sampled = sql.SQL("TABLESAMPLE SYSTEM (%(percent)s)" if share < 1 else "")
            rows = await self._fetch(
                sql.SQL(_SAMPLE).format(**fragments, sampled=sampled),
                parameters | {"percent": 100 * share, "pick": PICKED * count * scale, "count": count},
            )
            if len(rows) >= count:
                break
        return [ChunkText(table.id, *row) for row in rows]

    # --- plumbing

    async def _fetch(self, query: sql.SQL | sql.Composed, parameters: Parameters) -> list[Row]:
        """In binary: vectors and digests are most of what is read."""
        cursor = self._connection.cursor(binary=True)
        await cursor.execute(query, parameters)
        return await cursor.fetchall()

    def _fragments(self, table: Table, generation: Generation) -> dict[str, sql.Composable]:
        """What the statements call by one name each. Rows are `t`, chunks `c`."""
        norm = sql.SQL("{}(c._embedding)").format(sql.SQL(NORMS[generation.vector_type]))
        replica = self._relations.replica(table)
        return {
            "replica": replica,
            "chunks": self._relations.chunks(table, generation),
            "rows": sql.SQL("t._row_id > %(after)s AND t._row_id <= %(upto)s"),
            "range": sql.SQL("c._row_id > %(after)s AND c._row_id <= %(upto)s"),
            "wanted": wanted(table, "t"),
            "known": sql.SQL("NOT (t._missing && %(text)s::text[])"),
            "norm": norm,
            "sane": sql.SQL("vector_dims(c._embedding) = %(dimensions)s AND {0} > 0 AND {0} < 'Infinity'").format(norm),
            "is_live": sql.SQL(_IS_LIVE).format(replica=replica),
        }


def _parameters(table: Table, generation: Generation, contract: Contract) -> Parameters:
    return {
        "generation": generation.id,
        "table": table.id,
        "text": list(table.text_columns),
        "needed": [*table.text_columns, *table.filters],
        "prefix": contract.document_prefix,
        "dimensions": contract.dimensions,
        "tolerance": LENGTH_TOLERANCE,
        "blank": BLANK,
    }


def _range(after_row: int, upto_row: int | None) -> Parameters:
    return {"after": after_row, "upto": LAST_ROW if upto_row is None else upto_row}


def _owed(row: str) -> sql.Composed:
    return sql.SQL(_OWED).format(row=sql.SQL(row))


def _as_text(row: str, columns: Sequence[str]) -> list[sql.Composable]:
    return [sql.SQL("{}.{}::text").format(sql.Identifier(row), name(column)) for column in columns]


def _literal(text: str) -> sql.Literal:
    return sql.Literal(text.replace("%", "%%"))


def _document(template: str) -> sql.Composed:
    """The document of a row `t`, as `core.contract.render` makes it."""
    parts: list[sql.Composable] = [
        _literal(text) if column is None else sql.SQL("coalesce(t.{}::text, '')").format(name(column))
        for column, text in template_parts(template)
    ]
    return sql.SQL(" || ").join(parts)


def _derived(contract: Contract) -> sql.SQL:
    """`core.contract.digest` of a chunk's text."""
    text = "%(prefix)s::text || c._text" if contract.document_prefix else "c._text"
    return sql.SQL(f"sha256(convert_to({text}, 'UTF8'))")


def _spoilt(generation: Generation, contract: Contract) -> sql.Composed:
    """Whether a chunk shows by itself that it is wrong; NaN is greater than every number."""
    norm = sql.SQL("{}(c._embedding)").format(sql.SQL(NORMS[generation.vector_type]))
    length = "abs({0} - 1) <= %(tolerance)s" if contract.normalised else "{0} > 0 AND {0} < 'Infinity'"
    return sql.SQL("NOT (vector_dims(c._embedding) = %(dimensions)s AND {} AND {} = c._digest)").format(
        sql.SQL(length).format(norm), _derived(contract)
    )


def _n(row: str, n: int) -> sql.Composed:
    return sql.SQL("{}.{}").format(sql.Identifier(row), sql.Identifier(f"f{n}"))


def _numbered(row: str, table: Table) -> sql.Composed:
    """Filter columns under names that no other column has."""
    columns = _as_text(row, table.filters)
    return sql.Composed([sql.SQL(", {} AS {}").format(c, sql.Identifier(f"f{n}")) for n, c in enumerate(columns)])


def _filters_differ(table: Table, pairs: Sequence[tuple[sql.Composable, sql.Composable]]) -> sql.Composable:
    """Whether a chunk's copy of a filter column is not its row's, as text. One that the row lacks says nothing."""
    one = sql.SQL('({} COLLATE "C" IS DISTINCT FROM {} AND NOT {} = ANY(t._missing))')
    parts = [one.format(copy, own, _literal(column)) for column, (copy, own) in zip(table.filters, pairs, strict=True)]
    return sql.SQL("({})").format(sql.SQL(" OR ").join(parts)) if parts else sql.SQL("false")
