"""InfoNCE, compared with lightly and with the equation in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss

from densepath.core.errors import UserError
from densepath.core.losses import info_nce, masked_mean, standardize


def unit(rows: int, dim: int = 16) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim), dim=1)


def test_info_nce_equals_the_equation():
    q, k, negatives = unit(5), unit(5), unit(9)
    losses = info_nce(q, k, negatives, 0.2)
    for i in range(5):
        own = math.exp(float(q[i].double() @ k[i].double()) / 0.2)
        others = sum(math.exp(float(q[i].double() @ n.double()) / 0.2) for n in negatives)
        assert math.isclose(float(losses[i]), -math.log(own / (own + others)), rel_tol=1e-5)


def test_info_nce_and_its_gradient_equal_lightly_with_a_memory_bank():
    reference = NTXentLoss(temperature=0.2, memory_bank_size=(64, 16))
    reference(unit(64), unit(64).requires_grad_())  # initializes and fills the bank
    negatives = reference.memory_bank.bank.clone()  # (64, 16), before the next batch joins it
    q, k = unit(8).requires_grad_(), unit(8)
    theirs = reference(q, k)
    (gradient,) = torch.autograd.grad(theirs, q)
    ours = info_nce(F.normalize(q, dim=1), k, negatives, 0.2).mean()  # lightly normalizes within the loss
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, q)[0], gradient)


def test_info_nce_is_float32_within_autocast():
    q, k, negatives = unit(4), unit(4), unit(100)
    expected = info_nce(q, k, negatives, 0.07)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(info_nce(q, k, negatives, 0.07), expected)


def test_losses_keep_the_precision_of_float64():
    q, k, negatives = (unit(n).double() for n in (3, 3, 20))
    expected = -(torch.cat(((q * k).sum(1, keepdim=True), q @ negatives.T), 1) / 0.2).log_softmax(1)[:, 0]
    torch.testing.assert_close(info_nce(q, k, negatives, 0.2), expected, rtol=1e-13, atol=1e-13)


def test_masked_mean_uses_only_selected_values():
    values = torch.tensor([1.0, 2.0, float("inf"), 4.0], requires_grad=True)
    mask = torch.tensor([True, True, False, True])
    mean = masked_mean(values, mask)
    mean.backward()
    torch.testing.assert_close(mean, torch.tensor(7 / 3))
    torch.testing.assert_close(values.grad, mask / 3)


def test_masked_mean_of_half_precision_is_in_float32():
    assert masked_mean(torch.full((3,), 60000.0, dtype=torch.float16), torch.ones(3, dtype=torch.bool)).item() == 60000


def test_masked_mean_of_nothing_is_zero_with_zero_gradient():
    values = torch.ones(3, requires_grad=True)
    mean = masked_mean(values, torch.zeros(3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0 and not values.grad.any()


def test_standardize_equals_a_batch_norm_over_the_selected_rows():
    x, mask = torch.randn(9, 5) * 3 + 7, torch.arange(9) % 3 > 0
    norm = torch.nn.BatchNorm1d(5, affine=False)
    torch.testing.assert_close(standardize(x), norm(x))
    torch.testing.assert_close(standardize(x, mask)[mask], norm(x[mask]))


def test_standardize_of_no_rows_is_finite():
    x = torch.randn(4, 3, requires_grad=True)
    standardize(x, torch.zeros(4, dtype=torch.bool)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_standardize_is_float32_within_autocast():
    x = unit(300) * 0.1 + unit(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        means = standardize(x).mean(0)
    assert float(means.abs().max()) < 1e-4


def test_rows_that_are_not_selected_change_neither_loss_nor_gradient():
    q, k, negatives = unit(12).requires_grad_(), unit(12), unit(50)
    for mask in (torch.arange(12) % 3 == 0, torch.zeros(12, dtype=torch.bool)):
        expected = masked_mean(info_nce(q, k, negatives, 0.2), mask)
        found = masked_mean(info_nce(q, k, negatives, 0.2, mask), mask)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, q)[0], torch.autograd.grad(expected, q)[0])


def test_info_nce_needs_a_negative():
    with pytest.raises(UserError, match="needs at least one negative"):
        info_nce(unit(2), unit(2), torch.zeros(0, 16), 0.1)
