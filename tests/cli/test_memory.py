"""--memory of prepare and train: the same folders, in parts, also after a kill, and nothing left beside them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from made import SETTINGS

import sasrec
from sasrec.cli import console
from sasrec.data import bounded, steps
from sasrec.reading.chunks import ChunkSizes

from .conftest import Run

SETTING_FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
TELL_OF_TIME = {
    "history.jsonl", "metrics.json", "report.html", "README.md", "digests.json", "curve.png", "state.safetensors",
}  # fmt: skip


TELLS_ITS_PEAK = """
from pathlib import Path
from sasrec.cli.main import main
try:
    main()
finally:
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


KILLS_ITSELF = """  # at the n-th step of a stage, or before a file gets its name
import os, signal, sys
from sasrec.cli.main import main
from sasrec.data import bounded, logs, steps
from sasrec.reading.chunks import ChunkSizes

what, left = sys.argv.pop(1), int(sys.argv.pop(1))
read, note = bounded.read_in_parts, steps.Steps.note
logs.fits = lambda *_: False
logs.read_in_parts = lambda *given: read(*given, sizes=(ChunkSizes(20, 200), 30))
steps.SECONDS = -1.0

def count(name):
    global left
    left -= name == what
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

def noted(self, stage, **arrays):
    count(stage)
    note(self, stage, **arrays)

steps.Steps.note = noted
sys.addaudithook(lambda event, given: event in ("os.rename", "os.link") and count(os.path.basename(given[1])))
main()
"""


@pytest.fixture(autouse=True)
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has a bound does not fit."""
    read = bounded.read_in_parts
    monkeypatch.setattr("sasrec.data.logs.fits", lambda *_: False)
    monkeypatch.setattr("sasrec.data.logs.read_in_parts", lambda *given: read(*given, sizes=(ChunkSizes(20, 200), 30)))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [f"{rng.integers(1, 40)},{rng.integers(1, 30)},{j // 3}" for j in range(900)]
    folder = tmp_path / "logs"
    folder.mkdir()
    for j in range(3):
        (folder / f"part-{j}.csv").write_text("user,item,ts\n" + "\n".join(rows[j * 300 :][:300]) + "\n")
    return folder


def files_of(folder: Path, without: Collection[str] = ()) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in without)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_prepare_writes_the_same_folder_and_leaves_nothing_beside_it(run: Run, log: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    plain = run("prepare", log, "--output", made / "plain", "--k-core", "3")
    parts = run("prepare", log, "--output", made / "parts", "--k-core", "3", "--memory", "4GB")
    assert parts.code == 0, parts.err
    assert parts.out == plain.out
    assert files_of(made / "parts") == files_of(made / "plain")
    assert sorted(path.name for path in made.iterdir()) == ["parts", "plain"]
    again = run("prepare", log, "--output", made / "parts", "--memory", "4GB", "--overwrite")
    assert again.code == 0, again.err
    assert sorted(path.name for path in made.iterdir()) == ["parts", "plain"]


def test_train_trains_the_same_model_on_mapped_events(run: Run, log: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    for name, flags in {"plain": [], "parts": ["--memory", "4GB"]}.items():
        outcome = run("train", log, "--output", made / name, *SETTING_FLAGS, *flags)
        assert outcome.code == 0, outcome.err
    assert files_of(made / "parts", TELL_OF_TIME) == files_of(made / "plain", TELL_OF_TIME)
    results = [json.loads((made / name / "metrics.json").read_text())["results"] for name in ("plain", "parts")]
    assert [result["metrics"] for result in results[0]] == [result["metrics"] for result in results[1]]
    assert sorted(path.name for path in made.iterdir()) == ["parts", "plain"]
    assert (made / "parts" / "sequences" / "items.npy").stat().st_nlink == 1


def test_fit_takes_a_bound_for_its_output(log: Path, tmp_path: Path) -> None:
    fitted = sasrec.fit(log, output=tmp_path / "made" / "run", memory="4GB", **SETTINGS)
    assert fitted.sequences is not None
    assert isinstance(fitted.sequences.items, np.memmap)
    assert fitted.recommend_users([1], k=3).height == 3
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["run"]
    with pytest.raises(sasrec.ConfigError, match="memory bounds a command that writes an output"):
        sasrec.fit(log, memory="4GB", **SETTINGS)


def kill(what: str, number: int, *arguments: object) -> None:
    """Run a command that kills itself there."""
    command = [sys.executable, "-c", KILLS_ITSELF, what, str(number), *map(str, arguments)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "number"),
    [
        ("survey-item.parquet", 1),
        ("plan.json", 1),
        ("fill", 9),
        ("order", 12),
        ("core", 1),
        ("close", 5),
        ("whole", 1),
        ("items.parquet", 1),
        ("timestamps.npy", 1),
        ("sequences", 1),
    ],
)
def test_prepare_goes_on_after_a_kill_and_writes_the_same_folder(
    run: Run, log: Path, tmp_path: Path, what: str, number: int
) -> None:
    made = tmp_path / "made"
    run("prepare", log, "--output", made / "plain", "--k-core", "3")
    command = ["prepare", log, "--output", made / "parts", "--k-core", "3", "--memory", "4GB"]
    kill(what, number, *command)
    assert (made / ".parts.reading").is_dir()
    again = run(*command)
    assert again.code == 0, again.err
    assert ("INFO: going on behind " in again.err) == (what != "survey-item.parquet")
    assert files_of(made / "parts") == files_of(made / "plain")
    assert sorted(path.name for path in made.iterdir()) == ["parts", "plain"]


@pytest.mark.slow
def test_training_that_was_killed_goes_on_behind_the_reading(run: Run, log: Path, tmp_path: Path) -> None:
    command = ["train", log, "--output", tmp_path / "made" / "run", *SETTING_FLAGS, "--memory", "4GB"]
    kill("model.safetensors", 1, *command)
    again = run(*command, "--resume")
    assert again.code == 0, again.err
    assert "INFO: going on behind the whole reading: " in again.err
    plain = run("train", log, "--output", tmp_path / "plain", *SETTING_FLAGS)
    assert plain.code == 0
    assert files_of(tmp_path / "made" / "run", TELL_OF_TIME) == files_of(tmp_path / "plain", TELL_OF_TIME)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["run"]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Ctrl-C comes when a step of this stage is about to be noted."""
    note = steps.Steps.note

    def noted(self: steps.Steps, of: str, **arrays: Any) -> None:
        if of == stage:
            raise KeyboardInterrupt
        note(self, of, **arrays)

    monkeypatch.setattr(steps.Steps, "note", noted)


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_ctrl_c_keeps_what_was_read_and_says_where(run: Run, log: Path, tmp_path: Path, command: str) -> None:
    made, flags = tmp_path / "made", SETTING_FLAGS if command == "train" else []
    for stage in ("order", "whole"):
        with pytest.MonkeyPatch.context() as patched:
            interrupt_at(patched, stage)
            ended = run(command, log, "--output", made / "out", "--memory", "4GB", *flags)
        assert ended.code not in (0, 2)
        assert f"WARNING: what was read is kept in {made / '.out.reading'} (" in ended.err
        assert "the same command goes on behind it; remove the folder if you do not want that" in ended.err
    again = run(command, log, "--output", made / "out", "--memory", "4GB", *flags)
    assert again.code == 0, again.err
    assert "going on behind the ranges of users that are in order" in again.err
    assert [path.name for path in made.iterdir()] == ["out"]


def test_fit_goes_on_after_ctrl_c(log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patched:
        interrupt_at(patched, "whole")
        with pytest.raises(KeyboardInterrupt):
            sasrec.fit(log, output=tmp_path / "made" / "run", memory="4GB", **SETTINGS)
    assert [path.name for path in (tmp_path / "made").iterdir()] == [".run.reading"]
    with caplog.at_level("INFO"):
        sasrec.fit(log, output=tmp_path / "made" / "run", memory="4GB", **SETTINGS)
    assert "going on behind " in caplog.text
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["run"]


def test_what_was_read_is_kept_where_the_command_has_to_be_corrected(run: Run, log: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    run("prepare", log, "--output", made / "out")
    for code, flags in {2: [], 0: ["--overwrite"]}.items():
        ended = run("prepare", log, "--output", made / "out", "--memory", "4GB", *flags)
        assert ended.code == code
        assert ("what was read is kept" in ended.err) == (code == 2)
        assert ("going on behind the whole reading" in ended.err) == (code == 0)
    assert [path.name for path in made.iterdir()] == ["out"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    run: Run, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    ended = run("prepare", log, "--output", tmp_path / "made" / "out", "--memory", "4GB")
    assert (ended.code, "No space left on device" in ended.err) == (1, True)
    assert not list((tmp_path / "made").iterdir())


def test_a_log_that_cannot_be_used_leaves_nothing(run: Run, log: Path, tmp_path: Path) -> None:
    (log / "part-2.csv").write_text("user,item,ts\n1,2,3\n1,,4\n")
    outcome = run("prepare", log, "--output", tmp_path / "made" / "out", "--memory", "4GB")
    assert (outcome.code, "line 3 of" in outcome.err) == (1, True)
    assert not list((tmp_path / "made").iterdir())
    small = run("prepare", log, "--output", tmp_path / "made" / "out", "--memory", "1MB")
    assert (small.code, "--memory 1.0 MB is too small" in small.err) == (2, True)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_bound_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n, bound = 3_000_000, 300  # million bytes; in memory, these events take 400
    columns = {"user_id": rng.integers(1, n // 8, n), "item_id": rng.integers(1, 50_000, n)}
    pl.DataFrame(columns | {"timestamp": rng.permutation(n)}).write_parquet(tmp_path / "log.parquet")
    arguments = ["prepare", tmp_path / "log.parquet", "--output", tmp_path / "out", "--memory", f"{bound}MB"]
    done = subprocess.run([sys.executable, "-c", TELLS_ITS_PEAK, *map(str, arguments)], capture_output=True, check=True)
    peak = int(done.stdout.split()[-2]) * 1024
    assert 10**8 < peak < bound * 10**6


def test_inspect_reads_in_memory(run: Run, log: Path) -> None:
    assert run("inspect", log, "--memory", "4GB").code == 2


def test_progress_is_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", -1.0)
    for quiet in (True, False):
        with console.ReadingDisplay(quiet=quiet) as display:
            display.update("bringing events into order", 1, 3)
    assert capsys.readouterr().err == "bringing events into order: 33 %\n"
