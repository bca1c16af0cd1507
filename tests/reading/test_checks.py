"""Contents that contradict what columns were taken for, and what is odd about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from sasrec.core.errors import DataError
from sasrec.reading.readers import read_interactions

Save = Callable[[str, str | bytes], Path]
CONTRADICTIONS = {
    "yoochoose": (
        "".join(f"{n},2014-04-07T10:51:0{n}.277Z,21453650{n},0\n" for n in range(9)),
        r"its items are dates \(2014-04-07T10:51:00.277Z\); .* --columns user,timestamp,item,-",
    ),
    "lastfm": (
        "".join(f"u{n}\t3bd7-{n}\tbetty blowtorch\t{n}\n" for n in range(9)),
        r"its ratings are no numbers \(betty blowtorch\); .* --columns user,item,-,-",
    ),
    "amazon": (
        "".join(f"B00{n:07d},A1{n:011d}X,5.0,14{n:08d}\n" for n in range(9)),
        "its users look like products .* --columns item,user,-,-",
    ),
    "user item rating": (
        "".join(f"{n},{n % 31},{n % 5 + 1}\n" for n in range(100)),
        r"its times all lie from 0 to 10, as ratings do \(1\); .* --columns user,item,rating, or --format triples",
    ),
    "half stars": (
        "".join(f"{n},{n % 31},{n % 9 / 2}\n" for n in range(100)),
        "its times all lie from 0 to 10, as ratings do",
    ),
    "user time item": (
        "".join(f"{n},{1700000000 + n},{n % 31}\n" for n in range(100)),
        r"its items look like times \(1700000000\); .* --columns user,timestamp,item",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_guess_that_the_contents_contradict_is_refused(case: str, save: Save) -> None:
    text, message = CONTRADICTIONS[case]
    width = len(text.split("\n")[0].split("\t" if "\t" in text else ","))
    with pytest.raises(DataError, match=f"would be read as .*, but {message}"):
        read_interactions(save("log.txt", text))
    columns = ["item", "user", *"--"][:width] if case == "amazon" else ["user", "item", *"--"][:width]
    assert len(read_interactions(save("log.txt", text), columns=columns)) == text.count("\n")


def test_format_overrides_what_contents_say(save: Save) -> None:
    text = CONTRADICTIONS["user item rating"][0]
    assert read_interactions(save("log.csv", text), format="triples")["timestamp"].to_list()[:3] == [1, 2, 3]


def test_few_rows_of_small_times_are_times(save: Save) -> None:
    assert read_interactions(save("log.txt", "1 2 3\n1 3 4\n")).width == 3


@pytest.mark.parametrize("word", ["NA", "N/A", "#N/A", "NULL", "(null)", "\\N", "None", "nan", "NaN", "<NA>", "NaT"])
@pytest.mark.parametrize("role", ["user", "item"])
def test_words_for_nothing_are_named_with_their_share_and_can_be_dropped(
    word: str, role: str, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    row = f"{word},2" if role == "user" else f"2,{word}"
    file = save("log.csv", f"user,item\n{row}\na,1\nb,2\nc,3\n")
    assert len(read_interactions(file)) == 4
    assert f"25.0 % of the events have {word!r} as {role}, which counts as one {role}; --drop-missing" in caplog.text
    assert len(read_interactions(file, drop_missing=True)) == 3
    assert "1 of 4 events lack a user, an item or a time and are left out" in caplog.text


def test_several_words_for_nothing_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    frame = pl.DataFrame({"user": pl.Series(["NA", "", "NULL", "u"], dtype=pl.Categorical), "item": [1, 2, 3, 4]})
    assert read_interactions(frame, drop_missing=True).rows() == [("u", 4)]
    read_interactions(frame.filter(frame["user"] != ""))
    assert "66.7 % of the events have 'NA' or 'NULL' as user, which counts as one user each" in caplog.text


def test_log_of_which_nothing_is_left_is_refused(save: Save) -> None:
    with pytest.raises(DataError, match="has no event with a user, an item and what else is read"):
        read_interactions(save("log.csv", "user,item\nNA,1\n"), drop_missing=True)


def test_times_in_two_units_or_outside_of_all_years_are_named(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    read_interactions(save("a.csv", "user,item,time\n1,2,1700000000\n1,3,1700000000000\n1,4,1700000001\n"))
    assert "some times are in seconds and some in milliseconds, so the order of events is wrong" in caplog.text
    rows = "".join(f"1,{n},{1700000000 + n}\n" for n in range(19))
    read_interactions(save("b.csv", "user,item,time\n1,99,0\n" + rows))
    assert "5.0 % of the times lie outside of 1990 to 2100 in seconds, such as 0" in caplog.text


def test_matrix_of_users_and_items_is_no_log(save: Save) -> None:
    with pytest.raises(
        DataError, match="its first user is 'user', as in a header whose other names are not recognised"
    ):
        read_interactions(save("log.csv", "user,1,2,3\na,0,1,1\nb,1,0,0\n"))


def test_lists_that_are_written_as_text_are_no_ids(save: Save) -> None:
    with pytest.raises(DataError, match=r"column 'item' of .* holds lists as text, such as '\[2, 3\]'; give one event"):
        read_interactions(save("log.csv", 'user,item\n1,"[2, 3]"\n2,"[4]"\n'))
    assert read_interactions(save("log.csv", "user,item\n1,[2]\n2,[4]\n"))["item_id"].to_list() == ["[2]", "[4]"]
