"""Values that the way through Debezium and Connect could change without a word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sandbox.compare import Differences
from tests.system.migration import DOCS, Migration, Setting

pytestmark = pytest.mark.system

NULLABLE = DOCS.replace("views int not null default 0", "views int default 0").replace(
    "body text", "body text default 'no text yet'"
)
ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, 20) n"


def test_null_in_a_column_that_has_a_default_stays_null(migrate: Callable[[Setting], Migration]) -> None:
    """Connect's JsonConverter puts the default in its place unless it is told not to."""
    m = migrate(Setting(ddl=NULLABLE, rows=ROWS))
    m.start()
    m.wait("caught-up")
    m.source.execute("update app.doc set views = null, body = null where id <= 3")
    m.source.execute("insert into app.doc (id, title, body, views) values (100, 'born without', null, null)")
    m.wait("caught-up")
    assert [row for row in m.replica("id, body, views") if row[1] is None] == [
        *[(n, None, None) for n in (1, 2, 3)],
        (100, None, None),
    ]
    assert m.differences() == Differences()
