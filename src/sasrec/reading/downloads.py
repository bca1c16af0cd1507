"""Fetch files from the network: continue an interrupted download, compare the checksum, unpack archives."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sasrec.core.errors import DataError

OnBytes = Callable[[int, int | None], None]  # bytes fetched, bytes in all
TIMEOUT_SECONDS = 10.0
BLOCK = 1 << 18


def download(url: str, target: Path, checksum: str | None = None, progress: OnBytes | None = None) -> None:
    """Fetch a file; an interrupted fetch goes on where it stopped.

    Args:
        url: http or https.
        target: the file to write; while incomplete its name ends in .part.
        checksum: "sha256:<hex>" or "git-blob:<hex>"; None = recorded beside the file on first use, compared later.
        progress: called with bytes fetched and bytes in all (None when the server does not say).

    Raises:
        DataError: the server cannot be reached, refuses, or sends something else than the checksum says.
    """
    part = target.with_name(target.name + ".part")
    try:
        _fetch(url, part, progress)
    except urllib.error.HTTPError as error:
        raise DataError(f"{url} answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"cannot fetch {url}: {reason}; what came so far is kept, try again") from error
    try:
        verify(part, checksum or recorded(target))
    except DataError:
        part.unlink()
        raise
    part.replace(target)
    if checksum is None:
        record(target)


def _fetch(url: str, part: Path, progress: OnBytes | None) -> None:
    """Fetch into `part`, from its end on when the server can."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "sasrec", **_range(have)})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:  # 416: there is nothing after what we have, or it is another file
            raise
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
            return
        part.unlink()
        _fetch(url, part, progress)
        return
    goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    if response.status == 206 and not goes_on:
        response.close()
        raise OSError(f"the server sent {response.headers.get('Content-Range')} when asked for bytes from {have} on")
    with response, part.open("ab" if goes_on else "wb") as file:
        length = response.headers.get("Content-Length")
        done = have if goes_on else 0
        total = done + int(length) if length else None
        while block := response.read(BLOCK):
            file.write(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    if total is not None and done < total:
        raise OSError(f"the connection closed after {done} of {total} bytes")


def _range(have: int) -> dict[str, str]:
    return {"Range": f"bytes={have}-"} if have else {}


def verify(path: Path, checksum: str | None) -> None:
    """Compare a file with its checksum, if there is one.

    Raises:
        DataError: they differ.
    """
    if checksum is None:
        return
    kind = checksum.partition(":")[0]
    found = _checksum(path, kind)
    if found != checksum:
        raise DataError(
            f"{path.name.removesuffix('.part')} has checksum {found}, and {checksum} was expected; not used"
        )


def _checksum(path: Path, kind: str) -> str:
    digest = hashlib.sha1(usedforsecurity=False) if kind == "git-blob" else hashlib.sha256()
    if kind == "git-blob":
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"


def _records(target: Path) -> dict[str, str]:
    path = target.with_name("checksums.json")
    if not path.exists():
        return {}
    with contextlib.suppress(ValueError):
        records: dict[str, str] = json.loads(path.read_text())
        return records
    return {}


def recorded(target: Path) -> str | None:
    """The checksum that a file had when it first came; None when none was recorded."""
    return _records(target).get(target.name)


def record(target: Path) -> None:
    """Note a file's checksum beside it, to be compared at later uses."""
    records = {**_records(target), target.name: _checksum(target, "sha256")}
    with temporary_beside(target.with_name("checksums.json")) as temporary:
        temporary.write_text(json.dumps(records, indent=1))
        temporary.replace(target.with_name("checksums.json"))


def extract(archive: Path, names: list[str], folder: Path) -> None:
    """Take named files out of a zip archive, whatever folder of it they lie in.

    Raises:
        DataError: not a zip archive, or a file is not in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as members:
            for name in names:
                _extract_one(members, name, folder / name, archive)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive} is not a readable zip archive; delete it and try again") from error


def _extract_one(members: zipfile.ZipFile, name: str, target: Path, archive: Path) -> None:
    found = [m for m in members.namelist() if m.rpartition("/")[2] == name]
    if not found:
        raise DataError(f"{archive} holds no file {name}")
    with temporary_beside(target) as temporary:
        with members.open(found[0]) as source, temporary.open("wb") as file:
            shutil.copyfileobj(source, file)
        temporary.replace(target)


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` for what is to take its place; it is gone afterwards."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
