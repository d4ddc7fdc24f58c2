"""The slow copy follows parameters, and nothing else."""

import torch
from torch import nn

from densepath.core.momentum import Momentum


def test_parameters_follow_and_statistics_do_not():
    fast = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    slow = Momentum(fast)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.add_(1)
    fast(torch.randn(8, 3))  # changes the running statistics of the fast network only
    before = [p.clone() for p in slow.parameters()]
    slow.update(fast, 0.9)
    for old, new, target in zip(before, slow.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * target)
        assert not new.requires_grad
    assert torch.equal(slow.network[1].running_mean, torch.zeros(4))


def test_extreme_momenta():
    fast = nn.Linear(2, 2)
    slow = Momentum(fast)
    with torch.no_grad():
        fast.weight.add_(1)
    slow.update(fast, 1.0)
    torch.testing.assert_close(slow.network.weight, fast.weight - 1)
    slow.update(fast, 0.0)
    torch.testing.assert_close(slow.network.weight, fast.weight)
