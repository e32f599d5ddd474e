"""Several processes of one migration: who owns the stream, who may write, and what becomes of the others' claims.

Each process has a name of its own in its sessions (`watched.who`), which triggers in the target write down beside
the target's own clock. So nothing here rests on what a process says of itself.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sandbox.compare import Differences
from sandbox.config import Gen
from sandbox.provider import ProviderServer
from sandbox.provider_script import Latency, Script
from tests.system.migration import Migration, Setting

pytestmark = pytest.mark.system

Migrate = Callable[[Setting], Migration]
Process = subprocess.Popen[bytes]

ROWS = "insert into app.doc (id, title, body) select n, 'title ' || n, 'body of ' || n from generate_series(1, {}) n"
LEASE_S = 5
CLAIM_LEASE_S = 10
SLACK_S = 15.0  # for a loaded machine, beside a third of the lease between two looks

AUDIT = """
create table public.audit (at timestamptz default clock_timestamp(), who text, what text, was jsonb, is_now jsonb);
create function public.note() returns trigger language plpgsql as $$
begin
    insert into public.audit (who, what, was, is_now) values
        (current_setting('watched.who', true), tg_table_name, to_jsonb(old), to_jsonb(new));
    return null;
end $$;
"""
TRIGGER = "create trigger noted after insert or update or delete on {} for each row execute function public.note()"


def audited(m: Migration, *relations: str) -> None:
    """Write down every change of these relations from here on."""
    m.target.execute(AUDIT)
    for relation in relations:
        m.target.execute(TRIGGER.format(relation).encode())


def start(m: Migration, who: str, role: str) -> Process:
    """A process that is `who` in the target."""
    own, common = m.folder / f"{m.name}-{who}.toml", m.config
    text = common.read_text()
    assert m.target_dsn in text
    own.write_text(text.replace(m.target_dsn, f"{m.target_dsn}?options=-c%20watched.who%3D{who}"))
    m.config, m.log = own, m.folder / f"{m.name}-{who}.log"
    try:
        return m.start(role)
    finally:
        m.config = common


def log_of(m: Migration, who: str) -> Path:
    return m.folder / f"{m.name}-{who}.log"


def noted(m: Migration, query: str) -> list[tuple[Any, ...]]:
    return m.target.execute(query.encode()).fetchall()


def freeze(m: Migration, process: Process) -> None:
    process.send_signal(signal.SIGSTOP)
    stat = Path("/proc") / str(process.pid) / "stat"
    m.until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0], lambda state: state == "T", "it to stand still")


def insert(m: Migration, key: int) -> None:
    m.source.execute("insert into app.doc (id, title) values (%s, 'new')", [key])


def arrives(m: Migration, key: int) -> None:
    m.until(lambda: dict(m.replica()), lambda rows: key in rows, f"row {key}")


TAKEN = """
select is_now->>'number', who, extract(epoch from at - (was->>'until')::timestamptz)::float8
from public.audit where what = 'lease' and was->>'number' <> is_now->>'number' and was->>'owner' is not null
order by at
"""


def test_a_standby_takes_over_after_the_lease_and_a_zombie_writes_nothing(migrate: Migrate) -> None:
    m = migrate(Setting(rows=ROWS.format(50), limits={"lease_s": LEASE_S}))
    one = start(m, "one", "run")
    m.wait("caught-up")
    audited(m, "revector.lease", "revector.checkpoint", f"{m.name}.doc")
    two = start(m, "two", "stream")
    m.until(log_of(m, "two").read_text, lambda log: "standing by" in log, "a standby")

    assert m.stop(one, signal.SIGKILL) == -signal.SIGKILL
    insert(m, 1001)
    arrives(m, 1001)
    ((number, who, late_s),) = noted(m, TAKEN)
    assert who == "two" and 0 <= late_s <= LEASE_S / 3 + SLACK_S

    three = start(m, "three", "stream")
    m.until(log_of(m, "three").read_text, lambda log: "standing by" in log, "another standby")
    with psycopg.connect(m.target_dsn) as blocker:  # so that the owner is frozen inside a window
        blocker.execute(f"select 1 from {m.name}.doc where id = 7 for update".encode())
        m.source.execute("update app.doc set title = 'held', views = 1 where id = 7")
        m.until(lambda: waiting(m), bool, "a window that waits for the row")
        freeze(m, two)
    insert(m, 1002)
    arrives(m, 1002)
    (_, (second, who, late_s)) = noted(m, TAKEN)
    assert who == "three" and int(second) == int(number) + 1 and 0 <= late_s <= LEASE_S / 3 + SLACK_S

    two.send_signal(signal.SIGCONT)
    m.until(log_of(m, "two").read_text, lambda log: log.count("standing by") >= 2, "the zombie to stand by")
    insert(m, 1003)
    arrives(m, 1003)
    written = "select count(*) from public.audit where who = 'two' and at > (select max(at) from public.audit where {})"
    assert noted(m, written.format("what = 'lease' and who = 'three' and was->>'number' <> is_now->>'number'")) == [
        (0,)
    ]
    assert noted(m, f"select distinct lease_number from revector.checkpoint where migration = '{m.name}'") == [
        (int(second),)
    ]

    m.stop(three, signal.SIGKILL)
    insert(m, 1004)
    arrives(m, 1004)
    assert [who for _, who, late_s in noted(m, TAKEN) if late_s >= 0] == ["two", "three", "two"]
    start(m, "four", "embed")
    m.until(m.differences, lambda found: found == Differences(), "an equal replica")
    assert noted(m, "select event from revector.journal where kind in ('break', 'halt')") == []


def waiting(m: Migration) -> bool:
    query = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    return bool(noted(m, f"{query} and application_name like '%:stream'"))


REQUEST = {"request_timeout_s": 30, "in_flight": 2, "request_inputs": 8}
RECLAIMED = """
select was->>'claimed_by', extract(epoch from at - (was->>'claimed_until')::timestamptz)::float8
from public.audit where what = 'work' and was->>'claimed_by' <> is_now->>'claimed_by'
"""


def test_embedding_processes_come_and_go(migrate: Migrate, provider: ProviderServer) -> None:
    provider.set(Script(latency=Latency(seconds=0.3), count_texts=True))
    generation = Gen(base_url=provider.url, model="test-embedding", dimensions=8, limits=REQUEST)
    limits = {"lease_s": LEASE_S, "claim_lease_s": CLAIM_LEASE_S}
    m = migrate(Setting(rows=ROWS.format(400), limits=limits, generations=(generation,)))
    start(m, "stream", "stream")
    audit_when_made(m)
    crew = {who: start(m, who, "embed") for who in ("killed", "stopped", "frozen")}
    copier = start(m, "copier", "backfill")
    m.ended(copier)
    assert m.until(copier.poll, lambda status: status is not None, "the backfill") == 0
    for who, process in crew.items():
        m.until(lambda p=process: claims(m, p), bool, f"claims of {who}")  # type: ignore[misc]

    m.stop(crew["killed"], signal.SIGKILL)
    freeze(m, crew["frozen"])
    left = {str(crew[who].pid): claims(m, crew[who]) for who in ("killed", "frozen")}
    lost = set().union(*left.values())
    assert m.stop(crew["stopped"]) == 0
    assert claims(m, crew["stopped"]) == set()
    start(m, "late", "embed")
    m.until(lambda: claims(m) - lost, lambda others: not others, "all but the claims of the dead")
    m.wait("caught-up")
    taken = noted(m, RECLAIMED)
    assert {owner.split(":")[1] for owner, _ in taken} == {pid for pid, rows in left.items() if rows}
    assert all(0 <= late_s <= SLACK_S for _, late_s in taken), taken

    crew["frozen"].send_signal(signal.SIGCONT)
    insert(m, 1001)
    m.until(lambda: dict(m.chunks()), lambda rows: 1001 in rows, "a late row")
    billed = provider.texts()
    twice = sum(n - 1 for n in billed.values())
    canaries = 4 * 2  # of each process
    assert len(lost) > 0 and twice <= len(lost) + canaries, (twice, len(lost))
    assert m.differences() == Differences()


def audit_when_made(m: Migration) -> None:
    """Of the work table, before there is work."""
    m.until(
        lambda: m.target.execute("select to_regclass('revector.work')").fetchone(), lambda row: row != (None,), "it"
    )
    audited(m, "revector.work")


def claims(m: Migration, process: Process | None = None) -> set[int]:
    """Row ids that a process has claimed, or any."""
    pattern = "%" if process is None else f"%:{process.pid}:%"
    rows = m.target.execute("select row_id from revector.work where claimed_by like %s", [pattern]).fetchall()
    return {row_id for (row_id,) in rows}
