"""The candidates of the sampled protocol: drawn as published, or read from a file.

Shape legend: n targets of a part, C candidates (column 0 is the target).
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Int32
from sasrec.core.config import Exclude
from sasrec.core.errors import DataError
from sasrec.data.sampling import CANDIDATES, ItemDrawer, draw_outside, generator
from sasrec.data.splits import Split
from sasrec.data.targets import Targets
from sasrec.data.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

MANY_REPEATS = 0.05  # of the draws; with 10 items for each draw there are fewer
DRAW_ROWS = 4096  # targets whose candidates are drawn at once; the draws depend on it
FREE_BYTES = 2**26  # a candidate file's array may have so many in any case
MOST_COMPRESSED = 32  # times the file's size; random ids of 8 bytes compress to a quarter
PART_KEYS = {"valid": 0, "test": 1}  # valid and test draw different negatives


def draw_candidates(split: Split, part: str, n: int, exclude: Exclude, seed: int) -> Int32:
    """The candidates of the sampled protocol: each target of a part, and n items drawn uniformly with replacement.

    Args:
        split: the log, cut.
        part: "valid" or "test".
        n: draws per target.
        exclude: "train" draws outside the user's train items, as published, so that the target itself may be drawn;
            "all" outside all of the user's items. For a user who has every item, any item may be drawn. Where only some
            types of events are targets, the user's items are those of these.
        seed: decides the draws, with the part and the ascending order of users.

    Returns:
        (n_targets, 1 + n) item indices, column 0 the target. A warning is logged where many draws repeat another.

    Source: evaluate and evaluate_valid in utils.py of pmixer/SASRec.pytorch fde8a9c.
    """
    targets, sequences = split.part(part), split.sequences
    ends = split.train_ends if exclude == "train" else sequences.offsets[1:]
    drawn = np.empty((len(targets), 1 + n), np.int32)
    drawn[:, 0] = targets.items(sequences)
    rng = generator(seed, CANDIDATES, PART_KEYS[part])
    for start in range(0, len(targets), DRAW_ROWS):
        users = targets.users[start : start + DRAW_ROWS]
        excluded = split.seen(sequences.offsets[users], ends[users])
        rows = np.repeat(np.arange(len(users)), n)
        outside = draw_outside(rng, rows, excluded, ItemDrawer(sequences.n_items))
        drawn[start : start + DRAW_ROWS, 1:] = outside.reshape(len(users), n)
    told = repeats_warning(drawn, sequences.n_items)
    if told:
        logger.warning("%s", told)
    return drawn


def repeats_warning(drawn: Int32, n_items: int) -> str:
    """What to know of drawn candidates of which many repeat another of the same target; else nothing.

    An item that is drawn ten times counts like ten rivals, and the target itself, drawn again, as ten ties.
    """
    rows = np.sort(drawn[:DRAW_ROWS], axis=1)
    repeats = float((np.diff(rows, axis=1) == 0).mean()) if len(rows) else 0.0
    if repeats <= MANY_REPEATS:
        return ""
    return (
        f"sampled protocol: {repeats:.0%} of the {drawn.shape[1] - 1} draws for a target repeat an item, since the "
        f"catalogue has {n_items:,}, so these figures say little; use protocol=full (--protocol full, and "
        "--valid-protocol full to choose the epoch)"
    )


def read_candidates(path: Path, part: str, split: Split, vocabulary: Vocabulary) -> Int32:
    """Read a candidate file: an .npz with arrays `valid` and / or `test` of item ids, column 0 the target.

    Args:
        path: the file.
        part: "valid" or "test".
        split: says which targets there are, one row each in ascending order of user id.
        vocabulary: turns ids into indices.

    Returns:
        (n_targets, C) item indices.

    Raises:
        DataError: the file cannot be read, lacks the part, has another shape, names an unknown item, or its first
            column is not the targets.
    """
    ids, targets = _load_array(path, part), split.part(part)
    where = f"array '{part}' of {path}"
    if ids.ndim != 2 or len(ids) != len(targets) or ids.shape[1] < 2:
        raise DataError(
            f"{where} has shape {ids.shape}; it needs ({len(targets)}, 1 + n): a row per evaluated user in ascending "
            "order of user id, its target first (min_items decides which users are evaluated)"
        )
    distinct, place = np.unique(ids, return_inverse=True)
    candidates = vocabulary.indices_of(distinct.tolist())[place].reshape(ids.shape)
    user_ids = split.sequences.user_ids.gather(targets.users)
    unknown = np.argwhere(candidates == 0)
    if len(unknown):
        row, column = unknown[0]
        raise DataError(f"{where} has the unknown item {ids[row, column]} in row {row} (user {user_ids[int(row)]})")
    wrong = np.flatnonzero(candidates[:, 0] != targets.items(split.sequences))
    if len(wrong):
        row = int(wrong[0])
        target = vocabulary.ids_of(targets.items(split.sequences)[row : row + 1])[0]
        raise DataError(
            f"{where} begins row {row} (user {user_ids[row]}) with item {ids[row, 0]}, but the target is {target}; "
            "the file belongs to another log, split or order of users"
        )
    return candidates


def _load_array(path: Path, name: str) -> NDArray[Any]:
    """One array of an .npz; pickled objects are refused."""
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if name in archive:
                _check_size(archive, name, path)
                return np.asarray(archive[name])
            found = ", ".join(archive) or "none"
    except OSError as error:
        raise DataError(f"cannot read the candidate file {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, EOFError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not an .npz file of plain arrays, or is damaged: {error}") from error
    raise DataError(f"candidate file {path} has no array '{name}'; its arrays: {found}")


def _check_size(archive: Any, name: str, path: Path) -> None:
    """Refuse an array that grows far beyond its file when it is unpacked: ids of items do not compress so well."""
    members = [info.file_size for info in archive.zip.infolist() if info.filename.removesuffix(".npy") == name]
    unpacked, packed = max(members), path.stat().st_size
    if unpacked > max(FREE_BYTES, MOST_COMPRESSED * packed):
        raise DataError(
            f"array '{name}' of {path} has {unpacked:,} bytes in a file of {packed:,}: no candidates compress "
            "so well; if they do, save them with np.savez in place of np.savez_compressed"
        )


def check_candidates(candidates: Int32, targets: Targets, split: Split) -> None:
    """Refuse candidates that are not one row a target, with the target first and only known items."""
    items, n_items = targets.items(split.sequences), split.sequences.n_items
    if candidates.ndim != 2 or len(candidates) != len(targets) or candidates.shape[1] < 2:
        raise DataError(f"candidates have shape {candidates.shape}; they need ({len(targets)}, 1 + n)")
    if candidates.min() < 1 or candidates.max() > n_items:
        raise DataError(f"candidates must be item indices from 1 to {n_items}")
    if (candidates[:, 0] != items).any():
        row = int(np.flatnonzero(candidates[:, 0] != items)[0])
        raise DataError(f"row {row} of the candidates begins with {candidates[row, 0]}, the target is {items[row]}")
