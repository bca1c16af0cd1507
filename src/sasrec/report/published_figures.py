"""What papers and repositories report for known logs (published_figures.json), to stand beside our own results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import msgspec

from sasrec.core.config import Protocol, SplitMethod
from sasrec.data.sequences import LogFacts
from sasrec.evaluation.results import Result


@dataclass(frozen=True)
class PublishedFigure:
    """What one source reports for a log, on test."""

    source: str
    protocol: Protocol
    metrics: dict[str, float]  # ndcg@10 and, where it is reported, hr@10
    split_method: SplitMethod = "leave_one_out"
    cut: float | None = None  # temporal_by_user: from which time on its events are test, and their last are targets
    differs: str = ""  # how the source's version of the log differs; such a figure stands beside none of ours


@dataclass(frozen=True)
class KnownLog:
    """A log that figures are published for."""

    about: str
    n_users: int
    n_items: int
    n_events: int
    has_timestamps: bool
    figures: list[PublishedFigure]


@cache
def known_logs() -> dict[str, KnownLog]:
    """The logs that figures are published for, by name.

    Repositories are pmixer/SASRec.pytorch (two runs in its README, three norms in Result_Norm.md),
    asash/gSASRec-pytorch, antklen/sasrec-bert4rec-recsys23, blondered/transformer_benchmark, yueqirex/LRURec and
    monkey0head/time-to-split.
    """
    text = files("sasrec.report").joinpath("published_figures.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, KnownLog])


def published_figures(data: LogFacts) -> list[PublishedFigure]:
    """What has been published for this log; none when its users, items and events are not those of a known one."""
    size = (data.n_users, data.n_items, data.n_events)
    logs = [log for log in known_logs().values() if (log.n_users, log.n_items, log.n_events) == size]
    return [figure for log in logs for figure in log.figures if not figure.differs]


def comparable(data: LogFacts, result: Result) -> list[PublishedFigure]:
    """Published figures of the same protocol: test, the same split, 100 sampled items or all but those seen."""
    same = {  # a result tells its number of candidates in words only
        "sampled": result.candidates.startswith("the target and 100 "),
        "full": result.filter_seen,
    }
    usual = result.split == "test" and not result.target_events
    if not usual or not same[result.protocol] or result.temporal_targets != _targets_of(result.split_method):
        return []
    mine = (result.split_method, result.cut, result.protocol)
    return [figure for figure in published_figures(data) if (figure.split_method, figure.cut, figure.protocol) == mine]


def _targets_of(split_method: str) -> str:
    """Which targets published figures of a split have, as results tell it."""
    return "last" if split_method == "temporal_by_user" else ""
