"""A release: what may be one, which wheel is for whom, and a workflow whose form is right. Nothing is built here."""

import hashlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import release
import release_notes
import yaml
from release_notes import ReleaseError

ROOT = Path(__file__).resolve().parents[1]

CHANGELOG = "# Changelog\n\n## 1.2.0 (2026-01-02)\n\n- New.\n- Newer.\n\n## 1.1.0\n\n- Old.\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed checkout of version 1.2.0."""
    (tmp_path / "src" / "sasrec").mkdir(parents=True)
    (tmp_path / "src" / "sasrec" / "__init__.py").write_text('"""A package."""\n\n__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "one", "--allow-empty")


def test_notes_are_the_changelogs_section_of_the_version(checkout: Path) -> None:
    assert release_notes.release_notes(checkout) == "- New.\n- Newer."
    git(checkout, "tag", "v1.2.0")
    assert release_notes.release_notes(checkout) == release_notes.release_notes(checkout, "v1.2.0")


@pytest.mark.parametrize(
    ("changelog", "said"),
    [
        (CHANGELOG.replace("1.2.0", "1.3.0"), "no section '## 1.2.0', and that is the version; its first is 1.3.0"),
        ("# Changelog\n", "no section '## 1.2.0', and that is the version; its first is None"),
        (f"## Unreleased\n\n- More.\n{CHANGELOG}", "has changes under Unreleased"),
        (f"## 1.3.0\n\n- More.\n{CHANGELOG}", "begins with 1.3.0, and the version is 1.2.0"),
        ("## 1.2.0\n\n## 1.1.0\n\n- Old.\n", "the section '## 1.2.0' of CHANGELOG.md is empty"),
    ],
)
def test_changelog_that_says_another_version_is_refused(checkout: Path, changelog: str, said: str) -> None:
    (checkout / "CHANGELOG.md").write_text(changelog)
    commit(checkout)
    with pytest.raises(ReleaseError, match=re.escape(said)):
        release_notes.release_notes(checkout)


def test_an_empty_section_for_what_comes_next_is_no_hindrance() -> None:
    changelog = CHANGELOG.replace("\n\n## 1.2.0", "\n\n## Unreleased\n\n## 1.2.0")
    assert release_notes.notes_of(changelog, "1.2.0") == "- New.\n- Newer."


def test_tag_of_another_version_is_refused(checkout: Path) -> None:
    with pytest.raises(ReleaseError, match=r"has the tag v1\.1\.0, and the version is 1\.2\.0"):
        release_notes.release_notes(checkout, "v1.1.0")
    git(checkout, "tag", "v9.0.0")
    with pytest.raises(ReleaseError, match=r"has the tag v9\.0\.0"):
        release_notes.release_notes(checkout)


def test_version_that_is_released_already_is_refused(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.0")
    commit(checkout)
    with pytest.raises(ReleaseError, match=r"another commit has the tag v1\.2\.0: 1\.2\.0 is released already"):
        release_notes.release_notes(checkout)


def test_what_is_not_committed_is_refused(checkout: Path) -> None:
    (checkout / "new.py").touch()
    with pytest.raises(ReleaseError, match=r"1 files are not committed, such as new\.py"):
        release_notes.release_notes(checkout)


def test_this_checkout_has_notes_for_its_drafts() -> None:
    assert release_notes.version_of(ROOT) in release_notes.sections((ROOT / "CHANGELOG.md").read_text())
    assert release_notes.draft_notes(ROOT)


def test_a_checkout_that_is_no_release_is_refused_before_anything_is_built(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "new.py").touch()
    monkeypatch.setattr(release, "ROOT", checkout)
    monkeypatch.setattr(release, "make", lambda *_: pytest.fail("built"))
    monkeypatch.setattr(sys, "argv", ["release.py", str(tmp_path / "dist")])
    assert release.main() == 1
    assert capsys.readouterr().err.startswith("error: 1 files are not committed")


def fake_python(path: Path, answer: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


def test_pythons_are_the_newest_of_pyenv_else_of_the_path_and_only_those_that_can_build(tmp_path: Path) -> None:
    pyenv, folder = tmp_path / "pyenv", tmp_path / "bin"
    fake_python(pyenv / "versions" / "3.11.9" / "bin" / "python3.11", "echo 3.11")
    newest = fake_python(pyenv / "versions" / "3.11.10" / "bin" / "python3.11", "echo 3.11")
    fake_python(pyenv / "versions" / "3.12.1" / "bin" / "python3.12", "echo 0")  # no headers
    second = fake_python(folder / "python3.12", "echo 3.12")
    fake_python(folder / "python3.13", "exit 127")  # a shim of pyenv
    assert release.pythons(f"/nowhere:{folder}", pyenv) == {"3.11": newest, "3.12": second}


def test_each_python_below_the_stable_abi_has_its_wheel_and_the_others_share_one() -> None:
    found = {minor: Path(minor) for minor in release.MINORS}
    assert list(release.builders(found)) == ["3.11", "3.12"]
    assert list(release.builders({"3.13": Path("x")})) == ["3.13"]
    own = Path("sasrec-1.2.0-cp311-cp311-manylinux_2_35_x86_64.whl")
    stable = Path("sasrec-1.2.0-cp312-abi3-manylinux_2_35_x86_64.whl")
    assert [release.wheel_for(minor, [own, stable]) for minor in release.MINORS] == [own, stable, stable]
    with pytest.raises(ReleaseError, match=r"no wheel is for Python 3\.11"):
        release.wheel_for("3.11", [stable])


def test_stable_abi_begins_where_pyproject_says() -> None:
    said = re.search(r'^wheel\.py-api = "cp(\d)(\d+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert said is not None
    assert f"{said[1]}.{said[2]}" == release.STABLE_FROM


def test_sums_are_those_that_sha256sum_checks(tmp_path: Path) -> None:
    for name in ("b.whl", "a.tar.gz"):
        (tmp_path / name).write_text(name)
    text = release.write_sums(tmp_path, [tmp_path / "b.whl", tmp_path / "a.tar.gz"]).read_text()
    assert text.splitlines()[0] == f"{hashlib.sha256(b'a.tar.gz').hexdigest()}  a.tar.gz"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True, capture_output=True)


def test_package_that_calls_itself_typed_says_so_to_type_checkers() -> None:
    assert "Typing :: Typed" in (ROOT / "pyproject.toml").read_text()
    assert (ROOT / "src" / "sasrec" / "py.typed").read_bytes() == b""  # PEP 561


WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
WORKFLOW_JOBS: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())["jobs"]
STEPS = [step for job in WORKFLOW_JOBS.values() for step in job["steps"]]


def test_workflow_says_that_it_has_not_run() -> None:
    assert WORKFLOW.read_text().startswith("# NOT YET RUN")


def test_actions_of_the_workflow_are_pinned_to_a_version() -> None:
    used = [step["uses"] for step in STEPS if "uses" in step]
    assert len(used) > 5
    assert not [one for one in used if not re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+\.\d+\.\d+", one)]


def test_jobs_of_the_workflow_wait_for_jobs_that_exist_and_publish_for_all() -> None:
    waits = {name: set(_listed(job.get("needs", []))) for name, job in WORKFLOW_JOBS.items()}
    assert set().union(*waits.values()) <= set(WORKFLOW_JOBS)
    assert waits["publish"] == {"sdist", "wheels"}
    assert waits["sdist"] == waits["wheels"] == {"notes"}
    assert yaml.load(WORKFLOW.read_text(), yaml.BaseLoader)["on"] == {"push": {"tags": ["v*"]}}
    assert WORKFLOW_JOBS["publish"]["permissions"] == {"id-token": "write"}
    assert WORKFLOW_JOBS["publish"]["environment"] == "pypi"


def test_commands_of_the_workflow_run_what_is_here_or_was_installed_before() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    for job in WORKFLOW_JOBS.values():
        installed = {"pip"}
        for words in (shlex.split(step["run"]) for step in job["steps"] if "run" in step):
            if words[1:4] == ["-m", "pip", "install"]:
                assert "constraints.txt" in words
                asked = [word for word in words[4:] if word not in ("--constraint", "constraints.txt")]
                assert all(re.search(rf"^{re.escape(name)}==", constraints, re.MULTILINE) for name in asked)
                installed |= {name.replace("-", "_") for name in asked}
            elif words[0] in ("python", "python3"):
                assert words[2] in installed if words[1] == "-m" else (ROOT / words[1]).is_file()
            else:
                assert words[0] in ("cd", "gh")


def test_cibuildwheel_builds_for_each_machine_of_the_workflow() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert {"ubuntu-24.04", "ubuntu-24.04-arm", "macos-14"} == set(
        WORKFLOW_JOBS["wheels"]["strategy"]["matrix"]["machine"]
    )
    assert 'build = ["cp311-manylinux_*", "cp312-manylinux_*", "cp311-macosx_*", "cp312-macosx_*"]' in text


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
