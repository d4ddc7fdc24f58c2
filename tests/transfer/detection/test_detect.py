"""``detect`` learns, is reproducible, resumes bit for bit, and refuses invalid options."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from timm.layers import SwiGLUPacked
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from densepath.annotations.coco import open_split
from densepath.annotations.coco_writing import write_coco
from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import save_backbone
from densepath.nets.weights.filter_norms import filter_norms, set_filter_norms
from densepath.runs.checkpoints import read_checkpoint
from densepath.runs.folder import read_config
from densepath.training.hardware import choose_hardware
from densepath.training.intervals import Intervals
from densepath.training.resolve import resolve
from densepath.training.update_limits import UpdateLimits
from densepath.transfer.detection import fine_tuning
from densepath.transfer.detection.average_precision import average_precision
from densepath.transfer.detection.config import DetectConfig
from densepath.transfer.detection.detect import DETECTOR_FILE, _without_gpu, detect
from densepath.transfer.detection.detection_task import DetectionTask, parameter_groups
from densepath.transfer.detection.detector_file import DetectorNotes, load_detector, save_detector
from densepath.transfer.detection.object_metrics import OBJECT_METRICS
from densepath.transfer.detection.samples import TrainingBatches
from densepath.transfer.detection.solver import make_solver
from densepath.transfer.probe.probe import probe
from densepath.transfer.segment.segmenter import is_segmenter
from densepath.verbs import VERBS

SMALL: dict[str, Any] = {
    "detector": "mask_rcnn_fpn_small",
    "batch_size": 3,
    "train_size": (96, 96),
    "test_size": 96,
    "precision": "32",
    "devices": "cpu",
    "pictures": 2,
}


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three dark ellipses on a bright background."""
    rng = np.random.default_rng(seed)
    image = rng.integers(150, 200, (96, 96, 3)).astype(np.uint8)
    labels = np.zeros((96, 96), np.int32)
    rows, columns = np.mgrid[:96, :96]
    for number, place in enumerate([(26, 26), (68, 30), (40, 70)], start=1):
        y, x = place + rng.integers(-6, 7, 2)
        height, width = rng.integers(12, 20, 2)
        inside = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1
        image[inside] = rng.integers(40, 90, (inside.sum(), 3))
        labels[inside] = number
    return image, labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detect") / "data"
    scenes = [(f"scene{seed}", *scene(seed)) for seed in range(3)]
    write_coco(folder, {"train": scenes, "test": scenes})
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("trained") / "run"
    return out, detect(data=data, out=out, max_steps=50, lr=0.03, precise_bn_batches=10, **SMALL)


def test_a_detector_overfits_three_images(trained: tuple[Path, dict[str, float]]) -> None:
    out, metrics = trained
    assert metrics["box_ap50"] > 90 and metrics["mask_ap50"] > 90
    assert metrics["mask_ap"] > 70
    assert json.loads((out / "metrics.json").read_text()) == {"scale": "percent", **metrics}


@pytest.mark.parametrize(
    ("detector", "backbone", "steps", "lr"),
    [
        ("mask_rcnn_fpn_small", "test_resnet", 220, 0.03),
        ("mask_rcnn_c4_small", "test_resnet", 280, 0.02),
        ("mask_rcnn_dc5_small", "test_resnet", 240, 0.03),
        ("retinanet_small", "test_resnet", 250, 0.01),
        ("vitdet_small", "test_vit", 180, 3e-3),
    ],
)
def test_every_detector_learns_an_image_to_the_pixel(
    detector: str, backbone: str, steps: int, lr: float, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    write_coco(data, {split: [("scene", *scene(0))] for split in ("train", "test")})
    options = SMALL | {"detector": detector, "backbone": backbone, "max_steps": steps, "lr": lr, "batch_size": 1}
    metrics = detect(data=data, out=out, precise_bn_batches=10, drops=(0.5, 0.8), **options)
    kinds = ("box",) if detector == "retinanet_small" else ("box", "mask")
    objects = OBJECT_METRICS if "mask" in kinds else ()
    assert list(metrics) == [*(f"{kind}_{suffix}" for kind in kinds for suffix in ("ap", "ap50", "ap75")), *objects]
    # Untrained, all are 0. Above 85 no more than one object misses an IoU of 0.9. Whether the last threshold of 0.95
    # is met, by boxes of 30 pixels and masks drawn from 14 x 14 positions, depends on the CPU's rounding.
    assert metrics["box_ap75"] == 100 and metrics["box_ap"] > 85
    assert metrics.get("mask_ap75", 100) == 100 and metrics.get("mask_ap", 100) > 85
    found = json.loads((out / "predictions.json").read_text())
    assert {"segmentation" in result for result in found} == {"mask" in kinds}
    again = detect(data=data, out=out, evaluate=True, devices="cpu", precision="32", pictures=2)
    assert again == pytest.approx(metrics)
    picture = np.asarray(Image.open(out / "pictures" / "scene.png"))
    rows, columns = (picture[:, : picture.shape[1] // 2] == (0, 255, 64)).all(-1).nonzero()  # the first true object
    assert len(rows) > 100
    drawn_as_box = (picture[rows.min(), columns.min()] == (0, 255, 64)).all()
    assert drawn_as_box == (kinds == ("box",))


def test_the_head_of_c4_is_reproducible_bit_for_bit(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SMALL | {"detector": "mask_rcnn_c4_small", "backbone": "test_resnet", "max_steps": 2}
    options |= {"optimizer": UpdateLimits(clip="tensor")}
    states = []
    for name in ("a", "b", "b"):
        resume = (tmp_path / name).exists()  # the third is only settled and scored once more
        detect(data=data, out=tmp_path / name, precise_bn_batches=2, resume=resume, **options)
        states.append(load_file(tmp_path / name / DETECTOR_FILE))
    way, printed = f"from the start: --max_steps N --out {tmp_path}/b_2\n", capsys.readouterr().err
    assert f"{tmp_path}/b is complete (2 steps); train longer in another folder, {way}" in printed
    assert "densepath: optimizer.clip: no effect without clip_norm\n" in printed
    assert states[0]["heads.box_roi_pool.norm.num_batches_tracked"] == 2  # those that it was settled on
    assert all(torch.equal(state[key], value) for state in states[1:] for key, value in states[0].items())


def test_the_run_folder_holds_predictions_and_pictures(trained: tuple[Path, dict[str, float]], data: Path) -> None:
    out, metrics = trained
    results = json.loads((out / "predictions.json").read_text())
    truth = open_split(data, "test").coco_ground_truth()
    assert average_precision(truth, results).items() <= metrics.items()
    assert {r["category_id"] for r in results} == {1}
    pictures = sorted((out / "pictures").iterdir())
    assert [p.name for p in pictures] == ["scene0.png", "scene2.png"]
    assert Image.open(pictures[0]).size[0] > 2 * 96
    assert (out / "config.yaml").exists() and (out / "metrics.csv").exists()


def test_the_configuration_of_a_run_is_a_recipe(trained: tuple[Path, dict[str, float]]) -> None:
    config = trained[0] / "config.yaml"
    values = VERBS["detect"].command("detect").parse(["--config", str(config), "--out", "another"])
    saved = yaml.safe_load(config.read_text())
    assert values["out"] == "another"
    assert (values["max_steps"], values["lr"], list(values["train_size"])) == (50, 0.03, saved["train_size"])


def test_evaluation_without_training_gives_the_same_scores(trained: tuple[Path, dict[str, float]], data: Path) -> None:
    out, metrics = trained
    (out / "metrics.json").unlink()
    again = detect(data=data, out=out, evaluate=True, devices="cpu", precision="32", pictures=SMALL["pictures"])
    assert again == pytest.approx(metrics)
    assert (out / "metrics.json").exists()


def test_evaluation_accepts_options_of_training_only_unchanged(
    trained: tuple[Path, dict[str, float]], data: Path
) -> None:
    out, metrics = trained
    options = {"data": data, "out": out, "evaluate": True, **SMALL}
    assert detect(max_steps=50, lr=0.03, **options) == pytest.approx(metrics)
    for wrong in ({"max_steps": 60}, {"detections_per_image": 3}, {"test_size": 64}, {"train_size": (32, 64)}):
        with pytest.raises(UserError, match=f"so {next(iter(wrong))} would have no effect; leave that out"):
            detect(**(options | wrong))


@pytest.mark.parametrize("network", [{}, {"detector": "vitdet_small", "backbone": "test_vit"}], ids=["fpn", "vitdet"])
def test_a_resumed_run_and_a_repeated_one_end_with_the_same_bits(
    network: dict[str, str], data: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": data, "max_steps": 4, "precise_bn_batches": 1, "save_every_steps": 2}
    options |= SMALL | network
    first = detect(out=tmp_path / "a", **options)
    weights = load_file(tmp_path / "a" / DETECTOR_FILE)

    detect(out=tmp_path / "b", **options)
    assert all(torch.equal(weights[k], v) for k, v in load_file(tmp_path / "b" / DETECTOR_FILE).items())

    checkpoints = tmp_path / "b" / "checkpoints"
    os.replace(checkpoints / "previous.ckpt", checkpoints / "last.ckpt")  # as if it had been killed after step 2
    shutil.rmtree(tmp_path / "b" / "exported")
    assert detect(out=tmp_path / "b", resume=True, **options) == first
    resumed = load_file(tmp_path / "b" / DETECTOR_FILE)
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[k], resumed[k]) for k in weights)


@pytest.mark.parametrize(
    "network", [{"backbone": "resnet18"}, {"detector": "vitdet_small", "backbone": "test_vit"}], ids=["fpn", "vitdet"]
)
def test_weights_and_their_color_statistics_reach_the_detector(
    network: dict[str, str], data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    backbone = build_backbone(network["backbone"])
    save_backbone(tmp_path / "w.safetensors", backbone, metadata={"mean": "[0.7, 0.5, 0.6]", "std": "[0.2, 0.2, 0.2]"})
    rates = {"max_steps": 1, "warmup_steps": 0, "lr": 1e-9, "precise_bn_batches": 0}
    detect(data=data, out=tmp_path / "run", weights=tmp_path / "w.safetensors", **rates, **SMALL | network)
    model, notes = load_detector(tmp_path / "run" / DETECTOR_FILE)
    assert (notes.mean, notes.std) == ((0.7, 0.5, 0.6), (0.2, 0.2, 0.2))
    assert (notes.category_ids, notes.category_names) == ((1,), ("gland",))
    for name, value in backbone.named_parameters():
        torch.testing.assert_close(model.backbone.get_parameter(name), value, rtol=1e-5, atol=1e-6)


def test_a_run_without_a_checkpoint_resumes_from_its_weights(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(5)
    save_backbone(weights, build_backbone())
    options = {**SMALL, "max_steps": 1, "precise_bn_batches": 0, "weights": weights}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    detect(data=data, out=whole, **options)
    cut.mkdir()
    shutil.copy(whole / "config.yaml", cut)  # killed before its first checkpoint
    detect(data=data, out=cut, resume=True, **options)
    states = [load_file(run / DETECTOR_FILE) for run in (whole, cut)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_folder_of_another_kind_of_run_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: concl\n")
    with pytest.raises(UserError, match="another kind of run"):
        detect(data=data, out=tmp_path, resume=True, **SMALL)


def test_every_parameter_is_optimized_and_norms_do_not_decay() -> None:
    notes = DetectorNotes("mask_rcnn_fpn_small", "resnet18", (1,), ("gland",), 96, (0.5,) * 3, (0.2,) * 3)
    model = notes.build()
    optimizer = DetectionTask(model, notes, make_solver("1x")).updates().optimizer
    decayed, free = optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"], decayed["momentum"]) == (1e-4, 0.0, 0.9)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    norms = {names[id(p)] for p in parameter_groups(model)[1]["params"]}
    assert len(norms) == 2 * 28  # ResNet-18 and the pyramid
    assert {"features.backbone.net.bn1.weight", "features.fpn.inner_blocks.0.1.bias"} <= norms
    assert "heads.box_head.fc6.bias" not in norms


@pytest.mark.parametrize(
    "network",
    [{"backbone": "test_resnet"}, {"detector": "vitdet_small", "backbone": "test_vit"}],
    ids=["fpn", "vitdet"],
)
def test_parts_are_frozen_and_gradients_clipped_as_in_pretraining(
    network: dict[str, str], data: Path, tmp_path: Path
) -> None:
    """The three images are one step per epoch: the backbone first moves in the third step."""
    limits = {"freeze": ["features.*backbone*"], "freeze_epochs": 2, "clip_norm": 1e-3, "clip": "tensor"}
    options = SMALL | network | {"warmup_steps": 0, "lr": 0.02, "precise_bn_batches": 0, "pictures": 0}
    torch.manual_seed(0)
    first = build_backbone(network["backbone"])
    save_backbone(tmp_path / "w.safetensors", first)
    for steps in (2, 3):
        out = tmp_path / str(steps)
        detect(data=data, out=out, weights=tmp_path / "w.safetensors", max_steps=steps, optimizer=limits, **options)
        model, _ = load_detector(out / DETECTOR_FILE)
        moved = [not torch.equal(p, first.get_parameter(name)) for name, p in model.backbone.named_parameters()]
        assert any(moved) == (steps == 3)
        assert yaml.safe_load((out / "config.yaml").read_text())["optimizer"] == limits
    assert detect(data=data, out=out, evaluate=True, devices="cpu", precision="32", optimizer=limits)


def test_clipping_limits_each_gradient_of_a_detector() -> None:
    notes = DetectorNotes("mask_rcnn_fpn_small", "test_resnet", (1,), ("gland",), 96, (0.5,) * 3, (0.2,) * 3)
    task = DetectionTask(notes.build(), notes, make_solver("1x"), UpdateLimits(clip_norm=0.5, clip="tensor"))
    for parameter in task.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    task.updates().clip_gradients()
    assert max(p.grad.norm().item() for p in task.model.parameters() if p.grad is not None) == pytest.approx(
        0.5, rel=1e-4
    )


def test_a_share_of_the_images_is_trained_on_and_recorded(data: Path, tmp_path: Path) -> None:
    options = SMALL | {
        "backbone": "test_resnet",
        "precise_bn_batches": 0,
        "pictures": 0,
        "max_steps": 1,
        "fraction": 0.4,
    }
    detect(data=data, out=tmp_path / "run", **options)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["fraction"] == 0.4
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["facts"]["images"] == 1
    with pytest.raises(UserError, match="other values of fraction"):
        detect(data=data, out=tmp_path / "run", resume=True, **options | {"fraction": 0.7})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction is 0; give the share"),
        ({"optimizer": {"freeze": ["neck.*"]}}, "no parameter is called 'neck"),
        ({"optimizer": {"clip_norm": -1.0}}, "the clip norm must be at least 0"),
        ({"detector": "yolo"}, "no detector is called 'yolo'"),
        ({"schedule": "7x"}, "no schedule is called '7x'"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"train_size": (99, 96)}, "train_size is"),
        ({"drops": (400.0,)}, "shares of the run"),
        ({"base_steps": 1}, "base_steps is 1"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"train_crop": 8}, "train_crop is 8"),
        ({"detections_per_image": 0}, "detections_per_image is 0"),
        ({"anchor_sizes": ()}, "anchor_sizes are"),
        ({"precise_bn_batches": -1}, "precise_bn_batches is -1"),
        ({"pictures": -1}, "pictures is -1"),
        ({"anchor_sizes": (32, 64)}, "give 5 sizes"),
        ({"detector": "mask_rcnn_c4_small", "backbone": "test_efficientnet"}, "cannot run only its last stage"),
        ({"detector": "vitdet_small"}, "which resnet18 is not; use for example vit_small_patch16_224"),
        ({"backbone": "test_vit"}, "use the detector vitdet"),
        ({"lr": -1.0}, "give a positive learning rate"),
        ({"backbone": "resnet19"}, "resnet19"),
        ({"weights": "nowhere.pth"}, "nowhere.pth"),
        ({"evaluate": True}, "there is no trained detector"),
    ],
)
def test_a_mistake_is_named_and_leaves_no_files(
    options: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        detect(data=data, out=tmp_path / "run", **SMALL | {"max_steps": 1} | options)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_another_run_is_not_touched(trained: tuple[Path, dict[str, float]], data: Path) -> None:
    with pytest.raises(UserError, match="already holds a run"):
        detect(data=data, out=trained[0], max_steps=1, **SMALL)


def test_missing_outlines_and_other_categories_are_refused(data: Path, tmp_path: Path) -> None:
    for split, change, message in (
        ("train", {"annotations": []}, "outlines no object"),
        ("test", {"annotations": [], "categories": [{"id": 2, "name": "cell"}]}, "other categories"),
    ):
        copy = tmp_path / split
        shutil.copytree(data, copy)
        path = copy / "annotations" / f"{split}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(UserError, match=message):
            detect(data=copy, out=tmp_path / "run", max_steps=1, **SMALL)


def test_a_foreign_file_is_not_a_detector(tmp_path: Path) -> None:
    save_backbone(tmp_path / "w.safetensors", build_backbone("resnet18"))
    with pytest.raises(UserError, match="is not a detector of this version"):
        load_detector(tmp_path / "w.safetensors")


def test_why_a_detector_cannot_be_loaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    notes = DetectorNotes("mask_rcnn_fpn_small", "resnet18", (1,), ("thing",), 96, (0.5,) * 3, (0.25,) * 3)
    save_detector(path, notes.build(), replace(notes, backbone="resnet19"))
    with pytest.raises(UserError, match=r"w\.safetensors cannot be built: .*resnet19"):
        load_detector(path)

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("densepath.transfer.network_file.safe_open", denied)
    for read in (load_detector, is_segmenter):
        with pytest.raises(UserError, match=r"w\.safetensors cannot be read \(Permission denied\)"):
            read(path)


def test_several_processes_synchronize_norms_and_keep_their_activations(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = DetectorNotes("mask_rcnn_fpn_small", "regnetx_002", (1,), ("thing",), 96, (0.5,) * 3, (0.25,) * 3)
    model = notes.build().eval()
    x = torch.rand(1, 3, 64, 64)
    before = model.features(x)
    seen: list[torch.nn.Module] = []
    monkeypatch.setattr(fine_tuning, "train", lambda task, *_, **__: seen.append(task.model))
    batches = TrainingBatches(open_split(data, "train"), 2, 1, 0, (96, 96), world_size=2)
    hardware = replace(choose_hardware("cpu", "32"), devices=2)
    solver = make_solver("1x", 1)
    options: dict[str, Any] = {"hardware": hardware, "intervals": Intervals(), "config": {}, "seed": 0, "resume": False}
    trained = fine_tuning.fine_tune(model, notes, solver, batches, tmp_path, **options)
    (trains,) = seen
    assert all(type(m).__name__.startswith("Synchronized") for m in trains.modules() if isinstance(m, _BatchNorm))
    assert not any(type(m).__name__.startswith("Synchronized") for m in trained.modules())
    for name, level in before.items():
        torch.testing.assert_close(trains.features(x)[name], level)
        torch.testing.assert_close(trained.eval().features(x)[name], level)


@pytest.mark.parametrize("rescale", [False, True])
def test_filters_with_large_norms_are_rescaled_on_request(data: Path, tmp_path: Path, rescale: bool) -> None:
    backbone = build_backbone("resnet18")
    fresh = filter_norms(backbone)["net.conv1"]
    set_filter_norms(backbone, filter_norms(backbone) | {"net.conv1": 5 * fresh})
    save_backbone(tmp_path / "long.safetensors", backbone)
    options = {"max_steps": 1, "lr": 1e-6, "precise_bn_batches": 0, "rescale_filters": rescale}
    detect(data=data, out=tmp_path / "run", weights=tmp_path / "long.safetensors", **options, **SMALL)
    model, _ = load_detector(tmp_path / "run" / DETECTOR_FILE)
    assert filter_norms(model.backbone)["net.conv1"] == pytest.approx(fresh * (1 if rescale else 5), rel=0.05)


def test_a_published_network_with_patches_of_14_px_is_fine_tuned_on_grey_images_of_12_bits(
    data: Path, tmp_path: Path
) -> None:
    """Its folder gives backbone, mean and std; images of 96 px are not multiples of 14 px."""
    network = timm.create_model(
        "vit_huge_patch14_224", num_classes=0, img_size=56, embed_dim=32, depth=2, num_heads=2, reg_tokens=4,
        init_values=1e-5, mlp_ratio=5.3375, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU,
    )  # fmt: skip
    weights, grey = tmp_path / "Virchow2", tmp_path / "grey"
    weights.mkdir()
    torch.save(network.state_dict(), weights / "pytorch_model.bin")
    made = {"mean": [0.7, 0.5, 0.6], "std": [0.2, 0.3, 0.1], "input_size": [3, 56, 56]}
    config = {"architecture": "vit_huge_patch14_224", "model_args": {"num_heads": 2}, "pretrained_cfg": made}
    (weights / "config.json").write_text(json.dumps(config))
    shutil.copytree(data, grey)
    for path in grey.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16).save(path)
    options = {**SMALL, "detector": "vitdet_small", "data": grey, "out": tmp_path / "run"}
    detect(weights=weights, max_steps=2, **options)
    model, notes = load_detector(tmp_path / "run" / DETECTOR_FILE)
    assert notes.backbone.startswith("vit_huge_patch14_224(") and model.backbone.patch_size == 14
    assert (notes.mean, notes.std, notes.window) == ((0.7, 0.5, 0.6), (0.2, 0.3, 0.1), (0, 4095))
    assert read_config(tmp_path / "run")["backbone"] == notes.backbone  # type: ignore[index]
    detect(evaluate=True, **options)
    found = probe(data=grey, weights=weights, size=64)
    assert found["backbone"] == notes.backbone and found["train_positions"] == 3 * 8 * 8


@pytest.mark.parametrize(("recipe", "hours"), [("glas", 100), ("crag", None), ("glas_small", 0)])
def test_the_time_of_a_run_without_a_gpu_is_estimated(recipe: str, hours: int | None) -> None:
    config = resolve(DetectConfig, recipe, {"data": "D", "out": "R"}, recipes="detect")
    steps = 5000 if config.max_steps is None else config.max_steps
    assert _without_gpu(config, steps, "cuda") == []
    lines = _without_gpu(config, steps, "cpu")
    assert bool(lines) == (hours != 0)
    if hours:
        assert f"80,000 images with the mask_rcnn_fpn of a ResNet-18 are roughly {hours} hours on two cores" in lines[0]
