"""How far long work on files has come, kept so that it goes on after a kill.

A step is a few arrays in a file that is written whole or not at all. It is not flushed to disk: what a killed process
has written is still there, and what a machine that went down had written is not to be trusted (`core.files.boot`).
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.errors import CheckpointError
from sasrec.core.files import DAMAGES, disk_errors

SECONDS = 5.0  # of work that a kill may undo, where steps are noted by time
Arrays = dict[str, NDArray[Any]]


class Steps:
    """The newest step of each stage of work.

    Args:
        folder: that they are kept in; None = nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._numbers: dict[str, int] = {}  # of the newest step of each stage
        self._noted = time.monotonic()
        for path in folder.iterdir() if folder is not None else ():
            if found := re.fullmatch(r"([a-z]+)-(\d+)\.step", path.name):
                self._numbers[found[1]] = max(self._numbers.get(found[1], 0), int(found[2]))

    @property
    def stages(self) -> set[str]:
        """Those that have begun."""
        return set(self._numbers)

    def last(self, stage: str) -> Arrays | None:
        """The newest step of a stage; None = the stage has not begun.

        Raises:
            CheckpointError: it is damaged.
        """
        if stage not in self._numbers:
            return None
        path = self._path(stage, self._numbers[stage])
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except DAMAGES as error:
            raise CheckpointError(f"{path} is damaged; run the command again, which then begins anew") from error

    def is_due(self) -> bool:
        """Whether the last step was some time ago."""
        return time.monotonic() - self._noted > SECONDS

    def note(self, stage: str, **arrays: Any) -> None:
        """Keep a step in place of the last one of its stage.

        Raises:
            CheckpointError: the disk is full.
        """
        if self.folder is None:
            return
        number = self._numbers.get(stage, 0) + 1
        path = self._path(stage, number)
        temporary = path.with_suffix(".tmp")
        with disk_errors(path):
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
            temporary.rename(path)  # to a name of its own: some file systems flush what takes another file's place
            self._path(stage, number - 1).unlink(missing_ok=True)
        self._numbers[stage], self._noted = number, time.monotonic()

    def forget(self) -> None:
        """Remove all steps: the work begins anew."""
        for path in self.folder.glob("*.step") if self.folder is not None else ():
            path.unlink()
        self._numbers = {}

    def _path(self, stage: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{stage}-{number}.step"
