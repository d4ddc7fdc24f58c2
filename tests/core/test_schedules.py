"""Learning rates at steps with known values."""

import math

import pytest
import torch

from densepath.core.schedules import cosine, lr_factor


def test_cosine_equals_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert math.isclose(lr_factor("cosine", step, 50), scheduler.get_last_lr()[0], abs_tol=1e-9)
        optimizer.step()
        scheduler.step()


def test_step_drops_at_its_milestones():
    factors = [lr_factor("step", step, 200, milestones=(120, 160)) for step in (0, 119, 120, 159, 160, 199)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warmup_rises_linearly_and_ends():
    assert lr_factor("constant", 0, 100, warmup=10, warmup_start=1e-3) == pytest.approx(1e-3)
    assert lr_factor("constant", 5, 100, warmup=10, warmup_start=0) == pytest.approx(0.5)
    assert lr_factor("cosine", 10, 110, warmup=10) == pytest.approx(1.0)
    assert lr_factor("cosine", 60, 110, warmup=10) == pytest.approx(0.5)


@pytest.mark.parametrize("step", [0.0, 3.0, 10.0, 50.0, 100.0, 150.0, 200.0])
def test_a_cosine_from_the_start_is_mmcvs(step):
    """mmcv's CosineAnnealing with linear warm-up: the warm-up scales the cosine, which began at epoch 0."""
    regular = 0.5 * (1 + math.cos(math.pi * step / 200))
    k = (1 - step / 10) * (1 - 1e-4)
    expected = regular * (1 - k) if step < 10 else regular
    assert lr_factor("cosine", step, 200, warmup=10, decay_in_warmup=True) == pytest.approx(expected, abs=1e-12)


def test_halfway_a_cosine_from_the_start_is_one_half():
    assert lr_factor("cosine", 100, 200, warmup=10, decay_in_warmup=True) == pytest.approx(0.5)
    assert lr_factor("cosine", 100, 200, warmup=10) == pytest.approx(0.541, abs=5e-4)
    assert lr_factor("step", 5, 200, warmup=10, warmup_start=0, milestones=(2,), decay_in_warmup=True) == 0.05


def test_byol_momentum_reaches_one():
    assert cosine(0.996, 1.0, 0.0) == pytest.approx(0.996)
    assert cosine(0.996, 1.0, 1.0) == pytest.approx(1.0)
