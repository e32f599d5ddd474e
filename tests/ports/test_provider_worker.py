"""Each behaviour of the scriptable provider in mid-run: the real connector and worker, a real target.

Right rows live, nothing wrong stored, recovers or halts as it should, replication left alone. The server counts what
landed, and the errors' ids are what a person would read.
"""

from __future__ import annotations

import asyncio
import math
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from daemon.errors import RevectorError
from daemon.flow.provider import MOST_REFUSED_IN_A_ROW
from sandbox.provider import Provider, Script, serving
from sandbox.provider_script import BILLED, UNBILLED
from tests.ports.corpus import DIMENSIONS, KEY, Corpus, numbered
from tests.ports.test_provider_faults import AGAIN, SLOW, UNSTORED
from tests.ports.test_target_postgres import PostgresTargets

ROWS = 60
BATCH = 64  # of the poisoned corpus: texts a request
DEADLINE_S = 30.0
Opened = Callable[..., Awaitable[Corpus]]


def script(**changes: Any) -> Script:
    return Script.read({"dimensions": DIMENSIONS, "count_texts": True, **changes})


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with serving(script(), KEY) as provider:
        yield provider


@pytest.fixture
async def opened(emptied_dsn: str, provider: Provider) -> AsyncIterator[Opened]:
    """Makes corpora; each in a database of its own after the first."""
    made: list[Corpus] = []
    targets: list[PostgresTargets] = []

    async def open(bodies: dict[str, str], dsn: str = emptied_dsn) -> Corpus:
        targets.append(PostgresTargets(dsn))
        made.append(await Corpus.open(dsn, targets[-1], provider, bodies))
        return made[-1]

    yield open
    for corpus in made:
        await corpus.close()
    for target in [target for each in targets for target in each.made]:
        await target.close()


async def halted(corpus: Corpus, **connector: Any) -> str:
    """Run an embedding process until it halts; the id that the migration then shows. It ends when it is told to."""
    stop = asyncio.Event()
    (worker,) = await corpus.workers(crew=await corpus.crew(connector))
    running = asyncio.create_task(worker.run(stop))
    async with asyncio.timeout(DEADLINE_S):
        while (found := await halt_of(corpus)) is None:
            assert not running.done(), running.exception()
            await asyncio.sleep(0.01)
        stop.set()
        await running
    return found


async def halt_of(corpus: Corpus) -> str | None:
    async with corpus.shop.target.begin() as tx:
        found = (await tx.ledger.load()).halted
    return str(found[corpus.shop.generation.role]["id"]) if found else None


# --- faults that pass

EXPECTED = {
    **UNSTORED,
    **AGAIN,
    **dict.fromkeys(SLOW, "provider-timeout"),
    "status-401": "provider-key-refused",
    "status-403": "provider-key-refused",
    "other-name": "provider-model-changed",
}
STRANGE = UNSTORED.keys() - {"redirect", "status-404"}  # answers that are asked for again at once
UNNOTICED = ("shuffled", "floats", "dimensions", "status-400", "status-413")


def test_every_fault_has_a_case() -> None:
    assert {*EXPECTED, *UNNOTICED, "other-model"} == {*UNBILLED, *BILLED}


@pytest.mark.parametrize("fault", [*EXPECTED, *UNNOTICED])
async def test_a_fault_in_mid_run_stores_nothing_wrong_and_passes(
    opened: Opened, provider: Provider, fault: str
) -> None:
    corpus = await opened(numbered(ROWS, 2))
    replication = corpus.replication()
    workers = await corpus.workers(request_inputs=16)
    await workers[0].step(corpus.shop.table)
    corpus.check_part()
    provider.set(script(faults={"next": [fault]}))
    await corpus.drain(workers)
    corpus.check()
    assert provider.stats.faults == {fault: 1}, "the fault did not land"
    assert corpus.ids() == (set() if fault in (*UNNOTICED, *STRANGE) else {EXPECTED[fault]})
    assert corpus.owed() == 0, "a text was quarantined that is not to blame"
    assert corpus.replication() == replication
    for error in corpus.errors:
        told = "".join(traceback.format_exception(error)) + error.hint
        assert "part 0" not in told and KEY not in told


@pytest.mark.parametrize("fault", ["status-503", "nan", "reset", "status-401", "throttled", "index-twice"])
async def test_while_a_fault_lasts_the_stream_goes_on_and_nothing_is_spent_on_rows(
    opened: Opened, provider: Provider, fault: str
) -> None:
    corpus = await opened(numbered(ROWS))
    workers = await corpus.workers(request_inputs=16)
    await workers[0].step(corpus.shop.table)
    before = corpus.stored()
    provider.set(script(faults={"always": fault}))
    for n in range(4):
        await corpus.drain(workers, halts=True)
        await corpus.change(str(n), f"row {n} changed meanwhile", 1000 + n)
    assert corpus.ids() == {EXPECTED[fault]} and corpus.claimed() == 0 and corpus.owed("refused") == 0
    assert {key: texts for key, texts in corpus.stored().items() if key > "4"} == {
        key: texts for key, texts in before.items() if key > "4"
    }
    provider.set(script())
    corpus.clock.advance(60)
    await corpus.drain(workers)
    corpus.check()


async def test_a_provider_that_is_away_is_waited_for(opened: Opened, provider: Provider) -> None:
    corpus = await opened(numbered(ROWS))
    port = int(provider.url.split(":")[2].split("/")[0])
    async with serving(script(), KEY) as other:
        workers = await corpus.workers(crew=await corpus.crew({"base_url": other.url}, request_inputs=16))
        port = int(other.url.split(":")[2].split("/")[0])
        await workers[0].step(corpus.shop.table)
    await corpus.drain(workers, halts=True)
    assert corpus.ids() == {"provider-unreachable"} and corpus.claimed() == 0
    async with serving(script(), KEY, port):
        await corpus.drain(workers)
        corpus.check()


async def test_a_throttling_provider_gets_every_text_once(opened: Opened, provider: Provider) -> None:
    corpus = await opened(numbered(300))
    corpus.is_real_time = True
    provider.set(script(limits={"tokens_per_minute": 60_000, "requests_per_minute": 6_000, "window_s": 1}))
    await corpus.drain([*await corpus.workers(2, request_inputs=32), *await corpus.workers(2, request_inputs=32)])
    corpus.check()
    assert provider.stats.tokens_again <= 6 * 2, "more than a canary was billed twice"
    assert provider.stats.tokens > 1_000, "nothing had to wait"


async def test_a_row_that_changes_while_its_text_is_at_the_provider_gets_fresh_vectors(
    opened: Opened, provider: Provider
) -> None:
    corpus = await opened(numbered(3))
    workers = await corpus.workers()
    await corpus.crew()
    provider.set(script(latency={"seconds": 0.3}))
    asking = asyncio.create_task(workers[0].step(corpus.shop.table))
    async with asyncio.timeout(DEADLINE_S):
        while provider.stats.in_flight == 0 or provider.stats.inputs == 0:  # the canary has been answered
            await asyncio.sleep(0.005)
    await corpus.change("1", "row 1 is another", 1000)
    await asking
    await corpus.drain(workers)
    corpus.check()


# --- refused texts


async def test_one_poison_text_among_2000_costs_its_row_and_a_few_requests(
    opened: Opened, provider: Provider, database: Callable[[], str]
) -> None:
    harmless = await opened(numbered(2000), database())
    await harmless.drain(await harmless.workers(request_inputs=BATCH))
    harmless.check()
    needed, billed = provider.stats.requests, provider.stats.tokens

    corpus = await opened(numbered(2000) | {"1234": "row 1234 POISON part 0"})
    replication = corpus.replication()
    provider.set(script(poison={"markers": ["POISON"], "code": "content_policy_violation"}))
    await corpus.drain(await corpus.workers(request_inputs=BATCH))
    corpus.check(missing=["1234"])
    assert len(corpus.stored()) == 1999 and corpus.errors == []
    assert (corpus.owed("refused"), corpus.owed()) == (1, 1)
    extra = provider.stats.requests - 2 * needed
    assert provider.stats.poisoned > 0 and extra <= math.log2(BATCH) + 1, "too many requests for one text"
    assert provider.stats.tokens - billed < 1.2 * billed, "texts were paid for again to find it"
    ((key, reason),) = corpus.refused().items()
    assert key == "1234" and "content_policy_violation" in reason and "POISON" not in reason
    assert corpus.replication() == replication


async def test_a_refused_chunk_takes_its_whole_row_and_a_change_brings_it_back(
    opened: Opened, provider: Provider
) -> None:
    corpus = await opened(numbered(20, 3))
    workers = await corpus.workers()
    await corpus.drain(workers)
    corpus.check()
    provider.set(script(poison={"markers": ["POISON"]}))
    await corpus.change("7", "row 7 part 0\nPOISON\nrow 7 part 2", 1000)
    await corpus.drain(workers)
    corpus.check(missing=["7"])
    assert corpus.owed("refused") == 1
    await corpus.change("7", "row 7 part 0\nharmless\nrow 7 part 2", 1001)
    await corpus.drain(workers)
    corpus.check()
    assert corpus.owed() == 0


async def test_several_refusals_in_a_row_halt_before_the_corpus_is_quarantined(
    opened: Opened, provider: Provider
) -> None:
    corpus = await opened(numbered(200))
    replication = corpus.replication()
    provider.set(script(poison={"markers": ["row "]}))
    workers = await corpus.workers(4, request_inputs=16)
    await corpus.drain(workers, halts=True)
    assert corpus.ids() == {"provider-refuses-many"}
    assert corpus.owed("refused") < MOST_REFUSED_IN_A_ROW + len(workers) < 14 and corpus.stored() == {}
    assert corpus.claimed() == 0 and corpus.replication() == replication
    provider.set(script())
    assert corpus.owed("waiting") > 186
    await corpus.drain(await corpus.workers(2))  # a person mended the cause and started the process again
    assert corpus.owed("waiting") == 0
    corpus.check(missing=[*corpus.refused()])


# --- halts with nothing quarantined


@pytest.mark.parametrize(
    ("connector", "changes", "id"),
    [
        ({"api_key": "sk-other"}, {}, "provider-key-refused"),
        ({"api_key": None}, {}, "provider-key-refused"),
        ({"model": "test-embeding"}, {}, "provider-request-refused"),
        ({"dimensions": 9}, {"faults": {"always": "dimensions"}, "dimensions": 7}, "provider-dimension"),
        ({}, {"poison": {"markers": [" "]}}, "provider-refuses-all"),
        ({}, {"faults": {"always": "html"}}, "provider-answer"),
        ({}, {"faults": {"always": "redirect"}}, "provider-redirects"),
        ({}, {"faults": {"always": "too-long"}}, "provider-norm"),
    ],
)
async def test_what_cannot_work_halts_before_a_row_is_sent_and_works_when_mended(
    opened: Opened, provider: Provider, connector: dict[str, Any], changes: dict[str, Any], id: str
) -> None:
    corpus = await opened(numbered(200))
    replication = corpus.replication()
    provider.set(script(**changes))
    assert await halted(corpus, **connector) == id
    assert corpus.owed("waiting") == 200 and corpus.claimed() == 0 and corpus.stored() == {}
    assert provider.stats.inputs <= provider.stats.requests <= 8, "rows were sent to a provider nobody vouched for"
    assert corpus.replication() == replication
    provider.set(script())
    await corpus.drain(await corpus.workers())
    corpus.check()


@pytest.mark.parametrize("named", [True, False], ids=["its name says so", "silently"])
async def test_a_model_that_changed_is_found_by_the_next_process(
    opened: Opened, provider: Provider, named: bool
) -> None:
    corpus = await opened(numbered(ROWS))
    (worker,) = await corpus.workers(request_inputs=16)
    await worker.step(corpus.shop.table)
    before, sent = corpus.stored(), provider.stats.inputs
    honest = provider.script
    provider.set(script(answers_as="other", model_seed=1) if named else script(faults={"always": "other-model"}))
    assert await halted(corpus) == "provider-model-changed"
    assert provider.stats.inputs == sent + 1, "rows were sent to another model"
    provider.set(honest)
    assert corpus.stored() == before and corpus.claimed() == 0 and corpus.owed("refused") == 0
    await corpus.drain(await corpus.workers())
    corpus.check()


async def test_a_model_that_changes_silently_in_mid_run_is_found_by_the_next_canary(
    opened: Opened, provider: Provider
) -> None:
    corpus = await opened(numbered(ROWS))
    workers = await corpus.workers(request_inputs=16)
    await workers[0].step(corpus.shop.table)
    before = corpus.stored()
    corpus.pass_canary()
    provider.set(script(faults={"always": "other-model"}))
    await corpus.drain(workers, halts=True)
    assert corpus.ids() == {"provider-model-changed"} and corpus.stored() == before
    provider.set(script())
    await corpus.drain(workers)
    corpus.check()


async def test_no_error_of_a_run_tells_a_text_or_the_key(
    opened: Opened, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    corpus = await opened(numbered(ROWS))
    workers = await corpus.workers(request_inputs=8)
    quoting = ["status-500", "status-401", "status-404", "quota", "throttled", "status-502", "status-413", "status-400"]
    provider.set(script(faults={"next": ["ok", *quoting]}, poison={"markers": ["row 17 "]}))
    await corpus.drain(workers)
    assert corpus.owed("refused") == 1 and set(provider.stats.faults) == set(quoting)
    errors: list[RevectorError] = corpus.errors
    told = caplog.text + "".join("".join(traceback.format_exception(error)) + error.hint for error in errors)
    kept = str(corpus.read("select * from revector.work")) + str(corpus.read("select * from revector.journal"))
    assert "part 0" not in told + kept and KEY not in told + kept
