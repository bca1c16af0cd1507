"""How often what was shown had feedback, by model version: the figures of a feedback file, and their metrics."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from sasrec.serving.online_schemas import Figures, KindFigures, VersionFigures
from sasrec.serving.telemetry import Metrics

GROUPS = "SELECT id, version, arm, n_items, n_exposures, n_shown FROM groups ORDER BY id DESC"


class GroupFigures(NamedTuple):
    """A model version in an arm."""

    version: str
    arm: str
    n_exposures: int
    coverage: float  # share of the catalogue
    hits: dict[str, tuple[int, int]]  # by kind ("" = any): lists with feedback, feedback


def figures_of(connection: sqlite3.Connection) -> list[GroupFigures]:
    """The figures of a file, the newest version first."""
    hits: dict[int, dict[str, tuple[int, int]]] = {}
    for grp, kind, n_hits, n_feedback in connection.execute("SELECT * FROM hits ORDER BY kind"):
        hits.setdefault(grp, {})[kind] = n_hits, n_feedback
    return [
        GroupFigures(version, arm, n_exposures, n_shown / max(n_items, 1), hits.get(grp, {}))
        for grp, version, arm, n_items, n_exposures, n_shown in connection.execute(GROUPS)
    ]


def answered(groups: Sequence[GroupFigures], now: Collection[tuple[str, str]]) -> Figures:
    """The same as an answer; `now`: version and arm of the models that answer."""

    def kind(group: GroupFigures, name: str) -> KindFigures:
        n_hits, n_feedback = group.hits.get(name, (0, 0))
        return KindFigures(n_feedback, n_hits, n_hits / group.n_exposures if group.n_exposures else None)

    return Figures(
        [
            VersionFigures(
                group.version,
                group.arm,
                (group.version, group.arm) in now,
                group.n_exposures,
                group.coverage,
                kind(group, ""),
                {name: kind(group, name) for name in group.hits if name},
            )
            for group in groups
        ]
    )


class OnlineMetrics:
    """What a server that measures counts beside the usual.

    Args:
        metrics: whose registry counts.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.bytes = 0  # of the file, when it was last read
        self.feedback = metrics.counter("feedback_total", "feedback stored, each once")
        self.failures = metrics.counter("feedback_failures_total", "reads and writes of the feedback file that failed")
        self.lost = metrics.counter("exposures_lost_total", "lists that could not be kept, so they had no id")
        self.expired = metrics.counter("exposures_expired_total", "oldest lists given up for newer ones")

    def exposition(self, groups: Sequence[GroupFigures]) -> bytes:
        """The figures of the file, which all workers share, in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(_Figures(groups, self.bytes))
        return generate_latest(registry)


class _Figures:
    """A collector of figures that are known."""

    def __init__(self, groups: Sequence[GroupFigures], n_bytes: int) -> None:
        self._groups, self._bytes = groups, n_bytes

    def collect(self) -> Iterator[Metric]:
        labels = ["version", "arm"]
        exposures = GaugeMetricFamily("sasrec_exposures", "lists that are kept", labels=labels)
        coverage = GaugeMetricFamily("sasrec_coverage", "share of the catalogue that was shown", labels=labels)
        hits = GaugeMetricFamily("sasrec_hits", "of which lists with feedback, by kind", labels=[*labels, "kind"])
        rate = GaugeMetricFamily("sasrec_hit_rate", "share of the lists with feedback", labels=[*labels, "kind"])
        for group in self._groups:
            names = [group.version, group.arm]
            exposures.add_metric(names, group.n_exposures)
            coverage.add_metric(names, group.coverage)
            for kind, (n_hits, _) in group.hits.items():
                hits.add_metric([*names, kind or "any"], n_hits)
                rate.add_metric([*names, kind or "any"], n_hits / max(group.n_exposures, 1))
        size = GaugeMetricFamily("sasrec_feedback_file_bytes", "bytes that the feedback file holds", value=self._bytes)
        yield from (exposures, coverage, hits, rate, size)
