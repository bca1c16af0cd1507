"""Evaluation: ranks the targets of a split by a protocol, and computes metrics. The result carries its protocol.

full     the rank of each target among all items, without those that the user had before it
sampled  its rank among negatives drawn outside the user's train items, as the paper and the published code do
Shape legend: B targets of a block, n targets of a part, V n_items + 1 (column 0 is padding), D embedding_dim,
C candidates (column 0 is the target), K the largest cut-off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sasrec.core.arrays import Bool, Float32, Float64, Int32, Int64
from sasrec.core.config import EvalConfig, Exclude, Ties
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.world import World
from sasrec.data.item_features import ItemFeatures
from sasrec.data.ragged import Ragged
from sasrec.data.splits import Split, hides_seen
from sasrec.data.targets import Targets
from sasrec.evaluation.candidates import check_candidates, draw_candidates, repeats_warning
from sasrec.evaluation.intervals import FEW_USERS, Metrics, estimate
from sasrec.evaluation.list_metrics import Background, build_background, list_metrics
from sasrec.evaluation.results import GroupResult, Result
from sasrec.ranking.index import BLOCK_BYTES, ranks_and_lists
from sasrec.ranking.order import ranks_sampled
from sasrec.ranking.scorers import Baselines, Ranker, Scorer, run_starts

MAX_ROWS = 4096  # targets ranked at once
MOST_SCORES = 2**30  # that are computed before several processes tell each other of it
EXCLUDED: dict[Exclude, str] = {"train": "the user's train items", "all": "all of the user's items"}


@dataclass(frozen=True)
class _Task:
    """What the model and the baselines share in one evaluation."""

    split: Split
    part: str
    config: EvalConfig
    targets: Targets
    candidates: Int32 | None  # (n, C); None = full protocol
    filter_seen: bool
    users: Int64  # (n,) whose target each is, as numbers from 0
    background: Background | None  # of the lists; None = no lists
    batch_size: int
    world: World | None  # whose processes take turns, a block each

    def turns(self, by_row: bool) -> Iterator[tuple[list[slice], int]]:
        """Targets that are ranked at once: by this process, a slice or none, and how many by all processes.

        Args:
            by_row: whether ranks do not depend on what is ranked beside them. If so, all processes have as much to do.
                Else the slices are the same however many processes there are, and so the ranks.
        """
        n, rank, size, most = len(self.targets), 0, 1, self.batch_size
        if self.world is not None:
            rank, size = self.world.rank, self.world.size
            if by_row:
                most = max(1, min(most, -(-n // size), MOST_SCORES // self.split.sequences.n_items))
        blocks = [slice(start, min(start + most, n)) for start in range(0, n, most)]
        for first in range(0, len(blocks), size):
            turn = blocks[first : first + size]
            yield turn[rank : rank + 1], turn[-1].stop - turn[0].start

    def histories(self, rows: slice) -> Ragged:
        """The whole histories before some targets."""
        return Targets(self.targets.users[rows], self.targets.positions[rows]).histories(self.split.sequences)

    def hidden(self, rows: slice, histories: Ragged) -> Ragged:
        """What these targets' users have seen."""
        if self.split.is_target is None:
            return histories
        return self.split.seen(self.split.sequences.offsets[self.targets.users[rows]], self.targets.positions[rows])


def evaluate(
    scorer: Scorer,
    split: Split,
    part: str,
    config: EvalConfig,
    *,
    candidates: Int32 | None = None,
    baselines: bool | Baselines | Sequence[Scorer] = True,
    features: ItemFeatures | None = None,
    lists: bool = True,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    world: World | None = None,
) -> Result:
    """Rank the targets of a part of the split and compute the metrics.

    Args:
        scorer: what to measure.
        split: the log, cut.
        part: "valid" or "test".
        config: protocol, cut-offs, ties, candidates, whether seen items are hidden.
        candidates: (n, C) item indices to rank among in the sampled protocol, column 0 the targets; None draws them.
        baselines: also measure the usual baselines, or these. Those of several evaluations are best made once, as
            `Baselines` of the same train part.
        features: of all items, for the baseline that knows cold items; None = there are none.
        lists: also measure what the top-k lists are like (see list_metrics.py); full protocol only.
        batch_size: at most so many targets are given to the scorer at once; None = 4,096.
        progress: called with (rankings done, rankings in all): one for each target, by the scorer and each baseline.
        world: processes that have the same scorer and rank some targets each; `progress` is called by all of them at
            the same times. The result is that of one process, and all have it.

    Raises:
        DataError: the part has no targets, the candidates do not fit it, or a score is not finite.
        ConfigError: candidates for the full protocol, or another part.
    """
    if candidates is not None and config.protocol == "sampled":
        candidates = _of_the_sample(split, part, config, candidates)
    split = split.bounded(part, config)
    task = _task(split, part, config, candidates, lists, batch_size, world)
    if baselines is True:
        baselines = Baselines(split, features, [task.targets])
    if isinstance(baselines, Baselines):
        # Sampled negatives avoid train, so there a seen candidate can only be the target: recency would be an oracle.
        repeats = config.protocol == "full" and not task.filter_seen
        baselines = baselines.scorers(repeats)
    baselines = baselines or ()
    steps = _Steps(progress, len(task.targets) * (1 + len(baselines)))
    metrics, per_user = _measure(scorer, task, steps)
    beside = {baseline.name: _measure(baseline, task, steps) for baseline in baselines}
    wanted, excluded = _describe(task, candidates)
    is_cold = split.train_counts[task.targets.items(split.sequences)] == 0
    n_cold = int(is_cold.sum())
    n_users = int(task.users[-1]) + 1
    return Result(
        split=part,
        protocol=config.protocol,
        candidates=wanted,
        excluded=excluded,
        ties=config.ties,
        seed=config.eval_seed if config.protocol == "sampled" and candidates is None else None,
        n_users=n_users,
        metrics=metrics,
        baselines={name: metrics for name, (metrics, _) in beside.items()},
        n_targets=len(task.targets),
        n_cold=n_cold,
        cold_share=n_cold / len(task.targets),
        filter_seen=task.filter_seen,
        split_method=split.method,
        k=config.k,
        data=split.sequences.facts.fingerprint,
        warnings=tuple(_warnings(task, candidates, n_users, n_cold)),
        groups=_groups(is_cold, task, per_user, {name: figures for name, (_, figures) in beside.items()}),
        target_events=split.target_types,
        cut=split.cut,
        temporal_targets="" if split.temporal_targets == "first" else split.temporal_targets,
        sampled_users=split.sampled_of[part == "test"],
        init_seen_targets=split.n_seen[part == "test"],
        per_user=per_user,
        users=task.targets.users,
    )


def _of_the_sample(split: Split, part: str, config: EvalConfig, candidates: Int32) -> Int32:
    """The given candidates of the users that are measured; they may be of all users."""
    targets, n_users = split.part(part), config.users_of(part)
    if n_users and targets.n_users > n_users and len(candidates) == len(targets):
        check_candidates(candidates, targets, split)
        return candidates[targets.sample(n_users, config.eval_seed)]
    return candidates


class _Steps:
    """Counts rankings over several scorers.

    Args:
        told: called with (rankings done, rankings in all); None = nobody.
        total: rankings in all.
    """

    def __init__(self, told: Callable[[int, int], None] | None, total: int) -> None:
        self._told, self._total, self._done = told, total, 0

    def add(self, n: int) -> None:
        """So many more are done."""
        self._done += n
        if self._told is not None:
            self._told(self._done, self._total)


def _task(
    split: Split,
    part: str,
    config: EvalConfig,
    candidates: Int32 | None,
    lists: bool,
    batch_size: int | None,
    world: World | None,
) -> _Task:
    targets, full = split.part(part), config.protocol == "full"
    check_targets(split, part)
    if full and candidates is not None:
        raise ConfigError("candidates belong to protocol=sampled; protocol=full ranks all items")
    if candidates is not None:
        check_candidates(candidates, targets, split)
    elif not full:
        candidates = draw_candidates(split, part, config.n_candidates, config.exclude, config.eval_seed)
    users = np.cumsum(run_starts(targets.users)) - 1
    background = build_background(split, targets, users) if full and lists else None
    filter_seen = full and hides_seen(split, config)
    rows = batch_size or MAX_ROWS
    return _Task(split, part, config, targets, candidates, filter_seen, users, background, rows, world)


def _measure(scorer: Scorer, task: _Task, steps: _Steps) -> tuple[Metrics, dict[str, Float64]]:
    """Metrics of one scorer, and the figures per target whose means they are."""
    ranks, lists = _rank(scorer, task, steps)
    per_user = {"rank": ranks, **rank_metrics(ranks, task.config.k)}
    metrics = {name: estimate(values, task.users, 1.0) for name, values in per_user.items() if name != "rank"}
    if task.background is not None:
        for k in task.config.k:
            metrics |= list_metrics(lists, task.background, k)
    return metrics, per_user


def _groups(
    is_cold: Bool, task: _Task, model: dict[str, Float64], baselines: dict[str, dict[str, Float64]]
) -> dict[str, GroupResult]:
    """The metrics of warm and of cold targets apart; nothing where all are warm."""
    if not is_cold.any():
        return {}

    def metrics(figures: dict[str, Float64], rows: Bool) -> Metrics:
        return {k: estimate(values[rows], task.users[rows], 1.0) for k, values in figures.items() if k != "rank"}

    return {
        name: GroupResult(
            n_targets=int(rows.sum()),
            metrics=metrics(model, rows),
            baselines={baseline: metrics(figures, rows) for baseline, figures in baselines.items()},
        )
        for name, rows in (("warm", ~is_cold), ("cold", is_cold))
        if rows.any()
    }


def _rank(scorer: Scorer, task: _Task, steps: _Steps) -> tuple[Float64, Int32]:
    """(n,) ranks, and (n, K) lists; a short list ends in 0; K = 0 where no lists are wanted."""
    items, config, n = task.targets.items(task.split.sequences), task.config, len(task.targets)
    ranker = scorer if isinstance(scorer, Ranker) else _ByScores(scorer, task.split.sequences.n_items + 1)
    ranks = np.zeros(n)
    width = min(max(config.k), task.split.sequences.n_items) if task.background is not None else 0
    lists = np.zeros((n, width), np.int32)
    by_row = task.world is not None and getattr(scorer, "by_row", False)
    for mine, n_ranked in task.turns(by_row):
        for rows in mine:
            histories = task.histories(rows)
            if task.candidates is not None:
                ranks[rows] = ranker.rank_among(histories, task.candidates[rows], config.ties)
            else:
                hidden = task.hidden(rows, histories) if task.filter_seen else None
                ranks[rows], lists[rows] = ranker.rank(histories, items[rows], hidden, config.ties, width)
        steps.add(n_ranked)
    if task.world is not None:  # each has zeros where others have ranked
        task.world.add(ranks)
        task.world.add(lists)
    return ranks, lists


class _ByScores:
    """Ranks for a scorer that only computes scores."""

    def __init__(self, scorer: Scorer, n_columns: int) -> None:
        self.scorer, self.n_columns = scorer, n_columns

    def rank(
        self, histories: Ragged, targets: Int32, hidden: Ragged | None, ties: Ties, k: int
    ) -> tuple[Float64, Int32]:
        ranks, lists = np.empty(len(targets)), np.zeros((len(targets), k), np.int32)
        step = max(1, BLOCK_BYTES // (4 * self.n_columns))
        for start in range(0, len(targets), step):
            rows = slice(start, min(start + step, len(targets)))
            part = histories.take(rows)
            gone = None if hidden is None else hidden.take(rows)
            scores = _checked(self.scorer, self.scorer.scores(part), (len(part), self.n_columns))
            ranks[rows], lists[rows] = ranks_and_lists(scores, targets[rows], gone, ties, k)
        return ranks, lists

    def rank_among(self, histories: Ragged, candidates: Int32, ties: Ties) -> Float64:
        scores = _checked(self.scorer, self.scorer.candidate_scores(histories, candidates), candidates.shape)
        return ranks_sampled(scores, candidates, ties)


def _checked(scorer: Scorer, scores: Float32, shape: tuple[int, ...]) -> Float32:
    if scores.shape != shape:
        raise DataError(f"scorer {scorer.name!r} returned scores of shape {scores.shape} in place of {shape}")
    return scores


def rank_metrics(ranks: Float64, cutoffs: Sequence[int]) -> dict[str, Float64]:
    """NDCG, HR and MRR of single targets at each cut-off k: 0 beyond rank k, else 1 / log2(1 + rank), 1, 1 / rank.

    Args:
        ranks: (n,) from 1, halves allowed.
        cutoffs: values of k.

    Returns:
        (n,) by name, such as "ndcg@10".

    Source: Kang & McAuley 2018, section IV.C; with one relevant item the ideal DCG is 1.
    """
    metrics: dict[str, Float64] = {}
    for k in cutoffs:
        hit = (ranks <= k).astype(np.float64)
        metrics |= {f"ndcg@{k}": hit / np.log2(1 + ranks), f"hr@{k}": hit, f"mrr@{k}": hit / ranks}
    return metrics


def _describe(task: _Task, given: Int32 | None) -> tuple[str, str]:
    """Which items are ranked and which are not, in words."""
    of_targets = " of target events" if task.split.target_types else ""
    if task.candidates is None:
        return f"all {task.split.sequences.n_items} items", (
            f"the user's items{of_targets} before the target, but not the target" if task.filter_seen else "nothing"
        )
    n = task.candidates.shape[1] - 1
    if given is None:
        return f"the target and {n} items drawn uniformly with replacement", EXCLUDED[task.config.exclude] + of_targets
    digest = hashlib.blake2b(np.ascontiguousarray(given, np.int32).tobytes(), digest_size=4).hexdigest()
    return f"the target and {n} given items (fingerprint {digest})", "what the given candidates leave out"


def _warnings(task: _Task, given: Int32 | None, n_users: int, n_cold: int) -> Iterator[str]:
    """What a reader of the figures should know."""
    sequences, facts, n = task.split.sequences, task.split.facts, len(task.targets)
    repeats = (
        "" if given is not None or task.candidates is None else repeats_warning(task.candidates, sequences.n_items)
    )
    if repeats:
        yield repeats
    if n_users < FEW_USERS:
        yield f"only {n_users} users are evaluated: intervals assume {FEW_USERS} or more"
    n_sampled_of = task.split.sampled_of[task.part == "test"]
    if n_sampled_of:
        yield f"{n_users} of {n_sampled_of} users with a target are measured (drawn, eval_seed={task.config.eval_seed})"
    if (n_sampled_of or n_users) < facts.n_users:
        yield f"{facts.n_users - (n_sampled_of or n_users)} of {facts.n_users} users have no {task.part} target"
    if n_cold:
        yield f"{n_cold} of {n} targets ({n_cold / n:.1%}) never occur in train"
    n_seen = task.split.n_seen[task.part == "test"]
    if n_seen:
        yield f"{n_seen} targets are left out: the model, or the one it began from, was trained on them"
    if facts.tied_share:
        yield f"{facts.tied_share:.1%} of events share their timestamp with the one before and keep their input order"
    if task.config.protocol == "full" and not task.filter_seen:
        yield f"seen items stay candidates ({facts.repeat_share:.1%} of events repeat one of the user's)"


def check_targets(split: Split, part: str) -> None:
    """Refuse a part without targets.

    Raises:
        DataError: there are none, or an earlier model was trained on all of them.
    """
    if len(split.part(part)):
        return
    n_seen = split.n_seen[part == "test"]
    if n_seen:
        raise DataError(
            f"all {n_seen:,} {part} targets are events that the model, or the one it began from, was trained on, so "
            "they measure nothing; use a log with newer events, or begin from a model without --refit"
        )
    raise DataError(f"the split ({split.method}) has no {part} targets, so there is nothing to evaluate")


def check_unseen(trained: Split, measured: Split, part: str) -> None:
    """Refuse a split that holds out what the model was trained on or chosen by: its figures would be too high.

    Raises:
        ConfigError: targets of `measured` were trained on, or chose the epoch.
    """
    n_seen = int(np.maximum(trained.train_ends - measured.train_ends, 0).sum())
    chosen_by = np.isin(measured.test.positions, trained.valid.positions).any() if part == "test" else False
    if n_seen or chosen_by:
        what = f"was trained on {n_seen:,} events that" if n_seen else "was chosen by valid targets that"
        raise ConfigError(
            f"this model ({trained.method} split) {what} the {measured.method} split asked for holds out; train one "
            "with the settings of that split (sasrec benchmark trains one for each)"
        )
