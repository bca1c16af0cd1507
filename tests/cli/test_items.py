"""Items on the command line: what is said of them, what a run keeps and shows, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from cli.conftest import Run
from conftest import make_markov_log

import sasrec
from sasrec.data.logs import load_log
from sasrec.serving.served_model import ServedModel

SMALL = ["--embedding-dim", "8", "--n-blocks", "1", "--max-epochs", "1", "--batch-size", "32"]
HOSTILE = "<script>alert(1)</script>_*x*"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, and items in several forms."""
    folder = tmp_path_factory.mktemp("items")
    log = make_markov_log()
    log.write_csv(folder / "log.txt", separator=" ", include_header=False)
    ids = log["item_id"].unique().sort().to_list()
    items = pl.DataFrame(
        {
            "item_id": [*ids, 900, 800],
            "title": [f"Film {i}" for i in [*ids, 900, 800]],
            "colour": [["red", "blue", HOSTILE][i % 3] for i in [*ids, 900, 800]],
            "price": [float(i % 7) for i in [*ids, 900, 800]],
            "url": [f"http://x/{i}" for i in [*ids, 900, 800]],
        }
    )
    items.write_csv(folder / "items.csv")
    items.with_columns(v=np.random.default_rng(0).normal(size=(len(items), 3))).write_parquet(folder / "items.parquet")
    np.save(folder / "v.npy", np.random.default_rng(0).normal(size=(len(items), 3)))
    np.save(folder / "short.npy", np.zeros((3, 3)))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A run whose items have attributes, and which knows items by id alone."""
    log = load_log(folder / "log.txt").with_items(folder / "items.csv")
    run = folder / "run"
    settings = {"embedding_dim": 8, "n_blocks": 1, "max_epochs": 1, "batch_size": 32, "threads": 1}
    sasrec.fit(folder / "log.txt", items=folder / "items.csv", output=run, **settings)
    assert sasrec.load(run).vocabulary.ids == log.vocabulary.ids
    return run


def test_prepare_keeps_attributes_and_features(run: Run, folder: Path, tmp_path: Path) -> None:
    flags = ["--item-file", folder / "items.csv", "--item-features", "colour,price:category"]
    done = run("prepare", folder / "log.txt", "-o", tmp_path / "p", *flags)
    assert done.code == 0, done.err
    assert "32 items; item = item_id, title = title; attributes: colour text, price numbers, url text" in done.err
    assert "items without events: 2; they follow after those of the log" in done.err
    assert "features of items: colour 3 categories, price 7 categories" in done.err
    log = load_log(tmp_path / "p")
    assert log.vocabulary.ids[-2:] == [800, 900]
    assert (log.sequences.n_items, log.sequences.facts.n_items) == (32, 30)
    assert log.vocabulary.features.n_features == 10


def test_vectors_come_from_a_column_or_a_file(run: Run, folder: Path, tmp_path: Path) -> None:
    for name, items, vectors in (("a", "items.parquet", "v"), ("b", "items.csv", folder / "v.npy")):
        flags = ["--item-file", folder / items, "--item-vectors", vectors]
        assert run("prepare", folder / "log.txt", "-o", tmp_path / name, *flags).code == 0
    first, second = (load_log(tmp_path / name).vocabulary.features for name in ("a", "b"))
    assert first.is_same_as(second)
    assert first.vector_dim == 3


BAD = [
    (["--item-features", "colour"], 2, "need the items that they are of; give items= (--item-file)"),
    (["--item-file", "items.csv", "--item-features", "size"], 2, "no column 'size'; their columns are: colour, price"),
    (["--item-file", "items.csv", "--item-features", "url"], 1, "'url' has 30 different values for 30 items"),
    (["--item-file", "items.csv", "--item-features", "colour,colour"], 2, "'colour' is named twice"),
    (["--item-file", "items.csv", "--item-features", "price:size"], 2, "a column is a :category or a :number"),
    (["--item-file", "items.csv", "--item-features", "colour:number"], 1, "which is not a number; use it as :category"),
    (["--item-file", "items.csv", "--item-vectors", "colour"], 1, "holds String, and vectors are lists of numbers"),
    (["--item-file", "items.csv", "--item-vectors", "short.npy"], 1, "has 3 rows, and"),
    (["--item-file", "items.csv", "--item-vectors", "none.npy"], 1, "there is no file none.npy"),
    (["--item-file", "items.csv", "--item-vectors", "w"], 2, "no column 'w'"),
    (["--item-file", "none.csv"], 1, "there is no file none.csv"),
    (["--item-file", "steam"], 1, "'steam' tells nothing of its items"),
    (["--item-file", "items.csv", "--item-file-id", "sku"], 1, "has no column 'sku'; its columns are: item_id"),
    (["--item-file", "others.csv"], 1, "none of the 1 items is in the log: the log's ids are such as 1, and those of"),
    (["--item-file", "ids.csv"], 1, "ids.csv"),
    (
        ["--config", "settings.yaml"],
        2,
        "n_features=5 cannot be set: it follows from the features of items, which give 0",
    ),
    (["--n-features", "5"], 2, "No such option: --n-features"),
]


@pytest.mark.parametrize(("flags", "code", "message"), BAD)
def test_bad_items_end_in_one_sentence(
    flags: list[str], code: int, message: str, run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "work", ignore=shutil.ignore_patterns("run"))
    monkeypatch.chdir(tmp_path / "work")
    Path("settings.yaml").write_text("n_features: 5\n")
    Path("others.csv").write_text("item_id,colour\n9999,red\n")
    Path("ids.csv").write_text("item_id\n1\n")
    done = run("train", "log.txt", "-o", "out", *SMALL, *flags)
    assert done.code == code, done.err
    assert message in done.err
    assert not Path("out").exists()
    if code == 1:
        assert done.err.strip().splitlines()[-1].startswith("error: ")


def test_a_run_shows_what_is_known_of_its_items(run: Run, trained: Path) -> None:
    told = yaml.safe_load(run("info", trained).out)["items"]
    assert told["attributes"]["colour"]["values"] == f"{HOSTILE} (10), blue (10), red (10)"
    assert told["attributes"]["price"] == {"holds": "numbers", "items with it": "100 %", "values": "0 to 6"}
    assert told["without events"] == 0
    assert "items" in json.loads(run("info", trained, "--json").out)
    assert "items.parquet" in run("info", trained, "--verify").out


def test_report_and_card_tell_of_items_without_markup_of_theirs(trained: Path) -> None:
    page, card = (trained / "report.html").read_text(), (trained / "README.md").read_text()
    assert "What is known of items" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;_*x* (10)" in page
    assert "Known of items, with the share that has it: colour (text, 100 %), price (numbers, 100 %)" in card
    assert "alert" not in card


def test_answers_tell_of_items(trained: Path) -> None:
    model = ServedModel(sasrec.load(trained))
    assert model.facts()["attributes"] == ["colour", "price", "url"]
    (item, *_) = model.search("film 4", 1).items
    assert item.attributes == {"colour": "blue", "price": 4.0, "url": "http://x/4"}
    about = model.similar(item.item_id, 3).item
    assert about == item
    assert model.explain([item.item_id], 5).item.attributes is not None


def test_a_log_without_items_is_as_before(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("prepare", folder / "log.txt", "-o", tmp_path / "p").code == 0
    assert not (tmp_path / "p" / "item_features.json").exists()
    assert pl.read_parquet_schema(tmp_path / "p" / "items.parquet").keys() == {"item_index", "item_id", "count"}
