"""Your ids in, your ids and scores out. `load` makes a Recommender from a run folder; `fit` from a log.

Frames out have user_id, item_id, score, rank (from 1). Between the borders there are only item indices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sasrec.core.arrays import Float32, Int32, Int64
from sasrec.core.config import EvalConfig, TrainConfig
from sasrec.core.errors import CheckpointError, UnknownItemError
from sasrec.core.scalars import check_truth
from sasrec.core.threads import set_threads
from sasrec.data.histories import known_histories, list_of_ids, read_histories, users_histories
from sasrec.data.items import with_new_items
from sasrec.data.ragged import Ragged
from sasrec.data.sequences import Sequences
from sasrec.data.splits import Split, hides_repeats, split_sequences
from sasrec.data.vocabulary import Vocabulary
from sasrec.engine.device import to_copy, to_serve
from sasrec.engine.protocol import Engine, create_engine
from sasrec.evaluation.results import Result
from sasrec.measuring import Request, measure
from sasrec.model.weights import Weights, with_more_items
from sasrec.publishing import push_model
from sasrec.ranking.diversity import check_diversity
from sasrec.ranking.item_filter import ItemFilter
from sasrec.ranking.lists import Recommendations, list_frame, reasons_frame
from sasrec.ranking.masks import ItemMasks
from sasrec.ranking.next_items import Mask, NextItems
from sasrec.ranking.order import check_k
from sasrec.reading.frame_kinds import like
from sasrec.report.notebook import model_html
from sasrec.reporting import write_pages
from sasrec.runs.digests import version_of
from sasrec.runs.folder import RunConfig, RunFolder
from sasrec.runs.memory import Trained
from sasrec.runs.record import TrainingFacts
from sasrec.training.result import TrainResult, training_facts

logger = logging.getLogger(__name__)
Ids = Iterable[Any]  # items or users, in your own ids


class Recommender:
    """A trained model with its items and, unless saved without, its users' histories.

    Args:
        engine: holds the weights.
        vocabulary: item ids and titles.
        config: how it came about.
        sequences: the users' histories, or None.
        results: evaluations so far, without figures per user.
        train_result: how training went; None for a loaded model.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        config: RunConfig,
        sequences: Sequences | None,
        results: Sequence[Result] = (),
        train_result: TrainResult | None = None,
    ) -> None:
        self.engine, self.vocabulary, self.config = engine, vocabulary, config
        self.sequences = None if sequences is None else sequences.with_catalogue(len(vocabulary))
        self.results, self.train_result = list(results), train_result
        self.next_items = NextItems(engine, vocabulary.counts)
        self.masks = ItemMasks(vocabulary)  # of `where`

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: the weights in place of the engine, which is made again as `load` does."""
        engine, own = self.engine, (self.vocabulary, self.config, self.sequences, self.results, self.train_result)
        return _copied, (engine.train_config, engine.weights(), *own)

    def __repr__(self) -> str:
        model, n_items = self.config.model, len(self.vocabulary)
        return f"Recommender({self.config.data_name}, {n_items} items; block {model.block}, D={model.embedding_dim})"

    def _repr_html_(self) -> str:
        course = self.train_result.course if self.train_result else None
        return model_html(self.config, self.vocabulary, self.sequences, self.results, course)

    @cached_property
    def model_version(self) -> str:
        """Twelve characters that are equal for models that give equal answers, wherever they are stored."""
        return version_of(self.config, self.engine.state()[0], self.vocabulary)

    def recommend(
        self,
        histories: Any,
        k: int = 10,
        *,
        allow: Ids | None = None,
        deny: Ids | None = None,
        keep_seen: bool | None = None,
        where: str | None = None,
        diversity: float = 0.0,
    ) -> Any:
        """The top k items after each history, also of users never seen.

        Args:
            histories: lists, arrays or Series of item ids, oldest first; or any frame user_id, item_id[, timestamp].
            k: how many; fewer come back when fewer can be recommended.
            allow: only these items; None = all. Unknown ids are skipped with a warning.
            deny: never these items; likewise.
            keep_seen: recommend items of the history too; None = as in evaluation.
            where: only items whose attributes fulfil it, such as "category = 'lego' and price < 30" (docs/filters.md).
            diversity: from 0 (off) to 1: how much less items count that are like those above them.

        Returns:
            A frame user_id, item_id, score, rank, of the library that histories come in; for lists one of Polars, and
            user_id is the position. Unknown items are skipped; a history without any known item gets popular items.

        Raises:
            ConfigError: k is below 1 or not an integer, keep_seen is not True, False or None, `where` is no expression
                over the items' columns, or diversity is not from 0 to 1.
            DataError: histories, `allow` or `deny` are not lists of ids.
            UnknownItemError: `allow` or `deny` names items, and none of them is known.
        """
        options: dict[str, Any] = {"allow": allow, "deny": deny, "keep_seen": keep_seen, "where": where}
        return self.recommend_detailed(histories, k, **options, diversity=diversity).frame

    def recommend_detailed(
        self,
        histories: Any,
        k: int = 10,
        *,
        allow: Ids | None = None,
        deny: Ids | None = None,
        keep_seen: bool | None = None,
        where: str | None = None,
        diversity: float = 0.0,
    ) -> Recommendations:
        """As `recommend`, with the unknown items and fallbacks of each history."""
        rows, user_ids = read_histories(histories)
        (known, unknown), items = known_histories(self.vocabulary, rows), self.item_filter(allow, deny, where)
        options = {"allowed": items.mask(), "keep_seen": keep_seen, "diversity": diversity}
        frame = self._recommend(known, user_ids, k, **options)
        n_unknown = sum(map(len, unknown))
        if n_unknown:
            logger.warning("%d items of the histories are unknown and were skipped", n_unknown)
        answer, fallback = like(histories, frame), (known.lengths == 0).tolist()
        return Recommendations(answer, unknown, fallback, items.unknown_allow, items.unknown_deny, self.vocabulary)

    def item_filter(self, allow: Ids | None, deny: Ids | None, where: str | None = None) -> ItemFilter:
        """Which items lists of ids and an expression leave; unknown ids are skipped with a warning.

        Raises:
            ConfigError: `where` is no expression over the items' columns.
            DataError: `allow` or `deny` is not a list of ids.
            UnknownItemError: a list is not empty, and none of its ids is known.
        """
        items = ItemFilter.of(self.vocabulary, allow, deny, None if where is None else self.masks.mask(where))
        items.warn_of_unknown()
        return items

    def recommend_users(
        self,
        user_ids: Ids | None = None,
        k: int = 10,
        *,
        allow: Ids | None = None,
        deny: Ids | None = None,
        keep_seen: bool | None = None,
        where: str | None = None,
        diversity: float = 0.0,
    ) -> Any:
        """The top k next items of users of the log, after all of their events, as `recommend`; None = all users.

        Raises:
            ConfigError: as in `recommend`.
            DataError: `user_ids` is not a list of ids.
            UnknownItemError: a user is not in the log.
            CheckpointError: the model was saved without histories.
        """
        sequences = self._known_sequences()
        histories, users = users_histories(sequences, user_ids)
        allowed = self.item_filter(allow, deny, where).mask()
        frame = self._recommend(histories, users, k, allowed=allowed, keep_seen=keep_seen, diversity=diversity)
        return like(user_ids, frame)

    def recommend_rows(
        self,
        rows: slice | Int64,
        k: int = 10,
        *,
        allowed: Mask | None = None,
        keep_seen: bool | None = None,
        diversity: float = 0.0,
    ) -> pl.DataFrame:
        """As `recommend_users` for the users at these rows of the log, whose order is that of ids.

        Args:
            rows: of the log's users.
            k: how many.
            allowed: (n_items + 1,) the only items to give, as `item_filter` makes it; None = all.
            keep_seen: as in `recommend`.
            diversity: as in `recommend`.

        Raises:
            CheckpointError: the model was saved without histories.
        """
        histories, users = users_histories(self._known_sequences(), rows=rows)
        return self._recommend(histories, users, k, allowed=allowed, keep_seen=keep_seen, diversity=diversity)

    def top_indices(
        self,
        histories: Ragged,
        k: int = 10,
        *,
        allowed: Mask | None = None,
        keep_seen: bool | None = None,
        diversity: float = 0.0,
    ) -> tuple[Int32, Float32]:
        """As `recommend`, in item indices.

        Args:
            histories: B rows of item indices from 1; an empty row gets popular items.
            k: how many.
            allowed: as in `recommend_rows`.
            keep_seen: as in `recommend`.
            diversity: as in `recommend`.

        Returns:
            Indices and scores, (B, K); index 0 fills up where K items cannot be recommended.
        """
        kept = check_truth("keep_seen", keep_seen)
        hides_seen = self.hides_seen if kept is None else not kept
        hidden, share = histories if hides_seen else None, check_diversity(diversity)
        return self.next_items.top_k(histories, k, hidden=hidden, allowed=allowed, diversity=share)

    def _recommend(self, histories: Ragged, user_ids: pl.Series | None, k: int, **options: Any) -> pl.DataFrame:
        return list_frame(self.vocabulary, *self.top_indices(histories, check_k(k), **options), user_ids)

    def score(self, histories: Any, items: Sequence[Any]) -> Float32:
        """Scores of given candidates after each history, as the published predict().

        Args:
            histories: as in `recommend`.
            items: m item ids.

        Returns:
            (n, m) float32.

        Raises:
            DataError: histories or items are not lists of ids.
            UnknownItemError: an item is not known, or a history has no known item.
        """
        candidates = self.vocabulary.known_indices(list_of_ids(items, "items", ordered=True))
        return self.features(histories) @ self.next_items.table[candidates].T

    def features(self, histories: Any) -> Float32:
        """What the model makes of each history: the vector that is multiplied with those of the items.

        Args:
            histories: as in `recommend`.

        Returns:
            (n, D) float32.

        Raises:
            UnknownItemError: a history has no known item.
        """
        known, _ = known_histories(self.vocabulary, read_histories(histories)[0])
        for position in np.flatnonzero(known.lengths == 0)[:1]:
            raise UnknownItemError(f"history {position} has no item that this model knows, so it cannot be scored")
        return self.engine.encode(known)

    def similar_items(self, item_id: Any, k: int = 10, *, where: str | None = None) -> pl.DataFrame:
        """The k items nearest to an item by the cosine of their embeddings: item_id, score, rank.

        Raises:
            UnknownItemError: the item is not known.
            ConfigError: k below 1, or `where` is no expression over the items' columns.
        """
        mask = self.item_filter(None, None, where).mask()
        indices, scores = self.next_items.similar(self.vocabulary.known_index(item_id), k, mask)
        return pl.DataFrame(list_frame(self.vocabulary, indices[None], scores[None], None).get_columns()[1:])

    def explain(self, history: Sequence[Any], item_id: Any) -> pl.DataFrame:
        """Why an item: how much its score falls when one item is left out of the history.

        Returns:
            item_id, position (0 = oldest known item), contribution (score with it minus score without), largest first.

        Raises:
            UnknownItemError: the item is not known, or no item of the history is.
        """
        target = self.vocabulary.known_index(item_id)
        indices, _ = self.vocabulary.split_known(list_of_ids(history, "history", ordered=True))
        if not len(indices):
            raise UnknownItemError("the history has no item that this model knows, so there is nothing to explain")
        reasons = self.next_items.reasons(indices[-self.config.model.max_seq_len :], target)
        return reasons_frame(self.vocabulary, reasons)

    def evaluate(
        self,
        split: str = "test",
        *,
        log: Any = None,
        unseen_by: Iterable[Trained] = (),
        candidates: Any = None,
        baselines: bool = True,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> Result:
        """Measure the model on the split it was trained with, or on that of another log.

        Args:
            split: "valid" or "test".
            log: another log, anything `load_log` takes: all its items are ranked, those unknown to the model last.
            unseen_by: with `log`, leave out targets that these were trained on too, so that results can be compared.
            candidates: of the sampled protocol: an .npz file or an array, with rows of item ids, the target first, or a
                frame or another file with user_id and item_id (docs/evaluation.md, "Protocols"); None = they are drawn.
            baselines: also measure popularity and last-item co-occurrence.
            progress: called with (rankings done, rankings in all): one for each target, by the model and each baseline.
            settings: fields of EvalConfig that differ from the run's, such as protocol="sampled", ties="strict".

        Raises:
            ConfigError: an unknown setting, or a model that has seen the targets (--refit, or another split).
            CheckpointError: the model was saved without histories.
        """
        return measure(self, Request(split, candidates, baselines, progress, settings, log, tuple(unseen_by)))

    def add_items(self, items: Any, item_vectors: Any = None) -> Recommender:
        """The same model with further items, recommended by their features; nothing is trained.

        Args:
            items: whatever `read_items` takes, with the columns of the features; those that are known stay as they are.
            item_vectors: a .npy file or an array, row by row those of `items`, where the model was trained with one.

        Raises:
            ConfigError: the model knows items by their ids alone.
            DataError: no item is new, or a column is missing or of another kind.
        """
        vocabulary = with_new_items(self.vocabulary, items, item_vectors)
        weights = with_more_items(self.engine.weights(), len(vocabulary))
        return _made_again(self.engine.train_config, weights, vocabulary, self.config, self.sequences, self.results)

    def training_facts(self) -> TrainingFacts | None:
        """How training went and on what; None for a model that was not trained here."""
        return None if self.train_result is None else training_facts(self.train_result, self.engine)

    def split(self, config: EvalConfig | None = None) -> Split:
        """The train / valid / test split of the run's log."""
        return split_sequences(self._known_sequences(), config or self.config.eval)

    @property
    def hides_seen(self) -> bool:
        """Whether items of the history are left out of recommendations by default, as in evaluation."""
        return not self.config.eval.target_events and hides_repeats(self.config.data, self.config.eval)

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
        with RunFolder.claim(Path(path), overwrite=overwrite) as run:
            run.save_data(self.vocabulary, self.sequences if histories else None)
            trained = self.train_result
            for line in trained.history if trained else []:
                run.append_history(line)
            run.save_metrics(self.results, self.training_facts())
            run.save_config(self.config)
            run.save_weights(self.engine.state()[0], trained.best_epoch if trained else 0)
            if trained:
                self.write_report(run.path)

    def write_report(self, folder: Path, *, with_users: bool = True) -> None:
        """Write report.html, curve.png and the model card of a model that was just trained into its run folder.

        Args:
            folder: exists.
            with_users: False leaves out the examples and the first events, so that no user's id or history is told.

        Raises:
            CheckpointError: a file cannot be written.
        """
        self._known_sequences()
        write_pages(self, folder, with_users=with_users)

    def push_to_hub(self, repo: str, *, private: bool = True, with_histories: bool = False, **card: Any) -> str:
        """Push the model to the Hugging Face Hub, without users' ids and histories (docs/hub.md).

        Args:
            repo: user/model; made where it is not there yet.
            private: whether only you, and those that you let, can read it.
            with_histories: push the log's users and their histories, too.
            card: license="apache-2.0" and datasets=["user/log"], as the Hub names them, for the model card.

        Returns:
            The address of this very model: hf://user/model@commit.

        Raises:
            ConfigError, CheckpointError: as `publishing.push`.
        """
        return push_model(self, repo, private=private, with_histories=with_histories, **card)


def load(path: Path | str, *, device: str | None = None, threads: int | None = None) -> Recommender:
    """Read a run folder.

    Args:
        path: what `Recommender.save` or `sasrec train` wrote; or hf://user/model[@revision] (docs/hub.md).
        device: where to compute: cpu, cuda, cuda:N or auto; None = auto, wherever it was trained (docs/gpu.md).
        threads: CPU threads; None = as trained.

    Raises:
        CheckpointError: missing, truncated or foreign; or the Hub refuses it or cannot be reached.
    """
    run = RunFolder.open(Path(path))
    config, vocabulary = run.load_config(), run.load_vocabulary()
    train, weights = to_serve(config.train, device, threads), run.load_weights()[0]
    return _made_again(train, weights, vocabulary, config, run.load_sequences(), run.load_metrics())


def _made_again(train: TrainConfig, weights: Weights, items: Vocabulary, config: RunConfig, *more: Any) -> Recommender:
    engine = create_engine(config.model, len(items), train, weights, features=items.features)
    set_threads(engine.threads)
    return Recommender(engine, items, config, *more)


def _copied(train: TrainConfig, *own: Any) -> Recommender:
    return _made_again(to_copy(train), *own)
