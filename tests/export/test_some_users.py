"""Lists of the users that a file names: in parts, what one frame of them gives, and again after a kill."""

from __future__ import annotations

import logging
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_markov_log

import sasrec
from sasrec.core.errors import DataError, UnknownItemError
from sasrec.export.all_users import plan_lists, recommend_all, write_frame
from sasrec.export.parts import join_parts
from sasrec.recommender import Recommender

SUFFIXES = [".parquet", ".csv", ".jsonl"]
USERS = [7, 3, 199, 3, 150, 42, 1, 200, 9, 64, 65, 128]  # in no order, and one of them twice
N_USERS = 200
SMALL: dict[str, Any] = {"embedding_dim": 16, "n_blocks": 1, "max_epochs": 1, "filter_seen": "yes", "threads": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose ids are integers."""
    folder = tmp_path_factory.mktemp("users") / "run"
    sasrec.fit(make_markov_log(N_USERS), **SMALL, output=folder)
    return folder


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return sasrec.load(run)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    """A run whose ids are texts, some of which a spreadsheet takes for formulas, and whose items have titles."""
    log = make_markov_log(N_USERS).with_columns(pl.format("=u{}", "user_id"), pl.format("@i, {}", "item_id"))
    titles = pl.DataFrame({"item_id": ["@i, 1", "@i, 2"], "title": ["One", "=Two"]})
    folder = tmp_path_factory.mktemp("texts") / "run"
    sasrec.fit(log, **SMALL, titles=titles, output=folder)
    return sasrec.load(folder)


FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "allow and deny": {"allow": range(2, 20), "deny": [5, 6], "keep_seen": True},
    "where and diversity": {"where": "item_id > 9 and not count > 80", "diversity": 0.5},
    "more than there are": {"k": 50},
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("part_users", [1, 5, 10_000])
@pytest.mark.parametrize("filters", FILTERS)
def test_the_file_is_that_of_one_frame(
    recommender: Recommender, tmp_path: Path, suffix: str, part_users: int, filters: str
) -> None:
    options = {"k": 4, **FILTERS[filters]}
    calls: list[tuple[int, int]] = []
    output, wanted = tmp_path / f"lists{suffix}", tmp_path / f"wanted{suffix}"
    write_frame(recommender.recommend_users(USERS, **options), wanted)
    summary = recommend_all(
        recommender, output, users=USERS, part_users=part_users, progress=lambda *now: calls.append(now), **options
    )
    assert (summary.n_users, summary.n_resumed) == (len(USERS), 0)
    assert calls[-1] == (len(USERS), len(USERS))
    assert len(calls) == -(-len(USERS) // part_users)
    assert_same(output, wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name, wanted.name]


def assert_same(output: Path, wanted: Path) -> None:
    """Text is equal byte for byte; Parquet holds the same frame, whatever its row groups are."""
    if output.suffix == ".parquet":
        assert pl.read_parquet(output).equals(pl.read_parquet(wanted))
        assert pl.read_parquet(output).schema == pl.read_parquet(wanted).schema
    else:
        assert output.read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize("guard_cells", [False, True])
def test_texts_are_quoted_and_guarded_as_in_one_frame(texts: Recommender, tmp_path: Path, guard_cells: bool) -> None:
    users = [f"=u{user}" for user in USERS]
    write_frame(texts.recommend_users(users, 3), tmp_path / "wanted.csv", guard_cells=guard_cells)
    for given in (users, pl.Series(users)):
        recommend_all(texts, tmp_path / "lists.csv", 3, users=given, part_users=5, guard_cells=guard_cells)
        assert (tmp_path / "lists.csv").read_bytes() == (tmp_path / "wanted.csv").read_bytes()


@pytest.mark.parametrize(
    "users",
    [
        np.array(USERS), pl.Series(USERS), tuple(map(float, USERS)), map(str, USERS), pl.Series(map(str, USERS)),
        pl.Series([f"{user}.0" for user in USERS]), pl.Series(["7.0", *map(str, USERS[1:])]),
    ],
    ids=["array", "Series", "floats", "generator of texts", "Series of texts", "whole floats", "spelled as both"],
)  # fmt: skip
def test_users_may_be_any_list_in_any_spelling(recommender: Recommender, tmp_path: Path, users: Any) -> None:
    recommend_all(recommender, tmp_path / "lists.parquet", 2, users=users, part_users=5)
    assert pl.read_parquet(tmp_path / "lists.parquet").equals(recommender.recommend_users(USERS, 2))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nobody_asked_for_is_a_file_without_rows(recommender: Recommender, tmp_path: Path, suffix: str) -> None:
    write_frame(recommender.recommend_users([], 3), tmp_path / f"wanted{suffix}")
    assert recommend_all(recommender, tmp_path / f"lists{suffix}", 3, users=[]).n_users == 0
    assert_same(tmp_path / f"lists{suffix}", tmp_path / f"wanted{suffix}")


@pytest.mark.parametrize(
    ("users", "error"),
    [
        ([3, "who?", "nobody"], UnknownItemError),
        (pl.Series(["3", "03", "nobody"]), UnknownItemError),
        (pl.Series(["3", None]), DataError),
        ("3", DataError),
        ({3: 1}, DataError),
    ],
)
def test_what_is_wrong_with_users_is_said_as_ever_and_nothing_is_written(
    recommender: Recommender, tmp_path: Path, users: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as of_one_frame:
        recommender.recommend_users(users)
    with pytest.raises(error) as of_parts:
        recommend_all(recommender, tmp_path / "lists.csv", users=users)
    assert str(of_parts.value) == str(of_one_frame.value)
    assert not list(tmp_path.iterdir())


def test_the_first_user_that_is_unknown_is_named(recommender: Recommender, tmp_path: Path) -> None:
    with pytest.raises(UnknownItemError, match=r"user '03' is not in the log \(200 users\); give a history of items"):
        recommend_all(recommender, tmp_path / "lists.csv", users=pl.Series(["3", "03", "nobody"]))


def kill(run: Path, output: Path) -> None:
    """A process that is killed when the first 10 of the users are done."""
    program = f"""
import os, signal, sasrec
from sasrec.export.all_users import recommend_all
def progress(done, total):
    if done == 10:
        os.kill(os.getpid(), signal.SIGKILL)
recommend_all(sasrec.load({str(run)!r}), {str(output)!r}, 5, users={USERS}, part_users=5, progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL


def test_after_a_kill_the_same_users_go_on_and_others_begin_again(
    run: Path, recommender: Recommender, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "lists.csv"
    kill(run, output)
    assert not output.exists()
    with caplog.at_level(logging.INFO, "sasrec"):
        assert recommend_all(recommender, output, 5, users=USERS, part_users=5).n_resumed == 10
    assert "going on behind the 10 users that" in caplog.text
    write_frame(recommender.recommend_users(USERS, 5), tmp_path / "wanted.csv")
    assert output.read_bytes() == (tmp_path / "wanted.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.csv", "wanted.csv"]


@pytest.mark.parametrize("change", ["users", "order", "all users", "k"])
def test_parts_of_other_users_are_not_gone_on_with(
    recommender: Recommender, tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    output = tmp_path / "lists.parquet"
    with pytest.raises(KeyboardInterrupt):
        recommend_all(recommender, output, 5, users=USERS, part_users=5, progress=stop)
    users: dict[str, Any] = {"users": [*USERS[:-1], 2], "order": sorted(USERS), "all users": None, "k": USERS}
    k = 4 if change == "k" else 5
    with caplog.at_level(logging.WARNING, "sasrec"):
        assert recommend_all(recommender, output, k, users=users[change], part_users=5).n_resumed == 0
    assert "of another model or of other settings; starting again" in caplog.text
    assert pl.read_parquet(output).equals(recommender.recommend_users(users[change], k))


@pytest.mark.parametrize("users", [USERS, None])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parts_can_be_computed_alone_in_any_order_by_a_model_and_a_plan_of_another_process(
    run: Path, recommender: Recommender, tmp_path: Path, users: list[int] | None, suffix: str
) -> None:
    listing = plan_lists(recommender, tmp_path / f"lists{suffix}", 3, users=users, deny=[4], part_users=5)
    assert not list(tmp_path.iterdir())
    sent, parts = pickle.loads(pickle.dumps(listing)), list(listing.parts())
    other = sasrec.load(run)
    for part in reversed(parts):
        sent.write_part(other, part.rows, tmp_path / part.name)
    join_parts([tmp_path / part.name for part in parts], tmp_path / f"lists{suffix}")
    write_frame(recommender.recommend_users(users, 3, deny=[4]), tmp_path / f"wanted{suffix}")
    assert_same(tmp_path / f"lists{suffix}", tmp_path / f"wanted{suffix}")
