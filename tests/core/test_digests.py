"""Digests: a file is as it was written, or it is not."""

from pathlib import Path

import pytest

from sasrec.core import digests
from sasrec.core.digests import digest_of, is_as_written, note, noting, read_book
from sasrec.core.errors import CheckpointError
from sasrec.core.files import atomic_write


def write(folder: Path, name: str, text: str) -> None:
    atomic_write(folder / name, text, noting(folder, name))


def test_a_file_is_as_it_was_written_until_a_byte_changes(tmp_path: Path) -> None:
    write(tmp_path, "a", "what is written")
    assert is_as_written(tmp_path, "a")
    for text in ("What is written", "what is writte", "what is written.", ""):
        (tmp_path / "a").write_text(text)
        assert not is_as_written(tmp_path, "a")


def test_between_noting_and_renaming_the_earlier_file_is_one_of_the_two(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write(tmp_path, "a", text)
    note(tmp_path, {"a": digests.Digest(5, "of the third, which is not in place yet")})
    assert is_as_written(tmp_path, "a")
    (tmp_path / "a").write_text("first")  # two versions ago
    assert not is_as_written(tmp_path, "a")


def test_a_file_that_grows_is_compared_as_far_as_it_was_noted(tmp_path: Path) -> None:
    write(tmp_path, "history.jsonl", "1\n")
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write("2\n")
    assert is_as_written(tmp_path, "history.jsonl")
    (tmp_path / "history.jsonl").write_text("3\n2\n")
    assert not is_as_written(tmp_path, "history.jsonl")


def test_of_a_large_file_readers_compare_size_and_beginning_and_verification_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "WHOLE_BYTES", 10_000)
    data = bytearray(20_000)
    (tmp_path / "a").write_bytes(data)
    note(tmp_path, {"a": digest_of(tmp_path / "a")})
    data[15_000] = 1
    (tmp_path / "a").write_bytes(data)
    assert is_as_written(tmp_path, "a")
    assert not is_as_written(tmp_path, "a", whole=True)
    data[100], data[15_000] = 1, 0
    (tmp_path / "a").write_bytes(data)
    assert not is_as_written(tmp_path, "a")
    (tmp_path / "a").write_bytes(bytes(19_999))
    assert not is_as_written(tmp_path, "a")


def test_a_file_that_is_not_noted_is_not_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("foreign")
    assert is_as_written(tmp_path, "a")  # a folder without digests
    write(tmp_path, "b", "ours")
    assert not is_as_written(tmp_path, "a")
    assert is_as_written(tmp_path, "c")  # whoever reads it says that it is missing


@pytest.mark.parametrize("name", ["config.json", "items.parquet"])
def test_a_folder_of_an_earlier_version_gets_digests_only_on_request(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    write(tmp_path, "metrics.json", "{}")
    assert read_book(tmp_path) is None
    note(tmp_path, {name: digest_of(tmp_path / name)}, begin=True)
    assert read_book(tmp_path) is not None


def test_any_changed_byte_of_the_digests_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, "a", "first")
    write(tmp_path, "a", "second")
    path = tmp_path / "digests.json"
    data = path.read_bytes()
    for place, byte in enumerate(data):
        if chr(byte).isspace():
            continue  # layout means nothing
        path.write_bytes(data[:place] + bytes([byte ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"digests\.json (is damaged, so nothing tells|has format )"):
            read_book(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"3", b"\xff", b'{"format": 1, "files": {"a": 3}}'])
def test_foreign_digests_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "digests.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"digests\.json is damaged, so nothing tells whether files are whole"):
        is_as_written(tmp_path, "a")


def test_digests_of_a_later_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "digests.json").write_text('{"format": 7, "files": {}, "blake2b": ""}')
    with pytest.raises(CheckpointError, match="has format 7, and this version reads format 1; update sasrec"):
        read_book(tmp_path)


def test_a_reader_looks_again_when_a_training_has_replaced_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a", "first")
    plain, waiting = digests.read_book, ["second"]

    def read_and_replace(folder: Path) -> digests.Book | None:
        book = plain(folder)
        if waiting:
            monkeypatch.setattr(digests, "read_book", plain)
            write(folder, "a", waiting.pop())
            write(folder, "a", "third")
            monkeypatch.setattr(digests, "read_book", read_and_replace)
        return book

    monkeypatch.setattr(digests, "read_book", read_and_replace)
    assert is_as_written(tmp_path, "a")
