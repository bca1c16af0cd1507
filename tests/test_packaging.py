"""What people install: wheels with and without the compiled core, what a build that cannot work says, and the demo."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import build_wheel
import pytest

from sasrec.core.isa import load_native
from sasrec.reading import datasets

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.outside]  # each builds or installs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built and installed: neither may touch the folders of this checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("src", "native"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("CMakeLists.txt", "Makefile", "constraints.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def pip_wheel(source: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600)


@pytest.fixture(scope="module")
def plain_wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel without the core, built where there is no compiler."""
    folder = tmp_path_factory.mktemp("plain")
    done = pip_wheel(source, folder, SASREC_NATIVE="0", CXX="/nowhere/c++")
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("*.whl")
    return wheel


def test_a_wheel_holds_the_whole_package_the_page_and_templates_too(source: Path, plain_wheel: Path) -> None:
    here = {str(path.relative_to(source / "src")) for path in (source / "src" / "sasrec").rglob("*") if path.is_file()}
    assert {name for name in zipfile.ZipFile(plain_wheel).namelist() if name.startswith("sasrec/")} == here
    assert {"sasrec/serving/web/index.html", "sasrec/report/templates/report.html.template"} <= here


def test_wheel_without_the_core_does_it_all_on_torch(plain_wheel: Path) -> None:
    assert plain_wheel.name.endswith("-py3-none-any.whl")
    used = build_wheel.check(plain_wheel, "torch", "torch")
    assert "torch (the compiled core is not part of this installation" in used


def test_with_neither_the_core_nor_torch_one_sentence_says_how_to_get_either(plain_wheel: Path, tmp_path: Path) -> None:
    rows = "".join(f"{user} {item}\n" for user in range(9) for item in range(user, user + 5))
    (tmp_path / "log.txt").write_text(rows)
    with build_wheel.installed(plain_wheel) as python:

        def sasrec(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [str(python), "-m", "sasrec", "--quiet", *arguments]
            return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""})

        told = sasrec("info")
        assert told.returncode == 0, told.stderr
        assert "none (the compiled core is not part of this installation" in told.stdout
        refused = sasrec("train", "log.txt", "--output", "run")
        assert refused.returncode == 2
        assert refused.stderr == (
            "error: an installation without the compiled core needs torch (No module named 'torch'): "
            "pip install 'sasrec[torch]', or install a C++ compiler (g++ 12, clang 15 or later) and then sasrec again, "
            "which builds the core\n"
        )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "/nowhere/c++"}, "no C++ compiler found"),
        ({"CMAKE_ARGS": "-DPython_INCLUDE_DIR=/nowhere"}, "Python's headers were not found"),
    ],
)
def test_a_build_that_cannot_work_says_what_to_install(
    source: Path, tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    if "CXX" not in environment and not load_native().module:
        pytest.skip("needs a C++ compiler")
    done = pip_wheel(source, tmp_path, SASREC_NATIVE="", **environment)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "SASREC_NATIVE=0" in done.stdout + done.stderr
    assert "sasrec[torch]" in done.stdout + done.stderr


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_manylinux_wheel_does_it_all_in_an_environment_without_torch_compiler_and_checkout(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not importlib.util.find_spec("auditwheel") and not os.environ.get("CI"):
        pytest.skip("needs auditwheel")
    monkeypatch.setattr(build_wheel, "ROOT", source)
    monkeypatch.setenv("SASREC_VARIANTS", "fastest")  # all take minutes, and this CPU tries out one
    wheel = build_wheel.build(tmp_path)
    monkeypatch.undo()
    assert "-manylinux_" in wheel.name
    assert ": native (" in build_wheel.check(wheel, "native")


def test_make_demo_shows_a_result_from_an_installation_without_torch_below_450_mb(source: Path, tmp_path: Path) -> None:
    if not can_fetch(datasets.WHEEL, tmp_path):
        pytest.skip("needs a package index")
    shutil.copytree(source, tmp_path / "checkout", ignore=shutil.ignore_patterns("build"))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SASREC_ISA", "VENV")
    }
    command = ["make", "--directory", str(tmp_path / "checkout"), f"PYTHON={sys.executable}", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "and may like next:" in done.stdout
    assert (tmp_path / "checkout" / "runs" / "ml-100k" / "report.html").exists()
    venv = tmp_path / "checkout" / ".venv"
    assert bool(list(venv.glob("lib/python*/site-packages/torch"))) == (load_native().module is None)
    if load_native().module:
        assert sum(path.lstat().st_blocks for path in venv.rglob("*")) * 512 < 450 * 2**20


def can_fetch(package: str, folder: Path) -> bool:
    command = [sys.executable, "-m", "pip", "download", "--retries=0", "--no-deps", "--dest", str(folder), package]
    return subprocess.run(command, capture_output=True).returncode == 0
