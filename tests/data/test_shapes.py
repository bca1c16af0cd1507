"""Public data sets, by files of their shape: read rightly with the command that docs/data.md gives, or refused."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from shapes import SHAPES, Shape, made_events

from sasrec.core.errors import DataError
from sasrec.data.logs import Reading, load_log
from sasrec.data.readers import read_interactions
from sasrec.data.titles import read_titles

DATA_PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def written(shape: Shape, folder: Path) -> Path:
    content = shape.write(made_events(shape))
    assert isinstance(content, bytes)
    (folder / shape.file).write_bytes(content)
    return folder / shape.file


@pytest.mark.parametrize("name", SHAPES)
def test_a_published_shape_is_read_event_by_event(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shape = SHAPES[name]
    with caplog.at_level(logging.WARNING):
        log = read_interactions(written(shape, tmp_path), **shape.options)
    expected = [
        (user, item) if shape.time is None else (user, item, shape.time(time))
        for user, item, time in made_events(shape)
    ]
    assert log.columns == ["user_id", "item_id", "timestamp"][: len(expected[0])]
    assert sorted(log.rows()) == sorted(expected)
    if shape.time is None:
        assert log.rows() == expected  # the order of the file is that of the events
    assert shape.warns in caplog.text


@pytest.mark.parametrize("name", SHAPES)
def test_histories_of_a_published_shape_are_in_time_order(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    log = load_log(written(shape, tmp_path), Reading(**shape.options))
    events = made_events(shape)
    user = log.sequences.user_ids[3]
    mine = [item for who, item, _ in events if who == user]
    days = [shape.time(time) for who, _, time in events if who == user] if shape.time else []
    read = log.vocabulary.ids_of(log.sequences.history(3)).to_list()
    if len(set(days)) == len(days):  # days alone leave the order within a day to the file
        assert read == mine
    assert sorted(map(str, read)) == sorted(map(str, mine))


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.refused])
def test_a_shape_that_would_be_misread_is_refused_without_its_options(name: str, tmp_path: Path) -> None:
    path = written(SHAPES[name], tmp_path)
    with pytest.raises(DataError, match=r"--columns|--encoding"):
        read_interactions(path)


def test_the_page_gives_a_command_for_each_shape() -> None:
    page = DATA_PAGE.read_text()
    for shape in SHAPES.values():
        name = re.escape(shape.file.split("/")[0])
        options = shape.options.get("columns") or shape.options.get("user_column") or ""
        if shape.file != "ratings.txt":
            assert re.search(f"{name}[^|]*{re.escape(options)}", page), shape.file


TITLES = {
    "u.item": "1|Caf\u00e9 (1995)|01-Jan-1995||http://x|0|0\n2|Heat, The (1996)|01-Jan-1995||http://y|0|1\n".encode(
        "latin-1"
    ),
    "movies.dat": "1::Caf\u00e9 (1995)::Drama|War\n2::Heat, The (1996)::Drama\n".encode("latin-1"),
    "movies.csv": 'movieId,title,genres\n1,Caf\u00e9 (1995),Drama|War\n2,"Heat, The (1996)",Drama\n'.encode(),
    "meta_Video_Games.jsonl": b'{"main_category":"x","title":"Caf\\u00e9 (1995)","parent_asin":"1"}\n'
    b'{"main_category":"x","title":"Heat, The (1996)","parent_asin":"2"}\n',
    "articles.csv": 'article_id,product_code,prod_name\n1,7,Caf\u00e9 (1995)\n2,7,"Heat, The (1996)"\n'.encode(),
    "ml.item": "item_id:token\tmovie_title:token_seq\n1\tCaf\u00e9 (1995)\n2\tHeat, The (1996)\n".encode(),
}


@pytest.mark.parametrize("name", TITLES)
def test_published_titles_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(TITLES[name])
    assert read_titles(tmp_path / name).rows() == [(1, "Caf\u00e9 (1995)"), (2, "Heat, The (1996)")]
