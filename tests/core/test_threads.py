"""One number of threads for torch, every BLAS and the compiled core, set by what a user calls and by nothing else."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import make_markov_log
from made import SETTINGS
from threadpoolctl import threadpool_info, threadpool_limits

import sasrec
from sasrec.converting import convert
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.threads import set_threads, threads_of, usable_cpus
from sasrec.engine.protocol import create_engine
from sasrec.model.published import dump_published

FEW = SETTINGS | {"max_epochs": 1}
MODEL = ModelConfig(embedding_dim=8, max_seq_len=5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A process that has been limited to one thread; afterwards as many as before."""
    before = torch.get_num_threads()
    with threadpool_limits(None):
        set_threads(1)
        yield
    torch.set_num_threads(before)


def limits() -> set[int]:
    """Of torch and of every BLAS and OpenMP runtime of this process."""
    return {torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())}


def test_threads_are_set_for_torch_and_for_blas() -> None:
    assert limits() == {1}
    set_threads(3)
    assert limits() == {3}


def test_a_setting_of_0_is_all_cpus_of_the_process() -> None:
    assert threads_of(3) == 3
    assert threads_of(0) == usable_cpus()
    code = """
import os
from sasrec.core.threads import threads_of, usable_cpus
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
assert usable_cpus() == threads_of(0) == 1
"""
    if hasattr(os, "sched_setaffinity"):
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def made(folder: Path, memberships: str, **limits_: str) -> tuple[Path, Path]:
    """A process's list of cgroups, and a tree of cgroups with these files; __ in a name stands for a slash."""
    (folder / "list").write_text(memberships)
    for name, text in limits_.items():
        file = folder / "tree" / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cfs", "cpu.cfs")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return folder / "list", folder / "tree"


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),  # rounded up: what is begun can be used
        ("5000 100000", 1),
        ("100000", 1),
        ("800000 100000", 8),
        ("max 100000", 64),
        ("max", 64),
        ("6400000000 100000", 64),  # never more than the affinity
        ("0 100000", 64),
        ("100000 0", 64),
        ("-1 100000", 64),
        ("a b", 64),
        ("", 64),
    ],
)
def test_a_container_s_quota_bounds_the_cpus(quota: str, cpus: int, tmp_path: Path) -> None:
    listed, tree = made(tmp_path, "0::/a/b\n", a__b__cpu_max=quota)
    assert usable_cpus(64, listed, tree) == cpus
    assert usable_cpus(1, listed, tree) == 1


QUOTAS: dict[str, tuple[str, dict[str, str], int]] = {
    "v2, in a container": ("0::/\n", {"cpu_max": "300000 100000"}, 3),
    "v2, of a parent": ("0::/a/b\n", {"a__cpu_max": "300000 100000", "a__b__cpu_max": "max 100000"}, 3),
    "v2, the smallest of all": (
        "0::/a/b\n", {"cpu_max": "200000 100000", "a__cpu_max": "900000 100000", "a__b__cpu_max": "400000 100000"}, 2
    ),
    "v2, of another cgroup": ("0::/a\n", {"b__cpu_max": "100000 100000"}, 64),
    "v2, outside of the namespace": ("0::/../../a\n", {"cpu_max": "300000 100000"}, 3),
    "v2, beside v1": ("1:name=systemd:/\n0::/a\n", {"unified__a__cpu_max": "300000 100000"}, 3),
    "v1, no period": ("4:cpu:/a\n", {"cpu__a__cfs_quota_us": "3", "cpu__a__cfs_period_us": ""}, 64),
    "v1, no quota": ("4:cpu:/a\n", {"cpu__a__cfs_period_us": "100000"}, 64),
    "v1, two controllers": (
        "4:cpu,cpuacct:/a\n", {"cpu,cpuacct__a__cfs_quota_us": "150000", "cpu,cpuacct__a__cfs_period_us": "50000"}, 3
    ),
    "v1, mounted by its name": ("4:cpu,cpuacct:/a\n", {"cpu__a__cfs_quota_us": "3", "cpu__a__cfs_period_us": "1"}, 3),
    "v1, of a parent": ("4:cpu:/a/b\n", {"cpu__a__cfs_quota_us": "3", "cpu__a__cfs_period_us": "1"}, 3),
    "v1, path of the host": ("4:cpu:/docker/1f\n", {"cpu__cfs_quota_us": "3", "cpu__cfs_period_us": "1"}, 3),
    "v1, none": ("4:cpu:/a\n", {"cpu__a__cfs_quota_us": "-1", "cpu__a__cfs_period_us": "100000"}, 64),
    "v1, another controller": ("4:cpuset:/a\n", {"cpu__a__cfs_quota_us": "1", "cpu__a__cfs_period_us": "1"}, 64),
    "nothing at all": ("", {}, 64),
    "colons in a name": ("0::/a:b\n", {"a:b__cpu_max": "300000 100000"}, 3),
}  # fmt: skip


@pytest.mark.parametrize("case", QUOTAS)
def test_quotas_are_found_where_systems_keep_them(case: str, tmp_path: Path) -> None:
    memberships, files, cpus = QUOTAS[case]
    assert usable_cpus(64, *made(tmp_path, memberships, **files)) == cpus


def test_a_system_without_cgroups_has_no_quota(tmp_path: Path) -> None:
    assert usable_cpus(5, tmp_path / "none", tmp_path / "none") == 5


@pytest.mark.parametrize("name", ["auto", "torch"])
def test_an_engine_knows_its_threads_and_sets_nothing_for_the_process(name: str) -> None:
    engine = create_engine(MODEL, 9, TrainConfig(engine=name, threads=3))
    assert engine.threads == 3
    assert limits() == {1}


def test_fit_and_load_set_the_threads_that_are_asked_for(tmp_path: Path) -> None:
    sasrec.fit(make_markov_log(), **FEW | {"threads": 2}, output=tmp_path / "run")
    assert limits() == {2}
    sasrec.load(tmp_path / "run", threads=3)
    assert limits() == {3}
    sasrec.load(tmp_path / "run")  # as it was trained
    assert limits() == {2}


def test_convert_sets_all_cpus(tmp_path: Path) -> None:
    weights = create_engine(MODEL, 30, TrainConfig(threads=1)).weights()
    (tmp_path / "heads.head=1.pth").write_bytes(dump_published(MODEL, weights, "pmixer-2021"))
    set_threads(usable_cpus() + 1)
    recommender = convert(tmp_path / "heads.head=1.pth", "pmixer-2021", make_markov_log())
    assert limits() == {recommender.engine.threads} == {usable_cpus()}


def test_torch_that_is_loaded_with_its_engine_is_limited_too(tmp_path: Path) -> None:
    sasrec.fit(make_markov_log(), **FEW, engine="torch", output=tmp_path / "run")
    code = f"""
import sys
from sasrec.core.threads import set_threads
set_threads(2)
assert "torch" not in sys.modules
import sasrec
sasrec.load({str(tmp_path / "run")!r}, threads=1)
assert sys.modules["torch"].get_num_threads() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
