"""What `make` would do: a light installation for the demo, everything for the tests, each test once."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def plan(target: str, venv: Path, *variables: str) -> str:
    """The commands of a target, none of which is run."""
    command = ["make", "--dry-run", "--directory", str(ROOT), f"VENV={venv}", *variables, target]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_demo_installs_no_torch_and_the_core_for_this_cpu_alone(tmp_path: Path) -> None:
    commands = plan("demo", tmp_path, "NATIVE=1")
    assert re.search(r"SASREC_VARIANTS=fastest SASREC_NATIVE=1 \S+pip install .* --no-deps --editable \.", commands)
    assert "[torch]" not in commands
    assert commands.index("pip install") < commands.index("sasrec demo --preset fast")


def test_without_a_compiler_the_demo_installs_torch_in_place_of_the_core(tmp_path: Path) -> None:
    commands = plan("demo", tmp_path, "NATIVE=0")
    assert re.search(r'SASREC_NATIVE=0 \S+pip install .* --editable "\.\[torch\]"', commands)
    assert "torch takes the place of the compiled core" in commands


@pytest.mark.parametrize("target", ["check", "test", "test-all"])
def test_after_the_demo_everything_is_installed_for_the_tests(tmp_path: Path, target: str) -> None:
    (tmp_path / ".light").touch()
    commands = plan(target, tmp_path, "NATIVE=1")
    assert re.search(r'pip install .* --editable "\.\[test\]"', commands)
    assert "SASREC_VARIANTS" not in commands


def test_the_demo_takes_what_has_everything_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".everything").touch()
    commands = plan("demo", tmp_path)
    assert "pip install" not in commands
    assert "sasrec demo" in commands


def test_the_site_needs_neither_the_core_nor_torch(tmp_path: Path) -> None:
    commands = plan("site", tmp_path, "NATIVE=1")
    assert "SASREC_NATIVE=0" in commands
    assert "[test]" not in commands
    assert "[torch]" not in commands
    assert commands.index("pip install") < commands.index("tools/build_site.py")


def test_the_site_takes_what_has_everything_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".everything").touch()
    assert "pip install" not in plan("site", tmp_path)


def test_what_ci_runs_runs_each_test_once(tmp_path: Path) -> None:
    (tmp_path / ".everything").touch()
    targets = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    commands = "".join(plan(target, tmp_path) for target in targets)
    assert re.findall(r"pytest.* -m (.+)", commands) == ['"not outside"', "outside"]
