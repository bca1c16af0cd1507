"""A folder that one process writes, and the older one beside it that it replaces once it has something to keep.

The lock is the kernel's (flock) on RUN/.lock, so a killed process holds none. What `overwrite` replaces waits beside
RUN as .RUN.replaced until the new one has a model. If training fails before, it comes back; after a kill, with
the next command that writes RUN.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from sasrec.core.digests import BOOK
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.files import is_temporary, spool_of
from sasrec.data.prepared import ITEM_FEATURES, ITEMS
from sasrec.data.reading_record import SURVEY

logger = logging.getLogger(__name__)

LOCK = ".lock"
WEIGHTS, STATE_FILE = "model.safetensors", "state.safetensors"  # what a run has to keep
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}  # of file systems without them


class Claim:
    """A folder that no other process writes.

    Args:
        path: the folder.
        file: its lock file, open and locked.
        is_ours: whether a folder is one of ours.
    """

    def __init__(self, path: Path, file: IO[str], is_ours: Callable[[Path], bool]) -> None:
        self.path, self.file, self.is_ours = path, file, is_ours
        self.replaced: Path | None = None  # kept until `forget_replaced`

    def is_in_place(self) -> bool:
        """Whether the folder is still the one that was locked."""
        return is_at(self.file, self.path / LOCK)

    def check(self) -> None:
        """Raise CheckpointError if the folder was moved, replaced or deleted since it was locked."""
        if not self.is_in_place():
            raise CheckpointError(
                f"{self.path} was moved, replaced or deleted while it was written; what was saved is where it went"
            )

    def forget_replaced(self) -> None:
        """Remove the folder that this one replaces: it has something to keep now."""
        if self.replaced is not None:
            shutil.rmtree(self.replaced, ignore_errors=True)
            self.replaced = None

    def settle(self) -> None:
        """The older folder of a replacement that ended early comes back, unless the new one has something to keep."""
        old = replaced_by(self.path)
        shutil.rmtree(_made_for(self.path), ignore_errors=True)
        if not old.is_dir():
            return
        if _has(self.path, WEIGHTS):
            shutil.rmtree(old, ignore_errors=True)
        elif _has(self.path, STATE_FILE):
            self.replaced = old
        elif is_empty(self.path) or self.is_ours(self.path):
            self._put(old)

    def put_aside(self) -> None:
        """Make the folder anew; the present one waits beside it."""
        if self.replaced is not None:  # one is waiting already, and what has come after it has no model
            _empty(self.path)
            return
        made = _made_for(self.path)
        made.mkdir()
        file = lock(made / LOCK, _busy(self.path))
        self.path.rename(replaced_by(self.path))
        self.replaced = replaced_by(self.path)
        (self.replaced / LOCK).unlink(missing_ok=True)
        self._take_place(made, file)

    def _put(self, old: Path) -> None:
        file = lock(old / LOCK, _busy(self.path))
        _empty(self.path)
        (self.path / LOCK).unlink(missing_ok=True)
        self._take_place(old, file)
        self.replaced = None

    def _take_place(self, source: Path, file: IO[str]) -> None:
        """Give a folder, which is locked, the claimed place, which is empty or free."""
        try:
            source.rename(self.path)
        except OSError as error:
            file.close()
            raise ConfigError(_busy(self.path)) from error
        self.file.close()
        self.file = file

    def release(self) -> None:
        """Let others write the folder, which is in place."""
        (self.path / LOCK).unlink(missing_ok=True)
        self.file.close()


@contextlib.contextmanager
def claim(
    path: Path, is_ours: Callable[[Path], bool], *, resume: bool = False, overwrite: bool = False
) -> Iterator[Claim]:
    """A folder to write: new, in place of another, or, to go on, as it is but for what a kill left half written.

    Args:
        path: the folder.
        is_ours: whether a folder is one that `overwrite` may replace.
        resume: keep what is there.
        overwrite: replace what is there.

    Raises:
        ConfigError: another process writes it, or it is not empty and neither resume nor overwrite fits.
        CheckpointError: there is nothing to resume, or the folder cannot be made.
    """
    if path.is_file():
        _check_replaceable(path, is_ours, overwrite)
    is_new = not path.exists()
    sweep_spool(path)
    if resume and is_new and not replaced_by(path).exists():
        raise CheckpointError(f"there is no run folder {path} to go on with")
    with _folder_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        claimed = Claim(path, lock(path / LOCK, _busy(path)), is_ours)
    try:
        with _folder_errors(path):
            sweep(path)
            claimed.settle()
            sweep(path)
            if not resume and not is_empty(path):
                _check_replaceable(path, is_ours, overwrite)
                claimed.put_aside()
        yield claimed
    finally:
        if claimed.is_in_place():
            with contextlib.suppress(OSError, ConfigError):
                claimed.settle()
            claimed.release()
            if is_new:
                with contextlib.suppress(OSError):
                    path.rmdir()  # nothing came into it
        claimed.file.close()


def lock(path: Path, busy: str) -> IO[str]:
    """A lock file, locked until it is closed or the process ends, however it ends.

    Args:
        path: the file; it is made.
        busy: what to say if another process has it.

    Raises:
        ConfigError: another process has it.
        OSError: it cannot be made.
    """
    while True:
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ConfigError(busy) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s is on a file system without locks: no other process may write there", path.parent)
        if is_at(file, path):
            return file
        file.close()  # whoever had it has removed it


def is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def is_empty(folder: Path) -> bool:
    """Whether a folder that is claimed holds nothing but its lock."""
    return all(path.name == LOCK for path in folder.iterdir())


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written; for the lock's holder only."""
    for path in folder.iterdir():
        if path.name.startswith(".sequences-"):
            shutil.rmtree(path, ignore_errors=True)
        elif is_temporary(path):
            path.unlink(missing_ok=True)
        elif path.name == "training":
            sweep(path)
    names = {path.name for path in folder.iterdir()}
    if BOOK in names and names <= {LOCK, BOOK, ITEMS, ITEM_FEATURES}:  # a log that was to be written, or nothing
        for name in (ITEMS, ITEM_FEATURES, BOOK):
            (folder / name).unlink(missing_ok=True)


def sweep_spool(output: Path) -> None:
    """Remove the folder in which a command put a log together, unless one uses it; see `runs.spool`."""
    path = spool_of(output)
    if not path.is_dir():
        return
    with contextlib.suppress(OSError), (path / LOCK).open("a") as file:  # it stays where nothing tells who uses it
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_spool(path)
        logger.info("removed %s, which an earlier command had left", path)


def remove_spool(path: Path) -> None:
    """Remove the folder in which a log was put together, beginning with what makes others go on with it."""
    with contextlib.suppress(OSError):
        (path / SURVEY).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def replaced_by(path: Path) -> Path:
    """Where a folder waits that the one at this path replaces."""
    return path.with_name(f".{path.name}.replaced")


def _made_for(path: Path) -> Path:
    return path.with_name(f".{path.name}.replacing")


def _busy(path: Path) -> str:
    return f"another process is writing {path}; wait for it, or use another folder"


def _check_replaceable(path: Path, is_ours: Callable[[Path], bool], overwrite: bool) -> None:
    if not overwrite:
        raise ConfigError(f"output {path} exists and is not empty; use --resume, --overwrite or another folder")
    if not is_ours(path):
        raise ConfigError(f"output {path} is not a run folder, so --overwrite does not delete it")
    if path.is_symlink():
        raise ConfigError(f"output {path} is a link, so --overwrite does not replace it; give the folder it leads to")


def _has(path: Path, name: str) -> bool:
    """Whether a run, or a run inside a folder of runs, has a file."""
    return any(found.is_file() for found in path.rglob(name))


def _empty(path: Path) -> None:
    for inside in path.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        elif inside.name != LOCK:
            inside.unlink()


@contextlib.contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {path}: {error.strerror}") from error
