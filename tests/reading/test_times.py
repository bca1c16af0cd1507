"""Times as numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sasrec.core.errors import DataError
from sasrec.reading.readers import read_interactions

Save = Callable[[str, str | bytes], Path]
MIDNIGHT = 1704067200


@pytest.mark.parametrize(
    "text",
    ["2024-01-01 00:00:00+00", "2023-12-31T16:00:00-08", "2024-01-01T05:30:00+05:30", "2024/01/01", " 2024-01-01 ",
     "Mon Jan 01 00:00:00 +0000 2024", "Mon, 01 Jan 2024 00:00:00 +0000", "2024-01-01T00:00:00,000Z"],
)  # fmt: skip
def test_dates_with_zones_are_utc_seconds(text: str, save: Save) -> None:
    log = read_interactions(save("log.csv", f'user,item,time\n1,2,"{text}"\n1,3,2024-01-02\n'))
    assert log["timestamp"].to_list() == [MIDNIGHT, MIDNIGHT + 86400]


@pytest.mark.parametrize(
    "text",
    ["2024-02-30", "02/03/2024", "2024-01-01 24:00:00", "2024-01-01T00:00:00+99:99", "2024-01-01 10:00 PM", "2024-1-5",
     "10000-01-01", "2024-W01-1", "soon", "inf", "nan", "1e400", "1,5", "0x10"],
)  # fmt: skip
def test_text_that_is_no_time_is_refused_with_its_line(text: str, save: Save) -> None:
    with pytest.raises(
        DataError, match=r"line 3 of .* has '.*' in column 'time', which is not a number or a date; wri"
    ):
        read_interactions(save("log.csv", f'user,item,time\n1,2,2024-01-01\n1,3,"{text}"\n2,3,2024-01-02\n'))


@pytest.mark.parametrize("text", ["-5", "+5", "05", "5.0", "5e0", " 5 "])
def test_numbers_of_any_spelling_are_times(text: str, save: Save) -> None:
    log = read_interactions(save("log.csv", f"user,item,time\n1,2,{text}\n1,3,7\n"))
    assert log["timestamp"].to_list() == [float(text), 7]


@pytest.mark.parametrize("other", ["3.5", "1e3", "99999999999999999999"])
def test_integers_that_are_not_exact_beside_other_numbers_are_refused(other: str, save: Save) -> None:
    with pytest.raises(DataError, match=r"line 2 of .* has '1700000000000000001' in column 'time', which is not exact"):
        read_interactions(save("log.csv", f"user,item,time\n1,2,1700000000000000001\n1,3,{other}\n"))
    exact = read_interactions(save("exact.csv", "user,item,time\n1,2,1700000000000000001\n1,3,1700000000000000002\n"))
    assert exact["timestamp"].to_list() == [1700000000000000001, 1700000000000000002]
