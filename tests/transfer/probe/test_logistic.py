"""Logistic regression, compared with scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from densepath.transfer.probe.logistic import fit_logistic, fit_stages


def correlated_problem(n: int = 500, channels: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Strongly correlated features, as a network's are, and labels that are not separable."""
    x = torch.randn(n, 3) @ torch.randn(3, channels) + 0.05 * torch.randn(n, channels)
    x = (x - x.mean(0)) / x.std(0)
    y = (x[:, 0] - x[:, 1] + 0.5 + torch.randn(n) > 0).float()
    return x, y


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_weights_and_bias_equal_scikit_learn(l2: float) -> None:
    x, y = correlated_problem()
    weight, bias = fit_logistic(x, y, l2)
    oracle = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=10_000).fit(x.double().numpy(), y.numpy())
    torch.testing.assert_close(weight.double(), torch.tensor(oracle.coef_[0]), atol=2e-3, rtol=2e-3)
    assert float(bias) == pytest.approx(float(oracle.intercept_[0]), abs=2e-3)


def test_the_gradient_vanishes_at_the_solution() -> None:
    x, y = correlated_problem()
    weight, bias = fit_logistic(x, y, 1e-3)
    error = torch.sigmoid(x @ weight + bias) - y
    assert (x.T @ error / len(x) + 1e-3 * weight).abs().max() < 1e-4
    assert error.mean().abs() < 1e-4


def test_classifiers_apply_to_unscaled_features() -> None:
    """Two stages, with three and two channels, each scaled to a total variance of 1."""
    standard, y = correlated_problem(channels=5)
    x = standard * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0]) + torch.tensor([5.0, 0.0, -2.0, 100.0, 0.0])
    weights, biases = fit_stages(x.clone(), y, [slice(0, 3), slice(3, 5)], each=True, l2=1e-2)
    scaled = standard / torch.tensor([3.0, 3.0, 3.0, 2.0, 2.0]).sqrt()
    parts = (slice(0, 5), slice(0, 3), slice(3, 5))
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        expected, offset = fit_logistic(scaled[:, part], y, 1e-2)
        torch.testing.assert_close(x @ weight + bias, scaled[:, part] @ expected + offset, atol=2e-3, rtol=1e-3)
    assert not weights[1, 3:].any()
    assert not weights[2, :3].any()


def test_a_stage_has_the_same_weight_for_any_number_of_channels() -> None:
    x, y = correlated_problem(channels=2)
    once, _ = fit_stages(x.clone(), y, [slice(0, 1), slice(1, 2)], each=False, l2=1e-2)
    repeated = torch.cat((x[:, :1], x[:, 1:].expand(-1, 8)), dim=1)
    eightfold, _ = fit_stages(repeated, y, [slice(0, 1), slice(1, 9)], each=False, l2=1e-2)
    torch.testing.assert_close(eightfold[0, 1:].sum(), once[0, 1], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(eightfold[0, 0], once[0, 0], atol=1e-3, rtol=1e-3)


def test_a_constant_channel_has_no_weight() -> None:
    x, y = correlated_problem(channels=3)
    x = torch.cat((x, torch.full((len(x), 1), 7.0)), dim=1)
    weights, biases = fit_stages(x, y, [slice(0, 4)], each=False, l2=1e-2)
    assert weights[0, 3] == 0
    assert biases.isfinite().all()
