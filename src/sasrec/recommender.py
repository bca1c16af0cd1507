"""Your ids in, your ids and scores out. `fit` makes a Recommender from a log; `load` from a run folder.

Frames out have user_id, item_id, score, rank (from 1). Between the borders there are only item indices.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec import __version__
from sasrec.checkpoint import RunConfig, RunFolder, check_resumable, resumed_config
from sasrec.config import DEFAULT_PRESET, EvalConfig, LogStatistics, TrainConfig, from_dict, resolve, to_dict
from sasrec.datasets import DATASETS, load_dataset
from sasrec.engine import Engine, create_engine, environment
from sasrec.errors import CheckpointError, ConfigError, DataError, UnknownItemError
from sasrec.evaluation import Result, evaluate, read_candidates
from sasrec.index import create_index
from sasrec.interactions import read_interactions
from sasrec.provenance import commit, isa_of, machine, versions
from sasrec.published import read_published
from sasrec.ranking import top_k
from sasrec.reports import RunFacts, write_report
from sasrec.scorers import ModelScorer
from sasrec.sequences import (
    Float32,
    Int32,
    Ragged,
    Sequences,
    Split,
    Targets,
    Vocabulary,
    build_sequences,
    hides_repeats,
    split_sequences,
)
from sasrec.trainer import Progress, TrainResult, train

logger = logging.getLogger(__name__)

N_EXAMPLES = 4  # users shown in a report
EXAMPLE_HISTORY = 8  # items of their history shown
Histories = Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Recommendations:
    """A frame of recommendations, and what there is to know about it."""

    frame: Any  # user_id, item_id, score, rank: Polars, or pandas when pandas came in
    unknown_items: list[list[Any]]  # per history: ids that the model does not know; they are skipped
    fallback: list[bool]  # per history: True = no known item, so popular items were given


class Explained(NamedTuple):
    """What an item's score after a history comes from, the largest contribution first."""

    score: float
    indices: Int32  # (n,) the items of the history that the model reads
    positions: Int32  # (n,) where they stand in it, 0 = the oldest
    contributions: Float32  # (n,) score minus the score without that item


class Recommender:
    """A trained model with its items and, unless saved without, its users' histories.

    Args:
        engine: holds the weights.
        vocabulary: item ids and titles.
        config: how it came about.
        sequences: the users' histories, or None.
        results: evaluations so far.
        train_result: how training went; None for a loaded model.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        config: RunConfig,
        sequences: Sequences | None,
        results: Sequence[dict[str, Any]] = (),
        train_result: TrainResult | None = None,
    ) -> None:
        self.engine, self.vocabulary, self.config, self.sequences = engine, vocabulary, config, sequences
        self.results, self.train_result = list(results), train_result
        self._table = engine.item_table()
        self.index = create_index(self._table, engine.threads)

    def __repr__(self) -> str:
        model = self.config.model
        data = f"{self.config.data_name}, {len(self.vocabulary)} items"
        return f"Recommender({data}; block {model.block}, D={model.embedding_dim})"

    @cached_property
    def model_version(self) -> str:
        """Twelve characters that are equal for equal weights and item ids, wherever they are stored."""
        digest = hashlib.sha256()
        for name, array in sorted(self.engine.weights().items()):
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        digest.update("\n".join(map(str, self.vocabulary.ids)).encode())
        return digest.hexdigest()[:12]

    def recommend(
        self,
        histories: Any,
        k: int = 10,
        *,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        keep_seen: bool | None = None,
    ) -> Any:
        """The top k items after each history, also of users never seen.

        Args:
            histories: lists of item ids, oldest first; or a frame user_id, item_id[, timestamp].
            k: how many; fewer come back when fewer can be recommended.
            allow: only these items; None = all.
            deny: never these items.
            keep_seen: recommend items of the history too; None = as in evaluation.

        Returns:
            A frame user_id, item_id, score, rank; for lists, user_id is the position in the list. Unknown items of a
            history are skipped; a history without any known item gets popular items (see `recommend_detailed`).

        Raises:
            ConfigError: k below 1.
            DataError: histories are not lists of ids.
            UnknownItemError: an item of `allow` is not known.
        """
        return self.recommend_detailed(histories, k, allow=allow, deny=deny, keep_seen=keep_seen).frame

    def recommend_detailed(
        self,
        histories: Any,
        k: int = 10,
        *,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        keep_seen: bool | None = None,
    ) -> Recommendations:
        """As `recommend`, with the unknown items and fallbacks of each history."""
        rows, user_ids, as_pandas = _read_histories(histories)
        indices = [self.vocabulary.indices_of(row) for row in rows]
        unknown = [
            [] if index.all() else [i for i, j in zip(row, index.tolist(), strict=True) if not j]
            for row, index in zip(rows, indices, strict=True)
        ]
        known = Ragged.from_lists([index[index > 0] for index in indices])
        frame, fallback = self._recommend(known, user_ids, k, allow, deny, keep_seen)
        if any(unknown):
            logger.warning("%d items of the histories are unknown and were skipped", sum(map(len, unknown)))
        return Recommendations(_as_pandas(frame) if as_pandas else frame, unknown, fallback.tolist())

    def recommend_users(
        self,
        user_ids: Iterable[Any] | None = None,
        k: int = 10,
        *,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        keep_seen: bool | None = None,
    ) -> Any:
        """The top k next items of users of the log, after all of their events; None = all users.

        Raises:
            UnknownItemError: a user is not in the log.
            CheckpointError: the model was saved without histories.
        """
        sequences = self._known_sequences()
        as_pandas = _is_pandas(user_ids)
        rows = (
            np.arange(len(sequences))
            if user_ids is None
            else np.array([sequences.row_of_user(u) for u in user_ids], np.int64)
        )
        histories = Ragged.cut(sequences.items, sequences.offsets[:-1][rows], sequences.offsets[1:][rows])
        frame, _ = self._recommend(histories, sequences.user_ids.gather(rows), k, allow, deny, keep_seen)
        return _as_pandas(frame) if as_pandas else frame

    def recommend_rows(
        self,
        rows: slice,
        k: int = 10,
        *,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        keep_seen: bool | None = None,
    ) -> pl.DataFrame:
        """As `recommend_users` for the users at these rows of the log, in ascending order of user id.

        Raises:
            CheckpointError: the model was saved without histories.
        """
        sequences = self._known_sequences()
        first, last, _ = rows.indices(len(sequences))
        offsets = sequences.offsets[first : last + 1]
        histories = Ragged(np.asarray(sequences.items[offsets[0] : offsets[-1]]), offsets - offsets[0])
        return self._recommend(histories, sequences.user_ids[first:last], k, allow, deny, keep_seen)[0]

    def top_indices(self, histories: Ragged, k: int = 10, *, keep_seen: bool | None = None) -> tuple[Int32, Float32]:
        """As `recommend`, in item indices.

        Args:
            histories: B rows of item indices from 1; an empty row gets popular items.
            k: how many.
            keep_seen: as in `recommend`.

        Returns:
            Indices and scores, (B, K); index 0 fills up where K items cannot be recommended.
        """
        hide = self.hides_seen if keep_seen is None else not keep_seen
        return self._tops(histories, histories.lengths == 0, k, hide, None)

    def _recommend(
        self,
        histories: Ragged,
        user_ids: pl.Series | None,
        k: int,
        allow: Iterable[Any] | None,
        deny: Iterable[Any] | None,
        keep_seen: bool | None,
    ) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"k={k!r} is not a number of items; use 1 or more")
        allowed = self._allowed(allow, deny)
        hide = self.hides_seen if keep_seen is None else not keep_seen
        fallback = histories.lengths == 0
        tops = self._tops(histories, fallback, k, hide, allowed)
        return self._frame(*tops, user_ids), fallback

    def _tops(
        self, histories: Ragged, fallback: NDArray[np.bool_], k: int, hide: bool, allowed: NDArray[np.bool_] | None
    ) -> tuple[Int32, Float32]:
        """(B, K) indices and scores, of popular items where a history is empty; index 0 fills up."""
        known = histories.take(np.flatnonzero(~fallback)) if fallback.any() else histories
        best = self.index.top_k(self.engine.encode(known), k, hidden=known if hide else None, allowed=allowed)
        if len(known) == len(histories):
            return best
        counts = np.concatenate([[0.0], self.vocabulary.counts]).astype(np.float32)
        popular = top_k(counts[None], k, allowed=allowed)
        width = max(best[0].shape[1], popular[0].shape[1])
        indices, scores = np.zeros((len(histories), width), np.int32), np.zeros((len(histories), width), np.float32)
        for rows, (found, values) in ((~fallback, best), (fallback, popular)):
            indices[rows, : found.shape[1]], scores[rows, : found.shape[1]] = found, values
        return indices, scores

    def _allowed(self, allow: Iterable[Any] | None, deny: Iterable[Any] | None) -> NDArray[np.bool_] | None:
        """(V,) which items may be recommended; None = all."""
        if allow is None and deny is None:
            return None
        allowed = np.ones(len(self._table), bool)
        if allow is not None:
            allowed[:] = False
            allowed[self.vocabulary.known_indices(list(allow))] = True
        if deny is not None:
            allowed[self.vocabulary.indices_of(deny)] = False
        return allowed

    def _frame(self, indices: Int32, scores: Float32, user_ids: pl.Series | None) -> pl.DataFrame:
        """Rows as user_id, item_id, score, rank; index 0 marks the end of a short row; None = users by position."""
        rows, ranks = np.nonzero(indices)
        return pl.DataFrame(
            [
                pl.Series("user_id", rows) if user_ids is None else user_ids.gather(rows).rename("user_id"),
                self.vocabulary.ids_of(indices[rows, ranks]),
                pl.Series("score", scores[rows, ranks]),
                pl.Series("rank", (ranks + 1).astype(np.int32)),
            ]
        )

    def score(self, histories: Any, items: Sequence[Any]) -> Float32:
        """Scores of given candidates after each history, as the published predict().

        Args:
            histories: as in `recommend`.
            items: m item ids.

        Returns:
            (n, m) float32.

        Raises:
            UnknownItemError: an item is not known, or a history has no known item.
        """
        candidates = self.vocabulary.known_indices(items)
        return self.features(histories) @ self._table[candidates].T

    def features(self, histories: Any) -> Float32:
        """What the model makes of each history: the vector that is multiplied with those of the items.

        Args:
            histories: as in `recommend`.

        Returns:
            (n, D) float32.

        Raises:
            UnknownItemError: a history has no known item.
        """
        rows, _, _ = _read_histories(histories)
        known = [index[index > 0] for index in map(self.vocabulary.indices_of, rows)]
        for position, row in enumerate(known):
            if not len(row):
                raise UnknownItemError(f"history {position} has no item that this model knows, so it cannot be scored")
        return self.engine.encode(Ragged.from_lists(known))

    def similar_items(self, item_id: Any, k: int = 10) -> pl.DataFrame:
        """The k items nearest to an item by the cosine of their embeddings: item_id, score, rank.

        Raises:
            UnknownItemError: the item is not known.
            ConfigError: k below 1.
        """
        if k < 1:
            raise ConfigError(f"k={k} is not a number of items; use 1 or more")
        index = self.vocabulary.known_index(item_id)
        norms = np.linalg.norm(self._table, axis=1)
        cosine = (self._table @ self._table[index]) / np.maximum(norms * norms[index], 1e-12)
        itself = Ragged.from_lists([[index]])
        tops = top_k(cosine[None].astype(np.float32), k, hidden=itself)
        return self._frame(*tops, None).drop("user_id")

    def explain(self, history: Sequence[Any], item_id: Any) -> pl.DataFrame:
        """Why an item: how much its score falls when one item is left out of the history.

        Returns:
            item_id, position (0 = oldest known item), contribution (score with it minus score without), largest first.

        Raises:
            UnknownItemError: the item is not known, or no item of the history is.
        """
        target = self.vocabulary.known_index(item_id)
        (row,), _, _ = _read_histories([history])
        indices = self.vocabulary.indices_of(row)
        indices = indices[indices > 0]
        if not len(indices):
            raise UnknownItemError("the history has no item that this model knows, so there is nothing to explain")
        explained = self.explain_indices(indices, target)
        return pl.DataFrame(
            {
                "item_id": self.vocabulary.ids_of(explained.indices),
                "position": pl.Series(explained.positions),
                "contribution": pl.Series(explained.contributions),
            }
        )

    def explain_indices(self, indices: Int32, target: int) -> Explained:
        """As `explain`, in item indices: (n,) of a history with an item or more, and that of the item explained."""
        indices = indices[-self.config.model.max_seq_len :]
        without = [np.delete(indices, j) for j in range(len(indices))] if len(indices) > 1 else []
        scores = self.engine.encode(Ragged.from_lists([indices, *without])) @ self._table[target]
        left_out = scores[1:] if without else np.zeros(1, np.float32)
        contributions = (scores[0] - left_out).astype(np.float32)
        order = np.argsort(-contributions, kind="stable").astype(np.int32)
        return Explained(float(scores[0]), indices[order], order, contributions[order])

    def evaluate(
        self,
        split: str = "test",
        *,
        candidates: Path | str | None = None,
        baselines: bool = True,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> Result:
        """Measure the model on the split it was trained with.

        Args:
            split: "valid" or "test".
            candidates: a candidate file (.npz) for exact replication of the sampled protocol.
            baselines: also measure popularity and last-item co-occurrence.
            progress: called with (users done, users in all).
            settings: fields of EvalConfig that differ from the run's, such as protocol="sampled", ties="strict".

        Raises:
            ConfigError: an unknown setting, or a model that has seen the targets (--refit, or another split).
            CheckpointError: the model was saved without histories.
        """
        if self.config.refit_epochs:
            raise ConfigError(
                "this model was trained again on all events (--refit), so it has seen the targets; "
                "metrics.json holds the figures of the model it was chosen by"
            )
        config = _eval_config(self.config.eval, settings)
        split_ = self.split(config)
        _check_unseen(self.split(), split_, split)
        drawn = None
        if candidates is not None:
            drawn = read_candidates(Path(candidates), split, split_, self.vocabulary)
        return evaluate(
            ModelScorer(self.engine, self.config.model.max_seq_len),
            split_,
            split,
            config,
            candidates=drawn,
            baselines=baselines,
            progress=progress,
        )

    def training_facts(self) -> dict[str, Any] | None:
        """How training went and on what, ready for JSON; None for a model that was not trained here."""
        result = self.train_result
        if result is None:
            return None
        return {
            **{name: getattr(result, name) for name in ("best_epoch", "epochs", "seconds", "stopped")},
            "engine": self.engine.name,
            "isa": isa_of(self.engine),
            "threads": self.engine.threads,
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
        }

    def split(self, config: EvalConfig | None = None) -> Split:
        """The train / valid / test split of the run's log."""
        return split_sequences(self._known_sequences(), config or self.config.eval)

    @property
    def hides_seen(self) -> bool:
        """Whether items of the history are left out of recommendations by default, as in evaluation."""
        return hides_repeats(self.config.data, self.config.eval)

    @property
    def n_users(self) -> int:
        """Users whose histories are known.

        Raises:
            CheckpointError: the model was saved without histories.
        """
        return len(self._known_sequences())

    def _known_sequences(self) -> Sequences:
        if self.sequences is None:
            raise CheckpointError("this run was saved without histories (--no-histories); give histories instead")
        return self.sequences

    def save(self, path: Path | str, *, overwrite: bool = False, histories: bool = True) -> None:
        """Write a run folder that `load` reads.

        Raises:
            ConfigError: the folder exists and is not empty.
            CheckpointError: it cannot be written.
        """
        run = RunFolder.create(Path(path), overwrite=overwrite)
        run.save_data(self.vocabulary, self.sequences if histories else None)
        epoch = self.train_result.best_epoch if self.train_result else 0
        run.save_weights(self.engine.weights(), epoch)
        for line in self.train_result.history if self.train_result else []:
            run.append_history(line)
        run.save_metrics(self.results, self.training_facts())
        run.save_config(self.config)
        if self.train_result is not None:
            write_reports(self, run.path)


def write_reports(recommender: Recommender, folder: Path) -> None:
    """Write report.html, curve.png and the model card of a model that was just trained into its run folder.

    Raises:
        CheckpointError: a file cannot be written.
    """
    result, sequences = recommender.train_result, recommender.sequences
    assert result is not None
    assert sequences is not None
    by_split = {(r["split"], text) for r in recommender.results for text in r["warnings"]}
    texts = [text for _, text in sorted(by_split)]
    warnings = [text if texts.count(text) > 1 else f"{split}: {text}" for split, text in sorted(by_split)]
    facts = RunFacts(
        config=recommender.config,
        lengths=np.diff(sequences.offsets),
        item_counts=recommender.vocabulary.counts,
        history=result.history,
        results=recommender.results,
        examples=_examples(recommender),
        environment=environment(),
        best_epoch=result.best_epoch,
        seconds=result.seconds,
        stopped=result.stopped,
        warnings=list(dict.fromkeys(warnings)),
    )
    write_report(folder, facts)


def _examples(recommender: Recommender) -> list[dict[str, Any]]:
    """What the model recommends to a few users for their last event, from the events before it."""
    if recommender.config.refit_epochs:
        return []
    split = recommender.split()
    rows = np.linspace(0, len(split.test) - 1, min(N_EXAMPLES, len(split.test))).astype(np.int64)
    chosen = Targets(split.test.users[rows], split.test.positions[rows])
    histories, titles_of = chosen.histories(split.sequences), recommender.vocabulary.titles_of
    hidden = histories if recommender.hides_seen else None
    indices, scores = create_index(recommender.engine.item_table(), 1).top_k(
        recommender.engine.encode(histories), 10, hidden=hidden
    )
    examples = []
    for i, target in enumerate(chosen.items(split.sequences)):
        listed = indices[i][indices[i] > 0]
        ids = recommender.vocabulary.ids_of(listed).to_list()
        rows_ = zip(ids, titles_of(listed), scores[i].tolist(), strict=False)
        examples.append(
            {
                "user_id": split.sequences.user_ids[int(chosen.users[i])],
                "history": titles_of(histories.row(i)[-EXAMPLE_HISTORY:]),
                "target": titles_of(np.array([target], np.int32))[0],
                "target_id": recommender.vocabulary.ids_of(np.array([target], np.int32))[0],
                "recommendations": [
                    {"rank": rank, "item_id": item_id, "title": title, "score": score}
                    for rank, (item_id, title, score) in enumerate(rows_, 1)
                ],
            }
        )
    return examples


def load(path: Path | str, *, device: str | None = None, threads: int | None = None) -> Recommender:
    """Read a run folder.

    Args:
        path: what `Recommender.save` or `sasrec train` wrote.
        device: where to compute; None = as trained.
        threads: CPU threads; None = as trained.

    Raises:
        CheckpointError: missing, truncated or foreign.
    """
    run = RunFolder.open(Path(path))
    config = run.load_config()
    vocabulary = run.load_vocabulary()
    train_config = replace(
        config.train,
        device=config.train.device if device is None else device,
        threads=config.train.threads if threads is None else threads,
    )
    engine = create_engine(config.model, len(vocabulary), train_config, run.load_weights()[0])
    return Recommender(engine, vocabulary, config, run.load_sequences(), run.load_metrics())


def load_log(source: Any, **reading: Any) -> tuple[Sequences, Vocabulary, str]:
    """Sequences, vocabulary and a name, from a log, a named data set or a folder that `prepare` or `train` wrote.

    Args:
        source: whatever `read_interactions` takes; a name of `DATASETS`; or a folder with sequences/.
        reading: further arguments of `read_interactions`.

    Raises:
        DataError: it cannot be read.
    """
    if isinstance(source, str | Path) and (Path(source) / "sequences").is_dir():
        folder = RunFolder(Path(source))
        stored = folder.load_sequences()
        assert stored is not None
        return stored, folder.load_vocabulary(), Path(source).name
    log, titles, name = read_log(source, **reading)
    sequences, vocabulary = build_sequences(log)
    return sequences, vocabulary if titles is None else vocabulary.with_titles(titles), name


def read_log(source: Any, **reading: Any) -> tuple[pl.DataFrame, pl.DataFrame | None, str]:
    """Events, titles where there are any, and a name, from a log or a named data set.

    Raises:
        DataError: it cannot be read.
    """
    if isinstance(source, str) and source in DATASETS and not Path(source).exists():
        return *load_dataset(source), source
    name = Path(source).name.split(".")[0] if isinstance(source, str | Path) else "log"
    return read_interactions(source, **reading), None, name


@dataclass(frozen=True)
class FitOptions:
    """What `fit` does around training."""

    preset: str = DEFAULT_PRESET
    output: Path | None = None
    resume: bool = False
    overwrite: bool = False
    refit: bool = False
    histories: bool = True


def fit(
    log: Any,
    *,
    preset: str = DEFAULT_PRESET,
    output: Path | str | None = None,
    titles: pl.DataFrame | None = None,
    resume: bool = False,
    overwrite: bool = False,
    refit: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Recommender:
    """Train on a log: split, train, choose the epoch on valid, measure on test.

    Args:
        log: anything `load_log` takes.
        preset: a name of `PRESETS`.
        output: a run folder to write while training; needed to resume.
        titles: a frame item_id, title, for explanations and reports.
        resume: go on with the run in `output`.
        overwrite: replace the run in `output`.
        refit: afterwards train again on all events, for the number of epochs that valid chose: the model to serve.
        progress: called about twice a second with a `Progress`.
        settings: any field of ModelConfig, TrainConfig, EvalConfig.

    Raises:
        DataError: the log cannot be used.
        ConfigError: a setting is unknown or out of range.
        TrainingError: the loss is no longer a number.
    """
    sequences, vocabulary, name = load_log(log)
    if titles is not None:
        vocabulary = vocabulary.with_titles(titles)
    options = FitOptions(preset, None if output is None else Path(output), resume, overwrite, refit)
    return fit_sequences(sequences, vocabulary, name, options, settings, progress)


def fit_sequences(
    sequences: Sequences,
    vocabulary: Vocabulary,
    name: str,
    options: FitOptions,
    settings: dict[str, Any],
    progress: Callable[[Progress], None] | None = None,
) -> Recommender:
    """`fit` for a log that has been read already."""
    split, config = configure(sequences, name, options.preset, settings)
    run, config = _open_run(options, config)
    if run is not None and not options.resume:
        run.save_data(vocabulary, sequences if options.histories else None)
        run.save_config(config)
    engine = create_engine(config.model, len(vocabulary), config.train)
    result = train(
        engine, split, config.model, config.train, config.eval, run=run, resume=options.resume, progress=progress
    )
    recommender = Recommender(engine, vocabulary, config, sequences, (), result)
    if result.stopped == "interrupted":
        return recommender
    logger.info("measuring the model of epoch %d on valid and test, beside baselines", result.best_epoch)
    recommender.results = [r.to_dict() for r in final_results(recommender)]
    if run is not None:
        run.save_metrics(recommender.results, recommender.training_facts())
    if options.refit:
        recommender = _refit(recommender, split, run, progress)
    if run is not None:
        write_reports(recommender, run.path)
    return recommender


def configure(sequences: Sequences, name: str, preset: str, settings: dict[str, Any]) -> tuple[Split, RunConfig]:
    """The split, and all settings: the preset's for this log, with the user's own on top."""
    _, _, eval_config = resolve(preset, _no_statistics(sequences), settings)
    split = split_sequences(sequences, eval_config)
    statistics = replace(split.statistics, hides_seen=hides_repeats(sequences.facts, eval_config))
    model, train_config, eval_config = resolve(preset, statistics, settings)
    return split, RunConfig(model, train_config, eval_config, preset, name, sequences.facts, __version__)


def _no_statistics(sequences: Sequences) -> LogStatistics:
    """Statistics good enough to resolve the settings of the split, which presets leave alone."""
    facts = sequences.facts
    return LogStatistics(facts.n_users, facts.n_items, facts.n_events, facts.n_events / max(facts.n_users, 1))


def _open_run(options: FitOptions, config: RunConfig) -> tuple[RunFolder | None, RunConfig]:
    if options.output is None:
        if options.resume:
            raise ConfigError("resume needs the output folder of the run to go on with")
        return None, config
    if not options.resume:
        return RunFolder.create(options.output, overwrite=options.overwrite), config
    run = RunFolder.open(options.output)
    saved = run.load_config()
    check_resumable(saved, config)
    config = resumed_config(saved, config)
    run.save_config(config)
    return run, config


def final_results(recommender: Recommender) -> list[Result]:
    """Valid by the protocol that chose the epoch, and test by both protocols."""
    plan = [("valid", recommender.config.train.valid_protocol), ("test", "full"), ("test", "sampled")]
    return [recommender.evaluate(split, protocol=protocol) for split, protocol in plan]


def _refit(
    recommender: Recommender, split: Split, run: RunFolder | None, progress: Callable[[Progress], None] | None
) -> Recommender:
    """Train again on all events, for as many epochs as valid chose."""
    result, config = recommender.train_result, recommender.config
    assert result is not None
    epochs = max(result.best_epoch, 1)
    logger.info("training again on all events for %d epochs", epochs)
    train_config = replace(config.train, max_epochs=epochs, patience=0, max_minutes=0.0)
    engine = create_engine(config.model, len(recommender.vocabulary), train_config)
    again = train(engine, split.all_events(), config.model, train_config, config.eval, progress=progress)
    if again.stopped == "interrupted":
        logger.warning("the second training was interrupted; the model chosen by valid is kept")
        return recommender
    config = replace(config, refit_epochs=epochs)
    if run is not None:
        run.save_weights(again.weights, epochs)
        run.save_config(config)
    return Recommender(engine, recommender.vocabulary, config, recommender.sequences, recommender.results, result)


def convert(checkpoint: Path, layout: str | None, log: Any, *, n_heads: int | None = None) -> Recommender:
    """A published checkpoint with the log it was trained on; row i of its table is the item with id i.

    Raises:
        CheckpointError: the checkpoint does not fit the layout, or the log has items it does not know.
        ConfigError: the layout is not given.
    """
    published = read_published(checkpoint, layout, n_heads=n_heads)
    vocabulary = Vocabulary(pl.Series("item_id", np.arange(1, published.n_items + 1)))
    sequences, vocabulary = _sequences_of(log, vocabulary)
    train_config = TrainConfig(engine="torch", valid_protocol="sampled")
    engine = create_engine(published.config, published.n_items, train_config, published.weights)
    config = RunConfig(
        published.config, train_config, EvalConfig(), "paper", checkpoint.name, sequences.facts, __version__, layout
    )
    return Recommender(engine, vocabulary, config, sequences)


def _sequences_of(log: Any, vocabulary: Vocabulary) -> tuple[Sequences, Vocabulary]:
    frame = read_interactions(log)
    if frame["item_id"].dtype != pl.Int64:
        raise DataError("a published checkpoint knows items by number, and this log's item ids are not integers")
    sequences, _ = build_sequences(frame, vocabulary)
    counts = np.bincount(sequences.items, minlength=len(vocabulary) + 1)[1:].astype(np.int64)
    return sequences, Vocabulary(vocabulary.item_ids, counts)


def _check_unseen(trained: Split, measured: Split, part: str) -> None:
    """Refuse a split that holds out what the model was trained on, or chosen by: its figures would be too good."""
    n_seen = int(np.maximum(trained.train_ends - measured.train_ends, 0).sum())
    chosen_by = np.isin(measured.test.positions, trained.valid.positions).any() if part == "test" else False
    if n_seen or chosen_by:
        what = f"was trained on {n_seen:,} events that" if n_seen else "was chosen by valid targets that"
        raise ConfigError(
            f"this model ({trained.method} split) {what} the {measured.method} split asked for holds out; train one "
            "with the settings of that split (sasrec benchmark trains one for each)"
        )


def _eval_config(base: EvalConfig, settings: dict[str, Any]) -> EvalConfig:
    return from_dict(EvalConfig, {**to_dict(base), **settings})


def _read_histories(histories: Any) -> tuple[Histories, pl.Series | None, bool]:
    """Rows of ids, the user id of each row (None = its position), and whether pandas came in."""
    as_pandas = _is_pandas(histories)
    if as_pandas or isinstance(histories, pl.DataFrame):
        log = read_interactions(histories)
        if "timestamp" in log.columns:
            log = log.sort("timestamp", maintain_order=True)
        grouped = log.group_by("user_id", maintain_order=True).agg("item_id")
        return grouped["item_id"].to_list(), grouped["user_id"], as_pandas
    rows = list(histories)
    for position, row in enumerate(rows):
        if isinstance(row, str) or not isinstance(row, Iterable):
            raise DataError(
                f"history {position} is {row!r}, not a list of item ids; for one user give a list with one history"
            )
    rows = [list(row) for row in rows]
    return rows, None, False


def _is_pandas(value: Any) -> bool:
    """Whether this is a pandas object, without importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame | pandas.Series | pandas.Index)


def _as_pandas(frame: pl.DataFrame) -> Any:
    """The frame in pandas, by way of NumPy (no pyarrow needed)."""
    import pandas

    return pandas.DataFrame({name: frame[name].to_numpy() for name in frame.columns})
