"""What notebooks show of results, comparisons, recommendations and models: HTML in a page's own colours, light or dark.

No script, no link, nothing from other hosts. Foreign text (ids, titles, names of logs) is escaped. No user's history is
shown; ids of users only where the caller asked for these users.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import isfinite
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from sasrec.core.displays import html_of
from sasrec.core.tables import printable
from sasrec.data.sequences import Sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.evaluation.comparison import Comparison
from sasrec.evaluation.results import Result
from sasrec.ranking.lists import Recommendations
from sasrec.report import charts
from sasrec.report.run_facts import STOPPED, model_in_words, refit_note, shown
from sasrec.report.text import cell, group_rows, headline_metrics, metric_title, protocol_in_words, scorers_of
from sasrec.runs.folder import RunConfig
from sasrec.runs.record import Course

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 50  # of a table; what is left out is counted
COLOURS = "--ink: currentColor; --soft: #808a94; --line: #80808040; --accent: #3b82d6; --warm: #d0743c"  # of charts
NUMBER = ' style="text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums"'


def table(rows: Sequence[Sequence[object]], n_left_out: int = 0) -> str:
    """Rows of cells, the first of them the header; numbers stand on the right."""
    head, *body = [[_text(value) for value in row] for row in rows]
    right = [bool(body) and all(_is_number(row[i]) for row in body) for i in range(len(head))]
    marks = [NUMBER if is_number else ' style="text-align: left"' for is_number in right]
    lines = [_line("th", head, marks), *(_line("td", row, marks) for row in body)]
    more = f"<p>and {n_left_out:,} more</p>" if n_left_out else ""
    return f"<table><thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table>{more}"


def _line(tag: str, cells: Sequence[str], marks: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}{mark}>{c}</{tag}>' for c, mark in zip(cells, marks, strict=True))}</tr>"


def _text(value: object) -> str:
    has_places = isinstance(value, Real) and not isinstance(value, Integral)
    return escape(printable(shown(f"{value:.4f}" if has_places else value)))


def _is_number(text: str) -> bool:
    return text.lstrip("+-").replace(",", "").replace(".", "").partition(" ")[0].isdigit() or text in ("", "-")


def _paragraph(text: str) -> str:
    return f"<p>{escape(printable(shown(text, None)))}</p>"


def _box(title: str, *parts: str) -> str:
    heading = f"<strong>{escape(printable(shown(title)))}</strong>"
    return f'<div class="sasrec" style="{COLOURS}; overflow-x: auto">{heading}{"".join(parts)}</div>'


@html_of.register
def result_html(result: Result) -> str:
    """The metrics beside those of the baselines, under the protocol."""
    scorers = scorers_of(result)
    rows = [["", *(scorer for scorer, _ in scorers)]]
    rows += [[metric_title(name), *(cell(metrics.get(name)) for _, metrics in scorers)] for name in result.metrics]
    groups = [table(group) for group in [group_rows(result)] if group]
    warnings = [_paragraph(f"Warning: {text}") for text in result.warnings]
    title = f"{result.split}, {result.protocol} protocol"
    return _box(title, _paragraph(f"{protocol_in_words(result)}."), table(rows), *groups, *warnings)


@html_of.register
def comparison_html(comparison: Comparison) -> str:
    """Two sides, their difference, and its interval over users."""
    told = map(_paragraph, comparison.compared(comparison.name_a, comparison.name_b))
    warnings = [_paragraph(f"Warning: {text}") for text in comparison.warnings]
    return _box("Comparison", *told, table(comparison.rows()), *warnings)


@html_of.register
def recommendations_html(found: Recommendations) -> str:
    """Lists with titles, and which histories had unknown items, or none that is known."""
    names = list(getattr(found.frame, "column_names", None) or found.frame.columns)  # PyArrow's columns are no names
    columns = {name: _values(found.frame[name]) for name in names}
    if found.vocabulary is not None and found.vocabulary.titles is not None:
        shown_ids = columns["item_id"][:MOST_ROWS]
        columns["title"] = found.vocabulary.titles_of(found.vocabulary.known_indices(shown_ids))
        names.append("title")
    rows = list(zip(*(columns[name][:MOST_ROWS] for name in names), strict=True))
    n_left_out = len(columns["item_id"]) - len(rows)
    told = []
    if n_unknown := sum(map(len, found.unknown_items)):
        told.append(_paragraph(f"Unknown items of the histories, which were skipped: {n_unknown:,}."))
    if n_popular := sum(found.fallback):
        told.append(_paragraph(f"Histories without a known item, which got popular items: {n_popular:,}."))
    return _box("Recommendations", table([names, *rows], n_left_out), *told)


def _values(column: Iterable[Any]) -> list[Any]:
    """A column of any kind of frame as Python's own values."""
    return [value.as_py() if hasattr(value, "as_py") else value for value in column]


def model_html(
    config: RunConfig,
    vocabulary: Vocabulary,
    sequences: Sequences | None,
    results: Sequence[Result],
    course: Course | None,
) -> str:
    """What a model is, how its training went, and its figures on test.

    Args:
        config: how it came about.
        vocabulary: the items that it knows.
        sequences: the users' histories; None = it has none.
        results: evaluations so far.
        course: of its training; None for a loaded model.
    """
    users = "no histories" if sequences is None else f"histories of {len(sequences):,} users"
    parts = [_paragraph(f"{len(vocabulary):,} items, {users}. {model_in_words(config)}")]
    if course is not None:
        parts.append(_course(course, config.train.valid_metric))
    if config.refit_epochs:
        parts.append(_paragraph(refit_note(config)))
    parts += [_headline(result) for result in results if result.split == "test"]
    return _box(f"Recommender on {config.data_name}", *parts)


def _headline(result: Result) -> str:
    names = headline_metrics(result.metrics)
    rows = [["", *map(metric_title, names)]]
    rows += [[scorer, *(cell(metrics.get(name)) for name in names)] for scorer, metrics in scorers_of(result)]
    return _paragraph(f"{protocol_in_words(result)}.") + table(rows)


@html_of.register
def course_html(course: Course) -> str:
    """Curves of a training; the valid metric is the first of those that its epochs have."""
    measured = next((line.valid for line in course.history if line.valid), {})
    return _box("Training", _course(course, next(iter(headline_metrics(measured)), "")))


def _course(course: Course, metric: str) -> str:
    """How a training went, in a sentence, and its curves."""
    if not course.history:
        return _paragraph("No epoch was completed.")
    valid = [(line.epoch, line.valid[metric]) for line in course.history if line.valid and metric in line.valid]
    loss = [(line.epoch, line.train_loss) for line in course.history if isfinite(line.train_loss)]
    reached = dict(valid).get(course.best_epoch)
    curve = charts.LearningCurve(
        _series(loss), _series(valid), ([], []), None if reached is None else course.best_epoch, reached
    )
    why = STOPPED.get(course.stopped, course.stopped)
    told = f"Best epoch {course.best_epoch} of {len(course.history)}; training ended because {why}."
    drawn = _chart(charts.loss_chart(curve), "Training loss", told)
    drawn += _chart(charts.valid_chart(curve), f"Valid {metric_title(metric)}", told)
    side_by_side = "display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: 1rem"
    return f'{_paragraph(told)}<div style="max-width: 48rem; {side_by_side}">{drawn}</div>'


def _chart(figure: Figure, title: str, told: str) -> str:
    """A chart, as wide as there is room for, under its title."""
    drawn = charts.svg(figure, title, told).replace("<svg ", '<svg style="width: 100%; height: auto" ', 1)
    return f"<div><div>{escape(title)}</div>{drawn}</div>"


def _series(points: Sequence[tuple[int, float]]) -> charts.Series:
    return [epoch for epoch, _ in points], [value for _, value in points]
