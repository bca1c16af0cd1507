"""Histories as the flat, grouped tokens that the model takes (see model/sasrec.py), and how they are cut into parts.

Shape legend: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sasrec.core.arrays import Int64
from sasrec.core.config import ModelConfig
from sasrec.data.ragged import Ragged

if TYPE_CHECKING:
    import torch

    from sasrec.model.sasrec import Group

    ToTensor = Callable[[NDArray[np.generic]], torch.Tensor]  # copies an array to the engine's device

ATTENTION_TOKENS = 75.0  # at this length attention costs as much as the rest of a block
MAX_LENGTHS = 24  # distinct lengths that the grouping looks at


@dataclass(frozen=True)
class TokenLayout:
    """Histories, laid out."""

    items: torch.Tensor  # (T,) int64
    positions: torch.Tensor  # (T,) int64
    groups: list[Group]
    real: torch.Tensor  # (T_real,) token of each value of the histories, in the histories' order
    last: torch.Tensor  # (B,) token of the last value of each history, in layout order
    order: Int64  # (B,) history that each row of the layout is


def lay_out(histories: Ragged, model: ModelConfig, group_overhead: float, tensor: ToTensor) -> TokenLayout:
    """Rows sorted by length and padded on the right in groups; or all padded on the left, as published.

    Args:
        histories: rows of at least one item index.
        model: decides the padding and the positions.
        group_overhead: what one more group costs, in tokens; inf = one group, padded to the longest row.
        tensor: copies an array to where it is computed with.
    """
    from sasrec.model.sasrec import Group

    lengths, full = histories.lengths, full_length(model)
    order = np.argsort(lengths, kind="stable")
    by_length = lengths[order]
    if full:
        cuts = [(0, len(order), full)]
    elif math.isinf(group_overhead):
        cuts = [(0, len(order), int(by_length[-1]))]
    else:
        cuts = length_groups(by_length, group_overhead)
    widths = np.repeat([width for _, _, width in cuts], [stop - start for start, stop, _ in cuts])
    first_token = np.concatenate([[0], np.cumsum(widths)])
    shift = widths - by_length if full else np.zeros_like(widths)
    row_start = np.empty(len(order), np.int64)
    row_start[order] = first_token[:-1] + shift
    column = np.arange(len(histories.values)) - histories.offsets[:-1].repeat(lengths)
    real = row_start.repeat(lengths) + column
    items, positions = np.zeros((2, first_token[-1]), np.int64)
    items[real] = histories.values
    # Of n items the j-th has position max_seq_len - n + j, plus 1 where row 0 of the table is padding.
    positions[real] = model.n_positions - lengths.repeat(lengths) + column
    if model.padding == "zeroed":
        positions = np.arange(len(positions)) % model.max_seq_len
    last_column = shift + by_length - 1
    groups = [Group(stop - start, width, tensor(last_column[start:stop])) for start, stop, width in cuts]
    return TokenLayout(
        tensor(items), tensor(positions), groups, tensor(real), tensor(first_token[:-1] + last_column), order
    )


def full_length(model: ModelConfig) -> int:
    """The length that every row is padded to; 0 = the longest row of its group."""
    return 0 if model.padding == "none" else model.max_seq_len


def chunks_of_rows(lengths: Int64, full_length: int, max_tokens: int) -> list[Int64]:
    """Rows sorted by length, cut so that no chunk has more than max_tokens padded tokens."""
    order = np.argsort(lengths, kind="stable")
    chunks, start = [], 0
    while start < len(order):
        widths = lengths[order[start : start + max_tokens]]
        padded = (np.arange(len(widths)) + 1) * (full_length or widths)
        stop = start + max(1, int(np.searchsorted(padded, max_tokens, "right")))
        chunks.append(order[start:stop])
        start = stop
    return chunks


def length_groups(lengths: Int64, overhead: float) -> list[tuple[int, int, int]]:
    """Cut rows, sorted by length, into groups padded to their longest row, at least cost.

    Dynamic programming over at most MAX_LENGTHS distinct lengths; a group of n rows of length l costs
    n * l * (1 + l / ATTENTION_TOKENS) + overhead.

    Returns:
        (start, stop, width) of each group.
    """
    values, first = np.unique(lengths, return_index=True)
    stops = np.append(first[1:], len(lengths))
    if len(values) > MAX_LENGTHS:
        kept = np.unique(np.linspace(0, len(values) - 1, MAX_LENGTHS).round().astype(int))
        values, stops = values[kept], stops[kept]
    starts = np.concatenate([[0], stops[:-1]])
    best, came_from = np.zeros(len(values) + 1), [0] * (len(values) + 1)
    for j in range(1, len(values) + 1):
        per_row = values[j - 1] * (1 + values[j - 1] / ATTENTION_TOKENS)
        costs = best[:j] + (stops[j - 1] - starts[:j]) * per_row + overhead
        came_from[j] = int(np.argmin(costs))
        best[j] = costs[came_from[j]]
    groups, j = [], len(values)
    while j:
        i = came_from[j]
        groups.append((int(starts[i]), int(stops[j - 1]), int(values[j - 1])))
        j = i
    return groups[::-1]
