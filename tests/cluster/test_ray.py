"""The commands on Ray: what they give is what they give in processes of one's own, also where a worker is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from conftest import make_markov_log
from made import without
from on_ray import NEEDS_RAY, Commands, commands, until
from worlds import ends_of, start_training

from sasrec.core.isa import load_native
from sasrec.runs.folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(load_native().module is None, reason=load_native().why),
    NEEDS_RAY,
    pytest.mark.usefixtures("float32_core"),
]

SMALL = [
    "--embedding-dim", "8", "--n-blocks", "1", "--max-seq-len", "8", "--batch-size", "16", "--patience", "0",
    "--valid-protocol", "full", "--threads", "1",
]  # fmt: skip
LONG = [*SMALL, "--max-epochs", "100000", "--batch-size", "4"]  # the last one counts
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "cluster" / "two_machines.sh"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    make_markov_log(160).write_csv(path)
    return path


@pytest.fixture
def ray() -> Iterator[Commands]:
    with commands() as found:
        yield found


def epochs_of(run: Path) -> int:
    path = run / "history.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def saved_epochs_of(run: Path) -> int:
    state = RunFolder(run).load_state() if (run / "training").is_dir() else None
    return 0 if state is None else state.state.epoch


def assert_same_model(run: Path, other: Path) -> None:
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert RunFolder.open(run).load_metrics() == RunFolder.open(other).load_metrics()


def test_prepare_train_and_recommend_end_to_end(log: Path, tmp_path: Path, ray: Commands) -> None:
    check_end_to_end(log, tmp_path, ray, n_epochs=3)


def test_a_real_log_end_to_end(shared: Path, tmp_path: Path, ray: Commands) -> None:
    check_end_to_end(shared / "data" / "ml-1m.txt", tmp_path, ray, n_epochs=1)


def check_end_to_end(log: Path, tmp_path: Path, ray: Commands, n_epochs: int) -> None:
    code, out, err = ray.run("prepare", log, "--output", tmp_path / "prepared")
    assert code == 0, err
    assert "on Ray: 1 machine with " in err
    here = [sys.executable, "-m", "sasrec", "prepare", str(log), "--output", str(tmp_path / "here")]
    assert subprocess.run(here, capture_output=True, text=True, check=True).stdout == out
    for path in sorted((tmp_path / "here").rglob("*")):
        if path.is_file():
            assert (tmp_path / "prepared" / path.relative_to(tmp_path / "here")).read_bytes() == path.read_bytes()
    settings = [*SMALL, "--max-epochs", str(n_epochs)]
    code, out, err = ray.run("train", tmp_path / "prepared", "--output", tmp_path / "run", *settings, "--json")
    assert code == 0, err
    processes = start_training(2, tmp_path / "prepared", tmp_path / "alone", *settings)
    assert [code for code, _, _ in ends_of(processes)] == [0, 0]
    assert_same_model(tmp_path / "run", tmp_path / "alone")
    told = json.loads(out)
    assert (told["epochs"], told["stopped"], len(told["results"])) == (n_epochs, "max_epochs", 3)
    assert f"training ended after epoch {n_epochs}" in err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]  # nothing is left over
    lists = tmp_path / "lists.parquet"
    code, out, err = ray.run("recommend", tmp_path / "run", "--all-users", "--output", lists)
    assert code == 0, err
    recommend = ["recommend", str(tmp_path / "run"), "--all-users", "--output", str(tmp_path / "own.parquet")]
    subprocess.run([sys.executable, "-m", "sasrec", *recommend], check=True, capture_output=True)
    assert pl.read_parquet(lists).equals(pl.read_parquet(tmp_path / "own.parquet"))


def test_a_killed_worker_is_started_again_from_the_last_saved_state(log: Path, tmp_path: Path, ray: Commands) -> None:
    run = tmp_path / "run"
    settings = [*LONG, "--max-epochs", "30", "--save-every-minutes", "0.002"]
    process = ray.start("train", log, "--output", run, *settings)
    until(lambda: saved_epochs_of(run) > 1, process)
    victim = max(ray.workers())
    os.kill(victim, signal.SIGKILL)
    code, _, err = ends_of([process], timeout=300)[0]
    assert code == 0, err
    assert "a process was lost; all of them begin again from the last saved state" in err
    assert re.search(r"resumed after epoch [1-9]", err)
    processes = start_training(2, log, tmp_path / "alone", *settings)
    assert [code for code, _, _ in ends_of(processes, timeout=300)] == [0, 0]
    assert_same_model(run, tmp_path / "alone")


def test_ctrl_c_saves_and_resume_goes_on(log: Path, tmp_path: Path, ray: Commands) -> None:
    run = tmp_path / "run"
    process = ray.start("train", log, "--output", run, *LONG)
    until(lambda: epochs_of(run) > 3, process)
    process.send_signal(signal.SIGINT)
    code, _, err = ends_of([process], timeout=120)[0]
    assert code == 1
    assert "all work so far is saved" in err.splitlines()[-1]
    state = RunFolder.open(run).load_state()
    assert state is not None
    settings = [*LONG, "--max-epochs", str(state.state.epoch + 2)]
    code, _, err = ray.run("train", log, "--output", run, *settings, "--resume")
    assert code == 0, err
    processes = start_training(2, log, tmp_path / "alone", *settings)
    assert [code for code, _, _ in ends_of(processes, timeout=300)] == [0, 0]
    assert_same_model(run, tmp_path / "alone")


def test_what_a_worker_refuses_is_one_sentence(log: Path, tmp_path: Path, ray: Commands) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    code, _, err = ray.run("train", log, "--output", tmp_path / "run", *SMALL)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: output {tmp_path / 'run'} exists and is not empty")
    broken = tmp_path / "broken.csv"
    broken.write_text("user,item,ts\n1,5,3\n2,6,then\n")
    code, _, err = ray.run("prepare", broken, "--output", tmp_path / "prepared")
    assert code == 1
    assert "line 3 of" in err.splitlines()[-1]
    assert not (tmp_path / "prepared").exists()


def test_where_ray_is_missing_the_extra_is_named_and_all_else_works(log: Path, tmp_path: Path) -> None:
    environment = without(tmp_path, "ray")
    for words in (["train", log], ["prepare", log], ["recommend", log, "--all-users"], ["tune", log]):
        command = [sys.executable, "-m", "sasrec", *map(str, words), "--output", str(tmp_path / "x.csv"), "--on", "ray"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == ("error: --on ray needs ray (not installed): pip install 'sasrec[ray]'")
    command = [sys.executable, "-m", "sasrec", "prepare", str(log), "--output", str(tmp_path / "prepared")]
    assert subprocess.run(command, capture_output=True, env=environment).returncode == 0


@pytest.fixture
def two_machines() -> Iterator[Callable[..., list[str]]]:
    """A Ray cluster of two network namespaces: what runs a command on the first machine."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs the command ip and to be root, to make network namespaces")
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"

    def script(*words: str) -> list[str]:
        return ["sh", str(SCRIPT), *words]

    try:
        started = subprocess.run(script("start"), capture_output=True, text=True)
        if started.returncode:
            pytest.skip(f"two machines cannot be made here: {started.stderr.strip().splitlines()[-1]}")
        yield script
    finally:
        subprocess.run(script("stop"), capture_output=True)
        os.environ["PATH"] = before


@pytest.mark.outside
def test_two_machines_train_and_a_lost_one_is_said(
    log: Path, tmp_path: Path, two_machines: Callable[..., list[str]]
) -> None:
    run, prepared = tmp_path / "run", tmp_path / "prepared"
    sasrec = ["run", sys.executable, "-m", "sasrec"]
    on = ["--on", "ray", "--workers", "2"]
    made = two_machines(*sasrec, "prepare", str(log), "--output", str(prepared), *on)
    done = subprocess.run(made, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on Ray: 2 machines with 2 CPUs" in done.stderr
    settings = [*LONG, "--max-epochs", "3"]
    trained = two_machines(*sasrec, "train", str(prepared), "--output", str(run), *settings, *on)
    done = subprocess.run(trained, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    processes = start_training(2, prepared, tmp_path / "alone", *settings)
    assert [code for code, _, _ in ends_of(processes)] == [0, 0]
    assert_same_model(run, tmp_path / "alone")
