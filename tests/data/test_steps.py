"""Steps of long work: the newest of each stage, whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sasrec.core.errors import CheckpointError
from sasrec.data import steps
from sasrec.data.steps import Steps


def test_the_newest_step_of_each_stage_is_found_again(tmp_path: Path) -> None:
    made = Steps(tmp_path)
    assert (made.stages, made.last("fill")) == (set(), None)
    for at in range(12):
        made.note("fill", at=at, free=np.arange(at))
    made.note("order", at=3, **{"items.npy": np.arange(4, dtype=np.int32)})
    for again in (made, Steps(tmp_path)):
        assert again.stages == {"fill", "order"}
        filled, ordered = again.last("fill"), again.last("order")
        assert filled is not None
        assert ordered is not None
        assert (int(filled["at"]), filled["free"].tolist()) == (11, list(range(11)))
        assert (ordered["items.npy"].dtype, ordered["items.npy"].tolist()) == (np.int32, [0, 1, 2, 3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fill-12.step", "order-1.step"]
    made.forget()
    assert (made.stages, Steps(tmp_path).stages, list(tmp_path.iterdir())) == (set(), set(), [])


def test_what_was_half_written_is_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Steps(tmp_path)
    made.note("fill", at=1)

    def half(file: Any, **_: Any) -> None:
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", half)
        with pytest.raises(CheckpointError, match=r"cannot write .*: No space left on device"):
            made.note("fill", at=2)
    for again in (made, Steps(tmp_path)):
        assert again.last("fill") == {"at": 1}
    made.note("fill", at=3)
    assert Steps(tmp_path).last("fill") == {"at": 3}


def test_both_steps_are_there_for_a_moment_and_the_newer_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Steps(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        for at in range(11):
            made.note("fill", at=at)
    assert len(list(tmp_path.iterdir())) == 11
    assert Steps(tmp_path).last("fill") == {"at": 10}


def test_a_damaged_step_is_one_sentence(tmp_path: Path) -> None:
    made = Steps(tmp_path)
    made.note("fill", free=np.arange(1000))
    path = tmp_path / "fill-1.step"
    data = path.read_bytes()
    for damaged in (data[:500], data[:4000] + b"xx" + data[4002:], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"fill-1\.step is damaged; run the command again, which then begins"):
            made.last("fill")


def test_steps_are_due_by_time_and_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Steps(None)
    none.note("fill", at=1)
    assert (none.stages, none.last("fill")) == (set(), None)
    none.forget()
    assert not none.is_due()
    monkeypatch.setattr(steps, "SECONDS", -1.0)
    assert none.is_due()
