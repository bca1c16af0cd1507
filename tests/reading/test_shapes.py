"""Public data sets are read as they are published, with one command each; what is no log is refused."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from reading.drawn import Refused, Shape
from reading.shapes import HEADERLESS, REFUSED, SHAPES, clicked_news, netflix_ratings

from sasrec import read_interactions, read_titles
from sasrec.core.errors import DataError
from sasrec.data.logs import Reading, load_log

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
SECTION = PAGE.partition("## Public data sets as they are published\n")[2].partition("\n## ")[0]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
each_headerless = pytest.mark.parametrize("shape", HEADERLESS, ids=lambda shape: shape.name)
each_refused = pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
each_titled = pytest.mark.parametrize("shape", [s for s in SHAPES if s.titles_file], ids=lambda shape: shape.name)


def write(shape: Shape | Refused, folder: Path) -> str:
    """The files in a folder; the source."""
    for name, content in shape.files.items():
        (folder / name).write_bytes(content)
    return str(folder / shape.source)


def histories(events: Sequence[tuple[Any, ...]]) -> dict[Any, list[Any]]:
    """The items of each user by time, those of equal times as they come."""
    found = defaultdict(list)
    for user, item, *time in events:
        found[user].append((*time, item))
    by_time = {user: sorted(rows, key=lambda row: row[:-1]) for user, rows in found.items()}
    return {user: [row[-1] for row in rows] for user, rows in by_time.items()}


@each_shape
def test_a_public_data_set_is_read_as_published(shape: Shape, tmp_path: Path) -> None:
    frame = read_interactions(write(shape, tmp_path), **shape.options)
    n_columns = len(shape.events[0])
    of_events = [word for word in ("event",) if word in shape.options.get("columns", "").split(",")]
    assert frame.columns == ["user_id", "item_id", "timestamp"][:n_columns] + of_events
    ids = [row[:2] for row in frame.rows()]
    assert ids == [event[:2] for event in shape.events]
    if n_columns == 3:
        times = [event[2] for event in shape.events]
        assert frame["timestamp"].to_list() == pytest.approx(times, rel=0, abs=1e-5)
        assert frame["timestamp"].dtype.is_integer() == isinstance(times[0], int)


@each_shape
def test_a_public_data_set_warns_of_what_is_odd_and_of_nothing_else(
    shape: Shape, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        read_interactions(write(shape, tmp_path), **shape.options)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == len(shape.warnings), warnings
    for expected in shape.warnings:
        assert any(expected in warning for warning in warnings), warnings


@each_shape
def test_a_public_data_set_becomes_histories_in_the_order_of_time(shape: Shape, tmp_path: Path) -> None:
    log = load_log(write(shape, tmp_path), Reading(**shape.options))
    users = log.sequences.user_ids.to_list()
    items = [[log.vocabulary.ids[j - 1] for j in log.sequences.history(row)] for row in range(len(users))]
    assert dict(zip(users, items, strict=True)) == histories(shape.events)


@each_titled
def test_titles_of_a_public_data_set_meet_the_items_of_its_log(
    shape: Shape, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, path = write(shape, tmp_path), tmp_path / str(shape.titles_file)
    assert dict(read_titles(path, **shape.titles_options).rows()) == shape.titles
    flags = {f"title_{name}".replace("title_title", "title"): value for name, value in shape.titles_options.items()}
    caplog.clear()
    log = load_log(source, Reading(**shape.options, titles=path, **flags))
    assert log.vocabulary.titles is not None
    assert log.vocabulary.titles.to_list() == [shape.titles[item] for item in log.vocabulary.ids]
    assert "title_item_column" not in caplog.text.replace("-", "_")


@each_refused
def test_what_is_no_log_is_refused_with_the_fix(refused: Refused, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_interactions(write(refused, tmp_path), **refused.options)
    assert refused.message in str(error.value)


@each_headerless
def test_a_file_without_a_header_holds_enough_rows_to_tell_what_it_is(shape: Shape) -> None:
    assert len(shape.events) >= 100


@each_shape
def test_the_page_of_data_tells_the_command_of_a_public_data_set(shape: Shape) -> None:
    options = shape.options | {f"title_{name}": value for name, value in shape.titles_options.items()}
    flags = [f"--{name.replace('_', '-')}" + f" {value}" * (value is not True) for name, value in options.items()]
    lines = [line for line in SECTION.splitlines() if shape.source in line and all(flag in line for flag in flags)]
    assert lines or shape.name == "foursquare-kaggle"  # in the line of the same data set


def test_the_programs_of_the_page_make_logs_of_what_is_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for refused in REFUSED[:4]:
        write(refused, tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, {})
    steam = next(shape for shape in SHAPES if shape.name == "steam")
    assert (tmp_path / steam.source).read_bytes() == steam.files[steam.source]
    assert read_interactions("mind.tsv").rows() == clicked_news()
    assert read_interactions("netflix.csv").rows() == netflix_ratings()
