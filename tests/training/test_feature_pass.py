"""The features of all images, for methods that ask for them."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from densepath.core import clustering, stopwatch
from densepath.core.errors import UserError
from densepath.methods import PCLV2
from densepath.nets.backbones import build_backbone
from densepath.runs.checkpoints import read_checkpoint
from densepath.runs.metrics import read_metrics
from densepath.runs.signals import Interrupted
from densepath.sources.loader import ImageBatches
from densepath.sources.open import open_images
from densepath.training.export import export
from densepath.training.feature_pass import FeaturePass
from densepath.training.pretrain import pretrain
from densepath.views.declarations import view_sizes

PCL = {"method": "pcl_v2", "method_options": {"queue_size": 32, "num_clusters": [9, 12], "warmup": 0.25}}
SMALL = {"backbone": "test_resnet", "batch_size": 8, "view_size": 48, "devices": "cpu", "precision": "32"}


def pooled(method, image):
    """The features of one image of 64 px by the book: the middle 56 px, at 48."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None, :, 4:60, 4:60] / 255
    pixels = F.interpolate(pixels, size=(48, 48), mode="bilinear", antialias=True, align_corners=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    return method.key_head(method.key_backbone(pixels)[5].mean((2, 3)))[0]


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_every_image_is_described_as_the_network_stands(tiles, cache, caplog):
    (tiles / "13.png").write_bytes(b"damaged")
    for number in range(40, 101):  # of a hundred images one may be damaged
        (tiles / f"x{number:03d}.png").write_bytes((tiles / "05.png").read_bytes())
    source = open_images(tiles, cache=cache)
    method = PCLV2(build_backbone("test_resnet"), num_clusters=(9, 12), queue_size=8)
    method.train()
    method.backbone.eval()  # a part that was so remains so
    with torch.no_grad():
        for name, statistic in method.named_buffers():
            if name.endswith("running_var"):
                statistic.mul_(1.5)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    batches = ImageBatches(source, batch_size=8, seed=0, max_steps=4)
    features = FeaturePass(batches, 48, torch.contiguous_format)(method, torch.device("cpu"))
    assert method.training and method.key_backbone.training and not method.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert not features.requires_grad and features.shape == (101, 128)
    files = open_images(tiles, cache="none")
    method.eval()
    for position in (0, 5, 13, 39, 77):
        shown = 14 if position == 13 else position  # the next that can be read
        expected = pooled(method, files.read(shown))
        # Ours also sees what lies beyond the edge of the crop, as resizing before cropping does.
        assert (features[position] - expected).abs().max() < 0.02 * (features[position] - features[1]).abs().max()
    assert len([record for record in caplog.records if "13.png" in record.message]) == 1


def test_a_run_extracts_all_features_after_its_warm_up_and_in_each_epoch(tmp_path, tiles, monkeypatch):
    steps_of_passes, on_features = [], PCLV2.on_features

    def spy(self, features, batch, heartbeat):
        steps_of_passes.append(batch.step)
        on_features(self, features, batch, heartbeat)
        assert torch.equal(self.assignments.unique(), torch.arange(21))  # on so few images no cluster is empty

    monkeypatch.setattr(PCLV2, "on_features", spy)
    out = pretrain(data=tiles, out=tmp_path / "run", **SMALL, **PCL, max_steps=12, log_every=1)
    assert steps_of_passes == [3, 5, 10]  # an epoch is five steps
    rows = read_metrics(out / "metrics.csv")
    assert ["prototype_loss" in row for row in rows] == [False] * 3 + [True] * 9
    state = read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]
    assert state["method._extra_state"] == 2 and state["method.assignments"].shape == (40, 2)
    assert export(out, tmp_path / "weights.safetensors").exists()


@pytest.mark.parametrize("during", ["feature pass", "k-means"])
def test_a_signal_ends_the_work_between_steps_at_once_and_the_resumed_run_is_the_same(
    tmp_path, tiles, monkeypatch, during
):
    options = {"data": tiles, **SMALL, **PCL, "max_steps": 5}
    whole = read_checkpoint(pretrain(out=tmp_path / "whole", **options) / "checkpoints" / "last.ckpt")
    calls = {"extract_features": 0, "nearest": 0}
    where, name = (PCLV2, "extract_features") if during == "feature pass" else (clustering, "nearest")
    original = getattr(where, name)

    def stopping(*arguments):
        calls[name] += 1
        if calls[name] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, stopping)
        with pytest.raises(Interrupted) as stopped:
            pretrain(out=tmp_path / "run", **options)
    assert stopped.value.code == 143
    assert calls[name] == 2  # of 5 batches, and of 20 iterations
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["step"] == 2
    pretrain(out=tmp_path / "run", resume=True, **options)
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in whole["state_dict"].items())


def test_a_feature_pass_does_not_count_as_training_time(tmp_path, tiles, monkeypatch):
    """By a clock that moves by a second in each step, and by an hour in a feature pass."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock.now)
    forward, take = PCLV2.forward, PCLV2.on_features

    def step(self, batch):
        clock.now += 1
        return forward(self, batch)

    def cluster(self, *arguments):
        clock.now += 3600
        return take(self, *arguments)

    monkeypatch.setattr(PCLV2, "forward", step)
    monkeypatch.setattr(PCLV2, "on_features", cluster)
    out = pretrain(data=tiles, out=tmp_path / "run", **SMALL, **PCL, max_steps=4, log_every=1)
    assert [row["images_per_second"] for row in read_metrics(out / "metrics.csv")] == [8.0] * 4


def test_clusters_that_are_fewer_than_the_images_of_a_batch_are_refused_before_the_run(tiles):
    method = PCLV2(build_backbone("test_resnet"), queue_size=32)  # clusters by default: 1, 2 and 5 of 40 images
    method.check(view_sizes(method.views(), 48, 2), 8)
    with pytest.raises(UserError, match="1 clusters leave no negative prototype for a batch of 8 images"):
        method.prepare(open_images(tiles, cache="none"))


def test_bfloat16_trains_all_weights_in_the_step_of_a_feature_pass(tmp_path, tiles):
    options = {"data": tiles, **SMALL, **PCL, "max_steps": 1} | {"precision": "bf16-mixed"}
    options["method_options"] = PCL["method_options"] | {"warmup": 0.0}
    out = pretrain(out=tmp_path / "run", **options)
    (state,) = read_checkpoint(out / "checkpoints" / "last.ckpt")["optimizers"]
    moments = [entry["momentum_buffer"] for entry in state["state"].values()]
    assert len(moments) == len(state["param_groups"][0]["params"]) and all(moment.any() for moment in moments)


def test_supervised_runs_say_their_classes_and_are_exported(tmp_path, tiles, capsys):
    for name in ("b", "a"):
        (tiles / name).mkdir()
    for number, path in enumerate(sorted(tiles.glob("*.png"))):
        path.rename(tiles / ("a" if number % 4 else "b") / path.name)
    out = pretrain(data=tiles, out=tmp_path / "run", **SMALL, method="supervised", max_steps=3, log_every=1)
    assert "densepath: 2 classes: a (30), b (10)" in capsys.readouterr().err.splitlines()
    rows = read_metrics(out / "metrics.csv")
    assert all(0 <= row["accuracy"] <= 1 and row["loss"] == row["classification_loss"] for row in rows)
    assert export(out, tmp_path / "weights.safetensors").exists()
