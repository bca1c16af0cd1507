"""Several seeds: a run folder each, a summary by hand, and no difference after a cut-off."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_markov_log
from made import OVERRIDES, SETTINGS

import sasrec
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.data.logs import Log
from sasrec.data.sequences import build_sequences
from sasrec.experiments.seeds import (
    Watch,
    load_summary,
    over_seeds,
    read_runs,
    result_lines,
    run_folders,
    run_study,
    summarise,
    summary_page,
    summary_text,
)
from sasrec.fitting import FitOptions
from sasrec.runs.folder import RunFolder
from sasrec.training.trainer import Progress

LOG = Log(*build_sequences(make_markov_log(60)), "made")


@pytest.fixture(autouse=True, scope="module")
def _without_reports() -> Iterator[None]:
    """Drawing takes most of the time of such small runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sasrec.recommender.Recommender.write_report", lambda recommender, folder: None)
        yield


def study(folder: Path, seeds: list[int], *, resume: bool = False, overwrite: bool = False, **settings: Any) -> bool:
    options = FitOptions(output=folder, resume=resume, overwrite=overwrite)
    return run_study(LOG, options, {**SETTINGS, **settings}, seeds, "sasrec train made")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of seeds 3 and 4."""
    folder = tmp_path_factory.mktemp("study") / "made"
    assert study(folder, [3, 4])
    return folder


def weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/model.safetensors"))}


def test_each_seed_is_the_run_that_it_would_be_alone(made: Path, tmp_path: Path) -> None:
    alone = sasrec.fit(make_markov_log(60), output=tmp_path / "alone", **{**SETTINGS, "seed": 4})
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == weights(made)["seed-4"]
    assert sasrec.load(made / "seed-4").evaluate().metrics == alone.evaluate().metrics
    assert weights(made)["seed-3"] != weights(made)["seed-4"]


def test_the_summary_is_what_the_runs_say(made: Path) -> None:
    summary = load_summary(made)
    assert summary["seeds"] == [3, 4]
    assert [run["folder"] for run in summary["runs"]] == ["seed-3", "seed-4"]
    metrics = [RunFolder(made / f"seed-{seed}").load_metrics() for seed in (3, 4)]
    assert [(r["split"], r["protocol"]) for r in summary["results"]] == [
        (r["split"], r["protocol"]) for r in metrics[0]
    ]
    for i, result in enumerate(summary["results"]):
        for name, spread in result["metrics"].items():
            values = [m[i]["metrics"][name]["value"] for m in metrics]
            assert spread["values"] == values
            assert spread["mean"] == pytest.approx(sum(values) / 2)
            assert spread["std"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
            assert spread["stderr"] == pytest.approx(abs(values[0] - values[1]) / 2)
        assert (
            result["baselines"]["popularity"]["ndcg@10"] == metrics[1][i]["baselines"]["popularity"]["ndcg@10"]["value"]
        )


def result(value: float, stderr: float | None = 0.25) -> dict[str, Any]:
    return {
        "split": "test", "protocol": "full", "metrics": {"ndcg@10": {"value": value, "stderr": stderr}},
        "baselines": {"popularity": {"ndcg@10": {"value": 0.5, "stderr": 0.1}}}, "warnings": ["few"],
    }  # fmt: skip


def test_spread_over_seeds_by_hand() -> None:
    spread = over_seeds([result(1.0), result(2.0, 0.75), result(6.0, 0.5)])["metrics"]["ndcg@10"]
    assert spread == {
        "mean": 3.0, "std": pytest.approx(math.sqrt(7)), "stderr": pytest.approx(math.sqrt(7 / 3)), "users_stderr": 0.5,
        "values": [1.0, 2.0, 6.0],
    }  # fmt: skip


def test_one_seed_has_no_spread() -> None:
    spread = over_seeds([result(1.0, None)])["metrics"]["ndcg@10"]
    assert (spread["mean"], spread["std"], spread["stderr"], spread["users_stderr"]) == (1.0, None, None, None)


def test_a_study_cut_off_and_resumed_ends_as_if_it_had_not_been(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, at = tmp_path / "cut", iter(range(100))

    def cut_off(progress: Progress) -> None:
        if progress.epoch == 1 and next(at) == 1:  # in the first epoch of the second seed
            raise KeyboardInterrupt

    options = FitOptions(output=folder)
    with pytest.raises(KeyboardInterrupt):
        run_study(LOG, options, SETTINGS, [3, 4], "sasrec train made", Watch(lambda title: None, cut_off))
    assert not (folder / "summary.json").exists()
    first = (folder / "seed-3" / "model.safetensors").stat().st_mtime_ns
    assert run_study(LOG, replace(options, resume=True), SETTINGS, [3, 4], "another command")
    assert weights(folder) == weights(made)
    assert (folder / "seed-3" / "model.safetensors").stat().st_mtime_ns == first
    assert json.loads((folder / "study.json").read_text())["command"] == "sasrec train made"
    ours, theirs = load_summary(folder), load_summary(made)
    assert ours["results"] == theirs["results"]


def test_a_run_cut_off_before_its_settings_were_written_begins_anew(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    study(folder, [3])
    (folder / "seed-4" / "sequences").mkdir(parents=True)
    (folder / "seed-4" / ".sequences-x").mkdir()
    assert study(folder, [3, 4], resume=True)
    assert weights(folder) == weights(made)


def test_more_seeds_and_more_epochs_go_on_from_what_there_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "more"
    study(folder, [3], max_epochs=1)
    before = RunFolder(folder / "seed-3").read_history()
    assert study(folder, [3, 4], resume=True)
    assert RunFolder(folder / "seed-3").read_history()[0] == before[0]
    assert load_summary(folder)["runs"][0]["epochs"] == 2
    caplog.clear()
    assert study(folder, [3, 4], resume=True)
    assert caplog.text.count("has been trained already") == 2


def test_measured_before_more_epochs_is_not_taken_for_measured_after_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    study(folder, [3], max_epochs=1)

    def cut_off(progress: Progress) -> None:
        raise KeyboardInterrupt

    options = FitOptions(output=folder, resume=True)
    with pytest.raises(KeyboardInterrupt):
        run_study(LOG, options, SETTINGS, [3], "", Watch(lambda title: None, cut_off))
    assert read_runs(folder) == []
    assert study(folder, [3], resume=True)
    assert read_runs(folder)[0].training["epochs"] == 2


def test_other_settings_are_refused_before_any_run_is_touched(made: Path) -> None:
    before = weights(made)
    with pytest.raises(ConfigError, match="batch_size was 32 and is now 16"):
        study(made, [5, 3], resume=True, batch_size=16)
    assert weights(made) == before


def test_folders_are_guarded(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not empty"):
        study(made, [3])
    with pytest.raises(CheckpointError, match="holds no study of several seeds"):
        study(tmp_path / "nothing", [3], resume=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear").write_text("")
    with pytest.raises(ConfigError, match="not a run folder, so --overwrite does not delete it"):
        study(tmp_path / "letters", [3], overwrite=True)
    with pytest.raises(ConfigError, match="needs an output folder"):
        run_study(LOG, FitOptions(), SETTINGS, [3])
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"study\.json is missing or damaged"):
        read_runs(tmp_path)
    with pytest.raises(CheckpointError, match=r"summary\.json is missing or damaged"):
        load_summary(tmp_path)


def test_overwrite_replaces_a_study(tmp_path: Path) -> None:
    study(tmp_path / "run", [3, 4], max_epochs=1)
    assert study(tmp_path / "run", [4], max_epochs=1, overwrite=True)
    assert [path.name for path in run_folders(tmp_path / "run")] == ["seed-4"]


def test_run_folders_are_found_in_the_order_of_seeds(made: Path, tmp_path: Path) -> None:
    for seed in (10, 9, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "config.json").write_text("{}")
    assert [path.name for path in run_folders(tmp_path)] == ["seed-1", "seed-9", "seed-10"]
    assert run_folders(made / "seed-3") == [made / "seed-3"]
    assert run_folders(tmp_path / "none") == [tmp_path / "none"]


def test_lines_have_what_result_files_promise(made: Path) -> None:
    lines = result_lines(made)
    assert [(line["split"], line["protocol"]) for line in lines] == [
        ("valid", "full"), ("test", "full"), ("test", "sampled")
    ]  # fmt: skip
    for line in lines:
        assert {
            "data", "preset", "engine", "split", "split_method", "protocol", "seeds", "metrics", "train_seconds",
            "command", "commit", "machine",
        } <= set(line)  # fmt: skip
        assert (line["data"], line["seeds"], line["overrides"]) == ("made", [3, 4], OVERRIDES)
        assert {"mean", "std"} <= set(line["metrics"]["ndcg@10"])
        assert line["machine"]
        assert line["train_seconds"] > 0
    json.dumps(lines, allow_nan=False)


def test_what_differs_between_runs_is_all_told(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "moved")
    metrics = tmp_path / "moved" / "seed-4" / "metrics.json"
    told = json.loads(metrics.read_text())
    first = told["training"]["machine"]
    told["training"]["machine"] = "another"
    metrics.write_text(json.dumps(told))
    line = result_lines(tmp_path / "moved")[0]
    assert line["machine"] == f"{first}; another"
    assert line["engine"] == told["training"]["engine"]


def test_there_are_no_lines_before_all_runs_have_ended(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "half")
    (tmp_path / "half" / "seed-4" / "metrics.json").unlink()
    assert result_lines(tmp_path / "half") == []


def test_the_summary_reads_well_as_text_and_as_markdown(made: Path) -> None:
    summary = summarise(read_runs(made))
    text, page = summary_text(summary), summary_page("made", summary)
    assert "over 2 seeds" in text
    assert "Krichene & Rendle 2020" in text
    for name in ("ndcg@10", "coverage@10", "serendipity@10"):
        assert any(line.startswith(name) for line in text.splitlines())
        assert f"| {name} |" in page
    assert "| 3 | " in page
    assert "seed-4" in page
    assert (made / "summary.md").read_text() == page
