"""The command line: results on stdout, one sentence and the right exit code for what goes wrong."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from cli.conftest import Outcome, Run
from conftest import make_markov_log
from polars.exceptions import PanicException

from sasrec.cli import measure
from sasrec.core.config import CONFIGS, DERIVED

SMALL = ["--embedding-dim", "16", "--n-blocks", "1", "--max-epochs", "3", "--batch-size", "32", "--filter-seen", "yes"]


@pytest.fixture(scope="session")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log as "user item" lines."""
    path = tmp_path_factory.mktemp("log") / "markov.txt"
    make_markov_log().write_csv(path, separator=" ", include_header=False)
    return path


@pytest.fixture(scope="session")
def training(log_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run folder made by `sasrec train --json` in a process of its own, and what that printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = [sys.executable, "-m", "sasrec", "train", str(log_file), "--output", str(folder), *SMALL, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return folder, Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def trained(training: tuple[Path, Outcome]) -> Path:
    """A run folder made by `sasrec train`; tests copy it to change it."""
    return training[0]


@pytest.fixture
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of such small runs."""
    monkeypatch.setattr("sasrec.recommender.write_pages", lambda model, folder, **options: None)


def test_train_writes_the_whole_run_folder(trained: Path) -> None:
    expected = {
        "config.json", "model.safetensors", "items.parquet", "sequences", "history.jsonl", "metrics.json", "training",
        "report.html", "curve.png", "README.md", "digests.json",
    }  # fmt: skip
    assert {path.name for path in trained.iterdir()} == expected


def test_train_prints_metrics_and_json_on_stdout_only(training: tuple[Path, Outcome]) -> None:
    folder, outcome = training
    summary = json.loads(outcome.out)
    assert summary["run"] == str(folder)
    assert summary["results"] == json.loads((folder / "metrics.json").read_text())["results"]
    assert summary["epochs"] == 3
    assert [r["split"] for r in summary["results"]] == ["valid", "test", "test"]
    assert "epoch 1/3" in outcome.err


def test_evaluate_json_has_the_promised_keys(run: Run, trained: Path) -> None:
    result = json.loads(run("evaluate", trained, "--json", "--protocol", "sampled", "--k", 5, "--k", 10).out)
    assert {"split", "protocol", "candidates", "excluded", "ties", "seed", "n_users", "metrics", "baselines"} <= set(
        result
    )
    assert result["protocol"] == "sampled"
    assert {"value", "stderr"} <= set(result["metrics"]["ndcg@5"])
    assert {"value", "stderr"} <= set(result["baselines"]["popularity"]["ndcg@10"])


def test_evaluate_with_a_candidate_file_uses_it(run: Run, trained: Path, tmp_path: Path) -> None:
    items = make_markov_log()["item_id"].to_numpy().reshape(200, 12)
    others = np.tile(np.arange(1, 31), (200, 1))
    np.savez(tmp_path / "c.npz", test=np.concatenate([items[:, -1:], others], 1))
    result = json.loads(run("evaluate", trained, "--candidates", tmp_path / "c.npz", "--ties", "strict", "--json").out)
    assert result["seed"] is None
    assert "given" in result["candidates"]
    outcome = run("evaluate", trained, "--candidates", tmp_path / "c.npz", "--split", "valid")
    assert outcome.code == 1
    assert "valid" in outcome.err


def test_evaluate_seed_changes_the_drawn_candidates_only(run: Run, trained: Path) -> None:
    def value(seed: int) -> float:
        out = run("evaluate", trained, "--protocol", "sampled", "--n-candidates", 5, "--seed", seed, "--json").out
        return float(json.loads(out)["metrics"]["ndcg@10"]["value"])

    assert value(1) == value(1) != value(2)


def test_recommend_prints_writes_and_agrees(run: Run, trained: Path, tmp_path: Path) -> None:
    frame = pl.DataFrame(json.loads(run("recommend", trained, "--user", 3, "-k", 4, "--json").out))
    assert frame.columns == ["user_id", "item_id", "score", "rank"]
    (tmp_path / "users").write_text("3\n\n7\n")
    for name, read in {"r.parquet": pl.read_parquet, "r.csv": pl.read_csv, "r.jsonl": pl.read_ndjson}.items():
        assert run("recommend", trained, "--users", tmp_path / "users", "-k", 4, "--output", tmp_path / name).code == 0
        written = read(tmp_path / name)
        assert written["user_id"].to_list() == [3] * 4 + [7] * 4
        assert written["item_id"][:4].to_list() == frame["item_id"].to_list()
    assert len(run("recommend", trained, "--history", "3, 4,5", "-k", 2).out.splitlines()) == 3
    run("recommend", trained, "--all-users", "-k", 1, "--output", tmp_path / "all.parquet")
    assert len(pl.read_parquet(tmp_path / "all.parquet")) == 200


def test_recommend_obeys_allow_and_deny_files(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "allow").write_text("11\n12\n13\n")
    (tmp_path / "deny").write_text("12\n")
    arguments = ["--history", "1,2", "--allow", tmp_path / "allow", "--deny", tmp_path / "deny", "--json"]
    assert {row["item_id"] for row in json.loads(run("recommend", trained, *arguments).out)} == {11, 13}


def test_unknown_history_gets_popular_items_and_says_so(run: Run, trained: Path) -> None:
    outcome = run("recommend", trained, "--history", "no,idea", "-k", 2)
    assert outcome.code == 0
    assert "popular items" in outcome.err


def test_score_similar_and_explain_print_tables(run: Run, trained: Path) -> None:
    assert run("score", trained, "--history", "1,2", "--items", "3,4").out.splitlines()[0].split() == [
        "item_id",
        "score",
    ]
    assert len(run("similar", trained, 5, "-k", 3).out.splitlines()) == 4
    header = run("explain", trained, "--history", "1,2", "--item", 4).out.splitlines()[0].split()
    assert header == ["item_id", "position", "contribution"]


def test_serve_takes_its_settings_from_flags_over_a_file_and_refuses_what_cannot_be(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    outcome = run("serve", trained, "--max-requests", 600)
    assert outcome.code == 2
    assert "max_requests=600 is more than queue_size=512" in " ".join(outcome.err.split())
    (tmp_path / "server.yaml").write_text("queue_size: 10\nmax_requests: 20\n")
    outcome = run("serve", trained, "--config", tmp_path / "server.yaml", "--max-requests", 11)
    assert "max_requests=11 is more than queue_size=10" in " ".join(outcome.err.split())
    (tmp_path / "server.yaml").write_text("batch: 10\n")
    outcome = run("serve", trained, "--config", tmp_path / "server.yaml")
    assert outcome.code == 2
    assert "unknown setting 'batch' (did you mean 'batch_size'?); ServerConfig has: host, port" in " ".join(
        outcome.err.split()
    )
    assert run("serve", tmp_path / "nothing").code == 1


def test_titles_are_shown(run: Run, log_file: Path, tmp_path: Path) -> None:
    titles = pl.DataFrame({"item_id": range(1, 31), "title": [f"Film {i}" for i in range(1, 31)]})
    titles.write_csv(tmp_path / "titles.csv")
    run("train", log_file, "-o", tmp_path / "run", *SMALL, "--titles", tmp_path / "titles.csv", "--max-epochs", 1)
    assert "Film " in run("recommend", tmp_path / "run", "--user", 3).out
    assert "Film " in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("without_reports")
def test_compare_pairs_two_runs(run: Run, trained: Path, log_file: Path, tmp_path: Path) -> None:
    run("train", log_file, "--output", tmp_path / "b", *SMALL, "--seed", 3)
    comparison = json.loads(run("compare", trained, tmp_path / "b", "--json").out)
    assert comparison["n_users"] == 200
    assert "ndcg@10" in run("compare", trained, tmp_path / "b").out
    same = json.loads(run("compare", trained, trained, "--json").out)
    assert same["metrics"]["ndcg@10"]["difference"] == 0


@pytest.mark.slow
def test_several_seeds_are_run_folders_with_a_summary(run: Run, log_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    command = ["train", log_file, "-o", folder, *SMALL, "--seeds", 2, "--max-epochs", 1, "--seed", 7]
    outcome = run(*command)
    assert outcome.code == 0
    assert "over 2 seeds" in outcome.out
    assert "seed-7, seed-8" in outcome.out
    assert "seed 8 (2 of 2)  epoch 1/1" in outcome.err
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["seeds"] == [7, 8]
    for name in ("seed-7", "seed-8"):
        assert run("evaluate", folder / name).code == 0
        assert (folder / name / "report.html").exists()
    again = run(
        "train", log_file, "-o", folder, *SMALL, "--seeds", 2, "--max-epochs", 1, "--seed", 7, "--resume", "--json"
    )
    assert json.loads(again.out) == summary
    for arguments in (["evaluate", folder], ["recommend", folder, "--user", 1]):
        outcome = run(*arguments)
        assert outcome.code == 1
        assert f"give one of them, such as {folder / 'seed-7'}" in outcome.err.replace("\n", " ")
    sides = json.loads(run("compare", folder, folder / "seed-7", folder / "seed-8", "--pairs", "all", "--json").out)
    assert [(c["name_a"], c["n_runs_a"], c["n_runs_b"]) for c in sides["comparisons"]] == [
        (str(folder), 2, 1), (str(folder), 2, 1), (str(folder / "seed-7"), 1, 1)
    ]  # fmt: skip
    assert all(c["metrics"]["ndcg@10"]["p_holm"] is not None for c in sides["comparisons"])


@pytest.mark.usefixtures("without_reports")
def test_benchmark_prints_a_table_or_its_lines(run: Run, log_file: Path, tmp_path: Path) -> None:
    arguments = ["benchmark", log_file, "-o", tmp_path / "b", *SMALL, "--seeds", 1, "--max-epochs", 1]
    outcome = run(*arguments, "--protocols", "full")
    assert outcome.code == 0
    assert "full NDCG@10" in outcome.out
    assert "sampled" not in outcome.out
    outcome = run(*arguments, "--resume", "--json", "--results", tmp_path / "all.jsonl")
    lines = [json.loads(text) for text in outcome.out.splitlines()]
    assert [json.loads(text) for text in (tmp_path / "all.jsonl").read_text().splitlines()] == lines
    assert len(lines) == 3
    assert str(tmp_path) not in json.dumps(lines)


@pytest.mark.slow
@pytest.mark.usefixtures("without_reports")
def test_run_becomes_a_published_checkpoint_and_comes_back(run: Run, log_file: Path, tmp_path: Path) -> None:
    run("train", log_file, "-o", tmp_path / "run", *SMALL, "--block", "post_norm", "--max-epochs", 1)
    layout = ["--layout", "pmixer-2025"]
    assert run("convert", tmp_path / "run", *layout, "-o", tmp_path / "m.pth").code == 0
    outcome = run("convert", tmp_path / "run", *layout, "-o", tmp_path / "m.pth")
    assert outcome.code == 2
    assert "exists" in outcome.err
    assert run("convert", tmp_path / "run", "--layout", "pmixer-2021", "-o", tmp_path / "n.pth").code == 2
    assert run("convert", tmp_path / "m.pth", *layout, "--log", log_file, "-o", tmp_path / "back").code == 0
    assert len(json.loads(run("recommend", tmp_path / "back", "--user", 1, "-k", 3, "--json").out)) == 3
    assert json.loads(run("info", tmp_path / "back", "--json").out)["run"]["layout"] == "pmixer-2025"


@pytest.mark.usefixtures("without_reports")
def test_prepared_folder_trains_like_the_log(run: Run, log_file: Path, trained: Path, tmp_path: Path) -> None:
    assert run("prepare", log_file, "--output", tmp_path / "data").code == 0
    run("train", tmp_path / "data", "--output", tmp_path / "run", *SMALL)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_prepare_filters_repeats_and_cores(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("".join(f"{u} {i}\n" for u in range(4) for i in (1, 1, 2, 3)) + "9 7\n")
    out = run("prepare", tmp_path / "log.txt", "-o", tmp_path / "a", "--repeats", "first", "--k-core", 3, "--json").out
    facts = json.loads(out)
    assert (facts["n_users"], facts["n_items"], facts["n_events"]) == (4, 3, 12)


@pytest.mark.usefixtures("without_reports")
def test_settings_file_is_read_and_flags_win(run: Run, log_file: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("embedding_dim: 8\nn_blocks: 1\nmax_epochs: 7\n")
    run("train", log_file, "-o", tmp_path / "run", "--config", tmp_path / "s.yaml", "--max-epochs", 1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["model"]["embedding_dim"], config["train"]["max_epochs"]) == (8, 1)


def test_every_config_field_is_a_flag_of_train(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run("train", "--help-all").out
    for cls in CONFIGS.values():
        for name in cls.__dataclass_fields__:
            assert (f"--{name.replace('_', '-')}" in text) == (name not in DERIVED)


def test_info_shows_versions_and_the_run(run: Run, trained: Path) -> None:
    facts = json.loads(run("info", trained, "--json").out)
    assert facts["run"]["model"]["embedding_dim"] == 16
    assert facts["torch"]
    assert "python" in run("info").out


def test_datasets_are_listed(run: Run) -> None:
    assert "ml-100k" in run("datasets").out
    outcome = run("datasets", "--fetch", "ml-3k")
    assert outcome.code == 2
    assert "'ml-3k' is not known" in outcome.err


BAD = {
    "missing file": (["train", "{tmp}/none.txt", "-o", "{tmp}/o"], 1, "none.txt"),
    "empty file": (["train", "{tmp}/empty.txt", "-o", "{tmp}/o"], 1, "empty"),
    "short users": (["train", "{tmp}/short.txt", "-o", "{tmp}/o"], 1, "none of the 2 users has 3 events"),
    "wrong column": (["train", "{tmp}/log.csv", "-o", "{tmp}/o", "--item-column", "film"], 1, "movie"),
    "bad time": (["train", "{tmp}/time.csv", "-o", "{tmp}/o"], 1, "soon"),
    "unknown preset": (["train", "{log}", "-o", "{tmp}/o", "--preset", "magic"], 2, "preset 'magic' is not known"),
    "too many heads": (["train", "{log}", "-o", "{tmp}/o", "--n-heads", "7"], 2, "n_heads=7 does not divide"),
    "no native": (
        ["train", "{log}", "-o", "{tmp}/o", "--engine", "native", "--padding", "attended"], 2, "engine=native",
    ),
    "no cuda": (["train", "{log}", "-o", "{tmp}/o", "--device", "cuda:99"], 2, "cuda"),
    "unknown key": (["train", "{log}", "-o", "{tmp}/o", "--config", "{tmp}/bad.yaml"], 2, "unknown setting 'epochs'"),
    "not empty": (["train", "{log}", "-o", "{tmp}/full"], 2, "not empty"),
    "not ours": (["train", "{log}", "-o", "{tmp}/full", "--overwrite"], 2, "not a run folder"),
    "resume nothing": (["train", "{log}", "-o", "{tmp}/none", "--resume"], 1, "no run folder"),
    "k of zero": (["recommend", "{run}", "--user", "1", "-k", "0"], 2, "k=0 is not a number of items"),
    "unknown user": (["recommend", "{run}", "--user", "9999"], 1, "user '9999' is not in the log"),
    "nothing asked": (["recommend", "{run}"], 2, "give one of"),
    "wrong output": (["recommend", "{run}", "--user", "1", "-o", "{tmp}/r.xlsx"], 2, ".parquet"),
    "no run": (["evaluate", "{tmp}/none"], 1, "no run folder"),
    "foreign folder": (["evaluate", "{tmp}/full"], 1, "no config.json"),
    "unknown item": (["similar", "{run}", "9999"], 1, "item '9999' is not in the log"),
    "no layout": (["convert", "{tmp}/x.pth", "-o", "{tmp}/o", "--log", "{log}"], 2, "choose one of"),
    "no file": (["convert", "{tmp}/x.pth", "-o", "{tmp}/o", "--log", "{log}", "--layout", "pmixer-2021"], 1, "x.pth"),
    "other split": (["evaluate", "{run}", "--min-items", "12", "--split-method", "temporal"], 1, "needs timestamps"),
    "no preset": (["benchmark", "{log}", "-o", "{tmp}/o", "--presets", "magic"], 2, "presets='magic'"),
    "benchmark split": (
        ["benchmark", "{log}", "-o", "{tmp}/o", "--config", "{tmp}/split.yaml"], 2, "set by --split-methods here",
    ),
    "no study": (["train", "{log}", "-o", "{tmp}/o", "--seeds", "2", "--resume"], 1, "holds no study of several seeds"),
    "one run": (["compare", "{run}"], 2, "two sides"),
    "temporal": (["train", "{log}", "-o", "{tmp}/o", "--split-method", "temporal"], 1, "needs timestamps"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_sentence_and_its_exit_code(
    case: str, run: Run, tmp_path: Path, log_file: Path, trained: Path
) -> None:
    arguments, code, words = BAD[case]
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("1 1\n1 2\n2 1\n")
    (tmp_path / "log.csv").write_text("user,movie\n" + "1,2\n" * 5)
    (tmp_path / "time.csv").write_text("user_id,item_id,timestamp\n1,2,3\n1,3,soon\n")
    (tmp_path / "bad.yaml").write_text("epochs: 3\n")
    (tmp_path / "split.yaml").write_text("split_method: temporal\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("dear")
    outcome = run(*(a.format(tmp=tmp_path, log=log_file, run=trained) for a in arguments))
    assert outcome.code == code
    assert words in outcome.err.replace("\n", " ")
    assert "Traceback" not in outcome.err
    assert (tmp_path / "full" / "file").read_text() == "dear"


def test_damaged_run_folder_is_refused(run: Run, trained: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "items.parquet", "config.json"):
        broken = tmp_path / name
        shutil.copytree(trained, broken)
        data = (broken / name).read_bytes()
        (broken / name).write_bytes(data[: len(data) // 2])
        outcome = run("recommend", broken, "--user", 1)
        assert outcome.code == 1
        assert name in outcome.err.replace("\n", "")


def test_resume_with_another_configuration_or_log_is_refused_and_nothing_is_lost(
    run: Run, log_file: Path, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = (folder / "model.safetensors").read_bytes()
    outcome = run("train", log_file, "-o", folder, *SMALL, "--resume", "--dropout", 0.4)
    assert outcome.code == 2
    assert re.search(r"dropout was 0\.\d+ and is now 0\.4;", outcome.err.replace("\n", " "))
    other = tmp_path / "other.txt"
    other.write_text(log_file.read_text() + "1 5\n")
    outcome = run("train", other, "-o", folder, *SMALL, "--resume")
    assert outcome.code == 1
    assert "log has changed" in outcome.err
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("without_reports")
def test_resume_trains_on_to_more_epochs(run: Run, log_file: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "a")
    assert run("train", log_file, "-o", tmp_path / "a", *SMALL, "--max-epochs", 5, "--resume").code == 0
    run("train", log_file, "-o", tmp_path / "b", *SMALL, "--max-epochs", 5)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("without_reports")
def test_ctrl_c_saves_and_says_how_to_resume(run: Run, log_file: Path, tmp_path: Path) -> None:
    command = ["train", str(log_file), "-o", str(tmp_path / "run"), *SMALL, "--patience", "0"]
    endless = [sys.executable, "-m", "sasrec", *command, "--max-epochs", "100000"]
    child = subprocess.Popen(endless, stderr=subprocess.PIPE, text=True)
    history = tmp_path / "run" / "history.jsonl"
    deadline = time.monotonic() + 60
    while not (history.exists() and history.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "--resume" in err
    assert "Traceback" not in err
    epochs = len(history.read_text().splitlines())
    assert run(*command, "--resume", "--max-epochs", epochs + 2).code == 0
    assert len(history.read_text().splitlines()) == epochs + 2


ESCAPES = "\x1b]0;owned\x07\x9b2J"


def test_titles_ids_and_messages_of_others_do_not_reach_the_terminal_raw(run: Run, tmp_path: Path) -> None:
    lines = [f"{user},{ESCAPES}{item}" for user in range(40) for item in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id", *lines]))
    (tmp_path / "titles.csv").write_text("\n".join(["item_id,title", *(f"{ESCAPES}{i},{ESCAPES}t" for i in range(5))]))
    said = [run("train", tmp_path / "log.csv", "--titles", tmp_path / "titles.csv", "-o", tmp_path / "run", *SMALL)]
    said.append(run("recommend", tmp_path / "run", "--user", 1, "-k", 3, "--keep-seen"))
    said.append(run("recommend", tmp_path / "run", "--user", 1, "-k", 3, "--keep-seen", "--json"))
    assert [outcome.code for outcome in said] == [0, 0, 0]
    assert "\\x1b]0;owned\\x07\\x9b2J" in said[1].out
    assert json.loads(said[2].out)[0]["item_id"].startswith(ESCAPES)
    said.append(run("similar", tmp_path / "run", f"{ESCAPES}unknown"))
    assert said[-1].code == 1
    assert all(not {"\x1b", "\x07", "\x9b"} & {*outcome.out, *outcome.err} for outcome in said)


@pytest.mark.parametrize("kind", [RuntimeError, PanicException])  # a panic inside Polars is no Exception
def test_unexpected_error_is_one_line_without_debug(
    run: Run, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def fail() -> None:
        raise kind("boom")

    monkeypatch.setattr(measure, "environment", fail)
    outcome = run("info")
    assert outcome.code == 1
    assert f"unexpected {kind.__name__}: boom" in outcome.err
    assert "Traceback" not in outcome.err


def test_ctrl_c_ends_a_command_with_one_word_and_the_code_of_a_failure(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "environment", pressed)
    outcome = run("info")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "interrupted\n")


@pytest.mark.usefixtures("without_reports")
@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["train", "--seeds", 2], "seeds.fit_log"),
        (["benchmark", "--seeds", 1], "grid.append_lines"),
        (["tune", "--trials", 2], "search_trials.TrialJob"),
    ],
)
def test_ctrl_c_between_two_trainings_says_how_to_go_on(
    run: Run, log_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[Any], where: str
) -> None:
    def pressed(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"sasrec.experiments.{where}", pressed)
    outcome = run(words[0], log_file, "-o", tmp_path / "run", *words[1:], *SMALL)
    assert outcome.code == 1
    assert "stopped; all work so far is saved. To go on, run the same command with --resume" in outcome.err
    assert "interrupted" not in outcome.err
