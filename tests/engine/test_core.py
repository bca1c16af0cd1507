"""The compiled core's own tests, which are C++ and need no Python; `make native-test` runs them for every variant."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.outside
@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("c++"), reason="needs cmake and a C++ compiler")
def test_kernels_and_training_steps_of_the_portable_variant_are_those_of_plain_loops(tmp_path: Path) -> None:
    settings = ["-DSASREC_VARIANTS=portable", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"]
    for command in (
        ["cmake", "-S", str(ROOT / "native" / "tests"), "-B", str(tmp_path), *settings],
        ["cmake", "--build", str(tmp_path)],
        [str(tmp_path / "test_portable")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
