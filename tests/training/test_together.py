"""Training by several processes: the same curve as one, the same end on all, and resuming with another number."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log
from made import make_features
from worlds import ThreadWorld, in_world

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.core.errors import CheckpointError, ConfigError, TrainingError
from sasrec.core.isa import load_native
from sasrec.data.logs import Log
from sasrec.data.sequences import build_sequences
from sasrec.data.splits import Split, split_leave_one_out
from sasrec.engine.protocol import create_engine
from sasrec.evaluation.protocols import evaluate
from sasrec.fitting import FitOptions, fit_log
from sasrec.ranking.scorers import ModelScorer
from sasrec.runs.folder import RunFolder
from sasrec.training.progress import Progress
from sasrec.training.result import TrainResult
from sasrec.training.trainer import train

pytestmark = [
    pytest.mark.skipif(load_native().module is None, reason=load_native().why),
    pytest.mark.usefixtures("float32_core"),
]

MODEL = ModelConfig(embedding_dim=16, n_blocks=1, max_seq_len=10, dropout=0.2)
TRAIN = TrainConfig(max_epochs=3, batch_size=32, learning_rate=3e-3, seed=1, patience=0, threads=1)
EVAL = EvalConfig(filter_seen="no")
LOSSES: dict[str, dict[str, Any]] = {
    "bce": {},
    "gbce_shared": {"loss": "gbce", "n_negatives": 20, "shared_negatives": True, "ema_decay": 0.9},
    "sampled_softmax": {"loss": "sampled_softmax", "n_negatives": 8, "clip_norm": 0.5, "weight_decay": 0.1},
    "cross_entropy": {"loss": "cross_entropy", "l2_embedding": 1e-4, "schedule": "cosine"},
    "lazy_adam": {"lazy_adam": True},
    "orthogonal_steps": {"orthogonal_steps": True, "ema_decay": 0.9},
}


def split_of(log: pl.DataFrame) -> Split:
    return split_leave_one_out(build_sequences(log)[0])


@pytest.fixture(scope="module")
def split() -> Split:
    return split_of(make_markov_log(150))


def trained(
    split: Split,
    config: TrainConfig = TRAIN,
    world: ThreadWorld | None = None,
    model: ModelConfig = MODEL,
    **options: Any,
) -> TrainResult:
    n_items = split.sequences.n_items
    features = make_features(n_items, model.n_features, model.vector_dim) if model.has_features else None
    engine = create_engine(model, n_items, config, features=features)
    return train(engine, split, model, config, EVAL, world=world, **options)


def trained_together(size: int, split: Split, config: TrainConfig = TRAIN, **options: Any) -> list[TrainResult]:
    run = options.pop("run", None)

    def body(world: ThreadWorld) -> TrainResult:
        mine = {"run": run, **options} if world.rank == 0 else {**options, "progress": None}
        return trained(split, config, world, **mine)

    return in_world(size, body)


def losses_of(result: TrainResult) -> list[float]:
    return [line.train_loss for line in result.history]


def assert_same_end(results: list[TrainResult]) -> None:
    for result in results:
        for name in ("best_epoch", "valid", "epochs", "stopped"):
            assert getattr(result, name) == getattr(results[0], name), name
        for name, values in results[0].weights.items():
            np.testing.assert_array_equal(result.weights[name], values, err_msg=name)


@pytest.mark.parametrize(
    ("engine", "loss"),
    [(engine, loss) for engine in ("native", "torch") for loss in LOSSES if (engine, loss) != ("torch", "lazy_adam")],
)
def test_loss_curve_is_that_of_one_process(split: Split, engine: Any, loss: str) -> None:
    config = replace(TRAIN, engine=engine, **LOSSES[loss])
    model = replace(MODEL, dropout=0.0) if engine == "torch" else MODEL  # torch draws its dropout by share
    alone = trained(split, config, model=model)
    together = trained_together(2, split, config, model=model)
    assert_same_end(together)
    assert losses_of(together[0]) == pytest.approx(losses_of(alone), rel=1e-4)
    assert together[0].valid == pytest.approx(alone.valid, abs=0.02)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_loss_curve_with_features_and_weights_of_events_is_that_of_one_process(engine: Any) -> None:
    log = make_markov_log(150).with_columns(
        weight=pl.Series(np.random.default_rng(0).integers(0, 3, 150 * 12) / 2, dtype=pl.Float32)
    )
    split = split_leave_one_out(build_sequences(log)[0])
    assert split.sequences.weights is not None
    config = replace(TRAIN, engine=engine, feature_dropout=0.3, batch_size=7)
    model = replace(MODEL, n_features=7, vector_dim=3, tied=False, dropout=0.0)
    alone, together = trained(split, config, model=model), trained_together(3, split, config, model=model)
    assert_same_end(together)
    assert losses_of(together[0]) == pytest.approx(losses_of(alone), rel=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_batches_of_one_user_leave_processes_without_rows_and_change_nothing(size: int) -> None:
    split, config = split_of(make_markov_log(12)), replace(TRAIN, batch_size=1, max_epochs=2)
    alone, together = trained(split, config), trained_together(size, split, config)
    assert_same_end([*together, alone])  # one process has all of every batch
    assert losses_of(together[0]) == pytest.approx(losses_of(alone), rel=1e-12)


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_the_same_weights_measured_by_several_are_the_same_result(split: Split, protocol: Any, engine: Any) -> None:
    config = replace(EVAL, protocol=protocol)

    def measured(world: ThreadWorld | None) -> tuple[Any, list[tuple[int, int]]]:
        told: list[tuple[int, int]] = []
        scorer = ModelScorer(create_engine(MODEL, split.sequences.n_items, replace(TRAIN, engine=engine)), 10)

        def show(done: int, total: int) -> None:
            told.append((done, total))

        result = evaluate(scorer, split, "test", config, batch_size=16, progress=show, world=world)
        return result, told

    alone, _ = measured(None)
    for result, told in in_world(3, measured):
        assert result.to_dict() == alone.to_dict()
        for name, values in (alone.per_user or {}).items():
            np.testing.assert_array_equal((result.per_user or {})[name], values, err_msg=name)
        assert told[-1][0] == told[-1][1]
        n_scorers = 1 + len(alone.baselines)
        assert len(told) == len({done for done, _ in told}) == 4 * n_scorers  # 10 blocks in turns of three


@pytest.mark.parametrize(
    ("settings", "stopped"),
    [
        ({"max_steps": 7}, "max_steps"),
        ({"max_epochs": 50, "patience": 2, "learning_rate": 0.0}, "patience"),
        ({"max_epochs": 100_000, "max_minutes": 0.5 / 60}, "max_minutes"),
    ],
)
def test_all_stop_together(split: Split, settings: dict[str, Any], stopped: str) -> None:
    results = trained_together(2, split, replace(TRAIN, **settings))
    assert_same_end(results)
    assert results[0].stopped == stopped


@pytest.mark.parametrize("asked", [0, 1])
def test_all_stop_where_one_is_asked_to_and_go_on_as_if_nothing_had_been(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    whole = trained_together(2, split)
    events: dict[int, threading.Event] = {}

    @contextlib.contextmanager
    def interruptible() -> Iterator[threading.Event]:
        yield events.setdefault(threading.get_ident(), threading.Event())

    monkeypatch.setattr("sasrec.training.trainer.interruptible", interruptible)
    ranks: dict[int, int] = {}
    run = RunFolder.create(tmp_path / "run")

    def body(world: ThreadWorld) -> TrainResult:
        ranks[world.rank] = threading.get_ident()

        def ask(p: Progress) -> None:
            if p.epoch == 2 and p.valid is not None:
                events[ranks[asked]].set()

        mine: dict[str, Any] = {"run": run, "progress": ask} if world.rank == 0 else {}
        return trained(split, TRAIN, world, **mine)

    results = in_world(2, body)
    assert_same_end(results)
    assert (results[0].stopped, results[0].epochs) == ("interrupted", 2)
    state = run.load_state()
    assert state is not None
    assert state.state.epoch == 2
    assert state.state.step in (1, 2)  # the wish travels with a step
    monkeypatch.undo()
    resumed = trained_together(2, split, run=run, resume=True)
    assert_same_end([*resumed, *whole])
    assert losses_of(resumed[0]) == pytest.approx(losses_of(whole[0]), rel=1e-12)


@pytest.mark.parametrize("then", [1, 2, 3])
def test_a_run_goes_on_with_another_number_of_processes(split: Split, tmp_path: Path, then: int) -> None:
    config = replace(TRAIN, ema_decay=0.9)
    whole = trained(split, replace(config, max_epochs=4))
    run = RunFolder.create(tmp_path / "run")
    trained_together(2, split, replace(config, max_epochs=2), run=run)
    config = replace(config, max_epochs=4)
    if then == 1:
        resumed = trained(split, config, run=run, resume=True)
    else:
        results = trained_together(then, split, config, run=run, resume=True)
        assert_same_end(results)
        resumed = results[0]
    assert resumed.epochs == 4
    assert losses_of(resumed) == pytest.approx(losses_of(whole), rel=1e-4)
    assert [line.epoch for line in run.read_history()] == [1, 2, 3, 4]


def test_resuming_where_nothing_can_be_gone_on_with_ends_all(split: Split, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.save_weights(trained(split).weights, 1)
    with pytest.raises(CheckpointError, match=r"has a model and no training/state\.safetensors"):
        trained_together(2, split, run=run, resume=True)


def test_processes_whose_weights_differ_do_not_go_on(split: Split) -> None:
    def body(world: ThreadWorld) -> TrainResult:
        engine = create_engine(MODEL, split.sequences.n_items, TRAIN)
        weights = engine.weights()
        weights["norm.bias"] += np.float32(1e-6 * (world.rank == 1))
        engine.load_weights(weights)
        return train(engine, split, MODEL, TRAIN, EVAL, world=world)

    with pytest.raises(TrainingError, match=r"process 1 has other weights than process 0 after epoch 1.*--resume"):
        in_world(3, body)


def fitted(world: ThreadWorld | None, log: Log, output: Path | None, **settings: Any) -> Any:
    small = {"embedding_dim": 8, "n_blocks": 1, "max_seq_len": 8, "max_epochs": 2, "batch_size": 32, "threads": 1}
    return fit_log(log, FitOptions(output=output, world=world), {**small, **settings})


def test_fitting_together_writes_one_run_and_gives_all_the_same_results(tmp_path: Path) -> None:
    log, run = Log(*build_sequences(make_markov_log(150)), "made"), RunFolder(tmp_path / "run")
    both = in_world(2, lambda world: fitted(world, log, run.path))
    assert [r.to_dict() for r in both[0].results] == [r.to_dict() for r in both[1].results]
    assert [r.to_dict() for r in run.load_metrics()] == [r.to_dict() for r in both[0].results]
    assert run.load_config().processes == 2
    assert "processes" in (run.path / "report.html").read_text()
    alone = fitted(None, log, tmp_path / "alone")
    assert "processes" not in (tmp_path / "alone" / "config.json").read_text()
    assert "processes" not in (tmp_path / "alone" / "report.html").read_text()
    for mine, other in zip(both[0].results, alone.results, strict=True):
        assert mine.metrics["ndcg@10"]["value"] == pytest.approx(other.metrics["ndcg@10"]["value"], abs=0.02)


def test_refitting_together_ends_in_the_same_weights(tmp_path: Path) -> None:
    log = Log(*build_sequences(make_markov_log(60)), "made")
    settings = {"embedding_dim": 8, "n_blocks": 1, "max_seq_len": 8, "max_epochs": 2, "threads": 1}

    def body(world: ThreadWorld) -> Any:
        return fit_log(log, FitOptions(output=tmp_path / "run", refit=True, report=False, world=world), settings)

    first, second = in_world(2, body)
    assert first.config.refit_epochs == second.config.refit_epochs > 0
    for name, values in first.engine.weights().items():
        np.testing.assert_array_equal(second.engine.weights()[name], values)


def test_processes_with_other_logs_or_settings_are_refused(tmp_path: Path) -> None:
    logs = [Log(*build_sequences(make_markov_log(40, seed=seed)), "made") for seed in range(2)]
    with pytest.raises(ConfigError, match=r"process 1 has log fingerprint=.*all processes .* need the same"):
        in_world(2, lambda world: fitted(world, logs[world.rank], None))
    with pytest.raises(ConfigError, match="process 1 has seed=1, and process 0 has seed=0"):
        in_world(2, lambda world: fitted(world, logs[0], None, seed=world.rank))
    with pytest.raises(ConfigError, match="process 1 has max_steps=7, and process 0 has max_steps=0"):
        in_world(2, lambda world: fitted(world, logs[0], None, max_steps=7 * world.rank))


def test_a_folder_that_is_taken_ends_all_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    log = Log(*build_sequences(make_markov_log(40)), "made")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        in_world(2, lambda world: fitted(world, log, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_processes_have_as_much_to_rank_each_where_that_changes_no_bit(split: Split, engine: Any) -> None:
    def body(world: ThreadWorld) -> tuple[list[int], list[float]]:
        n_ranked: list[int] = []
        scorer = ModelScorer(create_engine(MODEL, split.sequences.n_items, replace(TRAIN, engine=engine)), 10)
        rank = scorer.rank

        def counted(histories: Any, *more: Any) -> Any:
            n_ranked.append(len(histories))
            return rank(histories, *more)

        scorer.rank = counted
        result = evaluate(scorer, split, "test", EVAL, baselines=False, world=world)
        assert result.per_user is not None
        return n_ranked, result.per_user["rank"].tolist()

    counts, ranks = zip(*in_world(4, body), strict=True)
    assert list(counts) == ([[38], [38], [38], [36]] if engine == "native" else [[150], [], [], []])
    assert all(mine == ranks[0] for mine in ranks)
