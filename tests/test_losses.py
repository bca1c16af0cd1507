"""Losses against their formula, written out."""

import math

import pytest
import torch

from sasrec.losses import LOSSES, bce


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_bce_is_the_published_sum_of_two_mean_cross_entropies_for_one_negative() -> None:
    positive, negative = torch.tensor([0.3, -2.0, 4.0]), torch.tensor([[1.0], [-0.5], [0.0]])
    criterion = torch.nn.BCEWithLogitsLoss()
    expected = criterion(positive, torch.ones(3)) + criterion(negative[:, 0], torch.zeros(3))
    assert bce(positive, negative).item() == pytest.approx(expected.item(), rel=1e-6)


def test_bce_sums_over_the_negatives_of_a_position() -> None:
    value = bce(torch.tensor([0.5, -1.0]), torch.tensor([[0.1, 0.2], [-0.3, 2.0]])).item()
    by_hand = [-log_sigmoid(0.5) - log_sigmoid(-0.1) - log_sigmoid(-0.2),
               -log_sigmoid(-1.0) - log_sigmoid(0.3) - log_sigmoid(-2.0)]  # fmt: skip
    assert value == pytest.approx(sum(by_hand) / 2, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_losses_stay_finite_for_extreme_scores(loss: object) -> None:
    value = loss(torch.tensor([1e4, -1e4]), torch.tensor([[1e4], [-1e4]]))  # type: ignore[operator]
    assert torch.isfinite(value)


def test_gradient_of_bce_is_the_error_of_each_probability_over_the_positions() -> None:
    positive = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    negative = torch.tensor([[1.0, -0.5], [0.0, 3.0]], dtype=torch.float64, requires_grad=True)
    bce(positive, negative).backward()
    torch.testing.assert_close(positive.grad, (torch.sigmoid(positive.detach()) - 1) / 2)
    torch.testing.assert_close(negative.grad, torch.sigmoid(negative.detach()) / 2)
