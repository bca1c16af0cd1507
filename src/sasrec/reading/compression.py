"""Unpack what is compressed with gzip, bzip2, xz, lzma, zstd or zip, told by its first bytes, within a bound.

A file of a few megabytes may unpack to terabytes; no log compresses so well.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from sasrec.core.errors import DataError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUFFIXES = {".gz", ".bz2", ".xz", ".lzma", ".zst", ".zip"}
MAGIC_BYTES = 512
LAYERS = 3  # a zip may hold a .gz
FREE_BYTES = 2**28  # a file may unpack to so many in any case
MOST_COMPRESSED = 200  # times its size; logs of integers compress 3 to 20 times
PART_BYTES = 2**22  # unpacked at once
DAMAGES = (
    OSError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, zipfile.BadZipFile, ValueError, RuntimeError,
)  # fmt: skip


def is_compressed(head: bytes) -> bool:
    """Whether a file begins as a compressed one does."""
    return _opener(head) is not None


def decompress(content: bytes, name: str) -> bytes:
    """What a file holds; one that is not compressed is given back.

    Args:
        content: all bytes of the file.
        name: how messages speak of it.

    Raises:
        DataError: it is damaged, unpacks to far more than a log does, or is an archive of anything but one file.
    """
    most = max(FREE_BYTES, MOST_COMPRESSED * len(content))
    for _ in range(LAYERS):
        opener = _opener(content[:MAGIC_BYTES])
        if opener is None:
            break
        try:
            content = b"".join(_parts(opener, io.BytesIO(content), name, most))
        except DAMAGES as error:
            raise DataError(f"cannot read {name}: {str(error) or type(error).__name__}") from error
    return content


def parts_of(path: Path, name: str) -> Iterator[bytes]:
    """What a packed file holds, part by part; one layer.

    Raises:
        DataError: as `decompress`.
    """
    with path.open("rb") as stream:
        opener = _opener(stream.read(MAGIC_BYTES))
        assert opener is not None
        stream.seek(0)
        try:
            yield from _parts(opener, stream, name, max(FREE_BYTES, MOST_COMPRESSED * path.stat().st_size))
        except DAMAGES as error:
            raise DataError(f"cannot read {name}: {str(error) or type(error).__name__}") from error


def _parts(opener: Callable[..., Any], stream: IO[bytes], name: str, most: int) -> Iterator[bytes]:
    with opener(stream) as file:
        if isinstance(file, zipfile.ZipFile):
            with file.open(_only_file(file, name)) as member:
                yield from _within(member, name, most)
        else:
            yield from _within(file, name, most)


def _within(packed: IO[bytes], name: str, most: int) -> Iterator[bytes]:
    n_bytes = 0
    while part := packed.read(PART_BYTES):
        n_bytes += len(part)
        if n_bytes > most:
            raise DataError(
                f"{name} unpacks to more than {most:,} bytes, over {MOST_COMPRESSED} times its size, which no log "
                "does; if it is one, unpack it and give the file"
            )
        yield part


def _only_file(archive: zipfile.ZipFile, name: str) -> str:
    """The only file of a zip archive."""
    names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
    if "[Content_Types].xml" in names:
        raise DataError(f"{name} is an Office document; save the sheet of events as CSV")
    if len(names) != 1:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        listed = f" ({shown})" if names else ""
        raise DataError(f"{name} is an archive of {len(names)} files{listed}; unpack it and give the log in it")
    return names[0]


def _opener(head: bytes) -> Callable[..., Any] | None:
    """How to open what begins with these bytes; None = it is not compressed."""
    return next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), None)


OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    **dict.fromkeys([b"BZh%d1AY&SY" % level for level in range(1, 10)], bz2.open),
    b"\xfd7zXZ\x00": lzma.open,
    b"\x5d\x00\x00": lzma.open,
    b"PK\x03\x04": zipfile.ZipFile,
    b"PK\x05\x06": zipfile.ZipFile,
    b"\x28\xb5\x2f\xfd": zstd.open,
}
