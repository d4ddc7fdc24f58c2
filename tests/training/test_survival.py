"""A run that is killed at any moment, as often as one likes, ends where the undisturbed run ends: bit for bit."""

import signal

import torch
from safetensors.torch import load_file

from densepath.training.checkpoints import read_checkpoint
from densepath.training.metrics import read_metrics


def differing(one, other, name=""):
    """The dotted names of what two nested states hold differently."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [found for key in one for found in differing(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        return [found for i in range(len(one)) for found in differing(one[i], other[i], f"{name}.{i}")]
    equal = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if equal else [name]


def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path, tiles, forks):
    ends, _ = forks("killed")
    kill = -signal.SIGKILL
    for method, codes in ends.items():
        assert codes == [0, kill, kill, kill, kill, 128 + signal.SIGTERM, 0]
        outs = [tmp_path / f"{method}.{name}" for name in ("whole", "cut")]
        whole, cut = (read_checkpoint(out / "checkpoints" / "last.ckpt") for out in outs)
        assert whole["step"] == cut["step"] == 12
        for part in ("state_dict", "optimizers", "schedules", "random"):
            assert differing(whole[part], cut[part]) == []
        assert int(cut["state_dict"]["method.queue.pointer"]) == 12 * 8 % 40
        exported = [load_file(out / "exported" / "backbone.safetensors") for out in outs]
        assert differing(*exported) == []

        ignored = {"images_per_second", "waiting"}
        rows = [read_metrics(out / "metrics.csv") for out in outs]
        kept = [[{key: value for key, value in row.items() if key not in ignored} for row in part] for part in rows]
        assert kept[0] == kept[1]
        assert [row["step"] for row in kept[1]] == list(range(1, 13))
        assert not list((outs[1] / "checkpoints").glob(".*"))
