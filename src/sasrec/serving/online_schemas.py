"""What the HTTP API takes and gives beside its other classes on a server that measures (`--feedback`)."""

from __future__ import annotations

import re

from msgspec import Struct

from sasrec.core.errors import RequestError
from sasrec.core.server_config import ServerConfig
from sasrec.serving.decoding import Form, ItemId
from sasrec.serving.schemas import INVALID, MAX_ID, Answer, Health, Query, check_length, either

KIND = r"(?!any$)[a-z][a-z0-9_-]{0,31}"


class OnlineQuery(Query, forbid_unknown_fields=True):
    """One history, and what to recommend after it.

    `user_id`: who will see the list, of which a salted hash is kept; it chooses between two models, and changes
    nothing else. `shown`: false where nobody will see the list, so that nothing is kept of it. `allow`: only these
    items; `deny`: none of these. Ids that the model does not know are skipped and listed in the
    answer; where it knows no id of `allow`, the answer has no items. `where`: only items whose attributes fulfil this
    expression. `diversity`: how much less items count that are like those above them, from 0 (off) to 1.
    """

    user_id: ItemId | None = None
    shown: bool = True


class OnlineQueries(Struct, forbid_unknown_fields=True):
    """Several histories, answered in order."""

    requests: list[OnlineQuery]


class MeasuredAnswer(Answer):
    """The best items.

    `unknown_items`: the ids of the history, of `allow` and of `deny`, in this order, that the model does not know.
    `fallback`: nothing of the history was known, so these are popular items (scores are counts).
    `arm`: run, or challenger where a share of the users gets another model. `recommendation_id`: by which feedback
    names this list; null where nobody sees it, or where it could not be kept.
    """

    arm: str
    recommendation_id: str | None


class MeasuredAnswers(Struct):
    """An answer for each history."""

    results: list[MeasuredAnswer]


class Feedback(Struct, forbid_unknown_fields=True):
    """Somebody who saw a list did something with one of its items. `kind`: a short word, such as click."""

    recommendation_id: str
    item_id: ItemId
    kind: str


class Feedbacks(Struct, forbid_unknown_fields=True):
    """Several of them."""

    feedback: list[Feedback]


class Kept(Struct):
    """Feedback that is on disk now. `repeated`: what was there already, and counts once."""

    stored: int
    repeated: int


class KindFigures(Struct):
    """Feedback of a kind: how often, of how many lists, and their share of all lists (null where there are none)."""

    feedback: int
    hits: int
    hit_rate: float | None


class VersionFigures(Struct):
    """A model version in an arm, by what is kept: lists, different items in them, and feedback by kind.

    `coverage`: share of the catalogue that was shown. `any`: lists with feedback of whatever kind.
    """

    model_version: str
    arm: str
    answers_now: bool
    exposures: int
    coverage: float
    any: KindFigures
    kinds: dict[str, KindFigures]


class Figures(Struct):
    """What came of the lists that are kept, the newest version first."""

    versions: list[VersionFigures]


class TwoHealths(Health):
    """Whether requests are answered. `reload_error`: why the newest model was not taken; the one before it answers.

    The same of the challenger.
    """

    challenger_version: str | None
    challenger_reload_error: str | None


class FeedbackReader:
    """Reads bodies of feedback.

    Args:
        limits: of what is taken.
    """

    def __init__(self, limits: ServerConfig) -> None:
        self._most = limits.max_requests
        self._one, self._several = Form(Feedback, check_feedback), Form(Feedbacks, self._check_several)

    def feedback(self, body: bytes) -> list[Feedback]:
        """The body of POST /v1/feedback.

        Raises:
            RequestError: 422.
        """
        found = either(body, self._one, self._several, b'"feedback"')
        return [found] if isinstance(found, Feedback) else found.feedback

    def _check_several(self, found: Feedbacks) -> None:
        check_length(found.feedback, self._most, "feedback")
        for position, one in enumerate(found.feedback):
            check_feedback(one, f"feedback[{position}].")


def check_feedback(one: Feedback, place: str = "") -> None:
    """The sizes of its fields; `place` is what they are called by.

    Raises:
        RequestError: 422.
    """
    if len(str(one.item_id)) > MAX_ID:
        raise RequestError(INVALID, f"{place}item_id is longer than {MAX_ID} characters")
    if not re.fullmatch(KIND, one.kind):
        raise RequestError(
            INVALID,
            f"{place}kind is no short word: at most 32 of a-z, 0-9, _ and -, the first of them a letter; nor is any",
        )


def check_online(query: Query, place: str = "") -> None:
    """The sizes of what a query has beside the usual.

    Raises:
        RequestError: 422.
    """
    if isinstance(query, OnlineQuery) and len(str(query.user_id)) > MAX_ID:
        raise RequestError(INVALID, f"{place}user_id is longer than {MAX_ID} characters")
