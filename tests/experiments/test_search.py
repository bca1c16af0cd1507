"""Searching settings: what is tried, what a kill or Ctrl-C leaves, who wins, and what is refused."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from conftest import make_markov_log
from made import SETTINGS, make_shop_log, without

import sasrec
from sasrec.core.errors import ConfigError, TrainingError
from sasrec.evaluation.comparison import Comparison, Difference
from sasrec.experiments import trial_workers
from sasrec.experiments.search import BEST
from sasrec.experiments.search_pages import SearchResult, Trial, in_words
from sasrec.experiments.search_space import Range, default_space, read_space, told
from sasrec.experiments.search_trials import DATABASE, Search, SearchPlan

FRAME = make_markov_log(120, 30)
FIXED = {name: value for name, value in SETTINGS.items() if name != "embedding_dim"} | {"valid_protocol": "full"}
SPACE = {"embedding_dim": [4, 8, 16], "learning_rate": "1e-4..1e-1 log"}


def tuned(folder: Path, trials: int = 4, **more: Any) -> SearchResult:
    given = {"space": SPACE, "seeds": 1, **FIXED, **more}
    result = sasrec.tune(FRAME, output=folder, trials=trials, **given)
    assert result is not None
    return result


def numbers(result: SearchResult) -> list[tuple[dict[str, Any], str, float | None]]:
    return [(trial.settings, trial.state, trial.value) for trial in result.trials]


def test_the_untouched_preset_is_tried_first_and_the_winner_is_never_below_it_on_valid(tmp_path: Path) -> None:
    result = tuned(tmp_path / "search")
    first = result.trials[0]
    assert (first.number, first.state) == (1, "complete")
    assert first.value == result.untouched
    assert result.best.value == max(trial.value for trial in result.trials if trial.value is not None)
    assert result.best.value is not None
    assert result.best.value >= result.untouched
    assert {trial.settings["embedding_dim"] for trial in result.trials[1:]} <= {4, 8, 16}


def test_the_same_seed_searches_the_same(tmp_path: Path) -> None:
    a, b, other = (tuned(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert numbers(a) == numbers(b) != numbers(other)


def test_a_search_that_goes_on_ends_as_one_without_a_break(tmp_path: Path) -> None:
    whole = tuned(tmp_path / "whole", trials=6)
    tuned(tmp_path / "parts", trials=3)
    parts = tuned(tmp_path / "parts", trials=6, resume=True)
    assert numbers(parts) == numbers(whole)


def test_the_winners_run_is_the_trial_again_and_its_file_trains_it(tmp_path: Path) -> None:
    result = tuned(tmp_path / "search", trials=6)
    run = sasrec.load(tmp_path / "search" / "winner" / "seed-0")
    valid = next(r for r in run.results if r.split == "valid")
    assert valid.metrics[result.metric]["value"] == pytest.approx(result.best.value, abs=1e-12)
    FRAME.write_csv(tmp_path / "log.csv")
    command = [sys.executable, "-m", "sasrec", "train", str(tmp_path / "log.csv"), "--output", str(tmp_path / "again")]
    config = str(tmp_path / "search" / BEST)
    subprocess.run([*command, "--preset", "best", "--config", config], check=True, capture_output=True, timeout=120)
    assert sasrec.load(tmp_path / "again").model_version == run.model_version


def test_winner_and_preset_are_compared_on_test_over_the_same_seeds(tmp_path: Path) -> None:
    faster = {"learning_rate": [0.02, 0.03]}  # the preset's 0.001 learns hardly anything in so few steps
    result = tuned(tmp_path / "search", trials=3, seeds=2, max_epochs=2, space=faster)
    assert result.comparison is not None
    assert (result.comparison.name_a, result.comparison.name_b) == ("preset", "winner")
    assert (result.comparison.n_runs_a, result.comparison.n_runs_b, result.comparison.split) == (2, 2, "test")
    for side in ("preset", "winner"):
        assert sorted(p.name for p in (tmp_path / "search" / side).glob("seed-*")) == ["seed-0", "seed-1"]


def test_where_the_preset_wins_nothing_else_is_trained(tmp_path: Path) -> None:
    result = tuned(tmp_path / "search", trials=2, space={"learning_rate": "1e-9..2e-9"})
    assert (result.best.number, result.comparison) == (1, None)
    assert not (tmp_path / "search" / "preset").exists()
    assert "None was better on valid than preset best itself" in (tmp_path / "search" / "summary.md").read_text()


def test_a_space_without_the_presets_values_still_has_the_preset_as_its_first_trial(tmp_path: Path) -> None:
    result = tuned(tmp_path / "search", trials=2, space={"embedding_dim": [4, 6]})
    assert result.trials[0].settings == {}
    run = tmp_path / "search" / ("winner" if result.best.number == 1 else "preset") / "seed-0"
    assert sasrec.load(run).config.model.embedding_dim == 128


def test_trials_below_the_others_are_pruned_and_never_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Always(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            return bool(trial.number > 0)

    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda *args, **kwargs: Always())
    result = tuned(tmp_path / "search", trials=3)
    assert [(trial.state, trial.epochs) for trial in result.trials] == [("complete", 2), ("pruned", 1), ("pruned", 1)]
    assert result.best.number == 1


def test_a_trial_that_fails_is_told_and_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = trial_workers.train

    def fails(engine: Any, split: Any, model: Any, *more: Any, **named: Any) -> Any:
        if model.embedding_dim == 4:
            raise TrainingError("the loss became nan")
        return trained(engine, split, model, *more, **named)

    monkeypatch.setattr(trial_workers, "train", fails)
    result = tuned(tmp_path / "search", trials=8)
    assert len(result.trials) == 8
    states = {trial.settings.get("embedding_dim"): trial.state for trial in result.trials}
    assert states.pop(4) == "failed"
    assert "failed" not in states.values()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_search_keeps_its_trials_and_ends_as_one_without_a_break(
    tmp_path: Path, number: signal.Signals
) -> None:
    FRAME.write_csv(tmp_path / "log.csv")
    (tmp_path / "space.yaml").write_text("embedding_dim: [4, 8, 16]\nlearning_rate: 1e-4..1e-1 log\n")
    flags = [f for n, v in FIXED.items() for f in (f"--{n.replace('_', '-')}", str(v))]
    flags += ["--max-epochs", "40", "--patience", "0"]

    def begin(folder: str, *more: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "sasrec",
            "tune",
            str(tmp_path / "log.csv"),
            "--output",
            str(tmp_path / folder),
        ]
        told = ["--space", str(tmp_path / "space.yaml"), "--trials", "6", "--seeds", "1", "--json"]
        return subprocess.Popen(
            [*command, *told, *flags, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    whole = begin("whole")
    expected = json.loads(whole.communicate(timeout=300)[0])
    cut = begin("cut")
    database = tmp_path / "cut" / DATABASE
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if database.exists() and len(ended(database)) >= 3:
            break
        time.sleep(0.02)
    cut.send_signal(number)
    _, told_ = cut.communicate(timeout=60)
    assert cut.returncode == (-number if number == signal.SIGKILL else 1), told_
    kept = len(ended(database))
    assert kept >= 3
    resumed = begin("cut", "--resume")
    found = json.loads(resumed.communicate(timeout=300)[0])
    for result in (expected, found):
        for trial in (*result["trials"], result["best"]):
            trial.pop("seconds")
    assert found == expected


def test_ctrl_c_between_two_trials_keeps_those_that_have_ended_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, next_job, calls = tuned(tmp_path / "whole"), Search.next_job, list[int]()

    def pressed(self: Search) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return next_job(self)

    with monkeypatch.context() as patched:
        patched.setattr(Search, "next_job", pressed)
        with pytest.raises(KeyboardInterrupt):
            tuned(tmp_path / "cut")
    assert len(ended(tmp_path / "cut" / DATABASE)) == 2
    assert numbers(tuned(tmp_path / "cut", resume=True)) == numbers(expected)


def ended(database: Path) -> list[int]:
    """Numbers of the trials that have ended. Optuna would make the tables while the search makes them, so not by it."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as reader:
        try:
            found = reader.execute("SELECT number FROM trials WHERE state IN ('COMPLETE', 'PRUNED', 'FAIL')").fetchall()
        except sqlite3.OperationalError:  # no tables yet, or the search is writing
            return []
    return [number for (number,) in found]


@pytest.mark.parametrize(("seconds", "at_end"), [(10, 72), (100, 300), (200, 480)])
def test_the_runs_at_the_end_get_half_of_the_time_at_most_but_one_seed_in_any_case(
    seconds: float, at_end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Search.__new__(Search)
    found.plan, found.began = SearchPlan("fast", max_minutes=10), time.monotonic()
    monkeypatch.setattr(Search, "untouched", SimpleNamespace(seconds=seconds))
    monkeypatch.setattr(Search, "best", SimpleNamespace(seconds=seconds))
    assert found.left() == pytest.approx(600 - at_end, abs=5)


def test_max_minutes_bounds_trials_and_keeps_time_for_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    began = time.monotonic()
    result = tuned(tmp_path / "search", trials=10_000, max_minutes=0.15)
    assert time.monotonic() - began < 60
    assert 1 <= len(result.trials) < 10_000
    assert f"the time for trials is used up after {len(result.trials)} of 10000" in caplog.text


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"embeding_dim": [4, 8]},
            "'embeding_dim' of the space is not known (did you mean 'embedding_dim'?); there are: activation, ",
        ),
        ({"seed": [1, 2]}, "setting 'seed' of the space is not searched: it does not say what is learned"),
        ({"valid_metric": ["ndcg@10", "hr@10"]}, "'valid_metric' of the space is not searched"),
        ({"init_scale": "0.4..1.0"}, "'init_scale' of the space is not searched"),  # no trial begins from a run
        ({"dropout": "0.5..0.1"}, "dropout='0.5..0.1' of the space is no range: it ends below where it begins"),
        ({"dropout": "0..0.5 log"}, "no range: an end of a range by logarithm is above 0"),
        ({"dropout": "low..high"}, "dropout='low..high' of the space is no range; write a range such as"),
        ({"n_blocks": "1.5..3"}, "has an end that is no whole number"),
        ({"loss": "a..b"}, "is a range, and the setting is no number; give choices"),
        ({"n_blocks": []}, "is no list of different values"),
        ({"n_blocks": [2, 2]}, "is no list of different values"),
        ({"n_blocks": 2}, "the space has nothing to search"),
    ],
)
def test_a_space_that_cannot_be_right_is_refused_in_one_sentence(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_space(space)
    assert message in str(refused.value)


def test_a_value_out_of_a_settings_range_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embedding_dim=-\d is too small"):
        tuned(tmp_path / "search", trials=5, space={"embedding_dim": [-1, -2]})


def test_a_setting_that_the_preset_leaves_at_its_default_is_searched(tmp_path: Path) -> None:
    result = sasrec.tune(
        make_shop_log(60, 20), output=tmp_path / "search", trials=2, seeds=1, event_column="event",
        target_events="purchase", space={"event_weights": ["", "view=0.1"]}, **FIXED,
    )  # fmt: skip
    assert result is not None
    assert result.trials[0].settings == {"event_weights": ""}
    assert {trial.state for trial in result.trials} <= {"complete", "pruned"}


def test_a_space_says_itself_again() -> None:
    space, fixed = read_space(
        {"dropout": "0.1..0.6", "learning_rate": "1e-4..1e-2 log", "n_blocks": "1..3", "tied": True}
    )
    assert space == {
        "dropout": Range(0.1, 0.6),
        "learning_rate": Range(1e-4, 1e-2, is_log=True),
        "n_blocks": Range(1, 3, is_int=True),
    }
    assert fixed == {"tied": True}
    assert read_space(told(space))[0] == space


def test_the_default_space_holds_the_presets_values_and_follows_the_logs_sizes() -> None:
    preset = {
        "learning_rate": 1e-3, "dropout": 0.2, "embedding_dim": 128, "n_heads": 1, "n_blocks": 2, "batch_size": 128,
        "max_seq_len": 200,
    }  # fmt: skip
    short, long = default_space(preset, 9.0), default_space(preset, 160.0)
    assert "max_seq_len" not in short or short["max_seq_len"] == [200]
    assert long["max_seq_len"] == [100, 200, 400]
    for space in (short, long):
        assert space["embedding_dim"] == [64, 128, 256]
        assert isinstance(space["dropout"], Range)
        assert (space["dropout"].low, space["dropout"].high) == (0.0, 0.45)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "fast"}, "was begun with preset='best', and now it is 'fast'; search into another folder"),
        ({"space": {"dropout": "0.1..0.2"}}, "was begun with space="),
        ({"batch_size": 16}, "was begun with settings="),
    ],
)
def test_a_search_is_not_gone_on_with_by_other_rules(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tuned(tmp_path / "search", trials=1)
    with pytest.raises(ConfigError) as refused:
        tuned(tmp_path / "search", trials=2, resume=True, **change)
    assert message in str(refused.value)


def test_a_folder_that_is_no_search_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="is not a run folder, so --overwrite does not delete it"):
        tuned(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_without_optuna_the_extra_is_named(tmp_path: Path) -> None:
    FRAME.write_csv(tmp_path / "log.csv")
    command = [sys.executable, "-m", "sasrec", "tune", str(tmp_path / "log.csv"), "--output", str(tmp_path / "search")]
    done = subprocess.run(
        command, env=without(tmp_path, "optuna"), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert "a search needs optuna" in done.stderr
    assert "pip install 'sasrec[tune]'" in done.stderr
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize(
    ("difference", "p_value", "message"),
    [
        (0.01, 0.2, "the difference may be chance (p = 0.2 over users), so keep the preset unless it is cheaper"),
        (0.01, 0.001, "a gain that chance does not explain (p = 0.001 over users)"),
        (-0.01, 0.001, "a LOSS that chance does not explain (p = 0.001 over users)"),
        (0.01, None, "there are too few users for a test"),
    ],
)
def test_the_verdict_tells_a_gain_from_luck(difference: float, p_value: float | None, message: str) -> None:
    found = Difference(
        a=0.1, b=0.1 + difference, difference=difference, relative=None, stderr=None, low=None, high=None,
        effect_size=None, p_value=p_value, p_holm=None, seeds_stderr=None,
    )  # fmt: skip
    trial = Trial(3, {"n_blocks": 3}, "complete", 0.2, 5, 1.0)
    compared = Comparison("test", "full", 100, {"ndcg@10": found})
    result = SearchResult("ndcg@10", [trial], trial, {"n_blocks": 3}, 0.19, {}, compared, (0,))
    assert message in in_words(result, "fast")
    assert "Valid chose it among many, so that figure flatters it" in in_words(result, "fast")
