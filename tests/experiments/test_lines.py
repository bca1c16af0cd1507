"""Lines of results: what result files promise, and what earlier and foreign files hold."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from made import ML_1M, SAMPLED, make_line, make_result, make_training

from sasrec.core.config import EvalConfig, ModelConfig, TrainConfig
from sasrec.core.errors import DataError
from sasrec.experiments.lines import ResultLine, append_lines, label, overrides_of, read_lines, result_lines
from sasrec.runs.folder import RunConfig, RunFolder
from sasrec.runs.record import TrainingFacts

CONFIG = RunConfig(ModelConfig(), TrainConfig(), EvalConfig(), "paper", "made", ML_1M, "0")
RESULTS = [make_result(split="valid"), make_result(), make_result(**SAMPLED)]


def make_study(folder: Path, *trainings: TrainingFacts | None) -> Path:
    """A study as `run_study` leaves it, of seeds 3, 4, ..., without weights; None = a run that has not ended."""
    folder.mkdir()
    seeds = list(range(3, 3 + len(trainings)))
    study = {"format": 1, "preset": "paper", "settings": {"dropout": 0.1}, "seeds": seeds, "command": "sasrec it"}
    (folder / "study.json").write_text(json.dumps(study))
    for seed, training in zip(seeds, trainings, strict=True):
        run = RunFolder.create(folder / f"seed-{seed}")
        run.save_config(replace(CONFIG, train=replace(CONFIG.train, seed=seed)))
        if training is not None:
            run.save_metrics(RESULTS, training)
    return folder


def test_lines_have_what_result_files_promise(tmp_path: Path) -> None:
    facts = make_training(seconds=60.0), make_training(seconds=62.0, best_epoch=1)
    lines = result_lines(make_study(tmp_path / "study", *facts))
    assert [(line.split, line.protocol) for line in lines] == [("valid", "full"), ("test", "full"), ("test", "sampled")]
    for line in lines:
        told = json.loads(json.dumps(line.to_dict(), allow_nan=False))
        assert list(told) == [
            "split", "split_method", "protocol", "candidates", "excluded", "ties", "n_users", "metrics", "baselines",
            "data", "seeds", "train_seconds", "best_epochs", "preset", "overrides", "settings", "fingerprint", "engine",
            "isa", "threads", "machine", "versions", "commit", "command",
        ]  # fmt: skip
        assert (told["data"], told["seeds"], told["overrides"]) == ("made", [3, 4], {"dropout": 0.1})
        assert (told["train_seconds"], told["best_epochs"], told["command"]) == (61.0, [2, 1], "sasrec it")
        assert (told["fingerprint"], told["settings"]["embedding_dim"], told["settings"]["k"]) == ("f" * 32, 50, [10])
        assert told["metrics"]["ndcg@10"]["mean"] == 0.5
        for name in ("engine", "isa", "threads", "machine", "versions", "commit"):
            assert told[name] == asdict(facts[0])[name]
        assert ResultLine.from_dict(told) == line


def test_what_differs_between_runs_is_all_told(tmp_path: Path) -> None:
    line = result_lines(make_study(tmp_path / "moved", make_training(), make_training(machine="another", threads=3)))[0]
    assert line.origin.machine == "a machine; another"
    assert line.origin.threads == "2; 3"
    assert line.origin.engine == "native"


def test_there_are_no_lines_before_all_runs_have_ended(tmp_path: Path) -> None:
    assert result_lines(make_study(tmp_path / "half", make_training(), None)) == []


def test_lines_are_added_once_and_what_was_there_stays_as_it_was(tmp_path: Path) -> None:
    file, early = tmp_path / "lines.jsonl", make_line(more="of a later version")
    del early["overrides"], early["fingerprint"]
    file.write_text(json.dumps(early))  # without a line break at its end
    new = ResultLine.from_dict(make_line(command="another"))
    append_lines(file, [*read_lines(file), new])
    append_lines(file, [new])
    assert [json.loads(text) for text in file.read_text().splitlines()] == [early, new.to_dict()]
    assert read_lines(file)[1] == new


def test_damaged_files_say_which_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the results file"):
        read_lines(tmp_path / "none.jsonl")
    for bad in ("{}", "[]", "{", '{"metrics": 5}', json.dumps(make_line(seeds="0, 1"))):
        (tmp_path / "bad.jsonl").write_text(f"{json.dumps(make_line())}\n{bad}\n")
        with pytest.raises(DataError, match=r"line 2 of .*bad\.jsonl is not a result of a benchmark: ") as caught:
            read_lines(tmp_path / "bad.jsonl")
        assert "\n" not in str(caught.value)


def test_settings_of_earlier_lines_are_told_by_their_command() -> None:
    command = "python benchmarks/quality.py --data a.txt --set block=pre_norm --json --set patience=0"
    old = ResultLine.from_dict(make_line(overrides=None, command=command))
    assert overrides_of(old) == {"block": "pre_norm", "patience": "0"}
    assert label(old) == "paper, block=pre_norm, patience=0"
    assert label(ResultLine.from_dict(make_line(overrides={"k": [5, 10]}))) == "paper, k=5,10"


RESULT_FILES = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "results").glob("*.jsonl"))


@pytest.mark.parametrize("file", RESULT_FILES, ids=lambda file: file.stem)
def test_the_committed_results_can_be_read(file: Path) -> None:
    assert {line.origin.data for line in read_lines(file)} == {file.stem}
