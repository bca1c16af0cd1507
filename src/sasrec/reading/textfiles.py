"""A text file as UTF-8 with newlines: its first lines, what Polars is to read, and what its bytes tell at a glance."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from sasrec.core.errors import ConfigError, DataError
from sasrec.reading.sources import SourceFile

SNIFFED_LINES = 1000
SNIFFED_BYTES = 1 << 16
CHUNK_BYTES = 1 << 24
MAX_LINE_BYTES = 1 << 22  # half a million items of one user; a JSON array may be a line of any length
BOM = codecs.BOM_UTF8
BLANK = b" \t\r\n\xef\xbb\xbf"
WIDE = {  # marks at the beginning of other Unicode encodings; the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MARKS = {BOM: "utf-8", **WIDE}
UTF_8 = {"utf-8", "utf8", "utf_8", "utf-8-sig"}


class EncodingError(DataError):
    """A text is not UTF-8."""


@dataclass(frozen=True)
class TextFile:
    """A text file, as UTF-8 whose lines end with a newline."""

    name: str  # how messages speak of it
    source: Path | bytes  # a file, or text that was unpacked, converted or piped
    head: list[str]  # the first lines that are not blank, without their ends
    first_line: int  # the number of head[0] in the file
    skipped: int = 0  # lines of the file before the first one here: this may be a block of its lines
    is_block: bool = False

    @classmethod
    def open(cls, file: SourceFile, encoding: str | None = None, *, any_length: bool = False) -> TextFile:
        """Convert to UTF-8 if need be, and look at the first lines.

        Args:
            file: what to read.
            encoding: a name that Python knows; None = UTF-8, or UTF-16 and UTF-32 by their marks.
            any_length: whether a line may be of any length, as that of a JSON object of all items is.

        Raises:
            DataError: the file is binary, is in another encoding, has only blank lines or a line without end.
            ConfigError: no such encoding.
        """
        source = _as_utf8(file, encoding)
        if not any_length:
            _check_lengths(source, file.name)
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
            filled = ((number, line) for number, line in enumerate(stream, 1) if line.strip(BLANK))
            head = list(itertools.islice(filled, SNIFFED_LINES))
        if not head:
            raise DataError(f"{file.name} has only blank lines; it needs at least one line with a user and an item")
        return cls(file.name, source, [decoded(line, file.name, number) for number, line in head], head[0][0])

    @property
    def size(self) -> int:
        """Bytes of text."""
        return self.source.stat().st_size if isinstance(self.source, Path) else len(self.source)

    @property
    def content(self) -> bytes:
        """All of it."""
        return self.source.read_bytes() if isinstance(self.source, Path) else self.source

    def chunks(self) -> Iterator[bytes]:
        """All of it, piece by piece."""
        return _chunks_of(self.source)

    @cached_property
    def ends_with_newline(self) -> bool:
        """Whether the last line has an end, as all others have."""
        if isinstance(self.source, bytes):
            return self.source.endswith(b"\n")
        with self.source.open("rb") as stream:
            stream.seek(-1, io.SEEK_END)
            return stream.read(1) == b"\n"

    def counts(self, *characters: str) -> list[int]:
        """How often each of these bytes occurs."""
        wanted = [ord(c) for c in characters]
        totals = np.zeros(len(wanted), np.int64)
        for chunk in self.chunks():
            data = np.frombuffer(chunk, np.uint8)
            totals += [np.count_nonzero(data == byte) for byte in wanted]
        return [int(n) for n in totals]

    def lines(self) -> pl.Series:
        """All lines, without their ends; a blank line is null.

        Raises:
            DataError: a line is not UTF-8, or there are NUL bytes.
        """
        try:
            frame = pl.read_csv(  # NUL separates fields that do not exist in text
                self.source, glob=False, has_header=False, separator="\0", quote_char=None, infer_schema=False,
                new_columns=["line"],
            )  # fmt: skip
        except pl.exceptions.PolarsError as error:
            self.check_encoding()
            raise self.nul() from error
        return frame["line"]

    def check_encoding(self) -> None:
        """Look for the first line that is not UTF-8.

        Raises:
            DataError: there is one.
        """
        for number, line in enumerate(self.content.split(b"\n"), 1 + self.skipped):
            decoded(line, self.name, number)

    def nul(self) -> DataError:
        """The error for NUL bytes in it."""
        return nul_in(self.name, self.content, self.skipped)

    def blocks(self, n_bytes: int, header: bytes = b"") -> Iterator[TextFile]:
        """The file in blocks of whole lines, each of which is read as a file.

        Args:
            n_bytes: about so many each.
            header: the line that each block but the first begins with, as all of the file does.
        """
        skipped, rest = 0, b""
        with self.source.open("rb") if isinstance(self.source, Path) else io.BytesIO(self.source) as stream:
            while True:
                read = stream.read(n_bytes)
                content, cut, tail = (rest + read).rpartition(b"\n") if read else (rest, b"", b"")
                rest = tail
                if content.strip(BLANK):
                    yield self._block(content + cut, skipped, header)
                skipped += content.count(b"\n") + len(cut)
                if not read:
                    return

    def _block(self, content: bytes, skipped: int, header: bytes) -> TextFile:
        if skipped < self.first_line:
            return replace(self, source=content, skipped=skipped, first_line=self.first_line - skipped, is_block=True)
        if header:
            return replace(self, source=header + b"\n" + content, skipped=skipped - 1, first_line=1, is_block=True)
        filled = content.lstrip(b"\r\n")  # blank lines in front are no rows, as in a whole file
        gone = content[: len(content) - len(filled)].count(b"\n")
        return replace(self, source=filled, skipped=skipped + gone, first_line=1, is_block=True)

    def header_line(self) -> bytes:
        """The line of head[0], without its end."""
        with self.source.open("rb") if isinstance(self.source, Path) else io.BytesIO(self.source) as stream:
            lines = itertools.islice(stream, self.first_line - 1, None)
            return next(lines).removeprefix(BOM).rstrip(b"\r\n")


@contextlib.contextmanager
def long_fields() -> Iterator[None]:
    """Fields up to the longest line for the csv module, whose own limit is 131,072 characters."""
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def nul_in(name: str, content: bytes, skipped: int = 0) -> DataError:
    """The error for a text that holds NUL bytes; `skipped` lines come before it."""
    line = content.count(b"\n", 0, max(content.find(b"\0"), 0)) + 1 + skipped
    return DataError(
        f"line {line} of {name} has a NUL byte, so it is a binary file or damaged; give a text, CSV, JSON lines, "
        "Parquet or Arrow log, or name its encoding (--encoding utf-16-le)"
    )


def decoded(line: bytes, name: str, number: int) -> str:
    """A line as text, without its end.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise EncodingError(
            f"line {number} of {name} is not UTF-8 text; convert the file, or name its encoding (--encoding latin-1)"
        ) from error


def _as_utf8(file: SourceFile, encoding: str | None) -> Path | bytes:
    """The file itself where it is UTF-8 with newlines, else its text converted."""
    found = encoding_of(file, encoding)
    return _repaired(file) if found == "utf-8" else _unix_lines(_converted(file, found).removeprefix(BOM))


def encoding_of(file: SourceFile, asked: str | None) -> str:
    """The encoding of a text: "utf-8", or another that it has to be converted from.

    Raises:
        DataError: it is binary.
    """
    head = file.head(SNIFFED_BYTES)
    marked = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)  # surer than what is asked for
    if marked is None and (asked is None or asked.lower() in UTF_8):
        marked = _wide_without_mark(head) or "utf-8"
    found = marked or str(asked)
    if found == "utf-8" and b"\0" in head:
        raise nul_in(file.name, head)
    return found


def _wide_without_mark(head: bytes) -> str | None:
    """UTF-16 by its NULs: in text of mostly ASCII each second byte is one."""
    even, odd = head[0:2000:2], head[1:2000:2]
    if len(odd) < 2 or len(head) % 2 * (len(head) < SNIFFED_BYTES):
        return None
    if not odd.count(0) and even.count(0) >= 0.7 * len(even):
        return "utf-16-be"
    return "utf-16-le" if not even.count(0) and odd.count(0) >= 0.7 * len(odd) else None


def _check_lengths(source: Path | bytes, name: str) -> None:
    """Refuse a line of more than MAX_LINE_BYTES, on which any reader would spend minutes and gigabytes."""
    line, length, first = 1, 0, True
    for chunk in _chunks_of(source):
        if first and chunk[:SNIFFED_BYTES].lstrip(b" \t\r\n" + BOM).startswith(b"["):  # a JSON array
            return
        first, begin = False, 0
        while len(chunk) - begin > MAX_LINE_BYTES - length:
            end = chunk.rfind(b"\n", begin, begin + MAX_LINE_BYTES - length)
            if end < 0:
                line += chunk[:begin].count(b"\n")
                raise DataError(
                    f"line {line} of {name} has more than {MAX_LINE_BYTES:,} bytes, which no line of a log has; is it "
                    "damaged, or a log without line ends?"
                )
            begin, length = end + 1, 0
        end = chunk.rfind(b"\n", begin)
        length = len(chunk) - end - 1 if end >= 0 else length + len(chunk) - begin
        line += chunk.count(b"\n") if isinstance(source, Path) else 0


def _chunks_of(source: Path | bytes) -> Iterator[bytes]:
    """A text's bytes, of a file without keeping all of them."""
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _converted(file: SourceFile, encoding: str) -> bytes:
    content = file.read()
    try:
        return content.decode(encoding).encode()
    except LookupError as error:
        raise ConfigError(f"encoding {encoding!r} is not known; use a name such as utf-8, latin-1 or cp1252") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"line {line} of {file.name} is not {encoding} text; name its encoding (--encoding)") from error
    except UnicodeEncodeError as error:  # half a surrogate pair
        raise DataError(f"{file.name} is not {encoding} text: it holds half characters") from error
    except ValueError as error:  # a codec that is not for files, such as punycode
        raise DataError(
            f"{file.name} cannot be read as {encoding!r}: {error}; name its encoding (--encoding)"
        ) from error


def _repaired(file: SourceFile) -> Path | bytes:
    """Newlines in place of old Mac line ends, and no byte order marks where files were joined; else the file itself."""
    if file.content is not None:
        return _unix_lines(file.content)
    return file.at if is_sound(file.at) else _unix_lines(file.read())


def is_sound(path: Path) -> bool:
    """Whether lines end with newlines, and no byte order mark stands where files were joined."""
    newlines, returns, last = False, False, b""
    for chunk in _chunks_of(path):
        newlines, returns = newlines or b"\n" in chunk, returns or b"\r" in chunk
        if b"\n" + BOM in last + chunk:
            return False
        last = chunk[-len(BOM) :]
    return newlines or not returns


def _has_bare_returns(content: bytes) -> bool:
    return content.find(b"\n") < 0 <= content.find(b"\r")


def _unix_lines(content: bytes) -> bytes:
    if _has_bare_returns(content):
        content = content.replace(b"\r", b"\n")
    return content.replace(b"\n" + BOM, b"\n") if b"\n" + BOM in content else content
