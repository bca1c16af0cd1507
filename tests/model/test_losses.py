"""Losses against their formula, written out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sasrec.core.config import TrainConfig
from sasrec.data.batches import log_corrections
from sasrec.data.sampling import ItemDrawer
from sasrec.model.losses import bce, cross_entropy, gbce, sampled_loss, sampled_softmax

SAMPLED = ["bce", "gbce", "sampled_softmax"]


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


def test_gradient_of_bce_is_the_error_of_each_probability_over_the_positions() -> None:
    positive = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    negative = torch.tensor([[1.0, -0.5], [0.0, 3.0]], dtype=torch.float64, requires_grad=True)
    bce(positive, negative).backward()
    torch.testing.assert_close(positive.grad, (torch.sigmoid(positive.detach()) - 1) / 2)
    torch.testing.assert_close(negative.grad, torch.sigmoid(negative.detach()) / 2)


def scores(t: int, n: int, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    positive, negative = (scale * torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((t,), (t, n)))
    return positive.requires_grad_(), negative.requires_grad_()


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of, retain_graph=True))


def test_gbce_is_the_negative_log_of_the_target_probability_to_the_power_of_beta() -> None:
    value = gbce(torch.tensor([0.5, -1.0]), torch.tensor([[0.1, 0.2], [-0.3, 2.0]]), 0.25).item()
    first = -math.log((1 / (1 + math.exp(-0.5))) ** 0.25) - log_sigmoid(-0.1) - log_sigmoid(-0.2)
    second = -math.log((1 / (1 + math.exp(1.0))) ** 0.25) - log_sigmoid(0.3) - log_sigmoid(-2.0)
    assert value == pytest.approx((first + second) / 2, rel=1e-6)


@given(st.integers(1, 300), st.integers(2, 300), st.floats(0, 1))
def test_beta_of_gbce_is_that_of_gsasrec(n_negatives: int, n_items: int, t: float) -> None:
    alpha = min(1.0, n_negatives / (n_items - 1))
    published = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    beta = TrainConfig(loss="gbce", n_negatives=n_negatives, gbce_t=t).positive_weight(n_items)
    assert beta == pytest.approx(published, abs=1e-12)
    assert min(alpha, 1.0) - 1e-12 <= beta <= 1


def test_gbce_without_calibration_is_bce_and_fully_calibrated_it_weighs_by_the_sampling_rate() -> None:
    positive, negative = scores(4, 3)
    none = sampled_loss(TrainConfig(loss="gbce", n_negatives=3, gbce_t=0.0), 40)
    assert none(positive, negative, torch.zeros(3)).item() == bce(positive, negative).item()
    assert TrainConfig(loss="gbce", n_negatives=3, gbce_t=1.0).positive_weight(40) == pytest.approx(3 / 39)
    assert TrainConfig(loss="bce", n_negatives=3, gbce_t=1.0).positive_weight(40) == 1


def test_sampled_softmax_weighs_each_negative_by_the_items_it_stands_for() -> None:
    value = sampled_softmax(torch.tensor([0.5]), torch.tensor([[0.1, -0.2]]), torch.tensor([3.0, 7.0]).log()).item()
    denominator = math.exp(0.5) + 3 * math.exp(0.1) + 7 * math.exp(-0.2)
    assert value == pytest.approx(math.log(denominator) - 0.5, rel=1e-6)


@pytest.mark.parametrize(("shared", "n_negatives"), [(False, 8), (True, 9)])
def test_sampled_softmax_with_every_item_as_a_negative_is_cross_entropy(shared: bool, n_negatives: int) -> None:
    rng = torch.Generator().manual_seed(1)
    table, targets = torch.randn(5, 9, generator=rng, dtype=torch.float64), torch.tensor([0, 3, 8, 3, 1])
    config = TrainConfig(loss="sampled_softmax", n_negatives=n_negatives, shared_negatives=shared)
    corrections = torch.from_numpy(log_corrections(9, n_negatives, shared, None))
    assert not corrections.any()
    hidden = torch.arange(9) == targets.unsqueeze(-1)
    negative = table.masked_fill(hidden, -math.inf) if shared else table[~hidden].view(5, 8)
    sampled = sampled_loss(config, 9)(table.gather(1, targets.unsqueeze(-1)).squeeze(-1), negative, corrections[1:2])
    assert sampled.item() == pytest.approx(cross_entropy(table, targets).item(), rel=1e-12)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("by_popularity", [False, True])
def test_corrected_sum_over_negatives_is_on_average_that_over_all_items_but_the_target(
    shared: bool, by_popularity: bool
) -> None:
    rng, target = np.random.default_rng(2), 4
    items = torch.from_numpy(rng.standard_normal(12))
    counts = np.arange(1, 13) ** 2 if by_popularity else None
    corrections = torch.from_numpy(log_corrections(12, 3, shared, counts))[1:]
    if shared or by_popularity:
        drawn = torch.from_numpy(ItemDrawer(12, counts).draw(rng, 600_000).reshape(-1, 3)).long() - 1
    else:
        others = ItemDrawer(12).draw_among(rng, np.delete(np.arange(1, 13, dtype=np.int32), target), 600_000)
        drawn = torch.from_numpy(others.reshape(-1, 3)).long() - 1
    estimates = ((items[drawn] + corrections[drawn]).exp() * (drawn != target)).sum(-1)
    wanted = items.exp().sum() - items[target].exp()
    assert estimates.mean().item() == pytest.approx(wanted.item(), rel=0.01)


def test_cross_entropy_is_the_log_of_the_sum_over_all_items_less_the_target_score() -> None:
    value = cross_entropy(torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([2, 0])).item()
    first = math.log(math.exp(0.5) + math.exp(-1.0) + math.exp(2.0)) - 2.0
    assert value == pytest.approx((first + math.log(3)) / 2, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_gradients_are_those_of_the_naive_formulas(t: int, n: int, seed: int) -> None:
    positive, negative = scores(t, n, seed)
    p, q = torch.sigmoid(positive), torch.sigmoid(negative)
    pairs = [
        (bce(positive, negative), -(p.log() + (1 - q).log().sum(-1)).mean()),
        (gbce(positive, negative, 0.3), -((p**0.3).log() + (1 - q).log().sum(-1)).mean()),
        (
            sampled_softmax(positive, negative, torch.tensor(1.5)),
            -(positive.exp() / (positive.exp() + (negative + 1.5).exp().sum(-1))).log().mean(),
        ),
    ]
    for loss, naive in pairs:
        assert loss.item() == pytest.approx(naive.item(), rel=1e-9)
        ours, expected = gradients(loss, positive, negative), gradients(naive, positive, negative)
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("loss", SAMPLED)
@pytest.mark.parametrize("size", [80.0, 1e4])
def test_losses_and_gradients_stay_finite_for_extreme_scores(loss: str, size: float) -> None:
    positive = torch.tensor([size, -size, size, -size], requires_grad=True)
    negative = torch.tensor([[size], [-size], [-size], [size]], requires_grad=True)
    value = sampled_loss(TrainConfig(loss=loss), 1000)(positive, negative, torch.full((1,), 6.9))
    assert torch.isfinite(value)
    assert value > size / 4
    for gradient in gradients(value, positive, negative):
        assert torch.isfinite(gradient).all()


def test_cross_entropy_stays_finite_for_extreme_scores() -> None:
    everything = torch.tensor([[80.0, -80.0, 0.0], [-80.0, 80.0, 80.0]], requires_grad=True)
    value = cross_entropy(everything, torch.tensor([1, 1]))
    assert value.item() == pytest.approx((160 + math.log(2)) / 2)
    assert torch.isfinite(gradients(value, everything)[0]).all()


@pytest.mark.parametrize("loss", SAMPLED)
def test_score_of_minus_infinity_is_as_if_the_negative_were_not_there(loss: str) -> None:
    function = sampled_loss(TrainConfig(loss=loss, n_negatives=2), 50)
    positive, negative = scores(3, 2)
    hidden = torch.cat([negative, torch.full((3, 1), -math.inf, dtype=torch.float64)], -1)
    without, corrections = function(positive, negative, torch.zeros(2)), torch.zeros(3)
    assert function(positive, hidden, corrections).item() == pytest.approx(without.item(), rel=1e-12)
    assert torch.isfinite(gradients(function(positive, hidden, corrections), negative)[0]).all()
