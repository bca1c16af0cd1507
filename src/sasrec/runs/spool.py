"""A folder beside the output, for what a log that does not fit in memory is put together from.

It is removed when the command ends, however that is; after a kill, when the next command writes the same output.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sasrec.core.errors import CheckpointError
from sasrec.core.files import SPOOL
from sasrec.runs.lock import LOCK, lock, sweep_spools


class Spool:
    """The folder, which is made when it is needed.

    Args:
        output: what the command writes.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._path = output.absolute().with_name(f".{output.absolute().name}.{os.getpid()}.{SPOOL}")
        self._lock: IO[str] | None = None

    def folder(self) -> Path:
        """The folder, empty when it is made.

        Raises:
            CheckpointError: it cannot be made.
        """
        if self._lock is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                sweep_spools(self.output)
                self._path.mkdir()
                self._lock = lock(self._path / LOCK, f"another process uses {self._path}")
            except OSError as error:
                raise CheckpointError(f"cannot make the folder {self._path}: {error.strerror}") from error
        return self._path

    def remove(self) -> None:
        """Remove the folder with all that is in it; what is mapped from it can still be read."""
        if self._lock is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._lock.close()
            self._lock = None


@contextlib.contextmanager
def spool(output: Path) -> Iterator[Spool]:
    """A spool that is removed at the end."""
    made = Spool(output)
    try:
        yield made
    finally:
        made.remove()
