"""Names in commands, files of settings and calls that are misspelt: one sentence, with the nearest name."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cli.conftest import Run

import sasrec
from sasrec.core.config import parse_metric
from sasrec.core.errors import ConfigError, DataError, SASRecError
from sasrec.data.items import describe
from sasrec.data.logs import Reading, load_log
from sasrec.experiments.grid import Grid


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "events.csv"
    rows = "".join(f"{u},i{(u + i) % 9},{i},{('view', 'purchase')[i % 2]}\n" for u in range(9) for i in range(5))
    path.write_text(f"user,item,time,kind\n{rows}")
    return path


CASES: dict[str, tuple[list[str], int, str]] = {
    "column": (["{log}", "--user-column", "usr"], 1, "no column 'usr' (did you mean 'user'?); its columns are: user"),
    "preset": (["{log}", "--preset", "bset"], 2, "preset 'bset' is not known (did you mean 'best'?); there are:"),
    "data set": (["ml-100"], 1, "no file ml-100, and no data set of this name (did you mean 'ml-100k'?)"),
    "file": (["{dir}/event.csv"], 1, "event.csv (did you mean '{dir}/events.csv'?)"),
    "format": (["{log}", "--format", "parket"], 2, "format 'parket' is not known (did you mean 'parquet'?); use one"),
    "position": (["{log}", "--columns", "usr,item"], 2, "--columns has 'usr' (did you mean 'user'?); use user"),
    "key": (
        ["{log}", "--config", "{dir}/s.yaml"],
        2,
        "unknown setting 'embedding-dim' (did you mean 'embedding_dim'?)",
    ),
    "value": (["{log}", "--config", "{dir}/v.yaml"], 2, "cross_entropy (did you mean 'cross_entropy'?)"),
    "metric": (["{log}", "--valid-metric", "NDGC@5"], 2, "'NDGC@5' is not a metric (did you mean 'ndcg@5'?); use"),
    "tracker": (["{log}", "--track", "mlfow"], 2, "tracker 'mlfow' is not known (did you mean 'mlflow'?)"),
    "type of event": (
        ["{log}", "--event-column", "kind", "--target-events", "purchse"],
        2,
        "names 'purchse', which no event is (did you mean 'purchase'?); the log has view",
    ),
    "feature": (
        ["{log}", "--item-file", "{dir}/items.csv", "--item-features", "brnad"],
        2,
        "the items have no column 'brnad' (did you mean 'brand'?)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_misspelt_name_is_refused_in_one_sentence_with_the_nearest(
    run: Run, log: Path, tmp_path: Path, case: str
) -> None:
    (tmp_path / "s.yaml").write_text("embedding-dim: 8\n")
    (tmp_path / "v.yaml").write_text("loss: crossentropy\n")
    (tmp_path / "items.csv").write_text("item_id,brand\n" + "".join(f"i{i},b{i % 3}\n" for i in range(9)))
    words, code, said = CASES[case]
    outcome = run("-q", "train", *(w.format(log=log, dir=tmp_path) for w in words), "-o", tmp_path / "run")
    error = " ".join(outcome.err.split())
    assert outcome.code == code, error
    assert said.format(dir=tmp_path) in error
    assert error.count("error:") == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_misspelt_run_is_refused_with_the_one_beside_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    outcome = run("evaluate", tmp_path / "frist")
    assert outcome.code == 1
    assert f"(did you mean '{tmp_path}/first'?)" in " ".join(outcome.err.split())


def test_misspelt_data_set_to_fetch_is_refused_with_the_nearest(run: Run) -> None:
    outcome = run("datasets", "--fetch", "ml100k")
    assert outcome.code == 2
    assert "data set 'ml100k' is not known (did you mean 'ml-100k'?); there are:" in outcome.err


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda log: sasrec.fit(log, embeding_dim=8), "'embeding_dim' (did you mean 'embedding_dim'?)"),
        (lambda log: sasrec.fit(log, preset="papr"), "'papr' is not known (did you mean 'paper'?)"),
        (lambda log: load_log(log, Reading(user_column="usr")), "'usr' (did you mean 'user'?)"),
        (lambda log: load_log(log, Reading(repeats="frist")), "'frist' is not one of"),
        (lambda log: sasrec.load_dataset("ml-1n"), "(did you mean 'ml-1m'?)"),
        (lambda log: parse_metric("ndcg"), "(did you mean 'ndcg@10'?)"),
        (lambda log: Grid(("paper",), ("temporl",), ("full",), (0,)), "(did you mean 'temporal'?)"),
        (
            lambda log: describe(
                load_log(log).vocabulary, pl.DataFrame({"item_id": ["i1"], "price": [1.0]}), ["pric"], None, None
            ),
            "'pric' (did you mean 'price'?)",
        ),
    ],
)
def test_python_is_told_the_same(call: Any, said: str, log: Path) -> None:
    with pytest.raises(SASRecError) as refused:
        call(log)
    assert said in str(refused.value)
    assert isinstance(refused.value, ConfigError | DataError)
