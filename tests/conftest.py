"""Shared fixtures: the real data beside the repository, when it is there, and small made logs."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import settings

from sasrec.core.isa import built_variants, load_float32, load_native, this_cpu

SHARED = Path(__file__).resolve().parents[2] / "shared"

settings.register_profile("sasrec", deadline=None)  # a busy machine is no failure
settings.load_profile("sasrec")


def pytest_configure(config: pytest.Config) -> None:
    """Tests compute on the CPU, also where there is a GPU, unless the run asks for those that need one (-m gpu)."""
    if "gpu" not in config.getoption("markexpr"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks that follow from what a test uses."""
    usual = load_native().isa
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        fixtures = set(getattr(item, "fixturenames", ())) - set(parameters)
        if "shared" in fixtures:
            item.add_marker("data")
        if "browser" in fixtures:
            item.add_marker("browser")
        if item.get_closest_marker("browser"):
            item.add_marker("outside")
        if parameters.get("isa", usual) != usual:
            item.add_marker("variant")


@pytest.fixture(autouse=True)
def one_thread_of_torch() -> None:
    """Torch computes with one thread, whatever an earlier test set: tests run side by side, on small arrays."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def untouched_logger() -> None:
    """The package's log as the library leaves it: a command, run in this process, sends it to stderr from then on."""
    logger = logging.getLogger("sasrec")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets and reference checkpoints; tests that need it skip where it is missing."""
    if not (SHARED / "data" / "ml-1m.txt").exists():
        pytest.skip(f"needs the real data sets in {SHARED.name}/ beside the repository (licences forbid shipping them)")
    return SHARED


def make_markov_log(
    n_users: int = 200, n_items: int = 30, randomness: float = 0.1, length: int = 12, seed: int = 0
) -> pl.DataFrame:
    """Users who mostly go from item i to item 7 i + 3 (mod n_items): learnable at low randomness, chance at 1."""
    rng = np.random.default_rng(seed)
    items = np.empty((n_users, length), np.int64)
    items[:, 0] = rng.integers(0, n_items, n_users)
    for step in range(1, length):
        jump = rng.random(n_users) < randomness
        items[:, step] = np.where(jump, rng.integers(0, n_items, n_users), (7 * items[:, step - 1] + 3) % n_items)
    users = np.repeat(np.arange(1, n_users + 1), length)
    return pl.DataFrame({"user_id": users, "item_id": items.ravel() + 1})


@pytest.fixture(scope="session")
def markov_log() -> pl.DataFrame:
    """A small learnable log of 200 users and 30 items."""
    return make_markov_log()


def variants() -> list[str]:
    """The variants that are built and that this CPU runs."""
    return [isa for isa in built_variants() if not this_cpu().lacks(isa)]


@pytest.fixture(params=variants())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each variant in turn."""
    monkeypatch.setenv("SASREC_ISA", request.param)
    load_native.cache_clear()
    assert load_native().isa == request.param
    yield request.param
    load_native.cache_clear()


@pytest.fixture(scope="module")
def float32_core() -> Iterator[None]:
    """A core that multiplies floats, also in processes that a test starts: to compare with others who do."""
    with pytest.MonkeyPatch.context() as patch:
        if load_native().module:
            patch.setenv("SASREC_ISA", load_float32().isa)
        load_native.cache_clear()
        yield
    load_native.cache_clear()
