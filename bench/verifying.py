"""`revector verify` as a process of its own, watched from outside: how long each side takes, its memory, what it says.

The sides are told apart by what the comparison records in the target, read every few hundredths of a second; rows read
at the source are counted by Postgres itself. With `killed_at` the process gets SIGKILL once so many rows are recorded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.filled import Filled
from sandbox.daemons import command
from sandbox.processes import SandboxError

LOOK_S = 0.03
LIFTED = ("--set", "verify.rows_per_second=1000000000")  # no read budget
SCANS = """
select s.side, sum(s.rows)::bigint, sum(s.chunks)::bigint, bool_and(s.is_done)
from revector.comparison_scan s join revector.comparison c on c.id = s.comparison_id
where c.state = 'running' group by s.side
"""


@dataclass
class Verified:
    """sides: seconds of each, from the end of the one before. recorded: rows by side when it ended. rss_bytes: the
    process's peak."""

    code: int = 0
    seconds: float = 0.0
    rss_bytes: int = 0
    document: dict[str, Any] = field(default_factory=dict)
    sides: dict[str, float] = field(default_factory=dict)
    recorded: dict[str, int] = field(default_factory=dict)


class _Sides:
    """When each side began and ended, as the looks show it."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.rows: dict[str, int] = {}

    def look(self, run: Filled, now: float) -> None:
        found = {side: (rows, done) for side, rows, _, done in run.target.execute(SCANS.encode()).fetchall()}
        for side, (rows, done) in found.items():
            self.rows[side] = rows
            if not rows and not done:
                self.began[side] = now  # until it is seen to have begun
            else:
                self.began.setdefault(side, now)
            if done:
                self.ended.setdefault(side, now)

    def seconds(self, until: float) -> dict[str, float]:
        return {side: round(self.ended.get(side, until) - began, 2) for side, began in self.began.items()}


def verify(
    run: Filled,
    *words: str,
    killed_at: Callable[[dict[str, int]], bool] | None = None,
    ended_at: Callable[[dict[str, int]], bool] | None = None,
) -> Verified:
    """Run it to its end, or end it: killed_at by SIGKILL, ended_at by SIGTERM, given the rows recorded by side.

    Raises SandboxError where it ended by itself otherwise than with 0 or 3 (differences).
    """
    sides, result = _Sides(), Verified()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaints:
        began = time.monotonic()
        process = subprocess.Popen(command(run.config, "verify", *words, "--json"), stdout=out, stderr=complaints)
        sent = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            sides.look(run, time.monotonic())
            for signum, wanted in ((signal.SIGKILL, killed_at), (signal.SIGTERM, ended_at)):
                if not sent and wanted is not None and wanted(sides.rows):
                    os.kill(process.pid, sent := signum)
            time.sleep(LOOK_S)
        process.returncode = result.code = os.waitstatus_to_exitcode(status)
        ended = time.monotonic()
        result.seconds, result.rss_bytes = round(ended - began, 2), usage.ru_maxrss * 1024
        sides.look(run, ended)
        result.sides, result.recorded = sides.seconds(ended), sides.rows
        out.seek(0), complaints.seek(0)
        said, complained = out.read(), complaints.read().decode(errors="replace")
    if sent == signal.SIGKILL and result.code != -sent:
        raise SandboxError(f"the kill did not land: verify had ended by itself with {result.code}")
    if not sent and result.code not in (0, 3):
        raise SandboxError(f"verify ended with {result.code}\n{complained[-3000:]}\n{run.tail()}")
    result.document = json.loads(said) if said.strip() else {}
    return result


def rows_read(run: Filled) -> int:
    """Documents that Postgres has read through an index at the source so far: pages and keys, not the sample that a
    plan is made from. Returns when no comparison is connected: a session tells what it read when it ends."""
    name, deadline = f"revector:{run.name}:verify%", time.monotonic() + 30
    while run.source.execute("select 1 from pg_stat_activity where application_name like %s", [name]).fetchone():
        if time.monotonic() > deadline:
            raise SandboxError("a session of a comparison stays at the source")
        time.sleep(LOOK_S)
    query = "select idx_tup_fetch from pg_stat_user_tables where relid = 'app.doc'::regclass"
    row = run.source.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def last_comparison(run: Filled) -> dict[str, Any]:
    """State and figures of the newest one, as recorded."""
    query = "select id, state, figures from revector.comparison order by id desc limit 1"
    row = run.target.execute(query).fetchone()
    if row is None:
        raise SandboxError("no comparison is recorded")
    return {"id": row[0], "state": row[1], **row[2]}
