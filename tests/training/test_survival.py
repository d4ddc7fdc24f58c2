"""A run that is killed at any moment, as often as one likes, ends where the undisturbed run ends: bit for bit."""

import signal

import torch
from safetensors.torch import load_file

from densepath.runs.checkpoints import read_checkpoint
from densepath.runs.metrics import read_metrics


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


def test_a_killed_run_ends_as_if_nothing_had_happened(tmp_path, tiles, run_scenario):
    ends, _ = run_scenario("killed")
    kill, shot = -signal.SIGKILL, ends.pop("shot")
    assert set(shot[:-1]) <= {kill, 0} and shot[-1] == 0  # the clock may come too late
    for method, codes in ends.items():
        assert codes == [0, kill, kill, kill, kill, kill, 128 + signal.SIGTERM, kill, 0]
        for other in ("cut", "shot") if method == "concl" else ("cut",):
            assert_same_run(*(tmp_path / f"{method}.{name}" for name in ("whole", other)))


def assert_same_run(whole, cut):
    """Both ended with the same bits: weights, optimiser, schedule, generators, measurements, what was exported."""
    states = [read_checkpoint(out / "checkpoints" / "last.ckpt") for out in (whole, cut)]
    assert states[0]["step"] == states[1]["step"] == 12
    for part in ("state_dict", "optimizers", "schedules", "random"):
        assert differing(states[0][part], states[1][part]) == []
    assert int(states[1]["state_dict"]["method.queue.pointer"]) == 12 * 8 % 40
    exported = [load_file(out / "exported" / "backbone.safetensors") for out in (whole, cut)]
    assert differing(*exported) == []

    ignored = {"images_per_second", "waiting"}
    rows = [read_metrics(out / "metrics.csv") for out in (whole, cut)]
    kept = [[{key: value for key, value in row.items() if key not in ignored} for row in part] for part in rows]
    assert kept[0] == kept[1]
    assert [row["step"] for row in kept[1]] == list(range(1, 13))
    assert not list(cut.rglob(".*"))
