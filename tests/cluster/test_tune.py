"""A search whose trials a cluster trains: killed, it goes on; a worker that is lost costs its trial's time alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import make_markov_log
from on_ray import NEEDS_RAY, Commands, commands, until
from worlds import ends_of

from sasrec.core.isa import load_native
from sasrec.runs.folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(load_native().module is None, reason=load_native().why),
    NEEDS_RAY,
]

SMALL = [
    "--n-blocks", "1", "--max-seq-len", "8", "--batch-size", "16", "--patience", "0", "--valid-protocol", "full",
    "--seeds", "1", "--trials", "6", "--json",
]  # fmt: skip
SPACE = "embedding_dim: [4, 8, 16]\nlearning_rate: 1e-4..1e-1 log\n"


@pytest.fixture
def ray() -> Iterator[Commands]:
    with commands() as found:
        yield found


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    make_markov_log(160).write_csv(tmp_path / "log.csv")
    (tmp_path / "space.yaml").write_text(SPACE)
    found = ["tune", str(tmp_path / "log.csv"), "--output", str(tmp_path / "search"), *SMALL]
    return [*found, "--space", str(tmp_path / "space.yaml")]


def check(told: str, tmp_path: Path) -> None:
    found = json.loads(told)
    assert len(found["trials"]) == 6
    assert found["trials"][0]["settings"] == {}  # the untouched preset, which the space does not hold
    assert found["best"]["value"] >= found["untouched"]
    assert not (tmp_path / "search" / "log").exists()
    run = tmp_path / "search" / "winner" / "seed-0"
    valid = next(result for result in RunFolder(run).load_metrics() if result.split == "valid")
    assert valid.metrics["ndcg@10"]["value"] == pytest.approx(found["best"]["value"], abs=1e-12)


def test_a_search_that_was_killed_goes_on(words: list[str], tmp_path: Path, ray: Commands) -> None:
    words += ["--max-epochs", "60"]
    process = ray.start(*words)
    until(lambda: len(ray.workers("TrialWorker.train")) == 2, process)
    process.send_signal(signal.SIGKILL)
    ends_of([process])
    code, out, err = ray.run(*words, "--resume")
    assert code == 0, err
    assert "on Ray: 1 machine with " in err
    check(out, tmp_path)


def test_a_lost_worker_costs_its_trials_time_alone(words: list[str], tmp_path: Path, ray: Commands) -> None:
    process = ray.start(*words, "--max-epochs", "12")
    until(lambda: bool(ray.workers("TrialWorker.train")), process)
    os.kill(ray.workers("TrialWorker.train")[0], signal.SIGKILL)
    code, out, err = ends_of([process], timeout=300)[0]
    assert code == 0, err
    check(out, tmp_path)


def test_ctrl_c_keeps_what_was_tried(words: list[str], tmp_path: Path, ray: Commands) -> None:
    process = ray.start(*words, "--max-epochs", "100000")
    until(lambda: bool(ray.workers("TrialWorker.train")), process)
    process.send_signal(signal.SIGINT)
    code, _, err = ends_of([process], timeout=120)[0]
    assert code == 1
    assert "all work so far is saved" in err.splitlines()[-1]
    assert not (tmp_path / "search" / "log").exists()
