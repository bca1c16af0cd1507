"""Whether one model is better than another: two results on the same targets, paired per user.

A side is one run, or several that differ only in their seed; then its figure per target is the mean over the runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, Literal, TypedDict

import numpy as np

from sasrec.core.arrays import Float64, Int64
from sasrec.core.displays import html_of
from sasrec.core.errors import ConfigError
from sasrec.core.tables import plain_table
from sasrec.evaluation.intervals import FEW_USERS, Z95, estimate
from sasrec.evaluation.results import Result
from sasrec.ranking.scorers import run_starts

Pairs = Literal["first", "all"]

PROTOCOL_FIELDS = (
    "data", "split", "split_method", "protocol", "candidates", "excluded", "ties", "seed", "filter_seen",
    "n_users", "sampled_users", "n_targets", "k", "target_events", "cut", "temporal_targets",
)  # fmt: skip


class Difference(TypedDict):
    """How much better side b is than side a in one metric, target by target."""

    a: float
    b: float
    difference: float  # b - a
    relative: float | None  # of a; None where a is 0
    stderr: float | None  # over users
    low: float | None
    high: float | None
    effect_size: float | None  # Cohen's d of paired values: the difference in standard deviations of users' differences
    p_value: float | None  # two-sided, of no difference
    p_holm: float | None  # the same, corrected for the number of comparisons; None when there is one only
    seeds_stderr: float | None  # of the difference over seeds; None unless both sides have two runs or more


@dataclass(frozen=True)
class Comparison:
    """Two sides on the same targets, paired per user."""

    split: str
    protocol: str
    n_users: int
    metrics: dict[str, Difference]
    warnings: tuple[str, ...] = ()
    name_a: str = "a"
    name_b: str = "b"
    n_runs_a: int = 1
    n_runs_b: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"warnings": list(self.warnings)}

    def to_text(self, name_a: str | None = None, name_b: str | None = None) -> str:
        """A table for people."""
        lines = self.compared(name_a or self.name_a, name_b or self.name_b)
        return "\n".join([*lines, plain_table(self.rows()), *(f"warning: {w}" for w in self.warnings)])

    def compared(self, name_a: str, name_b: str) -> list[str]:
        """What is compared and how, in words."""
        sides = ((name_a, self.n_runs_a), (name_b, self.n_runs_b))
        named = [name if n == 1 else f"{name} (mean of {n} runs)" for name, n in sides]
        return [
            f"a = {named[0]}",
            f"b = {named[1]}",
            f"{self.split}, protocol {self.protocol}, {self.n_users} users, paired; b - a with its 95 % interval over "
            "users; d = difference in standard deviations",
        ]

    def rows(self) -> list[list[str]]:
        """A header, then a row a metric."""
        rows = [["", "a", "b", "b - a", "relative", "interval", "d", "p"], *map(_cells, self.metrics.items())]
        if any(d["p_holm"] is not None for d in self.metrics.values()):
            _add_column(rows, "p (Holm)", [_p(d["p_holm"]) for d in self.metrics.values()])
        if any(d["seeds_stderr"] is not None for d in self.metrics.values()):
            _add_column(rows, "± of seeds", [_text(d["seeds_stderr"], ".4f") for d in self.metrics.values()])
        return rows

    def _repr_html_(self) -> str:
        return html_of(self)


def _cells(item: tuple[str, Difference]) -> list[str]:
    name, d = item
    interval = "-" if d["low"] is None else f"{d['low']:+.4f} .. {d['high']:+.4f}"
    relative = "-" if d["relative"] is None else f"{100 * d['relative']:+.1f} %"
    figures = [f"{d['a']:.4f}", f"{d['b']:.4f}", f"{d['difference']:+.4f}", relative, interval]
    return [name, *figures, _text(d["effect_size"], "+.3f"), _p(d["p_value"])]


def _add_column(rows: list[list[str]], title: str, cells: Sequence[str]) -> None:
    for row, cell in zip(rows, [title, *cells], strict=True):
        row.append(cell)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _p(value: float | None) -> str:
    return _text(value, ".2g")


def compare(a: Result | Sequence[Result], b: Result | Sequence[Result]) -> Comparison:
    """Whether b is better than a: mean differences per user with standard errors and p-values.

    A side with several results (the same settings, other seeds) counts by its mean per target. The p-value is that of
    the paired t statistic by the normal distribution, which is close from 30 users on. It is about users: would other
    users like these show the same difference between these models? `seeds_stderr` is about seeds: how much would the
    difference change with other training seeds?

    Raises:
        ConfigError: the results were not measured in the same way, or have no figures per user.
    """
    sides = [[side] if isinstance(side, Result) else list(side) for side in (a, b)]
    if not all(sides):
        raise ConfigError("each side of a comparison needs a result")
    results = [result for side in sides for result in side]
    first = results[0]
    for other in results:
        _check_alike(first, other)
    users = np.cumsum(run_starts(first.users)) - 1
    names = [name for name in first.per_user if name != "rank"]
    metrics = {name: _difference(_stack(sides[0], name), _stack(sides[1], name), users) for name in names}
    few = [f"only {first.n_users} users: p-values assume {FEW_USERS} or more"] if first.n_users < FEW_USERS else []
    n_a, n_b = map(len, sides)
    return Comparison(first.split, first.protocol, first.n_users, metrics, tuple(few), n_runs_a=n_a, n_runs_b=n_b)


def compare_all(sides: Mapping[str, Sequence[Result]], pairs: Pairs = "first") -> list[Comparison]:
    """Compare several sides, with p-values corrected for the number of comparisons.

    Args:
        sides: by name, results of one model over its seeds.
        pairs: "first" compares each with the first; "all" compares each with each.

    Raises:
        ConfigError: fewer than two sides, or results that were not measured in the same way.
    """
    if len(sides) < 2:
        raise ConfigError("a comparison needs two sides or more")
    chosen = [(a, b) for a, b in combinations(sides, 2) if pairs == "all" or a == next(iter(sides))]
    found = [replace(compare(sides[a], sides[b]), name_a=a, name_b=b) for a, b in chosen]
    return found if len(found) == 1 else _with_holm(found)


def _with_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct within each metric: metrics of the same lists say nearly the same, so each is a family of its own."""
    metrics = [dict(comparison.metrics) for comparison in comparisons]
    for name in metrics[0]:
        known = [m for m in metrics if m[name]["p_value"] is not None]
        corrected = holm([m[name]["p_value"] or 0.0 for m in known])
        for m, p_holm in zip(known, corrected, strict=True):
            m[name] = {**m[name], "p_holm": p_holm}
    return [replace(comparison, metrics=m) for comparison, m in zip(comparisons, metrics, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected so that the chance of any false discovery among them stays below the chosen level.

    The i-th smallest of m (from 0) is multiplied by m - i; it is then at least the one before it, and at most 1.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    return [float(p) for p in corrected]


def _check_alike(first: Result, other: Result) -> None:
    for name in PROTOCOL_FIELDS:
        if getattr(first, name) != getattr(other, name):
            raise ConfigError(
                f"the results differ in {name} ({getattr(first, name)!r} and {getattr(other, name)!r}), so they cannot "
                "be paired; evaluate both in the same way"
            )
    if not other.per_user:
        raise ConfigError("a result that was read back has no figures per user; evaluate again to compare")
    if not np.array_equal(first.users, other.users):
        raise ConfigError(
            "the results are of different users, so they cannot be paired; each eval_seed draws other users, so "
            "evaluate both with the same one"
        )


def _stack(side: Sequence[Result], name: str) -> Float64:
    """(n_runs, n) a metric per target, one row a run."""
    return np.stack([result.per_user[name] for result in side])


def _difference(a: Float64, b: Float64, users: Int64) -> Difference:
    mean_a, mean_b = float(a.mean()), float(b.mean())
    gains = b.mean(axis=0) - a.mean(axis=0)  # (n,)
    difference, stderr = float(gains.mean()), estimate(gains, users)["stderr"]
    low = high = p_value = effect = None
    if stderr is not None:
        low, high = difference - Z95 * stderr, difference + Z95 * stderr
        z = abs(difference) / stderr if stderr else (math.inf if difference else 0.0)
        p_value = math.erfc(z / math.sqrt(2))
        effect = difference / (stderr * math.sqrt(int(users[-1]) + 1)) if stderr else None
    return Difference(
        a=mean_a,
        b=mean_b,
        difference=difference,
        relative=difference / mean_a if mean_a else None,
        stderr=stderr,
        low=low,
        high=high,
        effect_size=effect,
        p_value=p_value,
        p_holm=None,
        seeds_stderr=_seeds_stderr(a, b),
    )


def _seeds_stderr(a: Float64, b: Float64) -> float | None:
    """Standard error of the difference of two means over seeds; None where a side has a single run."""
    if min(len(a), len(b)) < 2:
        return None
    return math.sqrt(sum(float(side.mean(axis=1).var(ddof=1)) / len(side) for side in (a, b)))
