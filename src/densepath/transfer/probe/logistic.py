"""Logistic regression on the features of a network, to convergence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_logistic(x: Tensor, y: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """Binary logistic regression to convergence; the bias is not penalized.

    The features of a network are so correlated that plain L-BFGS takes hundreds of passes over the data. In
    coordinates in which the features are uncorrelated it takes about twenty.

    Args:
        x: (N, C) features with mean zero.
        y: (N,) 0 or 1.
        l2: penalty; the loss is mean cross-entropy + l2 / 2 * |weight|^2 (scikit-learn's C is 1 / (l2 * N)).

    Returns:
        weight (C,) and bias ().
    """
    channels = x.shape[1]
    # The Hessian is at most a quarter of the features' covariance (p * (1 - p) <= 1/4), plus the penalty.
    hessian = (x.T @ x).double() / (4 * len(x)) + (l2 + 1e-7) * torch.eye(channels, device=x.device)
    factor = torch.linalg.cholesky(hessian).T.to(x.dtype)
    z = torch.nn.Parameter(x.new_zeros(channels + 1))
    solver = torch.optim.LBFGS(
        [z], max_iter=200, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def weight() -> Tensor:
        return torch.linalg.solve_triangular(factor, z[:-1, None], upper=True)[:, 0]

    @torch.no_grad()
    def closure() -> Tensor:
        w = weight()
        logits = x @ w + z[-1]
        wrong = (logits.sigmoid() - y) / len(x)  # the gradient of the mean cross-entropy by the logits
        by_weight = (x.T @ wrong + l2 * w).unsqueeze(1)
        by_coordinates = torch.linalg.solve_triangular(factor.T, by_weight, upper=False)[:, 0]
        z.grad = torch.cat((by_coordinates, wrong.sum().unsqueeze(0)))
        return F.binary_cross_entropy_with_logits(logits, y) + l2 / 2 * w.square().sum()

    solver.step(closure)
    with torch.no_grad():
        return weight(), z[-1].clone()


def fit_stages(x: Tensor, y: Tensor, stages: Sequence[slice], each: bool, l2: float) -> tuple[Tensor, Tensor]:
    """Fit a classifier on the features of all stages together, and optionally one on each single stage.

    Every stage is scaled to a total variance of 1, so that all stages have the same weight in the penalty. With every
    channel scaled to variance 1 the many channels of the deep stages dominate; that lowers the mean IoU by up to a
    point, for random and for pre-trained weights.

    Args:
        x: (N, C) unscaled features; overwritten to save memory.
        y: (N,) 0 or 1.
        stages: the columns of each stage.
        each: whether to fit each single stage, too.
        l2: the penalty of :func:`fit_logistic`.

    Returns:
        weights (M, C), zero outside a classifier's columns, and biases (M,), for unscaled features.
    """
    scale, mean = torch.std_mean(x, dim=0)
    scale = torch.where(scale > 1e-6 * (1 + mean.abs()), scale, torch.inf)  # a constant channel has no information
    for stage in stages:
        scale[stage] *= (stage.stop - stage.start) ** 0.5
    x.sub_(mean).div_(scale)
    parts = [slice(0, x.shape[1]), *(stages if each else [])]
    weights = x.new_zeros(len(parts), x.shape[1])
    biases = x.new_zeros(len(parts))
    for row, part in enumerate(parts):
        weights[row, part], biases[row] = fit_logistic(x[:, part], y, l2)
    weights /= scale
    return weights, biases - weights @ mean
