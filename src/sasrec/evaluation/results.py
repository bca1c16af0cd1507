"""The result of an evaluation: the metrics of one scorer, and everything that decides what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

import numpy as np

from sasrec.core.arrays import Float64, Int64
from sasrec.core.displays import html_of
from sasrec.evaluation.intervals import Metrics

TOLD_WHERE_SO = {
    "sampled_users", "init_seen_targets", "init_unchecked", "unknown_targets", "groups", "target_events", "cut",
    "temporal_targets",
}  # fmt: skip


class GroupResult(TypedDict):
    """The figures of some of the targets."""

    n_targets: int
    metrics: Metrics
    baselines: dict[str, Metrics]


@dataclass(frozen=True)
class Result:
    """The metrics of one scorer, and everything that decides what they mean."""

    split: str  # "valid" or "test"
    protocol: str  # "full" or "sampled"
    candidates: str  # which items are ranked, in words
    excluded: str  # which are not, in words
    ties: str
    seed: int | None  # of the drawn negatives; None when nothing was drawn
    n_users: int
    metrics: Metrics
    baselines: dict[str, Metrics]
    n_targets: int
    n_cold: int  # targets that never occur in train; they count like any other
    cold_share: float
    filter_seen: bool  # whether items of the history are hidden from the ranking
    split_method: str
    k: tuple[int, ...]
    data: str  # fingerprint of the log
    warnings: tuple[str, ...] = ()
    # "warm" (the target occurs in train) and "cold" (it never does), as soon as there are cold targets
    groups: dict[str, GroupResult] = field(default_factory=dict)
    target_events: tuple[str, ...] = ()  # the types of events that are targets, and whose items count as seen; () = all
    cut: int | float | None = None  # temporal_by_user: the time, in the log's unit, from which events are test
    temporal_targets: str = ""  # of temporal splits "last" or "all"; "" = the first event after a cut, or no such split
    sampled_users: int = 0  # the measured users are a sample of so many; 0 = they are all that have targets
    init_seen_targets: int = 0  # targets left out: the model, or the one that it began from, was trained on them
    init_unchecked: bool = False  # that one has no histories, so such targets may be among those that are measured
    unknown_targets: int = 0  # targets of items that the model does not know: misses
    per_user: dict[str, Float64] = field(default_factory=dict, repr=False, compare=False)  # (n,) "rank", "ndcg@10", ...
    users: Int64 = field(default_factory=lambda: np.zeros(0, np.int64), repr=False, compare=False)  # (n,) rows

    def to_dict(self) -> dict[str, Any]:
        """Everything except the figures per user, ready for JSON; what is only told of some models, where it is so."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        values = {name: value for name, value in values.items() if value or name not in TOLD_WHERE_SO}
        told: dict[str, Any] = {} if self.cut is None else {"cut": self.cut}  # 0 is a time, too
        told |= {"target_events": list(self.target_events)} if self.target_events else {}
        return values | {"k": list(self.k), "warnings": list(self.warnings)} | told

    def without_users(self) -> Result:
        """The same without the figures per user, as a run folder keeps it."""
        return replace(self, per_user={}, users=np.zeros(0, np.int64))

    def _repr_html_(self) -> str:
        return html_of(self)
