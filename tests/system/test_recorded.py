"""Both readers of the real stack see one form: what a change event decodes to is what Postgres prints, or is refused.

Three captures: recorded/source.sql again; every allowed type with its awkward values, in a database whose settings are
not ours; and every shape of an unchanged value that is stored outside its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from psycopg import sql

from connectors.debezium import DebeziumDecoder, topics
from connectors.postgres_session import CANONICAL
from daemon.core.canonical import ALLOWED, HIDDEN, SHOWN, from_postgres
from daemon.core.model import UNAVAILABLE, ChangeEvent, Column, Decoded, Key, Op, Table, TruncateEvent, Value
from daemon.errors import UndecodableEvent
from daemon.ports import RawRecord
from sandbox.parts import wait_until
from sandbox.pipeline import Pipeline, capture_tables
from sandbox.stack import Sandbox
from tests.cases import recorded_tables
from tests.cases.literals import LITERALS, LITERALS_REFUSED
from tests.cases.recorded_tables import ARTICLE_COLUMNS, COMPOSITE, FOLDER, FULLIDENT, TYPES, table

pytestmark = pytest.mark.system

# SQL for a value of 13 kB and more of each type whose unchanged value is stored outside its row.
LARGE = {
    "text": "r",
    "character varying(20000)": "r",
    "character(9000)": "r",
    "bpchar": "r",
    "json": "to_json(r)",
    "jsonb": "to_jsonb(r)",
    "tsvector": "(select string_agg(md5(n::text), ' ') from generate_series(1, 400) n)::tsvector",
    "numeric": "('1' || repeat('1234567890', 2000))::numeric",
    "numeric(1000,10)": "('1' || repeat('1234567890', 98))::numeric",
    "numrange": "numrange(('1' || repeat('1234567890', 2000))::numeric, null)",
    "text[]": "array_fill(r, array[2])",
    "character varying(50)[]": "array_fill(left(r, 50), array[400])",
    "uuid[]": "array_fill(md5('a')::uuid, array[1000])",
    "smallint[]": "array_fill(7, array[4000])",
    "integer[]": "array_fill(7, array[4000])",
    "bigint[]": "array_fill(7, array[4000])",
    "boolean[]": "array_fill(true, array[6000])",
    "bytea": "decode(repeat('deadbeef', 4000), 'hex')",
    "vector(1000)": "array_fill(0.5::real, array[1000])::vector",
    "halfvec(2000)": "array_fill(0.5::real, array[2000])::halfvec",
}


@dataclass
class Captured:
    """A database whose changes are captured."""

    stack: Sandbox
    connection: psycopg.Connection[tuple[object, ...]]
    pipeline: Pipeline

    def decoded(self, tables: Sequence[Table]) -> list[Decoded | UndecodableEvent]:
        """Every record so far, in an order of which each key's is the partition's; a barrier makes sure of the end."""
        prefix = self.pipeline.capture.prefix
        decoder = DebeziumDecoder(prefix, prefix, tables, 1)
        found: list[Decoded | UndecodableEvent] = []
        for record in self._records(topics(prefix, tables)[:-1]):
            try:
                found.append(decoder.decode(record))
            except UndecodableEvent as error:
                found.append(error)
        return found

    def _records(self, names: Sequence[str]) -> Iterator[RawRecord]:
        emit = "select (pg_logical_emit_message(true, 'revector', 'end') - '0/0')::bigint"
        row = self.connection.execute(emit).fetchone()
        assert row is not None and isinstance(row[0], int)
        lsn = row[0]

        def question() -> str | None:
            committed = [offset["offset"].get("lsn", 0) for offset in self.pipeline.connector.offsets()]
            return None if committed and max(committed) >= lsn else f"Connect has committed {committed} of {lsn}"

        wait_until(question, "the barrier", 60)
        consumer = Consumer({"bootstrap.servers": self.stack.kafka, "group.id": "test", "enable.auto.commit": False})
        try:
            places = [TopicPartition(n, p, 0) for n in names for p in range(self.pipeline.capture.partitions)]
            ends = {(at.topic, at.partition): consumer.get_watermark_offsets(at, timeout=30)[1] for at in places}
            consumer.assign(places)
            left = sum(ends.values())
            while left:
                messages = consumer.consume(left, timeout=30)
                assert messages, f"{left} records did not come"
                for message in messages:
                    assert message.error() is None
                    left -= 1
                    yield RawRecord(
                        recorded_tables.TopicPartition(str(message.topic()), message.partition() or 0),
                        message.offset() or 0,
                        0,
                        message.key(),
                        message.value(),
                        tuple(message.headers() or ()),  # type: ignore[arg-type]
                    )
        finally:
            consumer.close()

    def printed(self, one: Table) -> dict[Key, tuple[Value, ...]]:
        """Every row as Postgres prints it under the pinned settings."""
        texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in one.names)
        query = sql.SQL("select {} from {}").format(texts, sql.Identifier(one.schema, one.name))
        options = {name: str(value) for name, value in CANONICAL.items()}
        with psycopg.connect(self.pipeline.capture.dsn) as connection:
            for name, value in options.items():
                connection.execute("select set_config(%s, %s, false)", [name, value])
            rows = connection.execute(query).fetchall()
        canonical = [
            tuple(
                None if text is None else from_postgres(column.target_type, text)
                for column, text in zip(one.columns, row, strict=True)
            )
            for row in rows
        ]
        return {one.key_of(values): values for values in canonical}


@contextmanager
def captured(stack: Sandbox, name: str, ddl: str, tables: Sequence[str]) -> Iterator[Captured]:
    dsn = stack.create_database("source", name, vector=False)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(ddl.encode())
        pipeline = capture_tables(stack, dsn, name, tables)
        try:
            yield Captured(stack, connection, pipeline)
        finally:
            pipeline.connector.delete()


def replayed(events: Sequence[Decoded | UndecodableEvent], one: Table) -> dict[Key, tuple[Value, ...]]:
    """The rows that the events of one table leave behind, in the order of their positions."""
    rows: dict[Key, tuple[Value, ...]] = {}
    mine = [e for e in events if isinstance(e, ChangeEvent | TruncateEvent) and e.table == one.alias]
    for event in sorted(mine, key=lambda e: e.origin.position):
        if isinstance(event, TruncateEvent):
            rows.clear()
        elif event.op is Op.DELETE:
            rows.pop(event.key, None)
        else:
            known = rows.get(event.key, ()) or (None,) * len(one.columns)
            assert event.after is not None
            rows[event.key] = tuple(o if n is UNAVAILABLE else n for o, n in zip(known, event.after, strict=True))
    return rows


def test_recorded_statements_decode_to_what_postgres_prints(stack: Sandbox) -> None:
    script = (FOLDER / "source.sql").read_text(encoding="utf-8")
    ddl, _, blocks = script.partition("-- first block")
    article = table("article", ("id",), ARTICLE_COLUMNS)
    tables = (article, COMPOSITE, FULLIDENT, TYPES)
    with captured(stack, "recorded", ddl, [f"app.{t.name}" for t in tables] + ["app.nokey"]) as capture:
        for statement in blocks.split(";\n"):
            capture.connection.execute(statement.encode())
        events = capture.decoded(tables)
        refusals = [e for e in events if isinstance(e, UndecodableEvent)]
        assert [(e.id, e.message.rpartition(" column ")[2][:2]) for e in refusals] == [("infinity-unreadable", "da")]
        for one in tables:
            rows, printed = replayed(events, one), capture.printed(one)
            if one is TYPES:
                assert printed.pop(("2",))[TYPES.names.index("da")] == "infinity"
            assert rows == printed, one.name
        assert (len(capture.printed(article)), len(capture.printed(FULLIDENT))) == (7, 0)


def columns_of(literals: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(f"c{n}", type) for n, type in enumerate(literals)]


def table_of(name: str, columns: Sequence[tuple[str, str]], **fields: bool) -> Table:
    made = [Column(n, t, t) for n, t in (("id", "integer"), *columns)]
    return Table(1, name, "app", name, ("id",), tuple(made), "", (), full_identity=fields.get("full_identity", False))


def test_every_allowed_type_decodes_to_what_postgres_prints_or_is_refused(stack: Sandbox) -> None:
    assert {type.split("(")[0] + type.partition(")")[2] for type in LITERALS} == set(ALLOWED)
    columns = columns_of(LITERALS)
    one = table_of("forms", columns, full_identity=True)
    ddl = f"""
        alter database forms set datestyle = 'German, DMY';
        alter database forms set timezone = 'Asia/Tokyo';
        alter database forms set intervalstyle = iso_8601;
        create extension vector; create schema app;
        create table app.forms (id int generated always as identity primary key,
                                {", ".join(f"{n} {t}" for n, t in columns)});
        alter table app.forms replica identity full;
        create publication revector for all tables;
    """
    with captured(stack, "forms", ddl, ["app.forms"]) as capture:
        expected: list[int] = []
        written = 0
        for name, type in columns:
            for literal in LITERALS[type] + LITERALS_REFUSED.get(type, []):
                insert = sql.SQL("insert into app.forms ({}) values ({})").format(
                    sql.Identifier(name), sql.Literal(literal)
                )
                capture.connection.execute(insert)
                written += 1
                if literal in LITERALS_REFUSED.get(type, []):
                    expected.append(written)
        events = capture.decoded((one,))
        rows, printed = replayed(events, one), capture.printed(one)
        assert len(printed) == written == len(events)
        assert sorted(int(key) for (key,) in printed.keys() - rows.keys()) == expected
        assert rows == {key: values for key, values in printed.items() if key in rows}


def test_every_unchanged_large_value_is_unavailable_or_the_type_is_refused(stack: Sandbox) -> None:
    names = {type.split("(")[0] + type.partition(")")[2]: type for type in LARGE}
    assert names.keys() == {name for name, form in ALLOWED.items() if form.unavailable in (SHOWN, HIDDEN)}
    columns = columns_of({type: [] for type in LARGE})
    shown = [(n, t) for n, t in columns if ALLOWED[t.split("(")[0] + t.partition(")")[2]].unavailable == SHOWN]
    parts, whole = table_of("parts", shown), table_of("whole", columns, full_identity=True)
    ddl = f"""
        create extension vector; create schema app;
        create table app.parts (id int primary key, note text, {", ".join(f"{n} {t}" for n, t in columns)})
          with (toast_tuple_target = 128);
        do $$ declare c text; begin
          for c in select attname from pg_attribute
                    where attrelid = 'app.parts'::regclass and attnum > 2
          loop execute format('alter table app.parts alter column %I set storage external', c); end loop;
        end $$;
        create table app.whole (like app.parts including all) with (toast_tuple_target = 128);
        alter table app.whole replica identity full;
        create publication revector for all tables;
    """
    with captured(stack, "large", ddl, ["app.parts", "app.whole"]) as capture:
        body = "select string_agg(md5(n::text), '') from generate_series(1, 280) n"
        values = ", ".join(f"({LARGE[type]})::{type}" for _, type in columns)
        for name in ("parts", "whole"):
            query = f"insert into app.{name} select n, 'n', {values} from ({body}) x(r), generate_series(1, 2) n"
            capture.connection.execute(query.encode())
            capture.connection.execute(f"update app.{name} set note = 'm' where id = 1".encode())
            capture.connection.execute(f"update app.{name} set id = 3 where id = 2".encode())
        events = [e for e in capture.decoded((parts, whole)) if isinstance(e, ChangeEvent)]
        printed = capture.printed(whole)
        for event in (e for e in events if e.table == "whole" and e.after is not None and e.key != ("2",)):
            assert event.after == printed[event.key]
        late = [e for e in events if e.table == "parts" and (e.op is Op.UPDATE or e.key == ("3",))]
        assert [(e.op, e.key) for e in sorted(late, key=lambda e: e.key)] == [(Op.UPDATE, ("1",)), (Op.CREATE, ("3",))]
        for event in late:
            assert event.after is not None
            carried = [t for (_, t), value in zip(shown, event.after[1:], strict=True) if value is not UNAVAILABLE]
            assert carried == []
