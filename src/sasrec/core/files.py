"""Files written whole or not at all: flushed to disk under a temporary name, then renamed; and damaged ones."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PanicException

from sasrec.core.errors import CheckpointError

# What reading a damaged file raises. A panic inside Polars is no Exception; a file may claim a size beyond any memory.
DAMAGES: tuple[type[BaseException], ...] = (
    OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError,
    RecursionError, zipfile.BadZipFile,
    pl.exceptions.PolarsError, PanicException,
)  # fmt: skip


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SPOOL = ".reading"  # .NAME.reading is a folder for a log that is read in parts, beside the output NAME


@contextlib.contextmanager
def atomic_file(path: Path, before: Callable[[Path], None] | None = None) -> Any:
    """Yield a temporary path beside `path`; what is written there is flushed to disk and takes its place.

    Args:
        path: the file.
        before: called with the temporary path once all is on disk, before it takes its place.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if before is not None:
                before(temporary)
            temporary.replace(path)
            flush_names(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path, of: str = "", end: str = "tmp") -> bool:
    """Whether a path is what a process has begun to write: .NAME.PID.tmp.

    Args:
        path: what was found.
        of: the name; "" = any.
        end: in place of tmp.
    """
    name = re.escape(of) if of else ".+"
    return re.fullmatch(rf"\.{name}\.\d+\.{end}", path.name) is not None


def spool_of(output: Path) -> Path:
    """The folder beside an output in which a log is put together."""
    return output.absolute().with_name(f".{output.absolute().name}{SPOOL}")


def atomic_write(path: Path, data: bytes | str, before: Callable[[Path], None] | None = None) -> None:
    """Write a file whole or not at all; `before` as in `atomic_file`.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was at `path` is untouched.
    """
    with atomic_file(path, before) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def flush_names(folder: Path) -> None:
    """Flush to disk which files a folder holds: without it, a rename may be gone after a power failure."""
    if os.name == "nt":  # where folders cannot be opened, and renames are flushed by the file system
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush(folder: Path) -> None:
    """Flush the files of a folder to disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def boot() -> str:
    """What is the same until the machine is started anew; "" = not known.

    Until then, what a killed process has written is there, also where it was not flushed to disk.
    """
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def disk_errors(path: Path) -> Any:
    """Say in one sentence that a path cannot be written.

    Raises:
        CheckpointError: the body met a full disk or a folder that cannot be written.
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, PanicException) as error:  # Polars has its own words for a full disk
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {path}: {reason}; what was saved before is kept") from error


@contextlib.contextmanager
def read_errors(what: str) -> Iterator[None]:
    """Say in one sentence that a file, or a folder of them, cannot be read.

    Args:
        what: the beginning of the sentence, such as "RUN/items.parquet is missing or damaged".

    Raises:
        CheckpointError: the body met a file that is missing, cut off, foreign or damaged.
    """
    try:
        yield
    except DAMAGES as error:
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{what}: {told}") from error


def load_array(path: Path, dtypes: tuple[type[np.generic], ...], *, mapped: bool) -> NDArray[Any]:
    """A flat array as `np.save` wrote it. Its size is compared with the file's first: a map beyond the end would crash.

    Args:
        path: a .npy file.
        dtypes: what its numbers may be.
        mapped: leave it on disk, read-only.

    Raises:
        ValueError: cut off, longer than it says, of another type or shape.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        if dtype not in dtypes or len(shape) != 1:
            raise ValueError(f"{path.name} has shape {shape} of {dtype}, which is not a flat array of its numbers")
        if start + shape[0] * dtype.itemsize != size:
            raise ValueError(f"{path.name} has {size:,} bytes, and its header tells of {shape[0]:,} numbers of {dtype}")
        if not mapped:
            return np.fromfile(file, dtype, shape[0])
    return np.memmap(path, dtype, "r", start, shape)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as `np.save` does; of one that is all of a mapped file, the file is copied, not read into memory.

    A file in a spool, which is removed soon, gets a second name in place of a copy.
    """
    if not isinstance(array, np.memmap) or not _is_whole(array):
        np.save(path, array)
        return
    source = Path(str(array.filename))
    if source.parent.name.startswith(".") and source.parent.name.endswith(SPOOL):
        with contextlib.suppress(OSError):  # on another disk, or on a file system without links
            os.link(source, path)
            return
    shutil.copyfile(source, path)


def _is_whole(array: np.memmap[Any, Any]) -> bool:
    """Whether a mapped array is all of a .npy file, which is still there."""
    path, mapped = Path(str(array.filename)), getattr(array, "_mmap", None)
    try:
        there = load_array(path, (array.dtype.type,), mapped=True)
    except (OSError, ValueError):
        return False
    is_same = mapped is not None and mapped.size() == path.stat().st_size
    return is_same and isinstance(there, np.memmap) and (there.shape, there.offset) == (array.shape, array.offset)


def check_map(array: NDArray[Any]) -> None:
    """Refuse a mapped array whose file was cut off after it was opened: to touch what is gone would end the process.

    Raises:
        CheckpointError: it was cut off.
    """
    mapped = getattr(array, "_mmap", None)  # of np.memmap and its views; it knows the file even if another has its name
    if isinstance(array, np.memmap) and mapped is not None and mapped.size() < array.offset + array.nbytes:
        raise CheckpointError(f"{array.filename} was cut off while it was in use; copy it again, and begin anew")
