"""Any log -> one frame."""

import gzip
import math
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sasrec.core.errors import ConfigError, DataError
from sasrec.data.filters import filter_k_core, filter_repeats
from sasrec.reading.ids import canonical_ids
from sasrec.reading.readers import read_interactions
from sasrec.reading.titles import read_titles

LOG = pl.DataFrame({"user_id": [1, 1, 2, 30], "item_id": [7, 8, 7, 900], "timestamp": [5, 6, 4, 3]})
PAIRS = LOG.drop("timestamp")
LISTS = pl.DataFrame({"user_id": [1, 1, 2, 30, 30, 30], "item_id": [7, 8, 7, 900, 7, 8]})


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def lines(frame: pl.DataFrame, separator: str) -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in frame.rows())


WITH_RATING = LOG.select("user_id", "item_id", pl.lit(3).alias("rating"), "timestamp")
FILES: dict[str, tuple[str, str, pl.DataFrame]] = {
    "pairs": ("log.txt", lines(PAIRS, " "), PAIRS),
    "pairs without a last newline": ("log.txt", lines(PAIRS, " ").rstrip(), PAIRS),
    "pairs with tabs": ("log.txt", lines(PAIRS, "\t"), PAIRS),
    "pairs with uneven spaces": ("log.txt", "1   7\n1\t8 \n  2 7\n30 900\n", PAIRS),
    "pairs with CRLF": ("log.txt", lines(PAIRS, " ").replace("\n", "\r\n"), PAIRS),
    "pairs with blank lines": ("log.txt", lines(PAIRS, " ").replace("\n", "\n\n"), PAIRS),
    "pairs with a byte order mark": ("log.txt", "\ufeff" + lines(PAIRS, " "), PAIRS),
    "pairs with leading blank lines": ("log.txt", "\n \n" + lines(PAIRS, " "), PAIRS),
    "pairs with doubled tabs": ("log.txt", lines(PAIRS, "\t\t"), PAIRS),
    "pairs with tabs here, spaces there": ("log.txt", "1\t7\n1 8\n2 \t 7\n30 900\n", PAIRS),
    "pairs with a tab at the end": ("log.txt", lines(PAIRS, "\t").replace("\n", "\t\n"), PAIRS),
    "pairs with commas": ("log.csv", lines(PAIRS, ","), PAIRS),
    "pairs with comma and space": ("log.csv", lines(PAIRS, ", "), PAIRS),
    "pairs under names": ("log.txt", "user item\n" + lines(PAIRS, " "), PAIRS),
    "pairs under unevenly spaced names": ("log.txt", "user   item\n1    7\n1 8\n2 7\n30\t900\n", PAIRS),
    "triples": ("log.txt", lines(LOG, " "), LOG),
    "u.data": ("u.data", lines(WITH_RATING, "\t"), LOG),
    "ratings.dat": ("ratings.dat", lines(WITH_RATING, "::"), LOG),
    "ratings.dat with decimals": ("ratings.dat", "1::7::3.5::5\n1::8::4::6\n2::7::1::4\n30::900::2::3\n", LOG),
    "sequences": ("log.txt", "1 7 8\n2 7\n30 900 7 8\n", LISTS),
    "sequences with CRLF and uneven spaces": ("log.txt", "1  7\t8 \r\n\r\n2 7\r\n30 900   7 8\r\n", LISTS),
    "csv": ("log.csv", "user_id,item_id,timestamp\n" + lines(LOG, ","), LOG),
    "csv with other columns": ("log.csv", "rating,userId,movieId,time\n5,1,7,5\n1,1,8,6\n2,2,7,4\n,30,900,3\n", LOG),
    "csv with semicolons": ("log.csv", "User ID;Item ID;Date\n" + lines(LOG, ";"), LOG),
    "csv with blank lines": ("log.csv", "user_id,item_id,ts\r\n\r\n" + lines(LOG, ",").replace("\n", "\r\n\r\n"), LOG),
    "csv with quotes and byte order mark": ("log.csv", '\ufeff"userId","sku"\n1,"7"\n1,8\n2,7\n"30",900\n', PAIRS),
    "csv with spaces": ("log.csv", "user , item\n1 , 7\n 1,8\n2, 7\n30,900 \n", PAIRS),
    "tsv": ("log.tsv", "reviewerID\tasin\tunixReviewTime\n" + lines(LOG, "\t"), LOG),
    "tsv named txt": ("log.txt", "reviewerID\tasin\tunixReviewTime\n" + lines(LOG, "\t"), LOG),
    "jsonl named txt": ("log.txt", PAIRS.write_ndjson(), PAIRS),
    "inter": ("x.inter", "user_id:token\titem_id:token\ttimestamp:float\n" + lines(LOG, "\t"), LOG),
    "jsonl": ("log.jsonl", '{"user":1,"item":7,"ts":5}\n{"user":1,"item":8,"ts":6}\n{"user":2,"item":7,"ts":4}\n'
              '{"user":30,"item":900,"ts":3}\n', LOG),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_each_form_of_a_log_gives_the_same_frame(case: str, zipped: bool, tmp_path: Path) -> None:
    name, text, expected = FILES[case]
    path = tmp_path / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    assert read_interactions(path).equals(expected)


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\ufeff"), min_size=1)
IDS = st.one_of(st.integers(-(2**63), 2**63 - 1).map(str), TEXTS)


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(IDS, IDS, st.integers(0, 2**40)), max_size=8))
def test_any_log_survives_every_format(rows: list[tuple[str, str, int]]) -> None:
    rows = [("0", "0", 0), *rows]  # a first line that can only be values
    log = pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row")
    expected = log.with_columns(canonical_ids(log["user_id"]), canonical_ids(log["item_id"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        log.write_csv(path.with_suffix(".csv"), quote_style="always")
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.with_suffix(".csv").read_bytes()))
        log.write_csv(path.with_suffix(".tsv"), separator="\t", quote_style="always")
        log.write_parquet(path.with_suffix(".parquet"))
        log.write_ndjson(path.with_suffix(".jsonl"))
        typed = dict(zip(log.columns, ["user_id:token", "item_id:token", "timestamp:float"], strict=True))
        log.rename(typed).write_csv(path.with_suffix(".inter"), separator="\t", quote_style="never")
        log.write_csv(path.with_suffix(".txt"), separator=" ", quote_style="never", include_header=False)
        for file in Path(folder).iterdir():
            form = "triples" if file.suffix == ".txt" else None
            assert read_interactions(file, format=form).equals(expected), file.name
    for frame in (log, log.lazy(), pd.DataFrame(log.to_dict(as_series=False))):
        assert read_interactions(frame).equals(expected)


def test_parquet_polars_lazy_and_pandas_give_the_same_frame(tmp_path: Path) -> None:
    LOG.write_parquet(tmp_path / "log.parquet")
    for source in (
        tmp_path / "log.parquet",
        str(tmp_path / "log.parquet"),
        LOG,
        LOG.lazy(),
        pd.DataFrame(LOG.to_dict(as_series=False)),
    ):
        assert read_interactions(source).equals(LOG)


def test_pandas_floats_strings_and_datetimes_are_understood() -> None:
    times = pd.to_datetime(["2024-01-01 00:00", "2024-01-02 12:00"])
    log = read_interactions(pd.DataFrame({"user": [1.0, 2.0], "item": ["a", "b"], "date": times}, index=[7, 7]))
    assert log["user_id"].to_list() == [1, 2]
    assert log["item_id"].to_list() == ["a", "b"]
    assert log["timestamp"].to_list() == [datetime(2024, 1, 1, tzinfo=UTC).timestamp(),
                                          datetime(2024, 1, 2, 12, tzinfo=UTC).timestamp()]  # fmt: skip


def test_pandas_times_with_a_zone_become_utc_seconds() -> None:
    times = pd.to_datetime(["2024-01-01 01:00"]).tz_localize("Europe/Paris")
    log = read_interactions(pd.DataFrame({"user": [1], "item": pd.Categorical(["a"]), "date": times}))
    assert log.rows() == [(1, "a", datetime(2024, 1, 1, tzinfo=UTC).timestamp())]


@pytest.mark.parametrize(
    "text",
    ["2024-01-01", "2024-01-01T00:00:00", "2024-01-01 00:00", "2024-01-01 00:00:00.000", "2024-01-01T00:00:00Z",
     "2024-01-01T02:30:00+02:30", "2023-12-31 19:00:00-0500", "2024-01-01 00:00:00 UTC"],
)  # fmt: skip
def test_dates_become_seconds(text: str, tmp_path: Path) -> None:
    log = read_interactions(write(tmp_path / "log.csv", f"user,item,date\n1,2,{text}\n1,3,2024-01-02\n"))
    midnight = datetime(2024, 1, 1, tzinfo=UTC).timestamp()
    assert log["timestamp"].to_list() == [midnight, midnight + 86400]


@settings(deadline=None)
@given(st.datetimes(datetime(1800, 1, 1), datetime(2500, 1, 1), timezones=st.just(UTC)))
def test_iso_texts_and_datetimes_are_the_same_time(when: datetime) -> None:
    moment = pl.DataFrame({"user": [1], "item": [2], "time": [when]})
    text = moment.with_columns(time=pl.lit(when.isoformat()))
    assert read_interactions(text)["timestamp"][0] == pytest.approx(when.timestamp(), abs=1e-5)
    assert read_interactions(moment)["timestamp"][0] == pytest.approx(when.timestamp(), abs=1e-5)


def test_decimal_timestamps_stay_decimal(tmp_path: Path) -> None:
    assert read_interactions(write(tmp_path / "l.csv", "user,item,ts\n1,2,3.5\n1,3,4\n"))["timestamp"].to_list() == [
        3.5,
        4,
    ]


def test_text_ids_with_spaces_and_unicode_survive_a_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", 'user,item\n"Ann, B.","Amélie ☃"\nBob,Heat 2\n')
    log = read_interactions(path)
    assert log.rows() == [("Ann, B.", "Amélie ☃"), ("Bob", "Heat 2")]


def test_quoted_ids_may_hold_separators_quotes_and_line_ends(tmp_path: Path) -> None:
    text = '"a, b","say ""x"""\n"c\nd",e\n'
    expected = [("a, b", 'say "x"'), ("c\nd", "e")]
    assert read_interactions(write(tmp_path / "bare.csv", text)).rows() == expected
    assert read_interactions(write(tmp_path / "named.csv", "user,item\n" + text)).rows() == expected


def test_lone_quotes_in_tab_files_are_part_of_the_id(tmp_path: Path) -> None:
    for name, header in (("log.tsv", "user\titem\n"), ("x.inter", "user_id:token\titem_id:token\n"), ("log.txt", "")):
        log = read_interactions(write(tmp_path / name, header + 'a b\t"12 inch\nb\tc\n'))
        assert log.rows() == [("a b", '"12 inch'), ("b", "c")]


def test_only_space_and_tab_separate_bare_text(tmp_path: Path) -> None:
    log = read_interactions(write(tmp_path / "log.txt", "a\u00a0b c\x1fd\ne\u2028f g\x0bh\n"))
    assert log.rows() == [("a\u00a0b", "c\x1fd"), ("e\u2028f", "g\x0bh")]


def test_late_lines_of_json_may_bring_keys_and_types(tmp_path: Path) -> None:
    text = '{"user":1,"item":1,"ts":1}\n' * 2000
    log = read_interactions(write(tmp_path / "log.jsonl", text + '{"user":"x","item":2,"ts":1.5}\n'))
    assert log.row(0) == ("1", 1, 1.0)
    assert log.row(2000) == ("x", 2, 1.5)
    with pytest.raises(DataError, match=r"line 1 of .* has nothing in column 'ts'"):
        read_interactions(
            write(tmp_path / "late.jsonl", '{"user":1,"item":1}\n' * 2000 + '{"user":1,"item":2,"ts":3}\n')
        )


def test_long_sequences_are_read_whole(tmp_path: Path) -> None:
    log = read_interactions(write(tmp_path / "log.txt", "1 " + " ".join(map(str, range(100_000))) + "\n2 5 6\n"))
    assert log["item_id"].to_list() == [*range(100_000), 5, 6]


def test_users_without_items_are_counted_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_interactions(write(tmp_path / "log.txt", "1 7 8\n2\n3 7\n")).rows() == [(1, 7), (1, 8), (3, 7)]
    assert "1 of 3 lines have a user and no items" in caplog.text


def test_headerless_text_ids_stay_text_in_input_order(tmp_path: Path) -> None:
    log = read_interactions(write(tmp_path / "log.txt", "u2 b\nu1 a\nu2 a\n"))
    assert log.rows() == [("u2", "b"), ("u1", "a"), ("u2", "a")]


def test_leading_zeros_keep_ids_apart(tmp_path: Path) -> None:
    log = read_interactions(write(tmp_path / "log.txt", "1 007\n1 7\n"))
    assert log["item_id"].to_list() == ["007", "7"]
    assert log["user_id"].to_list() == [1, 1]


def test_column_names_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "who;what;when\n1;2;3\n4;5;6\n".replace(";", ","))
    log = read_interactions(path, user_column="who", item_column="what", timestamp_column="when")
    assert log.rows() == [(1, 2, 3), (4, 5, 6)]


def test_given_format_overrides_what_the_file_looks_like(tmp_path: Path) -> None:
    path = write(tmp_path / "log.txt", "1 2\n3 4\n")
    assert read_interactions(path, format="sequences").equals(read_interactions(path, format="pairs"))
    named = write(tmp_path / "named.txt", "user item\n1 2\n")
    assert read_interactions(named, format="pairs").rows() == [(1, 2)]
    three = write(tmp_path / "three.txt", "1 2 3\n4 5 6\n")
    assert read_interactions(three, format="sequences").rows() == [(1, 2), (1, 3), (4, 5), (4, 6)]
    inside = write(tmp_path / "inside.txt", "u :: 1\nv :: 2\n")  # the ids hold what could be a separator
    assert read_interactions(inside, format="triples").rows() == [("u", "::", 1), ("v", "::", 2)]
    commas = write(tmp_path / "commas.txt", "userId a,b 1\nv c,d 2\n")
    assert read_interactions(commas, format="triples").rows() == [("userId", "a,b", 1), ("v", "c,d", 2)]
    with pytest.raises(ConfigError, match="format 'excel' is not known"):
        read_interactions(path, format="excel")


def test_form_is_told_by_the_first_thousand_lines(tmp_path: Path) -> None:
    inside = write(tmp_path / "inside.txt", "1 2\n" * 999 + "1 2 3\n")
    with pytest.raises(DataError, match=r"line 1000 of .* has 3 fields in place of 2"):
        read_interactions(inside)
    with pytest.raises(DataError, match=r"line 1001 of .* has 3 fields in place of 2"):
        read_interactions(write(tmp_path / "after.txt", "1 2\n" * 1000 + "1 2 3\n"))


BAD = {
    "empty": ("log.txt", b"", "is empty"),
    "blank": ("log.txt", b"\n\n \n", "only blank lines"),
    "binary": ("log.txt", b"\x00\x01\x02", "binary file"),
    "latin-1": ("log.txt", "u1 caf\xe9\n".encode("latin-1"), "not UTF-8"),
    "latin-1 late": ("log.txt", b"u1 x\n" * 20_000 + b"u1 caf\xe9\n", "line 20001 of .* is not UTF-8"),
    "latin-1 late in csv": ("log.csv", b"user,item\n" + b"u1,x\n" * 20_000 + b"u1,caf\xe9\n", "line 20002 .* UTF-8"),
    "binary late": ("log.txt", b"u1 x\n" * 20_000 + b"\0\0\n", "is a binary file"),
    "utf-16 cut in half": ("log.txt", "1 2\n".encode("utf-16")[:-1], "is not utf-16 text"),
    "undecided": ("log.txt", b"1 2 3\n4 5\n", "2 different numbers of fields, .* --format sequences"),
    "one field": ("log.txt", b"1\n2\n", "1 field on each line"),
    "five fields": ("log.txt", b"1 2 3 4 5\n1 2 3 4 6\n", "5 fields on each line"),
    "header only": ("log.csv", b"user,item\n", "has no events"),
    "unknown names": ("log.csv", b"foo,bar\n1,2\n", "its columns are: foo, bar"),
    "time": ("log.csv", b"user,item,time\n1,2,3\n1,2,soon\n", "line 3 of .* has 'soon' in column 'time'"),
    "time without header": ("log.txt", b"1 2 3\n1 2 x\n", "line 2 of .* has 'x'"),
    "no time": ("log.csv", b"user,item,time\n1,2,3\n1,2,\n", "line 3"),
    "wrong time after blank lines": ("log.txt", b"1 2 3\n\n\n1 2 x\n", "line 4 of .* has 'x'"),
    "wrong time after blank lines of a csv": ("log.csv", b"\nuser,item,ts\n1,2,3\n\n1,2,x\n", "line 5 of .* has 'x'"),
    "no user after a blank line": ("log.csv", b"user,item\n1,2\n\n,3\n", "line 4 of .* nothing in column 'user'"),
    "no item in pairs": ("log.txt", b"1 2\n3\n", "line 2 of .* has 1 field in place of 2"),
    "long csv line": ("log.csv", b"user,item,x\n1,2,3\n4,5,6,7\n", "line 3 of .* has 4 fields in place of 3"),
    "loose quote": ("log.csv", b'user,item\n"a"b,2\n', "check the quotes"),
    "no user": ("log.csv", b"user,item\n1,2\n,3\n", "line 3 of .* has nothing in column 'user'"),
    "short line": ("log.txt", b"1 2\n" * 1500 + b"7\n", "line 1501 of .* has 1 field in place of 2"),
    "bad json": (
        "log.jsonl",
        b'{"user": 1, "item": 2}\n{"user": 1,\n',
        "line 2 of .* is not JSON: .* one object a line",
    ),
    "bad json array": ("log.json", b'[{"user": 1, "item": 2}, 5]', "element 1 of the array in .* is no JSON object"),
    "json list as id": ("log.jsonl", b'{"user": [1], "item": 2}\n', "ids are integers or text"),
    "bad parquet": ("log.parquet", b"PAR1 not really", "cannot read"),
    "bad gzip": ("log.txt.gz", b"\x1f\x8b\x08 broken", "log.txt.gz"),
}


@pytest.mark.parametrize("case", BAD)
def test_unusable_file_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_interactions(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_foreign_object_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read_interactions(tmp_path / "none.txt")
    with pytest.raises(DataError, match="is a folder"):
        read_interactions(tmp_path)
    with pytest.raises(DataError, match="cannot read a log from int"):
        read_interactions(3)


def test_wrong_column_name_lists_those_found() -> None:
    with pytest.raises(DataError, match="no column 'film'; its columns are: user_id, item_id, timestamp"):
        read_interactions(LOG, item_column="film")
    with pytest.raises(DataError, match="column 'user_id' of the frame cannot be both"):
        read_interactions(LOG, item_column="user_id")


def test_missing_ids_and_times_in_a_frame_name_the_row() -> None:
    with pytest.raises(DataError, match="row 1 of the frame has nothing in column 'item_id'"):
        read_interactions(pl.DataFrame({"user_id": [1, 1], "item_id": [2, None]}))
    with pytest.raises(DataError, match="row 1 of the frame has nothing in column 'user_id'"):
        read_interactions(pl.DataFrame({"user_id": [1.0, math.nan], "item_id": [2, 3]}))
    with pytest.raises(DataError, match="row 0 of the frame has nothing in column 'timestamp'"):
        read_interactions(pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [None]}))
    with pytest.raises(DataError, match="row 0 of the frame has 18446744073709551615"):
        read_interactions(LOG.head(1).with_columns(timestamp=pl.lit(2**64 - 1, pl.UInt64)))
    with pytest.raises(DataError, match="holds Boolean, not numbers or dates"):
        read_interactions(LOG.with_columns(timestamp=pl.lit(True)))
    with pytest.raises(DataError, match="two columns of one name"):
        read_interactions(pd.DataFrame([[1, 2, 3]], columns=["user", "user", "item"]))
    with pytest.raises(DataError, match="cannot read the lazy frame"):
        read_interactions(pl.scan_csv("none.csv"))
    with pytest.raises(DataError, match="row 1 of the frame has nan in column 'timestamp'"):
        read_interactions(pl.DataFrame({"user_id": [1, 1], "item_id": [2, 3], "timestamp": [0.5, math.nan]}))


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_integers_and_their_text_are_the_same_ids(values: list[int]) -> None:
    numbers = canonical_ids(pl.Series(values, dtype=pl.Int64))
    texts = canonical_ids(pl.Series([str(v) for v in values]))
    assert numbers.dtype == texts.dtype == pl.Int64
    assert numbers.to_list() == texts.to_list() == values


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1))
def test_text_ids_keep_their_text(values: list[str]) -> None:
    ids = canonical_ids(pl.Series(values))
    assert [str(i) for i in ids] == values


@pytest.mark.parametrize("text", ["02969", "+1", "1.5", "01.0", " 1", "1 ", "-0", "1e3", "9223372036854775808"])
def test_text_that_is_not_a_canonical_integer_stays_text(text: str) -> None:
    assert canonical_ids(pl.Series([text, "7"])).to_list() == [text, "7"]


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (pl.Series([1.0, 2.0]), [1, 2]),
        (pl.Series([1.5, 2.0]), ["1.5", "2"]),
        (pl.Series(["-9223372036854775808", "9223372036854775807"]), [-(2**63), 2**63 - 1]),
        (pl.Series([("a", 1)], dtype=pl.Object), ["('a', 1)"]),
        (pl.Series([1, 2], dtype=pl.UInt8), [1, 2]),
        (pl.Series([2**64 - 1], dtype=pl.UInt64), [str(2**64 - 1)]),
        (pl.Series(["a", "b"], dtype=pl.Categorical), ["a", "b"]),
        (pl.Series([True]), ["true"]),
    ],
)
def test_ids_of_any_type_become_integers_or_text(series: pl.Series, expected: list[object]) -> None:
    assert canonical_ids(series).to_list() == expected


def test_missing_id_is_refused() -> None:
    with pytest.raises(DataError, match="an id is missing in row 1"):
        canonical_ids(pl.Series([1, None]))


REPEATED = pl.DataFrame({"user_id": [1, 1, 1, 2, 1, 1], "item_id": [5, 5, 6, 5, 5, 6], "timestamp": [3, 1, 2, 1, 4, 2]})


def test_repeats_are_kept_or_dropped_by_time_then_input_order() -> None:
    assert filter_repeats(REPEATED, "keep").equals(REPEATED)
    assert filter_repeats(REPEATED, "first")["timestamp"].to_list() == [1, 2, 1]
    assert filter_repeats(REPEATED, "last").rows() == [(2, 5, 1), (1, 5, 4), (1, 6, 2)]
    # by time user 1 had 5, 6, 6, 5, 5
    assert filter_repeats(REPEATED, "consecutive").rows() == [(1, 5, 3), (1, 5, 1), (1, 6, 2), (2, 5, 1)]
    with pytest.raises(ConfigError, match="repeats='none'"):
        filter_repeats(REPEATED, "none")


def brute_force_core(rows: list[tuple[int, int]], n: int) -> list[tuple[int, int]]:
    while True:
        kept = [(u, i) for u, i in rows if sum(x == u for x, _ in rows) >= n and sum(y == i for _, y in rows) >= n]
        if kept == rows:
            return rows
        rows = kept


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=40), st.integers(1, 4))
def test_iterated_core_is_the_largest_log_with_enough_events_of_each(rows: list[tuple[int, int]], n: int) -> None:
    log = pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")
    assert filter_k_core(log, n, n).rows() == brute_force_core(rows, n)


def test_one_pass_core_counts_once() -> None:
    log = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [5, 6, 6]})
    assert filter_k_core(log, 2, 2, iterated=False).rows() == [(1, 6)]
    assert len(filter_k_core(log, 2, 2)) == 0


def test_titles_are_read_from_delimited_and_parquet_files(tmp_path: Path) -> None:
    expected = [(1, "Heat, The"), (2, "Amélie")]
    table = pl.DataFrame({"movieId": [1, 2], "title": ["Heat, The", "Amélie"], "genres": ["a", "b"]})
    table.write_csv(tmp_path / "t.csv")
    table.write_parquet(tmp_path / "t.parquet")
    table.rename({"movieId": "sas_item_id"}).write_csv(tmp_path / "t.tsv", separator="\t")
    for name in ("t.csv", "t.parquet", "t.tsv"):
        assert read_titles(tmp_path / name).rows() == expected
    (tmp_path / "x.item").write_text('item_id:token\tmovie_title:token_seq\n1\t"Great" Cats\n2\tx, y\n')
    assert read_titles(tmp_path / "x.item").rows() == [(1, '"Great" Cats'), (2, "x, y")]
    assert read_titles(tmp_path / "t.csv", item_column="genres").rows() == [("a", "Heat, The"), ("b", "Amélie")]
    with pytest.raises(DataError, match="no column 'name'"):
        read_titles(tmp_path / "t.csv", title_column="name")


def test_published_files_have_their_published_sizes(shared: Path) -> None:
    for name, n_events, n_users, n_items in [
        ("ml-1m.txt", 999_611, 6_040, 3_416),
        ("Video.txt", 287_107, 31_013, 23_715),
        ("Beauty-5core.txt", 198_502, 22_363, 12_101),
        ("Beauty-5core.raw.tsv", 198_502, 22_363, 12_101),
    ]:
        log = read_interactions(shared / "data" / name)
        assert (len(log), log["user_id"].n_unique(), log["item_id"].n_unique()) == (n_events, n_users, n_items)
