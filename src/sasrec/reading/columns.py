"""Find the user, item and time columns of a table: by the names asked for, by usual names, by what they hold.

Columns of events' types and weights are read where they are named; one that looks like types is told.

Names decide first. Among several columns that look like time, the one with the finest steps is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from sasrec.core.errors import ConfigError, DataError
from sasrec.core.suggestions import suggestion
from sasrec.reading.notes import Notes
from sasrec.reading.times import FIRST_DAY, OTHER_DATES, UNITS, is_calendar_day, numbers_of, unit_of

POSITION_NAMES = {  # what --columns may say, and what the column is then called
    "user": "user_id", "item": "item_id", "timestamp": "timestamp", "event": "event", "weight": "weight",
    "rating": "rating",
}  # fmt: skip
OF_EVENTS = ("event", "weight")
KNOWN_NAMES = {  # as compared: lower case, letters and digits only; the earlier name wins
    "user": [
        "userid", "user", "uid", "reviewerid", "customerid", "customer", "visitorid", "visitor",
        "username", "sessionid", "session",
    ],
    "item": [
        "itemid", "item", "iid", "movieid", "movie", "parentasin", "asin", "productid", "product", "sku", "articleid",
        "trackid", "songid", "bookid", "gameid", "newsid", "businessid", "videoid", "artistid", "venueid", "isbn",
        "aid",
    ],
    "timestamp": [
        "timestamp", "time", "ts", "unixreviewtime", "datetime", "date", "eventtime", "createdat", "dateadded", "tdat",
    ],
    "title": [
        "title", "movietitle", "name", "itemname", "productname", "prodname", "booktitle", "appname", "itemtitle",
        "description",
    ],
}  # fmt: skip
EVENT_NAMES = {
    "event", "eventtype", "eventname", "type", "action", "actiontype", "behavior", "behaviour", "behaviortype",
    "behaviourtype", "interaction", "interactiontype", "activity", "activitytype",
}  # fmt: skip
NOTHING: dict[str, str] = {}
FEW_TYPES = 20  # a column of more different values, in a sample, is hardly one of types of events
LISTS_BESIDE_ITEMS = {n + "list" for n in KNOWN_NAMES["item"]} | {"items", "history", "itemhistory", "itemsequence"}
TIME_WORDS = re.compile(r"time|date|(?<![a-z])(ts|dt|day|ms|millis|epoch|unix|when)(?![a-z])|(?<![a-z])at$")
QUICK_LOOK, SHORTEST_DATE = 100, 4  # rows; digits, as of 1/2/24
OTHER_TIMES = re.compile(  # times that are not those of the event
    r"release|birth|publish|sign.?up|regist|expire|expiry|updat|deliver|ship|due|play|watch|stay|spent|life|run.?time|"
    r"durat|zone|elapsed|since|valid|start|end"
)


@dataclass(frozen=True)
class Wanted:
    """What the caller says of a log; None = to be recognised."""

    format: str | None = None
    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    positions: tuple[str, ...] = ()  # what the columns are, from left to right; "-" = not needed
    encoding: str | None = None
    drop_missing: bool = False
    event: str | None = None  # None = types of events are not read
    weight: str | None = None  # None = weights of events are not read

    def __post_init__(self) -> None:
        if not self.positions:
            return
        for word in self.positions:
            if word != "-" and word not in POSITION_NAMES:
                meant = suggestion(word, POSITION_NAMES)
                raise ConfigError(
                    f"--columns has {word!r}{meant}; use {', '.join(POSITION_NAMES)} or - for each column"
                )
        for role in POSITION_NAMES:
            n = self.positions.count(role)
            if n > 1 or (n == 0 and role in ("user", "item")):
                raise ConfigError(
                    f"--columns names {role!r} {n} times; it needs user and item once, others at most once"
                )
        if self.asked:
            raise ConfigError("--columns says what each column is; leave out --user-column and the like")
        if self.format in ("sequences", "jsonl"):
            raise ConfigError(f"--columns names columns by position, which --format {self.format} has none of")

    @property
    def asked(self) -> set[str]:
        """The names of columns that were asked for."""
        return {name for name in (self.user, self.item, self.timestamp, self.event, self.weight) if name}

    @property
    def of_events(self) -> dict[str, str]:
        """The columns of events' types and weights that are to be read."""
        if self.positions:
            return {role: POSITION_NAMES[role] for role in OF_EVENTS if role in self.positions}
        return {role: name for role, name in zip(OF_EVENTS, (self.event, self.weight), strict=True) if name}

    def named(self, columns: Sequence[str], where: str) -> list[str]:
        """What these columns are called: by position where that was said, else as they are.

        Raises:
            DataError: there are more or fewer columns than positions.
        """
        n = len(columns)
        if not self.positions:
            return list(columns)
        if len(self.positions) != n:
            told = f"{n} column{'s' * (n != 1)}, and --columns names {len(self.positions)}"
            raise DataError(f"{where} has {told}; name each, '-' for those to skip")
        return [POSITION_NAMES.get(word, f"column {j}") for j, word in enumerate(self.positions, 1)]


@dataclass(frozen=True)
class Choice:
    """The columns that are read."""

    roles: dict[str, str]  # user, item and, if there are any, timestamp, event, weight -> the column's name
    left_alone: list[str]

    @property
    def needed(self) -> list[str]:
        """Their names."""
        return list(self.roles.values())

    @property
    def timestamp(self) -> str | None:
        """The column of times; None = there is none."""
        return self.roles.get("timestamp")


def choice_of(
    columns: Sequence[str], user: str, item: str, timestamp: str | None, of_events: Mapping[str, str] = NOTHING
) -> Choice:
    """These columns, and all others left alone."""
    roles = {"user": user, "item": item} | ({"timestamp": timestamp} if timestamp else {}) | dict(of_events)
    return Choice(roles, [column for column in columns if column not in roles.values()])


def plain_name(name: str) -> str:
    """A column's name as it is compared: lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def by_plain_name(columns: Sequence[str]) -> dict[str, str]:
    """The columns by plain name; of two that share one the name that is written so, else the first."""
    exact = [column for column in columns if column == plain_name(column)]
    return {plain_name(column): column for column in (*reversed(columns), *reversed(exact))}


def choose_columns(columns: Sequence[str], sample: pl.DataFrame, where: str, wanted: Wanted, notes: Notes) -> Choice:
    """The columns of users, items and times.

    Args:
        columns: the names there are.
        sample: some rows with all columns.
        where: how messages speak of the table.
        wanted: names that were asked for.
        notes: takes what the user should know.

    Raises:
        DataError: a column is not found, or two have its name.
    """
    if not columns:
        raise DataError(f"{where} has no columns and no events; it needs at least one row with a user and an item")
    if wanted.timestamp is not None:
        find_column(columns, where, "timestamp", wanted.timestamp)
    user = find_column(columns, where, "user", wanted.user)
    item = find_column(columns, where, "item", wanted.item)
    if user == item:
        raise DataError(f"column {user!r} of {where} cannot be both the user and the item; name two columns")
    if wanted.timestamp in (user, item):
        raise DataError(f"column {wanted.timestamp!r} of {where} cannot be both the time and an id; name two columns")
    for role, name in wanted.of_events.items():
        find_column(columns, where, role, name)
    others = [column for column in columns if column not in (user, item, *wanted.of_events.values())]
    time = _choose_time(others, sample, where, wanted, notes)
    lists = [column for column in others if plain_name(column) in LISTS_BESIDE_ITEMS]
    if lists:
        notes.warn(
            f"{where}: items are read from {item!r} alone; {_listed(lists)} may hold more of them",
            "give one event a row, or name the list with --item-column",
        )
    choice = choice_of(columns, user, item, time, wanted.of_events)
    _check_roles(choice, where)
    _check_unique(columns, choice.needed, where)
    if "event" not in choice.roles:
        _tell_types(choice, sample, where, notes)
    return choice


def _check_roles(choice: Choice, where: str) -> None:
    """Refuse a column that is to be two things."""
    for role, name in choice.roles.items():
        if choice.needed.count(name) > 1:
            other = next(r for r, n in choice.roles.items() if n == name and r != role)
            raise DataError(f"column {name!r} of {where} cannot be both the {role} and the {other}; name two columns")


def _tell_types(choice: Choice, sample: pl.DataFrame, where: str, notes: Notes) -> None:
    """Say what a column that looks like types of events could do."""
    for column in choice.left_alone:
        if plain_name(column) not in EVENT_NAMES or column not in sample.columns or sample[column].dtype.is_nested():
            continue
        values = [str(value) for value in sample[column].drop_nulls().unique(maintain_order=True)]
        if 2 <= len(values) <= FEW_TYPES:
            notes.tell(
                f"{where}: column {column!r} is not read; if {', '.join(values[:3])} are types of events, "
                f"--event-column {column} reads them, and --target-events says which are to be predicted"
            )
            return


def find_column(columns: Sequence[str], where: str, role: str, name: str | None) -> str:
    """The column of a role: the one asked for, else the first that has a usual name.

    Raises:
        DataError: there is none.
    """
    found = ", ".join(columns)
    if name is not None:
        if name not in columns:
            raise DataError(f"{where} has no column {name!r}{suggestion(name, columns)}; its columns are: {found}")
        return name
    plain = by_plain_name(columns)
    for known in KNOWN_NAMES[role]:
        if known in plain:
            return plain[known]
    raise DataError(
        f"{where} has no {role} column that is recognised; its columns are: {found}; name it (--{role}-column)"
    )


def _check_unique(columns: Sequence[str], chosen: Sequence[str], where: str) -> None:
    for name in chosen:
        if list(columns).count(name) > 1:
            raise DataError(f"{where} has two columns of the name {name!r}; rename one, or say --columns")


def _choose_time(columns: Sequence[str], sample: pl.DataFrame, where: str, wanted: Wanted, notes: Notes) -> str | None:
    """The column of times: the one asked for, else the finest of those that look like it."""
    if wanted.timestamp is not None:
        return wanted.timestamp
    if wanted.positions:
        return "timestamp" if "timestamp" in columns else None
    known = by_plain_name(columns)
    usual = [known[name] for name in KNOWN_NAMES["timestamp"] if name in known]
    named = [c for c in columns if c not in usual and _is_named_like_time(c)]
    values = {series.name: series for series in sample}
    steps = {c: _steps(values[c]) for c in columns if c in values}
    candidates = usual + [c for c in named if steps.get(c) and not OTHER_TIMES.search(c.lower())]
    chosen = max(candidates, key=lambda c: steps.get(c, 0), default=None)
    if chosen is not None:
        coarse, n = sample[chosen], steps.get(chosen, 0)
        finer = [c for c in columns if steps.get(c, 0) > n and c not in candidates and _same_days(sample[c], coarse)]
        chosen = finer[0] if finer else chosen
    by_name = [*usual, *named] if chosen is None else usual  # beside times that are read only what holds times counts
    unread = [
        c for c in columns if c != chosen and (c in by_name or steps.get(c) or (c in values and _are_dates(values[c])))
    ]
    if unread:
        instead = f"times are read from {chosen!r}" if chosen else "the order of the rows counts"
        verbs = ("looks", "is") if len(unread) == 1 else ("look", "are")
        notes.warn(
            f"{where}: {_listed(unread)} {verbs[0]} like time and {verbs[1]} not read; {instead}",
            "name the column of times with --timestamp-column if it is another",
        )
    return chosen


def _are_dates(values: pl.Series) -> bool:
    """Whether a column holds text that is mostly dates of forms which are not read, such as 31/01/2024."""
    values = values.drop_nulls()
    if values.dtype != pl.String or not len(values) or not _may_be_times(values):
        return False
    return int(values.str.contains(OTHER_DATES).sum()) >= 0.9 * len(values)


def _listed(names: Sequence[str]) -> str:
    return ("column " if len(names) == 1 else "columns ") + ", ".join(map(repr, names))


def _is_named_like_time(column: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower()
    return bool(TIME_WORDS.search(words))


def _may_be_times(values: pl.Series) -> bool:
    """A quick look, for tables of thousands of columns: whether any of the first values is long enough for a time."""
    first = values.head(QUICK_LOOK).to_list()
    if values.dtype == pl.String:
        return any(text is not None and sum(map(str.isdecimal, text)) >= SHORTEST_DATE for text in first)
    return not values.dtype.is_numeric() or any(x is not None and x >= FIRST_DAY for x in first)


def _steps(values: pl.Series) -> int:
    """How many different times a sample of a column holds; 0 = it does not look like times."""
    if not _may_be_times(values):
        return 0
    values = values.drop_nulls()
    if values.dtype == pl.String:
        values = values.filter(values.str.strip_chars() != "")
    numbers = numbers_of(values) if len(values) else None
    if numbers is None or not len(numbers.drop_nulls()) >= 0.9 * len(values):
        return 0
    numbers = numbers.drop_nulls()
    if unit_of(numbers) is None and not is_calendar_day(numbers):
        return 0
    return int(numbers.n_unique())


def _same_days(finer: pl.Series, coarser: pl.Series) -> bool:
    """Whether two columns of times mean the same days, wherever they count them from."""
    days = [_days(values) for values in (finer, coarser)]
    apart = (days[0] - days[1]).abs().fill_null(2)
    return bool(len(apart)) and int((apart <= 1).sum()) >= 0.95 * len(apart)


def _days(values: pl.Series) -> pl.Series:
    """Days since 1970 of a column of times."""
    numbers = numbers_of(values)
    if numbers is None:
        return pl.repeat(None, len(values), dtype=pl.Float64, eager=True)
    unit = unit_of(numbers.drop_nulls())
    if unit is None and is_calendar_day(numbers.drop_nulls()):
        days = numbers.cast(pl.Int64).cast(pl.String).str.to_date("%Y%m%d", strict=False)
        return days.cast(pl.Int32).cast(pl.Float64)
    return (numbers / (86_400 * UNITS[unit or "seconds"])).floor()
