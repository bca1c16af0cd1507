"""The losses, as pure functions of scores. Each returns a scalar: the mean over positions, by their weights if any.

An item with score -inf is not a candidate: it adds nothing to a loss and gets no gradient.
Shape legend: T positions, N negatives, V n_items + 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sasrec.core.config import TrainConfig

SampledLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of (T,) losses; with (T,) weights their weighted sum over the sum of weights."""
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()


def bce(positive_scores: Tensor, negative_scores: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy: mean over positions of -log sigmoid(s+) - sum over negatives of log(1 - sigmoid(s-)).

    Args:
        positive_scores: (T,) scores of the targets.
        negative_scores: (T, N) scores of the negatives; N = 1 is the published loss.
        weights: (T,) how much each position counts; None = all 1.

    Source: Kang & McAuley 2018, section III.E; with N negatives Petrov & Macdonald 2023 (gSASRec), equation 4.
    """
    return gbce(positive_scores, negative_scores, 1.0, weights)


def gbce(positive_scores: Tensor, negative_scores: Tensor, beta: float, weights: Tensor | None = None) -> Tensor:
    """Generalised binary cross-entropy: bce with sigmoid(s+) to the power of beta, which is below 1.

    Sampling shows the model far more targets among what it sees than there are among all items, and bce learns
    probabilities that are too high; beta takes that back.

    Args:
        positive_scores: (T,) scores of the targets.
        negative_scores: (T, N) scores of the negatives.
        beta: 1 is bce; TrainConfig.positive_weight derives it from t.
        weights: as for `bce`.

    Source: Petrov & Macdonald 2023 (gSASRec), equation 9.
    """
    return weighted_mean(beta * softplus(-positive_scores) + softplus(negative_scores).sum(-1), weights)


def sampled_softmax(
    positive_scores: Tensor, negative_scores: Tensor, corrections: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the target among itself and its negatives, each of which stands for many items.

    Args:
        positive_scores: (T,) scores of the targets.
        negative_scores: (T, N) scores of the negatives.
        corrections: (T, N) or (N,), added to the negatives' scores, -log of the expected count of an item among the
            draws; `batches.log_corrections` derives it. The target is always there and gets none.
        weights: as for `bce`.

    Source: Bengio & Senecal 2008, equation 8.
    """
    candidates = torch.cat([positive_scores.unsqueeze(-1), negative_scores + corrections], -1)  # (T, 1 + N)
    return -weighted_mean(candidates.log_softmax(-1)[:, 0], weights)


def cross_entropy(scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the target among all items: mean over positions of log sum exp(s) - s+.

    Args:
        scores: (T, V - 1) scores of all items; padding is not among them.
        targets: (T,) int64 columns of the targets.
        weights: as for `bce`.

    Source: Klenitskiy & Vasilev 2023.
    """
    if weights is None:
        return torch.nn.functional.cross_entropy(scores, targets)
    return weighted_mean(torch.nn.functional.cross_entropy(scores, targets, reduction="none"), weights)


def sampled_loss(config: TrainConfig, n_items: int) -> SampledLoss:
    """The loss of targets' scores, negatives' scores and the latter's corrections that a configuration asks for."""
    if config.loss == "sampled_softmax":
        return sampled_softmax
    beta = config.positive_weight(n_items)

    def without_corrections(positive: Tensor, negative: Tensor, _: Tensor, weights: Tensor | None = None) -> Tensor:
        return gbce(positive, negative, beta, weights)

    return without_corrections
