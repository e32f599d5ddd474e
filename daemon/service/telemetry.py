"""Metrics to where the operator wants them: the only importer of OpenTelemetry.

The instruments are those of `service.instruments`, all observable: nothing is recorded on the data path, each
collection reads the counts of the process and the last status. Where they go is decided by the value of
`OTEL_METRICS_EXPORTER`, which the SDK leaves to the application; endpoint, headers and interval of a push are read by
the SDK from its own variables.

Prometheus' text comes from a registry of our own and is served by `service.web`; no second port is opened and nothing
global is touched, so that two of these can live in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import metadata

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest

from daemon.errors import ConfigError, Problem
from daemon.service.instruments import INSTRUMENTS, Instrument, Kind, Sources

EXPORTER_VARIABLE = "OTEL_METRICS_EXPORTER"
EXPORTERS = ("otlp", "prometheus", "console", "none")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHUTDOWN_MS = 5_000


class Telemetry:
    """Runs from construction to `close`. exporters: the value of `OTEL_METRICS_EXPORTER`, None or empty for the
    default.

    Raises ConfigError `metrics-exporter-unknown`.
    """

    def __init__(self, migration: str, sources: Sources, exporters: str | None = None) -> None:
        chosen = parse_exporters(exporters)
        self._registry = CollectorRegistry() if "prometheus" in chosen else None
        resource = Resource.create(
            {"service.name": "revector", "service.version": _version(), "revector.migration": migration}
        )
        readers = [_reader(name, self._registry) for name in chosen]
        self._provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        meter = self._provider.get_meter("revector")
        for instrument in INSTRUMENTS:
            _observe(meter, instrument, sources)

    def scrape(self) -> bytes | None:
        """Prometheus' text form; None where that exporter was not chosen. Safe from any one thread at a time."""
        return None if self._registry is None else generate_latest(self._registry)

    def close(self) -> None:
        """Push a last time and end; waits for at most 5 s."""
        self._provider.shutdown(timeout_millis=SHUTDOWN_MS)


def parse_exporters(value: str | None) -> tuple[str, ...]:
    """The exporters of a comma-separated value, without `none`. Raises ConfigError `metrics-exporter-unknown`."""
    names = [name.strip().lower() for name in (value or "").split(",") if name.strip()] or ["prometheus"]
    if not set(names) <= set(EXPORTERS):
        hint = f"use {', '.join(EXPORTERS)}, or several with commas"
        raise ConfigError([Problem("metrics-exporter-unknown", EXPORTER_VARIABLE, "names no exporter", hint)])
    return tuple(name for name in EXPORTERS if name in names and name != "none")


def _version() -> str:
    try:
        return metadata.version("revector")
    except metadata.PackageNotFoundError:
        return "unknown"  # run from a folder, not installed


def _reader(name: str, registry: CollectorRegistry | None) -> MetricReader:
    if name == "prometheus":
        assert registry is not None
        return PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    if name == "console":
        return PeriodicExportingMetricReader(ConsoleMetricExporter(out=sys.stderr))
    return PeriodicExportingMetricReader(OTLPMetricExporter())


def _observe(meter: Meter, instrument: Instrument, sources: Sources) -> None:
    create = meter.create_observable_gauge if instrument.kind is Kind.GAUGE else meter.create_observable_counter
    create(instrument.name, [_callback(instrument, sources)], instrument.unit, instrument.meaning)


def _callback(instrument: Instrument, sources: Sources) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def callback(_: CallbackOptions) -> Iterator[Observation]:
        for value, labels in instrument.read(sources):
            yield Observation(value, labels)

    return callback
