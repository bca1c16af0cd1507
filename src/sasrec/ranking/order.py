"""From scores to order: top-k lists and ranks of targets. The one place that knows ties, padding and hidden items.

Shape legend: B rows, V n_items + 1 (column 0 is padding), C candidates (column 0 is the target), K list length.

For example items 1..4 have the scores 5 3 5 1. If item 2 is the target, its rank is 3: two scores are higher. If item 3
is the target, one other score is equal, so its rank is 1 (strict), 2 (pessimistic) or 1.5 (expected). With item 1
hidden, the rank of item 3 is 1 by every rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Bool, Float32, Float64, Int32, Int64
from sasrec.core.config import Ties
from sasrec.core.errors import DataError
from sasrec.core.scalars import check_number
from sasrec.data.ragged import Ragged

CHUNK = 2**19  # scores processed together, so that several passes find them in the cache
GROUPS = 8  # groups of columns per item of a top-k list
LOWEST = np.finfo(np.float32).min
TIE_SHARE: dict[Ties, float] = {"expected": 0.5, "strict": 0.0, "pessimistic": 1.0}  # of ties that rank above


def top_k(
    scores: Float32,
    k: int,
    *,
    hidden: Ragged | None = None,
    allowed: Bool | None = None,
    chunk: int = CHUNK,
) -> tuple[Int32, Float32]:
    """The k best items of each row, best first; of equal scores the lower index first.

    Args:
        scores: (B, V); column 0 is ignored, whatever it holds.
        k: at least 1; with fewer candidates, all of them.
        hidden: B rows of item indices that the row must not get; an item may be named more than once.
        allowed: (V,) the only items to give; None = all.
        chunk: scores looked at together.

    Returns:
        Indices and scores, (B, K), where K is the smaller of k and the most candidates that a row has. A row with
        fewer ends in index 0 with score -inf.

    Raises:
        ConfigError: k is below 1.
        DataError: a score is infinite or not a number.
    """
    n_rows, n_columns = scores.shape
    k = min(check_k(k), n_columns - 1)
    indices, best = np.zeros((n_rows, k), np.int32), np.full((n_rows, k), -np.inf, np.float32)
    for rows in _row_chunks(scores, chunk) if k else ():
        _check_finite(scores[rows, 1:], rows.start, 1)
        masked = scores[rows].copy() if allowed is None else np.where(allowed, scores[rows], np.float32(-np.inf))
        masked[:, 0] = -np.inf
        if hidden is not None:
            part = hidden.take(rows)
            masked[part.row_of, part.values] = -np.inf
        indices[rows], best[rows] = _largest(masked, k)
    width = int((indices > 0).sum(axis=1).max(initial=0))
    return indices[:, :width], best[:, :width]


def check_k(k: int) -> int:
    """k, if it can be the length of a list.

    Raises:
        ConfigError: k is below 1 or not an integer.
    """
    return check_number("k", k, "items")


def _largest(scores: Float32, k: int) -> tuple[Int32, Float32]:
    """(B, k) columns and values of each row's k largest scores above -inf; a short row ends in 0 and -inf."""
    n_rows, n_columns = scores.shape
    bar = _bar(scores, k)
    rows, columns = np.divmod(np.flatnonzero(scores >= bar[:, None]), n_columns)  # by row, then by column
    values = scores[rows, columns]
    keep = values > bar[rows]
    tied = np.flatnonzero(~keep)  # may be very many; a row needs at most its first k
    keep[tied] = _place_in_row(rows[tied], n_rows) < k
    rows, columns, values = rows[keep], columns[keep], values[keep]
    order = np.lexsort((-values, rows))  # stable: of equal scores the lower column stays first
    rows, columns, values = rows[order], columns[order], values[order]
    place = _place_in_row(rows, n_rows)
    keep = place < k
    indices, best = np.zeros((n_rows, k), np.int32), np.full((n_rows, k), -np.inf, np.float32)
    indices[rows[keep], place[keep]], best[rows[keep], place[keep]] = columns[keep], values[keep]
    return indices, best


def _place_in_row(rows: Int64, n_rows: int) -> Int64:
    """(M,) the place, from 0, of each element among those of its row; rows ascend."""
    lengths = np.bincount(rows, minlength=n_rows)
    return np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]


def _bar(scores: Float32, k: int) -> Float32:
    """(B,) a finite score that at least k scores of the row reach (if so many are finite), and few more.

    The k-th largest of the maxima of disjoint groups of columns is such a score. It is far cheaper to find than the
    k-th largest of all columns.
    """
    n_rows, n_columns = scores.shape
    n_groups = min(n_columns, GROUPS * k)
    width = n_columns // n_groups
    maxima = scores[:, : width * n_groups].reshape(n_rows, width, n_groups).max(axis=1)  # (B, n_groups)
    return np.maximum(np.partition(maxima, n_groups - k, axis=1)[:, n_groups - k], LOWEST)


def ranks_full(scores: Float32, targets: Int32, hidden: Ragged | None, ties: Ties, *, chunk: int = CHUNK) -> Float64:
    """The rank of each row's target among all items but the hidden ones; the target itself is always a candidate.

    Args:
        scores: (B, V); column 0 is ignored.
        targets: (B,) item indices from 1.
        hidden: B rows of item indices from 1, which may contain the target and repeats; None hides nothing.
        ties: how many of the items that score as the target rank above it: half, none or all.
        chunk: scores looked at together.

    Returns:
        (B,) ranks from 1; whole or half numbers.

    Raises:
        DataError: a score is infinite or not a number.
    """
    n_above, n_tied = np.zeros((2, len(targets)), np.int64)
    for rows in _row_chunks(scores, chunk):
        _check_finite(scores[rows, 1:], rows.start, 1)
        part = None if hidden is None else hidden.take(rows)
        n_above[rows], n_tied[rows] = _above_and_tied(scores[rows], targets[rows], part)
    return rank_of(n_above, n_tied, ties)


def _above_and_tied(scores: Float32, targets: Int32, hidden: Ragged | None) -> tuple[Int64, Int64]:
    """(B,) how many items that are not hidden score above the target, and how many others equal it."""
    own = scores[np.arange(len(targets)), targets]
    n_above = _count_true(scores[:, 1:] > own[:, None])
    n_tied = _count_true(scores[:, 1:] >= own[:, None]) - n_above - 1  # less the target itself
    if hidden is None:
        return n_above, n_tied
    above, tied = _hidden_above_and_tied(scores, own, targets, hidden)
    return n_above - above, n_tied - tied


def _hidden_above_and_tied(scores: Float32, own: Float32, targets: Int32, hidden: Ragged) -> tuple[Int64, Int64]:
    """(B,) how many distinct hidden items other than the target score above it, and how many equal it."""
    rows, items = hidden.row_of, hidden.values
    cells = scores[rows, items]
    counted = np.flatnonzero((cells >= own[rows]) & (items != targets[rows]))
    rows, items, cells = rows[counted], items[counted], cells[counted]
    order = np.argsort(rows * scores.shape[1] + items)  # puts the repeats of an item side by side
    rows, items = rows[order], items[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (items[1:] != items[:-1])
    rows, above = rows[first], (cells[order] > own[rows])[first]
    n_rows = len(scores)
    return np.bincount(rows[above], minlength=n_rows), np.bincount(rows[~above], minlength=n_rows)


def ranks_sampled(scores: Float32, candidates: Int32, ties: Ties) -> Float64:
    """The rank of each row's target, column 0, among the row's candidates.

    The same item drawn again is an exact tie with the target even if its score was rounded another way.

    Args:
        scores: (B, C) of the candidates.
        candidates: (B, C) item indices; an item drawn twice counts twice.
        ties: as in `ranks_full`.

    Returns:
        (B,) ranks from 1.

    Raises:
        DataError: a score is infinite or not a number.
    """
    _check_finite(scores, 0, 0)
    own, others = scores[:, :1], scores[:, 1:]
    itself = candidates[:, 1:] == candidates[:, :1]
    n_above = np.count_nonzero((others > own) & ~itself, axis=1)
    n_tied = np.count_nonzero((others == own) | itself, axis=1)
    return rank_of(n_above, n_tied, ties)


def rank_of(n_above: Int64, n_tied: Int64, ties: Ties) -> Float64:
    """Ranks from 1, by how many others score above the target and how many equal it."""
    ranks: Float64 = 1.0 + n_above + TIE_SHARE[ties] * n_tied
    return ranks


def _row_chunks(scores: NDArray[Any], chunk: int) -> Iterator[slice]:
    """Slices of rows that hold about so many scores each."""
    step = max(1, chunk // max(scores.shape[1], 1))
    for start in range(0, len(scores), step):
        yield slice(start, min(start + step, len(scores)))


def _count_true(mask: Bool) -> Int64:
    """(B,) true values of each row, summed in bytes of at most 255: six times as fast as np.count_nonzero with axis."""
    bytes_ = np.add.reduceat(mask.view(np.uint8), np.arange(0, mask.shape[1], 255), axis=1, dtype=np.uint8)
    totals: Int64 = bytes_.sum(axis=1, dtype=np.int64)
    return totals


def _check_finite(scores: Float32, first_row: int, first_column: int) -> None:
    """Raise for the first score that is infinite or not a number; a sum is the cheapest way to notice one."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(scores.sum()):
            return
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):  # else only the sum overflowed
        row, column = bad[0]
        raise DataError(
            f"the score in row {first_row + row}, column {first_column + column} is {scores[row, column]}: scores must "
            "be finite numbers; the model's weights have probably diverged, so train with a lower learning rate"
        )
