"""The epoch whose weights are kept."""

import math

import pytest
import torch
from torch import nn

from densepath.training.optimizers import Optimizer
from densepath.transfer.best_epoch import BestEpochTask


@pytest.mark.parametrize(
    ("by_loss", "epochs", "kept"),
    [
        (True, [(50, math.nan), (40, 2.0), (60, math.nan), (30, 1.0)], 4),
        (False, [(math.nan, 1.0), (40, 2.0), (math.nan, 0.5), (40, 1.5), (30, 0.1)], 4),
        (False, [(50, math.nan), (50, 2.0), (50, math.nan)], 2),
    ],
)
def test_an_epoch_of_nan_is_kept_only_until_there_is_another(by_loss, epochs, kept):
    model = nn.Linear(1, 1)
    task = BestEpochTask(model, Optimizer(), 10, 1, frozen=None, by_loss=by_loss)
    for number, (score, loss) in enumerate(epochs, 1):
        nn.init.constant_(model.weight, number)
        task.keep_if_better(score, loss)
    assert task.restore_chosen()["epoch"] == kept == int(torch.as_tensor(model.weight))
