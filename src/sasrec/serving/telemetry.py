"""Prometheus metrics of a server.

With several workers the metrics lie in files that all of them share (PROMETHEUS_MULTIPROC_DIR, set before this module
is imported), and each worker gives the sum.
"""

from __future__ import annotations

import os
import time
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
INFOS = (b"sasrec_model_info{", b"sasrec_challenger_model_info{")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The server's Prometheus metrics, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double what is told
        counter, gauge = self.counter, self.gauge
        registry = self.registry = CollectorRegistry()
        self.is_shared = SHARED_FOLDER in os.environ
        if not self.is_shared:
            ProcessCollector(registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"sasrec_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter("requests_total", "requests answered, by route and status", "route", "code")
        self.seconds = histogram("request_seconds", "seconds from a request's head to its answer", SECONDS, "route")
        self.batch_rows = histogram("batch_rows", "histories computed together", ROWS)
        self.in_flight = gauge("requests_in_flight", "requests that are not answered yet", "livesum")
        self.queued = gauge("queue_rows", "histories that wait or are computed", "livesum")
        self.held = gauge("held_bytes", "bytes of bodies on their way and of answers not read yet", "livesum")
        self.history_items = counter("history_items_total", "items of histories asked about")
        self.unknown_items = counter("unknown_items_total", "items of histories that the model does not know")
        self.answers = counter("answers_total", "lists of recommendations given")
        self.fallbacks = counter("fallback_answers_total", "of which popular items, as no item was known")
        self.events = counter("events_total", "events stored")
        self.event_failures = counter("event_failures_total", "reads and writes of the event file that failed")
        self.dropped_lines = counter("log_lines_dropped_total", "lines of logs that nobody has read in time")
        self.refused = counter("connections_refused_total", "connections closed, by reason", "reason")
        self._of_request: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.of_model = ModelMetrics(self)
        self._models = [self.of_model]

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """A new counter."""
        return Counter(f"sasrec_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, mode: Any, *labels: str) -> Gauge:
        """A new gauge; `mode`: how the values of several workers are put together."""
        return Gauge(f"sasrec_{name}", text, labels, multiprocess_mode=mode, registry=self.registry)

    def of_challenger(self) -> ModelMetrics:
        """What is told of a second model."""
        self._models.append(ModelMetrics(self, "challenger_"))
        return self._models[-1]

    def request(self, route: str, code: int, seconds: float) -> None:
        """Count an answered request."""
        pair = self._of_request.get((route, code))
        if pair is None:
            pair = self.requests.labels(route, str(code)), self.seconds.labels(route)
            self._of_request[route, code] = pair
        pair[0].inc()
        pair[1].observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        for model in self._models:
            model.tell_age()
        registry = self.registry
        if self.is_shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        lines = generate_latest(registry).splitlines(keepends=True)
        return b"".join(line for line in lines if not (line.startswith(INFOS) and _is_zero(line)))


class ModelMetrics:
    """What is told of a model that is loaded again and again.

    Args:
        metrics: whose registry counts.
        prefix: of the names.
    """

    def __init__(self, metrics: Metrics, prefix: str = "") -> None:
        gauge = metrics.gauge
        which = "challenger" if prefix else "model"
        self.model = gauge(f"{prefix}model_info", f"1 for the {which} that answers", "livemax", "version")
        self.loaded = gauge(f"{prefix}model_loaded_timestamp_seconds", f"when the {which} was loaded", "livemin")
        self.age = gauge(f"{prefix}model_age_seconds", f"seconds since the {which} was loaded", "livemax")
        self.reloads = metrics.counter(
            f"{prefix}reloads_total", f"attempts to load another {which}, by outcome", "outcome"
        )
        self.reload_ok = gauge(
            f"{prefix}last_reload_ok", f"0 when the last attempt to load another {which} failed", "livemin"
        )
        self.reload_ok.set(1)
        self._version = ""
        self._loaded_at = time.time()

    def changed(self, version: str) -> None:
        """The model of this version answers from now on."""
        if self._version:
            self.model.labels(self._version).set(0)
        self.model.labels(version).set(1)
        self._version, self._loaded_at = version, time.time()
        self.loaded.set(self._loaded_at)

    def tell_age(self) -> None:
        """Set the age."""
        self.age.set(time.time() - self._loaded_at if self._version else 0)


def _is_zero(line: bytes) -> bool:
    """Whether a sample is 0: of a model that answers no more, which shared files cannot forget."""
    return float(line.rsplit(b" ", 1)[1]) == 0
