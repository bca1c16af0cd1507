"""What chunks tell of rows in order and of times is what the whole column tells."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from sasrec.reading.times import TimesSeen
from sasrec.reading.understanding import SAMPLED_ROWS, RowOrder, understand

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=12)
ODD_TIMES = st.lists(
    st.sampled_from([0, 5, 20240131, 1_700_000_000, 1_700_000_001, 1_700_000_000_000, 2**61]), min_size=1, max_size=30
)


@given(rows=ROWS, how=st.sampled_from(["as drawn", "by user", "by user, newest first", "by time"]), n=st.integers(1, 5))
def test_the_order_of_rows_in_chunks(rows: list[tuple[int, int]], how: str, n: int) -> None:
    if how != "as drawn":
        newest = "newest" in how
        rows = sorted(rows, key=lambda row: ((row[0] if "user" in how else 0), -row[1] if newest else row[1]))
    frame = pl.DataFrame(rows, schema=["user_id", "timestamp"], orient="row")
    order = RowOrder()
    for part in frame.iter_slices(n):
        order.add(part["user_id"], part["timestamp"])
    whole = understand(frame.with_columns(item_id=1), "a.csv", "pairs", columns={}).row_order
    assert order.told(frame.head(SAMPLED_ROWS), frame["user_id"].n_unique(), len(frame)) == whole


@given(times=ODD_TIMES, n=st.integers(1, 7))
def test_times_in_pieces_are_like_the_whole_column(times: list[int], n: int) -> None:
    whole, parts = TimesSeen().add(pl.Series(times)), TimesSeen()
    for begin in range(0, len(times), n):
        parts.add(pl.Series(times[begin : begin + n]))
    assert vars(parts) == vars(whole)
    assert (parts.unit, parts.are_calendar_days) == (whole.unit, whole.are_calendar_days)
