"""What the metrics say, as Prometheus reads them: names, labels, and above all what is absent."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.core.compared import ComparisonReading
from daemon.core.comparison import Kind as Difference
from daemon.core.comparison import State
from daemon.core.model import Backlog, Break, HaltNote, Rates
from daemon.core.reasons import REASONS
from daemon.core.status import PROOF_ONLY, SourceFacts, Verdict
from daemon.errors import ConfigError
from daemon.flow.embed import EmbedCounts
from daemon.service.instruments import INSTRUMENTS, Kind, Sources, prometheus_name, reference_page
from daemon.service.last_status import FRESH_S
from daemon.service.supervise import Roles
from daemon.service.telemetry import Telemetry, parse_exporters
from tests import builders
from tests.unit.service import HandClock, process, shortfall, status

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


class Scraped:
    """A process with its telemetry, read the way Prometheus reads it."""

    def __init__(self, roles: Roles) -> None:
        self.sources, self.clock = process(roles)
        self.telemetry = Telemetry("articles", self.sources)

    def samples(self) -> Samples:
        text = self.telemetry.scrape()
        assert text is not None
        found: Samples = {}
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def blockers(self) -> dict[str, float]:
        return {labels[0][1]: value for labels, value in self.samples()["revector_blocker"].items()}


@pytest.fixture
def scraped() -> Iterator[Scraped]:
    it = Scraped(Roles(stream=True, backfill=True, embed=True))
    yield it
    it.telemetry.close()


def test_numbers_of_a_status_arrive_under_their_contracted_names(scraped: Scraped) -> None:
    scraped.sources.last.publish(status())
    samples = scraped.samples()
    assert samples["revector_lag_seconds"] == {(): 0.4}
    assert samples["revector_freshness_seconds"] == {(): 1.5}
    assert samples["revector_wal_retained_bytes"] == {(): 2_100_000}
    assert samples["revector_partition_lag"][("partition", "2"), ("topic", "shop.article")] == 2
    assert samples["revector_backlog"][("generation", "v2"), ("kind", "backfill")] == 7
    assert samples["revector_generation_token_total"][("generation", "v2"), ("kind", "avoided")] == 8_000
    assert samples["revector_generation_blank_total"] == {(("generation", "v2"),): 11}
    assert samples["revector_generation_request_total"] == {(("generation", "v2"),): 60}


def test_every_reason_is_present_from_the_first_evaluation_on(scraped: Scraped) -> None:
    scraped.sources.last.publish(status(breaks=(Break("connector-restarted", {}),)))
    blockers = scraped.blockers()
    assert set(blockers) == set(REASONS)
    assert {id for id, value in blockers.items() if value} == {"break-open", "connector-restarted"}


def test_reasons_that_could_not_be_evaluated_are_absent_and_said(scraped: Scraped) -> None:
    scraped.sources.last.publish(status(proof=None))
    blockers = scraped.blockers()
    assert not PROOF_ONLY & set(blockers)
    assert blockers["not-observed"] == 1
    assert blockers["slot-lost"] == 0


def test_a_reason_that_ends_goes_back_to_0_and_does_not_vanish(scraped: Scraped) -> None:
    scraped.sources.last.publish(status(proof=(shortfall("index-missing"),)))
    assert scraped.blockers()["index-missing"] == 1
    scraped.sources.last.publish(status())
    assert scraped.blockers()["index-missing"] == 0


def test_unknown_numbers_are_absent_not_zero(scraped: Scraped) -> None:
    scraped.sources.last.publish(status(source=SourceFacts(), freshness_s=None, embed=None, feed=None, breaks=None))
    samples = scraped.samples()
    for name in ("lag_seconds", "freshness_seconds", "wal_retained_bytes", "partition_lag", "backlog", "break"):
        assert f"revector_{name}" not in samples
    assert "revector_generation_row_total" not in samples


def test_a_number_that_stops_being_known_disappears_at_once(scraped: Scraped) -> None:
    scraped.sources.last.publish(status())
    assert {"revector_lag_seconds", "revector_generation_row_total"} <= set(scraped.samples())
    scraped.sources.last.publish(status(source=None, embed=None))
    assert not {"revector_lag_seconds", "revector_generation_row_total"} & set(scraped.samples())


def test_nothing_waiting_has_no_age(scraped: Scraped) -> None:
    scraped.sources.last.publish(status(embed=Backlog(0, 0, 0, 0, 0, None, 900, 42_000, 8_000)))
    samples = scraped.samples()
    assert "revector_backlog_age_seconds" not in samples
    assert samples["revector_backlog"][("generation", "v2"), ("kind", "live")] == 0


def test_a_comparison_shows_its_age_and_every_kind_and_one_that_never_was_shows_nothing(scraped: Scraped) -> None:
    found = builders.comparison(state=State.DIFFERS, open={"row-extra": 2}, unsettled=3)
    scraped.sources.last.publish(status(comparison=ComparisonReading(found, 86_400)))
    samples = scraped.samples()
    assert samples["revector_comparison_age_seconds"] == {(): 120.0}
    by_kind = {dict(labels)["kind"]: n for labels, n in samples["revector_comparison_difference"].items()}
    assert set(by_kind) == {k.value for k in Difference} | {"unsettled"}
    assert {kind: n for kind, n in by_kind.items() if n} == {"row-extra": 2, "unsettled": 3}
    for unknown in (None, ComparisonReading(None, 86_400)):
        scraped.sources.last.publish(status(comparison=unknown))
        assert not {"revector_comparison_age_seconds", "revector_comparison_difference"} & set(scraped.samples())


def test_before_the_first_status_only_the_process_speaks(scraped: Scraped) -> None:
    samples = scraped.samples()
    assert scraped.blockers() == {"not-observed": 1}
    assert samples["revector_process_ready"] == {(): 1}
    assert not {"revector_lag_seconds", "revector_verdict", "revector_status_age_seconds"} & set(samples)


def test_a_status_that_is_not_renewed_is_not_shown(scraped: Scraped) -> None:
    scraped.sources.last.publish(status())
    scraped.clock.now += FRESH_S
    assert "revector_lag_seconds" in scraped.samples()
    scraped.clock.now += 0.5
    samples = scraped.samples()
    assert "revector_lag_seconds" not in samples
    assert scraped.blockers() == {"not-observed": 1}
    assert samples["revector_status_age_seconds"] == {(): FRESH_S + 0.5}


def test_one_verdict_is_on(scraped: Scraped) -> None:
    scraped.sources.last.publish(status(halts={"identity-changed": HaltNote("", "")}))
    verdicts = {labels[0][1]: value for labels, value in scraped.samples()["revector_verdict"].items()}
    assert {name for name, on in verdicts.items() if on} == {"halted"}
    assert len(verdicts) == len(Verdict)


def test_counts_of_all_workers_of_the_process_are_summed(scraped: Scraped) -> None:
    running = scraped.sources.running
    running.stream.records, running.embed["v2"].tokens = 12, 34
    running.backfill[0].rows_read, running.backfill[1].rows_read = 5, 6
    running.halted_by = "offsets-gone"
    samples = scraped.samples()
    assert samples["revector_stream_record_total"] == {(): 12}
    assert samples["revector_embed_token_total"][("generation", "v2"), ("kind", "billed")] == 34
    assert samples["revector_backfill_row_total"][(("kind", "read"),)] == 11
    assert samples["revector_process_halted"] == {(): 1}


def test_a_process_does_not_count_what_is_not_its_role() -> None:
    scraped = Scraped(Roles(embed=True))
    try:
        names = set(scraped.samples())
    finally:
        scraped.telemetry.close()
    assert "revector_embed_row_total" in names
    assert not any(name.startswith(("revector_stream", "revector_backfill")) for name in names)


def test_each_generation_counts_its_own_and_says_what_stalls_it(scraped: Scraped) -> None:
    embed = scraped.sources.running.embed
    embed["v3"] = EmbedCounts(rows=5, blank=2, tokens=7, avoided=9, requests=4, refused=1, stalled_by="provider-quota")
    samples = scraped.samples()
    v3 = ("generation", "v3")
    for name, value in (("row", 5), ("blank", 2), ("request", 4), ("refused", 1)):
        assert samples[f"revector_embed_{name}_total"] == {(("generation", "v2"),): 0, (v3,): value}
    assert samples["revector_embed_token_total"][v3, ("kind", "avoided")] == 9
    stalled = samples["revector_embed_stalled"]
    assert stalled == {(("generation", "v2"), ("reason", "none")): 0, (v3, ("reason", "provider-quota")): 1}
    embed["v3"].stalled_by = None
    assert set(scraped.samples()["revector_embed_stalled"].values()) == {0}


def test_requests_in_flight_and_the_budget_are_those_of_the_gate(scraped: Scraped) -> None:
    samples = scraped.samples()
    v2 = ("generation", "v2")
    assert samples["revector_embed_in_flight"] == {(v2, ("kind", "sent")): 3, (v2, ("kind", "permitted")): 8}
    permitted = samples["revector_embed_permitted_per_min"]
    assert permitted == {(v2, ("kind", "requests")): 600, (v2, ("kind", "tokens")): 90_000}
    unknown: Any = SimpleNamespace(in_flight=0, most_in_flight=8, rates=Rates())
    scraped.sources.running.gates["v2"] = unknown
    assert "revector_embed_permitted_per_min" not in scraped.samples()


def test_labels_are_the_declared_ones_and_names_follow_the_rule(scraped: Scraped) -> None:
    scraped.sources.last.publish(status())
    samples = scraped.samples()
    for instrument in INSTRUMENTS:
        assert instrument.name.startswith("revector.")
        found = samples[prometheus_name(instrument)]
        for labels in found:
            assert {name for name, _ in labels} == set(instrument.labels), instrument.name
        assert (instrument.kind is Kind.COUNTER) == prometheus_name(instrument).endswith("_total")
    assert set(samples) == {prometheus_name(i) for i in INSTRUMENTS} | {"target_info"}
    assert dict(next(iter(samples["target_info"])))["revector_migration"] == "articles"


def test_two_migrations_in_one_process_do_not_meet() -> None:
    first, second = Scraped(Roles(embed=True)), Scraped(Roles(embed=True))
    try:
        first.sources.running.embed["v2"].rows = 1
        assert first.samples()["revector_embed_row_total"] == {(("generation", "v2"),): 1}
        assert second.samples()["revector_embed_row_total"] == {(("generation", "v2"),): 0}
    finally:
        first.telemetry.close()
        second.telemetry.close()


@pytest.mark.parametrize(
    ("value", "chosen"),
    [
        (None, ("prometheus",)),
        ("", ("prometheus",)),
        ("none", ()),
        ("otlp", ("otlp",)),
        ("Prometheus, otlp", ("otlp", "prometheus")),
        ("console", ("console",)),
    ],
)
def test_the_standard_values_choose_exporters(value: str | None, chosen: tuple[str, ...]) -> None:
    assert parse_exporters(value) == chosen


def test_an_unknown_exporter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="OTEL_METRICS_EXPORTER") as refused:
        parse_exporters("jaeger")
    assert refused.value.id == "metrics-exporter-unknown"
    assert "prometheus" in refused.value.hint


def test_without_the_prometheus_exporter_there_is_no_text() -> None:
    sources, _ = process()
    telemetry = Telemetry("articles", sources, "none")
    assert telemetry.scrape() is None
    telemetry.close()


def test_the_console_exporter_writes_to_stderr_and_leaves_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())
    sources, _ = process()
    telemetry = Telemetry("articles", sources, "console")
    assert set(threading.enumerate()) != before
    telemetry.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "revector.process.ready" in json.dumps(json.loads(err))
    assert set(threading.enumerate()) == before


class Collector(BaseHTTPRequestHandler):
    """An OTLP endpoint that keeps what it is sent."""

    received: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.received.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def test_otlp_pushes_the_same_names_to_the_standard_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    Collector.received.clear()
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        sources, _ = process()
        sources.last.publish(status())
        Telemetry("articles", sources, "otlp").close()
        server.shutdown()
        thread.join()
    (path, body), *rest = Collector.received
    assert (path, rest) == ("/v1/metrics", [])
    assert {name for name in (i.name for i in INSTRUMENTS) if name.encode() not in body} == set()


def test_the_reference_page_lists_every_instrument() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference_page()


def test_the_reading_of_a_source_is_by_the_clock_given() -> None:
    sources, clock = process()
    assert isinstance(clock, HandClock)
    clock.now += 2.5
    assert list(_named("revector.loop.age", sources)) == [(2.5, {})]
    sources.running.turned_at = 0.0
    assert list(_named("revector.loop.age", sources)) == []


def _named(name: str, sources: Sources) -> Iterator[tuple[float, dict[str, str | int]]]:
    return next(i for i in INSTRUMENTS if i.name == name).read(sources)
