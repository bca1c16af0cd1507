"""What a search has found, as data and as a page: summary.md and history.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sasrec.core.files import atomic_write
from sasrec.core.tables import markdown_table, markdown_text
from sasrec.evaluation.comparison import Comparison
from sasrec.experiments.search_space import Choice
from sasrec.report import charts

SHOWN = 10  # trials of the table
LEVEL = 0.05  # of the test that tells a gain from luck


@dataclass(frozen=True)
class Trial:
    """One of the settings that were tried."""

    number: int  # from 1; 1 is the untouched preset
    settings: dict[str, Choice]  # that were searched; none in the first where the space does not hold the preset's
    state: str  # "complete", "pruned", "failed"
    value: float | None  # the best valid metric; None unless complete
    epochs: int
    seconds: float


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    `comparison` is between the untouched preset (a) and the winner (b) on test; None where the winner is the preset.
    """

    metric: str
    trials: list[Trial]
    best: Trial
    settings: dict[str, Any]  # of the winner, on top of the preset
    untouched: float  # the preset's valid metric
    importance: dict[str, float] = field(default_factory=dict)
    comparison: Comparison | None = None
    seeds: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        values = {**asdict(replace(self, comparison=None)), "seeds": list(self.seeds)}
        return values | {"comparison": None if self.comparison is None else self.comparison.to_dict()}


def in_words(result: SearchResult, preset: str) -> str:
    """What was found, in a few sentences: whether the winner is better than the untouched preset, or may be lucky."""
    n_pruned = sum(trial.state == "pruned" for trial in result.trials)
    n_failed = sum(trial.state == "failed" for trial in result.trials)
    tried = f"{len(result.trials)} trials, {n_pruned} pruned, {n_failed} failed."
    if result.comparison is None:
        return f"{tried} None was better on valid than preset {preset} itself ({result.metric} {result.untouched:.4f})."
    chosen = (
        f"Trial {result.best.number} has the best valid {result.metric}: {result.best.value:.4f}, and preset {preset} "
        f"{result.untouched:.4f}. Valid chose it among many, so that figure flatters it."
    )
    return f"{tried} {chosen} {_verdict(result)}"


def _verdict(result: SearchResult) -> str:
    """The difference on test, which chose nothing, in a sentence."""
    assert result.comparison is not None
    name = next((n for n in result.comparison.metrics if n == result.metric), next(iter(result.comparison.metrics)))
    found, n = result.comparison.metrics[name], len(result.seeds)
    a, b = f"{found['a']:.4f}", f"{found['b']:.4f}"
    over = f"On test, over {n} seed{'s' * (n > 1)}, {name} is {a} with the preset and {b} with the winner"
    if found["p_value"] is None:
        return f"{over}; there are too few users for a test."
    p = f"p = {found['p_value']:.2g} over users"
    if found["p_value"] >= LEVEL:
        return f"{over}: the difference may be chance ({p}), so keep the preset unless it is cheaper."
    return f"{over}: {'a gain' if found['difference'] > 0 else 'a LOSS'} that chance does not explain ({p})."


def summary_page(preset: str, space: Mapping[str, Any], result: SearchResult) -> str:
    """The page as Markdown."""
    names = list(space)
    best = sorted((t for t in result.trials if t.value is not None), key=lambda t: -(t.value or 0.0))[:SHOWN]
    rows = [["trial", f"valid {result.metric}", "epochs", "s", *names], *(_row(trial, names) for trial in best)]
    shares = [["setting", "share of the differences", "tried"]]
    shares += [
        [name, f"{result.importance.get(name, 0.0):.2f}", markdown_text(str(tried))] for name, tried in space.items()
    ]
    settings = "\n".join(f"{name}: {value}" for name, value in result.settings.items())
    usage = f"best.yaml holds it for `sasrec train LOG --preset {preset} --config`."
    parts = [
        f"# Search on top of preset {preset}\n",
        f"{in_words(result, preset)}\n",
        f"## The winner\n\n```yaml\n{settings}\n```\n\n{usage}\n",
        f"## The best trials\n\n{markdown_table(rows)}\n\n![Valid metric by trial](history.png)\n",
        f"## What was tried, and how much it decides\n\n{markdown_table(shares)}\n",
    ]
    if result.comparison is not None:
        parts.append(f"## On test\n\n```\n{result.comparison.to_text()}\n```\n")
    return "\n".join(parts)


def _row(trial: Trial, names: Sequence[str]) -> list[str]:
    told = [f"{v:.4g}" if isinstance(v := trial.settings.get(name, "-"), float) else str(v) for name in names]
    value = "-" if trial.value is None else f"{trial.value:.4f}"
    return [str(trial.number), value, str(trial.epochs), f"{trial.seconds:.0f}", *told]


def write_summary(folder: Path, preset: str, space: Mapping[str, Any], result: SearchResult) -> None:
    """Write summary.md and history.png."""
    atomic_write(folder / "summary.md", summary_page(preset, space, result))
    ended = [(trial.number, trial.value) for trial in result.trials if trial.value is not None]
    chart = charts.search_chart([n for n, _ in ended], [value for _, value in ended], f"valid {result.metric}")
    atomic_write(folder / "history.png", charts.png(chart))
