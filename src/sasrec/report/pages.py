"""Writes the pages of a run: report.html, curve.png and README.md (the model card).

report.html is one file, without scripts and without other hosts. Its charts are inline SVG in the page's own colours,
so that they follow light and dark. Comparisons are tables with a drawn column, so that a screen reader can read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sasrec.core.arrays import Int64
from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig, to_dict
from sasrec.core.files import atomic_write
from sasrec.data.event_types import types_in_words
from sasrec.data.sequences import LogFacts
from sasrec.evaluation.intervals import Estimate, without_interval
from sasrec.evaluation.results import Result
from sasrec.report import charts
from sasrec.report.examples import Example
from sasrec.report.item_facts import item_facts
from sasrec.report.model_card import model_card
from sasrec.report.published_figures import PublishedFigure, comparable
from sasrec.report.run_facts import MAX_TEXT, STOPPED, RunFacts, model_in_words, plain, refit_note, shown, template
from sasrec.report.text import (
    agreement,
    both_protocols,
    cell,
    group_rows,
    headline_metrics,
    metric_title,
    pair_rows,
    percent,
    protocol_in_words,
    scorers_of,
)
from sasrec.runs.record import EpochLine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = tuple[str, Sequence[str]]  # a class of report.html.template ("" for none) and the cells of a table's row
PUBLISHED_NOTE = (
    '<p class="soft">○ as published. Sources differ in ties, sampled items, choice of the epoch and often in model '
    "size: expect figures near these, not the same.</p>"
)


def write_report(folder: Path, facts: RunFacts) -> None:
    """Write report.html, curve.png and README.md into an existing run folder.

    Raises:
        CheckpointError: a file cannot be written.
    """
    atomic_write(folder / "report.html", report_page(facts))
    atomic_write(folder / "curve.png", charts.png(charts.both_curves(_curve(facts), f"valid {_valid_in_words(facts)}")))
    atomic_write(folder / "README.md", model_card(facts))


def report_page(facts: RunFacts) -> str:
    """The HTML of the report."""
    sections: list[tuple[str, str]] = [
        ("Results", _results(facts)),
        ("Learning curve", _learning_curve(facts)),
        ("Example recommendations", "".join(map(_example, facts.examples))),
        ("Data", _data(facts)),
        ("Settings", _settings(facts)),
    ]
    told = [(title.split()[0].lower(), title, body) for title, body in sections if body]
    return template("report.html.template").substitute(
        title=_html(facts.config.data_name),
        subtitle=_html(_subtitle(facts)),
        version=_html(facts.config.package_version),
        notes="".join(f'<p class="note">{_html(note, None)}</p>' for note in _notes(facts)),
        cards=_cards(facts),
        links="".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in told),
        sections="".join(
            f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2 id="{anchor}-h">{title}</h2>{body}</section>'
            for anchor, title, body in told
        ),
    )


def _html(value: object, limit: int | None = MAX_TEXT) -> str:
    return escape(shown(value, limit))


def _subtitle(facts: RunFacts) -> str:
    data = facts.config.data
    size = f"{data.n_events:,} events of {data.n_users:,} users on {data.n_items:,} items"
    return f"{size}. {model_in_words(facts.config)}"


def _notes(facts: RunFacts) -> list[str]:
    if not facts.config.refit_epochs:
        return list(facts.warnings)
    return [refit_note(facts.config), *facts.warnings]


def _cards(facts: RunFacts) -> str:
    """The figures to read first: NDCG and HR of each result on test, and whether they are above the baselines."""
    cards = []
    for result in facts.results:
        for name in headline_metrics(result.metrics) if result.split == "test" else []:
            estimate = result.metrics[name]
            kind, verdict = _verdict(result, name)
            cards.append(
                f'<div class="card"><div>test {metric_title(name)} <span class="soft">{result.protocol}</span></div>'
                f'<div class="value">{estimate["value"]:.4f}</div><div class="soft">{_interval(estimate)}</div>'
                f'<div class="{kind}">{_html(verdict)}</div></div>'
            )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _interval(estimate: Estimate) -> str:
    low, high = _bounds(estimate)
    return f"{low:.4f} to {high:.4f} (95 %)" if low < high else "no interval"


def _bounds(estimate: Estimate) -> tuple[float, float]:
    """The 95 % interval; the value itself where there is none."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    return (value if low is None else low), (value if high is None else high)


def _verdict(result: Result, name: str) -> tuple[str, str]:
    """Whether the model is above its best baseline, by their intervals: a class and a sentence."""
    baselines = {scorer: metrics[name] for scorer, metrics in result.baselines.items() if name in metrics}
    if not baselines:
        return "soft", "no baseline was measured"
    best = max(baselines, key=lambda scorer: baselines[scorer]["value"])
    mine, theirs = result.metrics[name], baselines[best]
    beside = f"{best} {theirs['value']:.4f}"
    if mine["stderr"] is None or theirs["stderr"] is None:
        return "soft", f"no intervals to compare; the best baseline is {beside}"
    if _bounds(mine)[0] > _bounds(theirs)[1]:
        return "good", f"▲ above the best baseline, {beside}"
    if _bounds(mine)[1] < _bounds(theirs)[0]:
        return "bad", f"▼ below the best baseline, {beside}"
    return "even", f"≈ overlaps with the best baseline, {beside}"


def _results(facts: RunFacts) -> str:
    if not facts.results:
        return "<p>Nothing has been evaluated.</p>"
    in_order = sorted(facts.results, key=lambda result: result.split != "test")
    return _side_by_side(facts.results) + "".join(_result(facts.config.data, result) for result in in_order)


def _side_by_side(results: Sequence[Result]) -> str:
    """NDCG and HR by both protocols in one table, and why they may disagree."""
    pair = both_protocols(results)
    if not pair:
        return ""
    rows: list[Row] = [("", row) for row in pair_rows(pair)[1:]]
    table = _table(pair_rows(pair)[0], rows, "test, both protocols")
    return f'<h3>Both protocols side by side</h3>{table}<p class="soft">{_html(agreement(pair), None)}</p>'


def _result(data: LogFacts, result: Result) -> str:
    """One result with its protocol; on test the headline metrics stand beside baselines and published figures."""
    title = f"{result.split}, {result.protocol} protocol"
    drawn = headline_metrics(result.metrics) if result.split == "test" else []
    published, scorers = comparable(data, result), scorers_of(result)
    dots = "".join(_dot_table(name, result, published) for name in drawn)
    rows: list[Row] = [
        ("", [metric_title(name), *(cell(metrics.get(name)) for _, metrics in scorers)])
        for name in result.metrics if name not in drawn
    ]  # fmt: skip
    caption = f"{'Other metrics' if drawn else 'Metrics'}: {title}"
    table = _table(["metric", *(scorer for scorer, _ in scorers)], rows, caption)
    return (
        f'<h3>{_html(title.capitalize())}</h3><p class="soft">{_html(protocol_in_words(result), None)}.</p>'
        f'<div class="pair">{dots}</div>{PUBLISHED_NOTE if published else ""}{table if rows else ""}{_groups(result)}'
    )


def _groups(result: Result) -> str:
    """The headline metrics of warm and of cold targets apart; nothing where all are warm."""
    header, *rows = group_rows(result) or [[]]
    return _table(header, [("", row) for row in rows], "Targets that occur in train, and that never do") if rows else ""


def _dot_table(name: str, result: Result, published: Sequence[PublishedFigure]) -> str:
    """A metric of the model, its baselines and published figures, each with a dot and its interval on a line from 0."""
    rows = [
        ("model" if scorer == "model" else "baseline", scorer, metrics[name])
        for scorer, metrics in scorers_of(result) if name in metrics
    ]  # fmt: skip
    rows += [("published", p.source, without_interval(p.metrics[name])) for p in published if name in p.metrics]
    scale = 100 / (max(_bounds(estimate)[1] for _, _, estimate in rows) or 1.0)
    body = []
    for kind, label, estimate in rows:
        low, high = _bounds(estimate)
        track = f'<b style="left:{scale * estimate["value"]:.2f}%"></b>'
        if low < high:
            track = f'<i style="left:{scale * low:.2f}%;width:{scale * (high - low):.2f}%"></i>{track}'
        body.append(
            f'<tr class="{kind}"><th scope="row">{_html(label)}</th><td class="number">{cell(estimate)}</td>'
            f'<td class="plot"><div class="track" aria-hidden="true">{track}</div></td></tr>'
        )
    head = f'<th scope="col"></th><th scope="col" class="number">{metric_title(name)}</th><th scope="col">from 0</th>'
    return f'<table class="dots"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _table(header: Sequence[str], rows: Sequence[Row], caption: str) -> str:
    """A table whose cells are numbers, except the first of a row; it scrolls by itself where it is too wide."""
    numbers = "".join(f'<th scope="col" class="number">{_html(cell)}</th>' for cell in header[1:])
    head = f'<tr><th scope="col">{_html(header[0])}</th>{numbers}</tr>'
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{_html(cells[0])}</th>'
        + "".join(f'<td class="number">{_html(cell)}</td>' for cell in cells[1:])
        + "</tr>"
        for kind, cells in rows
    )
    table = f"<table><caption>{_html(caption)}</caption><thead>{head}</thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{_html(caption)}">{table}</div>'


def _learning_curve(facts: RunFacts) -> str:
    if not facts.history:
        return "<p>No epoch was completed.</p>"
    stopped = STOPPED.get(facts.stopped, facts.stopped)
    told = f"{len(facts.history):,} epochs in {facts.seconds / 60:,.1f} minutes; training ended because {stopped}."
    epochs, losses = _series(facts, _loss)
    loss = f"{losses[0]:.4f} in epoch {epochs[0]}, {losses[-1]:.4f} in epoch {epochs[-1]}." if epochs else "Not known."
    valid = f"{_valid_in_words(facts)}; the model of this epoch was kept."
    curve = _curve(facts)
    drawn = _chart(charts.loss_chart(curve), "Training loss", loss)
    drawn += _chart(charts.valid_chart(curve), "Valid metric", valid)
    return f'<p>{_html(told)}</p><div class="pair">{drawn}</div>'


def _curve(facts: RunFacts) -> charts.LearningCurve:
    kept = facts.best_epoch if any(line.epoch == facts.best_epoch for line in facts.history) else None
    loss, valid, test = (_series(facts, of) for of in (_loss, _valid, _test))
    return charts.LearningCurve(loss, valid, test, kept, _best_value(facts))


def _chart(figure: Figure, title: str, told: str) -> str:
    """A chart with its title, and in words what it shows."""
    drawn = charts.svg(figure, shown(title, None), shown(told, None))
    return f"<figure>{drawn}<figcaption><strong>{_html(title)}.</strong> {_html(told, None)}</figcaption></figure>"


def _valid_in_words(facts: RunFacts) -> str:
    train, best = facts.config.train, _best_value(facts)
    reached = "" if best is None else f": {best:.4f}"
    return f"{metric_title(train.valid_metric)}, {train.valid_protocol} protocol{reached} at epoch {facts.best_epoch}"


def _best_value(facts: RunFacts) -> float | None:
    """The valid metric of the epoch that was kept."""
    return dict(zip(*_series(facts, _valid), strict=True)).get(facts.best_epoch)


def _series(facts: RunFacts, of: Callable[[RunFacts, EpochLine], float | None]) -> charts.Series:
    """Epochs and a figure of each, where there is one."""
    values = [(line.epoch, of(facts, line)) for line in facts.history]
    points = [(epoch, value) for epoch, value in values if value is not None and isfinite(value)]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _loss(facts: RunFacts, line: EpochLine) -> float | None:
    return line.train_loss


def _valid(facts: RunFacts, line: EpochLine) -> float | None:
    return (line.valid or {}).get(facts.config.train.valid_metric)


def _test(facts: RunFacts, line: EpochLine) -> float | None:
    return (line.test or {}).get(facts.config.train.valid_metric)


def _example(example: Example) -> str:
    """What one user had, what the model recommends, and what came next."""
    listed = [(r, r.item.item_id == example.target.item_id) for r in example.recommended]
    tag = ' <span class="tag">✓ came next</span>'
    items = "".join(
        f'<li value="{r.rank}"{" class=hit" if hit else ""}><span>{_html(r.item.title)}{tag if hit else ""}</span>'
        f'<span class="score">{r.score:.2f}</span></li>'
        for r, hit in listed
    )
    history = "".join(f"<li>{_html(item.title)}</li>" for item in example.history)
    missed = f" It is not among these {len(listed)}." if not any(hit for _, hit in listed) else ""
    return (
        f'<article class="example"><h3>User {_html(example.user_id)}</h3><div class="pair">'
        f'<div><h4>Last items, oldest first</h4><ul class="history">{history}</ul>'
        f"<p>Came next: <strong>{_html(example.target.title)}</strong>.{missed}</p></div>"
        f'<div><h4>Recommended next, with scores</h4><ol class="ranking">{items}</ol></div></div></article>'
    )


def _data(facts: RunFacts) -> str:
    data = facts.config.data
    told = {
        "events": f"{data.n_events:,}",
        "users": f"{data.n_users:,}",
        "items": f"{data.n_items:,}",
        "of all pairs of a user and an item": percent(data.n_events / (data.n_users * data.n_items)),
        "of events repeat an item of the user": percent(data.repeat_share),
        "users with fewer than 3 events": f"{data.n_short_users:,}",
        "order of events": "by timestamp" if data.has_timestamps else "as in the input",
    }
    if data.event_types:
        told["types of events"] = _html(types_in_words(data.event_types))
    if data.has_timestamps:
        told["of events have the timestamp of the one before"] = percent(data.tied_share)
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in told.items())
    drawn = _lengths(facts.lengths, facts.config.model.max_seq_len) + _popularity(facts.item_counts)
    return f'<dl class="tiles">{tiles}</dl><div class="pair">{drawn}</div>{_log_as_read(facts)}{_items(facts)}'


def _items(facts: RunFacts) -> str:
    """What is known of items: a row for each column."""
    items = None if facts.vocabulary is None else item_facts(facts.vocabulary)
    if items is None:
        return ""
    rows: list[Row] = [
        ("changed" if c.is_feature else "", [c.name, c.holds, percent(c.share), c.values]) for c in items.columns
    ]
    more = f"<p>Columns that are not shown: {items.n_more:,}.</p>" if items.n_more else ""
    cold = f" Items without events: {items.n_without_events:,} of {items.n_items:,}." if items.n_without_events else ""
    told = f'<p class="soft">Bold: the model learns from it.{cold}</p>'
    table = _table(["column", "holds", "items with it", "values"], rows, "items")
    return f"<h3>What is known of items</h3>{told}{table}{more}"


def _log_as_read(facts: RunFacts) -> str:
    """How the log was understood, and what its reader warned of."""
    if facts.understanding is None:
        return ""
    read = facts.understanding.without_folders
    told = {
        "source": f"{read.source}: {read.form}",
        "columns": read.columns_line,
        "left alone": read.left_alone_line,
        "times": f"{read.span}; {read.time_line.removeprefix('times ')}" if read.span else read.time_line,
        "first event": read.shown_event(read.first_events[0]) if read.first_events else "",
    }
    rows = "".join(f"<dt>{name}</dt><dd>{_html(text, 4 * MAX_TEXT)}</dd>" for name, text in told.items() if text)
    notes = "".join(f'<p class="note">{_html(note, None)}</p>' for note in read.notes)
    return f'<h3>The log as read</h3><dl class="read">{rows}</dl>{notes}'


def _lengths(lengths: Int64, max_seq_len: int) -> str:
    if not len(lengths):
        return ""
    told = (
        f"{lengths.mean():,.1f} events a user on average, {np.median(lengths):,.0f} at the median, at most "
        f"{lengths.max():,}. {percent(float((lengths > max_seq_len).mean()))} of users have more than max_seq_len, "
        f"{max_seq_len:,} (dashed); the model sees only their newest events."
    )
    return _chart(charts.length_chart(lengths, max_seq_len), "Users by number of events", told)


def _popularity(item_counts: Int64) -> str:
    counts = np.sort(item_counts[item_counts > 0])[::-1]
    if not len(counts):
        return ""
    share = counts[: -(-len(counts) // 10)].sum() / counts.sum()
    told = (
        f"The most popular tenth of the items has {percent(share)} of the events; half of the items have "
        f"{np.median(counts):,.0f} events or fewer."
    )
    return _chart(charts.popularity_chart(counts), "Events per item, by popularity rank", told)


def _settings(facts: RunFacts) -> str:
    config = facts.config
    model, train, evaluation = (
        _table(["setting", "value"], list(_setting_rows(part)), name)
        for name, part in (("model", config.model), ("train", config.train), ("eval", config.eval))
    )
    machine: list[Row] = [("", [name, plain(value)]) for name, value in facts.environment.items()]
    if config.processes > 1:
        machine.append(("", ["processes", plain(config.processes)]))
    machine.append(("", ["log fingerprint", config.data.fingerprint]))
    environment = _table(["", "value"], machine, "environment")
    return (
        '<p class="soft">Bold: differs from the default of the package.</p>'
        f'<div class="settings">{model}{environment}{train}{evaluation}</div>'
    )


def _setting_rows(config: ModelConfig | TrainConfig | EvalConfig) -> Iterator[Row]:
    defaults = to_dict(type(config)())
    for name, value in to_dict(config).items():
        yield ("" if value == defaults.get(name) else "changed"), [name, plain(value)]
