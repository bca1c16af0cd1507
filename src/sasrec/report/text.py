"""Results in words and in tables of text, and the published figures to set beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import Any

from sasrec.core.config import Protocol
from sasrec.core.tables import plain_table
from sasrec.data.sequences import LogFacts
from sasrec.evaluation.intervals import Z95

ResultDict = Mapping[str, Any]  # Result.to_dict()
RANKING_METRICS = ("ndcg", "hr", "mrr")
PROTOCOLS_NOTE = (
    "The two protocols may disagree about which model is better: 100 drawn items are mostly unpopular ones, so sampled "
    "figures say little about the top of a list (Krichene & Rendle 2020). Choose models by full."
)


@dataclass(frozen=True)
class PublishedFigure:
    """What a paper or a repository reports for a known log, leave-one-out, on test."""

    source: str
    protocol: Protocol
    metrics: Mapping[str, float]  # ndcg@10 and, where it is reported, hr@10


def known_logs() -> dict[str, dict[str, Any]]:
    """The logs that figures are published for, by name: their size and the figures, each with its source.

    A figure with the key `differs` was measured on another version of the log; it is not set beside ours.
    Repositories are pmixer/SASRec.pytorch (two runs in its README, three norms in Result_Norm.md),
    asash/gSASRec-pytorch, antklen/sasrec-bert4rec-recsys23, blondered/transformer_benchmark and yueqirex/LRURec.
    """
    logs: dict[str, dict[str, Any]] = json.loads(
        files("sasrec.report").joinpath("published_figures.json").read_text("utf-8")
    )
    return logs


def published_figures(data: LogFacts) -> list[PublishedFigure]:
    """The published figures for this log; none unless its users, items and events are those of a known log."""
    size = (data.n_users, data.n_items, data.n_events)
    return [
        PublishedFigure(f["source"], f["protocol"], {name: f[name] for name in ("ndcg@10", "hr@10") if name in f})
        for log in known_logs().values() if (log["users"], log["items"], log["events"]) == size
        for f in log["figures"] if "differs" not in f
    ]  # fmt: skip


def comparable(data: LogFacts, result: ResultDict) -> list[PublishedFigure]:
    """Published figures of the same protocol: test, leave-one-out, 100 drawn items or all but those seen."""
    same = {  # a result has its number of candidates in words only
        "sampled": str(result["candidates"]).startswith("the target and 100 "),
        "full": bool(result["filter_seen"]),
    }
    if result["split"] != "test" or result["split_method"] != "leave_one_out" or not same[result["protocol"]]:
        return []
    return [figure for figure in published_figures(data) if figure.protocol == result["protocol"]]


def metrics_table(results: Sequence[ResultDict]) -> str:
    """Results as plain text: a line with the protocol, then a row for the model and for each baseline.

    One table has the ranking metrics of a cut-off and the next those of its lists, to fit the width of a terminal.
    """
    parts = [_text_table(result) for result in results]
    pair = both_protocols(results)
    return "\n\n".join([*parts, agreement(pair)] if pair else parts)


def _text_table(result: ResultDict) -> str:
    lines = [protocol_in_words(result)]
    for _, group in groupby(result["metrics"], lambda name: (name.partition("@")[2], name.startswith(RANKING_METRICS))):
        names = list(group)
        rows = [["", *names]] + [[scorer, *(cell(m.get(n)) for n in names)] for scorer, m in scorers_of(result)]
        lines.append(plain_table(rows))
    return "\n".join(lines)


def scorers_of(result: ResultDict) -> list[tuple[str, Mapping[str, Any]]]:
    """The model and its baselines, each with its metrics."""
    return [("model", result["metrics"]), *result["baselines"].items()]


def cell(estimate: Mapping[str, Any] | None) -> str:
    """A mean with half its 95 % interval."""
    if estimate is None:
        return "-"
    value, stderr = estimate["value"], estimate.get("stderr")
    digits = 4 if abs(value) < 1 else 3 if abs(value) < 100 else 1
    return f"{value:.{digits}f}" if stderr is None else f"{value:.{digits}f} ±{Z95 * stderr:.{digits}f}"


def percent(share: float) -> str:
    """A share as a percentage, to three digits."""
    return f"{100 * share:.3g} %"


def metric_title(name: str) -> str:
    """The usual spelling of a metric: NDCG@10, but coverage@10."""
    return name.upper() if name.startswith(RANKING_METRICS) else name


def headline_metrics(result: ResultDict) -> list[str]:
    """NDCG and HR at 10, or at the first cut-off if 10 is not among them."""
    found = {kind: [n for n in result["metrics"] if n.startswith(f"{kind}@")] for kind in ("ndcg", "hr")}
    return [f"{kind}@10" if f"{kind}@10" in names else names[0] for kind, names in found.items() if names]


def protocol_in_words(result: ResultDict) -> str:
    """One line that says how a result was measured, and what its ± is."""
    return f"{measured_in_words(result)}; ± is a 95 % interval"


def measured_in_words(result: ResultDict) -> str:
    """One line that says how a result was measured."""
    seed = "" if result["seed"] is None else f", seed {result['seed']}"
    targets = "" if result["n_targets"] == result["n_users"] else f"{result['n_targets']:,} targets of "
    cold = f", {percent(result['cold_share'])} of targets never in train" if result["n_cold"] else ""
    return (
        f"{result['split']} ({result['split_method'].replace('_', ' ')}), {result['protocol']} protocol: "
        f"{result['candidates']}, excluding {result['excluded']}; ties {result['ties']}{seed}; "
        f"{targets}{result['n_users']:,} users{cold}"
    )


def both_protocols(results: Sequence[ResultDict]) -> list[ResultDict]:
    """The test results by the full and the sampled protocol; none unless both were measured in the same way."""
    found = {r["protocol"]: r for r in results if r["split"] == "test"}
    alike = len({(r["split_method"], r["n_users"], tuple(r["k"])) for r in found.values()}) == 1
    return [found["full"], found["sampled"]] if len(found) == 2 and alike else []


def pair_rows(pair: Sequence[ResultDict]) -> list[list[str]]:
    """A header, then a row a scorer: the headline metrics by full, then by sampled."""
    columns = [(result, name) for result in pair for name in headline_metrics(result)]
    header = ["", *(f"{result['protocol']} {metric_title(name)}" for result, name in columns)]
    scorers = [scorer for scorer, _ in scorers_of(pair[0])]
    return [header, *([s, *(cell(dict(scorers_of(r)).get(s, {}).get(name)) for r, name in columns)] for s in scorers)]


def agreement(pair: Sequence[ResultDict]) -> str:
    """The note on both protocols, and whether they order the model and its baselines alike in these results."""
    orders = []
    for result in pair:
        name = headline_metrics(result)[0]
        values = {scorer: metrics[name]["value"] for scorer, metrics in scorers_of(result) if name in metrics}
        orders.append(sorted(values, key=lambda scorer: -values[scorer]))
    full, sampled = ([scorer for scorer in order if scorer in orders[0] and scorer in orders[1]] for order in orders)
    if len(full) < 2:
        return PROTOCOLS_NOTE
    if full == sampled:
        return f"{PROTOCOLS_NOTE} Here both put these in the same order: {', '.join(full)}."
    return f"{PROTOCOLS_NOTE} Here they differ: {', '.join(full)} by full, {', '.join(sampled)} by sampled."
