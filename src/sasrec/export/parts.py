"""The parts of a file of lists: their folder, the plan that they belong to, and how they become one file.

The folder `.NAME.parts` lies beside the output. It holds plan.json, which tells everything that decides the contents of
the parts, the digests of the parts that are done, and a lock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from sasrec import __version__
from sasrec.core.digests import is_as_written, noting, read_book
from sasrec.core.errors import CheckpointError, ConfigError
from sasrec.core.files import atomic_file, atomic_write, disk_errors, is_temporary
from sasrec.runs.lock import LOCK, lock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Everything that decides the contents of the parts; only parts of an equal plan are kept."""

    model_version: str
    data: str  # fingerprint of the log
    k: int
    allow: str  # digest of the items; "" = all
    deny: str
    keep_seen: bool
    part_users: int
    guard_cells: bool = False
    where: str = ""  # digest of the items that fulfil the expression; "" = there is none
    diversity: float = 0.0
    users: str = ""  # digest of the users' rows in their order; "" = all users
    sasrec: str = __version__

    def to_json(self) -> str:
        """The text of plan.json."""
        return json.dumps(asdict(self), indent=1)


@contextlib.contextmanager
def parts_folder(output: Path, plan: Plan) -> Iterator[Path]:
    """The folder of parts of this plan, locked for this process; it is removed when all went well.

    Raises:
        ConfigError: another process has it, or it is a link.
    """
    folder = output.with_name(f".{output.name}.parts")
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link, and what it leads to may be another's; remove the link")
    with disk_errors(output):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / LOCK, f"another process is writing {output}; wait for it, or write another file")
    with held:
        for path in output.parent.iterdir():
            if is_temporary(path, output.name):  # of a process that was killed
                path.unlink(missing_ok=True)
        _keep_parts_of(plan, folder)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def _keep_parts_of(plan: Plan, folder: Path) -> None:
    """Remove parts of another plan, files that a kill left half written, and parts that are damaged."""
    file = folder / "plan.json"
    same = _is_of(plan, folder)
    if not same and file.exists():
        logger.warning("%s holds parts of another model or of other settings; starting again", folder)
    for path in folder.iterdir():
        if path.name.endswith(".tmp") or (not same and path.name != LOCK):
            path.unlink()
        elif path.stem.isdigit() and not is_as_written(folder, path.name, whole=True):
            logger.warning("%s is not as it was written; its users are computed again", path)
            path.unlink()
    if not same:
        atomic_write(file, plan.to_json(), noting(folder, file.name))


def _is_of(plan: Plan, folder: Path) -> bool:
    """Whether a folder's parts are those of a plan, and their digests are known."""
    with contextlib.suppress(FileNotFoundError, CheckpointError, UnicodeDecodeError):
        return read_book(folder) is not None and (folder / "plan.json").read_text() == plan.to_json()
    return False


def join_parts(parts: Sequence[Path], output: Path) -> None:
    """One file of all parts, in their order, in bounded memory.

    Raises:
        CheckpointError: the output cannot be written.
    """
    with atomic_file(output) as temporary:
        if output.suffix == ".parquet":
            pl.scan_parquet(list(parts), glob=False).sink_parquet(temporary, maintain_order=True)
            return
        with temporary.open("wb") as joined:
            for number, part in enumerate(parts):
                with part.open("rb") as file:
                    if number and output.suffix == ".csv":
                        file.readline()  # the header
                    shutil.copyfileobj(file, joined)
