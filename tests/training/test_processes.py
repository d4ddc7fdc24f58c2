"""Several processes make one run."""

import json
import signal

import pytest
import torch

from densepath.training.checkpoints import read_checkpoint
from densepath.training.metrics import read_metrics


def test_two_processes_make_one_run(tmp_path, tiles, forks):
    (one, even, whole, stopped, resumed, broken, method), stderr = forks("processes")
    stop = 128 + signal.SIGTERM
    assert (one, even, whole, stopped, resumed, method) == (0, [0, 0], [0, 0], [stop, stop], [0, 0], [0, 0])

    def weight(name):
        return torch.load(tmp_path / f"{name}.pt", weights_only=True)["net.weight"]

    # The global batch is that of one process, and both end with the same weights.
    torch.testing.assert_close(weight("even.0"), weight("one.0"), rtol=1e-5, atol=1e-7)
    assert torch.equal(weight("even.0"), weight("even.1"))
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.csv")] for name in ("one", "even")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    # One of them is told to stop: both do, after the same step, and go on to the bits of the undisturbed run. Each also
    # draws numbers of its own.
    assert torch.equal(weight("cut.0"), weight("whole.0"))
    assert len(read_checkpoint(tmp_path / "cut" / "checkpoints" / "last.ckpt")["random"]) == 2
    assert stderr.count("goes on with") == 1

    # A loss that is not finite ends both.
    assert broken == [1, 1]
    assert json.loads((tmp_path / "nan" / "not_finite.json").read_text())["step"] == 7
    assert stderr.count("not finite at step 7") == 2

    state = read_checkpoint(tmp_path / "method" / "checkpoints" / "last.ckpt")
    assert state["step"] == 12
    assert int(state["state_dict"]["method.queue.pointer"]) == 12 * 8 % 40
    assert (tmp_path / "method" / "exported" / "backbone.safetensors").exists()
