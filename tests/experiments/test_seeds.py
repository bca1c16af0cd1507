"""Several seeds: a run folder each, a summary, and no difference after a cut-off."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_markov_log
from made import SETTINGS

import sasrec
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.data.logs import Log
from sasrec.data.sequences import build_sequences
from sasrec.experiments.seeds import Watch, read_runs, run_folders, run_study
from sasrec.experiments.summary import summarise, summary_page
from sasrec.fitting import FitOptions, fit_log
from sasrec.runs.folder import RunFolder
from sasrec.training.progress import Progress

LOG = Log(*build_sequences(make_markov_log(60)), "made")


def study(folder: Path, seeds: list[int], *, resume: bool = False, overwrite: bool = False, **settings: Any) -> bool:
    options = FitOptions(output=folder, resume=resume, overwrite=overwrite, report=False)
    return run_study(LOG, options, {**SETTINGS, **settings}, seeds, "sasrec train made")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of seeds 3 and 4."""
    folder = tmp_path_factory.mktemp("study") / "made"
    assert study(folder, [3, 4])
    return folder


def load_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/model.safetensors"))}


def test_each_seed_is_the_run_that_it_would_be_alone(made: Path, tmp_path: Path) -> None:
    alone = fit_log(LOG, FitOptions(output=tmp_path / "alone", report=False), {**SETTINGS, "seed": 4})
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == weights(made)["seed-4"]
    assert sasrec.load(made / "seed-4").evaluate().metrics == alone.evaluate().metrics
    assert weights(made)["seed-3"] != weights(made)["seed-4"]


def test_the_summary_is_what_the_runs_say(made: Path) -> None:
    summary = load_summary(made)
    assert summary["seeds"] == [3, 4]
    assert [run["folder"] for run in summary["runs"]] == ["seed-3", "seed-4"]
    first, second = (RunFolder(made / f"seed-{seed}").load_metrics() for seed in (3, 4))
    assert [(r["split"], r["protocol"]) for r in summary["results"]] == [(r.split, r.protocol) for r in first]
    for result, a, b in zip(summary["results"], first, second, strict=True):
        assert result["metrics"].keys() == a.metrics.keys()
        for name, spread in result["metrics"].items():
            values = [a.metrics[name]["value"], b.metrics[name]["value"]]
            assert spread["values"] == values
            assert spread["mean"] == pytest.approx(sum(values) / 2)
            assert spread["std"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
            assert spread["stderr"] == pytest.approx(abs(values[0] - values[1]) / 2)
        assert result["baselines"]["popularity"]["ndcg@10"] == b.baselines["popularity"]["ndcg@10"]["value"]
    facts = RunFolder(made / "seed-4").load_training()
    assert facts is not None
    assert summary["runs"][1] == {"seed": 4, "folder": "seed-4", **asdict(facts)}
    page = summary_page("made", summarise(read_runs(made)))
    assert (made / "summary.md").read_text() == page


def test_a_study_cut_off_and_resumed_ends_as_if_it_had_not_been(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, at = tmp_path / "cut", iter(range(100))

    def cut_off(progress: Progress) -> None:
        if progress.epoch == 1 and next(at) == 1:  # in the first epoch of the second seed
            raise KeyboardInterrupt

    options = FitOptions(output=folder, report=False)
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

    options = FitOptions(output=folder, resume=True, report=False)
    with pytest.raises(KeyboardInterrupt):
        run_study(LOG, options, SETTINGS, [3], "", Watch(lambda title: None, cut_off))
    assert read_runs(folder) == []
    assert study(folder, [3], resume=True)
    assert read_runs(folder)[0].training.epochs == 2


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
    (tmp_path / "study.json").write_text('{"format": 2}')
    with pytest.raises(CheckpointError, match="has format 2, and this version reads format 1; update sasrec"):
        read_runs(tmp_path)


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
