"""Which items fulfil an expression: masks over all items, the newest kept within a number of bytes.

Logic has three values. Whatever is asked of a missing value is neither true nor false, and stays so under `not`; an
item is given where the whole is true. A list fulfils a condition where one of its values does; an empty one has no
value. Arithmetic is that of doubles; a result that is not finite is missing. Whole numbers are compared exactly.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from sasrec.core.arrays import Bool, Int32
from sasrec.core.forks import needs_threads_of
from sasrec.data.vocabulary import Vocabulary
from sasrec.ranking.attributes import LARGEST, Attributes, Values
from sasrec.ranking.item_filter import ItemFilter
from sasrec.ranking.next_items import Mask
from sasrec.ranking.where import (
    Arithmetic,
    Between,
    Column,
    ColumnType,
    Comparison,
    Constant,
    In,
    IsNull,
    Junction,
    Like,
    Minus,
    Node,
    Not,
    parse,
)

MASK_BYTES = 2**25  # of kept masks and their texts
TEXT_BYTES = 4500  # of an expression and what is around it, at most
NO_ATTRIBUTES = "; this model knows no attributes of its items, so train it with --item-file FILE"
WILD = {"%": ".*", "_": "."}
MEANT = re.compile(r"[%_\\.+*?()|\[\]{}^$#&~-]")  # what does not stand for itself, in a pattern or in Polars' regex
SIGNS = {
    "=": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide,
}  # fmt: skip


class Verdict(NamedTuple):
    """What is true and what is false, of each item or of each element of lists; neither = unknown."""

    is_true: Bool
    is_false: Bool

    @property
    def is_known(self) -> Bool:
        return self.is_true | self.is_false

    def negated(self) -> Verdict:
        return Verdict(self.is_false, self.is_true)

    def joined(self, word: str, other: Verdict) -> Verdict:
        """This `and` that, or this `or` that."""
        if word == "and":
            return Verdict(self.is_true & other.is_true, self.is_false | other.is_false)
        return Verdict(self.is_true | other.is_true, self.is_false & other.is_false)


class ItemMasks:
    """The masks of a model's items.

    Args:
        vocabulary: whose items.
        max_bytes: that masks are kept in; the newest is kept whatever it takes.
    """

    def __init__(self, vocabulary: Vocabulary, max_bytes: int = MASK_BYTES) -> None:
        self._vocabulary, self._max_bytes = vocabulary, max_bytes
        self._attributes: Attributes | None = None  # made for the first expression
        self._filters: OrderedDict[str, ItemFilter] = OrderedDict()  # by text, the last used last
        self._lock = threading.Lock()

    @property
    def types(self) -> dict[str, ColumnType]:
        """The columns that expressions may name, with their types."""
        return self._columns().types

    def _columns(self) -> Attributes:
        with self._lock:
            if self._attributes is None:
                self._attributes = Attributes(self._vocabulary)
            return self._attributes

    def knows(self, where: str) -> bool:
        """Whether the mask of an expression is kept."""
        return where in self._filters

    def mask(self, where: str) -> Mask:
        """(V,) the items that fulfil an expression; not to be written to.

        Raises:
            ConfigError: it is no expression over these columns.
        """
        mask = self.filter(where).where
        assert mask is not None
        return mask

    def filter(self, where: str) -> ItemFilter:
        """The filter of an expression without lists, kept with its mask.

        Raises:
            ConfigError: it is no expression over these columns.
        """
        with self._lock:
            known = self._filters.get(where) if isinstance(where, str) else None
            if known is not None:
                self._filters.move_to_end(where)
                return known
        work = self._made(where)
        while True:
            try:
                next(work)
            except StopIteration as end:
                made: ItemFilter = end.value
                return made

    def steps(self, where: str) -> Iterator[None]:
        """Make and keep the mask of an expression, a condition at a time.

        Raises:
            ConfigError: in the first step, it is no expression over these columns.
        """
        yield from self._made(where)

    def _made(self, where: str) -> Generator[None, None, ItemFilter]:
        columns = self._columns()
        node = parse(where, columns.types, hint="" if columns.has_own else NO_ATTRIBUTES)
        needs_threads_of("Polars")
        verdict = yield from _Evaluation(columns).verdict(node)
        mask = np.zeros(columns.n_items + 1, bool)
        mask[1:] = verdict.is_true
        mask.setflags(write=False)
        made = ItemFilter.of(self._vocabulary, None, None, mask)
        self._keep(where, made, mask.nbytes)
        return made

    def _keep(self, where: str, made: ItemFilter, n_bytes: int) -> None:
        most = max(self._max_bytes // (n_bytes + TEXT_BYTES), 1)
        with self._lock:
            self._filters[where] = made
            while len(self._filters) > most:
                self._filters.popitem(last=False)


class _Evaluation:
    """Asks columns what an expression says; generators that rest after each condition."""

    def __init__(self, columns: Attributes) -> None:
        self.columns = columns

    def verdict(self, node: Node) -> Generator[None, None, Verdict]:
        """Of a condition, for each item."""
        match node:
            case Junction(word, parts):
                found = yield from self.verdict(parts[0])
                for part in parts[1:]:
                    found = found.joined(word, (yield from self.verdict(part)))
                return found
            case Not(part):
                return (yield from self.verdict(part)).negated()
        yield
        match node:
            case Comparison(sign, left, right):
                return self._by_item(
                    *_compared(sign, (yield from self._values(left)), (yield from self._values(right)))
                )
            case Between(value, low, high, negated):
                asked = yield from self._values(value)
                above, rows = _compared(">=", asked, (yield from self._values(low)))
                below, more = _compared("<=", asked, (yield from self._values(high)))
                above, below, rows = _aligned(above, rows, below, more)
                inside = above.joined("and", below)  # as one question: unknown where any part of it is
                known = above.is_known & below.is_known
                inside = Verdict(inside.is_true & known, inside.is_false & known)
                return self._by_item(inside.negated() if negated else inside, rows)
            case In(value, options, negated):
                return self._chosen(_is_in((yield from self._values(value)), options), negated)
            case Like(value, pattern, negated):
                return self._chosen(_is_like((yield from self._values(value)), pattern), negated)
            case IsNull(value, negated):
                asked = yield from self._values(value)
                has = self._by_item(Verdict(asked.is_there, ~asked.is_there), asked.rows).is_true
                return Verdict(has, ~has) if negated else Verdict(~has, has)
        truth = yield from self._values(node)
        return self._chosen(truth, negated=False)

    def _chosen(self, truth: Values, negated: bool) -> Verdict:
        """Of values that are true or false."""
        found = Verdict(truth.values & truth.is_there, ~truth.values & truth.is_there)
        return self._by_item(found.negated() if negated else found, truth.rows)

    def _by_item(self, verdict: Verdict, rows: Any) -> Verdict:
        """Of each item, by the elements of its list: true where one is, false where one is and none is true."""
        if rows is None:
            return verdict
        is_true, is_decided = np.zeros((2, self.columns.n_items), bool)
        is_true[rows[np.broadcast_to(verdict.is_true, rows.shape)]] = True
        is_decided[rows[np.broadcast_to(verdict.is_known, rows.shape)]] = True
        return Verdict(is_true, is_decided & ~is_true)

    def _values(self, node: Node) -> Generator[None, None, Values]:
        match node:
            case Column(name):
                return self.columns.values(name)
            case Constant(value):
                return _constant(value)
            case Minus(value):
                asked = yield from self._values(value)
                return asked._replace(values=-asked.values.astype(np.float64))
            case Arithmetic(first, rest):
                total = yield from self._values(first)
                for sign, part in rest:
                    total = _computed(sign, total, (yield from self._values(part)))
                return total
        verdict = yield from self.verdict(node)
        return Values(verdict.is_true, verdict.is_known)


def _constant(value: int | float | str | bool) -> Values:
    there = np.array(True)
    if isinstance(value, str):
        return Values(np.array(0, np.int32), there, pl.Series([value]))
    is_whole = isinstance(value, int) and -LARGEST - 1 <= value <= LARGEST
    return Values(np.array(value if is_whole else float(value)), there)


def _side_by_side(left: Values, right: Values) -> tuple[Values, Values]:
    """Both with a value for each element, where one of them is of lists."""
    if left.rows is None and right.rows is not None:
        return _for_elements(left, right.rows), right
    if right.rows is None and left.rows is not None:
        return left, _for_elements(right, left.rows)
    return left, right


def _for_elements(values: Values, rows: Any) -> Values:
    if not values.values.ndim:
        return values._replace(rows=rows)
    return values._replace(values=values.values[rows], is_there=values.is_there[rows], rows=rows)


def _aligned(left: Verdict, rows: Any, right: Verdict, other: Any) -> tuple[Verdict, Verdict, Any]:
    """Two verdicts on the same value, each of elements where the value or its bound is a list."""
    if rows is None and other is not None:
        left = Verdict(*(part if not part.ndim else part[other] for part in left))
    if other is None and rows is not None:
        right = Verdict(*(part if not part.ndim else part[rows] for part in right))
    return left, right, other if rows is None else rows


def _computed(sign: str, left: Values, right: Values) -> Values:
    left, right = _side_by_side(left, right)
    with np.errstate(all="ignore"):
        result = np.asarray(SIGNS[sign](left.values.astype(np.float64), right.values.astype(np.float64)))
    return Values(result, left.is_there & right.is_there & np.isfinite(result), rows=left.rows)


def _compared(sign: str, left: Values, right: Values) -> tuple[Verdict, Any]:
    """The verdict on each element, and the items of the elements."""
    left, right = _side_by_side(left, right)
    a, b = (left.values, right.values) if left.words is None else _places(left, right)
    found, is_there = np.asarray(SIGNS[sign](a, b)), left.is_there & right.is_there
    return Verdict(found & is_there, ~found & is_there), left.rows


def _places(left: Values, right: Values) -> tuple[Any, Any]:
    """Numbers that are in the order of texts of two columns: odd ones stand for the first one's own texts."""
    assert left.words is not None
    assert right.words is not None
    if len(left.words) < len(right.words):
        b, a = _places(right, left)
        return a, b
    if not len(left.words):
        return left.values, right.values  # all are missing
    between = left.words.search_sorted(right.words, "left") + left.words.search_sorted(right.words, "right")
    places = np.append(between.to_numpy().astype(np.int64), 0)
    return 2 * left.values.astype(np.int64) + 1, places[right.values]


def _is_in(asked: Values, options: tuple[Any, ...]) -> Values:
    if asked.words is not None:
        return _by_word(asked, asked.words.is_in(list(options)))
    if asked.values.dtype != np.int64:
        return asked._replace(values=np.isin(asked.values, np.array(options, asked.values.dtype)))
    whole = [int(o) for o in options if float(o).is_integer() and -LARGEST - 1 <= o <= LARGEST]
    return asked._replace(values=np.isin(asked.values, np.array(whole, np.int64)))


def _is_like(asked: Values, pattern: str) -> Values:
    """% stands for any characters, _ for one."""
    assert asked.words is not None
    regex = MEANT.sub(lambda found: WILD.get(found[0], f"\\{found[0]}"), pattern)
    return _by_word(asked, asked.words.str.contains(f"^(?s:{regex})$"))


def _by_word(asked: Values, is_word: pl.Series) -> Values:
    """Truths of texts, by those of the distinct ones."""
    truths: Bool = np.append(is_word.to_numpy(), False)
    places: Int32 = asked.values
    return Values(np.asarray(truths[places]), asked.is_there, rows=asked.rows)
