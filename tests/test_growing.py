"""The nightly recipe of docs/growing.md on a real log: train from yesterday's run, compare, move the link."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import sasrec

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[1] / "docs" / "growing.md"
FEW = "--max-epochs 4 --batch-size 64 --threads 1"  # for every training, on top of the recipe
SMALL = {"n_blocks": 1, "max_seq_len": 50, "batch_size": 64, "threads": 1}
USERS = 500


def script(language: str, holding: str) -> str:
    """The one script of the page in a language that holds a text."""
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL) if holding in text]
    assert len(found) == 1, f"{len(found)} scripts of {PAGE.name} hold {holding!r}"
    return found[0]


def known_yesterday(log: pl.DataFrame) -> pl.DataFrame:
    place, length = pl.int_range(pl.len()).over("user_id"), pl.len().over("user_id")
    return log.filter(place < (0.8 * length).floor())


def run(commands: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of the page's scripts with a `sasrec` that trains for a moment only."""
    program = folder / "bin" / "sasrec"
    program.parent.mkdir(exist_ok=True)
    few = f'if [ "$1" = train ]; then exec {sys.executable} -m sasrec "$@" {FEW}; fi'
    program.write_text(f'#!/bin/sh\n{few}\nexec {sys.executable} -m sasrec "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path} | environment
    return subprocess.run(
        ["bash", "-c", commands], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )


def run_recipe(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(script("sh", "ln -sfn"), folder)


@pytest.fixture(scope="module")
def nights(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with today's log and the run of yesterday's, after the recipe; and what that said."""
    folder = tmp_path_factory.mktemp("nights")
    names = ["user_id", "item_id"]
    log = pl.read_csv(shared / "data" / "ml-1m.txt", separator=" ", has_header=False, new_columns=names)
    log = log.filter(pl.col("user_id") <= USERS)
    yesterday = {"output": folder / "runs" / "yesterday", "embedding_dim": 32, "max_epochs": 12, "valid_every": 3}
    sasrec.fit(known_yesterday(log), **yesterday, **SMALL)
    (folder / "runs" / "current").symlink_to("yesterday")
    log.write_csv(folder / "events.csv")
    return folder, run_recipe(folder)


def test_the_recipe_trains_compares_and_moves_the_link(
    nights: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = nights
    assert not done.returncode, done.stderr
    assert "items kept" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("NDCG@10 0.")
    current = (folder / "runs" / "current").resolve()
    assert current.name != "yesterday"
    today, yesterday = sasrec.load(current), sasrec.load(folder / "runs" / "yesterday")
    assert today.config.init is not None
    assert today.config.init.model_version == yesterday.model_version
    assert today.config.init.new > 0
    comparison = json.loads((current / "compare.json").read_text())
    assert comparison["n_users"] == USERS
    assert comparison["metrics"]["ndcg@10"]["b"] > comparison["metrics"]["ndcg@10"]["a"] > 0
    assert today.results[1].metrics["ndcg@10"]["value"] == pytest.approx(comparison["metrics"]["ndcg@10"]["b"])


def test_a_recipe_that_fails_leaves_yesterdays_model_in_place(
    nights: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = nights
    before = (folder / "runs" / "current").resolve()
    again = run_recipe(folder)  # the link leads to today's run already
    assert again.returncode
    assert "is both the run to begin from and the one to write" in again.stderr
    assert (folder / "runs" / "current").resolve() == before


def test_the_pages_settings_of_a_log_with_features_run(
    nights: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    log = pl.read_csv(nights[0] / "events.csv")
    log.write_csv(tmp_path / "events.csv")
    ids = log["item_id"].unique().sort().to_list()
    (tmp_path / "items.json").write_text(json.dumps({str(item): [item % 7, item % 11 + 7] for item in ids}))
    described = {"items": tmp_path / "items.json", "item_features": ["attributes"]}
    yesterday = {"output": tmp_path / "runs" / "yesterday", "embedding_dim": 16, "max_epochs": 1}
    sasrec.fit(known_yesterday(log), **described, **yesterday, **SMALL)
    (tmp_path / "runs" / "current").symlink_to("yesterday")
    done = run(script("sh", "--init-smoothing"), tmp_path, today="today")
    assert not done.returncode, done.stderr
    train = sasrec.load(tmp_path / "runs" / "today").config.train
    assert (train.init_scale, train.init_smoothing, train.orthogonal_steps) == (0.4, 0.5, True)


def test_the_pages_settings_of_a_log_of_ids_run(
    nights: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    log = pl.read_csv(nights[0] / "events.csv")
    log.write_csv(tmp_path / "events.csv")
    yesterday = {"output": tmp_path / "runs" / "yesterday", "embedding_dim": 16, "max_epochs": 1}
    sasrec.fit(known_yesterday(log), **yesterday, **SMALL)
    (tmp_path / "runs" / "current").symlink_to("yesterday")
    done = run(script("sh", "--no-init-moments"), tmp_path, today="today")
    assert not done.returncode, done.stderr
    train = sasrec.load(tmp_path / "runs" / "today").config.train
    assert (train.init_scale, train.init_moments, train.orthogonal_steps) == (0.3, False, True)


def test_the_pages_python_runs(
    nights: tuple[Path, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(nights[0])
    code = script("python", "init=yesterday").replace("init=yesterday,", "init=yesterday, max_epochs=1, threads=1,")
    exec(compile(code, str(PAGE), "exec"), {})
    assert f"{USERS} users, paired" in capsys.readouterr().out
