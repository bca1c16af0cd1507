"""A model that answers. In: checked requests in your own ids; out: answers ready to be encoded.

`ServedModel` is one model, never changed; `Service` holds the one that answers now, and puts another in its place.
"""

from __future__ import annotations

import logging
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec import __version__
from sasrec.api import (
    Answer,
    Answers,
    Explanation,
    Item,
    ItemId,
    Items,
    Query,
    Reason,
    Recommendation,
    SimilarItems,
    encode,
)
from sasrec.errors import CheckpointError, RequestError, SASRecError
from sasrec.recommender import Recommender, load
from sasrec.sequences import Int32, Ragged, Sequences
from sasrec.telemetry import Metrics

logger = logging.getLogger(__name__)

IN_MEMORY_BYTES = 2**28  # histories up to this size are copied into memory: a disk that goes must not end the server
SHORT_LIST = 64  # lists up to this length are computed together; longer ones with those of about their own length
KEPT_SHARE = 0.5  # of the items: a new model that knows less of them is of another catalogue
WARM_UP_ROWS = 32


class Row(NamedTuple):
    """A query, of a user of the log when `user` is given: then the history is the user's own."""

    query: Query
    user: ItemId | None = None


class EventReader(Protocol):
    """Where users' events since training are found."""

    def events_of(self, user: ItemId) -> list[ItemId]:
        """The items of a user's stored events, oldest first."""


class _Seen(NamedTuple):
    """A history in item indices, and what of the request is unknown."""

    indices: Int32
    unknown: list[ItemId]


class ServedModel:
    """A recommender and what is computed once to answer quickly. Its methods are called on one thread at a time.

    Args:
        recommender: the model; not to be trained any more.
        events: of users since training, or None.
    """

    def __init__(self, recommender: Recommender, events: EventReader | None = None) -> None:
        self.recommender, self.events = recommender, events
        self.vocabulary, self.engine = recommender.vocabulary, recommender.engine
        self.loaded_at = time.time()
        self.version = recommender.model_version
        self.sequences = _in_memory(recommender.sequences)
        self._titles: list[str | None] | None = None
        if recommender.vocabulary.titles is not None:
            self._titles = recommender.vocabulary.titles.to_list()
        self._popular = np.argsort(-self.vocabulary.counts, kind="stable").astype(np.int32) + 1  # (n_items,)

    def warm_up(self) -> None:
        """Answer once in each way, so that the first client does not wait, and a model that cannot answer is found.

        Raises:
            SASRecError: it cannot.
        """
        ids = self.vocabulary.ids
        rows = [Row(Query([ids[j % len(ids)] for j in range(i + 1)])) for i in range(WARM_UP_ROWS)]
        users = [] if self.sequences is None else [Row(Query([]), user) for user in self.sequences.user_ids[:1]]
        special = [Row(Query([])), Row(Query(ids[:2], allow=ids[:3], keep_seen=True)), *users]
        for batch in (rows, rows[:1], special):
            for answer in self.answer(batch):
                if isinstance(answer, Exception):
                    raise answer
                encode(answer)
        self.search("a", 1)

    def answer(self, rows: Sequence[Row]) -> list[Answer | RequestError]:
        """An answer to each row, computed together; an error for a row that has none."""
        answers: list[Answer | RequestError | None] = [None] * len(rows)
        known: list[tuple[int, Row, _Seen]] = []
        for place, row in enumerate(rows):
            try:
                seen = self._seen(row)
            except RequestError as error:
                answers[place] = error
                continue
            if len(seen.indices):
                known.append((place, row, seen))
            else:
                answers[place] = self._popular_answer(row.query, seen)
        if known:
            self._answer_known(known, answers)
        return answers  # type: ignore[return-value]

    def _seen(self, row: Row) -> _Seen:
        return self._split_known(row.query.history if row.user is None else self.history_of(row.user))

    def _split_known(self, history: Sequence[ItemId]) -> _Seen:
        indices = self.vocabulary.indices_of(history)
        unknown: list[ItemId] = []
        if not indices.all():
            unknown = [item for item, index in zip(history, indices.tolist(), strict=True) if not index]
            indices = indices[indices > 0]
        return _Seen(indices, unknown)

    def history_of(self, user: ItemId) -> list[ItemId]:
        """The items of a user of the log, and of the user's events since.

        Raises:
            RequestError: 404, no such user, or a model without histories.
        """
        if self.sequences is None:
            raise RequestError(404, "this model was saved without histories, so send a history to /v1/recommend")
        ids = self.vocabulary.ids
        history = [ids[index - 1] for index in self.sequences.history(self._row_of(user, self.sequences)).tolist()]
        if self.events is None:
            return history
        return history + _not_yet_in(history, self.events.events_of(user), self.vocabulary.indices_of)

    def knows_user(self, user: ItemId) -> bool:
        """Whether the log has this user."""
        if self.sequences is None:
            return False
        try:
            self._row_of(user, self.sequences)
        except RequestError:
            return False
        return True

    def _row_of(self, user: ItemId, sequences: Sequences) -> int:
        try:
            return sequences.row_of_user(user)
        except KeyError as error:
            raise RequestError(
                404, f"this user is not in the log ({len(sequences)} users); send a history to /v1/recommend instead"
            ) from error

    def _answer_known(
        self, known: Sequence[tuple[int, Row, _Seen]], answers: list[Answer | RequestError | None]
    ) -> None:
        features = self.engine.encode(Ragged.from_lists([seen.indices for _, _, seen in known]))
        for members, k in self._groups([row.query for _, row, _ in known]):
            hidden = [self._hidden(known[m][1].query, known[m][2].indices) for m in members]
            allowed, unknown = self._allowed(known[members[0]][1].query)
            indices, scores = self.recommender.index.top_k(
                features if len(members) == len(known) else features[members],
                k,
                hidden=Ragged.from_lists(hidden) if any(map(len, hidden)) else None,
                allowed=allowed,
            )
            for m, best, values in zip(members, indices.tolist(), scores.tolist(), strict=True):
                place, row, seen = known[m]
                items = self._listed(best, values, row.query.k)
                answers[place] = Answer(items, seen.unknown + unknown, False, self.version)

    def _groups(self, queries: Sequence[Query]) -> list[tuple[list[int], int]]:
        """Which queries are ranked together, and to what length: those with `allow` alone, others by length."""
        groups: dict[int, list[int]] = {}
        for m, query in enumerate(queries):
            key = -1 - m if query.allow is not None else max(query.k, SHORT_LIST).bit_length()
            groups.setdefault(key, []).append(m)
        return [(members, max(queries[m].k for m in members)) for members in groups.values()]

    def _hidden(self, query: Query, indices: Int32) -> Int32:
        hide = self.recommender.hides_seen if query.keep_seen is None else not query.keep_seen
        hidden = indices if hide else indices[:0]
        if query.deny:
            denied = self.vocabulary.indices_of(query.deny)
            hidden = np.concatenate([hidden, denied[denied > 0]])
        return hidden

    def _allowed(self, query: Query) -> tuple[NDArray[np.bool_] | None, list[ItemId]]:
        """(V,) what `allow` names, None = everything; and what of it is unknown."""
        if query.allow is None:
            return None, []
        indices = self.vocabulary.indices_of(query.allow)
        allowed = np.zeros(len(self.vocabulary) + 1, bool)
        allowed[indices] = True
        allowed[0] = False
        return allowed, [item for item, index in zip(query.allow, indices.tolist(), strict=True) if not index]

    def _popular_answer(self, query: Query, seen: _Seen) -> Answer:
        allowed, unknown = self._allowed(query)
        denied = self._hidden(query, seen.indices)
        order = self._popular if allowed is None else self._popular[allowed[self._popular]]
        best = order[: query.k + len(denied)]
        best = best[~np.isin(best, denied)][: query.k]
        counts = self.vocabulary.counts[best - 1].astype(np.float64)
        return Answer(self._listed(best.tolist(), counts.tolist(), query.k), seen.unknown + unknown, True, self.version)

    def _listed(self, indices: Sequence[int], scores: Sequence[float], k: int) -> list[Recommendation]:
        """The first k of a list that may end in 0."""
        ids, titles = self.vocabulary.ids, self._titles
        pairs = zip(indices[:k], scores, strict=False)
        if titles is None:
            return [Recommendation(ids[i - 1], s, rank) for rank, (i, s) in enumerate(pairs, 1) if i]
        return [Recommendation(ids[i - 1], s, rank, titles[i - 1]) for rank, (i, s) in enumerate(pairs, 1) if i]

    def similar(self, item: ItemId, k: int) -> SimilarItems:
        """The items nearest to one.

        Raises:
            RequestError: 404, the item is not known.
        """
        self._known(item)
        frame = self.recommender.similar_items(item, k)
        indices = self.vocabulary.indices_of(frame["item_id"].to_list()).tolist()
        return SimilarItems(self._listed(indices, frame["score"].to_list(), k), self.version)

    def _known(self, item: ItemId) -> int:
        index = self.vocabulary.index_of(item)
        if not index:
            n_items = len(self.vocabulary)
            raise RequestError(404, f"this item is not in the log this model was trained on ({n_items} items)")
        return index

    def _item(self, index: int) -> Item:
        title = None if self._titles is None else self._titles[index - 1]
        return Item(self.vocabulary.ids[index - 1], int(self.vocabulary.counts[index - 1]), title)

    def explain(self, history: Sequence[ItemId], item: ItemId) -> Explanation:
        """Which items of a history speak for an item.

        Raises:
            RequestError: 404, the item, or all of the history, is not known.
        """
        target = self._known(item)
        known, unknown = self._split_known(history)
        if not len(known):
            raise RequestError(404, "the history has no item that this model knows, so there is nothing to explain")
        score, *columns = self.recommender.explain_indices(known, target)
        ids, titles = self.vocabulary.ids, self._titles
        reasons = [
            Reason(ids[index - 1], position, value, None if titles is None else titles[index - 1])
            for index, position, value in zip(*(column.tolist() for column in columns), strict=True)
        ]
        return Explanation(self._item(target), score, reasons, unknown, self.version)

    def search(self, text: str, k: int) -> Items:
        """The items whose title or id has all of these words, those that begin with them first, then by popularity."""
        words = _folded(text).split()
        if not words:
            return Items([self._item(index) for index in self._popular[:k].tolist()], self.version)
        texts = self._search_texts
        found = np.logical_and.reduce([texts.str.contains(word, literal=True).to_numpy() for word in words])
        rows = np.flatnonzero(found)
        phrase = " ".join(words)
        candidates = texts.gather(rows)
        begins = candidates.str.starts_with(phrase).to_numpy()
        at_word = candidates.str.contains(" " + words[0], literal=True).to_numpy()
        order = np.lexsort((rows, -self.vocabulary.counts[rows], ~at_word, ~begins))
        return Items([self._item(index) for index in (rows[order[:k]] + 1).tolist()], self.version)

    @cached_property
    def _search_texts(self) -> pl.Series:
        """(n_items,) title and id of each item, folded; made with the first search."""
        titles = self._titles or [None] * len(self.vocabulary)
        pairs = zip(self.vocabulary.ids, titles, strict=True)
        return pl.Series([_folded(str(i) if title is None else f"{title} {i}") for i, title in pairs])

    def facts(self) -> dict[str, Any]:
        """What there is to know about the model."""
        config, data = self.recommender.config, self.recommender.config.data
        model = config.model
        return {
            "model_version": self.version,
            "loaded_at": self.loaded_at,
            "age_seconds": time.time() - self.loaded_at,
            "data": config.data_name,
            "n_items": len(self.vocabulary),
            "n_users": 0 if self.sequences is None else len(self.sequences),
            "n_events": data.n_events,
            "has_titles": self._titles is not None,
            "has_histories": self.sequences is not None,
            "hides_seen": self.recommender.hides_seen,
            "preset": config.preset,
            "block": model.block,
            "embedding_dim": model.embedding_dim,
            "n_blocks": model.n_blocks,
            "n_heads": model.n_heads,
            "max_seq_len": model.max_seq_len,
            "loss": config.train.loss,
            "engine": self.engine.name,
            "isa": getattr(self.engine, "isa", None),
            "trained_with": config.package_version,
            "package_version": __version__,
            "results": self.recommender.results,
        }


def _in_memory(sequences: Sequences | None) -> Sequences | None:
    """The histories without the files they lie in, unless they are large; times are not needed."""
    if sequences is None or sequences.items.nbytes > IN_MEMORY_BYTES:
        return sequences
    return Sequences(sequences.user_ids, np.array(sequences.items), np.array(sequences.offsets), sequences.facts)


def _not_yet_in(
    history: Sequence[ItemId], events: Sequence[ItemId], indices_of: Callable[[Sequence[ItemId]], Int32]
) -> list[ItemId]:
    """The events after those that the history ends with: a model trained on a newer log has the first ones already."""
    log, new = indices_of(history[-len(events) :]).tolist() if events else [], indices_of(events).tolist()
    n = next((n for n in range(min(len(log), len(new)), 0, -1) if log[-n:] == new[:n]), 0)
    return list(events[n:])


def _folded(text: str) -> str:
    """Without case and accents."""
    text = text.casefold()
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


class Service:
    """The model that answers now.

    Args:
        metrics: told about batches and models.
        events: of users since training, or None.
        path: the run folder, or a link to one, to load from; None = only what is given to `serve`.
        threads: of the engine.
    """

    def __init__(
        self, metrics: Metrics, events: EventReader | None = None, path: Path | None = None, threads: int = 1
    ) -> None:
        self.model: ServedModel | None = None
        self.reload_error: str | None = None
        self.metrics, self.events, self.path, self.threads = metrics, events, path, threads
        self._loading = threading.Lock()
        self._loaded_from: tuple[str, int, int] | None = None

    def serve(self, recommender: Recommender) -> None:
        """Warm a model up and let it answer from now on.

        Raises:
            SASRecError: it cannot answer; the model before it stays.
        """
        model = ServedModel(recommender, self.events)
        model.warm_up()
        self.model = model
        self.metrics.serving(model.version)

    def load(self) -> None:
        """Load the run folder for the first time.

        Raises:
            SASRecError: it cannot be served.
        """
        assert self.path is not None
        self._loaded_from = self._place()
        self.serve(load(self.path, threads=self.threads))

    def reload(self) -> bool:
        """Load the run folder again; on failure the model before it stays, and `reload_error` says why."""
        if self.path is None or self.model is None:
            return False
        with self._loading:
            self._loaded_from = self._place()
            try:
                recommender = load(self.path, threads=self.threads)
                self._check_catalogue(recommender)
                self.serve(recommender)
                error = None
            except Exception as failure:  # whatever it is, the old model goes on
                known = isinstance(failure, SASRecError)
                error = str(failure) if known else f"unexpected {type(failure).__name__}: {failure}"
                logger.error("the model could not be reloaded, and the one before it answers: %s", error)
            self.reload_error = error
            self.metrics.reloads.labels("failed" if error else "done").inc()
            self.metrics.reload_ok.set(0 if error else 1)
            if error is None:
                logger.info("model %s answers now", self.model.version)
        return error is None

    def has_moved(self) -> bool:
        """Whether the path leads to another folder than the one loaded last, or tried last."""
        return self.path is not None and self._place() not in (None, self._loaded_from)

    def _place(self) -> tuple[str, int, int] | None:
        assert self.path is not None
        try:
            folder = self.path.resolve(strict=True)
            found = folder.stat()
        except OSError:
            return None
        return str(folder), found.st_dev, found.st_ino

    def _check_catalogue(self, recommender: Recommender) -> None:
        """Refuse a model of another catalogue: a link set wrongly must not replace a model that fits the clients."""
        assert self.model is not None
        before = self.model.vocabulary
        kept = np.count_nonzero(recommender.vocabulary.indices_of(before.ids))
        if kept < KEPT_SHARE * len(before):
            raise CheckpointError(
                f"the model in {self.path} knows {kept} of the {len(before)} items of the model that answers, so it is "
                "of another catalogue; restart the server if that is meant"
            )

    def answer(self, jobs: Sequence[Job]) -> list[bytes | Exception]:
        """The encoded answers of jobs, all by the same model."""
        model = self.model
        if model is None:
            return [RequestError(503, "the model is being loaded; try again in a second")] * len(jobs)
        answers = iter(model.answer([row for job in jobs if not callable(job) for row in job.rows]))
        return [_called(job, model) if callable(job) else self._encoded(job, answers) for job in jobs]

    def _encoded(self, job: RecommendJob, answers: Any) -> bytes | Exception:
        found = [next(answers) for _ in job.rows]
        for answer in found:
            if isinstance(answer, Exception):
                return answer
        self._count(job, found)
        return encode(Answers(found) if job.is_list else found[0])

    def _count(self, job: RecommendJob, answers: Sequence[Answer]) -> None:
        metrics = self.metrics
        metrics.answers.inc(len(answers))
        metrics.history_items.inc(sum(len(row.query.history) for row in job.rows))
        unknown = sum(len(answer.unknown_items) for answer in answers)
        if unknown:
            metrics.unknown_items.inc(unknown)
        fallbacks = sum(answer.fallback for answer in answers)
        if fallbacks:
            metrics.fallbacks.inc(fallbacks)


class RecommendJob(NamedTuple):
    """Rows to recommend for; `is_list`: the answer is a list even of one."""

    rows: list[Row]
    is_list: bool = False


Job = RecommendJob | Callable[[ServedModel], Any]


def _called(call: Callable[[ServedModel], Any], model: ServedModel) -> bytes | Exception:
    try:
        return encode(call(model))
    except RequestError as error:
        return error
