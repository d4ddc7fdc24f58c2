"""Weights that are divided among processes give the run of one process."""

import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from densepath.core.errors import UserError
from densepath.runs.checkpoints import read_checkpoint
from densepath.runs.metrics import read_metrics
from densepath.training.sharding import require_shardable


def test_a_sharded_run_is_that_of_one_process_and_is_resumed(tmp_path, tiles, run_scenario):
    stop = 128 + signal.SIGTERM
    assert run_scenario("sharded")[0] == [0, [0, 0], [0, 0], [stop, stop], [0, 0]]
    names = ("one", "ddp", "fsdp", "cut")
    one, ddp, fsdp, cut = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in names)
    close = {"rtol": 1e-5, "atol": 1e-7}

    # Weights of student and teacher, center, and both moments of the optimizer, in one checkpoint.
    for other in (one, ddp):
        torch.testing.assert_close(fsdp["state_dict"], other["state_dict"], **close)
        torch.testing.assert_close(fsdp["optimizers"], other["optimizers"], **close)
    losses = [[row["image_loss"] for row in read_metrics(tmp_path / name / "metrics.csv")] for name in names]
    assert losses[2] == pytest.approx(losses[0], rel=1e-8)
    assert losses[1] == pytest.approx(losses[0], rel=1e-8)
    assert losses[3] == losses[2] and len(losses[2]) == 6

    # A resumed run has the bits of the undisturbed one, in both processes.
    assert fsdp["state_dict"].keys() == cut["state_dict"].keys()
    assert all(torch.equal(value, cut["state_dict"][name]) for name, value in fsdp["state_dict"].items())

    # What is exported, and kept during the run, is whole.
    for file in ("backbone.safetensors", "backbone_epoch_1.safetensors"):
        exported = [load_file(tmp_path / name / "exported" / file) for name in names]
        for other in exported[1:]:
            torch.testing.assert_close(other, exported[0], **close)


@pytest.mark.parametrize(
    ("optimizer", "processes", "name", "message"),
    [("adamw", 1, "blocks", "this run has one"), ("lars", 2, "blocks", "lars"), ("sgd", 2, "layer1", "has none")],
)
def test_what_cannot_be_sharded_is_refused(optimizer, processes, name, message):
    network = nn.ModuleDict({name: nn.Sequential(nn.Linear(2, 2))})
    require_shardable(nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(2, 2))}), "adamw", 2)
    with pytest.raises(UserError, match=message):
        require_shardable(network, optimizer, processes)
