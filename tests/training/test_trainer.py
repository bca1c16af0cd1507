"""The training loop: learning, choosing by valid, stopping, resuming, interrupting."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from made import make_epoch, make_features

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.core.errors import CheckpointError, TrainingError
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import Split, split_leave_one_out
from sasrec.engine.protocol import create_engine
from sasrec.runs.folder import RunFolder
from sasrec.runs.record import State
from sasrec.training.progress import Progress, seconds_left
from sasrec.training.result import TrainResult
from sasrec.training.trainer import train

MODEL = ModelConfig(embedding_dim=16, n_blocks=1, max_seq_len=10, dropout=0.1)
TRAIN = TrainConfig(max_epochs=3, batch_size=32, learning_rate=3e-3, seed=1, patience=0)
EVAL = EvalConfig(filter_seen="no")


def split_of(log: pl.DataFrame) -> Split:
    return split_leave_one_out(build_sequences(log)[0])


def run_training(split: Split, config: TrainConfig = TRAIN, **options: object) -> TrainResult:
    engine = create_engine(MODEL, split.sequences.n_items, config)
    return train(engine, split, MODEL, config, EVAL, **options)


def assert_same_weights(a: TrainResult, b: TrainResult) -> None:
    assert a.weights.keys() == b.weights.keys()
    for name in a.weights:
        np.testing.assert_array_equal(a.weights[name], b.weights[name], err_msg=name)


def test_learnable_log_is_learnt_and_shuffled_log_is_not() -> None:
    chance = 10 / 30
    config = replace(TRAIN, max_epochs=25)
    learnt = run_training(split_of(make_markov_log(randomness=0.1)), config)
    shuffled = run_training(split_of(make_markov_log(randomness=1.0)), config)
    assert learnt.valid["hr@10"] > 0.85
    assert abs(shuffled.valid["hr@10"] - chance) < 0.15
    assert learnt.valid["ndcg@10"] > shuffled.valid["ndcg@10"] + 0.4


def test_same_seed_gives_bitwise_the_same_weights_and_another_seed_does_not(markov_log: pl.DataFrame) -> None:
    split = split_of(markov_log)
    first, again = run_training(split), run_training(split)
    assert_same_weights(first, again)
    other = run_training(split, replace(TRAIN, seed=2))
    assert any((first.weights[n] != other.weights[n]).any() for n in first.weights)


def test_history_has_a_line_an_epoch_with_loss_and_valid_metrics(markov_log: pl.DataFrame, tmp_path: Path) -> None:
    result = run_training(split_of(markov_log), run=RunFolder.create(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["step"] for line in lines] == [7, 14, 21]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert all(set(line["valid"]) >= {"ndcg@10", "hr@10", "mrr@10"} for line in lines)
    assert "test" not in lines[0]
    assert [line.to_dict() for line in result.history] == lines


def test_epoch_is_chosen_by_valid_alone(markov_log: pl.DataFrame) -> None:
    last = markov_log.group_by("user_id", maintain_order=True).tail(1)
    other_test = markov_log.with_columns(
        item_id=pl.when(pl.arange(pl.len()).is_in(list(range(11, len(markov_log), 12))))
        .then(pl.col("item_id") % 30 + 1)
        .otherwise(pl.col("item_id"))
    )
    assert not other_test.group_by("user_id", maintain_order=True).tail(1).equals(last)
    a = run_training(split_of(markov_log), replace(TRAIN, max_epochs=5))
    b = run_training(split_of(other_test), replace(TRAIN, max_epochs=5))
    assert a.best_epoch == b.best_epoch
    assert_same_weights(a, b)


def test_best_epoch_is_the_one_with_the_highest_valid_metric(markov_log: pl.DataFrame) -> None:
    result = run_training(split_of(markov_log), replace(TRAIN, max_epochs=8, valid_metric="hr@5"))
    values = [line.valid["hr@5"] for line in result.history if line.valid]
    assert result.best_epoch == int(np.argmax(values)) + 1
    assert result.valid["hr@5"] == max(values)


def test_training_stops_when_valid_has_not_improved_for_patience_epochs() -> None:
    config = replace(TRAIN, max_epochs=50, patience=2, learning_rate=0.0)
    result = run_training(split_of(make_markov_log(n_users=40)), config)
    assert (result.stopped, result.best_epoch, result.epochs) == ("patience", 1, 3)


def test_training_stops_after_max_minutes(markov_log: pl.DataFrame) -> None:
    result = run_training(split_of(markov_log), replace(TRAIN, max_epochs=100_000, max_minutes=0.5 / 60))
    assert result.stopped == "max_minutes"
    assert result.seconds < 10


def test_validation_happens_every_valid_every_epochs_and_at_the_end(markov_log: pl.DataFrame) -> None:
    result = run_training(split_of(markov_log), replace(TRAIN, max_epochs=5, valid_every=2))
    assert [line.valid is not None for line in result.history] == [False, True, False, True, True]


def test_split_without_valid_targets_keeps_the_last_epoch(markov_log: pl.DataFrame) -> None:
    result = run_training(split_of(markov_log).all_events())
    assert (result.best_epoch, result.stopped, result.valid) == (3, "max_epochs", {})


def test_interrupted_and_resumed_run_equals_an_uninterrupted_one(markov_log: pl.DataFrame, tmp_path: Path) -> None:
    split = split_of(markov_log)
    whole = run_training(split, run=RunFolder.create(tmp_path / "whole"))

    def interrupt(p: Progress) -> None:
        if p.epoch == 2 and p.valid is not None:  # the end of the epoch
            signal.raise_signal(signal.SIGINT)

    run = RunFolder.create(tmp_path / "run")
    stopped = run_training(split, run=run, progress=interrupt)
    assert stopped.stopped == "interrupted"
    assert stopped.epochs == 2
    resumed = run_training(split, run=run, resume=True)
    assert resumed.epochs == 3
    assert_same_weights(whole, resumed)
    losses = [[line.train_loss for line in result.history] for result in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_model_of_an_epoch_is_the_average_where_there_is_one(markov_log: pl.DataFrame) -> None:
    split = split_of(markov_log)
    plain, averaged = (run_training(split, replace(TRAIN, ema_decay=decay)) for decay in (0.0, 0.9))
    assert [line.train_loss for line in plain.history] == [line.train_loss for line in averaged.history]
    assert plain.history[-1].valid != averaged.history[-1].valid
    assert any((plain.weights[name] != averaged.weights[name]).any() for name in plain.weights)


def test_learning_rate_of_an_epoch_is_written_to_its_line(markov_log: pl.DataFrame) -> None:
    config = replace(TRAIN, max_epochs=4, schedule="cosine", warmup_steps=2)
    rates = [line.learning_rate for line in run_training(split_of(markov_log), config).history]
    assert rates == [config.learning_rate_at(step, 7) for step in (6, 13, 20, 27)]


@pytest.mark.parametrize("orthogonal_steps", [False, True])
@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_interrupted_run_with_average_and_schedule_goes_on_as_if_it_had_not_been(
    engine: Any, orthogonal_steps: bool, tmp_path: Path
) -> None:
    split = split_of(make_markov_log())
    more: dict[str, Any] = {"engine": engine, "orthogonal_steps": orthogonal_steps}
    config = replace(TRAIN, ema_decay=0.9, schedule="cosine", weight_decay=0.1, **more)
    whole = run_training(split, config)

    def interrupt(p: Progress) -> None:
        if p.epoch == 2 and p.valid is not None:  # the end of the epoch
            signal.raise_signal(signal.SIGINT)

    run = RunFolder.create(tmp_path / "run")
    assert run_training(split, config, run=run, progress=interrupt).stopped == "interrupted"
    assert_same_weights(whole, run_training(split, config, run=run, resume=True))


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_items_with_features_go_on_after_an_interruption_as_if_there_had_been_none(
    engine: Any, markov_log: pl.DataFrame, tmp_path: Path
) -> None:
    split = split_of(markov_log)
    n_items = split.sequences.n_items
    features = make_features(n_items, 7, 3)
    model = replace(MODEL, n_features=7, vector_dim=3, tied=False)
    config = replace(TRAIN, engine=engine, feature_dropout=0.3, ema_decay=0.9)

    def run_with_features(run: RunFolder, **options: Any) -> TrainResult:
        built = create_engine(model, n_items, config, features=features, trained=split.train_counts > 0)
        return train(built, split, model, config, EVAL, run=run, **options)

    def interrupt(p: Progress) -> None:
        if p.epoch == 2 and p.valid is not None:
            signal.raise_signal(signal.SIGINT)

    whole = run_with_features(RunFolder.create(tmp_path / "whole"))
    run = RunFolder.create(tmp_path / "run")
    assert run_with_features(run, progress=interrupt).stopped == "interrupted"
    resumed = run_with_features(run, resume=True)
    assert resumed.epochs == 3
    assert {"feature_embedding.weight", "vector_projection.weight"} < set(whole.weights)
    assert_same_weights(whole, resumed)


@pytest.mark.parametrize(("minutes", "inside"), [(0.0, False), (1e-9, True)])
def test_state_is_saved_inside_an_epoch_when_the_last_one_is_old_and_never_by_0_minutes(
    minutes: float, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sasrec.training.trainer.REPORT_SECONDS", 0.0)
    saved: list[int] = []
    monkeypatch.setattr(
        RunFolder, "save_state", lambda self, weights, moments, state, best: saved.append(state.step)
    )  # fmt: skip
    config = replace(TRAIN, max_epochs=1, batch_size=4, save_every_minutes=minutes)
    split = split_of(make_markov_log(n_users=40))
    run_training(split, config, run=RunFolder.create(tmp_path / "run"))
    last = max(saved)
    assert any(0 < step < last for step in saved) == inside


def test_run_killed_in_the_middle_of_an_epoch_and_resumed_ends_in_the_same_weights(tmp_path: Path) -> None:
    log = make_markov_log(n_users=160)
    config = replace(TRAIN, max_epochs=3, batch_size=4, save_every_minutes=1e-9)
    whole = run_training(split_of(log), config)
    program = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
        from pathlib import Path
        import sasrec.training.trainer
        from conftest import make_markov_log
        from test_trainer import MODEL, EVAL, TRAIN, run_training, split_of
        from sasrec.runs.folder import RunFolder
        from dataclasses import replace
        sasrec.training.trainer.REPORT_SECONDS = 0.0
        config = replace(TRAIN, max_epochs=3, batch_size=4, save_every_minutes=1e-9)
        run_training(split_of(make_markov_log(n_users=160)), config, run=RunFolder.create(Path(sys.argv[1])))
        """
    )
    folder = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", program, str(folder)])
    run = RunFolder(folder)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until a state from the middle of the second epoch is on disk
        state = run.load_state() if folder.exists() else None
        if state is not None and state[2].epoch == 1 and state[2].step > 0:
            break
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    state = run.load_state()
    assert state is not None
    assert state[2].epoch < 3
    resumed = run_training(split_of(log), config, run=run, resume=True)
    assert_same_weights(whole, resumed)


def test_loss_that_is_not_a_number_stops_training_and_keeps_the_last_good_epoch(
    markov_log: pl.DataFrame, tmp_path: Path
) -> None:
    split = split_of(markov_log)
    run = RunFolder.create(tmp_path / "run")
    engine = create_engine(MODEL, split.sequences.n_items, TRAIN)

    def poison(p: Progress) -> None:
        if p.epoch == 2 and p.valid is not None:  # the end of the epoch
            weights = engine.weights()
            weights["item_embedding.weight"][:] = np.nan
            engine.load_weights(weights)

    with pytest.raises(TrainingError, match=r"loss became nan in epoch 3.*learning_rate=0.003.*epoch 2 is kept"):
        train(engine, split, MODEL, TRAIN, EVAL, run=run, progress=poison)
    weights, epoch = run.load_weights()
    assert epoch == 2
    assert all(np.isfinite(w).all() for w in weights.values())
    state = run.load_state()
    assert state is None or all(np.isfinite(w).all() for w in state[0].values())


def test_progress_estimates_the_time_left(markov_log: pl.DataFrame) -> None:
    seen: list[Progress] = []
    run_training(split_of(markov_log), progress=seen.append)
    assert [p.epoch for p in seen if p.step == p.steps_per_epoch] == [1, 2, 3]
    assert seen[-1].seconds_left == pytest.approx(0.0)
    assert seen[-1].valid is not None
    assert seen[0].users_per_second > 0


def test_test_metrics_are_logged_only_on_request(markov_log: pl.DataFrame) -> None:
    result = run_training(split_of(markov_log), replace(TRAIN, max_epochs=1, log_test=True))
    assert "ndcg@10" in (result.history[0].test or {})


def test_resume_before_anything_was_saved_starts_the_history_anew(markov_log: pl.DataFrame, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.append_history(make_epoch(1, train_loss=9.0))  # killed before the state was saved
    result = run_training(split_of(markov_log), run=run, resume=True)
    assert [line.epoch for line in run.read_history()] == [1, 2, 3]
    assert run.read_history() == result.history


# stopping while an epoch is validated


@pytest.fixture
def blocks_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation in many blocks, each of which is reported."""
    monkeypatch.setattr("sasrec.evaluation.protocols.MAX_ROWS", 16)
    monkeypatch.setattr("sasrec.training.trainer.REPORT_SECONDS", -1.0)


@pytest.mark.usefixtures("blocks_of_16")
@pytest.mark.parametrize("log_test", [False, True])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupt_is_heeded_within_a_block_of_validation_and_nothing_is_lost(
    markov_log: pl.DataFrame, tmp_path: Path, epoch: int, signum: signal.Signals, log_test: bool
) -> None:
    split, config = split_of(markov_log), replace(TRAIN, ema_decay=0.9, log_test=log_test)
    seen: list[int] = []

    def interrupt(p: Progress) -> None:
        if p.epoch == epoch and p.validated is not None:
            seen.append(p.validated[0])
            if p.validated[0] == 48:
                signal.raise_signal(signum)

    run = RunFolder.create(tmp_path / "run")
    stopped = run_training(split, config, run=run, progress=interrupt)
    assert (stopped.stopped, stopped.epochs) == ("interrupted", epoch - 1)
    assert seen == [16, 32, 48]
    state = run.load_state()
    assert state is not None
    assert (state.state.epoch, state.state.step) == (epoch - 1, 7)  # all steps of the epoch
    resumed = run_training(split, config, run=run, resume=True)
    whole = run_training(split, config)
    assert_same_weights(resumed, whole)
    assert [line.valid for line in resumed.history] == [line.valid for line in whole.history]


@pytest.mark.usefixtures("blocks_of_16")
def test_a_second_interrupt_while_an_epoch_is_validated_loses_only_the_validation(
    markov_log: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sasrec.training.trainer.SAVE_SECONDS", 0.0)
    split, run = split_of(markov_log), RunFolder.create(tmp_path / "run")

    def interrupt(p: Progress) -> None:
        if p.epoch == 2 and p.validated is not None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_training(split, run=run, progress=interrupt)
    state = run.load_state()
    assert state is not None
    assert (state.state.epoch, state.state.step) == (1, 7)
    assert_same_weights(run_training(split, run=run, resume=True), run_training(split))


def test_a_run_that_was_interrupted_before_its_first_validation_has_a_state_and_no_model(
    markov_log: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sasrec.training.trainer.REPORT_SECONDS", -1.0)
    run = RunFolder.create(tmp_path / "run")
    run_training(split_of(markov_log), run=run, progress=lambda p: signal.raise_signal(signal.SIGINT))
    assert run.load_state() is not None
    assert not (run.path / "model.safetensors").exists()


def estimate_of(state: State, validates: bool = True, **settings: float) -> float | None:
    return seconds_left(state, replace(TRAIN, max_epochs=10, **settings), 100, validates)


def test_the_time_left_counts_training_and_validation_each_at_its_pace() -> None:
    state = State(epoch=2, seconds=100, valid_seconds=80, n_validations=2)  # 10 s of training and 40 s of validation
    assert estimate_of(state) == pytest.approx(8 * 50)
    assert estimate_of(state, valid_every=4) == pytest.approx(8 * 10 + 3 * 40)  # after 4, 8 and 10
    assert estimate_of(state, max_minutes=5) == pytest.approx(200)
    half = replace(state, step=50, epoch_seconds=5)
    assert estimate_of(half) == pytest.approx(7.5 * 10 + 8 * 40)
    assert estimate_of(State(epoch=2, seconds=20), validates=False) == pytest.approx(80)


def test_the_time_left_is_not_told_before_it_is_known_how_long_a_validation_takes() -> None:
    begun = State(step=50, epoch_seconds=60)
    assert estimate_of(begun) is None
    assert estimate_of(begun, validates=False) == pytest.approx(9.5 * 120)
    assert estimate_of(State(step=50, epoch_seconds=1), validates=False) is None


# what belongs together


def test_a_kill_between_the_best_weights_and_the_state_labels_nothing_wrongly(
    markov_log: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, run = split_of(markov_log), RunFolder.create(tmp_path / "run")
    run_training(split, replace(TRAIN, max_epochs=1), run=run)
    first = run.load_weights()[0]
    monkeypatch.setattr(RunFolder, "save_state", lambda *_: None)  # as if each later one were killed before it
    later = run_training(split, replace(TRAIN, max_epochs=3), run=run, resume=True)
    assert later.best_epoch > 1
    assert run.load_weights()[1] == later.best_epoch
    monkeypatch.undo()
    again = run_training(split, replace(TRAIN, max_epochs=1), run=run, resume=True)
    assert again.best_epoch == 1
    for name, array in first.items():
        np.testing.assert_array_equal(again.weights[name], array)
        np.testing.assert_array_equal(run.load_weights()[0][name], array)
    assert run.load_weights()[1] == 1


def test_best_weights_that_an_earlier_version_overwrote_are_not_taken_for_those_of_the_saved_epoch(
    markov_log: pl.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split, run = split_of(markov_log), RunFolder.create(tmp_path / "run")
    result = run_training(split, run=run)
    state = run.load_state()
    assert state is not None
    run.save_state(state.weights, state.optimizer, replace(state.state, epoch=2, best_epoch=1, best_value=0.125))
    again = run_training(split, run=run, resume=True)
    assert "the weights of epoch 1 are gone" in caplog.text
    assert again.best_epoch == 3
    assert again.valid != result.valid
    assert again.valid == again.history[-1].valid


def test_a_model_without_a_state_is_not_trained_over(markov_log: pl.DataFrame, tmp_path: Path) -> None:
    split, run = split_of(markov_log), RunFolder.create(tmp_path / "run")
    run_training(split, run=run)
    (run.path / "training" / "state.safetensors").unlink()
    before = (run.path / "history.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"has a model and no training/state\.safetensors to go on from"):
        run_training(split, run=run, resume=True)
    assert (run.path / "history.jsonl").read_bytes() == before
