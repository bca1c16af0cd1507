"""The model card: README.md of a run folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sasrec.core.tables import markdown_table
from sasrec.data.event_types import types_in_words
from sasrec.data.sequences import LogFacts
from sasrec.evaluation.results import Result
from sasrec.report.item_facts import item_facts
from sasrec.report.published_figures import comparable
from sasrec.report.run_facts import MAX_TEXT, STOPPED, RunFacts, model_in_words, plain, refit_note, shown, template
from sasrec.report.text import (
    agreement,
    both_protocols,
    cell,
    metric_title,
    pair_rows,
    percent,
    protocol_in_words,
    scorers_of,
)


@dataclass(frozen=True)
class Place:
    """Where the card is read, and what of a run is there."""

    address: str = "path/to/this/folder"
    has_histories: bool = True
    has_curve: bool = True


HERE = Place()
USERS_LINE = 'rec.recommend_users(["a user id"], k=10)  # users of the log\n'
WITH_HISTORIES = "`items.parquet` and `sequences/` hold the ids and the histories of the log."
WITHOUT_HISTORIES = "`items.parquet` holds the ids of the log's items and their counts. No user and no history is here."
CURVE = "![Training loss and valid metric by epoch](curve.png)\n\n"


def model_card(facts: RunFacts, place: Place = HERE) -> str:
    """The Markdown of the model card."""
    config, data, train = facts.config, facts.config.data, facts.config.train
    chosen = (
        f"Epoch {facts.best_epoch} of {len(facts.history)} was kept, by {metric_title(train.valid_metric)} on valid "
        f"({train.valid_protocol} protocol). Training took {facts.seconds / 60:,.1f} minutes and ended because "
        f"{STOPPED.get(facts.stopped, facts.stopped)}." if facts.history else "No epoch was completed."
    )  # fmt: skip
    return template("model_card.md.template").substitute(
        name=_markdown(config.data_name),
        address=place.address,
        of_users=USERS_LINE if place.has_histories else "",
        log="" if place.has_histories else "--log LOG ",
        holds=WITH_HISTORIES if place.has_histories else WITHOUT_HISTORIES,
        curve=CURVE if place.has_curve else "",
        version=_markdown(config.package_version),
        events=f"{data.n_events:,}",
        users=f"{data.n_users:,}",
        items=f"{data.n_items:,}",
        order=f"ordered by timestamp ({percent(data.tied_share)} have the timestamp of the event before)"
        if data.has_timestamps
        else "in the order of the input",
        repeats=percent(data.repeat_share),
        fingerprint=_markdown(data.fingerprint),
        reading=_types(data) + _reading(facts) + _items(facts),
        settings=_markdown(model_in_words(config)),
        n_heads=config.model.n_heads,
        max_seq_len=config.model.max_seq_len,
        dropout=f"{config.model.dropout:g}",
        chosen=_markdown(chosen) + (f"\n\n{refit_note(config)}" if config.refit_epochs else ""),
        results="\n\n".join(_markdown_results(data, facts.results)) or "Not evaluated.",
        warnings="".join(f"- {_markdown(text, None)}\n" for text in facts.warnings),
        environment=_markdown("; ".join(f"{name} {plain(value)}" for name, value in facts.environment.items()), None),
    )


def _types(data: LogFacts) -> str:
    return " " + _markdown(f"Types of events: {types_in_words(data.event_types)}.", None) if data.event_types else ""


def _reading(facts: RunFacts) -> str:
    """Form, columns and span of the log, without any id of it."""
    read = facts.understanding
    if read is None:
        return ""
    span = f"; {read.span}" if read.span else ""
    return " " + _markdown(f"It was read as {read.form}: {read.columns_line}{span}.", None)


def _items(facts: RunFacts) -> str:
    """What is known of items, without any value of it."""
    items = None if facts.vocabulary is None else item_facts(facts.vocabulary)
    return "" if items is None else " " + _markdown(items.sentence, None)


def _markdown(value: object, limit: int | None = MAX_TEXT) -> str:
    """Foreign text, escaped so that it cannot become markup."""
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", shown(value, limit))


def _markdown_results(data: LogFacts, results: Sequence[Result]) -> list[str]:
    parts, pair = [_markdown_result(data, result) for result in results], both_protocols(results)
    if pair:
        table = markdown_table([[_markdown(row[0]), *row[1:]] for row in pair_rows(pair)])
        parts.append(f"### Both protocols side by side\n\n{table}\n\n{_markdown(agreement(pair), None)}")
    return parts


def _markdown_result(data: LogFacts, result: Result) -> str:
    names = list(result.metrics)
    rows = [[scorer, *(cell(metrics.get(name)) for name in names)] for scorer, metrics in scorers_of(result)]
    rows += [
        [f"published: {p.source}", *(f"{p.metrics[name]:.4f}" if name in p.metrics else "-" for name in names)]
        for p in comparable(data, result)
    ]
    table = markdown_table([["", *map(metric_title, names)], *([_markdown(r[0]), *r[1:]] for r in rows)])
    title = f"### {result.split.capitalize()}, {result.protocol} protocol"
    return f"{title}\n\n{_markdown(protocol_in_words(result), None)}.\n\n{table}"
