"""Items that come after training: recommended by their features, without training."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from cold_rule import placed
from made import random_histories

from sasrec import fit, load
from sasrec.core.errors import ConfigError, DataError
from sasrec.core.presets import COLD_SCALE
from sasrec.data.ragged import Ragged
from sasrec.recommender import Recommender

SMALL = {
    "max_epochs": 3, "embedding_dim": 16, "max_seq_len": 8, "n_blocks": 1, "n_heads": 1, "threads": 1, "patience": 0,
    "feature_dropout": 0.3,
}  # fmt: skip
KINDS = ("red", "green", "blue")
VECTORS = np.random.default_rng(0).standard_normal((30, 3)).astype(np.float32)


def items_of(ids: list[int], seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "item_id": ids,
            "title": [f"Item {i}" for i in ids],
            "kind": [KINDS[i % 3] for i in ids],
            "price": rng.uniform(1, 9, len(ids)),
        }
    )


def log_of(n_items: int = 30) -> pl.DataFrame:
    rows = [(u, i) for u, row in enumerate(random_histories(0, 60, n_items, 9)) for i in row]
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")


@pytest.fixture(scope="module", params=[{}, {"tied": False}, {"engine": "torch"}], ids=["tied", "untied", "torch"])
def trained(request: pytest.FixtureRequest) -> Recommender:
    items = items_of(list(range(1, 31)))
    return fit(log_of(), preset="paper", items=items, item_features=["kind", "price"], **SMALL, **request.param)


NEW = items_of([101, 102, 103], seed=1)


def test_what_the_model_says_of_its_own_items_stays(trained: Recommender) -> None:
    more, n = trained.add_items(NEW), len(trained.vocabulary)
    assert more.vocabulary.ids == [*trained.vocabulary.ids, 101, 102, 103]
    assert np.array_equal(more.engine.item_table()[: n + 1], trained.engine.item_table())
    histories = [[1, 2, 3], [7], [30, 4]]
    old = trained.recommend(histories, k=10)
    new = more.recommend(histories, k=10, deny=[101, 102, 103])
    assert old["item_id"].to_list() == new["item_id"].to_list()
    assert np.array_equal(trained.features(histories), more.features(histories))
    assert more.model_version != trained.model_version
    assert len(trained.vocabulary) == n


def rows_of_new_items(recommender: Recommender) -> np.ndarray:
    """Of the items behind the first 30, by the rule, from the mean of each item's features."""
    features, weights = recommender.vocabulary.features, recommender.engine.weights()
    table, values = weights["feature_embedding.weight"], features.values
    told = np.zeros((features.n_items + 1, table.shape[1]))
    for item in range(1, features.n_items + 1):
        told[item] = table[values.row(item)].mean(axis=0)
    scale = recommender.config.model.cold_scale
    own = weights.get("output_embedding.weight", weights["item_embedding.weight"])
    return (placed(told, own, scale) if scale else told)[31:]


def test_a_new_item_is_what_its_features_tell_and_what_similar_items_have(trained: Recommender) -> None:
    more = trained.add_items(NEW)
    assert more.config.model.cold_scale == COLD_SCALE
    assert np.allclose(more.engine.item_table()[31:], rows_of_new_items(more), atol=1e-6)
    assert all(len(more.vocabulary.features.values.row(index)) == 2 for index in (31, 32, 33))
    assert not any(more.vocabulary.counts[30:])


def test_new_items_are_recommended_explained_and_part_of_histories(trained: Recommender) -> None:
    more = trained.add_items(NEW)
    listed = more.recommend([[1, 2, 3]], k=3, allow=[101, 102, 103])
    assert sorted(listed["item_id"]) == [101, 102, 103]
    assert len(more.similar_items(101, 5)) == 5
    assert more.recommend_detailed([[101]], k=2).fallback == [False]
    assert more.vocabulary.titles_of(np.array([31], np.int32)) == ["Item 101"]
    result = more.evaluate("test")
    assert result.candidates == "all 33 items"
    assert "shared_features" in result.baselines


def test_a_folder_with_new_items_is_read_as_it_was_written(trained: Recommender, tmp_path: Path) -> None:
    more = trained.add_items(NEW)
    more.save(tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.model_version == more.model_version
    assert again.vocabulary.ids == more.vocabulary.ids
    assert np.array_equal(again.engine.item_table(), more.engine.item_table())
    histories = Ragged.from_lists([[1, 2], [31, 33]])
    assert np.array_equal(again.engine.encode(histories), more.engine.encode(histories))
    twice = again.add_items(items_of([101, 104]))
    assert twice.vocabulary.ids[-4:] == [101, 102, 103, 104]


def test_how_much_longer_is_a_setting_and_changes_nothing_but_new_items(tmp_path: Path) -> None:
    given: dict[str, Any] = {"preset": "paper", "items": items_of(list(range(1, 31))), "item_features": ["kind"]}
    one, other = (fit(log_of(), **given, **SMALL, cold_scale=scale).add_items(NEW) for scale in (1, 1.5))
    mine, theirs = one.engine.weights(), other.engine.weights()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    before, after = one.engine.item_table(), other.engine.item_table()
    assert np.array_equal(before[:31], after[:31])
    assert np.allclose(1.5 * before[31:], after[31:], rtol=1e-6)
    assert np.allclose(after[31:], rows_of_new_items(other), atol=1e-6)
    assert one.model_version != other.model_version
    histories = [[1, 2, 3], [7], [30, 4]]
    scores = [rec.score(histories, [101, 102, 103]) for rec in (one, other)]
    assert np.allclose(1.5 * scores[0], scores[1], rtol=1e-4)


def test_a_folder_that_says_nothing_of_it_answers_as_before_there_was_such_a_setting(tmp_path: Path) -> None:
    given: dict[str, Any] = {"preset": "paper", "items": items_of(list(range(1, 31))), "item_features": ["kind"]}
    fit(log_of(), **given, **SMALL, cold_scale=0).save(tmp_path / "old")
    assert "cold_scale" not in (tmp_path / "old" / "config.json").read_text()
    again = load(tmp_path / "old")
    more = again.add_items(NEW)
    assert again.config.model.cold_scale == more.config.model.cold_scale == 0
    assert np.allclose(more.engine.item_table()[31:], rows_of_new_items(more), atol=1e-6)


def test_items_that_are_known_stay_and_categories_that_are_not_are_no_features(
    trained: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    odd = pl.DataFrame({"item_id": [1, 200], "kind": ["blue", "violet"], "price": [5.0, None]})
    more = trained.add_items(odd)
    assert "1 of 2 items are known and stay as they are" in caplog.text
    assert "'violet'" in caplog.text
    assert more.vocabulary.attributes is not None
    assert more.vocabulary.attributes["kind"][0] == "green"
    assert not more.engine.item_table()[31].any()
    assert 200 not in more.recommend([[1, 2]], k=1)["item_id"].to_list()


def test_vectors_of_new_items_are_scaled_as_those_of_training() -> None:
    items = items_of(list(range(1, 31)))
    model = fit(log_of(), preset="paper", items=items, item_vectors=VECTORS, **SMALL)
    more = model.add_items(items_of([101, 102]), VECTORS[:2])
    first, added = model.vocabulary.features.vectors, more.vocabulary.features.vectors
    assert np.allclose(added[31:], first[1:3], atol=1e-6)
    with pytest.raises(DataError, match="the items have no column 'item_vector', which the model's features are made"):
        model.add_items(items_of([101]))
    with pytest.raises(DataError, match=r"column 'item_vector' of the items holds .*shape=\(2,\)"):
        model.add_items(items_of([101]), VECTORS[:1, :2])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (NEW.drop("kind"), "the items have no column 'kind', which the model's features are made from; their columns"),
        (items_of([1, 2]), "the model knows all 2 items already, so none is added"),
        (
            NEW.with_columns(item_id=pl.Series(["a", "b", "c"])),
            "none of 3 items has an id that is an integer, as those of the model are; none is added",
        ),
        (NEW.with_columns(price=pl.Series(["a", "b", "c"])), "price"),
        (NEW.drop("item_id"), "item"),
        (NEW.clear(), "item"),
    ],
)
def test_items_that_cannot_be_added_are_refused(trained: Recommender, items: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        trained.add_items(items)
    assert "\n" not in str(refused.value)


def test_a_model_that_knows_items_by_id_alone_takes_no_new_ones() -> None:
    settings: dict[str, Any] = {**SMALL, "feature_dropout": 0.0}
    with pytest.raises(ConfigError, match="this model knows items by their ids alone, so it cannot recommend one"):
        fit(log_of(), preset="paper", **settings).add_items(NEW)


def test_the_command_writes_a_run_that_all_commands_take(tmp_path: Path) -> None:
    log_of().write_csv(tmp_path / "log.csv")
    items_of(list(range(1, 31))).write_csv(tmp_path / "items.csv")
    NEW.write_csv(tmp_path / "new.csv")

    def sasrec(*words: object, fails: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sasrec", "--quiet", *map(str, words)],
            capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    sasrec(
        "train", "log.csv", "--preset", "paper", "--item-file", "items.csv", "--item-features", "kind,price",
        "--output", "run", *flags, "--cold-scale", "1.5",
    )  # fmt: skip
    told = sasrec("add-items", "run", "new.csv", "--output", "more")
    assert told.startswith("wrote more: model ")
    assert told.rstrip().endswith("33 items, 3 of them new")
    rows = json.loads(sasrec("recommend", "more", "--history", "1,2", "--k", "33", "--keep-seen", "--json"))
    assert {101, 102, 103} <= {row["item_id"] for row in rows}
    sasrec("evaluate", "more")
    assert "exists and is not empty" in sasrec("add-items", "run", "new.csv", "--output", "more", fails=True)
    more = load(tmp_path / "more")
    assert more.vocabulary.ids[-1] == 103
    assert more.config.model.cold_scale == 1.5
    assert np.allclose(more.engine.item_table()[31:], rows_of_new_items(more), atol=1e-6)
    refused = sasrec("train", "log.csv", "--output", "none", "--cold-scale=-1", fails=True)
    assert "cold_scale=-1.0 is too small; the least is 0" in refused
    assert "knows all 3 items already" in sasrec("add-items", "more", "new.csv", "--output", "third", fails=True)
    assert not (tmp_path / "third").exists()
