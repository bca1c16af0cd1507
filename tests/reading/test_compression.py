"""What unpacks to far more than a log is refused before it fills the memory."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sasrec.core.errors import DataError
from sasrec.reading import compression
from sasrec.reading.readers import read_interactions

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Save = Callable[[str, str | bytes], Path]
gz = functools.partial(gzip.compress, mtime=0)
LOG = b"user,item\n1,2\n1,3\n"


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("log.csv", content)
    return buffer.getvalue()


PACKERS = {
    "gz": gz,
    "gz in gz": lambda content: gz(gz(content)),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
    "zip": zipped,
}


@pytest.mark.parametrize("packer", PACKERS)
def test_bomb_is_refused_before_it_fills_the_memory(packer: str, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "FREE_BYTES", 2**20)
    monkeypatch.setattr(compression, "PART_BYTES", 2**16)
    bomb = save("log.csv.packed", PACKERS[packer](LOG + b"1,2\n" * 2**24))
    assert bomb.stat().st_size < 2**18
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"packed unpacks to more than [0-9,]+ bytes, over 200 times its size, .*unpack it"
        ):
            read_interactions(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**25  # of 2 ** 26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packer", PACKERS)
def test_what_is_packed_well_is_no_bomb(packer: str, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "FREE_BYTES", 2**12)
    rows = [(user, user * 7919 % 1000) for user in range(5000)]
    text = "user,item\n" + "".join(f"{user},{item}\n" for user, item in rows)
    assert read_interactions(save("log.csv.packed", PACKERS[packer](text.encode()))).rows() == rows
