"""Every metric of the product as data: name, kind, unit, meaning, labels and where its values come from.

Names are the contract with dashboards: dots, singular, the unit in the unit field (`revector.lag` with unit `s` is
`revector_lag_seconds` for Prometheus). A value that is not known yields nothing, never 0. Labels are ids and
configured names (topic, partition, generation, kind, reason), so their number is bounded; row text cannot get here.

Pure readings of two frozen or atomic sources: `Running` (this process, since it started) and the last `Status` (the
whole migration). `telemetry` gives them to OpenTelemetry, `reference_page` writes them down for readers.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from daemon.core.comparison import Kind as Difference
from daemon.core.status import Status, StatusFacts, Verdict
from daemon.service.last_status import LastStatus
from daemon.service.supervise import Running

Labels = dict[str, str | int]
Reading = tuple[float, Labels]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where values come from. clock: monotonic seconds, the one that `Running.turned_at` is taken from."""

    running: Running
    last: LastStatus
    clock: Callable[[], float] = time.monotonic


class Kind(enum.Enum):
    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric. read: every current value with its labels; nothing where nothing is known."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    read: Callable[[Sources], Iterator[Reading]]
    labels: tuple[str, ...] = ()


def _known(value: float | None, **labels: str | int) -> Iterator[Reading]:
    if value is not None:
        yield value, labels


def _fact(pick: Callable[[StatusFacts], float | None]) -> Callable[[Sources], Iterator[Reading]]:
    """One number of the last status, absent where it was not observed."""

    def read(sources: Sources) -> Iterator[Reading]:
        status = sources.last.fresh()
        return _known(None if status is None else pick(status.facts))

    return read


# --- of the migration, from the last status


def _partitions(sources: Sources) -> Iterator[Reading]:
    status = sources.last.fresh()
    if status is not None and status.facts.feed is not None:
        for at, behind in status.facts.feed.behind.items():
            yield behind, {"topic": at.topic, "partition": at.partition}


def _of_generation(sources: Sources, names: dict[str, str]) -> Iterator[Reading]:
    """Fields of the backlog by the `kind` they are shown as."""
    status = sources.last.fresh()
    if status is not None and status.facts.embed is not None and status.facts.generation is not None:
        for kind, field in names.items():
            yield getattr(status.facts.embed, field), {"generation": status.facts.generation, "kind": kind}


def _backlog(sources: Sources) -> Iterator[Reading]:
    names = {"live": "waiting_live", "backfill": "waiting_backfill"}
    return _of_generation(sources, names | {kind: kind for kind in ("claimed", "refused", "accepted")})


def _tokens(sources: Sources) -> Iterator[Reading]:
    return _of_generation(sources, {"billed": "tokens", "avoided": "tokens_avoided"})


def _generation(field: str) -> Callable[[Sources], Iterator[Reading]]:
    """One field of the backlog."""

    def read(sources: Sources) -> Iterator[Reading]:
        for value, labels in _of_generation(sources, {"": field}):
            yield value, {"generation": labels["generation"]}

    return read


def _blockers(sources: Sources) -> Iterator[Reading]:
    """Without a fresh status no reason could be evaluated, which is a reason itself."""
    status = sources.last.fresh()
    gauges = {"not-observed": 1} if status is None else status.gauges()
    for reason, value in gauges.items():
        yield value, {"reason": reason}


def _comparison_age(facts: StatusFacts) -> float | None:
    last = None if facts.comparison is None else facts.comparison.last
    return None if last is None else last.began_age_s


def _differences(sources: Sources) -> Iterator[Reading]:
    """Every kind once a comparison has ended; nothing before."""
    status = sources.last.fresh()
    reading = None if status is None else status.facts.comparison
    if status is not None and reading is not None and reading.last is not None:
        by_kind = {**(reading.last.open or {}), "unsettled": reading.last.unsettled}
        for kind in (*(k.value for k in Difference), "unsettled"):
            yield by_kind.get(kind, 0), {"generation": status.facts.generation or "", "kind": kind}


def _verdict(sources: Sources) -> Iterator[Reading]:
    status: Status | None = sources.last.fresh()
    if status is not None:
        for verdict in Verdict:
            yield int(verdict is status.verdict), {"verdict": verdict.name.lower().replace("_", "-")}


def _status_age(sources: Sources) -> Iterator[Reading]:
    newest = sources.last.newest()
    return _known(None if newest is None else newest[1])


# --- of this process, from its counts


def _loop_age(sources: Sources) -> Iterator[Reading]:
    turned_at = sources.running.turned_at
    return _known(sources.clock() - turned_at if turned_at else None)


def _halted(sources: Sources) -> Iterator[Reading]:
    yield int(sources.running.halted_by is not None), {}


def _ready(sources: Sources) -> Iterator[Reading]:
    yield int(sources.running.is_ready), {}


def _stream(field: str) -> Callable[[Sources], Iterator[Reading]]:
    def read(sources: Sources) -> Iterator[Reading]:
        if sources.running.roles.stream:
            yield getattr(sources.running.stream, field), {}

    return read


def _pages(sources: Sources) -> Iterator[Reading]:
    if sources.running.roles.backfill:
        yield sum(worker.pages for worker in tuple(sources.running.backfill)), {}


def _page_rows(sources: Sources) -> Iterator[Reading]:
    if sources.running.roles.backfill:
        workers = tuple(sources.running.backfill)
        yield sum(worker.rows_read for worker in workers), {"kind": "read"}
        yield sum(worker.rows_written for worker in workers), {"kind": "written"}


def _embed(field: str) -> Callable[[Sources], Iterator[Reading]]:
    def read(sources: Sources) -> Iterator[Reading]:
        for generation, counts in tuple(sources.running.embed.items()):
            yield getattr(counts, field), {"generation": generation}

    return read


def _embed_tokens(sources: Sources) -> Iterator[Reading]:
    for generation, counts in tuple(sources.running.embed.items()):
        yield counts.tokens, {"generation": generation, "kind": "billed"}
        yield counts.avoided, {"generation": generation, "kind": "avoided"}


def _stalled(sources: Sources) -> Iterator[Reading]:
    for generation, counts in tuple(sources.running.embed.items()):
        reason = counts.stalled_by
        yield int(reason is not None), {"generation": generation, "reason": reason or "none"}


def _in_flight(sources: Sources) -> Iterator[Reading]:
    for generation, gate in tuple(sources.running.gates.items()):
        yield gate.in_flight, {"generation": generation, "kind": "sent"}
        yield gate.most_in_flight, {"generation": generation, "kind": "permitted"}


def _permitted(sources: Sources) -> Iterator[Reading]:
    for generation, gate in tuple(sources.running.gates.items()):
        rates = gate.rates
        for kind, rate in (("requests", rates.requests_per_minute), ("tokens", rates.tokens_per_minute)):
            yield from _known(rate, generation=generation, kind=kind)


_GAUGE, _COUNTER = Kind.GAUGE, Kind.COUNTER

OF_MIGRATION = (
    Instrument(
        "revector.blocker",
        _GAUGE,
        "1",
        "1 where the reason stands against the cutover, 0 where it does not; absent where it could not be evaluated, "
        "and then not-observed is 1.",
        _blockers,
        ("reason",),
    ),
    Instrument("revector.verdict", _GAUGE, "1", "1 for the verdict of the last status.", _verdict, ("verdict",)),
    Instrument("revector.status.age", _GAUGE, "s", "Age of the last status; past 60 s it is not used.", _status_age),
    Instrument(
        "revector.lag",
        _GAUGE,
        "s",
        "Age of the newest commit up to which the replica is complete.",
        _fact(lambda f: None if f.source is None else f.source.lag_s),
    ),
    Instrument(
        "revector.freshness",
        _GAUGE,
        "s",
        "Age of the instant up to which every commit is applied and embedded.",
        _fact(lambda f: f.freshness_s),
    ),
    Instrument(
        "revector.partition.lag",
        _GAUGE,
        "{event}",
        "Events between the checkpoint and the end of a partition.",
        _partitions,
        ("topic", "partition"),
    ),
    Instrument(
        "revector.wal.retained",
        _GAUGE,
        "By",
        "Log that the source keeps for the replication slot.",
        _fact(lambda f: None if f.source is None else f.source.retained_bytes),
    ),
    Instrument(
        "revector.wal.limit",
        _GAUGE,
        "By",
        "Most log that the source keeps for a slot; absent where unlimited.",
        _fact(lambda f: None if f.source is None else f.source.limit_bytes),
    ),
    Instrument(
        "revector.break",
        _GAUGE,
        "{break}",
        "Breaks of continuity not closed by a comparison.",
        _fact(lambda f: None if f.breaks is None else len(f.breaks)),
    ),
    Instrument(
        "revector.comparison.age",
        _GAUGE,
        "s",
        "Time since the last comparison of the generation that ended began; absent where there is none.",
        _fact(_comparison_age),
    ),
    Instrument(
        "revector.comparison.difference",
        _GAUGE,
        "{difference}",
        "What that comparison found and did not mend, by kind; unsettled: what could not be judged.",
        _differences,
        ("generation", "kind"),
    ),
    Instrument(
        "revector.backlog",
        _GAUGE,
        "{row}",
        "Work of the generation by kind: live, backfill, claimed, refused, accepted.",
        _backlog,
        ("generation", "kind"),
    ),
    Instrument(
        "revector.backlog.age",
        _GAUGE,
        "s",
        "Age of the oldest waiting work; absent where nothing waits.",
        _fact(lambda f: None if f.embed is None else f.embed.oldest_age_s),
    ),
    Instrument(
        "revector.generation.row",
        _COUNTER,
        "{row}",
        "Rows embedded for the generation by all processes.",
        _generation("rows_embedded"),
        ("generation",),
    ),
    Instrument(
        "revector.generation.blank",
        _COUNTER,
        "{row}",
        "Of them, rows without text, which have no chunk.",
        _generation("rows_blank"),
        ("generation",),
    ),
    Instrument(
        "revector.generation.request",
        _COUNTER,
        "{request}",
        "Requests to the provider by all processes whose batch was stored.",
        _generation("requests"),
        ("generation",),
    ),
    Instrument(
        "revector.generation.token",
        _COUNTER,
        "{token}",
        "Tokens of the generation by kind: billed, and avoided because a chunk was unchanged.",
        _tokens,
        ("generation", "kind"),
    ),
    Instrument(
        "revector.backfill.copied",
        _GAUGE,
        "{row}",
        "Rows that the backfill of all tables has read.",
        _fact(lambda f: None if f.backfill is None else f.backfill.rows),
    ),
    Instrument(
        "revector.backfill.expected",
        _GAUGE,
        "{row}",
        "Rows of all tables by the planner's estimate; absent where never analysed.",
        _fact(lambda f: None if f.backfill is None else f.backfill.rows_total),
    ),
)

OF_PROCESS = (
    Instrument("revector.process.ready", _GAUGE, "1", "1 once every part was examined and the loops run.", _ready),
    Instrument("revector.process.halted", _GAUGE, "1", "1 where the stream of this process halted.", _halted),
    Instrument("revector.loop.age", _GAUGE, "s", "Time since the main loop last turned.", _loop_age),
    Instrument("revector.stream.window", _COUNTER, "{window}", "Windows applied.", _stream("windows")),
    Instrument("revector.stream.record", _COUNTER, "{record}", "Kafka records read.", _stream("records")),
    Instrument("revector.stream.change", _COUNTER, "{event}", "Change events decoded.", _stream("changes")),
    Instrument(
        "revector.stream.row", _COUNTER, "{row}", "Replica rows written by the stream.", _stream("rows_written")
    ),
    Instrument("revector.stream.work", _COUNTER, "{entry}", "Work written by the stream.", _stream("work_written")),
    Instrument("revector.backfill.page", _COUNTER, "{page}", "Pages copied.", _pages),
    Instrument("revector.backfill.row", _COUNTER, "{row}", "Rows by kind: read, written.", _page_rows, ("kind",)),
    Instrument(
        "revector.embed.row", _COUNTER, "{row}", "Rows embedded by this process.", _embed("rows"), ("generation",)
    ),
    Instrument(
        "revector.embed.blank", _COUNTER, "{row}", "Of them, rows without text.", _embed("blank"), ("generation",)
    ),
    Instrument(
        "revector.embed.token",
        _COUNTER,
        "{token}",
        "Tokens of this process by kind: billed, and avoided because a chunk was unchanged.",
        _embed_tokens,
        ("generation", "kind"),
    ),
    Instrument(
        "revector.embed.request",
        _COUNTER,
        "{request}",
        "Requests to the provider.",
        _embed("requests"),
        ("generation",),
    ),
    Instrument(
        "revector.embed.refused",
        _COUNTER,
        "{row}",
        "Rows that the provider refused.",
        _embed("refused"),
        ("generation",),
    ),
    Instrument(
        "revector.embed.in_flight",
        _GAUGE,
        "{request}",
        "Requests by kind: sent and not answered, and permitted at once.",
        _in_flight,
        ("generation", "kind"),
    ),
    Instrument(
        "revector.embed.permitted",
        _GAUGE,
        "1/min",
        "Budget in force by kind: requests, tokens; absent where it is not known. All processes share it.",
        _permitted,
        ("generation", "kind"),
    ),
    Instrument(
        "revector.embed.stalled",
        _GAUGE,
        "1",
        "1 where the provider cannot be used, with the id of the reason.",
        _stalled,
        ("generation", "reason"),
    ),
)

INSTRUMENTS = OF_MIGRATION + OF_PROCESS
_UNITS = {"s": "_seconds", "By": "_bytes", "1/min": "_per_min"}


def prometheus_name(instrument: Instrument) -> str:
    """The name under which Prometheus stores it."""
    suffix = "_total" if instrument.kind is Kind.COUNTER else ""
    return instrument.name.replace(".", "_") + _UNITS.get(instrument.unit, "") + suffix


def reference_page() -> str:
    """The Markdown of the reference page."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` of a running process in Prometheus' text form, or pushed: `OTEL_METRICS_EXPORTER` takes",
        "`otlp`, `prometheus` (the default), `console`, `none`, or several with commas. A value that is not known is",
        "absent, never 0.",
    ]
    for title, group in (("the migration", OF_MIGRATION), ("one process, since it started", OF_PROCESS)):
        lines += ["", f"## Of {title}", "", "| OpenTelemetry | Prometheus | kind | labels | meaning |"]
        lines.append("|---|---|---|---|---|")
        for i in group:
            labels = ", ".join(f"`{label}`" for label in i.labels)
            cells = (f"`{i.name}` ({i.unit})", f"`{prometheus_name(i)}`", i.kind.value, labels, i.meaning)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
