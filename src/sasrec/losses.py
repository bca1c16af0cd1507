"""Losses: pure functions of scores. In: scores of positions; out: a scalar.

Shape legend: T positions, N negatives.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import softplus

LossFunction = Callable[[Tensor, Tensor], Tensor]


def bce(positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
    """Binary cross-entropy: mean over positions of -log sigmoid(s+) - sum over negatives of log(1 - sigmoid(s-)).

    Args:
        positive_scores: (T,) scores of the targets.
        negative_scores: (T, N) scores of the negatives; N = 1 is the published loss.

    Source: Kang & McAuley 2018, section III.E; with N negatives Petrov & Macdonald 2023 (gSASRec), equation 4.
    """
    return (softplus(-positive_scores) + softplus(negative_scores).sum(-1)).mean()


LOSSES: dict[str, LossFunction] = {"bce": bce}
