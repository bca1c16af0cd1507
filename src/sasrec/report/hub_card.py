"""The model card of a run at the Hugging Face Hub: front matter that the Hub reads, and the card of a run folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sasrec.evaluation.results import Result
from sasrec.report.model_card import Place, model_card
from sasrec.report.run_facts import RunFacts, shown
from sasrec.report.text import measured_in_words, metric_title

TAGS = ("sasrec", "sequential-recommendation", "recommender-system", "transformer")


@dataclass(frozen=True)
class Told:
    """What only the caller knows of a model."""

    license: str | None = None  # as the Hub names it, such as apache-2.0; None = none is given
    datasets: Sequence[str] = ()  # at the Hub, such as user/log


def hub_card(facts: RunFacts, told: Told, place: Place) -> str:
    """The Markdown of README.md, with front matter."""
    import yaml

    matter = yaml.safe_dump(front_matter(facts, told), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{matter}---\n\n{model_card(facts, place)}"


def front_matter(facts: RunFacts, told: Told) -> dict[str, Any]:
    """What the Hub reads: library, tags, licence, data sets, and the metrics on test with their protocol."""
    results = [result for result in facts.results if result.split == "test"]
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    matter: dict[str, Any] = {"library_name": "sasrec", "tags": list(TAGS)}
    matter |= {"license": told.license} if told.license else {}
    matter |= {"datasets": list(told.datasets)} if told.datasets else {}
    if not results:
        return matter
    data = shown(facts.config.data_name) or "log"
    measured = {
        "task": {"type": "sequential-recommendation", "name": "Next item"},
        "dataset": {"type": next(iter(told.datasets), data), "name": data, "split": "test"},
        "metrics": [figure for result in results for figure in _figures(result)],
    }
    return matter | {"metrics": names, "model-index": [{"name": f"SASRec on {data}", "results": [measured]}]}


def _figures(result: Result) -> Iterator[dict[str, Any]]:
    """The metrics of one result, each with its protocol in words and its interval."""
    for name, estimate in result.metrics.items():
        low, high = estimate.get("low"), estimate.get("high")
        interval = f", 95% interval {low:.4f} to {high:.4f}" if low is not None and high is not None else ""
        words = f"{metric_title(name)}, {measured_in_words(result)}{interval}"
        yield {"type": name, "value": round(float(estimate["value"]), 6), "name": words}
