"""What is served in these tests: trained once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from served import SMALL, TITLES, quiet_app, save_plain, with_attributes

import sasrec
from sasrec.recommender import Recommender
from sasrec.serving.app import Application


@pytest.fixture(scope="session")
def recommender(markov_log: pl.DataFrame) -> Recommender:
    """A small model whose items have titles and attributes."""
    return with_attributes(sasrec.fit(markov_log, titles=TITLES, **SMALL))


@pytest.fixture(scope="session")
def app(recommender: Recommender) -> Iterator[Application]:
    """An application in this process."""
    made = quiet_app(recommender, max_k=50, max_body_bytes=100_000)
    yield made
    made.close()


@pytest.fixture(scope="session")
def runs(recommender: Recommender, markov_log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two run folders of the same log: a, the recommender's, and b, of another seed."""
    folder = tmp_path_factory.mktemp("served")
    save_plain(recommender, folder / "a")
    save_plain(sasrec.fit(markov_log, titles=TITLES, seed=5, **SMALL), folder / "b")
    return folder


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A link to a copy of a run folder."""
    shutil.copytree(runs / "a", tmp_path / "a")
    (tmp_path / "run").symlink_to("a")
    return tmp_path / "run"
