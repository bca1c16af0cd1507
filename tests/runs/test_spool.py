"""The folder beside an output: there while it is needed, left to the same command, and gone with any other."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import re
from pathlib import Path

import numpy as np
import pytest

from sasrec.core.errors import CheckpointError, ConfigError, DataError
from sasrec.core.files import load_array, save_array
from sasrec.runs.lock import claim
from sasrec.runs.spool import Spool, spool

ENDS = {"ended": None, "interrupted": KeyboardInterrupt, "called wrongly": ConfigError, "failed": DataError}


def test_the_folder_is_made_when_it_is_needed_and_removed_at_the_end(tmp_path: Path) -> None:
    with spool(tmp_path / "out") as place:
        assert not list(tmp_path.iterdir())
        folder = place.folder()
        assert folder.parent == tmp_path
        assert place.folder() == folder
        (folder / "items.npy").write_bytes(b"x")
    assert not list(tmp_path.iterdir())


def use(output: Path, error: type[BaseException] | None, *, with_record: bool) -> None:
    with spool(output) as place:
        if with_record:
            (place.folder() / "survey.json").write_bytes(bytes(9000))
        place.folder()
        if error is not None:
            raise error


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("with_record", [True, False])
def test_the_folder_is_left_to_the_same_command_where_that_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, end: str, with_record: bool
) -> None:
    error, left = ENDS[end], tmp_path / ".out.reading"
    with pytest.raises(error) if error else contextlib.nullcontext():
        use(tmp_path / "out", error, with_record=with_record)
    if with_record and end in ("interrupted", "called wrongly"):
        words = rf"what was read is kept in {left} \([\d.]+ KB\), and the same command goes on behind it; remove"
        assert re.search(words, caplog.text)
        with spool(tmp_path / "out") as again:
            assert (again.folder() / "survey.json").exists()
    else:
        assert not caplog.messages
    assert not left.exists()


def test_a_folder_that_is_half_removed_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Spool(tmp_path / "out")
    for name in ("a", "survey.json", "z"):
        (place.folder() / name).write_bytes(b"x")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            place.remove()
    assert sorted(path.name for path in place.folder().iterdir()) == [".lock", "a", "z"]
    place.remove()


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_two_commands_do_not_use_the_same_folder(tmp_path: Path) -> None:
    with spool(tmp_path / "out") as place:
        folder = place.folder()
        with pytest.raises(ConfigError, match=r"another process puts a log together in .*\.out\.reading; wait for it"):
            Spool(tmp_path / "out").folder()
        assert folder.exists()


def test_what_a_killed_process_left_goes_with_another_command_and_what_a_living_one_uses_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left, other = tmp_path / ".out.reading", tmp_path / ".other.reading"
    left.mkdir()
    other.mkdir()
    (left / "users.npy").write_bytes(b"x")
    with caplog.at_level(logging.INFO), claim(tmp_path / "out", lambda _: True):
        assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "out"]
    assert caplog.messages == [f"removed {left}, which an earlier command had left"]
    mine = Spool(tmp_path / "out")
    folder = mine.folder()
    with claim(tmp_path / "out", lambda _: True):
        assert folder.exists()
    mine.remove()
    assert not folder.exists()


def test_where_nothing_can_be_locked_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with spool(tmp_path / "out") as place, claim(tmp_path / "out", lambda _: True):
        assert place.folder().exists()
        with claim(tmp_path / "out", lambda _: True, overwrite=True):
            assert place.folder().exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"cannot make the folder .*file/\.out\.reading: "):
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
