"""How a figure came about is told without naming a folder of the machine, and never told wrongly."""

import re
import sys
from pathlib import Path

import pytest

from sasrec import __version__
from sasrec.core import provenance


def test_commands_name_files_but_no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "benchmark",
        "/home/me/data/ml-1m.txt",
        "--output=/home/me/run",
        "--config",
        "../s.yaml",
        "--dropout",
        "0.1",
        "a/b",
    ]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sasrec", *words])
    told = provenance.command_line("sasrec")
    assert told == "sasrec benchmark ml-1m.txt --output=run --config s.yaml --dropout 0.1 a/b"


def test_commit_is_that_of_the_checkout() -> None:
    commit = provenance.commit()
    in_repository = (Path(provenance.__file__).parents[3] / ".git").exists()
    assert re.fullmatch(r"[0-9a-f]{12}\+?|v?\d.*", commit) if in_repository else commit == ""


def test_an_installed_package_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.commit() == ""
    repository = Path(__file__).parent  # a folder of a repository that does not hold the file
    monkeypatch.setattr(provenance, "__file__", str(repository / "provenance.py"))
    assert provenance.commit() == ""


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == ""


def test_machine_and_versions_are_told() -> None:
    assert re.search(r", \d+ CPUs", provenance.machine())
    versions = provenance.versions()
    assert versions["sasrec"] == __version__
    assert {"python", "numpy", "polars"} <= set(versions)


def test_the_engines_own_word_for_its_instruction_set_counts() -> None:
    class Engine:
        isa = "amx"

    assert provenance.isa_of(Engine()) == "amx"
