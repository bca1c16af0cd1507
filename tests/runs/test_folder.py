"""The run folder: whole or not at all."""

import contextlib
import dataclasses
import errno
import json
import os
import pickle
import re
import resource
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import polars as pl
import pytest
import torch
from made import SAMPLED, make_epoch, make_result, make_training
from polars.exceptions import PanicException
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save_file

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.core.digests import digest_of, note
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.files import atomic_write
from sasrec.data.sequences import LogFacts, build_sequences
from sasrec.runs.folder import MAY_CHANGE_ON_RESUME, RunConfig, RunFolder, check_resumable, resumed_config
from sasrec.runs.record import State

FACTS = LogFacts(10, 2, 3, 0.0, 0.0, 0, False, "abc")
CONFIG = RunConfig(ModelConfig(), TrainConfig(), EvalConfig(k=(5, 10)), "paper", "log", FACTS, "0")
NOISE = pytest.param(np.random.default_rng(0).bytes(100), id="noise")
RNG = np.random.default_rng(0)
LOG = pl.DataFrame(
    {"user_id": ["u", "v", "u", "u", "v"], "item_id": ["a", "b", "c", "b", "a"], "timestamp": [1, 2, 3, 4, 5]}
)
WEIGHTS = {"a": RNG.standard_normal((3, 4), np.float32), "b.c": np.array([np.pi, -0.0, 1e-38], np.float32)}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def forget_digests(run: RunFolder) -> None:
    """As in a folder of format 1."""
    (run.path / "digests.json").unlink()


def test_config_round_trip(run: RunFolder) -> None:
    run.save_config(CONFIG)
    assert run.load_config() == CONFIG


def test_weights_and_state_round_trips_are_bit_exact(run: RunFolder) -> None:
    run.save_weights(WEIGHTS, 7)
    weights, epoch = run.load_weights()
    assert epoch == 7
    state = State(epoch=3, best_value=0.1 + 0.2, best_metrics={"ndcg@10": 1 / 3})
    run.save_state(WEIGHTS, {"exp_avg/a": WEIGHTS["a"] * 2}, state)
    loaded = run.load_state()
    assert loaded is not None
    for found in (weights, loaded[0]):
        assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in WEIGHTS.items()}
    assert loaded[1]["exp_avg/a"].tobytes() == (WEIGHTS["a"] * 2).tobytes()
    assert loaded[2] == state


def test_nothing_saved_is_told_from_something_damaged(run: RunFolder) -> None:
    assert run.load_state() is None
    assert run.load_metrics() == []
    assert run.load_training() is None
    assert run.load_sequences() is None
    with pytest.raises(CheckpointError, match=r"there is no .*model\.safetensors"):
        run.load_weights()


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickled", b"{}", NOISE])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "metrics.json", "items.parquet"])
def test_foreign_or_truncated_file_is_refused_by_name(run: RunFolder, name: str, content: bytes) -> None:
    (run.path / name).write_bytes(content)
    loaders = {"model.safetensors": run.load_weights, "config.json": run.load_config,
               "metrics.json": run.load_metrics, "items.parquet": run.load_vocabulary}  # fmt: skip
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        loaders[name]()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickled", b"{}", NOISE])
def test_foreign_or_truncated_training_state_is_refused_by_name(run: RunFolder, content: bytes) -> None:
    run.save_state(WEIGHTS, {}, State(epoch=1))
    (run.path / "training" / "state.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.safetensors is damaged"):
        run.load_state()


@pytest.mark.parametrize(
    "metadata", [None, {"epoch": "1"}, {"state": "{"}, {"state": "3"}, {"state": '{"epoch": "2"}'}]
)
def test_tensors_without_the_position_of_a_run_are_no_training_state(
    run: RunFolder, metadata: dict[str, str] | None
) -> None:
    run.save_state(WEIGHTS, {}, State())
    save_file(WEIGHTS, run.path / "training" / "state.safetensors", metadata)
    with pytest.raises(CheckpointError, match="is damaged; start again with --overwrite"):
        run.load_state()


def test_weights_cut_off_anywhere_are_refused(run: RunFolder) -> None:
    run.save_weights(WEIGHTS, 1)
    data = (run.path / "model.safetensors").read_bytes()
    for n_bytes in range(len(data)):
        (run.path / "model.safetensors").write_bytes(data[:n_bytes])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            run.load_weights()


@pytest.mark.parametrize(("dtype", "metadata"), [(torch.bfloat16, {"epoch": "1"}), (torch.float32, {"epoch": "last"})])
def test_tensors_of_another_program_are_refused(run: RunFolder, dtype: torch.dtype, metadata: dict[str, str]) -> None:
    torch_save_file({"a": torch.zeros(3, dtype=dtype)}, run.path / "model.safetensors", metadata)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        run.load_weights()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["a", "b.c"])
def test_weights_that_are_not_finite_are_refused(run: RunFolder, name: str, value: float) -> None:
    poisoned = {key: array.copy() for key, array in WEIGHTS.items()}
    poisoned[name].flat[-1] = value
    run.save_weights(poisoned, 1)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is damaged \(weight {re.escape(name)} has values"):
        run.load_weights()
    for weights, moments in ((poisoned, {}), (WEIGHTS, {"exp_avg/a": poisoned[name]})):
        run.save_state(weights, moments, State(epoch=1))
        with pytest.raises(CheckpointError, match=r"state\.safetensors is damaged \(weight .* are not finite numbers"):
            run.load_state()


def test_large_finite_weights_are_not_taken_for_infinite_ones(run: RunFolder) -> None:
    large = {"a": np.full((300, 30), np.finfo(np.float32).max)}
    run.save_weights(large, 1)
    assert (run.load_weights()[0]["a"] == large["a"]).all()


def test_vocabulary_and_sequences_round_trips_are_exact(run: RunFolder) -> None:
    sequences, vocabulary = build_sequences(LOG)
    vocabulary = vocabulary.with_titles(pl.DataFrame({"item_id": ["b"], "title": ["Bee"]}))
    run.save_data(vocabulary, sequences)
    assert run.load_vocabulary().to_frame().equals(vocabulary.to_frame())
    loaded = run.load_sequences()
    assert loaded is not None
    assert loaded.user_ids.equals(sequences.user_ids)
    for name in ("items", "offsets", "timestamps"):
        assert np.asarray(getattr(loaded, name)).tobytes() == getattr(sequences, name).tobytes()
    assert loaded.facts == sequences.facts
    run.save_data(vocabulary, build_sequences(LOG.head(3))[0])  # written over the former ones
    loaded = run.load_sequences()
    assert loaded is not None
    assert loaded.facts.n_events == 3


@pytest.mark.parametrize("name", ["items.npy", "offsets.npy", "timestamps.npy", "users.parquet", "facts.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "foreign", "pickle"])
def test_damaged_sequences_are_refused_in_one_line(run: RunFolder, name: str, damage: str) -> None:
    sequences, vocabulary = build_sequences(LOG)
    run.save_data(vocabulary, sequences)
    path = run.path / "sequences" / name
    contents = {
        "empty": b"", "half": path.read_bytes()[: path.stat().st_size // 2], "foreign": b"{}",
        "pickle": pickle.dumps({"n_events": 1}),
    }  # fmt: skip
    path.unlink()
    if damage != "missing":
        path.write_bytes(contents[damage])
    with pytest.raises(CheckpointError, match="sequences is damaged: ") as caught:
        run.load_sequences()
    assert "\n" not in str(caught.value)


def test_object_array_in_place_of_sequences_is_not_unpickled(run: RunFolder, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "owned",))

    sequences, vocabulary = build_sequences(LOG)
    run.save_data(vocabulary, sequences)
    for name in ("items.npy", "offsets.npy", "timestamps.npy"):
        kept = (run.path / "sequences" / name).read_bytes()
        np.save(run.path / "sequences" / name, np.array([Evil()] * 5), allow_pickle=True)
        with pytest.raises(CheckpointError, match="sequences is damaged"):
            run.load_sequences()
        (run.path / "sequences" / name).write_bytes(kept)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("ids", [{"item": [1]}, {"item_index": [1], "item_id": [None], "count": [1]}])
def test_table_of_other_columns_or_without_an_id_is_no_vocabulary(run: RunFolder, ids: dict[str, list[object]]) -> None:
    pl.DataFrame(ids).write_parquet(run.path / "items.parquet")
    with pytest.raises(CheckpointError, match=r"items\.parquet is missing or damaged"):
        run.load_vocabulary()


def panic(*_: object, **__: object) -> None:
    raise PanicException("called `Result::unwrap()` on an `Err` value\nand a second line")


def test_a_panic_inside_polars_is_a_damaged_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, vocabulary = build_sequences(LOG)
    run.save_data(vocabulary, sequences)
    monkeypatch.setattr(pl, "read_parquet", panic)
    with pytest.raises(CheckpointError, match=r"items\.parquet is missing or damaged: called `Result::unwrap.* value$"):
        run.load_vocabulary()
    with pytest.raises(CheckpointError, match=r"sequences is damaged: called `Result::unwrap.* value$"):
        run.load_sequences()


def test_a_panic_while_writing_keeps_what_was_there(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = build_sequences(LOG)[1]
    run.save_data(vocabulary, None)
    before = (run.path / "items.parquet").read_bytes()
    monkeypatch.setattr(pl.DataFrame, "write_parquet", panic)
    with pytest.raises(CheckpointError, match=r"cannot write .*items\.parquet: called `Result::unwrap"):
        run.save_data(vocabulary, None)
    assert (run.path / "items.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("item_index", [2, 3, 4]), ("item_index", [1, 2, 2]), ("item_index", [0, 1, 2]), ("item_id", ["a", "b", "b"]),
        ("item_id", [b"a", b"b", b"c"]), ("count", [2, -1, 1]), ("count", [2, None, 1]), ("count", [0.5, 2.0, 1.0]),
    ],
)  # fmt: skip
def test_a_table_that_is_no_vocabulary_is_refused(run: RunFolder, column: str, values: list[object]) -> None:
    frame = build_sequences(LOG)[1].to_frame()
    kind = frame.schema[column] if all(value is None or isinstance(value, int) for value in values) else None
    frame.with_columns(pl.Series(column, values, kind)).write_parquet(run.path / "items.parquet")
    with pytest.raises(CheckpointError, match=r"items\.parquet is missing or damaged: "):
        run.load_vocabulary()


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("offsets.npy", [0, 4, 3], "its files are not of one log"),
        ("offsets.npy", [0, 6, 5], "does not cut the events into users"),
        ("offsets.npy", [-1, 3, 5], "does not cut the events into users"),
        ("offsets.npy", [0.0, 3.0, 5.0], "not a flat array of its numbers"),
        ("items.npy", [1, 3, 2, 2, 0], "does not hold items from 1 to 3"),
        ("items.npy", [1, 3, 2, 2, 4], "does not hold items from 1 to 3"),
        ("items.npy", [[1, 3, 2, 2, 1]], "not a flat array of its numbers"),
        ("timestamps.npy", ["1", "3", "4", "2", "5"], "not a flat array of its numbers"),
    ],
)
def test_arrays_that_are_no_sequences_are_refused(run: RunFolder, name: str, array: list[Any], words: str) -> None:
    sequences, vocabulary = build_sequences(LOG)
    run.save_data(vocabulary, sequences)
    forget_digests(run)
    kind = getattr(sequences, name.removesuffix(".npy")).dtype if type(np.ravel(array)[0].item()) is int else None
    np.save(run.path / "sequences" / name, np.array(array, kind))
    with pytest.raises(CheckpointError, match=f"sequences is damaged: .*{words}"):
        run.load_sequences()


@pytest.mark.parametrize("users", [["v", "u"], ["u", "u"], [b"u", b"v"], [0.5, 1.5]])
def test_users_out_of_order_are_refused(run: RunFolder, users: list[Any]) -> None:
    sequences, vocabulary = build_sequences(LOG)
    run.save_data(vocabulary, sequences)
    forget_digests(run)
    pl.DataFrame({"user_id": users}).write_parquet(run.path / "sequences" / "users.parquet")
    with pytest.raises(CheckpointError, match=r"users\.parquet does not hold different ids in ascending order"):
        run.load_sequences()


@pytest.mark.parametrize("name", ["items", "offsets", "timestamps"])
@pytest.mark.parametrize("claimed", [2**40, 6, 4])
def test_an_array_that_claims_another_size_than_its_file_has_is_refused(
    run: RunFolder, name: str, claimed: int
) -> None:
    sequences, vocabulary = build_sequences(LOG)
    run.save_data(vocabulary, sequences)
    forget_digests(run)
    path, array = run.path / "sequences" / f"{name}.npy", getattr(sequences, name)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": array.dtype.str, "fortran_order": False, "shape": (claimed * (1 + (name == "offsets")),)}
        )
        file.write(array.tobytes())
    with pytest.raises(CheckpointError, match=rf"{name}\.npy has .* bytes, and its header tells of "):
        run.load_sequences()


@pytest.mark.parametrize("facts", [5, [], {}, {"n_events": "5"}, {"repeat_share": None}, {"has_timestamps": 1}])
def test_facts_of_other_types_are_refused(run: RunFolder, facts: object) -> None:
    sequences, vocabulary = build_sequences(LOG)
    run.save_data(vocabulary, sequences)
    forget_digests(run)
    told = {**dataclasses.asdict(sequences.facts), **facts} if isinstance(facts, dict) and facts else facts
    (run.path / "sequences" / "facts.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="sequences is damaged: facts of the log: "):
        run.load_sequences()
    (run.path / "config.json").write_text(json.dumps({**json.loads(CONFIG.to_json()), "data": told}))
    with pytest.raises(CheckpointError, match="does not fit this version: facts of the log: "):
        run.load_config()


def test_metrics_round_trip(run: RunFolder) -> None:
    results, training = [make_result(cold_share=0.1 + 0.2), make_result(**SAMPLED)], make_training(seconds=0.1 + 0.2)
    run.save_metrics(results)
    assert (run.load_metrics(), run.load_training()) == (results, None)
    run.save_metrics(results, training)
    assert (run.load_metrics(), run.load_training()) == (results, training)
    told = json.loads((run.path / "metrics.json").read_text())
    assert told == {"results": [result.to_dict() for result in results], "training": dataclasses.asdict(training)}


def rewrite(run: RunFolder, metrics: Any) -> None:
    """Put other metrics in their place, as a writer would that knows their digest."""
    (run.path / "metrics.json").write_text(json.dumps(metrics))
    note(run.path, {"metrics.json": digest_of(run.path / "metrics.json")})


def test_metrics_of_a_later_version_are_read_without_what_is_new(run: RunFolder) -> None:
    run.save_metrics([make_result()], make_training())
    told = json.loads((run.path / "metrics.json").read_text())
    told["results"][0] |= {"moods": {"warm": {}}, "weighed_users": 5}
    told["results"][0]["metrics"]["ndcg@10"]["median"] = 0.5
    told["training"]["gpu"] = "none"
    rewrite(run, {**told, "more": 1})
    assert (run.load_metrics(), run.load_training()) == ([make_result()], make_training())


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told.update(results=5),
        lambda told: told.update(training=[]),
        lambda told: told["results"][0].pop("protocol"),
        lambda told: told["results"][0].update(k=["ten"]),
        lambda told: told["results"][0]["metrics"].update({"hr@10": 0.5}),
        lambda told: told["training"].pop("seconds"),
    ],
)
def test_damaged_metrics_are_refused_in_one_sentence(run: RunFolder, damage: Callable[[Any], object]) -> None:
    run.save_metrics([make_result()], make_training())
    told = json.loads((run.path / "metrics.json").read_text())
    damage(told)
    rewrite(run, told)
    for load in (run.load_metrics, run.load_training):
        with pytest.raises(CheckpointError, match=r"metrics\.json is damaged \(.*\); delete it and evaluate again"):
            load()


def test_a_folder_of_runs_says_which_runs_it_holds(run: RunFolder) -> None:
    run.save_config(CONFIG)
    with pytest.raises(CheckpointError, match=f"it holds run folders: give one of them, such as {run.path}"):
        RunFolder.open(run.path.parent)


def test_config_of_a_later_format_or_with_unknown_settings_is_refused(run: RunFolder) -> None:
    values = json.loads(CONFIG.to_json())
    (run.path / "config.json").write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99"):
        run.load_config()
    values["model"]["wings"] = 2
    (run.path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="unknown setting 'wings'"):
        run.load_config()
    del values["model"]["wings"]
    for part, value in {"model": 5, "train": [], "eval": {"k": None}, "data": {}, "extra": 1}.items():
        (run.path / "config.json").write_text(json.dumps({**values, part: value}))
        with pytest.raises(CheckpointError, match=r"config\.json does not fit this version"):
            run.load_config()


def test_full_disk_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    atomic_write(target, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left on device; what was saved"):
        atomic_write(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@contextlib.contextmanager
def nearly_full_disk() -> Iterator[None]:
    """No file may grow beyond 4 kB: writes fail in their middle, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


Save = Callable[[RunFolder], object]
LONG_WEIGHTS = {"a": np.zeros(5000, np.float32)}
LONG_LOG = pl.DataFrame({"user_id": np.arange(5000) // 4, "item_id": np.random.default_rng(0).integers(0, 2**40, 5000)})


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("model.safetensors", lambda run: run.save_weights(LONG_WEIGHTS, 2)),
        ("training/state.safetensors", lambda run: run.save_state(LONG_WEIGHTS, {}, State(epoch=2))),
        ("metrics.json", lambda run: run.save_metrics([make_result(candidates="x" * 5000)])),
        ("items.parquet", lambda run: run.save_data(build_sequences(LONG_LOG)[1], None)),
        ("sequences", lambda run: run.save_data(build_sequences(LOG)[1], build_sequences(LONG_LOG)[0])),
    ],
)
def test_write_that_fails_in_its_middle_keeps_what_was_there_and_leaves_no_temporary(
    run: RunFolder, name: str, save: Save
) -> None:
    sequences, vocabulary = build_sequences(LOG)
    run.save_data(vocabulary, sequences)
    run.save_weights(WEIGHTS, 1)
    run.save_state(WEIGHTS, {}, State(epoch=1))
    run.save_metrics([make_result()])
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    message = f"cannot write .*{re.escape(name)}: .*; what was saved before is kept$"
    with pytest.raises(CheckpointError, match=message), nearly_full_disk():
        save(run)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert not list(run.path.rglob(".*"))


def test_write_that_cannot_take_the_place_of_the_old_file_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_write(tmp_path / "file", "old")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        atomic_write(tmp_path / "file", "new")
    with pytest.raises(CheckpointError, match="Read-only file system"):
        atomic_write(tmp_path / "other", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file": "old"}


def test_file_is_flushed_before_it_takes_the_place_of_the_old_one_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace_file = os.fsync, Path.replace
    kinds = {True: "flush folder", False: "flush file"}

    def noted(descriptor: int) -> None:
        events.append(kinds[stat.S_ISDIR(os.fstat(descriptor).st_mode)])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", lambda *paths: (events.append("rename"), replace_file(*paths))[1])
    atomic_write(tmp_path / "file", "new")
    assert events == ["flush file", "rename", "flush folder"]


def test_create_refuses_a_folder_in_use_and_overwrites_only_a_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "new" / "run")
    assert RunFolder.create(run.path).path == run.path  # still empty
    run.save_config(CONFIG)
    with pytest.raises(ConfigError, match="exists and is not empty; use --resume, --overwrite or another folder"):
        RunFolder.create(run.path)
    assert run.load_config() == CONFIG
    RunFolder.create(run.path, overwrite=True)
    assert not list(run.path.iterdir())
    (tmp_path / "thesis").mkdir()
    for precious in (tmp_path / "thesis" / "chapter", tmp_path / "file"):
        precious.write_text("x")
    for path in (tmp_path / "thesis", tmp_path / "file"):
        with pytest.raises(ConfigError, match="is not a run folder, so --overwrite does not delete it"):
            RunFolder.create(path, overwrite=True)
    assert (tmp_path / "thesis" / "chapter").read_text() == (tmp_path / "file").read_text() == "x"


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot make the folder"):
        RunFolder.create(tmp_path / "file" / "run")


def test_open_refuses_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no run folder"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        RunFolder.open(tmp_path)


def test_lines_of_a_history_have_what_was_measured_in_the_order_of_reading(run: RunFolder) -> None:
    run.append_history(make_epoch(1))
    run.append_history(make_epoch(2, valid={"ndcg@10": 0.1 + 0.2}, test={"ndcg@10": 0.25}))
    first, second = (run.path / "history.jsonl").read_text().splitlines()
    assert first == (
        '{"epoch": 1, "step": 7, "train_loss": 0.3333333333333333, "seconds": 0.5, "users_per_second": 400.0, '
        '"learning_rate": 0.001, "total_seconds": 0.75}'
    )
    assert list(json.loads(second)) == [
        "epoch", "step", "train_loss", "valid", "test", "seconds", "users_per_second", "learning_rate", "total_seconds"
    ]  # fmt: skip
    assert run.read_history() == [make_epoch(1), make_epoch(2, valid={"ndcg@10": 0.1 + 0.2}, test={"ndcg@10": 0.25})]


def test_history_forgets_epochs_after_the_saved_one_and_lines_cut_by_a_crash(run: RunFolder) -> None:
    for epoch in (1, 2, 3):
        run.append_history(make_epoch(epoch))
    with (run.path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tr')
    assert [line.epoch for line in run.read_history()] == [1, 2, 3]
    run.rewind_history(2)
    run.append_history(make_epoch(3))
    assert [line.epoch for line in run.read_history()] == [1, 2, 3]


@pytest.mark.parametrize("foreign", [b"\xff\xfe\x80", b"\0" * 50, b"{}", b"3", b'["epoch"]', b'{"epoch": 3, "trai'])
def test_foreign_lines_of_a_history_are_left_out(run: RunFolder, foreign: bytes) -> None:
    first, second = (json.dumps(make_epoch(epoch).to_dict()).encode() for epoch in (1, 2))
    (run.path / "history.jsonl").write_bytes(first + b"\n" + foreign + b"\n" + second + b"\n" + foreign)
    assert run.read_history() == [make_epoch(1), make_epoch(2)]
    assert run.read_history(1) == [make_epoch(1)]


def test_history_of_a_run_that_has_not_begun_is_empty(run: RunFolder) -> None:
    assert run.read_history() == []


def test_resume_refuses_another_log_or_other_settings_but_takes_new_limits() -> None:
    now = replace(CONFIG, train=replace(CONFIG.train, max_epochs=999, threads=1, device="cuda", patience=3))
    check_resumable(CONFIG, now)
    assert resumed_config(CONFIG, now) == now
    other = replace(now, preset="other", layout="x", package_version="9", refit_epochs=3)
    assert resumed_config(CONFIG, other) == now  # the rest stays as it was saved
    with pytest.raises(CheckpointError, match="the log has changed"):
        check_resumable(CONFIG, replace(CONFIG, data=replace(FACTS, fingerprint="xyz")))
    for part, change in {"model": {"dropout": 0.9}, "train": {"seed": 5}, "eval": {"ties": "strict"}}.items():
        other = replace(CONFIG, **{part: replace(getattr(CONFIG, part), **change)})
        name = next(iter(change))
        with pytest.raises(ConfigError, match=f"cannot resume: {name} was .* and is now"):
            check_resumable(CONFIG, other)


def another_value(cls: type, name: str, value: object) -> object:
    """A setting's value changed to another that is allowed."""
    choices = [choice for choice in get_args(get_type_hints(cls)[name]) if choice not in (value, int, ...)]
    named = {"k": (3,), "valid_metric": "hr@5", "device": "cuda"}
    if name in named or isinstance(value, bool):
        return named.get(name, not value)
    if isinstance(value, str):
        return choices[0] if choices else value
    return value / 2 or 0.25 if isinstance(value, float) else value * 2 or 3


@pytest.mark.parametrize("part", ["model", "train", "eval"])
def test_any_setting_that_shapes_the_result_stops_a_resume(part: str) -> None:
    begun = replace(CONFIG, model=replace(CONFIG.model, n_features=3))
    config = getattr(begun, part)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        changed = replace(config, **{field.name: another_value(type(config), field.name, value)})
        now = replace(begun, **{part: changed})
        if field.name in MAY_CHANGE_ON_RESUME or changed == config:  # a setting with one choice cannot change
            check_resumable(begun, now)
            continue
        with pytest.raises(ConfigError, match=f"cannot resume: {field.name} was"):
            check_resumable(begun, now)


def test_what_did_nothing_without_features_stops_no_resume() -> None:
    begun = replace(CONFIG, train=replace(CONFIG.train, feature_dropout=0.2))  # an earlier version took it
    check_resumable(begun, CONFIG)
