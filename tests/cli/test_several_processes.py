"""`sasrec train` in several processes, as torchrun starts them: the same training, and what happens when one dies."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_markov_log
from worlds import ends_of, free_port, start_process, start_training

import sasrec
from sasrec.core.isa import load_native
from sasrec.runs.digests import verify
from sasrec.runs.folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(load_native().module is None, reason=load_native().why),
    pytest.mark.usefixtures("float32_core"),
]

SMALL = [
    "--embedding-dim", "8", "--n-blocks", "1", "--max-seq-len", "8", "--batch-size", "16", "--patience", "0",
    "--valid-protocol", "full",
]  # fmt: skip
LONG = [*SMALL, "--max-epochs", "100000", "--batch-size", "4"]  # the last one counts


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    make_markov_log(160).write_csv(path)
    return path


def history_of(run: Path) -> list[dict[str, Any]]:
    path = run / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def wait_for_epoch(run: Path, epoch: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while len(history_of(run)) < epoch:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), ends_of(processes)
        time.sleep(0.05)


def train_alone(log: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sasrec", "train", str(log), "--output", str(output), "--threads", "1", *more]
    return subprocess.run(command, capture_output=True, text=True)


def launch(log: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """What `torchrun --nproc-per-node 2 -m sasrec train` starts."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
        "-m", "sasrec", "train", str(log), "--output", str(output), "--threads", "1", *more,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_same_curve(run: Path, other: Path) -> None:
    mine, others = history_of(run), history_of(other)
    assert [line["train_loss"] for line in mine] == pytest.approx([line["train_loss"] for line in others], rel=1e-4)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_torchrun_trains_as_one_process_does_and_process_0_alone_speaks(log: Path, tmp_path: Path, engine: str) -> None:
    settings = [*SMALL, "--max-epochs", "2", "--engine", engine, *(["--dropout", "0"] if engine == "torch" else [])]
    alone = train_alone(log, tmp_path / "alone", *settings)
    assert alone.returncode == 0, alone.stderr
    (code, out, err), *_ = ends_of([launch(log, tmp_path / "both", *settings, "--json")])
    assert code == 0, err
    told = json.loads(out)  # nothing else is on stdout
    assert told["epochs"] == 2
    assert err.count("2 processes train together") == err.count("INFO: engine:") == 1
    assert_same_curve(tmp_path / "both", tmp_path / "alone")
    run = RunFolder.open(tmp_path / "both")
    assert run.load_config().processes == 2
    assert [result.to_dict() for result in run.load_metrics()] == told["results"]
    assert len(sasrec.load(run.path).recommend([[1, 2]], k=3)) == 3
    measured = sasrec.load(run.path, threads=1).evaluate()
    assert {k: v["value"] for k, v in measured.metrics.items()} == {
        k: v["value"] for k, v in run.load_metrics()[1].metrics.items()
    }


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_job_and_the_run_goes_on(log: Path, tmp_path: Path, victim: int) -> None:
    run = tmp_path / "run"
    processes = start_training(2, log, run, *LONG)
    wait_for_epoch(run, 2, processes)
    processes[victim].kill()
    began = time.monotonic()
    ends = ends_of(processes)
    assert time.monotonic() - began < 60
    assert ends[victim][0] == -signal.SIGKILL
    code, _, err = ends[1 - victim]
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith(f"error: process {1 - victim} of 2 cannot reach the others")
    assert last.endswith("the same command with --resume goes on")
    assert "Traceback" not in err
    verify(RunFolder.open(run))
    epochs = str(RunFolder(run).load_state().state.epoch + 2)
    shutil.copytree(run, tmp_path / "again")
    settings = [*LONG, "--max-epochs", epochs]
    resumed = train_alone(log, run, *settings, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    both = ends_of(start_training(2, log, tmp_path / "again", *settings, "--resume"))
    assert [code for code, _, _ in both] == [0, 0], both
    whole = train_alone(log, tmp_path / "whole", *settings)
    assert whole.returncode == 0, whole.stderr
    assert_same_curve(run, tmp_path / "whole")
    assert_same_curve(tmp_path / "again", tmp_path / "whole")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_saves_and_ends_all(log: Path, tmp_path: Path, signum: signal.Signals) -> None:
    run = tmp_path / "run"
    job = launch(log, run, *LONG)
    wait_for_epoch(run, 1, [job])
    job.send_signal(signum)
    (code, _, err), *_ = ends_of([job], timeout=60)
    assert code != 0
    assert err.count("all work so far is saved. To go on, run the same command with --resume") == 1
    assert "cannot reach the others" not in err
    state = RunFolder.open(run).load_state()
    assert state is not None
    settings = [*LONG, "--max-epochs", str(state.state.epoch + 1)]
    both = ends_of(start_training(2, log, run, *settings, "--resume"))
    assert [code for code, _, _ in both] == [0, 0], both


def test_what_is_wrong_is_said_once_by_each_and_nothing_waits(log: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    began = time.monotonic()
    (code, _, err), (other_code, _, other_err) = ends_of(start_training(2, log, tmp_path, *SMALL))
    assert time.monotonic() - began < 60
    assert (code, other_code) == (2, 1)
    assert err.splitlines()[-1].startswith(f"error: output {tmp_path} exists and is not empty")
    assert other_err.splitlines()[-1] == "error: process 0 of 2 failed, and says why"


@pytest.mark.parametrize("option", [["--seeds", "2"], ["--dry-run"]])
def test_what_is_for_one_process_is_refused(log: Path, tmp_path: Path, option: list[str]) -> None:
    ends = ends_of(start_training(2, log, tmp_path / "study", *SMALL, *option))
    assert [code for code, _, _ in ends] == [2, 2]
    assert all(f"{option[0]} is for one process; start it without torchrun" in err for _, _, err in ends)


def test_a_process_that_ends_by_an_error_does_not_wait_for_torchs_threads(log: Path, tmp_path: Path) -> None:
    program = (
        "import ctypes, sys; libc = ctypes.CDLL(None); "
        "libc.__cxa_atexit(ctypes.cast(libc.abort, ctypes.c_void_p), None, None); "  # what a thread of torch may do
        "from sasrec.cli.main import main; main()"
    )
    port = free_port()
    words = ["-c", program, "train", str(log), "--output", str(tmp_path / "run"), "--threads", "1", "--dry-run"]
    ends = ends_of([start_process(rank, 2, port, words) for rank in range(2)])
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert all("--dry-run is for one process" in err for _, _, err in ends)


NAMES, ADDRESSES = ("sasrec-a", "sasrec-b"), ("10.77.31.1", "10.77.31.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def two_machines() -> Iterator[list[list[str]]]:
    """Two network namespaces with a cable between them: what comes in front of a command to run it in each."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs the command ip and to be root, to make network namespaces")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", NAMES[0], "type", "veth", "peer", "name", "cable", "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [["ip", "netns", "exec", name] for name in NAMES]
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    finally:
        for name in NAMES:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


@pytest.mark.outside
def test_a_cut_link_ends_both_sides_within_a_minute_and_the_run_goes_on(
    log: Path, tmp_path: Path, two_machines: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "cable")
    command = ["-m", "sasrec", "train", str(log), "--output", str(run), "--threads", "1"]

    def start(*more: str) -> list[subprocess.Popen[str]]:
        port = free_port()
        return [
            start_process(rank, 2, port, [*command, *more], address=ADDRESSES[0], before=before)
            for rank, before in enumerate(two_machines)
        ]

    processes = start(*LONG)
    wait_for_epoch(run, 2, processes)
    ip("-n", NAMES[0], "link", "set", "cable", "down")
    began = time.monotonic()
    ends = ends_of(processes)
    assert time.monotonic() - began < 60
    for rank, (code, _, err) in enumerate(ends):
        assert code == 1
        last = err.splitlines()[-1]
        assert last.startswith(f"error: process {rank} of 2 cannot reach the others (no answer for 40 s)")
    ip("-n", NAMES[0], "link", "set", "cable", "up")
    state = RunFolder.open(run).load_state()
    assert state is not None
    settings = [*LONG, "--max-epochs", str(state.state.epoch + 1)]
    resumed = ends_of(start(*settings, "--resume"))
    assert [code for code, _, _ in resumed] == [0, 0], resumed
    whole = train_alone(log, tmp_path / "whole", *settings)
    assert whole.returncode == 0, whole.stderr
    assert_same_curve(run, tmp_path / "whole")
