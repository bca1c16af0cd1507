"""--memory of prepare and train: the same folders, in parts, and nothing left beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from made import SETTINGS

import sasrec
from sasrec.cli import console
from sasrec.data import bounded
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
