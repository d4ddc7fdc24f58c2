"""Several processes make one run."""

import json
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file

from densepath.core.errors import UserError
from densepath.runs.checkpoints import read_checkpoint
from densepath.runs.metrics import read_metrics
from densepath.training.pretrain import pretrain

from .conftest import draw_tiles

OPTIONS = {"method": "moco_v2", "backbone": "test_resnet", "batch_size": 8, "view_size": 48, "max_steps": 2}
OPTIONS |= {"accumulate": 2, "precision": "32"}
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node 2 --no-python"
LAUNCHERS = {"torchrun": [sys.executable, *TORCHRUN.split()], "none": []}


def test_two_processes_make_one_run(tmp_path, tiles, run_scenario):
    codes, stderr = run_scenario("processes")
    one, even, parts, parts2, whole, stopped, *unlike_resumed, resumed = codes[:9]
    *refused, other_weights = codes[9:14]
    *unlike, broken, gone, early, full = codes[14:21]
    methods = codes[21:]
    stop = 128 + signal.SIGTERM
    assert (one, even, whole, stopped, resumed) == (0, [0, 0], [0, 0], [stop, stop], [0, 0])
    assert (parts, parts2) == (0, [0, 0])
    assert methods == [[0, 0], [stop, stop], [0, 0], 0, [0, 0], [stop, stop], [0, 0], 0, [0, 0]]

    def weight(name):
        return torch.load(tmp_path / f"{name}.pt", weights_only=True)["net.weight"]

    # The global batch is that of one process, and both end with the same weights.
    torch.testing.assert_close(weight("even.0"), weight("one.0"), rtol=1e-5, atol=1e-7)
    assert torch.equal(weight("even.0"), weight("even.1"))
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.csv")] for name in ("one", "even")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    # Also where a step is made of several batches.
    torch.testing.assert_close(weight("parts2.0"), weight("parts.0"), rtol=1e-5, atol=1e-7)
    assert torch.equal(weight("parts2.0"), weight("parts2.1"))
    assert not torch.equal(weight("parts.0"), weight("one.0"))

    # One of them gets a stop signal: both stop after the same step, and resume to the bits of the undisturbed run. Each
    # also draws numbers of its own.
    assert torch.equal(weight("cut.0"), weight("whole.0"))
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.csv")] for name in ("cut", "whole")]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    assert len(read_checkpoint(tmp_path / "cut" / "checkpoints" / "last.ckpt")["random"]) == 2
    assert stderr.count("--resume continues") == 3  # once for each of the runs that were stopped

    # Both refuse to start or to be resumed with other data or options than each other, and not after a long wait.
    assert unlike_resumed == [[1, 1]] * 2 and unlike == [[1, 1]] * 3 and refused == [[1, 1]] * 4
    assert other_weights == [0, 0]
    assert stderr.count("UserError: rank 0 does not start: ") == 1  # a logger that is not known
    of_rank_1 = f"the run in {tmp_path / 'cut'} was started with 24 images, but there are 16 now; resume it"
    assert (
        stderr.count(f"UserError: {of_rank_1}") == stderr.count(f"UserError: rank 1 does not start: {of_rank_1}") == 1
    )
    for difference in (
        "0 steps done, but rank 0 has 9; give all processes the same run folder, and --resume to all or none",
        "0 steps done, but rank 0 has 20; give all processes the same run folder, and --resume to all or none",
        "other label maps than rank 0; give all processes the same data",
        "another precision than rank 0 (auto depends on the hardware); give all the same, such as --precision 32",
        "16 images, but rank 0 has 24; give all processes the same data",
        "other sizes of image files than rank 0; give all processes the same data",
        "other values of lr than rank 0; start all processes with the same options",
    ):
        assert stderr.count(f"UserError: rank 1 has {difference}") == 2, difference

    # A loss that is not finite ends both.
    assert broken == [1, 1]
    note = json.loads((tmp_path / "nan" / "not_finite.json").read_text())
    assert note == {"step": 7, "images": list(range(7 * 12, 8 * 12))}  # of both
    assert stderr.count("not finite at step 7") == 2

    # One of them is killed, or can write no checkpoint: the other reports it, and how to continue.
    assert (gone, early, full) == ([1, -signal.SIGKILL], [-signal.SIGKILL, 1], [1, 1])
    assert stderr.count("UserError: another process of this run has died or stopped") == 3
    assert stderr.count("; continue with --resume (") == 1 and stderr.count("start it again with --resume (") == 2
    assert stderr.count("UserError: cannot write the checkpoint") == 1
    assert read_checkpoint(tmp_path / "gone" / "checkpoints" / "last.ckpt")["step"] == 10

    # A method that was stopped and resumed ends with the bits of the undisturbed run, in all processes.
    paths = [tmp_path / name for name in ("method", "method_cut", "method_one")]
    two, cut, alone = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in paths)
    assert two["step"] == cut["step"] == 12
    assert two["state_dict"].keys() == cut["state_dict"].keys()
    assert [name for name, value in two["state_dict"].items() if not torch.equal(value, cut["state_dict"][name])] == []
    assert torch.equal(two["statistics"], cut["statistics"])

    # Each keeps running statistics of its own; their mean is saved and exported. One process that has the images of
    # both, in groups, gives the same weights, queues and statistics.
    assert len(two["statistics"]) == 2 and not torch.equal(*two["statistics"])
    torch.testing.assert_close(two["state_dict"], alone["state_dict"], rtol=1e-7, atol=1e-9)
    exported = [load_file(path / "exported" / "backbone.safetensors") for path in paths]
    torch.testing.assert_close(exported[0], exported[2], rtol=1e-7, atol=1e-9)
    kept = {name: two["state_dict"][f"method.backbone.net.{name}"] for name in exported[0]}
    assert all(torch.equal(value, kept[name]) for name, value in exported[0].items())
    losses = [[row["loss"] for row in read_metrics(path / "metrics.csv")] for path in paths]
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-8)
    assert int(two["state_dict"]["method.queue.pointer"]) == 12 * 8 % 40

    # So it is where a run ends early.
    early = tmp_path / "method_early"
    state = read_checkpoint(early / "checkpoints" / "last.ckpt")
    assert state["step"] < 12 and not torch.equal(*state["statistics"])
    for name, value in load_file(early / "exported" / "backbone.safetensors").items():
        assert torch.equal(value, state["state_dict"][f"method.backbone.net.{name}"]), name

    # What learns from features of all images finds the same in them.
    paths = [tmp_path / name for name in ("feature_pass", "feature_pass_one", "feature_pass_cut")]
    two, alone, cut = (read_checkpoint(path / "checkpoints" / "last.ckpt")["state_dict"] for path in paths)
    torch.testing.assert_close(two, alone, rtol=1e-7, atol=1e-9)
    # One of the processes got a stop signal during that: both stopped, and resumed to the same bits.
    assert [name for name, value in two.items() if not torch.equal(value, cut[name])] == []
    assert two["method._extra_state"] == 2 and two["method.prototypes"].any()
    losses = [[row["loss"] for row in read_metrics(path / "metrics.csv")] for path in paths]
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The tiles, and the run of one process that others must equal."""
    folder = tmp_path_factory.mktemp("alone")
    draw_tiles(folder / "tiles")
    options = dict(OPTIONS, data=folder / "tiles", out=folder / "run", devices="cpu")
    pretrain(**options, method_options={"queue_size": 32, "shuffle": False})
    return folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_command_line_makes_the_run_of_one_process(launcher, alone, tmp_path, command_line):
    """The second process is started by torchrun, or by the run itself."""
    devices = "cpu:2" if launcher == "none" else "cpu"
    options = dict(OPTIONS, data=alone / "tiles", out=tmp_path / "two", devices=devices)
    words = " ".join(f"--{name} {value}" for name, value in options.items())
    line = f"pretrain {words} --method.queue_size 32 --batch_norm synchronized"
    process = command_line(line, tmp_path, LAUNCHERS[launcher])
    said, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert said.splitlines() == [str(tmp_path / "two")]  # one of them speaks
    one, two = (read_checkpoint(out / "checkpoints" / "last.ckpt") for out in (alone / "run", tmp_path / "two"))
    assert (len(one["random"]), len(two["random"])) == (1, 2)
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=1e-3, atol=1e-4)
    exported = [load_file(out / "exported" / "backbone.safetensors") for out in (alone / "run", tmp_path / "two")]
    torch.testing.assert_close(*exported, rtol=1e-3, atol=1e-4)


def test_a_batch_norm_group_is_within_one_process(tmp_path, tiles):
    options = {"method": "moco_v2", "data": tiles, "backbone": "test_resnet", "batch_size": 8, "view_size": 48}
    options |= {"max_steps": 2, "method_options": {"queue_size": 32}, "batch_norm_group": 8}
    with pytest.raises(UserError, match="groups of 8 images do not divide the 4 that a process holds"):
        pretrain(**options, devices="cpu:2", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
