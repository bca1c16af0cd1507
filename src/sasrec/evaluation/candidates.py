"""The candidates of the sampled protocol: drawn as published, or given in a file, an array or a frame.

Shape legend: n targets of a part, C candidates (column 0 is the target).
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sasrec.core.arrays import Int32
from sasrec.core.config import Exclude
from sasrec.core.errors import DataError
from sasrec.data.ragged import Ragged, offsets_of
from sasrec.data.sampling import CANDIDATES, ItemDrawer, draw_outside, generator
from sasrec.data.splits import Split
from sasrec.data.targets import Targets
from sasrec.data.vocabulary import Vocabulary
from sasrec.reading.frame_kinds import is_frame
from sasrec.reading.readers import read_interactions

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


def read_candidates(source: Any, part: str, split: Split, vocabulary: Vocabulary) -> Int32:
    """What to rank each target among, as somebody has given it.

    Args:
        source: an .npz file with arrays `valid` and / or `test`, a dict of such arrays, or one of them: (n_targets, C)
            item ids, a row per target in ascending order of user id, column 0 the target. Or a frame, or any other file
            that `read_interactions` takes, with the columns user_id and item_id: a row per candidate, in any order, as
            many for each user beside its target, which may be among them.
        part: "valid" or "test".
        split: says which targets there are.
        vocabulary: turns ids into indices.

    Returns:
        (n_targets, C) item indices, column 0 the target.

    Raises:
        DataError: the source cannot be read, lacks the part or a user, has another shape, names an unknown item, or its
            first column is not the targets.
    """
    if is_frame(source) or (isinstance(source, str | Path) and _is_log(Path(source))):
        name = "the frame of candidates" if is_frame(source) else str(source)
        return _of_users(read_interactions(source), name, part, split, vocabulary)
    if isinstance(source, str | Path):
        return _of_array(_load_array(Path(source), part), f"array '{part}' of {source}", part, split, vocabulary)
    if isinstance(source, Mapping):
        if part not in source:
            raise DataError(f"the candidates have no {part!r}, but {', '.join(map(repr, source)) or 'nothing'}")
        source = source[part]
    return _of_array(_as_array(source), "the array of candidates", part, split, vocabulary)


def _is_log(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() not in (".npz", ".npy")


def _as_array(rows: Any) -> NDArray[Any]:
    try:
        found = np.asarray(rows)
        return found.astype(str) if found.dtype == object else found
    except ValueError as error:  # rows of different lengths
        raise DataError(f"candidates are no array of (targets, 1 + n) item ids: {error}") from error


def _of_array(ids: NDArray[Any], where: str, part: str, split: Split, vocabulary: Vocabulary) -> Int32:
    """Item indices of an array of ids, whose rows and first column are the targets."""
    targets = split.part(part)
    if ids.ndim != 2 or len(ids) != len(targets) or ids.shape[1] < 2:
        raise DataError(
            f"{where} has shape {ids.shape}; it needs ({len(targets)}, 1 + n): a row per evaluated user in ascending "
            "order of user id, its target first (min_items decides which users are evaluated)"
        )
    candidates = _indices(ids, vocabulary)
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
            "it belongs to another log, split or order of users"
        )
    return candidates


def _indices(ids: NDArray[Any], vocabulary: Vocabulary) -> Int32:
    """The index of each id, looked up once however often it stands there; 0 where it is unknown."""
    distinct, place = np.unique(ids, return_inverse=True)
    return vocabulary.indices_of(distinct.tolist())[place].reshape(ids.shape)


def _of_users(given: pl.DataFrame, name: str, part: str, split: Split, vocabulary: Vocabulary) -> Int32:
    """Item indices of a frame user_id, item_id: each target, and its user's other candidates in the frame's order."""
    targets, sequences = split.part(part), split.sequences
    users, row_of = np.unique(targets.users, return_inverse=True)
    user_ids = sequences.user_ids.gather(users)
    rows = pl.DataFrame({"user_id": user_ids.cast(pl.String), "row": np.arange(len(users))})
    listed = given.with_columns(pl.col("user_id").cast(pl.String))
    listed = listed.join(rows, on="user_id", how="inner", maintain_order="left")
    if n_others := given.height - listed.height:
        logger.info("%s: %s candidates are of users without a %s target", name, f"{n_others:,}", part)
    items = _indices(listed["item_id"].to_numpy(), vocabulary)
    for at in np.flatnonzero(items == 0)[:1].tolist():
        told = listed.row(at, named=True)
        raise DataError(f"{name} has the unknown item {told['item_id']} for user {told['user_id']}")
    order = np.argsort(listed["row"].to_numpy(), kind="stable")
    of_users = Ragged(items[order], offsets_of(np.bincount(listed["row"].to_numpy(), minlength=len(users))))
    of_targets, wanted = of_users.take(row_of.astype(np.int64)), targets.items(sequences)
    others = of_targets.values != wanted[of_targets.row_of]
    counts = np.bincount(of_targets.row_of[others], minlength=len(targets))
    most = int(counts.argmax())
    for row in np.flatnonzero((counts != counts[most]) | (counts == 0))[:1].tolist():
        user, other = (user_ids[int(row_of[place])] for place in (row, most))
        raise DataError(
            f"{name} has {counts[row]} candidates beside the {part} target for user {user}, and {counts[most]} for "
            f"user {other}; every user with a target needs as many, and one at least"
        )
    return np.column_stack([wanted, of_targets.values[others].reshape(len(targets), -1)]).astype(np.int32)


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
