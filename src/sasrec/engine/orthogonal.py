"""Steps of item tables that are equally long in all directions, on torch; native/orthogonal.h has them compiled.

Of Adam's step u (V, D) is taken u (u^T u / m + FLOOR)^(-1/2), where m = trace(u^T u) / D. That is the orthogonal factor
of u, as long as u. Source: Jordan et al. 2024 (Muon), which takes that factor of the momentum, and by an iteration;
here it is of Adam's step, and by eigenvectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FLOOR = 1e-5  # directions that steps hardly have grow at most 300-fold, and rounding stays below


def take_orthogonal_step(
    table: torch.Tensor, state: Mapping[str, torch.Tensor], adam: Mapping[str, Any], learning_rate: float
) -> None:
    """Move a table (V, D) by Adam's step, turned.

    Args:
        table: moves in place.
        state: Adam's moments of it and its step count, after the step.
        adam: betas and eps.
        learning_rate: of the step.
    """
    import torch

    if not state:
        return  # no gradient has reached it
    beta1, beta2 = adam["betas"]
    step = float(state["step"])
    root = state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2**step)
    u = state["exp_avg"] / (1 - beta1**step) / (root + adam["eps"])
    with torch.no_grad():
        table.sub_(u @ turning(u), alpha=learning_rate)


def turning(step: torch.Tensor) -> torch.Tensor:
    """What makes a step (V, D) equally long in all directions, as a factor on its right (D, D).

    A step with values that are not finite stays as it is, so that training goes on to say so.
    """
    import torch

    squares = (step.T @ step).double()
    mean = squares.trace() / len(squares)
    if not math.isfinite(mean):
        return torch.eye(len(squares), dtype=step.dtype, device=step.device)
    values, vectors = torch.linalg.eigh(squares / mean.clamp(min=torch.finfo(torch.float64).tiny))
    root: torch.Tensor = (vectors * (values.clamp(min=0) + FLOOR).rsqrt()) @ vectors.T
    return root.to(step.dtype)
