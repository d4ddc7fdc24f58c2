"""What the pixels of a run are: chosen at its start, recorded, exported, and used by whoever takes its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from densepath.analysis.show import show_concepts, show_reconstruction, show_views
from densepath.analysis.show_similarity import show_similarity
from densepath.core.errors import UserError
from densepath.nets.backbones import build_backbone
from densepath.nets.weights import load_weights, pixel_notes, save_backbone
from densepath.nets.weights.pixels import pixels_of_weights
from densepath.runs.checkpoints import read_checkpoint, write_checkpoint
from densepath.sources.image_files import ImageFiles
from densepath.sources.pixel_source import PixelSpec
from densepath.training.export import export
from densepath.training.pretrain import pretrain
from densepath.transfer.detection.detect import detect
from densepath.transfer.detection.detector_file import load_detector
from densepath.transfer.detection.preparation import recorded_pixels
from densepath.transfer.embed.encoder import load_encoder
from densepath.transfer.probe.probe import probe
from densepath.transfer.trainings import pixels_of_run
from densepath.views.augment import Augment

PLAIN = Augment(jitter=0.0, grayscale=0.0)  # nothing that needs color
SMALL = {"backbone": "test_resnet", "batch_size": 8, "view_size": 48, "devices": "cpu", "precision": "32", "workers": 0}
MOCO = {"method": "moco_v2", "method_options": {"queue_size": 32}, "augment": PLAIN}
GREY = PixelSpec.default(1, (0.0, 4095.0))


@pytest.fixture
def xrays(tmp_path: Path) -> Path:
    """A folder of 16 grey images of 12 bits in 16."""
    return write_xrays(tmp_path / "xrays", 16)


def write_xrays(folder: Path, count: int, side: int = 64) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.random((8, 8), dtype=np.float32))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)
        pixels = (smooth * 4095).round().astype(np.uint16)
        pixels[0, 0] = 4095
        tifffile.imwrite(folder / f"{number:02d}.tif", pixels, photometric="minisblack")
    return folder


@pytest.fixture
def outlined(tmp_path: Path) -> Path:
    """Grey images of 12 bits with bright squares, outlined."""
    root = tmp_path / "outlined"
    for split, count in (("train", 4), ("test", 2)):
        write_xrays(root / split, count)
        truth: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
        for number, path in enumerate(sorted((root / split).iterdir())):
            pixels = tifffile.imread(path) // 4
            pixels[10:34, 20:50] += 3000
            tifffile.imwrite(path, pixels, photometric="minisblack")
            truth["images"].append({"id": number, "file_name": path.name, "width": 64, "height": 64})
            corners = [20, 10, 50, 10, 50, 34, 20, 34]
            truth["annotations"].append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [20, 10, 30, 24], "area": 720}
                | {"segmentation": [corners], "iscrowd": 0}
            )
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(truth))
    return root


def run_of(data: Path, out: Path, **options) -> Path:
    return pretrain(data=data, out=out, **{**SMALL, **MOCO, "max_steps": 2, **options})


def test_a_grey_run_from_data_to_transfer(tmp_path: Path, xrays: Path, outlined: Path) -> None:
    run = run_of(xrays, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert PixelSpec.from_record(config["pixels"]) == GREY
    assert (config["mean"], config["std"], config["window"]) == (None, None, None)
    with safe_open(run / "exported" / "backbone.safetensors", framework="pt") as file:
        assert file.get_tensor("conv1.0.weight").shape[1] == 1
        said = file.metadata()
    assert said["channels"] == "1" and said["window"] == "[0.0, 4095.0]" and said["mean"] == "[0.449]"
    assert pixels_of_weights(run) == GREY
    (run / "exported" / "backbone.safetensors").unlink()
    assert pixels_of_weights(run) == GREY  # from the checkpoint, beside the configuration
    assert pixels_of_weights(export(run)) == GREY

    scores = probe(data=outlined, weights=run, backbone="test_resnet", size=64)
    assert scores["mean_iou"] > 80  # the squares are brighter, which a reading of the upper 8 bits would not show
    large = str(write_xrays(tmp_path / "large", 6, side=128))
    show_concepts(data=large, out=tmp_path / "c.png", weights=(str(run),), backbone="test_resnet", stages=(2,))
    found = show_similarity(
        data=(str(xrays),), out=tmp_path / "s.png", weights=(str(run),), backbone="test_resnet", stage=3, view_size=48
    )
    assert found["picture"].is_file()
    options = {"backbone": "test_resnet", "detector": "mask_rcnn_fpn_small", "batch_size": 2, "devices": "cpu"}
    options |= {"max_steps": 2, "train_size": (64, 64), "test_size": 64, "precise_bn_batches": 1, "workers": 0}
    detect(data=outlined, out=tmp_path / "d", weights=run, **options)
    detector, notes = load_detector(tmp_path / "d" / "exported" / "detector.safetensors")
    assert notes.spec == GREY and detector.backbone.in_channels == 1
    assert len(list((tmp_path / "d" / "pictures").iterdir())) == 2


def test_a_run_on_dim_images_of_16_bits_is_used_on_16_bits(tmp_path: Path, xrays: Path, outlined: Path) -> None:
    """Its window, up to 200, would be one of 8 bits."""
    files = [path for folder in (xrays, outlined) for path in folder.rglob("*.tif")]
    for path in files:
        tifffile.imwrite(path, tifffile.imread(path) // 32, photometric="minisblack")
    run, spec = run_of(xrays, tmp_path / "run", window=(0, 200)), PixelSpec.default(1, (0.0, 200.0))
    images = ImageFiles(sorted(xrays.iterdir()))
    encoder, _ = load_encoder(run, "test_resnet", images)
    assert encoder.spec == replace(spec, bits=16) == pixels_of_run(run, images, None)
    eight = images.spec = PixelSpec.default(1)
    images._dtype = torch.uint8
    assert load_encoder(run, "test_resnet", images)[0].spec == eight  # images of other bits
    options = {"backbone": "test_resnet", "detector": "mask_rcnn_fpn_small", "devices": "cpu", "train_size": (64, 64)}
    options |= {"test_size": 64, "precise_bn_batches": 1, "workers": 0, "data": outlined, "out": tmp_path / "d"}
    detect(weights=run, batch_size=2, max_steps=1, **options)
    _, notes = load_detector(tmp_path / "d" / "exported" / "detector.safetensors")
    assert notes.spec == encoder.spec and notes.spec.image_dtype is np.uint16
    assert recorded_pixels(yaml.safe_load((tmp_path / "d" / "config.yaml").read_text()), tmp_path) == encoder.spec


@pytest.mark.parametrize("method", ["mae", "conv_mim", "spark", "byol"])
def test_every_kind_of_method_takes_grey_images(tmp_path: Path, xrays: Path, method: str) -> None:
    options = {
        "mae": {"decoder_dim": 16, "decoder_heads": 2, "decoder_depth": 1},
        "conv_mim": {"patch": 16, "width": 16, "heads": 2},
        "spark": {"decoder_dim": 32},
        "byol": {},
    }
    backbone = "test_vit" if method == "mae" else "resnet10t" if method == "spark" else "test_resnet"
    size = 64 if method == "spark" else 48
    augment = {"augment": PLAIN} if method in ("byol", "conv_mim") else {"augment": None}
    changed = {"method": method, "method_options": options[method], "backbone": backbone, "view_size": size, **augment}
    drawn = []

    def draw(made, path, spec):
        drawn.append((made, spec))
        return path

    run = run_of(xrays, tmp_path / "run", **changed, draw=draw)
    assert pixels_of_weights(run) == GREY
    if method != "byol":
        assert drawn[0][0].prediction.shape[1] == 1 and drawn[0][1] == GREY
        show_reconstruction(data=str(xrays), run=run, out=tmp_path / "r.png", count=2)
        color = tmp_path / "color"
        color.mkdir()
        Image.new("RGB", (64, 64)).save(color / "a.png")
        with pytest.raises(UserError, match="was trained on images with 1 channel"):
            show_reconstruction(data=str(color), run=run, out=tmp_path / "r2.png", count=1)


def test_single_values_are_chosen_by_hand_and_kept_when_a_run_is_resumed(
    tmp_path: Path, xrays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"window": (100, 3000), "mean": (0.4,), "std": (0.3,)}
    spec = PixelSpec(2, 1, (100.0, 3000.0), (0.4,), (0.3,))
    run = run_of(xrays, tmp_path / "run", **chosen)
    assert pixels_of_weights(run) == spec
    other = run_of(xrays, tmp_path / "other")
    weights = [read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"] for out in (run, other)]
    assert not torch.equal(*(state["method.backbone.net.conv1.0.weight"] for state in weights))
    # The sample of the images uses fewer bits now, so that the window would be another
    monkeypatch.setattr(ImageFiles, "_highest", lambda self: 511)
    again = run_of(xrays, tmp_path / "other", resume=True)
    assert pixels_of_weights(again) == GREY
    with pytest.raises(UserError, match="started with other values of mean"):
        run_of(xrays, tmp_path / "run", resume=True, **(chosen | {"mean": (0.5,)}))
    for wrong in ({"mean": (0.1, 0.2, 0.3)}, {"window": (5, 5)}, {"std": (-1.0,)}):
        with pytest.raises(UserError):
            run_of(xrays, tmp_path / "wrong", **wrong)
    assert not (tmp_path / "wrong").exists()


def test_a_run_is_not_resumed_with_images_of_other_channels(tmp_path: Path, xrays: Path, tiles: Path) -> None:
    run = run_of(xrays, tmp_path / "run")
    with pytest.raises(UserError, match="the run was trained on images with 1 channel, but these have 3"):
        run_of(tiles, run, resume=True)


def test_color_weights_start_a_grey_run(tmp_path: Path, xrays: Path, tiles: Path) -> None:
    color = run_of(tiles, tmp_path / "color", max_steps=1)
    grey = run_of(xrays, tmp_path / "grey", weights=color, max_steps=1, optimizer=_standing())
    first, second = (build_backbone("test_resnet", channels) for channels in (3, 1))
    load_weights(first, color)
    load_weights(second, grey)
    torch.testing.assert_close(second.net.conv1[0].weight, first.net.conv1[0].weight.sum(1, keepdim=True))


def _standing():
    from densepath.training.optimizers import Optimizer

    return Optimizer(lr=1e-30, weight_decay=0.0)


def test_pictures_of_views_show_the_window(tmp_path: Path, xrays: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: moco_v2\naugment: {jitter: 0.0, grayscale: 0.0, blur: 0.0}\n")
    out = show_views(data=xrays, out=tmp_path / "v.png", config=tmp_path / "recipe.yaml", view_size=48, count=2)
    shown = np.asarray(Image.open(out).convert("RGB")).astype(int)
    inside = (shown.max(2) < 250) & (np.ptp(shown, axis=2) == 0)  # grey, and not the paper
    assert inside.mean() > 0.2 and np.ptp(shown[inside]) > 200


def test_old_weights_without_a_window_are_rgb(tmp_path: Path) -> None:
    notes = {k: v for k, v in pixel_notes(PixelSpec()).items() if k in ("mean", "std")}
    save_backbone(tmp_path / "w.safetensors", build_backbone("test_resnet"), metadata=notes)
    assert pixels_of_weights(tmp_path / "w.safetensors") == PixelSpec()


def test_a_run_of_the_first_version_reads_grey_images_as_it_did(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """All images were 8-bit RGB; records did not say so, and momentum encoders followed batches."""
    for kind in ("grey", "color"):
        (tmp_path / kind).mkdir()
        for number in range(16):
            noise = np.random.default_rng(number).integers(0, 256, (64, 64), np.uint8)
            Image.fromarray(noise).convert("L" if kind == "grey" else "RGB").save(tmp_path / kind / f"{number:02}.png")
    options = {"backbone": "test_resnet", "method": "byol", "batch_size": 8, "accumulate": 2, "view_size": 48}
    options |= {"devices": "cpu", "precision": "32", "log_every": 1, "workers": 0, "max_steps": 4}
    whole = pretrain(data=tmp_path / "color", out=tmp_path / "whole", **options)
    old = pretrain(data=tmp_path / "color", out=tmp_path / "old", save_every_steps=2, **options)
    (old / "checkpoints" / "last.ckpt").unlink()
    state = read_checkpoint(old / "checkpoints" / "previous.ckpt")
    state["facts"] = {name: value for name, value in state["facts"].items() if isinstance(value, int)}
    write_checkpoint(old / "checkpoints", state)
    record = yaml.safe_load((old / "config.yaml").read_text())
    del record["pixels"]
    (old / "config.yaml").write_text(yaml.safe_dump(record))
    pretrain(data=tmp_path / "grey", out=old, resume=True, **options)
    assert "updated momentum encoders and queues once per batch; from now on" in capsys.readouterr().err
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, old))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for path in (tmp_path / "grey").iterdir():
        pixels = np.asarray(Image.open(path)).astype(np.uint16) * 16
        tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack")
        path.unlink()
    with pytest.raises(UserError, match=rf"read all images as 8-bit RGB.*--weights {old} --out {old}_2"):
        pretrain(data=tmp_path / "grey", out=old, resume=True, **options)


@pytest.mark.parametrize("given", [{}, {"std": (0.3, 0.3, 0.3)}])
def test_a_run_from_weights_normalizes_as_they_were_trained(
    tmp_path: Path, tiles: Path, given: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, spec = build_backbone("test_resnet"), PixelSpec(mean=(0.5, 0.4, 0.6), std=(0.5, 0.5, 0.2))
    save_backbone(tmp_path / "w.safetensors", backbone, metadata=pixel_notes(spec))
    run = {**SMALL, **MOCO, "augment": Augment(), "max_steps": 1, "weights": tmp_path / "w.safetensors", **given}
    out = pretrain(data=tiles, out=tmp_path / "run", **run)
    known = PixelSpec(mean=spec.mean, std=given.get("std", spec.std))
    assert pixels_of_weights(out) == known
    drawn: list[PixelSpec] = []
    monkeypatch.setattr("densepath.analysis.show.draw_views", lambda batch, views, out, spec: drawn.append(spec) or out)
    show_views(data=tiles, out=tmp_path / "views.png", config=out / "config.yaml")
    assert drawn == [known]
    assert pretrain(data=tiles, out=tmp_path / "run", resume=True, **run) == out
    grey = write_xrays(tmp_path / "grey", 8)
    of_grey = pretrain(data=grey, out=tmp_path / "of_grey", **{**run, **MOCO, "mean": None, "std": None})
    assert pixels_of_weights(of_grey) == GREY
