"""Text keys in the order of a language at the source, of bytes in the replica; and the oldest PostgreSQL as a source.

That server comes with ICU, which the sandbox's PostgreSQL lacks, and without pgvector, which only the target needs.
"""

from __future__ import annotations

import itertools
import platform
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from daemon.core.model import Key
from sandbox.parts import Ports
from sandbox.postgres import Postgres
from sandbox.processes import Guardian
from sandbox.programs import icu_postgres_folder
from tests.ports.sides import Sides

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="its PostgreSQL is one for Linux on x86-64"
    ),
]

WORDS = [
    "a", "A", "ä", "Ä", "ae", "æ", "b", "B", "z", "Z", "é", "e", "E", "e\u0301", "ch", "cz", "co-op", "coop", "co op",
    "_x", "-x", "x", "10", "9", "ß", "ss", "\uff21", "ﬁ", "fi", "", " ", "ø", "ö", "o", "日", "本", "𝔘", "☃", "ñ", "n",
    "nz", "\u200da", "I", "ı", "İ", "i",
]  # fmt: skip
LOCALES = ["und", "sv", "tr", "de-u-co-phonebk", "en-u-kn-true", "und-u-ka-shifted"]

_numbers = itertools.count()


class IcuPostgres(Postgres):
    programs = staticmethod(icu_postgres_folder)


@pytest.fixture(scope="module")
def abroad() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="revector-icu-"))
    folder.chmod(0o711)
    ports = Ports()
    with Guardian(folder) as guardian:
        cluster = IcuPostgres(guardian, "source", ports.take(), folder / "source", folder / "source.log")
        cluster.initialise()
        cluster.start()
        yield cluster
    ports.release()


@pytest.fixture
def source_dsn(abroad: Postgres) -> str:
    return abroad.create_database(f"icu_{next(_numbers)}")


def ordered(sides: Sides, order: str) -> list[Key]:
    rows = sides.app.execute(f"SELECT k, n::text FROM app.t ORDER BY {order}".encode()).fetchall()
    return [tuple(row[: len(sides.table.key)]) for row in rows]


@pytest.mark.parametrize("locale", LOCALES)
async def test_keys_in_the_order_of_a_language_are_compared_once_each(source_dsn: str, dsn: str, locale: str) -> None:
    ddl = f"""CREATE COLLATION app.language (provider = icu, locale = '{locale}');
              CREATE TABLE app.t (k text COLLATE app.language PRIMARY KEY, n int, v text)"""
    async with Sides.open(source_dsn, dsn, ddl) as sides:
        words = WORDS + [f"{a}{b}" for a, b in itertools.combinations(WORDS, 2)]
        words = sorted(set(words), key=lambda word: random.Random(word).random())
        fill = "INSERT INTO app.t SELECT k, n, 'v' FROM unnest(%s::text[]) WITH ORDINALITY AS i (k, n)"
        sides.app.execute(fill, [words])
        in_order = ordered(sides, "k")
        assert in_order != ordered(sides, 'k COLLATE "C"')
        await sides.copy()
        for limit in (7, 97, 10_000) if locale == "und" else (97,):
            pages = await sides.pages(limit)
            assert sides.read(pages) == in_order
            assert [p.last for p in pages[:-1]] == in_order[limit - 1 :: limit][: len(pages) - 1]
        cut = in_order[len(in_order) // 3]
        ranges = [*await sides.pages(50, upto=cut), *await sides.pages(50, after=cut)]
        assert sides.read(ranges) == in_order
        key_pages = await sides.key_pages(97)
        assert sorted(sides.read(key_pages)) == sorted(in_order)
        assert await sides.differing(97) == await sides.extra(97) == []
        sides.there.execute("UPDATE shop.t SET v = 'w' WHERE k IN ('a', 'ä', 'Z'); DELETE FROM shop.t WHERE k = ''")
        sides.app.execute("DELETE FROM app.t WHERE k IN ('A', 'e\u0301')")
        assert await sides.differing(97) == [("",), ("Z",), ("a",), ("ä",)]
        assert await sides.extra(97) == [("A",), ("e\u0301",)]


async def test_composite_keys_of_several_languages_are_compared_once_each(source_dsn: str, dsn: str) -> None:
    ddl = """CREATE TABLE app.t (a text COLLATE "sv-x-icu", b character(4) COLLATE "en-x-icu", n int,
                                 PRIMARY KEY (a, b, n))"""
    async with Sides.open(source_dsn, dsn, ddl) as sides:
        pairs = list(itertools.product(["ö", "z", "Z", "o", "å", "a"], ["co-", "co", "CO", "", "é"], [-1, 10, 9]))
        insert = sql.SQL("INSERT INTO app.t VALUES {}")
        sides.app.execute(insert.format(sql.SQL(", ").join(sql.SQL("({}, {}, {})").format(*p) for p in pairs)))
        await sides.copy()
        pages = await sides.pages(4)
        expected = sides.app.execute("SELECT a, b::text, n::text FROM app.t ORDER BY a, t.b, t.n").fetchall()
        assert sides.read(pages) == expected
        assert expected != sorted(expected)
        assert await sides.differing(4) == await sides.extra(4) == []
