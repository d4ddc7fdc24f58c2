"""The probe measures the information in features, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densepath.annotations.coco_writing import write_coco
from densepath.core.errors import UserError
from densepath.nets.backbones import Backbone, build_backbone
from densepath.nets.weights import save_backbone
from densepath.training.next_steps import with_detector
from densepath.transfer.probe.pixels import probe_backbone
from densepath.transfer.probe.probe import probe


class Colors(nn.Module):
    """A backbone whose single stage is the mean color of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = {2: 3}
        self.stages = (2,)
        self.patch_size = 1
        self.scale = nn.Parameter(torch.ones(()))

    def check_stage(self, stage: int) -> None:
        assert stage == 2

    def forward(self, x: Tensor, last: int = 5) -> dict[int, Tensor]:
        return {2: F.avg_pool2d(x * self.scale, 4)}


def write_data(folder: Path, *, informative: bool, size: tuple[int, int] = (96, 128)) -> Path:
    """Images of 16-pixel blocks, half of them red; the objects are the red ones, or any half."""
    rng = np.random.default_rng(0)

    def sample(index: int) -> tuple[str, np.ndarray, np.ndarray]:
        blocks = tuple(n // 16 for n in size)
        red, other = (np.kron(rng.random(blocks) < 0.5, np.ones((16, 16))) > 0 for _ in range(2))
        image = np.where(red[..., None], (220, 40, 40), (60, 120, 200)) + rng.integers(-20, 20, (*size, 3))
        return f"image_{index}", image.astype(np.uint8), (red if informative else other).astype(np.int32)

    write_coco(folder, {"train": [sample(i) for i in range(6)], "test": [sample(i) for i in range(4)]})
    return folder


def probe_colors(data: Path, **options: object) -> dict[str, float]:
    return probe_backbone(Colors(), data, size=96, **options)  # type: ignore[arg-type]


def test_labels_linear_in_the_features_are_predicted(tmp_path: Path) -> None:
    scores = probe_colors(write_data(tmp_path / "data", informative=True))
    # Cells of 8 pixels are interpolated to full resolution: only pixels at the blocks' borders can be wrong.
    assert scores["mean_iou"] > 90
    assert scores["dice"] > 95
    assert scores["mean_iou"] == pytest.approx((scores["iou_object"] + scores["iou_rest"]) / 2)
    assert scores["dice"] == pytest.approx(200 * scores["iou_object"] / (100 + scores["iou_object"]))


def test_labels_independent_of_the_features_stay_at_chance(tmp_path: Path) -> None:
    scores = probe_colors(write_data(tmp_path / "data", informative=False))
    assert 40 < scores["accuracy"] < 60


def test_resolution_and_aspect_of_the_images_are_kept(tmp_path: Path) -> None:
    """Objects of one position are found at full resolution in images twice as large, in portrait format."""
    data = write_data(tmp_path / "data", informative=True, size=(256, 192))
    scores = probe_colors(data)
    assert scores["mean_iou"] > 80
    assert scores["train_positions"] == 6 * (128 // 8) * (96 // 8)


def test_positions_are_subsampled_to_limit_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "data", informative=True)
    monkeypatch.setattr("densepath.transfer.probe.pixels._FEATURE_VALUES", 6 * 3 * 50)
    scores = probe_colors(data)
    assert scores["train_positions"] == 6 * 50
    assert scores["mean_iou"] > 90
    assert scores == probe_colors(data)


def test_the_backbone_is_not_changed(tmp_path: Path) -> None:
    backbone = build_backbone("resnet18").train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    probe_backbone(backbone, write_data(tmp_path / "data", informative=True), size=64, stages=(1, 2))
    assert backbone.training
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_a_file_of_weights_is_loaded(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", informative=True)
    torch.manual_seed(3)
    save_backbone(tmp_path / "weights.safetensors", build_backbone("resnet18"))
    out = tmp_path / "scores.json"
    options = {"data": data, "size": 64, "stages": (1, 2), "devices": "cpu"}
    before = torch.get_rng_state()
    loaded = probe(weights=tmp_path / "weights.safetensors", seed=7, out=out, each_stage=True, **options)
    assert torch.equal(torch.get_rng_state(), before)  # the generators are the caller's
    fresh = probe(weights="random", seed=3, **options)
    assert loaded["mean_iou"] == fresh["mean_iou"]
    assert {"mean_iou_f1", "mean_iou_f2"} <= loaded.keys()
    assert json.loads(out.read_text())["mean_iou"] == loaded["mean_iou"] > 1
    assert json.loads(out.read_text())["scale"] == loaded["scale"] == "percent"
    assert json.loads(out.read_text())["stages"] == loaded["stages"] == [1, 2]


def test_each_stage_is_scored_as_a_single_stage(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", informative=True)
    backbone: Backbone = build_backbone("resnet18")
    together = probe_backbone(backbone, data, size=64, stages=(1, 3), each_stage=True)
    single = probe_backbone(backbone, data, size=64, stages=(3,))
    assert together["mean_iou_f3"] == pytest.approx(single["mean_iou"], abs=0.1)


def test_masks_of_one_class_are_refused(tmp_path: Path) -> None:
    empty = np.zeros((64, 64), np.int32)
    samples = [("image", np.zeros((64, 64, 3), np.uint8), empty)]
    write_coco(tmp_path / "data", {"train": samples, "test": samples})
    with pytest.raises(UserError, match="all object or all rest"):
        probe_colors(tmp_path / "data")


def test_other_mistakes_are_named(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", informative=True)
    with pytest.raises(UserError, match="no stage f7"):
        probe(data=data, stages=(7,))
    with pytest.raises(UserError, match=r"ends in \.json"):
        probe(data=data, out=tmp_path / "scores")
    with pytest.raises(UserError, match=r"train\.json is read, and the result would replace it"):
        probe(data=data, out=data / "annotations" / "train.json")
    with pytest.raises(UserError, match="devices is 'tpu'"):
        probe(data=data, devices="tpu")
    with pytest.raises(UserError, match="32 pixels or more"):
        probe(data=data, size=0)
    for l2 in ("nan", "inf", "-1.0"):
        with pytest.raises(UserError, match=rf"l2 {l2}; give .* a finite penalty of 0 or more"):
            probe(data=data, l2=float(l2))
    with pytest.raises(UserError, match="nowhere"):
        probe(data=tmp_path / "nowhere")


def test_a_transformer_is_probed_on_its_one_stage(tmp_path: Path) -> None:
    scores = probe(data=write_data(tmp_path / "data", informative=True), backbone="test_vit", size=96, devices="cpu")
    assert scores["mean_iou"] > 80  # a patch is a block: its token knows the color
    with pytest.raises(UserError, match="test_vit has no stage f5; choose one of f4"):
        probe(data=tmp_path / "data", backbone="test_vit", size=96, stages=[5], devices="cpu")


def test_objects_smaller_than_a_position_are_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Squares of 6 px in images of 96 px: a position is 8 px of the resized image."""
    rng = np.random.default_rng(0)
    labels = np.zeros((96, 96), np.int32)
    for number in range(9):
        row, column = divmod(number, 3)
        labels[32 * row : 32 * row + 6, 32 * column : 32 * column + 9] = number + 1
    samples = [("image", rng.integers(0, 255, (96, 96, 3)).astype(np.uint8), labels)]
    write_coco(tmp_path / "data", {"train": samples, "test": samples})
    for size in (128, 96, 96):  # at 128 px the squares are exactly 8 px wide
        probe_backbone(Colors(), tmp_path / "data", size=size)  # type: ignore[arg-type]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "warning: objects are smaller than a position" in said[0]
    assert "under 6.0 px wide at --size 96, where a position is 8 px" in said[0] and "larger --size" in said[0]


@pytest.mark.parametrize(("gpu", "options"), [(True, []), (False, ["--config", "glas_small"])])
def test_the_next_command_is_one_that_the_hardware_can_run(
    gpu: bool, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert with_detector(build_backbone("resnet18")) == options
    transformer = build_backbone("vit_tiny_patch16_224(class_token=False, global_pool='avg', fc_norm=False)")
    assert with_detector(transformer) == ["--detector", "vitdet"]
