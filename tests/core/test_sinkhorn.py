"""The Sinkhorn-Knopp algorithm against loops in float64."""

import pytest
import torch

from densepath.core.distillation import Distillation
from densepath.core.sinkhorn import sinkhorn

N, K = 6, 5


def balanced(scores, iterations=3):
    """The released algorithm, entry by entry."""
    q = [[float(torch.exp(score)) for score in row] for row in scores]
    for _ in range(iterations):
        for k in range(K):
            share = sum(row[k] for row in q)
            for row in q:
                row[k] /= share * K
        for row in q:
            whole = sum(row)
            row[:] = [entry / whole for entry in row]
    return torch.tensor(q, dtype=torch.float64)


@pytest.mark.parametrize("iterations", [1, 3])
def test_distributions_equal_a_loop(iterations):
    scores = 4 * torch.randn(N, K, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, iterations=iterations).exp(), balanced(scores, iterations))


def test_rows_that_do_not_exist_have_no_share():
    scores, valid = 4 * torch.randn(N, K, dtype=torch.float64), torch.tensor([True, False, True, True, False, True])
    found = sinkhorn(scores, valid).exp()
    torch.testing.assert_close(found[valid], balanced(scores[valid]))
    scores[~valid] = 100.0
    assert torch.equal(sinkhorn(scores, valid).exp()[valid], found[valid])
    assert sinkhorn(scores, valid & False).isfinite().all()


def test_scores_of_any_size_are_balanced():
    """exp(1000) overflows; many iterations make all prototypes equally frequent."""
    scores = torch.randn(N, K) + torch.tensor([1000.0, 0.0, 0.0, 0.0, -1000.0])
    shares = sinkhorn(scores, iterations=200).exp().mean(0)
    torch.testing.assert_close(shares, torch.full((K,), 1 / K), rtol=1e-3, atol=0)
    torch.testing.assert_close(sinkhorn(scores), sinkhorn(scores + 7), rtol=0, atol=1e-3)


def test_the_loss_takes_its_targets_from_it_and_has_no_center():
    loss, scores = Distillation(K, centering="sinkhorn"), torch.randn(N, K, dtype=torch.float64)
    eye = torch.eye(K, dtype=torch.float64)
    targets, statistics = loss.targets(scores, eye, 0.2)
    torch.testing.assert_close(targets, balanced(scores / 0.2))
    assert statistics["kl_uniform"] < 0.5 * Distillation(K).targets(scores, eye, 0.2)[1]["kl_uniform"]
    loss.after_step()
    assert not loss.center.any()
    same = loss.targets(torch.randn(1, K).expand(N, -1), eye.float(), 0.2)[
        1
    ]  # a constant output shows as a uniform one
    assert float(same["entropy"]) == pytest.approx(1, abs=1e-5)
