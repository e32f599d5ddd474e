"""`revector verify` on trial: seeded corruptions in a running migration, found and mended while clients write.

The real stack and the real daemon; rows of one to three chunks, half of them left alone by the writers. In that half
rows, chunks and vectors are corrupted in every way that `sandbox.corruptions` knows. Then, under live writes:

    verify            finds exactly these differences, each with its kind, key and chunk
    verify --repair   mends all; no version of any other row or chunk is replaced, only the texts of what was lost or
                      spoilt are embedded again; rows and chunks are afterwards, byte for byte, what they were before
    verify, again and again, finds nothing

At the end, writers stopped, source, replica and vectors are held against each other without revector's code. The seed
is printed; REVECTOR_BENCH_SEED gives it back. Anything that is not so is an error with its figures.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from connectors.tokenizers import BpeTokenizer
from daemon.flow.provider import CANARY
from sandbox.compare import Checked, wrong_vectors
from sandbox.config import Choice, Gen, render
from sandbox.corruptions import DDL, TABLE, WAYS, Corruption, Difference, Place, corrupt
from sandbox.daemons import Daemon, command, wait
from sandbox.pipeline import Pipeline, capture_tables
from sandbox.processes import SandboxError
from sandbox.programs import postgres_folder
from sandbox.provider import ProviderServer, Script
from sandbox.stack import Sandbox

NAME = "trial"
DIMENSIONS = 64
CHUNK_TOKENS = 16
TENANTS = 20
CLIENTS = 2
VERIFY_LIMIT_S, WAIT_LIMIT_S = 900, 3600
ATTEMPTS, LATE = 5, 4  # at a comparison on a machine that is busy; exit code of one whose barrier was late
MARKS = 10**8  # keys above this are of rows that are written to see them arrive
CHECKED = Checked("app.doc", "doc", "doc_v2", "id::text", "body", "views::text")

# Of rows between :low and :high; keys above :high come from changes of a key.
WRITES = """
\\set id random(:low, :high)
\\set kind random(:from, :to)
select nextval('app.serial') as n \\gset
\\if :kind <= 35
update app.doc set body = format(E'Client %s writes about row %s in part 0.\\n\\nClient %s goes on in its part 1.',
    :n, :id, :n) where id = :id;
\\elif :kind <= 65
update app.doc set views = views + 1, tenant = case when :n % 10 = 0 then :n % 20 else tenant end where id = :id;
\\elif :kind <= 72
update app.doc set published = not published where id = :id;
\\elif :kind <= 82
delete from app.doc where id = :id;
\\elif :kind <= 95
insert into app.doc (id, tenant, title, body, published) values (:id, :n % 20, 'Title of row ' || :id || ' again',
    format('Client %s brings row %s back with this text.', :n, :id), true) on conflict do nothing;
\\else
update app.doc set id = id + :span where id = :id and not exists (select from app.doc where id = :id + :span);
\\endif
"""
ANYTHING, METADATA = (1, 100), (36, 65)  # kinds of writes
Versions = tuple[dict[int, str], dict[tuple[int, int], str]]


@dataclass(frozen=True)
class Plan:
    """rows: half of them for the writers. rate: of writes, a second. chunk_tokens: None for whole documents."""

    rows: int = 100_000
    corruptions: int = 500
    clean_runs: int = 20
    rate: int = 200
    chunk_tokens: int | None = CHUNK_TOKENS

    @property
    def quiet_rows(self) -> int:
        return self.rows // 2


QUICK = Plan(rows=3000, corruptions=2 * len(WAYS), clean_runs=3)


def row_of(n: int) -> tuple[int, int, str, str, bool, int]:
    """A source row. Every text differs, down to each chunk's."""
    parts = [f"Row {n:06} says {n * 7919 % 1000003:07} in part {part}." for part in range(1 + n % 2)]
    return n, n % TENANTS, f"Title of row {n:06}, number {n * 104729 % 999983:06}.", "\n\n".join(parts), n % 10 > 0, 0


@dataclass
class Trial:
    """One migration on trial."""

    sandbox: Sandbox
    provider: ProviderServer
    folder: Path
    plan: Plan
    seed: int
    name: str = NAME
    daemon: Daemon = field(init=False)
    pipeline: Pipeline | None = None

    def __post_init__(self) -> None:
        self.source_dsn = self.sandbox.create_database("source", self.name)
        self.target_dsn = self.sandbox.create_database("target", self.name)
        self.config = self.folder / f"{self.name}.toml"
        self.place = Place(self.name, 1, self.plan.quiet_rows, 10**9, DIMENSIONS)
        self.daemon = Daemon(self.config, self.folder / f"{self.name}.log")

    def prepare(self) -> None:
        """Everything is embedded and indexed, and some quiet rows have been deleted since."""
        self.provider.set(Script(dimensions=DIMENSIONS, count_texts=True))
        with psycopg.connect(self.source_dsn, autocommit=True) as source:
            source.execute(DDL.encode())
            source.execute("create sequence app.serial")
            with source.cursor() as cursor, cursor.copy("copy app.doc from stdin") as copy:
                for n in range(1, self.plan.rows + 1):
                    copy.write_row(row_of(n))
            source.execute("analyze app.doc")
        self.pipeline = capture_tables(self.sandbox, self.source_dsn, self.name, ("app.doc",))
        extra: dict[str, str | float | bool] = {"tokenizer": "cl100k_base"}
        if self.plan.chunk_tokens is not None:
            extra["chunk_tokens"] = self.plan.chunk_tokens
        limits = {"in_flight": 4, "request_inputs": 512}
        generation = Gen("v2", "test-embedding", DIMENSIONS, self.provider.url, limits=limits, extra=extra)
        where = (self.name, self.name, "revector", self.source_dsn, self.target_dsn)
        self.config.write_text(render(self.sandbox, Choice(*where, TABLE, (generation,))))
        self.daemon.start()
        self.wait("ready")
        with psycopg.connect(self.source_dsn) as source:
            gone = max(10, self.plan.corruptions // 5)
            source.execute("delete from app.doc where id between 1 and %s and id %% 10 > 0", [gone])
        self.wait("caught-up")

    def close(self) -> None:
        """End what it started and leave nothing behind that keeps the source's log."""
        self.daemon.stop()
        if self.pipeline is None:
            return
        self.pipeline.connector.delete()
        query = "select active from pg_replication_slots where slot_name = %s"
        with psycopg.connect(self.source_dsn, autocommit=True) as source:
            while source.execute(query, [self.pipeline.capture.slot]).fetchone() == (True,):
                time.sleep(0.05)
            source.execute("select pg_drop_replication_slot(%s)", [self.pipeline.capture.slot])

    def wait(self, what: str) -> None:
        wait(self.config, [self.daemon], what, "--timeout", str(WAIT_LIMIT_S))

    @contextmanager
    def writing(self, kinds: tuple[int, int]) -> Iterator[None]:
        """Clients write rows of the other half for the block. kinds: from, to; of what `WRITES` does."""
        script = self.folder / "writes.sql"
        script.write_text(WRITES)
        low, high = self.plan.quiet_rows + 1, self.plan.rows
        variables = {"low": low, "high": high, "span": self.plan.rows}
        variables |= {"from": kinds[0], "to": kinds[1]}
        line = [
            str(postgres_folder() / "bin" / "pgbench"),
            *("--no-vacuum", f"--file={script}", f"--rate={self.plan.rate}", f"--client={CLIENTS}"),
            *("--time=604800", "--max-tries=100"),
            *(f"--define={name}={value}" for name, value in variables.items()),
            self.source_dsn,
        ]
        with (self.folder / "writer.log").open("wb") as log, subprocess.Popen(line, stdout=log, stderr=log) as writer:
            try:
                yield
                if writer.poll() is not None:
                    raise SandboxError((self.folder / "writer.log").read_text()[-2000:])
            finally:
                writer.terminate()

    def written(self) -> int:
        """Transactions of the writers so far."""
        with psycopg.connect(self.source_dsn) as source:
            return int(source.execute("select coalesce(pg_sequence_last_value('app.serial'), 0)").fetchall()[0][0])

    def verify(self, *words: str, code: int) -> dict[str, Any]:
        """Run it with --json, again where a barrier was late; its document. Raises SandboxError where it exits
        otherwise."""
        line = command(self.config, "verify", *words, "--json")
        for _ in range(ATTEMPTS):
            self.daemon.check()
            done = subprocess.run(line, capture_output=True, text=True, timeout=VERIFY_LIMIT_S, check=False)
            if done.returncode != LATE:
                break
        if done.returncode != code:
            raise SandboxError(f"verify {' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def embedded(self) -> None:
        """Wait until the texts that were written until now are embedded. A row that lacks a column keeps the migration
        from being caught up, so a row that is written now is waited for."""
        deadline, columns = time.monotonic() + VERIFY_LIMIT_S, "(id, tenant, title, body, published)"
        query = f"select exists (select from {self.place.rows} where id = %s), not exists (select from revector.work)"
        with psycopg.connect(self.source_dsn) as source:
            (mark,) = source.execute("select %s + nextval('app.serial')", [MARKS]).fetchall()[0]
            source.execute(f"insert into app.doc {columns} values (%s, 0, 'mark', 'mark', false)".encode(), [mark])
        with psycopg.connect(self.target_dsn, autocommit=True) as target:
            while target.execute(query.encode(), [mark]).fetchall() != [(True, True)]:
                self.daemon.check()
                if time.monotonic() > deadline:
                    raise SandboxError("what was written is not embedded")
                time.sleep(0.1)

    # --- what is there, in plain SQL

    def versions(self) -> Versions:
        """Version of each quiet replica row by row id, and of each of their chunks by (row id, n)."""
        version = "c.xmin::text || c.ctid::text"
        between = f"between {self.place.low} and {self.place.high}"
        with psycopg.connect(self.target_dsn) as target:
            rows = target.execute(f"select _row_id, {version} from {self.place.rows} c where id {between}".encode())
            found: dict[int, str] = dict(rows.fetchall())
            query = (
                f"select c._row_id, _n, {version} from {self.place.chunks} c join {self.place.rows} r using (_row_id) "
                f"where id {between}"
            )
            return found, {(row, n): seen for row, n, seen in target.execute(query.encode())}

    def contents(self) -> dict[tuple[str, int], str]:
        """What the quiet rows and their chunks hold, by key and chunk number (-1: the row), hashed; no row ids. Also
        chunks of no row and rows with keys of nobody's."""
        row = "md5(concat_ws('|', tenant, title, body, published, views, _missing::text))"
        chunk = "md5(concat_ws('|', c._text, c._digest::text, c.tenant, c._embedding::text))"
        here = f"(id <= {self.place.high} or id >= {self.place.above})"
        query = (
            f"select id::text, -1, {row} from {self.place.rows} where not _deleted and {here} union all "
            f"select coalesce(id::text, 'no row'), _n, {chunk} from {self.place.chunks} c "
            f"left join {self.place.rows} using (_row_id) where {here} or id is null"
        )
        with psycopg.connect(self.target_dsn) as target:
            return {(key, n): seen for key, n, seen in target.execute(query.encode())}

    def unlike_source(self) -> int:
        """Replica rows that differ from the source's, either way; nobody writes."""
        query = "select id, md5(concat_ws('|', tenant, title, body, published, views)) from {}"
        with psycopg.connect(self.source_dsn) as source, psycopg.connect(self.target_dsn) as target:
            ours = set(source.execute(query.format("app.doc").encode()).fetchall())
            theirs = set(target.execute(query.format(f"{self.place.rows} where not _deleted").encode()).fetchall())
        return len(ours ^ theirs)


def found_in(file: Path) -> list[Difference]:
    """The differences that a file of keys tells of."""
    lines = map(json.loads, file.read_text().splitlines())
    return [Difference(d["kind"], None if d["key"] is None else d["key"]["id"], d["row_id"], d["n"]) for d in lines]


def hit_and_miss(corruptions: Sequence[Corruption], found: Sequence[Difference]) -> dict[str, Any]:
    """How many corruptions were found with all that is expected of them, and everything that is not as expected."""
    seen, expected = Counter(found), Counter(d for c in corruptions for d in c.expected)
    missed, wrong = expected - seen, seen - expected
    ways = Counter(c.way for c in corruptions)
    hit = Counter(c.way for c in corruptions if not any(missed[d] for d in c.expected))
    return {
        "corruptions": len(corruptions),
        "found": hit.total(),
        "differences": dict(sorted(Counter(d.kind for d in expected.elements()).items())),
        "missed_ways": dict(ways - hit),
        "missed": sorted(str(d) for d in missed.elements())[:20],
        "wrong": sorted(str(d) for d in wrong.elements())[:20],
    }


def name_of(text: str) -> str:
    """As the provider's count of texts knows it."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Bill:
    """What the provider bills between two looks, while nobody writes texts."""

    provider: ProviderServer
    texts: dict[str, int] = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.texts, self.tokens = self.provider.texts(), self.provider.stats()["tokens"]

    def against(self, corruptions: Sequence[Corruption]) -> dict[str, Any]:
        """beyond: texts billed more often than is due; short: less often."""
        tokenizer, after = BpeTokenizer("cl100k_base"), self.provider.texts()
        billed = Counter({name: times - self.texts.get(name, 0) for name, times in after.items()})
        texts = [text for c in corruptions for text in (*c.billed, *c.weighed)]
        due, canaries = Counter(map(name_of, texts)), billed.pop(name_of(CANARY), 0)
        spent = self.provider.stats()["tokens"] - self.tokens
        return {
            "texts_due": due.total(),
            "texts_beyond": (billed - due).total(),
            "texts_short": (due - billed).total(),
            "tokens": spent,
            "tokens_due": sum(map(tokenizer.count, texts)),
            "tokens_of_canaries": canaries * tokenizer.count(CANARY),
        }


def touched(before: Versions, after: Versions, corruptions: Sequence[Corruption]) -> dict[str, int]:
    """Versions that were replaced or went although no repair has to do with them."""
    may_rows = {row for c in corruptions for row in c.rows}
    may_chunks = {chunk for c in corruptions for chunk in c.chunks}
    rows = [row for row, seen in before[0].items() if row not in may_rows and after[0].get(row) != seen]
    chunks = [at for at, seen in before[1].items() if at not in may_chunks and after[1].get(at) != seen]
    return {"rows": len(rows), "chunks": len(chunks)}


def tried(trial: Trial) -> dict[str, Any]:
    """The figures of a trial that is prepared; judges nothing."""
    plan, keys = trial.plan, trial.folder / "keys.jsonl"
    figures: dict[str, Any] = {"seed": trial.seed, "rows": plan.rows}
    with trial.writing(ANYTHING):
        whole = trial.contents()
        figures["chunks"] = sum(n >= 0 for _, n in whole)
        corruptions = corrupt(trial.target_dsn, trial.place, plan.corruptions, trial.seed)
        began = time.monotonic()
        trial.verify("--keys", str(keys), code=3)
        figures["find"] = hit_and_miss(corruptions, found_in(keys)) | {"seconds": since(began)}
    with trial.writing(METADATA):
        trial.embedded()
        versions, bill, began = trial.versions(), Bill(trial.provider), time.monotonic()
        document = trial.verify("--repair", "--reembed-sample", "0", code=0)
        figures["repair"] = {"seconds": since(began), "comparison": document["comparison"]}
        trial.embedded()
        figures["repair"] |= {"billed": bill.against(corruptions)}
        figures["repair"] |= {"touched_beyond": touched(versions, trial.versions(), corruptions)}
    with trial.writing(ANYTHING):
        runs, before, began = [], trial.written(), time.monotonic()
        for _ in range(plan.clean_runs):
            began_run = time.monotonic()
            trial.verify("--reembed-sample", "50", "--keys", str(keys), code=0)
            runs.append(since(began_run))
            if found := found_in(keys):
                raise SandboxError(f"a clean run found {found[:20]}")
        writes = (trial.written() - before) / (time.monotonic() - began)
        figures["clean"] = {"runs": len(runs), "median_s": sorted(runs)[len(runs) // 2], "writes_per_s": round(writes)}
    trial.wait("caught-up")
    after = trial.contents()
    vectors = wrong_vectors(trial.target_dsn, trial.name, "v2", DIMENSIONS, (CHECKED,))
    figures["at_end"] = {
        "unlike_before": sum(whole.get(at) != after.get(at) for at in whole.keys() | after.keys()),
        "rows_unlike_source": trial.unlike_source(),
        "wrong_vectors": vectors[0],
        "vectors": vectors[1],
    }
    return figures


def flaws(figures: dict[str, Any]) -> list[str]:
    """What is not as it has to be."""
    find, repair, end = figures["find"], figures["repair"], figures["at_end"]
    billed = repair["billed"]
    claims = {
        "every corruption is found": find["found"] == find["corruptions"] and not find["missed"],
        "nothing else is found": not find["wrong"],
        "no other version is replaced": not any(repair["touched_beyond"].values()),
        "each lost text is billed once": billed["texts_beyond"] == billed["texts_short"] == 0,
        "no other token is billed": billed["tokens"] == billed["tokens_due"] + billed["tokens_of_canaries"],
        "the tokens that it tells of are those": repair["comparison"]["tokens"] == billed["tokens_due"],
        "what was corrupted is as before": end["unlike_before"] == 0,
        "source and replica are equal": end["rows_unlike_source"] == 0,
        "every vector is its text's": end["wrong_vectors"] == 0,
    }
    return [claim for claim, holds in claims.items() if not holds]


def measure(*, is_quick: bool) -> dict[str, Any]:
    """Run it: minutes. Raises SandboxError where something is not as it has to be."""
    seed = int(os.environ.get("REVECTOR_BENCH_SEED") or random.SystemRandom().randrange(10**6))
    plan, began = (QUICK if is_quick else Plan()), time.monotonic()
    print(f"trial     seed {seed}, {plan.rows} rows, {plan.corruptions} corruptions", flush=True)
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox.start())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="revector-bench-")))
        trial = Trial(sandbox, sandbox.scripted_provider(), folder, plan, seed)
        try:
            trial.prepare()
            prepared = since(began)
            figures = tried(trial)
        finally:
            trial.close()
        figures |= {"prepared_s": prepared, "seconds": since(began)}
    if wrong := flaws(figures):
        raise SandboxError(f"not so: {', '.join(wrong)}\n{json.dumps(figures, indent=2)}")
    return figures


def told(found: dict[str, Any]) -> str:
    """The figures in lines."""
    find, repair, clean, end = found["find"], found["repair"], found["clean"], found["at_end"]
    billed, kinds = repair["billed"], ", ".join(f"{count} {kind}" for kind, count in find["differences"].items())
    lines = (
        f"{found['rows']} rows, {found['chunks']} chunks left alone by the writers (seed {found['seed']})",
        f"{find['found']} of {find['corruptions']} corruptions found in {find['seconds']} s: {kinds}",
        f"repaired in {repair['seconds']} s: {billed['texts_due']} texts and {billed['tokens_due']} tokens due, "
        f"{billed['texts_beyond']} texts more; versions replaced beyond: {repair['touched_beyond']}",
        f"{clean['runs']} clean runs beside {clean['writes_per_s']} writes a second, {clean['median_s']} s each",
        f"at the end {end['unlike_before']} rows or chunks unlike before, {end['rows_unlike_source']} unlike the "
        f"source, {end['wrong_vectors']} of {end['vectors']} vectors of another text",
    )
    return f"\n{'':10}".join(lines)


def since(began: float) -> float:
    return round(time.monotonic() - began, 1)
