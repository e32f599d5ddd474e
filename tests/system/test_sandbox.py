"""The sandbox keeps what it promises: every part is real, can be taken away and given back, and nothing stays."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from openai import BadRequestError, NotFoundError, OpenAI

from sandbox import corpus
from sandbox.guardian import children
from sandbox.pipeline import Pipeline, capture_tables
from sandbox.processes import SandboxError
from sandbox.programs import cache_folder
from sandbox.stack import Sandbox
from sandbox.writer import Writer

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stack() -> Iterator[Sandbox]:
    with Sandbox.start() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def pipeline(stack: Sandbox) -> Pipeline:
    corpus.load(stack.source_dsn)
    return capture_tables(stack)


def test_description_has_exactly_the_promised_keys(stack: Sandbox) -> None:
    description = json.loads(json.dumps(stack.describe()))
    assert set(description) == {
        "source_dsn", "target_dsn", "kafka", "connect_url", "embeddings_url", "config", "logs", "pids",
    }  # fmt: skip
    assert set(description["pids"]) == {"source", "target", "kafka", "connect", "embeddings", "guardian"}


def test_source_decodes_logically_and_target_has_pgvector(stack: Sandbox) -> None:
    with psycopg.connect(stack.source_dsn) as source, psycopg.connect(stack.target_dsn) as target:
        assert source.execute("show wal_level").fetchone() == ("logical",)
        assert source.execute("show listen_addresses").fetchone() == ("127.0.0.1",)
        assert target.execute("select '[1,2]'::vector <-> '[1,4]'").fetchone() == (2.0,)
        systems = [
            each.execute("select system_identifier from pg_control_system()").fetchone() for each in (source, target)
        ]
    assert systems[0] != systems[1]


def test_wrong_password_is_refused(stack: Sandbox) -> None:
    wrong = stack.source_dsn.replace(stack.source.password, "guessed")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)


def test_corpus_is_large_and_every_text_is_distinct(stack: Sandbox, pipeline: Pipeline) -> None:
    assert len({piece.text for piece in corpus.corpus()}) == len(corpus.corpus()) >= 10_000
    with psycopg.connect(stack.source_dsn) as source:
        long = "select count(*) from app.article where pg_column_toast_chunk_id(body) is not null"
        row = source.execute(long).fetchone()
    assert row is not None
    assert row[0] > 400


def test_change_and_barrier_arrive_in_kafka(stack: Sandbox, pipeline: Pipeline) -> None:
    with psycopg.connect(stack.source_dsn) as source:
        row = source.execute("update app.article set title = 'A sign' where id = 77 returning id").fetchone()
        assert row == (77,)
        barrier = source.execute("select pg_logical_emit_message(true, 'revector', 'passed')::text").fetchone()
    assert barrier is not None

    change = _find(stack, "shop.app.article", lambda event: (event["after"] or {}).get("title") == "A sign")
    message = _find(stack, "shop.message", lambda event: event["source"]["lsn"] == _lsn(barrier[0]))

    assert change["op"] == "u"
    assert base64.b64decode(message["message"]["content"]) == b"passed"


def test_paused_connector_resumes_where_it_was(stack: Sandbox, pipeline: Pipeline) -> None:
    pipeline.connector.pause()
    with psycopg.connect(stack.source_dsn) as source:
        source.execute("update app.page set title = 'While paused' where path = (select min(path) from app.page)")
    pipeline.connector.resume()
    pipeline.connector.wait_running()
    pipeline.connector.restart_task()
    pipeline.connector.wait_running()

    _find(stack, "shop.app.page", lambda event: (event["after"] or {}).get("title") == "While paused")
    assert pipeline.connector.offsets()[0]["partition"] == {"server": "shop"}


def test_failed_connector_is_told_with_its_cause(stack: Sandbox, pipeline: Pipeline) -> None:
    connector = stack.connector("broken")
    connector.register(
        pipeline.connector.config() | {"name": "broken", "slot.name": "broken", "publication.name": "no"}
    )
    with pytest.raises(SandboxError, match=r"(?s)connector broken failed.*Publication autocreation is disabled"):
        connector.wait_running()
    connector.delete()
    connector.delete()


def test_writer_counts_exactly_what_it_committed(stack: Sandbox, pipeline: Pipeline) -> None:
    before = _rows(stack)
    with Writer(stack.source_dsn, rate=None) as writer:
        deadline = time.monotonic() + 60
        while min(writer.counts().rows.values()) < 20:
            assert time.monotonic() < deadline, f"the writer is too slow: {writer.counts()}"
        written = writer.stop()

    assert _rows(stack) - before == written.rows["insert"] + written.rows["reinsert"] - written.rows["delete"]
    assert 0.02 < written.rolled_back / (written.transactions + written.rolled_back) < 0.3
    with psycopg.connect(stack.source_dsn) as source:
        for table in corpus.TABLES:
            row = source.execute(f"select count(*) - count(distinct body) from {table}".encode()).fetchone()
            assert row == (0,), f"{table} has a text twice"


def test_writer_that_died_is_not_taken_for_one_that_wrote(stack: Sandbox) -> None:
    writer = Writer(stack.create_database("source", "without_corpus"))
    with pytest.raises(psycopg.errors.UndefinedTable):
        writer.start()
    with pytest.raises(SandboxError, match="never started"):
        writer.stop()


@pytest.mark.parametrize("name", ["source", "target", "kafka", "embeddings"])
def test_part_crashes_and_comes_back_on_its_port(stack: Sandbox, pipeline: Pipeline, name: str) -> None:
    part = stack.parts[name]
    old = part.pid
    part.crash()
    assert not part.is_running
    assert part.not_ready() is not None

    part.start()

    assert part.pid != old
    assert part.not_ready() is None


def test_frozen_source_does_not_answer_until_thawed(stack: Sandbox) -> None:
    with psycopg.connect(stack.source_dsn) as source, ThreadPoolExecutor(1) as thread:
        source.execute("select 1")
        stack.source.freeze()
        try:
            answer = thread.submit(lambda: source.execute("select 7").fetchone())
            with pytest.raises(TimeoutError):
                answer.result(timeout=0.5)
        finally:
            stack.source.thaw()
        assert answer.result(timeout=30) == (7,)


def test_embeddings_follow_the_openai_contract(stack: Sandbox) -> None:
    with OpenAI(base_url=stack.embeddings_url, api_key=stack.embeddings_key, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["wordllama-256"]
        texts = ["a river in spring", "an invoice"]
        whole = client.embeddings.create(model="wordllama-256", input=texts, encoding_format="float")
        coded = client.embeddings.create(model="wordllama-256", input=texts)  # base64, the client decodes
        short = client.embeddings.create(model="wordllama-256", input=texts[0], dimensions=64)
        first = np.array(whole.data[0].embedding)
        assert np.allclose(first, coded.data[0].embedding, atol=1e-6)
        assert np.allclose(first[:64] / np.linalg.norm(first[:64]), short.data[0].embedding, atol=1e-5)
        assert whole.usage.prompt_tokens > 4
        refused: list[dict[str, Any]] = [
            {"input": []},
            {"input": ["x", ""]},
            {"input": ["x"] * 2049},
            {"input": "x", "dimensions": 7},
        ]
        for wrong in refused:
            with pytest.raises(BadRequestError) as caught:
                client.embeddings.create(model="wordllama-256", **wrong)
            assert caught.value.type == "invalid_request_error"
        with pytest.raises(NotFoundError):
            client.embeddings.create(model="another", input="x")


def test_embeddings_server_answers_while_it_embeds(stack: Sandbox) -> None:
    text = "A document of many words, which takes its time. " * 150
    with OpenAI(base_url=stack.embeddings_url, api_key=stack.embeddings_key) as client, ThreadPoolExecutor(1) as thread:
        before = _stats(stack)
        work = thread.submit(client.embeddings.create, model="wordllama-256", input=[f"{n} {text}" for n in range(150)])
        answered = 0
        while not work.done():
            assert _stats(stack)["errors"] == before["errors"]
            answered += 1
        assert _stats(stack)["inputs"] == before["inputs"] + 150
    assert answered > 3


def test_killed_owner_leaves_nothing_of_a_second_stack(stack: Sandbox) -> None:
    script = (
        "import json, time; from sandbox.stack import Sandbox; sandbox = Sandbox.start();"
        "print(json.dumps(sandbox.describe()), flush=True); time.sleep(1000)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert owner.stdout is not None
    with owner.stdout as output:
        second = json.loads(output.readline())
    assert not set(stack.pids.values()) & set(second["pids"].values())
    pids = {*second["pids"].values(), *(pid for each in second["pids"].values() for pid in children(each))}
    assert len(pids) > 10  # PostgreSQL's own children among them
    assert all(_exists(pid) for pid in pids)

    owner.send_signal(signal.SIGKILL)
    owner.wait(10)

    deadline = time.monotonic() + 30
    while left := [pid for pid in pids if _exists(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)
    assert not Path(second["logs"]).parent.exists()
    assert all(part.not_ready() is None for part in stack.parts.values())


def test_failed_start_names_the_step_and_keeps_the_logs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sandbox.kafka.java", lambda: Path("/bin/false"))
    with pytest.raises(SandboxError, match="kafka format failed with exit status 1") as caught:
        Sandbox.start()
    logs = Path(caught.value.__notes__[0].rpartition(" ")[2])
    assert str(logs) in capsys.readouterr().err
    assert {path.name for path in logs.parent.iterdir()} == {"logs"}
    assert (logs / "source.log").read_text()
    shutil.rmtree(logs.parent)


def test_up_survives_its_command_and_down_ends_it(tmp_path: Path) -> None:
    for kept in cache_folder().resolve().glob("[cj]*"):  # the jars and the corpus, not what is up
        (tmp_path / kept.name).symlink_to(kept)
    first = json.loads(_sandbox(tmp_path, "up", "--json"))
    second = json.loads(_sandbox(tmp_path, "up", "--json"))
    assert first == second
    with psycopg.connect(first["source_dsn"]) as source:
        assert source.execute("select active from pg_replication_slots").fetchall() == [(True,)]
    assert Path(first["config"]).stat().st_mode & 0o077 == 0

    _sandbox(tmp_path, "down")

    assert not any(_exists(pid) for pid in first["pids"].values())
    assert not Path(first["logs"]).parent.exists()
    assert _sandbox(tmp_path, "down") == ""


def _sandbox(cache: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REVECTOR_CACHE": str(cache)}
    command = [sys.executable, "-m", "sandbox", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout


def _find(stack: Sandbox, topic: str, wanted: Any) -> dict[str, Any]:
    """The first event of the topic that is wanted, within a deadline."""
    settings = {"bootstrap.servers": stack.kafka, "group.id": "test", "enable.auto.commit": False, "log_level": 0}
    consumer = Consumer(settings)
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            record = consumer.poll(0.2)
            if record is not None and record.error() is None and record.value() is not None:
                event: dict[str, Any] = json.loads(record.value() or b"")
                if wanted(event):
                    return event
    finally:
        consumer.close()
    raise AssertionError(f"not seen in {topic}")


def _lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def _rows(stack: Sandbox) -> int:
    with psycopg.connect(stack.source_dsn) as source:
        counts = [source.execute(f"select count(*) from {table}".encode()).fetchone() for table in corpus.TABLES]
    return sum(int(count[0]) for count in counts if count is not None)


def _stats(stack: Sandbox) -> dict[str, int]:
    with urllib.request.urlopen(stack.embeddings_url.removesuffix("/v1") + "/stats", timeout=10) as response:
        stats: dict[str, int] = json.load(response)
    return stats


def _exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
