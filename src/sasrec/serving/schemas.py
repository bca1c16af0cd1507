"""The requests and answers of the HTTP API, and the checks of requests; an error is one sentence.

Msgspec decodes and encodes these classes, and openapi.py describes them, so that what is checked is what is documented.
An error never repeats text of the request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from sasrec.core.errors import RequestError
from sasrec.core.server_config import ServerConfig
from sasrec.ranking.where import MAX_LENGTH
from sasrec.serving.decoding import Form, ItemId

Header = tuple[bytes, bytes]
DEFAULT_K = 10
MAX_TEXT = 200  # characters of a search
MAX_ID = 512  # characters of an id in an event
MAX_SENTENCE = 500  # characters of an error
INVALID = 422
TRUTH = {"true": True, "1": True, "false": False, "0": False}


class Query(Struct, forbid_unknown_fields=True):
    """One history, and what to recommend after it.

    `allow`: only these items; `deny`: none of these. Ids that the model does not know are skipped and listed in the
    answer; where it knows no id of `allow`, the answer has no items. `where`: only items whose attributes fulfil this
    expression. `diversity`: how much less items count that are like those above them, from 0 (off) to 1.
    """

    history: list[ItemId]
    k: int = DEFAULT_K
    allow: list[ItemId] | None = None
    deny: list[ItemId] | None = None
    keep_seen: bool | None = None
    where: str | None = None
    diversity: float = 0.0


class Queries(Struct, forbid_unknown_fields=True):
    """Several histories, answered in order."""

    requests: list[Query]


class ExplainQuery(Struct, forbid_unknown_fields=True):
    """A history, and the item whose place is to be explained."""

    history: list[ItemId]
    item_id: ItemId


class Event(Struct, forbid_unknown_fields=True):
    """A known user met an item."""

    user_id: ItemId
    item_id: ItemId


class Events(Struct, forbid_unknown_fields=True):
    """Several events, in the order they happened."""

    events: list[Event]


class Recommendation(Struct, omit_defaults=True):
    """An item with its score; ranks are from 1. `title` is there when the model knows it."""

    item_id: ItemId
    score: float
    rank: int
    title: str | None = None


class Answer(Struct):
    """The best items.

    `unknown_items`: the ids of the history, of `allow` and of `deny`, in this order, that the model does not know.
    `fallback`: nothing of the history was known, so these are popular items (scores are counts).
    """

    items: list[Recommendation]
    unknown_items: list[ItemId]
    fallback: bool
    model_version: str


class Answers(Struct):
    """An answer for each history."""

    results: list[Answer]


class Item(Struct, omit_defaults=True):
    """An item of the catalogue, with its events in the log and what else is known of it, at most 20 attributes."""

    item_id: ItemId
    count: int
    title: str | None = None
    attributes: dict[str, Any] | None = None


class SimilarItems(Struct, omit_defaults=True):
    """The items nearest to one by the cosine of their embeddings; `item` is this one, where items have attributes."""

    items: list[Recommendation]
    model_version: str
    item: Item | None = None


class Items(Struct):
    """Items found."""

    items: list[Item]
    model_version: str


class Reason(Struct, omit_defaults=True):
    """An item of the history (position from 0, the oldest known) and how much the score falls without it."""

    item_id: ItemId
    position: int
    contribution: float
    title: str | None = None


class Explanation(Struct):
    """Why an item: its score, and the items of the history that speak for it, the strongest first."""

    item: Item
    score: float
    reasons: list[Reason]
    unknown_items: list[ItemId]
    model_version: str


class Stored(Struct):
    """Events that are on disk now; `unknown_items` count once a model knows them."""

    stored: int
    unknown_items: list[ItemId]


class Problem(Struct):
    """What is wrong, in one sentence."""

    error: str


class Health(Struct):
    """Whether requests are answered. `reload_error`: why the newest model was not taken; the one before it answers."""

    status: str
    model_version: str | None
    reload_error: str | None


Single = TypeVar("Single")
Several = TypeVar("Several")
Body = TypeVar("Body")
encode = msgspec.json.Encoder().encode


def sentence(text: str) -> str:
    """An error as it is told: its beginning, where it quotes something long."""
    return text if len(text) <= MAX_SENTENCE else f"{text[:MAX_SENTENCE]} ..."


class Reader:
    """Reads request bodies.

    Args:
        limits: of what is taken.
        query: what a query is, and `queries` several.
        check_more: what a query has beside the usual; raises RequestError.
    """

    def __init__(
        self,
        limits: ServerConfig,
        query: type[Query] = Query,
        queries: type[Any] = Queries,
        check_more: Callable[[Any, str], None] | None = None,
    ) -> None:
        self.limits, self._check_more = limits, check_more
        self.default_k = min(DEFAULT_K, limits.max_k)
        if self.default_k != DEFAULT_K:
            query = msgspec.defstruct("Query", [("k", int, self.default_k)], bases=(query,), forbid_unknown_fields=True)  # type: ignore[assignment]
            several = [("requests", list[query])]  # type: ignore[valid-type]
            queries = msgspec.defstruct("Queries", several, bases=(queries,), forbid_unknown_fields=True)
        self._query, self._queries = Form(query, self.check), Form(queries, self._check_queries)
        self._explain = Form(ExplainQuery, self._check_explain)
        self._event, self._events = Form(Event, _check_event), Form(Events, self._check_events)

    def queries(self, body: bytes) -> Query | list[Query]:
        """The body of POST /v1/recommend.

        Raises:
            RequestError: 422.
        """
        found = either(body, self._query, self._queries, b'"requests"')
        if isinstance(found, Query):
            return found
        several: list[Query] = found.requests
        return several

    def explain(self, body: bytes) -> ExplainQuery:
        """The body of POST /v1/explain.

        Raises:
            RequestError: 422.
        """
        return _decoded(body, self._explain)

    def events(self, body: bytes) -> list[Event]:
        """The body of POST /v1/events.

        Raises:
            RequestError: 422.
        """
        found = either(body, self._event, self._events, b'"events"')
        return [found] if isinstance(found, Event) else found.events

    def check(self, query: Query, place: str = "") -> None:
        """The sizes of a query; `place` is what its fields are called by.

        Raises:
            RequestError: 422.
        """
        limits = self.limits
        check_length(query.history, limits.max_history, f"{place}history")
        if query.allow is not None:
            check_length(query.allow, limits.max_filter, f"{place}allow")
        if query.deny is not None:
            check_length(query.deny, limits.max_filter, f"{place}deny")
        if query.where is not None:
            check_where(query.where, place)
        if not 1 <= query.k <= limits.max_k:
            raise RequestError(INVALID, f"{place}k is not a number of items from 1 to {limits.max_k}")
        if not 0 <= query.diversity <= 1:
            raise RequestError(INVALID, f"{place}diversity is not a number from 0 (off) to 1")
        if self._check_more is not None:
            self._check_more(query, place)

    def _check_queries(self, queries: Queries) -> None:
        check_length(queries.requests, self.limits.max_requests, "requests")
        for position, query in enumerate(queries.requests):
            self.check(query, f"requests[{position}].")

    def _check_explain(self, query: ExplainQuery) -> None:
        check_length(query.history, self.limits.max_history, "history")

    def _check_events(self, events: Events) -> None:
        check_length(events.events, self.limits.max_requests, "events")
        for position, event in enumerate(events.events):
            _check_event(event, f"events[{position}].")


def check_length(values: Sequence[object], most: int, name: str) -> None:
    """The length of a list that is called by this name.

    Raises:
        RequestError: 422.
    """
    if len(values) > most:
        raise RequestError(INVALID, f"{name} has {len(values)} elements, and at most {most} are taken; send fewer")


def check_where(where: str, place: str = "") -> None:
    """The length of an expression.

    Raises:
        RequestError: 422.
    """
    if len(where) > MAX_LENGTH:
        raise RequestError(INVALID, f"{place}where has {len(where)} characters, and at most {MAX_LENGTH} are taken")


def _check_event(event: Event, where: str = "") -> None:
    for name in ("user_id", "item_id"):
        if len(str(getattr(event, name))) > MAX_ID:
            raise RequestError(INVALID, f"{where}{name} is longer than {MAX_ID} characters")


def either(body: bytes, single: Form[Single], several: Form[Several], mark: bytes) -> Single | Several:
    """The body as the single kind, or, if that does not fit and the mark of the other occurs, as several."""
    try:
        return single.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _decoded(body, several) if mark in body else _decoded(body, single)


def _decoded(body: bytes, form: Form[Body]) -> Body:
    try:
        return form.decode(body)
    except UnicodeDecodeError as error:
        raise RequestError(INVALID, "the request body is not UTF-8") from error
    except msgspec.MsgspecError as error:
        raise RequestError(INVALID, f"the request body does not fit: {_described(str(error), form.kind)}") from error


def _described(text: str, kind: Any) -> str:
    """The decoder's words, but for the names of unknown fields, which are the client's own text."""
    if "unknown field" in text:
        fields = next((inner for name, inner in _elements(kind) if f"$.{name}[" in text), kind)
        return f"it has a field that is not one of {', '.join(fields.__struct_fields__)}"
    text = text.replace("`", "")
    return text if text[:2].isupper() else text[0].lower() + text[1:]


def _elements(kind: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a body that are lists of bodies of their own, and what those are."""
    for field in msgspec.structs.fields(kind):
        inner = getattr(field.type, "__args__", (None,))[0]
        if isinstance(inner, type) and issubclass(inner, Struct):
            yield field.name, inner


class Parameters:
    """The query string of a GET.

    Args:
        query_string: as sent.
        names: that this route knows.

    Raises:
        RequestError: 422, it has another name, or too many of them.
    """

    def __init__(self, query_string: bytes, *names: str) -> None:
        self._values: dict[str, list[str]] = {}
        try:
            pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=100_000)
        except ValueError as error:
            raise RequestError(INVALID, "the query string has too many fields") from error
        for name, value in pairs:
            if name not in names:
                raise RequestError(INVALID, f"a parameter is not one of {', '.join(names) or 'those known (none)'}")
            self._values.setdefault(name, []).append(value)

    def _one(self, name: str) -> str | None:
        values = self._values.get(name, [])
        if len(values) > 1:
            raise RequestError(INVALID, f"{name} is given more than once")
        return values[0] if values else None

    def integer(self, name: str, default: int, most: int) -> int:
        """A number from 1 to most."""
        text = self._one(name)
        if text is None:
            return default
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
        if not 1 <= number <= most:
            raise RequestError(INVALID, f"{name} is not a number of items from 1 to {most}")
        return number

    def share(self, name: str) -> float:
        """A number from 0 to 1; 0 when it is not given."""
        text = self._one(name)
        try:
            number = float(text or "nan") if text is not None else 0.0
        except ValueError:
            number = math.nan
        if not 0 <= number <= 1:
            raise RequestError(INVALID, f"{name} is not a number from 0 (off) to 1")
        return number

    def expression(self, name: str) -> str | None:
        """A text of bounded length; None when it is not given."""
        text = self._one(name)
        if text is not None:
            check_where(text)
        return text

    def flag(self, name: str) -> bool | None:
        """True or false; None when it is not given."""
        text = self._one(name)
        if text is None:
            return None
        if text not in TRUTH:
            raise RequestError(INVALID, f"{name} is neither true nor false")
        return TRUTH[text]

    def ids(self, name: str) -> list[ItemId] | None:
        """The ids of a parameter that is given once for each; None when it is not given."""
        values = self._values.get(name)
        return None if values is None else list(values)

    def text(self, name: str) -> str:
        """Words; empty when not given."""
        text = self._one(name) or ""
        if len(text) > MAX_TEXT:
            raise RequestError(INVALID, f"{name} is longer than {MAX_TEXT} characters")
        return text
