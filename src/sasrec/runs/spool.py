"""A folder beside the output, for what a log that does not fit in memory is put together from.

It is removed when the command ends. It stays after a kill, after Ctrl-C and where the command was called wrongly, if
there is something in it to go on with (`data.reading_record`): the same command finds it, any other that writes the
output removes it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sasrec.core.amounts import shown_bytes
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.files import spool_of
from sasrec.data.reading_record import has_record
from sasrec.runs.lock import LOCK, lock, remove_spool

logger = logging.getLogger(__name__)


class Spool:
    """The folder, which is made when it is needed.

    Args:
        output: what the command writes.
    """

    def __init__(self, output: Path) -> None:
        self._path = spool_of(output)
        self._lock: IO[str] | None = None

    def folder(self) -> Path:
        """The folder, with what an earlier command has left in it.

        Raises:
            ConfigError: another process uses it.
            CheckpointError: it cannot be made.
        """
        if self._lock is None:
            try:
                self._path.mkdir(parents=True, exist_ok=True)
                busy = f"another process puts a log together in {self._path}; wait for it, or use another output"
                self._lock = lock(self._path / LOCK, busy)
            except OSError as error:
                raise CheckpointError(f"cannot make the folder {self._path}: {error.strerror}") from error
        return self._path

    def remove(self) -> None:
        """Remove the folder with all that is in it; what is mapped from it can still be read."""
        if self._lock is not None:
            remove_spool(self._path)
            self._lock.close()
            self._lock = None

    def leave(self) -> None:
        """Leave the folder to the same command, and say so; remove it where that would begin anew."""
        if self._lock is None or not has_record(self._path):
            self.remove()
            return
        size = sum(path.stat().st_blocks * 512 for path in self._path.iterdir())
        logger.warning(
            "what was read is kept in %s (%s), and the same command goes on behind it; remove the folder if you do not "
            "want that",
            self._path, shown_bytes(size),
        )  # fmt: skip
        self._lock.close()
        self._lock = None


@contextlib.contextmanager
def spool(output: Path) -> Iterator[Spool]:
    """A spool that is removed at the end, but left to the same command where the user ends this one or corrects it."""
    made = Spool(output)
    try:
        yield made
    except (KeyboardInterrupt, ConfigError):
        made.leave()
        raise
    finally:
        made.remove()
