"""Detectors as ONNX files: onnxruntime finds in images of any size what the detector finds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import densepath
from densepath.cli import main
from densepath.core.errors import UserError
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.detection.detector_file import DetectorNotes, save_detector
from densepath.transfer.detection.instances import paste
from densepath.transfer.detection.onnx_graph import DetectorGraph
from densepath.transfer.detection.predictor import TrainedDetector

SIZES = ((64, 80), (300, 70), (199, 260))  # equal, wider than a window of ViTDet, and reduced


def trained(folder: Path, name: str, spec: PixelSpec | None = None) -> Path:
    """A detector with random weights, and masks that are not one half everywhere."""
    torch.manual_seed(0)
    spec = spec or PixelSpec(mean=(0.5, 0.4, 0.6), std=(0.2, 0.3, 0.25))
    backbone = "test_vit" if name.startswith("vitdet") else "test_resnet"
    categories = (4, 9), ("gland", "vessel")
    pixels = {"mean": spec.mean, "std": spec.std, "window": spec.window}
    notes = DetectorNotes(
        name, backbone, *categories, 64, anchor_sizes=(8, 16, 32, 48, 64), detections_per_image=12, **pixels
    )
    model: Any = notes.build()
    if model.finds_masks:
        nn.init.normal_(model.heads.mask_predictor.mask_fcn_logits.weight, std=0.5)
    else:
        nn.init.constant_(model.head.classification_head.cls_logits.bias, -1.0)
    save_detector(folder / "exported" / "detector.safetensors", model, notes)
    return folder


def stored(spec: PixelSpec, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    return rng.integers(0, int(spec.window[1]) + 1, (height, width, spec.channels), dtype=spec.image_dtype)


def raw(model: TrainedDetector, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The output of the network itself while the image is predicted, with boxes in pixels of the image."""
    kept: list[dict[str, Tensor]] = []
    real = model.detector.detect
    with monkeypatch.context() as patch:
        patch.setattr(model.detector, "detect", lambda images: kept.extend(found := real(images)) or found)
        model.predict(image, window=0)
    return {name: value.numpy() for name, value in kept[0].items()}


@pytest.mark.parametrize("name", ["mask_rcnn_fpn", "mask_rcnn_c4", "mask_rcnn_dc5", "retinanet", "vitdet"])
def test_the_file_finds_what_the_detector_finds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    deep = PixelSpec(2, 1, (100.0, 4000.0), (0.4,), (0.2,))  # grey, 16 bits
    run = trained(tmp_path / "run", f"{name}_small", deep if name == "retinanet" else None)
    assert main(["export", str(run), "--layout", "onnx"]) == 0
    assert "VerifyOutputSizes" not in capfd.readouterr().err  # a warning of onnxruntime for each object
    path = run / "exported" / "detector.onnx"
    onnx.checker.check_model(path, full_check=True)
    session, model = onnxruntime.InferenceSession(path), densepath.load_detector(run)
    for size in SIZES:
        image = stored(model.notes.spec, *size)
        found = dict(zip(names(session), session.run(None, {"image": image, "score": threshold(0.0)}), strict=True))
        expected = raw(model, image, monkeypatch)
        assert len(expected["boxes"]) == 12
        for key in ("boxes", "scores", "labels", *(["masks"] if model.finds_masks else [])):
            np.testing.assert_allclose(found[key], expected[key], atol=1e-3, rtol=0, err_msg=key)
        if model.finds_masks:
            wanted = np.zeros(size, np.int32)
            pasted = [paste(*pair, size) for pair in zip(expected["masks"], expected["boxes"].tolist(), strict=True)]
            for k in sorted(range(12), key=lambda k: (-pasted[k][2].sum(), -k)):
                top, left, mask = pasted[k]
                wanted[top : top + mask.shape[0], left : left + mask.shape[1]][mask] = k + 1
            assert len(np.unique(wanted)) > 3
            assert (found["label_map"] != wanted).sum() <= 2  # pixels with a probability of one half
        score = float(np.median(expected["scores"]))
        assert len(session.run(["scores"], {"image": image, "score": threshold(score)})[0]) == 6
    nothing = session.run(None, {"image": image, "score": threshold(1.1)})
    assert [len(each) for each in nothing[:4]] == [0] * len(nothing[:4])
    assert len(nothing) == 3 or not nothing[4].any()
    dtype = "uint16" if name == "retinanet" else "uint8"
    assert [(put.name, put.type, put.shape) for put in session.get_inputs()] == [
        ("image", f"tensor({dtype})", ["height", "width", model.notes.spec.channels]),
        ("score", "tensor(float)", [1]),
    ]
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == ["gland", "vessel"]
    assert json.loads(facts["densepath_detector"])["window"] == list(model.notes.window)
    assert "x1, y1, x2, y2 in pixels of the image" in facts["boxes"]


@pytest.mark.parametrize("name", ["mask_rcnn_fpn_small", "mask_rcnn_c4_small", "vitdet_small"])
def test_an_image_may_have_no_objects(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", name)
    model = densepath.load_detector(run)
    heads: Any = model.detector.heads
    nn.init.constant_(heads.box_predictor.cls_score.bias[:1], 50.0)  # of the background
    save_detector(run / "exported" / "detector.safetensors", model.detector, model.notes)
    session = onnxruntime.InferenceSession(densepath.export(run, layout="onnx"))
    for size in SIZES[:2]:
        found = session.run(None, {"image": stored(model.notes.spec, *size), "score": threshold(0.0)})
        assert [len(each) for each in found[:4]] == [0] * 4
        assert found[4].shape == size and not found[4].any()


@pytest.mark.parametrize("name", ["mask_rcnn_fpn_small", "retinanet_small"])
def test_objects_without_a_pixel_are_left_out_as_in_predictions(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", name)
    model = densepath.load_detector(run)
    if model.finds_masks:
        heads: Any = model.detector.heads
        nn.init.constant_(heads.mask_predictor.mask_fcn_logits.bias, -4.0)
        save_detector(run / "exported" / "detector.safetensors", model.detector, model.notes)
    fewer = 0
    session = onnxruntime.InferenceSession(densepath.export(run, layout="onnx"))
    for size in ((2, 3), *SIZES):
        image = stored(model.notes.spec, *size)
        expected = model.predict(image, score=0.0, window=0)
        boxes, scores, labels, *masks = session.run(None, {"image": image, "score": threshold(0.0)})
        np.testing.assert_allclose(boxes, expected.boxes, atol=1e-3, rtol=0)
        np.testing.assert_allclose(scores, expected.scores, atol=1e-3, rtol=0)
        if masks:
            assert len(masks[0]) == len(labels) == len(expected)
            assert (masks[1] != expected.label_map()).sum() <= 2  # pixels with a probability of one half
        fewer += len(expected) < 12
    assert fewer


def names(session: onnxruntime.InferenceSession) -> list[str]:
    return [output.name for output in session.get_outputs()]


def threshold(score: float) -> np.ndarray:
    return np.array([score], np.float32)


def test_a_graph_for_one_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", "retinanet_small")
    real: Callable = DetectorGraph.forward
    with monkeypatch.context() as patch:
        patch.setattr(DetectorGraph, "forward", lambda self, image, score: real(self, image[: len(image)], score))
        assert main(["export", str(run), "--layout", "onnx"]) == 2
    printed = capsys.readouterr()
    assert "a retinanet_small on test_resnet cannot be written as ONNX" in printed.err and not printed.out
    assert not list(run.rglob("*.onnx*"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'densepath\[onnx\]'"):
        densepath.export(run, tmp_path / "a.onnx", layout="onnx")


def test_the_name_of_the_file_says_that_it_is_onnx(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"d\.pth must end in \.onnx for the layout onnx"):
        densepath.export(tmp_path, tmp_path / "d.pth", "onnx")


def test_a_file_that_exists_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "d.onnx").write_text("of someone else")
    with pytest.raises(UserError, match=r"d\.onnx already exists; name another file"):
        densepath.export(tmp_path, tmp_path / "d.onnx", "onnx")
    assert (tmp_path / "d.onnx").read_text() == "of someone else"
