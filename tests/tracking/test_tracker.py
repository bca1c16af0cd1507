"""A training as trackers keep it, read back through each one's own reader; and trackers that fail or are missing."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import make_markov_log
from made import SETTINGS, run_program, without

import sasrec
from sasrec.core.errors import ConfigError
from sasrec.tracking.backends import BACKENDS

FLAGS = [flag for name, value in SETTINGS.items() for flag in (f"--{name.replace('_', '-')}", str(value))]
USER = "very-own-user-{}"  # found in any file, if it is there


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tracked") / "shop.csv"
    frame = make_markov_log(120, 30)
    frame.with_columns(pl.format(USER, pl.col("user_id")).alias("user_id")).write_csv(path)
    return path


def tracked(log: Path, place: Path, kind: str, *more: str, **variables: str) -> Path:
    """Train with a tracker that keeps all in a folder of its own; the run folder."""
    own = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", "WANDB_MODE": "offline", "WANDB_DIR": str(place),
        "TRACKIO_DIR": str(place / "trackio"), "TENSORBOARD_DIR": str(place / "tensorboard"), "HOME": str(place),
        "WANDB_DATA_DIR": str(place), "WANDB_CACHE_DIR": str(place), "WANDB_ARTIFACT_DIR": str(place),
    }  # fmt: skip
    place.mkdir(exist_ok=True)
    run = place.parent / "run"
    command = [sys.executable, "-m", "sasrec", "train", str(log), "--output", str(run), "--overwrite", "--json"]
    done = subprocess.run(
        [*command, *FLAGS, "--track", kind, *more], cwd=place, env={**os.environ, **own, **variables}, timeout=300,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)  # what the package prints is no part of it
    assert "failed, and is told no more" not in done.stderr, done.stderr
    return run


def expected(run: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The lines of the curve, and metrics of test, as the run folder has them."""
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    results = json.loads((run / "metrics.json").read_text())["results"]
    found = {
        f"{r['split']}_{r['protocol']}/{name}": metric["value"]
        for r in results for name, metric in r["metrics"].items() if r["split"] == "test"
    }  # fmt: skip
    assert history
    assert found
    return history, found


def assert_no_user_in(place: Path) -> None:
    files = [path for path in place.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert b"very-own-user" not in path.read_bytes(), path


def test_mlflow_has_settings_curve_metrics_protocol_report_and_card(log: Path, tmp_path: Path) -> None:
    place = tmp_path / "mlflow"
    history, metrics = expected(tracked(log, place, "mlflow", "--track-project", "shop"))
    read = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
run, = client.search_runs([client.get_experiment_by_name("shop").experiment_id])
curve = [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, "valid/ndcg_at_10")]
files = [f.path for f in client.list_artifacts(run.info.run_id)]
print(json.dumps([run.info.status, run.data.params, run.data.metrics, run.data.tags, curve, files]))
"""
    status, params, logged, tags, curve, files = json.loads(run_program(read, f"sqlite:///{place}/mlflow.db"))
    assert status == "FINISHED"
    assert (params["embedding_dim"], params["n_users"], params["data"]) == ("8", "120", "shop")
    assert curve == [[line["epoch"], line["valid"]["ndcg@10"]] for line in history]
    assert {name.replace("@", "_at_"): value for name, value in metrics.items()}.items() <= logged.items()
    assert tags["test_full"].startswith("test (leave one out), full protocol: all 30 items")
    assert sorted(files) == ["README.md", "curve.png", "report.html"]
    assert_no_user_in(place)


def test_tensorboard_has_curve_metrics_and_card(log: Path, tmp_path: Path) -> None:
    place = tmp_path / "tb"
    history, metrics = expected(tracked(log, place, "tensorboard"))
    read = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]).Reload()
scalars = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
print(json.dumps([scalars, events.Tags()["tensors"]]))
"""
    (folder,) = (place / "tensorboard" / "sasrec").iterdir()
    assert folder.name == "shop-best-seed-0"
    scalars, texts = json.loads(run_program(read, folder))
    for (step, value), line in zip(scalars["valid/ndcg_at_10"], history, strict=True):
        assert (step, value) == (line["epoch"], pytest.approx(line["valid"]["ndcg@10"], rel=1e-6))
    for name, value in metrics.items():
        assert scalars[name.replace("@", "_at_")] == [[0, pytest.approx(value, rel=1e-6)]]
    assert {"settings/text_summary", "model_card/text_summary", "test_full/text_summary"} <= set(texts)
    assert (folder / "report" / "report.html").exists()
    assert_no_user_in(place)


def test_trackio_has_settings_curve_metrics_and_report(log: Path, tmp_path: Path) -> None:
    place = tmp_path / "trackio"
    history, metrics = expected(tracked(log, place, "trackio"))
    read = """
import json, os, sys
os.environ["TRACKIO_DIR"] = sys.argv[1]
import trackio
from trackio.sqlite_storage import SQLiteStorage
run, = trackio.Api().runs("sasrec")
print(json.dumps([run.name, run.config, SQLiteStorage.get_logs("sasrec", run.name)], default=str))
"""
    name, config, logs = json.loads(run_program(read, place / "trackio").splitlines()[-1])
    assert (name, config["embedding_dim"]) == ("shop-best-seed-0", 8)
    curve = [(one["step"], one["valid/ndcg@10"]) for one in logs if "valid/ndcg@10" in one]
    assert curve == [(line["epoch"], line["valid"]["ndcg@10"]) for line in history]
    assert metrics.items() <= {key: value for one in logs for key, value in one.items() if key in metrics}.items()
    assert list((place / "trackio").rglob("*"))
    assert_no_user_in(place)


def test_wandb_offline_has_settings_curve_and_metrics(log: Path, tmp_path: Path) -> None:
    place = tmp_path / "wandb"
    history, metrics = expected(tracked(log, place, "wandb"))
    read = """
import json, struct, sys
from wandb.proto import wandb_internal_pb2

def records(data, place=7, block=32768):  # a log of LevelDB: after a head, pieces of records in blocks
    whole = b""
    while place < len(data):
        left = block - place % block
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""

told = []
for data in records(open(sys.argv[1], "rb").read()):
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    kind = record.WhichOneof("record_type")
    part = record.history.item if kind == "history" else record.summary.update if kind == "summary" else []
    part = record.run.config.update if kind == "run" else record.config.update if kind == "config" else part
    told.append([kind, {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in part}])
print(json.dumps(told))
"""
    (file,) = place.rglob("run-*.wandb")
    told = json.loads(run_program(read, file))
    curve = [(row["epoch"], row["valid/ndcg@10"]) for kind, row in told if kind == "history" and "epoch" in row]
    assert curve == [(line["epoch"], line["valid"]["ndcg@10"]) for line in history]
    summary = {key: value for kind, row in told if kind == "summary" for key, value in row.items()}
    assert metrics.items() <= summary.items()
    assert {key: value for kind, row in told if kind in ("run", "config") for key, value in row.items()}[
        "embedding_dim"
    ] == 8  # fmt: skip
    assert_no_user_in(place)


def test_several_trackers_keep_one_training(log: Path, tmp_path: Path) -> None:
    place = tmp_path / "both"
    tracked(log, place, "tensorboard, mlflow")
    assert list((place / "tensorboard").rglob("events.*"))
    with sqlite3.connect(place / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,)
    database.close()


def test_runs_of_one_name_keep_folders_of_their_own(log: Path, tmp_path: Path) -> None:
    place = tmp_path / "tb"
    for _ in range(2):
        tracked(log, place, "tensorboard")
    names = sorted(path.name for path in (place / "tensorboard" / "sasrec").iterdir())
    assert names == ["shop-best-seed-0", "shop-best-seed-0-2"]


def test_an_unknown_tracker_is_refused_before_anything_is_read() -> None:
    with pytest.raises(
        ConfigError,
        match=r"tracker 'mlfow' is not known .did you mean 'mlflow'.*; there are: mlflow, wandb, trackio, tensorb",
    ):
        sasrec.Tracker("mlfow")


@pytest.mark.parametrize(
    ("kind", "package"), [*zip(BACKENDS, ["mlflow", "wandb", "trackio", "tensorboardX"], strict=True)]
)
def test_a_missing_package_is_named_with_its_extra(log: Path, tmp_path: Path, kind: str, package: str) -> None:
    command = [sys.executable, "-m", "sasrec", "train", str(log), "--output", str(tmp_path / "run"), *FLAGS]
    done = subprocess.run(
        [*command, "--track", kind], env=without(tmp_path, package), capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.search(rf"--track {kind} needs {package} \(.*\): pip install 'sasrec\[{kind}\]'", done.stderr)


class Failing:
    """A tracker whose server goes away."""

    def __init__(self, project: str, name: str, settings: Any) -> None:
        self.told = 0

    def curve(self, epoch: int, figures: Any) -> None:
        raise OSError("no route to host")

    def result(self, figures: Any, texts: Any, files: Path) -> None:
        raise AssertionError("it is told no more")

    def close(self, status: str) -> None:
        raise AssertionError("it is told no more")


def test_a_tracker_that_fails_costs_no_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(BACKENDS, "mlflow", Failing)
    recommender = sasrec.fit(make_markov_log(120, 30), callbacks=[sasrec.Tracker("mlflow")], **SETTINGS)
    assert recommender.results
    told = [record.getMessage() for record in caplog.records if record.name == "sasrec.tracking.tracker"]
    assert told == ["mlflow failed, and is told no more of this training: no route to host"]


def test_a_tracker_that_cannot_begin_ends_the_command_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(project: str, name: str, settings: Any) -> Any:
        raise OSError("no route to host\nTraceback")

    monkeypatch.setitem(BACKENDS, "mlflow", refuses)
    with pytest.raises(ConfigError, match=r"mlflow cannot begin a run: no route to host$"):
        sasrec.fit(make_markov_log(120, 30), callbacks=[sasrec.Tracker("mlflow")], **SETTINGS)
