"""The protocols and the metric formulas. In: a scorer and a split; out: a Result that carries its protocol.

full     the rank of each target among all items but those the user had before it
sampled  its rank among negatives drawn outside the user's train items, as the paper and the published code do
Shape legend: B targets of a block, n targets of a part, V n_items + 1 (column 0 is padding), D embedding_dim,
C candidates (column 0 is the target), K the largest cut-off.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasrec.batches import CANDIDATES
from sasrec.config import EvalConfig, Exclude, Ties
from sasrec.draws import ItemDrawer, draw_outside, generator
from sasrec.errors import ConfigError, DataError
from sasrec.estimates import FEW_USERS, Metrics, estimate
from sasrec.index import BLOCK_BYTES, ranks_and_lists
from sasrec.lists import Background, build_background, list_metrics
from sasrec.ranking import Float64, ranks_sampled
from sasrec.scorers import Ranker, Scorer, build_baselines, run_starts
from sasrec.sequences import Float32, Int32, Int64, Ragged, Split, Targets, Vocabulary, hides_seen

MAX_ROWS = 4096  # targets ranked at once
DRAW_ROWS = 4096  # targets whose candidates are drawn at once; the draws depend on it
PART_KEYS = {"valid": 0, "test": 1}  # valid and test draw different negatives
EXCLUDED: dict[Exclude, str] = {"train": "the user's train items", "all": "all of the user's items"}


@dataclass(frozen=True)
class Result:
    """Metrics of one scorer and all that decides what they mean."""

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
    per_user: dict[str, Float64] = field(default_factory=dict, repr=False, compare=False)  # (n,) "rank", "ndcg@10", ...
    users: Int64 = field(default_factory=lambda: np.zeros(0, np.int64), repr=False, compare=False)  # (n,) rows

    def to_dict(self) -> dict[str, Any]:
        """All but the figures per user, ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        return values | {"k": list(self.k), "warnings": list(self.warnings)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """Read back what `to_dict` gave.

        Raises:
            DataError: a key is missing or unknown.
        """
        try:
            return cls(**{**values, "k": tuple(values["k"]), "warnings": tuple(values["warnings"])})
        except (KeyError, TypeError) as error:
            raise DataError(f"this is not a result of an evaluation: {error}") from error


@dataclass(frozen=True)
class _Task:
    """All that the model and the baselines share in one evaluation."""

    split: Split
    part: str
    config: EvalConfig
    targets: Targets
    candidates: Int32 | None  # (n, C); None = full protocol
    filter_seen: bool
    users: Int64  # (n,) numbers from 0 that say whose each target is
    background: Background | None  # of the lists; None = no lists
    batch_size: int

    def blocks(self) -> Iterator[tuple[slice, Ragged]]:
        """Slices of targets and the whole histories before them."""
        for start in range(0, len(self.targets), self.batch_size):
            rows = slice(start, min(start + self.batch_size, len(self.targets)))
            yield rows, Targets(self.targets.users[rows], self.targets.positions[rows]).histories(self.split.sequences)


def evaluate(
    scorer: Scorer,
    split: Split,
    part: str,
    config: EvalConfig,
    *,
    candidates: Int32 | None = None,
    baselines: bool | Sequence[Scorer] = True,
    lists: bool = True,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Rank the targets of a part of the split and take the metrics.

    Args:
        scorer: what to measure.
        split: the log, cut.
        part: "valid" or "test".
        config: protocol, cut-offs, ties, candidates, whether seen items are hidden.
        candidates: (n, C) item indices to rank among in the sampled protocol, column 0 the targets; None draws them.
        baselines: also measure the usual baselines, or these.
        lists: also measure what the top-k lists are like (see lists.py); full protocol only.
        batch_size: targets handed to the scorer at once, at most; None = 4,096.
        progress: called with (targets done, targets in all) for the scorer itself.

    Raises:
        DataError: the part has no targets, the candidates do not fit it, or a score is not finite.
        ConfigError: candidates for the full protocol, or another part.
    """
    task = _task(split, part, config, candidates, lists, batch_size)
    metrics, per_user = _measure(scorer, task, progress)
    if isinstance(baselines, bool):
        # Sampled negatives avoid train, so there a seen candidate can only be the target: recency would be an oracle.
        repeats = config.protocol == "full" and not task.filter_seen
        baselines = build_baselines(split, with_recency=repeats) if baselines else []
    beside = {baseline.name: _measure(baseline, task, None)[0] for baseline in baselines}
    wanted, excluded = _describe(task, candidates)
    n_cold = int((split.train_counts[task.targets.items(split.sequences)] == 0).sum())
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
        baselines=beside,
        n_targets=len(task.targets),
        n_cold=n_cold,
        cold_share=n_cold / len(task.targets),
        filter_seen=task.filter_seen,
        split_method=split.method,
        k=config.k,
        data=split.sequences.facts.fingerprint,
        warnings=tuple(_warnings(task, n_users, n_cold)),
        per_user=per_user,
        users=task.targets.users,
    )


def _task(
    split: Split, part: str, config: EvalConfig, candidates: Int32 | None, lists: bool, batch_size: int | None
) -> _Task:
    targets, full = split.part(part), config.protocol == "full"
    if not len(targets):
        raise DataError(f"the split ({split.method}) has no {part} targets, so there is nothing to evaluate")
    if full and candidates is not None:
        raise ConfigError("candidates belong to protocol=sampled; protocol=full ranks all items")
    if candidates is not None:
        _check_candidates(candidates, targets, split)
    elif not full:
        candidates = draw_candidates(split, part, config.n_candidates, config.exclude, config.eval_seed)
    users = np.cumsum(run_starts(targets.users)) - 1
    background = build_background(split, targets, users) if full and lists else None
    filter_seen = full and hides_seen(split, config)
    return _Task(split, part, config, targets, candidates, filter_seen, users, background, batch_size or MAX_ROWS)


def _measure(
    scorer: Scorer, task: _Task, progress: Callable[[int, int], None] | None
) -> tuple[Metrics, dict[str, Float64]]:
    """Metrics of one scorer, and the figures per target they are means of."""
    ranks, lists = _rank(scorer, task, progress)
    per_user = {"rank": ranks, **rank_metrics(ranks, task.config.k)}
    metrics = {name: estimate(values, task.users, 1.0) for name, values in per_user.items() if name != "rank"}
    if task.background is not None:
        for k in task.config.k:
            metrics |= list_metrics(lists, task.background, k)
    return metrics, per_user


def _rank(scorer: Scorer, task: _Task, progress: Callable[[int, int], None] | None) -> tuple[Float64, Int32]:
    """(n,) ranks, and (n, K) lists that end in 0 when short; K = 0 where none are wanted."""
    items, config, n = task.targets.items(task.split.sequences), task.config, len(task.targets)
    ranker = scorer if isinstance(scorer, Ranker) else _ByScores(scorer, task.split.sequences.n_items + 1)
    ranks = np.empty(n)
    width = min(max(config.k), task.split.sequences.n_items) if task.background is not None else 0
    lists = np.zeros((n, width), np.int32)
    for rows, histories in task.blocks():
        if task.candidates is not None:
            ranks[rows] = ranker.rank_among(histories, task.candidates[rows], config.ties)
        else:
            hidden = histories if task.filter_seen else None
            ranks[rows], lists[rows] = ranker.rank(histories, items[rows], hidden, config.ties, width)
        if progress is not None:
            progress(rows.stop, n)
    return ranks, lists


class _ByScores:
    """Ranks by the scores of a scorer that does not rank on its own."""

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
    if task.candidates is None:
        return f"all {task.split.sequences.n_items} items", (
            "the user's items before the target, but not the target" if task.filter_seen else "nothing"
        )
    n = task.candidates.shape[1] - 1
    if given is None:
        return f"the target and {n} items drawn uniformly with replacement", EXCLUDED[task.config.exclude]
    digest = hashlib.blake2b(np.ascontiguousarray(given, np.int32).tobytes(), digest_size=4).hexdigest()
    return f"the target and {n} given items (fingerprint {digest})", "what the given candidates leave out"


def _warnings(task: _Task, n_users: int, n_cold: int) -> Iterator[str]:
    """What a reader of the figures should know."""
    facts, n = task.split.sequences.facts, len(task.targets)
    if n_users < FEW_USERS:
        yield f"only {n_users} users are evaluated: intervals assume {FEW_USERS} or more"
    if n_users < facts.n_users:
        yield f"{facts.n_users - n_users} of {facts.n_users} users have no {task.part} target"
    if n_cold:
        yield f"{n_cold} of {n} targets ({n_cold / n:.1%}) never occur in train"
    if facts.tied_share:
        yield f"{facts.tied_share:.1%} of events share their timestamp with the one before and keep their input order"
    if task.config.protocol == "full" and not task.filter_seen:
        yield f"seen items stay candidates ({facts.repeat_share:.1%} of events repeat one of the user's)"


def draw_candidates(split: Split, part: str, n: int, exclude: Exclude, seed: int) -> Int32:
    """The targets of a part, each with n items drawn uniformly with replacement, for the sampled protocol.

    Args:
        split: the log, cut.
        part: "valid" or "test".
        n: draws per target.
        exclude: "train" draws outside the user's train items, as published, so that the target itself may be drawn;
            "all" outside all of the user's items. A user who has every item gets any.
        seed: decides the draws, together with the part and the ascending order of users.

    Returns:
        (n_targets, 1 + n) item indices, column 0 the target.

    Source: evaluate and evaluate_valid in utils.py of pmixer/SASRec.pytorch fde8a9c.
    """
    targets, sequences = split.part(part), split.sequences
    ends = split.train_ends if exclude == "train" else sequences.offsets[1:]
    drawn = np.empty((len(targets), 1 + n), np.int32)
    drawn[:, 0] = targets.items(sequences)
    rng = generator(seed, CANDIDATES, PART_KEYS[part])
    for start in range(0, len(targets), DRAW_ROWS):
        users = targets.users[start : start + DRAW_ROWS]
        excluded = Ragged.cut(sequences.items, sequences.offsets[users], ends[users])
        rows = np.repeat(np.arange(len(users)), n)
        outside = draw_outside(rng, rows, excluded, ItemDrawer(sequences.n_items))
        drawn[start : start + DRAW_ROWS, 1:] = outside.reshape(len(users), n)
    return drawn


def read_candidates(path: Path, part: str, split: Split, vocabulary: Vocabulary) -> Int32:
    """Read a candidate file: an .npz with arrays `valid` and / or `test` of item ids, column 0 the target.

    Args:
        path: the file.
        part: "valid" or "test".
        split: says which targets there are, one row each in ascending order of user id.
        vocabulary: turns ids into indices.

    Returns:
        (n_targets, C) item indices.

    Raises:
        DataError: the file cannot be read, lacks the part, has another shape, names an unknown item, or its first
            column is not the targets.
    """
    ids, targets = _load_array(path, part), split.part(part)
    where = f"array '{part}' of {path}"
    if ids.ndim != 2 or len(ids) != len(targets) or ids.shape[1] < 2:
        raise DataError(
            f"{where} has shape {ids.shape}; it needs ({len(targets)}, 1 + n): a row per evaluated user in ascending "
            "order of user id, its target first (min_items decides which users are evaluated)"
        )
    distinct, place = np.unique(ids, return_inverse=True)
    candidates = vocabulary.indices_of(distinct.tolist())[place].reshape(ids.shape)
    user_ids = split.sequences.user_ids.gather(targets.users)
    unknown = np.argwhere(candidates == 0)
    if len(unknown):
        row, column = unknown[0]
        raise DataError(f"{where} has the unknown item {ids[row, column]} in row {row} (user {user_ids[int(row)]})")
    wrong = np.flatnonzero(candidates[:, 0] != targets.items(split.sequences))
    if len(wrong):
        row = int(wrong[0])
        target = vocabulary.ids_of(targets.items(split.sequences)[row : row + 1])[0]
        raise DataError(
            f"{where} begins row {row} (user {user_ids[row]}) with item {ids[row, 0]}, but the target is {target}; "
            "the file belongs to another log, split or order of users"
        )
    return candidates


def _load_array(path: Path, name: str) -> NDArray[Any]:
    """One array of an .npz; never anything pickled."""
    try:
        # Opened here, for np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if name in archive:
                return np.asarray(archive[name])
            found = ", ".join(archive) or "none"
    except OSError as error:
        raise DataError(f"cannot read the candidate file {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not an .npz file of plain arrays, or is damaged: {error}") from error
    raise DataError(f"candidate file {path} has no array '{name}'; its arrays: {found}")


def _check_candidates(candidates: Int32, targets: Targets, split: Split) -> None:
    """Candidates must be one row a target, the target first, all of them items."""
    items, n_items = targets.items(split.sequences), split.sequences.n_items
    if candidates.ndim != 2 or len(candidates) != len(targets) or candidates.shape[1] < 2:
        raise DataError(f"candidates have shape {candidates.shape}; they need ({len(targets)}, 1 + n)")
    if candidates.min() < 1 or candidates.max() > n_items:
        raise DataError(f"candidates must be item indices from 1 to {n_items}")
    if (candidates[:, 0] != items).any():
        row = int(np.flatnonzero(candidates[:, 0] != items)[0])
        raise DataError(f"row {row} of the candidates begins with {candidates[row, 0]}, the target is {items[row]}")
