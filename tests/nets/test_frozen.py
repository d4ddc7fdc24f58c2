"""What is held apart from the module around it."""

import copy

import pytest
import torch
from torch import nn

from densepath.nets.frozen import Frozen


class Learner(nn.Module):
    def __init__(self, network=None):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.teacher = Frozen("teacher")
        if network is not None:
            self.teacher.hold(network)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


def test_a_held_network_is_not_trained_and_not_saved(network):
    learner = Learner(network).train()
    assert {name for name, _ in learner.named_parameters()} == {"layer.weight", "layer.bias"}
    assert set(learner.state_dict()) == {"layer.weight", "layer.bias", "teacher.digest"}
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    before = copy.deepcopy(network.state_dict())
    x = torch.randn(4, 3, requires_grad=True)
    assert not learner.teacher(x).requires_grad
    torch.testing.assert_close(network.state_dict(), before)  # running statistics, too
    torch.testing.assert_close(learner.teacher(x), network(x))


def test_it_moves_with_the_module_around_it(network):
    learner = Learner(network).double()
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    assert learner.teacher(torch.zeros(2, 3, dtype=torch.float64)).dtype == torch.float64
    learner.to("meta")
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert copy.deepcopy(Learner(nn.Linear(3, 3))).teacher.network.weight.shape == (3, 3)


def test_a_state_is_loaded_beside_the_same_network_or_none(network):
    learner = Learner(network)
    state = learner.state_dict()
    Learner(copy.deepcopy(network)).load_state_dict(state)
    empty = Learner()
    empty.load_state_dict(state)
    assert torch.equal(empty.teacher.digest, learner.teacher.digest)
    with torch.no_grad():
        other = copy.deepcopy(network)
        other[0].weight[0, 0] += 1e-6
    with pytest.raises(RuntimeError, match="the teacher differs from that of its training"):
        Learner(other).load_state_dict(state)
    with pytest.raises(ValueError, match="there is no teacher yet"):
        Learner().teacher(torch.zeros(1, 3))
