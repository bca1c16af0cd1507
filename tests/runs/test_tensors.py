"""Arrays in a file of safetensors' form, written and read one at a time."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from sasrec.core.arrays import Float32
from sasrec.core.errors import CheckpointError
from sasrec.model.weights import LateArrays, shapes_of
from sasrec.runs.tensors import open_tensors, write_tensors

RNG = np.random.default_rng(0)
ARRAYS: dict[str, Float32] = {
    "b/table": RNG.standard_normal((5, 3), np.float32),
    "a": np.array(3, np.float32),
    'ü "quoted"': np.zeros((0, 4), np.float32),
    "B": RNG.standard_normal((2, 3, 4), np.float32)[:, ::2],
}


@pytest.mark.parametrize("metadata", [{}, {"epoch": "3"}, {"state": '{"epoch": 1, "é": "\\n"}'}])
@pytest.mark.parametrize("names", [list(ARRAYS), ["a"], []])
def test_files_are_byte_for_byte_those_of_safetensors(
    tmp_path: Path, names: list[str], metadata: dict[str, str]
) -> None:
    arrays = {name: ARRAYS[name] for name in names}
    write_tensors(tmp_path / "file", arrays, metadata)
    contiguous = {name: array.copy() for name, array in arrays.items()}
    assert (tmp_path / "file").read_bytes() == save(contiguous, metadata or None)


def test_arrays_come_back_each_when_it_is_asked_for(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", ARRAYS, {"epoch": "3"})
    arrays, metadata = open_tensors(tmp_path / "file")
    assert metadata == {"epoch": "3"}
    assert shapes_of(arrays) == shapes_of(ARRAYS)
    assert all(np.array_equal(arrays[name], ARRAYS[name]) for name in ARRAYS)
    assert arrays["a"] is not arrays["a"]
    assert list(arrays.of("b/")) == ["table"]
    np.testing.assert_array_equal(arrays.of("b/")["table"], ARRAYS["b/table"])


def test_each_array_is_asked_for_once_and_let_go_before_the_next(tmp_path: Path) -> None:
    asked: list[str] = []

    def read(name: str) -> Float32:
        asked.append(name)
        return ARRAYS[name]

    parts = {"x/": LateArrays(shapes_of(ARRAYS), read), "y/": {"own": ARRAYS["a"]}}
    write_tensors(tmp_path / "file", LateArrays.together(parts), {})
    assert asked == sorted(ARRAYS)
    assert set(open_tensors(tmp_path / "file")[0]) == {"y/own", *(f"x/{name}" for name in ARRAYS)}
    with pytest.raises(KeyError):
        LateArrays.together(parts)["own"]


def test_a_file_that_another_replaces_is_still_read_as_it_was(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"a": ARRAYS["a"]}, {})
    arrays = open_tensors(tmp_path / "file")[0]
    write_tensors(tmp_path / "new", {"a": ARRAYS["a"] + 1}, {})
    (tmp_path / "new").replace(tmp_path / "file")
    assert arrays["a"] == ARRAYS["a"]


def test_other_types_are_damage(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(save({"a": np.array([1])}))
    with pytest.raises(CheckpointError, match=r"file is damaged \(a is of type int64\)"):
        open_tensors(tmp_path / "file")
    with pytest.raises(CheckpointError, match="there is no"):
        open_tensors(tmp_path / "none")
