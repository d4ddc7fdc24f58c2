"""Pictures of what a method predicts, drawn while it trains."""

import numpy as np
import pytest
import torch
from PIL import Image

from densepath.analysis.reconstruction import draw_reconstruction
from densepath.runs.checkpoints import read_checkpoint
from densepath.training.pretrain import pretrain

SMALL = {"backbone": "test_resnet", "batch_size": 8, "view_size": 48, "log_every": 2, "devices": "cpu", "epochs": 2.4}
MIM = {"method": "conv_mim", "method_options": {"patch": 16, "width": 16, "heads": 2}, "precision": "32"}


def test_pictures_are_drawn_at_intervals_and_change_nothing(tmp_path, tiles):
    seen = []

    def draw(made, path, spec):
        seen.append(made)
        torch.rand(3), np.random.rand(3)
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    options = {"data": tiles, **SMALL, **MIM}
    run = pretrain(out=tmp_path / "run", **options, picture_every=1, draw=draw)
    plain = pretrain(out=tmp_path / "plain", **options)
    assert sorted(path.name for path in (run / "pictures").iterdir()) == [
        f"reconstruction_{step:07d}.png" for step in (5, 10, 12)
    ]
    assert not (plain / "pictures").exists()
    ends = [read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"] for out in (run, plain)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    # The same views and masks each time, seen by weights that have moved on.
    assert len(seen[0].view) == 8
    for name in ("view", "visible", "target", "counted"):
        assert torch.equal(getattr(seen[0], name), getattr(seen[2], name))
    assert not torch.equal(seen[0].prediction, seen[2].prediction)


def test_a_method_that_predicts_no_pixels_has_no_pictures(tmp_path, tiles):
    def draw(made, path, spec):
        raise AssertionError

    options = {"method": "moco_v2", "method_options": {"queue_size": 32}, "precision": "32"}
    run = pretrain(data=tiles, out=tmp_path / "run", **SMALL, **options, picture_every=1, draw=draw)
    assert not (run / "pictures").exists()


def test_tensorboard_gets_the_pictures(tmp_path, tiles):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"data": tiles, **SMALL, **MIM, "epochs": 0.4, "loggers": ["tensorboard"]}
    run = pretrain(out=tmp_path / "run", **options, draw=draw_reconstruction)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (event,) = events.Images("reconstruction")
    drawn = Image.open(run / "pictures" / "reconstruction_0000002.png")
    assert (event.step, event.width, event.height) == (2, *drawn.size)
