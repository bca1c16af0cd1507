"""What notebooks show: figures with their protocol, titles beside ids, foreign text as text, and no user's history."""

import math
import pickle
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import polars as pl
import pytest

import sasrec
from sasrec.core.displays import html_of
from sasrec.ranking.lists import Recommendations
from sasrec.report.notebook import MOST_ROWS, table
from sasrec.runs.record import Course, EpochLine

SCRIPT = "<script>alert('owned')</script>"


def tags(html: str) -> list[str]:
    """Every element that a browser would make of it; what is not well-formed is an error."""
    return [element.tag for element in ET.fromstring(html.replace("xlink:", "")).iter()]


@pytest.fixture(scope="module")
def folder(markov_log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of users with names, and of items with hostile ids and titles."""
    path = tmp_path_factory.mktemp("notebook") / f"{SCRIPT.replace('/', ' ')}.csv"
    users = "someone-" + pl.col("user_id").cast(pl.String)
    items = pl.format("<script>{}</script>", pl.col("item_id"))
    log = markov_log.select(user_id=users, item_id=items)
    log.write_csv(path)
    titles = pl.DataFrame({"item_id": log["item_id"].unique().sort()}).with_columns(title=pl.lit(SCRIPT))
    settings = {"embedding_dim": 8, "n_blocks": 1, "max_seq_len": 8, "max_epochs": 2, "threads": 1}
    sasrec.fit(path, titles=titles, output=path.parent / "run", **settings)
    return path.parent


@pytest.fixture(scope="module")
def model(folder: Path) -> sasrec.Recommender:
    return sasrec.load(folder / "run")


def test_result_shows_model_and_baselines_under_its_protocol(model: sasrec.Recommender) -> None:
    html = model.results[1]._repr_html_()
    assert "full protocol: all 30 items" in html
    for word in ("NDCG@10", "model", "popularity", "last_item", f"{model.results[1].metrics['ndcg@10']['value']:.4f}"):
        assert word in html
    assert "script" not in tags(html)


def test_warnings_of_a_result_are_shown_as_text(model: sasrec.Recommender) -> None:
    html = replace(model.results[1], warnings=(SCRIPT,))._repr_html_()
    assert "Warning: &lt;script&gt;" in html
    assert "script" not in tags(html)


def test_recommendations_show_titles_and_ids_as_text(model: sasrec.Recommender) -> None:
    known = model.vocabulary.item_ids[0]
    found = model.recommend_detailed([[known, "<b>unknown"], ["<b>unknown"]], k=3)
    html = found._repr_html_()
    assert html.count("&lt;script&gt;alert(") == 6
    assert "which were skipped: 2." in html
    assert "which got popular items: 1." in html
    assert not {"script", "b"} & set(tags(html))


def test_recommendations_of_a_pandas_frame_look_the_same(model: sasrec.Recommender) -> None:
    found = model.recommend_detailed([[model.vocabulary.item_ids[0]]], k=3)
    as_pandas = replace(found, frame=pd.DataFrame(found.frame.to_dict(as_series=False)))
    assert as_pandas._repr_html_() == found._repr_html_()
    single = replace(found, frame=pd.DataFrame(found.frame.to_dict(as_series=False)).astype({"score": "float32"}))
    assert single._repr_html_() == found._repr_html_()


def test_recommendations_of_a_pyarrow_table_look_the_same(model: sasrec.Recommender) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    found = model.recommend_detailed([[model.vocabulary.item_ids[0]]], k=3)
    as_table = replace(found, frame=pyarrow.table(found.frame.to_dict(as_series=False)))
    assert as_table._repr_html_() == found._repr_html_()


def test_recommendations_without_titles_show_the_frame(model: sasrec.Recommender) -> None:
    frame = pl.DataFrame({"user_id": [0], "item_id": ["a"], "score": [0.5], "rank": [1]})
    html = Recommendations(frame, [[]], [False])._repr_html_()
    assert "title" not in html
    assert "0.5000" in html


def test_stored_recommendations_leave_the_catalogue_behind(model: sasrec.Recommender) -> None:
    found = model.recommend_detailed([[model.vocabulary.item_ids[0]]], k=3)
    again = pickle.loads(pickle.dumps(found))
    assert again.vocabulary is None
    assert again.frame.equals(found.frame)
    assert "Recommendations" in again._repr_html_()


def test_long_lists_are_cut_and_the_rest_is_counted(model: sasrec.Recommender) -> None:
    histories = [[model.vocabulary.item_ids[i]] for i in range(30)]
    html = model.recommend_detailed(histories, k=5)._repr_html_()
    assert tags(html).count("tr") == 1 + MOST_ROWS
    assert "and 100 more" in html


def test_model_shows_what_it_is_and_no_user(model: sasrec.Recommender, folder: Path) -> None:
    html = model._repr_html_()
    assert "30 items, histories of 200 users" in html
    assert "NDCG@10" in html
    assert "someone-" not in html
    assert "script" not in tags(html)
    model.save(folder / "without", histories=False)
    assert "30 items, no histories" in sasrec.load(folder / "without")._repr_html_()


def test_trained_model_shows_its_curves(markov_log: pl.DataFrame) -> None:
    trained = sasrec.fit(markov_log, embedding_dim=8, n_blocks=1, max_seq_len=8, max_epochs=2, threads=1)
    for html in (trained._repr_html_(), trained.train_result._repr_html_()):
        assert "training ended because all epochs were done" in html
        assert any(tag.endswith("svg") for tag in tags(html))
        assert "http" not in html  # nothing of another host


def test_comparison_shows_both_sides(model: sasrec.Recommender) -> None:
    result = model.evaluate("test", protocol="full")
    html = sasrec.compare(result, result)._repr_html_()
    assert "paired" in html
    assert "+0.0000" in html
    assert set(tags(html)) >= {"table", "p"}


def test_training_that_measured_nothing_shows_what_there_is() -> None:
    figures = dict.fromkeys(("seconds", "users_per_second", "learning_rate", "total_seconds"), 1.0)
    line = EpochLine(epoch=1, step=1, train_loss=math.nan, **figures)
    assert "Best epoch 0 of 1" in html_of(Course([line], 0, "interrupted"))
    assert "No epoch was completed" in html_of(Course([], 0, "interrupted"))


def test_numbers_stand_on_the_right_and_commands_of_terminals_are_shown() -> None:
    html = table([["name", "count"], ["a\x1b[31m", 1_000], ["b", -2.5]])
    assert html.count("text-align: right") == 3
    assert "\\x1b" in html


def test_what_nobody_described_is_shown_as_its_text() -> None:
    assert html_of(SimpleNamespace(a="<b>")) == "<pre>namespace(a=&#x27;&lt;b&gt;&#x27;)</pre>"
