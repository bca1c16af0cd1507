"""One model, never changed, that answers queries in your own ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from sasrec import __version__
from sasrec.core.arrays import Int32
from sasrec.core.errors import ConfigError, RequestError
from sasrec.data.ragged import Ragged
from sasrec.data.sequences import Sequences
from sasrec.ranking.item_filter import ItemFilter
from sasrec.ranking.next_items import ALL_ROWS, Group
from sasrec.recommender import Recommender
from sasrec.serving.decoding import ItemId
from sasrec.serving.exposures import Arm
from sasrec.serving.item_details import ItemDetails
from sasrec.serving.item_search import ItemSearch
from sasrec.serving.schemas import (
    Answer,
    Explanation,
    Item,
    Items,
    Query,
    Reason,
    Recommendation,
    SimilarItems,
    encode,
)

IN_MEMORY_BYTES = 2**28  # histories up to this size are copied into memory: a disk that goes must not end the server
SHORT_LIST = 64  # lists up to this length are computed together; longer ones with those of about their own length
WARM_UP_ROWS = 32
STEP_SECONDS = 0.002  # of the work on an expression's mask before others have their turn


class Row(NamedTuple):
    """A query, of a user of the log when `user` is given: then the history is the user's own."""

    query: Query
    user: ItemId | None = None
    n_events: int = 0  # of the user, as far as it is known before the row is answered
    arm: Arm = "run"  # whose model answers
    hashed_user: bytes | None = None  # who will see the list, where that is measured
    is_shown: bool = True  # somebody will


class EventReader(Protocol):
    """Where users' events since training are found."""

    def events_of(self, user: ItemId) -> list[ItemId]:
        """The items of a user's stored events, oldest first."""


class _Wanted(NamedTuple):
    """A query in item indices, and the ids of it that are unknown."""

    query: Query
    history: Int32
    items: ItemFilter
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
        self.next_items, self.masks = recommender.next_items, recommender.masks
        self._hides_seen = recommender.hides_seen
        self._no_filter = ItemFilter.of(self.vocabulary, None, None)
        self._item_search = ItemSearch(self.vocabulary, self.next_items.popular)
        self._details = ItemDetails(self.vocabulary)

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

    def answer(self, rows: Sequence[Row]) -> list[Answer | RequestError]:
        """An answer to each row, computed together; an error for a row that has none."""
        errors: dict[int, RequestError] = {}
        wanted: list[_Wanted] = []
        for place, row in enumerate(rows):
            try:
                wanted.append(self._wanted(row))
            except RequestError as error:
                errors[place] = error
        found = iter(self._recommend(wanted) if wanted else [])
        return [errors[place] if place in errors else next(found) for place in range(len(rows))]

    def _wanted(self, row: Row) -> _Wanted:
        query = row.query
        history, unknown = self.vocabulary.split_known(query.history if row.user is None else self.history_of(row.user))
        items = self._no_filter if query.where is None else self._filter(query.where)
        if query.allow is not None or query.deny is not None:
            items = ItemFilter.of(self.vocabulary, query.allow, query.deny, items.where)
        return _Wanted(query, history, items, unknown + items.unknown_allow + items.unknown_deny)

    def _filter(self, where: str) -> ItemFilter:
        try:
            return self.masks.filter(where)
        except ConfigError as error:
            raise RequestError(422, str(error)) from None

    def learn(self, steps: Iterator[None]) -> bool:
        """Do a part of the work on an expression's mask, as `ItemMasks.steps` gives it; whether it is done.

        Raises:
            RequestError: 422, it is no expression over the items' columns.
        """
        until = time.perf_counter() + STEP_SECONDS
        try:
            for _ in steps:
                if time.perf_counter() > until:
                    return False
        except ConfigError as error:
            raise RequestError(422, str(error)) from None
        return True

    def history_of(self, user: ItemId) -> list[ItemId]:
        """The items of a user of the log, and of the user's events since.

        Raises:
            RequestError: 404, no such user, or a model without histories.
        """
        if self.sequences is None:
            raise RequestError(404, "this model was saved without histories, so send a history to /v1/recommend")
        ids = self.vocabulary.ids
        row = self._row_of(user, self.sequences)
        history = [ids[index - 1] for index in self.sequences.history(row).tolist()]
        if self.events is None:
            return history
        events = self.events.events_of(self.sequences.user_ids[row])
        return history + not_yet_in(history, events, self.vocabulary.indices_of)

    def n_events_of(self, user: ItemId) -> int:
        """How many events the log has of a user; 0 = the model does not know this user."""
        if self.sequences is None:
            return 0
        try:
            return len(self.sequences.history(self._row_of(user, self.sequences)))
        except RequestError:
            return 0

    def known_user(self, user: ItemId) -> ItemId | None:
        """The user's id as the log has it, however it is spelled; None = the log does not have this user."""
        if self.sequences is None:
            return None
        try:
            known: ItemId = self.sequences.user_ids[self._row_of(user, self.sequences)]
        except RequestError:
            return None
        return known

    def _row_of(self, user: ItemId, sequences: Sequences) -> int:
        try:
            return sequences.row_of_user(user)
        except KeyError as error:
            raise RequestError(
                404, f"this user is not in the log ({len(sequences)} users); send a history to /v1/recommend instead"
            ) from error

    def _recommend(self, wanted: Sequence[_Wanted]) -> list[Answer]:
        """The answers to queries, in their order."""
        histories = Ragged.from_lists([one.history for one in wanted])
        members = _ranked_together([one.query for one in wanted])
        groups = [self._group(wanted, histories, rows) for rows in members]
        lists = self.next_items.top_k_of_groups(histories, groups)
        answers: dict[int, Answer] = {}
        for rows, (indices, scores) in zip(members, lists, strict=True):
            for place, best, values in zip(rows, indices.tolist(), scores.tolist(), strict=True):
                one = wanted[place]
                listed = self._listed(best, values, one.query.k)
                answers[place] = Answer(listed, one.unknown, not len(one.history), self.version)
        return [answers[place] for place in range(len(wanted))]

    def _group(self, wanted: Sequence[_Wanted], histories: Ragged, rows: Sequence[int]) -> Group:
        is_whole = len(rows) == len(wanted)
        hidden = [self._hidden(wanted[row]) for row in rows]
        if is_whole and all(items is one.history for items, one in zip(hidden, wanted, strict=True)):
            ragged: Ragged | None = histories
        else:
            ragged = Ragged.from_lists(hidden) if any(map(len, hidden)) else None
        return Group(
            ALL_ROWS if is_whole else np.array(rows),
            max(wanted[row].query.k for row in rows),
            ragged,
            wanted[rows[0]].items.allow_mask(),  # for all of them the same
            wanted[rows[0]].query.diversity,
        )

    def _hidden(self, one: _Wanted) -> Int32:
        """What the row must not get: the items of its history, if they are hidden, and those it denies."""
        hides_seen = self._hides_seen if one.query.keep_seen is None else not one.query.keep_seen
        if not len(one.items.denied):
            return one.history if hides_seen else one.items.denied
        return np.concatenate([one.history, one.items.denied]) if hides_seen else one.items.denied

    def _listed(self, indices: Sequence[int], scores: Sequence[float], k: int) -> list[Recommendation]:
        """The first k of a list that may end in 0."""
        ids, titles = self.vocabulary.ids, self._titles
        pairs = zip(indices[:k], scores, strict=False)
        if titles is None:
            return [Recommendation(ids[i - 1], s, rank) for rank, (i, s) in enumerate(pairs, 1) if i]
        return [Recommendation(ids[i - 1], s, rank, titles[i - 1]) for rank, (i, s) in enumerate(pairs, 1) if i]

    def similar(self, item: ItemId, k: int, where: str | None = None) -> SimilarItems:
        """The items nearest to one, of those that fulfil an expression.

        Raises:
            RequestError: 404, the item is not known; 422, `where` is no expression over the items' columns.
        """
        index = self._known(item)
        indices, scores = self.next_items.similar(index, k, None if where is None else self._filter(where).where)
        about = self._items([index])[0] if self._details.columns else None
        return SimilarItems(self._listed(indices.tolist(), scores.tolist(), k), self.version, about)

    def _known(self, item: ItemId) -> int:
        index = self.vocabulary.index_of(item)
        if not index:
            n_items = len(self.vocabulary)
            raise RequestError(404, f"this item is not in the log this model was trained on ({n_items} items)")
        return index

    def _items(self, indices: Sequence[int]) -> list[Item]:
        ids, counts, titles = self.vocabulary.ids, self.vocabulary.counts, self._titles
        return [
            Item(ids[i - 1], int(counts[i - 1]), None if titles is None else titles[i - 1], attributes)
            for i, attributes in zip(indices, self._details.of(indices), strict=True)
        ]

    def explain(self, history: Sequence[ItemId], item: ItemId) -> Explanation:
        """Which items of a history speak for an item.

        Raises:
            RequestError: 404, the item, or all of the history, is not known.
        """
        target = self._known(item)
        known, unknown = self.vocabulary.split_known(history)
        if not len(known):
            raise RequestError(404, "the history has no item that this model knows, so there is nothing to explain")
        longest = self.recommender.config.model.max_seq_len
        score, *columns = self.next_items.reasons(known[-longest:], target)
        ids, titles = self.vocabulary.ids, self._titles
        reasons = [
            Reason(ids[index - 1], position, value, None if titles is None else titles[index - 1])
            for index, position, value in zip(*(column.tolist() for column in columns), strict=True)
        ]
        return Explanation(self._items([target])[0], score, reasons, unknown, self.version)

    def search(self, text: str, k: int) -> Items:
        """The items whose title or id has all of these words; without any word, the most popular ones."""
        return Items(self._items(self._item_search.find(text, k).tolist()), self.version)

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
            "attributes": self._details.columns,
            "columns": {name: str(found) for name, found in self.masks.types.items()},
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
            "results": [result.to_dict() for result in self.recommender.results],
        }


def _ranked_together(queries: Sequence[Query]) -> list[list[int]]:
    """Which queries are ranked together: those with `allow` alone, others with those of the same expression.

    And with those that ask for about as many; where lists are diverse, for as many.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, query in enumerate(queries):
        key: Hashable = max(query.k, SHORT_LIST).bit_length()
        if query.allow is not None:
            key = -1 - place
        elif query.where is not None or query.diversity:
            key = query.where, query.diversity, query.k if query.diversity else key
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def _in_memory(sequences: Sequences | None) -> Sequences | None:
    """The histories without the files they lie in, unless they are large; times are not needed."""
    if sequences is None or sequences.items.nbytes > IN_MEMORY_BYTES:
        return sequences
    items, offsets = np.array(sequences.items), np.array(sequences.offsets)
    return replace(sequences, items=items, offsets=offsets, timestamps=None, understanding=None)


def not_yet_in(
    history: Sequence[ItemId], events: Sequence[ItemId], indices_of: Callable[[Sequence[ItemId]], Int32]
) -> list[ItemId]:
    """The events after those that the history ends with: a model trained on a newer log has the first ones already."""
    log, new = indices_of(history[-len(events) :]).tolist() if events else [], indices_of(events).tolist()
    n = next((n for n in range(min(len(log), len(new)), 0, -1) if log[-n:] == new[:n]), 0)
    return list(events[n:])
