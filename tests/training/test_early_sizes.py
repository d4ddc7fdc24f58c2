"""Smaller views in the first parts of a run."""

import pytest
import torch
import yaml

from densepath.core.errors import UserError
from densepath.runs.checkpoints import newest_checkpoint
from densepath.training import pretrain_task
from densepath.training.pretrain import pretrain

RUN = {"backbone": "test_resnet", "method": "moco_v2", "method_options": {"queue_size": 32}, "precision": "32"}
RUN |= {"batch_size": 8, "accumulate": 2, "view_size": 64, "max_steps": 6, "devices": "cpu", "workers": 0}
RUN |= {"early_view_sizes": ((0.3, 32), (0.5, 48))}


@pytest.fixture
def sides(monkeypatch):
    """The sides of the views of each batch, and a list of batches that are interrupted."""
    seen, stop = [], []
    make = pretrain_task.PretrainTask.inputs

    def inputs(self, batch):
        if batch.step in stop:
            raise KeyboardInterrupt
        views = make(self, batch)
        seen.append(views["query"].pixels.shape[-1])
        return views

    monkeypatch.setattr(pretrain_task.PretrainTask, "inputs", inputs)
    return seen, stop


def test_views_grow_at_shares_of_the_run_and_a_resumed_run_is_the_same(tmp_path, tiles, sides):
    seen, stop = sides
    whole = pretrain(data=tiles, out=tmp_path / "whole", **RUN)
    assert seen == [side for side in (32, 32, 48, 64, 64, 64) for _ in range(2)]
    stop.append(7)  # in the first step of the last size
    with pytest.raises(KeyboardInterrupt):
        pretrain(data=tiles, out=tmp_path / "cut", save_every_steps=1, **RUN)
    stop.clear()
    cut = pretrain(data=tiles, out=tmp_path / "cut", save_every_steps=1, resume=True, **RUN)
    one, other = (newest_checkpoint(run / "checkpoints")["state_dict"] for run in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert yaml.safe_load((cut / "config.yaml").read_text())["early_view_sizes"] == [[0.3, 32], [0.5, 48]]
    with pytest.raises(UserError, match="early_view_sizes"):
        pretrain(data=tiles, out=cut, resume=True, **{**RUN, "early_view_sizes": ()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_view_sizes": ((0.5, 32), (0.3, 48))}, "rising shares"),
        ({"early_view_sizes": ((1.0, 32),)}, "rising shares"),
        ({"early_view_sizes": ((0.5, 0),)}, "would have 0 x 0 px"),
        ({"early_view_sizes": ((0.5, 31),)}, "views of 31 x 31 px are too small"),
        (
            {
                "method": "mae",
                "method_options": {},
                "backbone": "vit_tiny_patch16_224",
                "early_view_sizes": ((0.5, 40),),
            },
            "40",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_the_run(options, message, tmp_path, tiles):
    with pytest.raises(UserError, match=message):
        pretrain(data=tiles, out=tmp_path / "run", **{**RUN, **options})
    assert not (tmp_path / "run").exists()
