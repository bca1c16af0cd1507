"""Results in words, and in tables of text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

from sasrec.core.tables import plain_table
from sasrec.evaluation.intervals import Z95, Estimate, Metrics
from sasrec.evaluation.results import Result

RANKING_METRICS = ("ndcg", "hr", "mrr")
PROTOCOLS_NOTE = (
    "The two protocols can rank models differently: most of the 100 sampled items are unpopular, so sampled metrics "
    "say little about the top of a list (Krichene & Rendle 2020). Choose models by full."
)


def metrics_table(results: Sequence[Result]) -> str:
    """Results as plain text: a line with the protocol, then a row for the model and for each baseline.

    One table has the ranking metrics of a cut-off and the next those of its lists, to fit the width of a terminal.
    """
    parts = [_text_table(result) for result in results]
    pair = both_protocols(results)
    return "\n\n".join([*parts, agreement(pair)] if pair else parts)


def _text_table(result: Result) -> str:
    lines = [protocol_in_words(result)]
    for _, group in groupby(result.metrics, lambda name: (name.partition("@")[2], name.startswith(RANKING_METRICS))):
        names = list(group)
        rows = [["", *names]] + [[scorer, *(cell(m.get(n)) for n in names)] for scorer, m in scorers_of(result)]
        lines.append(plain_table(rows))
    return "\n".join(lines + [plain_table(rows) for rows in [group_rows(result)] if rows])


def group_rows(result: Result) -> list[list[str]]:
    """A header, then a row a scorer: the headline metrics of warm and of cold targets; none where all are warm."""
    if not result.groups:
        return []
    names = headline_metrics(result.metrics)
    told = [f"{group} ({values['n_targets']:,} targets)" for group, values in result.groups.items()]
    rows = [["", *(f"{metric_title(name)} {group}" for group in told for name in names)]]
    for scorer, _ in scorers_of(result):
        found = [g["metrics"] if scorer == "model" else g["baselines"].get(scorer, {}) for g in result.groups.values()]
        rows.append([scorer, *(cell(metrics.get(name)) for metrics in found for name in names)])
    return rows


def scorers_of(result: Result) -> list[tuple[str, Metrics]]:
    """The model and its baselines, each with its metrics."""
    return [("model", result.metrics), *result.baselines.items()]


def cell(estimate: Estimate | None) -> str:
    """A mean with half its 95 % interval."""
    if estimate is None:
        return "-"
    value, stderr = estimate["value"], estimate["stderr"]
    digits = 4 if abs(value) < 1 else 3 if abs(value) < 100 else 1
    return f"{value:.{digits}f}" if stderr is None else f"{value:.{digits}f} ±{Z95 * stderr:.{digits}f}"


def percent(share: float) -> str:
    """A share as a percentage, to three digits."""
    return f"{100 * share:.3g} %"


def metric_title(name: str) -> str:
    """The usual spelling of a metric: NDCG@10, but coverage@10."""
    return name.upper() if name.startswith(RANKING_METRICS) else name


def headline_metrics(metrics: Collection[str]) -> list[str]:
    """Of these metrics NDCG and HR at 10 or, without that cut-off, at the first there is."""
    found = {kind: [name for name in metrics if name.startswith(f"{kind}@")] for kind in ("ndcg", "hr")}
    return [f"{kind}@10" if f"{kind}@10" in names else names[0] for kind, names in found.items() if names]


def protocol_in_words(result: Result) -> str:
    """One line that says how a result was measured, and what its ± is."""
    return f"{measured_in_words(result)}; ± is a 95 % interval"


def measured_in_words(result: Result) -> str:
    """One line that says how a result was measured."""
    seed = "" if result.seed is None else f", seed {result.seed}"
    targets = "" if result.n_targets == result.n_users else f"{result.n_targets:,} targets of "
    types = f", targets are {' and '.join(result.target_events)} events" if result.target_events else ""
    cut = "" if result.cut is None else f", cut at {result.cut:.15g}"
    chosen = {"last": ", last events", "all": ", all events"}.get(result.temporal_targets, "")
    sample = f", a sample of {result.sampled_users:,}" if result.sampled_users else ""
    cold = f", {percent(result.cold_share)} of targets never in train" if result.n_cold else ""
    return (
        f"{result.split} ({result.split_method.replace('_', ' ')}{cut}{chosen}), {result.protocol} protocol: "
        f"{result.candidates}, excluding {result.excluded}; ties {result.ties}{seed}; "
        f"{targets}{result.n_users:,} users{sample}{cold}{types}{_of_another_log(result)}"
    )


def _of_another_log(result: Result) -> str:
    """What a model that comes from another log does to targets."""
    unknown = f", {result.unknown_targets:,} targets unknown to the model" if result.unknown_targets else ""
    seen = f", {result.init_seen_targets:,} left out that it was trained on" if result.init_seen_targets else ""
    return unknown + seen + (", others that it was trained on may be among them" if result.init_unchecked else "")


def both_protocols(results: Sequence[Result]) -> list[Result]:
    """The test results by the full and by the sampled protocol; none unless both were measured, in the same way."""
    found = {result.protocol: result for result in results if result.split == "test"}
    alike = len({(result.split_method, result.n_users, result.k) for result in found.values()}) == 1
    return [found["full"], found["sampled"]] if len(found) == 2 and alike else []


def pair_rows(pair: Sequence[Result]) -> list[list[str]]:
    """A header, then a row a scorer: the headline metrics by full, then by sampled."""
    columns = [(result, name) for result in pair for name in headline_metrics(result.metrics)]
    header = ["", *(f"{result.protocol} {metric_title(name)}" for result, name in columns)]
    scorers = [scorer for scorer, _ in scorers_of(pair[0])]
    return [header, *([s, *(cell(dict(scorers_of(r)).get(s, {}).get(name)) for r, name in columns)] for s in scorers)]


def agreement(pair: Sequence[Result]) -> str:
    """The note on both protocols, and whether they put the model and its baselines in the same order here."""
    orders = []
    for result in pair:
        name = headline_metrics(result.metrics)[0]
        values = {scorer: metrics[name]["value"] for scorer, metrics in scorers_of(result) if name in metrics}
        orders.append(sorted(values, key=lambda scorer: -values[scorer]))
    full, sampled = ([scorer for scorer in order if scorer in orders[0] and scorer in orders[1]] for order in orders)
    if len(full) < 2:
        return PROTOCOLS_NOTE
    if full == sampled:
        return f"{PROTOCOLS_NOTE} Here both give the same order: {', '.join(full)}."
    return f"{PROTOCOLS_NOTE} Here they differ: {', '.join(full)} by full, {', '.join(sampled)} by sampled."
