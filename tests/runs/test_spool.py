"""The folder beside an output: there while it is needed, and gone afterwards, also after a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sasrec.core.errors import CheckpointError
from sasrec.core.files import load_array, save_array
from sasrec.runs.lock import claim
from sasrec.runs.spool import Spool, spool


def test_the_folder_is_made_when_it_is_needed_and_removed_at_the_end(tmp_path: Path) -> None:
    with spool(tmp_path / "out") as place:
        assert not list(tmp_path.iterdir())
        folder = place.folder()
        assert folder.parent == tmp_path
        assert place.folder() == folder
        (folder / "items.npy").write_bytes(b"x")
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        _interrupted(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def _interrupted(output: Path) -> None:
    with spool(output) as place:
        place.folder()
        raise KeyboardInterrupt


def test_what_a_killed_process_left_goes_with_the_next_command_and_what_a_living_one_uses_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, other = tmp_path / f".out.{dead.pid}.reading", tmp_path / f".other.{dead.pid}.reading"
    left.mkdir()
    other.mkdir()
    (left / "users.npy").write_bytes(b"x")
    mine = Spool(tmp_path / "out")
    folder = mine.folder()
    assert not left.exists()
    left.mkdir()
    with claim(tmp_path / "out", lambda _: True):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder.name, other.name, "out"])
    mine.remove()
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot make the folder .*file/\.out\.\d+\.reading: "):
        Spool(tmp_path / "file" / "out").folder()


def test_a_mapped_array_of_a_spool_gets_a_second_name_and_others_are_copied(tmp_path: Path) -> None:
    with spool(tmp_path / "out") as place:
        np.save(place.folder() / "a.npy", np.arange(9))
        mapped = load_array(place.folder() / "a.npy", (np.int64,), mapped=True)
        save_array(tmp_path / "linked.npy", mapped)
        save_array(tmp_path / "part.npy", mapped[2:5])
        assert (tmp_path / "linked.npy").stat().st_nlink == 2
    assert np.load(tmp_path / "linked.npy").tolist() == list(range(9))
    assert np.load(tmp_path / "part.npy").tolist() == [2, 3, 4]
    save_array(tmp_path / "copied.npy", load_array(tmp_path / "linked.npy", (np.int64,), mapped=True))
    assert (tmp_path / "copied.npy").read_bytes() == (tmp_path / "linked.npy").read_bytes()
    assert (tmp_path / "copied.npy").stat().st_nlink == 1
