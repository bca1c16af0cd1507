"""Draws charts: learning curve, users by events, items by popularity; as inline SVG in the page's colours, or as PNG.

No chart touches pyplot's state, and none knows what a run is: `pages` says what is drawn.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from sasrec.core.arrays import Int64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[list[int], list[float]]  # epochs and a figure of each

MAX_POINTS = 400  # of one line in a chart
LOG_RATIO = 20  # an axis is logarithmic when its largest value is more than this many times the smallest
INK, SOFT, LINE, BLUE, ORANGE = "#1d2733", "#5b6877", "#dde3ea", "#0b6bcb", "#b4540a"
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", BLUE: "accent", ORANGE: "warm"}  # of report.html.template


@dataclass(frozen=True)
class LearningCurve:
    """What is drawn of a training run."""

    loss: Series
    valid: Series
    test: Series  # empty unless test was logged; never used to choose
    kept: int | None  # the epoch that was kept, where it was one of those drawn
    kept_value: float | None  # its valid metric


def _axes(figure: Figure, *, columns: int = 1) -> list[Axes]:
    """Axes without a frame, on faint horizontal lines."""
    axes: list[Axes] = list(figure.subplots(1, columns, squeeze=False)[0])
    for ax in axes:
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.spines["bottom"].set_color(SOFT)
        ax.tick_params(which="both", colors=SOFT, labelsize=9, length=0)
        ax.grid(axis="y", color=LINE, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.patch.set_alpha(0)
    return axes


def _figure(width: float = 4.0, height: float = 2.4) -> Figure:
    """A new figure outside pyplot's state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def _label(ax: Axes, x: str, y: str = "") -> None:
    """Axis labels, and ticks as 0.25 or 1,000: SVG viewers drop the superscripts of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xlabel(x, fontsize=9, color=SOFT)
    ax.set_ylabel(y, fontsize=9, color=SOFT)
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        if axis.get_scale() == "log" and high < 100 * low:  # with powers of ten alone there would be one or two labels
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())


def loss_chart(curve: LearningCurve) -> Figure:
    """Training loss by epoch."""
    figure = _figure()
    _draw_loss(_axes(figure)[0], curve)
    return figure


def valid_chart(curve: LearningCurve) -> Figure:
    """The valid metric by epoch, and test where it was logged."""
    figure = _figure()
    _draw_valid(_axes(figure)[0], curve)
    return figure


def both_curves(curve: LearningCurve, valid_title: str) -> Figure:
    """Both charts of the learning curve in one figure, for curve.png."""
    figure = _figure(9, 3.2)
    left, right = _axes(figure, columns=2)
    _draw_loss(left, curve)
    _draw_valid(right, curve)
    left.set_title("training loss", fontsize=10, color=INK)
    right.set_title(valid_title, fontsize=10, color=INK)
    return figure


def _draw_loss(ax: Axes, curve: LearningCurve) -> None:
    _draw_line(ax, *curve.loss, color=ORANGE)
    _draw_epochs(ax, curve.kept)


def _draw_valid(ax: Axes, curve: LearningCurve) -> None:
    tested = bool(curve.test[0])
    if tested:
        _draw_line(ax, *curve.test, color=SOFT, linestyle=":", label="test, not used to choose")
    _draw_line(ax, *curve.valid, color=BLUE, label="valid")
    if curve.kept is not None and curve.kept_value is not None:
        ax.plot(curve.kept, curve.kept_value, "o", color=BLUE, markersize=6)
    if tested:
        ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    _draw_epochs(ax, curve.kept)


def _draw_line(ax: Axes, epochs: list[int], values: list[float], **style: Any) -> None:
    keep = np.unique(np.linspace(0, max(len(epochs) - 1, 0), min(MAX_POINTS, len(epochs))).astype(int))
    marker = "o" if len(epochs) == 1 else ""
    ax.plot(np.array(epochs)[keep], np.array(values)[keep], marker=marker, linewidth=1.8, **style)


def _draw_epochs(ax: Axes, kept: int | None) -> None:
    """The axis of epochs, with a line at the one that was kept."""
    from matplotlib.ticker import MaxNLocator

    if kept is not None:
        ax.axvline(kept, color=SOFT, linewidth=1, linestyle="--")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    _label(ax, "epoch")


def search_chart(trials: list[int], values: list[float], metric: str) -> Figure:
    """A dot a trial, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(6.0, 2.8)
    (ax,) = _axes(figure)
    ax.plot(trials, values, "o", color=BLUE, markersize=4)
    ax.step(trials, np.maximum.accumulate(values), where="post", color=ORANGE, linewidth=1.5)
    _label(ax, "trial", metric)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def length_chart(lengths: Int64, max_seq_len: int) -> Figure:
    """Users by number of events, with a dashed line at max_seq_len."""
    figure = _figure()
    ax = _axes(figure)[0]
    longest, wide = int(lengths.max()), lengths.max() > LOG_RATIO * max(lengths.min(), 1)
    edges = np.geomspace(max(lengths.min(), 1), longest + 1, 40) if wide else np.linspace(0, longest + 1, 40)
    counts, _, _ = ax.hist(lengths, bins=np.unique(edges.round()).tolist(), color=BLUE, alpha=0.85)
    if max_seq_len <= 1.1 * longest:
        ax.axvline(max_seq_len, color=INK, linewidth=1.4, linestyle="--")
    if wide:
        ax.set_xscale("log")
    drawn = np.asarray(counts)[np.asarray(counts) > 0]
    if drawn.max() > LOG_RATIO**2 * np.median(drawn):
        ax.set_yscale("log")
    _label(ax, "events per user", "users")
    return figure


def popularity_chart(counts: Int64) -> Figure:
    """Counts by rank, largest first; far ranks are thinned out evenly on the logarithmic axis."""
    figure = _figure()
    ax = _axes(figure)[0]
    ranks = np.unique(np.geomspace(1, len(counts), min(MAX_POINTS, len(counts))).astype(int))
    ax.plot(ranks, counts[ranks - 1], color=BLUE, linewidth=1.8, marker="o" if len(ranks) == 1 else "")
    if len(counts) > LOG_RATIO:
        ax.set_xscale("log")
    if counts[0] > LOG_RATIO * counts[-1]:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    _label(ax, "popularity rank of the item", "events")
    return figure


def svg(figure: Figure, title: str, told: str) -> str:
    """A figure as inline SVG in the page's own font and colours.

    Args:
        figure: what to draw.
        title: its title; the ids inside depend on it, so that two charts of a page share none.
        told: what it shows, in words, for screen readers.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):  # ids that differ between charts
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| id="[\w.]+_\d+"', "", text[text.index("<svg") :])
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(f"{title}. {told}")}" ', 1)


def png(figure: Figure) -> bytes:
    """A figure as PNG on white."""
    buffer = io.BytesIO()
    figure.patch.set_alpha(1)
    figure.patch.set_facecolor("white")
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
