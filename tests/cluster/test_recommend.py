"""Lists that workers of a cluster compute: the same file, of which only missing parts are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_here import Here
from conftest import make_markov_log

import sasrec
from sasrec.cluster.recommend import ClusterMakers
from sasrec.core.errors import CheckpointError
from sasrec.export.all_users import plan_lists, recommend_all
from sasrec.recommender import Recommender

USERS = [7, 150, 3, 7, 1, 199, 42]  # one of them twice


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists") / "run"
    small: dict[str, Any] = {"embedding_dim": 16, "n_blocks": 1, "max_epochs": 1, "filter_seen": "yes", "threads": 1}
    sasrec.fit(make_markov_log(200), **small, output=folder)
    return folder


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return sasrec.load(run)


def stop_at(n_users: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == n_users:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("users", [USERS, None], ids=["some users", "all users"])
def test_workers_make_the_same_file_and_only_missing_parts(
    run: Path, recommender: Recommender, tmp_path: Path, users: list[int] | None
) -> None:
    wanted, output = tmp_path / "wanted.csv", tmp_path / "lists.csv"
    options: dict[str, Any] = {"users": users, "part_users": 2, "deny": [2], "diversity": 0.3}
    recommend_all(recommender, wanted, 4, **options)
    makers = ClusterMakers(Here(2), run)
    with pytest.raises(KeyboardInterrupt):
        recommend_all(recommender, output, 4, **options, makers=makers, progress=stop_at(4))
    assert not output.exists()
    summary = recommend_all(recommender, output, 4, **options, makers=makers)
    assert (summary.n_users, summary.n_resumed) == (7 if users else 200, 4)
    assert output.read_bytes() == wanted.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.csv", "wanted.csv"]


def test_a_worker_refuses_a_model_that_has_changed(run: Path, recommender: Recommender, tmp_path: Path) -> None:
    other = sasrec.fit(make_markov_log(50), embedding_dim=16, n_blocks=1, max_epochs=1, threads=1)
    listing = plan_lists(other, tmp_path / "lists.csv")
    with pytest.raises(CheckpointError, match="has changed meanwhile; run the command again"):
        list(ClusterMakers(Here(1), run).made(listing, list(listing.parts()), tmp_path))
    assert recommender.model_version != other.model_version
