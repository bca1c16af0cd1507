"""Presets by split methods: models of their own for each split, lines that are never there twice, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from made import OVERRIDES, SETTINGS

import sasrec
from sasrec.core.errors import CheckpointError, ConfigError, DataError
from sasrec.data.logs import Log
from sasrec.data.sequences import build_sequences
from sasrec.experiments.grid import Grid, lines_of, run_benchmark
from sasrec.experiments.lines import read_lines
from sasrec.experiments.seeds import Watch, read_runs
from sasrec.fitting import FitOptions
from sasrec.training.progress import Progress

BOTH = ("leave_one_out", "temporal")


def log_with_times() -> Log:
    """60 users, each with an event every so many days, from another day on."""
    log, rng = make_markov_log(60), np.random.default_rng(0)
    days = np.tile(np.arange(12), 60) * np.repeat(rng.integers(1, 4, 60), 12) + np.repeat(rng.integers(0, 20, 60), 12)
    return Log(*build_sequences(log.with_columns(timestamp=pl.Series(days))), "made")


LOG = log_with_times()
BY_SAMPLED = {"valid_protocol": "sampled"}  # where the preset, for so few items, would choose by full


def grid(**changes: Any) -> Grid:
    told: dict[str, Any] = {
        "presets": ("paper",), "split_methods": BOTH, "protocols": ("full", "sampled"), "seeds": (0, 1),
    }  # fmt: skip
    return Grid(**{**told, **changes})


def measure(folder: Path, cells: Grid, log: Log = LOG, *, resume: bool = False, **more: Any) -> bool:
    options = FitOptions(output=folder, resume=resume, report=False)
    return run_benchmark(log, cells, options, SETTINGS | BY_SAMPLED, command="sasrec it", **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "made"
    assert measure(folder, grid())
    return folder


def test_there_is_a_line_for_each_cell_split_and_protocol(made: Path) -> None:
    lines = read_lines(made / "results.jsonl")
    found = [(line.split_method, line.split, line.protocol) for line in lines]
    parts = [("valid", "sampled"), ("test", "full"), ("test", "sampled")]
    assert found == [(method, *part) for method in BOTH for part in parts]
    assert lines == lines_of(made, grid())
    assert {line.origin.command for line in lines} == {"sasrec it"}
    assert all(line.origin.overrides == OVERRIDES | BY_SAMPLED for line in lines)


def test_each_split_method_trains_models_of_its_own(made: Path) -> None:
    for method in BOTH:
        for run in read_runs(made / f"paper-{method}"):
            assert run.config.eval.split_method == method
            assert {result.split_method for result in run.results} == {method}
    temporal, whole = (sasrec.load(made / f"paper-{method}" / "seed-0").split() for method in reversed(BOTH))
    assert temporal.train_ends.sum() != whole.train_ends.sum()
    times = LOG.sequences.timestamps
    assert times is not None
    trained = np.concatenate(
        [np.arange(*ends) for ends in zip(LOG.sequences.offsets, temporal.train_ends, strict=False)]
    )
    assert times[trained].max() < times[temporal.valid.positions].min()


@pytest.mark.parametrize("trained", BOTH)
def test_a_model_is_not_measured_on_a_split_that_holds_out_what_it_has_seen(made: Path, trained: str) -> None:
    model = sasrec.load(made / f"paper-{trained}" / "seed-0")
    other = BOTH[1 - BOTH.index(trained)]
    with pytest.raises(
        ConfigError, match=rf"this model \({trained} split\) was trained on \d+ events that the {other}"
    ):
        model.evaluate(split_method=other)
    assert model.evaluate(split_method=trained).split_method == trained


def test_what_does_not_leak_is_measured(made: Path) -> None:
    model = sasrec.load(made / "paper-temporal" / "seed-0")
    assert model.evaluate(temporal_targets="all").n_targets > model.evaluate().n_targets
    with pytest.raises(ConfigError, match="was chosen by valid targets"):
        model.evaluate(test_fraction=0.15, valid_fraction=0.05)
    whole = sasrec.load(made / "paper-leave_one_out" / "seed-0")
    assert whole.evaluate(min_items=12).n_users == 60


def test_resume_trains_nothing_twice_and_repeats_no_line(made: Path, tmp_path: Path) -> None:
    def watch(progress: Progress) -> None:
        raise AssertionError("everything has been trained")

    before = (made / "results.jsonl").read_text()
    assert measure(made, grid(), resume=True, watch=Watch(lambda title: None, watch))
    assert (made / "results.jsonl").read_text() == before


def test_a_benchmark_cut_off_keeps_its_finished_cells_and_goes_on(made: Path, tmp_path: Path) -> None:
    folder, titles = tmp_path / "cut", []

    def cut_off(progress: Progress) -> None:
        if len(titles) == 4:  # the second seed of the second cell
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(folder, grid(), watch=Watch(titles.append, cut_off))
    assert {line.split_method for line in read_lines(folder / "results.jsonl")} == {"leave_one_out"}
    assert measure(folder, grid(), resume=True)
    ours, theirs = (read_lines(path / "results.jsonl") for path in (folder, made))
    assert [line.metrics for line in ours] == [line.metrics for line in theirs]


def test_lines_are_appended_to_a_file_of_results(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    old = (made / "results.jsonl").read_text().splitlines()[0].replace("sasrec it", "an earlier command")
    file.write_text(old)  # without a line break at its end
    assert measure(made, grid(), resume=True, results=file)
    assert len(read_lines(file)) == 1 + 6
    assert read_lines(file)[0].origin.command == "an earlier command"


def test_other_threads_or_more_cells_leave_the_lines_of_finished_cells_as_they_are(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    assert measure(folder, grid(split_methods=BOTH[:1]))
    before = read_lines(folder / "results.jsonl")
    options = FitOptions(output=folder, resume=True, report=False)
    assert run_benchmark(LOG, grid(), options, {**SETTINGS, **BY_SAMPLED, "threads": 2}, command="another command")
    after = read_lines(folder / "results.jsonl")
    assert after[:3] == before
    assert [line.origin.command for line in after[3:]] == ["another command"] * 3


def test_protocols_choose_the_test_lines(made: Path) -> None:
    only = lines_of(made, grid(protocols=("full",)))
    assert {(line.split, line.protocol) for line in only} == {("valid", "sampled"), ("test", "full")}


def test_a_log_without_times_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    log = Log(*build_sequences(make_markov_log(60)), "made")
    with pytest.raises(DataError, match="needs timestamps"):
        measure(tmp_path / "run", grid(), log)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presets": ("paper", "magic")}, "presets='magic' is not a list of different names from: paper"),
        ({"split_methods": ("random",)}, "split_methods='random'"),
        ({"protocols": ()}, "protocols=''"),
        ({"protocols": ("full", "full")}, "protocols='full,full'"),
    ],
)
def test_grids_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(**changes)


def test_there_must_be_a_benchmark_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no benchmark to go on with"):
        measure(tmp_path, grid(), resume=True)
