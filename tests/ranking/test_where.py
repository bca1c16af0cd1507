"""Expressions over items' attributes: whatever is typed gives a mask or one sentence, and masks are as logic says."""

from __future__ import annotations

import datetime
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sasrec.core.errors import ConfigError
from sasrec.data.vocabulary import Vocabulary
from sasrec.ranking.masks import TEXT_BYTES, ItemMasks
from sasrec.ranking.where import MAX_DEPTH, MAX_LENGTH, ColumnType, parse

BIG = 2**53
ATTRIBUTES = {
    "brand": ["lego", "duplo", None, "Lego", "", "100%", "a_b"],
    "price": [10.0, None, math.nan, 50.5, 0.0, math.inf, -3.0],
    "tags": [["a", "b"], [], None, ["c", None], ["a"], [None], ["O'Neil", "日本\n"]],
    "sizes": [[1, 2], [5], None, [], [None, 7], [2], [BIG + 1, 0]],
    "in_stock": [True, False, None, True, None, False, True],
    "flags": [[True], [False, True], [None], [], None, [False], [True]],
    "year": [BIG + 1, BIG, None, -3, 0, 1999, 2024],
    "two words": [1, 2, 3, None, 5, 6, 7],
}
TITLES = ["The Sting", "x%y", None, "The Stingray", "émile", "a.b*c", "line\nbreak"]
COUNTS = [3, 0, 9, 9, 1, 2, 40]


def vocabulary(**attributes: Any) -> Vocabulary:
    frame = pl.DataFrame(attributes or ATTRIBUTES, strict=False)
    n = len(frame)
    return Vocabulary(pl.Series(range(10, 10 + n)), np.array(COUNTS[:n]), pl.Series(TITLES[:n]), frame)


MASKS = ItemMasks(vocabulary(), max_bytes=2**20)


def found(where: str, masks: ItemMasks = MASKS) -> list[int]:
    """The items, by their places from 0."""
    mask = masks.mask(where)
    assert mask.dtype == bool
    assert not mask[0]
    return np.flatnonzero(mask[1:]).tolist()


def error(where: Any, masks: ItemMasks = MASKS) -> str:
    with pytest.raises(ConfigError) as refused:
        masks.mask(where)
    return str(refused.value)


@pytest.mark.parametrize(
    ("where", "items"),
    [
        ("brand = 'lego' and price < 30", [0]),
        ("BRAND_IS_FINE = 1", None),
        ("brand == 'lego' OR brand <> 'lego' And price >= 50", [0, 3]),
        ("(brand == 'lego' OR brand <> 'lego') And price >= 50", [3]),
        ("not brand = 'lego'", [1, 3, 4, 5, 6]),  # the item without a brand never matches
        ("brand in ('lego', 'duplo')", [0, 1]),
        ("brand not in ('lego', 'duplo')", [3, 4, 5, 6]),
        ("brand is null", [2]),
        ("brand is not null and brand < 'b'", [3, 4, 5, 6]),
        ("title like 'The St%'", [0, 3]),
        ("title like 'the st%'", []),  # case counts
        ("title like '%ing'", [0]),
        ("title like 'x%y'", [1]),
        ("title like 'a.b*c'", [5]),
        ("title like '%.%'", [5]),
        ("title like '_mile'", [4]),  # one character, however many bytes
        ("title like 'line_break'", [6]),
        ("title not like '%e%'", [1, 5]),
        ("price * 2 + 1 > 21", [3]),
        ("price - 1 - 1 = 8", [0]),
        ("8 / 2 / 2 = 2", list(range(7))),
        ("-price = 3", [6]),
        ("- -price = -3 and +price < 0", [6]),
        ("1 / price > 0", [0, 3]),  # nothing is divided by zero
        ("not (1 / price > 0)", [6]),
        ("price / 0 is null", list(range(7))),
        ("price is null", [1, 2, 5]),  # NaN and infinity are nobody's price
        ("price * 1e300 * 1e300 > 0 or not price * 1e300 * 1e300 > 0", [4]),  # what overflows is missing, 0 is not
        (f"year = {BIG + 1}", [0]),  # whole numbers are exact
        (f"year > {BIG} or year in ({BIG}, -3.0)", [0, 1, 3]),
        ("year < 99999999999999999999999", [0, 1, 3, 4, 5, 6]),
        ("year between -3 and 1999.5", [3, 4, 5]),
        ("year not between -3 and 1999.5", [0, 1, 6]),
        ("tags = 'a'", [0, 4]),
        ("tags != 'a'", [0, 3, 6]),  # another one than a is there
        ("not tags = 'a'", [3, 6]),  # there are some, and none is a
        ("tags in ('b', 'c')", [0, 3]),
        ("tags not in ('b', 'c')", [0, 4, 6]),
        ("tags is null", [1, 2, 5]),
        ("tags = 'O''Neil' and tags like '日_\n'", [6]),
        ("sizes between 2 and 6", [0, 1, 5]),
        ("sizes > price", [4, 6]),
        ("sizes + sizes = 14 or count * sizes = 3", [0, 4]),
        ("in_stock", [0, 3, 6]),
        ("not in_stock", [1, 5]),
        ("in_stock = false", [1, 5]),
        ("in_stock != (price > 20)", [0, 6]),
        ("flags", [0, 1, 6]),
        ("not flags", [5]),
        ("(price > 20) is null", [1, 2, 5]),
        ("true and not false", list(range(7))),
        ("item_id = 12 or count > 39", [2, 6]),
        ('"two words" >= 6', [5, 6]),
        ("title < brand", [0]),
        ("brand between 'a' and 'm'", [0, 1, 6]),
        ("'lego' = brand", [0]),
        ("'b' > 'a' and 'a' = 'a'", list(range(7))),
        ("2 between price and 12", [4, 6]),
        ("not (5 between 6 and price)", [0, 3, 4, 6]),
        ("not (5 >= 6 and 5 <= price)", list(range(7))),  # 5 >= 6 is false, whatever else there is
        ("\n brand\t=\r\n'lego' ", [0]),
    ],
)
def test_an_expression_leaves_these_items(where: str, items: list[int] | None) -> None:
    if items is None:
        assert "a column was expected" in error(where)
    else:
        assert found(where) == items


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", "character 1: a value was expected: a column, a number, a text in single quotes, true or false"),
        ("brand", "character 1: a condition was expected, and this is text"),
        ("price > 3 and brand", "character 15: a condition was expected, and this is text"),
        ("bran = 'x'", "character 1: a column was expected, and none has this name, perhaps brand is meant"),
        ("Price > 3", "perhaps price is meant"),
        ('brand = "lego"', "character 9: a column was expected, and none has this name; a text stands in single"),
        ("price = 'a'", "character 9: a number was expected, as on the other side, and this is text"),
        ("brand = 3", "character 9: a text in single quotes was expected, as on the other side, and this is a number"),
        ("sizes = (tags = 'a')", "character 9: a number was expected, as on the other side, and this is a condition"),
        ("(price > 3", "character 11: and, or, or ) was expected"),
        ("(price + 3", "character 11: ) was expected"),
        ("price >", "character 8: a value was expected"),
        ("price > 3 price", "character 11: the end, or and / or, was expected"),
        ("price > 3)", "character 10: the end"),
        ("brand = 'abc", "character 9: a text begins here and does not end"),
        ('"brand = 3', "character 1: a column's name begins here and does not end"),
        ("price > 3; drop", "character 10: this means nothing here"),
        ("price = null", "is null and is not null ask whether there is one"),
        ("price is 3", "character 10: null was expected"),
        ("brand + 1 > 1", "character 1: a number was expected, and this is text"),
        ("price + brand > 1", "character 9: a number was expected, and this is text"),
        ("1 < price < 3", "character 11: and was expected: comparisons do not follow each other"),
        ("not price", "character 5: a condition was expected, and this is a number"),
        ("tags = brand and sizes = sizes and sizes + flags = 3", "character 44: a column without lists was expected"),
        ("brand in ()", "character 11: a value was expected"),
        ("brand in (3)", "character 11: a text in single quotes was expected"),
        ("brand in 'a'", "character 10: ( with values in it was expected"),
        ("price in (1, 2", "character 15: , or ) was expected"),
        ("price in (1, year)", "character 14: a number was expected"),
        ("price not 3", "character 11: in, like or between was expected"),
        ("price like 'a'", "character 1: text was expected before like, and this is a number"),
        ("brand like price", "character 12: a text in single quotes was expected"),
        ("in_stock < true", "character 1: true and false have no order, so = or != was expected"),
        ("in_stock between 1 and 2", "character 1: a number or text was expected before between"),
        ("price between 1", "character 16: and with the upper bound was expected"),
        ("-brand > 3", "character 2: a number was expected"),
        ("price > 1e999", "character 9: a number below 1e300 was expected"),
        (f"price > {'9' * 400}", "character 9: a number below 1e300 was expected"),
        ("abs(price) > 3", "character 1: a column was expected, and none has this name"),
        ("true(3)", "character 5: the end"),
        ("brand = '\ud800'", "character 9: a text of whole characters was expected"),
    ],
)
def test_what_is_no_expression_is_said_with_its_place_and_the_columns(where: str, words: str) -> None:
    told = error(where)
    assert told.startswith("where, character ")
    assert words in told
    assert "the columns are title (text), brand (text), price (number), tags (text, list)" in told
    assert "in_stock (true or false)" in told


def test_lengths_depths_and_types_are_bounded() -> None:
    longest = "price > 1" + " or price > 1" * 76
    assert found(longest + " " * (MAX_LENGTH - len(longest))) == found("price > 1")
    assert error("x" * 1001) == "where has 1001 characters, and at most 1000 are taken"
    assert error(None) == "where is of type NoneType; give one expression as a text"
    for opening, closing in (("(", ")"), ("not ", ""), ("not (", ")")):
        depth = MAX_DEPTH // (2 if opening == "not (" else 1)
        assert found(opening * depth + "in_stock" + closing * depth) == [0, 3, 6]
        assert f"more than {MAX_DEPTH} parentheses, signs and nots" in error(
            opening * (depth + 1) + "in_stock" + closing * (depth + 1)
        )
    assert found(f"price > {'-' * MAX_DEPTH}1") == [0, 3]
    assert "more than 32" in error(f"price > {'-' * (MAX_DEPTH + 1)}1")
    many = f"price in ({'1,' * 490}1)"
    assert found(many) == []


def test_a_model_without_attributes_says_how_to_get_them() -> None:
    bare = ItemMasks(Vocabulary(pl.Series(["a", "b"]), np.array([1, 2])))
    assert found("count > 1 or item_id = 'a'", bare) == [0, 1]
    assert error("price < 3", bare).endswith(
        "the columns are item_id (text), count (number); this model knows no attributes of its items, so train it with "
        "--item-file FILE"
    )


def test_many_columns_and_odd_names_stay_one_short_line() -> None:
    many = ItemMasks(vocabulary(**{f"column {i}\n\x1b[31m" + "x" * 100: [1] for i in range(500)}))
    told = error("price < 3", many)
    assert len(told) < 500
    assert told.isprintable()
    assert "more" in told


def test_a_frames_types_become_numbers_texts_and_truths() -> None:
    frame = pl.DataFrame(
        {
            "small": pl.Series([1, None], dtype=pl.Int8),
            "unsigned": pl.Series([2**64 - 1, 1], dtype=pl.UInt64),
            "decimal": pl.Series(["1.5", None]).cast(pl.Decimal(10, 2)),
            "enum": pl.Series(["x", "y"], dtype=pl.Enum(["x", "y"])),
            "categorical": pl.Series(["x", None], dtype=pl.Categorical),
            "day": [datetime.date(2024, 1, 31), None],
            "moment": [datetime.datetime(2024, 1, 31, 5), datetime.datetime(1999, 1, 1)],
            "nothing": [None, None],
            "vector": pl.Series([[1.0, 2.0], [3.0, 4.0]], dtype=pl.Array(pl.Float32, 2)),
            "days": [[datetime.date(2024, 1, 31)], []],
            "nested": [[[1]], [[2]]],
            "record": [{"a": 1}, {"a": 2}],
            "bytes": [b"a", b"b"],
        }
    )
    masks = ItemMasks(Vocabulary(pl.Series([1, 2]), np.array([1, 2]), None, frame))
    assert {name: str(kind) for name, kind in masks.types.items()} == {
        "small": "number", "unsigned": "number", "decimal": "number", "enum": "text", "categorical": "text",
        "day": "text", "moment": "text", "nothing": "text", "vector": "number, list", "days": "text, list",
        "item_id": "number", "count": "number",
    }  # fmt: skip
    for where, items in {
        "small = 1": [0], "unsigned > 1e19": [0], "unsigned = 1": [1], "decimal = 1.5": [0], "enum = 'y'": [1],
        "categorical is null": [1], "day >= '2024-01-31'": [0], "moment < '2000'": [1], "nothing is null": [0, 1],
        "nothing = 'a' or nothing in ('a') or nothing like '%' or nothing = enum": [], "vector > 3": [1],
        "days like '2024-%'": [0],
    }.items():  # fmt: skip
        assert found(where, masks) == items


def test_masks_are_kept_within_bytes_the_last_used_longest_and_nobody_can_write_to_them() -> None:
    masks = ItemMasks(vocabulary(), max_bytes=3 * (TEXT_BYTES + 8))
    texts = [f"count > {i}" for i in range(4)]
    kept = [masks.mask(text) for text in texts[:3]]
    assert masks.mask(texts[0]) is kept[0]
    masks.mask(texts[3])
    assert [masks.knows(text) for text in texts] == [True, False, True, True]
    assert masks.mask(texts[2]) is kept[2]
    with pytest.raises(ValueError, match="read-only"):
        kept[0][1] = True
    tiny = ItemMasks(vocabulary(), max_bytes=1)
    assert tiny.mask("count > 1") is tiny.mask("count > 1")
    with pytest.raises(ConfigError):
        masks.mask("nonsense")
    assert not masks.knows("nonsense")


def test_a_mask_can_be_made_a_condition_at_a_time() -> None:
    masks, where = ItemMasks(vocabulary()), "price > 1 and (brand = 'lego' or not tags in ('a')) and (price = 1) = true"
    n_steps = sum(not masks.knows(where) for _ in masks.steps(where))
    assert n_steps == 5
    assert masks.knows(where)
    assert found(where, masks) == found(where)
    with pytest.raises(ConfigError):
        next(masks.steps("nonsense"))


def test_the_examples_of_the_documentation_are_true() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "filters.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    items = rows[rows.index(["item_id", "title", "category", "price", "tags"]) + 2 :][:5]
    attributes = pl.DataFrame(
        {
            "category": [row[2] or None for row in items],
            "price": [float(row[3]) if row[3] else None for row in items],
            "tags": [[tag.strip() for tag in row[4].split(",") if tag] for row in items],
        }
    )
    ids, titles = pl.Series([int(row[0]) for row in items]), pl.Series([row[1] for row in items])
    masks = ItemMasks(Vocabulary(ids, np.ones(5, np.int64), titles, attributes))
    start = rows.index(["`where`", "leaves", ""]) + 2
    for where, left, _ in rows[start : start + 10]:
        assert ids.gather(found(where.strip("`"), masks)).to_list() == [int(item) for item in left.split(",")], where
    assert error("categry = 'lego'", masks) in page


# Random expressions, beside an evaluation of one item after the other.

ROWS = [
    {name: values[i] for name, values in {**ATTRIBUTES, "title": TITLES, "count": COUNTS}.items()} for i in range(7)
]
SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge, "+": operator.add, "-": operator.sub, "*": operator.mul,
    "/": operator.truediv,
}  # fmt: skip
Values = list[Any]  # of one item: the elements of its list, or one value, which may be None
Evaluate = Callable[[dict[str, Any]], Any]  # of a condition True, False or None; of a value its Values
Made = tuple[str, Evaluate]


def values_of(name: str) -> Evaluate:
    def values(row: dict[str, Any]) -> Values:
        value = row[name]
        every = value if isinstance(value, list) else [] if name in ("tags", "sizes", "flags") else [value]
        return [None if isinstance(v, float) and not math.isfinite(v) else v for v in every if v is not None] or [None]

    return values


def each(act: Callable[..., Any], *parts: Evaluate) -> Evaluate:
    """Of each element, with the single values of other parts beside it; None where a part is None."""

    def values(row: dict[str, Any]) -> Values:
        found = [part(row) for part in parts]
        n = max(map(len, found))
        rows = zip(*(one * n if len(one) == 1 else one for one in found), strict=True)
        return [None if None in one else act(*one) for one in rows]

    return values


def computed(sign: str) -> Callable[[Any, Any], Any]:
    def act(a: Any, b: Any) -> Any:
        try:
            result = SIGNS[sign](float(a), float(b))
        except (ZeroDivisionError, OverflowError):
            return None
        return result if math.isfinite(result) else None

    return act


def compared(sign: str) -> Callable[[Any, Any], bool]:
    def act(a: Any, b: Any) -> bool:
        if float in (type(a), type(b)):
            a, b = float(a), float(b)
        return bool(SIGNS[sign](a, b))

    return act


def any_of(values: Evaluate) -> Evaluate:
    def condition(row: dict[str, Any]) -> bool | None:
        known = [value for value in values(row) if value is not None]
        return any(known) if known else None

    return condition


def is_like(text: str, pattern: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(is_like(text[i:], pattern[1:]) for i in range(len(text) + 1))
    return bool(text) and pattern[0] in ("_", text[0]) and is_like(text[1:], pattern[1:])


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def constant(value: Any) -> Made:
    shown = quoted(value) if isinstance(value, str) else str(value)
    return shown, lambda _: [value]


NUMBERS = st.sampled_from([0, 1, 2, 7, 1999, BIG, BIG + 1, 10**25, 0.5, 50.5, 1e300]).map(constant)
TEXTS = st.sampled_from(["lego", "a", "", "The Sting", "O'Neil", "日本\n", "a_b", "zz"]).map(constant)
PATTERNS = st.text("%_ae'.T日\n*", max_size=5)


def column(name: str) -> Made:
    return (f'"{name}"' if " " in name else name), values_of(name)


@st.composite
def numbers(draw: st.DrawFn, columns: tuple[str, ...]) -> Made:
    """A number computed from these columns."""
    leaf = NUMBERS | st.sampled_from(columns).map(column)
    text, value = draw(leaf)
    for _ in range(draw(st.integers(0, 2))):
        sign, (other, more) = draw(st.sampled_from("+-*/")), draw(leaf)
        text, value = f"({text} {sign} {other})", each(computed(sign), value, more)
    if draw(st.booleans()):
        return text, value
    is_constant = text[0].isdigit()  # a sign belongs to it, and it stays exact
    return f"-({text})", each(lambda a: -a if is_constant else -float(a), value)


PLAIN = ("price", "year", "count", "two words")


@st.composite
def predicates(draw: st.DrawFn) -> Made:
    if draw(st.booleans()):
        columns = draw(st.sampled_from([PLAIN, (*PLAIN, "sizes")]))
        value: st.SearchStrategy[Made] = numbers(columns)
        other: st.SearchStrategy[Made] = value
        constants = NUMBERS
    else:
        name = draw(st.sampled_from(["brand", "title", "tags"]))
        value = st.just(column(name))
        other = TEXTS | st.sampled_from(["brand", "title"]).map(column)
        constants = TEXTS
    text, a = draw(value)
    kind = draw(st.sampled_from(["compare", "in", "between", "null", "like"]))
    word, is_negated = draw(st.sampled_from([("", False), ("not ", True)]))
    if kind == "like" and constants is TEXTS:
        pattern = draw(PATTERNS)
        act = each(lambda v: is_like(v, pattern) != is_negated, a)
        return f"{text} {word}LIKE {quoted(pattern)}", any_of(act)
    if kind == "in":
        options = draw(st.lists(constants, min_size=1, max_size=3))
        chosen = [option({})[0] for _, option in options]
        act = each(lambda v: any(compared("=")(v, option) for option in chosen) != is_negated, a)
        return f"{text} {word}in ({', '.join(one for one, _ in options)})", any_of(act)
    if kind == "between":
        (low, b), (high, c) = draw(other), draw(other)
        inside = each(lambda v, x, y: (compared(">=")(v, x) and compared("<=")(v, y)) != is_negated, a, b, c)
        return f"{text} {word}between {low} and {high}", any_of(inside)
    if kind == "null":
        return f"{text} is {word}null", lambda row: all(v is None for v in a(row)) != is_negated
    sign = draw(st.sampled_from(["=", "==", "!=", "<>", "<", "<=", ">", ">="]))
    right, b = draw(other)
    return f"{text} {sign} {right}", any_of(each(compared(sign), a, b))


def joined(word: str, parts: list[Made]) -> Made:
    def condition(row: dict[str, Any]) -> bool | None:
        found = [part(row) for _, part in parts]
        decisive = word == "or"
        return decisive if decisive in found else None if None in found else not decisive

    return f" {word} ".join(f"({text})" for text, _ in parts), condition


def negated(part: Made) -> Made:
    def condition(row: dict[str, Any]) -> bool | None:
        found = part[1](row)
        return None if found is None else not found

    return f"NOT ({part[0]})", condition


TRUTHS = st.sampled_from(["in_stock", "flags"]).map(lambda name: (name, any_of(values_of(name))))
CONDITIONS = st.recursive(
    predicates() | TRUTHS,
    lambda inner: st.one_of(
        st.builds(joined, st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
        inner.map(negated),
    ),
    max_leaves=6,
)


@settings(max_examples=400)
@given(CONDITIONS)
def test_a_random_expression_leaves_the_items_for_which_it_is_true(made: Made) -> None:
    where, is_true = made
    if len(where) <= MAX_LENGTH:
        assert found(where) == [i for i, row in enumerate(ROWS) if is_true(row) is True]


# Whatever is typed.

PIECES = st.sampled_from(
    ["brand", "price", "tags", "sizes", "in_stock", "count", '"two words"', "zqzq", "and", "or", "not", "in", "like",
     "is", "null", "between", "true", "=", "<", "<>", "(", ")", ",", "+", "-", "*", "/", "1", "2.5", "'lego'", "'%'",
     "'", '"', "1e308", "\x00", "日"]
)  # fmt: skip


@settings(max_examples=500)
@given(st.text() | st.lists(PIECES, max_size=30).map(" ".join) | st.lists(PIECES, max_size=12).map("".join))
@example("'" * 999)
@example("(" * 1000)
@example("not " * 250)
@example("- " * 500)
@example("price+" * 166 + "1")
@example("brand like '" + "%_" * 490 + "'")
def test_whatever_is_typed_gives_a_mask_or_one_short_sentence_without_it(where: str) -> None:
    try:
        mask = MASKS.mask(where)
    except ConfigError as refused:
        told = str(refused)
        assert told.startswith("where")
        assert told.isprintable()
        assert len(told) < 500
        assert "zqzq" not in told
    else:
        assert mask.shape == (8,)


def test_parsing_asks_no_column_for_more_than_its_type() -> None:
    types = {"a": ColumnType("number"), "b": ColumnType("text", is_list=True)}
    assert parse("a + 1 > 2", types) == parse(" a+1>2 ", types)
    with pytest.raises(ConfigError, match=r"the columns are a \(number\), b \(text, list\)"):
        parse("c = 1", types)
