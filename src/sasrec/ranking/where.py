"""The language of `where`: a text becomes an expression, checked against the columns that items have.

    condition   category = 'lego' and (price < 30 or price is null) and not brand in ('x', 'y')
    values      columns, numbers, 'texts', true, false; + - * / of numbers
    conditions  = == != <> < <= > >=, [not] in (...), [not] like '...', [not] between ... and ..., is [not] null

Nothing here is run: `masks` asks the columns. An error names a position, what was expected there, and the columns, and
never repeats the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, NoReturn

from sasrec.core.errors import ConfigError
from sasrec.core.suggestions import nearest
from sasrec.core.tables import printable

MAX_LENGTH = 1000  # characters, so there are never as many as 1,000 values
MAX_DEPTH = 32  # of parentheses, `not` and signs within each other
MAX_NAME = 40  # characters of a column's name in a message
MAX_NAMES = 200  # characters of all of them

Kind = Literal["number", "text", "truth"]


class ColumnType(NamedTuple):
    """What a column holds."""

    kind: Kind
    is_list: bool = False  # an item has any number of these

    def __str__(self) -> str:
        kind = "true or false" if self.kind == "truth" else self.kind
        return f"{kind}, list" if self.is_list else kind


class Column(NamedTuple):
    """What an item has under this name."""

    name: str


class Constant(NamedTuple):
    """A number, a text, true or false."""

    value: int | float | str | bool


class Minus(NamedTuple):
    """The number below zero."""

    value: Node


class Arithmetic(NamedTuple):
    """first + a - b, or first * a / b, from left to right."""

    first: Node
    rest: tuple[tuple[str, Node], ...]


class Comparison(NamedTuple):
    """left < right, and so on."""

    sign: str  # one of = != < <= > >=
    left: Node
    right: Node


class In(NamedTuple):
    """value in (a, b)."""

    value: Node
    options: tuple[int | float | str | bool, ...]
    is_negated: bool


class Like(NamedTuple):
    """value like 'a%'."""

    value: Node
    pattern: str
    is_negated: bool


class Between(NamedTuple):
    """value between low and high, both included."""

    value: Node
    low: Node
    high: Node
    is_negated: bool


class IsNull(NamedTuple):
    """value is null."""

    value: Node
    is_negated: bool


class Not(NamedTuple):
    """not part."""

    part: Node


class Junction(NamedTuple):
    """part and part and part, or with or."""

    word: Literal["and", "or"]
    parts: tuple[Node, ...]


Node = (
    Column | Constant | Minus | Arithmetic | Comparison | In | Like | Between | IsNull | Not | Junction
)  # the last seven are conditions


class Token(NamedTuple):
    """A piece of the text."""

    kind: str  # number, text, name (in double quotes), word, sign, end
    text: str
    at: int  # characters before it


class Part(NamedTuple):
    """A node with what the checks need of it."""

    node: Node
    kind: Kind
    at: int
    listed: str | None = None  # the list column that the node's values come from


TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<text>'(?:[^']|'')*+')"
    r'|(?P<name>"(?:[^"]|"")*+")'
    r"|(?P<word>[^\W\d]\w*)"
    r"|(?P<sign><>|<=|>=|!=|==|[=<>+\-*/(),])"
)
SPACE = re.compile(r"\s*")
KEYWORDS = {"and", "or", "not", "in", "like", "is", "null", "between", "true", "false"}
COMPARISONS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
AN: dict[Kind, str] = {"number": "a number", "text": "a text in single quotes", "truth": "true or false"}
IS: dict[Kind, str] = {"number": "a number", "text": "text", "truth": "a condition"}
A_VALUE = "a value was expected: a column, a number, a text in single quotes, true or false"


def parse(text: str, columns: Mapping[str, ColumnType], *, hint: str = "") -> Node:
    """The expression that a text says.

    Args:
        text: the expression.
        columns: that there are, with their types.
        hint: put behind the columns in messages.

    Raises:
        ConfigError: it is none, or not of these columns.
    """
    if not isinstance(text, str):
        raise ConfigError(f"where is of type {type(text).__name__}; give one expression as a text")
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"where has {len(text)} characters, and at most {MAX_LENGTH} are taken")
    return _Parser(text, columns, hint).whole()


def _columns_told(columns: Mapping[str, ColumnType]) -> str:
    """The columns, for a message; of very many the first."""
    told: list[str] = []
    for name, found in columns.items():
        one = f"{_shown(name)} ({found})"
        if sum(map(len, told)) + len(one) > MAX_NAMES:
            return f"{', '.join(told)} and {len(columns) - len(told)} more"
        told.append(one)
    return ", ".join(told)


def _shown(name: str) -> str:
    """A column's own name, in one line of bounded length."""
    name = printable(" ".join(name.split()))
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."


class _Parser:
    """Reads one text by recursive descent; each method takes what its name says and returns it."""

    def __init__(self, text: str, columns: Mapping[str, ColumnType], hint: str) -> None:
        self.columns, self.hint, self.depth, self.place = columns, hint, 0, 0
        self.tokens = self._tokens(text)

    def _fail(self, at: int, what: str) -> NoReturn:
        there_are = f"the columns are {_columns_told(self.columns)}"
        raise ConfigError(f"where, character {at + 1}: {what}; {there_are}{self.hint}")

    def _tokens(self, text: str) -> list[Token]:
        tokens, at = [], _space(text, 0)
        while at < len(text):
            found = TOKEN.match(text, at)
            if found is None:
                open_quote = {"'": "a text", '"': "a column's name"}.get(text[at])
                self._fail(
                    at, f"{open_quote} begins here and does not end" if open_quote else "this means nothing here"
                )
            kind = str(found.lastgroup)
            tokens.append(Token(kind, found[0], at))
            at = _space(text, found.end())
        return [*tokens, Token("end", "", len(text))]

    # What comes next

    @property
    def next(self) -> Token:
        return self.tokens[self.place]

    def _is(self, word: str) -> bool:
        """Whether a keyword or sign comes next."""
        kind, text, _ = self.next
        return text.lower() == word if kind == "word" else text == word and kind == "sign"

    def _take(self, word: str) -> bool:
        found = self._is(word)
        self.place += found
        return found

    def _need(self, word: str, what: str) -> None:
        if not self._take(word):
            self._fail(self.next.at, f"{what} was expected")

    def _deeper(self, parse: Callable[[], Part]) -> Part:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._fail(self.next.at, f"more than {MAX_DEPTH} parentheses, signs and nots are within each other")
        part = parse()
        self.depth -= 1
        return part

    # Conditions

    def whole(self) -> Node:
        node = self._condition(self._either())
        if self.next.kind != "end":
            self._fail(self.next.at, "the end, or and / or, was expected")
        return node

    def _either(self) -> Part:
        return self._joined("or", lambda: self._joined("and", self._negation))

    def _joined(self, word: Literal["and", "or"], parse: Callable[[], Part]) -> Part:
        first = parse()
        if not self._is(word):
            return first
        parts = [self._condition(first)]
        while self._take(word):
            parts.append(self._condition(parse()))
        return Part(Junction(word, tuple(parts)), "truth", first.at)

    def _condition(self, part: Part) -> Node:
        if part.kind != "truth":
            self._fail(part.at, f"a condition was expected, and this is {IS[part.kind]}")
        return part.node

    def _negation(self) -> Part:
        at = self.next.at
        if not self._take("not"):
            return self._comparison()
        return Part(Not(self._condition(self._deeper(self._negation))), "truth", at)

    def _comparison(self) -> Part:
        left = self._sum()
        kind, text, _ = self.next
        if kind == "sign" and text in COMPARISONS:
            self.place += 1
            return self._compared(left, COMPARISONS[text])
        if self._take("is"):
            negated = self._take("not")
            self._need("null", "null")
            return Part(IsNull(left.node, negated), "truth", left.at)
        negated = self._take("not")
        for word, parse in (("in", self._in), ("like", self._like), ("between", self._between)):
            if self._take(word):
                return Part(parse(left, negated), "truth", left.at)
        if negated:
            self._fail(self.next.at, "in, like or between was expected")
        return left

    def _compared(self, left: Part, sign: str) -> Part:
        if left.kind == "truth" and sign not in ("=", "!="):
            self._fail(left.at, "true and false have no order, so = or != was expected")
        right = self._alike(left, self._sum())
        if self.next.text in COMPARISONS:
            self._fail(self.next.at, "and was expected: comparisons do not follow each other")
        return Part(Comparison(sign, left.node, right.node), "truth", left.at)

    def _alike(self, left: Part, right: Part) -> Part:
        """The right side, if it can be compared with the left one."""
        if left.kind != right.kind:
            self._fail(right.at, f"{AN[left.kind]} was expected, as on the other side, and this is {IS[right.kind]}")
        self._one_list(left, right)
        return right

    def _one_list(self, left: Part, right: Part) -> str | None:
        """The list column of both sides."""
        if left.listed and right.listed and left.listed != right.listed:
            self._fail(right.at, "a column without lists was expected, as a list is on the other side")
        return left.listed or right.listed

    def _in(self, value: Part, negated: bool) -> Node:
        self._need("(", "( with values in it")
        options = [self._option(value)]
        while self._take(","):
            options.append(self._option(value))
        self._need(")", ", or )")
        return In(value.node, tuple(options), negated)

    def _option(self, value: Part) -> int | float | str | bool:
        """A constant of the same kind as a value."""
        part = self._signed()
        if not isinstance(part.node, Constant) or part.kind != value.kind:
            self._fail(part.at, f"{AN[value.kind]} was expected")
        return part.node.value

    def _like(self, value: Part, negated: bool) -> Node:
        if value.kind != "text":
            self._fail(value.at, f"text was expected before like, and this is {IS[value.kind]}")
        return Like(value.node, str(self._option(value)), negated)

    def _between(self, value: Part, negated: bool) -> Node:
        if value.kind == "truth":
            self._fail(value.at, "a number or text was expected before between, and this is a condition")
        low = self._alike(value, self._sum())
        self._need("and", "and with the upper bound")
        high = self._alike(value, self._sum())
        self._one_list(low, high)
        return Between(value.node, low.node, high.node, negated)

    # Values

    def _sum(self) -> Part:
        return self._chain(("+", "-"), lambda: self._chain(("*", "/"), self._signed))

    def _chain(self, signs: tuple[str, str], parse: Callable[[], Part]) -> Part:
        first = parse()
        rest, listed = [], first.listed
        while self.next.kind == "sign" and self.next.text in signs:
            sign = self.next.text
            self.place += 1
            part = parse()
            listed = self._one_list(first._replace(listed=listed), part)
            rest.append((sign, self._number(part)))
        if not rest:
            return first
        return Part(Arithmetic(self._number(first), tuple(rest)), "number", first.at, listed)

    def _number(self, part: Part) -> Node:
        if part.kind != "number":
            self._fail(part.at, f"a number was expected, and this is {IS[part.kind]}")
        return part.node

    def _signed(self) -> Part:
        at = self.next.at
        if self._take("-"):
            part = self._deeper(self._signed)
            node = self._number(part)
            if isinstance(node, Constant):
                return part._replace(node=Constant(-node.value), at=at)  # type: ignore[operator]
            return part._replace(node=Minus(node), at=at)
        if self._take("+"):
            part = self._deeper(self._signed)
            self._number(part)
            return part._replace(at=at)
        return self._primary()

    def _primary(self) -> Part:
        kind, text, at = self.next
        if self._take("("):
            part = self._deeper(self._either)
            self._need(")", "and, or, or )" if part.kind == "truth" else ")")
            return part._replace(at=at)
        self.place += 1
        if kind == "number":
            return Part(Constant(self._number_said(text, at)), "number", at)
        if kind == "text":
            return Part(Constant(self._text_said(text, at)), "text", at)
        if kind == "name":
            return self._column(text[1:-1].replace('""', '"'), at)
        word = text.lower()
        if kind == "word" and word in ("true", "false"):
            return Part(Constant(word == "true"), "truth", at)
        if kind == "word" and word == "null":
            self._fail(at, "a value was expected; is null and is not null ask whether there is one")
        if kind != "word" or word in KEYWORDS:
            self._fail(at, A_VALUE)
        return self._column(text, at)

    def _number_said(self, text: str, at: int) -> int | float:
        number = int(text) if text.isdigit() else float(text)
        if abs(number) > 1e300:
            self._fail(at, "a number below 1e300 was expected")
        return number

    def _text_said(self, text: str, at: int) -> str:
        if not _is_unicode(text):
            self._fail(at, "a text of whole characters was expected")
        return text[1:-1].replace("''", "'")

    def _column(self, name: str, at: int) -> Part:
        if name not in self.columns:
            near = nearest(name, self.columns)
            meant = "; a text stands in single quotes" if near is None else f", perhaps {_shown(near)} is meant"
            self._fail(at, f"a column was expected, and none has this name{meant}")
        kind, is_list = self.columns[name]
        return Part(Column(name), kind, at, name if is_list else None)


def _space(text: str, at: int) -> int:
    """Where the next character stands that is no space."""
    found = SPACE.match(text, at)
    assert found is not None
    return found.end()


def _is_unicode(text: str) -> bool:
    """Whether there is no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
