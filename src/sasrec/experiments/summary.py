"""What runs of one setting have in common: each metric's mean and spread over seeds, as data and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sasrec.core.tables import markdown_table, markdown_text, plain_table
from sasrec.evaluation.intervals import Estimate, Metrics
from sasrec.evaluation.results import Result
from sasrec.report.text import PROTOCOLS_NOTE, measured_in_words
from sasrec.runs.folder import RunConfig
from sasrec.runs.record import TrainingFacts


@dataclass(frozen=True)
class SeedRun:
    """A run of a study that has ended."""

    seed: int
    config: RunConfig
    results: list[Result]
    training: TrainingFacts
    folder: str  # its name inside the study's folder


@dataclass(frozen=True)
class Spread:
    """A metric over seeds."""

    mean: float
    std: float | None = None  # over seeds; None for one seed
    stderr: float | None = None  # of the mean over seeds
    users_stderr: float | None = None  # from the sample of users: the mean of the seeds' own standard errors
    values: list[float] = field(default_factory=list)  # one a seed


Baselines = dict[str, dict[str, float]]  # by name, each metric


@dataclass(frozen=True)
class SeedsResult:
    """Results that differ in their seed only, as one."""

    first: Result  # the first seed's: how all of them were measured
    metrics: dict[str, Spread]
    groups: dict[str, dict[str, Spread]]  # the metrics of warm and of cold targets, where there are cold ones

    @property
    def baselines(self) -> Baselines:
        """Values without intervals; baselines do not depend on the seed."""
        return _values(self.first.baselines)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = self.first.to_dict()
        warnings = values.pop("warnings")
        del values["metrics"], values["baselines"]
        if self.groups:
            values["groups"] = {
                name: {
                    "n_targets": group["n_targets"],
                    "metrics": _dicts(self.groups[name]),
                    "baselines": _values(group["baselines"]),
                }
                for name, group in self.first.groups.items()
            }
        return {**values, "metrics": _dicts(self.metrics), "baselines": self.baselines, "warnings": warnings}


def _values(baselines: Mapping[str, Metrics]) -> Baselines:
    return {name: {metric: one["value"] for metric, one in metrics.items()} for name, metrics in baselines.items()}


def _dicts(spreads: Mapping[str, Spread]) -> dict[str, dict[str, Any]]:
    return {name: asdict(spread) for name, spread in spreads.items()}


@dataclass(frozen=True)
class StudySummary:
    """What the runs of a study have in common, and how each of them went."""

    runs: list[SeedRun]
    results: list[SeedsResult]

    @property
    def seeds(self) -> list[int]:
        """A run each."""
        return [run.seed for run in self.runs]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: what summary.json holds."""
        runs = [{"seed": run.seed, "folder": run.folder, **asdict(run.training)} for run in self.runs]
        return {"seeds": self.seeds, "runs": runs, "results": [result.to_dict() for result in self.results]}


def summarise(runs: Sequence[SeedRun]) -> StudySummary:
    """What the runs of a study have in common."""
    results = [over_seeds(results) for results in zip(*(run.results for run in runs), strict=True)]
    return StudySummary(list(runs), results)


def over_seeds(results: Sequence[Result]) -> SeedsResult:
    """One result in place of one a seed: each metric's mean and spread."""
    groups = {name: _spreads([r.groups[name]["metrics"] for r in results]) for name in results[0].groups}
    return SeedsResult(results[0], _spreads([r.metrics for r in results]), groups)


def _spreads(metrics: Sequence[Metrics]) -> dict[str, Spread]:
    return {name: _spread([each[name] for each in metrics]) for name in metrics[0]}


def _spread(estimates: Sequence[Estimate]) -> Spread:
    values = [estimate["value"] for estimate in estimates]
    std = statistics.stdev(values) if len(values) > 1 else None
    known = [estimate["stderr"] for estimate in estimates if estimate["stderr"] is not None]
    return Spread(
        mean=statistics.fmean(values),
        std=std,
        stderr=None if std is None else std / len(values) ** 0.5,
        users_stderr=statistics.fmean(known) if known else None,
        values=values,
    )


def summary_text(summary: StudySummary) -> str:
    """The summary for a terminal."""
    parts = [f"{measured_in_words(result.first)}\n{plain_table(_rows(result))}" for result in summary.results]
    return "\n\n".join([*parts, _legend(summary)])


def summary_page(name: str, summary: StudySummary) -> str:
    """The summary as Markdown."""
    parts = [f"# {markdown_text(name)}: seeds {', '.join(map(str, summary.seeds))}\n"]
    for result in summary.results:
        title = f"## {result.first.split.capitalize()}, {result.first.protocol} protocol"
        parts += [f"{title}\n\n{markdown_text(measured_in_words(result.first))}.\n\n{markdown_table(_rows(result))}\n"]
    table = markdown_table(_run_rows(summary.runs))
    return "\n".join([*parts, f"{_legend(summary)}\n", f"## Runs\n\n{table}\n"])


def _run_rows(runs: Sequence[SeedRun]) -> list[list[str]]:
    rows = [["seed", "best epoch", "epochs", "training, s", "stopped by", "folder"]]
    for run in runs:
        facts = run.training
        counts = [str(run.seed), str(facts.best_epoch), str(facts.epochs)]
        rows.append([*counts, f"{facts.seconds:.0f}", markdown_text(facts.stopped), run.folder])
    return rows


def _rows(result: SeedsResult) -> list[list[str]]:
    """A result over seeds as a table: a row a metric, spread and baselines in columns."""
    baselines = result.baselines
    header = ["", "mean", "std", "std error", "min", "max", "users' std error", *baselines]
    return [header, *(_metric_row(name, spread, baselines) for name, spread in result.metrics.items())]


def _metric_row(name: str, spread: Spread, baselines: Mapping[str, Mapping[str, float]]) -> list[str]:
    values = spread.values or [spread.mean]
    figures = [spread.mean, spread.std, spread.stderr, min(values), max(values), spread.users_stderr]
    digits = 4 if abs(spread.mean) < 1 else 3 if abs(spread.mean) < 100 else 1
    cells = [*figures, *(baseline.get(name) for baseline in baselines.values())]
    return [name, *("-" if value is None else f"{value:.{digits}f}" for value in cells)]


def _legend(summary: StudySummary) -> str:
    text = (
        f"mean: over {len(summary.seeds)} seeds; std: spread over training seeds; std error: uncertainty of that mean; "
        "users' std error: uncertainty from the sample of users."
    )
    both = {result.first.protocol for result in summary.results if result.first.split == "test"} == {"full", "sampled"}
    return f"{text} {PROTOCOLS_NOTE}" if both else text
