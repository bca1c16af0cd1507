"""Which files a source stands for, and their bytes: folders, patterns, standard input, pipes, unpacked files.

An existing path is never a pattern. Files of a folder or a pattern come in natural order: part-2 before part-10.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
import io
import itertools
import os
import re
import secrets
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import polars as pl
from polars.exceptions import PanicException

from sasrec.core.errors import DataError
from sasrec.core.files import boot, disk_errors
from sasrec.core.suggestions import suggested_path
from sasrec.reading import compression
from sasrec.reading.compression import LAYERS, MAGIC_BYTES, PART_BYTES, decompress, is_compressed, parts_of

STDIN = "-"
TABLES = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow stream"}
FOREIGN = {  # what else a file may be, by its first bytes, and what to do about it
    b"SQLite format 3": "an SQLite database; export the table of events as CSV or Parquet",
    b"\x89HDF": "an HDF5 file; write the events with pandas' to_parquet",
    b"FEA1": "a Feather file of version 1; write it again as Feather 2 or Parquet",
    b"\x93NUMPY": "a NumPy array; write it as a table with named columns, such as CSV or Parquet",
    b"ORC": "an ORC file; convert it to Parquet",
    b"Obj\x01": "an Avro file; convert it to Parquet",
    b"\x80\x04": "a Python pickle, which is never loaded; write the events as CSV or Parquet",
    b"\x80\x05": "a Python pickle, which is never loaded; write the events as CSV or Parquet",
    b"%PDF": "a PDF document; give a log",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give the log in it",
    b"Rar!": "a RAR archive; unpack it and give the log in it",
    b"\x04\x22\x4d\x18": "compressed with LZ4; unpack it, or compress with gzip or zstd",
    b"\xff\x06\x00\x00sNaPpY": "compressed with Snappy; unpack it, or compress with gzip or zstd",
}
MARKUP = {  # texts that are no logs
    rb"version https://git-lfs": "a pointer of Git LFS, not the file itself; run `git lfs pull`",
    rb"\s*<(!doctype|html|head)\b": "a web page, perhaps an error while downloading; download the log again",
    rb"\s*<\?xml\b": "an XML document; convert the events to CSV, JSON lines or Parquet",
}


@dataclass
class Store:
    """A folder for what does not fit in memory: bytes of files, unpacked or converted."""

    folder: Path
    used: set[Path] = field(default_factory=set)

    def place(self, source: Path | None, how: str) -> Path:
        """Where bytes go: of the same file to the same place, until the machine is started anew.

        Args:
            source: the file; None = a pipe, which never comes again.
            how: they are made of it.
        """
        told: tuple[object, ...] = (secrets.token_hex(),)
        if source is not None and boot():
            facts = source.stat()
            told = (str(source.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ino, how, boot())
        path = self.folder / f"text-{hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()}"
        self.used.add(path)
        return path

    def write(self, path: Path, parts: Iterable[bytes]) -> None:
        """Write a file part by part, whole or not at all, unless it is there.

        Raises:
            CheckpointError: the disk is full.
        """
        if path.exists():
            return
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            for part in parts:
                with disk_errors(path):
                    file.write(part)
            with disk_errors(path):
                file.flush()
                temporary.rename(path)

    def sweep(self) -> None:
        """Remove what earlier processes have made of other files."""
        for path in self.folder.glob("text-*"):
            if path not in self.used:
                path.unlink()


@dataclass(frozen=True)
class SourceFile:
    """One file, unpacked."""

    name: str  # how messages speak of it
    place: Path  # where it is
    content: bytes | None = None  # what was unpacked or piped; None = a plain file, which libraries may map
    partition: dict[str, str] = field(default_factory=dict)  # of a path .../day=2024-01-01/part-0.parquet
    stored: Path | None = None  # what was unpacked or piped, where it is not kept in memory

    @property
    def at(self) -> Path:
        """The file that holds the bytes, where they are not in memory."""
        return self.stored or self.place

    @property
    def readable(self) -> Path | io.BytesIO:
        """What Polars reads from."""
        return self.at if self.content is None else io.BytesIO(self.content)

    def head(self, n: int) -> bytes:
        """The first n bytes."""
        if self.content is not None:
            return self.content[:n]
        with self.at.open("rb") as file:
            return file.read(n)

    def read(self) -> bytes:
        """All bytes."""
        return self.at.read_bytes() if self.content is None else self.content

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.at.stat().st_size if self.content is None else len(self.content)

    @property
    def table(self) -> str | None:
        """parquet, arrow or arrow stream, by the first bytes; None = text, or anything else."""
        head = self.head(8)
        return next((form for magic, form in TABLES.items() if head.startswith(magic)), None)


def common_name(files: Sequence[SourceFile]) -> str:
    """How messages speak of files: by name, or by the first and how many more."""
    more = len(files) - 1
    return files[0].name + (f" and {more} more file{'s' * (more > 1)}" if more else "")


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Failures of the readers below us as one sentence."""
    try:
        yield
    except (pl.exceptions.PolarsError, PanicException, OSError, EOFError, zlib.error, csv.Error) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot read {what}: {first}") from error


def natural_order(path: Path | str) -> list[tuple[int, int, str]]:
    """The key that sorts part-2 before part-10."""
    pieces = re.split(r"(\d+)", str(path))
    return [(0, int(p), p) if p.isdecimal() and p.isascii() else (1, 0, p) for p in pieces]


def is_pattern(source: str | Path) -> bool:
    """Whether a source is a pattern such as logs/*.csv, and not the name of something that exists."""
    return glob.has_magic(str(source)) and not Path(source).exists()


def find_files(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], store: Store | None = None
) -> list[SourceFile]:
    """The files that a source stands for, opened.

    Args:
        source: a path, `-` (standard input), a folder, a pattern (`*`, `?`, `[]`, `**`), or a list of these.
        store: where unpacked and piped bytes go; None = into memory.

    Raises:
        DataError: nothing is there, a file is given twice, or a file is empty or cannot be unpacked.
    """
    if not isinstance(source, str | os.PathLike | list | tuple):
        raise DataError(f"cannot read files from {type(source).__name__}; give a path, or a list of paths")
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    if sources.count(STDIN) > 1:
        raise DataError("standard input (-) is given twice; it can be read once")
    if not sources:
        raise DataError("no file is given; give at least one log file")
    files: list[SourceFile] = []
    for one in sources:
        if not isinstance(one, str | os.PathLike):
            raise DataError(f"a list of logs holds {type(one).__name__}; give paths, or one frame")
        text = os.fsdecode(one)
        try:
            files += _expanded(text, store)
        except OSError as error:
            raise DataError(f"cannot read {shown_path(text)}: {error.strerror or error}") from error
    times = Counter(file.place.resolve() for file in files)
    for file in files:
        if times[file.place.resolve()] > 1:
            raise DataError(f"{file.name} is given twice; its events would count twice")
    _check_partitions(files)
    return files


def _expanded(source: str, store: Store | None) -> list[SourceFile]:
    path = Path(source)
    if not source:
        raise DataError("the path of the log is empty; give a file, a folder or a pattern")
    if source == STDIN:
        return [open_file(path, store=store)]
    if re.match(r"[a-z][a-z0-9+.]+://", source):
        raise DataError(f"{source} is an address; download it, and give the file")
    if source[0] == "~" and not path.exists():
        path = Path(os.path.expanduser(source))  # noqa: PTH111 - keeps ~ where there is no such home
    if path.is_dir():
        return _files_of_folder(path, path, store)
    return _files_of_pattern(path, store) if is_pattern(path) else [open_file(path, store=store)]


def _check_partitions(files: Sequence[SourceFile]) -> None:
    """Refuse files of which only some lie in folders such as day=2024-01-01."""
    first = files[0]
    other = next((file for file in files if file.partition.keys() != first.partition.keys()), None)
    if other is not None:
        names = [", ".join(file.partition) or "no column" for file in (first, other)]
        raise DataError(
            f"the folders of {first.name} stand for {names[0]}, and those of {other.name} for {names[1]}; "
            "give files of one layout"
        )


def _files_of_pattern(pattern: Path, store: Store | None) -> list[SourceFile]:
    """The files that match, and those below folders that match."""
    found = sorted(map(Path, glob.glob(str(pattern), recursive=True)), key=natural_order)  # noqa: PTH207 - takes absolute patterns
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1])
    base = Path(*fixed)
    files: dict[Path, SourceFile] = {}  # of ** a folder and the files in it come both
    for path in found:
        opened = _files_of_folder(path, base, store) if path.is_dir() else _opened([path], base, store)
        for file in opened:
            files.setdefault(file.place.resolve(), file)
    if not files:
        raise DataError(f"no file matches the pattern {shown_path(pattern)}")
    return list(files.values())


def _files_of_folder(folder: Path, base: Path, store: Store | None) -> list[SourceFile]:
    """The files below a folder, without hidden ones and markers such as _SUCCESS."""
    if (folder / "items.parquet").exists():
        raise DataError(f"{folder} is a run saved without its users' histories; give the log itself")
    below = [path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    shown = [p for p in below if not any(part[0] in "._" for part in p.parts) and p.suffix != ".crc"]
    files = _opened([folder / p for p in sorted(shown, key=natural_order)], base, store)
    if not files:
        raise DataError(f"{folder} is a folder without log files")
    kinds = [data_suffix(file.place) for file in files]
    if len(set(kinds)) > 1:
        first = " and ".join(files[kinds.index(kind)].place.name for kind in sorted(set(kinds))[:2])
        usual = Counter(kinds).most_common(1)[0][0]
        raise DataError(
            f"{folder} holds files of different kinds, such as {first}; give a pattern, such as '{folder}/*{usual}'"
        )
    return files


def _opened(paths: Sequence[Path], base: Path, store: Store | None) -> list[SourceFile]:
    """The files of several that have something in them: writers of many parts leave some empty."""
    for path in paths:
        if path.is_symlink() and not path.is_file():
            raise DataError(
                f"{path} is a link to {'a folder' if path.is_dir() else 'nothing'}; give the files it means"
            )
    opened = [unpacked(path, _partition(path, base), store) for path in paths if path.is_file()]
    return [_checked(file) for file in opened if file.size > MAGIC_BYTES or file.head(MAGIC_BYTES).strip()]


def data_suffix(path: Path | str) -> str:
    """The suffix that tells the form, in lower case: .csv of log.csv.gz; "" = none."""
    suffixes = [s.lower() for s in Path(path).suffixes]
    while suffixes and suffixes[-1] in compression.SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _partition(path: Path, base: Path) -> dict[str, str]:
    """The columns that folders such as day=2024-01-01 below the base stand for."""
    pairs = [part.partition("=") for part in path.relative_to(base).parts[:-1] if "=" in part]
    return {name: unquote(value) for name, _, value in pairs}


def open_file(path: Path, partition: dict[str, str] | None = None, store: Store | None = None) -> SourceFile:
    """A file with its content unpacked; a plain file stays on disk.

    Raises:
        DataError: it is missing, empty, a folder, of a foreign kind, or its compression is damaged.
    """
    return _checked(unpacked(path, partition or {}, store))


def unpacked(path: Path, partition: dict[str, str], store: Store | None = None) -> SourceFile:
    """As `open_file`, for what is no log: an empty file has no bytes, and a foreign one is for the caller to see.

    Raises:
        DataError: it is missing or a folder, or its compression is damaged.
    """
    name = "standard input" if str(path) == STDIN else shown_path(path)
    try:
        if store is not None:
            return SourceFile(name, path, None, partition, _stored(path, name, store))
        content = _piped(path)
        if is_compressed(_first_bytes(path) if content is None else content[:MAGIC_BYTES]):
            content = decompress(path.read_bytes() if content is None else content, name)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from error
    return SourceFile(name, path, content, partition)


def shown_path(path: Path | str) -> str:
    """A path for messages, in one line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def _piped(path: Path) -> bytes | None:
    """What comes from standard input or a pipe, such as <(zcat log.gz); None for a file."""
    if not _is_piped(path):
        return None
    return sys.stdin.buffer.read() if str(path) == STDIN else path.read_bytes()


def _is_piped(path: Path) -> bool:
    """Whether bytes come from standard input or a pipe, and can be read once."""
    if str(path) == STDIN:
        if sys.stdin.isatty():
            raise DataError("'-' reads standard input, which is the terminal; pipe a file into it")
        return True
    if not path.exists():
        raise DataError(f"there is no file {shown_path(path)}{suggested_path(path)}")
    facts = path.stat()
    if stat.S_ISDIR(facts.st_mode):
        raise DataError(f"{path} is a folder; give a file")
    return not (stat.S_ISREG(facts.st_mode) and facts.st_size)


def _stored(path: Path, name: str, store: Store) -> Path | None:
    """Where the bytes of a file lie that is packed or piped; None = where it is."""
    stored = None
    if _is_piped(path):
        stored = store.place(None, "piped")
        with contextlib.nullcontext(sys.stdin.buffer) if str(path) == STDIN else path.open("rb") as stream:
            store.write(stored, iter(lambda: stream.read(PART_BYTES), b""))
    for _ in range(LAYERS):
        source = stored or path
        if not is_compressed(_first_bytes(source)):
            break
        unpacked = store.place(source, "unpacked")
        store.write(unpacked, parts_of(source, name))
        if stored is not None:
            stored.unlink()
        stored = unpacked
    return stored


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAGIC_BYTES)


def _checked(file: SourceFile) -> SourceFile:
    """The file, unless its first bytes say that it is no log."""
    head, name = file.head(MAGIC_BYTES), file.name
    if not head:
        raise DataError(f"{name} is empty; it needs at least one line with a user and an item")
    if head[257:262] == b"ustar":
        raise DataError(f"{name} is a tar archive; unpack it and give the log in it")
    for magic, what in FOREIGN.items():
        if head.startswith(magic) and re.search(rb"[\x00-\x08\x80-\xff]", head):  # not a text that begins like it
            raise DataError(f"{name} is {what}")
    for pattern, what in MARKUP.items():
        if re.match(pattern, head, re.IGNORECASE):
            raise DataError(f"{name} is {what}")
    return file
