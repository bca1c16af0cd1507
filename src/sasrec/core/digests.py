"""Whether the files of a folder are as they were written: digests.json tells the size and the BLAKE2b of each.

A file is noted just before it takes its place, beside the one that it replaces. So whenever a process is killed, each
file is one of the two that are noted, and what is neither has been damaged or belongs to another folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from sasrec.core.errors import CheckpointError
from sasrec.core.files import atomic_write

BOOK = "digests.json"
FORMAT = 1
FIRST_FILES = ("config.json", "items.parquet")  # a folder that has one of them, and no book, is of an earlier version
GROWING = {"history.jsonl"}  # lines are added to it: what is noted is how it begins
WHOLE_BYTES = 2**28  # of larger files, readers compare the size and the beginning only
HEAD_BYTES = 4096
TRIES = 3  # for readers of a folder that a training is writing
CHUNK_BYTES = 2**20


class Digest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file's size and digest, and the digest of its beginning where it is large."""

    bytes: int
    blake2b: str
    head: str = ""


Book = dict[str, list[Digest]]  # by name: the newest first, then the one before


def digest_of(path: Path, n_bytes: int | None = None) -> Digest:
    """The digest of a file, or of its first bytes; "" = it is shorter than that."""
    whole, head, left = hashlib.blake2b(digest_size=16), "", path.stat().st_size if n_bytes is None else n_bytes
    size = left
    with path.open("rb") as file:
        if size > WHOLE_BYTES:
            head = hashlib.blake2b(file.read(HEAD_BYTES), digest_size=16).hexdigest()
            file.seek(0)
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                return Digest(size - left, "")
            whole.update(chunk)
            left -= len(chunk)
    return Digest(size, whole.hexdigest(), head)


def read_book(folder: Path) -> Book | None:
    """What a folder's digests.json notes; None where there is none.

    Raises:
        CheckpointError: it is damaged, or of a later version.
    """
    path = folder / BOOK
    try:
        told = json.loads(path.read_bytes())
        book = msgspec.convert(told["files"], Book)
        if told["format"] == FORMAT and told["blake2b"] == _seal(book):
            return book
        found = told["format"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, msgspec.ValidationError) as error:
        raise _damaged(path) from error
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found}, and this version reads format {FORMAT}; update sasrec")
    raise _damaged(path)


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged, so nothing tells whether files are whole; copy the folder again")


def _seal(book: Book) -> str:
    return hashlib.blake2b(msgspec.json.encode(book, order="sorted"), digest_size=16).hexdigest()


def note(folder: Path, new: Mapping[str, Digest], *, begin: bool = False) -> None:
    """Note files that are about to take their places; a folder of an earlier version goes on without, unless told.

    Args:
        folder: that they are in.
        new: the digests by name, such as "sequences/items.npy".
        begin: make the book where there is none.

    Raises:
        CheckpointError: the book is damaged or cannot be written.
    """
    book = read_book(folder)
    if book is None:
        if not begin and any((folder / name).exists() for name in FIRST_FILES):
            return
        book = {}
    for name, digest in new.items():
        book[name] = [digest, *(known for known in book.get(name, [])[:1] if known != digest)]
    _write_book(folder, book)


def _write_book(folder: Path, book: Book) -> None:
    told = {"format": FORMAT, "files": book, "blake2b": _seal(book)}
    atomic_write(folder / BOOK, msgspec.json.format(msgspec.json.encode(told), indent=1))


def forget_unplaced(folder: Path) -> None:
    """Forget digests that were noted for files which never took their places; for the folder's only writer.

    Raises:
        CheckpointError: the book is damaged or cannot be written.
    """
    book = read_book(folder) or {}
    known = dict(book)
    for name, noted in book.items():
        if len(noted) > 1 and (folder / name).is_file():
            placed = [digest for digest in noted if _fits(folder / name, digest, False)]
            known[name] = placed or noted  # what fits none is damaged, and stays so
    if known != book:
        _write_book(folder, known)


def noting(folder: Path, name: str) -> Callable[[Path], None]:
    """For `atomic_file`: notes what has been written under a temporary name."""
    return lambda temporary: note(folder, {name: digest_of(temporary)})


def is_as_written(folder: Path, name: str, *, whole: bool = False) -> bool:
    """Whether a file is one that is noted; True where there is no book, or no such file.

    Args:
        folder: that it is in.
        name: such as "sequences/items.npy".
        whole: read large files from end to end, too.

    Raises:
        CheckpointError: the book is damaged.
    """
    for _ in range(TRIES):  # between a look at the book and one at the file, a training may replace both
        book = read_book(folder)
        if book is None or not (folder / name).is_file():
            return True
        if name in GROWING and name not in book:  # how it begins is noted when it has ended
            return True
        if any(_fits(folder / name, digest, whole) for digest in book.get(name, [])):
            return True
    return False


def _fits(path: Path, digest: Digest, whole: bool) -> bool:
    size = path.stat().st_size
    if size < digest.bytes or (size > digest.bytes and path.name not in GROWING):
        return False
    if digest.head and not whole:
        return hashlib.blake2b(_head(path), digest_size=16).hexdigest() == digest.head
    return digest_of(path, digest.bytes).blake2b == digest.blake2b


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)
