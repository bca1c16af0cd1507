"""What people install: wheels with the compiled core and without it, and what they read when it cannot be built."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sasrec.core.isa import load_native

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import build_wheel  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built from: a build must not touch the build folder of this checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("src", "native"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def pip_wheel(source: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600)


def test_wheel_without_the_core_needs_no_compiler_and_trains_on_torch(source: Path, tmp_path: Path) -> None:
    done = pip_wheel(source, tmp_path, SASREC_NATIVE="0", CXX="/nowhere/c++")
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]
    assert "sasrec/web/index.html" in names  # the server's page
    assert "torch (the compiled core is not part of this installation" in build_wheel.check(wheel, "torch")


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


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_manylinux_wheel_trains_in_an_environment_without_compiler_and_checkout(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not importlib.util.find_spec("auditwheel") and not os.environ.get("CI"):
        pytest.skip("needs auditwheel")
    monkeypatch.setattr(build_wheel, "ROOT", source)
    wheel = build_wheel.build(tmp_path)
    monkeypatch.undo()
    assert "-manylinux_" in wheel.name
    assert ": native (" in build_wheel.check(wheel, "native")
